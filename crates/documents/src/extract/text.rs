//! Plain text: paragraphs by empty lines, headings where people and tools mark them.

use tunesmith_contract::documents::QuarantineReason;

use super::Extracted;
use crate::{limits::Limits, outline::Outline};

/// Longest line that may be a heading.
const MAX_HEADING_CHARS: usize = 100;

/// Lines between two empty lines.
struct Block<'a> {
    page: Option<u32>,
    lines: Vec<&'a str>,
    /// Level of an underlined heading.
    level: Option<u8>,
}

/// Reads plain text. Headings are lines underlined with `===`, `---` or `~~~` (reStructuredText and e-mail habits), lines
/// alone between empty lines that do not end like a sentence and stand above a paragraph, and the first line of the file
/// when it looks like a title. Everything else is paragraphs. A form feed begins a page.
pub fn extract(text: &str, limits: &Limits) -> Result<Extracted, QuarantineReason> {
    let blocks = blocks(text);
    let mut outline = Outline::new(limits);
    let mut page = None;
    let mut title = None;
    for (index, block) in blocks.iter().enumerate() {
        if block.page != page {
            page = block.page;
            outline.next_page(page.unwrap_or(1));
        }
        if let Some(level) = block.level {
            outline.heading(level, block.lines[0])?;
        } else if index == 0 && is_title(block) && blocks.len() > 1 {
            title = Some(crate::outline::one_line(block.lines[0]));
            outline.heading(0, block.lines[0])?;
            outline.block(&block.lines[1..].join("\n"))?;
        } else if is_heading(block)
            && blocks.get(index + 1).is_some_and(|next| next.level.is_none() && !is_heading(next))
        {
            outline.heading(4, block.lines[0])?;
        } else {
            outline.block(&block.lines.join("\n"))?;
        }
    }
    let (sections, heading) = outline.finish();
    Ok(Extracted { title: title.or(heading), sections, ..Extracted::default() })
}

fn close<'a>(open: &mut Vec<&'a str>, page: Option<u32>, blocks: &mut Vec<Block<'a>>) {
    if !open.is_empty() {
        blocks.push(Block { page, lines: std::mem::take(open), level: None });
    }
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let mut page = text.contains('\u{c}').then_some(1);
    let mut open: Vec<&str> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let feeds = line.matches('\u{c}').count() as u32;
        let line = line.trim_matches('\u{c}').trim_end();
        if feeds > 0 {
            close(&mut open, page, &mut blocks);
            page = page.map(|p| p + feeds);
        }
        let level = lines.peek().and_then(|under| underline(line, under));
        if let Some(level) = level {
            close(&mut open, page, &mut blocks);
            blocks.push(Block { page, lines: vec![line], level: Some(level) });
            lines.next();
        } else if line.trim().is_empty() || is_rule(line) {
            close(&mut open, page, &mut blocks);
        } else {
            open.push(line);
        }
    }
    close(&mut open, page, &mut blocks);
    blocks
}

/// A line of one repeated sign: it parts blocks and says nothing.
fn is_rule(line: &str) -> bool {
    let line = line.trim();
    line.len() >= 5 && line.starts_with(['-', '=', '~', '*', '_']) && line.bytes().all(|b| b == line.as_bytes()[0])
}

fn is_title(block: &Block<'_>) -> bool {
    block.lines.len() <= 3 && looks_like_heading(block.lines[0])
}

fn is_heading(block: &Block<'_>) -> bool {
    block.level.is_none() && block.lines.len() == 1 && looks_like_heading(block.lines[0])
}

fn looks_like_heading(line: &str) -> bool {
    let line = line.trim();
    line.chars().count() <= MAX_HEADING_CHARS
        && line.starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit())
        && line.chars().filter(|c| c.is_alphabetic()).count() >= 3
        && !line.ends_with(['.', ',', ';', ':', '!', '|'])
}

fn underline(line: &str, under: &str) -> Option<u8> {
    let (title, under) = (line.trim(), under.trim_end());
    let mark = under.chars().next()?;
    let level = match mark {
        '=' => 1,
        '-' => 2,
        '~' => 3,
        _ => return None,
    };
    let long_enough = under.len() >= 3 && under.len() * 2 >= title.chars().count();
    let plain = title.chars().any(char::is_alphanumeric) && title.chars().count() <= MAX_HEADING_CHARS;
    (under.chars().all(|c| c == mark) && long_enough && plain).then_some(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<String>, Vec<(String, String)>) {
        let extracted = extract(text, &Limits::default()).unwrap();
        (extracted.title, extracted.sections.into_iter().map(|s| (s.headings.join("/"), s.text)).collect())
    }

    #[test]
    fn underlined_lines_are_headings() {
        let (title, sections) = read("Handbook\n========\n\nFirst\nparagraph.\n\n-----\nLeave\n-----\nTake it.\n");
        assert_eq!(title.as_deref(), Some("Handbook"));
        assert_eq!(
            sections,
            [("Handbook".into(), "First\nparagraph.".into()), ("Handbook/Leave".into(), "Take it.".into())]
        );
    }

    #[test]
    fn lines_that_stand_alone_above_a_paragraph_are_headings() {
        let (title, sections) =
            read("CREW NOTES\nfor everyone\n\nWhat is new?\n\nThe pier has a new lamp.\n\nMilk\n\nBread\n\nButter.\n");
        assert_eq!(title.as_deref(), Some("CREW NOTES"));
        let paths: Vec<_> = sections.iter().map(|s| s.0.as_str()).collect();
        assert_eq!(paths, ["CREW NOTES", "CREW NOTES/What is new?", "CREW NOTES/Bread"]);
        assert_eq!(sections[1].1, "The pier has a new lamp.\n\nMilk");
    }

    #[test]
    fn form_feeds_are_pages() {
        let extracted = extract("one.\n\u{c}two.\n\u{c}three.", &Limits::default()).unwrap();
        let got: Vec<_> = extracted.sections.iter().map(|s| (s.page, s.text.as_str())).collect();
        assert_eq!(got, [(Some(1), "one."), (Some(2), "two."), (Some(3), "three.")]);
    }
}
