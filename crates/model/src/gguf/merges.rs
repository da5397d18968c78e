//! Ranks of merges into scores of tokens, and back.
//!
//! `tokenizers` merges the listed pair of the lowest rank. llama.cpp's `llm_tokenizer_spm` knows no pairs: it merges whatever two
//! neighbours make a token, that of the highest score first, of equal ones the leftmost. Both do the same, but for what the last
//! paragraph says, when
//!
//! - every two parts that can come up and make a token are a listed pair, and
//! - the pairs of a token stand together in the list, so that their place is its score.
//!
//! Files that `transformers` made of a SentencePiece model are so (`generate_merges` in `convert_slow_tokenizer.py` lists all pairs of
//! every token), but for runs of one character: these share a score there (white space of Llama 2, line breaks of Gemma) and their
//! pairs are listed by length. Growing the longest run first and growing the leftmost first is the same then, and they get one score
//! here too. Vocabularies that were trained with `tokenizers` list one pair for each token and are refused.
//!
//! Where one token has several pairs, `tokenizers` takes the first listed before the leftmost. On 6,000 texts with the vocabularies of
//! Llama 2, Phi-3 and Gemma 4 that made no difference.

use std::collections::{HashMap, HashSet};

use super::refuse;
use super::vocabulary::{Token, UNUSED};
use crate::error::Result;

/// First and last rank of the merges that make a token.
type Span = (usize, usize);

/// The score of every token: 0 for what is merged first, and one less for each that follows. What no merge makes comes last.
///
/// # Errors
/// [`crate::ModelError::NotInGguf`] when scores would merge otherwise.
pub(super) fn scores(tokens: &[Token], merges: &[[String; 2]]) -> Result<Vec<f32>> {
    let cut_out: HashSet<&str> =
        tokens.iter().filter(|token| token.is_cut_out()).map(|token| token.text.as_str()).collect();
    let mut ranks: HashMap<(&str, &str), usize> = HashMap::new();
    let mut spans: HashMap<String, Span> = HashMap::new();
    for (rank, [left, right]) in merges.iter().enumerate() {
        let token = format!("{left}{right}");
        if [left, right, &token].into_iter().any(|text| cut_out.contains(text.as_str())) {
            continue; // never comes up
        }
        ranks.entry((left.as_str(), right.as_str())).or_insert(rank);
        spans.entry(token).and_modify(|(_, last)| *last = rank).or_insert((rank, rank));
    }
    complete(tokens, &ranks)?;
    let mut tiers = Tiers::default();
    let mut order: Vec<(&str, Span)> = spans.iter().map(|(token, span)| (token.as_str(), *span)).collect();
    order.sort_unstable_by_key(|(_, span)| *span);
    for (token, span) in order {
        tiers.push(token, span, &ranks)?;
    }
    let last = tiers.of.len();
    let tier = |token: &Token| tiers.tier.get(token.text.as_str()).copied().unwrap_or(last);
    Ok(tokens.iter().map(|token| 0.0 - tier(token) as f32).collect())
}

/// Tokens that are merged one after the other; tokens whose merges are interleaved are of one tier.
#[derive(Default)]
struct Tiers<'a> {
    /// Tokens of each tier.
    of: Vec<Vec<&'a str>>,
    tier: HashMap<&'a str, usize>,
    /// Last rank of the newest tier.
    end: usize,
}

impl<'a> Tiers<'a> {
    fn push(&mut self, token: &'a str, (first, last): Span, ranks: &HashMap<(&str, &str), usize>) -> Result<()> {
        match self.of.last_mut() {
            Some(newest) if first <= self.end => {
                newest.push(token);
                if let Some(odd) = newest.iter().find(|token| !grows_from_the_left(token, ranks)) {
                    let remedy = "llama.cpp merges by tokens, one after the other: export merged-safetensors instead";
                    return refuse("tokenizer.json: model.merges", format!("those of {odd:?} between others"), remedy);
                }
            }
            _ => self.of.push(vec![token]),
        }
        self.tier.insert(token, self.of.len() - 1);
        self.end = self.end.max(last);
        Ok(())
    }
}

/// Whether this is one character several times, and the longer such a run already is, the sooner it takes the next one.
fn grows_from_the_left(run: &str, ranks: &HashMap<(&str, &str), usize>) -> bool {
    let Some(width) = run.chars().next().map(char::len_utf8) else { return false };
    let one = &run[..width];
    if run.len() < 2 * width || one.repeat(run.len() / width) != run {
        return false;
    }
    let steps: Option<Vec<usize>> =
        (1..run.len() / width).map(|count| ranks.get(&(&run[..count * width], one)).copied()).collect();
    steps.is_some_and(|steps| steps.is_sorted_by(|shorter, longer| shorter > longer))
}

