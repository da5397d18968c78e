//! The closed list of failure names. Lambda errors carry one as `errorType`, the trainer reports one to Step Functions,
//! the state machines match these names and nothing else, and `docs/errors.md` explains each.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! error_names {
    ($($name:ident, $retry:literal, $cause:literal, $remedy:literal;)*) => {
        /// The name of a failure.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorName {
            $(#[doc = $cause] $name,)*
        }

        impl ErrorName {
            /// Every name.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name as Step Functions sees it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Whether doing the same again can help.
            #[must_use]
            pub const fn is_retryable(self) -> bool {
                match self { $(Self::$name => $retry,)* }
            }

            /// What happened, for people.
            #[must_use]
            pub const fn cause(self) -> &'static str {
                match self { $(Self::$name => $cause,)* }
            }

            /// What to do about it.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }
        }
    };
}

error_names! {
    InvalidInput, false, "The task's input does not have the documented shape.", "Compare the input with the fixtures in events/.";
    SettingsInvalid, false, "project.toml has an unknown key, a wrong type or an impossible value.", "Correct the key and line that the message names and upload the file again.";
    NotEnoughText, false, "The documents hold too little text to train and test on.", "Upload more documents, or lower data.minimum_words in project.toml.";
    UnknownBaseModel, false, "The base model is neither in models/ of the workspace bucket nor loadable.", "Upload the model's files to models/<name>/ or correct base_model in project.toml.";
    BudgetMissing, false, "The project has no budget.", "Set budget.monthly_limit_usd in project.toml.";
    BudgetExceeded, false, "The quote does not fit into what is left of the budget.", "Raise budget.monthly_limit_usd, choose a smaller model or fewer epochs, or wait for the next month.";
    QuotaExceeded, false, "A quota of the account is too small.", "Ask for a higher quota in the Service Quotas console; or allow other instances, or lower serving.memory_mb, in project.toml.";
    NoCapacity, true, "AWS has no free machine of the allowed instance types.", "Nothing to do: the pipeline tries again; allow more instance types to be faster.";
    SpotInterrupted, true, "AWS took the spot machine back; training was checkpointed.", "Nothing to do: the pipeline resumes from the last checkpoint.";
    MachineLost, true, "The training machine stopped reporting.", "Nothing to do: the pipeline resumes from the last checkpoint. If it repeats, read the machine's console output; a machine with a GPU pulls the image's tag with -cuda added: push that image, or name machines without a GPU in machines.allowed.";
    CapReached, false, "The run reached the money or time it had reserved and was stopped, checkpointed.", "Raise budget.max_run_usd, or train fewer epochs.";
    TrainingFailed, false, "The trainer stopped with an error.", "Read the cause and the log of the run.";
    TrainingDiverged, false, "The loss became infinite or not a number.", "Lower training.learning_rate, or look at the batch that the cause names.";
    EvaluationMissing, false, "The run has no evaluation.", "Start the pipeline again: the run resumes and evaluates.";
    ApprovalUnknown, false, "There is no approval waiting for this run, it was not approved, or the link is wrong.", "Open the link of the newest e-mail, or look for the waiting execution in the Step Functions console.";
    ApprovalAnswered, false, "The approval was answered before, or has expired.", "Nothing to do; start the pipeline again for a new decision.";
    EndpointNotReady, true, "The endpoint is still being created, or an earlier one of the same run deleted.", "Nothing to do: the pipeline waits.";
    EndpointFailed, false, "The endpoint could not be created, was deleted while it was checked, or is live with another kind or price than was approved; what is live stays.", "Read the failure reason in the mail; then start approve-deployment with the run: it is deployed again without training.";
    VerificationFailed, false, "The endpoint answers differently from what was trained; what is live stays.", "Compare the run's reference-logits.json with the endpoint; check the container image's version.";
    NotFound, false, "Something that an earlier step must have written is missing.", "Start the pipeline again; if it repeats, restore the object from the bucket's versions.";
    AccessDenied, false, "The role may not do this.", "Compare the role with docs/security.md; redeploy if it was changed.";
    ServiceUnavailable, true, "An AWS service throttled the call or was unavailable.", "Nothing to do: the pipeline tries again.";
    Internal, false, "A defect in Tunesmith.", "Report it with the log lines of this run.";
}

impl fmt::Display for ErrorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure on its way to a person or a state machine: its name, and its cause with values and remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{name}: {message}")]
pub struct Failure {
    /// The name that state machines match.
    pub name: ErrorName,
    /// What happened, with values, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure with this message, which says what to do: in its own words, or with [`ErrorName::remedy`].
    pub fn new(name: ErrorName, message: impl Into<String>) -> Self {
        Self { name, message: message.into() }
    }

    /// [`ErrorName::NotFound`]: an earlier step must have written `what` (`the plan`) of a run or dataset, and it is not there.
    #[must_use]
    pub fn missing(what: &str, id: &impl fmt::Display) -> Self {
        let name = ErrorName::NotFound;
        Self::new(name, format!("{what} of {id} is missing. {}", name.remedy()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        let failure = Failure::missing("the plan", &"run-0123456789ab");
        assert_eq!(failure.name, ErrorName::NotFound);
        assert!(failure.message.starts_with("the plan of run-0123456789ab is missing. Start the pipeline again"));
    }
}
