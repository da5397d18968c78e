//! `project.toml`: what a project's owner may set. Unknown keys are refused with the key, the line and the remedy.

use serde::{Deserialize, Serialize};

use crate::{documents::Role, ids::BaseModel, money::Usd, time::Seconds};

/// A `project.toml` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not TOML, an unknown key, or a wrong type.
    #[error("project.toml, line {line}: {message}")]
    Parse {
        /// Counted from 1.
        line: usize,
        /// What is wrong, with the key, and what is allowed.
        message: String,
    },
    /// A value that cannot be.
    #[error("project.toml, {key} = {value}: {remedy}")]
    Value {
        /// The key, with its table.
        key: &'static str,
        /// What was written.
        value: String,
        /// What to write instead.
        remedy: &'static str,
    },
}

macro_rules! settings {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $ty:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

settings! {
    /// Everything a project's owner may set. Every key has a default except the budget.
    ProjectSettings {
        /// The model to start from: a folder under `models/` of the workspace bucket, or a Hugging Face id `owner/name`.
        base_model: String = "tunesmith-mini".to_owned(),
        /// How documents become a dataset.
        data: DataSettings = DataSettings::default(),
        /// How the model is trained.
        training: TrainingSettings = TrainingSettings::default(),
        /// On which machines.
        machines: MachineSettings = MachineSettings::default(),
        /// What it may cost.
        budget: BudgetSettings = BudgetSettings::default(),
        /// When a model is good enough to be shown to the approver.
        gate: GateSettings = GateSettings::default(),
        /// How it is served.
        serving: ServingSettings = ServingSettings::default(),
    }
}

settings! {
    /// `[data]`
    DataSettings {
        /// Fewest words, after cleaning and deduplication, that training may start with.
        minimum_words: u64 = 2_000,
        /// Minutes without a new upload after which training starts by itself; 0 means only `_TRAIN` starts it.
        quiet_minutes: u32 = 15,
        /// Share of the documents kept for choosing the best checkpoint.
        validation_fraction: f64 = 0.1,
        /// Share of the documents kept untouched for the final test.
        test_fraction: f64 = 0.1,
        /// Whether questions are made from headings, so that the model learns to answer.
        questions_from_headings: bool = true,
    }
}

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

/// Spot machines cost a third and may be taken back; on-demand machines may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Market {
    /// Cheap, interruptible.
    Spot,
    /// Full price.
    OnDemand,
}

settings! {
    /// `[machines]`
    MachineSettings {
        /// `spot` or `on-demand`.
        market: Market = Market::Spot,
        /// Instance types that may be used; empty means: chosen by the model's size.
        allowed: Vec<String> = Vec::new(),
        /// After this many interruptions the run continues on demand.
        interruptions_before_on_demand: u32 = 2,
    }
}

settings! {
    /// `[budget]`: dollars as numbers, e.g. `monthly_limit_usd = 25.0`.
    BudgetSettings {
        /// What the project may spend in a calendar month (UTC). Without it nothing is started.
        monthly_limit_usd: Option<f64> = None,
        /// What one run may spend at the most.
        max_run_usd: f64 = 5.0,
        /// Longest time one run may take on a machine, in hours.
        max_run_hours: f64 = 6.0,
    }
}

settings! {
    /// `[gate]`
    GateSettings {
        /// By how many per cent the test perplexity must lie below the base model's (lower bound of the confidence interval).
        min_improvement_percent: f64 = 2.0,
        /// By how many per cent the test perplexity may lie above the live model's.
        max_regression_percent: f64 = 1.0,
        /// Fewest test tokens for a decision.
        min_test_tokens: u64 = 500,
    }
}

/// How a model is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ServingMode {
    /// SageMaker serverless inference: CPU, no cost while nobody asks.
    Serverless,
    /// SageMaker instances: billed by the hour while the endpoint exists.
    Instance,
}

settings! {
    /// `[serving]`
    ServingSettings {
        /// `serverless` or `instance`.
        mode: ServingMode = ServingMode::Serverless,
        /// Memory of a serverless endpoint: 1024, 2048, 3072, 4096, 5120 or 6144 MB.
        memory_mb: u32 = 4096,
        /// Most concurrent requests of a serverless endpoint.
        max_concurrency: u32 = 5,
        /// Instance type in mode `instance`.
        instance_type: String = "ml.g5.xlarge".to_owned(),
        /// Number of source passages put before a question; 0 turns retrieval off.
        retrieved_passages: u32 = 3,
        /// Requests per minute for each API key.
        requests_per_minute: u32 = 60,
        /// Tokens per day for each API key.
        tokens_per_day: u64 = 1_000_000,
    }
}

