//! Decisions about a plan. No I/O.

use std::collections::BTreeSet;

use tunesmith_budget::{Machine, ModelShape, PriceTable};
use tunesmith_contract::{
    BaseModel, ErrorName, ProjectId, ProjectSettings, RunId, Seconds,
    error_name::Failure,
    ledger::{RunRecord, RunStatus},
    plan::Plan,
    settings::{Market, TrainingSettings},
    tasks::{PlanTrainingInput, PlannedTraining},
};

/// Without a budget nothing is planned.
///
/// # Errors
/// `BudgetMissing`.
pub fn check_budget(project: &ProjectId, settings: &ProjectSettings) -> Result<(), Failure> {
    match settings.monthly_limit() {
        Some(_) => Ok(()),
        None => Err(Failure::new(
            ErrorName::BudgetMissing,
            format!("project {project} has no budget; set budget.monthly_limit_usd in {project}/project.toml"),
        )),
    }
}

/// The run that these parts decide. Budget, machines, gate and serving do not change what is learned, so they are left out.
///
/// # Errors
/// `Internal`, when the settings cannot be written as JSON: never with settings that were parsed.
pub fn run_id(input: &PlanTrainingInput, base: &BaseModel, training: &TrainingSettings) -> Result<RunId, Failure> {
    let training = serde_json::to_vec(training)
        .map_err(|error| Failure::new(ErrorName::Internal, format!("training settings: {error}")))?;
    let parts = [input.project.as_str(), input.dataset.as_str(), base.as_str()].map(str::as_bytes);
    Ok(RunId::of(&[parts[0], parts[1], parts[2], &training]))
}

/// Whether a stored plan still holds: always while a pipeline works on the run; else when nothing it was made from has
/// changed. A run that ended (failed, refused, published) is planned anew, at today's prices.
#[must_use]
pub fn is_current(
    plan: &Plan,
    input: &PlanTrainingInput,
    settings: &ProjectSettings,
    record: Option<&RunRecord>,
) -> bool {
    match record.map(|record| record.status) {
        Some(RunStatus::Reserved | RunStatus::Trained) => true,
        Some(_) => false,
        None => plan.settings == *settings && plan.index == input.index,
    }
}

/// What the state machine goes on with.
///
/// # Errors
/// `Internal`, when the plan names no machine: such a plan is never written.
pub fn answer(plan: &Plan) -> Result<PlannedTraining, Failure> {
    let first = plan.machines.first().ok_or_else(|| {
        Failure::new(ErrorName::Internal, format!("the plan of {} names no machine; delete plan.json", plan.run))
    })?;
    Ok(PlannedTraining {
        run: plan.run.clone(),
        quote: plan.quote,
        instance_type: first.instance_type.clone(),
        train_timeout: train_timeout(plan.max_time),
    })
}

/// A machine stops itself before the plan's longest time, saved, and powers itself off five minutes after it at the latest
/// (`infra/user-data/train.sh`); the rest is for the boot and for uploads. Whoever waits longer waits for nobody.
const TIMEOUT_MARGIN: Seconds = Seconds(1800);

/// Step Functions Developer Guide, "Task state fields": the largest `TimeoutSeconds`.
const LONGEST_TIMEOUT: Seconds = Seconds(99_999_999);

fn train_timeout(max_time: Seconds) -> Seconds {
    Seconds(max_time.0.saturating_add(TIMEOUT_MARGIN.0)).min(LONGEST_TIMEOUT)
}

/// Size of a model by its `config.json`.
///
/// # Errors
/// `UnknownBaseModel` with the key that is wrong.
pub fn shape_of_config(base: &BaseModel, json: &[u8]) -> Result<ModelShape, Failure> {
    ModelShape::from_config(json)
        .map_err(|error| Failure::new(ErrorName::UnknownBaseModel, format!("models/{}/{error}", base.folder())))
}

/// Size of a model that is not in the bucket: a Hugging Face id that says it.
///
/// # Errors
/// `UnknownBaseModel` with where to upload it.
pub fn shape_of_name(base: &BaseModel) -> Result<ModelShape, Failure> {
    let shape = if base.is_hub_id() { ModelShape::from_name(base.as_str()) } else { None };
    shape.ok_or_else(|| {
        let why =
            if base.is_hub_id() { "and its name does not say how large it is" } else { "and it is no Hugging Face id" };
        Failure::new(
            ErrorName::UnknownBaseModel,
            format!(
                "base_model {base} is not in models/{folder}/ of the workspace bucket, {why}; upload config.json, \
                 tokenizer.json and *.safetensors to models/{folder}/, or correct base_model in project.toml",
                folder = base.folder()
            ),
        )
    })
}

