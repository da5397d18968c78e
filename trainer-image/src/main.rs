//! `tunesmith-trainer <train|evaluate|serve|export> --job <file or s3 uri>` and `tunesmith-trainer combine`: the command line.
//!
//! Standard output carries the result as JSON, standard error progress and logs. Exit status: 0 done, or stopped after somebody
//! was told who starts the next attempt; 1 failed; 2 wrong command line; 130 and 143 ended by a signal, 75 otherwise stopped:
//! the same command goes on from the last checkpoint.

use std::{net::SocketAddr, process::ExitCode};

use clap::{Parser, Subcommand};
use serde::Serialize;
use tunesmith_contract::{
    error_name::Failure,
    job::{ExportJob, Location, TrainJob},
};
use tunesmith_trainer::{
    attempt::{self, Ended, saved_text},
    combine::{self, CombinePlan, Sum, Weighted},
    context::Context,
    error::{Result, TrainerError},
    export::{self, Compare},
    halt::Halt,
    interrupt, progress,
    serve::{self, ServePlan},
    stop::{Stop, StopReason},
    train,
};

#[derive(Debug, Parser)]
#[command(
    name = "tunesmith-trainer",
    version,
    about = "Trains, evaluates, serves, combines and exports LoRA adapters."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train an adapter, then evaluate it; goes on from the last checkpoint of the run's folder.
    Train(JobFile),
    /// Evaluate the adapter in the run's folder on the untouched test split.
    Evaluate(JobFile),
    /// Answer questions over HTTP: SageMaker's /ping and /invocations, and the OpenAI API below /v1/.
    Serve {
        /// The job: a JSON file, or s3://bucket/key; else the variable TUNESMITH_SERVE_JOB names it.
        #[arg(long, value_name = "FILE OR S3 URI")]
        job: Option<String>,
        /// Where to listen, e.g. 127.0.0.1:8080.
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<SocketAddr>,
    },
    /// Write a trained model in another form.
    Export {
        #[command(flatten)]
        file: JobFile,
        /// Compare the written form with the trained model on the test split of the job's dataset; without it one sentence is.
        #[arg(long)]
        verify: bool,
    },
    /// Make one adapter of several of one base model: their weighted sum, as it is or cut to a rank.
    Combine(CombineArguments),
}

#[derive(Debug, clap::Args)]
struct JobFile {
    /// The job: a JSON file, or s3://bucket/key. See events/trainer/ for examples.
    #[arg(long, value_name = "FILE OR S3 URI")]
    job: String,
}

#[derive(Debug, clap::Args)]
struct CombineArguments {
    /// An adapter and its weight, e.g. runs/a/adapter:0.7; without a weight it is 1. Once for each adapter; folders or s3:// prefixes.
    #[arg(long = "adapter", value_name = "FOLDER[:WEIGHT]", required = true)]
    adapters: Vec<Weighted>,
    /// How they are added.
    #[arg(long, value_enum, default_value_t = Sum::Cat)]
    sum: Sum,
    /// The rank that the sum is cut to; what it keeps is printed. Without it the sum is whole.
    #[arg(long)]
    rank: Option<usize>,
    /// The folder to write, which must not exist.
    #[arg(long, value_name = "FOLDER")]
    to: String,
}

impl JobFile {
    fn location(&self) -> Location {
        Location::from(self.job.clone())
    }
}

fn main() -> ExitCode {
    tunesmith_model::memory::keep_freed_memory();
    let cli = Cli::parse();
    progress::start_logging();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&TrainerError::io("the asynchronous runtime")(error)),
    };
    let code = runtime.block_on(run(&cli.command));
    // a computation that was given up is not waited for
    runtime.shutdown_background();
    code
}

async fn run(command: &Command) -> ExitCode {
    let stop = Stop::default();
    if let Err(error) = interrupt::watch_signals(stop.clone()) {
        return failed(&error);
    }
    match command {
        Command::Train(file) => match attempt::run(&file.location(), stop).await {
            Ok(Ended::Done(report)) => print(&report),
            Ok(Ended::Stopped { reason, saved, reported }) => stopped(&reason, saved, reported),
            Err(error) => failed(&error),
        },
        Command::Evaluate(file) => ended(evaluate(&file.location(), stop).await),
        Command::Serve { job, listen } => match serve(job.clone(), *listen, stop).await {
            // asked to stop, every answer finished: that is how serving ends
            Ok(()) | Err(Halt::Stopped { .. }) => ExitCode::SUCCESS,
            Err(Halt::Failed(error)) => failed(&error),
        },
        Command::Export { file, verify } => {
            let on = if *verify { Compare::TestSplit } else { Compare::Sentence };
            ended(export(&file.location(), on, stop).await)
        }
        Command::Combine(arguments) => ended(combine(arguments, stop).await),
    }
}

async fn evaluate(location: &Location, stop: Stop) -> Result<impl Serialize, Halt> {
    let context = Context::new(stop, None)?;
    let job: TrainJob = context.store.get_json(location, "train job").await?;
    train::evaluate(&job, &context).await
}

async fn serve(job: Option<String>, listen: Option<SocketAddr>, stop: Stop) -> Result<(), Halt> {
    let plan = ServePlan::new(job, listen, |name| std::env::var(name).ok())?;
    serve::run(&plan, &Context::new(stop, None)?).await
}

async fn export(location: &Location, on: Compare, stop: Stop) -> Result<impl Serialize, Halt> {
    let context = Context::new(stop, None)?;
    let job: ExportJob = context.store.get_json(location, "export job").await?;
    export::run(&job, on, &context).await
}

async fn combine(arguments: &CombineArguments, stop: Stop) -> Result<impl Serialize, Halt> {
    let CombineArguments { adapters, sum, rank, to } = arguments;
    let to = Location::from(to.clone());
    let plan = CombinePlan { adapters: adapters.clone(), sum: *sum, rank_opt: *rank, to };
    combine::run(plan, &Context::new(stop, None)?).await
}

fn ended(result: Result<impl Serialize, Halt>) -> ExitCode {
    match result {
        Ok(result) => print(&result),
        Err(Halt::Stopped { reason, saved }) => stopped(&reason, saved, false),
        Err(Halt::Failed(error)) => failed(&error),
    }
}

fn print(result: &impl Serialize) -> ExitCode {
    match serde_json::to_string_pretty(result) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => failed(&TrainerError::Usage(format!("the result cannot be written as JSON: {error}"))),
    }
}

fn stopped(reason: &StopReason, saved: Option<u32>, reported: bool) -> ExitCode {
    let state = saved_text(saved);
    if reported {
        tracing::info!(%reason, state, "stopped");
        return ExitCode::SUCCESS;
    }
    tracing::warn!(%reason, state, "stopped; the same command goes on from there");
    match reason {
        StopReason::Signal(signal) => ExitCode::from(signal.exit_code()),
        // EX_TEMPFAIL of sysexits.h: the same command may succeed later
        _ => ExitCode::from(75),
    }
}

fn failed(error: &TrainerError) -> ExitCode {
    let failure = Failure::from(error);
    tracing::error!(name = failure.name.as_str(), remedy = failure.name.remedy(), "{}", failure.message);
    ExitCode::FAILURE
}
