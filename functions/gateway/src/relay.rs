//! From the endpoint's answer to the client's: the model's name as it was asked for, sources, and usage only for whom it was
//! asked. Pure; bytes in, events out.

use serde::de::DeserializeOwned;
use serde_json::Value;
use tunesmith_serving::{
    openai::{ApiError, Completion, Delta, Heading, Reply, Source, StreamChunk, Usage},
    sse::{self, EventReader},
};

/// What is asked for and how it is answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    pub kind: Kind,
    /// The model's name in the answer.
    pub model: String,
    /// Passages before the question; `None` where none are looked for.
    pub sources: Option<Vec<Source>>,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// A whole answer as the client gets it, and what it used.
#[derive(Debug)]
pub(crate) enum WholeAnswer {
    Chat(Reply),
    Completion(Completion),
}

impl WholeAnswer {
    pub fn usage(&self) -> Usage {
        match self {
            Self::Chat(reply) => reply.usage,
            Self::Completion(completion) => completion.usage.unwrap_or_default(),
        }
    }
}

/// Reads the endpoint's whole answer.
pub(crate) fn whole(body: &[u8], form: Form) -> Result<WholeAnswer, ApiError> {
    match form.kind {
        Kind::Chat => {
            let reply: Reply = read(body)?;
            Ok(WholeAnswer::Chat(Reply { model: form.model, sources: form.sources, ..reply }))
        }
        Kind::Completion => {
            let completion: Completion = read(body)?;
            Ok(WholeAnswer::Completion(Completion { model: form.model, sources: form.sources, ..completion }))
        }
    }
}

/// A whole answer as a stream of one text, for an endpoint that cannot stream.
pub(crate) fn replay(answer: WholeAnswer, include_usage: bool) -> Vec<String> {
    let mut events = match answer {
        WholeAnswer::Chat(Reply { id, created, model, choices, usage, sources, .. }) => {
            let heading = Heading { id, created, model };
            let mut events = Vec::new();
            for choice in choices {
                let delta = Delta { role: Some(choice.message.role), content: Some(choice.message.content) };
                events.push(event(&heading.chunk(Some((delta, None)))));
                let mut last = heading.chunk(Some((Delta::default(), Some(choice.finish_reason))));
                last.sources.clone_from(&sources);
                events.push(event(&last));
            }
            if include_usage {
                let mut last = heading.chunk(None);
                last.usage = Some(usage);
                events.push(event(&last));
            }
            events
        }
        WholeAnswer::Completion(mut completion) => {
            let usage = completion.usage.take();
            let heading =
                Heading { id: completion.id.clone(), created: completion.created, model: completion.model.clone() };
            let mut events = vec![event(&completion)];
            if include_usage {
                let mut last = heading.completion(None);
                last.usage = usage;
                events.push(event(&last));
            }
            events
        }
    };
    events.push(sse::event(sse::DONE));
    events
}

/// Passes a stream on, event by event.
#[derive(Debug)]
pub(crate) struct Relay {
    form: Form,
    reader: EventReader,
    /// As the endpoint said; absent until then.
    usage: Option<Usage>,
    /// Parts with text so far: as many tokens at least.
    parts: u64,
    finished: bool,
}

impl Relay {
    pub fn new(form: Form) -> Self {
        Self { form, reader: EventReader::default(), usage: None, parts: 0, finished: false }
    }

    /// Takes bytes of the endpoint; gives the events they complete.
    ///
    /// # Errors
    /// The endpoint's own error, or 502 for what is not a stream of this API. The stream ends with it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, ApiError> {
        let found = self.reader.push(bytes).map_err(|error| ApiError::bad_gateway(error.to_string()))?;
        let mut events = Vec::new();
        for data in found {
            if data == sse::DONE {
                continue;
            }
            if let Some(error) = ApiError::from_json(500, &data) {
                return Err(error);
            }
            events.extend(match self.form.kind {
                Kind::Chat => self.chunk(read(data.as_bytes())?),
                Kind::Completion => self.part(read(data.as_bytes())?),
            });
        }
        Ok(events)
    }

    /// The last event.
    ///
    /// # Errors
    /// 502 when the endpoint's stream broke off.
    pub fn finish(&self) -> Result<String, ApiError> {
        if self.finished {
            Ok(sse::event(sse::DONE))
        } else {
            Err(ApiError::bad_gateway("the model's answer broke off; ask again"))
        }
    }

    /// Tokens used: as the endpoint said, or what is certain when it did not come to that.
    pub fn used(&self, prompt_estimate: u64) -> u64 {
        self.usage.map_or(prompt_estimate + self.parts, |usage| usage.total_tokens)
    }

    fn chunk(&mut self, mut chunk: StreamChunk) -> Option<String> {
        chunk.model.clone_from(&self.form.model);
        self.usage = chunk.usage.or(self.usage);
        self.parts += u64::from(chunk.choices.iter().any(|choice| choice.delta.content.is_some()));
        if chunk.choices.iter().any(|choice| choice.finish_reason.is_some()) {
            self.finished = true;
            chunk.sources.clone_from(&self.form.sources);
        }
        self.passed(chunk.choices.is_empty(), || event(&chunk))
    }

    fn part(&mut self, mut part: Completion) -> Option<String> {
        part.model.clone_from(&self.form.model);
        self.usage = part.usage.or(self.usage);
        self.parts += u64::from(part.choices.iter().any(|choice| !choice.text.is_empty()));
        self.finished |= part.choices.iter().any(|choice| choice.finish_reason.is_some());
        self.passed(part.choices.is_empty(), || event(&part))
    }

    /// The part without a choice carries the usage, for those who asked.
    fn passed(&self, carries_usage: bool, event: impl FnOnce() -> String) -> Option<String> {
        (!carries_usage || self.form.include_usage).then(event)
    }
}

