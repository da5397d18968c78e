"""Turns the lines of `run.py` into the Markdown tables of docs/benchmarks.md: `report.py results.jsonl [more.jsonl ...]`.

A time is the median over all timed steps of all rounds; a ratio is the median of the rounds' own ratios, each between two
processes that ran one after the other, with the smallest and the largest round behind it.
"""

import json
import sys
from pathlib import Path
from statistics import median


class Results:
    def __init__(self, paths: list[str]) -> None:
        lines = [json.loads(line) for path in paths for line in Path(path).read_text().splitlines()]
        self.rows = [line for line in lines if "error" not in line["answer"]]
        self.failed = [line for line in lines if "error" in line["answer"]]

    def of(self, experiment: str, shape: str, threads: int, contender: str) -> dict[int, dict]:
        """Answers by round; of a round that was measured twice the later one."""
        wanted = (experiment, shape, threads, contender)
        keys = ["experiment", "shape", "threads", "contender"]
        return {row["round"]: row["answer"] for row in self.rows if tuple(row[key] for key in keys) == wanted}

    def rate(self, threads: int) -> float:
        """The best f32 rate that either contender reached in a product, operations per second."""
        answers = [self.of("rate", "", threads, contender) for contender in ["ours", "peft"]]
        return max((max(a["rates"]) for by_round in answers for a in by_round.values()), default=float("nan"))


def speed(answer: dict) -> float:
    """Tokens that count per second, at the median step; steps of unequal size by their sums."""
    if len(set(answer["targets"])) == 1:
        return answer["targets"][0] / median(answer["seconds"])
    return sum(answer["targets"]) / sum(answer["seconds"])


def processor(answer: dict) -> float:
    """Seconds of all processors together for a step: what a busy neighbour changes least; at one thread the ratio is fair."""
    return answer["processor_seconds"] / len(answer["seconds"])


def ratio(ours: dict[int, dict], peer: dict[int, dict], of=speed) -> str:
    values = [of(ours[index]) / of(peer[index]) for index in sorted(ours.keys() & peer.keys())]
    if not values:
        return "–"
    return f"{median(values):.2f}× ({min(values):.2f}–{max(values):.2f}, {len(values)} rounds)"


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    if rows:
        print(f"\n### {title}\n")
        for row in [header, ["---"] * len(header), *rows]:
            print("| " + " | ".join(row) + " |")


def steps(results: Results, experiment: str, contenders: dict[str, str], goals: dict[str, str]) -> None:
    rows = []
    for shape in ["A", "B"]:
        for threads in [1, 2]:
            ours = results.of(experiment, shape, threads, "ours")
            if not ours:
                continue
            flops = median(next(iter(ours.values()))["flops"])
            for contender, name in contenders.items():
                answers = results.of(experiment, shape, threads, contender)
                if not answers:
                    continue
                time = median([second for a in answers.values() for second in a["seconds"]])
                peak = median([a["peak_bytes"] for a in answers.values()]) / 1e6
                first = ours is answers or contender == "ours"
                rows.append([
                    shape, str(threads), name, f"{time * 1e3:,.0f}",
                    f"{median([processor(a) for a in answers.values()]):.2f}",
                    f"{median([speed(a) for a in answers.values()]):,.0f}",
                    f"{flops / time / results.rate(threads):.0%}", f"{peak:,.0f}",
                    "" if first else ratio(ours, answers),
                    "" if first else ratio(answers, ours, processor).split(" ")[0],
                    "" if first else goals[contender],
                    "" if first else ratio(ours, answers, lambda a: a["peak_bytes"]).split(" ")[0].rstrip("×"),
                    f"{answers[min(answers)]['losses'][0]:.4f}",
                ])
    title = "Steps" if experiment == "steps" else "Steps with recomputation of activations"
    table(title, ["shape", "threads", "", "ms/step", "processor s/step", "tokens/s", "of the FLOP floor", "peak MB", "ours is faster by",
                  "by processor time", "goal", "our peak of its peak", "first loss"], rows)


