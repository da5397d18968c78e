//! DOCX (Office Open XML, ECMA-376 part 1, 17): headings, paragraphs, lists and tables of the main document part.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Cursor, Read},
};

use quick_xml::{
    Reader as XmlReader,
    events::{BytesStart, Event},
};
use tunesmith_contract::documents::QuarantineReason as Reason;
use zip::{ZipArchive, result::ZipError};

use super::Extracted;
use crate::{limits::Limits, outline::Outline};

type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// Reads the main part with its styles. Headers, footers, comments, deleted text and pictures are left out.
///
/// Parts are unpacked as a stream through a counter: sizes that the archive declares are not believed.
pub fn extract(bytes: &[u8], limits: &Limits) -> Result<Extracted, Reason> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| damaged(&error))?;
    if archive.len() > limits.archive_entries {
        return Err(Reason::Damaged {
            detail: format!("{} entries, the limit is {}", archive.len(), limits.archive_entries),
        });
    }
    let declared = archive.decompressed_size().unwrap_or(0);
    if declared > u128::from(limits.expanded_bytes) {
        return Err(Reason::ZipBomb { unpacked: 0, limit: limits.expanded_bytes });
    }
    let mut budget = Budget { spent: 0, limits };
    if archive.index_for_name("word/document.xml").is_none() {
        // Not Word's: unpack through the counter, so that a bomb is called a bomb.
        for index in 0..archive.len() {
            let Ok(entry) = archive.by_index(index) else { continue };
            budget.drain(entry)?;
        }
        return Err(Reason::Mislabelled { claimed: "DOCX".into(), found: "ZIP archive".into() });
    }
    let styles = headings_of_styles(&mut archive, &mut budget)?;
    let mut body = Body { outline: Outline::new(limits), styles, ..Body::new(limits) };
    budget.part(&mut archive, "word/document.xml", &mut |event| body.event(event))?;
    for notes in ["word/footnotes.xml", "word/endnotes.xml"] {
        if archive.index_for_name(notes).is_some() {
            budget.part(&mut archive, notes, &mut |event| body.event(event))?;
        }
    }
    body.flush()?;
    let (sections, heading) = body.outline.finish();
    Ok(Extracted { title: body.title.or(heading), sections, ..Extracted::default() })
}

fn damaged(error: &ZipError) -> Reason {
    match error {
        ZipError::UnsupportedArchive(what) if what.to_lowercase().contains("password") => Reason::Encrypted,
        ZipError::InvalidPassword => Reason::Encrypted,
        other => Reason::Damaged { detail: other.to_string() },
    }
}

/// Counts what has been unpacked of one archive.
struct Budget<'a> {
    spent: u64,
    limits: &'a Limits,
}

impl Budget<'_> {
    /// Streams the XML events of one part into `sink`.
    fn part(
        &mut self,
        archive: &mut Archive<'_>,
        name: &str,
        sink: &mut dyn FnMut(&Event<'_>) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        let entry = archive.by_name(name).map_err(|error| damaged(&error))?;
        let allowed = self.allowed(entry.compressed_size());
        let counted = Counted { inner: entry, left: allowed, exceeded: false };
        let mut reader = XmlReader::from_reader(BufReader::new(counted));
        reader.config_mut().check_end_names = false;
        let mut buffer = Vec::new();
        let outcome = loop {
            buffer.clear();
            match reader.read_event_into(&mut buffer) {
                Ok(Event::Eof) => break Ok(()),
                Ok(event) => sink(&event)?,
                Err(error) => break Err(error.to_string()),
            }
        };
        let counted = reader.into_inner().into_inner();
        self.spent += allowed - counted.left;
        if counted.exceeded {
            // what was allowed is spent: by the ratio, or by what was left of the whole limit
            return Err(Reason::ZipBomb { unpacked: self.spent, limit: self.spent.min(self.limits.expanded_bytes) });
        }
        outcome.map_err(|detail| Reason::Damaged { detail: format!("{name}: {detail}") })
    }

    /// Unpacks an entry into nothing, to learn its size.
    fn drain(&mut self, entry: impl Read + Sized) -> Result<(), Reason> {
        let mut counted =
            BufReader::new(Counted { inner: entry, left: self.limits.expanded_bytes - self.spent, exceeded: false });
        while let Ok(read) = counted.fill_buf().map(<[u8]>::len) {
            if read == 0 {
                break;
            }
            counted.consume(read);
            self.spent += read as u64;
        }
        if counted.get_ref().exceeded {
            return Err(Reason::ZipBomb { unpacked: self.spent, limit: self.limits.expanded_bytes });
        }
        Ok(())
    }

    fn allowed(&self, compressed: u64) -> u64 {
        let by_ratio = compressed.saturating_mul(self.limits.expansion_ratio).max(1_000_000);
        by_ratio.min(self.limits.expanded_bytes.saturating_sub(self.spent))
    }
}

