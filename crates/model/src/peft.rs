//! Adapters on disk, in the layout of Python `peft`: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Tensor names: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`, `A` `[rank, in]`, `B` `[out, rank]`, f32.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use crate::adapters::Module;
use crate::adapters::lora::{LoraAdapter, LoraConfig, LoraPair};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::ops::host;
use crate::weights::Weights;

/// File with the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File with the tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";

/// Writes both files into `folder`, which is created. `base_model` is what `peft` shows as `base_model_name_or_path`.
/// The same adapter gives the same bytes.
pub fn save(adapter: &LoraAdapter, folder: &Path, base_model: &str) -> Result<()> {
    fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
    let config = adapter.config();
    let path = folder.join(CONFIG_FILE);
    let settings = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "use_rslora": config.use_rslora,
        "use_dora": false,
        "target_modules": config.target_modules,
        "bias": "none",
        "fan_in_fan_out": config.target_modules.iter().any(|module| module.is_transposed()),
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "revision": null,
    });
    let text = serde_json::to_string_pretty(&settings).map_err(ModelError::json(&path))?;
    fs::write(&path, text + "\n").map_err(ModelError::io(&path))?;
    write_tensors(adapter, &folder.join(WEIGHTS_FILE))
}

/// Reads both files and checks them against the model that the adapter is to sit on.
pub fn load(folder: &Path, model: &ModelConfig) -> Result<LoraAdapter> {
    let path = folder.join(CONFIG_FILE);
    let text = fs::read_to_string(&path).map_err(ModelError::io(&path))?;
    let settings: Map<String, Value> = serde_json::from_str(&text).map_err(ModelError::json(&path))?;
    load_tensors(read_config(&settings)?, model, folder)
}

/// Reads the tensors only, for settings known from elsewhere.
pub fn load_tensors(config: LoraConfig, model: &ModelConfig, folder: &Path) -> Result<LoraAdapter> {
    let weights = Weights::open_files(folder, vec![folder.join(WEIGHTS_FILE)])?;
    let mut num_used = 0;
    let adapter = LoraAdapter::from_fn(config, model, |path, shape_a, shape_b| {
        num_used += 2;
        Ok(LoraPair {
            a: weights.get(&format!("{PREFIX}{path}.lora_A.weight"), &shape_a)?,
            b: weights.get(&format!("{PREFIX}{path}.lora_B.weight"), &shape_b)?,
        })
    })?;
    if weights.names().count() == num_used {
        return Ok(adapter);
    }
    let known: Vec<String> = adapter.parameters().iter().map(|(name, _)| format!("{PREFIX}{name}.weight")).collect();
    let surplus = weights.names().find(|name| !known.iter().any(|known| known == name)).unwrap_or_default();
    Err(ModelError::AdapterMismatch { name: surplus.to_owned(), reason: "the model has no such projection".to_owned() })
}

