"""Makes tests/parity/goldens/sentencepiece: tiny models whose tokenizers are of SentencePiece's kind, and what they make of texts.

    python tests/parity/make-sentencepiece-goldens.py            (versions: requirements.txt beside this file)

The Rust test crates/model/tests/gguf_sentencepiece.rs reads them; check-gguf-in-llama-cpp.py --sentencepiece asks llama.cpp for the
same texts. A small vocabulary is trained with `tokenizers` and given the merges that transformers' own converter makes of a
SentencePiece model (`generate_merges`: every pair that makes a token, in the order of scores), so that the files look like those of:

- llama: Llama 2: `▁` in front of every text and behind special tokens, runs of `▁` with one and the same score
- gemma: Gemma 2: no `▁` in front; runs of line breaks and of `▁`, and tags, as added tokens
- phi3: Phi-3: Llama's with added tokens that swallow the white space behind them

goldens/sentencepiece/<model>/   a model in Hugging Face layout and texts.json (text and ids, of `tokenizers`)
"""

import json
import shutil
import zlib
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import generate_merges

GOLDENS = Path(__file__).parent / "goldens" / "sentencepiece"

CORPUS = """The ferry leaves at 7:45 from pier 3, and it is full: we have sold 1,234 tickets. Who signs the log before the ferry leaves?
The master signs the log, and the mate reads it. When the weather is bad, the ferry stays in the harbour and the tickets stay valid.
def leave(pier):
    for ticket in pier.tickets:
        if ticket.valid: print("The ferry leaves", ticket)
Grüße an Zoë, the café is closed. <h1>Ferries</h1> [INST] When does the last ferry leave? [/INST] At 22:00, from pier 2; it is never full.
"""
MERGES = 150
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

# white space, line breaks, what only bytes can spell, special tokens, and what looks like tokens
TEXTS = [
    "", " ", "   ", "The ferry leaves.", " The ferry leaves. ", "  two  spaces,   three, and a tab\tor\t\ttwo",
    "a\nb\n\nc\n\n\nd\n\n\n\ne\n", "\n\n  The log\r\n\r\nis full ", "x" + " " * 40 + "y" + "\n" * 9, "🚢 at pier 3: 👩‍🚀 ½ 東京 😀😀",
    "Grüße an Zoë – naïve café", "e\u0301 \u00a0 \u200b \u2581 \u2581The", "<s>The ferry</s> leaves</s>", "<s> [INST] When? [/INST]  At 22:00 </s><s>",
    "<bos><start_of_turn>user\n  Who?<end_of_turn>\n<start_of_turn>model\n", "<|user|>\n Who signs? <|end|>\n<|assistant|>\n\n The mate.<|end|> x",
    "<unk> <pad> <0x0A> <0xE2>", "<h1> The <h1>ferry</h1>", "aaaa      the the thethe  \t \n  leaves1234", "<|endoftext|>The <|system|> \n\n\n </s> ferry",
]

TURNS = (
    "{% for message in messages %}{{ '%s' + message['role'] + '%s\n' + message['content'] + '%s\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '%sassistant%s\n' }}{% endif %}"
)


def turns(bos, before, after, end):
    values = iter((before, after, end, before, after))
    return bos + "".join(part + next(values, "") for part in TURNS.split("%s"))


def special(content, **settings):
    return AddedToken(content, normalized=False, special=True, **settings)


def own(content, **settings):
    return AddedToken(content, normalized=False, special=False, **settings)


