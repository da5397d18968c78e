//! EC2 instances as processes: each runs its user data under bash, with stand-ins for `docker`, `shutdown` and `aws` first on
//! its PATH and its own metadata service.
//!
//! As on AWS a machine whose user data has ended goes on running (and costing) until it is shut down or terminated.

use std::{collections::BTreeMap, ffi::OsString, fs, path::PathBuf, time::Duration};

use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{sync::watch, task::JoinHandle};

use super::{Room, access::random_hex, imds, launch_request::Launch};
use crate::{
    LocalError,
    emulator::{machine_room_endpoints, plain_environment},
    guard::{Guarded, Job, Lifeline},
};

/// Where an instance stands: EC2's codes and names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Being started.
    Pending,
    /// Running and costing.
    Running,
    /// Being ended.
    ShuttingDown,
    /// Gone.
    Terminated,
    /// Powered off, to be started again (which nobody here does).
    Stopped,
}

impl Status {
    /// EC2's code.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
            Self::Stopped => 80,
        }
    }

    /// EC2's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopped => "stopped",
        }
    }
}

/// Why an instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// `TerminateInstances`.
    User,
    /// `shutdown` on the machine itself.
    Instance,
    /// Spot capacity was taken back.
    Spot,
    /// The local cloud is going down.
    RoomClosed,
    /// It could not be started.
    Failed,
}

impl Reason {
    /// EC2's state reason: code and message.
    #[must_use]
    pub const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::User => ("Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown"),
            Self::Instance => {
                ("Client.InstanceInitiatedShutdown", "Client.InstanceInitiatedShutdown: Instance initiated shutdown")
            }
            Self::Spot => {
                ("Server.SpotInstanceTermination", "Server.SpotInstanceTermination: Spot instance termination")
            }
            Self::RoomClosed => ("Server.InternalError", "Server.InternalError: the local cloud was stopped"),
            Self::Failed => ("Server.InternalError", "Server.InternalError: the instance could not be started"),
        }
    }
}

/// A spot notice.
#[derive(Debug, Clone, Copy)]
pub struct Notice {
    /// When the machine will be ended.
    pub at: OffsetDateTime,
}

/// An instance.
#[derive(Debug)]
pub struct Instance {
    /// `i-…`
    pub id: String,
    /// `r-…`
    pub reservation: String,
    /// How it was asked for.
    pub launch: Launch,
    /// Where it is.
    pub zone: String,
    /// When it was launched.
    pub launched: OffsetDateTime,
    /// Where it stands.
    pub status: Status,
    /// Why it ended.
    pub reason: Option<Reason>,
    /// When it ended.
    pub ended: Option<OffsetDateTime>,
    /// Its spot notice.
    pub notice: Option<Notice>,
    /// Secret of its own stand-ins.
    pub token: String,
    lifeline: Option<Lifeline>,
    metadata: Option<JoinHandle<()>>,
    gone: watch::Sender<bool>,
}

/// What `cargo local-cloud status` shows of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// `i-…`
    pub id: String,
    /// Its type.
    pub instance_type: String,
    /// `spot` or `on-demand`.
    pub market: &'static str,
    /// EC2's state name.
    pub status: &'static str,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Launched at.
    pub launched: String,
    /// Its log.
    pub log: PathBuf,
}

impl Room {
    /// Folder of an instance: user data, log, whatever the machine writes.
    pub(super) fn instance_folder(&self, id: &str) -> PathBuf {
        self.0.folder.join("instances").join(id)
    }

    /// Starts the machines of a request; their ids.
    pub(super) fn launch(&self, launch: &Launch) -> Vec<String> {
        let reservation = format!("r-{}", random_hex(8).get(..17).unwrap_or_default());
        (0..launch.count)
            .map(|_| {
                let id = format!("i-{}", random_hex(9).get(..17).unwrap_or_default());
                let zone = launch.zone.clone().unwrap_or_else(|| self.0.prices.default_zone());
                let instance = Instance {
                    id: id.clone(),
                    reservation: reservation.clone(),
                    launch: launch.clone(),
                    zone,
                    launched: OffsetDateTime::now_utc(),
                    status: Status::Pending,
                    reason: None,
                    ended: None,
                    notice: None,
                    token: random_hex(16),
                    lifeline: None,
                    metadata: None,
                    gone: watch::Sender::new(false),
                };
                self.tables().instances.insert(id.clone(), instance);
                tokio::spawn(self.clone().boot(id.clone()));
                id
            })
            .collect()
    }

