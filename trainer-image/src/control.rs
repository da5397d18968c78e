//! The machine under control: heartbeats to the waiting state machine, the lease, the meter, the last report.
//!
//! Invariant: without an active lease nothing runs. The lease is renewed before anything is fetched, then with every heartbeat;
//! whoever revokes or closes it stops the work. The trainer may close the lease at the same moment as `sweep-resources`: both
//! writes are conditional, the first counts.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::Mutex;
use tunesmith_aws::{
    AwsError, Config,
    dynamodb::{Conditional, Expression, Table},
    sfn::{Answered, StepFunctions},
};
use tunesmith_contract::{
    Seconds, UnixTime,
    error_name::Failure,
    job::{Control, TrainReport},
    ledger::{ItemKey, LEASE_TIME, Lease, LeaseStatus},
};

use crate::{
    clock::now,
    meter,
    stop::{Stop, StopReason},
};

/// Keeps one attempt under control. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Controller {
    control: Arc<Control>,
    table: Table,
    sfn: StepFunctions,
    lease: Arc<Mutex<Option<Lease>>>,
    stop: Stop,
}

impl Controller {
    /// A controller for this attempt; nothing is called yet.
    #[must_use]
    pub fn new(control: Control, config: &Config, stop: Stop) -> Self {
        let table = Table::new(config, &control.table);
        Self { control: Arc::new(control), table, sfn: StepFunctions::new(config), lease: Arc::default(), stop }
    }

    /// The attempt.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Asks for permission to run: renews the lease and tells the state machine that the machine is up.
    /// When it may not run, the reason to stop has been given to [`Stop`].
    pub async fn begin(&self) -> Result<(), AwsError> {
        self.renew(now()).await?;
        self.heartbeat().await
    }

    /// Renews, heartbeats and watches cap and time until it is dropped. Never returns.
    pub async fn keep(self) {
        tokio::join!(self.stop_at_cap(), self.beat());
    }

    async fn stop_at_cap(&self) {
        let left = meter::stop_at(&self.control).since(now());
        tokio::time::sleep(Duration::from_secs(left.0)).await;
        self.stop.ask(meter::cap_reached(&self.control, now()));
    }

    async fn beat(&self) {
        let every = Duration::from_secs(self.control.heartbeat_every.0.max(1));
        loop {
            tokio::time::sleep(every).await;
            let at = now();
            if let Err(error) = self.renew(at).await {
                tracing::warn!(%error, "the lease could not be renewed");
                if self.expires_within(now(), every).await {
                    self.stop.ask(StopReason::LeaseLost);
                }
            }
            if let Err(error) = self.heartbeat().await {
                // the state machine gives up by itself after its HeartbeatSeconds; until then the next try may succeed
                tracing::warn!(%error, "the heartbeat failed");
            }
        }
    }

    async fn heartbeat(&self) -> Result<(), AwsError> {
        if self.sfn.send_task_heartbeat(&self.control.task_token).await? == Answered::TimedOut {
            self.stop.ask(StopReason::TaskGone);
        }
        Ok(())
    }

    /// Only an active lease can be renewed: one that was revoked, closed or deleted ends the work.
    async fn renew(&self, at: UnixTime) -> Result<(), AwsError> {
        let update = Expression::new("SET expires_at = :expires, metered = :metered")
            .value(":expires", at.after(LEASE_TIME))
            .value(":metered", meter::metered(&self.control, at));
        let condition =
            Expression::new("#status = :active").name("#status", "status").value(":active", LeaseStatus::Active);
        match self.table.update::<Lease>(&self.key(), update, Some(condition)).await? {
            Conditional::Done(lease) => *self.lease.lock().await = Some(lease),
            Conditional::ConditionFailed => {
                let found: Option<Lease> = self.table.get(&self.key()).await?;
                let revoked = found.is_some_and(|lease| lease.status == LeaseStatus::Revoked);
                self.stop.ask(if revoked { StopReason::LeaseRevoked } else { StopReason::LeaseLost });
            }
        }
        Ok(())
    }

    async fn expires_within(&self, at: UnixTime, time: Duration) -> bool {
        let lease = self.lease.lock().await;
        lease.as_ref().is_none_or(|lease| lease.expires_at <= at.after(Seconds(time.as_secs())))
    }

    /// Closes the lease with its final meter; `stopped` is why the work ended before it was done. Closing twice, or after
    /// somebody else did, changes nothing.
    pub async fn close(&self, stopped: Option<&StopReason>) {
        let at = now();
        let key = self.key();
        let known = self.lease.lock().await.clone();
        let lease = match known {
            Some(lease) => Some(lease),
            None => self.logged("reading the lease", self.table.get::<Lease>(&key)).await.flatten(),
        };
        let Some(lease) = lease else { return };
        let closed = lease.closed_at(at);
        let closed = Lease {
            interrupted: stopped.is_some_and(StopReason::is_interruption),
            metered: closed.metered.max(meter::metered(&self.control, at)),
            ..closed
        };
        match self.logged("closing the lease", self.table.close_lease(&closed)).await {
            Some(Conditional::Done(lease)) => tracing::info!(metered = %lease.metered, "the lease is closed"),
            Some(Conditional::ConditionFailed) => tracing::info!("the lease was closed by somebody else"),
            None => {}
        }
    }

    /// Reports success. The lease must be closed before: the pipeline settles the final meter next.
    pub async fn succeed(&self, report: &TrainReport) -> Result<(), AwsError> {
        let answered = self.sfn.send_task_success(&self.control.task_token, report).await?;
        self.note(answered);
        Ok(())
    }

    /// Reports a failure.
    pub async fn fail(&self, failure: &Failure) -> Result<(), AwsError> {
        let answered = self.sfn.send_task_failure(&self.control.task_token, failure).await?;
        self.note(answered);
        Ok(())
    }

    fn note(&self, answered: Answered) {
        match answered {
            Answered::Delivered => tracing::info!(attempt = self.control.attempt, "reported"),
            Answered::TimedOut => {
                tracing::warn!(attempt = self.control.attempt, "nobody waits for this attempt any more")
            }
        }
    }

    async fn logged<T>(&self, what: &str, work: impl Future<Output = Result<T, AwsError>>) -> Option<T> {
        let result = work.await;
        if let Err(error) = &result {
            // sweep-resources closes what was left open
            tracing::warn!(%error, "{what} failed");
        }
        result.ok()
    }

    fn key(&self) -> ItemKey {
        ItemKey::lease(&self.control.attempt)
    }
}
