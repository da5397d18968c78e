//! Lines to paragraphs and headings: by gaps, indents and font sizes, the only structure an untagged PDF has.

use std::collections::{HashMap, HashSet};

use tunesmith_contract::documents::{QuarantineReason, Section};

use super::lines::{Line, median};
use crate::{limits::Limits, outline::Outline};

/// A line that is this much larger than the body text may be a heading.
const HEADING_SCALE: f64 = 1.12;

/// Longest heading, in characters.
const MAX_HEADING_CHARS: usize = 150;

/// A gap of this many usual line distances ends a paragraph.
const PARAGRAPH_GAP: f64 = 1.3;

/// A gap of this many font sizes ends a title.
const TITLE_GAP: f64 = 1.7;

/// Lines that belong together.
struct Block {
    /// The page it begins on.
    page: u32,
    /// The page of its last line.
    last_page: u32,
    text: String,
    lines: usize,
    size: f64,
    bold: bool,
    /// Left edge and baseline of the last line.
    left: f64,
    baseline: f64,
    /// Right edge of its widest line.
    right: f64,
    is_item: bool,
}

/// Sections with their pages; a section ends with its page, so that every passage names the page it begins on.
pub fn sections(pages: &[Vec<Line>], limits: &Limits) -> Result<(Vec<Section>, Option<String>), QuarantineReason> {
    let words = vocabulary(pages);
    let Some(style) = BodyStyle::of(pages) else { return Ok((Vec::new(), None)) };
    let blocks = blocks(pages, &words, &style);
    let mut levels: Vec<u64> = blocks.iter().filter(|b| style.is_large(b)).map(|b| half_points(b.size)).collect();
    levels.sort_unstable_by(|a, b| b.cmp(a));
    levels.dedup();
    let mut outline = Outline::new(limits);
    let mut page = 0;
    for block in &blocks {
        if block.page != page {
            page = block.page;
            outline.next_page(page);
        }
        let deepest = levels.len().min(5) as u8;
        if style.is_large(block) {
            let level = levels.iter().position(|l| *l == half_points(block.size)).unwrap_or(0) as u8 + 1;
            outline.heading(level.min(5), &block.text)?;
        } else if style.is_bold_heading(block) {
            outline.heading(deepest + 1, &block.text)?;
        } else if block.is_item {
            outline.item(&block.text)?;
        } else {
            outline.block(&block.text)?;
        }
    }
    Ok(outline.finish())
}

fn half_points(size: f64) -> u64 {
    (size * 2.0).round() as u64
}

/// What most of the text looks like.
struct BodyStyle {
    size: f64,
    mostly_bold: bool,
}

impl BodyStyle {
    fn of(pages: &[Vec<Line>]) -> Option<Self> {
        let mut sizes: HashMap<u64, usize> = HashMap::new();
        let (mut total, mut bold) = (0, 0);
        for line in pages.iter().flatten() {
            *sizes.entry(half_points(line.size)).or_default() += line.text.len();
            total += line.text.len();
            bold += if line.bold { line.text.len() } else { 0 };
        }
        let (half, _) = sizes.into_iter().max_by_key(|(size, chars)| (*chars, std::cmp::Reverse(*size)))?;
        Some(Self { size: half as f64 / 2.0, mostly_bold: bold * 2 > total })
    }

    fn could_be_heading(block: &Block) -> bool {
        block.lines <= 3
            // "3. Accounts" is a heading when its letters are large; a bullet never is one.
            && !block.text.starts_with("- ")
            && block.text.chars().count() <= MAX_HEADING_CHARS
            && block.text.chars().filter(|c| c.is_alphabetic()).count() >= 2
    }

    fn is_large(&self, block: &Block) -> bool {
        Self::could_be_heading(block) && block.size >= self.size * HEADING_SCALE
    }

    fn is_bold_heading(&self, block: &Block) -> bool {
        Self::could_be_heading(block)
            && block.bold
            && !self.mostly_bold
            && block.lines == 1
            && block.size >= self.size * 0.95
            && !block.text.ends_with(['.', ':', ';', ','])
            && block.text.chars().count() <= 100
    }
}

