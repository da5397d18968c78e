//! Adapters on disk, in the layout of Python `peft`: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Tensor names: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`; the last parts and the shapes are in the file
//! of each method under [`crate::adapters`]. All values are f32. Beside them lie files by which our own tools put the adapter on the
//! same base again, and which Python does not look at: `base_fingerprint.json` says which base it was trained on, and
//! `base_quantization.json` how that was stored, when not as f32.

mod places;
mod settings;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::adapters::{Adapter, Base, Sites};
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::fingerprint::Fingerprint;
use crate::frozen::Quantization;
use crate::ops::host;
use crate::weights::Weights;
use crate::whole_file;

/// File with the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File with the tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// How the base was stored that the adapter was trained on; absent when as f32.
pub const QUANTIZATION_FILE: &str = "base_quantization.json";
/// Which base the adapter was trained on; absent from adapters that were made elsewhere.
pub const FINGERPRINT_FILE: &str = "base_fingerprint.json";

const PREFIX: &str = "base_model.model.";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BaseQuantization {
    base_quantization: Quantization,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BaseFingerprint {
    base_fingerprint: Fingerprint,
}

/// What an adapter says of itself beside its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The base model, as `adapter_config.json` names it; empty when it names none.
    pub base_model: String,
    /// Which base that was, where it is known.
    pub base_fingerprint: Option<Fingerprint>,
    /// How that was stored.
    pub base_quantization: Quantization,
    /// The method where it multiplies, so that its change cannot be added to another: DoRA or IA³.
    pub multiplies: Option<&'static str>,
}

/// Reads the small files of an adapter.
pub fn label(folder: &Path) -> Result<Label> {
    let settings = settings_of(folder)?;
    let multiplies = match settings.get("peft_type").and_then(Value::as_str) {
        Some("IA3") => Some("IA³"),
        _ => settings.get("use_dora").and_then(Value::as_bool).unwrap_or(false).then_some("DoRA"),
    };
    Ok(Label {
        base_model: base_model(&settings),
        base_fingerprint: base_fingerprint(folder)?,
        base_quantization: base_quantization(folder)?,
        multiplies,
    })
}

/// Writes the files into `folder`, which is created. `base_model` is what `peft` shows as `base_model_name_or_path`.
/// The same adapter gives the same bytes. When it fails, no file is half written; the large file comes first, so that a disk that has
/// no room for it keeps the adapter that was there.
pub fn save(adapter: &Adapter, folder: &Path, base_model: &str) -> Result<()> {
    fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
    let path = folder.join(CONFIG_FILE);
    let settings = settings::write(adapter, base_model);
    let text = serde_json::to_string_pretty(&settings).map_err(ModelError::json(&path))?;
    write_tensors(adapter, &folder.join(WEIGHTS_FILE))?;
    let base_quantization = adapter.base_quantization();
    let quantised = (base_quantization != Quantization::None).then_some(BaseQuantization { base_quantization });
    write_or_remove(quantised, &folder.join(QUANTIZATION_FILE))?;
    let fingerprint = adapter.base_fingerprint().cloned();
    let known = fingerprint.map(|base_fingerprint| BaseFingerprint { base_fingerprint });
    write_or_remove(known, &folder.join(FINGERPRINT_FILE))?;
    whole_file::write(&path, (text + "\n").as_bytes()).map_err(ModelError::io(&path))
}

/// How the base was stored that the adapter in `folder` was trained on. Whoever loads base and adapter asks this first.
pub fn base_quantization(folder: &Path) -> Result<Quantization> {
    let stored: Option<BaseQuantization> = read_opt(&folder.join(QUANTIZATION_FILE))?;
    Ok(stored.map_or(Quantization::None, |stored| stored.base_quantization))
}

fn base_fingerprint(folder: &Path) -> Result<Option<Fingerprint>> {
    let stored: Option<BaseFingerprint> = read_opt(&folder.join(FINGERPRINT_FILE))?;
    Ok(stored.map(|stored| stored.base_fingerprint))
}

