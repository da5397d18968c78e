//! AdaLoRA's budget (Zhang et al. 2023, section 3): which ranks stay alive, step by step.
//!
//! After every optimizer step each value gets `I = |p · g|` (`p` after the update, `g` the clipped gradient of the step), its
//! smoothed sensitivity `Ī ← β₁ Ī + (1 − β₁) I` and uncertainty `Ū ← β₂ Ū + (1 − β₂) |I − Ī|`. The score of rank `k` of a module
//! adds `Ī Ū` of `e_k` and its mean over row `k` of `A` and column `k` of `B`. The budget is the initial one for `tinit` steps,
//! then `target + (initial − target) · (1 − (t − tinit) / (total − tfinal − tinit))³`, and every `deltaT` steps the values `e` of
//! all ranks that score no more than the threshold are set to zero. At `total − tfinal` steps the ranks are fixed.
//! Steps count from 1, so that the last allocation happens even with `tfinal = 0`. Order and precision are those of `peft`'s
//! `RankAllocator`.

use super::adapter::Adapter;
use super::config::AdaLoraConfig;
use super::module_adapter::ModuleAdapter;
use crate::error::{ModelError, Result};
use crate::ops::host;

/// Parameters of one module: `A`, `B`, `e`.
const PER_MODULE: usize = 3;

/// The state of the allocation; everything that a checkpoint must keep is public.
#[derive(Debug, Clone, PartialEq)]
pub struct RankAllocator {
    config: AdaLoraConfig,
    /// `Ī` of every tensor in the order of [`Adapter::parameters`]; empty before the first step and once the ranks are fixed.
    pub sensitivity: Vec<Vec<f32>>,
    /// `Ū` likewise.
    pub uncertainty: Vec<Vec<f32>>,
    /// For each module which ranks are alive, from the last allocation; empty before the first.
    pub alive: Vec<Vec<bool>>,
}

impl RankAllocator {
    /// Before the first step; `None` when the adapter's method has no budget.
    #[must_use]
    pub fn new(adapter: &Adapter) -> Option<Self> {
        let config = adapter.config().adalora()?.clone();
        Some(Self { config, sensitivity: Vec::new(), uncertainty: Vec::new(), alive: Vec::new() })
    }

    /// To be called after the optimizer's update number `step` (counted from 1) with the gradients it used, in the order of
    /// [`Adapter::parameters`].
    pub fn after_step(&mut self, step: usize, adapter: &mut Adapter, gradients: &[Vec<f32>]) -> Result<()> {
        let last = self.config.total_step.saturating_sub(self.config.tfinal);
        if step < last {
            self.measure(adapter, gradients)?;
            if step > self.config.tinit && step.is_multiple_of(self.config.delta_t) {
                self.allocate(step, adapter)?;
                self.mask(adapter)?;
            }
        } else {
            if step == last {
                self.allocate(step, adapter)?;
                (self.sensitivity, self.uncertainty) = (Vec::new(), Vec::new());
            }
            self.mask(adapter)?;
        }
        Ok(())
    }

    /// Ranks that may be alive after `step`, of all modules together, from `initial` down to `target`.
    fn budget(&self, step: usize, initial: usize, target: usize) -> usize {
        let (tinit, tfinal, total) = (self.config.tinit, self.config.tfinal, self.config.total_step);
        let done = (step - tinit) as f64 / (total - tfinal - tinit) as f64;
        ((initial - target) as f64 * (1.0 - done).powf(3.0) + target as f64) as usize
    }

    fn measure(&mut self, adapter: &Adapter, gradients: &[Vec<f32>]) -> Result<()> {
        let parameters = adapter.parameters();
        if self.sensitivity.is_empty() {
            let zeros: Vec<Vec<f32>> = parameters.iter().map(|(_, tensor)| vec![0.0; tensor.elem_count()]).collect();
            (self.sensitivity, self.uncertainty) = (zeros.clone(), zeros);
        }
        let (beta1, beta2) = (self.config.beta1 as f32, self.config.beta2 as f32);
        let (rest1, rest2) = ((1.0 - self.config.beta1) as f32, (1.0 - self.config.beta2) as f32);
        let state = self.sensitivity.iter_mut().zip(&mut self.uncertainty);
        for (((name, tensor), gradient), (sensitivity, uncertainty)) in parameters.iter().zip(gradients).zip(state) {
            let values = host(tensor)?;
            if [gradient.len(), sensitivity.len(), uncertainty.len()] != [values.len(); 3] {
                let reason = format!("it has {} values, its importance {}", values.len(), sensitivity.len());
                return Err(ModelError::AdapterMismatch { name: name.clone(), reason });
            }
            let smoothed = sensitivity.iter_mut().zip(uncertainty.iter_mut());
            for ((p, g), (sensitivity, uncertainty)) in values.iter().zip(gradient).zip(smoothed) {
                let importance = (p * g).abs();
                *sensitivity = beta1 * *sensitivity + rest1 * importance;
                *uncertainty = beta2 * *uncertainty + rest2 * (importance - *sensitivity).abs();
            }
        }
        Ok(())
    }

