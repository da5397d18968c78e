//! Fragments to lines, in the order in which a person reads them: rows by baseline, columns by recursive cuts.

use std::collections::{HashMap, HashSet};

use super::content::Fragment;

/// One line of one column.
#[derive(Debug, Clone)]
pub struct Line {
    pub text: String,
    /// Left and right end, in points.
    pub left: f64,
    pub right: f64,
    /// Baseline; larger is higher.
    pub baseline: f64,
    /// Font size of most of its characters.
    pub size: f64,
    pub bold: bool,
}

/// A gap wider than this share of the font size is a space. Kerning stays below 0.1, the narrowest word spaces of
/// justified text are about 0.2; poppler uses 0.1 with exact widths, ours are sometimes guessed.
const WORD_GAP: f64 = 0.15;

/// A gap wider than this many font sizes may lie between columns.
const COLUMN_GAP: f64 = 0.9;

/// Baselines closer than this share of the font size are one row: holds subscripts and superscripts.
const ROW_TOLERANCE: f64 = 0.4;

/// Fewest lines on each side of a cut between columns.
const MIN_COLUMN_LINES: usize = 4;

/// Fewest characters of a column's median line; cells of tables are shorter and stay in their rows.
const MIN_COLUMN_CHARS: usize = 18;

/// Beyond this many segments a page is no prose, and cutting it would cost quadratic time.
const MAX_SEGMENTS: usize = 3_000;

/// Segments of one page: pieces of lines up to gaps that may lie between columns. Text that runs in another direction than
/// most of the page is left out: watermarks, axis labels.
pub fn segments_of(mut fragments: Vec<Fragment>) -> Vec<Line> {
    turn_upright(&mut fragments);
    segments(fragments)
}

/// Lines of one page in reading order.
pub fn in_reading_order(segments: Vec<Line>) -> Vec<Line> {
    let mut ordered = Vec::with_capacity(segments.len());
    if segments.len() <= MAX_SEGMENTS {
        cut(segments, 0, &mut ordered);
    } else {
        rows_of(segments, &mut ordered);
    }
    ordered
}

fn turn_upright(fragments: &mut Vec<Fragment>) {
    let mut chars = [0usize; 4];
    for fragment in fragments.iter() {
        chars[usize::from(fragment.turn)] += fragment.text.len();
    }
    let most = (0..4u8).max_by_key(|turn| (chars[usize::from(*turn)], std::cmp::Reverse(*turn))).unwrap_or(0);
    fragments.retain(|f| f.turn == most);
    for f in fragments {
        (f.x, f.y) = match most {
            1 => (f.y, -f.x),
            2 => (-f.x, -f.y),
            3 => (-f.y, f.x),
            _ => (f.x, f.y),
        };
    }
}

/// Joins fragments on one baseline up to gaps that may lie between columns.
fn segments(mut fragments: Vec<Fragment>) -> Vec<Line> {
    fragments.sort_by(|a, b| b.y.total_cmp(&a.y));
    let mut segments = Vec::new();
    let mut row: Vec<Fragment> = Vec::new();
    let mut baseline = (0.0, 0.0);
    for fragment in fragments {
        if !row.is_empty()
            && (baseline.0 - fragment.y).abs() > ROW_TOLERANCE * f64::max(baseline.1, fragment.size * 0.5)
        {
            row_segments(std::mem::take(&mut row), &mut segments);
        }
        if row.is_empty() || fragment.size > baseline.1 {
            baseline = (fragment.y, fragment.size);
        }
        row.push(fragment);
    }
    row_segments(row, &mut segments);
    segments
}

/// Number of characters of each size (in half points) and weight.
type Styles = HashMap<(u64, bool), usize>;

