//! The project's own commands: `cargo verify [step …]`, `cargo synth`, `cargo package-functions`.

mod disk;
mod package;
mod step;
mod verify;

use std::{env, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let result = match args.next().as_deref() {
        // `cargo verify -- clippy` and `cargo verify clippy` mean the same
        Some("verify") => verify::verify(&root, &args.filter(|arg| arg != "--").collect::<Vec<_>>()),
        Some("synth") => verify::synth(&root),
        Some("package") => package::package(&root, &args.collect::<Vec<_>>()),
        _ => Err(anyhow::anyhow!("say which: verify [step …] | synth | package [function …]")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
