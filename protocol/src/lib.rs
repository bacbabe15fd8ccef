//! The exchange of Shoal as pure state machines.
//!
//! Nothing in this crate reads a clock, draws randomness that was not seeded from outside, does
//! IO, or waits. Whoever drives it says what time it is and what has happened, and carries out
//! what it asks for. Chunk bytes never enter it: it decides about ids, indices and peers, so that
//! a simulated swarm of 10,000 nodes allocates no payload.

pub mod attest;
pub mod chunk;
pub mod config;
pub mod core;
mod ctx;
pub mod digest;
pub mod directory;
pub mod event;
pub mod invariants;
mod joining;
mod keeper;
pub mod limits;
mod link;
mod membership;
mod mesh;
pub mod message;
pub mod mutation;
mod picker;
pub mod reference;
mod steward;
mod tags;
pub mod time;
mod uploads;
mod view;
pub mod wire;
