//! The Shoal daemon.

pub mod admin;
pub mod clock;
pub mod config;
pub mod content;
pub mod mirror;
pub mod network;
pub mod origin;
pub mod store;

/// Why a node stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {}

/// Runs a node until `shutdown`.
pub async fn run(
    _config: config::Config,
    shutdown: tokio_util::sync::CancellationToken,
) -> Result<(), NodeError> {
    shutdown.cancelled().await;
    Ok(())
}
