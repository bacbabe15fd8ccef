//! The Shoal daemon: the swarm, the store, the origins, and the endpoints that clients and
//! operators use.

pub mod admin;
mod buffers;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod content;
mod driver;
#[cfg(feature = "faults")]
mod faults;
mod handle;
mod http;
mod image;
mod import;
pub mod metrics;
pub mod mirror;
pub mod network;
mod node;
pub mod origin;
mod packing;
pub mod piece;
pub mod stats;
pub mod store;
mod tls;

pub use node::{NodeError, run};
pub use tls::TlsError;
