"""Makes tests/parity/goldens/adapters: ten training steps of each adapter method as PyTorch and peft compute them.

    python tests/parity/make-adapter-goldens.py    (versions: requirements.txt; after make-goldens.py and
                                                    make-architecture-goldens.py, whose models gqa-tied, gpt2 and phi3 it reads)

The Rust tests crates/training/tests/parity.rs and crates/model/tests/adapter_parity.rs read them. Everything is seeded;
the files are random numbers made by this script and carry the licence of this repository.

goldens/adapters/<method>/  settings.json (batches, losses, norms, learning rates, and for AdaLoRA the orthogonality term and
                            the ranks that survive), init/ and final/ (peft adapters), gradients.safetensors (first step, before
                            clipping), final.safetensors (AdaLoRA: final tensors before peft drops masked ranks),
                            adapted.safetensors (logits of the final adapter, and of the merged model)
"""

import json
import shutil
from pathlib import Path

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

GOLDENS = Path(__file__).parent / "goldens"
STEPS = 10
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

METHODS = {
    "dora": dict(config=LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=SEVEN)),
    # LoRA+ on top of DoRA with rsLoRA's scale: the magnitudes, too, learn at the rate of B
    "loraplus": dict(
        config=LoraConfig(r=4, lora_alpha=4, use_dora=True, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
        loraplus_lr_ratio=4.0),
    "adalora": dict(
        config=AdaLoraConfig(
            init_r=6, target_r=3, lora_alpha=12, tinit=2, tfinal=3, deltaT=2, total_step=STEPS, orth_reg_weight=0.5,
            target_modules=SEVEN)),
    "ia3": dict(config=IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
}
# fused projections, which GPT-2 stores transposed and with biases
for base, targets, keys_and_values, last, transposed in [
    ("gpt2", ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"], "c_attn", "mlp.c_proj", True),
    ("phi3", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], "qkv_proj", "down_proj", False),
]:
    METHODS[f"{base}-dora"] = dict(
        base=base, config=LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=targets, fan_in_fan_out=transposed))
    METHODS[f"{base}-adalora"] = dict(
        base=base, config=AdaLoraConfig(
            init_r=3, target_r=2, lora_alpha=6, tinit=2, tfinal=3, deltaT=2, total_step=STEPS, orth_reg_weight=0.5,
            target_modules=targets, fan_in_fan_out=transposed))
    METHODS[f"{base}-ia3"] = dict(
        base=base, config=IA3Config(
            target_modules=[keys_and_values, last], feedforward_modules=[last], fan_in_fan_out=transposed))


def short(name):
    return name.replace(".default", "")


def start(name, shape, current, generator):
    """First values that leave no gradient zero."""
    noise = torch.randn(shape, generator=generator)
    if "magnitude" in name or "ia3_l" in name:
        return current * (1 + 0.2 * noise)
    if "lora_E" in name:
        return 0.5 * noise
    return (0.05 if "lora_B" in name else 0.12) * noise


def base_folder(spec):
    return GOLDENS / "architectures" / spec["base"] if "base" in spec else GOLDENS / "gqa-tied"


def make_batches(generator, vocabulary):
    """Two batches of unequal length per step, parts masked."""
    steps = []
    for _ in range(STEPS):
        window = []
        for lengths in ([17, 40], [9]):
            batch = []
            for length in lengths:
                ids = torch.randint(0, vocabulary, (length,), generator=generator)
                counted = torch.rand(length, generator=generator) < 0.6
                counted[0], counted[-1] = False, True
                batch.append((ids, counted))
            window.append(batch)
        steps.append(window)
    return steps


def orthogonality(model, ids):
    """What peft's AdaLoRA adds to the loss: its own loss less the cross-entropy."""
    outputs = model(input_ids=ids[None], labels=ids[None])
    plain = torch.nn.functional.cross_entropy(outputs.logits[0, :-1], ids[1:])
    return outputs.loss - plain


