//! Rotary settings in both spellings: `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5).

use serde_json::{Map, Value};

use super::fields::{Fields, unsupported};
use crate::error::{ModelError, Result};

/// Base and change of the rotary frequencies; formulas in [`crate::ops::rope_scaling`].
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Base of the frequencies.
    pub theta: f64,
    /// Change for longer contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Unchanged.
    Default,
    /// All frequencies divided.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided, high ones kept, smooth between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of pretraining.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023): as Llama 3 with a ramp over the dimensions; cosines and sines are multiplied.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Dimensions that turn more often than this within the original context are kept.
        beta_fast: f64,
        /// Dimensions that turn less often than this are divided.
        beta_slow: f64,
        /// Whether the ramp begins and ends at whole dimensions.
        truncate: bool,
        /// Context length of pretraining.
        original_max_position_embeddings: usize,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
    /// LongRoPE (Ding et al. 2024) within the context of pretraining: each frequency divided by its own short factor. Beyond it, all
    /// positions of a text would change with its length, also those in a cache: longer texts are refused.
    LongRope {
        /// Divisor of each frequency.
        short_factor: Vec<f64>,
        /// Context length of pretraining, and here the limit.
        original_max_position_embeddings: usize,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
}

/// Keys of YaRN alone: with another kind `transformers` warns and leaves them out, which is no proof that they were meant so.
const YARN_ALONE: [&str; 2] = ["mscale", "mscale_all_dim"];
/// Keys of the settings that are read here.
const KNOWN: &[&str] = &[
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "high_freq_factor",
    "long_factor",
    "low_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_type",
    "short_factor",
    "truncate",
    "type",
];

/// `max_position_embeddings` is what the file says; LongRoPE's factor, and YaRN's where it is null, is its ratio to the original one.
/// `original_opt` is the context of pretraining where the family writes it outside the settings (Phi-3).
pub(super) fn read(fields: &Fields<'_>, max_position_embeddings: usize, original_opt: Option<usize>) -> Result<Rotary> {
    let (new, old) = (fields.get("rope_parameters"), fields.get("rope_scaling"));
    let empty = Map::new();
    let settings = match new.or(old) {
        None => &empty,
        Some(Value::Object(settings)) => settings,
        Some(value) => return Err(unsupported("rope_scaling", value, "an object")),
    };
    let kind = settings.get("rope_type").or_else(|| settings.get("type")).and_then(Value::as_str).unwrap_or("default");
    let unknown = |(key, value): &(&String, &Value)| {
        let known = KNOWN.contains(&key.as_str()) || kind == "yarn" && YARN_ALONE.contains(&key.as_str());
        !known && !value.is_null()
    };
    let number = |key: &'static str| {
        let value = settings.get(key).and_then(Value::as_f64).filter(|value| *value > 0.0);
        let found = settings.get(key).unwrap_or(&Value::Null);
        value.ok_or_else(|| unsupported(&format!("rope_scaling.{key}"), found, "a positive number"))
    };
    let optional = |key: &'static str, default: f64| match settings.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(_) => number(key),
    };
    let original = || match original_opt {
        Some(original) => Ok(original),
        None => Ok::<_, ModelError>(number("original_max_position_embeddings")? as usize),
    };
    let scaling = match kind {
        // dynamic NTK changes frequencies only beyond max_position_embeddings, and longer texts are refused
        "default" | "dynamic" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: original()?,
        },
        "yarn" => {
            let original = original()?;
            let factor = match settings.get("factor") {
                Some(Value::Null) => max_position_embeddings as f64 / original as f64,
                _ => number("factor")?,
            };
            let mscale = |key: &'static str| match settings.get(key) {
                None | Some(Value::Null) => Ok(None),
                // as good as absent to the peer
                Some(value) if value.as_f64() == Some(0.0) => Ok(None),
                Some(_) => number(key).map(Some),
            };
            let by_default = match (mscale("mscale")?, mscale("mscale_all_dim")?) {
                (Some(of_all), Some(of_scores)) => yarn_scale(factor, of_all) / yarn_scale(factor, of_scores),
                _ => yarn_scale(factor, 1.0),
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: optional("beta_fast", 32.0)?,
                beta_slow: optional("beta_slow", 1.0)?,
                truncate: match settings.get("truncate") {
                    None => true,
                    // the peer asks whether it is true
                    Some(Value::Null) => false,
                    Some(Value::Bool(truncate)) => *truncate,
                    Some(value) => return Err(unsupported("rope_scaling.truncate", value, "true or false")),
                },
                original_max_position_embeddings: original,
                attention_factor: optional("attention_factor", by_default)?,
            }
        }
        "longrope" | "su" => {
            let original = original()?;
            let factor = optional("factor", max_position_embeddings as f64 / original as f64)?;
            let by_default = if factor > 1.0 { (1.0 + factor.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
            RopeScaling::LongRope {
                short_factor: factors(settings)?,
                original_max_position_embeddings: original,
                attention_factor: optional("attention_factor", by_default)?,
            }
        }
        other => {
            let supported = "default, dynamic, linear, llama3, yarn or longrope";
            return Err(unsupported("rope_scaling.rope_type", &other.into(), supported));
        }
    };
    if let Some((key, value)) = settings.iter().find(unknown) {
        return Err(unsupported(&format!("rope_scaling.{key}"), value, "only null"));
    }
    let partial = settings.get("partial_rotary_factor").or_else(|| fields.get("partial_rotary_factor"));
    fields.harmless(&["partial_rotary_factor"]);
    if let Some(partial) = partial.filter(|partial| partial.as_f64() != Some(1.0) && !partial.is_null()) {
        return Err(unsupported("partial_rotary_factor", partial, "1: every value of a head is rotated"));
    }
    let outside = fields.number_or("rope_theta", 10_000.0)?;
    let theta = if settings.contains_key("rope_theta") { number("rope_theta")? } else { outside };
    Ok(Rotary { theta, scaling })
}

/// `get_mscale` of `_compute_yarn_parameters`: how much sharper attention becomes with the context `factor` times as long.
fn yarn_scale(factor: f64, mscale: f64) -> f64 {
    if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 }
}

fn factors(settings: &Map<String, Value>) -> Result<Vec<f64>> {
    let found = settings.get("short_factor").unwrap_or(&Value::Null);
    let factor = |value: &Value| value.as_f64().filter(|factor| *factor > 0.0);
    let factors = found.as_array().and_then(|values| values.iter().map(factor).collect());
    factors.ok_or_else(|| unsupported("rope_scaling.short_factor", found, "a list of positive numbers"))
}
