"""Trains every method on every task, ours and the peer's, and appends one line of JSON per run to a results file.

    python benches/quality/tasks.py target/demo target/quality
    python benches/quality/run.py --tasks target/quality --results quality.jsonl      about two hours on two cores
    python benches/quality/run.py … --results times.jsonl --only facts --seeds 1 --epochs 2        a few minutes on a quiet machine
    python benches/quality/report.py quality.jsonl times.jsonl                        the table, with the times of the second file

Both contenders get the same tokens, rates, epochs, batches of eight sequences and settings of the method; seeds fix the start of
the adapter and the order, each with its own random numbers.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BATCH = 8
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EPOCHS = {"documents": 1, "facts": 20, "format": 4}
# each method's own usual rate on this model, found on seed 99 with the peer
RATES = {"full": 3e-4, "LoRA": 1e-3, "rsLoRA": 5e-4, "DoRA": 1e-3, "AdaLoRA": 2e-3, "IA³": 1e-2, "QLoRA": 1e-3}


def ours(method: str, job: dict, num_train: int) -> dict:
    """The same job as settings of `tunesmith-training`."""
    total = math.ceil(num_train / BATCH) * job["epochs"]
    lora = {"lora": {"rank": 16, "alpha": 32.0, "use_rslora": method == "rsLoRA", "use_dora": method == "DoRA"}}
    ada = {"adalora": {"init_r": 12, "target_r": 8, "alpha": 32.0, "tinit": total // 10, "tfinal": total // 2, "deltaT": 1,
                       "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.5, "total_step": total}}
    ia3 = {"ia3": {"feedforward_modules": ["down_proj"]}}
    settings = {"AdaLoRA": ada, "IA³": ia3}.get(method, lora)
    targets = ["k_proj", "v_proj", "down_proj"] if method == "IA³" else SEVEN
    config = {
        "adapter": {"method": settings, "target_modules": targets}, "learning_rate": job["learning_rate"],
        "epochs": job["epochs"], "batch_size": BATCH, "packing": False, "seed": job["seed"],
        "quantization": "nf4" if method == "QLoRA" else "none"}
    return {"task": "quality", "model": job["model"], "data": job["data"], "config": config}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True, help="made by tasks.py")
    parser.add_argument("--results", type=Path, required=True, help="lines are appended; what is there is not run again")
    parser.add_argument("--only", nargs="*", default=list(EPOCHS), help="of documents, facts, format")
    parser.add_argument("--methods", nargs="*", default=list(RATES))
    parser.add_argument("--contenders", nargs="*", default=["ours", "peer"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--rate", type=float, help="instead of each method's own")
    parser.add_argument("--epochs", type=int, help="instead of each task's own; fewer are enough to compare times")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/tunesmith-bench")
    chosen = parser.parse_args()
    environment = {**os.environ, "RAYON_NUM_THREADS": chosen.threads, "OMP_NUM_THREADS": chosen.threads}
    keys = ["data", "method", "contender", "seed", "learning_rate"]
    done = set()
    if chosen.results.exists():
        done = {tuple(json.loads(line)[key] for key in keys) for line in chosen.results.read_text().splitlines()}
    failed = 0
    for seed in chosen.seeds:
        for task in chosen.only:
            num_train = len(json.loads((chosen.tasks / f"{task}.json").read_text())["train"])
            for method in chosen.methods:
                for contender in chosen.contenders:
                    if method == "full" and contender == "ours":
                        continue  # adapters only
                    rate = chosen.rate or RATES[method]
                    line = dict(zip(keys, [task, method, contender, seed, rate]))
                    if tuple(line.values()) in done:
                        continue
                    job = {"model": str(ROOT / "trainer-image/base-model"), "data": str(chosen.tasks / f"{task}.json"),
                           "method": method, "learning_rate": rate, "epochs": chosen.epochs or EPOCHS[task], "batch_size": BATCH,
                           "seed": seed}
                    if contender == "ours":
                        command = [str(chosen.binary), json.dumps(ours(method, job, num_train))]
                    else:
                        command = [sys.executable, str(Path(__file__).with_name("peer.py")), json.dumps(job)]
                    run = subprocess.run(command, env=environment, capture_output=True, text=True)
                    if run.returncode != 0:
                        failed += 1
                        print(*line.values(), "failed:", run.stderr[-1500:], flush=True)
                        continue
                    answer = json.loads(run.stdout.splitlines()[-1])
                    with chosen.results.open("a") as results:
                        results.write(json.dumps(line | {"answer": answer}) + "\n")
                    shown = [f"{key} {answer[key]:.3f}" for key in ["seconds", "perplexity", "score"] if answer[key] is not None]
                    print(*line.values(), *shown, flush=True)
    if failed:
        sys.exit(f"{failed} runs failed; the same command runs them again")


if __name__ == "__main__":
    main()