impl ProjectSettings {
    /// Parses and checks a `project.toml`.
    ///
    /// # Errors
    /// [`SettingsError`] with the key, the line where it is known, and the remedy.
    pub fn from_toml(text: &str) -> Result<Self, SettingsError> {
        let settings: Self = toml::from_str(text).map_err(|error| SettingsError::Parse {
            line: error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count()),
            message: error.message().to_owned(),
        })?;
        settings.check()?;
        Ok(settings)
    }

    /// The base model, parsed.
    ///
    /// # Errors
    /// [`SettingsError::Value`] when it is neither a folder name nor a Hugging Face id.
    pub fn base(&self) -> Result<BaseModel, SettingsError> {
        self.base_model.parse().map_err(|_| SettingsError::Value {
            key: "base_model",
            value: self.base_model.clone(),
            remedy: "write a folder name under models/, or a Hugging Face id owner/name",
        })
    }

    /// The monthly limit.
    #[must_use]
    pub fn monthly_limit(&self) -> Option<Usd> {
        self.budget.monthly_limit_usd.and_then(Usd::from_dollars)
    }

    /// The most one run may spend.
    #[must_use]
    pub fn max_run(&self) -> Usd {
        Usd::from_dollars(self.budget.max_run_usd).unwrap_or(Usd::ZERO)
    }

    /// The longest one run may take on machines.
    #[must_use]
    pub fn max_run_time(&self) -> Seconds {
        Seconds((self.budget.max_run_hours * 3600.0) as u64)
    }

    fn check(&self) -> Result<(), SettingsError> {
        self.base()?;
        let t = &self.training;
        let bad = |key, value: &dyn std::fmt::Display, remedy| {
            Err(SettingsError::Value { key, value: value.to_string(), remedy })
        };
        let fraction = |v: f64| v > 0.0 && v < 0.5;
        if !fraction(self.data.test_fraction) {
            return bad("data.test_fraction", &self.data.test_fraction, "write a number above 0 and below 0.5");
        }
        if !fraction(self.data.validation_fraction) {
            return bad(
                "data.validation_fraction",
                &self.data.validation_fraction,
                "write a number above 0 and below 0.5",
            );
        }
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
            let is_surplus = |m: &&String| match t.target_modules.is_empty() {
                true => !TARGET_MODULES.contains(&m.as_str()),
                false => !t.target_modules.contains(m),
            };
            if let Some(surplus) = t.feedforward_modules.iter().flatten().find(is_surplus) {
                return bad(
                    "training.feedforward_modules",
                    surplus,
                    "name only modules that target_modules names, too",
                );
            }
            if t.loraplus_lr_ratio != 1.0 {
                let remedy = "leave it 1: ia3 has no matrix B";
                return bad("training.loraplus_lr_ratio", &t.loraplus_lr_ratio, remedy);
            }
        }
        let ada = &t.adalora;
        if !(1..=1024).contains(&ada.init_r) {
            return bad("training.adalora.init_r", &ada.init_r, "write a whole number from 1 to 1024");
        }
        if !(1..=ada.init_r).contains(&ada.target_r) {
            return bad("training.adalora.target_r", &ada.target_r, "write a whole number from 1 to init_r");
        }
        let betas = [("training.adalora.beta1", ada.beta1), ("training.adalora.beta2", ada.beta2)];
        if let Some((key, value)) = betas.iter().find(|(_, v)| !(*v > 0.0 && *v < 1.0)) {
            return bad(key, value, "write a number above 0 and below 1");
        }
        if !(ada.orth_reg_weight >= 0.0 && ada.orth_reg_weight.is_finite()) {
            return bad("training.adalora.orth_reg_weight", &ada.orth_reg_weight, "write 0 or a number above it");
        }
        let positive: [(&'static str, f64); 6] = [
            ("training.alpha", t.alpha),
            ("training.loraplus_lr_ratio", t.loraplus_lr_ratio),
            ("training.learning_rate", t.learning_rate),
            ("training.clip_norm", t.clip_norm),
            ("budget.max_run_usd", self.budget.max_run_usd),
            ("budget.max_run_hours", self.budget.max_run_hours),
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
            ("training.adalora.deltaT", ada.delta_t),
            ("training.epochs", t.epochs),
            ("training.batch_size", t.batch_size),
            ("training.accumulation", t.accumulation),
            ("training.checkpoint_every", t.checkpoint_every),
            ("training.sequence_length", t.sequence_length),
        ];
        if let Some((key, value)) = counts.iter().find(|(_, v)| *v == 0) {
            return bad(key, value, "write a whole number of at least 1");
        }
        if let Some(limit) = self.budget.monthly_limit_usd
            && !(0.0..1e9).contains(&limit)
        {
            return bad("budget.monthly_limit_usd", &limit, "write dollars as a number, e.g. 25.0");
        }
        if !matches!(self.serving.memory_mb, 1024 | 2048 | 3072 | 4096 | 5120 | 6144) {
            return bad("serving.memory_mb", &self.serving.memory_mb, "write 1024, 2048, 3072, 4096, 5120 or 6144");
        }
        if !(1..=200).contains(&self.serving.max_concurrency) {
            return bad("serving.max_concurrency", &self.serving.max_concurrency, "write a whole number from 1 to 200");
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

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(ProjectSettings::from_toml("").unwrap(), ProjectSettings::default());
    }

    #[test]
    fn a_wrong_file_is_answered_with_key_line_and_remedy() {
        let error = ProjectSettings::from_toml("base_model = \"x\"\n\n[training]\nrnak = 8\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 4") && text.contains("rnak") && text.contains("rank"), "{text}");

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
            ("[data]\ntest_fraction = 0.9", "data.test_fraction = 0.9"),
            ("[budget]\nmonthly_limit_usd = -1.0", "budget.monthly_limit_usd = -1"),
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
            ("[training]\nearly_stopping_min_delta = -0.1", "training.early_stopping_min_delta = -0.1"),
            ("base_model = \"../../x\"", "base_model"),
            ("[serving]\nmemory_mb = 100", "serving.memory_mb = 100"),
            ("[budget]\nmonthly_limit_usd = \"ten\"", "line 2"),
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

    #[test]
    fn no_budget_is_not_a_budget_of_zero() {
        assert_eq!(ProjectSettings::default().monthly_limit(), None);
        let zero = ProjectSettings::from_toml("[budget]\nmonthly_limit_usd = 0.0").unwrap();
        assert_eq!(zero.monthly_limit(), Some(Usd::ZERO));
    }
}
