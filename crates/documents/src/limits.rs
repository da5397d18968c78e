//! How much of an upload is read before it is refused. Every number says where it comes from.

use tunesmith_contract::documents::QuarantineReason;

/// Bounds on one upload. All are counted while reading: declared sizes are never trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest object, in bytes. 100 MB: the promise of the "bad input" table; it also fits a 2 GB Lambda several times.
    pub object_bytes: u64,
    /// Most bytes that one archive or compressed stream may expand to. 200 MB: a DOCX of 1,000 pages has about 15 MB of XML.
    pub expanded_bytes: u64,
    /// Most bytes of output for one byte of input inside an archive, above 1 MB of output. DEFLATE cannot exceed 1,032;
    /// XML of real documents stays below 60.
    pub expansion_ratio: u64,
    /// Most entries of an archive. Real DOCX files have tens, with pictures hundreds.
    pub archive_entries: usize,
    /// Most bytes of extracted text. 50 MB is twelve times the Bible; a JSON of it still fits into memory four times.
    pub text_bytes: u64,
    /// Most pages of a PDF. The largest manuals (processor references) have about 5,000.
    pub pdf_pages: usize,
    /// Most bytes that the content of one PDF page may expand to. Dense vector maps reach about 10 MB.
    pub pdf_page_bytes: usize,
    /// Most drawing operators over a whole PDF: bounds the work, about ten seconds on one slow core.
    pub pdf_operators: u64,
    /// Deepest nesting of HTML elements. Browsers stop at 512; deeper trees cost quadratic time in the HTML algorithm.
    pub html_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            object_bytes: 100_000_000,
            expanded_bytes: 200_000_000,
            expansion_ratio: 200,
            archive_entries: 10_000,
            text_bytes: 50_000_000,
            pdf_pages: 10_000,
            pdf_page_bytes: 32_000_000,
            pdf_operators: 50_000_000,
            html_depth: 1_000,
        }
    }
}

impl Limits {
    /// Whether an object of this size may be read at all. Ask before downloading.
    ///
    /// # Errors
    /// [`QuarantineReason::TooLarge`], or [`QuarantineReason::Empty`] for zero bytes.
    pub const fn check_size(&self, bytes: u64) -> Result<(), QuarantineReason> {
        if bytes == 0 {
            return Err(QuarantineReason::Empty);
        }
        if bytes > self.object_bytes {
            return Err(QuarantineReason::TooLarge { bytes, limit: self.object_bytes });
        }
        Ok(())
    }

    /// Whether this much text may be kept.
    pub(crate) const fn check_text(&self, bytes: u64) -> Result<(), QuarantineReason> {
        if bytes > self.text_bytes {
            return Err(QuarantineReason::TooLarge { bytes, limit: self.text_bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked_before_reading() {
        let limits = Limits::default();
        assert_eq!(limits.check_size(0), Err(QuarantineReason::Empty));
        assert_eq!(limits.check_size(100_000_000), Ok(()));
        assert_eq!(
            limits.check_size(200_000_000),
            Err(QuarantineReason::TooLarge { bytes: 200_000_000, limit: 100_000_000 })
        );
    }
}
