//! Markdown, as CommonMark with tables, footnotes, strikethrough and front matter.

use pulldown_cmark::{Event, HeadingLevel, MetadataBlockKind, Options, Parser, Tag, TagEnd};
use tunesmith_contract::documents::QuarantineReason;

use super::Extracted;
use crate::{limits::Limits, outline::Outline};

/// Reads Markdown. Markup goes, words stay: links keep their text, pictures their description, list items a `- ` or their
/// number, table rows become `a | b`. Raw HTML is read as HTML. The title is the front matter's, else the first heading.
pub fn extract(text: &str, limits: &Limits) -> Result<Extracted, QuarantineReason> {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let mut reader = Reader {
        outline: Outline::new(limits),
        limits,
        text: String::new(),
        lists: Vec::new(),
        title: None,
        raw: String::new(),
        in_metadata: false,
    };
    for event in Parser::new_ext(text, options) {
        reader.event(event)?;
    }
    reader.flush()?;
    let (sections, heading) = reader.outline.finish();
    Ok(Extracted { title: reader.title.or(heading), sections, ..Extracted::default() })
}

struct Reader<'a> {
    outline: Outline<'a>,
    limits: &'a Limits,
    /// Text of the open block.
    text: String,
    /// Open lists: the next number, or `None` for bullets.
    lists: Vec<Option<u64>>,
    title: Option<String>,
    /// Open raw HTML block.
    raw: String,
    in_metadata: bool,
}

impl Reader<'_> {
    fn event(&mut self, event: Event<'_>) -> Result<(), QuarantineReason> {
        match event {
            Event::Start(tag) => self.start(&tag)?,
            Event::End(tag) => self.end(tag)?,
            Event::Text(text) if self.in_metadata => self.metadata(&text),
            Event::Text(text) | Event::Code(text) | Event::InlineMath(text) | Event::DisplayMath(text) => {
                self.text.push_str(&text)
            }
            Event::Html(html) => self.raw.push_str(&html),
            Event::InlineHtml(tag) => {
                if tag.to_ascii_lowercase().starts_with("<br") {
                    self.text.push('\n');
                }
            }
            Event::SoftBreak | Event::HardBreak => self.text.push('\n'),
            Event::TaskListMarker(done) => self.text.push_str(if done { "[x] " } else { "[ ] " }),
            Event::Rule | Event::FootnoteReference(_) => {}
        }
        Ok(())
    }

    fn start(&mut self, tag: &Tag<'_>) -> Result<(), QuarantineReason> {
        match tag {
            Tag::List(first) => {
                // A nested list begins inside its parent's item.
                self.flush_item()?;
                self.lists.push(*first);
            }
            Tag::Item => {
                let indent = "  ".repeat(self.lists.len().saturating_sub(1).min(8));
                let mark = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        let mark = format!("{number}. ");
                        *number += 1;
                        mark
                    }
                    _ => "- ".to_owned(),
                };
                self.text.push_str(&indent);
                self.text.push_str(&mark);
            }
            Tag::Paragraph if self.lists.is_empty() => self.flush()?,
            Tag::Heading { .. } | Tag::CodeBlock(_) | Tag::Table(_) => self.flush()?,
            Tag::MetadataBlock(MetadataBlockKind::YamlStyle | MetadataBlockKind::PlusesStyle) => {
                self.in_metadata = true
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, tag: TagEnd) -> Result<(), QuarantineReason> {
        match tag {
            TagEnd::Heading(level) => {
                let text = std::mem::take(&mut self.text);
                self.outline.heading(number(level), &text)?;
            }
            TagEnd::Paragraph if !self.lists.is_empty() => self.text.push('\n'),
            TagEnd::Paragraph | TagEnd::CodeBlock | TagEnd::Table | TagEnd::FootnoteDefinition => self.flush()?,
            TagEnd::Item => self.flush_item()?,
            TagEnd::List(_) => {
                self.flush_item()?;
                self.lists.pop();
                if self.lists.is_empty() {
                    self.flush()?;
                }
            }
            TagEnd::TableCell => self.text.push_str(" | "),
            TagEnd::TableRow | TagEnd::TableHead => {
                let end = self.text.trim_end_matches([' ', '|']).len();
                self.text.truncate(end);
                self.text.push('\n');
            }
            TagEnd::HtmlBlock => self.raw_html()?,
            TagEnd::MetadataBlock(_) => self.in_metadata = false,
            _ => {}
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), QuarantineReason> {
        self.outline.block(&std::mem::take(&mut self.text))
    }

    /// Ends the line of a list item; the whole list stays one block.
    fn flush_item(&mut self) -> Result<(), QuarantineReason> {
        let end = self.text.trim_end().len();
        self.text.truncate(end);
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        Ok(())
    }

    fn raw_html(&mut self) -> Result<(), QuarantineReason> {
        let raw = std::mem::take(&mut self.raw);
        for section in super::html::extract(raw.as_bytes(), self.limits)?.sections {
            self.outline.block(&section.text)?;
        }
        Ok(())
    }

    fn metadata(&mut self, text: &str) {
        let title = text.lines().find_map(|line| line.strip_prefix("title:"));
        self.title = title.map(|t| t.trim().trim_matches(['"', '\'']).to_owned());
    }
}

const fn number(level: HeadingLevel) -> u8 {
    level as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_goes_and_words_stay() {
        let text = "---\ntitle: \"Crew guide\"\n---\n# Leave\n\nYou have **25** [days](https://x).\nAsk `hr`.\n\n- one\n- two\n  1. deep\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n## Sick\n\n<div>Call <b>us</b></div>\n\n```\nx = 1\n```\n";
        let extracted = extract(text, &Limits::default()).unwrap();
        assert_eq!(extracted.title.as_deref(), Some("Crew guide"));
        assert_eq!(extracted.sections.len(), 2);
        assert_eq!(extracted.sections[0].text, "You have 25 days.\nAsk hr.\n\n- one\n- two\n  1. deep\n\na | b\n1 | 2");
        assert_eq!(extracted.sections[1].headings, ["Leave", "Sick"]);
        assert_eq!(extracted.sections[1].text, "Call us\n\nx = 1");
    }
}
