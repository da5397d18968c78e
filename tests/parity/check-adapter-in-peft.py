"""Loads an adapter that Tunesmith wrote with Python peft and compares the logits.

    cargo run -p tunesmith-training --example adapter-for-peft -- <base> <out> [lora|rslora|dora|adalora|ia3]
    python tests/parity/check-adapter-in-peft.py <base> <out>/adapter <out>/logits.json

Exit code 1 when peft does not use every tensor of the adapter or a logit differs by more than 1e-4. Versions: requirements.txt.
"""

import json
import sys
import warnings

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def main(base, adapter, expected):
    warnings.simplefilter("error")  # peft reports missing or surplus tensors as warnings
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # peft warns of the rank_pattern of every AdaLoRA adapter, its own included, and then uses it
    warnings.filterwarnings("ignore", message="The following rank_pattern keys", category=RuntimeWarning)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with open(expected) as file:
        golden = json.load(file)
    ids = torch.tensor([golden["ids"]])
    wanted = torch.tensor(golden["logits"])
    with torch.no_grad():
        untuned = model(input_ids=ids).logits[0]
        tuned = PeftModel.from_pretrained(model, adapter).eval()
        got = tuned(input_ids=ids).logits[0]
    with safe_open(f"{adapter}/adapter_model.safetensors", "pt") as file:
        in_file = len(list(file.keys()))
    in_model = sum(1 for name, _ in tuned.named_parameters() if "lora_" in name or "ia3_l" in name)
    difference = (got - wanted).abs().max().item()
    effect = (got - untuned).abs().max().item()
    print(f"tensors in file {in_file}, in peft {in_model}; largest logit difference {difference:.2e}; the adapter changes logits by {effect:.2e}")
    good = in_file == in_model and difference <= TOLERANCE and effect > 100 * TOLERANCE
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
