//! Requests, parsed field by field: a wrong value is answered with its name, an unknown field is passed over, since clients
//! send fields that are newer than any server.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tunesmith_contract::documents::{Message, Role};

use super::error::ApiError;

/// OpenAI's limit for `stop`.
const MAX_STOPS: usize = 4;
/// Longer stop texts are surely a mistake, and they delay every streamed word.
const MAX_STOP_BYTES: usize = 256;

/// How to generate; the same for both kinds of completion.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Options {
    /// Most tokens to generate; `None`: the server's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0 takes the most likely token, 1 samples from the model's distribution, 2 is the maximum.
    pub temperature: f32,
    /// Sample from the most likely tokens whose probabilities reach this sum; above 0, at most 1.
    pub top_p: f32,
    /// Sample from this many most likely tokens (an extension that many servers have).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// The same seed gives the same answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Texts at which the answer ends; they are not part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Whether to answer in parts, as server-sent events.
    pub stream: bool,
    /// `stream_options.include_usage`: whether a last part carries the usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
}

/// `stream_options`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOptions {
    /// Whether a last part carries the usage.
    #[serde(default)]
    pub include_usage: bool,
}

impl Default for Options {
    /// OpenAI's defaults.
    fn default() -> Self {
        Self {
            max_tokens: None,
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            seed: None,
            stop: Vec::new(),
            stream: false,
            stream_options: None,
        }
    }
}

impl Options {
    /// Whether a stream ends with a part that carries the usage.
    #[must_use]
    pub fn include_usage(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage)
    }

    /// Asks for a stream with usage, as the gateway needs for its accounts, or for one answer.
    pub fn set_stream(&mut self, stream: bool) {
        self.stream = stream;
        self.stream_options = stream.then_some(StreamOptions { include_usage: true });
    }

    fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let default = Self::default();
        let max_tokens = match fields.take("max_completion_tokens", "a whole number")? {
            Some(limit) => Some(limit),
            None => fields.take("max_tokens", "a whole number")?,
        };
        fields.check("max_tokens", max_tokens, "at least 1", |&limit: &u32| limit >= 1)?;
        let temperature = fields.take("temperature", "a number")?;
        fields.check("temperature", temperature, "from 0 to 2", |t: &f32| (0.0..=2.0).contains(t))?;
        let top_p = fields.take("top_p", "a number")?;
        fields.check("top_p", top_p, "above 0 and at most 1", |&p: &f32| p > 0.0 && p <= 1.0)?;
        let top_k = fields.take("top_k", "a whole number")?;
        fields.check("top_k", top_k, "at least 1", |&k: &u32| k >= 1)?;
        let stop = match fields.take("stop", "a string or a list of strings")? {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
        let good = |stops: &Vec<String>| {
            stops.len() <= MAX_STOPS && stops.iter().all(|stop| (1..=MAX_STOP_BYTES).contains(&stop.len()))
        };
        fields.check("stop", Some(&stop), "at most 4 strings of 1 to 256 bytes", |&stops| good(stops))?;
        let n = fields.take("n", "a whole number")?;
        fields.check("n", n, "1: this server gives one answer", |&n: &u64| n == 1)?;
        fields.refuse("tools", |v| v.as_array().is_some_and(|tools| !tools.is_empty()))?;
        fields.refuse("functions", |v| v.as_array().is_some_and(|tools| !tools.is_empty()))?;
        fields.refuse("logprobs", |v| !matches!(v, Value::Bool(false)))?;
        fields.refuse("response_format", |v| v["type"] != "text")?;
        Ok(Self {
            max_tokens,
            temperature: temperature.unwrap_or(default.temperature),
            top_p: top_p.unwrap_or(default.top_p),
            top_k,
            seed: fields.take("seed", "a whole number")?,
            stop,
            stream: fields.take("stream", "true or false")?.unwrap_or_default(),
            stream_options: fields.take("stream_options", "an object like {\"include_usage\": true}")?,
        })
    }
}

