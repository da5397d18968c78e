//! `cargo verify`: everything CI checks, in one command. `cargo verify format clippy` runs only those steps.

use std::{
    env,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    disk,
    step::{is_installed, run},
};

/// A step's name and what it does with the project's root folder.
type Step = (&'static str, fn(&Path) -> Result<Outcome>);

/// How a step that did not fail ended.
enum Outcome {
    Passed,
    /// Not done, because a tool is not installed. Told again in the closing table: what was skipped was not checked.
    Skipped(&'static str),
}

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
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let builds = steps.iter().any(|(name, _)| ["build", "test", "clippy"].contains(name));
    if let Some(warning) = if builds { disk::warning(&target)? } else { None } {
        println!("== warning: {warning}");
    }
    let start = Instant::now();
    let mut table = Vec::new();
    let mut result = Ok(());
    for (index, (name, step)) in steps.iter().enumerate() {
        println!("== step {} of {}: {name}", index + 1, steps.len());
        let began = Instant::now();
        let outcome = step(root);
        let seconds = began.elapsed().as_secs();
        table.push(match &outcome {
            Ok(Outcome::Passed) => format!("{name:<10} passed   {seconds:>5} s"),
            Ok(Outcome::Skipped(why)) => format!("{name:<10} SKIPPED  {why}"),
            Err(_) => format!("{name:<10} FAILED   {seconds:>5} s"),
        });
        if let Err(error) = outcome {
            result = Err(error);
            break;
        }
    }
    println!("\n{}\n{:<10}          {:>5} s", table.join("\n"), "together", start.elapsed().as_secs());
    result
}

/// A step that is one command.
fn passed(done: Result<()>) -> Result<Outcome> {
    done.map(|()| Outcome::Passed)
}

fn format(root: &Path) -> Result<Outcome> {
    passed(run("format", root, "cargo", &["fmt", "--all", "--check"], "run cargo fmt --all"))
}

fn clippy(root: &Path) -> Result<Outcome> {
    let args = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    passed(run("clippy", root, "cargo", &args, "mend the warnings above"))
}

fn build(root: &Path) -> Result<Outcome> {
    passed(run("build", root, "cargo", &["build", "--bins", "--locked"], "mend the errors above"))
}

fn test(root: &Path) -> Result<Outcome> {
    passed(run("test", root, "cargo", &["test", "--workspace", "--locked"], "see the failing test above"))
}

fn shell(root: &Path) -> Result<Outcome> {
    if !is_installed("shellcheck", &["--version"]) {
        return Ok(Outcome::Skipped("shellcheck is not installed (apt-get install shellcheck)"));
    }
    let scripts = shell_scripts(root)?;
    let scripts: Vec<&str> = scripts.iter().map(String::as_str).collect();
    passed(run("shell", root, "shellcheck", &scripts, "mend the script at the line above"))
}

/// Every shell script of the repository, by its ending or its first line, below the root.
fn shell_scripts(root: &Path) -> Result<Vec<String>> {
    const ELSEWHERE: [&str; 5] = ["target", "node_modules", "cdk.out", ".git", "__pycache__"];
    let (mut folders, mut found) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_symlink() || ELSEWHERE.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "sh")
                || (path.extension().is_none() && is_shell(&path)?)
            {
                found.push(path.strip_prefix(root)?.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether the first line asks for a shell.
fn is_shell(path: &Path) -> Result<bool> {
    let mut start = [0; 32];
    let length = File::open(path)?.read(&mut start)?;
    let text = String::from_utf8_lossy(&start[..length]);
    let first = text.lines().next().unwrap_or_default();
    Ok(first.starts_with("#!") && (first.ends_with("sh") || first.ends_with("bash")))
}

fn iam(root: &Path) -> Result<Outcome> {
    let remedy = "run python3 docs/iam-table.py --write and look at what changed";
    passed(run("iam", root, "python3", &["docs/iam-table.py", "--check"], remedy))
}

fn licences(root: &Path) -> Result<Outcome> {
    if !is_installed("cargo", &["deny", "--version"]) {
        return Ok(Outcome::Skipped("cargo-deny is not installed (cargo install cargo-deny)"));
    }
    let args = ["deny", "--offline", "check", "licenses", "bans", "sources"];
    passed(run("licences", root, "cargo", &args, "see deny.toml"))
}

fn npm_packages(root: &Path) -> Result<()> {
    if !is_installed("node", &["--version"]) {
        bail!("cdk: node is not installed; install Node 20 or later");
    }
    let folder = root.join("cdk");
    run("cdk packages", &folder, "npm", &["ci", "--no-audit", "--no-fund"], "see npm's message above")
}

fn cdk(root: &Path) -> Result<Outcome> {
    npm_packages(root)?;
    passed(run("cdk", &root.join("cdk"), "npm", &["test"], "a stale template is renewed by cargo synth"))
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
    fn every_shell_script_is_checked() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let found = shell_scripts(&root).unwrap();
        let stand_ins = ["aws", "docker", "shutdown"].map(|name| format!("infra/local/stand-ins/{name}"));
        let known = ["infra/user-data/train.sh".to_owned(), ".ci/run".to_owned()];
        for script in stand_ins.iter().chain(&known) {
            assert!(found.contains(script), "{script} of {found:?}");
        }
    }
}
