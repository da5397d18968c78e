//! The OpenAI API's chat completions, completions and models, as far as clients use them.
//! Source: the OpenAI API reference ("Create chat completion", "Create completion", "List models").

mod error;
mod request;
mod response;

pub use error::{ApiError, ContextUse, ErrorBody};
pub use request::{ChatRequest, CompletionRequest, Invocation, InvocationKind, Options, StreamOptions, Weights};
pub use response::{
    Choice, ChoiceDelta, Completion, Delta, FinishReason, Heading, LogitsAnswer, ModelCard, ModelList, Reply,
    ReplyMessage, Source, StreamChunk, TextChoice, Usage,
};
