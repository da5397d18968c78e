//! Processes that cannot outlive their owner.
//!
//! Every process of the local cloud runs under a guard: this same binary, started as `local-cloud guard -- program args…`.
//! The guard is the subreaper of all its descendants (`prctl(PR_SET_CHILD_SUBREAPER)`), so even those that detach come back
//! to it, and it holds the read end of a pipe whose write end its owner holds. When the owner closes the pipe, or dies in
//! whatever way, the guard ends all descendants and then itself. `PR_SET_PDEATHSIG` lost: it fires when the *thread* that
//! forked ends, and it does not reach grandchildren such as the emulator's Lambda processes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    path::PathBuf,
    process::{ExitCode, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStdin, Command},
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use crate::LocalError;

/// Time between SIGTERM and SIGKILL. The trainer finishes its step and writes a checkpoint in it.
const GRACE: Duration = Duration::from_secs(8);

/// What to run under a guard.
#[derive(Debug, Clone)]
pub struct Job {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Its environment, complete: nothing is inherited.
    pub env: BTreeMap<String, OsString>,
    /// Its working folder.
    pub folder: PathBuf,
    /// Where its output is appended.
    pub log: PathBuf,
}

/// A process under a guard. Dropping it ends the process and all its descendants.
#[derive(Debug)]
pub struct Guarded {
    guard: Child,
    lifeline: Option<ChildStdin>,
}

impl Guarded {
    /// Starts a job.
    ///
    /// # Errors
    /// When the log cannot be opened or the guard cannot be started.
    pub fn start(job: &Job) -> Result<Self, LocalError> {
        let log = open_log(&job.log)?;
        let copy = log.try_clone().map_err(LocalError::io("open", &job.log))?;
        // /proc/self/exe stays valid when Cargo replaces the binary while the local cloud is up.
        let mut guard = Command::new("/proc/self/exe")
            .arg("guard")
            .arg("--")
            .args(&job.command)
            .env_clear()
            .envs(&job.env)
            .current_dir(&job.folder)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(copy)
            .process_group(0)
            .spawn()
            .map_err(LocalError::io(
                "start a guard for",
                PathBuf::from(job.command.first().cloned().unwrap_or_default()),
            ))?;
        let lifeline = guard.stdin.take();
        Ok(Self { guard, lifeline })
    }

    /// The guard's process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.guard.id()
    }

    /// The exit status, when the process has ended.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.guard.try_wait().ok().flatten()
    }

    /// Waits until the process and all its descendants are gone.
    pub async fn wait(&mut self) -> Option<std::process::ExitStatus> {
        // `tokio::process::Child::wait` closes stdin, which here would end the process: keep the lifeline apart.
        self.guard.wait().await.ok()
    }

    /// Ends the process: SIGTERM, then after a while SIGKILL. Returns when no descendant is left.
    pub async fn stop(mut self) {
        self.lifeline = None;
        let _ = self.guard.wait().await;
    }

    /// Takes the lifeline apart, so that one task can wait while another one ends the process.
    #[must_use]
    pub fn split(mut self) -> (Self, Lifeline) {
        let lifeline = Lifeline(self.lifeline.take());
        (self, lifeline)
    }
}

/// Keeps a guarded process alive; dropping it ends the process.
#[derive(Debug)]
pub struct Lifeline(#[allow(dead_code)] Option<ChildStdin>);

fn open_log(path: &PathBuf) -> Result<fs::File, LocalError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(LocalError::io("make", folder))?;
    }
    fs::OpenOptions::new().create(true).append(true).open(path).map_err(LocalError::io("open", path))
}

