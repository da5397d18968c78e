"""Makes the embedded base model from nothing: fetches text, trains the tokenizer, trains the model, evaluates, writes the files.

    python train.py --work WORK [--out FOLDER] [--tokens N] [--minutes M] [--stage data|train|evaluate|all]

Needs Debian (`apt-get`, `dpkg`) for the text and one CPU thread for the training. What was read (versions, sha256), how long it took
and the perplexities of the held-out documents go to `training.json` beside the weights.
"""

import argparse
import json
import math
import pickle
import random
import time
from dataclasses import asdict
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from corpus import SOURCES, Document, documents, fetch
from dialogues import dialogues
from model_files import BOS, CONFIG, CONTEXT, END, render, train_tokenizer, write_json, write_tokenizer, write_weights

SEED = 20240229
DIALOGUE_SHARE = 0.17  # of the characters of the documents
LATE_DIALOGUE_SHARE = 0.12  # new dialogues of the late stream, likewise
LATE_PIECES = 0.1  # part of the shuffled documents and dialogues that the late stream repeats from the end of the first one
BATCH_TOKENS, MICRO_TOKENS = 4096, 2048
SHORT, LONG, LATE_FROM = 512, CONTEXT, 0.8  # sequence lengths; the last fifth of training uses the long one and the late stream
MUON_RATE, ADAM_RATE, WARM_UP, FLOOR = 0.012, 3e-3, 0.02, 0.03


def make_data(work: Path, out: Path) -> None:
    """Fetches and cleans the text, trains the tokenizer, and writes the token streams and the held-out texts to `work`."""
    seen: set[str] = set()
    train: list[Document] = []
    test: list[Document] = []
    record = []
    for source in SOURCES:
        fetched, tree = fetch(source, work)
        found = list(documents(source, tree, seen))
        held = [d for d in found if d.held_out()]
        test += held
        train += [d for d in found if not d.held_out()]
        record.append(asdict(fetched) | {"documents": len(found), "held_out": len(held), "characters": sum(len(d.text()) for d in found)})
        print(record[-1], flush=True)
    characters = sum(len(d.text()) for d in train)
    chats = [render(m) for m in dialogues(train, int(characters * DIALOGUE_SHARE), SEED)]
    test_chats = list(dialogues(test, 250_000, SEED + 1))
    texts = [d.text() for d in train]
    tokenizer = train_tokenizer(texts + [c.replace(END, " ") for c in chats[: len(chats) // 2]])
    write_tokenizer(tokenizer, out)

    rng = random.Random(SEED)
    pieces = [BOS + t + END for t in texts] + chats
    rng.shuffle(pieces)
    late_chats = [render(m) for m in dialogues(train, int(characters * LATE_DIALOGUE_SHARE), SEED + 2, unknown=0.02)]
    late = pieces[int((1 - LATE_PIECES) * len(pieces)) :] + late_chats
    rng.shuffle(late)
    stream, late_stream = encode(tokenizer, pieces), encode(tokenizer, late)
    numpy.save(work / "train.npy", stream)
    numpy.save(work / "late.npy", late_stream)
    (work / "test.pickle").write_bytes(pickle.dumps(([d.text() for d in test], test_chats)))
    write_json(work / "data.json", {"sources": record, "train_documents": len(train), "test_documents": len(test), "train_characters": characters,
                                    "stream_tokens": len(stream), "of_these_in_dialogues": len(encode(tokenizer, chats)), "dialogues": len(chats),
                                    "late_stream_tokens": len(late_stream), "of_these_in_new_dialogues": len(encode(tokenizer, late_chats)), "new_dialogues": len(late_chats)})


def encode(tokenizer: Tokenizer, pieces: list[str]) -> numpy.ndarray:
    """The ids of all pieces in a row."""
    return numpy.concatenate([numpy.array(e.ids, dtype=numpy.uint16) for e in tokenizer.encode_batch(pieces, add_special_tokens=False)])


def rate(part: float) -> float:
    """The learning rate factor after `part` (0 to 1) of training: linear warm-up, then cosine down to `FLOOR`."""
    if part < WARM_UP:
        return part / WARM_UP
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (part - WARM_UP) / (1 - WARM_UP)))


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def nll(model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    logits = model(input_ids=inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.reshape(-1), reduction=reduction)


def train(work: Path, out: Path, budget: int, minutes: float, export_every_s: float) -> None:
    """Trains on `budget` tokens of the streams (from the start again where one is shorter) and writes the weights to `out`.

    Progress through the schedule is the larger of the parts of the tokens and of the `minutes` that are used, so a slow machine
    finishes the whole schedule on fewer tokens. An interrupted run goes on from `checkpoint.pt` in `work`.
    """
    torch.manual_seed(SEED)
    streams = [torch.from_numpy(numpy.load(work / name).astype(numpy.int64)) for name in ("train.npy", "late.npy")]
    model = LlamaForCausalLM(LlamaConfig(**CONFIG, attn_implementation="sdpa")).float().train()
    optimizer = optimizers(model)
    bases = [[g["lr"] for g in o.param_groups] for o in optimizer]
    steps, step, earlier, smooth, at, late = budget // BATCH_TOKENS, 0, 0.0, 0.0, 0, False
    if (work / "checkpoint.pt").exists():
        saved = torch.load(work / "checkpoint.pt")
        model.load_state_dict(saved["model"])
        for one, state in zip(optimizer, saved["optimizers"], strict=True):
            one.load_state_dict(state)
        step, earlier, smooth, at, late = saved["step"], saved["seconds"], saved["smooth"], saved["at"], saved.get("late", False)
    started, exported, last = time.time() - earlier, time.time(), time.time()
    while (progress := max(step / steps, (time.time() - started) / 60 / minutes)) < 1:
        if progress >= LATE_FROM and not late:
            at, late = 0, True
        stream, length = streams[late], LONG if late else SHORT
        total = 0.0
        for _ in range(BATCH_TOKENS // MICRO_TOKENS):
            if at + MICRO_TOKENS + 1 > len(stream):
                at = 0
            block = stream[at : at + MICRO_TOKENS + 1]
            at += MICRO_TOKENS
            with torch.autocast("cpu", torch.bfloat16):
                loss = nll(model, block[:-1].view(-1, length), block[1:]) * MICRO_TOKENS / BATCH_TOKENS
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one, base in zip(optimizer, bases, strict=True):
            for group, value in zip(one.param_groups, base, strict=True):
                group["lr"] = value * rate(progress)
            one.step()
            one.zero_grad(set_to_none=True)
        smooth = total if step == 0 else 0.98 * smooth + 0.02 * total
        step += 1
        if step % 20 == 0:
            print(f"step {step} of {steps}, schedule {progress:.3f}, loss {total:.3f}, smooth {smooth:.3f}, {20 * BATCH_TOKENS / (time.time() - last):.0f} tokens/s", flush=True)
            last = time.time()
        if time.time() - exported > export_every_s:
            exported = time.time()
            write_weights(model, out / "model.safetensors")
            torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizer], "step": step,
                        "seconds": time.time() - started,
                        "smooth": smooth, "at": at, "late": late}, work / "checkpoint.pt")
            print(f"exported at step {step}", flush=True)
    write_weights(model, out / "model.safetensors")
    (work / "checkpoint.pt").unlink(missing_ok=True)
    write_json(work / "run.json", {"tokens_seen": step * BATCH_TOKENS, "steps": step, "seconds": round(time.time() - started), "final_smoothed_loss": round(smooth, 4)})


