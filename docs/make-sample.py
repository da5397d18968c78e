#!/usr/bin/env python3
"""Make the binary files of docs/sample: PDF, DOCX and the deliberately broken ones.

Run:      python3 docs/make-sample.py            writes into docs/sample next to this script
Needs:    Python >= 3.10 and these packages, pinned, from PyPI:
            reportlab==5.1.0 python-docx==1.2.0 pypdf==7.1.0 cryptography==50.0.2 pillow==13.0.0 pyphen==0.18.1
Promise:  the same bytes on every run, except broken/encrypted.pdf, whose salts are random.
Licence:  CC0-1.0, text included. The text sources stand below the code; Markdown, HTML, plain text
          and JSON Lines files are written by hand and are no concern of this script.

Markup of the sources: `# ` title, `## ` heading, `- ` list item, TABLE ... END a table whose cells are
separated by ` | ` (first row: head), anything else a paragraph on one line.
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
NUMBERED_LISTS = {"finance/budget-and-investment.docx"}


def blocks(source):
    """Yields (kind, content): kind is title, heading, item, table or text; a table is a list of rows."""
    rows = None
    for line in source.strip().splitlines():
        if line == "TABLE":
            rows = []
        elif line == "END":
            yield "table", rows
            rows = None
        elif rows is not None:
            rows.append([cell.strip() for cell in line.split("|")])
        elif line.startswith("## "):
            yield "heading", line[3:]
        elif line.startswith("# "):
            yield "title", line[2:]
        elif line.startswith("- "):
            yield "item", line[2:]
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


def make_docx(path, source, numbered):
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
        elif kind == "item":
            document.add_paragraph(content, style="List Number" if numbered else "List Bullet")
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
    root = pathlib.Path(__file__).resolve().parent / "sample"
    for name, source in SOURCES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pdf":
            make_pdf(path, source, **LAYOUTS.get(name, {}))
        else:
            make_docx(path, source, name in NUMBERED_LISTS)
    broken = root / "broken"
    broken.mkdir(exist_ok=True)
    make_broken(broken)
    for path in sorted([root / name for name in SOURCES] + list(broken.iterdir())):
        print(f"{path.stat().st_size:>8}  {path.relative_to(root)}")


SOURCES = {
    "company/newsletter-spring.pdf": """
# The Tide Table: members' letter, spring issue
## A word from the bridge of the office
Dear members, the winter was long, and windy enough to blow the letters off the sign at Ansby, which for nine days announced the arrival of the "Hol wick So nd Fer y". Nevertheless we carried more people than in any winter before: 284,000 passengers from November to February. I should like to thank everyone who has stood on a ramp in the sleet. Summer will be easier, or at least it will be warmer. Yours, Ingrid Vasell.
## Petrel is back from the dock
After three weeks in the yard Petrel returned to Route 1 on 2 February, one day early. Her hull has a new silicone coating. Chief engineer Odile Farran expects it to save about 4 percent of the fuel. The seats in the quiet lounge have been covered afresh in a fabric chosen by passengers, by 1,914 votes for sea green against 1,377 for heather. The dog area on deck 5 has been fitted with heating, as promised at the annual meeting. The first guest was a spaniel called Biscuit, who declined to leave.
## Why is the new ferry called Whimbrel?
A whimbrel is a wader with a curved beak and a call of seven notes. On the islands people call it the seven whistler, and sailors used to think that it announced a change in the weather. The children of the four island schools chose the name from a list of three; the others were Avocet and Knot. The keel will be laid in September, and a coin from each island will be placed under it. Delivery is planned for May 2027.
## Five questions for the new baker
Since January the bread on board has come from Tamsin Orrell, who took over the bakery at Ansby from her uncle.
What time do you get up? At half past one. I go to bed when the children do.
What sells best on the boats? The cheese scone, four hundred a day. In bad weather it is plain rolls.
Do you get seasick? Terribly. I deliver to the ramp and no further.
What do the crews say? Captain Thorn says that the smell should be licensed.
What comes next? A rye loaf with seaweed from Sellay. The first batches were not a success, but the hens liked it.
## Numbers of the season
- 96.2 percent of all winter departures on Route 1 left on time.
- 17 passengers were ill enough to be met by an ambulance; all of them recovered.
- 1 baby was born on board: a girl, on Guillemot, on 11 December, forty minutes off Sellay. She has free travel for life and a very long first name, of which Guillemot is the third part.
- 12,400 cheese scones were eaten in January alone.
- 3 umbrellas were handed in by the same gentleman, none of which belonged to him.
## Solar roof at Holmwick
The roof of the terminal now carries 412 solar panels. On a bright day they produce 150 kilowatts, enough for the building, the shore power of Sandpiper when she visits the slip, and the staff cars. Over the year we expect 140,000 kilowatt hours. The panels cost $265,000 and should have paid for themselves after nine years. It is one step on the way to our aim of emitting 40 percent less carbon dioxide in 2030 than in 2018. In 2018 it was 14,200 tonnes; last year it was 11,050.
## Slow and steady
Since the autumn Petrel has sailed at 13.5 knots rather than 14.2 whenever the timetable permits. Passengers lose two minutes and the engines use eleven percent less fuel. Captain Yara Lindqvist has hung a sign in the wheelhouse: "The island has been there for ten thousand years. It will wait for two minutes."
## Open day on 14 September
The workshop, the control room and the bridge of Guillemot will be open from 10:00 to 16:00. Children can steer the simulator, put on a survival suit and throw a lifebuoy at Oscar, the rescue dummy. The crews of Petrel and Guillemot will meet again in the tug of war. Guillemot has won six times in a row, and Petrel says the rope is to blame. Travel is free on that day for everyone under sixteen.
## People
Welcome to Iskander Poole at the IT help desk, to the deck hands Bryony Tull and Matteo Sands, and to Orla Penhale as second engineer on Sandpiper. Congratulations to Henrike Aust of the training desk on twenty-five years with the Cooperative, and to apprentices Jory Blackwood and Sunna Teale, who passed with distinction. We say goodbye to Captain Ewan Strang, who after thirty-four years has gone ashore to keep bees, and who, as a precaution, has asked about the rules for carrying hives.
## Letters
"On the 17:45 to Sellay in November I was sick, cold and unhappy. A young man from the crew brought me a ginger biscuit and told me when we would be past the worst. He was right to the minute. I do not know his name. Please tell him." We did; it was Matteo, in his second week. Mrs A. of Little Corrow asks why the vending machine on Sandpiper takes coins but does not give change. Captain Thorn answers that it does now.
## Dates for your calendar
- Annual meeting: last Saturday in April, 14:00, Corrow Hall. Travel is free for members.
- Summer timetable begins: last Sunday in April.
- Exercise with volunteers, and soup: second Saturday in April, Holmwick, berth 1. Sign up at extension 300.
- Corrow Music Days: second week of July, with six extra sailings a day.
- Open day: 14 September.
""",
    "customers/complaints.docx": """
