//! Endpoints on the local cloud of the pipeline tests: what is live stays, going on and back, the end of the money.

use serde_json::{Value, json};
use tunesmith_contract::{
    ProjectId, RunId, UnixTime, Usd,
    deployment::{LiveRecord, endpoint_name},
    ledger::{BudgetItem, EndpointMeter, ItemKey, Lease, LeaseStatus, RunRecord, RunStatus},
};

use crate::{
    BUDGET, QUICK, expired_lease,
    support::{Cloud, documents, settings},
};

/// A pipeline that Step Functions does not know.
const GONE: &str = "arn:aws:states:us-east-1:123456789012:execution:tunesmith-training-pipeline:gone";

#[test]
fn what_cannot_be_read_keeps_no_other_lease_open_and_no_other_endpoint_standing() {
    Cloud::with(async |cloud| {
        let project = cloud.budget_with("left-behind", 0, 0).await;
        let meter = left_behind(&project, &"run-0123456789ab".parse().unwrap());
        let lease = expired_lease("fedcba9876543210fedcba9876543210", &project);
        let (endpoint_key, lease_key) = (ItemKey::endpoint(&meter.name), ItemKey::lease(&lease.attempt));
        cloud.put_item(&endpoint_key, &meter).await;
        cloud.put_item(&lease_key, &lease).await;
        let unreadable = [ItemKey::endpoint("a-broken-endpoint"), ItemKey::lease("a-broken-lease")];
        for key in &unreadable {
            cloud.put_item(key, &json!({"name": 5, "attempt": 5})).await;
        }
        let told = cloud.answer("sweep-resources", &json!({})).await;
        for key in &unreadable {
            cloud.delete_item(key).await;
        }
        let message = told["errorMessage"].to_string();
        assert!(message.contains("a-broken-endpoint: ") && message.contains("a-broken-lease: "), "{told}");
        assert!(cloud.item::<EndpointMeter>(&endpoint_key).await.is_none(), "deleted and forgotten");
        assert_eq!(cloud.item::<Lease>(&lease_key).await.unwrap().status, LeaseStatus::Closed);
    });
}

#[test]
fn what_is_live_stays_live_until_another_is_verified_and_is_a_way_back() {
    Cloud::with(async |cloud| {
        let project = cloud.upload("endpoints", &documents(8), &settings(&[QUICK, BUDGET])).await;
        let run = cloud.train(&project).await;
        cloud.reaches(&run, "RequestApproval").await;
        // nobody answers before the question was mailed: whoever asks may die and ask anew
        cloud.asked_times(&project, 1).await;
        cloud.decide(&project, "approve").await;
        assert_eq!(cloud.ends(&run).await.last_state, "Published");
        let live = cloud.live(&project).await;
        let mail = cloud.mail(&format!("{project} - the new model is live")).await;
        assert!(mail.text.contains(live.run.as_str()) && mail.text.contains(&live.endpoint), "{}", mail.text);

        // A second model, on an instance, whose trainer is made to have computed something else than what will be served.
        let instance = "[serving]\nmode = \"instance\"\n";
        let other = settings(&[&QUICK.replace("max_steps = 6", "max_steps = 8"), BUDGET, instance]);
        cloud.put_document(&project, "project.toml", &other).await;
        let run = cloud.train(&project).await;
        let id = cloud.reaches(&run, "RequestApproval").await.planned().run;
        assert_ne!(id, live.run);
        let key = format!("projects/{project}/runs/{id}/reference-logits.json");
        let right: Value = cloud.workspace(&key).await;
        let mut wrong = right.clone();
        let first = wrong["logits"].as_array_mut().and_then(|logits| logits.first_mut()).unwrap();
        *first = json!(first.as_f64().unwrap() + 0.5);
        cloud.put_workspace(&key, &wrong).await;
        cloud.asked_times(&project, 2).await;
        let before: BudgetItem = cloud.item(&ItemKey::budget(&project, &cloud.this_month())).await.unwrap();
        cloud.decide(&project, "approve").await;

        // While it is checked the gateway answers with the model that is live.
        let second = endpoint_name(&project, &id);
        cloud.reaches(&run, "VerifyEndpoint").await;
        assert_eq!(cloud.endpoint(&live.endpoint).await, "InService");
        assert_eq!(cloud.live(&project).await, live);
        assert_eq!(cloud.ask(&project).await, 200, "the live model answers");

        let done = cloud.ends(&run).await;
        assert_eq!((done.status.as_str(), done.error.as_str()), ("FAILED", "VerificationFailed"), "{done:?}");
        let mail = cloud.mail_about(&project, "VerificationFailed").await;
        assert!(mail.text.contains("5.00e-1"), "the mail says by how much: {}", mail.text);
        assert_eq!(cloud.live(&project).await, live);
        assert_eq!(cloud.endpoint(&live.endpoint).await, "InService");
        assert_eq!(cloud.ask(&project).await, 200, "the live model answers");
        cloud.endpoint_is_settled(&second).await;
        let after: BudgetItem = cloud.item(&ItemKey::budget(&project, &cloud.this_month())).await.unwrap();
        assert!(after.spent > before.spent, "its instance is charged: {before:?} {after:?}");

        go_on_and_back(cloud, &project, &live, &id, (&key, &right)).await;
        the_month_is_used_up(cloud, &project, &cloud.live(&project).await).await;
    });
}

