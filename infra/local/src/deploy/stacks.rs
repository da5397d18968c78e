//! Creating a stack and waiting for it.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep};

use super::template::Stack;
use crate::{
    LocalError,
    client::{Aws, CLOUDFORMATION},
    emulator::log_path,
    paths::Paths,
};

const LIMIT: Duration = Duration::from_secs(120);

/// Creates a stack; its outputs are the result.
///
/// # Errors
/// [`LocalError::Stack`] with the resources that failed.
pub async fn create(
    aws: &Aws,
    paths: &Paths,
    stack: &Stack,
    parameters: &BTreeMap<&str, &str>,
    bucket: &str,
) -> Result<BTreeMap<String, String>, LocalError> {
    // Through S3: a template in the request is limited to 51,200 bytes, as on AWS.
    let key = format!("templates/{}.json", stack.name);
    aws.put_object(bucket, &key, stack.template.to_string()).await?;
    let url = format!("{}/{bucket}/{key}", aws.endpoint);
    let mut form: Vec<(String, String)> = vec![
        ("StackName".into(), stack.name.clone()),
        ("TemplateURL".into(), url),
        ("Capabilities.member.1".into(), "CAPABILITY_NAMED_IAM".into()),
        ("Capabilities.member.2".into(), "CAPABILITY_AUTO_EXPAND".into()),
    ];
    let wanted = stack.parameters();
    let given = parameters.iter().filter(|(name, _)| wanted.contains(*name));
    for (n, (name, value)) in given.enumerate() {
        form.push((format!("Parameters.member.{}.ParameterKey", n + 1), (*name).to_owned()));
        form.push((format!("Parameters.member.{}.ParameterValue", n + 1), (*value).to_owned()));
    }
    let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    aws.query(CLOUDFORMATION, "CreateStack", &form).await?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let xml = aws.query(CLOUDFORMATION, "DescribeStacks", &[("StackName", &stack.name)]).await?;
        let status = xml.text("StackStatus").unwrap_or_default();
        if status == "CREATE_COMPLETE" {
            let outputs = xml.records("Outputs").into_iter();
            return Ok(outputs.filter_map(|mut o| Some((o.remove("OutputKey")?, o.remove("OutputValue")?))).collect());
        }
        if !status.ends_with("_IN_PROGRESS") || Instant::now() > deadline {
            let reason = xml.text("StackStatusReason").unwrap_or_default();
            return Err(LocalError::Stack {
                stack: stack.name.clone(),
                status,
                reasons: format!("{reason} {}", failures(aws, &stack.name).await),
                log: log_path(&paths.local_cloud()),
            });
        }
        sleep(Duration::from_millis(150)).await;
    }
}

async fn failures(aws: &Aws, stack: &str) -> String {
    let Ok(xml) = aws.query(CLOUDFORMATION, "DescribeStackEvents", &[("StackName", stack)]).await else {
        return String::new();
    };
    let events = xml.records("StackEvents");
    let failed = events.iter().filter(|e| e.get("ResourceStatus").is_some_and(|s| s.ends_with("FAILED")));
    let text = |event: &BTreeMap<String, String>, key: &str| event.get(key).cloned().unwrap_or_default();
    failed
        .map(|event| format!("{}: {}", text(event, "LogicalResourceId"), text(event, "ResourceStatusReason")))
        .collect::<Vec<_>>()
        .join("; ")
}
