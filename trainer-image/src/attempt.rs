//! One attempt at a train job: watched, kept under control where the machine is paid for, and reported, however it ends.

use std::sync::Arc;

use tunesmith_contract::{
    error_name::Failure,
    job::{Control, Location, TrainJob, TrainReport},
};

use crate::{
    context::Context,
    control::Controller,
    error::{Result, TrainerError},
    halt::Halt,
    interrupt,
    stop::{Stop, StopReason},
    store::Store,
    train,
};

/// How an attempt ended, for the exit status and for people. Who waits has been told.
#[derive(Debug)]
pub enum Ended {
    /// Trained and evaluated.
    Done(Box<TrainReport>),
    /// Stopped; `saved` is the step up to which the run is saved.
    Stopped {
        /// Why.
        reason: StopReason,
        /// The step.
        saved: Option<u32>,
        /// Whether somebody was told who starts the next attempt.
        reported: bool,
    },
}

/// Does the job in this file.
///
/// # Errors
/// What ended the job. It has been reported when the job names somebody to report to.
pub async fn run(location: &Location, stop: Stop) -> Result<Ended> {
    let job: TrainJob = Store::default().get_json(location, "train job").await?;
    match job.control.clone() {
        Some(control) => under_control(job, control, stop).await,
        None => match work(job, stop).await {
            Ok(report) => Ok(Ended::Done(Box::new(report))),
            Err(Halt::Stopped { reason, saved }) => Ok(Ended::Stopped { reason, saved, reported: false }),
            Err(Halt::Failed(error)) => Err(error),
        },
    }
}

async fn under_control(job: TrainJob, control: Control, stop: Stop) -> Result<Ended> {
    let controller = Controller::new(control, &tunesmith_aws::config().await, stop.clone());
    let outcome = match controller.begin().await {
        Ok(()) => {
            let keeping = tokio::spawn(controller.clone().keep());
            let watching = tokio::spawn(interrupt::watch_spot(stop.clone()));
            let outcome = work(job, stop).await;
            keeping.abort();
            watching.abort();
            outcome
        }
        Err(error) => Err(Halt::from(error)),
    };
    // before the report: what follows in the pipeline settles the final meter
    let stopped = match &outcome {
        Err(Halt::Stopped { reason, .. }) => Some(reason),
        _ => None,
    };
    controller.close(stopped).await;
    match outcome {
        Ok(report) => {
            controller.succeed(&report).await?;
            Ok(Ended::Done(Box::new(report)))
        }
        Err(Halt::Stopped { reason, saved }) => {
            if let Some(failure) = reason.failure(&saved_text(saved)) {
                controller.fail(&failure).await?;
            }
            Ok(Ended::Stopped { reason, saved, reported: true })
        }
        Err(Halt::Failed(error)) => {
            if let Err(unreported) = controller.fail(&Failure::from(&error)).await {
                tracing::error!(error = %unreported, "the failure could not be reported");
            }
            Err(error)
        }
    }
}

/// The work in a task of its own, so that a panic in it is a failure to report and not the end of the process.
async fn work(job: TrainJob, stop: Stop) -> Result<TrainReport, Halt> {
    let context = Arc::new(Context::new(stop, job.control.clone())?);
    let working = tokio::spawn(async move { train::run(&job, &context).await });
    match working.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(TrainerError::panicked(error.into_panic().as_ref()).into()),
        Err(error) => Err(TrainerError::Panicked { message: error.to_string() }.into()),
    }
}

/// What is saved, in words.
#[must_use]
pub fn saved_text(saved: Option<u32>) -> String {
    saved.map_or_else(
        || "no step was made in this attempt".to_owned(),
        |step| format!("the state after step {step} is saved"),
    )
}
