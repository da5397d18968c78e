//! The virtual environment of the emulator, made on first use from `requirements.txt` with exact versions.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use crate::{LocalError, paths::Paths};

const PYTHONS: [&str; 6] = ["python3", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10"];

/// Which requirement files an environment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// What the local cloud runs.
    Emulator,
    /// That, and the clients the tests use.
    EmulatorAndTestClients,
}

/// Makes the environment, or returns the one that is there and up to date. `say` is told what takes time.
/// The path of its Python is the result.
///
/// # Errors
/// Without Python 3.10 or newer, or when a package cannot be installed.
pub async fn ensure(paths: &Paths, contents: Contents, say: &(dyn Fn(&str) + Sync)) -> Result<PathBuf, LocalError> {
    let (folder, infra) = (paths.venv(), paths.infra_local());
    let files: &[&str] = match contents {
        Contents::Emulator => &["requirements.txt"],
        Contents::EmulatorAndTestClients => &["requirements.txt", "requirements-test.txt"],
    };
    let python = folder.join("bin/python");
    let _alone = lock(&folder.with_extension("lock")).await?;
    // written when `venv` ended: one that was killed half-way leaves a python without pip
    let complete = folder.join("complete");
    for name in files {
        let file = infra.join(name);
        let wanted = fs::read_to_string(&file).map_err(LocalError::io("read", &file))?;
        let mark = folder.join(format!("installed-{name}"));
        if fs::read_to_string(&mark).is_ok_and(|found| found == wanted) && complete.exists() {
            continue;
        }
        if !complete.exists() {
            let system = find_python().await?;
            say(&format!("making a Python environment with {system}"));
            let args = ["-m", "venv", "--clear", &folder.to_string_lossy()].map(str::to_owned);
            run(Path::new(&system), &args, "install python3-venv (Debian: apt-get install python3-venv)").await?;
            fs::write(&complete, "").map_err(LocalError::io("write", &complete))?;
        }
        say(&format!("installing {name} (once)"));
        let args = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "-r",
            &file.to_string_lossy(),
        ]
        .map(str::to_owned);
        run(&python, &args, "check the connection to PyPI and try again").await?;
        fs::write(&mark, &wanted).map_err(LocalError::io("write", &mark))?;
    }
    Ok(python)
}

/// Waits until no other task or process makes the environment; the lock ends with the file handle, also when its holder dies.
async fn lock(path: &Path) -> Result<fs::File, LocalError> {
    let path = path.to_owned();
    let locked = tokio::task::spawn_blocking(move || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(LocalError::io("make", parent))?;
        }
        let file = fs::File::create(&path).map_err(LocalError::io("make", &path))?;
        file.lock().map_err(LocalError::io("lock", &path))?;
        Ok(file)
    });
    locked.await.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
}

/// The first Python on PATH that is new enough.
async fn find_python() -> Result<String, LocalError> {
    for name in PYTHONS {
        let check = "import sys; sys.exit(sys.version_info < (3, 10))";
        let status = Command::new(name).args(["-c", check]).output().await;
        if status.is_ok_and(|output| output.status.success()) {
            return Ok(name.to_owned());
        }
    }
    Err(LocalError::NoPython { looked_for: PYTHONS.join(", ") })
}

/// Runs a program to its end; its output becomes the error's detail.
///
/// # Errors
/// When it cannot be started or does not end with 0.
pub async fn run(program: &Path, args: &[String], remedy: &'static str) -> Result<String, LocalError> {
    let output = Command::new(program)
        .args(args)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true)
        .output()
        .await
        .map_err(LocalError::io("run", program))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let tail: Vec<&str> = text.lines().rev().take(6).collect();
    Err(LocalError::Program {
        program: format!("{} {}", program.display(), args.join(" ")),
        status: output.status.to_string(),
        detail: tail.into_iter().rev().collect::<Vec<_>>().join(" | "),
        remedy,
    })
}
