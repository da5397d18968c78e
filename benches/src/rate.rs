//! Rates of f32 matrix products of the shapes of a step, through the function that training uses.

use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use tunesmith_model::ops::gemm::{Threads, View, ViewMut, Write, gemm};
use tunesmith_model::rng::Rng;

/// Products to time.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// `[m, n, k]` of each: `[m, k] · [n, k]ᵀ`, the form of a linear layer.
    shapes: Vec<[usize; 3]>,
    /// Seconds for each.
    seconds: f64,
}

impl Rate {
    /// The best rate of each shape in operations per second.
    pub fn run(&self) -> Value {
        let rates: Vec<f64> = self.shapes.iter().map(|shape| self.best(*shape)).collect();
        json!({ "rates": rates })
    }

    fn best(&self, [m, n, k]: [usize; 3]) -> f64 {
        let mut rng = Rng::new(1, 0);
        let mut random = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.uniform() - 0.5).collect() };
        let (x, w, mut y) = (random(m * k), random(n * k), vec![0.0; m * n]);
        let (mut best, start) = (f64::INFINITY, Instant::now());
        while start.elapsed().as_secs_f64() < self.seconds {
            let start = Instant::now();
            let (x, w) = (View::new(&x, m, k, k), View::new(&w, n, k, k));
            gemm(ViewMut::new(&mut y, m, n, n), Write::Replace, 1.0, x, w.t(), Threads::Pool);
            best = best.min(start.elapsed().as_secs_f64());
        }
        (2 * m * n * k) as f64 / best
    }
}
