//! One command of a longer job: announced, timed, and with its remedy when it fails.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// Runs `program args…` in `folder` with its output passed through.
///
/// # Errors
/// When it cannot be started or ends with another status than 0; the message names the command and `remedy`.
pub fn run(title: &str, folder: &Path, program: &str, args: &[&str], remedy: &str) -> Result<()> {
    run_with(title, folder, program, args, &[], remedy)
}

/// The same with additional environment variables.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    title: &str,
    folder: &Path,
    program: &str,
    args: &[&str],
    environment: &[(&str, &str)],
    remedy: &str,
) -> Result<()> {
    println!("== {title}: {program} {}", args.join(" "));
    let start = Instant::now();
    let status = Command::new(program)
        .args(args)
        .current_dir(folder)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{title}: {program} could not be started; {remedy}"))?;
    let seconds = start.elapsed().as_secs();
    if !status.success() {
        bail!("{title} failed after {seconds} s ({status}): {program} {}; {remedy}", args.join(" "));
    }
    println!("== {title}: done in {seconds} s");
    Ok(())
}

/// Whether `program --version` works on this machine.
pub fn is_installed(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
