//! `serve`: the container behind a SageMaker endpoint, and an OpenAI-compatible server for people.
//!
//! The server listens only once the model is loaded: an answer to `/ping` means that questions are answered.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;
use tunesmith_contract::job::{Location, ServeJob};
use tunesmith_serving::{Engine, Limits, ServedModel, http};

use crate::{
    base,
    blocking::blocking,
    context::Context,
    error::{Result, TrainerError},
    evaluation::download_adapter,
    halt::Halt,
    stop::StopReason,
};

/// The variable that names the job inside a container: SageMaker passes no argument but `serve`.
pub const JOB_VARIABLE: &str = "TUNESMITH_SERVE_JOB";
/// SageMaker's choice of another port than its usual one.
const PORT_VARIABLE: &str = "SAGEMAKER_BIND_TO_PORT";
const PORT: u16 = 8080;

/// What to serve, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServePlan {
    /// The job's file.
    pub job: Location,
    /// Where to listen.
    pub listen: SocketAddr,
}

impl ServePlan {
    /// From the command line, and for what it does not say from the environment. Inside a container every interface is listened
    /// on, as SageMaker demands; a person's command and the local cloud (`TUNESMITH_LOCAL`) stay on the loopback.
    ///
    /// # Errors
    /// [`TrainerError::Usage`] when no job is named or the port is no number.
    pub fn new(
        job: Option<String>,
        listen: Option<SocketAddr>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let contained = job.is_none() && variable("TUNESMITH_LOCAL").is_none();
        let named = job.or_else(|| variable(JOB_VARIABLE)).filter(|job| !job.is_empty());
        let job = named.ok_or_else(|| {
            TrainerError::Usage(format!("no job: pass --job <file or s3 uri>, or set {JOB_VARIABLE}"))
        })?;
        let port = match variable(PORT_VARIABLE) {
            Some(port) => port
                .parse()
                .map_err(|_| TrainerError::Usage(format!("{PORT_VARIABLE} = {port:?} is no port; write a number")))?,
            None => PORT,
        };
        let host = if contained { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        let listen = listen.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(host), port));
        Ok(Self { job: Location::from(job), listen })
    }
}

/// Serves until somebody asks to stop; answers that have begun are finished.
///
/// # Errors
/// When the model cannot be loaded or the address is taken.
pub async fn run(plan: &ServePlan, context: &Context) -> Result<(), Halt> {
    let engine = context.stop.or(load(&plan.job, context)).await??;
    let listener = TcpListener::bind(plan.listen).await.map_err(TrainerError::io(plan.listen.to_string()))?;
    let address = listener.local_addr().map_err(TrainerError::io(plan.listen.to_string()))?;
    tracing::info!(%address, model = engine.name(), "serving");
    let stop = context.stop.clone();
    let until = async move {
        let _: StopReason = stop.wait().await;
    };
    http::serve(listener, engine, until).await.map_err(TrainerError::io(address.to_string()))?;
    Ok(())
}

async fn load(location: &Location, context: &Context) -> Result<Engine> {
    let job: ServeJob = context.store.get_json(location, "serve job").await?;
    let base = base::fetch(&job.base, &context.store, &context.cache).await?;
    let adapter = download_adapter(context, &job.adapter, "adapter").await?;
    let name = job.project.to_string();
    let model = blocking(move || Ok(ServedModel::load(&name, &base, Some(&adapter))?)).await?;
    Engine::start(model, Limits::default()).map_err(TrainerError::io("the engine's thread"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(job: Option<&str>, variables: &[(&str, &str)]) -> Result<ServePlan> {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        ServePlan::new(job.map(str::to_owned), None, find)
    }

    #[test]
    fn a_container_listens_everywhere_a_person_and_the_local_cloud_on_the_loopback() {
        let from_variable = (JOB_VARIABLE, "s3://b/serve.json");
        for (job, variables, listen) in [
            (Some("serve.json"), vec![], "127.0.0.1:8080"),
            (None, vec![from_variable], "0.0.0.0:8080"),
            (None, vec![from_variable, (PORT_VARIABLE, "9000")], "0.0.0.0:9000"),
            (None, vec![from_variable, (PORT_VARIABLE, "9000"), ("TUNESMITH_LOCAL", "1")], "127.0.0.1:9000"),
        ] {
            assert_eq!(plan(job, &variables).unwrap().listen.to_string(), listen, "{job:?} {variables:?}");
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert!(plan(None, &[]).unwrap_err().to_string().contains(JOB_VARIABLE));
        let error = plan(Some("x"), &[(PORT_VARIABLE, "http")]).unwrap_err().to_string();
        assert!(error.contains("SAGEMAKER_BIND_TO_PORT = \"http\""), "{error}");
    }
}
