"""Fetches the training text and turns it into clean documents.

Every source is a Debian package, fetched by name with `apt-get download` and unpacked with `dpkg -x`. A document is a title and a
list of sections; a section is a heading and a list of paragraphs of plain prose. Code blocks, tables, signatures and navigation
are dropped, and a paragraph that occurred before (in any source) is dropped as well.
"""

import hashlib
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One Debian package, the part of it that is read, and the licence of that part (from its `copyright` file)."""

    package: str
    roots: tuple[str, ...]
    licence: str
    kind: str = "html"
    skip: str = r"$^"
    suffix: str = ".html"


DOC = "usr/share/doc/"
SPHINX_SKIP = r"/(_modules|_sources|_static|_images|genindex|py-modindex|search|releasenotes|changelog)"
RUST = DOC + "rust-doc/html/"

SOURCES = (
    Source("postgresql-doc-15", (DOC + "postgresql-doc-15/html",), "PostgreSQL", skip=r"/(release-|bookindex|features-sql|errcodes)"),
    Source("python3.11-doc", (DOC + "python3.11/html",), "PSF-2.0", skip=SPHINX_SKIP + r"|/whatsnew/changelog"),
    Source("python-django-doc", (DOC + "python-django-doc/html",), "BSD-3-Clause", skip=SPHINX_SKIP),
    Source("apache2-doc", (DOC + "apache2-doc/manual/en",), "Apache-2.0", suffix=""),
    Source("sqlite3-doc", (DOC + "sqlite3",), "public domain", skip=r"/(releaselog|c3ref|session|matrix|images|src)|keyword|requirements|changes|hp[0-9]"),
    Source("rust-doc", tuple(RUST + d for d in ("book", "reference", "nomicon", "rustc", "edition-guide", "embedded-book", "rust-by-example", "rustdoc", "std")),
           "MIT OR Apache-2.0", skip=r"/(first-edition|second-edition|2018-edition|print\.html)|/std/(arch|simd|intrinsics|os)/|toc\.html"),
    Source("abs-guide", (DOC + "abs-guide/html",), "public domain"),
    Source("nova-doc", (DOC + "nova-doc",), "Apache-2.0", skip=SPHINX_SKIP),
    Source("keystone-doc", (DOC + "keystone-doc",), "Apache-2.0", skip=SPHINX_SKIP),
    Source("swift-doc", (DOC + "swift-doc",), "Apache-2.0", skip=SPHINX_SKIP),
    Source("cinder-doc", (DOC + "cinder-doc",), "Apache-2.0", skip=SPHINX_SKIP),
    Source("ironic-doc", (DOC + "ironic-doc",), "Apache-2.0", skip=SPHINX_SKIP),
    Source("neutron-doc", (DOC + "neutron-doc",), "Apache-2.0", skip=SPHINX_SKIP),
    Source("python-sqlalchemy-doc", (DOC + "python-sqlalchemy-doc",), "MIT", skip=SPHINX_SKIP),
    Source("sphinx-doc", (DOC + "sphinx-doc",), "BSD-2-Clause", skip=SPHINX_SKIP),
    Source("python-flask-doc", (DOC + "python-flask-doc",), "BSD-3-Clause", skip=SPHINX_SKIP),
    Source("r-cran-janeaustenr", ("usr/lib/R/site-library/janeaustenr/data",), "novels: public domain; package: MIT", kind="novels"),
    Source("wordnet-base", ("usr/share/wordnet",), "WordNet 3.0", kind="wordnet"),
)


@dataclass
class Section:
    heading: str
    paragraphs: list[str] = field(default_factory=list)


@dataclass
class Document:
    source: str
    path: str
    title: str
    sections: list[Section] = field(default_factory=list)

    def text(self) -> str:
        """The document as plain text: title, then each section's heading and paragraphs, a blank line between them."""
        parts = [f"# {self.title}"] if self.title else []
        for section in self.sections:
            if section.heading and section.heading != self.title:
                parts.append(f"## {section.heading}")
            parts += section.paragraphs
        return "\n\n".join(parts)

    def held_out(self) -> bool:
        """True for about 1.5 % of documents, chosen by a hash of package and path, so always the same ones."""
        return int(hashlib.sha256(f"{self.source}/{self.path}".encode()).hexdigest()[:8], 16) % 1000 < 15


@dataclass(frozen=True)
class Fetched:
    """What was really read: package, version, sha256 of the .deb, and its licence."""

    package: str
    version: str
    sha256: str
    licence: str


