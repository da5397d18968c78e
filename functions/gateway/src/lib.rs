//! Lambda function `gateway`: the OpenAI-compatible API behind a function URL with response streaming.
//!
//! key → limits → passages from the project's index → prompt → endpoint → answer with its sources. Every refusal has
//! OpenAI's shape; what cannot be checked (the table does not answer) is refused, never let through.
//!
//! `model` is the project's name, or with `:base` after it the base model without the project's adapter; both get the same
//! passages. Answers carry `sources`; in a stream they come with the part that says why the answer ended. Left out on
//! purpose: completions (`/v1/completions`) continue a text as it is and get no passages.

mod account;
mod answer;
mod ask;
mod event;
mod library;
mod relay;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tunesmith_aws::{dynamodb::Table, s3::S3, sagemaker_runtime::SageMakerRuntime};
use tunesmith_contract::{ProjectId, UnixTime, deployment::LiveRecord, ledger::ItemKey};
use tunesmith_serving::openai::{
    ApiError, ChatRequest, CompletionRequest, Invocation, InvocationKind, ModelCard, ModelList, Options, Weights,
};

pub use answer::{Answer, Parts};
pub use event::{Call, Route, parse_event};

use account::Account;
use library::Library;

/// Most tokens of one answer.
const MAX_ANSWER_TOKENS: u32 = 1024;
/// Tokens of an answer when the request does not say; OpenAI's default for completions is 16.
const DEFAULT_CHAT_TOKENS: u32 = 256;
const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// Clients and what a container keeps between requests.
pub struct Clients {
    table: Table,
    runtime: SageMakerRuntime,
    library: Library,
    /// Characters of passages that an endpoint's model was found to have room for.
    room: Mutex<HashMap<String, usize>>,
}

impl Clients {
    /// Clients of one container; nothing is fetched before the first question.
    #[must_use]
    pub fn new(config: &tunesmith_aws::Config, table: String, workspace_bucket: String) -> Self {
        Self {
            table: Table::new(config, table),
            runtime: SageMakerRuntime::new(config),
            library: Library::new(S3::new(config), workspace_bucket),
            room: Mutex::default(),
        }
    }

    fn room(&self, endpoint: &str) -> usize {
        let room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.get(endpoint).copied().unwrap_or(ask::FIRST_ROOM)
    }

    fn set_room(&self, endpoint: &str, chars: usize) {
        self.room.lock().unwrap_or_else(PoisonError::into_inner).insert(endpoint.to_owned(), chars);
    }
}

/// Answers one function URL event; never fails, since a failed invocation would reach the client as a bare 502.
pub async fn handle(event: serde_json::Value, clients: &Arc<Clients>, now: UnixTime) -> Answer {
    match answer(event, clients, now).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!(status = error.status, code = error.body.code, message = %error.body.message, "refused");
            Answer::refusal(&error)
        }
    }
}

async fn answer(event: serde_json::Value, clients: &Arc<Clients>, now: UnixTime) -> Result<Answer, ApiError> {
    let call = parse_event(event)?;
    let secret = call.secret.as_deref().ok_or_else(|| {
        ApiError::unauthorized("there is no API key; send the header \"Authorization: Bearer <key>\"")
    })?;
    let account = Account::open(&clients.table, secret).await?;
    let live: Option<LiveRecord> =
        clients.table.get(&ItemKey::live(account.project())).await.map_err(|e| account::unreachable(&e))?;
    let mut invocation = match call.route {
        Route::Models => return models(account.project(), live.as_ref()),
        Route::Model(id) => {
            let (live, _) = resolve(account.project(), Some(&id), live)?;
            return Answer::json(&ModelCard::new(&id, live.since.0));
        }
        Route::Chat => InvocationKind::Chat(ChatRequest::parse(&call.body)?),
        Route::Completions => InvocationKind::Completion(CompletionRequest::parse(&call.body)?),
    };
    let (model, options, default) = match &mut invocation {
        InvocationKind::Chat(request) => (request.model.take(), &mut request.options, DEFAULT_CHAT_TOKENS),
        InvocationKind::Completion(request) => (request.model.take(), &mut request.options, DEFAULT_COMPLETION_TOKENS),
        InvocationKind::Logits(_) => return Err(ApiError::internal("logits are not part of this API")),
    };
    let client = cap(options, default);
    let (live, weights) = resolve(account.project(), model.as_deref(), live)?;
    let question = ask::Question {
        invocation: Invocation { weights, kind: invocation },
        model: model.unwrap_or_default(),
        live,
        stream: client.stream,
        include_usage: client.include_usage(),
    };
    ask::ask(clients, account, question, now).await
}

/// Fills in and caps the length of the answer; returns the options as the client sent them.
fn cap(options: &mut Options, default_tokens: u32) -> Options {
    let sent = options.clone();
    options.max_tokens = Some(options.max_tokens.unwrap_or(default_tokens).min(MAX_ANSWER_TOKENS));
    sent
}

/// Which deployment and which weights a model's name means.
fn resolve(
    project: &ProjectId,
    model: Option<&str>,
    live: Option<LiveRecord>,
) -> Result<(LiveRecord, Weights), ApiError> {
    let model = model
        .ok_or_else(|| ApiError::invalid(Some("model"), format!("model is missing; send {:?}", project.as_str())))?;
    let base = format!("{project}:base");
    let weights = if model == project.as_str() {
        Weights::Tuned
    } else if model == base {
        Weights::Base
    } else {
        return Err(ApiError::unknown_model(model, &[project.as_str(), &base]));
    };
    let live = live.ok_or_else(|| {
        let mut error = ApiError::unknown_model(model, &[]);
        error.body.message = format!(
            "project {project} has no published model yet; approve a run, or wait until its pipeline has ended"
        );
        error
    })?;
    Ok((live, weights))
}

fn models(project: &ProjectId, live: Option<&LiveRecord>) -> Result<Answer, ApiError> {
    let base = format!("{project}:base");
    let names = if live.is_some() { vec![project.as_str(), base.as_str()] } else { Vec::new() };
    Answer::json(&ModelList::new(names, live.map_or(0, |live| live.since.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> LiveRecord {
        serde_json::from_value(serde_json::json!({
            "run": "run-0123456789ab", "endpoint": "tunesmith-handbook-0123456789ab", "index": "ix-0123456789abcdef",
            "since": 5, "retrieved_passages": 3, "requests_per_minute": 60, "tokens_per_day": 1000
        }))
        .unwrap()
    }

    #[test]
    fn a_key_reaches_its_own_project_only() {
        let project: ProjectId = "handbook".parse().unwrap();
        assert_eq!(resolve(&project, Some("handbook"), Some(live())).unwrap().1, Weights::Tuned);
        assert_eq!(resolve(&project, Some("handbook:base"), Some(live())).unwrap().1, Weights::Base);
        for (model, live, status) in [
            (Some("other"), Some(live()), 404),
            (Some("gpt-4o"), None, 404),
            (Some("handbook"), None, 404),
            (None, None, 400),
        ] {
            let error = resolve(&project, model, live).unwrap_err();
            assert_eq!((error.status, error.body.param.as_deref()), (status, Some("model")), "{model:?}");
        }
    }

    #[test]
    fn answers_are_capped() {
        for (asked, given) in [(None, 256), (Some(5), 5), (Some(u32::MAX), MAX_ANSWER_TOKENS)] {
            let mut options = Options { max_tokens: asked, ..Options::default() };
            cap(&mut options, DEFAULT_CHAT_TOKENS);
            assert_eq!(options.max_tokens, Some(given));
        }
    }
}
