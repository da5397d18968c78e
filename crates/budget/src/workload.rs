//! How much work a run is: optimizer steps, tokens, floating-point operations, memory.

use tunesmith_contract::{
    Seconds,
    documents::{DatasetManifest, SplitSize},
    settings::{Method, Quantization, Recompute, TrainingSettings},
};

use crate::{Machine, ModelShape};

/// UTF-8 bytes per token, for the estimate before anything was tokenized. English text has about 4 with vocabularies of 32k
/// to 128k and 3 with small ones; counting too many tokens makes the quote too high, never too low.
const BYTES_PER_TOKEN: u64 = 3;
/// Loading weights and data, checkpoints, uploads, the report: on every machine.
const FIXED: Seconds = Seconds(45);
/// From the launch to the trainer's first step: booting, pulling the image. Measured boots of EC2 Linux take 30 to 60 s,
/// pulling 1 to 5 GB the rest.
const BOOT: Seconds = Seconds(150);

/// What decides about the work.
#[derive(Debug, Clone, Copy)]
pub struct WorkloadInput<'a> {
    /// The base model.
    pub shape: ModelShape,
    /// How it is trained.
    pub training: &'a TrainingSettings,
    /// Sizes of the splits.
    pub dataset: &'a DatasetManifest,
}

/// The work of one run, evaluation included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// Optimizer steps.
    pub steps: u32,
    /// Tokens that will be trained on, in all epochs.
    pub tokens: u64,
    /// Floating-point operations.
    pub flops: f64,
    /// The same with a GPU, whose memory asks for recomputed layers sooner.
    pub flops_with_gpu: f64,
    /// Memory for weights, adapter, optimizer and activations.
    pub memory_gib: f64,
    /// On a machine with a GPU: the memory of the card, and that of the machine beside it; none when the run is not computed there.
    pub with_gpu_gib: Option<[f64; 2]>,
    /// Parameters of the base model.
    pub parameters: u64,
}

/// Estimates the work.
///
/// Forward takes 2 operations for each parameter and token; backward over a frozen base as many again (gradients of
/// activations, none of weights). Attention adds 4 · layers · sequence · hidden for each token, in each pass. Evaluation is
/// two forward passes (base and tuned) over validation and test split. Recomputed layers are one more forward pass in training.
/// Source of the counting: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", table 1.
#[must_use]
pub fn workload(input: &WorkloadInput<'_>) -> Workload {
    let t = input.training;
    let length = u64::from(t.sequence_length.max(1));
    let train = tokens(&input.dataset.train);
    // Packing fills the rows of a batch with whole examples; without it each example is a row of its own.
    let rows = train.div_ceil(length).max(1);
    let sequences = if t.packing { rows } else { rows.max(input.dataset.train.examples) };
    let per_step = u64::from(t.batch_size.max(1)) * u64::from(t.accumulation.max(1));
    let wanted = sequences.div_ceil(per_step).saturating_mul(u64::from(t.epochs));
    let limit = if t.max_steps == 0 { u64::from(u32::MAX) } else { u64::from(t.max_steps) };
    let steps = wanted.min(limit);
    let trained = train.saturating_mul(u64::from(t.epochs)).min(steps.saturating_mul(per_step * length));

    let parameters = input.shape.parameters as f64;
    let attention = 4.0 * (input.shape.layers * input.shape.hidden) as f64 * length as f64;
    let forward = 2.0 * parameters + attention;
    let scored = (tokens(&input.dataset.test) + tokens(&input.dataset.validation)) as f64;
    let passes = if t.recompute == Recompute::Layers { 3.0 } else { 2.0 };
    let all = |passes: f64| forward * (passes * trained as f64 + 2.0 * scored);
    let flops = all(passes);

    // activations: about 16 values of hidden width for each token and layer of a batch, or one for each layer and 16 for the one
    // that is computed again; 1 GiB for the rest
    let batch_tokens = (u64::from(t.batch_size) * length) as f64;
    let layers = input.shape.layers as f64;
    let kept = if t.recompute == Recompute::Layers { layers + 16.0 } else { layers * 16.0 };
    let activations = batch_tokens * input.shape.hidden as f64 * kept * 4.0;
    let in_layers = input.shape.in_layers as f64;
    let weights = 4.0 * (parameters - in_layers) + in_layers * bits(t.quantization) / 8.0;
    let gib = |bytes: f64| bytes / f64::from(1_u32 << 30);
    let memory_gib = gib(weights * 1.1 + activations) + 1.0;
    // bf16 there; layers are recomputed when the card is small; 2 GiB for logits, kernels and the driver
    let in_card = if t.quantization == Quantization::None { 16.0 } else { bits(t.quantization) };
    let card_weights = 2.0 * (parameters - in_layers) + in_layers * in_card / 8.0;
    let kept = if t.recompute == Recompute::Nothing { layers * 16.0 } else { layers + 16.0 };
    let card = gib(card_weights * 1.1 + batch_tokens * input.shape.hidden as f64 * kept * 2.0) + 2.0;
    let has_kernels = matches!(t.method, Method::Lora | Method::Rslora)
        && matches!(t.quantization, Quantization::None | Quantization::Nf4);
    Workload {
        steps: u32::try_from(steps).unwrap_or(u32::MAX),
        tokens: trained,
        flops,
        flops_with_gpu: all(if t.recompute == Recompute::Nothing { 2.0 } else { 3.0 }),
        memory_gib,
        with_gpu_gib: has_kernels.then_some([card, gib(weights * 1.1) + 1.0]),
        parameters: input.shape.parameters,
    }
}

