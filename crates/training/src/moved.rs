//! After some steps every tensor of the adapter must have moved.
//!
//! A tensor that does not is trained in name only: its gradient is lost on the way (the classic silent failure of LoRA on
//! other engines), its learning rate is 0, or its updates are smaller than f32 can add. Weight decay moves values too, so a
//! gradient that is not zero is asked for beside a changed value.

use tunesmith_model::{LoraAdapter, ModelError};

use crate::error::Result;

/// Steps with a learning rate above 0 after which the check is made. In the first, `A` of a LoRA pair has no gradient yet,
/// because `B` starts at zero.
pub const AFTER_STEPS: usize = 10;

/// What the adapter was, until the check is made.
#[derive(Debug)]
pub struct MovedCheck {
    start: Vec<Vec<f32>>,
    had_gradient: Vec<bool>,
    num_steps: usize,
}

impl MovedCheck {
    /// Remembers the adapter before its first step.
    pub fn new(adapter: &LoraAdapter) -> Result<Self> {
        let start = values(adapter)?;
        Ok(Self { had_gradient: vec![false; start.len()], start, num_steps: 0 })
    }

    /// Counts a step with a learning rate above 0; returns whether the check is due.
    pub fn count(&mut self, gradients: &[Vec<f32>]) -> bool {
        for (had, gradient) in self.had_gradient.iter_mut().zip(gradients) {
            *had |= gradient.iter().any(|value| *value != 0.0);
        }
        self.num_steps += 1;
        self.num_steps >= AFTER_STEPS
    }

    /// Names of the tensors that did not move.
    pub fn unmoved(&self, adapter: &LoraAdapter) -> Result<Vec<String>> {
        let names = adapter.parameters().into_iter().map(|(name, _)| name);
        let mut unmoved = Vec::new();
        for (((name, now), start), had) in names.zip(values(adapter)?).zip(&self.start).zip(&self.had_gradient) {
            if !had || now == *start {
                unmoved.push(name);
            }
        }
        Ok(unmoved)
    }
}

fn values(adapter: &LoraAdapter) -> Result<Vec<Vec<f32>>> {
    let parameters = adapter.parameters().into_iter();
    let flat = parameters.map(|(_, tensor)| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()));
    Ok(flat.collect::<Result<Vec<_>, _>>().map_err(ModelError::from)?)
}