/// Settings that change the mathematics and are not computed here are refused.
fn read_config(settings: &Map<String, Value>) -> Result<LoraConfig> {
    let refuse = |key, remedy| {
        let value = settings.get(key).unwrap_or(&Value::Null).to_string();
        Err(ModelError::UnsupportedAdapter { key, value, remedy })
    };
    let flag = |key: &str| settings.get(key).and_then(Value::as_bool).unwrap_or(false);
    let empty = |key: &str| match settings.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    if settings.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return refuse("peft_type", "only LORA adapters are read");
    }
    if !matches!(settings.get("bias").and_then(Value::as_str), None | Some("none")) {
        return refuse("bias", "train with bias none");
    }
    for key in ["use_dora", "lora_bias"] {
        if flag(key) {
            return refuse(key, "train without it");
        }
    }
    for key in [
        "modules_to_save",
        "layers_to_transform",
        "rank_pattern",
        "alpha_pattern",
        "layer_replication",
        "target_parameters",
    ] {
        if !empty(key) {
            return refuse(key, "train the same rank on every layer and nothing else");
        }
    }
    let names: Option<Vec<&str>> = match settings.get("target_modules") {
        Some(Value::Array(names)) => names.iter().map(Value::as_str).collect(),
        _ => None,
    };
    let modules = names.map(|names| names.into_iter().map(Module::from_target).collect::<Vec<_>>());
    let Some(modules) = modules.filter(|modules| modules.iter().all(|modules| !modules.is_empty())) else {
        return refuse("target_modules", "name projections of the base model, such as q_proj and down_proj");
    };
    let mut target_modules = modules.concat();
    target_modules.sort_unstable();
    target_modules.dedup();
    // only a matter of how the base stores its matrix, which is known; the other way round the adapter is for another base
    if flag("fan_in_fan_out") && !target_modules.iter().all(|module| module.is_transposed()) {
        return refuse("fan_in_fan_out", "only GPT-2 stores its matrices so");
    }
    let (Some(rank), Some(alpha)) =
        (settings.get("r").and_then(Value::as_u64), settings.get("lora_alpha").and_then(Value::as_f64))
    else {
        return refuse("r", "give r and lora_alpha as numbers");
    };
    Ok(LoraConfig { rank: rank as usize, alpha: alpha as f32, use_rslora: flag("use_rslora"), target_modules })
}

fn write_tensors(adapter: &LoraAdapter, path: &Path) -> Result<()> {
    let mut tensors = Vec::new();
    for (name, tensor) in adapter.parameters() {
        let bytes: Vec<u8> = host(tensor)?.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((format!("{PREFIX}{name}.weight"), tensor.dims().to_vec(), bytes));
    }
    let broken = |error: safetensors::SafeTensorError| ModelError::BadSafetensors {
        path: path.to_path_buf(),
        reason: error.to_string(),
    };
    let mut views = Vec::with_capacity(tensors.len());
    for (name, shape, bytes) in &tensors {
        views.push((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(broken)?));
    }
    // `transformers` refuses files without this entry
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::tests::{busy_adapter, tiny_model};

    #[test]
    fn an_adapter_survives_the_disk_bit_for_bit() {
        let (model, folder) = (tiny_model(), tempfile::tempdir().unwrap());
        let adapter = busy_adapter(&model);
        save(&adapter, folder.path(), "some/base").unwrap();
        let again = load(folder.path(), model.config()).unwrap();
        assert_eq!(again.config(), adapter.config());
        for ((name, a), (same, b)) in adapter.parameters().into_iter().zip(again.parameters()) {
            assert_eq!((name, &*host(a).unwrap()), (same, &*host(b).unwrap()));
        }
        let bytes = fs::read(folder.path().join(WEIGHTS_FILE)).unwrap();
        save(&again, folder.path(), "some/base").unwrap();
        assert!(bytes == fs::read(folder.path().join(WEIGHTS_FILE)).unwrap());
    }

    #[test]
    fn adapters_for_other_models_or_methods_are_refused() {
        let (model, folder) = (tiny_model(), tempfile::tempdir().unwrap());
        save(&busy_adapter(&model), folder.path(), "base").unwrap();
        let wider = ModelConfig { hidden_size: 64, ..model.config().clone() };
        assert!(matches!(load(folder.path(), &wider), Err(ModelError::WrongShape { .. })));
        let deeper = ModelConfig { num_hidden_layers: 3, ..model.config().clone() };
        assert!(matches!(load(folder.path(), &deeper), Err(ModelError::MissingTensor { .. })));
        let shallower = ModelConfig { num_hidden_layers: 1, ..model.config().clone() };
        assert!(matches!(load(folder.path(), &shallower), Err(ModelError::AdapterMismatch { .. })));
        let path = folder.path().join(CONFIG_FILE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"use_dora\": false", "\"use_dora\": true")).unwrap();
        assert!(matches!(
            load(folder.path(), model.config()),
            Err(ModelError::UnsupportedAdapter { key: "use_dora", .. })
        ));
    }
}
