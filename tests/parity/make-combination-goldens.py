"""Makes tests/parity/goldens/combinations: adapters that peft combines with add_weighted_adapter.

    python tests/parity/make-combination-goldens.py  (versions: requirements.txt; after make-goldens.py, whose model gqa-tied it reads)

The Rust test crates/model/tests/combination_parity.rs reads them. Everything is seeded; the files are random numbers made by this
script and carry the licence of this repository.

goldens/combinations/<name>/  adapter_config.json and adapter_model.safetensors: first, second, third are combined,
                              linear, cat, svd and reranked are what peft makes of them (WEIGHTS and COMBINED below)
"""

import json
import shutil
import zlib
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

GOLDENS = Path(__file__).parent / "goldens"
FOLDER = GOLDENS / "combinations"

ADAPTERS = {
    "first": dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
    # another scale, another set of modules
    "second": dict(r=4, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "v_proj"]),
    "third": dict(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"]),
}
COMBINED = {
    "linear": dict(adapters=["first", "second"], weights=[0.7, -0.4], combination_type="linear"),
    "cat": dict(adapters=["first", "second", "third"], weights=[0.7, -0.4, 1.3], combination_type="cat"),
    "svd": dict(adapters=["first", "second", "third"], weights=[0.7, -0.4, 1.3], combination_type="svd", svd_rank=3),
    # peft takes the svd of two or more: the second with the weight 0 leaves the first alone
    "reranked": dict(adapters=["first", "third"], weights=[1.0, 0.0], combination_type="svd", svd_rank=2),
}


def main():
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    model = LlamaForCausalLM.from_pretrained(GOLDENS / "gqa-tied", dtype=torch.float32)
    peft = None
    for name, settings in ADAPTERS.items():
        config = LoraConfig(task_type="CAUSAL_LM", **settings)
        if peft is None:
            peft = get_peft_model(model, config, adapter_name=name)
        else:
            peft.add_adapter(name, config)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        with torch.no_grad():
            for path, parameter in sorted(peft.named_parameters()):
                if f".{name}." in path:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    for name, settings in COMBINED.items():
        peft.add_weighted_adapter(adapter_name=name, **settings)
    total = 0
    for name in [*ADAPTERS, *COMBINED]:
        peft.save_pretrained(FOLDER, selected_adapters=[name])
        path = FOLDER / name / "adapter_config.json"  # peft writes a set in any order
        config = json.loads(path.read_text())
        config["target_modules"].sort()
        config["base_model_name_or_path"] = None
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (FOLDER / "README.md").unlink(missing_ok=True)
    for path in sorted(FOLDER.rglob("*")):
        if path.name == "README.md":
            path.unlink()
        elif path.is_file():
            total += path.stat().st_size
            print(path.relative_to(FOLDER), path.stat().st_size)
    assert total < 150_000, total


if __name__ == "__main__":
    main()
