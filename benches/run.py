"""Measures Tunesmith's trainer beside PyTorch + PEFT and appends one line of JSON per process to a results file.

    python benches/run.py --results results.jsonl          everything: about two hours on two cores
    python benches/run.py --results results.jsonl --only steps --shapes B --rounds 0 1 2
    python benches/report.py results.jsonl                 the tables

Each measurement is a process of its own, which loads the model, warms up and times its steps one by one. In each round every
contender runs once; the order is reversed from round to round, so that a machine that becomes slower or faster favours nobody.
"""

import argparse
import json
import math
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VOCABULARY = {"A": 49152, "B": 4096}
# sequences and tokens of each, as in the goals
STEP = {"A": (4, 256), "B": (8, 128)}
# [m, n, k] of the large products of a step of A
PRODUCTS = [[1024, 3072, 576], [1024, 576, 1536], [128, 49152, 576], [2048, 2048, 2048]]
GROWTH = {"A": [256, 512, 1024, 2048, 4096], "B": [256, 512, 1024, 2048, 4096]}
TOKENS_OF_GROWTH = 4096


def sequences(shape: str, lengths: list[int], seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCABULARY[shape]) for _ in range(length)] for length in lengths]


def length_mix(count: int, seed: int) -> list[int]:
    """Log-normal with median 120 and sigma 1, 16 to 1,024 tokens: short questions and answers with a long tail."""
    draw = random.Random(seed)
    return [min(1024, max(16, round(120 * math.exp(draw.gauss(0.0, 1.0))))) for _ in range(count)]


def experiments(chosen: argparse.Namespace) -> list[dict]:
    """Every job but its round: experiment, shape, threads, contender, and what the contender is told."""
    found = []
    for threads in chosen.threads:
        add = lambda experiment, shape, contender, **job: found.append(  # noqa: E731
            {"experiment": experiment, "shape": shape, "threads": threads, "contender": contender, "job": job})
        for contender in ["ours", "peft"]:
            add("rate", "", contender, task="rate", shapes=PRODUCTS, seconds=1.0)
        for shape in chosen.shapes:
            count, length = STEP[shape]
            batch = [sequences(shape, [length] * count, 1)]
            timed = dict(task="train", warmup=2, steps=chosen.steps, batches=batch)
            add("steps", shape, "ours", **timed, checkpoints="")
            add("steps", shape, "peft", **timed)
            add("steps", shape, "peft compiled", **timed, compile=True)
            add("recompute", shape, "ours", **timed, recompute=True)
            add("recompute", shape, "peft", **timed, recompute=True)
            one = [sequences(shape, [256], 2)]
            for contender in ["ours", "peft"]:
                add("cold start", shape, contender, task="train", warmup=0, steps=1, batches=one)
            for length in GROWTH[shape]:
                batch = [sequences(shape, [length] * (TOKENS_OF_GROWTH // length), 3)]
                add(f"growth {length}", shape, "ours", task="train", warmup=1, steps=2, batches=batch)
        lengths = length_mix(64, 4)
        mix = [sequences("B", lengths[start:start + 8], start) for start in range(0, 64, 8)]
        mixed = dict(task="train", warmup=8, steps=16, batches=mix)
        if "B" in chosen.shapes:
            add("packing", "B", "ours packed", **mixed, layout="packed")
            add("packing", "B", "ours padded", **mixed, layout="padded")
            add("packing", "B", "peft padded", **mixed)
    return [e for e in found if not chosen.only or e["experiment"].split()[0] in chosen.only]


def measure(experiment: dict, chosen: argparse.Namespace) -> dict:
    job = dict(experiment["job"])
    with tempfile.TemporaryDirectory() as scratch:
        if job["task"] == "train":
            job["model"] = str(chosen.models / experiment["shape"])
            path = Path(scratch) / "batches.json"
            path.write_text(json.dumps(job["batches"]))
            job["batches"] = str(path)
        if "checkpoints" in job:
            job["checkpoints"] = str(Path(scratch) / "checkpoints")
        ours = experiment["contender"].startswith("ours")
        command = [str(chosen.binary)] if ours else [sys.executable, str(HERE / "peft_peer.py")]
        threads = str(experiment["threads"])
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(chosen.models / "inductor"))
        # the prefix (say taskset) waits or pins first: the clock of the launch starts behind it
        if job["task"] == "train":
            job["launched"] = 0.0
        text = json.dumps(job).replace('"launched": 0.0', '"launched": \'$(date +%s.%N)\'')
        shell = shlex.join(command) + " '" + text + "'"
        full = [*shlex.split(chosen.prefix), "sh", "-c", shell]
        done = subprocess.run(full, env=environment, capture_output=True, text=True)
    answer = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr[-2000:]}
    return {key: experiment[key] for key in ["experiment", "shape", "threads", "contender"]} | {"answer": answer}


def main() -> None:
    target = HERE.parent / "target"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="lines are appended")
    parser.add_argument("--only", nargs="*", default=[], help="rate, steps, recompute, cold, growth, packing")
    parser.add_argument("--contenders", nargs="*", default=[], help="of these only")
    parser.add_argument("--shapes", nargs="*", default=["A", "B"])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--models", type=Path, default=target / "bench-models", help="made by make_models.py")
    parser.add_argument("--binary", type=Path, default=target / "release/tunesmith-bench")
    parser.add_argument("--prefix", default="", help="a command before each measured process, such as taskset -c 0,1")
    chosen = parser.parse_args()
    if not chosen.models.exists():
        chosen.models.mkdir(parents=True)
        subprocess.run([sys.executable, str(HERE / "make_models.py"), str(chosen.models)], check=True)
    failed = 0
    for index in chosen.rounds:
        todo = experiments(chosen)
        for experiment in todo if index % 2 == 0 else reversed(todo):
            if chosen.contenders and experiment["contender"] not in chosen.contenders:
                continue
            start = time.time()
            line = measure(experiment, chosen) | {"round": index}
            with chosen.results.open("a") as results:
                results.write(json.dumps(line) + "\n")
            failed += "error" in line["answer"]
            state = "failed" if "error" in line["answer"] else f"{time.time() - start:.0f} s"
            print(*(line[key] for key in ["round", "experiment", "shape", "threads", "contender"]), state, flush=True)
    if failed:
        sys.exit(f"{failed} measurements failed; report.py names them")


if __name__ == "__main__":
    main()
