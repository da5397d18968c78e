//! CloudFormation: reading the outputs of a stack, so that tools find buckets and state machines by name.

use std::collections::BTreeMap;

use aws_sdk_cloudformation::Client;

use crate::{AwsError, Config, error::aws};

/// Outputs of a stack; `None` when there is no such stack.
pub async fn stack_outputs(config: &Config, stack: &str) -> Result<Option<BTreeMap<String, String>>, AwsError> {
    let found = match Client::new(config).describe_stacks().stack_name(stack).send().await {
        Ok(found) => found,
        Err(error) => {
            let error = aws!("cloudformation", "DescribeStacks")(error);
            let absent = error.code == "ValidationError" && error.message.contains("does not exist");
            return if absent { Ok(None) } else { Err(error) };
        }
    };
    Ok(found.stacks().first().map(|stack| {
        stack
            .outputs()
            .iter()
            .filter_map(|output| Some((output.output_key()?.to_owned(), output.output_value()?.to_owned())))
            .collect()
    }))
}