fn row_segments(mut row: Vec<Fragment>, segments: &mut Vec<Line>) {
    row.sort_by(|a, b| a.x.total_cmp(&b.x));
    let mut open: Option<(Line, Styles)> = None;
    let mut last: Option<(String, f64)> = None;
    for fragment in row {
        let visible = fragment.text.trim_matches([' ', '\u{a0}']);
        // Some producers draw bold text twice, a hair apart.
        let twice = last
            .as_ref()
            .is_some_and(|(text, x)| *text == fragment.text && (fragment.x - x).abs() < 0.1 * fragment.size);
        if twice {
            continue;
        }
        if let Some((line, _)) = open.as_mut() {
            let gap = fragment.x - line.right;
            let size = f64::max(line.size, fragment.size);
            if gap > COLUMN_GAP * size && !visible.is_empty() {
                close(open.take(), segments);
            } else if gap > WORD_GAP * size && !line.text.ends_with(' ') && !fragment.text.starts_with(' ') {
                line.text.push(' ');
            }
        }
        if open.is_none() && visible.is_empty() {
            continue;
        }
        let (line, sizes) = open.get_or_insert_with(|| {
            let line = Line {
                text: String::new(),
                left: fragment.x,
                right: fragment.x,
                baseline: fragment.y,
                size: fragment.size,
                bold: fragment.bold,
            };
            (line, HashMap::new())
        });
        if fragment.size > line.size {
            line.size = fragment.size;
            line.baseline = fragment.y;
        }
        line.text.push_str(&fragment.text);
        if !visible.is_empty() {
            line.right = line.right.max(fragment.x + fragment.width);
            *sizes.entry(((fragment.size * 2.0).round() as u64, fragment.bold)).or_default() += visible.chars().count();
        }
        last = Some((fragment.text, fragment.x));
    }
    close(open, segments);
}

fn close(open: Option<(Line, Styles)>, segments: &mut Vec<Line>) {
    let Some((mut line, sizes)) = open else { return };
    if let Some(((half_points, bold), _)) = sizes.into_iter().max_by_key(|((size, bold), chars)| (*chars, *size, *bold))
    {
        line.size = half_points as f64 / 2.0;
        line.bold = bold;
    }
    line.text = spelled_out(line.text.trim());
    if !line.text.is_empty() {
        segments.push(line);
    }
}

/// Ligatures as letters, so that words are found and hyphens join.
fn spelled_out(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match crate::clean::ligature(c) {
            Some(letters) => out.push_str(letters),
            None => out.push(c),
        }
    }
    out
}

/// Cuts a region between columns, else at its widest horizontal gap, until nothing is left to cut.
fn cut(region: Vec<Line>, depth: usize, out: &mut Vec<Line>) {
    if region.len() >= 2 * MIN_COLUMN_LINES && depth < 200 {
        if let Some(x) = column_cut(&region) {
            let (left, right) = region.into_iter().partition(|line| (line.left + line.right) / 2.0 < x);
            cut(left, depth + 1, out);
            cut(right, depth + 1, out);
            return;
        }
        if has_side_by_side(&region)
            && let Some(y) = widest_row_gap(&region)
        {
            let (above, below) = region.into_iter().partition(|line| line.baseline > y);
            cut(above, depth + 1, out);
            cut(below, depth + 1, out);
            return;
        }
    }
    rows_of(region, out);
}

/// Whether any two segments share a row: without them there is nothing that columns could mix up.
fn has_side_by_side(region: &[Line]) -> bool {
    region.windows(2).any(|pair| same_row(&pair[0], &pair[1]))
}

fn same_row(a: &Line, b: &Line) -> bool {
    (a.baseline - b.baseline).abs() <= ROW_TOLERANCE * f64::max(a.size, b.size)
}

/// A vertical line that no segment crosses, with enough prose on both sides; the widest such gap.
fn column_cut(region: &[Line]) -> Option<f64> {
    let mut spans: Vec<(f64, f64)> = region.iter().map(|line| (line.left, line.right)).collect();
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let size = median(region.iter().map(|line| line.size))?;
    let mut gaps = Vec::new();
    let mut reach = spans.first()?.1;
    for (left, right) in spans {
        if left - reach > COLUMN_GAP * size {
            gaps.push((left - reach, (left + reach) / 2.0));
        }
        reach = reach.max(right);
    }
    gaps.sort_by(|a, b| b.0.total_cmp(&a.0));
    gaps.into_iter().map(|(_, x)| x).find(|x| {
        let (left, right): (Vec<&Line>, Vec<&Line>) =
            region.iter().partition(|line| (line.left + line.right) / 2.0 < *x);
        is_column(&left) && is_column(&right)
    })
}

