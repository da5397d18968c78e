//! An answer as server-sent events, in the order that OpenAI sends them: role, text, reason of the end, usage, `[DONE]`.

use std::convert::Infallible;

use futures::{Stream, StreamExt as _, stream};
use serde::Serialize;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    engine::{EngineError, Piece, Pieces},
    openai::{Delta, Heading},
    sse,
};

/// A chat completion in parts.
pub(super) fn chat(
    heading: Heading,
    pieces: Pieces,
    include_usage: bool,
) -> impl Stream<Item = Result<String, Infallible>> + Send + 'static {
    let first = Delta { role: Some("assistant".into()), content: Some(String::new()) };
    let start = event(&heading.chunk(Some((first, None))));
    let rest = UnboundedReceiverStream::new(pieces).map(move |piece| match piece {
        Ok(Piece::Text(text)) => event(&heading.chunk(Some((Delta { role: None, content: Some(text) }, None)))),
        Ok(Piece::Done { finish, usage }) => {
            let mut events = event(&heading.chunk(Some((Delta::default(), Some(finish)))));
            if include_usage {
                let mut last = heading.chunk(None);
                last.usage = Some(usage);
                events.push_str(&event(&last));
            }
            events
        }
        Err(error) => failure(&error, "messages"),
    });
    stream::iter([start]).chain(rest).chain(stream::iter([sse::event(sse::DONE)])).map(Ok)
}

/// A completion in parts.
pub(super) fn completion(
    heading: Heading,
    pieces: Pieces,
    include_usage: bool,
) -> impl Stream<Item = Result<String, Infallible>> + Send + 'static {
    UnboundedReceiverStream::new(pieces)
        .map(move |piece| match piece {
            Ok(Piece::Text(text)) => event(&heading.completion(Some((text, None)))),
            Ok(Piece::Done { finish, usage }) => {
                let mut events = event(&heading.completion(Some((String::new(), Some(finish)))));
                if include_usage {
                    let mut last = heading.completion(None);
                    last.usage = Some(usage);
                    events.push_str(&event(&last));
                }
                events
            }
            Err(error) => failure(&error, "prompt"),
        })
        .chain(stream::iter([sse::event(sse::DONE)]))
        .map(Ok)
}

/// The status is sent already: the error comes as an event, as OpenAI sends it.
fn failure(error: &EngineError, param: &str) -> String {
    sse::event(&error.to_api(param).to_json())
}

fn event(part: &impl Serialize) -> String {
    serde_json::to_string(part).map(|json| sse::event(&json)).unwrap_or_default()
}
