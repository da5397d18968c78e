//! Where adapters lie, told by their own tensors: for work that takes no base model.
//!
//! `A` `[rank, in]` and `B` `[out, rank]` say the size of the matrix that they change. How many layers the base has is what they
//! say together: each module that carries an adapter carries it in every layer, as everywhere here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use super::{PREFIX, WEIGHTS_FILE};
use crate::adapters::{Module, Place, Sites};
use crate::error::{ModelError, Result};

/// By layer and projection, in the order of both.
type Found = BTreeMap<(usize, Module), Place>;

/// The places of all these adapters together.
///
/// # Errors
/// [`ModelError::CannotCombine`] when they cannot be of one decoder.
pub(super) fn of_folders(folders: &[PathBuf]) -> Result<Sites> {
    let mut all = Found::new();
    let mut first_opt: Option<(&Path, usize)> = None;
    for folder in folders {
        let (found, num_layers) = of_folder(folder)?;
        let (first, wanted) = *first_opt.get_or_insert((folder.as_path(), num_layers));
        if num_layers != wanted {
            return other_bases(format!(
                "{} has {wanted} layers, {} has {num_layers}",
                first.display(),
                folder.display()
            ));
        }
        for (key, place) in found {
            let (path, shape) = (place.path.clone(), place.shape);
            let known = all.entry(key).or_insert(place);
            if known.shape != shape {
                let folder = folder.display();
                return other_bases(format!("{path} of {folder} has shape {shape:?}, of another {:?}", known.shape));
            }
        }
    }
    let Some((_, num_layers)) = first_opt else { return cannot("none was given".to_owned(), "name at least one") };
    let mut layers = vec![Vec::new(); num_layers];
    for ((layer, _), place) in all {
        layers[layer].push(place);
    }
    let sites = Sites::of_places(layers);
    let architectures = [&Module::LLAMA[..], &Module::PHI3[..], &Module::GPT2[..]];
    if !architectures.iter().any(|has| sites.modules().iter().all(|module| has.contains(module))) {
        let names: Vec<&str> = sites.modules().iter().map(|module| module.name()).collect();
        return other_bases(format!("no architecture has all of {}", names.join(" ")));
    }
    Ok(sites)
}

/// The places of one adapter, and in how many layers it has them.
fn of_folder(folder: &Path) -> Result<(Found, usize)> {
    let path = folder.join(WEIGHTS_FILE);
    let bytes = fs::read(&path).map_err(ModelError::io(&path))?;
    let (_, header) = SafeTensors::read_metadata(&bytes)
        .map_err(|error| ModelError::BadSafetensors { path: path.clone(), reason: error.to_string() })?;
    let mut sizes: BTreeMap<(usize, Module), [Option<usize>; 2]> = BTreeMap::new();
    for name in header.offset_keys() {
        let parts = name.strip_prefix(PREFIX).and_then(|name| name.rsplit_once(".lora_"));
        let Some((key, part)) = parts.and_then(|(path, part)| Some((place_of(path)?, part))) else {
            let reason = format!("tensor {name} of {} lies at no projection of a decoder", folder.display());
            return cannot(reason, "combine LoRA, rsLoRA and AdaLoRA of decoders");
        };
        let [out, width] = sizes.entry(key).or_default();
        let shape = header.info(&name).map(|info| info.shape.as_slice()).unwrap_or_default();
        // LoRA's names end with `.weight`, AdaLoRA's do not
        match (part.trim_end_matches(".weight"), shape) {
            ("A", [_, size]) => *width = Some(*size),
            ("B", [size, _]) => *out = Some(*size),
            _ => {} // whether the others fit is seen when they are read
        }
    }
    let num_layers = sizes.last_key_value().map_or(0, |((layer, _), _)| layer.saturating_add(1));
    let of_first_layer = sizes.keys().filter(|(layer, _)| *layer == 0).count();
    let mut found = Found::new();
    for ((layer, module), size) in &sizes {
        if let [Some(out), Some(width)] = *size {
            let place = Place { layer: *layer, module: *module, path: module.path_in(*layer), shape: [out, width] };
            found.insert((*layer, *module), place);
        }
    }
    // as many places as a full grid has: a number too large for any model is not reserved for
    let is_whole = found.keys().all(|(_, module)| found.contains_key(&(0, *module)))
        && found.len() == num_layers.saturating_mul(of_first_layer);
    if found.is_empty() || !is_whole {
        let count = found.len();
        let reason = format!("{} has {count} modules in {num_layers} layers, not the same in each", folder.display());
        return cannot(reason, "fetch the adapter again");
    }
    Ok((found, num_layers))
}

