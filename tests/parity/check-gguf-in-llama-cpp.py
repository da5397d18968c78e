"""Loads GGUF files that Tunesmith wrote in llama.cpp and compares logits, greedy answers, tokens and templates.

    cargo build -p tunesmith-model --example gguf-for-llama-cpp
    python tests/parity/check-gguf-in-llama-cpp.py <target>/debug/examples/gguf-for-llama-cpp trainer-image/base-model
    python tests/parity/check-gguf-in-llama-cpp.py <target>/debug/examples/gguf-for-llama-cpp --architectures
    python tests/parity/check-gguf-in-llama-cpp.py <target>/debug/examples/gguf-for-llama-cpp --sentencepiece

The second form takes the tiny random models of tests/parity/goldens/architectures with a vocabulary of single letters: it says
whether llama.cpp knows the keys, names and orders of each architecture. The third takes those of tests/parity/goldens/sentencepiece,
whose vocabularies are of SentencePiece's kind, and asks for the texts.json of each as well: ids of `tokenizers`, which
crates/model/tests/gguf_sentencepiece.rs asks of our tokenizer. Versions: requirements-llama-cpp.txt. The exit code is 1 when

- a logit of llama.cpp differs from our decoder's on the same file by more than LIMIT of the largest (llama.cpp rounds the inputs
  of each product to 16 bits for F16, to 8 bits for the others, so it is that rounding which is allowed),
- the mean divergence from base and adapter is not near that of our own reading of the file,
- a text has other tokens, a conversation is rendered otherwise, or llama.cpp would not stop where the model was trained to.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jinja2
import llama_cpp
import numpy as np

LIMIT = {"F16": 5e-3, "Q8_0": 5e-2, "Q4_K": 1e-1}
GOLDENS = Path(__file__).parent / "goldens" / "architectures"
SENTENCEPIECE = Path(__file__).parent / "goldens" / "sentencepiece"
# what llama.cpp does not compute as trained is refused by the exporter: yarn with another ramp
ARCHITECTURES = ["llama-biases", "mistral", "qwen2", "qwen2-yarn", "qwen3", "phi3", "phi3-longrope", "gemma2", "gpt2"]


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergence(trained, other):
    p, q = log_softmax(trained), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def tokens(model, text, special):
    return model.tokenize(text.encode(), add_bos=not special, special=special)


def greedy(model, ids, count):
    model.reset()
    model.eval(ids)
    answer = []
    for _ in range(count):
        answer.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval([answer[-1]])
    return answer


def check(folder, tricky):
    golden = json.loads((folder / "golden.json").read_text())
    trained, base = np.array(golden["logits"], dtype=np.float32), np.array(golden["base_logits"], dtype=np.float32)
    effect = divergence(trained, base)
    good = True
    for name, limit in LIMIT.items():
        expected = golden["files"][name]
        model = llama_cpp.Llama(
            str(folder / f"{name}.gguf"), n_ctx=0, n_batch=64, n_ubatch=64, n_threads=1, logits_all=True, verbose=False,
            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False)
        rows = len(expected["logits"])
        ids = golden["ids"][:rows]
        model.eval(ids)
        got = model.scores[:rows].copy()
        ours = np.array(expected["logits"], dtype=np.float32)[:rows]
        difference = float(np.abs(got - ours).max() / np.abs(ours).max())
        theirs_kl, our_kl = divergence(trained[:rows], got), divergence(trained[:rows], ours)
        answer = greedy(model, ids, len(expected["greedy"]))
        same = sum(a == b for a, b in zip(answer, expected["greedy"]))
        print(f"  {name}: largest relative difference of a logit {difference:.1e}; divergence from the trained model "
              f"{theirs_kl:.1e} in llama.cpp, {our_kl:.1e} here (the adapter's effect {effect:.1e}); "
              f"greedy {same} of {len(answer)} tokens")
        good &= difference <= limit and abs(theirs_kl - our_kl) <= max(our_kl, 1e-3)
        # the adapter is in it: of F16 alone, since fewer bits lose more than the small adapter changes
        good &= name != "F16" or effect > 100 * theirs_kl
        for case in golden["texts"] if golden["chats"] else []:
            found = tokens(model, case["text"], special=False)
            # what looks like a special token in a document is one for tokenizers, and none for llama.cpp unless it is asked
            if "<|" in case["text"]:
                found = model.tokenize(case["text"].encode(), add_bos=True, special=True)
            if found != case["ids"]:
                print(f"    other tokens for {case['text']!r}: {found} instead of {case['ids']}")
                good = False
        for case in tricky:
            found = model.tokenize(case["text"].encode(), add_bos=True, special=True)
            if found != case["ids"]:
                print(f"    other tokens for {case['text']!r}: {found} instead of {case['ids']}")
                good = False
        vocabulary = llama_cpp.llama_model_get_vocab(model.model)
        ends = [id for id in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, id)]
        if ends != golden["terminators"]:
            print(f"    llama.cpp stops at {ends}, the model was trained to stop at {golden['terminators']}")
            good = False
        if golden["chats"]:
            template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(
                model.metadata["tokenizer.chat_template"])
            spelling = lambda id: llama_cpp.llama_vocab_get_text(vocabulary, id).decode()
            for case in golden["chats"]:
                rendered = template.render(
                    messages=case["messages"], add_generation_prompt=True,
                    bos_token=spelling(model.token_bos()), eos_token=spelling(model.token_eos()))
                if rendered != case["rendered"]:
                    print(f"    another conversation: {rendered!r} instead of {case['rendered']!r}")
                    good = False
                if tokens(model, rendered, special=True) != case["ids"]:
                    print(f"    other tokens for the conversation {rendered!r}")
                    good = False
    return good


def with_letters(name, to):
    """The golden with a byte-level vocabulary: the tests of crates/model/tests/gguf.rs make the same."""
    for path in (GOLDENS / name).iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    config = json.loads((to / "config.json").read_text())
    if name == "gemma2":  # llama.cpp fixes this one
        config["query_pre_attn_scalar"] = config["head_dim"]
        (to / "config.json").write_text(json.dumps(config))
    letters = ["<|bos|>", "<|end|>", *"abcdefghijklmnopqrstuvwxyz0123456789", "Ġ", "Ġa"]
    special = [
        dict(id=id, content=letters[id], single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for id in (0, 1)]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    (to / "tokenizer.json").write_text(json.dumps(dict(
        version="1.0", truncation=None, padding=None, normalizer=None, post_processor=None, added_tokens=special,
        pre_tokenizer=byte_level, decoder=byte_level,
        model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                   fuse_unk=False, byte_fallback=False, ignore_merges=False, merges=[["Ġ", "a"]],
                   vocab={letter: id for id, letter in enumerate(letters)}))))
    (to / "tokenizer_config.json").write_text(json.dumps(dict(bos_token="<|bos|>", eos_token="<|end|>")))


def main(example, what):
    good = True
    names = {"--architectures": ARCHITECTURES, "--sentencepiece": sorted(path.name for path in SENTENCEPIECE.iterdir())}
    for name in names.get(what, [what]):
        with tempfile.TemporaryDirectory() as folder:
            base, out, tricky = Path(folder) / "base", Path(folder) / "out", []
            base.mkdir()
            if what == "--architectures":
                with_letters(name, base)
            elif what == "--sentencepiece":
                base = SENTENCEPIECE / name
                tricky = json.loads((base / "texts.json").read_text())
            else:
                base = Path(what)
            subprocess.run([example, base, out], check=True)
            print(name, f"with {len(tricky)} texts of its own" if tricky else "")
            good &= check(out, tricky)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
