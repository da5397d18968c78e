//! Stand-ins for the programs that user data expects on a training machine: `docker`, `shutdown`, `aws`.
//!
//! `docker run … IMAGE args` becomes the host's `tunesmith-trainer args`, with the environment a container would have: what
//! `--env` gives, and the machine's own metadata service and endpoints (which a container reaches over the host's network).

use std::{collections::BTreeMap, env, ffi::OsString, os::unix::process::CommandExt, process::ExitCode};

use http::Method;
use serde_json::json;

use crate::{client::Http, emulator::plain_environment};

/// Variables of the machine that a container with the host's network has as well.
const PASSED: [&str; 8] = [
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_EC2",
    "AWS_ENDPOINT_URL_SAGEMAKER",
    "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME",
    "AWS_ENDPOINT_URL_SERVICE_QUOTAS",
    "TUNESMITH_LOCAL",
    "TMPDIR",
];

const WITH_VALUE: [&str; 22] = [
    "--network",
    "--name",
    "--log-driver",
    "--log-opt",
    "-v",
    "--volume",
    "--gpus",
    "--entrypoint",
    "--user",
    "-u",
    "--workdir",
    "-w",
    "--shm-size",
    "--memory",
    "-m",
    "--cpus",
    "--ulimit",
    "--hostname",
    "--label",
    "--ipc",
    "--stop-timeout",
    "--pull",
];
const WITHOUT_VALUE: [&str; 8] = ["--rm", "-i", "-t", "-it", "--init", "--privileged", "--read-only", "--quiet"];

/// What `docker run` is to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The image.
    pub image: String,
    /// Its environment, as given.
    pub env: BTreeMap<String, String>,
    /// Arguments of its entry point.
    pub args: Vec<String>,
}

/// Parses the arguments after `docker run`. `inherited` looks a variable up for `--env NAME`.
///
/// # Errors
/// The option that this stand-in does not know.
pub fn parse_run(args: &[String], inherited: impl Fn(&str) -> Option<String>) -> Result<Container, String> {
    let mut env = BTreeMap::new();
    let mut rest = args.iter();
    let mut add = |setting: &str| match setting.split_once('=') {
        Some((name, value)) => {
            env.insert(name.to_owned(), value.to_owned());
        }
        None => {
            if let Some(value) = inherited(setting) {
                env.insert(setting.to_owned(), value);
            }
        }
    };
    while let Some(arg) = rest.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) if arg.starts_with("--") => (name, Some(value)),
            _ => (arg.as_str(), None),
        };
        if matches!(name, "-e" | "--env") {
            let setting = inline.map(str::to_owned).or_else(|| rest.next().cloned());
            add(&setting.ok_or("--env needs NAME=VALUE")?);
        } else if WITH_VALUE.contains(&name) {
            if inline.is_none() && rest.next().is_none() {
                return Err(format!("{name} needs a value"));
            }
        } else if !WITHOUT_VALUE.contains(&name) {
            if name.starts_with('-') {
                return Err(format!("unknown option {name}; the local cloud's docker knows what infra/user-data uses"));
            }
            return Ok(Container { image: arg.clone(), env, args: rest.cloned().collect() });
        }
    }
    Err("no image given".to_owned())
}

