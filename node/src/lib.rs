//! The Shoal daemon.

pub mod admin;
pub mod clock;
pub mod cluster;
pub mod content;
mod http;
pub mod metrics;
pub mod mirror;
pub mod network;
pub mod origin;
pub mod stats;
pub mod store;