# Handling complaints
A complaint is advice from somebody who has not given up on us yet. In the past year we received 2,316 complaints and 1,108 letters of praise. This document shows how a complaint travels through the company, and what a good answer looks like.
## How can customers complain?
In any way they choose: in person, by telephone on extension 711, by letter to Quay Street 4 in Holmwick, by the form on the website, or by speaking to any member of staff. There is no deadline, although after twelve months it becomes difficult to find out what happened. Nobody is told to "put it in writing". If a person complains to you at the ramp, you write it down for them in Tidebook the same day.
## How quickly do we answer?
- On the same or the next working day: a short message that we have it, with the name of a person.
- Within ten working days: the answer.
- Within five working days for complaints about accessibility and within two when someone is stranded right now.
If we need longer, we say why and give a date. Last year 88 percent were answered in time; the average was 6.4 working days.
## Who answers?
Whoever takes the complaint owns it until another person has accepted it by name. Most are dealt with by the four people of the customer relations team under Morwen Gale, extension 705. Complaints about a named employee go to Lucia Marsh, head of customer service, extension 700. Accusations of harassment, theft or injury go the same day to Runa Feldby or Davin Achterby too.
## What do people complain about?
TABLE
Subject | Share last year
Delays and cancellations | 38 percent
Prices and refunds | 21 percent
Space for cars | 14 percent
Staff behaviour | 8 percent
Cleanliness | 7 percent
Food | 5 percent
Access and assistance | 3 percent
Everything else, gulls included | 4 percent
END
## What does a good answer contain?
- The person's own problem in one sentence, so that they see it has been understood.
- What happened, without technical language and without excuses.
- A clear word on whether we did something wrong. If we did, an apology that does not begin with "if".
- What the person will receive, how much and when.
- What we are changing, in case we are; and otherwise why not.
- A name and a direct telephone number.
Length: half a page. Write as you would speak to a neighbour. Words that are never used: "unfortunately we must inform you", "as per", "inconvenience caused".
## An example
"Dear Mr Fenwick, on 3 August you waited for two hours in the rain at Sellay, with two small children, because our waiting room was locked. You had every right to expect it to be open. The port manager was ill and we had not arranged for a key with anybody else. That was our mistake and I am sorry. I have sent 64 dollars back to your card, which is half of your fare, and three tickets for an ice cream on board, one of them for you. As of last week two neighbours in Sellay hold a key. If you ever stand before a locked door of ours again, please ring me. Morwen Gale, 0555 0140 705."
## How much may we offer?
Every clerk has a goodwill allowance of $40 per customer. Customer relations can decide on up to $600, Lucia Marsh on up to $5,000. Compensation for personal injury is never discussed by customer service; it goes to the insurance desk. Do not haggle. An offer which comes quickly and fits is accepted nine times out of ten.
## What if the customer is not right?
Then we say so kindly and with the reason, and thank them anyway. We do not pay in order to have peace, because this would be unfair to those who do not complain. A person who is abusive is warned once. A customer who sends more than ten complaints in six months gets one single contact, who meets them in person. It has happened three times. Two of these customers are now on the passenger panel.
## Can customers appeal?
Yes. If they are not satisfied they may ask for the complaint to be looked at again by somebody who was not involved. If that does not help either, there is the county ombudsman for transport, whose address stands at the bottom of each answer. Last year 19 cases went there. The ombudsman agreed with us in twelve, with the customer in five, and found a compromise in two.
## The passenger panel
Sixteen passengers meet four times a year with Lucia Marsh and a master. They are drawn by lot from those who have applied, four for each route, for two years. They receive free travel on the day and lunch. The panel suggested, among other things, the text messages during storms, hooks on the toilet doors, the quiet lounge, and the sentence "we will decide at a quarter past four".
## How do we learn from complaints?
On the first Tuesday of each month customer relations, operations and catering sit together for an hour. They choose three complaints and ask of each: was this a slip, or would it have happened to anyone on that day? In the second case something is changed, and an owner and a date are noted. The list hangs in the canteen. On average 29 improvements a year come about in this way.
## And praise?
It is passed on within two days to the person concerned, with a copy for the manager. Name it precisely: not "well done" but "the lady from the 12:20 writes that you carried her cello". At the end of the year every crew gets its collected letters, bound with a cord by the bosun of Petrel. They are read more often than the safety manual, which Davin Achterby has asked us not to mention.
""",
    "finance/budget-and-investment.docx": """
