//! The Shoal daemon.

pub mod admin;
pub mod clock;
pub mod cluster;
pub mod content;
pub mod mirror;
pub mod network;
pub mod origin;
pub mod store;
