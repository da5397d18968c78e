//! `local-cloud`: wires the commands to the library.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tunesmith_local::{LocalError, daemon, demo, guard, operate, paths::Paths, stage::Stages, stand_in};

/// Tunesmith on one machine: an AWS emulator, machines and endpoints as processes, and the whole path from documents to an
/// approved endpoint.
#[derive(Debug, Parser)]
#[command(name = "local-cloud", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a local cloud with everything deployed, and leave it up
    Up,
    /// Walk through the whole path once: documents in, approved endpoint out
    Demo {
        /// Folder of documents [default: docs/sample]
        #[arg(long)]
        documents: Option<PathBuf>,
        /// Project name [default: made from the folder's name]
        #[arg(long)]
        project: Option<String>,
        /// Approve through the state machine approve-deployment, after showing the decision
        #[arg(long)]
        approve: bool,
        /// Leave the local cloud up at the end
        #[arg(long)]
        keep: bool,
    },
    /// Show addresses, machines, endpoints and executions
    Status,
    /// Approve the model that waits
    Approve(Decision),
    /// Reject the model that waits
    Reject(Decision),
    /// Make an API key and show how to ask the model with it
    Key {
        /// Project [default: that of the last demo]
        #[arg(long)]
        project: Option<String>,
    },
    /// Take a spot machine back: notice now, end after the notice time
    Interrupt {
        /// The machine [default: the one that runs]
        instance: Option<String>,
        /// Seconds between notice and end [default: 120, or settings.json]
        #[arg(long)]
        notice_seconds: Option<u64>,
    },
    /// Print the mails
    Mailbox,
    /// Print logs of a function, a machine, an endpoint, or (without a name) of the local cloud itself
    Logs {
        /// Function name, i-…, or endpoint name
        of: Option<String>,
    },
    /// Stop everything
    Down,
    /// The daemon (started by `up` and `demo`)
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        python: PathBuf,
    },
    /// Runs a command whose descendants end with it (started by the daemon)
    #[command(hide = true)]
    Guard {
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Replaces a program on a local machine (started by user data)
    #[command(hide = true)]
    StandIn {
        program: String,
        #[arg(last = true)]
        args: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Decision {
    /// Project [default: that of the last demo]
    #[arg(long)]
    project: Option<String>,
    /// Run [default: the one that waits]
    #[arg(long)]
    run: Option<String>,
    /// Why
    #[arg(long, default_value = "")]
    reason: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(arguments());
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,hyper=warn"));
    let in_daemon = matches!(cli.command, Command::Serve { .. });
    if in_daemon {
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    }
    let mut builder = if matches!(cli.command, Command::Guard { .. } | Command::StandIn { .. }) {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(dispatch(cli.command));
    // A thread that reads standard input must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}

/// The arguments; `cargo demo -- --approve` arrives as `demo -- --approve`, because the alias ends in the command itself.
fn arguments() -> Vec<OsString> {
    let mut all: Vec<OsString> = std::env::args_os().collect();
    if all.get(1).is_some_and(|name| name != "guard" && name != "stand-in") && all.get(2).is_some_and(|a| a == "--") {
        all.remove(2);
    }
    all
}

async fn dispatch(command: Command) -> ExitCode {
    let paths = Paths::of_this_checkout();
    let result = match command {
        Command::Guard { command } => return guard::run(command).await,
        Command::StandIn { program, args } => return stand_in::run(&program, &args).await,
        Command::Serve { python } => daemon::serve(paths, python).await,
        Command::Up => interruptible(up(&paths)).await,
        Command::Demo { documents, project, approve, keep } => {
            let options = demo::Options { documents, project, approve, keep };
            let stages = Stages::default();
            interruptible(async { demo::run(&paths, &options, &stages).await.map(drop) }).await
        }
        Command::Status => operate::status(&paths).await,
        Command::Approve(d) => {
            operate::decide(&paths, d.project.as_deref(), d.run.as_deref(), "approve", &d.reason).await
        }
        Command::Reject(d) => {
            operate::decide(&paths, d.project.as_deref(), d.run.as_deref(), "reject", &d.reason).await
        }
        Command::Key { project } => operate::key(&paths, project.as_deref()).await,
        Command::Interrupt { instance, notice_seconds } => {
            operate::interrupt(&paths, instance.as_deref(), notice_seconds).await
        }
        Command::Mailbox => operate::print_mails(&paths),
        Command::Logs { of } => operate::logs(&paths, of.as_deref()).await,
        Command::Down => operate::down(&paths).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(LocalError::Interrupted) => {
            eprintln!("{}", LocalError::Interrupted);
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn up(paths: &Paths) -> Result<(), LocalError> {
    let stages = Stages::default();
    let daemon = demo::bring_up(paths, &stages).await?;
    stages.say("the local cloud is up; `cargo local-cloud status` shows it, `cargo local-cloud down` ends it");
    daemon.keep().await
}

/// Runs to the end, or until Ctrl-C: then everything that was started is stopped before this returns.
async fn interruptible(work: impl Future<Output = Result<(), LocalError>>) -> Result<(), LocalError> {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return Err(LocalError::Usage("signals cannot be handled on this system".into()));
    };
    // Compilers whose Cargo was stopped come to this process, so that they can be waited for.
    guard::adopt_orphans();
    let result = tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Err(LocalError::Interrupted),
        _ = terminate.recv() => Err(LocalError::Interrupted),
    };
    if result.is_err() {
        // The work was dropped, and with it the daemon's lifeline: wait until the daemon has ended everything.
        guard::no_guards_left(Duration::from_secs(30)).await;
    }
    result
}