/// A reader that fails, instead of ending, when more comes than is allowed.
struct Counted<R> {
    inner: R,
    left: u64,
    exceeded: bool,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => {
                self.left = left;
                Ok(read)
            }
            None => {
                self.left = 0;
                self.exceeded = true;
                Err(std::io::Error::other("expands beyond the limit"))
            }
        }
    }
}

/// Style id to heading level, from the outline level or the built-in name of each paragraph style (17.7.4, 17.3.1.20).
fn headings_of_styles(archive: &mut Archive<'_>, budget: &mut Budget<'_>) -> Result<HashMap<String, u8>, Reason> {
    let mut levels = HashMap::new();
    if archive.index_for_name("word/styles.xml").is_none() {
        return Ok(levels);
    }
    let mut id = String::new();
    budget.part(archive, "word/styles.xml", &mut |event| {
        if let Event::Start(tag) | Event::Empty(tag) = event {
            match local(tag) {
                "style" => id = attribute(tag, "styleId").unwrap_or_default(),
                "name" => {
                    let name = attribute(tag, "val").unwrap_or_default().to_lowercase();
                    if let Some(level) = heading_name(&name) {
                        levels.insert(id.clone(), level);
                    }
                }
                "outlineLvl" => {
                    if let Some(level) = attribute(tag, "val").and_then(|v| v.parse::<u8>().ok()).filter(|l| *l < 9) {
                        levels.insert(id.clone(), level + 1);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    Ok(levels)
}

/// The heading level that a style's built-in name says; a title stands above all headings.
fn heading_name(name: &str) -> Option<u8> {
    if name == "title" {
        return Some(0);
    }
    name.strip_prefix("heading").and_then(|n| n.trim().parse().ok()).filter(|n| (1..=9).contains(n))
}

fn local<'a>(tag: &'a BytesStart<'_>) -> &'a str {
    let name: &str = tag.name().into_inner();
    name.rsplit(':').next().unwrap_or(name)
}

fn attribute(tag: &BytesStart<'_>, wanted: &str) -> Option<String> {
    tag.attributes().flatten().find_map(|a| {
        let name: &str = a.key.into_inner();
        (name.rsplit(':').next() == Some(wanted)).then(|| {
            a.normalized_value(quick_xml::XmlVersion::Implicit1_0).map(std::borrow::Cow::into_owned).unwrap_or_default()
        })
    })
}

/// The state of reading a document part.
struct Body<'a> {
    outline: Outline<'a>,
    styles: HashMap<String, u8>,
    title: Option<String>,
    paragraph: String,
    level: Option<u8>,
    list: Option<usize>,
    in_text: bool,
    /// Inside deleted text, field codes or the second form of a drawing: how deep.
    ignored: usize,
    /// Open tables; the cells of a row are joined by ` | `.
    tables: usize,
    rows: String,
    /// Whether the last block was a list item, so that the next one joins it.
    after_item: bool,
}

impl<'a> Body<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self {
            outline: Outline::new(limits),
            styles: HashMap::new(),
            title: None,
            paragraph: String::new(),
            level: None,
            list: None,
            in_text: false,
            ignored: 0,
            tables: 0,
            rows: String::new(),
            after_item: false,
        }
    }

    fn event(&mut self, event: &Event<'_>) -> Result<(), Reason> {
        match event {
            Event::Start(tag) => self.open(tag, false),
            Event::Empty(tag) => {
                self.open(tag, true);
                if local(tag) == "p" {
                    self.end_paragraph()?;
                }
            }
            Event::Text(text) if self.in_text && self.ignored == 0 => self.paragraph.push_str(text),
            Event::CData(text) if self.in_text && self.ignored == 0 => self.paragraph.push_str(text),
            Event::GeneralRef(entity) if self.in_text && self.ignored == 0 => {
                if let Ok(Some(c)) = entity.resolve_char_ref() {
                    self.paragraph.push(c);
                } else if let Some(text) = quick_xml::escape::resolve_predefined_entity(entity) {
                    self.paragraph.push_str(text);
                }
            }
            Event::End(tag) => {
                let name: &str = tag.name().into_inner();
                self.close(name.rsplit(':').next().unwrap_or(name).to_owned().as_str())?;
            }
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, tag: &BytesStart<'_>, empty: bool) {
        match local(tag) {
            "del" | "Fallback" | "moveFrom" if !empty => self.ignored += 1,
            "t" => self.in_text = !empty,
            "tab" if self.ignored == 0 => self.paragraph.push('\t'),
            "br" | "cr" if self.ignored == 0 => self.paragraph.push('\n'),
            "noBreakHyphen" => self.paragraph.push('-'),
            "pStyle" => {
                let style = attribute(tag, "val").unwrap_or_default();
                self.level =
                    self.styles.get(&style).copied().or_else(|| heading_name(&style.to_lowercase())).or(self.level);
                if style.to_lowercase().starts_with("list") && self.list.is_none() {
                    self.list = Some(0);
                }
            }
            "outlineLvl" => {
                let level = attribute(tag, "val").and_then(|v| v.parse::<u8>().ok());
                self.level = level.filter(|l| *l < 9).map(|l| l + 1).or(self.level);
            }
            "ilvl" => self.list = attribute(tag, "val").and_then(|v| v.parse().ok()),
            "numId" if attribute(tag, "val").as_deref() != Some("0") => self.list = self.list.or(Some(0)),
            "tbl" if !empty => self.tables += 1,
            _ => {}
        }
    }

    fn close(&mut self, name: &str) -> Result<(), Reason> {
        match name {
            "del" | "Fallback" | "moveFrom" => self.ignored = self.ignored.saturating_sub(1),
            "t" => self.in_text = false,
            "p" => self.end_paragraph()?,
            "tc" if self.tables > 0 => {
                let end = self.rows.trim_end().len();
                self.rows.truncate(end);
                self.rows.push_str(" | ");
            }
            "tr" if self.tables > 0 => {
                let end = self.rows.trim_end_matches([' ', '|']).len();
                self.rows.truncate(end);
                self.rows.push('\n');
            }
            "tbl" => {
                self.tables = self.tables.saturating_sub(1);
                if self.tables == 0 {
                    let rows = std::mem::take(&mut self.rows);
                    self.outline.block(&rows)?;
                    self.after_item = false;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end_paragraph(&mut self) -> Result<(), Reason> {
        let text = std::mem::take(&mut self.paragraph);
        let (level, list) = (self.level.take(), self.list.take());
        if text.trim().is_empty() {
            return Ok(());
        }
        if self.tables > 0 {
            self.rows.push_str(&crate::outline::one_line(&text));
            self.rows.push(' ');
            return Ok(());
        }
        if let Some(level) = level {
            if level == 0 && self.title.is_none() {
                self.title = Some(crate::outline::one_line(&text));
            }
            self.after_item = false;
            return self.outline.heading(level, &text);
        }
        match list {
            Some(depth) => {
                let item = format!("{}- {}", "  ".repeat(depth.min(8)), text.trim());
                if std::mem::replace(&mut self.after_item, true) {
                    self.outline.line(&item)
                } else {
                    self.outline.block(&item)
                }
            }
            None => {
                self.after_item = false;
                self.outline.block(text.trim())
            }
        }
    }

    fn flush(&mut self) -> Result<(), Reason> {
        self.tables = 0;
        self.end_paragraph()?;
        let rows = std::mem::take(&mut self.rows);
        self.outline.block(&rows)
    }
}