def fetch(source: Source, cache: Path) -> tuple[Fetched, Path]:
    """Downloads a package into `cache` (once) and unpacks it; returns its record and the unpacked folder."""
    debs, tree = cache / "debs", cache / "unpacked" / source.package
    debs.mkdir(parents=True, exist_ok=True)
    found = sorted(debs.glob(f"{source.package}_*.deb"))
    if not found:
        subprocess.run(["apt-get", "download", "-q", source.package], cwd=debs, check=True, stdout=subprocess.DEVNULL)
        found = sorted(debs.glob(f"{source.package}_*.deb"))
    deb = found[-1]
    if not tree.exists():
        tree.mkdir(parents=True)
        subprocess.run(["dpkg", "-x", str(deb), str(tree)], check=True)
    version = subprocess.run(["dpkg-deb", "-f", str(deb), "Version"], check=True, capture_output=True, text=True).stdout.strip()
    return Fetched(source.package, version, hashlib.sha256(deb.read_bytes()).hexdigest(), source.licence), tree


# ---------------------------------------------------------------- HTML -> sections

SKIPPED = {"pre", "table", "script", "style", "nav", "head", "footer", "aside", "button", "form", "svg", "dt", "select"}
BLOCKS = {"p", "li", "dd", "div", "ul", "ol", "dl", "section", "article", "main", "blockquote", "body", "br", "hr", "h5", "h6", "tr", "td"}
HEADINGS = {"h1", "h2", "h3", "h4"}
NAVIGATION = re.compile(r"(^|[ _-])(toc|sidebar|sphinxsidebar|related|footer|navheader|navfooter|nav|breadcrumb|menu|headerlink|toctree-wrapper|src|docblock-short)($|[ _-])")
VOID = {"br", "hr", "img", "meta", "link", "input", "col", "wbr", "area", "base", "source"}