@torch.no_grad()
def evaluate(work: Path, out: Path) -> None:
    """Perplexity on the held-out documents with the written float16 weights, computed in float32; writes `training.json`."""
    texts, chats = pickle.loads((work / "test.pickle").read_bytes())
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    loss, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor(tokenizer.encode(BOS + text + END, add_special_tokens=False).ids)
        for start in range(0, len(ids) - 1, CONTEXT):
            part = ids[start : start + CONTEXT + 1]
            loss += nll(model, part[None, :-1], part[1:], "sum").item()
            tokens += len(part) - 1
    size, words = sum(len(t.encode()) for t in texts), sum(len(t.split()) for t in texts)
    answers, answer_tokens = {"grounded": 0.0, "other": 0.0}, {"grounded": 0, "other": 0}
    for messages in chats:
        kind = "grounded" if "Sources:" in messages[0]["content"] else "other"
        prompt = tokenizer.encode(render(messages[:-1]) + "<|assistant|>", add_special_tokens=False).ids
        ids = torch.tensor(tokenizer.encode(render(messages), add_special_tokens=False).ids[: CONTEXT + 1])
        targets = ids[1:].clone()
        targets[: len(prompt) - 1] = -100
        answers[kind] += nll(model, ids[None, :-1], targets, "sum").item()
        answer_tokens[kind] += int((targets != -100).sum())
    report = json.loads((work / "data.json").read_text()) | json.loads((work / "run.json").read_text())
    report["test"] = {
        "documents": len(texts), "tokens": tokens, "bytes": size, "words": words,
        "perplexity_per_token": round(math.exp(loss / tokens), 3),
        "perplexity_per_byte": round(math.exp(loss / size), 4),
        "perplexity_per_word": round(math.exp(loss / words), 2),
        "bits_per_byte": round(loss / size / math.log(2), 4),
        "answer_perplexity_per_token_with_sources": round(math.exp(answers["grounded"] / answer_tokens["grounded"]), 3),
        "answer_perplexity_per_token_without_sources": round(math.exp(answers["other"] / answer_tokens["other"]), 3),
    }
    report["folder_bytes"] = sum(f.stat().st_size for f in out.iterdir() if f.is_file())
    write_json(out / "training.json", report)
    print(json.dumps(report["test"], indent=2), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and intermediate files (about 1.5 GB)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="model folder (default: beside this script)")
    parser.add_argument("--tokens", type=int, default=0, help="tokens to train on (default: the whole stream once)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="finish the schedule within this wall clock (default: no limit)")
    parser.add_argument("--export-every", type=float, default=600.0, help="seconds between exports of the weights")
    parser.add_argument("--stage", choices=("data", "train", "evaluate", "all"), default="all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.stage in ("data", "all"):
        make_data(arguments.work, arguments.out)
    if arguments.stage in ("train", "all"):
        tokens = arguments.tokens or len(numpy.load(arguments.work / "train.npy", mmap_mode="r")) - 1
        train(arguments.work, arguments.out, tokens, arguments.minutes, arguments.export_every)
    if arguments.stage in ("evaluate", "all"):
        evaluate(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
