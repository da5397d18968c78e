"""The peer on a card: PyTorch with PEFT (SDPA), on the same weights, tokens and settings as `gpu-steps`; same job, same answer.

As the PEFT documentation has it: the base in the given format, `get_peft_model` (which keeps the adapter in f32), the model's own
loss, `torch.optim.AdamW`. In bf16 the forward pass runs under autocast, as `Trainer(bf16=True)` of transformers runs it: without it
the adapter's products would be f32's. f32 products in f32: TF32 stays off, as PyTorch has it by default.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def timed(model: torch.nn.Module, job: dict, *packages: str) -> dict:
    """The job's steps over the parameters of `model` that train, which is on the card; the answer that `gpu.py` reads."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)
    ids = torch.tensor(json.loads(Path(job["batch"]).read_text()), device="cuda")
    seconds, losses = [], []
    for step in range(job["warmup"] + job["steps"]):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=job["dtype"] == "bf16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        torch.cuda.synchronize()
        if step >= job["warmup"]:
            seconds.append(time.perf_counter() - start)
    # the most that the allocator took of the card, cuBLAS's workspace included; the context is counted with no contender, the code of
    # the kernels with Tunesmith alone
    return {"card": torch.cuda.get_device_name(), "seconds": seconds, "losses": losses,
            "peak_bytes": torch.cuda.max_memory_reserved(),
            "versions": {name: version(name) for name in ["torch", "transformers", "peft", *packages]}}


def main() -> None:
    job = json.loads(sys.argv[1])
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[job["dtype"]]
    model = LlamaForCausalLM.from_pretrained(job["model"], dtype=dtype, attn_implementation="sdpa").to("cuda")
    model.config.use_cache = False
    if job["recompute"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=MODULES, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    print(json.dumps(timed(model, job)))


if __name__ == "__main__":
    main()