# Budget, costs and investment plan
Members and employees keep asking where the money goes. This document answers for the last financial year and gives an outlook on the next five. It was written by Paloma Hesk, head of finance, extension 400, who prefers plain figures.
## When does the financial year begin?
On 1 November. It ends on 31 October of the following year. The date goes back to 1974, when the founders wanted to count the money after the potato harvest.
## What did we earn and spend last year?
TABLE
Item | Million dollars
Fares, passengers | 11.9
Fares, vehicles | 9.2
Public service contract with the county | 6.3
Freight | 2.4
Catering | 1.3
Advertising, rents and other | 0.5
Revenue, total | 31.6
Wages and social costs | 13.4
Fuel and electricity | 4.6
Maintenance and docking | 4.1
Depreciation and interest | 3.9
Ports, insurance, IT and all other costs | 3.8
Costs, total | 29.8
Surplus | 1.8
END
The surplus fell from 2.3 to 1.8 million dollars. Fuel was dearer by 0.3 million, and the docking of Guillemot took nine days longer than planned because of cracks in a stern tube bearing. On the other side, catering earned 0.1 million more than expected, for which the cheese scone deserves most of the credit.
## What does the county pay for?
The county pays us 6.3 million dollars a year to sail where and when it would not be worth it: in winter, early in the morning, to Fennock, and for the school runs. The contract runs until October 2029. It contains a punctuality target, and for each tenth of a percent below the target $4,000 is deducted, up to $120,000 a year. Last year the deduction was $44,000, all of it on Route 2.
## How is a budget made?
- In May every head of department receives the figures of the past three years and a ceiling.
- By 30 June they send in a plan, with one page on what they would do with five percent less and one on what they would do with five percent more.
- In July and August the plans are discussed with Ingrid Vasell in open meetings, which any employee may attend and listen to.
- In September the board decides.
- On 1 November the codes are opened in Purser.
Money may be shifted within a department without asking. Between departments, up to $25,000 can be moved by agreement of both heads. What has not been spent by the end of the year goes back, except for projects which have been ordered. Nobody should buy pencils in October for fear of losing them.
## What does one crossing cost?
On Route 1 a crossing of Petrel costs about $1,140, including everything, and is paid for by the fares when there are at least 61 passengers and 22 cars on board. Guillemot to Sellay costs about $4,900 and is never covered by fares in winter. A crossing with Turnstone costs $210. The cheapest mile in the fleet belongs to Sandpiper.
## Which investments are planned?
TABLE
Year | Project | Million dollars
2025 | charging and shore power at Holmwick, berth 3 | 1.4
2026 | shore power at Sellay | 2.2
2026 | new booking system to replace Tidebook | 1.1
2027 | Whimbrel, hybrid ferry | 46.5
2028 | Guillemot, new engines or conversion study | 3.8
2029 | pier at Sellay, wave wall, our share | 2.0
END
The Whimbrel is paid for as follows: 9.0 million from the county, 7.5 million from the climate fund, 12.0 million from the ship reserve and 18.0 million as a loan over fifteen years at 3.9 percent. The price is fixed except for the battery, whose price may move by 0.6 million in either direction. Payments are made in five parts: contract, keel, launch, sea trial and delivery.
## What is the ship reserve?
It is a savings account that exists so that our grandchildren will have ferries. Every year at least a million dollars flow into it; last year it was 1.1 million. It stands at 13.7 million now and will fall to about 2.8 million when Whimbrel is delivered. By a rule in the statutes it may be used only for vessels, never for running costs. In the difficult year 2020 the temptation was great. The board took a loan instead and paid it back in 2022.
## How large are our debts?
At the end of the year we owed 8.2 million dollars: 5.6 million for Turnstone and the charging tower, and 2.6 million for the Holmwick terminal. Petrel has been paid off since 2023. The banks ask that our own funds make up no less than 30 percent of the balance sheet. They make up 47 percent today, and will make up about 34 percent on the day Whimbrel is delivered.
## What are the greatest risks?
- Fuel: a rise of ten cents a litre costs us about $520,000 a year. Half of the quantity is bought ahead.
- Weather: every percent of cancelled sailings costs about $190,000 in fares.
- People: eleven officers will retire by 2030.
- The contract with the county, which makes up a fifth of revenue.
- The old lady: if Dunlin should fail before 2027, we would need to charter a vessel at about $9,000 a day.
## Can I look at the accounts?
Yes. Every member and each employee may read the full accounts in room 1.04 at Quay Street on Thursdays from 14:00 to 17:00, and ask as many questions as they like. Since the day in 2008 when the meeting lasted until four in the morning, we have thought it cheaper to answer early.
""",
    "finance/purchasing-rules.pdf": """
# Purchasing rules
Every year the Cooperative buys goods and services for about eleven million dollars, from diesel oil to doughnuts. These rules are there to make sure that we get good value, that everybody has a fair chance of supplying us, and that no member ever has to wonder where the money went.
## How many quotes do I need?
The number depends on the value of the order without tax, over its whole duration. An official contract of three years at $1,000 a year counts as $3,000.
- Up to $2,500: one offer is sufficient. Compare prices on the telephone or online, and use the framework suppliers where we have them.
- Above $2,500 and up to $60,000: three written quotes. File all three, including the refusals, and say in two or three sentences why you selected the one you did. It need not be the cheapest.
- Above $60,000: an open tender led by the purchasing office, with sealed offers, and approval by the board.
Splitting an order into several small ones in order to stay below a limit is a violation of these rules, and the financial system finds it easily: it flags all orders to the same supplier within ninety days.
## Who may sign?
Orders under $500 can be placed by anyone with a budget code. From $500 up to $5,000 the head of department signs. Above $5,000 two signatures are needed, from the head of department and from the head of finance, Paloma Hesk. Above $60,000 the board decides, unless the item is named in the approved budget. Adaeze Corrigan, who leads purchasing on extension 420, will help with every step and prefers to be asked too early.
## What are the exceptions?
In an emergency that affects safety or stops a sailing, the master, the chief superintendent engineer or the duty manager may order what is needed immediately. They inform the purchasing office on the following working day and write down the circumstances. This is sensible, and has been used sixteen times in the last financial year. If only one manufacturer can deliver, as happens with original parts for the main engines, a short justification replaces the quotes; it has to be renewed every two years.
## How do we choose?
Price counts for half. The other half is divided between quality and reliability (25 percent), environmental effects (15 percent) and local benefit (10 percent). Local means that the work is done, or the product made, within the area of the Sound. The weighting is published together with the tender. Offers are opened by two people at the same time, and the scoring is done independently before it is compared.
## Conflicts of interest
If you, your family or a close friend would profit from an order, say so and take no further part in it. A form is available, but a sentence by e-mail is sufficient. Board members and managers may not sell to the Cooperative at all. Gifts worth more than $30 are handed in, and cash or vouchers are refused, however small. Invitations to visit a factory are accepted only if we pay for the travel ourselves.
## Framework suppliers
For twenty-two groups of goods there are framework contracts, with fixed prices or discounts: lubricants, ropes and wires, paint, safety footwear, office material, cleaning, coffee, printing, hired cranes and so on. Use them. The list is in Purser under the heading Frameworks, and shows the end of each contract. They run for three years with an option of one more.
## Buying fuel
Fuel is our second largest cost after wages, at about $4.6 million in the last financial year. Half of the expected quantity is bought in advance at fixed prices, in quarterly portions between six and fifteen months ahead. The other half is bought at the price of the day. This policy neither beats the market nor tries to; it makes sure that the budget survives a bad winter. Only Paloma Hesk and Ingrid Vasell together may fix a price, and they report it to the board at its next meeting.
## From order to payment
First comes the order number, then the delivery, and then the invoice. Invoices without an order number are sent back. Whoever receives the goods confirms quantity and condition in Purser within three working days, with photographs if something is damaged. We pay within 21 days, small local firms within 10. Where two percent discount for prompt payment is offered, we take it. Before bank details are changed, the purchasing office rings the supplier on a number that was already known. In this way an attempted fraud of $31,400 was prevented the year before last.
## Safety and environmental conditions
Chemicals may be ordered only when the safety data sheet has been checked by the safety office. Anything fixed to a vessel needs the approval of Bram Oyelle, since it could affect stability, fire protection or certificates. Timber must come from certified forests. Single-use plastics have been excluded since 2021, with the exception of medical material and waste bags. Electrical appliances are bought in one of the two best efficiency classes.
## Selling what we no longer need
Surplus equipment is offered first to other departments for two weeks, next to schools, associations and lifeboat stations on the islands, and finally to the public by sealed bid. Employees may bid like everybody else, except for those who decided that the item was surplus. Life-saving equipment that has expired is destroyed; it must not be given away, no matter how good it looks, as somebody might rely on it.
## How are these rules checked?
The internal auditor draws fifty orders at random every quarter. The findings are discussed with the departments, and a summary is printed in the annual report. In the last financial year 47 of 200 orders had a formal flaw, most often a missing quote. None of them pointed to dishonesty. The target for the coming year is fewer than 30.
""",
    "it/data-protection.docx": """
