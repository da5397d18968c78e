//! How long uploads that are still being read are waited for. No I/O.

use std::time::Duration;

/// A document is read within seconds; when none was read in this time, what is left has a problem that waiting does not solve.
const WITHOUT_PROGRESS: Duration = Duration::from_secs(120);
/// The function may take 600 s; the rest is for making the dataset.
const ALTOGETHER: Duration = Duration::from_secs(420);

/// Waits as long as fewer and fewer are left.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    /// The fewest that were left at any look, and when.
    fewest: Option<(usize, Duration)>,
}

impl Patience {
    /// Whether to go on waiting, when so many are left after so much time.
    pub fn waits_for(&mut self, left: usize, waited: Duration) -> bool {
        let (fewest, since) = match self.fewest {
            Some((fewest, since)) if left >= fewest => (fewest, since),
            _ => (left, waited),
        };
        self.fewest = Some((fewest, since));
        waited < ALTOGETHER && waited.saturating_sub(since) < WITHOUT_PROGRESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When waiting ends, if so many are left at each look, one every 10 s.
    fn ends_after(left: impl Fn(usize) -> usize) -> usize {
        let mut patience = Patience::default();
        let mut looks = (0_usize..).map(|look| look * 10);
        looks.find(|seconds| !patience.waits_for(left(*seconds), Duration::from_secs(*seconds as u64))).unwrap()
    }

    #[test]
    fn waiting_goes_on_while_fewer_are_left_and_ends_when_no_more_are_read() {
        assert_eq!(ends_after(|_| 3), 120, "nothing is read");
        assert_eq!(ends_after(|seconds| if seconds < 200 { 1000 - seconds } else { 800 }), 200 + 120);
        assert_eq!(ends_after(|seconds| 10_000 - seconds), 420, "the function has a time limit");
        assert_eq!(ends_after(|seconds| 5 + seconds), 120, "more and more come");
        assert_eq!(
            ends_after(|seconds| if seconds.is_multiple_of(20) { 5 } else { 6 }),
            120,
            "up and down is no progress"
        );
    }
}