fn blocks(pages: &[Vec<Line>], words: &HashSet<String>, style: &BodyStyle) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for (page, lines) in (1..).zip(pages) {
        let distances = lines.windows(2).map(|w| w[0].baseline - w[1].baseline);
        let sizes = median(lines.iter().map(|l| l.size)).unwrap_or(10.0);
        let leading = median(distances.filter(|d| *d > 0.3 * sizes && *d < 3.0 * sizes)).unwrap_or(1.2 * sizes);
        for line in lines.iter().filter(|line| !has_leader(&line.text)) {
            match blocks.last_mut() {
                Some(open) if continues(open, line, page, leading, style) => open.join(line, page, words),
                _ => blocks.push(Block::begin(line, page)),
            }
        }
    }
    blocks
}

/// Whether a line is an entry of a table of contents or an index: dots or colons lead to its page number.
fn has_leader(text: &str) -> bool {
    let plain: String = text.chars().filter(|c| *c != ' ').collect();
    ["....", "::::", "····"].iter().any(|leader| plain.contains(leader))
        && plain.ends_with(|c: char| c.is_ascii_digit())
}

fn continues(open: &Block, line: &Line, page: u32, leading: f64, style: &BodyStyle) -> bool {
    let same_style = (open.size - line.size).abs() <= 0.08 * open.size.max(line.size) && open.bold == line.bold;
    if !same_style || item_mark(&line.text) {
        return false;
    }
    let runs_on = !open.text.ends_with(['.', '!', '?', ':']) && line.text.starts_with(char::is_lowercase);
    let distance = open.baseline - line.baseline;
    let below = distance > 0.0 && line.left < open.right && line.right > open.left;
    if open.last_page != page || !below {
        return runs_on && !open.is_item;
    }
    let indented = line.left > open.left + 0.8 * line.size;
    if open.size >= style.size * HEADING_SCALE {
        // Titles are set wide and often centred, so an indent says nothing about them.
        return distance <= TITLE_GAP * open.size;
    }
    let near = distance <= PARAGRAPH_GAP * leading.max(open.size * 1.05);
    near && (!indented || open.is_item || runs_on)
}

impl Block {
    fn begin(line: &Line, page: u32) -> Self {
        let is_item = item_mark(&line.text);
        let text = match line.text.strip_prefix(BULLETS).filter(|_| is_item) {
            Some(rest) => format!("- {}", rest.trim_start()),
            None => line.text.clone(),
        };
        Self {
            page,
            last_page: page,
            text,
            lines: 1,
            size: line.size,
            bold: line.bold,
            left: line.left,
            baseline: line.baseline,
            right: line.right,
            is_item,
        }
    }

    fn join(&mut self, line: &Line, page: u32, words: &HashSet<String>) {
        append(&mut self.text, &line.text, words);
        self.lines += 1;
        self.left = if self.lines == 2 { line.left } else { self.left.min(line.left) };
        self.baseline = line.baseline;
        self.right = self.right.max(line.right);
        self.last_page = page;
    }
}

const BULLETS: [char; 8] = ['•', '‣', '◦', '▪', '●', '–', '·', '∙'];

/// Whether a line begins an item of a list: a bullet, `3.`, `3)`, `(a)`.
fn item_mark(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix(BULLETS).or_else(|| text.strip_prefix("- ")) {
        return !rest.trim().is_empty();
    }
    let Some((mark, _)) = text.split_once(' ') else { return false };
    let inner = mark.strip_suffix([')', '.']).map(|m| m.trim_start_matches('('));
    inner.is_some_and(|m| {
        (1..=2).contains(&m.len()) && m.chars().all(|c| c.is_ascii_digit())
            || (mark.ends_with(')') && m.len() == 1 && m.chars().all(char::is_alphabetic))
    })
}

