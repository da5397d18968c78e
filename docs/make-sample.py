#!/usr/bin/env python3
"""Make the files of docs/sample that nobody can write by hand: PDF, DOCX and the deliberately broken ones.

Run:      python3 docs/make-sample.py, which writes docs/sample/<path> for each docs/sample-source/<path>.md, and docs/sample/broken/
Needs:    Python >= 3.10 and the packages that docs/sample.md pins
Promise:  the same bytes on every run, except broken/encrypted.pdf, whose salts are random.
Licence:  CC0-1.0, text included.

Of Markdown: `# ` title, `## ` heading, `- ` and `1. ` list item, `| a | b |` table row; anything else is a paragraph on one line.
"""
import io
import pathlib
import re
import zipfile
from xml.sax.saxutils import escape

import docx
from docx.shared import Pt
from PIL import Image, ImageDraw, ImageFont
from pypdf import PdfReader, PdfWriter
import reportlab
from reportlab.lib import colors
from reportlab.lib.enums import TA_JUSTIFY, TA_LEFT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate, Paragraph, Spacer, Table, TableStyle

COMPANY = "Holmwick Sound Ferry Cooperative"
FIXED_DATE = (2025, 3, 1, 9, 0, 0)  # zip entries carry a time; a fixed one keeps the bytes the same
BOMB_EXPANDED_BYTES = 180_000_000  # deflate ends near 1030:1, so this is about 180 kB on disk

# How each PDF is laid out; what is not named is one column of Times, as most office PDFs are.
LAYOUTS = {
    "company/newsletter-spring.pdf": {"columns": 2},
    "finance/purchasing-rules.pdf": {"ligatures": True, "hyphenate": True},
    "operations/dangerous-goods.pdf": {"font": "Helvetica", "bold": "Helvetica-Bold"},
}


def blocks(source):
    """Yields (kind, content): kind is title, heading, item, numbered, table or text; a table is a list of rows, head first."""
    rows = []
    for line in source.splitlines() + [""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        if rows:
            yield "table", [rows[0], *rows[2:]]  # without the rule below the head
            rows = []
        if line.startswith("## "):
            yield "heading", line[3:]
        elif line.startswith("# "):
            yield "title", line[2:]
        elif line.startswith("- "):
            yield "item", line[2:]
        elif number := re.match(r"\d+\. ", line):
            yield "numbered", line[number.end():]
        elif line:
            yield "text", line


def with_ligatures(text):
    """Replaces fi and fl by the single characters that typesetting programs leave in a PDF."""
    return text.replace("fi", "\ufb01").replace("fl", "\ufb02")


def make_pdf(path, source, columns=1, ligatures=False, hyphenate=False, font="Times-Roman", bold="Times-Bold"):
    """Writes a PDF with real text, a running header and a footer with page numbers."""
    if ligatures:
        # Vera comes with reportlab, may be embedded, and has the two ligature glyphs.
        folder = pathlib.Path(reportlab.__file__).parent / "fonts"
        pdfmetrics.registerFont(TTFont("Vera", folder / "Vera.ttf"))
        pdfmetrics.registerFont(TTFont("VeraBd", folder / "VeraBd.ttf"))
        font, bold = "Vera", "VeraBd"
    shape = with_ligatures if ligatures else str
    size = 11 if columns == 2 or ligatures else 13
    body = ParagraphStyle("body", fontName=font, fontSize=size, leading=size * 1.36, spaceAfter=6,
                          alignment=TA_JUSTIFY if columns == 2 or hyphenate else TA_LEFT)
    if hyphenate:
        body.hyphenationLang = "en_GB"
        body.embeddedHyphenation = 1
    styles = {
        "text": body,
        "item": ParagraphStyle("item", parent=body, leftIndent=14, bulletIndent=4),
        "heading": ParagraphStyle("heading", fontName=bold, fontSize=size + 1.5, leading=size * 1.7, spaceBefore=8, spaceAfter=3, keepWithNext=1),
        "title": ParagraphStyle("title", fontName=bold, fontSize=size + 7, leading=size * 2.3, spaceAfter=8),
    }
    story, title = [], ""
    for kind, content in blocks(source):
        if kind == "table":
            cells = [[Paragraph(escape(shape(cell)), styles["text"]) for cell in row] for row in content]
            table = Table(cells, repeatRows=1, hAlign="LEFT")
            table.setStyle(TableStyle([("GRID", (0, 0), (-1, -1), 0.4, colors.grey), ("VALIGN", (0, 0), (-1, -1), "TOP"),
                                       ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke)]))
            story += [table, Spacer(1, 8)]
            continue
        title = content if kind == "title" else title
        bullet = "\u2022" if kind == "item" else None
        story.append(Paragraph(escape(shape(content)), styles[kind], bulletText=bullet))

    def furniture(canvas, document):
        canvas.setFont(font, 8)
        canvas.drawString(22 * mm, A4[1] - 13 * mm, shape(COMPANY))
        canvas.drawRightString(A4[0] - 22 * mm, A4[1] - 13 * mm, shape(title))
        canvas.drawString(22 * mm, 11 * mm, shape("Printed copies are not kept up to date"))
        canvas.drawRightString(A4[0] - 22 * mm, 11 * mm, f"Page {document.page}")

    gap, width, height = 8 * mm, A4[0] - 44 * mm, A4[1] - 42 * mm
    column = (width - gap * (columns - 1)) / columns
    frames = [Frame(22 * mm + n * (column + gap), 20 * mm, column, height, 0, 0, 0, 0) for n in range(columns)]
    document = BaseDocTemplate(str(path), pagesize=A4, title=title, author=COMPANY, invariant=1)
    document.addPageTemplates([PageTemplate(frames=frames, onPage=furniture)])
    document.build(story)


