//! From logits to the next token: temperature, top-k, top-p (Holtzman et al. 2019), seed.

use tunesmith_model::rng::Rng;

use crate::openai::Options;

/// Chooses tokens for one answer. The same options, seed and logits give the same tokens on every machine.
pub(crate) struct Sampler {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    rng: Rng,
    /// Reused between tokens: index and logit, then probability, of the tokens that can be chosen.
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// `seed` is used where the options name none.
    pub fn new(options: &Options, seed: u64) -> Self {
        Self {
            temperature: options.temperature,
            top_p: options.top_p,
            top_k: options.top_k.map_or(usize::MAX, |k| k as usize),
            rng: Rng::new(options.seed.map_or(seed, i64::cast_unsigned), 0),
            candidates: Vec::new(),
        }
    }

    /// The next token.
    ///
    /// # Errors
    /// When no logit is a number: the weights are damaged.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, NoNumber> {
        let best = argmax(logits).ok_or(NoNumber)?;
        // below this the softmax is 1 for the best token in f32
        if self.temperature < 1e-4 {
            return Ok(best.0);
        }
        self.candidates.clear();
        self.candidates.extend((0u32..).zip(logits).filter(|(_, l)| l.is_finite()).map(|(i, &l)| (i, l)));
        self.keep_top_k();
        let mut sum = 0.0;
        for (_, value) in &mut self.candidates {
            *value = ((*value - best.1) / self.temperature).exp();
            sum += *value;
        }
        let sum = self.keep_top_p(sum);
        let mut target = self.rng.uniform() * sum;
        for &(token, weight) in &self.candidates {
            target -= weight;
            if target < 0.0 {
                return Ok(token);
            }
        }
        // rounding may leave a rest of the sum
        Ok(self.candidates.iter().rev().find(|(_, weight)| *weight > 0.0).map_or(best.0, |(token, _)| *token))
    }

    fn keep_top_k(&mut self) {
        if self.top_k < self.candidates.len() {
            // equal logits: the lower token counts as better, as in argmax
            self.candidates.select_nth_unstable_by(self.top_k, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            self.candidates.truncate(self.top_k);
            self.candidates.sort_unstable_by_key(|(token, _)| *token);
        }
    }

    /// Keeps the smallest set of tokens whose weights reach the share `top_p`; returns the sum of what is left.
    fn keep_top_p(&mut self, sum: f32) -> f32 {
        if self.top_p >= 1.0 {
            return sum;
        }
        self.candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut kept = 0.0;
        let mut count = 0;
        while count < self.candidates.len() && (count == 0 || kept < self.top_p * sum) {
            kept += self.candidates[count].1;
            count += 1;
        }
        self.candidates.truncate(count);
        kept
    }
}

/// No logit is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's output holds no number; its weights or its adapter are damaged")]
pub(crate) struct NoNumber;

impl From<NoNumber> for crate::engine::EngineError {
    fn from(error: NoNumber) -> Self {
        Self::Output(error.to_string())
    }
}

/// The first of the largest logits.
fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    (0u32..).zip(logits.iter().copied()).filter(|(_, l)| l.is_finite()).fold(None, |best, (i, l)| match best {
        Some((_, b)) if l <= b => best,
        _ => Some((i, l)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(change: impl FnOnce(&mut Options)) -> Sampler {
        let mut options = Options { seed: Some(7), ..Options::default() };
        change(&mut options);
        Sampler::new(&options, 0)
    }

    fn counts(sampler: &mut Sampler, logits: &[f32], n: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for _ in 0..n {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn temperature_0_takes_the_first_best() {
        let mut greedy = sampler(|o| o.temperature = 0.0);
        assert_eq!(greedy.sample(&[0.0, 3.0, 3.0, f32::NAN]).unwrap(), 1);
        assert!(greedy.sample(&[f32::NAN]).is_err() && greedy.sample(&[]).is_err());
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0, f32::NEG_INFINITY];
        for temperature in [0.5f32, 1.0, 2.0] {
            let weights: Vec<f32> = logits.iter().map(|l| (l / temperature).exp()).collect();
            let sum: f32 = weights.iter().sum();
            let found = counts(&mut sampler(|o| o.temperature = temperature), &logits, 20_000);
            for (count, weight) in found.iter().zip(&weights) {
                // four standard deviations
                let p = weight / sum;
                let slack = 4.0 * (p * (1.0 - p) / 20_000.0).sqrt();
                assert!((*count as f32 / 20_000.0 - p).abs() <= slack, "{temperature} {found:?}");
            }
        }
    }

    #[test]
    fn top_k_and_top_p_leave_the_best() {
        let logits = [0.0f32, 4.0, 1.0, 3.9];
        let k = counts(&mut sampler(|o| o.top_k = Some(2)), &logits, 500);
        assert!(k[0] == 0 && k[2] == 0 && k[1] > 0 && k[3] > 0, "{k:?}");
        let p = counts(&mut sampler(|o| o.top_p = 0.9), &logits, 500);
        assert!(p[0] == 0 && p[2] == 0 && p[1] > 0 && p[3] > 0, "{p:?}");
        let one = counts(&mut sampler(|o| o.top_p = 1e-6), &logits, 50);
        assert_eq!(one, [0, 50, 0, 0]);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let logits = [1.0f32; 50];
        let draw = |seed| {
            let mut sampler = sampler(|o| o.seed = Some(seed));
            (0..20).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(-1), draw(-1));
        assert_ne!(draw(1), draw(2));
    }
}
