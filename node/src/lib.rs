//! The Shoal daemon.

pub mod admin;
pub mod clock;
pub mod config;
pub mod content;
pub mod mirror;
pub mod network;
pub mod origin;
pub mod store;
