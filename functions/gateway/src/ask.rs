//! Asking the endpoint: passages, prompt, invocation, answer.
//!
//! A stream is asked for with `InvokeEndpointWithResponseStream`. Where the endpoint cannot stream (SageMaker then answers
//! with a validation error; serverless endpoints may), the whole answer is fetched with `InvokeEndpoint` and sent as a stream
//! of one text: a client that asked for a stream always gets one.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{self, UnboundedSender};
use tunesmith_aws::{AwsError, sagemaker_runtime::AnswerStream};
use tunesmith_contract::{UnixTime, deployment::LiveRecord, documents::Message};
use tunesmith_lambda::{Metric, Unit, publish_metrics};
use tunesmith_serving::{
    openai::{ApiError, Invocation, InvocationKind, Source},
    prompt::{Excerpt, with_sources},
    sse,
};

use crate::{
    Clients,
    account::Account,
    answer::Answer,
    library::Passage,
    relay::{Form, Kind, Relay, WholeAnswer, container_error, replay, whole},
};

/// Characters of passages put before a question, until an endpoint says how much its model has room for: three passages of
/// the index's usual length.
pub(crate) const FIRST_ROOM: usize = 3600;

/// How often passages are shortened for one question before giving up.
const SHORTENINGS: usize = 4;

/// A question, checked and resolved.
pub(crate) struct Question {
    /// What to ask the endpoint.
    pub invocation: Invocation,
    /// The model's name as the client said it.
    pub model: String,
    /// Where the model is.
    pub live: LiveRecord,
    /// Whether the client wants a stream.
    pub stream: bool,
    /// Whether it wants the usage at its end.
    pub include_usage: bool,
}

/// The endpoint's answer.
enum Reached {
    Whole(Bytes),
    Stream(Box<AnswerStream>),
}

/// Answers a question and accounts for it.
pub(crate) async fn ask(
    clients: &Arc<Clients>,
    account: Account,
    question: Question,
    now: UnixTime,
) -> Result<Answer, ApiError> {
    let prompt_estimate = estimate(&question);
    let reservation = account
        .reserve(&clients.table, &question.live, prompt_estimate + most_tokens(&question.invocation), now)
        .await?;
    match reach(clients, &account, question).await {
        Ok((Reached::Whole(body), form, stream)) => {
            let answer = match whole(&body, form.clone()) {
                Ok(answer) => answer,
                Err(error) => {
                    reservation.settle(&clients.table, prompt_estimate).await;
                    return Err(error);
                }
            };
            let usage = answer.usage();
            reservation.settle(&clients.table, usage.total_tokens).await;
            measure(now, &account, &form.model, usage.total_tokens);
            if stream {
                let (send, parts) = mpsc::unbounded_channel();
                for event in replay(answer, form.include_usage) {
                    let _ = send.send(event.into());
                }
                return Ok(Answer::events(parts));
            }
            match answer {
                WholeAnswer::Chat(reply) => Answer::json(&reply),
                WholeAnswer::Completion(completion) => Answer::json(&completion),
            }
        }
        Ok((Reached::Stream(stream), form, _)) => {
            let (send, parts) = mpsc::unbounded_channel();
            let clients = Arc::clone(clients);
            tokio::spawn(async move {
                let model = form.model.clone();
                let used = pass_on(*stream, Relay::new(form), &send, prompt_estimate).await;
                // settled before the stream ends: Lambda freezes the container after that
                reservation.settle(&clients.table, used).await;
                measure(now, &account, &model, used);
            });
            Ok(Answer::events(parts))
        }
        Err(error) => {
            reservation.settle(&clients.table, 0).await;
            Err(error)
        }
    }
}

/// Passes a stream on to its end; returns the tokens used. The sender is kept by the caller, so that the client's stream
/// ends only after the accounts are settled.
async fn pass_on(mut stream: AnswerStream, mut relay: Relay, send: &UnboundedSender<Bytes>, estimate: u64) -> u64 {
    let failed = loop {
        let events = match stream.next().await {
            Ok(None) => break relay.finish().map(|done| drop(send.send(done.into()))).err(),
            Ok(Some(bytes)) => relay.push(&bytes),
            Err(error) => Err(refusal(&error)),
        };
        match events {
            Ok(events) if events.is_empty() => {}
            Ok(events) => {
                if send.send(events.concat().into()).is_err() {
                    tracing::info!("the client went away");
                    break None;
                }
            }
            Err(error) => break Some(error),
        }
    };
    if let Some(error) = failed {
        tracing::error!(status = error.status, message = %error.body.message, "the answer broke off");
        let _ = send.send(sse::event(&error.to_json()).into());
    }
    relay.used(estimate)
}

