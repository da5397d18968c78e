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
const PIPELINE: [&str; 3] = ["tests/pipeline.rs", "tests/endpoints.rs", "tests/uploads.rs"];

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

/// The Rust files of the repository, and the names of all tests with the files (below the root) that have one.
struct Rust {
    files: Vec<String>,
    tests: BTreeMap<String, Vec<String>>,
}

impl Rust {
    fn read() -> Self {
        let mut paths = Vec::new();
        RUST.iter().for_each(|folder| files(&root().join(folder), "rs", &mut paths));
        let mut rust = Self { files: Vec::new(), tests: BTreeMap::new() };
        for path in paths {
            let file = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            for name in tests(&fs::read_to_string(&path).unwrap()) {
                rust.tests.entry(name).or_default().push(file.clone());
            }
            rust.files.push(file);
        }
        rust
    }
}

/// Names of the functions behind `#[test]` or `#[tokio::test…]`.
fn tests(text: &str) -> Vec<String> {
    let (mut found, mut is_test) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((_, after)) = line.split_once("fn ").filter(|_| is_test) {
            found.push(after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect());
            is_test = false;
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

/// What is wrong with a name such as `pipeline::x`, `src/mail.rs::x_…`, `src/mail.rs` or `a_test_of_the_file_named_before`.
fn problem(name: &str, rust: &Rust) -> Option<String> {
    if name.ends_with(".rs") {
        let is_there = rust.files.iter().any(|file| file.ends_with(name));
        return (!is_there).then(|| format!("{name}: no such file"));
    }
    let (file, test) = name.rsplit_once("::").unwrap_or(("", name));
    let is_identifier =
        test.trim_end_matches('…').chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !is_identifier || (file.is_empty() && !test.contains('_')) {
        return None; // a class of bad files, a command
    }
    let is_it = |found: &str| test.strip_suffix('…').map_or(found == test, |start| found.starts_with(start));
    let places: Vec<&String> =
        rust.tests.iter().filter(|(found, _)| is_it(found)).flat_map(|(_, places)| places).collect();
    let files = if file == "pipeline" { &PIPELINE[..] } else { &[file] };
    let right = places.iter().any(|place| files.iter().any(|file| place.ends_with(file)));
    (!right).then(|| format!("{name}: found in {places:?}"))
}

#[test]
fn every_test_that_a_promise_names_exists() {
    let page = fs::read_to_string(root().join("docs/promises.md")).unwrap();
    let (rust, titles) = (Rust::read(), titles());
    let (mut wrong, mut named) = (Vec::new(), 0);
    for (_, held) in promises(&page) {
        for name in quoted(held) {
            named += 1;
            wrong.extend(problem(name, &rust));
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
    let text = "fn a_helper() {}\n    #[test]\n    #[ignore]\n    fn the_gate_refuses() {\n #[tokio::test(flavor = \"x\")]\nasync fn b()";
    assert_eq!(tests(text), ["the_gate_refuses", "b"]);
    let gate = "crates/evaluation/src/gate.rs".to_owned();
    let rust = Rust { files: vec![gate.clone()], tests: BTreeMap::from([("the_gate_refuses".to_owned(), vec![gate])]) };
    for right in ["gate.rs::the_gate_refuses", "the_gate_refuses", "gate.rs::the_gate_…", "src/gate.rs", "truncated"]
    {
        assert_eq!(problem(right, &rust), None, "{right}");
    }
    for wrong in
        ["gate.rs::the_gate_refused", "mail.rs::the_gate_refuses", "pipeline::the_gate_…", "a_helper", "src/mail.rs"]
    {
        assert!(problem(wrong, &rust).is_some(), "{wrong}");
    }
}
