//! The Shoal daemon.

pub mod admin;
pub mod clock;
pub mod content;
pub mod metrics;
pub mod mirror;
pub mod network;
pub mod origin;
pub mod stats;
pub mod store;