/// Layer and projection of `model.layers.0.self_attn.q_proj`.
fn place_of(path: &str) -> Option<(usize, Module)> {
    let below = path.strip_prefix("model.layers.").or_else(|| path.strip_prefix("transformer.h."))?;
    let layer: usize = below.split('.').next()?.parse().ok()?;
    Module::ALL.into_iter().find(|module| module.path_in(layer) == path).map(|module| (layer, module))
}

fn other_bases<T>(reason: String) -> Result<T> {
    cannot(reason, "combine adapters of one base model")
}

fn cannot<T>(reason: String, remedy: &'static str) -> Result<T> {
    Err(ModelError::CannotCombine { reason, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;
    use crate::adapters::Adapter;
    use crate::adapters::testing::every_method;
    use crate::config::Layout;
    use crate::decoder::tests::{model, tiny_model, variants};
    use crate::peft::save;

    fn saved(adapters: &[&Adapter]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let names = (0..adapters.len()).map(|index| folder.path().join(index.to_string()));
        let folders: Vec<PathBuf> = names.collect();
        adapters.iter().zip(&folders).for_each(|(adapter, folder)| save(adapter, folder, "base").unwrap());
        (folder, folders)
    }

    #[test]
    fn the_places_of_every_architecture_are_those_of_its_base() {
        for (variant, config) in variants() {
            let model = model(config);
            let wanted = Sites::from(model.config());
            for (method, adapter) in every_method(&model).into_iter().filter(|(method, _)| *method != "ia3") {
                let (_folder, folders) = saved(&[&adapter]);
                let places = of_folders(&folders).unwrap();
                let carried = |place: &&Place| adapter.config().target_modules.contains(&place.module);
                for (found, wanted) in places.layers().iter().zip(wanted.layers()) {
                    let wanted: Vec<&Place> = wanted.iter().filter(carried).collect();
                    assert_eq!(found.iter().collect::<Vec<_>>(), wanted, "{variant} {method}");
                }
                assert_eq!(places.layers().len(), wanted.layers().len(), "{variant} {method}");
            }
        }
    }

    #[test]
    fn adapters_of_other_shapes_depths_and_architectures_are_refused() {
        let tiny = tiny_model();
        let of = |config: ModelConfig| every_method(&model(config)).remove(0).1;
        let lora = of(ModelConfig::tiny());
        let every = every_method(&tiny);
        let ia3 = &every.iter().find(|(method, _)| *method == "ia3").unwrap().1;
        let deeper = of(ModelConfig { num_hidden_layers: 3, ..ModelConfig::tiny() });
        let wider = of(ModelConfig { intermediate_size: 80, ..ModelConfig::tiny() });
        let phi3 = of(ModelConfig { layout: Layout::Phi3, ..ModelConfig::tiny() });
        for (adapters, wanted) in [
            (vec![&lora, &deeper], "has 3"),
            (vec![&lora, &wider], "[80, "),
            (vec![&lora, &phi3], "no architecture has all of"),
            (vec![&lora, ia3], "ia3_l"),
            (vec![], "none was given"),
        ] {
            let (_folder, folders) = saved(&adapters);
            let error = of_folders(&folders).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains("; "), "{wanted}: {error}");
        }
    }

    #[test]
    fn a_layer_that_lacks_a_module_is_no_whole_adapter() {
        use safetensors::{Dtype, tensor::TensorView};
        let folder = tempfile::tempdir().unwrap();
        let bytes = [0u8; 8];
        let write = |places: &[&str]| {
            let view = |shape| TensorView::new(Dtype::F32, shape, &bytes).unwrap();
            let tensors = places.iter().flat_map(|place| {
                let name = format!("{PREFIX}model.layers.{place}");
                [
                    (format!("{name}.lora_A.weight"), view(vec![1, 2])),
                    (format!("{name}.lora_B.weight"), view(vec![2, 1])),
                ]
            });
            safetensors::serialize_to_file(tensors, None, &folder.path().join(WEIGHTS_FILE)).unwrap();
            of_folder(folder.path()).map(|(found, num_layers)| (found.len(), num_layers))
        };
        assert_eq!(write(&["0.self_attn.q_proj", "1.self_attn.q_proj"]).unwrap(), (2, 2));
        for places in [
            &["0.self_attn.q_proj", "2.self_attn.q_proj"][..],
            &["0.self_attn.q_proj", "1.self_attn.k_proj"],
            &["1.self_attn.q_proj"],
            &["0.self_attn.q_proj", "18446744073709551615.self_attn.q_proj"],
            &[],
        ] {
            let error = write(places).unwrap_err().to_string();
            assert!(error.contains("not the same in each; fetch the adapter again"), "{places:?}: {error}");
        }
    }
}
