//! Which machines, for how long, for how much.

use std::collections::BTreeMap;

use tunesmith_contract::{
    ErrorName, ProjectSettings, Seconds, Usd,
    error_name::Failure,
    plan::{MachineChoice, Quote},
    settings::Market,
};

use crate::{Machine, PriceTable, Workload};

/// What an hour of waiting is worth, so that a machine of half the price and twenty times the time does not win.
const WAITING_PER_HOUR: f64 = 0.50;
/// Choices kept: enough to find capacity, few enough to read.
const MOST_SPOT: usize = 6;
const MOST_ON_DEMAND: usize = 3;
/// A machine that costs more than this many times the best one is no way out: the reservation would have to cover it.
const MOST_COST: i64 = 4;
/// The reservation covers this many times the predicted time, plus half an hour for interruptions and boots.
const SAFETY: u64 = 3;
const SAFETY_TIME: Seconds = Seconds(1_800);

/// A spot machine that can be had now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpotOffer {
    /// EC2 instance type.
    pub instance_type: String,
    /// Availability zone.
    pub zone: String,
    /// For one hour.
    pub price_per_hour: Usd,
}

/// What decides about a quote.
#[derive(Debug, Clone, Copy)]
pub struct QuoteInput<'a> {
    /// Prices on demand.
    pub table: &'a PriceTable,
    /// The work.
    pub workload: &'a Workload,
    /// What the owner allows.
    pub settings: &'a ProjectSettings,
    /// Spot prices now.
    pub spot: &'a [SpotOffer],
    /// vCPUs allowed by each quota code; a code that is absent does not limit.
    pub quotas: &'a BTreeMap<String, f64>,
}

/// Machines and price of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    /// Best first; on-demand ones after spot ones. Never empty.
    pub machines: Vec<MachineChoice>,
    /// The price.
    pub quote: Quote,
    /// Longest time on machines, over all attempts.
    pub max_time: Seconds,
}

/// Why a run cannot be quoted. Nothing has been started.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuoteError {
    /// An instance type that the price table does not have.
    #[error("project.toml, machines.allowed: {name:?} is not in the price table; use any of {known}")]
    UnknownMachine {
        /// What was written.
        name: String,
        /// What may be written.
        known: String,
    },
    /// A machine with a GPU, which nothing would use.
    #[error(
        "project.toml, machines.allowed: {name} has a GPU, which computes training.method lora and rslora with quantization none and \
         nf4 only; choose these, or use any of {known}"
    )]
    GpuUnused {
        /// What was written.
        name: String,
        /// What may be written.
        known: String,
    },
    /// No allowed machine has the memory.
    #[error(
        "the run needs {needed} and none of {looked} has it; choose a smaller base_model, batch_size or sequence_length, \
         quantization nf4, or allow larger machines"
    )]
    NoneFits {
        /// The memory it needs, in words.
        needed: String,
        /// The machines looked at.
        looked: String,
    },
    /// The account's quotas allow none of the machines.
    #[error(
        "{instance_type} needs {needed} vCPUs and the account's quota {code} is {have}; ask for more in the Service Quotas \
         console (service ec2, region of the stack), or allow other machines in project.toml"
    )]
    Quota {
        /// The machine nearest to what is allowed.
        instance_type: String,
        /// Its vCPUs.
        needed: u32,
        /// Quota code.
        code: String,
        /// What the account may use.
        have: f64,
    },
    /// Every machine takes longer than allowed.
    #[error(
        "the fastest machine, {instance_type}, needs about {hours:.1} h and budget.max_run_hours is {limit:.1}; raise it, \
         train fewer epochs, or allow faster machines"
    )]
    TooLong {
        /// The fastest machine.
        instance_type: String,
        /// Predicted time.
        hours: f64,
        /// Allowed time.
        limit: f64,
    },
    /// Every machine costs more than allowed.
    #[error(
        "the cheapest machine, {instance_type}, would cost about {expected} and budget.max_run_usd is {limit}; raise it, \
         train fewer epochs, or choose a smaller model"
    )]
    TooExpensive {
        /// The cheapest machine.
        instance_type: String,
        /// Predicted cost.
        expected: Usd,
        /// Allowed cost.
        limit: Usd,
    },
}

impl From<QuoteError> for Failure {
    fn from(error: QuoteError) -> Self {
        let name = match error {
            QuoteError::UnknownMachine { .. } | QuoteError::GpuUnused { .. } | QuoteError::NoneFits { .. } => {
                ErrorName::SettingsInvalid
            }
            QuoteError::Quota { .. } => ErrorName::QuotaExceeded,
            QuoteError::TooLong { .. } | QuoteError::TooExpensive { .. } => ErrorName::BudgetExceeded,
        };
        Self::new(name, error.to_string())
    }
}

