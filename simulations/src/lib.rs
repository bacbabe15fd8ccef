//! What the simulator has that other programs use too: its plots.

pub mod plot;
