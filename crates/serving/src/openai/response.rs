//! Answers, whole and in parts.

use serde::{Deserialize, Serialize};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop text was reached.
    Stop,
    /// `max_tokens`, or the model's context, was used up.
    Length,
}

/// Tokens read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens generated, the terminator included.
    pub completion_tokens: u64,
    /// Their sum.
    pub total_tokens: u64,
}

impl Usage {
    /// Usage of a prompt and its answer.
    #[must_use]
    pub const fn new(prompt: u64, completion: u64) -> Self {
        Self { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion }
    }
}

/// Where an answer's facts come from. An addition to OpenAI's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The file below the project folder.
    pub path: String,
    /// First page, counted from 1, where the format has pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// Headings above the passage.
    pub headings: Vec<String>,
    /// From 0 to 1: 1 means best by meaning and by words.
    pub score: f32,
}

/// A whole chat completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The model's name.
    pub model: String,
    /// One choice.
    pub choices: Vec<Choice>,
    /// Tokens used.
    pub usage: Usage,
    /// Passages that were put before the question; absent where nothing is retrieved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<Source>>,
}

/// The answer in a [`Reply`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// 0.
    pub index: u32,
    /// What the model says.
    pub message: ReplyMessage,
    /// Always null.
    #[serde(default)]
    pub logprobs: Option<()>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The message in a [`Choice`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplyMessage {
    /// `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
    /// Always null.
    #[serde(default)]
    pub refusal: Option<()>,
}

/// A whole completion, and also one part of a streamed one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// `cmpl-…`.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The model's name.
    pub model: String,
    /// One choice; none in the part that carries the usage.
    pub choices: Vec<TextChoice>,
    /// Tokens used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Passages that were put before the question; absent where nothing is retrieved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<Source>>,
}

/// The text in a [`Completion`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextChoice {
    /// 0.
    pub index: u32,
    /// The continuation.
    pub text: String,
    /// Always null.
    #[serde(default)]
    pub logprobs: Option<()>,
    /// Why it ended; null before the last part.
    pub finish_reason: Option<FinishReason>,
}

/// One part of a streamed chat completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamChunk {
    /// `chatcmpl-…`, the same in all parts.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The model's name.
    pub model: String,
    /// One choice; none in the part that carries the usage.
    pub choices: Vec<ChoiceDelta>,
    /// Tokens used: only in the last part, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Passages that were put before the question: in the part that says why the answer ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<Source>>,
}

/// What a part adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChoiceDelta {
    /// 0.
    pub index: u32,
    /// The new text.
    pub delta: Delta,
    /// Always null.
    #[serde(default)]
    pub logprobs: Option<()>,
    /// Why it ended; null before the last part.
    pub finish_reason: Option<FinishReason>,
}

/// New text of a [`ChoiceDelta`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Delta {
    /// `assistant`, in the first part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The new text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// The models.
    pub data: Vec<ModelCard>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Its name in requests.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Seconds since 1970.
    pub created: i64,
    /// `tunesmith`.
    pub owned_by: String,
}

impl ModelList {
    /// A list of models by these names.
    #[must_use]
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>, created: i64) -> Self {
        let data = names.into_iter().map(|id| ModelCard::new(id, created)).collect();
        Self { object: "list".into(), data }
    }
}

impl ModelCard {
    /// A model of this name; also the answer to `GET /v1/models/{id}`.
    #[must_use]
    pub fn new(id: &str, created: i64) -> Self {
        Self { id: id.into(), object: "model".into(), created, owned_by: "tunesmith".into() }
    }
}

/// Answer to an invocation of kind `logits`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogitsAnswer {
    /// One for each entry of the vocabulary.
    pub logits: Vec<f32>,
}

/// What all answers to one request share; makes each of their shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heading {
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The model's name.
    pub model: String,
}

impl Heading {
    /// A whole chat completion.
    #[must_use]
    pub fn reply(self, content: String, finish_reason: FinishReason, usage: Usage) -> Reply {
        let message = ReplyMessage { role: "assistant".into(), content, refusal: None };
        Reply {
            id: self.id,
            object: "chat.completion".into(),
            created: self.created,
            model: self.model,
            choices: vec![Choice { index: 0, message, logprobs: None, finish_reason }],
            usage,
            sources: None,
        }
    }

    /// A part of a chat completion; `None` for the part without a choice.
    #[must_use]
    pub fn chunk(&self, part: Option<(Delta, Option<FinishReason>)>) -> StreamChunk {
        let choice = |(delta, finish_reason)| ChoiceDelta { index: 0, delta, logprobs: None, finish_reason };
        StreamChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".into(),
            created: self.created,
            model: self.model.clone(),
            choices: part.map(choice).into_iter().collect(),
            usage: None,
            sources: None,
        }
    }

    /// A completion, or a part of one; `None` for the part without a choice.
    #[must_use]
    pub fn completion(&self, part: Option<(String, Option<FinishReason>)>) -> Completion {
        let choice = |(text, finish_reason)| TextChoice { index: 0, text, logprobs: None, finish_reason };
        Completion {
            id: self.id.clone(),
            object: "text_completion".into(),
            created: self.created,
            model: self.model.clone(),
            choices: part.map(choice).into_iter().collect(),
            usage: None,
            sources: None,
        }
    }
}
