"""Makes tests/parity/goldens/architectures: what transformers and peft compute on tiny random models, one per architecture.

    python tests/parity/make-architecture-goldens.py            (versions: requirements.txt beside this file)

The Rust test crates/model/tests/architectures.rs reads them. Everything is seeded; the files are random numbers made by this
script and carry the licence of this repository. Sliding windows are shorter than the texts, soft caps are low enough to bend.

goldens/architectures/<model>/   config.json, *.safetensors, logits.safetensors (ids.N, logits.N)
                      .../lora/  adapter_config.json and adapter_model.safetensors as peft writes them,
                                 adapted.safetensors (ids.N, logits.N), gradients.safetensors (by tensor name, with the batch:
                                 ids.N, targets.N; a target of -1 does not count)
"""

import json
import shutil
import zlib
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

GOLDENS = Path(__file__).parent / "goldens" / "architectures"
VOCABULARY = 61

COMMON = dict(
    hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64,
)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

MODELS = {
    # biases everywhere; dynamic scaling, which changes nothing up to max_position_embeddings
    "llama-biases": dict(
        model_type="llama",
        config=dict(
            **COMMON, attention_bias=True, mlp_bias=True,
            rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0),
        ),
    ),
    "llama-yarn": dict(
        model_type="llama",
        config=dict(
            **COMMON, head_dim=8,
            rope_parameters=dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=32, beta_fast=8.0),
        ),
    ),
    # a ramp that begins and ends between dimensions, an attention factor of its own
    "llama-yarn-untruncated": dict(
        model_type="llama", dtype=torch.float16,
        config=dict(
            **COMMON, head_dim=8, tie_word_embeddings=True,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=20.0, factor=4.0, original_max_position_embeddings=32, beta_fast=8.0, beta_slow=2.0,
                truncate=False, attention_factor=0.8),
        ),
    ),
    # the attention factor from mscale; what else is yarn's default, which llama.cpp computes too
    "qwen2-yarn": dict(
        model_type="qwen2", dtype=torch.float16,
        config=dict(
            **{**COMMON, "hidden_size": 32}, use_sliding_window=False, tie_word_embeddings=True,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=20.0, factor=4.0, original_max_position_embeddings=32, mscale=1.2, mscale_all_dim=0.6),
        ),
    ),
    # window in every layer, bf16 in shards
    "mistral": dict(
        model_type="mistral", dtype=torch.bfloat16, shard="8KB",
        config=dict(**COMMON, sliding_window=7),
    ),
    # biases of query, key and value, window from the second layer on, f16
    "qwen2": dict(
        model_type="qwen2", dtype=torch.float16,
        config=dict(
            **COMMON, use_sliding_window=True, sliding_window=9, max_window_layers=1, tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
        ),
    ),
    # normalised queries and keys, heads that are wider than hidden / heads
    "qwen3": dict(
        model_type="qwen3", lora=dict(r=2, lora_alpha=4, target_modules=PROJECTIONS),
        config=dict(**COMMON, head_dim=6, use_sliding_window=False),
    ),
    # fused projections
    "phi3": dict(
        model_type="phi3",
        lora=dict(r=2, lora_alpha=4, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
        config=dict(**COMMON, sliding_window=11, pad_token_id=0),
    ),
    # within the context of pretraining, which the texts do not leave
    "phi3-longrope": dict(
        model_type="phi3",
        config=dict(
            **COMMON, original_max_position_embeddings=48, pad_token_id=0,
            rope_parameters=dict(
                rope_type="longrope", rope_theta=10000.0, short_factor=[1.1, 1.7], long_factor=[3.0, 5.0],
                original_max_position_embeddings=48),
        ),
    ),
    # GeGLU, norms around each block, soft caps, scaled embedding, windows alternating
    "gemma2": dict(
        model_type="gemma2", lora=dict(r=2, lora_alpha=4, target_modules=PROJECTIONS),
        config=dict(
            **{**COMMON, "num_hidden_layers": 3}, head_dim=6, sliding_window=8, query_pre_attn_scalar=5,
            attn_logit_softcapping=2.5, final_logit_softcapping=4.0,
        ),
    ),
    # LayerNorm, learned positions, fused transposed projections, GELU without a gate
    "gpt2": dict(
        model_type="gpt2", lora=dict(r=2, lora_alpha=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
        config=dict(n_embd=16, n_layer=2, n_head=4, n_inner=36, n_positions=64),
    ),
}


def randomised(model, seed):
    """Larger weights than a fresh model has, so that attention and gates are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif parameter.dim() == 1:
                start = 0.0 if "Gemma" in type(model).__name__ else 1.0  # Gemma adds the 1 itself
                parameter.copy_(start + 0.3 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return model


def token_ids(generator, length):
    return torch.randint(0, VOCABULARY, (length,), generator=generator)


def write_logits(model, path, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for index, length in enumerate([1, 12, 40]):
        ids = token_ids(generator, length)
        with torch.no_grad():
            tensors[f"logits.{index}"] = model(input_ids=ids[None]).logits[0].contiguous()
        tensors[f"ids.{index}"] = ids.float()
    save_file(tensors, path)


def make(name, spec, seed):
    folder = GOLDENS / name
    config = AutoConfig.for_model(
        spec["model_type"], vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1, **spec["config"])
    model = randomised(AutoModelForCausalLM.from_config(config), seed).to(spec.get("dtype", torch.float32))
    model.save_pretrained(folder, max_shard_size=spec.get("shard", "10MB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    # loaded afresh in f32; eager, because the other kernels leave soft caps out
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    write_logits(model, folder / "logits.safetensors", seed + 1)
    if "lora" in spec:
        make_lora(model, spec["lora"], folder / "lora", seed + 2)


def make_lora(model, lora, folder, seed):
    generator = torch.Generator().manual_seed(seed)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **lora)).eval()
    adapters = {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}
    with torch.no_grad():
        for parameter in adapters.values():
            # B is not zero: with zeros every gradient of A would be zero and prove nothing
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"  # peft writes a set in any order
    config = json.loads(path.read_text())
    config["target_modules"].sort()
    config["base_model_name_or_path"] = None
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_logits(model, folder / "adapted.safetensors", seed + 1)

    tensors = {}
    batch = []
    for index, length in enumerate([5, 33]):
        ids = token_ids(generator, length)
        targets = torch.full((length,), -1)
        targets[:-1] = ids[1:]
        targets[torch.rand(length, generator=generator) < 0.3] = -1
        batch.append((ids, targets))
        tensors[f"ids.{index}"], tensors[f"targets.{index}"] = ids.float(), targets.float()
    num_targets = sum(int((targets >= 0).sum()) for _, targets in batch)
    for ids, targets in batch:
        logits = model(input_ids=ids[None]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
        (losses / num_targets).backward()
    for name, parameter in adapters.items():
        tensors[name.replace(".default", "")] = parameter.grad.clone().contiguous()
    save_file(tensors, folder / "gradients.safetensors")


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for name, spec in MODELS.items():
        make(name, spec, zlib.crc32(name.encode()))  # by name, so that a new model leaves the others as they are
    total = 0
    for path in sorted(GOLDENS.rglob("*")):
        if path.is_file():
            total += path.stat().st_size
            print(path.relative_to(GOLDENS), path.stat().st_size)
    assert total < 600_000, total


if __name__ == "__main__":
    main()
