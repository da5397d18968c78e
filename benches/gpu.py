"""Training steps on one NVIDIA card: Tunesmith beside PyTorch + PEFT (SDPA) and Unsloth, on Llama shapes with random weights.

    python benches/gpu.py --binary FOLDER/gpu-steps          usually started by benches/gpu.sh
    python benches/gpu.py --binary FOLDER/gpu-steps --shapes 1B --dtypes bf16 --rounds 1

Each measurement is a process of its own; the order is reversed from round to round. MFU is the useful operations of a step (as in
`benches/src/flops.rs`) over its median time, by the card's dense peak for that number format. All contenders get the same weights and
tokens: first losses that differ, or a measurement that failed, end the program with an error. Unsloth is measured in bf16 where
`--unsloth-python` names an interpreter that has it; else the table says that it was skipped.
"""

import argparse
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMON = dict(num_key_value_heads=8, vocab_size=128256, rope_theta=500000.0, max_position_embeddings=8192)
SHAPES = {
    # Llama 3.2 1B and Llama 3.1 8B
    "1B": dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, intermediate_size=8192,
               tie_word_embeddings=True, **COMMON),
    "8B": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=14336,
               tie_word_embeddings=False, **COMMON),
}
# sequences and tokens of each
STEP = {("1B", "bf16"): (8, 2048), ("8B", "bf16"): (4, 2048), ("1B", "f32"): (2, 2048), ("8B", "f32"): (1, 1024)}
# dense peak of the data sheets, operations per second, by the words of the driver's name for the card
PEAK = {"H200": {"bf16": 989e12, "f32": 67e12}, "H200 NVL": {"bf16": 835e12, "f32": 60e12},
        "H100 HBM3": {"bf16": 989e12, "f32": 67e12}, "H100 NVL": {"bf16": 835e12, "f32": 60e12},
        "H100 PCIe": {"bf16": 756e12, "f32": 51e12}, "A100": {"bf16": 312e12, "f32": 19.5e12},
        "A10G": {"bf16": 70e12, "f32": 31e12}, "L4": {"bf16": 121e12, "f32": 30e12}, "L40S": {"bf16": 362e12, "f32": 91.6e12}}
# between the contenders' first losses, in nats
LOSS_TOLERANCE = {"bf16": 2e-2, "f32": 1e-3}
RANK = 16


def make_model(folder: Path, shape: dict) -> None:
    """Random weights in bf16, in Hugging Face layout; made on the card, where it takes seconds. The folder is whole or not there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=None)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    part.rename(folder)


def operations(shape: dict, count: int, length: int) -> float:
    """Of one step: 4 N per token for frozen matrices, 6 P for the adapter, 12 H d per layer, query and key that it sees."""
    h, f, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    kv = h * shape["num_key_value_heads"] // shape["num_attention_heads"]
    modules = [(h, h), (kv, h), (kv, h), (h, h), (f, h), (f, h), (h, f)]
    frozen = layers * sum(out * width for out, width in modules) + shape["vocab_size"] * h
    adapter = layers * sum(RANK * (out + width) for out, width in modules)
    seen = count * length * (length + 1) / 2
    return (4 * frozen + 6 * adapter) * count * length + 12 * layers * h * seen


def peak_of(card: str) -> dict | None:
    """The entry with the most words, all of which are words of the card's name; None for a card that is not known."""
    words = set(re.split(r"[\s-]+", card))
    known = [name for name in PEAK if set(name.split()) <= words]
    return PEAK[max(known, key=lambda name: len(name.split()))] if known else None


def without_unsloth(python: Path | None) -> str | None:
    """Why Unsloth is skipped; None where it is installed, and if it cannot be imported there, that is a failed measurement."""
    if python is None:
        return "skipped: no --unsloth-python"
    look = "import importlib.util; print(importlib.util.find_spec('unsloth') is not None)"
    found = subprocess.run([str(python), "-c", look], capture_output=True, text=True, check=True).stdout.strip()
    return None if found == "True" else "skipped: not installed where --unsloth-python points"


def measure(contender: str, job: dict, chosen: argparse.Namespace) -> dict:
    command = {"tunesmith": [chosen.binary], "peft": [sys.executable, HERE / "gpu_peft.py"],
               "unsloth": [chosen.unsloth_python, HERE / "gpu_unsloth.py"]}[contender]
    done = subprocess.run([*map(str, command), json.dumps(job)], capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr[-2000:]}


