//! Several adapters as one, as `peft`'s `add_weighted_adapter` makes them; and one adapter with fewer ranks.
//!
//! With the change `Δ_i = s_i B_i A_i` of adapter `i` (AdaLoRA: `B diag(e) A`) and its weight `w_i`:
//! - [`Combination::Cat`]: `A = [w_1 s_1 A_1; …]`, `B = [B_1, …]`, so `B A = Σ w_i Δ_i` exactly, of rank `Σ r_i`;
//! - [`Combination::Svd`]: the best approximation of `Σ w_i Δ_i` of a rank, `B = U Σ`, `A = Vᵀ`;
//! - [`Combination::Linear`]: `A = Σ ±√|w_i s_i| A_i`, `B = Σ √|w_i s_i| B_i`, of the same rank, and with cross terms `B_i A_j`:
//!   good only for adapters that began alike.
//!
//! One adapter after the other is the same as both at once, since the base stays as it is and changes add up: [`compose`] is `Cat`
//! with weights 1. DoRA and IA³ multiply, so their changes do not add up: they are refused.
//! The result is plain LoRA with the scale 1 (`alpha = rank`), for the base that all of them were trained on.

use std::collections::BTreeMap;

use super::Module;
use super::adapter::{Adapter, Base};
use super::config::{AdapterConfig, LoraConfig, Method};
use super::module_adapter::ModuleAdapter;
use super::sites::Sites;
use super::svd::{self, Factors};
use crate::error::{ModelError, Result};
use crate::fingerprint::Fingerprint;
use crate::frozen::Quantization;
use crate::ops::{host, tensor};

/// How adapters become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combination {
    /// Matrices are added, each for itself; all must have one rank.
    Linear,
    /// Ranks are put side by side: exact.
    Cat,
    /// The closest change of `rank`, or of the largest rank among the adapters.
    Svd {
        /// Rank of the result.
        rank: Option<usize>,
    },
}

/// An adapter cut to a rank, and what that keeps.
#[derive(Debug, Clone)]
pub struct Truncated {
    /// The closest one of the rank.
    pub adapter: Adapter,
    /// What is kept of the change of each module.
    pub kept: Vec<Kept>,
}

/// What a rank keeps of the change of one module.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Share of the squared Frobenius norm, within 0 and 1: `Σ σ²` of the largest singular values over that of all. Of no change
    /// nothing is lost: 1.
    pub share: f64,
}

/// The change of one module, `scale · B A`.
struct Change {
    a: Vec<f64>,
    b: Vec<f64>,
    rank: usize,
    scale: f64,
}

/// The weighted sum of `adapters` for a model with this description, or with these places. A module that some of them leave alone is
/// changed by the others.
///
/// # Errors
/// [`ModelError::CannotCombine`] without adapters, for DoRA and IA³, for adapters of other models, for unequal ranks where they
/// must be equal, for bases that differ or were stored otherwise, and for a weight that is no number.
pub fn combine(adapters: &[(&Adapter, f32)], how: Combination, model: impl Into<Sites>) -> Result<Adapter> {
    Ok(combined(adapters, how, model.into())?.adapter)
}

/// [`Combination::Svd`] with what it keeps.
///
/// # Errors
/// As [`combine`].
pub fn truncated(adapters: &[(&Adapter, f32)], rank: usize, model: impl Into<Sites>) -> Result<Truncated> {
    combined(adapters, Combination::Svd { rank: Some(rank) }, model.into())
}

