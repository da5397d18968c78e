//! Brings the functions and the stacks of `infra/template.json` into a running local cloud.

mod functions;
mod stacks;
mod template;

use std::collections::BTreeMap;

use crate::{LocalError, paths::Paths, stage::Stages, state::State};

pub use functions::{Built, build};
pub use template::LEFT_OUT;

const ARTIFACTS_BUCKET: &str = "tunesmith-local-artifacts";
const ARTIFACTS_PREFIX: &str = "functions";
/// The image that user data and models name; the stand-ins run the host's trainer for it.
pub const TRAINER_IMAGE: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com/tunesmith-trainer:local";

/// Uploads the functions and creates the stacks, in the template's order. The outputs of all stacks are the result.
///
/// # Errors
/// When a binary or the template cannot be read, or a stack is not created.
pub async fn deploy(
    paths: &Paths,
    state: &State,
    built: &Built,
    stages: &Stages,
) -> Result<BTreeMap<String, String>, LocalError> {
    let stacks = template::read(&paths.root.join("infra/template.json"))?;
    let total = (built.functions.len() + stacks.len()) as u64;
    let stage = stages.begin("deploy", Some(total));
    let (aws, mut done) = (state.aws(), 0);
    aws.create_bucket(ARTIFACTS_BUCKET).await?;
    for (name, binary) in &built.functions {
        stage.tick(name);
        let zip = functions::zip(paths, name, binary)?;
        aws.put_object(ARTIFACTS_BUCKET, &format!("{ARTIFACTS_PREFIX}/{name}.zip"), zip).await?;
        done += 1;
        stage.at(done);
    }
    let parameters = BTreeMap::from([
        ("ArtifactsBucket", ARTIFACTS_BUCKET),
        ("ArtifactsPrefix", ARTIFACTS_PREFIX),
        ("AlarmEmail", "operator@example.com"),
        ("TrainerImage", TRAINER_IMAGE),
    ]);
    let mut outputs = BTreeMap::new();
    let mut left_out = Vec::new();
    for mut stack in stacks {
        stage.tick(&stack.name);
        left_out.extend(stack.leave_out());
        outputs.extend(stacks::create(&aws, paths, &stack, &parameters, ARTIFACTS_BUCKET).await?);
        done += 1;
        stage.at(done);
    }
    for resource in &left_out {
        stages.say(&format!("{:<22} left out (the emulator has no such thing): {resource}", ""));
    }
    stage.done(&format!("{} functions, {} stacks", built.functions.len(), total - built.functions.len() as u64));
    Ok(outputs)
}