/// Finds passages, writes the prompt and invokes the endpoint; with shorter passages when the model says it has no room.
async fn reach(clients: &Clients, account: &Account, question: Question) -> Result<(Reached, Form, bool), ApiError> {
    let Question { mut invocation, model, live, stream, include_usage } = question;
    let InvocationKind::Chat(chat) = &invocation.kind else {
        let form = Form { kind: Kind::Completion, model, sources: None, include_usage };
        return Ok((invoke(clients, &live, &mut invocation, stream).await.map_err(|e| refusal(&e))?, form, stream));
    };
    let passages = passages(clients, account, &live, chat.question()).await?;
    let asked = chat.messages.clone();
    let mut shortenings = 0;
    loop {
        let room = clients.room(&live.endpoint);
        let used = write_prompt(&mut invocation, &asked, &passages, room);
        let error = match invoke(clients, &live, &mut invocation, stream).await {
            Ok(reached) => {
                let sources = (live.retrieved_passages > 0).then(|| sources(&passages, used));
                return Ok((reached, Form { kind: Kind::Chat, model, sources, include_usage }, stream));
            }
            Err(error) => refusal(&error),
        };
        let shorter = error.body.context.and_then(|context| {
            let chars = match &invocation.kind {
                InvocationKind::Chat(chat) => chat.messages.iter().map(|m| m.content.chars().count()).sum(),
                _ => 0,
            };
            shorter(room, chars, context.tokens, context.limit)
        });
        match shorter {
            Some(shorter) if used > 0 && shortenings < SHORTENINGS => {
                tracing::info!(endpoint = %live.endpoint, room, shorter, "passages shortened to the model's context");
                clients.set_room(&live.endpoint, shorter);
                shortenings += 1;
            }
            _ => return Err(error),
        }
    }
}

/// The room for passages after a prompt of `chars` characters was `tokens` tokens where `limit` fit; `None` when it is as
/// small as it can be. A tenth more is taken away than needed, since characters are not tokens.
fn shorter(room: usize, chars: usize, tokens: usize, limit: usize) -> Option<usize> {
    let chars_per_token = chars as f64 / tokens.max(1) as f64;
    let excess = tokens.saturating_sub(limit) as f64 * chars_per_token * 1.1 + 32.0;
    (room > 0).then(|| room.saturating_sub(excess as usize))
}

fn write_prompt(invocation: &mut Invocation, asked: &[Message], passages: &[Passage], room: usize) -> usize {
    let InvocationKind::Chat(chat) = &mut invocation.kind else { return 0 };
    let excerpts: Vec<Excerpt<'_>> =
        passages.iter().map(|p| Excerpt { headings: &p.chunk.headings, text: &p.chunk.text }).collect();
    let (messages, used) = with_sources(asked, &excerpts, room);
    chat.messages = messages;
    used
}

async fn passages(
    clients: &Clients,
    account: &Account,
    live: &LiveRecord,
    question: &str,
) -> Result<Vec<Passage>, ApiError> {
    if live.retrieved_passages == 0 {
        return Ok(Vec::new());
    }
    let limit = live.retrieved_passages as usize;
    clients.library.find(account.project(), &live.index, question.to_owned(), limit).await.map_err(|error| {
        tracing::error!(%error, index = %live.index, "passages could not be found");
        ApiError::unavailable("index_unavailable", "the documents cannot be searched now; try again", 5)
    })
}

fn sources(passages: &[Passage], used: usize) -> Vec<Source> {
    let source = |p: &Passage| Source {
        path: p.chunk.path.clone(),
        page: p.chunk.page,
        headings: p.chunk.headings.clone(),
        score: p.score,
    };
    passages.iter().take(used).map(source).collect()
}

async fn invoke(
    clients: &Clients,
    live: &LiveRecord,
    invocation: &mut Invocation,
    stream: bool,
) -> Result<Reached, AwsError> {
    if stream {
        set_stream(invocation, true);
        match clients.runtime.invoke_stream(&live.endpoint, invocation.to_json()).await {
            Ok(answer) => return Ok(Reached::Stream(Box::new(answer))),
            Err(error) if cannot_stream(&error) => {
                tracing::warn!(%error, endpoint = %live.endpoint, "the endpoint does not stream; asking for the whole answer");
            }
            Err(error) => return Err(error),
        }
    }
    set_stream(invocation, false);
    clients.runtime.invoke(&live.endpoint, invocation.to_json()).await.map(Reached::Whole)
}

