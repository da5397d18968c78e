//! What a person sees: one progress bar per stage on a terminal, plain lines elsewhere.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows stages and remembers how long each took.
#[derive(Clone, Debug)]
pub struct Stages {
    bars: MultiProgress,
    terminal: bool,
    seconds: Arc<Mutex<Vec<(String, f64)>>>,
}

/// A stage in progress.
#[derive(Debug)]
pub struct Stage {
    name: String,
    bar: ProgressBar,
    started: Instant,
    stages: Stages,
    last: Mutex<String>,
}

impl Default for Stages {
    fn default() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), terminal, seconds: Arc::default() }
    }
}

impl Stages {
    /// Begins a stage that prints its own text word by word: a bar would be drawn between the words.
    #[must_use]
    pub fn begin_without_bar(&self, name: &str) -> Stage {
        self.say(&format!("{name} …"));
        self.stage(name, ProgressBar::hidden())
    }

    /// Begins a stage. `total` is the number of steps, where it is known.
    #[must_use]
    pub fn begin(&self, name: &str, total: Option<u64>) -> Stage {
        let template = match total {
            Some(_) => "{prefix:22} [{bar:28}] {pos}/{len} {msg}",
            None => "{prefix:22} {spinner} {elapsed} {msg}",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.bars.add(total.map_or_else(ProgressBar::new_spinner, ProgressBar::new));
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(name.to_owned());
        if self.terminal {
            bar.enable_steady_tick(Duration::from_millis(120));
        } else {
            eprintln!("{name} …");
        }
        self.stage(name, bar)
    }

    fn stage(&self, name: &str, bar: ProgressBar) -> Stage {
        Stage { name: name.to_owned(), bar, started: Instant::now(), stages: self.clone(), last: Mutex::default() }
    }

    /// Prints a line (or several) without disturbing the bars.
    pub fn say(&self, text: &str) {
        if self.terminal {
            self.bars.suspend(|| eprintln!("{text}"));
        } else {
            eprintln!("{text}");
        }
    }

    /// Seconds of every finished stage.
    #[must_use]
    pub fn seconds(&self) -> BTreeMap<String, f64> {
        self.in_order().into_iter().collect()
    }

    /// The same, in the order in which the stages ended first.
    #[must_use]
    pub fn in_order(&self) -> Vec<(String, f64)> {
        self.seconds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a stage that was timed elsewhere.
    pub fn record(&self, name: &str, seconds: f64) {
        let mut all = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = (seconds * 10.0).round() / 10.0;
        match all.iter_mut().find(|(stage, _)| stage == name) {
            Some((_, sum)) => *sum += seconds,
            None => all.push((name.to_owned(), seconds)),
        }
    }
}

impl Stage {
    /// Moves the bar to `position` of the total.
    pub fn at(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Sets the total.
    pub fn of(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Says what is going on. On a terminal it stands beside the bar; elsewhere it is a line, when it is new.
    pub fn note(&self, text: &str) {
        self.bar.set_message(text.to_owned());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.stages.terminal && *last != text {
            eprintln!("{}: {text}", self.name);
            text.clone_into(&mut last);
        }
    }

    /// Says what is going on, on a terminal only: for what changes every second.
    pub fn tick(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// Ends the stage with a result.
    pub fn done(self, result: &str) {
        self.done_after(None, result);
    }

    /// Ends the stage with a result, and with a time that somebody else has measured.
    pub fn done_after(self, seconds: Option<f64>, result: &str) {
        let seconds = seconds.unwrap_or_else(|| self.started.elapsed().as_secs_f64());
        self.stages.record(&self.name, seconds);
        self.bar.finish_and_clear();
        self.stages.say(&format!("{:<22} {result} ({seconds:.1} s)", self.name));
    }
}
