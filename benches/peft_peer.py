"""The peer: PyTorch with PEFT, on the same weights, tokens and settings as `tunesmith-bench`.

Takes the same jobs (one argument, JSON) and answers with the same line of JSON. Written as the PEFT documentation has it:
`get_peft_model`, the model's own loss, `torch.optim.AdamW`, `clip_grad_norm_`. Threads come from OMP_NUM_THREADS.
"""

import json
import sys
import time
from pathlib import Path

ENTERED = time.time()

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORE = -100


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def batch_of(sequences: list[list[int]]) -> dict[str, torch.Tensor]:
    """Padded to the longest, as the default collator does; without padding no mask, so that attention takes its fast path."""
    longest = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (longest - len(s)) for s in sequences])
    labels = torch.tensor([s + [IGNORE] * (longest - len(s)) for s in sequences])
    batch = {"input_ids": ids, "labels": labels}
    if any(len(s) < longest for s in sequences):
        batch["attention_mask"] = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    return batch


def train(job: dict) -> dict:
    model = LlamaForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    if job.get("recompute"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=MODULES, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)
    run = torch.compile(model) if job.get("compile") else model
    batches = json.loads(Path(job["batches"]).read_text())
    tensors = [batch_of(sequences) for sequences in batches]
    ready = time.time()

    seconds, targets, losses, first_step, before = [], [], [], None, 0.0
    for step in range(job["warmup"] + job["steps"]):
        if step == job["warmup"]:
            before = time.process_time()
        start = time.perf_counter()
        loss = run(**tensors[step % len(tensors)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        elapsed = time.perf_counter() - start
        first_step = first_step or time.time()
        if step >= job["warmup"]:
            seconds.append(elapsed)
            targets.append(sum(len(s) - 1 for s in batches[step % len(batches)]))
    used = time.process_time() - before
    launched = job["launched"]
    launch = {"entered": ENTERED - launched, "ready": ready - launched, "first_step": first_step - launched}
    return {"seconds": seconds, "processor_seconds": used, "targets": targets, "losses": losses,
            "peak_bytes": peak_bytes(), "launch": launch}


def rate(job: dict) -> dict:
    rates = []
    for m, n, k in job["shapes"]:
        x, w, y = torch.randn(m, k), torch.randn(n, k), torch.empty(m, n)
        best, start = float("inf"), time.perf_counter()
        while time.perf_counter() - start < job["seconds"]:
            begin = time.perf_counter()
            torch.mm(x, w.t(), out=y)
            best = min(best, time.perf_counter() - begin)
        rates.append(2 * m * n * k / best)
    return {"rates": rates}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps({"train": train, "rate": rate}[given["task"]](given)))
