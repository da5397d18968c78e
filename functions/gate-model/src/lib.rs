//! Lambda function `gate-model`: is the tuned model good enough to be shown to the approver?
//!
//! Promise: decides from `evaluation.json` and the gate settings of the run's plan alone; the same input gives the same decision.

use tunesmith_aws::s3::S3;
use tunesmith_contract::{
    ErrorName, S3Uri,
    error_name::Failure,
    evaluation::{Evaluation, GateDecision},
    keys::workspace,
    plan::Plan,
    tasks::GateModelInput,
};

/// Decides.
///
/// # Errors
/// [`ErrorName::EvaluationMissing`], [`ErrorName::NotFound`] (no plan), [`ErrorName::InvalidInput`] (an evaluation of another
/// dataset), AWS errors.
pub async fn handle(input: GateModelInput, s3: &S3, workspace_bucket: &str) -> Result<GateDecision, Failure> {
    let folder = S3Uri::new(workspace_bucket, workspace::run(&input.project, &input.run));
    let plan: Plan =
        s3.get_json(&folder.join("plan.json")).await?.ok_or_else(|| Failure::missing("the plan", &input.run))?;
    let evaluation: Evaluation = s3.get_json(&folder.join("evaluation.json")).await?.ok_or_else(|| {
        Failure::new(
            ErrorName::EvaluationMissing,
            format!("{} has no evaluation. {}", input.run, ErrorName::EvaluationMissing.remedy()),
        )
    })?;
    decide(&plan, &evaluation)
}

/// The decision. Pure.
///
/// # Errors
/// [`ErrorName::InvalidInput`] when the evaluation is of another run or dataset than the plan.
pub fn decide(plan: &Plan, evaluation: &Evaluation) -> Result<GateDecision, Failure> {
    if evaluation.run != plan.run || evaluation.dataset != plan.dataset {
        return Err(Failure::new(
            ErrorName::InvalidInput,
            format!(
                "the evaluation is of {} on {}, the plan of {} on {}",
                evaluation.run, evaluation.dataset, plan.run, plan.dataset
            ),
        ));
    }
    let decision = tunesmith_evaluation::decide(evaluation, &plan.settings.gate);
    for check in &decision.checks {
        tracing::info!(run = %plan.run, check = check.name, wanted = check.wanted, found = check.found,
            passed = check.passed, "gate");
    }
    Ok(decision)
}