/// `POST /v1/chat/completions`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatRequest {
    /// The model's name; required by the API, not by an endpoint that has one model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The conversation; never empty.
    pub messages: Vec<Message>,
    /// How to generate.
    #[serde(flatten)]
    pub options: Options,
}

impl ChatRequest {
    /// Parses a body.
    ///
    /// # Errors
    /// 400 with the name of the field that is missing, of a wrong type, out of range or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        Self::from_fields(Fields::parse(body)?)
    }

    fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let turns: Vec<Turn> = fields
            .take("messages", "a list of {\"role\", \"content\"}")?
            .ok_or_else(|| ApiError::invalid(Some("messages"), "messages is missing; send at least one message"))?;
        let messages = turns.into_iter().enumerate().map(|(i, turn)| turn.message(i)).collect::<Result<Vec<_>, _>>()?;
        if !messages.iter().any(|message| message.role == Role::User) {
            return Err(ApiError::invalid(Some("messages"), "messages holds no message of role user; send a question"));
        }
        Ok(Self { model: fields.take("model", "a string")?, messages, options: Options::take(&mut fields)? })
    }

    /// The last thing the person said.
    #[must_use]
    pub fn question(&self) -> &str {
        self.messages.iter().rev().find(|message| message.role == Role::User).map_or("", |message| &message.content)
    }
}

/// `POST /v1/completions`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletionRequest {
    /// The model's name; required by the API, not by an endpoint that has one model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The text to continue.
    pub prompt: String,
    /// How to generate.
    #[serde(flatten)]
    pub options: Options,
}

impl CompletionRequest {
    /// Parses a body.
    ///
    /// # Errors
    /// 400 with the name of the field that is missing, of a wrong type, out of range or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        Self::from_fields(Fields::parse(body)?)
    }

    fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let wrong = |message: &str| ApiError::invalid(Some("prompt"), message);
        let prompt = match fields.take("prompt", "a string")? {
            None => return Err(wrong("prompt is missing; send the text to continue")),
            Some(OneOrMany::One(prompt)) => prompt,
            Some(OneOrMany::Many(mut prompts)) => match (prompts.pop(), prompts.is_empty()) {
                (Some(prompt), true) => prompt,
                _ => return Err(wrong("prompt is a list; send one prompt a request")),
            },
        };
        fields.refuse("echo", |v| v == &Value::Bool(true))?;
        fields.refuse("suffix", |v| v.as_str().is_some_and(|text| !text.is_empty()))?;
        Ok(Self { model: fields.take("model", "a string")?, prompt, options: Options::take(&mut fields)? })
    }
}

/// With which weights to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// The base model and its adapter, where the endpoint has one.
    #[default]
    Tuned,
    /// The base model alone.
    Base,
}

/// `POST /invocations`, what SageMaker passes on:
/// `{"kind": "chat"|"completion", "request": …, "adapter": false?}` or `{"kind": "logits", "tokens": […], "adapter": false?}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    /// `"adapter": false` asks the base model.
    pub weights: Weights,
    /// What is asked.
    pub kind: InvocationKind,
}

/// What an invocation asks.
#[derive(Debug, Clone, PartialEq)]
pub enum InvocationKind {
    /// An answer in a conversation.
    Chat(ChatRequest),
    /// The continuation of a text.
    Completion(CompletionRequest),
    /// The logits after these tokens.
    Logits(Vec<u32>),
}