/// Every two parts that make a token are a pair. Single characters come up even where they are no token.
fn complete(tokens: &[Token], ranks: &HashMap<(&str, &str), usize>) -> Result<()> {
    let made = || tokens.iter().filter(|token| !token.is_cut_out()).map(|token| token.text.as_str());
    let known: HashSet<&str> = made().collect();
    let comes_up = |part: &str| known.contains(part) || part.chars().nth(1).is_none();
    for token in made() {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if comes_up(left) && comes_up(right) && !ranks.contains_key(&(left, right)) {
                let remedy = "llama.cpp merges whatever makes a token: export merged-safetensors instead";
                return refuse("tokenizer.json: model.merges", format!("none of {left:?} and {right:?}"), remedy);
            }
        }
    }
    Ok(())
}

/// The merges that these scores stand for, in the order of `generate_merges`: by score, then longer parts first.
pub(super) fn from_scores(tokens: &[Token], scores: &[f32]) -> Vec<[String; 2]> {
    let usable = |token: &&Token| !token.is_cut_out() && token.kind != UNUSED;
    let known: HashSet<&str> = tokens.iter().filter(usable).map(|token| token.text.as_str()).collect();
    let mut merges: Vec<(f32, &str, &str)> = Vec::new();
    for (token, score) in tokens.iter().zip(scores).filter(|(token, _)| usable(token)) {
        for (at, _) in token.text.char_indices().skip(1) {
            let (left, right) = token.text.split_at(at);
            if known.contains(left) && known.contains(right) {
                merges.push((*score, left, right));
            }
        }
    }
    merges.sort_by(|(a, left_a, right_a), (b, left_b, right_b)| {
        let longer = (length(left_b), length(right_b)).cmp(&(length(left_a), length(right_a)));
        b.total_cmp(a).then(longer)
    });
    merges.into_iter().map(|(_, left, right)| [left.to_owned(), right.to_owned()]).collect()
}

fn length(part: &str) -> usize {
    part.chars().count()
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::{NORMAL, USER_DEFINED};
    use super::*;

    fn tokens(texts: &[&str]) -> Vec<Token> {
        texts.iter().map(|text| Token { text: (*text).to_owned(), kind: NORMAL }).collect()
    }

    fn pairs(pairs: &[[&str; 2]]) -> Vec<[String; 2]> {
        pairs.iter().map(|pair| pair.map(str::to_owned)).collect()
    }

    #[test]
    fn ranks_become_scores_and_scores_the_same_ranks() {
        let tokens = tokens(&["a", "b", "ab", "aba", "ba", "abab"]);
        let merges = pairs(&[["a", "b"], ["ab", "ab"], ["aba", "b"], ["b", "a"], ["ab", "a"], ["a", "ba"]]);
        let made = scores(&tokens, &merges).unwrap();
        assert_eq!(made, [-4.0, -4.0, 0.0, -3.0, -2.0, -1.0]);
        let back = from_scores(&tokens, &made);
        let wanted = [["a", "b"], ["aba", "b"], ["ab", "ab"], ["b", "a"], ["ab", "a"], ["a", "ba"]];
        assert_eq!(back, pairs(&wanted));
        assert_eq!(scores(&tokens, &back).unwrap(), made);
    }

    #[test]
    fn runs_of_one_character_share_a_score() {
        let tokens = tokens(&["▁", "▁▁", "▁▁▁", "▁▁▁▁", "\n", "\n\n", "\n\n\n"]);
        let merges = pairs(&[
            ["▁▁▁", "▁"],
            ["▁▁", "▁▁"],
            ["▁▁", "▁"],
            ["\n\n", "\n"],
            ["▁", "▁▁▁"],
            ["▁", "▁▁"],
            ["\n", "\n\n"],
            ["▁", "▁"],
            ["\n", "\n"],
        ]);
        let made = scores(&tokens, &merges).unwrap();
        assert_eq!(made, [-3.0, -1.0, 0.0, 0.0, -3.0, -2.0, 0.0]);
        assert_eq!(from_scores(&tokens, &made).len(), merges.len());
        // the shorter run first: llama.cpp would make another choice
        let mut other = merges.clone();
        other.rotate_right(2);
        let error = scores(&tokens, &other).unwrap_err().to_string();
        assert!(error.contains("model.merges") && error.contains("between others"), "{error}");
    }

    #[test]
    fn what_scores_would_merge_otherwise_is_refused() {
        let vocabulary = tokens(&["a", "b", "c", "ab", "bc", "abc"]);
        let all = [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]];
        assert!(scores(&vocabulary, &pairs(&all)).is_ok());
        let error = scores(&vocabulary, &pairs(&all[..3])).unwrap_err().to_string();
        assert!(error.contains("none of \"a\" and \"bc\""), "{error}");
        let between = [all[0], all[2], all[1], all[3]];
        let error = scores(&vocabulary, &pairs(&between)).unwrap_err().to_string();
        assert!(error.contains("between others"), "{error}");
        // a character that is no token comes up all the same
        let error = scores(&tokens(&["a", "ax"]), &[]).unwrap_err().to_string();
        assert!(error.contains("none of \"a\" and \"x\""), "{error}");
        // what is cut out of the text beforehand needs no merges
        let tag = [tokens(&["a", "b"]), vec![Token { text: "ab".to_owned(), kind: USER_DEFINED }]].concat();
        assert!(scores(&tag, &[]).is_ok());
    }
}
