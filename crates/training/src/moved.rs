//! After some steps every tensor of the adapter must have moved.
//!
//! A tensor that does not is trained in name only: its gradient is lost on the way (the classic silent failure of LoRA on
//! other engines), its learning rate is 0, or its updates are smaller than f32 can add. Weight decay moves values too, so a
//! gradient that is not zero is asked for beside a changed value.

use tunesmith_model::{Adapter, ModelError};

use crate::error::Result;

/// Steps with a learning rate above 0 after which the check is made. In the first, `A` of a LoRA pair has no gradient yet,
/// because `B` starts at zero.
pub const AFTER_STEPS: usize = 10;

/// What the adapter was, until the check is made.
#[derive(Debug)]
pub struct MovedCheck {
    start: Vec<Vec<f32>>,
    moved: Vec<bool>,
    num_steps: usize,
}

impl MovedCheck {
    /// Remembers the adapter before its first step.
    pub fn new(adapter: &Adapter) -> Result<Self> {
        let start = values(adapter)?;
        Ok(Self { moved: vec![false; start.len()], start, num_steps: 0 })
    }

    /// Counts a step with a learning rate above 0, right after the optimizer's update; returns whether the check is due.
    pub fn count(&mut self, adapter: &Adapter, gradients: &[Vec<f32>]) -> Result<bool> {
        let changes = values(adapter)?.into_iter().zip(&self.start).map(|(now, start)| now != *start);
        for ((moved, changed), gradient) in self.moved.iter_mut().zip(changes).zip(gradients) {
            *moved |= changed && gradient.iter().any(|value| *value != 0.0);
        }
        self.num_steps += 1;
        Ok(self.num_steps >= AFTER_STEPS)
    }

    /// Names of the tensors that did not move in any step.
    #[must_use]
    pub fn unmoved(&self, adapter: &Adapter) -> Vec<String> {
        let named = adapter.parameters().into_iter().map(|(name, _)| name).zip(&self.moved);
        named.filter(|(_, moved)| !**moved).map(|(name, _)| name).collect()
    }
}

fn values(adapter: &Adapter) -> Result<Vec<Vec<f32>>> {
    let parameters = adapter.parameters().into_iter();
    let flat = parameters.map(|(_, tensor)| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()));
    Ok(flat.collect::<Result<Vec<_>, _>>().map_err(ModelError::from)?)
}
