//! `report.html` of a dataset: what is in it, what was refused and why. One file, no scripts, no requests.

use std::fmt::Write;

use tunesmith_contract::{
    documents::{DatasetManifest, Example, QuarantineRecord, SplitSize, UnreadUploads},
    ids::DocumentId,
};

use crate::{
    chunk::count_words,
    dataset::{Dataset, texts},
};

/// What the report shows.
#[derive(Debug, Clone, Copy)]
pub struct DatasetReport<'a> {
    /// Ids and counts.
    pub manifest: &'a DatasetManifest,
    /// Documents and examples.
    pub dataset: &'a Dataset,
    /// Refused files of the project.
    pub quarantine: &'a [QuarantineRecord],
}

/// Examples shown of the training split.
const NUM_EXAMPLES: usize = 6;

/// Characters shown of one text.
const MAX_CHARS: usize = 600;

/// Rows shown of each table; the rest is counted.
const MAX_ROWS: usize = 500;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#d9dee5;--paper:#fff;--panel:#f5f7fa;--accent:#2563a8}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa5b4;--line:#333c48;--paper:#14181e;--panel:#1d232b;--accent:#6fa8e8}}\
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .5rem}p.soft,td.soft{color:var(--soft)}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}\
th{color:var(--soft);font-weight:600}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
.example{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .9rem;margin:.6rem 0;white-space:pre-wrap;overflow-wrap:anywhere}\
.example b{color:var(--accent)}.scroll{overflow-x:auto}svg{width:100%;height:auto}svg rect{fill:var(--accent)}svg text{fill:var(--soft);font-size:11px}\
svg line{stroke:var(--line)}.warn{border-left:.3rem solid #c77700;padding:.3rem .8rem;background:var(--panel)}";

/// Renders the report. Everything that comes from documents is escaped.
#[must_use]
pub fn dataset_report(report: &DatasetReport<'_>) -> String {
    let DatasetReport { manifest, dataset, quarantine } = *report;
    let mut out = String::new();
    let project = escape(manifest.project.as_str());
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Dataset of {project}</title><style>{STYLE}</style></head><body>\n\
         <h1>Dataset of {project}</h1><p class=\"soft\">{}</p>\n<h2>What is in it</h2>\n\
         <div class=\"scroll\"><table><tr><th>Split<th class=\"n\">Documents<th class=\"n\">Examples<th class=\"n\">Words<th class=\"n\">Bytes</tr>",
        manifest.dataset
    );
    for (name, size) in
        [("Training", manifest.train), ("Validation", manifest.validation), ("Test (never trained on)", manifest.test)]
    {
        split_row(&mut out, name, size);
    }
    out.push_str("</table></div>\n");
    if dataset.split_by_section {
        out.push_str("<p class=\"warn\">There are too few documents to hold whole ones back, so the documents themselves were split. The test then says less about new documents: upload more.</p>\n");
    }
    left_out(&mut out, &manifest.unread);
    out.push_str("<h2>Length of the training examples, in words</h2>\n");
    histogram(&mut out, &dataset.train);
    documents(&mut out, report);
    refused(&mut out, quarantine);
    out.push_str("<h2>Some training examples</h2>\n");
    let step = (dataset.train.len() / NUM_EXAMPLES).max(1);
    for example in dataset.train.iter().step_by(step).take(NUM_EXAMPLES) {
        example_box(&mut out, example);
    }
    out.push_str("</body></html>\n");
    out
}

fn left_out(out: &mut String, unread: &UnreadUploads) {
    if !unread.is_empty() {
        let names: Vec<String> = unread.first.iter().map(|path| format!("<code>{}</code>", escape(path))).collect();
        let dots = if unread.count > names.len() as u64 { ", …" } else { "" };
        let _ = writeln!(
            out,
            "<p class=\"warn\">{} uploaded file(s) had not been read when this dataset was made, and are not in it: {}{dots}. \
             When they have been read or refused, upload an empty file named _TRAIN again.</p>",
            unread.count,
            names.join(", ")
        );
    }
}

fn split_row(out: &mut String, name: &str, size: SplitSize) {
    let _ = write!(
        out,
        "<tr><td>{name}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{}</tr>",
        size.documents, size.examples, size.words, size.bytes
    );
}