# Protecting personal data
We know who travels to hospital each Thursday, who crossed with whom, and what everybody earns. Such knowledge was lent to us. This document explains how we handle it. Theodora Klem, privacy officer and secretary of the board, extension 620, answers questions from staff and from passengers alike.
## What is personal data?
Everything that says something about a person who can be recognised: names, booking numbers, registration plates, voices, pictures, duty times, health certificates, even a seat number in combination with a date. It makes no difference whether it is on paper, in a computer or on a notice board.
## What are the five house rules?
- Collect only what you need for the task in front of you.
- Look only at what you need. Curiosity is not a task, not even about relatives or well-known passengers.
- Share only with people who need it for their own work.
- Keep it only as long as the table below says.
- Report mistakes at once.
Every look at a booking is recorded with the name and the time. Twice a year Theodora draws a sample of a hundred and asks for the reason.
## How long is data kept?
TABLE
Data | Kept for
CCTV recordings | 14 days
Passenger lists of Route 2 | deleted after the voyage has ended safely
Bookings | 24 months
Recordings of calls, if agreed to | 30 days
Complaints | 3 years
Job applications that were not successful | 6 months
Personnel files | 10 years after leaving
Medical file of the nurse | 40 years, on paper, locked
Accounts and invoices | 8 years
Accident reports | 10 years
END
Deletion is automatic in Tidebook and Rotaboard. On shared drives every department has a deletion day, the last Friday in January. There is cake. Over the last three years it has removed 2.1 terabytes.
## Where are the cameras, and who can see the pictures?
There are 96 cameras: on car decks, ramps, gangways, in waiting halls and at the tills. None are in cabins, mess rooms, toilets or the nurse's cottage. The picture can be watched live on the bridge and in the control room. Recordings may be viewed by two people together, one from safety and one from the works council, when there is an accident, a crime or a claim. Recordings are not used to check punctuality or diligence; this is agreed in writing with the works council. After 14 days they are overwritten, unless a piece has been saved for an investigation.
## Someone asks what we know about them. What do I do?
Anybody may ask, free of charge and without a reason. Pass the request to Theodora Klem the same day; do not answer it yourself and do not ask why. We check who the person is and answer within 30 days with a copy of the data in plain form. People can have wrong data put right and data that are no longer needed deleted. Last year there were 37 such requests. The average time was eleven days.
## The police are on the telephone. May I tell them something?
Not on the telephone. Take the name, the station and the reference, and connect them with the control room, which calls back using the public number. In a danger to life, such as a missing person who may be on board, the control room may give the necessary information at once, and makes a note of it. In all other cases we need a request in writing. The same is true for newspapers, lawyers, insurers, divorced husbands and worried mothers of adult sons.
## What may I do with passengers' data on board?
On board, the purser may know who needs help in an emergency, the mate which vehicle belongs to whom, and the galley which allergy was announced. Lists are printed only if necessary and go into the locked box, not the paper bin. Do not call out full names over the loudspeaker; "the driver of the blue van in lane three" will do. Do not take private pictures in which passengers can be recognised.
## What counts as a data breach?
A lost tablet, a letter in the wrong envelope, an e-mail with all addresses visible, a list left on a seat, an account used by somebody else. Report it within one hour to the help desk, extension 611, or, at night, to the control room, extension 200. The privacy officer decides whether the authority has to be told; the law allows 72 hours for that, counted from the moment when the first of us noticed. Those affected are informed in plain words. There were six breaches last year. Five were e-mails sent to the wrong person, and the sixth was a duty list used as wrapping for a mackerel.
## Working with other companies
Whoever processes personal data for us, such as the payroll printer or the text message service, needs a contract that Theodora has seen, before the first record is handed over. At the moment there are 23 such contracts. Services outside the legal area in which our passengers live need an additional check. Free web tools are never used with personal data.
## Artificial intelligence and statistics
For planning we use counts, not people. Whoever evaluates bookings removes names and combines groups of fewer than ten. Automatic decisions about people, for instance who gets a summer holiday or whose claim is refused, do not take place here: a program may suggest, and a person decides and signs.
## Training
Every new employee does a one-hour introduction in the first month, and everyone a quiz of twenty minutes each February. The pass mark is 80 percent. The best excuse for not taking part so far has come from Captain Kofi Hammar, who wrote that he had nothing to hide apart from his score.
""",
    "operations/dangerous-goods.pdf": """