class Extractor(HTMLParser):
    """Collects (is_heading, text) blocks of one HTML page; `title` is the page's <title>."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[tuple[bool, str]] = []
        self.title = ""
        self.buffer: list[str] = []
        self.stack: list[tuple[str, bool]] = []
        self.skipping = 0
        self.in_title = False

    def flush(self, heading: bool = False) -> None:
        text = " ".join("".join(self.buffer).split())
        self.buffer.clear()
        if text:
            self.blocks.append((heading, text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self.in_title = True
        if tag in BLOCKS or tag in HEADINGS or tag in SKIPPED:
            self.flush()
        if tag in VOID:
            return
        names = " ".join(v or "" for k, v in attrs if k in ("class", "id", "role"))
        skip = tag in SKIPPED or bool(tag in ("div", "span", "a", "ul", "p", "section") and NAVIGATION.search(names))
        self.stack.append((tag, skip))
        self.skipping += skip

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self.in_title = False
        if tag in HEADINGS:
            self.flush(heading=True)
        elif tag in BLOCKS or tag in SKIPPED:
            self.flush()
        for depth in range(len(self.stack) - 1, max(-1, len(self.stack) - 12), -1):
            if self.stack[depth][0] == tag:
                self.skipping -= sum(skip for _, skip in self.stack[depth:])
                del self.stack[depth:]
                break

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title += data
        elif not self.skipping:
            self.buffer.append(data)


TYPOGRAPHY = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "...",
                            "\u00a0": " ", "\u00b6": "", "\uf0c1": "", "\u200b": "", "\u00ad": "", "\u00a7": ""})
NUMBERING = re.compile(r"^((chapter|appendix|part|section)\s+)?([0-9]+|[A-Z]|[IVXLC]+)(\.[0-9]+)*\.\s+", re.IGNORECASE)
TITLE_EXTRA = re.compile(r"^OpenStack Docs: |\s+([-|]|::)\s+(.*([Dd]ocumentation|Apache HTTP Server|Rust|Version).*|The .*)$")


def tidy(text: str) -> str:
    return " ".join(text.translate(TYPOGRAPHY).split())


def is_prose(text: str) -> bool:
    """Whether a block reads as English sentences: long enough, mostly lower-case letters, ends like a sentence, little code."""
    if not 60 <= len(text) <= 2500 or text[-1] not in ".:!?)\"'" or text.count(" ") < 8:
        return False
    letters = sum(c.isalpha() and c.isascii() for c in text)
    plain = sum(c.islower() or c == " " for c in text)
    odd = sum(c in "_/\\<>{}[]=|@#$%^&*+~`" for c in text)
    return letters / len(text) > 0.72 and plain / len(text) > 0.82 and odd / len(text) < 0.035


def clean_heading(text: str) -> str:
    text = NUMBERING.sub("", tidy(text).rstrip("#").strip())
    return text if 2 < len(text) <= 80 else ""


def html_document(source: Source, name: str, raw: str, seen: set[str]) -> Document | None:
    """One page as a document, without the paragraphs in `seen` (their keys are added); None where too little is left."""
    parser = Extractor()
    parser.feed(raw)
    parser.flush()
    title = clean_heading(TITLE_EXTRA.sub("", tidy(parser.title)))
    document = Document(source.package, name, title)
    current = Section(title)
    for heading, block in parser.blocks:
        if heading:
            if current.paragraphs:
                document.sections.append(current)
            current = Section(clean_heading(block))
            continue
        text = tidy(block)
        key = re.sub(r"[^a-z]", "", text.lower())
        if is_prose(text) and key not in seen:
            seen.add(key)
            current.paragraphs.append(text)
    if current.paragraphs:
        document.sections.append(current)
    return document if sum(len(p) for s in document.sections for p in s.paragraphs) >= 250 else None


# ---------------------------------------------------------------- other kinds


def novels(source: Source, root: Path) -> Iterator[Document]:
    """The novels inside the R lazy-load database: zlib-packed XDR, of which only the character strings are read."""
    packed = (root / "Rdata.rdb").read_bytes()
    position = 0
    while position + 5 < len(packed):
        engine = zlib.decompressobj()
        if packed[position + 4 : position + 5] == b"x":
            data = engine.decompress(packed[position + 4 :])
            position = len(packed) - len(engine.unused_data)
        else:
            position += 1
            continue
        lines, at = [], 0
        while (at := data.find(b"\x00\x09", at)) != -1:
            (size,) = struct.unpack(">i", data[at + 2 : at + 6]) if at + 6 <= len(data) else (-1,)
            if 0 <= size < 200:
                lines.append(data[at + 6 : at + 6 + size].decode("utf-8", "replace"))
                at += 6 + size
            else:
                at += 2
        yield from novel_documents(source, lines)


def novel_documents(source: Source, lines: list[str]) -> Iterator[Document]:
    paragraphs = [tidy(p.replace("\n", " ").replace("_", "").replace("--", " - ")) for p in "\n".join(lines).split("\n\n")]
    book = next((p.title() for p in paragraphs[:20] if 3 < len(p) < 60 and p.isupper() and '"' not in p), "Persuasion")
    paragraphs = [p for p in paragraphs if len(p) > 40 and p[-1] in ".!?\"'"]
    for start in range(0, len(paragraphs), 25):
        part = paragraphs[start : start + 25]
        if len(part) > 5:
            yield Document(source.package, f"{book}/{start // 25}", book.split(",")[0], [Section("", part)])


def wordnet(source: Source, root: Path) -> Iterator[Document]:
    """Glosses and example sentences, forty entries to a document; kept where an entry has an example sentence."""
    for part in ("noun", "verb", "adj", "adv"):
        entries = []
        for line in (root / f"data.{part}").read_text("utf-8", "replace").splitlines():
            head, bar, gloss = line.partition(" | ")
            fields = head.split()
            if bar and len(fields) > 4 and '"' in gloss and "_" not in fields[4] and fields[4].islower():
                definition, *examples = [g.strip(' ;"') for g in re.split(r';\s*(?=")', gloss)]
                word = re.sub(r"\(.*\)", "", fields[4])
                examples = [e for e in examples if e.count(" ") > 2 and '"' not in e]
                if examples and 15 < len(definition) < 200:
                    entries.append(Section(f"{word} ({part})", [f"{definition[0].upper()}{definition[1:]}. Example: {examples[0]}."]))
        for start in range(0, len(entries), 40):
            yield Document(source.package, f"{part}/{start // 40}", "Words", entries[start : start + 40])


def documents(source: Source, tree: Path, seen: set[str]) -> Iterator[Document]:
    """All documents of one unpacked source, in a fixed order."""
    for root in (tree / r for r in source.roots):
        if source.kind == "novels":
            yield from novels(source, root)
        elif source.kind == "wordnet":
            yield from wordnet(source, root)
        else:
            for path in sorted(p for p in root.rglob("*.htm*") if p.is_file() and not p.is_symlink()):
                name = str(path.relative_to(tree))
                if re.search(source.skip, "/" + name) or not name.endswith(source.suffix):
                    continue
                if document := html_document(source, name, path.read_text("utf-8", "replace"), seen):
                    yield document
