//! A batch on the processor, in parts of about [`TOKENS`] tokens that threads compute independently of each other.
//!
//! Threads that share one operation wait for each other at its end, hundreds of times a step; threads that have a part each meet
//! once. How a batch is divided, and the order in which the parts are added up, depend on the batch alone: any number of threads
//! gives the same bits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::batch::Batch;
use crate::error::Result;

/// Enough that reading the weights costs little beside the products with them.
const TOKENS: usize = 512;

/// Parts of a batch of so many tokens.
fn count(num_tokens: usize) -> usize {
    ((num_tokens + TOKENS / 2) / TOKENS).max(1)
}

/// Parts of a batch of so many tokens that are computed at the same time, and the most tokens that they have together when no
/// sequence is longer than `longest`: what a prediction of memory asks.
#[must_use]
pub fn at_once(num_tokens: usize, longest: usize) -> (usize, usize) {
    let count = count(num_tokens);
    let together = count.min(rayon::current_num_threads());
    let largest = if count == 1 { num_tokens } else { num_tokens / count + longest };
    (together, num_tokens.min(together * largest))
}

/// The parts of a batch: whole sequences, as equal as they allow.
pub(super) fn divide(batch: &Batch) -> Result<Vec<Batch>> {
    let num_tokens = batch.ids().len();
    let count = count(num_tokens).min(batch.lengths().len());
    if count == 1 {
        return Ok(vec![batch.clone()]);
    }
    let (mut parts, mut from, mut to, mut first) = (Vec::with_capacity(count), 0, 0, 0);
    for (index, length) in batch.lengths().iter().enumerate() {
        to += length;
        // the last sequence ends where the last part does
        if to * count >= num_tokens * (parts.len() + 1) {
            let lengths = batch.lengths()[first..=index].to_vec();
            parts.push(Batch::new(batch.ids()[from..to].to_vec(), batch.targets()[from..to].to_vec(), lengths)?);
            (from, first) = (to, index + 1);
        }
    }
    Ok(parts)
}

/// Computes every part and hands the results to `add` in their order. As many parts at a time as there are threads; the threads that
/// are left over help those that compute the last ones.
pub(super) fn compute<T: Send>(
    parts: &[Batch],
    compute: impl Fn(&Batch) -> Result<T> + Sync,
    mut add: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let num_threads = rayon::current_num_threads();
    let mut rest = parts;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(num_threads));
        rest = later;
        let pools = if now.len() > 1 { pools(now.len(), num_threads / now.len()) } else { Vec::new() };
        if pools.is_empty() {
            now.iter().try_for_each(|part| add(compute(part)?))?;
            continue;
        }
        let compute = &compute;
        let results: Vec<Result<T>> = std::thread::scope(|scope| {
            let start = |(part, pool): (_, &Arc<ThreadPool>)| {
                let pool = Arc::clone(pool);
                scope.spawn(move || pool.install(|| compute(part)))
            };
            let underway: Vec<_> = now.iter().zip(&pools).map(start).collect();
            let end = |result: std::thread::Result<_>| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            underway.into_iter().map(|thread| end(thread.join())).collect()
        });
        results.into_iter().try_for_each(|result| add(result?))?;
    }
    Ok(())
}

/// `count` pools of `size` threads each, which stay for the next step; none when the system gives no threads.
fn pools(count: usize, size: usize) -> Vec<Arc<ThreadPool>> {
    static POOLS: Mutex<BTreeMap<usize, Vec<Arc<ThreadPool>>>> = Mutex::new(BTreeMap::new());
    let mut of_sizes = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    let of_size = of_sizes.entry(size).or_default();
    while of_size.len() < count {
        match ThreadPoolBuilder::new().num_threads(size).build() {
            Ok(pool) => of_size.push(Arc::new(pool)),
            Err(_) => return Vec::new(),
        }
    }
    of_size[..count].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ModelError;

    fn batch(lengths: &[usize]) -> Batch {
        let ids: Vec<u32> = (0..lengths.iter().sum::<usize>() as u32).collect();
        Batch::new(ids.clone(), ids, lengths.to_vec()).unwrap()
    }

    #[test]
    fn parts_are_whole_sequences_and_together_the_batch() {
        for (lengths, wanted) in [
            (vec![128; 8], vec![512, 512]),
            (vec![700], vec![700]),
            (vec![700, 700], vec![700, 700]),
            (vec![3000], vec![3000]),
            (vec![1, 2, 3], vec![6]),
            (vec![1000, 1, 1, 1, 1], vec![1000, 4]),
            (vec![1, 1, 1, 1000], vec![1003]),
            (vec![300; 5], vec![600, 600, 300]),
        ] {
            let whole = batch(&lengths);
            let parts = divide(&whole).unwrap();
            let sizes: Vec<usize> = parts.iter().map(|part| part.ids().len()).collect();
            assert_eq!(sizes, wanted, "{lengths:?}");
            assert_eq!(parts.iter().flat_map(Batch::ids).collect::<Vec<_>>(), whole.ids().iter().collect::<Vec<_>>());
            assert_eq!(parts.iter().flat_map(Batch::lengths).copied().collect::<Vec<_>>(), lengths);
            let (together, num_tokens) = at_once(whole.ids().len(), *lengths.iter().max().unwrap());
            assert!(sizes.iter().take(together).sum::<usize>() <= num_tokens, "{lengths:?}");
        }
    }

    #[test]
    fn results_come_in_order_with_any_number_of_threads_and_errors_arrive() {
        let parts: Vec<Batch> = (1..8).map(|length| batch(&[length])).collect();
        for num_threads in [1, 2, 3, 8] {
            let pool = ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
            let mut found = Vec::new();
            pool.install(|| {
                compute(
                    &parts,
                    |part| Ok(part.ids().len()),
                    |length| {
                        found.push(length);
                        Ok(())
                    },
                )
            })
            .unwrap();
            assert_eq!(found, [1, 2, 3, 4, 5, 6, 7], "{num_threads} threads");
            let fails = |part: &Batch| match part.ids().len() {
                5 => Err(ModelError::EmptyBatch),
                length => Ok(length),
            };
            let failed = pool.install(|| compute(&parts, fails, |_| Ok(())));
            assert!(matches!(failed, Err(ModelError::EmptyBatch)));
        }
    }
}
