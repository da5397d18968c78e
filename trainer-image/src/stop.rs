//! Being asked to stop: by the spot market, a signal, the cap, the lease or a state machine that no longer waits.
//!
//! Whoever notices calls [`Stop::ask`]; the first reason counts. Work between two steps looks with [`Stop::asked`]; work that
//! can be dropped at any moment (downloads) runs inside [`Stop::or`].

use std::{fmt, future::Future, sync::Arc};

use tokio::sync::watch;
use tunesmith_contract::{ErrorName, Seconds, Usd, error_name::Failure};

/// Why work ends before it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// AWS takes the spot machine back.
    SpotNotice {
        /// `terminate`, `stop` or `hibernate`.
        action: String,
        /// When, as AWS writes it.
        time: String,
    },
    /// A signal: `docker stop`, a shutdown, Ctrl-C.
    Signal(Signal),
    /// Money or time is nearly used up.
    CapReached {
        /// What may be spent.
        cap: Usd,
        /// How long it may run.
        max_time: Seconds,
        /// What was spent.
        metered: Usd,
        /// How long it ran.
        elapsed: Seconds,
    },
    /// The lease was revoked: by a person, `watch-costs` or a pipeline that failed.
    LeaseRevoked,
    /// There is no lease, it was closed by somebody else, or it could not be renewed in time.
    LeaseLost,
    /// The task token is no longer waited for.
    TaskGone,
}

/// The signals that are obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// `kill`, `docker stop`, shutdown.
    Terminate,
}

impl Signal {
    /// Exit status of a command that a person's shell ran and a signal ended.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpotNotice { action, time } => write!(f, "AWS will {action} this spot machine at {time}"),
            Self::Signal(Signal::Interrupt) => write!(f, "interrupted"),
            Self::Signal(Signal::Terminate) => write!(f, "told to terminate"),
            Self::CapReached { cap, max_time, metered, elapsed } => {
                write!(f, "{metered} of {cap} and {} of {} seconds are used", elapsed.0, max_time.0)
            }
            Self::LeaseRevoked => write!(f, "the machine's lease was revoked"),
            Self::LeaseLost => write!(f, "the machine's lease is gone or could not be renewed"),
            Self::TaskGone => write!(f, "the state machine no longer waits for this attempt"),
        }
    }
}

impl StopReason {
    /// Whether the machine was taken away before its work was done: that counts on the way to on-demand machines.
    #[must_use]
    pub const fn is_interruption(&self) -> bool {
        matches!(self, Self::SpotNotice { .. } | Self::Signal(_))
    }

    /// What the waiting state machine is told; `None` when nobody waits.
    #[must_use]
    pub fn failure(&self, saved: &str) -> Option<Failure> {
        let name = match self {
            Self::SpotNotice { .. } | Self::Signal(_) => ErrorName::SpotInterrupted,
            Self::CapReached { .. } | Self::LeaseRevoked => ErrorName::CapReached,
            Self::LeaseLost | Self::TaskGone => return None,
        };
        Some(Failure::new(name, format!("{self}; {saved}. {}", name.remedy())))
    }
}

/// The flag that everybody shares. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stop {
    asked: Arc<watch::Sender<Option<StopReason>>>,
}

impl Default for Stop {
    fn default() -> Self {
        Self { asked: Arc::new(watch::Sender::new(None)) }
    }
}

impl Stop {
    /// Asks to stop. Only the first reason counts.
    pub fn ask(&self, reason: StopReason) {
        self.asked.send_if_modified(|asked| {
            let first = asked.is_none();
            if first {
                tracing::warn!(%reason, "stopping");
                *asked = Some(reason);
            }
            first
        });
    }

    /// Why to stop, if somebody asked.
    #[must_use]
    pub fn asked(&self) -> Option<StopReason> {
        self.asked.borrow().clone()
    }

    /// Returns when somebody asks.
    pub async fn wait(&self) -> StopReason {
        let mut receiver = self.asked.subscribe();
        // the sender lives as long as `self`, so waiting cannot fail; if it did, nobody could ever ask
        let seen = receiver.wait_for(Option::is_some).await.ok().and_then(|seen| seen.clone());
        match seen {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// The work's result, or the reason when somebody asks before it is done; the work is dropped then.
    pub async fn or<T>(&self, work: impl Future<Output = T>) -> Result<T, StopReason> {
        tokio::select! {
            biased;
            reason = self.wait() => Err(reason),
            done = work => Ok(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_counts_and_ends_waiting_work() {
        let stop = Stop::default();
        assert_eq!(stop.or(async { 1 }).await, Ok(1));
        stop.ask(StopReason::TaskGone);
        stop.ask(StopReason::LeaseRevoked);
        assert_eq!(stop.asked(), Some(StopReason::TaskGone));
        assert_eq!(stop.or(std::future::pending::<()>()).await, Err(StopReason::TaskGone));
    }

    #[test]
    fn each_reason_is_reported_under_its_name_or_to_nobody() {
        let spot = StopReason::SpotNotice { action: "terminate".into(), time: "2026-11-20T00:00:00Z".into() };
        let cap = StopReason::CapReached {
            cap: Usd::from_micros(20_000),
            max_time: Seconds(60),
            metered: Usd::from_micros(19_000),
            elapsed: Seconds(57),
        };
        for (reason, name) in [
            (spot, Some(ErrorName::SpotInterrupted)),
            (StopReason::Signal(Signal::Terminate), Some(ErrorName::SpotInterrupted)),
            (cap, Some(ErrorName::CapReached)),
            (StopReason::LeaseRevoked, Some(ErrorName::CapReached)),
            (StopReason::LeaseLost, None),
            (StopReason::TaskGone, None),
        ] {
            let failure = reason.failure("step 5 of 9 is saved");
            assert_eq!(failure.as_ref().map(|f| f.name), name, "{reason}");
            assert!(failure.is_none_or(|f| f.message.contains("step 5 of 9")), "{reason}");
        }
    }
}