def write_logits(model, folder, seed):
    ids = torch.randint(0, model.config.vocab_size, (31,), generator=torch.Generator().manual_seed(seed))
    model.eval()
    with torch.no_grad():
        tensors = {"ids": ids.float(), "logits": model(input_ids=ids[None]).logits[0].contiguous()}
        tensors["merged"] = model.merge_and_unload()(input_ids=ids[None]).logits[0].contiguous()
    save_file(tensors, folder / "adapted.safetensors")


def make(method, spec, seed):
    folder = GOLDENS / "adapters" / method
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    config = spec["config"]
    config.task_type = "CAUSAL_LM"
    ratio = spec.get("loraplus_lr_ratio")
    base = AutoModelForCausalLM.from_pretrained(base_folder(spec), dtype=torch.float32).eval()
    model = get_peft_model(base, config)
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in sorted(adapters.items()):
            parameter.copy_(start(name, parameter.shape, parameter, generator))
    model.save_pretrained(folder / "init")

    settings = dict(
        steps=STEPS, learning_rate=3e-3, weight_decay=0.02, beta1=0.9, beta2=0.999, epsilon=1e-8, warmup_ratio=0.2, clip_norm=0.4,
        loraplus_lr_ratio=ratio or 1.0)
    common = dict(lr=settings["learning_rate"], betas=(0.9, 0.999), eps=1e-8)
    if ratio:
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, loraplus_lr_ratio=ratio, loraplus_weight_decay=settings["weight_decay"], **common)
    else:
        optimizer = torch.optim.AdamW(adapters.values(), weight_decay=settings["weight_decay"], **common)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=STEPS)
    settings.update(batches=[], losses=[], grad_norms=[], learning_rates=[], regularisers=[], ranks=[])
    for step, window in enumerate(make_batches(generator, base.config.vocab_size)):
        num_targets = sum(int(counted.sum()) for batch in window for _, counted in batch)
        optimizer.zero_grad()
        total = 0.0
        for ids, counted in (pair for batch in window for pair in batch):
            logits = model(input_ids=ids[None]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
            loss = (losses * counted[1:]).sum() / num_targets
            loss.backward()
            total += loss.item()
        if method.endswith("adalora"):
            term = orthogonality(model, window[0][0][0])
            term.backward()
            settings["regularisers"].append(term.item())
        if step == 0:
            save_file({short(name): p.grad.clone().contiguous() for name, p in adapters.items()}, folder / "gradients.safetensors")
        norm = torch.nn.utils.clip_grad_norm_(list(adapters.values()), settings["clip_norm"])
        settings["learning_rates"].append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        if method.endswith("adalora"):
            model.base_model.update_and_allocate(step + 1)  # steps completed, so that the last one is total_step
            alive = {short(name): p.flatten().ne(0).tolist() for name, p in adapters.items() if "lora_E" in name}
            settings["ranks"].append({name: [int(kept) for kept in row] for name, row in alive.items()})
        settings["batches"].append(
            [[dict(ids=ids.tolist(), counted=counted.tolist()) for ids, counted in batch] for batch in window])
        settings["losses"].append(total)
        settings["grad_norms"].append(norm.item())
    (folder / "settings.json").write_text(json.dumps(settings, separators=(",", ":")) + "\n")
    if method.endswith("adalora"):
        save_file({short(name): p.detach().clone().contiguous() for name, p in adapters.items()}, folder / "final.safetensors")
    model.save_pretrained(folder / "final")
    write_logits(model, folder, seed + 1)
    for card in folder.glob("*/README.md"):
        card.unlink()
    for path in folder.glob("*/adapter_config.json"):  # peft writes a set in any order, and the folder it read
        written = json.loads(path.read_text())
        written["base_model_name_or_path"] = base_folder(spec).name
        for key in ("target_modules", "feedforward_modules"):
            if key in written:
                written[key].sort()
        path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shutil.rmtree(GOLDENS / "adapters", ignore_errors=True)
    for seed, (method, spec) in enumerate(METHODS.items()):
        make(method, spec, 1000 + 100 * seed)
    total = 0
    for path in sorted((GOLDENS / "adapters").rglob("*")):
        if path.is_file():
            total += path.stat().st_size
            print(path.relative_to(GOLDENS), path.stat().st_size)
    print(total, "bytes")
    assert total < 900_000


if __name__ == "__main__":
    main()