/// Writes the file, or removes that of another adapter.
fn write_or_remove(value_opt: Option<impl Serialize>, path: &Path) -> Result<()> {
    let Some(value) = value_opt else {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(ModelError::io(path)(error)),
            _ => Ok(()),
        };
    };
    let text = serde_json::to_string(&value).map_err(ModelError::json(path))?;
    whole_file::write(path, (text + "\n").as_bytes()).map_err(ModelError::io(path))
}

fn read_opt<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(path).map_err(ModelError::io(path))?;
    serde_json::from_str(&text).map(Some).map_err(ModelError::json(path))
}

/// Reads the files and checks them against the shapes of the model that the adapter is to sit on: its [`crate::ModelConfig`] or
/// [`crate::EncoderDecoderConfig`].
///
/// # Errors
/// [`ModelError::ForeignAdapter`] when it has other shapes.
pub fn load(folder: &Path, model: impl Into<Sites>) -> Result<Adapter> {
    let sites = model.into();
    let settings = settings_of(folder)?;
    let settings::Stored { config, ranks } = settings::read(&settings, &sites)?;
    let weights = Weights::open_files(folder, vec![folder.join(WEIGHTS_FILE)])?;
    let adapter = Adapter::build(config, sites, &ranks, |place, name, shape, _| {
        weights.get(&format!("{PREFIX}{}.{name}", place.path), shape)
    });
    let adapter = adapter.map_err(|error| match error {
        ModelError::WrongShape { name, wanted, found } => foreign(
            folder,
            &settings,
            format!("tensor {name} has shape {found:?}, for this model it would have {wanted:?}"),
        ),
        ModelError::MissingTensor { name, wanted, .. } => {
            foreign(folder, &settings, format!("it has no tensor {name}, which this model wants with shape {wanted:?}"))
        }
        error => error,
    })?;
    let known: BTreeSet<String> = adapter.parameters().iter().map(|(name, _)| format!("{PREFIX}{name}")).collect();
    if let Some(surplus) = weights.names().find(|name| !known.contains(*name)) {
        return Err(foreign(
            folder,
            &settings,
            format!("this model and the method have no place for tensor {surplus}"),
        ));
    }
    Ok(adapter.with_base(Base { quantization: base_quantization(folder)?, fingerprint: base_fingerprint(folder)? }))
}

/// The same for adapters of one decoder which need not be there: what their tensors lie at are its places, of which there may be
/// more. Enough to combine them, and to write the result.
///
/// # Errors
/// [`ModelError::CannotCombine`] when their layers or shapes say that they are of different models, or for an IA³ adapter, whose
/// tensors do not say the shapes.
pub fn load_together(folders: &[PathBuf]) -> Result<(Sites, Vec<Adapter>)> {
    let sites = places::of_folders(folders)?;
    let adapters = folders.iter().map(|folder| load(folder, sites.clone())).collect::<Result<_>>()?;
    Ok((sites, adapters))
}

/// The same for the model itself, which must be the one that the adapter was trained on, as far as that is known. How it is stored
/// is left to the caller: some want another form.
///
/// # Errors
/// [`ModelError::ForeignAdapter`] when it is another model, also one of the same shapes.
pub fn load_onto(folder: &Path, model: &Decoder) -> Result<Adapter> {
    let adapter = load(folder, model.config())?;
    model.check_adapter(Some(&adapter))?;
    match adapter.base_fingerprint().filter(|wanted| *wanted != model.fingerprint()) {
        None => Ok(adapter),
        Some(wanted) => {
            let found = model.fingerprint();
            let reason = format!("it was trained on weights with the fingerprint {wanted}, this model's have {found}");
            Err(foreign(folder, &settings_of(folder)?, reason))
        }
    }
}

fn settings_of(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join(CONFIG_FILE);
    let text = fs::read_to_string(&path).map_err(ModelError::io(&path))?;
    serde_json::from_str(&text).map_err(ModelError::json(&path))
}

fn foreign(folder: &Path, settings: &Map<String, Value>, reason: String) -> ModelError {
    ModelError::ForeignAdapter { adapter: PathBuf::from(folder), base: base_model(settings), reason }
}

