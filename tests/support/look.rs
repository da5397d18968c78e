//! What the tests look at: the table, the buckets, the mailbox, the machine room.

use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tunesmith_contract::{
    DocumentId, ProjectId, RunId,
    deployment::LiveRecord,
    documents::SourceRecord,
    ledger::{EndpointMeter, ItemKey, Lease, UsageItem},
};
use tunesmith_local::mailbox::{self, Mail};

use super::{Cloud, until};

impl Cloud {
    /// What the table has counted for a key: one item for each minute and day.
    pub async fn usage(&self, key: &str) -> Vec<UsageItem> {
        let hash = hex::encode(Sha256::digest(key));
        let pk = ItemKey::usage(&hash, "").pk;
        let items = self.aws().query_items(self.output("Table"), &pk, "").await.unwrap();
        items.into_iter().filter_map(|item| serde_json::from_value(item).ok()).collect()
    }

    /// What is known of an upload.
    pub async fn source(&self, project: &ProjectId, path: &str) -> Option<SourceRecord> {
        let items = self.aws().query_items(self.output("Table"), &ItemKey::project(project), "SOURCE#").await.unwrap();
        let mut records = items.into_iter().filter_map(|i| serde_json::from_value::<SourceRecord>(i).ok());
        records.find(|record| record.path == path)
    }

    /// The upload as soon as it is another document than this one.
    pub async fn source_with_other_text(&self, project: &ProjectId, path: &str, old: &DocumentId) -> SourceRecord {
        until(&format!("{path} has a new text"), async || {
            self.source(project, path).await.filter(|record| record.document != *old)
        })
        .await
    }

    /// Where a SageMaker endpoint stands, as the machine room describes it; empty when there is none.
    pub async fn endpoint(&self, name: &str) -> String {
        let status = self.state().command("status", &Value::Null).await.unwrap();
        let endpoints = status["endpoints"].as_array().cloned().unwrap_or_default();
        let found = endpoints.into_iter().find(|endpoint| endpoint["EndpointName"] == name);
        found.and_then(|endpoint| endpoint["EndpointStatus"].as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// The run that is live.
    pub async fn live(&self, project: &ProjectId) -> LiveRecord {
        self.item(&ItemKey::live(project)).await.unwrap()
    }

    /// Lets the schedules look until the endpoint is gone, charged to its end and forgotten.
    pub async fn endpoint_is_settled(&self, name: &str) {
        until(&format!("{name} is forgotten"), async || {
            self.look_after().await;
            self.watch_costs().await;
            let meter: Option<EndpointMeter> = self.item(&ItemKey::endpoint(name)).await;
            (meter.is_none() && self.endpoint(name).await.is_empty()).then_some(())
        })
        .await;
    }

    /// Number of mails whose subject holds this text.
    pub fn mails_about(&self, subject: &str) -> usize {
        self.mails().iter().filter(|mail| mail.subject.contains(subject)).count()
    }

    pub fn mails(&self) -> Vec<Mail> {
        mailbox::list(&self.paths.local_cloud().join("mailbox"), None)
    }

    /// Waits for a mail whose subject holds this text.
    pub async fn mail(&self, subject: &str) -> Mail {
        until(&format!("a mail {subject:?}"), async || self.mails().into_iter().find(|m| m.subject.contains(subject)))
            .await
    }

    /// Waits until so many questions about this project were mailed.
    pub async fn asked_times(&self, project: &ProjectId, times: usize) {
        self.mailed_times(&format!("{project} - a model waits"), times).await;
    }

    /// Waits until there are so many mails whose subject holds this text.
    pub async fn mailed_times(&self, subject: &str, times: usize) {
        until(&format!("{times} mails {subject:?}"), async || (self.mails_about(subject) >= times).then_some(())).await;
    }

    /// Waits for a mail about this project that holds this text.
    pub async fn mail_about(&self, project: &ProjectId, text: &str) -> Mail {
        until(&format!("a mail about {project} with {text}"), async || {
            self.mails().into_iter().find(|m| {
                let whole = format!("{}\n{}", m.subject, m.text);
                whole.contains(project.as_str()) && whole.contains(text)
            })
        })
        .await
    }

    pub async fn workspace<T: DeserializeOwned>(&self, key: &str) -> T {
        let found = self.aws().get_json(self.output("WorkspaceBucket"), key).await.unwrap();
        found.unwrap_or_else(|| panic!("{key} is missing"))
    }

    pub async fn item<T: DeserializeOwned>(&self, key: &ItemKey) -> Option<T> {
        let item = self.aws().get_item(self.output("Table"), &key.pk, &key.sk).await.unwrap()?;
        Some(serde_json::from_value(item).unwrap())
    }

    pub async fn leases(&self, run: &RunId) -> Vec<Lease> {
        let items = self.aws().query_items(self.output("Table"), "LEASE", "").await.unwrap();
        items.into_iter().map(|i| serde_json::from_value::<Lease>(i).unwrap()).filter(|l| l.run == *run).collect()
    }

    /// Waits until the run has a checkpoint that counts.
    pub async fn first_checkpoint(&self, project: &ProjectId, run: &RunId) {
        let prefix = format!("projects/{project}/runs/{run}/checkpoints/");
        until(&format!("a checkpoint of {run}"), async || {
            let keys = self.aws().list_objects(self.output("WorkspaceBucket"), &prefix).await.unwrap();
            keys.iter().any(|key| key.ends_with("/DONE")).then_some(())
        })
        .await;
    }

    /// Every machine of the run has ended, as the machine room sees it.
    pub async fn nothing_runs_for(&self, run: &RunId) {
        until(&format!("no machine of {run} runs"), async || {
            let status = self.state().command("status", &Value::Null).await.unwrap();
            let machines = status["instances"].as_array().cloned().unwrap_or_default();
            let running = |m: &&Value| m.to_string().contains(run.as_str()) && m["status"] == "running";
            machines.iter().find(running).is_none().then_some(())
        })
        .await;
    }
}
