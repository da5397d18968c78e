//! `[training]` and `[training.adalora]`: which adapter is trained, and how.

use serde::{Deserialize, Serialize};

use super::{SettingsError, bad};
use crate::documents::Role;

/// What is trained beside the frozen base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Method {
    /// Two matrices of small rank, scaled by alpha / rank.
    Lora,
    /// The same, scaled by alpha / √rank.
    Rslora,
    /// LoRA for the direction of each row of a weight, a vector for its length.
    Dora,
    /// Ranks that are taken away where they matter least.
    Adalora,
    /// Vectors that multiply keys, values and inputs of the feed-forward layers.
    Ia3,
}

impl Method {
    /// As the papers write it.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Lora => "LoRA",
            Self::Rslora => "rsLoRA",
            Self::Dora => "DoRA",
            Self::Adalora => "AdaLoRA",
            Self::Ia3 => "IA³",
        }
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Schedule {
    /// Half a cosine down to 0.
    Cosine,
    /// A straight line down to 0.
    Linear,
    /// It does not fall.
    Constant,
    /// Warm-up, stable, decay: it falls to 0 in the last steps alone.
    Wsd,
}

/// Which optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Optimizer {
    /// AdamW.
    #[serde(rename = "adamw")]
    AdamW,
    /// AdamW whose state takes 8 bits for a number instead of 32.
    #[serde(rename = "adamw-8bit")]
    AdamW8bit,
}

/// How the projections of the frozen base model are stored while it is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Quantization {
    /// 32 bits a value.
    None,
    /// QLoRA's normal float, 4.1 bits a value.
    Nf4,
    /// 8.5 bits a value.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4.5 bits a value.
    #[serde(rename = "q4_k")]
    Q4K,
}

/// Whether activations are computed again in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Recompute {
    /// When the memory limit asks for it.
    Auto,
    /// Always.
    Layers,
    /// Never.
    Nothing,
}

settings! {
    /// `[training]`: an adapter on the frozen base model.
    TrainingSettings {
        /// What is trained: `lora`, `rslora`, `dora`, `adalora` or `ia3`.
        method: Method = Method::Lora,
        /// Rank of the adapter, for lora, rslora and dora.
        rank: u32 = 16,
        /// Scale of the adapter: the product is multiplied by alpha / rank. Not for ia3.
        alpha: f64 = 32.0,
        /// LoRA+: how many times as fast the matrix B learns as A; not for ia3.
        loraplus_lr_ratio: f64 = 1.0,
        /// Which projections get an adapter: any of q_proj k_proj v_proj o_proj gate_proj up_proj down_proj; of Phi-3 qkv_proj
        /// o_proj gate_up_proj down_proj; of GPT-2 c_attn attn.c_proj c_fc mlp.c_proj. Empty: all that the base model has, for ia3
        /// those of keys and values and the last of the feed-forward layer.
        target_modules: Vec<String> = Vec::new(),
        /// For ia3: those of the target modules whose inputs are multiplied, instead of their outputs; none means the last
        /// projection of the feed-forward layer.
        feedforward_modules: Option<Vec<String>> = None,
        /// Ranks and budget of adalora.
        adalora: AdaLoraSettings = AdaLoraSettings::default(),
        /// How the projections of the base model are stored: `none` (as they are), `nf4` (QLoRA: an eighth of the memory), `q8_0` (a
        /// quarter, nearly exact) or `q4_k`. The model is evaluated and served as it was trained; a merged export writes the adapter
        /// into the base model as it is.
        quantization: Quantization = Quantization::None,
        /// Peak learning rate.
        learning_rate: f64 = 1e-3,
        /// Passes over the training split.
        epochs: u32 = 3,
        /// Stop after this many optimizer steps, whatever `epochs` says; 0 means no limit.
        max_steps: u32 = 0,
        /// Rows per forward pass. A row is a sequence, or with `packing` several that together have at most `sequence_length`
        /// tokens.
        batch_size: u32 = 8,
        /// Forward passes per optimizer step.
        accumulation: u32 = 1,
        /// Whether short sequences share a row. They never see each other; batches are equally full, and there are fewer of them.
        packing: bool = true,
        /// Longest sequence in tokens; longer examples are cut into several.
        sequence_length: u32 = 256,
        /// Whose turns in chats the model learns to write, and is scored on: any of system, user, assistant, tool. Terminators of
        /// these turns are part of them. All of a plain text counts.
        train_on: Vec<Role> = vec![Role::Assistant],
        /// How the learning rate falls after the warm-up: `cosine`, `linear`, `constant`, or `wsd` (constant until it decays in
        /// the last steps).
        schedule: Schedule = Schedule::Cosine,
        /// Share of the steps in which the learning rate rises.
        warmup_ratio: f64 = 0.05,
        /// Share of the steps, the last ones, in which the learning rate of schedule `wsd` decays.
        decay_ratio: f64 = 0.2,
        /// `adamw`, or `adamw-8bit` with a quarter of the memory for its state.
        optimizer: Optimizer = Optimizer::AdamW,
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0,
        /// Largest global gradient norm.
        clip_norm: f64 = 1.0,
        /// Seed of shuffles and of the adapter's first values.
        seed: u64 = 7,
        /// Whether the activations of each layer are computed again in the backward pass instead of being kept: `layers` (always: least
        /// memory, about a third slower), `nothing` (never), or `auto` (when the memory limit asks for it). The result is the same.
        recompute: Recompute = Recompute::Auto,
        /// What training may take of memory, in MB; none means nine tenths of what the machine or container has. A run that would
        /// not fit is refused before its first step.
        memory_limit_mb: Option<u64> = None,
        /// Optimizer steps between checkpoints.
        checkpoint_every: u32 = 50,
        /// Optimizer steps between evaluations on the validation split; 0: after each epoch. The adapter that did best is kept.
        evaluate_every: u32 = 0,
        /// Stop after this many evaluations in a row without improvement; 0: never.
        early_stopping_patience: u32 = 0,
        /// By how many nats per token the validation loss must fall to count as an improvement.
        early_stopping_min_delta: f64 = 0.0,
    }
}