/// The machines that could do the work: the allowed ones, else all without a GPU, whose speed nobody has measured yet. Ask for
/// their spot prices and quotas, then [`quote`].
///
/// # Errors
/// [`QuoteError::UnknownMachine`], [`QuoteError::GpuUnused`], [`QuoteError::NoneFits`].
pub fn candidates<'a>(
    table: &'a PriceTable,
    work: &Workload,
    settings: &ProjectSettings,
) -> Result<Vec<&'a Machine>, QuoteError> {
    let allowed = &settings.machines.allowed;
    let of_all =
        |has_gpu: bool| table.machines.iter().filter(move |machine| has_gpu || machine.gpu_memory_gib.is_none());
    let usable = || of_all(work.with_gpu_gib.is_some());
    let looked: Vec<&Machine> = if allowed.is_empty() {
        of_all(false).collect()
    } else {
        let find = |name: &String| match table.machine(name) {
            None => Err(QuoteError::UnknownMachine { name: name.clone(), known: names(usable()) }),
            Some(machine) if machine.gpu_memory_gib.is_some() && work.with_gpu_gib.is_none() => {
                Err(QuoteError::GpuUnused { name: name.clone(), known: names(usable()) })
            }
            Some(machine) => Ok(machine),
        };
        allowed.iter().map(find).collect::<Result<_, _>>()?
    };
    let fitting: Vec<&Machine> = looked.iter().copied().filter(|machine| work.fits(machine)).collect();
    if fitting.is_empty() {
        let with_gpu = match work.with_gpu_gib.filter(|_| looked.iter().any(|machine| machine.gpu_memory_gib.is_some()))
        {
            Some([card, beside]) => format!(" (with a GPU {card:.1} GiB on it and {beside:.1} GiB beside it)"),
            None => String::new(),
        };
        let needed = format!("{:.1} GiB{with_gpu}", work.memory_gib);
        return Err(QuoteError::NoneFits { needed, looked: names(looked.into_iter()) });
    }
    Ok(fitting)
}

/// Machines, best first, and what the run will cost.
///
/// Best is the least of price and waiting. The upper bound covers three times the predicted time on the dearest of the
/// chosen machines and half an hour more, and never exceeds `budget.max_run_usd`.
///
/// # Errors
/// [`QuoteError`]: nothing that is allowed can do it.
pub fn quote(input: &QuoteInput<'_>) -> Result<Quoted, QuoteError> {
    let settings = input.settings;
    let machines = candidates(input.table, input.workload, settings)?;
    let mut offers: Vec<MachineChoice> = Vec::new();
    for machine in &machines {
        let predicted = input.workload.time_on(machine);
        let choice = |market, zone, price_per_hour| MachineChoice {
            instance_type: machine.instance_type.clone(),
            zone,
            market,
            price_per_hour,
            predicted,
            has_gpu: machine.gpu_memory_gib.is_some(),
        };
        if settings.machines.market == Market::Spot {
            let of_type = input.spot.iter().filter(|offer| offer.instance_type == machine.instance_type);
            // a spot price above the on-demand price is never paid
            let cheap = of_type.filter(|offer| offer.price_per_hour <= machine.on_demand());
            offers.extend(cheap.map(|offer| choice(Market::Spot, Some(offer.zone.clone()), offer.price_per_hour)));
        }
        offers.push(choice(Market::OnDemand, None, machine.on_demand()));
    }
    let offers = within_quota(input, offers)?;
    let offers = within_time(settings.max_run_time(), offers)?;
    let mut offers = within_money(settings.max_run(), offers)?;

    offers.sort_by(|a, b| score(a).total_cmp(&score(b)).then_with(|| a.instance_type.cmp(&b.instance_type)));
    let best = offers.first().map(cost).unwrap_or_default().micros();
    let (mut chosen, mut on_demand): (Vec<_>, Vec<_>) = offers
        .into_iter()
        .filter(|choice| choice.market == Market::OnDemand || cost(choice).micros() <= best.saturating_mul(MOST_COST))
        .partition(|c| c.market == Market::Spot);
    chosen.truncate(MOST_SPOT);
    let best = on_demand.first().map(cost).unwrap_or_default().micros();
    on_demand.retain(|choice| cost(choice).micros() <= best.saturating_mul(MOST_COST));
    on_demand.truncate(MOST_ON_DEMAND);
    chosen.append(&mut on_demand);

    let expected = chosen.first().map(cost).unwrap_or_default();
    let longest = |choice: &MachineChoice| bounded(choice.predicted).min(settings.max_run_time());
    let dearest = chosen.iter().map(|c| c.price_per_hour.per_hour_for(longest(c))).fold(Usd::ZERO, Usd::max);
    let max_time = chosen.iter().map(longest).max().unwrap_or_default();
    Ok(Quoted {
        machines: chosen,
        quote: Quote { expected, upper_bound: dearest.min(settings.max_run()).max(expected) },
        max_time,
    })
}