def make_docx(path, source):
    """Writes a DOCX with headings, a list, a table, a page header and a page footer."""
    document = docx.Document()
    document.styles["Normal"].font.name = "Calibri"
    document.styles["Normal"].font.size = Pt(11)
    section = document.sections[0]
    section.header.paragraphs[0].text = COMPANY
    section.footer.paragraphs[0].text = "Handbook. Printed copies are not kept up to date."
    for kind, content in blocks(source):
        if kind == "table":
            table = document.add_table(rows=0, cols=len(content[0]))
            table.style = "Light Grid Accent 1"
            for row in content:
                for cell, text in zip(table.add_row().cells, row, strict=True):
                    cell.text = text
        elif kind == "title":
            document.add_heading(content, 1)
            document.core_properties.title = content
        elif kind == "heading":
            document.add_heading(content, 2)
        elif kind in ("item", "numbered"):
            document.add_paragraph(content, style="List Bullet" if kind == "item" else "List Number")
        else:
            document.add_paragraph(content)
    document.core_properties.author = COMPANY
    buffer = io.BytesIO()
    document.save(buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name != "docProps/thumbnail.jpeg":
                data = old.read(name)
                if name == "_rels/.rels":
                    data = drop_thumbnail(data)
                new.writestr(zipfile.ZipInfo(name, FIXED_DATE), data, zipfile.ZIP_DEFLATED)


def drop_thumbnail(rels):
    """Removes the picture of python-docx's own template: 20 kB that say nothing about the document."""
    return re.sub(rb"<Relationship [^>]*thumbnail[^>]*/>", b"", rels)


def make_broken(folder):
    """Writes the files that ingestion has to refuse, one per reason."""
    (folder / "empty.txt").write_bytes(b"")
    whole = io.BytesIO()
    make_pdf_note(whole)
    data = whole.getvalue()
    # The cut lies before the catalogue, so that no reader can rebuild a page tree from what is left.
    (folder / "truncated.pdf").write_bytes(data[: data.index(b"/Catalog") - 8])
    writer = PdfWriter(clone_from=PdfReader(whole))
    writer.encrypt("a password that nobody wrote down", algorithm="AES-256")
    writer.write(folder / "encrypted.pdf")
    Image.linear_gradient("L").resize((96, 64)).save(folder / "mislabelled.pdf", "PNG")
    make_scan(folder / "scan.pdf")
    # Single bytes of Latin-1 and of an old log in binary: neither UTF-8 nor UTF-16 nor Windows-1252.
    record = b"Caf\xe9 Br\xfccke \x81\x8d\x8f\x90\x9d\x00\x01\xff\xfe\xc0\xaf\xed\xa0\x80"
    (folder / "latin1-bytes.txt").write_bytes(b"".join(record + bytes([n, 255 - n]) for n in range(128, 208)) + b"\xf5")
    make_bomb(folder / "bomb.docx")


def make_pdf_note(target):
    """A one-page PDF, the raw material of the truncated and of the encrypted file."""
    canvas = Canvas(target, pagesize=A4, invariant=1)
    canvas.setFont("Helvetica", 12)
    for n in range(24):
        canvas.drawString(25 * mm, 270 * mm - n * 7 * mm, f"Duty note {n + 1}: the berth was clear and the ramp was greased.")
    canvas.save()


def make_scan(path):
    """A page that is only a picture: readable by people, but there is no text in the file."""
    page = Image.new("L", (744, 1052), 244)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(20)
    for n in range(28):
        draw.text((80, 90 + n * 32), f"{n + 1:02}  Tide gauge read, fenders looked at, lamps lit.", fill=40, font=font)
    page = page.rotate(0.7, fillcolor=244)
    jpeg = io.BytesIO()
    page.save(jpeg, "JPEG", quality=22)
    canvas = Canvas(str(path), pagesize=A4, invariant=1)
    canvas.drawImage(ImageReader(jpeg), 0, 0, A4[0], A4[1])
    canvas.save()


def make_bomb(path):
    """A well-formed DOCX whose text part expands about a thousandfold; written in pieces, never held."""
    main = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    types = ('<?xml version="1.0" encoding="UTF-8"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
             '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
             f'<Override PartName="/word/document.xml" ContentType="{kind}"/></Types>')
    rels = ('<?xml version="1.0" encoding="UTF-8"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            '<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
            'Target="word/document.xml"/></Relationships>')
    piece = b"<w:p><w:r><w:t>" + b"tide" * 250_000 + b"</w:t></w:r></w:p>"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=False) as archive:
        for name, text in (("[Content_Types].xml", types), ("_rels/.rels", rels)):
            archive.writestr(zipfile.ZipInfo(name, FIXED_DATE), text, zipfile.ZIP_DEFLATED)
        entry = zipfile.ZipInfo("word/document.xml", FIXED_DATE)
        entry.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(entry, "w") as part:
            part.write(f'<?xml version="1.0" encoding="UTF-8"?><w:document xmlns:w="{main}"><w:body>'.encode())
            for _ in range(BOMB_EXPANDED_BYTES // len(piece)):
                part.write(piece)
            part.write(b"</w:body></w:document>")


def main():
    """Writes every file and says how large it is."""
    here = pathlib.Path(__file__).resolve().parent
    root, sources, made = here / "sample", here / "sample-source", []
    for source in sources.rglob("*.md"):
        name, text = source.relative_to(sources).with_suffix(""), source.read_text(encoding="utf-8")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pdf":
            make_pdf(path, text, **LAYOUTS.get(name.as_posix(), {}))
        else:
            make_docx(path, text)
        made.append(path)
    broken = root / "broken"
    broken.mkdir(exist_ok=True)
    make_broken(broken)
    for path in sorted(made + list(broken.iterdir())):
        print(f"{path.stat().st_size:>8}  {path.relative_to(root)}")


if __name__ == "__main__":
    main()
