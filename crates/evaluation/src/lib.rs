//! Perplexity with confidence intervals, the gate, the report.
//!
//! Pure: numbers in, numbers out. Randomness (the bootstrap) comes from a seed that the caller passes in.

pub mod bootstrap;
pub mod evaluate;
pub mod gate;
pub mod perplexity;
pub mod report;

pub use bootstrap::Bootstrap;
pub use evaluate::{Measured, evaluate};
pub use gate::decide;
pub use perplexity::{DocumentLoss, EvaluationError, improvement_percent, perplexity};
pub use report::{AnswerLinks, CostLine, DecisionPage, Fact, decision_page};