fn base_model(settings: &Map<String, Value>) -> String {
    settings.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn write_tensors(adapter: &Adapter, path: &Path) -> Result<()> {
    let mut tensors = Vec::new();
    for (name, tensor) in adapter.parameters() {
        let bytes: Vec<u8> = host(tensor)?.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((format!("{PREFIX}{name}"), tensor.dims().to_vec(), bytes));
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
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(broken)?;
    whole_file::write(path, &bytes).map_err(ModelError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;
    use crate::adapters::testing::{every_config, every_method};
    use crate::decoder::tests::{busy_adapter, quantised_model, tiny_model};
    use crate::ops::testing::random;

    fn same(a: &Adapter, b: &Adapter) {
        assert_eq!(a.config(), b.config());
        for ((name, a), (same, b)) in a.parameters().into_iter().zip(b.parameters()) {
            assert_eq!((name, a.dims(), &*host(a).unwrap()), (same, b.dims(), &*host(b).unwrap()));
        }
    }

    #[test]
    fn an_adapter_of_any_method_survives_the_disk_bit_for_bit() {
        let model = tiny_model();
        for (_, adapter) in every_method(&model) {
            let folder = tempfile::tempdir().unwrap();
            save(&adapter, folder.path(), "some/base").unwrap();
            let again = load(folder.path(), model.config()).unwrap();
            same(&again, &adapter);
            let bytes = fs::read(folder.path().join(WEIGHTS_FILE)).unwrap();
            save(&again, folder.path(), "some/base").unwrap();
            assert!(bytes == fs::read(folder.path().join(WEIGHTS_FILE)).unwrap());
        }
    }

    #[test]
    fn the_quantization_of_the_base_travels_with_the_adapter() {
        let (model, folder) = (quantised_model(ModelConfig::tiny(), Quantization::Nf4), tempfile::tempdir().unwrap());
        for (method, config) in every_config(model.config().modules()) {
            let adapter = Adapter::new(config, &model, 1).unwrap();
            save(&adapter.pruned().unwrap().snapshot().unwrap(), folder.path(), "base").unwrap();
            assert_eq!(base_quantization(folder.path()).unwrap(), Quantization::Nf4, "{method}");
            assert_eq!(load(folder.path(), model.config()).unwrap().base_quantization(), Quantization::Nf4);
        }
        save(&busy_adapter(&tiny_model()), folder.path(), "base").unwrap();
        assert_eq!(base_quantization(folder.path()).unwrap(), Quantization::None, "no file of another adapter is left");
        fs::write(folder.path().join(QUANTIZATION_FILE), r#"{"base_quantization": "nf3"}"#).unwrap();
        let text = base_quantization(folder.path()).unwrap_err().to_string();
        assert!(text.contains("nf3") && text.contains("q4_k"), "{text}");
    }

    #[test]
    fn pruned_ranks_survive_the_disk() {
        let (model, folder) = (tiny_model(), tempfile::tempdir().unwrap());
        let mut adapter = every_method(&model).into_iter().find(|(name, _)| *name == "adalora").unwrap().1;
        let names: Vec<String> = adapter.parameters().into_iter().map(|(name, _)| name).collect();
        adapter
            .update(|index, values| {
                // one module loses one rank, one loses all, the others none
                match names[index].as_str() {
                    "model.layers.0.self_attn.q_proj.lora_E" => values[1] = 0.0,
                    "model.layers.1.mlp.up_proj.lora_E" => values.fill(0.0),
                    _ => {}
                }
            })
            .unwrap();
        let pruned = adapter.pruned().unwrap();
        assert!(pruned.num_parameters() < adapter.num_parameters());
        save(&pruned, folder.path(), "base").unwrap();
        let again = load(folder.path(), model.config()).unwrap();
        same(&again, &pruned);
        let logits = |adapter| model.logits(&[3, 1, 4, 1, 5], Some(adapter)).unwrap().to_vec2::<f32>().unwrap();
        for (a, b) in logits(&adapter).concat().iter().zip(logits(&again).concat()) {
            assert!((a - b).abs() < 1e-5);
        }
    }

    #[test]
    fn adapters_are_read_together_without_their_base_as_with_it() {
        let (model, folder) = (tiny_model(), tempfile::tempdir().unwrap());
        let every = every_method(&model);
        let named = |name: &str| &every.iter().find(|(other, _)| *other == name).unwrap().1;
        let names = ["lora", "rslora", "adalora", "dora"];
        let folders: Vec<PathBuf> = names.iter().map(|name| folder.path().join(name)).collect();
        for (name, folder) in names.iter().zip(&folders) {
            save(named(name), folder, "some/base").unwrap();
        }
        let (sites, together) = load_together(&folders).unwrap();
        assert_eq!(sites, Sites::from(model.config()), "together they lie at every place");
        for ((name, folder), adapter) in names.iter().zip(&folders).zip(&together) {
            same(adapter, named(name));
            assert_eq!(adapter.base_fingerprint(), Some(model.fingerprint()));
            let wanted = Label {
                base_model: "some/base".to_owned(),
                base_fingerprint: Some(model.fingerprint().clone()),
                base_quantization: Quantization::None,
                multiplies: (*name == "dora").then_some("DoRA"),
            };
            assert_eq!(label(folder).unwrap(), wanted, "{name}");
        }
        save(named("ia3"), &folders[0], "some/base").unwrap();
        assert_eq!(label(&folders[0]).unwrap().multiplies, Some("IA³"));
    }

    #[test]
    fn adapters_for_other_models_are_refused() {
        let (model, folder) = (tiny_model(), tempfile::tempdir().unwrap());
        save(&busy_adapter(&model), folder.path(), "some/base").unwrap();
        let wider = ModelConfig { hidden_size: 64, ..model.config().clone() };
        let deeper = ModelConfig { num_hidden_layers: 3, ..model.config().clone() };
        let shallower = ModelConfig { num_hidden_layers: 1, ..model.config().clone() };
        for (other, found) in [(wider, "has shape"), (deeper, "it has no tensor"), (shallower, "have no place")] {
            refused(load(folder.path(), &other), &[found, &folder.path().display().to_string()]);
        }
    }

    /// Refused as the adapter of another base, with these words and the remedy.
    fn refused(result: Result<Adapter>, wanted: &[&str]) {
        let error = result.unwrap_err();
        assert!(matches!(error, ModelError::ForeignAdapter { .. }), "{error:?}");
        let remedy = "load the base model that adapter_config.json names (\"some/base\")";
        for wanted in wanted.iter().chain([&remedy]) {
            assert!(error.to_string().contains(*wanted), "{wanted}: {error}");
        }
    }

    #[test]
    fn an_adapter_of_another_base_of_the_same_shape_is_recognised_by_its_fingerprint() {
        let (model, folder) = (tiny_model(), tempfile::tempdir().unwrap());
        save(&busy_adapter(&model), folder.path(), "some/base").unwrap();
        let loaded = load_onto(folder.path(), &model).unwrap();
        assert_eq!(loaded.base_fingerprint(), Some(model.fingerprint()));
        load_onto(folder.path(), &quantised_model(ModelConfig::tiny(), Quantization::Nf4)).unwrap();
        let other =
            Decoder::from_source(ModelConfig::tiny(), Quantization::None, &|_, shape| Ok(random(3, shape, 0.3)))
                .unwrap();
        let prints = [&model, &other].map(|model| model.fingerprint().to_string());
        refused(load_onto(folder.path(), &other), &[prints[0].as_str(), prints[1].as_str()]);
        // one that was made elsewhere does not say
        fs::remove_file(folder.path().join(FINGERPRINT_FILE)).unwrap();
        let unknown = load_onto(folder.path(), &other).unwrap();
        assert_eq!(unknown.base_fingerprint(), None);
        save(&busy_adapter(&model), folder.path(), "some/base").unwrap();
        save(&unknown, folder.path(), "some/base").unwrap();
        assert!(!folder.path().join(FINGERPRINT_FILE).exists(), "no file of another adapter is left");
    }
}