MODELS = {
    "llama": dict(
        first=["<unk>", "<s>", "</s>"], runs="▁", prefix=True, bos="<s>", eos="</s>", unk="<unk>", ends=["</s>"],
        added=[special("<unk>"), special("<s>"), special("</s>")], template=turns("{{ bos_token }}", "[", "]", "</s>"),
        config=dict(model_type="llama"),
    ),
    "gemma": dict(
        first=["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\n\n\n", "<h1>"],
        runs="▁\n", prefix=False, bos="<bos>", eos="<eos>", unk="<unk>", ends=["<eos>", "<end_of_turn>"],
        added=[
            *map(special, ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]),
            *map(own, ["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<h1>"]),
        ],
        template=turns("{{ bos_token }}", "<start_of_turn>", "", "<end_of_turn>"),
        config=dict(model_type="gemma2", head_dim=4, query_pre_attn_scalar=4, sliding_window=192),
    ),
    "phi3": dict(
        first=["<unk>", "<s>", "</s>"], runs="▁", prefix=True, bos="<s>", eos="<|endoftext|>", unk="<unk>",
        ends=["</s>", "<|endoftext|>", "<|end|>"], adds_bos=False,
        added=[
            special("<unk>"), special("<s>"), own("</s>", rstrip=True), special("<|endoftext|>"),
            *(special(token, rstrip=True) for token in ["<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]),
        ],
        template=turns("", "<|", "|>", "<|end|>"),
        config=dict(model_type="phi3", pad_token_id=0),
    ),
}


def pieces():
    """Tokens that merges make, the first merge first, and the single characters they are made of."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    # as many tokens as characters and merges
    characters = sorted(set(CORPUS.replace(" ", "▁")) - {"\n"})
    lines = [line for line in CORPUS.splitlines() if line]
    trainer = trainers.BpeTrainer(
        vocab_size=len(characters) + MERGES, initial_alphabet=characters, show_progress=False, special_tokens=[])
    trained.train_from_iterator(lines, trainer)
    return [left + right for left, right in json.loads(trained.to_str())["model"]["merges"]], characters


def tokenizer(spec):
    made, characters = pieces()
    runs = [character * count for character in spec["runs"] for count in (2, 3, 4) if character != "\n" or count < 4]
    # as SentencePiece scores them: user-defined pieces first, Llama 2's runs last, all of them alike
    scores = {piece: 0.0 if spec["runs"] != "▁" else -1e9 for piece in runs}
    scores |= {piece: -1.0 - rank for rank, piece in enumerate(piece for piece in made if piece not in scores)}
    order = spec["first"] + BYTES + [*runs, *made, *characters]
    vocabulary = {piece: id for id, piece in enumerate(dict.fromkeys(order))}
    scores |= {piece: -1e6 for piece in vocabulary if piece not in scores}
    merges = generate_merges(vocabulary, scores)
    result = Tokenizer(models.BPE(
        vocab=vocabulary, merges=merges, unk_token=spec["unk"], fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    after = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec["prefix"]:
        result.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        after.append(decoders.Strip(" ", 1, 0))
    else:
        result.normalizer = replace
        result.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    result.decoder = decoders.Sequence(after)
    result.add_tokens(spec["added"])
    bos = spec["bos"]
    if spec.get("adds_bos", True):
        result.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, result.token_to_id(bos))])
    return result


def weights(config, seed):
    """Larger weights than a fresh model has, so that attention and gates are far from uniform."""
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            start = 1.0 if parameter.dim() == 1 and config.model_type != "gemma2" else 0.0
            parameter.copy_(start + noise)
    return model.to(torch.float16)


def make(name, spec):
    folder = GOLDENS / name
    made = tokenizer(spec)
    config = AutoConfig.for_model(
        **spec["config"], vocab_size=made.get_vocab_size() + 3, hidden_size=16, intermediate_size=28, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=192, tie_word_embeddings=True,
        bos_token_id=made.token_to_id(spec["bos"]), eos_token_id=[made.token_to_id(end) for end in spec["ends"]])
    weights(config, zlib.crc32(name.encode())).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(made.to_str() + "\n")
    settings = dict(
        bos_token=spec["bos"], eos_token=spec["eos"], unk_token=spec["unk"], chat_template=spec["template"])
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    texts = [dict(text=text, ids=made.encode(text).ids) for text in TEXTS]
    (folder / "texts.json").write_text("[\n" + ",\n".join(json.dumps(text, ensure_ascii=False) for text in texts) + "\n]\n")


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for name, spec in MODELS.items():
        make(name, spec)
    total = 0
    for path in sorted(GOLDENS.rglob("*")):
        if path.is_file():
            total += path.stat().st_size
            print(path.relative_to(GOLDENS), path.stat().st_size)
    assert total < 250_000, total


if __name__ == "__main__":
    main()