    async fn boot(self, id: String) {
        match self.start_machine(&id).await {
            Ok(Some((mut guarded, lifeline))) => {
                let alive = {
                    let mut tables = self.tables();
                    let instance = tables.instances.get_mut(&id).filter(|i| i.status == Status::Pending);
                    instance.is_some_and(|instance| {
                        instance.status = Status::Running;
                        instance.lifeline = Some(lifeline);
                        true
                    })
                };
                tracing::info!(instance = id, alive, "user data started");
                guarded.wait().await;
                tracing::info!(instance = id, "no process left on the machine");
                self.processes_ended(&id).await;
            }
            Ok(None) => {
                self.set_running(&id);
                self.processes_ended(&id).await;
            }
            Err(error) => {
                tracing::error!(instance = id, %error, "the instance could not be started");
                self.end_instance(&id, Reason::Failed);
                self.set_gone(&id, Status::Terminated);
            }
        }
    }

    fn set_running(&self, id: &str) {
        if let Some(instance) = self.tables().instances.get_mut(id)
            && instance.status == Status::Pending
        {
            instance.status = Status::Running;
        }
    }

    /// The user data has ended. The machine itself goes on until somebody ends it.
    async fn processes_ended(&self, id: &str) {
        loop {
            {
                let tables = self.tables();
                match tables.instances.get(id) {
                    Some(instance) if matches!(instance.status, Status::Running | Status::Pending) => {}
                    _ => break,
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let stops = {
            let tables = self.tables();
            let instance = tables.instances.get(id);
            instance.is_some_and(|i| i.reason == Some(Reason::Instance) && !i.launch.terminate_on_shutdown)
        };
        self.set_gone(id, if stops { Status::Stopped } else { Status::Terminated });
    }

    fn set_gone(&self, id: &str, status: Status) {
        if let Some(instance) = self.tables().instances.get_mut(id) {
            instance.status = status;
            instance.ended = Some(OffsetDateTime::now_utc());
            instance.lifeline = None;
            if let Some(task) = instance.metadata.take() {
                task.abort();
            }
            instance.gone.send_replace(true);
        }
        self.tables().sessions.remove(id);
    }

    async fn start_machine(&self, id: &str) -> Result<Option<(Guarded, Lifeline)>, LocalError> {
        let (launch, zone, token) = {
            let tables = self.tables();
            let Some(instance) = tables.instances.get(id) else { return Ok(None) };
            (instance.launch.clone(), instance.zone.clone(), instance.token.clone())
        };
        let role = match &launch.profile_arn {
            Some(arn) => Some(self.profile_role(arn).await?),
            None => None,
        };
        let (metadata, task) = imds::serve(self.clone(), imds::Machine { id: id.to_owned(), role, zone }).await?;
        if let Some(instance) = self.tables().instances.get_mut(id) {
            instance.metadata = Some(task);
        }
        if launch.user_data.is_empty() {
            return Ok(None);
        }
        let folder = self.instance_folder(id);
        fs::create_dir_all(&folder).map_err(LocalError::io("make", &folder))?;
        let script = folder.join("user-data");
        fs::write(&script, &launch.user_data).map_err(LocalError::io("write", &script))?;
        let mut env = self.machine_environment(&folder)?;
        env.insert("TUNESMITH_INSTANCE_ID".into(), id.into());
        env.insert("TUNESMITH_INSTANCE_TOKEN".into(), token.into());
        env.insert("AWS_EC2_METADATA_SERVICE_ENDPOINT".into(), metadata.into());
        let job = Job { command: vec!["bash".into(), script.into()], env, log: folder.join("log"), folder };
        Ok(Some(Guarded::start(&job)?.split()))
    }

    /// What a machine finds: stand-ins first on the PATH, the endpoints of the local cloud.
    fn machine_environment(&self, folder: &std::path::Path) -> Result<BTreeMap<String, OsString>, LocalError> {
        let mut env = plain_environment();
        let stand_ins = self.0.paths.infra_local().join("stand-ins");
        let mut path = stand_ins.into_os_string();
        path.push(":");
        path.push(env.get("PATH").cloned().unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()));
        env.extend(machine_room_endpoints(&self.0.address));
        let more: [(&str, OsString); 9] = [
            ("PATH", path),
            ("HOME", folder.as_os_str().to_owned()),
            ("TMPDIR", folder.as_os_str().to_owned()),
            ("AWS_ENDPOINT_URL", self.emulator()?.endpoint.clone().into()),
            ("TUNESMITH_LOCAL", "1".into()),
            ("TUNESMITH_LOG_DRIVER", "none".into()),
            ("TUNESMITH_MACHINE_ROOM", self.0.address.clone().into()),
            ("TUNESMITH_LOCAL_CLOUD", self.0.programs.local_cloud.clone().into()),
            ("TUNESMITH_TRAINER", self.0.programs.trainer.clone().into()),
        ];
        env.extend(more.map(|(name, value)| (name.to_owned(), value)));
        Ok(env)
    }

    /// Ends a machine: SIGTERM to its processes, then SIGKILL. Returns at once; no effect on one that has ended.
    pub(super) fn end_instance(&self, id: &str, reason: Reason) -> Option<(Status, Status)> {
        let mut tables = self.tables();
        let instance = tables.instances.get_mut(id)?;
        let before = instance.status;
        if matches!(before, Status::Pending | Status::Running) {
            tracing::info!(instance = id, reason = reason.words().0, "ending the machine");
            instance.status = Status::ShuttingDown;
            instance.reason = Some(reason);
            instance.lifeline = None;
        }
        Some((before, instance.status))
    }

    /// Resolves when no process of the machine is left.
    pub(super) async fn instance_gone(&self, id: &str) {
        let receiver = self.tables().instances.get(id).map(|instance| instance.gone.subscribe());
        if let Some(mut receiver) = receiver {
            let _ = receiver.wait_for(|gone| *gone).await;
        }
    }

    /// Takes a spot machine back: a notice in its metadata now, the end after the notice time.
    ///
    /// # Errors
    /// When there is no such running spot machine.
    pub(super) fn interrupt(&self, id: &str, notice: Duration) -> Result<String, LocalError> {
        let at = OffsetDateTime::now_utc() + notice;
        {
            let mut tables = self.tables();
            let instance =
                tables.instances.get_mut(id).filter(|instance| instance.status == Status::Running).ok_or_else(
                    || LocalError::Usage(format!("{id} is not a running machine; see `cargo local-cloud status`")),
                )?;
            if !instance.launch.spot {
                return Err(LocalError::Usage(format!(
                    "{id} is an on-demand machine; only spot machines are taken back"
                )));
            }
            instance.notice = Some(Notice { at });
        }
        let (room, machine) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(notice).await;
            room.end_instance(&machine, Reason::Spot);
        });
        Ok(at.format(&Rfc3339).unwrap_or_default())
    }

    /// Every instance, for people.
    pub(super) fn instance_summaries(&self) -> Vec<Summary> {
        let tables = self.tables();
        tables
            .instances
            .values()
            .map(|instance| Summary {
                id: instance.id.clone(),
                instance_type: instance.launch.instance_type.clone(),
                market: if instance.launch.spot { "spot" } else { "on-demand" },
                status: instance.status.name(),
                tags: instance.launch.tags.clone(),
                launched: instance.launched.format(&Rfc3339).unwrap_or_default(),
                log: self.instance_folder(&instance.id).join("log"),
            })
            .collect()
    }
}
