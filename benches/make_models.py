"""Base models with random weights in the shapes of the benchmark: `make_models.py <folder>` makes `<folder>/A` and `<folder>/B`.

A has the shape of SmolLM2-135M; B is small enough that overheads show. Speed does not depend on the values.
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

COMMON = dict(tie_word_embeddings=True, max_position_embeddings=8192, bos_token_id=0, eos_token_id=0, pad_token_id=None)
SHAPES = {
    "A": dict(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
              intermediate_size=1536, vocab_size=49152, rope_theta=100000.0),
    "B": dict(hidden_size=256, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
              intermediate_size=688, vocab_size=4096, rope_theta=10000.0),
}


def main() -> None:
    folder = Path(sys.argv[1])
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**shape, **COMMON)).float().save_pretrained(folder / name)


if __name__ == "__main__":
    main()