fn cannot_stream(error: &AwsError) -> bool {
    matches!(error.code.as_str(), "ValidationError" | "ValidationException")
}

fn set_stream(invocation: &mut Invocation, stream: bool) {
    match &mut invocation.kind {
        InvocationKind::Chat(request) => request.options.set_stream(stream),
        InvocationKind::Completion(request) => request.options.set_stream(stream),
        InvocationKind::Logits(_) => {}
    }
}

/// What the client is told of an endpoint that did not answer.
fn refusal(error: &AwsError) -> ApiError {
    // what the container said of the request (its length, its template's rules) is the client's to know
    if let Some(said) = container_error(&error.message).filter(|said| matches!(said.status, 400..=499)) {
        return said;
    }
    tracing::error!(%error, "the endpoint did not answer");
    let not_ready = matches!(
        error.code.as_str(),
        "ModelNotReadyException"
            | "ServiceUnavailable"
            | "ServiceUnavailableException"
            | "ValidationError"
            | "ValidationException"
    );
    if not_ready {
        ApiError::unavailable("endpoint_not_ready", "the model is being started or updated; try again", 15)
    } else if error.retryable {
        ApiError::unavailable("endpoint_unavailable", "the model is overloaded or starting; try again", 5)
    } else {
        ApiError::bad_gateway("the model could not be reached; tell the project's operator")
    }
}

/// Tokens the prompt may have, before the model has counted them: a token of English is about four bytes, of other
/// languages three or fewer; passages are counted with the room they have.
fn estimate(question: &Question) -> u64 {
    let bytes: usize = match &question.invocation.kind {
        InvocationKind::Chat(chat) => {
            let passages = if question.live.retrieved_passages > 0 { FIRST_ROOM } else { 0 };
            chat.messages.iter().map(|message| message.content.len()).sum::<usize>() + passages
        }
        InvocationKind::Completion(completion) => completion.prompt.len(),
        InvocationKind::Logits(tokens) => tokens.len(),
    };
    bytes.div_ceil(3) as u64
}

fn most_tokens(invocation: &Invocation) -> u64 {
    let options = match &invocation.kind {
        InvocationKind::Chat(request) => &request.options,
        InvocationKind::Completion(request) => &request.options,
        InvocationKind::Logits(_) => return 0,
    };
    u64::from(options.max_tokens.unwrap_or_default())
}

fn measure(now: UnixTime, account: &Account, model: &str, tokens: u64) {
    tracing::info!(project = %account.project(), model, tokens, "answered");
    publish_metrics(
        now,
        &[
            Metric { name: "Answers", unit: Unit::Count, value: 1.0 },
            Metric { name: "Tokens", unit: Unit::Count, value: tokens as f64 },
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_shrinks_by_what_was_too_much() {
        // 4000 characters were 1100 tokens, 768 fit: about 1207 characters, a tenth and a little more
        assert_eq!(shorter(3600, 4000, 1100, 768), Some(3600 - 1360));
        assert_eq!(shorter(100, 9000, 3000, 10), Some(0));
        assert_eq!(shorter(0, 9000, 3000, 10), None, "the question alone is too long: nothing left to shorten");
    }

    #[test]
    fn the_containers_refusals_reach_the_client_and_others_do_not() {
        let error = |code: &str, message: String, retryable| AwsError {
            service: "sagemaker-runtime",
            operation: "InvokeEndpoint",
            code: code.into(),
            message,
            retryable,
        };
        let said = ApiError::invalid(Some("messages"), "roles must alternate");
        let status = |e: AwsError| refusal(&e).status;
        let words = format!("the container answered 400: {}", said.to_json());
        assert_eq!(refusal(&error("ModelError", words, false)), said);
        let secret = "the container answered 500: {\"error\":{\"message\":\"/opt/x\",\"type\":\"t\",\"param\":null,\"code\":null}}";
        let hidden = refusal(&error("ModelError", secret.into(), true));
        assert!(hidden.status == 503 && !hidden.body.message.contains("/opt"));
        assert_eq!(status(error("ValidationError", "Endpoint x not found".into(), false)), 503);
        assert_eq!(status(error("AccessDeniedException", "no".into(), false)), 502);
    }
}
