//! `cargo verify`: everything CI checks, in one command. `cargo verify format clippy` runs only those steps.

use std::{
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::step::{is_installed, run};

/// A step's name and what it does with the project's root folder.
type Step = (&'static str, fn(&Path) -> Result<()>);

/// The steps in their order: cheap ones first, so that a slip is told early.
const STEPS: [Step; 8] = [
    ("format", format),
    ("shell", shell),
    ("iam", iam),
    ("cdk", cdk),
    ("licences", licences),
    ("build", build),
    ("test", test),
    ("clippy", clippy),
];

/// Runs all steps, or only those named; in the end, also after a failure, says how long each took.
///
/// # Errors
/// The first step that fails, with its remedy.
pub fn verify(root: &Path, only: &[String]) -> Result<()> {
    if let Some(unknown) = only.iter().find(|name| STEPS.iter().all(|(step, _)| step != name)) {
        bail!("there is no step {unknown}; there are: {}", STEPS.map(|(name, _)| name).join(" "));
    }
    let steps: Vec<&Step> =
        STEPS.iter().filter(|(name, _)| only.is_empty() || only.iter().any(|o| o == name)).collect();
    let mut took = Vec::new();
    let mut result = Ok(());
    for (index, (name, step)) in steps.iter().enumerate() {
        println!("== step {} of {}: {name}", index + 1, steps.len());
        let start = Instant::now();
        result = step(root);
        took.push((*name, start.elapsed()));
        if result.is_err() {
            break;
        }
    }
    print!("{}", table(&took, result.is_ok()));
    result
}

/// Seconds of each step and of all together; what failed is the last one.
fn table(took: &[(&str, Duration)], has_passed: bool) -> String {
    let mut text = String::from("\nstep       seconds\n");
    for (index, (name, time)) in took.iter().enumerate() {
        let mark = if !has_passed && index + 1 == took.len() { "  failed" } else { "" };
        let _ = writeln!(text, "{name:<10} {:>7}{mark}", time.as_secs());
    }
    let all: Duration = took.iter().map(|(_, time)| time).sum();
    let _ = writeln!(text, "{:<10} {:>7}", "together", all.as_secs());
    text
}

fn format(root: &Path) -> Result<()> {
    run("format", root, "cargo", &["fmt", "--all", "--check"], "run cargo fmt --all")
}

fn clippy(root: &Path) -> Result<()> {
    let args = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    run("clippy", root, "cargo", &args, "mend the warnings above")
}

fn build(root: &Path) -> Result<()> {
    run("build", root, "cargo", &["build", "--bins", "--locked"], "mend the errors above")
}

fn test(root: &Path) -> Result<()> {
    run("test", root, "cargo", &["test", "--workspace", "--locked"], "see the failing test above")
}

fn shell(root: &Path) -> Result<()> {
    if !is_installed("shellcheck", &["--version"]) {
        println!("== shell: skipped, shellcheck is not installed (apt-get install shellcheck)");
        return Ok(());
    }
    let scripts = ["infra/user-data/train.sh", ".ci/run"];
    run("shell", root, "shellcheck", &scripts, "mend the script at the line above")
}

fn iam(root: &Path) -> Result<()> {
    let remedy = "run python3 docs/iam-table.py --write and look at what changed";
    run("iam", root, "python3", &["docs/iam-table.py", "--check"], remedy)
}

fn licences(root: &Path) -> Result<()> {
    if !is_installed("cargo", &["deny", "--version"]) {
        println!("== licences: skipped, cargo-deny is not installed (cargo install cargo-deny)");
        return Ok(());
    }
    let args = ["deny", "--offline", "check", "licenses", "bans", "sources"];
    run("licences", root, "cargo", &args, "see deny.toml")
}

fn npm_packages(root: &Path) -> Result<()> {
    if !is_installed("node", &["--version"]) {
        bail!("cdk: node is not installed; install Node 20 or later");
    }
    let folder = root.join("cdk");
    run("cdk packages", &folder, "npm", &["ci", "--no-audit", "--no-fund"], "see npm's message above")
}

fn cdk(root: &Path) -> Result<()> {
    npm_packages(root)?;
    run("cdk", &root.join("cdk"), "npm", &["test"], "a stale template is renewed by cargo synth")
}

/// Writes `infra/template.json` from the CDK app.
///
/// # Errors
/// When Node or a package is missing, or the app does not synthesize.
pub fn synth(root: &Path) -> Result<()> {
    npm_packages(root)?;
    run("synth", &root.join("cdk"), "npm", &["run", "synth"], "see the error above")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_how_long_each_step_took_and_which_failed() {
        let took = [("format", Duration::from_millis(2_900)), ("clippy", Duration::from_secs(61))];
        let passed = "\nstep       seconds\nformat           2\nclippy          61\ntogether        63\n";
        assert_eq!(table(&took, true), passed);
        assert_eq!(table(&took, false), passed.replace("61\n", "61  failed\n"));
    }
}
