//! The engine: one model, one worker, a bounded queue of requests.
//!
//! A worker thread answers one request after the other, each with all cores: on CPU two at once would share the same memory
//! bandwidth and both be late. A request whose receiver is dropped, because its client went away, ends at its next token.

mod model;
mod worker;

use tokio::sync::mpsc::{self, UnboundedReceiver};
use tunesmith_contract::documents::Message;

use crate::openai::{ApiError, FinishReason, Options, Usage, Weights};

pub use model::ServedModel;
use worker::{Generation, Job, Work};

/// A prompt must leave room for the answer asked for, or for this part of the context, whichever is less.
const MIN_ANSWER_SHARE: usize = 4;

/// What the engine accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests that may wait; the next one is answered with 503.
    pub queue: usize,
    /// Tokens of an answer when the request does not say.
    pub default_tokens: u32,
    /// Most tokens of an answer, whatever the request says.
    pub max_tokens: u32,
}

impl Default for Limits {
    /// For an endpoint of one CPU container: SageMaker ends a request after 60 seconds.
    fn default() -> Self {
        Self { queue: 32, default_tokens: 256, max_tokens: 2048 }
    }
}

/// What is to be continued.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Prompt<'a> {
    /// A conversation, written by the model's own chat template.
    Chat(&'a [Message]),
    /// Plain text.
    Text(&'a str),
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Whole characters, never empty.
    Text(String),
    /// The end.
    Done {
        /// Why.
        finish: FinishReason,
        /// Tokens used.
        usage: Usage,
    },
}

/// Why the engine did not answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The prompt does not fit.
    #[error("the prompt has {tokens} tokens, {limit} fit into this model; send a shorter one")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// How many fit.
        limit: usize,
    },
    /// The prompt cannot be written or read by the model; includes the chat template's own refusals.
    #[error("{0}")]
    Prompt(#[source] tunesmith_model::ModelError),
    /// Too many requests wait.
    #[error("{0} requests are waiting; try again later, or raise serving.max_concurrency")]
    Busy(usize),
    /// The model failed.
    #[error("the model failed: {0}")]
    Model(#[from] tunesmith_model::ModelError),
    /// The model's output cannot be used.
    #[error("{0}")]
    Output(String),
    /// The worker is gone.
    #[error("the engine has stopped; restart the server")]
    Stopped,
}

impl EngineError {
    /// As the API says it; `param` is the field that holds the prompt.
    #[must_use]
    pub fn to_api(&self, param: &str) -> ApiError {
        match self {
            Self::TooLong { tokens, limit } => ApiError::too_long(param, *tokens, *limit),
            Self::Prompt(error) => ApiError::invalid(Some(param), error.to_string()),
            Self::Busy(_) => ApiError::unavailable("engine_overloaded", self.to_string(), 5),
            Self::Model(_) | Self::Output(_) => ApiError::internal(self.to_string()),
            Self::Stopped => ApiError::unavailable("engine_stopped", self.to_string(), 30),
        }
    }
}

/// Parts of an answer, in order, up to [`Piece::Done`] or an error.
pub type Pieces = UnboundedReceiver<Result<Piece, EngineError>>;

/// A handle on the engine; cheap to clone. The worker ends with the last handle.
#[derive(Clone)]
pub struct Engine {
    model: std::sync::Arc<ServedModel>,
    limits: Limits,
    jobs: mpsc::Sender<Job>,
}

impl Engine {
    /// Starts the worker.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(model: ServedModel, limits: Limits) -> std::io::Result<Self> {
        let model = std::sync::Arc::new(model);
        let (jobs, queue) = mpsc::channel(limits.queue.max(1));
        let served = std::sync::Arc::clone(&model);
        std::thread::Builder::new().name("engine".into()).spawn(move || worker::run(&served, queue))?;
        Ok(Self { model, limits, jobs })
    }

    /// Queues a prompt and returns its answer as it grows. `seed` is used where the options name none.
    ///
    /// The channel is not bounded, so that a slow client never holds the worker up; what it can hold is, by `max_tokens`.
    ///
    /// # Errors
    /// At once, before any part: [`EngineError::TooLong`], [`EngineError::Prompt`], [`EngineError::Busy`].
    pub fn generate(
        &self,
        prompt: Prompt<'_>,
        options: Options,
        weights: Weights,
        seed: u64,
    ) -> Result<Pieces, EngineError> {
        let ids = self.model.encode(prompt).map_err(EngineError::Prompt)?;
        let context = self.model.context();
        let asked = options.max_tokens.unwrap_or(self.limits.default_tokens).clamp(1, self.limits.max_tokens) as usize;
        // an answer cut off after a few words helps nobody, a prompt refused for an answer it never needs neither
        let limit = context.saturating_sub(asked.min(context / MIN_ANSWER_SHARE).max(1));
        if ids.is_empty() || ids.len() > limit {
            return Err(EngineError::TooLong { tokens: ids.len(), limit });
        }
        let max_tokens = asked.min(context - ids.len());
        let (send, pieces) = mpsc::unbounded_channel();
        self.queue(Job { weights, work: Work::Generate(Generation { ids, options, max_tokens, seed, send }) })?;
        Ok(pieces)
    }

    /// Logits after `tokens`, one for each entry of the vocabulary.
    ///
    /// # Errors
    /// [`EngineError::Prompt`] for tokens outside the vocabulary or too many; [`EngineError::Busy`].
    pub async fn logits(&self, tokens: Vec<u32>, weights: Weights) -> Result<Vec<f32>, EngineError> {
        let (send, answer) = tokio::sync::oneshot::channel();
        self.queue(Job { weights, work: Work::Logits { tokens, send } })?;
        answer.await.map_err(|_| EngineError::Stopped)?
    }

    /// The model's name in the API.
    #[must_use]
    pub fn name(&self) -> &str {
        self.model.name()
    }

    /// Tokens that a prompt and its answer may have together.
    #[must_use]
    pub fn context(&self) -> usize {
        self.model.context()
    }

    fn queue(&self, job: Job) -> Result<(), EngineError> {
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => EngineError::Busy(self.limits.queue),
            mpsc::error::TrySendError::Closed(_) => EngineError::Stopped,
        })
    }
}