def row(key: tuple, answers: list[dict]) -> str:
    shape, dtype, recompute, contender = key
    label = f"| {shape} | {dtype} | {'yes' if recompute else 'no'} | {contender} |"
    good = [answer for answer in answers if "error" not in answer]
    if not good:
        lines = answers[0]["error"].strip().splitlines() or ["no message"]
        return f"{label} failed: {lines[-1][:120]} | | | | |"
    seconds = statistics.median(s for answer in good for s in answer["seconds"])
    count, length = STEP[shape, dtype]
    peak = peak_of(good[0]["card"])
    mfu = f"{operations(SHAPES[shape], count, length) / seconds / peak[dtype]:.1%}" if peak else "?"
    memory = max(answer["peak_bytes"] for answer in good) / 2**30
    loss = good[0]["losses"][0]
    return f"{label} {1000 * seconds:.0f} | {count * length / seconds:,.0f} | {mfu} | {memory:.1f} | {loss:.4f} |"


def apart(answers: dict[tuple, list[dict]]) -> list[str]:
    """Where the first losses of one shape and format are further apart than rounding; one that is no number is always."""
    first: dict[tuple, list[float]] = {}
    for (shape, dtype, _, _), found in answers.items():
        first.setdefault((shape, dtype), []).extend(answer["losses"][0] for answer in found if "error" not in answer)
    return [f"{shape} {dtype}: first losses differ: {' '.join(f'{loss:.4f}' for loss in losses)}"
            for (shape, dtype), losses in first.items()
            if not all(abs(a - b) <= LOSS_TOLERANCE[dtype] for a in losses for b in losses)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("/tmp/tunesmith-gpu-models"))
    parser.add_argument("--results", type=Path, default=Path("gpu-results.jsonl"), help="lines are appended")
    parser.add_argument("--shapes", nargs="*", default=["1B", "8B"])
    parser.add_argument("--dtypes", nargs="*", default=["bf16", "f32"])
    parser.add_argument("--recompute", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--unsloth-python", type=Path, help="of an environment with requirements-gpu-unsloth.txt")
    chosen = parser.parse_args()
    skipped = without_unsloth(chosen.unsloth_python)
    answers: dict[tuple, list[dict]] = {}
    for shape in chosen.shapes:
        folder = chosen.models / shape
        if not folder.exists():
            # a process of its own gives the card's memory back
            code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import gpu, pathlib; " \
                   f"gpu.make_model(pathlib.Path({str(folder)!r}), gpu.SHAPES[{shape!r}])"
            subprocess.run([sys.executable, "-c", code], check=True)
        for dtype in chosen.dtypes:
            count, length = STEP[shape, dtype]
            draw = random.Random(1)
            batch = folder / f"batch-{dtype}.json"
            ids = [[draw.randrange(128000) for _ in range(length)] for _ in range(count)]
            batch.write_text(json.dumps(ids))
            contenders = ["tunesmith", "peft", *(["unsloth"] if dtype == "bf16" and not skipped else [])]
            todo = [(recompute, contender) for recompute in chosen.recompute for contender in contenders]
            for index in range(chosen.rounds):
                for recompute, contender in todo if index % 2 == 0 else reversed(todo):
                    job = dict(model=str(folder), batch=str(batch), dtype=dtype, recompute=bool(recompute), warmup=3,
                               steps=chosen.steps)
                    if contender == "tunesmith":
                        job["quantization"] = "none"
                    key = (shape, dtype, recompute, contender)
                    answer = measure(contender, job, chosen)
                    answers.setdefault(key, []).append(answer)
                    with chosen.results.open("a") as results:
                        results.write(json.dumps({"key": key, "round": index, "answer": answer}) + "\n")
                    print(*key, index, "failed" if "error" in answer else "done", flush=True)
    print("\n| shape | format | recompute | | ms/step | tokens/s | MFU | peak GiB | first loss |\n|---|---|---|---|---|---|---|---|---|")
    for key, found in answers.items():
        print(row(key, found))
    if skipped and "bf16" in chosen.dtypes:
        print(f"| | bf16 | | unsloth | {skipped} | | | | |")
    failed = sum("error" in answer for found in answers.values() for answer in found)
    wrong = [f"{failed} measurements failed: {chosen.results} has their messages"] if failed else []
    wrong += apart(answers)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