/// How long `shutdown` waits, in seconds; `None` for `-c`.
///
/// # Errors
/// A time it does not understand.
pub fn shutdown_delay(args: &[String]) -> Result<Option<u64>, String> {
    let mut delay = 60;
    for arg in args {
        match arg.as_str() {
            "-c" => return Ok(None),
            "now" | "+0" => delay = 0,
            minutes if minutes.starts_with('+') => {
                let minutes: u64 = minutes[1..].parse().map_err(|_| format!("{minutes} is not a number of minutes"))?;
                delay = minutes * 60;
            }
            "-h" | "-P" | "--poweroff" | "--no-wall" => {}
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(Some(delay))
}

/// Runs the stand-in for `program`.
pub async fn run(program: &str, args: &[String]) -> ExitCode {
    let result = match (program, args.first().map(String::as_str)) {
        ("docker", Some("run")) => docker_run(&args[1..]),
        ("docker", Some("pull" | "version")) => Ok(ExitCode::SUCCESS),
        // Reads the password to its end, as docker does: who writes it must not meet a closed pipe.
        ("docker", Some("login")) => std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
            .map(|_| ExitCode::SUCCESS)
            .map_err(|e| e.to_string()),
        ("shutdown", _) => shutdown(args).await,
        ("aws", Some("ecr")) if args.get(1).is_some_and(|a| a == "get-login-password") => {
            println!("local");
            Ok(ExitCode::SUCCESS)
        }
        _ => Err("the local cloud has no stand-in for this command".to_owned()),
    };
    result.unwrap_or_else(|message| {
        eprintln!("{program} {}: {message}", args.join(" "));
        ExitCode::FAILURE
    })
}

fn docker_run(args: &[String]) -> Result<ExitCode, String> {
    let container = parse_run(args, |name| env::var(name).ok())?;
    let trainer =
        env::var_os("TUNESMITH_TRAINER").ok_or("TUNESMITH_TRAINER is not set: this is not a local machine")?;
    let mut environment = plain_environment();
    environment.extend(PASSED.iter().filter_map(|name| env::var_os(name).map(|value| ((*name).to_owned(), value))));
    environment.extend(container.env.into_iter().map(|(name, value)| (name, OsString::from(value))));
    let error = std::process::Command::new(&trainer).args(&container.args).env_clear().envs(environment).exec();
    Err(format!("{}: {error}", trainer.to_string_lossy()))
}

async fn shutdown(args: &[String]) -> Result<ExitCode, String> {
    let Some(seconds) = shutdown_delay(args)? else { return Ok(ExitCode::SUCCESS) };
    let variable = |name: &str| env::var(name).map_err(|_| format!("{name} is not set: this is not a local machine"));
    let url = format!("{}/_local/shutdown-machine", variable("TUNESMITH_MACHINE_ROOM")?);
    let token = variable("TUNESMITH_INSTANCE_TOKEN")?;
    let input = json!({"instance": variable("TUNESMITH_INSTANCE_ID")?, "seconds": seconds}).to_string();
    let headers = [("x-tunesmith-token", token.as_str()), ("content-type", "application/json")];
    match Http::default().fetch(Method::POST, &url, &headers, input).await {
        Ok((200, _)) => Ok(ExitCode::SUCCESS),
        Ok((status, body)) => Err(format!("{status} {}", String::from_utf8_lossy(&body))),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn docker_run_is_read_as_the_user_data_writes_it() {
        let args = words(
            "--rm --network host --gpus all --env AWS_REGION=us-east-1 -e TOKEN --log-driver none img:1 train --job s3://b/k",
        );
        let container = parse_run(&args, |name| (name == "TOKEN").then(|| "t".to_owned())).unwrap();
        assert_eq!(container.image, "img:1");
        assert_eq!(container.args, words("train --job s3://b/k"));
        assert_eq!(container.env["AWS_REGION"], "us-east-1");
        assert_eq!(container.env["TOKEN"], "t");
    }

    #[test]
    fn an_unknown_docker_option_is_refused_by_name() {
        let error = parse_run(&words("--frobnicate img"), |_| None).unwrap_err();
        assert!(error.contains("--frobnicate"), "{error}");
    }

    #[test]
    fn shutdown_times_are_now_or_minutes() {
        assert_eq!(shutdown_delay(&words("-h now")), Ok(Some(0)));
        assert_eq!(shutdown_delay(&words("-h +95")), Ok(Some(5700)));
        assert_eq!(shutdown_delay(&words("-c")), Ok(None));
        assert!(shutdown_delay(&words("-h tomorrow")).is_err());
    }
}
