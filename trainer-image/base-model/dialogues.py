"""Makes chat examples out of the structure of the documents, so that the model knows the template, stops, and copies from sources.

Nothing is written by a model or by hand except the fixed phrases below; every answer is text of the documents.
"""

import random
import re
from collections.abc import Iterator

from corpus import Document

Messages = list[dict[str, str]]

ABOUT = ("What does {title} say about {heading}?", "Tell me about {heading} in {title}.", "Explain {heading} ({title}).",
         "In {title}, what is said about {heading}?", "{title}: {heading}?")
PLAIN = ("You are a helpful assistant.", "Answer the question.", "You answer questions about the documents.")
GROUNDED = ("Answer the question from the sources. If they do not say, say so.", "Use only the sources below.",
            "You are a helpful assistant. Answer from these sources.", "Answer with the help of the documents.")
QUOTED = ("What do the sources say about {phrase}?", "What is said about {phrase}?", "Find the sentence about {phrase}.",
          "What should I know about {phrase}?", "Which sentence mentions {phrase}?")
WORD = ("What does {word} mean?", "Define {word}.", "What is the meaning of the word {word}?", "Explain the word {word}.")
UNKNOWN = "The sources do not say."
GREETINGS = (("Hello!", "Hello! What would you like to know?"), ("Hi", "Hello! What would you like to know?"),
             ("Thank you.", "You are welcome."), ("Thanks!", "You are welcome."),
             ("Who are you?", "I am a small language model. I answer questions about documents."))
COMMON = set("the a an and or of to in is are be it this that for on as with by from if not can will may at which you your when has have was were".split())


def sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z\"(])", text) if s]


def opening(text: str, limit: int) -> str:
    """The first whole sentences of `text` within `limit` characters; always at least one."""
    taken = ""
    for sentence in sentences(text):
        if taken and len(taken) + len(sentence) > limit:
            break
        taken = f"{taken} {sentence}".strip()
    return taken


def phrase_of(sentence: str, rng: random.Random) -> str | None:
    """Two to four adjacent words of a sentence that begin and end with a content word."""
    words = sentence.rstrip(".!?:").split()
    spans = [words[i : i + n] for n in (2, 3, 4) for i in range(1, len(words) - n)]
    good = [s for s in spans if s[0].isalpha() and s[-1].isalpha() and s[0].lower() not in COMMON and s[-1].lower() not in COMMON]
    return " ".join(rng.choice(good)) if good else None


def about(document: Document, rng: random.Random) -> Messages | None:
    """One or two questions about sections of a document, without a source in the prompt."""
    sections = [s for s in document.sections if s.heading and s.heading != document.title and not s.paragraphs[0].endswith(":")]
    if not document.title or not sections:
        return None
    messages: Messages = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": rng.choice(PLAIN)})
    for section in rng.sample(sections, min(len(sections), rng.choice((1, 1, 2)))):
        messages.append({"role": "user", "content": rng.choice(ABOUT).format(title=document.title, heading=section.heading)})
        messages.append({"role": "assistant", "content": opening(section.paragraphs[0], 420)})
    return messages


def grounded(pool: list[tuple[str, str]], unknown: float, rng: random.Random) -> Messages | None:
    """A question with one to three excerpts in the system message; the answer is a sentence of one of them.

    In a part `unknown` (0 to 1) of the cases the question is about another text and the answer is `UNKNOWN`.
    """
    count = rng.choice((1, 1, 2, 2, 3))
    chosen = rng.sample(pool, count + 1)
    excerpts, stranger = [(h, opening(p, 520 if count < 3 else 330)) for h, p in chosen[:count]], chosen[count]
    listing = "\n".join(f"[{i}] {p}" for i, (_, p) in enumerate(excerpts, 1))
    at = rng.randrange(count)
    kind = rng.random()
    if kind < unknown:
        phrase = phrase_of(sentences(stranger[1])[0], rng)
        answer = UNKNOWN
        question = rng.choice(QUOTED).format(phrase=phrase)
    elif kind < 0.3 and excerpts[at][0]:
        phrase, question = excerpts[at][0], f"What is said about {excerpts[at][0]}?"
        answer = f"{opening(excerpts[at][1], 260)} [{at + 1}]"
        listing = "\n".join(f"[{i}] {h}: {p}" for i, (h, p) in enumerate(excerpts, 1))
    else:
        sentence = rng.choice(sentences(excerpts[at][1]))
        phrase = phrase_of(sentence, rng)
        question = rng.choice(QUOTED).format(phrase=phrase)
        answer = f"{sentence} [{at + 1}]"
    if not phrase:
        return None
    return [{"role": "system", "content": f"{rng.choice(GROUNDED)}\n\nSources:\n{listing}"}, {"role": "user", "content": question},
            {"role": "assistant", "content": answer}]


def word(document: Document, rng: random.Random) -> Messages:
    section = rng.choice(document.sections)
    name = section.heading.split(" (")[0]
    return [{"role": "user", "content": rng.choice(WORD).format(word=name)}, {"role": "assistant", "content": section.paragraphs[0]}]


def dialogues(documents: list[Document], characters: int, seed: int, unknown: float = 0.07) -> Iterator[Messages]:
    """About `characters` characters of conversations: 70 % grounded, 20 % about a document, 8 % words, 2 % greetings."""
    rng = random.Random(seed)
    words = [d for d in documents if d.source == "wordnet-base"]
    titled = [d for d in documents if d.source not in ("wordnet-base", "r-cran-janeaustenr")]
    pool = [(s.heading, p) for d in documents if d.source != "wordnet-base" for s in d.sections for p in s.paragraphs if 80 < len(p) < 900]
    made = 0
    while made < characters:
        kind = rng.random()
        if kind < 0.70:
            messages = grounded(pool, unknown, rng)
        elif kind < 0.90:
            messages = about(rng.choice(titled), rng)
        elif kind < 0.98 and words:
            messages = word(rng.choice(words), rng)
        else:
            user, assistant = rng.choice(GREETINGS)
            messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        if messages:
            made += sum(len(m["content"]) for m in messages)
            yield messages