fn event(part: &impl serde::Serialize) -> String {
    serde_json::to_string(part).map(|json| sse::event(&json)).unwrap_or_default()
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_gateway(format!("the model's answer is not of the expected shape: {error}")))
}

/// The error a container sent, from the words of SageMaker's `ModelError`: `the container answered 400: {json}`.
pub(crate) fn container_error(message: &str) -> Option<ApiError> {
    let rest = message.strip_prefix("the container answered ")?;
    let (status, body) = rest.split_once(": ")?;
    let start = body.find('{')?;
    // SageMaker may add words of its own behind the body
    let json = serde_json::Deserializer::from_str(&body[start..]).into_iter::<Value>().next()?.ok()?;
    ApiError::from_json(status.parse().ok()?, &json.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(kind: Kind, include_usage: bool) -> Form {
        let source = Source { path: "leave.md".into(), page: None, headings: vec!["Leave".into()], score: 0.5 };
        Form { kind, model: "handbook:base".into(), sources: Some(vec![source]), include_usage }
    }

    fn stream() -> String {
        let heading = Heading { id: "chatcmpl-1".into(), created: 3, model: "handbook".into() };
        let first = Delta { role: Some("assistant".into()), content: Some(String::new()) };
        let text = Delta { role: None, content: Some("28 dä".into()) };
        let mut usage = heading.chunk(None);
        usage.usage = Some(Usage::new(40, 7));
        let end = Some(tunesmith_serving::openai::FinishReason::Stop);
        [
            heading.chunk(Some((first, None))),
            heading.chunk(Some((text, None))),
            heading.chunk(Some((Delta::default(), end))),
            usage,
        ]
        .iter()
        .map(event)
        .collect::<String>()
            + &sse::event(sse::DONE)
    }

    fn relayed(include_usage: bool, size: usize) -> (Vec<Value>, Relay) {
        let mut relay = Relay::new(form(Kind::Chat, include_usage));
        let events: String = stream().as_bytes().chunks(size).flat_map(|part| relay.push(part).unwrap()).collect();
        let mut reader = EventReader::default();
        let parsed = reader.push(events.as_bytes()).unwrap();
        (parsed.iter().map(|data| serde_json::from_str(data).unwrap()).collect(), relay)
    }

    #[test]
    fn a_stream_gets_the_models_name_and_the_sources() {
        for size in [1, 7, 4096] {
            let (events, relay) = relayed(false, size);
            assert_eq!(events.len(), 3, "the usage was not asked for");
            assert!(events.iter().all(|event| event["model"] == "handbook:base" && event["id"] == "chatcmpl-1"));
            assert_eq!(events[1]["choices"][0]["delta"]["content"], "28 dä");
            assert_eq!(events[2]["sources"][0]["path"], "leave.md");
            assert!(events[0].get("sources").is_none());
            assert_eq!(relay.used(9), 47);
            assert_eq!(relay.finish().unwrap(), "data: [DONE]\n\n");
        }
        assert_eq!(relayed(true, 10).0[3]["usage"]["total_tokens"], 47);
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error() {
        let whole = stream();
        let mut relay = Relay::new(form(Kind::Chat, false));
        relay.push(&whole.as_bytes()[..whole.len() / 3]).unwrap();
        assert_eq!(relay.finish().unwrap_err().status, 502);
        assert!(relay.used(9) >= 9);
        let error = relay
            .push(b"data: {\"error\":{\"message\":\"m\",\"type\":\"server_error\",\"param\":null,\"code\":null}}\n");
        assert!(matches!(Relay::new(form(Kind::Chat, false)).push(b"data: <html>\n"), Err(e) if e.status == 502));
        assert!(error.is_err());
    }

    #[test]
    fn a_whole_answer_can_be_replayed() {
        let heading = Heading { id: "chatcmpl-1".into(), created: 3, model: "x".into() };
        let reply = heading.reply("28 days".into(), tunesmith_serving::openai::FinishReason::Stop, Usage::new(4, 2));
        let answer = whole(&serde_json::to_vec(&reply).unwrap(), form(Kind::Chat, true)).unwrap();
        assert_eq!(answer.usage().total_tokens, 6);
        let events = replay(answer, true);
        assert_eq!(events.len(), 4);
        assert!(
            events[0].contains("28 days") && events[1].contains("leave.md") && events[2].contains("\"total_tokens\":6")
        );
        assert_eq!(whole(b"{}", form(Kind::Chat, true)).unwrap_err().status, 502);
    }

    #[test]
    fn the_containers_own_error_is_found() {
        let words =
            format!("the container answered 400: {} See the log.", ApiError::too_long("messages", 9, 5).to_json());
        let error = container_error(&words).unwrap();
        assert_eq!((error.status, error.body.code.as_deref()), (400, Some("context_length_exceeded")));
        assert!(container_error("the container answered 500: no message").is_none());
        assert!(container_error("something else").is_none());
    }
}