# Dangerous goods and freight
For the freight desk, mates, ramp crews and drivers. Written by Emil Draycott, who has run the freight desk on extension 750 for sixteen years and has been surprised by nearly everything that is in here.
## What counts as dangerous goods?
Anything with one of the nine diamond-shaped labels: explosives, gases, flammable liquids, flammable solids, oxidising substances, poisons, radioactive material, corrosive substances, and a ninth class for everything else, such as lithium batteries. Some things look harmless and are not. Swimming pool chlorine, hair spray by the pallet, fishmeal, charcoal, and the oxygen bottles of a welder's van all belong here.
## How do I book them?
By telephone or e-mail to the freight desk, at least 24 hours before departure; 72 hours for explosives and radioactive material. We need the UN number, the proper shipping name, the class, the packing group, the quantity, the kind of packaging and a telephone number that is answered day and night. The driver brings the signed declaration and the instructions in writing. Without papers the vehicle stays ashore, regardless of who is waiting for it on the island.
## On which sailings are they carried?
Fuel, gas and other goods that may not travel with passengers go on the freight sailings of Route 2 at 06:10 on Tuesdays and Thursdays, when only freight drivers are allowed on board. Limited quantities in small packages may be taken on any sailing. On Route 1 such goods are carried on the 13:20 on Mondays and Fridays, with at most 25 passengers. Sandpiper carries heating oil for Little Corrow in a road tanker on the first Wednesday of the month, before the regular service, at 05:40. Turnstone does not carry dangerous goods at all, save for two gas cylinders per camper and the medical oxygen of a passenger.
## Where do they stand on board?
On the open part of the deck wherever possible, near the stern, at least six metres from the accommodation ladder and from the ventilation of the engine room. The stowage plan is drawn by the chief officer and hangs on the bridge and at the fire station. Classes that must not meet are kept apart as follows.
TABLE
Goods | Keep away from | Distance
Explosives, class 1 | everything else | separate sailing
Flammable gas, class 2.1 | oxidising substances, heat | 12 metres
Flammable liquids, class 3 | oxidising substances | 6 metres
Oxidising substances, class 5.1 | flammable liquids, acids | 6 metres
Poisons, class 6.1 | food | 3 metres and never above it
Corrosive substances, class 8 | explosives, food | 3 metres
Lithium batteries, class 9 | flammable goods of any kind | 6 metres
END
## Lithium batteries and electric vehicles
An electric car in working order is not dangerous goods. A battery on a pallet is, and so is a car with a damaged or flooded battery. Damaged batteries travel in a steel box with filling material, with the approval of the freight desk, on a freight sailing, and never on a day when the temperature on deck may exceed 30 degrees. Lorries with more than 500 kilograms of e-bike batteries need 48 hours' notice. On Petrel working electric cars stand in bays 41 to 52, no more than twelve to a crossing; on Guillemot the limit is eight.
When a battery burns, the aim is cooling. Use as much water as possible for as long as necessary, from upwind, with breathing apparatus, because the smoke contains hydrogen fluoride. A battery that has gone out can start again after hours; it is watched by heat camera for 24 hours.
## What do I check at the ramp?
- Do labels, papers and load agree? Count, do not estimate.
- Is anything leaking, bulging, smoking or hissing? Then stop the vehicle in the yard, upwind of the hall, move people back fifty metres and call extension 333.
- Is the load secured inside the vehicle? Open the door carefully and standing to one side.
- Does the driver know what it is? A driver who does not know is a reason to telephone the sender.
## May passengers bring petrol or gas?
Up to five litres of fuel in a closed can for each vehicle, and no more than two gas cylinders for a camper, closed and fixed. Gas heating and refrigerators run on gas are switched off on board. A diver's air bottle is fine. Fireworks are not, even on New Year's Eve, which is when people ask.
## What do freight customers pay?
Freight is charged by length of vehicle or by weight, whichever is more. A lorry of twelve metres costs $168 on Route 1 and $372 on Route 2, one way. There is a supplement of 30 percent for dangerous goods and a crane fee of $22 a lift at Sellay. Rates went up by six percent in the past year, since the crane had been left out of them. Regular customers get a monthly account after a credit check.
## Food, milk and medicine first
After a stop due to weather, freight is loaded in this order: medicines and blood, milk and bread, animal feed, mail, fuel for the island power stations, and then everything else in order of booking. Fresh fish going the other way has priority on the return, as it earns the living of half of Sellay.
## What has gone wrong before?
In 2014 a removal van carried eleven cans of petrol under a sofa. In 2018 a pallet of pool chlorine stood beside a leaking drum of brake fluid for six minutes before a deck hand noticed the smell; the two make fire when they meet. In 2022 a parcel marked "kitchen goods" ticked. It was a kitchen timer. Each time somebody asked a question, and each time it was the right thing to do.
""",
    "operations/planned-maintenance.pdf": """
# Planned maintenance: who services what, and when
This extract from the maintenance plan is meant for watch-keeping engineers, bosuns and everyone who signs jobs in Lanyard. The full plan has some 2,900 tasks. The principles fit on a few pages.
## How does the plan work?
Each piece of equipment has a number with three parts: the vessel, the group and the position. P-412-02, for example, is the second cooling water pump of Petrel. Every task belongs to one number and has an interval, either in running hours or in calendar time, a description, a list of spare parts, an estimated duration and a grade of person who may sign for it. Lanyard shows a job two weeks before it is due. Yellow means due within the window, red means overdue, and a red job on safety equipment stops the vessel.
## What are the most important intervals?
TABLE
Equipment | Task | Interval | Signed by
Main engines, Petrel and Guillemot | oil and filter change | 750 hours | second engineer
Main engines | injectors, valve clearance | 3,000 hours | chief engineer
Main engines | overhaul in the yard | 24,000 hours | Bram Oyelle
Emergency generator | start and run for 30 minutes under load | weekly | second engineer
Bow and stern ramps | grease hinges, look at wires | weekly | bosun
Ramp wires | renew | 30 months | chief officer
Rescue boat and davit | swing out, run engine | weekly | chief officer
Rescue boat hook | service by maker | yearly | maker's engineer
Fire dampers | close and open by hand | monthly | second engineer
Drencher nozzles | blow through with air | 3 months | bosun
Lifejackets | inspect each one, lamp and whistle | yearly | third officer
Battery modules, Turnstone | compare cell voltages | monthly | chief engineer
Charging plug, Turnstone | clean contacts, measure temperature | weekly | mate
Bilge alarms | lift every float | weekly | motor hand
END
## May I postpone a job?
Jobs that do not concern safety can be postponed once, by no more than ten percent of the interval, by the chief engineer. Anything beyond this is for Bram Oyelle, chief superintendent engineer, extension 250. Jobs on life-saving appliances, fire protection, steering and ramps cannot be postponed at all. If a part is missing, say so in Lanyard before the job turns red; the store can usually find one on a sister ship.
## What does signing mean?
Your signature says three things: I did it or watched it being done, it was done as described, and the equipment works. It does not say "I believe that the other watch did it". Whoever signs work that was never done ends up before the managing director. A job that you began and could not finish is handed over as begun, with a note, and that is nothing to be ashamed of.
## How do I report a defect?
Take a photograph, look for the number, and choose one of three grades. Grade 1: the vessel must not sail. Grade 2: the vessel can sail with a restriction that the master has accepted in writing. Grade 3: repair when convenient. Grade 1 is telephoned to the control room as well, extension 200, because a sailing depends on it. Last year there were 41 defects of grade 1, 388 of grade 2 and 2,106 of grade 3.
## Where do spare parts come from?
The main store is in the Holmwick workshop and is open from 06:00 to 22:00. Each vessel carries a set of critical spares: one of everything whose failure would keep her in port and which can be changed by her own crew. The list has 64 items for Petrel and 71 for Guillemot. When you take a critical spare, order its replacement the same day. The store is counted twice a year, at the end of April and at the end of October. This has been so since the auditor recommended it.
## Fuel and oil analysis
An oil sample is taken from each main engine every 250 hours and sent to a laboratory. The report comes back within four days and shows metals, water, soot and fuel. Rising copper means a bearing, rising silicon means dust, and sodium means sea water. In 2023 a report of this kind warned us of a cracked cylinder liner on Guillemot six weeks before it would have failed. The repair cost $38,000, and the failure would have cost at least ten times as much.
Fuel samples taken while bunkering are sealed, signed by both sides, and kept for twelve months.
## How is a docking prepared?
Eight weeks ahead Bram Oyelle closes the list of work. Six weeks ahead the yard receives the specification. Two weeks ahead the crew prepares the ship: tanks emptied and cleaned, loose gear ashore, access plates freed. In dock there is a meeting at 07:30 every day with the yard, the class surveyor and the chief engineer, standing up, for no longer than twenty minutes. Work that was not on the list needs a price before it is begun. After the dock the ship does a sea trial of at least four hours with no passengers, on which full speed, crash stop, steering, anchors and ramps are tested.
## Vibration, noises and noses
Instruments find many faults, and people find the rest. A different sound, a new smell, a warm patch on a casing: write it down even when you cannot say what it means. Six of last year's grade 1 defects were first noticed by somebody who had said "that sounds odd". Two of those were stewards.
## Working safely
Permits to work are explained in a booklet of their own. Two rules cannot be repeated often enough. Lock and tag before you open anything. And tell the bridge before you stop anything, even in port, because the ramp, the lights and the lift hang on the same switchboard.
""",
    "people/conduct-and-dignity.docx": """
