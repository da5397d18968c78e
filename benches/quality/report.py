"""Turns the lines of run.py into the quality table of docs/benchmarks.md: `report.py quality.jsonl [times.jsonl]`.

Times are those of the second file when there is one: of a machine that did nothing else.
"""

import json
import sys
from pathlib import Path
from statistics import mean, median, stdev

METHODS = ["full", "LoRA", "rsLoRA", "DoRA", "AdaLoRA", "IA³", "QLoRA"]
NAMES = {"ours": "Tunesmith", "peer": "PEFT"}


def spread(values: list[float], digits: int, factor: float = 1.0) -> str:
    shown = f"{mean(values) * factor:.{digits}f}"
    return shown + (f" ± {stdev(values) * factor:.{digits}f}" if len(values) > 1 else "")


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def main() -> None:
    rows = read(sys.argv[1])
    timed = read(sys.argv[2]) if len(sys.argv) > 2 else rows
    for task in ["documents", "facts", "format"]:
        here = [row for row in rows if row["data"] == task]
        if not here:
            continue
        # QLoRA's base is another: quantised
        base = next((row["answer"]["base_perplexity"] for row in here if row["method"] != "QLoRA"), None)
        shown = "" if base is None else f", base perplexity {base:.2f}"
        # full fine-tuning trains every weight
        total = max((row["answer"]["trainable"] for row in rows if row["method"] == "full"), default=None)
        print(f"\n### {task}: {here[0]['answer']['steps']} steps{shown}\n")
        header = ["method", "", "seeds", "test perplexity", "score %", "trainable %", "ms/step", "peak MB", "gap"]
        print("| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|")
        for method in METHODS:
            for contender in ["ours", "peer"]:
                found = [r["answer"] for r in here if (r["method"], r["contender"]) == (method, contender)]
                if not found:
                    continue
                perplexities = [a["perplexity"] for a in found]
                scores = [a["score"] for a in found if a["score"] is not None]
                peers = [r["answer"]["perplexity"] for r in here if (r["method"], r["contender"]) == (method, "peer")]
                gap = ""
                if contender == "ours" and len(peers) > 1 and len(perplexities) > 1:
                    noise = (stdev(perplexities) ** 2 / len(perplexities) + stdev(peers) ** 2 / len(peers)) ** 0.5
                    gap = f"{(mean(perplexities) - mean(peers)) / noise:+.1f} standard errors"
                times = [r["answer"]["seconds"] / r["answer"]["steps"] * 1000 for r in timed
                         if (r["data"], r["method"], r["contender"]) == (task, method, contender)]
                name = "transformers" if method == "full" else NAMES[contender]
                print("| " + " | ".join([
                    method, name, str(len(found)), spread(perplexities, 3), spread(scores, 1, 100) if scores else "–",
                    f"{found[0]['trainable'] / total:.2%}" if total else "–", f"{median(times):.0f}" if times else "–",
                    f"{median([a['peak_bytes'] for a in found]) / 1e6:,.0f}", gap]) + " |")


if __name__ == "__main__":
    main()
