//! `metrics.jsonl`: one line for each optimizer step of the run, whichever attempt made it; and the same as a TensorBoard
//! event file, `tensorboard --logdir <run>/tensorboard`.

use tunesmith_contract::job::{Location, MetricLine};
use tunesmith_training::tensorboard;

use crate::{error::Result, store::Store};

/// More than any run writes: 200 bytes a step.
const LIMIT: u64 = 256 << 20;

/// TensorBoard looks for `tfevents` in the name.
const EVENTS: &str = "tensorboard/events.out.tfevents.tunesmith";

/// The lines so far.
#[derive(Debug, Clone)]
pub struct Metrics {
    store: Store,
    location: Location,
    events: Location,
    lines: Vec<MetricLine>,
}

impl Metrics {
    /// The lines of earlier attempts up to `step`; later ones were made by steps that are made again.
    pub async fn resume(store: &Store, output: &Location, step: u32) -> Result<Self> {
        let location = output.join("metrics.jsonl");
        let earlier = if step == 0 { None } else { store.get_opt(&location, LIMIT).await? };
        let text = String::from_utf8_lossy(earlier.as_deref().unwrap_or_default()).into_owned();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<MetricLine>(line).ok());
        let lines = lines.filter(|line| line.step <= step).collect();
        Ok(Self { store: store.clone(), location, events: output.join(EVENTS), lines })
    }

    /// Adds a line; it is written with the next checkpoint.
    pub fn push(&mut self, line: MetricLine) {
        self.lines.push(line);
    }

    /// Adds the validation loss to the line of its step.
    pub fn validated(&mut self, step: u32, loss: f64) {
        if let Some(line) = self.lines.iter_mut().rfind(|line| line.step == step) {
            line.validation_loss = Some(loss);
        }
    }

    /// Writes all lines, and the event file.
    pub async fn write(&self) -> Result<()> {
        let mut text = String::new();
        for line in &self.lines {
            let json = serde_json::to_string(line);
            text += &json.map_err(crate::error::TrainerError::json(&self.location, "line of metrics"))?;
            text.push('\n');
        }
        self.store.put(&self.location, text.into_bytes(), "application/x-ndjson").await?;
        self.store.put(&self.events, events(&self.lines), "application/octet-stream").await
    }
}

/// The same lines give the same bytes, so a file that TensorBoard has open only grows.
fn events(lines: &[MetricLine]) -> Vec<u8> {
    let time = |line: &MetricLine| line.at.map_or(0.0, |at| at.0 as f64);
    let mut bytes = tensorboard::header(lines.first().map_or(0.0, time));
    for line in lines {
        let mut scalars = vec![
            ("train/loss", line.loss),
            ("train/learning_rate", line.learning_rate),
            ("train/grad_norm", line.grad_norm),
            ("train/tokens_per_second", line.tokens_per_second),
        ];
        scalars.extend(line.validation_loss.map(|loss| ("eval/loss", loss)));
        bytes.extend(tensorboard::scalars(time(line), u64::from(line.step), &scalars));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::UnixTime;

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
            at: Some(UnixTime(1_795_212_000)),
            validation_loss: None,
        }
    }

    #[tokio::test]
    async fn a_resumed_run_repeats_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let (store, output) = (Store::default(), Location::Local(folder.path().to_path_buf()));
        let mut metrics = Metrics::resume(&store, &output, 0).await.unwrap();
        for step in 1..=5 {
            metrics.push(line(step));
        }
        metrics.validated(3, 2.25);
        metrics.write().await.unwrap();
        let mut metrics = Metrics::resume(&store, &output, 3).await.unwrap();
        metrics.push(line(4));
        metrics.write().await.unwrap();
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let lines: Vec<MetricLine> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(lines[2].validation_loss, Some(2.25));
        assert_eq!(std::fs::read(folder.path().join(EVENTS)).unwrap(), events(&lines));
        assert!(events(&lines).starts_with(&events(&lines[..3])), "the file only grows");
    }
}
