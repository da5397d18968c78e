//! Every test that `docs/promises.md` names exists: a promise whose test was renamed or deleted would be held by nothing.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Folders of the repository that hold tests in Rust.
const RUST: [&str; 5] = ["crates", "functions", "infra", "tests", "trainer-image"];

/// Where the test program `pipeline` has its tests.
const PIPELINE: [&str; 2] = ["tests/pipeline.rs", "tests/uploads.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

/// The names of all Rust functions, with the files (below the root) that have one.
fn functions() -> BTreeMap<String, Vec<String>> {
    let mut paths = Vec::new();
    RUST.iter().for_each(|folder| files(&root().join(folder), "rs", &mut paths));
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        for after in text.split("fn ").skip(1) {
            let name: String = after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let file = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            found.entry(name).or_default().push(file);
        }
    }
    found
}

/// The titles of all tests of the CDK app.
fn titles() -> Vec<String> {
    let mut paths = Vec::new();
    files(&root().join("cdk/test"), "ts", &mut paths);
    let texts = paths.iter().map(|path| fs::read_to_string(path).unwrap());
    let titles = |text: String| -> Vec<String> {
        text.split("test('").skip(1).filter_map(|rest| Some(rest.split_once('\'')?.0.to_owned())).collect()
    };
    texts.flat_map(titles).collect()
}

/// What stands between back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of all tables: promise, and what holds it.
fn promises(page: &str) -> impl Iterator<Item = (&str, &str)> {
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| promise |"));
    rows.filter_map(|row| row.trim_matches(['|', ' ']).split_once(" | "))
}

/// What is wrong with a name such as `pipeline::x`, `src/mail.rs::x_…` or `a_test_of_the_file_named_before`.
fn problem(name: &str, functions: &BTreeMap<String, Vec<String>>) -> Option<String> {
    let (file, test) = name.rsplit_once("::").unwrap_or(("", name));
    let is_identifier =
        test.trim_end_matches('…').chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !is_identifier || (file.is_empty() && !test.contains('_')) {
        return None; // a file, a class of bad files, a command
    }
    let is_it = |found: &str| test.strip_suffix('…').map_or(found == test, |start| found.starts_with(start));
    let places: Vec<&String> =
        functions.iter().filter(|(found, _)| is_it(found)).flat_map(|(_, places)| places).collect();
    let files = if file == "pipeline" { &PIPELINE[..] } else { &[file] };
    let right = places.iter().any(|place| files.iter().any(|file| place.ends_with(file)));
    (!right).then(|| format!("{name}: found in {places:?}"))
}

#[test]
fn every_test_that_a_promise_names_exists() {
    let page = fs::read_to_string(root().join("docs/promises.md")).unwrap();
    let (functions, titles) = (functions(), titles());
    let (mut wrong, mut named) = (Vec::new(), 0);
    for (_, held) in promises(&page) {
        for name in quoted(held) {
            named += 1;
            wrong.extend(problem(name, &functions));
        }
        for (_, after) in held.match_indices("cdk").map(|(at, _)| held.split_at(at)) {
            // a list of titles after the word cdk, until something else begins
            for title in after.split('"').skip(1).step_by(2) {
                let title = title.replace("\\*", "*");
                if !titles.contains(&title) && !held.contains(&format!("(\"{title}\")")) {
                    wrong.push(format!("cdk: {title:?}"));
                }
            }
        }
    }
    assert!(named > 150, "the page could not be read: {named} names");
    assert!(wrong.is_empty(), "docs/promises.md names tests that do not exist:\n{}", wrong.join("\n"));
}

#[test]
fn a_name_that_is_not_there_is_noticed() {
    let functions = BTreeMap::from([("the_gate_refuses".to_owned(), vec!["crates/evaluation/src/gate.rs".to_owned()])]);
    for right in ["gate.rs::the_gate_refuses", "the_gate_refuses", "gate.rs::the_gate_…", "src/mail.rs", "truncated"]
    {
        assert_eq!(problem(right, &functions), None, "{right}");
    }
    for wrong in ["gate.rs::the_gate_refused", "mail.rs::the_gate_refuses", "pipeline::the_gate_…", "no_such_test"] {
        assert!(problem(wrong, &functions).is_some(), "{wrong}");
    }
}
