//! Three questions through the OpenAI-compatible API, streaming, with the base model's answer beside each.

use std::io::Write as _;

use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tunesmith_contract::{ProjectId, ledger::ItemKey};

use super::summary::Answer;
use crate::{LocalError, client::Http, machine_room::random_secret, stage::Stages, state::State};

/// Asks every question of the tuned and of the base model.
///
/// # Errors
/// When the gateway refuses or its stream cannot be read.
pub async fn ask(
    state: &State,
    project: &ProjectId,
    questions: &[String],
    stages: &Stages,
) -> Result<Vec<Answer>, LocalError> {
    let stage = stages.begin_without_bar("answers");
    let key = make_key(state, project).await?;
    let mut answers = Vec::new();
    for question in questions {
        stages.say(&format!("\nQ: {question}"));
        let tuned = complete(state, &key, project.as_str(), question).await?;
        let base = complete_quietly(state, &key, &format!("{project}:base"), question).await?;
        for source in &tuned.sources {
            stages.say(&format!("   source: {source}"));
        }
        stages.say(&format!("   base model: {}", one_line(&base.text)));
        answers.push(Answer {
            question: question.clone(),
            answer: tuned.text,
            sources: tuned.sources,
            base_answer: base.text,
        });
    }
    stage.done(&format!("{} answers, streamed", answers.len()));
    Ok(answers)
}

/// Makes an API key: the table gets its hash, the secret stays here.
///
/// # Errors
/// When no model of the project is live (the gateway would answer 404), or the table refuses the key.
pub async fn make_key(state: &State, project: &ProjectId) -> Result<String, LocalError> {
    let live = ItemKey::live(project);
    if state.aws().get_item(state.output("Table")?, &live.pk, &live.sk).await?.is_none() {
        return Err(LocalError::Usage(format!(
            "no model of project {project} is live; name another project with `cargo local-cloud key --project <name>`, or look at \
             its training (`cargo local-cloud status`, `mailbox`) and approve it (`cargo local-cloud approve --project {project}`)"
        )));
    }
    let secret = format!("ts-{}", random_secret());
    let key = ItemKey::api_key(&hex::encode(Sha256::digest(&secret)));
    let item = json!({"project": project.as_str(), "label": "demo", "enabled": true});
    state.aws().put_item(state.output("Table")?, &key.pk, &key.sk, &item).await?;
    Ok(secret)
}

/// A command that asks the project's model, ready to paste.
///
/// # Errors
/// When the gateway is not deployed.
pub fn how_to_ask(state: &State, project: &ProjectId, key: &str) -> Result<String, LocalError> {
    let url = format!("{}v1/chat/completions", state.local_url(state.output("GatewayUrl")?));
    let question = json!({"model": project.as_str(), "messages": [{"role": "user", "content": "…"}], "stream": true});
    Ok(format!(
        "curl -N {url} -H 'Authorization: Bearer {key}' \\\n    -H 'Content-Type: application/json' -d '{question}'"
    ))
}

#[derive(Debug, Default)]
struct Streamed {
    text: String,
    sources: Vec<String>,
}

impl Streamed {
    /// Takes one line of the stream; the new piece of text is the result.
    fn line(&mut self, line: &str) -> Option<String> {
        let chunk: Value = serde_json::from_str(line.strip_prefix("data:")?.trim()).ok()?;
        if let Some(list) = chunk["sources"].as_array() {
            for source in list.iter().map(source_line) {
                // several passages may come from one section
                if !self.sources.contains(&source) {
                    self.sources.push(source);
                }
            }
        }
        let piece = chunk["choices"][0]["delta"]["content"].as_str()?.to_owned();
        self.text.push_str(&piece);
        Some(piece)
    }
}

fn source_line(source: &Value) -> String {
    let path = source["path"].as_str().unwrap_or_default();
    let page = source["page"].as_u64().map(|page| format!(", page {page}")).unwrap_or_default();
    let headings: Vec<&str> = source["headings"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let headings = if headings.is_empty() { String::new() } else { format!(" ({})", headings.join(" > ")) };
    format!("{path}{page}{headings}")
}

/// The answer is printed as it comes.
async fn complete(state: &State, key: &str, model: &str, question: &str) -> Result<Streamed, LocalError> {
    let answer = stream(state, key, model, question, |piece| {
        print!("{piece}");
        let _ = std::io::stdout().flush();
    })
    .await?;
    println!();
    Ok(answer)
}

async fn complete_quietly(state: &State, key: &str, model: &str, question: &str) -> Result<Streamed, LocalError> {
    stream(state, key, model, question, |_| {}).await
}

async fn stream(
    state: &State,
    key: &str,
    model: &str,
    question: &str,
    mut show: impl FnMut(&str),
) -> Result<Streamed, LocalError> {
    let url = format!("{}v1/chat/completions", state.local_url(state.output("GatewayUrl")?));
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let messages = json!([{"role": "user", "content": question}]);
    let request = json!({"model": model, "messages": messages, "stream": true, "temperature": 0, "max_tokens": 96});
    let answer = Http::default().send(Method::POST, &url, &headers, request.to_string()).await?;
    let status = answer.status().as_u16();
    let mut body = answer.into_body();
    let (mut streamed, mut rest) = (Streamed::default(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| LocalError::bad_answer("chat/completions", e.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        rest.extend_from_slice(&data);
        while status == 200
            && let Some(end) = rest.iter().position(|byte| *byte == b'\n')
        {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if let Some(piece) = streamed.line(String::from_utf8_lossy(&line).trim_end()) {
                show(&piece);
            }
        }
    }
    if status != 200 {
        let message = String::from_utf8_lossy(&rest).chars().take(400).collect();
        return Err(LocalError::Refused { action: "chat/completions".into(), status, code: String::new(), message });
    }
    Ok(streamed)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_put_together_with_its_sources() {
        let mut streamed = Streamed::default();
        assert_eq!(streamed.line(r#"data: {"choices":[{"delta":{"content":"28 "}}]}"#).as_deref(), Some("28 "));
        streamed.line(r#"data: {"choices":[{"delta":{"content":"days"}}],"sources":[{"path":"a.pdf","page":3,"headings":["Leave"]},{"path":"a.pdf","page":3,"headings":["Leave"]}]}"#);
        assert_eq!(streamed.line("data: [DONE]"), None);
        assert_eq!(streamed.text, "28 days");
        assert_eq!(streamed.sources, ["a.pdf, page 3 (Leave)"]);
    }
}