settings! {
    /// `[training.adalora]`, with the names of `peft`'s `AdaLoraConfig`.
    AdaLoraSettings {
        /// Rank of every module at the start.
        init_r: u32 = 12,
        /// Average rank at the end.
        target_r: u32 = 8,
        /// Optimizer steps before ranks are taken away; none means a tenth of the run.
        tinit: Option<u32> = None,
        /// Optimizer steps at the end in which the ranks stay; none means half of the run.
        tfinal: Option<u32> = None,
        /// Optimizer steps between two allocations.
        #[serde(rename = "deltaT")]
        delta_t: u32 = 1,
        /// Smoothing of the sensitivity by which ranks are judged.
        beta1: f64 = 0.85,
        /// Smoothing of the uncertainty by which ranks are judged.
        beta2: f64 = 0.85,
        /// Weight of the term that keeps the vectors orthogonal; 0 turns it off.
        orth_reg_weight: f64 = 0.5,
    }
}

impl TrainingSettings {
    /// Whether these values can be, alone and together; whether the base model has such modules, the trainer checks.
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        let t = self;
        if !(1..=1024).contains(&t.rank) {
            return bad("training.rank", &t.rank, "write a whole number from 1 to 1024");
        }
        if let Some(unknown) = t.target_modules.iter().find(|m| !TARGET_MODULES.contains(&m.as_str())) {
            return bad(
                "training.target_modules",
                unknown,
                "use only q_proj k_proj v_proj o_proj gate_proj up_proj down_proj (Phi-3: qkv_proj o_proj gate_up_proj down_proj; \
                 GPT-2: c_attn attn.c_proj c_fc mlp.c_proj)",
            );
        }
        if t.method == Method::Ia3 {
            t.check_ia3()?;
        }
        t.adalora.check()?;
        let positive: [(&'static str, f64); 4] = [
            ("training.alpha", t.alpha),
            ("training.loraplus_lr_ratio", t.loraplus_lr_ratio),
            ("training.learning_rate", t.learning_rate),
            ("training.clip_norm", t.clip_norm),
        ];
        if let Some((key, value)) = positive.iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
            return bad(key, value, "write a number above 0");
        }
        if !(0.0..1.0).contains(&t.warmup_ratio) {
            return bad("training.warmup_ratio", &t.warmup_ratio, "write a number from 0 to below 1");
        }
        if t.schedule == Schedule::Wsd && !(t.decay_ratio > 0.0 && t.warmup_ratio + t.decay_ratio <= 1.0 + 1e-9) {
            return bad(
                "training.decay_ratio",
                &t.decay_ratio,
                "write a number above 0 that is at most 1 together with training.warmup_ratio",
            );
        }
        if !(t.early_stopping_min_delta.is_finite() && t.early_stopping_min_delta >= 0.0) {
            return bad(
                "training.early_stopping_min_delta",
                &t.early_stopping_min_delta,
                "write 0 or a number above 0",
            );
        }
        let repeats = |(at, role): (usize, &Role)| t.train_on[..at].contains(role);
        if t.train_on.is_empty() || t.train_on.iter().enumerate().any(repeats) {
            let written = t.train_on.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" ");
            return bad(
                "training.train_on",
                &format!("[{written}]"),
                "name one or more of system user assistant tool, each once",
            );
        }
        let counts: [(&'static str, u32); 6] = [
            ("training.adalora.deltaT", t.adalora.delta_t),
            ("training.epochs", t.epochs),
            ("training.batch_size", t.batch_size),
            ("training.accumulation", t.accumulation),
            ("training.checkpoint_every", t.checkpoint_every),
            ("training.sequence_length", t.sequence_length),
        ];
        if let Some((key, value)) = counts.iter().find(|(_, v)| *v == 0) {
            return bad(key, value, "write a whole number of at least 1");
        }
        if t.memory_limit_mb == Some(0) {
            return bad("training.memory_limit_mb", &0, "write megabytes, at least 1, or leave it out");
        }
        Ok(())
    }

    fn check_ia3(&self) -> Result<(), SettingsError> {
        let t = self;
        let is_surplus = |m: &&String| match t.target_modules.is_empty() {
            true => !TARGET_MODULES.contains(&m.as_str()),
            false => !t.target_modules.contains(m),
        };
        if let Some(surplus) = t.feedforward_modules.iter().flatten().find(is_surplus) {
            return bad("training.feedforward_modules", surplus, "name only modules that target_modules names, too");
        }
        if t.loraplus_lr_ratio != 1.0 {
            let remedy = "leave it 1: ia3 has no matrix B";
            return bad("training.loraplus_lr_ratio", &t.loraplus_lr_ratio, remedy);
        }
        Ok(())
    }
}

