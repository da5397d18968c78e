//! Stop texts: an answer ends before the first of them, wherever the borders between tokens are.

/// Holds back the end of an answer while it could still become a stop text.
#[derive(Debug)]
pub(crate) struct StopFilter<'a> {
    stops: &'a [String],
    held: String,
}

/// What became of a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Filtered {
    /// This text is certain; may be empty.
    Text(String),
    /// A stop text was reached; this text stands before it.
    Stopped(String),
}

impl<'a> StopFilter<'a> {
    pub fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new() }
    }

    /// Adds a piece.
    pub fn push(&mut self, piece: &str) -> Filtered {
        if self.stops.is_empty() {
            return Filtered::Text(piece.to_owned());
        }
        self.held.push_str(piece);
        // the earliest match counts, not the first in the list
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return Filtered::Stopped(std::mem::take(&mut self.held));
        }
        let certain = self.held.len() - self.longest_start();
        let rest = self.held.split_off(certain);
        Filtered::Text(std::mem::replace(&mut self.held, rest))
    }

    /// What was held back, when the answer ends for another reason.
    pub fn finish(self) -> String {
        self.held
    }

    /// Length of the longest end of the held text that begins a stop text.
    fn longest_start(&self) -> usize {
        self.held
            .char_indices()
            .map(|(at, _)| &self.held[at..])
            .find(|end| self.stops.iter().any(|stop| stop.starts_with(end)))
            .map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in pieces of `size` characters.
    fn answer(text: &str, stops: &[&str], size: usize) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut filter = StopFilter::new(&stops);
        let mut shown = String::new();
        for piece in text.chars().collect::<Vec<_>>().chunks(size) {
            match filter.push(&piece.iter().collect::<String>()) {
                Filtered::Text(text) => shown.push_str(&text),
                Filtered::Stopped(text) => return (shown + &text, true),
            }
        }
        (shown + &filter.finish(), false)
    }

    #[test]
    fn the_borders_between_pieces_do_not_matter() {
        for size in 1..12 {
            assert_eq!(answer("one. two### three", &["###", "zzz"], size), ("one. two".into(), true));
            assert_eq!(answer("aab aaab", &["aaab"], size), ("aab ".into(), true), "{size}");
            assert_eq!(answer("Größe: ß und ", &["ß!"], size), ("Größe: ß und ".into(), false));
            assert_eq!(answer("only the beginning ##", &["###"], size), ("only the beginning ##".into(), false));
            assert_eq!(answer("late early", &["early", "late"], size), (String::new(), true), "{size}");
        }
    }

    #[test]
    fn nothing_is_held_back_without_need() {
        let stops = ["###".to_owned()];
        let mut filter = StopFilter::new(&stops);
        assert_eq!(filter.push("word #"), Filtered::Text("word ".into()));
        assert_eq!(filter.push("1 x"), Filtered::Text("#1 x".into()));
    }
}
