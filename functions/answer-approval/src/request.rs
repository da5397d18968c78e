//! Who asks what: a browser behind the link, or the state machine and the CLI. Parsing only.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use tunesmith_contract::{
    ErrorName, ProjectId, RunId, approval::Verdict, error_name::Failure, tasks::AnswerApprovalInput,
};

/// The largest form that is read; ours has under 1 KB.
const MAX_FORM_BYTES: usize = 16 * 1024;

/// A parsed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A person opened the link: show the decision page. Decides nothing.
    Show(Link),
    /// A person pressed a button.
    Decide {
        /// From the link.
        link: Link,
        /// The button.
        verdict: Verdict,
        /// The person's words.
        reason: String,
    },
    /// `approve-deployment` or the CLI.
    Direct(AnswerApprovalInput),
    /// A browser asked for something else (`/favicon.ico`) or the link is incomplete.
    Nothing,
}

/// What the link carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
    /// The one-time secret.
    pub secret: String,
}

/// Tells the callers apart: a function URL event has a `requestContext`.
///
/// # Errors
/// [`ErrorName::InvalidInput`] when a direct input does not have its documented shape.
pub fn parse(event: &Value) -> Result<Request, Failure> {
    let Some(method) = event.pointer("/requestContext/http/method") else {
        return serde_json::from_value(event.clone())
            .map(Request::Direct)
            .map_err(|error| Failure::new(ErrorName::InvalidInput, format!("answer-approval: {error}")));
    };
    let path = event["rawPath"].as_str().unwrap_or("/");
    Ok(match method.as_str() {
        Some("GET" | "HEAD") if path == "/" => {
            let fields = form(event["rawQueryString"].as_str().unwrap_or_default());
            link(&fields).map_or(Request::Nothing, Request::Show)
        }
        Some("POST") if path == "/" => posted(event).unwrap_or(Request::Nothing),
        _ => Request::Nothing,
    })
}

fn posted(event: &Value) -> Option<Request> {
    let body = event["body"].as_str()?;
    let body = if event["isBase64Encoded"].as_bool().unwrap_or(false) {
        String::from_utf8(STANDARD.decode(body).ok()?).ok()?
    } else {
        body.to_owned()
    };
    if body.len() > MAX_FORM_BYTES {
        return None;
    }
    let fields = form(&body);
    let verdict = match field(&fields, "verdict")? {
        "approve" => Verdict::Approve,
        "reject" => Verdict::Reject,
        _ => return None,
    };
    let reason = field(&fields, "reason").unwrap_or_default().chars().take(500).collect();
    Some(Request::Decide { link: link(&fields)?, verdict, reason })
}

fn form(text: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

fn field<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn link(fields: &[(String, String)]) -> Option<Link> {
    Some(Link {
        project: field(fields, "project")?.parse().ok()?,
        run: field(fields, "run")?.parse().ok()?,
        secret: field(fields, "secret").filter(|s| !s.is_empty() && s.len() <= 128)?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(method: &str, path: &str, query: &str, body: &str) -> Value {
        json!({"version": "2.0", "rawPath": path, "rawQueryString": query, "body": body, "isBase64Encoded": false,
               "requestContext": {"http": {"method": method, "path": path}}})
    }

    const LINK: &str = "project=handbook&run=run-0123456789ab&secret=s3cret";

    #[test]
    fn opening_the_link_shows_and_only_the_button_decides() {
        assert!(matches!(parse(&event("GET", "/", LINK, "")).unwrap(), Request::Show(_)));
        let body = format!("{LINK}&verdict=approve&reason=looks+good+%26+cheap");
        match parse(&event("POST", "/", "", &body)).unwrap() {
            Request::Decide { verdict: Verdict::Approve, reason, .. } => assert_eq!(reason, "looks good & cheap"),
            other => panic!("{other:?}"),
        }
        let encoded = json!({"rawPath": "/", "isBase64Encoded": true, "body": STANDARD.encode(body),
                             "requestContext": {"http": {"method": "POST"}}});
        assert!(matches!(parse(&encoded).unwrap(), Request::Decide { .. }));
        assert_eq!(
            parse(&event("GET", "/", &format!("{LINK}&verdict=approve"), "")).unwrap().clone(),
            parse(&event("GET", "/", LINK, "")).unwrap()
        );
    }

    #[test]
    fn what_is_incomplete_or_elsewhere_is_nothing() {
        for (method, path, query, body) in [
            ("GET", "/favicon.ico", LINK, ""),
            ("GET", "/", "project=handbook", ""),
            ("GET", "/", "project=../x&run=run-0123456789ab&secret=s", ""),
            ("POST", "/", "", "verdict=approve"),
            ("POST", "/", "", &format!("{LINK}&verdict=maybe")),
            ("DELETE", "/", LINK, ""),
        ] {
            assert_eq!(
                parse(&event(method, path, query, body)).unwrap(),
                Request::Nothing,
                "{method} {path} {query} {body}"
            );
        }
    }

    #[test]
    fn a_direct_input_is_checked() {
        let good = json!({"project": "handbook", "verdict": "reject", "by": "arn:e", "reason": "too slow"});
        assert!(matches!(parse(&good).unwrap(), Request::Direct(_)));
        let error = parse(&json!({"project": "handbook", "verdict": "maybe"})).unwrap_err();
        assert_eq!(error.name, ErrorName::InvalidInput);
    }
}
