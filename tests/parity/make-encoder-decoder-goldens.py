"""Makes tests/parity/goldens/encoder-decoder: what transformers and peft compute on tiny random T5 models.

    python tests/parity/make-encoder-decoder-goldens.py            (versions: requirements.txt beside this file)

The Rust test crates/model/tests/encoder_decoder.rs reads them. Everything is seeded; the files are random numbers made by this
script and carry the licence of this repository. Texts are longer than the largest distance that has a bucket of its own.

goldens/encoder-decoder/buckets.json     the bucket of every distance for some settings
goldens/encoder-decoder/<model>/         config.json as published models have it, model.safetensors,
                                         logits.safetensors (source.N, inputs.N, logits.N), greedy.json (source, answer)
                      .../lora|dora|ia3/ adapter_config.json and adapter_model.safetensors as peft writes them, adapted.safetensors
                                         (as logits.safetensors), gradients.safetensors (by tensor name, with source.N, target.N;
                                         a target of -100 does not count)
"""

import json
import shutil
import zlib
from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

GOLDENS = Path(__file__).parent / "goldens" / "encoder-decoder"
VOCABULARY = 61

# heads that are together wider than the residual stream
COMMON = dict(
    vocab_size=VOCABULARY, d_model=16, d_kv=6, num_heads=3, d_ff=20, num_layers=2, relative_attention_num_buckets=8,
    layer_norm_epsilon=1e-6, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, is_encoder_decoder=True, model_type="t5",
    dropout_rate=0.1,
)
MODELS = {
    # ReLU, head tied and scaled; every method
    "t5": dict(
        config=dict(relative_attention_max_distance=20, n_positions=512),
        adapters=dict(
            lora=LoraConfig(r=2, lora_alpha=4, target_modules=["q", "k", "v", "o", "wi", "wo"]),
            dora=LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=["k", "o", "wi"]),
            ia3=IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"]),
        )),
    # 1.1: gated GELU, a head of its own, stacks of unequal depth
    "t5-v1.1": dict(
        config=dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=1),
        adapters=dict(lora=LoraConfig(r=2, lora_alpha=4, target_modules=["q", "k", "v", "o", "wi_0", "wi_1", "wo"]))),
}
LENGTHS = [(1, 1), (13, 9), (40, 33)]


def randomised(model, seed):
    """Larger weights than a fresh model has, so that attention and activations are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "layer_norm" in name else (1.0 if "relative" in name else 0.35) * noise)
    return model


def token_ids(generator, length):
    return torch.randint(2, VOCABULARY, (length,), generator=generator)


def write_logits(model, path, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for index, (of_source, of_inputs) in enumerate(LENGTHS):
        source, inputs = token_ids(generator, of_source), token_ids(generator, of_inputs)
        inputs[0] = 0
        with torch.no_grad():
            logits = model(input_ids=source[None], decoder_input_ids=inputs[None]).logits[0]
        tensors[f"source.{index}"], tensors[f"inputs.{index}"] = source.float(), inputs.float()
        tensors[f"logits.{index}"] = logits.contiguous()
    save_file(tensors, path)


def write_greedy(model, path, seed):
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for length in [3, 25]:
        source = token_ids(generator, length)
        with torch.no_grad():
            answer = model.generate(input_ids=source[None], max_new_tokens=16, do_sample=False, num_beams=1)[0]
        assert answer[0] == 0
        cases.append(dict(source=source.tolist(), answer=answer[1:].tolist()))
    path.write_text(json.dumps(cases, separators=(",", ":")) + "\n")


def make(name, spec, seed):
    folder = GOLDENS / name
    config = T5Config(**COMMON, **spec["config"])
    model = T5ForConditionalGeneration(config)
    if spec["config"].get("tie_word_embeddings") is False:
        # transformers 5 ties every head of T5 unless a file holds another
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCABULARY, COMMON["d_model"]))
    randomised(model, seed).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    published = dict(architectures=["T5ForConditionalGeneration"], **COMMON, **spec["config"])
    (folder / "config.json").write_text(json.dumps(published, indent=1, sort_keys=True) + "\n")
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    untied = not torch.equal(model.lm_head.weight, model.shared.weight)
    assert untied == (spec["config"].get("tie_word_embeddings") is False), "the head is not the one that was meant"
    assert model.config.scale_decoder_outputs != untied
    write_logits(model, folder / "logits.safetensors", seed + 1)
    write_greedy(model, folder / "greedy.json", seed + 2)
    for offset, (method, adapter) in enumerate(spec["adapters"].items()):
        model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        make_adapter(model, adapter, folder / method, seed + 10 * (offset + 1))


def make_adapter(model, adapter, folder, seed):
    generator = torch.Generator().manual_seed(seed)
    adapter.task_type = "SEQ_2_SEQ_LM"
    model = get_peft_model(model, adapter).eval()
    adapters = {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}
    with torch.no_grad():
        for name, parameter in adapters.items():
            noise = torch.randn(parameter.shape, generator=generator)
            is_factor = "magnitude" in name or "ia3_l" in name
            parameter.copy_(parameter * (1 + 0.2 * noise) if is_factor else 0.25 * noise)  # no gradient is zero
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"  # peft writes a set in any order, and the folder it read
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None
    for key in ("target_modules", "feedforward_modules"):
        if key in config:
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_logits(model, folder / "adapted.safetensors", seed + 1)

    tensors, batch = {}, []
    for index, (of_source, of_target) in enumerate([(30, 6), (7, 25)]):
        source, target = token_ids(generator, of_source), token_ids(generator, of_target)
        target[torch.rand(of_target, generator=generator) < 0.3] = -100
        batch.append((source, target))
        tensors[f"source.{index}"], tensors[f"target.{index}"] = source.float(), target.float()
    num_targets = sum(int((target >= 0).sum()) for _, target in batch)
    for source, target in batch:
        logits = model(input_ids=source[None], labels=target[None]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum")
        (losses / num_targets).backward()
    for name, parameter in adapters.items():
        tensors[name.replace(".default", "")] = parameter.grad.clone().contiguous()
    save_file(tensors, folder / "gradients.safetensors")


def write_buckets():
    cases = []
    distances = [*range(-300, 301), -100_000, 100_000]
    for count, max_distance in [(32, 128), (8, 20), (8, 128), (33, 77), (64, 1000)]:
        for both in [True, False]:
            buckets = T5Attention._relative_position_bucket(
                torch.tensor(distances), bidirectional=both, num_buckets=count, max_distance=max_distance)
            cases.append(dict(count=count, max_distance=max_distance, both=both, buckets=buckets.tolist()))
    (GOLDENS / "buckets.json").write_text(json.dumps(dict(distances=distances, cases=cases), separators=(",", ":")) + "\n")


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for name, spec in MODELS.items():
        make(name, spec, zlib.crc32(name.encode()))
    write_buckets()
    total = 0
    for path in sorted(GOLDENS.rglob("*")):
        if path.is_file():
            total += path.stat().st_size
            print(path.relative_to(GOLDENS), path.stat().st_size)
    print(total, "bytes")
    assert total < 400_000


if __name__ == "__main__":
    main()
