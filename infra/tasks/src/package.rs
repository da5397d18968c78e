//! `cargo package-functions [function …]`: each function as `target/lambda/<function>.zip` with an arm64 `bootstrap`, as AWS Lambda
//! (`provided.al2023`) wants it. Cross-compiled by `cargo lambda` and zig, both from PyPI, in an environment of their own.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::step::run;

/// Pinned: the versions this was proven with.
const PACKAGES: [&str; 2] = ["cargo-lambda==1.9.2", "ziglang==0.15.2"];

/// Packages all functions, or those named.
///
/// # Errors
/// When Python, the network or a build fails, or a function does not exist.
pub fn package(root: &Path, only: &[String]) -> Result<()> {
    let mut functions: Vec<String> = fs::read_dir(root.join("functions"))?
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("Cargo.toml").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    functions.sort();
    if let Some(unknown) = only.iter().find(|name| !functions.contains(name)) {
        bail!("there is no function {unknown}; there are: {}", functions.join(" "));
    }
    if !only.is_empty() {
        functions.retain(|name| only.contains(name));
    }
    let venv = root.join("target/package-venv");
    if !venv.join("bin/cargo-lambda").exists() {
        let folder = venv.to_str().context("the project's path is not UTF-8")?;
        run("packaging tools", root, "python3", &["-m", "venv", folder], "install Python 3.10 or later")?;
        let pip = venv.join("bin/pip");
        let pip = pip.to_str().context("the project's path is not UTF-8")?;
        run("packaging tools", root, pip, &[&["install", "--quiet"][..], &PACKAGES[..]].concat(), "see pip's message")?;
    }
    let cargo_lambda = venv.join("bin/cargo-lambda");
    let path = format!("{}:{}", venv.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    // One build for all: each by itself would select other features of shared crates, and compile the AWS SDKs again. Without cargo
    // lambda's own "optimizations", which would replace `panic = "unwind"`: a panic must become a typed error.
    let mut args =
        vec!["lambda", "build", "--profile", "lambda", "--arm64", "--disable-optimizations", "--output-format", "zip"];
    args.extend(functions.iter().flat_map(|name| ["--package", name.as_str()]));
    let program = cargo_lambda.to_str().context("the project's path is not UTF-8")?;
    // Graviton 2, the oldest that Lambda has
    let environment =
        [("PATH", path.as_str()), ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-Ctarget-cpu=neoverse-n1")];
    crate::step::run_with("functions", root, program, &args, &environment, "see the compiler's message above")?;
    for name in &functions {
        let built = root.join(format!("target/lambda/{name}/bootstrap.zip"));
        let wanted = root.join(format!("target/lambda/{name}.zip"));
        fs::copy(&built, &wanted).with_context(|| format!("{} was not built", built.display()))?;
    }
    println!("function                zip MB");
    for name in &functions {
        let bytes = fs::metadata(root.join(format!("target/lambda/{name}.zip")))?.len();
        println!("{name:<22} {:>7.2}", bytes as f64 / 1e6);
    }
    Ok(())
}
