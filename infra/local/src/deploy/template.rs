//! `infra/template.json`: `{"stacks": [{"name": …, "template": {CloudFormation}}, …]}` in the order of deployment.

use std::{fs, path::Path};

use serde::Deserialize;
use serde_json::Value;

use crate::LocalError;

/// Resource types the emulator refuses (or does nothing useful with): left out locally, and named when they are.
pub const LEFT_OUT: [&str; 10] = [
    "AWS::Budgets::Budget",
    "AWS::CE::AnomalyMonitor",
    "AWS::CE::AnomalySubscription",
    "AWS::CDK::Metadata",
    "AWS::CloudWatch::CompositeAlarm",
    "AWS::EC2::FlowLog",
    "AWS::Logs::QueryDefinition",
    "AWS::SageMaker::Endpoint",
    "AWS::SageMaker::EndpointConfig",
    "AWS::SageMaker::Model",
];

/// One stack.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// Its CloudFormation template.
    pub template: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stacks {
    stacks: Vec<Stack>,
}

/// Reads the file.
///
/// # Errors
/// [`LocalError::BadFile`].
pub fn read(path: &Path) -> Result<Vec<Stack>, LocalError> {
    let text = fs::read_to_string(path).map_err(LocalError::io("read", path))?;
    let stacks: Stacks = serde_json::from_str(&text).map_err(|e| LocalError::BadFile {
        path: path.to_owned(),
        detail: e.to_string(),
        remedy: "make it anew with `cargo synth`",
    })?;
    Ok(stacks.stacks)
}

impl Stack {
    /// Takes resources of the types in [`LEFT_OUT`] out, and every `DependsOn` on them. What was taken out is the result.
    pub fn leave_out(&mut self) -> Vec<String> {
        let mut gone = Vec::new();
        if let Some(resources) = self.template["Resources"].as_object_mut() {
            resources.retain(|id, resource| {
                let kind = resource["Type"].as_str().unwrap_or_default();
                let stays = !LEFT_OUT.contains(&kind);
                if !stays && kind != "AWS::CDK::Metadata" {
                    gone.push(format!("{kind} {id}"));
                }
                stays
            });
            let left: Vec<String> = resources.keys().cloned().collect();
            for resource in resources.values_mut() {
                prune(resource, &left);
            }
        }
        gone
    }

    /// Names of the template's parameters.
    #[must_use]
    pub fn parameters(&self) -> Vec<&str> {
        self.template["Parameters"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
    }
}

fn prune(resource: &mut Value, left: &[String]) {
    let Some(fields) = resource.as_object_mut() else { return };
    let is_there = |value: &Value| value.as_str().is_some_and(|id| left.iter().any(|other| other == id));
    match fields.get_mut("DependsOn") {
        Some(Value::Array(list)) => list.retain(is_there),
        Some(single) if !is_there(single) => {
            fields.remove("DependsOn");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn left_out_resources_leave_no_dependency_behind() {
        let template = json!({"Resources": {
            "Budget": {"Type": "AWS::Budgets::Budget"},
            "Topic": {"Type": "AWS::SNS::Topic", "DependsOn": ["Budget", "Other"]},
            "Other": {"Type": "AWS::SNS::Topic", "DependsOn": "Budget"},
        }});
        let mut stack = Stack { name: "s".into(), template };
        assert_eq!(stack.leave_out(), ["AWS::Budgets::Budget Budget"]);
        assert_eq!(stack.template["Resources"]["Topic"]["DependsOn"], json!(["Other"]));
        assert!(stack.template["Resources"]["Other"].get("DependsOn").is_none());
    }
}