# Conduct and dignity at work
We spend long hours in small spaces with people we did not choose. Most of what makes that pleasant cannot be ordered. This document covers the part that can.
## What do we expect of each other?
Come on time and fit for duty. Say what you see. Keep promises or give warning early. Clean up after yourself. Talk to people and not about them. Treat the cleaner like the captain and the passenger without a ticket like the one with the season pass. If you do all that, you need not read further.
## What is the rule on alcohol and drugs?
Zero. Nobody on duty may have any alcohol in the blood, and nobody may drink during the eight hours before a duty. On Guillemot, where crews live on board, no alcohol is kept or drunk during the duty week, even off watch. Illegal drugs are never allowed. Some medicines affect you as well: ask the nurse, Elske Varga, extension 540, who will not report that you asked.
Tests are carried out at random, on average twice a year for each seagoing employee, and always after a serious accident. They are done by the nurse, in private, with a second sample that you can have examined elsewhere. Refusing a test counts as a positive one. A positive test means that you are taken off duty at once and have a conversation on the following day. The first time, treatment is offered and paid for, and the job is kept open as long as the treatment goes on. People who come forward before a test have never lost their jobs over it; nine colleagues have taken this way since 2010 and seven are still with us.
## Smoking
All vessels and buildings are free from smoke and vapour. Shelters stand at each port at least twenty metres from the ramp. Smoking breaks are part of the normal breaks and not extra.
## Harassment and bullying
Harassment is any behaviour that takes away someone's dignity: remarks about body, origin, faith, age, disability or whom somebody loves; touching that is not wanted; jokes which go on after the laughter has stopped; leaving a person out on purpose; shouting as a method. It does not matter that it was meant as fun. Tradition is no excuse either: the "baptism" of new deck hands with bilge water was abolished in 1999, and nobody has melted.
## What can I do if it happens to me, or if I see it?
- Say stop, if you feel able to. Often it is enough.
- Write down what happened, when, and who was there.
- Talk to one of the four trusted persons: Perdita Lowe in the contact centre, Anders Quayle on Petrel, Sister Ann Mallory, who is the seafarers' chaplain in Holmwick and not our employee, or Rafael Ondry of the works council, extension 550.
- Make a complaint to Runa Feldby, head of the people office, extension 500, or, if it concerns her department, to the chair of the board.
A trusted person does nothing without your agreement. A formal complaint is examined by two people from other departments; they hear both sides separately within ten days and give a written result within thirty. During this time the two people concerned do not work the same watch, and it is not the one who complained who has to move. Nobody may be put at a disadvantage because of an honest complaint. Witnesses have the same protection.
## Respect on board between ranks
Orders on a ship are short, and have to be followed quickly. That does not make them rude. An officer who is asked "why?" during a manoeuvre may say "later", and then owes the explanation afterwards. Everyone may say "stop" when they see danger, and it is obeyed first and discussed second.
## Telephones, pictures and social media
No private telephone on the bridge, on the ramp, on the car deck or in a boat. In the mess and in your cabin do as you please. Pictures of colleagues are published with their consent only, and pictures of passengers or accidents never. You may say in public that you work here, and you may criticise us; just do not speak as if you were the company, and keep to yourself what you know about passengers and other people's pay.
## Outside jobs and interests
You may have a second job provided that the hours of rest remain intact and it is not for a competitor on the Sound. Tell the people office. Forty-four colleagues farm, fish, mend boats or play in wedding bands. Seats on councils are welcome, and the time for sittings is given without pay.
## How does discipline work?
It goes in steps, and every step is a conversation first.
TABLE
Step | Example | Stays on file
Conversation with a note | late three times in a month | 6 months
First written warning | telephone on the ramp after a reminder | 12 months
Final warning | sailing without reporting an expired certificate | 24 months
Dismissal | violence, theft, falsified safety records | permanently
END
For serious misconduct steps can be skipped. You may bring somebody with you to every conversation, you may read your file at any time, and within fourteen days you may appeal to the managing director, Ingrid Vasell. Over the past three years there were 31 first warnings, six final warnings and four dismissals.
## Conflicts that are nobody's fault
Two good people can make each other miserable on a small ship. Ask for mediation: a neutral colleague trained for it meets both, usually twice, at work and in paid time. About three conflicts out of four end in a watch that works, and the rest in a transfer that both are happy with.
""",
    "people/training-and-certificates.docx": """