/// Appends a line. A hyphen at the line's end goes when the next line begins with a small letter, unless the document
/// writes the word with its hyphen elsewhere and never without.
fn append(text: &mut String, line: &str, words: &HashSet<String>) {
    let hyphen = text.ends_with(['-', '\u{ad}', '‐'])
        && text.trim_end_matches(['-', '\u{ad}', '‐']).ends_with(char::is_alphabetic);
    if !hyphen || !line.starts_with(char::is_lowercase) {
        text.push(' ');
        text.push_str(line);
        return;
    }
    let soft = text.ends_with('\u{ad}');
    let stem = text.trim_end_matches(['-', '\u{ad}', '‐']).len();
    let before = text[..stem].rsplit(|c: char| !is_word(c)).next().unwrap_or_default().to_lowercase();
    let after = line.split(|c: char| !is_word(c)).next().unwrap_or_default().to_lowercase();
    let keep = !soft && !words.contains(&format!("{before}{after}")) && words.contains(&format!("{before}-{after}"));
    text.truncate(stem);
    if keep {
        text.push('-');
    }
    text.push_str(line);
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '-'
}

/// Every word that stands whole inside a line.
fn vocabulary(pages: &[Vec<Line>]) -> HashSet<String> {
    let mut words = HashSet::new();
    for line in pages.iter().flatten() {
        for word in line.text.split(|c: char| !is_word(c)).filter(|w| w.len() > 2 && !w.ends_with('-')) {
            words.insert(word.to_lowercase());
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, baseline: f64, size: f64) -> Line {
        Line { text: text.into(), left: 0.0, right: 100.0, baseline, size, bold: false }
    }

    #[test]
    fn sizes_make_headings_and_gaps_make_paragraphs() {
        let page = vec![
            line("Crew handbook", 700.0, 20.0),
            line("The ferry leaves at eight in the mor-", 670.0, 10.0),
            line("ning. A well-known rule: be on", 658.0, 10.0),
            line("time. It is well-", 646.0, 10.0),
            line("known.", 634.0, 10.0),
            line("• life jackets", 610.0, 10.0),
            line("• lamps", 598.0, 10.0),
            line("Another paragraph stands here.", 574.0, 10.0),
        ];
        let (sections, title) = sections(&[page], &Limits::default()).unwrap();
        assert_eq!(title.as_deref(), Some("Crew handbook"));
        assert_eq!(sections.len(), 1);
        assert_eq!(sections[0].page, Some(1));
        assert_eq!(
            sections[0].text,
            "The ferry leaves at eight in the morning. A well-known rule: be on time. It is well-known.\n\n- life jackets\n- lamps\n\nAnother paragraph stands here."
        );
    }

    #[test]
    fn a_numbered_line_in_large_letters_is_a_heading() {
        let page = vec![
            line("3. Accounts", 700.0, 16.0),
            line("1. Revenue was", 670.0, 10.0),
            line("31 million dollars this year.", 658.0, 10.0),
        ];
        let (sections, _) = sections(&[page], &Limits::default()).unwrap();
        assert_eq!(sections[0].headings, ["3. Accounts"]);
        assert_eq!(sections[0].text, "1. Revenue was 31 million dollars this year.");
    }

    #[test]
    fn entries_of_a_table_of_contents_are_left_out() {
        assert!(
            has_leader("2.1 Leave . . . . . . . 14")
                && has_leader("berth : : : : : 7, 9")
                && has_leader("Fares......3")
        );
        assert!(!has_leader("Wait ... then go at 7") && !has_leader("The end ...."));
    }

    #[test]
    fn a_paragraph_runs_over_the_page_end() {
        let pages = [
            vec![line("The crew meets at the", 100.0, 10.0)],
            vec![line("pier at seven.", 700.0, 10.0), line("Then it sails.", 600.0, 10.0)],
        ];
        let (sections, _) = sections(&pages, &Limits::default()).unwrap();
        let got: Vec<_> = sections.iter().map(|s| (s.page, s.text.as_str())).collect();
        assert_eq!(got, [(Some(1), "The crew meets at the pier at seven."), (Some(2), "Then it sails.")]);
    }
}
