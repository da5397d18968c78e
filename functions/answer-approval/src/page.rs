//! The pages that a person sees behind the link. Every value is escaped; nothing is loaded from elsewhere.

use tunesmith_contract::{
    ProjectId, RunId,
    approval::{ApprovalDecision, Verdict},
};

const STYLE: &str = "<style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
padding:0 1rem}form{display:flex;flex-wrap:wrap;gap:.75rem;align-items:center;padding:1rem;border:1px solid #8886;\
border-radius:.5rem;position:sticky;bottom:1rem;background:Canvas}input{flex:1 1 16rem;font:inherit;padding:.5rem}\
button{font:inherit;font-weight:600;padding:.5rem 1.25rem;border-radius:.4rem;border:1px solid #8888;cursor:pointer}\
.yes{background:#176f3d;color:#fff}.no{background:#a12622;color:#fff}</style>";

/// Escapes text for HTML content and attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The run's report with the form that decides. The form posts; opening the page decides nothing.
#[must_use]
pub fn decision(report: &str, project: &ProjectId, run: &RunId, secret: &str) -> String {
    let form = format!(
        "<form method=post action=\"./\"><input type=hidden name=project value=\"{}\"><input type=hidden name=run value=\"{}\">\
         <input type=hidden name=secret value=\"{}\"><input name=reason maxlength=500 aria-label=\"Reason (optional)\" \
         placeholder=\"Reason (optional)\"><button class=yes name=verdict value=approve>Approve and deploy</button>\
         <button class=no name=verdict value=reject>Reject</button></form>",
        escape(project.as_str()),
        escape(run.as_str()),
        escape(secret),
    );
    // The report is our own page; the form goes before its end so that one scroll shows everything.
    match report.rfind("</body>") {
        Some(end) => format!("{}{STYLE}{form}{}", &report[..end], &report[end..]),
        None => message("Decide", &format!("The report of {run} is missing; the numbers are in the e-mail."), &form),
    }
}

/// What was decided.
#[must_use]
pub fn decided(run: &RunId, decision: &ApprovalDecision) -> String {
    let (title, next) = match decision.verdict {
        Verdict::Approve => {
            ("Approved", "The endpoint is being created and checked; you get an e-mail when it is live.")
        }
        Verdict::Reject => ("Rejected", "Nothing changes: what was live stays live."),
    };
    message(title, &format!("{run}: {next}"), "")
}

/// A short page with a title, a sentence and optionally more (already HTML).
#[must_use]
pub fn message(title: &str, text: &str, more: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width,initial-scale=1\">\
         <meta name=referrer content=no-referrer><title>{title} - Tunesmith</title>{STYLE}<body><h1>{title}</h1><p>{text}</p>{more}\
         </body></html>",
        title = escape(title),
        text = escape(text),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_posts_and_every_value_is_escaped() {
        let page = decision(
            "<html><body><p>report</p></body></html>",
            &"handbook".parse().unwrap(),
            &"run-0123456789ab".parse().unwrap(),
            "\"><script>alert(1)</script>",
        );
        assert!(page.contains("method=post") && page.ends_with("</body></html>"));
        assert!(!page.contains("<script>"), "{page}");
        assert!(page.contains("report"));
    }

    #[test]
    fn a_missing_report_still_lets_a_person_decide() {
        let page = decision("", &"handbook".parse().unwrap(), &"run-0123456789ab".parse().unwrap(), "s");
        assert!(page.contains("value=approve") && page.contains("value=reject"));
    }
}
