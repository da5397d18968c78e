//! Collects blocks of text under headings into sections; every extractor writes into one.

use tunesmith_contract::documents::{QuarantineReason, Section};

use crate::limits::Limits;

/// A document under construction.
pub struct Outline<'a> {
    limits: &'a Limits,
    /// Headings above the current position with their levels, strictly rising.
    path: Vec<(u8, String)>,
    page: Option<u32>,
    current: Option<Section>,
    sections: Vec<Section>,
    bytes: u64,
    first_heading: Option<String>,
}

impl<'a> Outline<'a> {
    pub const fn new(limits: &'a Limits) -> Self {
        Self {
            limits,
            path: Vec::new(),
            page: None,
            current: None,
            sections: Vec::new(),
            bytes: 0,
            first_heading: None,
        }
    }

    /// Ends the section with its page, so that the next one says where it begins.
    pub fn next_page(&mut self, page: u32) {
        self.close();
        self.page = Some(page);
    }

    /// Begins a section. A heading of level n ends all sections of level n and deeper.
    pub fn heading(&mut self, level: u8, text: &str) -> Result<(), QuarantineReason> {
        let text = one_line(text);
        if text.is_empty() {
            return Ok(());
        }
        self.count(text.len())?;
        self.close();
        if self.first_heading.is_none() {
            self.first_heading = Some(text.clone());
        }
        while self.path.last().is_some_and(|(above, _)| *above >= level) {
            self.path.pop();
        }
        self.path.push((level, text));
        Ok(())
    }

    /// Adds a paragraph, list item, table row or code block to the current section.
    pub fn block(&mut self, text: &str) -> Result<(), QuarantineReason> {
        let text = text.trim_end().trim_start_matches(['\n', '\r']);
        if text.trim().is_empty() {
            return Ok(());
        }
        self.count(text.len() + 2)?;
        let section = self.current.get_or_insert_with(|| Section {
            headings: self.path.iter().map(|(_, heading)| heading.clone()).collect(),
            page: self.page,
            text: String::new(),
        });
        if !section.text.is_empty() {
            section.text.push_str("\n\n");
        }
        section.text.push_str(text);
        Ok(())
    }

    /// Adds an item of a list; items that follow each other make one block.
    pub fn item(&mut self, text: &str) -> Result<(), QuarantineReason> {
        let last = self.current.as_ref().and_then(|s| s.text.rsplit("\n\n").next()).unwrap_or_default();
        if last.starts_with("- ") && text.starts_with("- ") { self.line(text) } else { self.block(text) }
    }

    /// Appends a line to the last block, e.g. a further item of a list; a new block when there is none.
    pub fn line(&mut self, text: &str) -> Result<(), QuarantineReason> {
        let Some(section) = self.current.as_mut() else { return self.block(text) };
        let text = text.trim_end();
        section.text.push('\n');
        section.text.push_str(text);
        self.count(text.len() + 1)
    }

    /// The sections in reading order, and the first heading.
    pub fn finish(mut self) -> (Vec<Section>, Option<String>) {
        self.close();
        (self.sections, self.first_heading)
    }

    fn close(&mut self) {
        self.sections.extend(self.current.take());
    }

    fn count(&mut self, bytes: usize) -> Result<(), QuarantineReason> {
        self.bytes += bytes as u64;
        self.limits.check_text(self.bytes)
    }
}

/// White space folded to single spaces.
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_of_the_same_level_replace_each_other() {
        let limits = Limits::default();
        let mut outline = Outline::new(&limits);
        outline.block("before").unwrap();
        outline.heading(1, "A").unwrap();
        outline.heading(3, " B \n b ").unwrap();
        outline.block("b1").unwrap();
        outline.block("b2").unwrap();
        outline.heading(2, "C").unwrap();
        outline.block("c").unwrap();
        let (sections, first) = outline.finish();
        assert_eq!(first.as_deref(), Some("A"));
        let got: Vec<_> = sections.iter().map(|s| (s.headings.join("/"), s.text.as_str())).collect();
        assert_eq!(got, [(String::new(), "before"), ("A/B b".into(), "b1\n\nb2"), ("A/C".into(), "c")]);
    }

    #[test]
    fn text_beyond_the_limit_is_refused() {
        let limits = Limits { text_bytes: 10, ..Limits::default() };
        let mut outline = Outline::new(&limits);
        assert!(matches!(outline.block("more than ten bytes"), Err(QuarantineReason::TooLarge { limit: 10, .. })));
    }
}