/// The `guard` command: runs `command` until it ends or standard input closes; then ends every descendant.
/// The exit code is the command's.
pub async fn run(command: Vec<OsString>) -> ExitCode {
    if set_child_subreaper(Some(getpid())).is_err() {
        eprintln!("guard: this kernel has no child subreaper; detached processes could survive");
    }
    let Some((program, args)) = command.split_first() else {
        eprintln!("guard: no command given");
        return ExitCode::from(2);
    };
    let mut child = match Command::new(program).args(args).stdin(Stdio::null()).process_group(0).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("guard: {}: {error}", program.to_string_lossy());
            return ExitCode::from(127);
        }
    };
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        let _ = child.kill().await;
        return ExitCode::FAILURE;
    };
    let mut lifeline = tokio::io::stdin();
    let mut byte = [0_u8; 1];
    let mut status = None;
    loop {
        tokio::select! {
            ended = child.wait() => { status = ended.ok(); break; }
            read = lifeline.read(&mut byte) => if !matches!(read, Ok(1..)) { break; },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    end_descendants(&mut child).await;
    let code = status.and_then(|status| status.code()).unwrap_or(143);
    // A blocking read of standard input would keep the runtime from ending: leave at once.
    std::process::exit(code)
}

async fn end_descendants(child: &mut Child) {
    let deadline = Instant::now() + GRACE;
    let mut told = BTreeSet::new();
    loop {
        let _ = child.try_wait();
        let left = all_descendants();
        if left.is_empty() {
            return;
        }
        // Each is told once, also what the emulator starts anew for a function that has just been told.
        let kill = Instant::now() >= deadline;
        for pid in left {
            if kill || told.insert(pid.as_raw_nonzero()) {
                let _ = kill_process(pid, if kill { Signal::KILL } else { Signal::TERM });
            }
        }
        sleep(Duration::from_millis(20)).await;
        reap();
    }
}

/// Makes this process the parent of descendants whose own parent has ended.
pub fn adopt_orphans() {
    let _ = set_child_subreaper(Some(getpid()));
}

/// Waits until this process has no descendant left (their owners have been dropped); after `limit`, kills what is there
/// and waits until it is gone. Returns what had to be killed.
pub async fn no_guards_left(limit: Duration) -> Vec<u32> {
    let deadline = Instant::now() + limit;
    let mut killed = BTreeSet::new();
    while Instant::now() < deadline + GRACE {
        let left = all_descendants();
        if left.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            for pid in left {
                let _ = kill_process(pid, Signal::KILL);
                killed.extend(u32::try_from(pid.as_raw_nonzero().get()));
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    killed.into_iter().collect()
}

/// Collects children that were given to this process by their dying parents.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
}

/// Every living descendant of this process. None means none: one look misses a child that was begun after its parent's folder
/// was listed, when the parent ended before it was read, so that an empty look is repeated.
fn all_descendants() -> Vec<Pid> {
    let found = descendants();
    if found.is_empty() { descendants() } else { found }
}

fn descendants() -> Vec<Pid> {
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        processes.extend(state_and_parent(&stat).map(|found| (pid, found)));
    }
    living_below(getpid().as_raw_nonzero().get(), &processes).into_iter().filter_map(Pid::from_raw).collect()
}

/// Those of `processes` (state and parent by process id) that live and descend from `own`. A zombie still is a parent: when a
/// process with many threads is killed, its first thread is a zombie while others hold the children.
fn living_below(own: i32, processes: &BTreeMap<i32, (char, i32)>) -> Vec<i32> {
    let is_ours = |pid: i32| {
        let above = std::iter::successors(Some(pid), |pid| processes.get(pid).map(|&(_, parent)| parent));
        above.skip(1).take(64).any(|ancestor| ancestor == own)
    };
    let living = processes.iter().filter(|(_, (state, _))| *state != 'Z').map(|(&pid, _)| pid);
    living.filter(|&pid| is_ours(pid)).collect()
}

/// Fields 3 and 4 of `/proc/{pid}/stat`; the name in field 2 may hold spaces and parentheses.
fn state_and_parent(stat: &str) -> Option<(char, i32)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_does_not_confuse_the_parser() {
        assert_eq!(state_and_parent("12 (a) b (c) S 7 12 12 0"), Some(('S', 7)));
        assert_eq!(state_and_parent("garbage"), None);
    }

    #[test]
    fn children_of_a_zombie_are_descendants() {
        let processes = BTreeMap::from([
            (10, ('S', 1)),
            (11, ('Z', 10)),
            (12, ('S', 11)),
            (13, ('R', 12)),
            (20, ('S', 1)),
            (21, ('S', 20)),
        ]);
        assert_eq!(living_below(10, &processes), [12, 13]);
        assert_eq!(living_below(13, &processes), Vec::<i32>::new());
    }
}