fn is_column(lines: &[&Line]) -> bool {
    let chars = median(lines.iter().map(|line| line.text.chars().count() as f64));
    lines.len() >= MIN_COLUMN_LINES && chars.is_some_and(|chars| chars >= MIN_COLUMN_CHARS as f64)
}

/// The middle of the widest gap between rows, which must leave lines on both sides.
fn widest_row_gap(region: &[Line]) -> Option<f64> {
    let mut baselines: Vec<f64> = region.iter().map(|line| line.baseline).collect();
    baselines.sort_by(|a, b| b.total_cmp(a));
    let gaps = baselines.windows(2).map(|pair| (pair[0] - pair[1], f64::midpoint(pair[0], pair[1])));
    gaps.filter(|(gap, _)| *gap > 1.0).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, y)| y)
}

/// Emits a region row by row, joining segments of one row.
fn rows_of(mut region: Vec<Line>, out: &mut Vec<Line>) {
    region.sort_by(|a, b| b.baseline.total_cmp(&a.baseline));
    let mut row: Vec<Line> = Vec::new();
    for line in region {
        if row.first().is_some_and(|first| !same_row(first, &line)) {
            emit(&mut row, out);
        }
        row.push(line);
    }
    emit(&mut row, out);
}

fn emit(row: &mut Vec<Line>, out: &mut Vec<Line>) {
    row.sort_by(|a, b| a.left.total_cmp(&b.left));
    let mut parts = row.drain(..);
    let Some(mut line) = parts.next() else { return };
    for part in parts {
        line.text.push(' ');
        line.text.push_str(&part.text);
        line.right = line.right.max(part.right);
        line.bold &= part.bold;
    }
    out.push(line);
}

/// The middle value.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Removes page numbers and running titles: segments in the two highest or lowest rows whose text, digits aside, stands at
/// the same edge of at least three pages. Of two pages, when it holds a number or stands at the very same place.
pub fn remove_running_titles(pages: &mut [Vec<Line>]) {
    // The title of the first page often says the same in larger letters, and stays.
    let size = |line: &Line| (line.size * 2.0).round() as u64;
    let place = |line: &Line| (line.left.round() as i64, line.baseline.round() as i64);
    let mut seen: HashMap<(bool, u64, String), usize> = HashMap::new();
    let mut places: HashMap<(String, (i64, i64)), usize> = HashMap::new();
    let edges: Vec<Vec<Option<bool>>> = pages.iter().map(|page| edges(page)).collect();
    for (page, edges) in pages.iter().zip(&edges) {
        let at_edge = page.iter().zip(edges).filter_map(|(line, edge)| Some((line, (*edge)?)));
        let mut keys = HashSet::new();
        for (line, edge) in at_edge {
            *places.entry((line.text.clone(), place(line))).or_default() += 1;
            keys.insert((edge, size(line), without_digits(&line.text)));
        }
        for key in keys {
            *seen.entry(key).or_default() += 1;
        }
    }
    let both = pages.len() == 2;
    for (page, edges) in pages.iter_mut().zip(edges) {
        let mut edges = edges.into_iter();
        page.retain(|line| {
            let Some(edge) = edges.next().flatten() else { return true };
            let key = without_digits(&line.text);
            let same = both && places.get(&(line.text.clone(), place(line))).copied() == Some(2);
            let numbered = both && key.contains('#');
            let count = seen.get(&(edge, size(line), key)).copied().unwrap_or(0);
            !(count >= 3 || same || (numbered && count == 2))
        });
    }
}

/// Of each segment whether it stands in the two highest (`true`) or two lowest (`false`) rows of its page. A page of fewer
/// than five rows has no edges: nothing would be left of it.
fn edges(page: &[Line]) -> Vec<Option<bool>> {
    let mut rows: Vec<f64> = page.iter().map(|line| line.baseline).collect();
    rows.sort_by(|a, b| b.total_cmp(a));
    rows.dedup_by(|a, b| (*a - *b).abs() < 2.0);
    let edge = |line: &Line| match rows.as_slice() {
        [_, second, .., last_but_one, _] if rows.len() >= 5 => {
            if line.baseline >= second - 2.0 {
                Some(true)
            } else {
                (line.baseline <= last_but_one + 2.0).then_some(false)
            }
        }
        _ => None,
    };
    page.iter().map(edge).collect()
}

