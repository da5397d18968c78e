//! Generation engine and the OpenAI-compatible API.
//!
//! Without features: the wire types ([`openai`]), server-sent events ([`sse`]) and the prompt with its sources ([`prompt`]),
//! which the gateway and the engine share. With feature `engine`: sampling, the engine and its HTTP server, which the
//! container runs.

#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "engine")]
pub mod http;
pub mod openai;
pub mod prompt;
#[cfg(feature = "engine")]
mod sampling;
pub mod sse;
#[cfg(feature = "engine")]
mod stop;

#[cfg(feature = "engine")]
pub use engine::{Engine, Limits, ServedModel};