/// Quotas to ask for. On-demand ones always: a run falls back on demand.
#[must_use]
pub fn quota_codes(table: &PriceTable, machines: &[&Machine], market: Market) -> BTreeSet<String> {
    let codes = machines.iter().filter_map(|machine| table.quotas(machine));
    codes
        .flat_map(|codes| {
            let spot = (market == Market::Spot).then_some(codes.spot);
            [Some(codes.on_demand), spot]
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{Usd, plan::Quote};

    use super::*;

    fn input() -> PlanTrainingInput {
        PlanTrainingInput {
            project: "handbook".parse().unwrap(),
            dataset: "ds-0123456789abcdef".parse().unwrap(),
            index: "ix-0123456789abcdef".parse().unwrap(),
        }
    }

    fn plan(settings: &ProjectSettings) -> Plan {
        let base: BaseModel = "tunesmith-mini".parse().unwrap();
        Plan {
            run: run_id(&input(), &base, &settings.training).unwrap(),
            project: input().project,
            dataset: input().dataset,
            index: input().index,
            base,
            parameters: 1,
            steps: 1,
            tokens: 1,
            machines: Vec::new(),
            quote: Quote { expected: Usd::ZERO, upper_bound: Usd::ZERO },
            max_time: Seconds(1),
            settings: settings.clone(),
        }
    }

    fn record(status: RunStatus) -> RunRecord {
        RunRecord {
            run: plan(&ProjectSettings::default()).run,
            project: input().project,
            execution: "e".into(),
            status,
            month: "2026-11".into(),
            quoted: Usd::ZERO,
            reserved: Usd::ZERO,
            metered: Usd::ZERO,
            settled: Usd::ZERO,
            returned: Usd::ZERO,
            attempts: 0,
            interruptions: 0,
            stop_mail_due: None,
            stop_mail_claimed_at: None,
        }
    }

    #[test]
    fn the_run_is_decided_by_what_is_learned_and_nothing_else() {
        let base: BaseModel = "tunesmith-mini".parse().unwrap();
        let training = TrainingSettings::default();
        let run = run_id(&input(), &base, &training).unwrap();
        assert_eq!(run, run_id(&input(), &base, &training.clone()).unwrap());
        let other = TrainingSettings { rank: 8, ..training.clone() };
        assert_ne!(run, run_id(&input(), &base, &other).unwrap());
        let reindexed = PlanTrainingInput { index: "ix-fedcba9876543210".parse().unwrap(), ..input() };
        assert_eq!(run, run_id(&reindexed, &base, &training).unwrap());
    }

    #[test]
    fn a_plan_holds_while_a_pipeline_works_on_it() {
        let old = ProjectSettings::default();
        let mut new = old.clone();
        new.gate.min_improvement_percent = 50.0;
        assert!(is_current(&plan(&old), &input(), &old, None));
        assert!(!is_current(&plan(&old), &input(), &new, None));
        assert!(is_current(&plan(&old), &input(), &new, Some(&record(RunStatus::Trained))));
        assert!(!is_current(&plan(&old), &input(), &old, Some(&record(RunStatus::GateRefused))));
    }

    #[test]
    fn no_budget_and_unknown_models_are_refused_with_the_remedy() {
        let failure = check_budget(&input().project, &ProjectSettings::default()).unwrap_err();
        assert_eq!(failure.name, ErrorName::BudgetMissing);
        assert!(failure.message.contains("handbook/project.toml"), "{}", failure.message);
        for (name, known) in [("owner/model-7b", true), ("owner/model-large", false), ("no-such-135m", false)] {
            let found = shape_of_name(&name.parse().unwrap());
            assert_eq!(found.is_ok(), known, "{name}");
            if let Err(failure) = found {
                assert_eq!(failure.name, ErrorName::UnknownBaseModel);
                assert!(failure.message.contains("upload config.json"), "{}", failure.message);
            }
        }
        let failure = shape_of_config(&"mini".parse().unwrap(), b"{}").unwrap_err();
        assert!(failure.message.contains("models/mini/config.json") && failure.message.contains("vocab_size"));
    }

    #[test]
    fn a_training_is_waited_for_longer_than_its_machine_may_live() {
        assert_eq!(train_timeout(Seconds(6 * 3600)), Seconds(6 * 3600 + 1800));
        assert_eq!(train_timeout(Seconds(u64::MAX)), Seconds(99_999_999), "Step Functions takes no larger one");
    }

    #[test]
    fn quotas_of_both_markets_are_asked_for_once() {
        let table = PriceTable::embedded().unwrap();
        let machines: Vec<_> = ["c7i.large", "c7i.xlarge"].iter().map(|name| table.machine(name).unwrap()).collect();
        assert_eq!(quota_codes(&table, &machines, Market::Spot).len(), 2);
        assert_eq!(quota_codes(&table, &machines, Market::OnDemand).len(), 1);
    }
}