fn combined(adapters: &[(&Adapter, f32)], how: Combination, sites: Sites) -> Result<Truncated> {
    let ranks = adapters.iter().map(|(adapter, _)| rank_of(adapter)).collect::<Result<Vec<usize>>>()?;
    let Some(largest) = ranks.iter().copied().max() else { return cannot("none was given", "name at least one") };
    if let Some((_, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
        return cannot(&format!("weight {weight}"), "give a number");
    }
    let rank = match how {
        Combination::Linear if ranks.iter().any(|rank| *rank != largest) => {
            return cannot(&format!("linear with the ranks {ranks:?}"), "choose cat or svd, which take any ranks");
        }
        Combination::Linear => largest,
        Combination::Cat => ranks.iter().sum(),
        Combination::Svd { rank } => rank.unwrap_or(largest),
    };
    let base = common_base(adapters)?;
    if rank == 0 {
        return cannot("rank 0", "choose a rank of 1 or more");
    }
    let mut changes: BTreeMap<String, Vec<(Change, f64)>> = BTreeMap::new();
    for (adapter, weight) in adapters {
        if adapter.num_layers() != sites.layers().len() {
            let reason = format!("{} layers, the model has {}", adapter.num_layers(), sites.layers().len());
            return cannot(&reason, "combine adapters of this base model");
        }
        for (place, module) in adapter.modules() {
            let mut of_layer = sites.layers().get(place.layer).into_iter().flatten();
            if !of_layer.any(|site| site.path == place.path && module.fits(site.shape)) {
                return cannot(&format!("{} has another shape", place.path), "combine adapters of this base model");
            }
            changes.entry(place.path).or_default().push((change(module)?, f64::from(*weight)));
        }
    }
    let is_target = |module: &Module| adapters.iter().any(|(one, _)| one.config().target_modules.contains(module));
    let config = AdapterConfig {
        method: Method::Lora(LoraConfig { rank, alpha: rank as f32, use_rslora: false, use_dora: false }),
        target_modules: sites.modules().iter().copied().filter(is_target).collect(),
    };
    let mut kept = Vec::new();
    let mut made: BTreeMap<String, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    let combined = Adapter::build(config, sites, &BTreeMap::new(), |place, name, shape, _| {
        let (a, b) = made.entry(place.path.clone()).or_insert_with(|| {
            let changes = changes.remove(&place.path).unwrap_or_default();
            match how {
                Combination::Linear => linear(&changes, rank, place.shape),
                Combination::Cat => padded(&cat(&changes, place.shape), rank, place.shape),
                Combination::Svd { .. } => {
                    let factors = closest(&cat(&changes, place.shape), rank, place.shape);
                    kept.push(Kept { path: place.path.clone(), share: share(&factors.singular_values, rank) });
                    (factors.right, factors.left)
                }
            }
        });
        let values = if name == "lora_A.weight" { a } else { b };
        tensor(values.iter().map(|value| *value as f32).collect(), shape)
    })?;
    Ok(Truncated { adapter: combined.with_base(base), kept })
}

/// The base that all were trained on. One that does not say which it was goes with any.
fn common_base(adapters: &[(&Adapter, f32)]) -> Result<Base> {
    let mut quantizations: Vec<Quantization> = adapters.iter().map(|(one, _)| one.base_quantization()).collect();
    let mut fingerprints: Vec<&Fingerprint> = adapters.iter().filter_map(|(one, _)| one.base_fingerprint()).collect();
    quantizations.dedup();
    fingerprints.dedup();
    if let [first, second, ..] = quantizations[..] {
        let reason = format!("they were trained on a base with quantization {} and {}", first.name(), second.name());
        return cannot(&reason, "combine adapters of one quantization");
    }
    if let [first, second, ..] = fingerprints[..] {
        let reason = format!("they were trained on bases with the fingerprints {first} and {second}");
        return cannot(&reason, "combine adapters of one base model");
    }
    let quantization = quantizations.first().copied().unwrap_or_default();
    Ok(Base { quantization, fingerprint: fingerprints.first().copied().cloned() })
}

/// Adapters that are applied one after the other, or all at once: exactly their sum.
///
/// # Errors
/// As [`combine`].
pub fn compose(adapters: &[&Adapter], model: impl Into<Sites>) -> Result<Adapter> {
    let weighted: Vec<(&Adapter, f32)> = adapters.iter().map(|adapter| (*adapter, 1.0)).collect();
    combine(&weighted, Combination::Cat, model)
}

/// The adapter of this rank that is closest to `adapter`.
///
/// # Errors
/// As [`combine`].
pub fn rerank(adapter: &Adapter, rank: usize, model: impl Into<Sites>) -> Result<Adapter> {
    combine(&[(adapter, 1.0)], Combination::Svd { rank: Some(rank) }, model)
}

fn rank_of(adapter: &Adapter) -> Result<usize> {
    match &adapter.config().method {
        Method::Lora(lora) if !lora.use_dora => Ok(lora.rank),
        Method::AdaLora(ada) => Ok(ada.init_r),
        Method::Lora(_) => cannot("a DoRA adapter changes lengths by a factor", "combine LoRA, rsLoRA and AdaLoRA"),
        Method::Ia3(_) => cannot("an IA³ adapter multiplies", "combine LoRA, rsLoRA and AdaLoRA"),
    }
}

fn change(module: &ModuleAdapter) -> Result<Change> {
    let wide =
        |tensor: &candle_core::Tensor| Ok::<_, ModelError>(host(tensor)?.iter().map(|v| f64::from(*v)).collect());
    match module {
        ModuleAdapter::Lora(lora) => {
            Ok(Change { a: wide(&lora.a)?, b: wide(&lora.b)?, rank: lora.a.dim(0)?, scale: f64::from(lora.scale) })
        }
        ModuleAdapter::AdaLora(ada) => {
            let (mut a, e, rank): (Vec<f64>, Vec<f64>, usize) = (wide(&ada.a)?, wide(&ada.e)?, ada.a.dim(0)?);
            let width = ada.a.dim(1)?;
            a.chunks_exact_mut(width).zip(&e).for_each(|(row, e)| row.iter_mut().for_each(|a| *a *= e));
            Ok(Change { a, b: wide(&ada.b)?, rank, scale: f64::from(ada.scale) })
        }
        ModuleAdapter::Dora(_) | ModuleAdapter::Ia3(_) => {
            cannot("a change that is no sum", "combine LoRA, rsLoRA and AdaLoRA")
        }
    }
}

/// `A` and `B`; a change of fewer ranks (AdaLoRA) fills the first.
fn linear(changes: &[(Change, f64)], rank: usize, [out, width]: [usize; 2]) -> (Vec<f64>, Vec<f64>) {
    let (mut a, mut b) = (vec![0.0; rank * width], vec![0.0; out * rank]);
    for (change, weight) in changes {
        let scale = weight * change.scale;
        let root = scale.abs().sqrt();
        // the sign on one side only, else it would cancel
        a.iter_mut().zip(&change.a).for_each(|(sum, a)| *sum += root.copysign(scale) * a);
        for (row, from) in b.chunks_exact_mut(rank).zip(change.b.chunks_exact(change.rank.max(1))) {
            row.iter_mut().zip(from).for_each(|(sum, b)| *sum += root * b);
        }
    }
    (a, b)
}

/// All ranks side by side, weights and scales in `A`.
fn cat(changes: &[(Change, f64)], [out, _]: [usize; 2]) -> Change {
    let rank: usize = changes.iter().map(|(change, _)| change.rank).sum();
    let (mut a, mut b) = (Vec::new(), vec![0.0; out * rank]);
    let mut first = 0;
    for (change, weight) in changes {
        a.extend(change.a.iter().map(|value| value * weight * change.scale));
        for (row, from) in b.chunks_exact_mut(rank.max(1)).zip(change.b.chunks_exact(change.rank.max(1))) {
            row[first..first + change.rank].copy_from_slice(from);
        }
        first += change.rank;
    }
    Change { a, b, rank, scale: 1.0 }
}

fn padded(change: &Change, rank: usize, [out, width]: [usize; 2]) -> (Vec<f64>, Vec<f64>) {
    let (mut a, mut b) = (change.a.clone(), vec![0.0; out * rank]);
    a.resize(rank * width, 0.0);
    for (row, from) in b.chunks_exact_mut(rank).zip(change.b.chunks_exact(change.rank.max(1))) {
        row[..change.rank].copy_from_slice(from);
    }
    (a, b)
}

fn closest(change: &Change, rank: usize, [out, width]: [usize; 2]) -> Factors {
    // AdaLoRA may have taken every rank away, and then nothing says how large the matrix is
    if change.rank == 0 {
        return Factors { left: vec![0.0; out * rank], right: vec![0.0; rank * width], singular_values: Vec::new() };
    }
    svd::truncated(&change.b, &change.a, change.rank, rank)
}

/// Share of the squared norm that the largest `rank` values have.
fn share(singular_values: &[f64], rank: usize) -> f64 {
    let squared = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
    let all = squared(singular_values);
    if all > 0.0 { squared(&singular_values[..rank.min(singular_values.len())]) / all } else { 1.0 }
}

fn cannot<T>(reason: &str, remedy: &'static str) -> Result<T> {
    Err(ModelError::CannotCombine { reason: reason.to_owned(), remedy })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;
    use crate::adapters::testing::every_method;
    use crate::decoder::Decoder;
    use crate::decoder::tests::{busy_adapter, quantised_model, tiny_model};
    use crate::ops::testing::random;

    fn refused(adapters: &[(&Adapter, f32)], how: Combination) -> String {
        combine(adapters, how, tiny_model().config()).unwrap_err().to_string()
    }

    #[test]
    fn a_composed_adapter_is_the_sum_of_its_parts_and_a_reranked_one_close_to_its_whole() {
        let model = tiny_model();
        let every = every_method(&model);
        let named = |name: &str| &every.iter().find(|(other, _)| *other == name).unwrap().1;
        let (lora, rslora, adalora) = (named("lora"), named("rslora"), named("adalora"));
        let merged = |adapters: &[&Adapter]| {
            let mut weight = vec![0.0f32; 32 * 32];
            for (place, module) in adapters.iter().flat_map(|adapter| adapter.modules()) {
                if place.path == "model.layers.1.self_attn.q_proj" {
                    module.merge_into(&mut weight, 32).unwrap();
                }
            }
            weight
        };
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        let composed = compose(&[lora, rslora, adalora], model.config()).unwrap();
        let wanted = merged(&[lora, rslora, adalora]);
        assert!(distance(&merged(&[&composed]), &wanted) < 1e-5);
        model.logits(&[1, 2, 3], Some(&composed)).unwrap();
        let mut before = f32::INFINITY;
        for rank in [1, 2, 4, 10] {
            let reranked = rerank(&composed, rank, model.config()).unwrap();
            let lost = distance(&merged(&[&reranked]), &wanted);
            assert!(lost < before, "rank {rank}: {lost} {before}");
            before = lost;
        }
        assert!(before < 1e-5, "nothing is lost at full rank: {before}");
    }

    #[test]
    fn what_a_rank_keeps_is_the_share_of_the_squared_norm_that_is_left() {
        let model = tiny_model();
        let adapter = busy_adapter(&model);
        let squared_norm = |adapter: &Adapter, path: &str| {
            let (place, module) = adapter.modules().find(|(place, _)| place.path == path).unwrap();
            let mut change = vec![0.0f32; place.shape[0] * place.shape[1]];
            module.merge_into(&mut change, place.shape[1]).unwrap();
            change.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>()
        };
        let full = rank_of(&adapter).unwrap();
        for rank in 1..=full {
            let cut = truncated(&[(&adapter, 1.0)], rank, model.config()).unwrap();
            assert_eq!(cut.kept.len(), adapter.modules().count());
            for Kept { path, share } in &cut.kept {
                // what is cut off is orthogonal to what is kept
                let wanted = squared_norm(&cut.adapter, path) / squared_norm(&adapter, path);
                assert!((share - wanted).abs() < 1e-5, "rank {rank} of {path}: {share} {wanted}");
                assert_eq!(*share == 1.0, rank == full, "rank {rank} of {path}: {share}");
            }
        }
    }

    #[test]
    fn a_module_that_lost_every_rank_is_reranked_to_no_change() {
        let model = tiny_model();
        let mut adapter = every_method(&model).into_iter().find(|(name, _)| *name == "adalora").unwrap().1;
        let names: Vec<String> = adapter.parameters().into_iter().map(|(name, _)| name).collect();
        let of_up = |index: usize| names[index] == "model.layers.1.mlp.up_proj.lora_E";
        adapter
            .update(|index, values| {
                if of_up(index) {
                    values.fill(0.0)
                }
            })
            .unwrap();
        let pruned = adapter.pruned().unwrap();
        let cut = truncated(&[(&pruned, 1.0)], 1, model.config()).unwrap();
        let of_up = |kept: &&Kept| kept.path == "model.layers.1.mlp.up_proj";
        assert_eq!(cut.kept.iter().find(of_up).unwrap().share, 1.0);
        let zeros = cut.adapter.parameters().into_iter().filter(|(name, _)| name.starts_with("model.layers.1.mlp.up"));
        for (name, tensor) in zeros {
            assert!(host(tensor).unwrap().iter().all(|value| *value == 0.0), "{name}");
        }
    }

    #[test]
    fn combined_adapters_know_their_base_and_those_of_two_bases_are_refused() {
        let nf4 = quantised_model(ModelConfig::tiny(), Quantization::Nf4);
        let (plain, quantised) = (busy_adapter(&tiny_model()), busy_adapter(&nf4));
        for how in [Combination::Cat, Combination::Linear, Combination::Svd { rank: None }] {
            let combined = combine(&[(&quantised, 0.5), (&quantised, 2.0)], how, nf4.config()).unwrap();
            assert_eq!(combined.base_quantization(), Quantization::Nf4);
            assert_eq!(combined.base_fingerprint(), Some(nf4.fingerprint()));
        }
        assert_eq!(rerank(&quantised, 2, nf4.config()).unwrap().base_quantization(), Quantization::Nf4);
        let error = refused(&[(&quantised, 1.0), (&plain, 1.0)], Combination::Cat);
        assert!(error.contains("quantization nf4 and none") && error.contains("of one quantization"), "{error}");

        let other =
            Decoder::from_source(ModelConfig::tiny(), Quantization::None, &|_, shape| Ok(random(3, shape, 0.3)))
                .unwrap();
        let error = refused(&[(&plain, 1.0), (&busy_adapter(&other), 1.0)], Combination::Cat);
        assert!(error.contains(&other.fingerprint().to_string()) && error.contains("of one base model"), "{error}");
        let unknown = plain.clone().with_base(Base::default());
        let combined = combine(&[(&unknown, 1.0), (&plain, 1.0)], Combination::Cat, other.config()).unwrap();
        assert_eq!(combined.base_fingerprint(), plain.base_fingerprint());
    }

    #[test]
    fn what_does_not_add_up_is_refused_with_a_remedy() {
        let model = tiny_model();
        let every = every_method(&model);
        let named = |name: &str| &every.iter().find(|(other, _)| *other == name).unwrap().1;
        let lora = named("lora");
        assert!(refused(&[], Combination::Cat).contains("none was given"));
        for name in ["dora", "ia3"] {
            assert!(refused(&[(lora, 1.0), (named(name), 1.0)], Combination::Cat).contains("combine LoRA"), "{name}");
        }
        assert!(refused(&[(lora, 1.0), (named("adalora"), 1.0)], Combination::Linear).contains("[3, 4]"));
        assert!(refused(&[(lora, f32::NAN)], Combination::Cat).contains("weight NaN"));
        assert!(refused(&[(lora, 1.0)], Combination::Svd { rank: Some(0) }).contains("rank 0"));
        let deeper = ModelConfig { num_hidden_layers: 3, ..model.config().clone() };
        assert!(compose(&[lora], &deeper).unwrap_err().to_string().contains("2 layers, the model has 3"));
        let wider = ModelConfig { hidden_size: 64, ..model.config().clone() };
        assert!(compose(&[lora], &wider).unwrap_err().to_string().contains("another shape"));
    }
}
