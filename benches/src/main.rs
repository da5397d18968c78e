//! One contender of `run.py`: does the job that its only argument describes in JSON and answers with one line of JSON.
//!
//! The other contender, `peft_peer.py`, takes the same jobs. Everything is measured inside the process that does the work, with
//! the wall clock; the number of threads comes from `RAYON_NUM_THREADS`.

mod flops;
mod process;
mod quality;
mod rate;
mod train;

use std::error::Error;
use std::time::SystemTime;

use serde::Deserialize;

/// What can be asked for.
#[derive(Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
enum Job {
    /// Training steps.
    Train(train::Train),
    /// A whole run and what it has learnt.
    Quality(quality::Quality),
    /// The best rate of f32 matrix products, against which the FLOP floor is reckoned.
    Rate(rate::Rate),
}

fn main() -> Result<(), Box<dyn Error>> {
    let entered = SystemTime::now();
    tunesmith_model::memory::keep_freed_memory();
    let Some(job) = std::env::args().nth(1) else {
        return Err("usage: tunesmith-bench '<job in JSON>'; run.py shows which".into());
    };
    let answer = match serde_json::from_str(&job)? {
        Job::Train(job) => job.run(entered)?,
        Job::Quality(job) => job.run()?,
        Job::Rate(job) => job.run(),
    };
    println!("{answer}");
    Ok(())
}
