//! Names of what is deployed, and where the old one is kept. No I/O.

use tunesmith_contract::{ProjectId, RunId, deployment::Deployment};

/// The endpoint of a project: one, for all its runs.
#[must_use]
pub fn endpoint(project: &ProjectId) -> String {
    format!("tunesmith-{project}")
}

/// Model and configuration of a run. SageMaker allows 63 characters: 10 + 40 + 1 + 12.
#[must_use]
pub fn model(project: &ProjectId, run: &RunId) -> String {
    let digits = run.as_str().trim_start_matches("run-");
    format!("tunesmith-{project}-{digits}")
}

/// The deployment of a run over what is there now.
///
/// `current_config` is the endpoint's configuration, `recorded` an earlier record of this same run. Deploying a run twice must
/// not make the run its own predecessor: then rolling back would change nothing.
#[must_use]
pub fn deployment(
    project: &ProjectId,
    run: &RunId,
    current_config: Option<&str>,
    recorded: Option<&Deployment>,
) -> Deployment {
    let config = model(project, run);
    let previous_config = match current_config {
        Some(current) if current != config => Some(current.to_owned()),
        Some(_) => recorded.and_then(|r| r.previous_config.clone()),
        None => None,
    };
    Deployment {
        project: project.clone(),
        run: run.clone(),
        endpoint: endpoint(project),
        model: config.clone(),
        config,
        previous_config,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_names_fit_sagemaker() {
        let project = "p".repeat(40).parse().unwrap();
        assert_eq!(model(&project, &"run-0123456789ab".parse().unwrap()).len(), 63);
    }

    #[test]
    fn deploying_twice_keeps_the_way_back() {
        let (project, run) = ("handbook".parse().unwrap(), "run-0123456789ab".parse().unwrap());
        let first = deployment(&project, &run, Some("tunesmith-handbook-old"), None);
        assert_eq!(first.previous_config.as_deref(), Some("tunesmith-handbook-old"));
        let again = deployment(&project, &run, Some(&first.config), Some(&first));
        assert_eq!(again, first);
        assert_eq!(deployment(&project, &run, None, None).previous_config, None);
    }
}
