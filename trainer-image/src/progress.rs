//! What people see while they wait: a bar on a terminal, JSON lines elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    sync::LazyLock,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};
use tunesmith_contract::{Usd, job::MetricLine};

/// Between two log lines about progress, where there is no terminal.
const LOG_EVERY: Duration = Duration::from_secs(10);

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Logs go to standard error: readable on a terminal, JSON elsewhere. `RUST_LOG` chooses what is logged; `info` without it.
pub fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(AboveBars);
    // a second subscriber is refused: in tests of one process the first one stays
    let started = if io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).with_ansi(false).with_target(false).try_init()
    };
    if let Err(error) = started {
        tracing::debug!(error, "logging was started before");
    }
}

/// Writes to standard error without tearing a bar.
#[derive(Debug, Clone, Copy)]
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        *self
    }
}

/// Progress of training.
#[derive(Debug)]
pub struct Progress {
    bar_opt: Option<ProgressBar>,
    logged: Option<Instant>,
}

impl Progress {
    /// For a run of so many steps, of which some are done.
    #[must_use]
    pub fn new(done: u32, steps: u32) -> Self {
        let bar_opt = io::stderr().is_terminal().then(|| {
            let bar = BARS.add(ProgressBar::new(u64::from(steps)).with_position(u64::from(done)));
            let style = ProgressStyle::with_template("{bar:30} step {pos}/{len} {msg} {elapsed_precise}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar_opt, logged: None }
    }

    /// A step was made.
    pub fn step(&mut self, line: &MetricLine, spent: Option<Usd>) {
        if let Some(bar) = &self.bar_opt {
            bar.set_position(u64::from(line.step));
            bar.set_message(message(line, spent));
        } else if self.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) || line.step == line.steps {
            self.logged = Some(Instant::now());
            let dollars = spent.map(Usd::dollars);
            tracing::info!(
                step = line.step,
                steps = line.steps,
                loss = line.loss,
                learning_rate = line.learning_rate,
                grad_norm = line.grad_norm,
                tokens_per_second = line.tokens_per_second,
                seconds_left = line.seconds_left,
                dollars,
                "training"
            );
        }
    }

    /// Training has ended; the bar stays as it is.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar_opt {
            bar.abandon();
        }
    }
}

/// Progress of something that has no steps, of a hundred.
#[derive(Debug)]
pub struct Percent {
    what: &'static str,
    bar_opt: Option<ProgressBar>,
    logged: Option<Instant>,
}

impl Percent {
    /// Of writing `what`.
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        let bar_opt = io::stderr().is_terminal().then(|| {
            let bar = BARS.add(ProgressBar::new(100));
            let style = ProgressStyle::with_template("{bar:30} {pos} % {msg} {elapsed_precise}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(what);
            bar
        });
        Self { what, bar_opt, logged: None }
    }

    /// So much is done.
    pub fn at(&mut self, percent: u8) {
        if let Some(bar) = &self.bar_opt {
            bar.set_position(u64::from(percent));
        } else if self.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) || percent == 100 {
            self.logged = Some(Instant::now());
            tracing::info!(percent, what = self.what, "writing");
        }
    }
}

fn message(line: &MetricLine, spent: Option<Usd>) -> String {
    let seconds = line.seconds_left.max(0.0) as u64;
    let left = format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let dollars = spent.map(|spent| format!(", {spent}")).unwrap_or_default();
    format!("loss {:.4}, {:.0} tokens/s, {left} left{dollars};", line.loss, line.tokens_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_says_loss_speed_time_left_and_dollars() {
        let line = MetricLine {
            step: 3,
            steps: 9,
            loss: 2.51234,
            learning_rate: 1e-3,
            grad_norm: 0.5,
            tokens: 100,
            tokens_per_second: 1234.4,
            seconds_left: 3723.9,
            at: None,
            validation_loss: None,
        };
        assert_eq!(message(&line, None), "loss 2.5123, 1234 tokens/s, 1:02:03 left;");
        assert!(message(&line, Some(Usd::from_micros(20_000))).ends_with("left, $0.02;"));
    }
}