fn bounded(predicted: Seconds) -> Seconds {
    Seconds(predicted.0.saturating_mul(SAFETY).saturating_add(SAFETY_TIME.0))
}

fn cost(choice: &MachineChoice) -> Usd {
    choice.price_per_hour.per_hour_for(choice.predicted)
}

fn hours(time: Seconds) -> f64 {
    time.0 as f64 / 3600.0
}

fn score(choice: &MachineChoice) -> f64 {
    cost(choice).dollars() + WAITING_PER_HOUR * hours(choice.predicted)
}

fn within_quota(input: &QuoteInput<'_>, offers: Vec<MachineChoice>) -> Result<Vec<MachineChoice>, QuoteError> {
    let mut refused: Option<QuoteError> = None;
    let mut kept = Vec::new();
    for offer in offers {
        let machine = input.table.machine(&offer.instance_type);
        let limit = machine.and_then(|machine| {
            let code = input.table.quotas(machine)?.of(offer.market).to_owned();
            let have = *input.quotas.get(&code)?;
            (have < f64::from(machine.vcpus)).then_some((machine.vcpus, code, have))
        });
        match limit {
            None => kept.push(offer),
            Some((needed, code, have)) => {
                refused.get_or_insert(QuoteError::Quota { instance_type: offer.instance_type, needed, code, have });
            }
        }
    }
    match refused {
        Some(error) if kept.is_empty() => Err(error),
        _ => Ok(kept),
    }
}

fn within_time(limit: Seconds, offers: Vec<MachineChoice>) -> Result<Vec<MachineChoice>, QuoteError> {
    let fastest = offers.iter().min_by_key(|offer| offer.predicted).map(|offer| QuoteError::TooLong {
        instance_type: offer.instance_type.clone(),
        hours: hours(offer.predicted),
        limit: hours(limit),
    });
    let kept: Vec<_> = offers.into_iter().filter(|offer| offer.predicted <= limit).collect();
    match fastest {
        Some(error) if kept.is_empty() => Err(error),
        _ => Ok(kept),
    }
}

fn within_money(limit: Usd, offers: Vec<MachineChoice>) -> Result<Vec<MachineChoice>, QuoteError> {
    let cheapest = offers.iter().min_by_key(|offer| cost(offer)).map(|offer| QuoteError::TooExpensive {
        instance_type: offer.instance_type.clone(),
        expected: cost(offer),
        limit,
    });
    let kept: Vec<_> = offers.into_iter().filter(|offer| cost(offer) <= limit).collect();
    match cheapest {
        Some(error) if kept.is_empty() => Err(error),
        _ => Ok(kept),
    }
}