/// The text with every number, Roman ones alone on a line included, as `#`.
fn without_digits(text: &str) -> String {
    if !text.is_empty() && text.len() <= 7 && text.chars().all(|c| "ivxlc".contains(c)) {
        return "#".into();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_ascii_digit() => {
                if !out.ends_with('#') {
                    out.push('#');
                }
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(text: &str, x: f64, y: f64) -> Fragment {
        Fragment { text: text.into(), x, y, width: text.len() as f64 * 5.0, size: 10.0, turn: 0, bold: false }
    }

    fn read(fragments: Vec<Fragment>) -> Vec<Line> {
        in_reading_order(segments_of(fragments))
    }

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|l| l.text.as_str()).collect()
    }

    #[test]
    fn kerned_pieces_are_one_word_and_gaps_are_spaces() {
        let lines = read(vec![fragment("Fer", 0.0, 0.0), fragment("ry", 15.3, 0.0), fragment("pier", 28.0, 0.0)]);
        assert_eq!(texts(&lines), ["Ferry pier"]);
    }

    #[test]
    fn two_columns_below_a_title_are_read_one_after_the_other() {
        let mut fragments =
            vec![fragment("A title that runs over the whole width of the page, as titles do today", 0.0, 500.0)];
        for row in 0..6 {
            let y = 470.0 - 12.0 * f64::from(row);
            fragments.push(fragment(&format!("left column, line no {row}"), 0.0, y));
            fragments.push(fragment(&format!("right column, line no {row}"), 200.0, y));
        }
        let lines = read(fragments);
        assert!(lines[0].text.starts_with("A title"));
        assert!(lines[1..7].iter().all(|l| l.text.starts_with("left")), "{:?}", texts(&lines));
        assert!(lines[7..].iter().all(|l| l.text.starts_with("right")));
    }

    #[test]
    fn a_table_stays_in_its_rows() {
        let rows =
            [("Monday", "8:00"), ("Tuesday", "9:00"), ("Wednesday", "9:30"), ("Thursday", "9:00"), ("Friday", "7:00")];
        let fragments = rows.iter().zip(0..).flat_map(|((day, time), row)| {
            let y = 100.0 - 12.0 * f64::from(row);
            [fragment(day, 0.0, y), fragment(time, 150.0, y)]
        });
        assert_eq!(texts(&read(fragments.collect()))[..2], ["Monday 8:00", "Tuesday 9:00"]);
    }

    #[test]
    fn a_sideways_page_is_turned_and_a_watermark_dropped() {
        let mut fragments: Vec<Fragment> = (0..3)
            .map(|row| Fragment {
                turn: 1,
                ..fragment(&format!("sideways line {row}"), 100.0 + 12.0 * f64::from(row), 0.0)
            })
            .collect();
        fragments.push(fragment("DRAFT", 0.0, 0.0));
        assert_eq!(texts(&read(fragments)), ["sideways line 0", "sideways line 1", "sideways line 2"]);
    }

    #[test]
    fn running_titles_and_page_numbers_go() {
        let mut pages: Vec<Vec<Line>> = (1..=4)
            .map(|page| {
                let body = (0..6).map(|row| {
                    fragment(
                        &format!("page {} says words {row}", ["a", "b", "c", "d"][page - 1]),
                        0.0,
                        400.0 - 12.0 * f64::from(row),
                    )
                });
                let edges = [fragment("Crew handbook", 0.0, 500.0), fragment(&format!("Page {page} of 4"), 0.0, 20.0)];
                segments_of(body.chain(edges).collect())
            })
            .collect();
        remove_running_titles(&mut pages);
        assert!(pages.iter().all(|page| page.len() == 6 && page.iter().all(|l| l.text.contains("says words"))));
    }
}
