"""Makes tests/parity/goldens/quantisation: NF4 with double quantisation as bitsandbytes computes it on the CPU, and ten QLoRA steps.

    python tests/parity/make-quantisation-goldens.py    (versions: requirements.txt; after make-goldens.py, whose model gqa-tied it
                                                         reads)

The Rust tests crates/model/tests/quantisation_parity.rs and crates/training/tests/qlora_parity.rs read them. Everything is seeded;
the files are random numbers made by this script and carry the licence of this repository. One thread: with more, torch.mean of more
than 32,768 block scales, and with it every dequantised value, depends on their number.

goldens/quantisation/nf4.safetensors   for each case: weight, codes, absmax (8-bit codes), scales (of absmax), offset, dequantised
goldens/quantisation/large.json        a matrix too large to store, made by a formula: SHA-256 of the same parts
goldens/quantisation/means.json        torch.mean of more counts of values, by the same formula
goldens/quantisation/qlora/            settings.json (batches, losses, norms), init/ and final/ (peft adapters),
                                       gradients.safetensors (first step, before clipping), logits.safetensors (of the final adapter)
"""

import hashlib
import json
import shutil
from pathlib import Path

import bitsandbytes
import numpy
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_4bit, quantize_4bit
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

GOLDENS = Path(__file__).parent / "goldens"
FOLDER = GOLDENS / "quantisation"
BASE = GOLDENS / "gqa-tied"
VOCABULARY = 160
STEPS = 10
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def quantise(weight):
    """What Params4bit does when a Linear4bit with its default compress_statistics is quantised."""
    codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    assert state.nested and state.state2.blocksize == 256
    assert torch.equal(state.state2.code, create_dynamic_map()), "the kernel must not change the code"
    return dict(
        codes=codes.flatten(), absmax=state.absmax, scales=state.state2.absmax, offset=state.offset.reshape(1),
        dequantised=dequantize_4bit(codes, state))


def formula(count):
    """Values between -1 and 1 that any language makes to the bit: exact integers, scaled by a power of two, times a square."""
    i = numpy.arange(count, dtype=numpy.uint64)
    mixed = (i * numpy.uint64(2654435761) + numpy.uint64(12345)) % numpy.uint64(2**32)
    uniform = ((mixed >> numpy.uint64(8)).astype(numpy.int64) - 2**23).astype(numpy.float32) * numpy.float32(2.0**-23)
    return torch.from_numpy(uniform * numpy.abs(uniform))


def sha256(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def nf4():
    generator = torch.Generator().manual_seed(40)
    normal = lambda *shape: torch.randn(shape, generator=generator)
    extremes = normal(20, 64) * torch.logspace(-12, 3, 20)[:, None]
    extremes[3] = 0.0
    extremes[4] = 7.0
    extremes[5, 1:] = 0.0
    extremes[6] = 1e-42
    cases = {
        "normal": normal(72, 160) * 0.05,
        # more than one block of block scales, the last of them not full
        "scales": normal(130, 150) * torch.rand(130, 1, generator=generator),
        "extremes": extremes,
        "rest": normal(7, 90),
        "odd": normal(5, 63),
        "tiny": normal(1, 3),
        "zeros": torch.zeros(3, 40),
        "bf16": normal(16, 64).bfloat16().float(),
    }
    tensors = {}
    for name, weight in cases.items():
        tensors[f"{name}.weight"] = weight
        tensors.update({f"{name}.{part}": value.contiguous() for part, value in quantise(weight).items()})
    save_file(tensors, FOLDER / "nf4.safetensors")
    rows, width = 1152, 576
    parts = quantise(formula(rows * width).reshape(rows, width))
    large = dict(rows=rows, width=width, offset=parts.pop("offset").item(), **{name: sha256(value) for name, value in parts.items()})
    (FOLDER / "large.json").write_text(json.dumps(large, indent=1) + "\n")
    counts = [1, 2, 7, 8, 9, 31, 32, 33, 511, 512, 513, 2047, 2048, 8199, 16384, 32767, 40000, 70001, 262144, 2100000]
    means = [[count, formula(count).abs().mean().item()] for count in counts]
    (FOLDER / "means.json").write_text(json.dumps(means) + "\n")


def make_batches(generator):
    """Two batches of unequal length per step, parts masked."""
    steps = []
    for _ in range(STEPS):
        window = []
        for lengths in ([17, 40], [9]):
            batch = []
            for length in lengths:
                ids = torch.randint(0, VOCABULARY, (length,), generator=generator)
                counted = torch.rand(length, generator=generator) < 0.6
                counted[0], counted[-1] = False, True
                batch.append((ids, counted))
            window.append(batch)
        steps.append(window)
    return steps


def short(name):
    return name.replace(".default", "")


def qlora():
    folder = FOLDER / "qlora"
    generator = torch.Generator().manual_seed(4000)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
    base = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32, quantization_config=quantization, device_map={"": "cpu"})
    layers = [module for module in base.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14 and all(layer.weight.quant_state.nested for layer in layers)
    assert not isinstance(base.lm_head, bitsandbytes.nn.Linear4bit)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=SEVEN, task_type="CAUSAL_LM"))
    # training mode, as bitsandbytes packs its weights otherwise for inference on some processors; nothing here drops out
    model.train()
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in sorted(adapters.items()):
            parameter.copy_((0.05 if "lora_B" in name else 0.12) * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "init")
    settings = dict(
        steps=STEPS, learning_rate=3e-3, weight_decay=0.02, beta1=0.9, beta2=0.999, epsilon=1e-8, warmup_ratio=0.2, clip_norm=0.4)
    optimizer = torch.optim.AdamW(adapters.values(), lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.02)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=STEPS)
    settings.update(batches=[], losses=[], grad_norms=[])
    for step, window in enumerate(make_batches(generator)):
        num_targets = sum(int(counted.sum()) for batch in window for _, counted in batch)
        optimizer.zero_grad()
        total = 0.0
        for ids, counted in (pair for batch in window for pair in batch):
            logits = model(input_ids=ids[None]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
            loss = (losses * counted[1:]).sum() / num_targets
            loss.backward()
            total += loss.item()
        if step == 0:
            save_file({short(name): p.grad.clone().contiguous() for name, p in adapters.items()}, folder / "gradients.safetensors")
        settings["grad_norms"].append(torch.nn.utils.clip_grad_norm_(list(adapters.values()), settings["clip_norm"]).item())
        optimizer.step()
        schedule.step()
        settings["batches"].append(
            [[dict(ids=ids.tolist(), counted=counted.tolist()) for ids, counted in batch] for batch in window])
        settings["losses"].append(total)
    (folder / "settings.json").write_text(json.dumps(settings, separators=(",", ":")) + "\n")
    model.save_pretrained(folder / "final")
    ids = torch.randint(0, VOCABULARY, (31,), generator=generator)
    with torch.no_grad():
        save_file({"ids": ids.float(), "logits": model(input_ids=ids[None]).logits[0].contiguous()}, folder / "logits.safetensors")
    for card in folder.glob("*/README.md"):
        card.unlink()
    for path in folder.glob("*/adapter_config.json"):  # peft writes a set in any order, and the folder it read
        written = json.loads(path.read_text())
        written["base_model_name_or_path"] = "gqa-tied"
        written["target_modules"].sort()
        path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "qlora").mkdir(parents=True)
    nf4()
    qlora()
    total = 0
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            total += path.stat().st_size
            print(path.relative_to(GOLDENS), path.stat().st_size)
    print(total, "bytes")
    assert total < 600_000


if __name__ == "__main__":
    main()