    /// Decides which ranks are alive.
    fn allocate(&mut self, step: usize, adapter: &Adapter) -> Result<()> {
        let mut scores = Vec::new();
        for (index, (place, module)) in adapter.modules().enumerate() {
            let ModuleAdapter::AdaLora(module) = module else { continue };
            let first = index * PER_MODULE;
            let score = |index: usize| -> Option<Vec<f32>> {
                let (sensitivity, uncertainty) = (self.sensitivity.get(index)?, self.uncertainty.get(index)?);
                Some(sensitivity.iter().zip(uncertainty).map(|(i, u)| i * u).collect())
            };
            let (Some(a), Some(b), Some(e)) = (score(first), score(first + 1), score(first + 2)) else {
                let reason = "its importance is not in the checkpoint".to_owned();
                return Err(ModelError::AdapterMismatch { name: place.path, reason });
            };
            let ((_, width), (out, rank)) = (module.a.dims2()?, module.b.dims2()?);
            let of_rank = |k: usize| {
                let of_a: f64 = a[k * width..(k + 1) * width].iter().map(|v| f64::from(*v)).sum();
                let of_b: f64 = (0..out).map(|row| f64::from(b[row * rank + k])).sum();
                e[k] + ((of_a / width as f64) as f32 + (of_b / out as f64) as f32)
            };
            scores.push((0..rank).map(of_rank).collect::<Vec<f32>>());
        }
        let mut sorted: Vec<f32> = scores.iter().flatten().copied().collect();
        sorted.sort_by(f32::total_cmp);
        let initial = sorted.len();
        let budget = self.budget(step, initial, (self.config.target_r * scores.len()).min(initial));
        // as many as are over budget die, and those that score no better than the last of them
        let threshold = initial.checked_sub(budget + 1).map_or(f32::NEG_INFINITY, |index| sorted[index]);
        self.alive =
            scores.iter().map(|of_module| of_module.iter().map(|score| *score > threshold).collect()).collect();
        Ok(())
    }

    /// Sets the values of dead ranks to zero.
    fn mask(&self, adapter: &mut Adapter) -> Result<()> {
        adapter.update(|index, values| {
            let alive = (index % PER_MODULE == PER_MODULE - 1).then(|| self.alive.get(index / PER_MODULE)).flatten();
            for (value, alive) in values.iter_mut().zip(alive.into_iter().flatten()) {
                if !alive {
                    *value = 0.0;
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::testing::every_method;
    use crate::decoder::tests::tiny_model;

    fn adapter() -> Adapter {
        every_method(&tiny_model()).into_iter().find(|(name, _)| *name == "adalora").unwrap().1
    }

    fn alive(allocator: &RankAllocator) -> usize {
        allocator.alive.iter().flatten().filter(|alive| **alive).count()
    }

    #[test]
    fn the_budget_falls_from_the_initial_ranks_to_the_target() {
        let mut adapter = adapter();
        let config = adapter.config().adalora().unwrap().clone();
        let gradients: Vec<Vec<f32>> = adapter
            .parameters()
            .iter()
            .enumerate()
            .map(|(index, (_, tensor))| (0..tensor.elem_count()).map(|i| ((index + 3 * i) % 17) as f32 - 8.0).collect())
            .collect();
        let mut allocator = RankAllocator::new(&adapter).unwrap();
        let mut counts = Vec::new();
        for step in 1..=config.total_step {
            allocator.after_step(step, &mut adapter, &gradients).unwrap();
            counts.push(alive(&allocator));
        }
        let modules = adapter.modules().count();
        assert!(counts[..config.tinit].iter().all(|count| *count == 0), "nothing is allocated in the first steps");
        assert!(counts[config.tinit..].is_sorted_by(|a, b| a >= b), "{counts:?}");
        assert_eq!(*counts.last().unwrap(), config.target_r * modules);
        assert!(allocator.sensitivity.is_empty(), "importance is forgotten when the ranks are fixed");
        let dead = adapter
            .parameters()
            .into_iter()
            .filter(|(name, _)| name.ends_with("lora_E"))
            .flat_map(|(_, e)| host(e).unwrap().iter().map(|value| *value == 0.0).collect::<Vec<_>>());
        assert_eq!(dead.filter(|dead| *dead).count(), (config.init_r - config.target_r) * modules);
    }

    #[test]
    fn a_target_equal_to_the_start_masks_nothing() {
        let model = tiny_model();
        let mut config = adapter().config().clone();
        if let crate::adapters::Method::AdaLora(config) = &mut config.method {
            config.target_r = config.init_r;
        }
        let mut adapter = Adapter::new(config, &model, 1).unwrap();
        let gradients: Vec<Vec<f32>> = adapter.parameters().iter().map(|(_, t)| vec![1.0; t.elem_count()]).collect();
        let mut allocator = RankAllocator::new(&adapter).unwrap();
        for step in 1..=10 {
            allocator.after_step(step, &mut adapter, &gradients).unwrap();
        }
        assert!(allocator.alive.iter().flatten().all(|alive| *alive));
    }
}
