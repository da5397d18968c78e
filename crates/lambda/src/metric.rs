//! Metrics without an API call: CloudWatch reads them from the log.
//!
//! Source: Amazon CloudWatch User Guide, "Specification: Embedded metric format".

use std::{io::Write as _, time::Duration};

use serde_json::{Map, Value, json};
use tunesmith_contract::UnixTime;

/// Namespace of all our metrics.
const NAMESPACE: &str = "Tunesmith";

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Time.
    Seconds,
    /// Size.
    Bytes,
    /// Money in dollars and everything else that CloudWatch has no unit for.
    None,
}

impl Unit {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "Count",
            Self::Seconds => "Seconds",
            Self::Bytes => "Bytes",
            Self::None => "None",
        }
    }
}

/// One number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// Its name, in CamelCase.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// The number; not finite ones are left out.
    pub value: f64,
}

/// What every invocation reports: how long it took, which counts it too (the metric's `SampleCount`), and whether it failed. Two
/// metrics and not three: a custom metric costs $0.30 a month beyond the first ten, and functions on a schedule always report.
#[must_use]
pub(crate) fn invocation(took: Duration, failed: bool) -> [Metric; 2] {
    [
        Metric { name: "Duration", unit: Unit::Seconds, value: took.as_secs_f64() },
        Metric { name: "Errors", unit: Unit::Count, value: f64::from(u8::from(failed)) },
    ]
}

/// The log line that carries these metrics. `function` is the one dimension: each project of its own would be a metric of
/// its own, at $0.30 a month.
#[must_use]
pub fn metric_line(at: UnixTime, function: &str, metrics: &[Metric]) -> String {
    let finite: Vec<&Metric> = metrics.iter().filter(|metric| metric.value.is_finite()).collect();
    let names: Vec<Value> =
        finite.iter().map(|metric| json!({ "Name": metric.name, "Unit": metric.unit.as_str() })).collect();
    let mut line = Map::new();
    line.insert(
        "_aws".into(),
        json!({
            "Timestamp": at.0.saturating_mul(1000),
            "CloudWatchMetrics": [{ "Namespace": NAMESPACE, "Dimensions": [["function"]], "Metrics": names }],
        }),
    );
    line.insert("function".into(), function.into());
    for metric in finite {
        line.insert(metric.name.into(), metric.value.into());
    }
    Value::Object(line).to_string()
}

/// Writes [`metric_line`] to standard output, where Lambda takes it to CloudWatch. The function's name is Lambda's own
/// variable; outside Lambda nothing is written.
pub fn publish_metrics(at: UnixTime, metrics: &[Metric]) {
    if let Ok(function) = std::env::var("AWS_LAMBDA_FUNCTION_NAME") {
        // a metric that cannot be written must not fail the work that it counts
        let _ = writeln!(std::io::stdout().lock(), "{}", metric_line(at, &function, metrics));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_invocation_reports_its_time_and_whether_it_failed() {
        let line = |failed| metric_line(UnixTime(7), "f", &invocation(Duration::from_millis(1500), failed));
        let read = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        let (failed, done) = (read(line(true)), read(line(false)));
        assert_eq!((failed["Duration"].as_f64(), failed["Errors"].as_f64()), (Some(1.5), Some(1.0)));
        assert_eq!(done["Errors"].as_f64(), Some(0.0), "a function that works says so");
    }

    #[test]
    fn the_line_is_what_cloudwatch_reads() {
        let metrics = [
            Metric { name: "DocumentsRead", unit: Unit::Count, value: 3.0 },
            Metric { name: "Broken", unit: Unit::None, value: f64::NAN },
        ];
        let line: Value = serde_json::from_str(&metric_line(UnixTime(7), "ingest-document", &metrics)).unwrap();
        assert_eq!(line["_aws"]["Timestamp"], 7000);
        assert_eq!(line["_aws"]["CloudWatchMetrics"][0]["Dimensions"][0][0], "function");
        assert_eq!(line["_aws"]["CloudWatchMetrics"][0]["Metrics"].as_array().unwrap().len(), 1);
        assert_eq!(line["DocumentsRead"], 3.0);
        assert!(line.get("Broken").is_none());
    }
}