impl Invocation {
    /// Parses a body.
    ///
    /// # Errors
    /// 400 with the name of the wrong field.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let adapter: Option<bool> = fields.take("adapter", "true or false")?;
        let weights = if adapter == Some(false) { Weights::Base } else { Weights::Tuned };
        let kind: Option<String> = fields.take("kind", "a string")?;
        let missing = |param| move || ApiError::invalid(Some(param), format!("{param} is missing"));
        let kind = match kind.as_deref() {
            Some("logits") => {
                InvocationKind::Logits(fields.take("tokens", "a list of token ids")?.ok_or_else(missing("tokens"))?)
            }
            Some(kind @ ("chat" | "completion")) => {
                let request = Fields(fields.take("request", "an object")?.ok_or_else(missing("request"))?);
                if kind == "chat" {
                    InvocationKind::Chat(ChatRequest::from_fields(request)?)
                } else {
                    InvocationKind::Completion(CompletionRequest::from_fields(request)?)
                }
            }
            other => {
                let message = format!("kind is {}; use chat, completion or logits", other.unwrap_or("missing"));
                return Err(ApiError::invalid(Some("kind"), message));
            }
        };
        Ok(Self { weights, kind })
    }

    /// The body to send.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        enum Wire<'a> {
            Chat { adapter: bool, request: &'a ChatRequest },
            Completion { adapter: bool, request: &'a CompletionRequest },
            Logits { adapter: bool, tokens: &'a [u32] },
        }
        let adapter = self.weights == Weights::Tuned;
        let wire = match &self.kind {
            InvocationKind::Chat(request) => Wire::Chat { adapter, request },
            InvocationKind::Completion(request) => Wire::Completion { adapter, request },
            InvocationKind::Logits(tokens) => Wire::Logits { adapter, tokens },
        };
        serde_json::to_vec(&wire).unwrap_or_default()
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Value>),
}

impl Turn {
    fn message(self, i: usize) -> Result<Message, ApiError> {
        let param = |field: &str| format!("messages.[{i}].{field}");
        let role = match self.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => {
                let message = format!("role {other:?} is not supported; use system, user or assistant");
                return Err(ApiError::invalid(Some(&param("role")), message));
            }
        };
        let refuse = |what: &str| ApiError::invalid(Some(&param("content")), format!("{what}; send text"));
        let content = match self.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts
                .iter()
                .map(|part| if part["type"] == "text" { part["text"].as_str() } else { None })
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| refuse("content has a part that is not text"))?
                .join("\n"),
            None => return Err(refuse("content is missing")),
        };
        Ok(Message { role, content })
    }
}

/// A JSON object whose fields are taken out one after the other.
struct Fields(Map<String, Value>);