/// Of a stored value, block scales included.
fn bits(quantization: Quantization) -> f64 {
    match quantization {
        Quantization::None => 32.0,
        Quantization::Nf4 => 4.13,
        Quantization::Q8_0 => 8.5,
        Quantization::Q4K => 4.5,
    }
}

impl Workload {
    /// Whether the machine has the memory for it.
    #[must_use]
    pub fn fits(&self, machine: &Machine) -> bool {
        let fits = |needed: f64, there: u32| needed <= f64::from(there) * 0.9;
        match (machine.gpu_memory_gib, self.with_gpu_gib) {
            (None, _) => fits(self.memory_gib, machine.memory_gib),
            (Some(there), Some([card, beside])) => fits(card, there) && fits(beside, machine.memory_gib),
            (Some(_), None) => false,
        }
    }

    /// Predicted time on this machine, from its launch to its end.
    #[must_use]
    pub fn time_on(&self, machine: &Machine) -> Seconds {
        let flops = if machine.gpu_memory_gib.is_some() { self.flops_with_gpu } else { self.flops };
        let work = (flops / machine.flops).ceil();
        Seconds(work as u64).plus(BOOT).plus(FIXED)
    }
}

trait Plus {
    fn plus(self, other: Self) -> Self;
}

impl Plus for Seconds {
    fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

fn tokens(split: &SplitSize) -> u64 {
    split.bytes.div_ceil(BYTES_PER_TOKEN)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::PriceTable;

    pub(crate) fn manifest(train_bytes: u64) -> DatasetManifest {
        let split = |bytes: u64| SplitSize { documents: 9, examples: bytes / 900, words: bytes / 6, bytes };
        DatasetManifest {
            dataset: "ds-0123456789abcdef".parse().unwrap(),
            project: "handbook".parse().unwrap(),
            train: split(train_bytes),
            validation: split(train_bytes / 10),
            test: split(train_bytes / 10),
            documents: Vec::new(),
            duplicates: Vec::new(),
            quarantined: 0,
            unread: tunesmith_contract::documents::UnreadUploads::default(),
        }
    }

    pub(crate) const MINI: ModelShape =
        ModelShape { parameters: 5_000_000, in_layers: 4_000_000, layers: 6, hidden: 256 };
    pub(crate) const SEVEN_B: ModelShape =
        ModelShape { parameters: 7_000_000_000, in_layers: 6_500_000_000, layers: 32, hidden: 4096 };

    fn of(shape: ModelShape, training: &TrainingSettings, bytes: u64) -> Workload {
        workload(&WorkloadInput { shape, training, dataset: &manifest(bytes) })
    }

    #[test]
    fn steps_follow_epochs_batch_and_limit() {
        let training = TrainingSettings::default();
        // 768,000 bytes are 256,000 tokens, 1,000 sequences of 256, 125 batches of 8, three times
        assert_eq!(of(MINI, &training, 768_000).steps, 375);
        let limited = TrainingSettings { max_steps: 20, ..training };
        let work = of(MINI, &limited, 768_000);
        assert_eq!((work.steps, work.tokens), (20, 20 * 8 * 256));
    }

    #[test]
    fn ten_times_the_model_is_about_ten_times_the_work() {
        let training = TrainingSettings::default();
        let (small, large) = (of(MINI, &training, 768_000), of(SEVEN_B, &training, 768_000));
        let ratio = large.flops / small.flops;
        assert!((1000.0..1500.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_large_model_needs_a_large_machine() {
        let table = PriceTable::embedded().unwrap();
        let work = of(SEVEN_B, &TrainingSettings { batch_size: 1, ..TrainingSettings::default() }, 768_000);
        let machine = table.machine("c7i.2xlarge").unwrap();
        assert!(!work.fits(machine), "{}", work.memory_gib);
        let mut larger = machine.clone();
        larger.memory_gib = 64;
        assert!(work.fits(&larger), "{}", work.memory_gib);
        assert!(of(MINI, &TrainingSettings::default(), 768_000).fits(table.machine("c7i.large").unwrap()));
    }

    #[test]
    fn a_quantised_base_and_recomputed_layers_fit_a_smaller_machine() {
        let plain = TrainingSettings::default();
        let nf4 = TrainingSettings { quantization: Quantization::Nf4, ..plain.clone() };
        let both = TrainingSettings { recompute: Recompute::Layers, ..nf4.clone() };
        let [all, small, smallest] = [&plain, &nf4, &both].map(|training| of(SEVEN_B, training, 768_000));
        // 6.5 of 7 billion values shrink from 32 to 4.13 bits
        let saved = 1.1 * 6.5e9 * (32.0 - 4.13) / 8.0 / f64::from(1_u32 << 30);
        assert!((all.memory_gib - small.memory_gib - saved).abs() < 1e-6, "{} {}", all.memory_gib, small.memory_gib);
        assert!(smallest.memory_gib < 0.6 * small.memory_gib, "{} {}", small.memory_gib, smallest.memory_gib);
        assert_eq!(all.flops, small.flops);
        assert!((1.3..1.5).contains(&(smallest.flops / small.flops)));
    }

    #[test]
    fn a_gpu_takes_what_it_has_kernels_for_and_room() {
        let table = PriceTable::embedded().unwrap();
        let fits =
            |name: &str, training: &TrainingSettings| of(SEVEN_B, training, 768_000).fits(table.machine(name).unwrap());
        let nf4 = TrainingSettings { quantization: Quantization::Nf4, ..TrainingSettings::default() };
        assert!(fits("g5.xlarge", &nf4));
        // 7 billion values of two bytes in 24 GiB, and of four in the 16 GiB beside them
        assert!(!fits("g5.xlarge", &TrainingSettings::default()) && fits("g6e.2xlarge", &TrainingSettings::default()));
        for without in [
            TrainingSettings { method: Method::Dora, ..nf4.clone() },
            TrainingSettings { quantization: Quantization::Q4K, ..nf4.clone() },
        ] {
            assert!(!fits("g6e.2xlarge", &without));
        }
        let kept = TrainingSettings { recompute: Recompute::Nothing, batch_size: 64, ..nf4.clone() };
        assert!(!fits("g5.xlarge", &kept));
        // it fits with recomputed layers, and these take time
        let work = of(SEVEN_B, &nf4, 768_000);
        assert!((1.3..1.5).contains(&(work.flops_with_gpu / work.flops)));
    }

    #[test]
    fn a_small_run_is_mostly_boot_time() {
        let table = PriceTable::embedded().unwrap();
        let time = of(MINI, &TrainingSettings::default(), 768_000).time_on(table.machine("c7i.xlarge").unwrap());
        assert!((Seconds(195)..Seconds(600)).contains(&time), "{time:?}");
    }
}
