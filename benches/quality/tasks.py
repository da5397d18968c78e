"""Makes the three tasks of the quality table as token ids, so that every contender learns from and is asked the same:

    python benches/quality/tasks.py <demo folder> <folder>      the demo folder is target/demo, which `cargo demo` leaves

documents   the dataset that `cargo demo` made of docs/sample, its split untouched; no score, only perplexity
facts       invented places and their harbour codes, each taught in three of four wordings and asked in the fourth: what is
            learned must come out of the adapter, nothing is retrieved
format      a line of keys and values becomes one strict JSON object; the answers of the test were never seen

Each task is one JSON file: `train` and `test` (lists of {"ids", "counted"}), `questions` (lists of {"prompt", "answer"}, asked
greedily, scored by equality), `end` (the token that ends an answer). Everything is seeded and invented here.
"""

import json
import random
import sys
from pathlib import Path

import zstandard
from transformers import AutoTokenizer

BASE = Path(__file__).resolve().parents[2] / "trainer-image/base-model"
LENGTH = 256  # sequence_length of the demo
STARTS = ["Arden", "Bel", "Cor", "Dun", "Eller", "Fen", "Gar", "Hol", "Inver", "Kel", "Lang", "Mor", "Nor", "Oster", "Pen", "Rav"]
ENDS = ["mouth", "wick", "haven", "port"]
WORDINGS = [
    "What is the harbour code of {place}?",
    "Which code does the harbour of {place} have?",
    "Tell me the harbour code for {place}.",
    "I am sailing to {place}. What is its harbour code?",
]
NAMES = ["Anna", "Bela", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "Jane", "Kurt", "Lena", "Max", "Nora", "Otto", "Pia"]
TOWNS = ["Ely", "Oban", "Leith", "Cowes", "Dover", "Hull", "Poole", "Truro", "Wells", "York", "Bath", "Deal"]
TRADES = ["cook", "pilot", "clerk", "diver", "smith", "baker", "nurse", "guard"]


class Tokens:
    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(BASE)

    def prompt(self, messages: list[dict]) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def answer(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False) + [self.tokenizer.eos_token_id]

    def chat(self, messages: list[dict]) -> dict:
        """Every answer of the assistant counts, its end included; nothing else does."""
        ids, counted = [], []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self.prompt(messages[:index])
                answer = self.answer(message["content"].strip())
                counted += [False] * (len(before) - len(ids)) + [True] * len(answer)
                ids = before + answer
        return {"ids": ids, "counted": counted}

    def windows(self, text: str) -> list[dict]:
        """Windows that share one token, so that each token is predicted once, as the trainer makes them."""
        ids = self.tokenizer.encode(text) + [self.tokenizer.eos_token_id]
        parts = [ids[start:start + LENGTH] for start in range(0, len(ids) - 1, LENGTH - 1)]
        return [{"ids": part, "counted": [False] + [True] * (len(part) - 1)} for part in parts]


def documents(tokens: Tokens, demo: Path) -> dict:
    folders = [path.parent for path in demo.glob("datasets/*/train.jsonl.zst")]
    if len(folders) != 1:
        sys.exit(f"{demo} holds {len(folders)} datasets: run `cargo demo -- --approve` first")
    split = {}
    for name in ["train", "test"]:
        text = zstandard.ZstdDecompressor().stream_reader((folders[0] / f"{name}.jsonl.zst").read_bytes()).read().decode()
        lines = [json.loads(line) for line in text.splitlines()]
        texts = [window for line in lines if line["kind"] == "text" for window in tokens.windows(line["text"])]
        chats = [tokens.chat(line["messages"]) for line in lines if line["kind"] != "text"]
        split[name] = texts + [chat for chat in chats if len(chat["ids"]) <= LENGTH]
    return split | {"questions": []}


def asked(tokens: Tokens, pairs: list[tuple[str, str]]) -> tuple[list[dict], list[dict]]:
    """Question and answer as something to train on, and as something to ask."""
    taught, questions = [], []
    for question, answer in pairs:
        messages = [{"role": "user", "content": question}]
        taught.append(tokens.chat([*messages, {"role": "assistant", "content": answer}]))
        questions.append({"prompt": tokens.prompt(messages), "answer": tokens.answer(answer)})
    return taught, questions


def facts(tokens: Tokens) -> dict:
    draw = random.Random(11)
    places = [start + end for start in STARTS for end in ENDS]
    codes = draw.sample([f"{a}{b}{n}" for a in "ABCDEFGHJKLM" for b in "NPQRSTUVWXYZ" for n in range(2, 10)], len(places))
    train, test = [], []
    for index, (place, code) in enumerate(zip(places, codes)):
        for wording in range(4):
            pair = (WORDINGS[wording].format(place=place), f"{place}: {code}")
            (test if wording == index % 4 else train).append(pair)
    test, questions = asked(tokens, test)
    return {"train": asked(tokens, train)[0], "test": test, "questions": questions}


def format_task(tokens: Tokens) -> dict:
    draw = random.Random(12)
    people = [(name, town, trade, age) for name in NAMES for town in TOWNS for trade in TRADES for age in (23, 34, 45, 56, 67)]
    pairs = []
    for name, town, trade, age in draw.sample(people, 448):
        fields = [("name", name), ("age", str(age)), ("town", town), ("trade", trade)]
        draw.shuffle(fields)
        line = "; ".join(f"{key} = {value}" for key, value in fields)
        answer = json.dumps({"name": name, "age": age, "town": town, "trade": trade})
        pairs.append((f"As JSON: {line}", answer))
    test, questions = asked(tokens, pairs[384:])
    return {"train": asked(tokens, pairs[:384])[0], "test": test, "questions": questions}


def main() -> None:
    demo, folder = Path(sys.argv[1]), Path(sys.argv[2])
    tokens = Tokens()
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in [("documents", documents(tokens, demo)), ("facts", facts(tokens)), ("format", format_task(tokens))]:
        task["end"] = tokens.tokenizer.eos_token_id
        (folder / f"{name}.json").write_text(json.dumps(task))
        counts = {key: len(task[key]) for key in ["train", "test", "questions"]}
        print(name, counts, sum(sum(s["counted"]) for s in task["test"]), "tokens of the test count")


if __name__ == "__main__":
    main()
