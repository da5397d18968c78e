"""The peer of the quality table: PEFT, and full fine-tuning in transformers, on the tasks of tasks.py.

One argument, JSON: {"model", "data", "method", "learning_rate", "epochs", "batch_size", "seed"}; answers with one line of JSON as
`tunesmith-bench` does. The loop is the plain one of the PEFT documentation: shuffled batches padded on the right, AdamW, cosine
schedule with warm-up, gradients clipped to norm 1.
"""

import json
import math
import random
import sys
import time
from pathlib import Path

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORE = -100
WARMUP = 0.03


def settings_of(method: str, total: int):
    lora = dict(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=SEVEN, task_type="CAUSAL_LM")
    if method == "AdaLoRA":
        return AdaLoraConfig(init_r=12, target_r=8, lora_alpha=32, lora_dropout=0.0, target_modules=SEVEN, task_type="CAUSAL_LM",
                             tinit=total // 10, tfinal=total // 2, deltaT=1, beta1=0.85, beta2=0.85, orth_reg_weight=0.5,
                             total_step=total)
    if method == "IA³":
        targets = ["k_proj", "v_proj", "down_proj"]
        return IA3Config(target_modules=targets, feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    return LoraConfig(**lora, use_rslora=method == "rsLoRA", use_dora=method == "DoRA")


def batch_of(sequences: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(s["ids"]) for s in sequences)
    ids, labels, mask = [], [], []
    for s in sequences:
        padding = longest - len(s["ids"])
        ids.append(s["ids"] + [0] * padding)
        wanted = [i if counted else IGNORE for i, counted in zip(s["ids"], s["counted"])]
        labels.append(wanted + [IGNORE] * padding)
        mask.append([1] * len(s["ids"]) + [0] * padding)
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}


@torch.no_grad()
def perplexity(model, sequences: list[dict]) -> float:
    nll, count = 0.0, 0
    for start in range(0, len(sequences), 8):
        batch = batch_of(sequences[start:start + 8])
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].float()
        nll += torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORE, reduction="sum").item()
        count += int((labels != IGNORE).sum())
    return math.exp(nll / count)


@torch.no_grad()
def score(model, questions: list[dict], end: int) -> float | None:
    right = 0
    for question in questions:
        past, ids, answer = None, torch.tensor([question["prompt"]]), []
        while len(answer) < len(question["answer"]) and (not answer or answer[-1] != end):
            out = model(input_ids=ids, past_key_values=past, use_cache=True)
            past, following = out.past_key_values, int(out.logits[0, -1].argmax())
            answer.append(following)
            ids = torch.tensor([[following]])
        right += answer == question["answer"]
    return right / len(questions) if questions else None


def main() -> None:
    job = json.loads(sys.argv[1])
    data = json.loads(Path(job["data"]).read_text())
    torch.manual_seed(job["seed"])
    extra = {}
    if job["method"] == "QLoRA":
        extra = dict(device_map={"": "cpu"}, quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32))
    model = LlamaForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa", **extra).eval()
    base = perplexity(model, data["test"])
    train = data["train"]
    per_epoch = math.ceil(len(train) / job["batch_size"])
    total = per_epoch * job["epochs"]
    if job["method"] != "full":
        model = get_peft_model(model, settings_of(job["method"], total))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job["learning_rate"], weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARMUP * total), total)
    draw = random.Random(job["seed"])
    start, step, loss = time.perf_counter(), 0, None
    for _ in range(job["epochs"]):
        order = draw.sample(range(len(train)), len(train))
        for first in range(0, len(order), job["batch_size"]):
            batch = batch_of([train[i] for i in order[first:first + job["batch_size"]]])
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if job["method"] == "AdaLoRA":
                model.base_model.update_and_allocate(step)
            optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    model.eval()
    print(json.dumps({
        "steps": step, "seconds": seconds, "last_loss": loss.item(), "peak_bytes": peak,
        "trainable": sum(p.numel() for p in parameters), "base_perplexity": base,
        "perplexity": perplexity(model, data["test"]), "score": score(model, data["questions"], data["end"])}))


if __name__ == "__main__":
    main()