impl AdaLoraSettings {
    fn check(&self) -> Result<(), SettingsError> {
        if !(1..=1024).contains(&self.init_r) {
            return bad("training.adalora.init_r", &self.init_r, "write a whole number from 1 to 1024");
        }
        if !(1..=self.init_r).contains(&self.target_r) {
            return bad("training.adalora.target_r", &self.target_r, "write a whole number from 1 to init_r");
        }
        let betas = [("training.adalora.beta1", self.beta1), ("training.adalora.beta2", self.beta2)];
        if let Some((key, value)) = betas.iter().find(|(_, v)| !(*v > 0.0 && *v < 1.0)) {
            return bad(key, value, "write a number above 0 and below 1");
        }
        if !(self.orth_reg_weight >= 0.0 && self.orth_reg_weight.is_finite()) {
            return bad("training.adalora.orth_reg_weight", &self.orth_reg_weight, "write 0 or a number above it");
        }
        Ok(())
    }
}

/// The projections of all architectures that can carry an adapter. Which of them a base model has, the trainer checks.
pub const TARGET_MODULES: [&str; 13] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "c_attn",
    "o_proj",
    "attn.c_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "c_fc",
    "down_proj",
    "mlp.c_proj",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProjectSettings;

    #[test]
    fn a_wrong_training_setting_is_answered_with_key_and_remedy() {
        for (toml, wants) in [
            ("[training]\nrank = 0", "training.rank = 0: write a whole number from 1 to 1024"),
            ("[training]\ntarget_modules = [\"q\"]", "training.target_modules = q: use only q_proj"),
            ("[training]\nmethod = \"vera\"", "line 2: unknown variant `vera`, expected one of `lora`, `rslora`"),
            ("[training]\nmethod = \"ia3\"\nloraplus_lr_ratio = 4.0", "training.loraplus_lr_ratio = 4: leave it 1"),
            (
                "[training]\nmethod = \"ia3\"\ntarget_modules = [\"k_proj\"]\nfeedforward_modules = [\"down_proj\"]",
                "training.feedforward_modules = down_proj: name only modules",
            ),
            (
                "[training.adalora]\ntarget_r = 20",
                "training.adalora.target_r = 20: write a whole number from 1 to init_r",
            ),
            ("[training.adalora]\ndelta_t = 2", "expected one of"),
            ("[training]\nlearning_rate = nan", "training.learning_rate = NaN"),
            ("[training]\nschedule = \"wsd\"\ndecay_ratio = 0.0", "training.decay_ratio = 0"),
            ("[training]\nschedule = \"step\"", "wsd"),
            ("[training]\ntrain_on = []", "training.train_on = []: name one or more of system user assistant tool"),
            ("[training]\ntrain_on = [\"user\", \"user\"]", "training.train_on = [user user]: name one or more"),
            (
                "[training]\ntrain_on = [\"robot\"]",
                "unknown variant `robot`, expected one of `system`, `user`, `assistant`, `tool`",
            ),
            ("[training]\noptimizer = \"adam\"", "adamw-8bit"),
            (
                "[training]\nquantization = \"int4\"",
                "unknown variant `int4`, expected one of `none`, `nf4`, `q8_0`, `q4_k`",
            ),
            ("[training]\nrecompute = \"all\"", "expected one of `auto`, `layers`, `nothing`"),
            ("[training]\nmemory_limit_mb = 0", "training.memory_limit_mb = 0: write megabytes"),
            ("[training]\nearly_stopping_min_delta = -0.1", "training.early_stopping_min_delta = -0.1"),
        ] {
            let text = ProjectSettings::from_toml(toml).unwrap_err().to_string();
            assert!(text.contains(wants), "{toml}: {text}");
        }
    }

    #[test]
    fn each_method_is_named_as_in_peft_and_takes_projections_of_every_architecture() {
        let parse = |toml: &str| ProjectSettings::from_toml(toml).unwrap().training;
        assert_eq!(parse("[training]\nmethod = \"ia3\"\ntarget_modules = [\"k_proj\"]").method, Method::Ia3);
        let ada = parse("[training]\nmethod = \"adalora\"\n[training.adalora]\ndeltaT = 10\ntinit = 5");
        assert_eq!((ada.adalora.delta_t, ada.adalora.tinit, ada.adalora.tfinal), (10, Some(5), None));
        for module in TARGET_MODULES {
            let of_module = parse(&format!("[training]\ntarget_modules = [\"{module}\"]"));
            assert_eq!(of_module.target_modules, [module]);
        }
    }
}
