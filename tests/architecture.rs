//! The dependency rules of the architecture, checked over `cargo metadata`: see "Invariants" in `docs/architecture.md`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

const PURE: [&str; 8] = [
    "tunesmith-contract",
    "tunesmith-documents",
    "tunesmith-model",
    "tunesmith-training",
    "tunesmith-evaluation",
    "tunesmith-budget",
    "tunesmith-privacy",
    "tunesmith-federation",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Direct normal dependencies of each workspace package, with the package's folder relative to the root.
fn packages() -> BTreeMap<String, (String, Vec<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let base = metadata["workspace_root"].as_str().unwrap().to_owned() + "/";
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|d| d["kind"].is_null())
                .map(|d| d["name"].as_str().unwrap().to_owned())
                .collect();
            let folder = package["manifest_path"].as_str().unwrap().replace(&base, "").replace("/Cargo.toml", "");
            (package["name"].as_str().unwrap().to_owned(), (folder, dependencies))
        })
        .collect()
}

#[test]
fn contract_depends_on_nothing_of_ours() {
    let packages = packages();
    let ours: Vec<_> = packages["tunesmith-contract"].1.iter().filter(|d| packages.contains_key(*d)).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[test]
fn pure_crates_name_no_runtime_no_network_and_no_impure_crate() {
    let forbidden = |d: &str| {
        d.starts_with("aws-") || d.starts_with("lambda_") || ["tokio", "hyper", "reqwest", "axum", "ureq"].contains(&d)
    };
    let packages = packages();
    for (name, (_, dependencies)) in packages.iter().filter(|(name, _)| PURE.contains(&name.as_str())) {
        for dependency in dependencies {
            assert!(!forbidden(dependency), "{name} is pure and must not depend on {dependency}");
            assert!(
                !packages.contains_key(dependency) || PURE.contains(&dependency.as_str()),
                "{name} is pure and must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn only_aws_names_the_sdk_and_only_lambda_and_functions_name_the_lambda_runtime() {
    for (name, (folder, dependencies)) in packages() {
        for dependency in &dependencies {
            if dependency.starts_with("aws-sdk-") || dependency == "aws-config" {
                assert_eq!(name, "tunesmith-aws", "{dependency}");
            }
            if dependency == "lambda_runtime" || dependency == "aws_lambda_events" {
                assert!(name == "tunesmith-lambda" || folder.starts_with("functions/"), "{name} names {dependency}");
            }
        }
    }
}

#[test]
fn functions_never_depend_on_each_other() {
    let packages = packages();
    let is_function = |name: &str| packages.get(name).is_some_and(|(folder, _)| folder.starts_with("functions/"));
    for (name, (_, dependencies)) in packages.iter().filter(|(name, _)| is_function(name)) {
        let others: Vec<_> = dependencies.iter().filter(|d| is_function(d)).collect();
        assert!(others.is_empty(), "{name} depends on {others:?}");
    }
}

#[test]
fn a_function_is_a_lib_and_a_main_of_at_most_forty_lines() {
    for (name, (folder, _)) in packages().iter().filter(|(_, (folder, _))| folder.starts_with("functions/")) {
        assert_eq!(*folder, format!("functions/{name}"));
        let main = fs::read_to_string(root().join(folder).join("src/main.rs")).expect(name);
        assert!(main.lines().count() <= 40, "{name}: main.rs has {} lines", main.lines().count());
        assert!(root().join(folder).join("src/lib.rs").exists(), "{name} has no lib.rs");
    }
}

#[test]
fn pure_crates_read_no_clock_and_no_environment() {
    for (name, (folder, _)) in packages().iter().filter(|(name, _)| PURE.contains(&name.as_str())) {
        let mut pending = vec![root().join(folder).join("src")];
        while let Some(path) = pending.pop() {
            if path.is_dir() {
                pending.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]").next().unwrap();
                if path.ends_with("contract/src/generated.rs") {
                    continue; // compiled for tests only
                }
                for call in
                    ["SystemTime::now", "Instant::now", "env::var(", "env::var_os(", "thread_rng(", "rand::rng("]
                {
                    assert!(!text.contains(call), "{name}: {} calls {call}; pass it in", path.display());
                }
            }
        }
    }
}