# Training and certificates
Training is paid working time. That sentence stands first because it is the one most often forgotten. This document describes which certificates are needed, how they are renewed, and how you can learn something that nobody requires of you.
## How many training days do I have?
Everyone has five paid training days a year for courses of their own choice, together with a personal budget of $900. Compulsory certificates do not count against either. Days and money that are not used can be saved up for one further year, so that a course of ten days costing $1,800 is possible every second year. Apply to Henrike Aust at the training desk, extension 520, at least six weeks in advance.
## Which certificates does my job require?
TABLE
Certificate | Who needs it | Valid for
Basic safety training | all seagoing staff | 5 years
Crowd management | all crew with passenger duties | 5 years
Crisis management | masters, chief officers, pursers | 5 years
Rescue boat | boat crews, three for each watch | 5 years
Advanced fire fighting | officers, fire team leaders | 5 years
High voltage and battery fires | Turnstone officers and engineers | 3 years
Medical first aid | two for each watch | 3 years
Food safety level 2 | catering crew | 3 years
Forklift and telehandler | port staff who drive them | 5 years
Radio operator | all deck officers | no expiry, check every 5 years
END
The training desk watches all dates and writes to you 90 days before an expiry, then again at 60 and at 30 days. At 30 days your master is told as well. If a certificate lapses you cannot be counted in the safe manning, and your hours move ashore until it has been renewed.
## How is basic safety training renewed?
By a two-day course every five years at the training centre in Holmwick, in the old grain store. The first day is fire; the second is water. You will jump from a height of three metres, right a capsized raft and swim fifty metres in a life jacket. Those who are afraid of water should say so; the instructor, Jago Merrin, takes such people into the pool one evening earlier and alone, and so far everyone has managed.
## Can I become an officer?
Yes, and we would like you to. Each year the Cooperative supports up to three people from the crews on their way to a certificate of competency. The path takes about three years:
- twelve months of recorded sea time with a task book, which you may collect in your normal duty;
- two blocks of college of five months each, with 70 percent of your basic pay;
- an oral examination before the flag administration, for which two of our masters prepare you at weekends.
In return you promise to stay for three years after the examination. Someone who leaves earlier pays back one thirty-sixth of the college costs for each missing month. Applications, with a letter of one page, are due on 1 October. Captain Beatrix Thorn began as a ticket clerk at Ansby. Bram Oyelle came as an apprentice fitter at sixteen.
## Apprenticeships
There are eight apprentices at a time: four in the engine department, two on deck, one in catering and one in the office. Apprenticeships last three years and begin in August. Apprentices are not counted as crew, do not work nights before their eighteenth birthday, and have one day a week at college. In the last five years every apprentice who passed was offered a job, and all but two accepted.
## Simulator
The bridge simulator on the first floor of the grain store shows all six ports and all five vessels, with waves, fog and tide. Officers spend two days a year in it. On the first day everyone practises the manoeuvre that they like least; on the second, an emergency is played through, with the control room on the telephone. Outside course hours the simulator can be booked by the crews free of charge. Captain Aurel Moss holds the record for berthing at Sellay in a crosswind of 17 metres per second. He would like it to be mentioned that he holds it in reality as well.
## Courses that people liked last year
- Repairing outboard motors, two evenings, on Great Corrow
- Sign language for beginners, ten lunch breaks
- Speaking to a crowd, one day, with an actor
- Reading the sky: weather for practical people, with the retired forecaster Alva Stennis
- Spreadsheets without tears
## How do we learn from each other?
Each vessel has a learning hour on the first Friday of the month, during the longest stay in port. One person shows something they are good at. Splicing, sourdough and reading a laboratory report on oil have all been subjects. Shore staff spend one day a year on board, and seagoing staff one day in the contact centre or the control room. After such a day, complaints about "those people ashore" or "those people at sea" vanish for roughly half a year.
## What happens if I fail an examination?
The first repetition is paid for by us, including time and travel. We look together at what was missing and find a tutor when that helps. For a second repetition you use your own training days. There is no third. Some people find that they prefer a job without the certificate, and a good bosun is worth more than an unhappy mate.
## Costs and results
Last year the Cooperative spent $412,000 on training, or about $1,940 for each employee. There were 1,370 course days. Of 64 compulsory examinations 61 were passed at the first attempt. The training desk publishes which courses were rated poorly by those who took part; a course with a mark of less than three out of five for two years running is replaced.
""",
    "safety/emergency-procedures.pdf": """
# Emergency procedures ashore and afloat
This booklet is kept on every bridge, in every port office and in the control room. It says who does what in the first thirty minutes. It does not replace the muster list of the vessel, and it does not replace thinking.
## Which number do I call in an emergency?
Extension 333 from any telephone of the Cooperative, or 0555 0140 333 from outside. It rings in the control room and at the same time on the telephone of the duty manager. If life is in danger at sea, call the coastguard first on VHF channel 16, and then us. From a port, call the public emergency number first when somebody needs an ambulance or the fire brigade.
## What do I say?
- Who and where you are: the vessel or port, the position, the deck.
- What has happened: fire, injury, collision, flooding, threat.
- How many people are in danger or hurt.
- What you are doing now, and what you need.
Do not hang up until the controller says so. The controller repeats everything you said. If the repetition is wrong, correct it.
## What are the alarm signals on board?
The general emergency alarm is seven short blasts followed by one long blast. Fire is announced by a continuous ringing of bells in crew areas and by the code words "Mr Green to deck three", with the number of the deck. A person overboard is three long blasts. The order to abandon ship is given by the voice of the master only, and never by a signal.
## Fire on board
The person who finds a fire presses the nearest button, shouts, closes the door and, if it is safe and the fire is no bigger than a waste-paper basket, uses one extinguisher. One, and then out. The officer of the watch reduces speed, turns the ship so that the smoke blows away from the passengers, starts the fire pump and stops the ventilation of the zone. The fire team meets at the station on the muster list and is ready with breathing apparatus within four minutes. The engine room may be flooded with gas only on the order of the master, when every person has been counted and the doors are shut. Before the release, a warning siren sounds for twenty seconds.
## Flooding and grounding
Close the watertight doors from the bridge. Sound the tanks. Do not try to get off the ground under engine power before the soundings are known, because a ship that has been holed on a rock may be kept afloat by it. Note the time of high water. Show the signals for a vessel aground. Passengers are called to the muster stations early, calmly, and with their coats on.
## Collision
Stop, count, look at the other vessel. The duty to help is mutual. Exchange names, port of registry, and last and next ports. Keep the vessels together if pulling them apart would open the hole. Save the voyage data recorder within twelve hours.
## Total loss of power
The emergency generator starts by itself within 45 seconds and supplies lighting, steering, radio and the fire pump. The chief engineer reports to the bridge after three minutes with an estimate. If the ship is drifting towards danger, both anchors are let go. They are kept ready for use within ninety seconds; this has been so since the night of the Dunlin in 1993.
## Bomb threats and suspicious objects
Take every threat seriously and none of them loudly. The person on the telephone keeps the caller talking, writes down each word, and notes the voice, the background and the exact time. The sheet of questions is under the keyboard in the contact centre. Do not touch a suspicious object, do not use a radio within fifteen metres of it, and open doors and windows nearby if you can. The master decides whether to make for the nearest port; at the berth passengers leave without luggage.
## Oil in the water
Stop the transfer. Close the valves. Report to the coastguard and to extension 333, even when only a bucket of oil is concerned. Booms for 200 metres are stored at Holmwick, and 60 metres each at Great Corrow and Sellay. No detergent is used without permission from the environmental authority. Last year there was one spill, of about nine litres of hydraulic oil at Ansby.
## Evacuation of a port building
Leave by the nearest green sign. The port manager or the deputy takes the visitors' book and the red bag. Assembly points: at Holmwick the flagpole by lane 12, at Great Corrow the upper car park, at Ansby the square before the bakery, at Sellay the lifeboat house. Nobody goes back inside until the fire brigade has said yes.
## Who leads?
At sea the master. In a port the port manager until the fire brigade or police arrive, and afterwards in support of them. In the company the emergency team meets in the room behind the control room within forty minutes: Davin Achterby in the lead, Tobias Renhale for the ship, Lucia Marsh for relatives and passengers, Runa Feldby for the crew and their families, Ingrid Vasell for the authorities and the press, and a log keeper, who does nothing but write.
## What about relatives and the press?
The family line, extension 777, is switched on as soon as the team meets. Names of the injured are given only to next of kin, by two people in person if at all possible. Crew do not talk to reporters and do not post pictures. We publish a first short statement within an hour, and it contains only what we know.
## Afterwards
Everyone involved is relieved for the rest of the day with pay. The log, the sheets and the recordings go to Davin Achterby. A first talk takes place within 48 hours, an investigation within 30 days. Then this booklet is changed where it was wrong. The present text is the seventh edition; each of the previous six had something wrong.
""",
    "safety/permits-to-work.pdf": """