/// The failed run, which was approved, is deployed after all; then the first one again. Nothing is trained.
async fn go_on_and_back(
    cloud: &Cloud,
    project: &ProjectId,
    first: &LiveRecord,
    id: &RunId,
    (key, logits): (&str, &Value),
) {
    cloud.put_workspace(key, logits).await;
    let again = cloud.ends(&cloud.deploy_again(project, id).await).await;
    assert_eq!((again.status.as_str(), again.last_state.as_str()), ("SUCCEEDED", "Published"), "{again:?}");
    assert!(!again.results.contains_key("TrainModel"), "{again:?}");
    let second = cloud.live(project).await;
    assert_eq!((&second.run, second.replaces.as_ref()), (id, Some(&first.run)));
    let record: RunRecord = cloud.item(&ItemKey::run(project, id)).await.unwrap();
    assert_eq!(record.status, RunStatus::Published);
    assert_eq!(cloud.ask(project).await, 200);
    // both are charged while both exist: the first costs nothing while nobody asks, the second by the hour
    let meter: EndpointMeter = cloud.item(&ItemKey::endpoint(&second.endpoint)).await.unwrap();
    assert!(meter.is_billed_by_the_hour(), "serverless before, an instance now: {meter:?}");
    cloud.look_after().await;
    assert_eq!(cloud.endpoint(&first.endpoint).await, "InService", "it gives its last answers");

    // a double click: the second pipeline takes the endpoint over, before the first one has published it or after
    let clicked = cloud.deploy_again(project, &first.run).await;
    let back = cloud.ends(&cloud.deploy_again(project, &first.run).await).await;
    assert_eq!((back.status.as_str(), back.last_state.as_str()), ("SUCCEEDED", "Published"), "{back:?}");
    // the first one, if it lost the endpoint, fails and leaves what is not its own
    let clicked = cloud.ends(&clicked).await;
    assert!(clicked.last_state == "Published" || clicked.error == "EndpointFailed", "{clicked:?}");
    let live = cloud.live(project).await;
    assert_eq!((&live.run, live.replaces.as_ref()), (&first.run, Some(id)));
    assert_eq!(cloud.ask(project).await, 200);
    let mail = cloud.mail_about(project, &format!("It replaces: {id}")).await;
    assert!(mail.text.contains("approve-deployment"), "{}", mail.text);
    // ten minutes later
    let earlier = LiveRecord { since: UnixTime(live.since.0 - 600), ..live.clone() };
    cloud.put_item(&ItemKey::live(project), &earlier).await;
    cloud.endpoint_is_settled(&second.endpoint).await;
    assert_eq!(cloud.endpoint(&live.endpoint).await, "InService");
    assert_eq!(cloud.ask(project).await, 200);
}

/// A serverless endpoint whose pipeline is gone.
fn left_behind(project: &ProjectId, run: &RunId) -> EndpointMeter {
    EndpointMeter {
        name: endpoint_name(project, run),
        project: project.clone(),
        run: run.clone(),
        execution: GONE.into(),
        deployed_at: UnixTime(0),
        published_at: None,
        ended_at: None,
        stop_mail_due: None,
        price_per_hour: Usd::ZERO,
        instances: 0,
        monthly_limit: Usd::ZERO,
        metered_until: UnixTime(0),
    }
}

/// An endpoint that is billed by the hour is charged, and deleted when the project's month is used up.
async fn the_month_is_used_up(cloud: &Cloud, project: &ProjectId, live: &LiveRecord) {
    let before: BudgetItem = cloud.item(&ItemKey::budget(project, &cloud.this_month())).await.unwrap();
    let meter = EndpointMeter {
        deployed_at: live.since,
        published_at: Some(live.since),
        price_per_hour: Usd::from_micros(5_000_000),
        instances: 1,
        monthly_limit: before.limit,
        metered_until: UnixTime(cloud.now().0 - 3600),
        ..left_behind(project, &live.run)
    };
    cloud.put_item(&ItemKey::endpoint(&live.endpoint), &meter).await;
    // Approved was a serverless one: one that is live otherwise is not taken over, and not waited for.
    let deploy = json!({"action": "deploy", "project": project, "run": live.run, "execution": GONE});
    let refused = cloud.answer("deploy-endpoint", &deploy).await;
    assert_eq!(refused["errorType"], "EndpointFailed", "{refused}");
    let message = refused["errorMessage"].to_string();
    assert!(message.contains("another kind or price") && message.contains("$5.00 an hour each"), "{refused}");
    let subject = format!("endpoint {} was deleted", live.endpoint);
    let mail = cloud.looked_for(&subject).await;
    assert!(mail.text.contains(project.as_str()), "{}", mail.text);
    cloud.endpoint_is_settled(&live.endpoint).await;
    assert_eq!(cloud.mails_about(&subject), 1, "mailed once, however often it is looked at");
    let after: BudgetItem = cloud.item(&ItemKey::budget(project, &cloud.this_month())).await.unwrap();
    let charged = after.spent.micros() - before.spent.micros();
    assert!((5_000_000..5_100_000).contains(&charged), "an hour and a moment at $5: {charged}");
    assert!(cloud.item::<LiveRecord>(&ItemKey::live(project)).await.is_none());
}