fn documents(out: &mut String, report: &DatasetReport<'_>) {
    let dataset = report.dataset;
    let _ = write!(
        out,
        "<h2>Documents used ({})</h2>\n<div class=\"scroll\"><table><tr><th>File<th>Title<th class=\"n\">Words<th>Left-out lines</tr>",
        dataset.documents.len()
    );
    for document in dataset.documents.iter().take(MAX_ROWS) {
        let skipped = document
            .skipped_lines
            .first()
            .map(|s| format!("{} lines, first: line {}: {}", document.skipped_lines.len(), s.line, s.reason));
        let _ = write!(
            out,
            "<tr><td>{}<td>{}<td class=\"n\">{}<td class=\"soft\">{}</tr>",
            escape(&document.path),
            escape(&document.title),
            crate::split::words(document),
            escape(&skipped.unwrap_or_default())
        );
    }
    out.push_str("</table></div>\n");
    more(out, dataset.documents.len());
    if !dataset.duplicates.is_empty() {
        let name = |id: &DocumentId| {
            dataset.documents.iter().find(|d| d.id == *id).map_or_else(|| id.to_string(), |d| d.path.clone())
        };
        let _ = write!(
            out,
            "<h2>Left out as copies ({})</h2>\n<div class=\"scroll\"><table><tr><th>Document<th>Says the same as<th class=\"n\">Similarity</tr>",
            dataset.duplicates.len()
        );
        for duplicate in dataset.duplicates.iter().take(MAX_ROWS) {
            let _ = write!(
                out,
                "<tr><td><code>{}</code><td>{}<td class=\"n\">{} %</tr>",
                &duplicate.document.as_str()[..12],
                escape(&name(&duplicate.kept)),
                duplicate.similarity_percent
            );
        }
        out.push_str("</table></div>\n");
        more(out, dataset.duplicates.len());
    }
}

fn refused(out: &mut String, quarantine: &[QuarantineRecord]) {
    let _ = writeln!(out, "<h2>Refused files ({})</h2>", quarantine.len());
    if quarantine.is_empty() {
        out.push_str("<p class=\"soft\">None.</p>\n");
        return;
    }
    out.push_str("<div class=\"scroll\"><table><tr><th>File<th>Why<th>What to do</tr>");
    for record in quarantine.iter().take(MAX_ROWS) {
        let _ = write!(
            out,
            "<tr><td>{}<td>{}<td>{}</tr>",
            escape(&record.path),
            escape(&record.message),
            escape(&record.remedy)
        );
    }
    out.push_str("</table></div>\n");
    more(out, quarantine.len());
}

fn more(out: &mut String, rows: usize) {
    if rows > MAX_ROWS {
        let _ = writeln!(out, "<p class=\"soft\">and {} more</p>", rows - MAX_ROWS);
    }
}

/// Ten bars of equal width over the lengths.
fn histogram(out: &mut String, examples: &[Example]) {
    const BARS: usize = 10;
    let lengths: Vec<usize> = examples.iter().map(|e| texts(e).into_iter().map(count_words).sum()).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
    let width = longest.div_ceil(BARS);
    let mut counts = [0usize; BARS];
    for length in &lengths {
        counts[(length.saturating_sub(1) / width).min(BARS - 1)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    out.push_str("<svg viewBox=\"0 0 640 170\" role=\"img\" aria-label=\"Histogram of example lengths\"><line x1=\"0\" y1=\"140\" x2=\"640\" y2=\"140\"/>");
    for (index, count) in counts.into_iter().enumerate() {
        let height = count * 115 / most;
        let x = index * 64;
        let _ = write!(
            out,
            "<rect x=\"{}\" y=\"{}\" width=\"56\" height=\"{height}\"/><text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{count}</text>\
             <text x=\"{}\" y=\"158\" text-anchor=\"middle\">{}–{}</text>",
            x + 4,
            140 - height,
            x + 32,
            135 - height,
            x + 32,
            index * width + 1,
            (index + 1) * width
        );
    }
    out.push_str("</svg>\n");
}

fn example_box(out: &mut String, example: &Example) {
    out.push_str("<div class=\"example\">");
    match example {
        Example::Text { text, .. } => out.push_str(&escape(&cut(text))),
        Example::Chat { messages, .. } => {
            for (index, message) in messages.iter().enumerate() {
                let role = message.role.as_str();
                let gap = if index > 0 { "\n\n" } else { "" };
                let _ = write!(out, "{gap}<b>{role}</b> {}", escape(&cut(&message.content)));
            }
        }
    }
    out.push_str("</div>\n");
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Text as HTML text or attribute value.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