impl Fields {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::invalid(None, format!("the body is not JSON: {error}; send a JSON object")))?;
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err(ApiError::invalid(None, "the body is not a JSON object; send {\"model\": …, \"messages\": […]}")),
        }
    }

    /// `None` for an absent field and for null, which clients send for "not set".
    fn take<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|_| ApiError::invalid(Some(name), format!("{name} must be {expected}"))),
        }
    }

    fn check<T>(
        &self,
        name: &str,
        value: Option<T>,
        rule: &str,
        good: impl FnOnce(&T) -> bool,
    ) -> Result<(), ApiError> {
        match value {
            Some(value) if !good(&value) => Err(ApiError::invalid(Some(name), format!("{name} must be {rule}"))),
            _ => Ok(()),
        }
    }

    /// Refuses what would change the answer and is not implemented; passing over it would be a wrong answer.
    fn refuse(&self, name: &str, asked: impl FnOnce(&Value) -> bool) -> Result<(), ApiError> {
        match self.0.get(name) {
            Some(value) if !value.is_null() && asked(value) => {
                Err(ApiError::invalid(Some(name), format!("{name} is not supported by this server; leave it out")))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(extra: &str) -> Result<ChatRequest, ApiError> {
        ChatRequest::parse(
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{extra}}}"#).as_bytes(),
        )
    }

    #[test]
    fn what_clients_send_is_understood() {
        let request = ChatRequest::parse(
            br#"{"model":"m","messages":[{"role":"developer","content":"be brief","name":"x"},
                {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
                {"role":"assistant","content":"c"},{"role":"user","content":"d"}],
                "max_completion_tokens":5,"max_tokens":null,"temperature":0,"stop":"x","seed":-3,"user":"u","n":1,
                "stream":true,"stream_options":{"include_usage":true},"tools":[],"logprobs":false,"store":false,
                "response_format":{"type":"text"},"parallel_tool_calls":true,"metadata":{}}"#,
        )
        .unwrap();
        assert_eq!(request.messages[0].role, Role::System);
        assert_eq!(request.messages[1].content, "a\nb");
        assert_eq!(request.question(), "d");
        assert_eq!((request.options.max_tokens, request.options.seed), (Some(5), Some(-3)));
        assert!(request.options.stream && request.options.include_usage());
        assert_eq!(request.options.stop, ["x"]);
    }

    #[test]
    fn wrong_values_are_named() {
        for (extra, param) in [
            (r#","temperature":2.1"#, "temperature"),
            (r#","temperature":"hot""#, "temperature"),
            (r#","top_p":0"#, "top_p"),
            (r#","max_tokens":0"#, "max_tokens"),
            (r#","max_tokens":-1"#, "max_tokens"),
            (r#","top_k":0"#, "top_k"),
            (r#","n":2"#, "n"),
            (r#","stop":["a","b","c","d","e"]"#, "stop"),
            (r#","stop":"""#, "stop"),
            (r#","stream":1"#, "stream"),
            (r#","stream_options":true"#, "stream_options"),
            (r#","tools":[{"type":"function"}]"#, "tools"),
            (r#","logprobs":true"#, "logprobs"),
            (r#","response_format":{"type":"json_object"}"#, "response_format"),
            (r#","model":7"#, "model"),
        ] {
            let error = chat(extra).unwrap_err();
            assert_eq!((error.status, error.body.param.as_deref()), (400, Some(param)), "{extra}");
        }
        for (body, param) in [
            ("", None),
            ("[]", None),
            (r#"{"model":"m"}"#, Some("messages")),
            (r#"{"messages":[]}"#, Some("messages")),
            (r#"{"messages":[{"role":"assistant","content":"x"}]}"#, Some("messages")),
            (
                r#"{"messages":[{"role":"user","content":"a"},{"role":"tool","content":"x"}]}"#,
                Some("messages.[1].role"),
            ),
            (r#"{"messages":[{"role":"user"}]}"#, Some("messages.[0].content")),
            (r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#, Some("messages.[0].content")),
        ] {
            let error = ChatRequest::parse(body.as_bytes()).unwrap_err();
            assert_eq!((error.status, error.body.param.as_deref()), (400, param), "{body}");
        }
        let error = CompletionRequest::parse(br#"{"prompt":["a","b"]}"#).unwrap_err();
        assert_eq!(error.body.param.as_deref(), Some("prompt"));
        assert_eq!(CompletionRequest::parse(br#"{"prompt":["a"]}"#).unwrap().prompt, "a");
    }

    #[test]
    fn invocations_round_trip() {
        let request = chat(r#","max_tokens":7,"stop":["a","b"],"top_k":4,"stream":true"#).unwrap();
        let completion = CompletionRequest { model: None, prompt: "x".into(), options: Options::default() };
        for invocation in [
            Invocation { weights: Weights::Base, kind: InvocationKind::Chat(request) },
            Invocation { weights: Weights::Tuned, kind: InvocationKind::Completion(completion) },
            Invocation { weights: Weights::Tuned, kind: InvocationKind::Logits(vec![1, 2]) },
        ] {
            assert_eq!(Invocation::parse(&invocation.to_json()).unwrap(), invocation);
        }
        for body in [r#"{"kind":"sing"}"#, r#"{}"#, r#"{"kind":"chat"}"#, r#"{"kind":"logits","tokens":[-1]}"#] {
            assert_eq!(Invocation::parse(body.as_bytes()).unwrap_err().status, 400, "{body}");
        }
    }
}
