//! Rotary settings in both spellings: `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5).

use serde_json::{Map, Value};

use super::fields::{Fields, unsupported};
use crate::error::Result;

/// Base and change of the rotary frequencies; formulas in [`crate::ops::rope`].
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
}

/// Keys of the settings that are read here.
const KNOWN: &[&str] = &[
    "factor",
    "high_freq_factor",
    "low_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_type",
    "type",
];

pub(super) fn read(fields: &Fields<'_>) -> Result<Rotary> {
    let (new, old) = (fields.get("rope_parameters"), fields.get("rope_scaling"));
    let empty = Map::new();
    let settings = match new.or(old) {
        None => &empty,
        Some(Value::Object(settings)) => settings,
        Some(value) => return Err(unsupported("rope_scaling", value, "an object")),
    };
    let unknown = |(key, value): &(&String, &Value)| !KNOWN.contains(&key.as_str()) && !value.is_null();
    let kind = settings.get("rope_type").or_else(|| settings.get("type")).and_then(Value::as_str).unwrap_or("default");
    let number = |key: &'static str| {
        let value = settings.get(key).and_then(Value::as_f64).filter(|value| *value > 0.0);
        let found = settings.get(key).unwrap_or(&Value::Null);
        value.ok_or_else(|| unsupported(&format!("rope_scaling.{key}"), found, "a positive number"))
    };
    let scaling = match kind {
        // dynamic NTK changes frequencies only beyond max_position_embeddings, and longer texts are refused
        "default" | "dynamic" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: number("original_max_position_embeddings")? as usize,
        },
        "longrope" | "su" => {
            let reason = "its frequencies depend on the length of each text, so keys in a cache would have to change as it \
                          grows: take the variant of the model with the short context";
            return Err(unsupported("rope_scaling.rope_type", &kind.into(), reason));
        }
        other => {
            let supported = "default, dynamic, linear or llama3";
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
