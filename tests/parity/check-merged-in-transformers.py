"""Loads a merged model that `tunesmith-trainer export` wrote with transformers and compares it with base and adapter in peft.

    tunesmith-trainer export --job <job with format merged-safetensors>
    python tests/parity/check-merged-in-transformers.py <base> <adapter> <merged>

The exit code is 1 when transformers misses or does not know a tensor, when a logit differs from that of base and adapter by more
than the rounding of the weights explains, when the adapter changes nothing, or when the tokenizer or the chat template is
another. Versions: requirements.txt.
"""

import sys
import warnings

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

# relative to the largest logit: half the distance between neighbours, times a bound on how such errors add up
ALLOWED = {torch.float32: 1e-4, torch.float16: 4 / 2048, torch.bfloat16: 4 / 256}
TEXT = "The ferry leaves at 7:45 from pier 3; it's full, we've sold 1,234 tickets.\n\nGrüße an Zoë – 東京!"


def main(base, adapter, merged):
    warnings.simplefilter("error")  # missing or surplus tensors are reported as warnings
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    stored = AutoModelForCausalLM.from_pretrained(merged, dtype="auto").dtype
    got, info = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, output_loading_info=True)
    untuned = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (base, merged)]
    ids = torch.tensor([tokenizers[1](TEXT)["input_ids"]])
    with torch.no_grad():
        found = got(input_ids=ids).logits[0]
        before = untuned(input_ids=ids).logits[0]
        wanted = PeftModel.from_pretrained(untuned, adapter).eval()(input_ids=ids).logits[0]
    largest = wanted.abs().max().item()
    difference = (found - wanted).abs().max().item() / largest
    effect = (before - wanted).abs().max().item() / largest
    chat = [{"role": "user", "content": "Who signs the log?"}]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for tokenizer in tokenizers]
    same = tokenizers[0](TEXT)["input_ids"] == tokenizers[1](TEXT)["input_ids"] and texts[0] == texts[1]
    strange = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
    print(f"stored as {stored}; largest relative difference of a logit {difference:.2e}, allowed {ALLOWED[stored]:.2e}; "
          f"the adapter changes logits by {effect:.2e}; tokenizer and template {'the same' if same else 'DIFFER'}; "
          f"tensors that transformers misses or does not know: {strange or 'none'}")
    return 0 if difference <= ALLOWED[stored] and effect > 5 * difference and same and not strange else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
