//! `metrics.jsonl`: one line for each optimizer step of the run, whichever attempt made it.

use tunesmith_contract::job::{Location, MetricLine};

use crate::{error::Result, store::Store};

/// More than any run writes: 200 bytes a step.
const LIMIT: u64 = 256 << 20;

/// The lines so far.
#[derive(Debug, Clone)]
pub struct Metrics {
    store: Store,
    location: Location,
    lines: Vec<String>,
}

impl Metrics {
    /// The lines of earlier attempts up to `step`; later ones were made by steps that are made again.
    pub async fn resume(store: &Store, output: &Location, step: u32) -> Result<Self> {
        let location = output.join("metrics.jsonl");
        let earlier = if step == 0 { None } else { store.get_opt(&location, LIMIT).await? };
        let text = String::from_utf8_lossy(earlier.as_deref().unwrap_or_default()).into_owned();
        let keep = |line: &&str| serde_json::from_str::<MetricLine>(line).is_ok_and(|line| line.step <= step);
        let lines = text.lines().filter(keep).map(str::to_owned).collect();
        Ok(Self { store: store.clone(), location, lines })
    }

    /// Adds a line; it is written with the next checkpoint.
    pub fn push(&mut self, line: &MetricLine) -> Result<()> {
        let text =
            serde_json::to_string(line).map_err(crate::error::TrainerError::json(&self.location, "line of metrics"))?;
        self.lines.push(text);
        Ok(())
    }

    /// Writes all lines.
    pub async fn write(&self) -> Result<()> {
        let text = self.lines.join("\n") + "\n";
        self.store.put(&self.location, text.into_bytes(), "application/x-ndjson").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u32) -> MetricLine {
        MetricLine {
            step,
            steps: 9,
            loss: 2.5,
            learning_rate: 1e-3,
            grad_norm: 0.5,
            tokens: 100,
            tokens_per_second: 10.0,
            seconds_left: 1.0,
        }
    }

    #[tokio::test]
    async fn a_resumed_run_repeats_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let (store, output) = (Store::default(), Location::Local(folder.path().to_path_buf()));
        let mut metrics = Metrics::resume(&store, &output, 0).await.unwrap();
        for step in 1..=5 {
            metrics.push(&line(step)).unwrap();
        }
        metrics.write().await.unwrap();
        let mut metrics = Metrics::resume(&store, &output, 3).await.unwrap();
        metrics.push(&line(4)).unwrap();
        metrics.write().await.unwrap();
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let steps: Vec<u32> = text.lines().map(|l| serde_json::from_str::<MetricLine>(l).unwrap().step).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }
}
