//! One line of `metrics.jsonl` per optimizer step.

use serde::{Deserialize, Serialize};

use crate::trainer::StepReport;

/// A line; units are in the names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// What the step did.
    #[serde(flatten)]
    pub report: StepReport,
    /// Wall time of the step, measured by the caller.
    pub seconds: f64,
    /// Tokens per second through the model.
    pub tokens_per_second: f64,
}

impl MetricsLine {
    /// Adds the time that the caller measured.
    #[must_use]
    pub fn new(report: StepReport, seconds: f64) -> Self {
        let tokens_per_second = if seconds > 0.0 { report.num_tokens as f64 / seconds } else { 0.0 };
        Self { report, seconds, tokens_per_second }
    }

    /// JSON with a line break.
    pub fn to_json_line(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string(self)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_flat_and_survives() {
        let report = StepReport {
            step: 3,
            total: 10,
            epoch: 0.5,
            loss: 2.25,
            regulariser: 0.0,
            learning_rate: 1e-4,
            grad_norm: 0.5,
            num_tokens: 512,
            num_targets: 500,
            num_sequences: 4,
        };
        let line = MetricsLine::new(report, 2.0);
        let text = line.to_json_line().unwrap();
        assert!(
            text.starts_with("{\"step\":3,\"total\":10,") && text.contains("\"tokens_per_second\":256.0"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<MetricsLine>(&text).unwrap(), line);
    }
}
