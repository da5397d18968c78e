//! What schedules do every five minutes, done at once.

use serde_json::{Value, json};
use tunesmith_contract::{
    ProjectId, RunId,
    ledger::{ItemKey, RunRecord, RunStatus},
};
use tunesmith_local::mailbox::Mail;

use super::{Cloud, until};

impl Cloud {
    /// Runs `watch-costs` as its schedule does; a throttled or crashed start is tried again.
    pub async fn watch_costs(&self) -> Value {
        until("watch-costs answers", async || {
            let answer = self.aws().invoke("tunesmith-watch-costs", &json!({})).await.ok()?;
            answer.get("errorType").is_none().then_some(answer)
        })
        .await
    }

    /// Lets `watch-costs` look until a look that failed for a reason of its own has mailed this; what it said, and the mail. One
    /// that dies after claiming an alarm leaves it to one two minutes later.
    pub async fn failing_looks_mail(&self, subject: &str) -> (String, Mail) {
        until(&format!("watch-costs fails and mails {subject:?}"), async || {
            let answer = self.aws().invoke("tunesmith-watch-costs", &json!({})).await.ok()?;
            let died = answer["errorType"].as_str()?.starts_with("Runtime.");
            let mail = self.mails().into_iter().find(|mail| mail.subject.contains(subject))?;
            (!died).then(|| (answer["errorMessage"].to_string(), mail))
        })
        .await
    }

    /// Lets `watch-costs` look again and again until there is a mail whose subject holds this text.
    pub async fn looked_for(&self, subject: &str) -> Mail {
        until(&format!("watch-costs mails {subject:?}"), async || {
            self.watch_costs().await;
            self.mails().into_iter().find(|mail| mail.subject.contains(subject))
        })
        .await
    }

    /// Does once what the schedules do every five minutes: sweep machines, reclaim money. A crashed start is tried again.
    pub async fn look_after(&self) {
        for (function, input) in
            [("tunesmith-sweep-resources", json!({})), ("tunesmith-guard-budget", json!({"action": "reclaim"}))]
        {
            until(&format!("{function} answers"), async || {
                let answer = self.aws().invoke(function, &input).await.ok()?;
                answer.get("errorType").is_none().then_some(())
            })
            .await;
        }
    }

    /// Looks after everything until the run stands there.
    pub async fn look_after_until(&self, project: &ProjectId, run: &RunId, status: RunStatus) {
        until(&format!("{run} is {status:?}"), async || {
            self.look_after().await;
            let record: Option<RunRecord> = self.item(&ItemKey::run(project, run)).await;
            (record?.status == status).then_some(())
        })
        .await;
    }
}