def packing(results: Results) -> None:
    rows = []
    for threads in [1, 2]:
        packed = results.of("packing", "B", threads, "ours packed")
        for contender in ["ours packed", "ours padded", "peft padded"]:
            answers = results.of("packing", "B", threads, contender)
            if answers:
                rows.append([str(threads), contender, f"{median([speed(a) for a in answers.values()]):,.0f}",
                             "" if contender == "ours packed" else ratio(packed, answers)])
    table("Packed against padded, shape B (goal 2.5×)", ["threads", "", "counted tokens/s", "packed is faster by"], rows)


def growth(results: Results) -> None:
    rows = []
    for shape in ["A", "B"]:
        for threads in [1, 2]:
            base = None
            for length in [256, 512, 1024, 2048, 4096]:
                answers = results.of(f"growth {length}", shape, threads, "ours")
                if not answers:
                    continue
                time = median([second for a in answers.values() for second in a["seconds"]])
                rate = median(next(iter(answers.values()))["flops"]) / time
                base = base or rate
                rows.append([shape, str(threads), f"{length:,}", f"{4096 / time:,.0f}", f"{rate / results.rate(threads):.0%}",
                             f"{rate / base:.2f}"])
    table("Length of the sequences, 4,096 tokens a step (goal: at least 0.90 of what the FLOPs predict from 256)",
          ["shape", "threads", "tokens in a sequence", "tokens/s", "of the FLOP floor", "of the prediction"], rows)


def launch(results: Results) -> None:
    rows = []
    for shape in ["A", "B"]:
        for threads in [1, 2]:
            for contender in ["ours", "peft"]:
                answers = results.of("cold start", shape, threads, contender)
                if answers:
                    spans = [median([a["launch"][key] for a in answers.values()]) for key in ["ready", "first_step"]]
                    rows.append([shape, str(threads), contender, *(f"{span:.2f}" for span in spans)])
    table("Cold start: seconds after the launch of the process (goal: 2 s on A)",
          ["shape", "threads", "", "ready for the first step", "first step of 1 × 256 tokens done"], rows)


def checkpoints(results: Results) -> None:
    rows = []
    for shape in ["A", "B"]:
        for threads in [1, 2]:
            answers = results.of("steps", shape, threads, "ours")
            saves = [second for a in answers.values() for second in a["checkpoint_seconds"]]
            if saves:
                any_answer = next(iter(answers.values()))
                step = median([second for a in answers.values() for second in a["seconds"]])
                share = median(saves) / (step * any_answer["checkpoint_every"])
                rows.append([shape, str(threads), f"{median(saves) * 1e3:.0f}", str(any_answer["checkpoint_every"]),
                             f"{share:.2%}"])
    table("Checkpoints (goal: below 1 %)", ["shape", "threads", "ms to write one", "every n steps", "of step time"], rows)


def rates(results: Results) -> None:
    rows = []
    for threads in [1, 2]:
        for contender in ["ours", "peft"]:
            answers = results.of("rate", "", threads, contender).values()
            if answers:
                best = [max(values) / 1e9 for values in zip(*(a["rates"] for a in answers))]
                rows.append([str(threads), contender, *(f"{value:.0f}" for value in best)])
    table("f32 matrix products, GFLOP/s (m × n × k)",
          ["threads", "", "1024 × 3072 × 576", "1024 × 576 × 1536", "128 × 49152 × 576", "2048 × 2048 × 2048"], rows)


def failures(results: Results) -> None:
    """What was asked for and is in no table above."""
    keys = ["round", "experiment", "shape", "threads", "contender"]
    measured = {tuple(row[key] for key in keys) for row in results.rows}
    rows = []
    for line in results.failed:
        name = [str(line[key]) for key in keys]
        if tuple(line[key] for key in keys) not in measured:
            rows.append([*name, (line["answer"]["error"].strip().splitlines() or ["no message"])[-1][:200].replace("|", "/")])
    table("Not measured: the contender failed", ["round", "experiment", "shape", "threads", "contender", "its last line"], rows)


def main() -> None:
    results = Results(sys.argv[1:])
    steps(results, "steps", {"ours": "Tunesmith", "peft": "PEFT", "peft compiled": "PEFT + torch.compile"},
          {"peft": "1.8×", "peft compiled": "1.25×"})
    steps(results, "recompute", {"ours": "Tunesmith", "peft": "PEFT + gradient checkpointing"}, {"peft": "2×"})
    packing(results)
    growth(results)
    checkpoints(results)
    launch(results)
    rates(results)
    failures(results)


if __name__ == "__main__":
    main()
