//! The emulator behaves as AWS does where the state machines and the gateway rely on it, and takes the committed template.

mod support;

use std::{collections::BTreeMap, fs};

use support::{Cloud, python};
use tunesmith_local::{
    deploy::{self, Built},
    paths::Paths,
    stage::Stages,
};

#[tokio::test(flavor = "multi_thread")]
async fn repairs_of_the_emulator_hold() {
    let python = python().await;
    Cloud::start("repairs", &python).script(&python, "emulator_repairs.py");
}

/// The functions are scripts that never run: this is about the template.
#[tokio::test(flavor = "multi_thread")]
async fn the_committed_template_is_deployed_with_every_output() {
    let (python, paths) = (python().await, Paths::of_this_checkout());
    let cloud = Cloud::start("template", &python);
    let nothing = cloud.folder.join("nothing");
    fs::write(&nothing, "#!/bin/sh\nexit 1\n").unwrap();
    let folders = fs::read_dir(paths.root.join("functions")).unwrap().flatten();
    let functions: BTreeMap<_, _> = folders
        .filter(|entry| entry.path().join("Cargo.toml").exists())
        .map(|entry| (entry.file_name().into_string().unwrap(), nothing.clone()))
        .collect();
    let built = Built { functions, trainer: nothing };
    let outputs = deploy::deploy(&paths, &cloud.as_state(), &built, &Stages::default()).await.unwrap();
    let wanted = "DocumentsBucket WorkspaceBucket Table NotificationsTopicArn AlarmsTopicArn TrainingPipelineArn \
                  ApproveDeploymentArn GatewayUrl AnswerUrl";
    for name in wanted.split_whitespace() {
        assert!(outputs.contains_key(name), "no output {name} in {outputs:?}");
    }
    let deployed = cloud.as_state().aws().functions().await.unwrap();
    assert!(deployed.len() >= 14, "{deployed:?}");
}
