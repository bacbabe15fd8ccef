//! What the simulator has that other programs use too: its plots, and how it reckons percentiles.

mod percentile;
pub mod plot;

pub use percentile::percentile;
