//! Advance widths of the standard fonts that PDF viewers bring along (ISO 32000-1, 9.6.2.2): files may leave them out, and
//! without them columns and spaces cannot be told apart. The numbers are those of Adobe's Core 14 AFM files.

/// Widths of the characters 32 to 126, in thousandths of the font size.
type Ascii = [u16; 95];

/// The width of a character in the standard font that comes closest to the named one; 600 in a typewriter face.
pub fn standard_width(font: &str, c: char) -> f64 {
    let name = font.to_lowercase();
    if ["courier", "mono", "typewriter"].iter().any(|mark| name.contains(mark)) {
        return 600.0;
    }
    let (bold, italic) = (name.contains("bold"), name.contains("italic") || name.contains("oblique"));
    let table = match (
        ["times", "serif", "roman", "georgia"].iter().any(|mark| name.contains(mark)) && !name.contains("sans"),
        bold,
        italic,
    ) {
        (true, false, false) => &TIMES,
        (true, true, false) => &TIMES_BOLD,
        (true, false, true) => &TIMES_ITALIC,
        (true, true, true) => &TIMES_BOLD_ITALIC,
        (false, true, _) => &HELVETICA_BOLD,
        (false, false, _) => &HELVETICA,
    };
    let c = match c {
        '‘' | '’' => '\'',
        '“' | '”' => '"',
        '–' => '0',
        '—' | '…' => return 1000.0,
        '•' => return 350.0,
        '\u{a0}' => ' ',
        other => other,
    };
    // An accented letter is as wide as its base.
    let base = unicode_normalization::char::decompose_canonical;
    let mut first = c;
    let mut seen = false;
    base(c, |part| {
        if !seen {
            first = part;
            seen = true;
        }
    });
    let index = (first as usize).checked_sub(32);
    index.and_then(|i| table.get(i)).map_or(556.0, |w| f64::from(*w))
}

#[rustfmt::skip]
const HELVETICA: Ascii = [
    278, 278, 355, 556, 556, 889, 667, 222, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556,
    556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667, 611, 778,
    722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278,
    278, 278, 469, 556, 222, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556,
    556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
];

#[rustfmt::skip]
const HELVETICA_BOLD: Ascii = [
    278, 333, 474, 556, 556, 889, 722, 278, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556,
    556, 556, 556, 556, 556, 556, 333, 333, 584, 584, 584, 611, 975, 722, 722, 722, 722, 667, 611, 778,
    722, 278, 556, 722, 611, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 333,
    278, 333, 584, 556, 278, 556, 611, 556, 611, 556, 333, 611, 611, 278, 278, 556, 278, 889, 611, 611,
    611, 611, 389, 556, 333, 611, 556, 778, 556, 556, 500, 389, 280, 389, 584,
];

#[rustfmt::skip]
const TIMES: Ascii = [
    250, 333, 408, 500, 500, 833, 778, 333, 333, 333, 500, 564, 250, 333, 250, 278, 500, 500, 500, 500,
    500, 500, 500, 500, 500, 500, 278, 278, 564, 564, 564, 444, 921, 722, 667, 667, 722, 611, 556, 722,
    722, 333, 389, 722, 611, 889, 722, 722, 556, 722, 667, 556, 611, 722, 722, 944, 722, 722, 611, 333,
    278, 333, 469, 500, 333, 444, 500, 444, 500, 444, 333, 500, 500, 278, 278, 500, 278, 778, 500, 500,
    500, 500, 333, 389, 278, 500, 500, 722, 500, 500, 444, 480, 200, 480, 541,
];

#[rustfmt::skip]
const TIMES_BOLD: Ascii = [
    250, 333, 555, 500, 500, 1000, 833, 333, 333, 333, 500, 570, 250, 333, 250, 278, 500, 500, 500, 500,
    500, 500, 500, 500, 500, 500, 333, 333, 570, 570, 570, 500, 930, 722, 667, 722, 722, 667, 611, 778,
    778, 389, 500, 778, 667, 944, 722, 778, 611, 778, 722, 556, 667, 722, 722, 1000, 722, 722, 667, 333,
    278, 333, 581, 500, 333, 500, 556, 444, 556, 444, 333, 500, 556, 278, 333, 556, 278, 833, 556, 500,
    556, 556, 444, 389, 333, 556, 500, 722, 500, 500, 444, 394, 220, 394, 520,
];

#[rustfmt::skip]
const TIMES_ITALIC: Ascii = [
    250, 333, 420, 500, 500, 833, 778, 333, 333, 333, 500, 675, 250, 333, 250, 278, 500, 500, 500, 500,
    500, 500, 500, 500, 500, 500, 333, 333, 675, 675, 675, 500, 920, 611, 611, 667, 722, 611, 611, 722,
    722, 333, 444, 667, 556, 833, 667, 722, 611, 722, 611, 500, 556, 722, 611, 833, 611, 556, 556, 389,
    278, 389, 422, 500, 333, 500, 500, 444, 500, 444, 278, 500, 500, 278, 278, 444, 278, 722, 500, 500,
    500, 500, 389, 389, 278, 500, 444, 667, 444, 444, 389, 400, 275, 400, 541,
];

#[rustfmt::skip]
const TIMES_BOLD_ITALIC: Ascii = [
    250, 389, 555, 500, 500, 833, 778, 333, 333, 333, 500, 570, 250, 333, 250, 278, 500, 500, 500, 500,
    500, 500, 500, 500, 500, 500, 333, 333, 570, 570, 570, 500, 832, 667, 667, 667, 722, 667, 667, 722,
    778, 389, 500, 667, 611, 889, 722, 722, 611, 722, 667, 556, 611, 722, 667, 889, 667, 611, 611, 333,
    278, 333, 570, 500, 333, 500, 500, 444, 500, 444, 333, 500, 556, 278, 278, 500, 278, 778, 556, 500,
    500, 500, 389, 389, 278, 556, 444, 667, 500, 444, 389, 348, 220, 348, 570,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_adobes() {
        for (font, c, width) in [
            ("Helvetica", 'W', 944.0),
            ("Helvetica-Bold", 'a', 556.0),
            ("Times-Roman", 'm', 778.0),
            ("ABCDEF+Times-BoldItalic", 'W', 889.0),
            ("Courier", 'i', 600.0),
            ("Times-Roman", 'é', 444.0),
            ("Unknown", '中', 556.0),
        ] {
            assert_eq!(standard_width(font, c), width, "{font} {c}");
        }
    }
}