# Permits to work
Some jobs are so dangerous that no one may start them on their own judgement, however experienced they are. For these jobs there is a permit. It is a sheet of paper, and at the same time a conversation between the person who does the work and the person who is responsible for the place.
## Which jobs need a permit?
- Hot work outside the workshop: welding, cutting, grinding, open flames. Form S-12.
- Entry into enclosed spaces: tanks, void spaces, the chain locker, the battery rooms of Turnstone. Form S-14.
- Work at height above two metres, and over the side. Form S-15.
- Electrical work on systems above 50 volts. Form S-16.
- Diving near a vessel. Form S-18, together with the diving company's own papers.
If you are not sure, ask. If two people are not sure, the job needs a permit.
## Who issues a permit?
On board the chief engineer issues permits for machinery spaces and the chief officer for all others. In dock and in the workshop it is Bram Oyelle or his deputy, and in the port the port manager. The person who issues the permit must visit the place. Permits issued from an office chair are void, and have led to two formal warnings.
## How long is a permit valid?
A hot work permit is valid for eight hours at most, and for one place. After a break of more than 30 minutes the conditions are checked again. It ends when there is a change of watch, an alarm or a change in the weather. No permit is valid overnight.
## Hot work
Before starting, remove everything that can burn within a distance of ten metres, or cover it with fire blankets. Look behind the bulkhead: paint on the other side can catch fire at 300 degrees, and there may be a mattress leaning against it. Close the drains. Have two extinguishers and a charged hose at hand. Switch off the smoke detectors of the zone, with an entry on the bridge board, and switch them on again afterwards.
The fire watch is a person who does nothing else. The watch stays for 60 minutes after the work has ended, and comes back once more after three hours. In 2017 a glowing bead fell through a cable opening on Sandpiper and smouldered for 50 minutes before it was noticed by the fire watch. The previous rule had been half an hour.
No hot work is allowed during bunkering, during loading of dangerous goods, or with passengers on the deck concerned.
## Enclosed spaces
Air that you cannot see through is not the worst air. Rust alone can take the oxygen out of a closed tank. A tank that was safe yesterday has to be measured again today.
- Ventilate for at least two hours, and go on ventilating during the work.
- Measure at the top, in the middle and at the bottom. Oxygen has to be between 20.8 and 21 percent, flammable gas below one percent of the lower explosive limit, hydrogen sulphide below 5 parts per million.
- Carry a personal meter, which stays switched on. When it sounds, leave at once and take nothing with you.
- One attendant stands at the opening, with a radio, a list of those inside and no other task.
- Rescue equipment lies ready at the opening: harness, tripod, breathing apparatus for two.
The attendant must never go in. Of all the people who die in enclosed spaces, more than half went in to save somebody else. The attendant raises the alarm, keeps the air running and waits for the rescue team.
## Work at height and over the side
Ladders are for climbing, not for working on. From a height of two metres use a platform or a harness with a shock absorber, fixed above your head if possible. Tools are tied on. The area below is roped off. Over the side a life jacket is worn under the harness, a second person stands by with a lifebuoy, and the bridge has hoisted the signal and locked the thrusters. Work aloft near radar and whistle needs their fuses in your pocket.
Wind limits: 12 metres per second for ladders and platforms, 8 for working over the side.
## Electrical work
Switch off, lock, tag, test, earth. Everybody who works on the system hangs their own padlock on the switch and keeps the key. Test the tester before and after. On Turnstone the battery strings carry up to 810 volts of direct current, which cannot be switched off inside the modules themselves; only people with the high voltage course may work there, always in twos, with insulated tools and without rings or watches.
## Can two permits be open at the same time?
Yes, but they are shown together on one board so that everyone can see them. Painting below and welding above is a classic combination with a predictable end. The duty engineer looks at the board at 08:00 and 13:00, and asks for each pair: could this one hurt that one?
## How is a permit closed?
The worker reports the job done, tools counted and guards back in place. The issuer inspects, signs and takes down the tag. Systems that were switched off are tested. The sheet is kept for three years. A permit that has not been closed by the end of the day is a near miss and is reported on form S-7.
## May I refuse?
At any time, without giving a written reason and without any disadvantage. The sentence is "I am not happy with this". It stops the job until the safety manager or his deputy has been to see it. In the last three years it was used fourteen times. On eleven occasions something was changed before the work went on.
""",
}

if __name__ == "__main__":
    main()
