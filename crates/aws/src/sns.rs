//! Mail: a topic's subscribers get it.

use aws_sdk_sns::Client;

use crate::{AwsError, Config, error::aws};

/// Longest subject that SNS takes.
const SUBJECT_CHARS: usize = 100;
/// Longest message that SNS takes, in bytes.
const BODY_BYTES: usize = 256 * 1024;

/// Client for one topic. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Topic {
    client: Client,
    arn: String,
}

impl Topic {
    /// A client for the topic of this ARN.
    #[must_use]
    pub fn new(config: &Config, arn: impl Into<String>) -> Self {
        Self { client: Client::new(config), arn: arn.into() }
    }

    /// Mails subject and body. The subject is made acceptable (SNS refuses non-ASCII, control characters and more than
    /// 100 characters); a body over 256 KiB is cut, which its last line says.
    pub async fn publish(&self, subject: &str, body: &str) -> Result<(), AwsError> {
        self.client
            .publish()
            .topic_arn(&self.arn)
            .subject(clean_subject(subject))
            .message(cut_body(body))
            .send()
            .await
            .map_err(aws!("sns", "Publish"))?;
        Ok(())
    }
}

/// At most 100 printable ASCII characters, beginning with a letter, digit or punctuation (SNS API, Publish, `Subject`).
/// Anything else becomes `?`, white space one space.
#[must_use]
pub fn clean_subject(subject: &str) -> String {
    let words: Vec<&str> = subject.split_whitespace().collect();
    let plain: String =
        words.join(" ").chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).take(SUBJECT_CHARS).collect();
    if plain.is_empty() { "Tunesmith".to_owned() } else { plain }
}

fn cut_body(body: &str) -> String {
    const NOTE: &str = "\n[cut: the message was longer than an e-mail may be]";
    if body.len() <= BODY_BYTES {
        return if body.is_empty() { "(no text)".to_owned() } else { body.to_owned() };
    }
    let mut end = BODY_BYTES - NOTE.len();
    while !body.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{NOTE}", &body[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_become_what_sns_accepts() {
        assert_eq!(clean_subject("  Fahrgäste\n + Hunde.pdf  was refused"), "Fahrg?ste + Hunde.pdf was refused");
        assert_eq!(clean_subject(&"x".repeat(300)).len(), 100);
        assert_eq!(clean_subject(" \u{7} ").as_str(), "?");
        assert_eq!(clean_subject(""), "Tunesmith");
    }

    #[test]
    fn long_bodies_are_cut_between_characters() {
        let cut = cut_body(&"ä".repeat(BODY_BYTES));
        assert!(cut.len() <= BODY_BYTES && cut.ends_with("may be]"));
    }
}
