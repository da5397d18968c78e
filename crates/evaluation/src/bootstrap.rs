//! The percentile bootstrap over documents (Efron 1979): documents, not tokens, are what the test split is a sample of;
//! tokens of one document depend on each other, and an interval over tokens would be far too narrow.

use tunesmith_contract::evaluation::Interval;

/// How often and from which seed the documents are drawn anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// Number of resamples. 1,000 fixes the bounds of a 95 % interval to about a twentieth of its width.
    pub resamples: u32,
    /// The same seed gives the same interval.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 1_000, seed: 0x7475_6E65 }
    }
}

impl Bootstrap {
    /// The value of `statistic` over all of `0..count`, and its 95 % interval over resamples of equal size, drawn with
    /// replacement. The interval always holds the value. With one document it has no width: nothing is known of its spread.
    ///
    /// `statistic` gets how often each index was drawn.
    pub(crate) fn interval(&self, count: usize, statistic: impl Fn(&[u32]) -> f64) -> Interval {
        let value = statistic(&vec![1; count]);
        let mut state = self.seed;
        let mut drawn = vec![0u32; count];
        let mut values: Vec<f64> = (0..self.resamples.max(1))
            .map(|_| {
                drawn.fill(0);
                for _ in 0..count {
                    drawn[below(&mut state, count as u64) as usize] += 1;
                }
                statistic(&drawn)
            })
            .collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        Interval { value, low: at(0.025).min(value), high: at(0.975).max(value) }
    }
}

/// A number below `bound`, without the bias of a remainder to speak of: multiplication keeps it under 2⁻⁴⁰ for test splits
/// (Lemire 2019).
fn below(state: &mut u64, bound: u64) -> u64 {
    ((u128::from(split_mix(state)) * u128::from(bound)) >> 64) as u64
}

/// SplitMix64 (Steele, Lea, Flood 2014).
const fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_mix_is_the_published_generator() {
        // First outputs for seed 1234567, as printed by the authors' reference program.
        let mut state = 1_234_567;
        assert_eq!(split_mix(&mut state), 6_457_827_717_110_365_317);
        assert_eq!(split_mix(&mut state), 3_203_168_211_198_807_973);
    }

    #[test]
    fn the_interval_of_a_mean_is_the_textbooks() {
        // 400 values 0 and 1 in equal number: the standard error of the mean is 0.5/20, the interval ±1.96 times that.
        let mean =
            |drawn: &[u32]| drawn.iter().enumerate().map(|(i, n)| f64::from(*n) * (i % 2) as f64).sum::<f64>() / 400.0;
        let interval = Bootstrap { resamples: 4_000, seed: 1 }.interval(400, mean);
        assert_eq!(interval.value, 0.5);
        assert!((interval.low - 0.451).abs() < 0.004 && (interval.high - 0.549).abs() < 0.004, "{interval:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let sum = |drawn: &[u32]| drawn.iter().enumerate().map(|(i, n)| f64::from(*n) * i as f64).sum::<f64>();
        let bootstrap = Bootstrap::default();
        assert_eq!(bootstrap.interval(20, sum), bootstrap.interval(20, sum));
        assert_ne!(bootstrap.interval(20, sum), Bootstrap { seed: 2, ..bootstrap }.interval(20, sum));
    }
}
