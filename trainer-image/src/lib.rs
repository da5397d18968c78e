//! `tunesmith-trainer`: the container that trains on EC2 and serves behind SageMaker, and a command for people.
//!
//! Start at [`attempt`] (a train job from its file to its report), then [`train`] (the job's stages), [`training`] (the loop).
//! [`control`] keeps a machine that is paid for within its lease, money and time; [`interrupt`] hears signals and spot notices;
//! [`stop`] is what all of them share. Locations are local or in S3: [`store`].

pub mod attempt;
pub mod base;
pub mod blocking;
mod cards;
pub mod checkpoints;
pub mod clock;
pub mod combine;
pub mod context;
pub mod control;
pub mod error;
pub mod evaluation;
pub mod examples;
pub mod export;
pub mod fidelity;
pub mod generate;
pub mod halt;
mod hub;
pub mod interrupt;
pub mod machine;
pub mod merge;
pub mod meter;
pub mod metrics;
pub mod output;
pub mod progress;
pub mod reference;
pub mod resume;
pub mod room;
pub mod samples;
pub mod serve;
pub mod settings;
pub mod splits;
pub mod stop;
pub mod store;
pub mod train;
pub mod training;
