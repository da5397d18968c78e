//! BM25 over an inverted index (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009).
//!
//! Vectors find what means the same; words find what is called the same: form numbers, product names, abbreviations.

use std::collections::HashMap;

/// Saturation of a word's count and weight of the length: the usual values, also Lucene's.
const K1: f32 = 1.2;
const B: f32 = 0.75;

/// Which texts hold which words how often.
pub(crate) struct Keywords {
    /// For each word the texts that hold it, ascending, with the number of times.
    postings: HashMap<String, Vec<(u32, u32)>>,
    lengths: Vec<u32>,
    mean_length: f32,
}

impl Keywords {
    pub fn new<T: AsRef<str>>(texts: impl Iterator<Item = T>) -> Self {
        let mut postings: HashMap<String, Vec<(u32, u32)>> = HashMap::new();
        let mut lengths = Vec::new();
        for (text, number) in texts.zip(0u32..) {
            let mut length = 0;
            for word in words(text.as_ref()) {
                length += 1;
                let places = postings.entry(word).or_default();
                match places.last_mut() {
                    Some((last, count)) if *last == number => *count += 1,
                    _ => places.push((number, 1)),
                }
            }
            lengths.push(length);
        }
        let total: u64 = lengths.iter().map(|&n| u64::from(n)).sum();
        let mean_length = (total as f32 / lengths.len().max(1) as f32).max(1.0);
        Self { postings, lengths, mean_length }
    }

    /// The texts that share a word with the question, by number.
    pub fn score(&self, question: &str) -> HashMap<u32, KeywordScore> {
        let mut scores: HashMap<u32, KeywordScore> = HashMap::new();
        let mut asked: Vec<String> = words(question).collect();
        asked.sort_unstable();
        asked.dedup();
        let all = self.lengths.len() as f32;
        let mut asked_rarity = 0.0;
        for word in &asked {
            let places = self.postings.get(word).map_or(&[][..], Vec::as_slice);
            let holding = places.len() as f32;
            // Lucene's form: never negative, so a word in more than half of the texts does not count against them
            let rarity = (1.0 + (all - holding + 0.5) / (holding + 0.5)).ln();
            asked_rarity += rarity;
            for &(text, count) in places {
                let length = self.lengths.get(text as usize).copied().unwrap_or_default() as f32;
                let count = count as f32;
                let gain = count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length / self.mean_length));
                let score = scores.entry(text).or_default();
                score.bm25 += rarity * gain;
                score.coverage += rarity;
            }
        }
        for score in scores.values_mut() {
            score.coverage /= asked_rarity;
        }
        scores
    }
}

/// How well a text fits a question by its words.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct KeywordScore {
    /// BM25, above 0.
    pub bm25: f32,
    /// Share of the question's words that the text holds, each weighted by its rarity; up to 1. Near 0 for a text that
    /// shares only "the" and "what".
    pub coverage: f32,
}

/// The words of a text as they are compared: runs of letters and digits, lower-cased, English plurals made singular.
/// Scripts written without spaces (Chinese, Japanese, Thai …) give overlapping pairs of characters instead.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|run| !run.is_empty())
        .flat_map(|run| if run.chars().any(is_unspaced) { pairs(run) } else { vec![singular(run.to_lowercase())] })
}

fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

fn pairs(run: &str) -> Vec<String> {
    let characters: Vec<char> = run.chars().flat_map(char::to_lowercase).collect();
    if characters.len() < 2 {
        return vec![characters.into_iter().collect()];
    }
    characters.windows(2).map(|pair| pair.iter().collect()).collect()
}

/// Harman's S-stemmer ("How effective is suffixing?", 1991): the three plural rules and no more. A heavier stemmer gains
/// little beside vectors and confuses names and part numbers.
fn singular(mut word: String) -> String {
    if word.len() <= 3 || !word.is_ascii() {
        return word;
    }
    let ends = |endings: &[&str]| endings.iter().any(|ending| word.ends_with(ending));
    if ends(&["ies"]) && !ends(&["eies", "aies"]) {
        word.truncate(word.len() - 3);
        word.push('y');
    } else if ends(&["es"]) && !ends(&["aes", "ees", "oes"]) || ends(&["s"]) && !ends(&["us", "ss"]) {
        word.truncate(word.len() - 1);
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<String> {
        words(text).collect()
    }

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        assert_eq!(of("Form A-38b: Größe, naïve!"), ["form", "a", "38b", "größe", "naïve"]);
        assert_eq!(
            of("policies policy, days; glass bus has his"),
            ["policy", "policy", "day", "glass", "bus", "has", "his"]
        );
        assert_eq!(of("東京都 7"), ["東京", "京都", "7"]);
        assert!(of(" -- …").is_empty());
    }

    #[test]
    fn a_rare_word_weighs_more_than_a_frequent_one() {
        let texts = ["the leave form", "the expense form", "the office", "the kitchen"];
        let keywords = Keywords::new(texts.iter());
        let scores = keywords.score("the expense");
        assert_eq!(scores.len(), 4, "every text holds \"the\"");
        assert!(scores[&1].bm25 > 3.0 * scores[&0].bm25, "{scores:?}");
        assert!(scores[&1].coverage == 1.0 && scores[&0].coverage < 0.2, "{scores:?}");
        assert!(keywords.score("holiday").is_empty());
        assert!(Keywords::new([""; 0].iter()).score("x").is_empty());
    }

    #[test]
    fn scores_equal_a_calculation_by_hand() {
        // two texts of 2 and 4 words; "b" is in one of them, twice
        let keywords = Keywords::new(["a c", "b b a d"].iter());
        let rarity = (1.0f32 + (2.0 - 1.0 + 0.5) / (1.0 + 0.5)).ln();
        let expected = rarity * 2.0 * 2.2 / (2.0 + 1.2 * (0.25 + 0.75 * 4.0 / 3.0));
        assert!((keywords.score("B")[&1].bm25 - expected).abs() < 1e-6);
    }
}