fn names<'a>(machines: impl Iterator<Item = &'a Machine>) -> String {
    machines.map(|machine| machine.instance_type.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ModelShape, WorkloadInput,
        workload::{
            tests::{MINI, SEVEN_B, manifest},
            workload,
        },
    };

    fn offer(instance_type: &str, zone: &str, micros: i64) -> SpotOffer {
        SpotOffer { instance_type: instance_type.into(), zone: zone.into(), price_per_hour: Usd::from_micros(micros) }
    }

    fn quoted(shape: ModelShape, toml: &str, spot: &[SpotOffer], quotas: &[(&str, f64)]) -> Result<Quoted, QuoteError> {
        let settings = ProjectSettings::from_toml(toml).unwrap();
        let work = workload(&WorkloadInput { shape, training: &settings.training, dataset: &manifest(768_000) });
        let table = PriceTable::embedded().unwrap();
        let quotas = quotas.iter().map(|(code, value)| ((*code).to_owned(), *value)).collect();
        quote(&QuoteInput { table: &table, workload: &work, settings: &settings, spot, quotas: &quotas })
    }

    #[test]
    fn a_tiny_model_trains_on_cpu_and_spot_comes_first() {
        let spot = [offer("c7i.xlarge", "us-east-1a", 70_000), offer("c7i.xlarge", "us-east-1b", 60_000)];
        let quoted = quoted(MINI, "", &spot, &[]).unwrap();
        let first = &quoted.machines[0];
        assert_eq!((first.market, first.zone.as_deref()), (Market::Spot, Some("us-east-1b")));
        assert_eq!(quoted.machines.last().unwrap().market, Market::OnDemand);
        assert!(quoted.machines.iter().all(|choice| choice.instance_type.starts_with(['c', 'm'])));
        assert!(quoted.quote.expected < quoted.quote.upper_bound);
        assert!(quoted.quote.upper_bound < Usd::from_micros(1_000_000), "{}", quoted.quote.upper_bound);
    }

    #[test]
    fn machines_with_a_gpu_are_used_when_they_are_named_and_the_run_has_kernels_there() {
        let table = PriceTable::embedded().unwrap();
        let has_gpu = |name: &str| table.machine(name).unwrap().gpu_memory_gib.is_some();
        let machines = quoted(MINI, "", &[], &[]).unwrap().machines;
        assert!(machines.iter().all(|choice| !has_gpu(&choice.instance_type)), "{machines:?}");

        let toml = "machines.allowed = [\"g5.xlarge\", \"g6.xlarge\"]\n";
        let machines = quoted(MINI, toml, &[], &[]).unwrap().machines;
        assert!(
            machines.len() == 2 && machines.iter().all(|choice| choice.has_gpu && has_gpu(&choice.instance_type)),
            "{machines:?}"
        );

        let error = quoted(MINI, &format!("{toml}training.method = \"dora\""), &[], &[]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("g5.xlarge has a GPU") && text.contains("c7i.xlarge"), "{text}");
        assert!(!text.contains("g6e"), "what may be written has none: {text}");
        assert_eq!(Failure::from(error).name, ErrorName::SettingsInvalid);

        let error = quoted(SEVEN_B, toml, &[], &[]).unwrap_err().to_string();
        assert!(error.contains("with a GPU 17") && error.contains("nf4"), "{error}");
    }

    #[test]
    fn quota_zero_is_refused_with_code_and_need() {
        let toml = "machines.allowed = [\"c7i.xlarge\"]";
        let error = quoted(MINI, toml, &[], &[("L-1216C47A", 0.0)]).unwrap_err();
        assert_eq!(Failure::from(error.clone()).name, ErrorName::QuotaExceeded);
        let text = error.to_string();
        assert!(text.contains("c7i.xlarge needs 4 vCPUs") && text.contains("L-1216C47A is 0"), "{text}");
        // the spot quota is another one: with it the run goes ahead on spot alone
        let spot = [offer("c7i.xlarge", "us-east-1a", 70_000)];
        let machines = quoted(MINI, toml, &spot, &[("L-1216C47A", 0.0), ("L-34B43A08", 8.0)]).unwrap().machines;
        assert!(machines.iter().all(|choice| choice.market == Market::Spot));
    }

    #[test]
    fn what_cannot_be_paid_or_awaited_is_refused_before_it_starts() {
        let error = quoted(MINI, "budget.max_run_usd = 0.0001", &[], &[]).unwrap_err();
        assert!(matches!(error, QuoteError::TooExpensive { .. }), "{error}");
        let error = quoted(MINI, "budget.max_run_hours = 0.01", &[], &[]).unwrap_err();
        assert!(error.to_string().contains("budget.max_run_hours is 0.0"), "{error}");
        let error = quoted(MINI, "machines.allowed = [\"c7i.huge\"]", &[], &[]).unwrap_err();
        assert!(error.to_string().contains("\"c7i.huge\"") && error.to_string().contains("c7i.large"), "{error}");
        let error = quoted(SEVEN_B, "machines.allowed = [\"c7i.large\"]", &[], &[]).unwrap_err();
        assert!(matches!(error, QuoteError::NoneFits { .. }), "{error}");
    }

    #[test]
    fn the_upper_bound_never_exceeds_what_one_run_may_cost() {
        let quoted = quoted(MINI, "budget.max_run_usd = 0.05", &[], &[]).unwrap();
        assert_eq!(quoted.quote.upper_bound, Usd::from_micros(50_000));
        assert!(quoted.quote.expected <= quoted.quote.upper_bound);
    }

    #[test]
    fn on_demand_alone_is_respected() {
        let spot = [offer("c7i.xlarge", "us-east-1a", 1)];
        let machines = quoted(MINI, "machines.market = \"on-demand\"", &spot, &[]).unwrap().machines;
        assert!(machines.iter().all(|choice| choice.market == Market::OnDemand));
    }
}
