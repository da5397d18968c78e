//! How work ends before it is done: stopped, or failed.

use crate::{error::TrainerError, stop::StopReason};

/// The `Err` of everything that can be stopped.
#[derive(Debug)]
pub enum Halt {
    /// Somebody asked; what was saved is in `saved`.
    Stopped {
        /// Why.
        reason: StopReason,
        /// The step up to which the run is saved.
        saved: Option<u32>,
    },
    /// It failed.
    Failed(TrainerError),
}

impl Halt {
    /// The same, with what was saved before.
    #[must_use]
    pub fn saved_at(self, step: u32) -> Self {
        match self {
            Self::Stopped { reason, saved } => Self::Stopped { reason, saved: saved.or(Some(step)) },
            failed @ Self::Failed(_) => failed,
        }
    }
}

impl From<StopReason> for Halt {
    fn from(reason: StopReason) -> Self {
        Self::Stopped { reason, saved: None }
    }
}

impl<E: Into<TrainerError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
