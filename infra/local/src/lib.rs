//! The local cloud: Tunesmith on one machine, without an AWS account and without Docker.
//!
//! A daemon ([`daemon`]) starts a real AWS emulator ([`emulator`]) and the machine room ([`machine_room`]), which makes EC2
//! instances and SageMaker endpoints real by running them as processes of this machine. [`deploy`] brings the same
//! CloudFormation template and the same Lambda binaries that AWS gets. [`demo`] walks through the whole path once.
//!
//! Invariant: every process is started through [`guard`], so nothing outlives the daemon, however it ends; every listener is
//! bound to 127.0.0.1.

pub mod client;
pub mod daemon;
pub mod demo;
pub mod deploy;
pub mod emulator;
pub mod error;
pub mod guard;
pub mod machine_room;
pub mod mailbox;
pub mod models;
pub mod operate;
pub mod paths;
pub mod programs;
pub mod settings;
pub mod sigv4;
pub mod stage;
pub mod stand_in;
pub mod state;
pub mod venv;

pub use error::LocalError;
