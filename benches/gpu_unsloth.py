"""Unsloth on a card, in bf16: the same job and answer as `gpu_peft.py`, and its loop, by an interpreter that has Unsloth.

As its documentation has it, but for the trainer: `FastLanguageModel` loads the base and adds the adapter. Recomputation is its own,
which keeps the inputs of layers in the host's memory: less of the card than where they stay on it.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

# read when Unsloth is imported, which comes before PEFT and transformers, because it changes them. Nothing is asked for, and nobody told,
# over the network; what it compiles would go to the working directory.
os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1",
                  UNSLOTH_COMPILE_LOCATION=str(Path(tempfile.gettempdir(), "tunesmith-unsloth-compiled")))

from unsloth import FastLanguageModel  # noqa: E402
import torch  # noqa: E402
from gpu_peft import MODULES, timed  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402


def write_tokenizer(folder: str) -> None:
    """Unsloth loads one with every model. First and last have the ids of the model's configuration; without padding, it would add some."""
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3}, unk_token="<unk>"))
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def main() -> None:
    job = json.loads(sys.argv[1])
    if job["dtype"] != "bf16":
        sys.exit("Unsloth is measured in bf16 alone: its own kernels are for 16 bits")
    write_tokenizer(job["model"])
    checkpointing = "unsloth" if job["recompute"] else False
    # longer sequences would be cut
    length = max(map(len, json.loads(Path(job["batch"]).read_text())))
    model, _ = FastLanguageModel.from_pretrained(model_name=job["model"], max_seq_length=length, dtype=torch.bfloat16, load_in_4bit=False,
                                                 use_gradient_checkpointing=checkpointing, fix_tokenizer=False)
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, lora_dropout=0.0, bias="none", target_modules=MODULES,
                                             use_gradient_checkpointing=checkpointing)
    FastLanguageModel.for_training(model, use_gradient_checkpointing=checkpointing)
    print(json.dumps(timed(model, job, "unsloth", "unsloth_zoo")))


if __name__ == "__main__":
    main()
