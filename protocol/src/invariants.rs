//! Numbered checks of what must always hold, shared by the daemon's assertions and the simulator.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::{
    config::Config,
    digest::Digest,
    directory::Peer,
    limits::CHUNK_BYTES_MIN,
    link::Link,
    mesh::Mesh,
    steward::Steward,
    uploads::{SENT_MAX, Uploads},
    view::RANKS,
};

/// A broken invariant: its number and what was seen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {number} is broken: {what}")]
pub struct Broken {
    /// Which.
    pub number: u8,
    /// What was seen.
    pub what: String,
}

pub(crate) struct View<'a> {
    pub(crate) config: &'a Config,
    pub(crate) outstanding: usize,
    pub(crate) outstanding_bytes: u64,
    pub(crate) links: &'a FxHashMap<Peer, Link>,
    pub(crate) avoided: usize,
    pub(crate) acquaintances: usize,
    pub(crate) members: usize,
    pub(crate) cut_off: usize,
    pub(crate) uploads: &'a Uploads,
    pub(crate) meshes: &'a BTreeMap<Digest, Mesh>,
    pub(crate) stewards: &'a BTreeMap<Digest, Steward>,
}

fn ensure(holds: bool, number: u8, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds {
        Ok(())
    } else {
        Err(Broken {
            number,
            what: what(),
        })
    }
}

/// 1. What is outstanding is what the meshes have in flight, and bounded.
/// 2. A chunk is requested from at most two peers at once, and from none once it is here.
/// 3. The upload queue keeps its bound.
/// 4. A mesh has no more neighbours than it may.
/// 5. A steward knows of no more leases than each of the blob's stewards may have granted: after a
///    partition it takes over those of the others.
/// 6. A neighbour's chunks are counted right.
/// 7. What is remembered of peers and uploads has its bound.
pub(crate) fn check(view: View<'_>) -> Result<(), Broken> {
    let mut in_flight = 0;
    let mut bytes_in_flight = 0;
    for mesh in view.meshes.values() {
        for chunk in mesh.flights.keys() {
            let peers = mesh.flights_of(*chunk);
            in_flight += peers.len();
            bytes_in_flight += mesh.bytes_in_flight(*chunk);
            ensure(peers.len() <= 2, 2, || {
                format!("chunk {chunk} in flight {} times", peers.len())
            })?;
            ensure(!mesh.have.contains(*chunk), 2, || {
                format!("chunk {chunk} requested though here")
            })?;
        }
        ensure(
            mesh.neighbours.len() <= view.config.degree_most(),
            4,
            || format!("{} neighbours", mesh.neighbours.len()),
        )?;
        for chunk in 0..mesh.have.len() {
            let count = mesh.availability.copies(chunk);
            let real = mesh
                .neighbours
                .values()
                .filter(|neighbour| neighbour.have.contains(chunk))
                .count();
            ensure(usize::from(count) == real, 6, || {
                format!("chunk {chunk} counted {count} times, held by {real} neighbours")
            })?;
        }
    }
    let by_link: usize = view.links.values().map(|link| link.outstanding).sum();
    ensure(
        in_flight == view.outstanding && by_link == in_flight,
        1,
        || {
            format!(
                "{} outstanding, {by_link} by link, {in_flight} in flight",
                view.outstanding
            )
        },
    )?;
    ensure(bytes_in_flight == view.outstanding_bytes, 1, || {
        let outstanding = view.outstanding_bytes;
        format!("{outstanding} bytes outstanding, {bytes_in_flight} in flight")
    })?;
    ensure(
        view.outstanding <= view.config.outstanding_max(CHUNK_BYTES_MIN),
        1,
        || format!("{} outstanding", view.outstanding),
    )?;
    let queued = view.uploads.queued();
    ensure(queued <= view.config.upload_queue_max, 3, || {
        format!("{queued} uploads queued")
    })?;
    let counted = view.uploads.counted();
    ensure(counted <= SENT_MAX, 7, || {
        format!("sends of {counted} blobs counted")
    })?;
    ensure(view.avoided <= view.links.len(), 7, || {
        format!("{} peers of {} left alone", view.avoided, view.links.len())
    })?;
    ensure(view.acquaintances <= view.config.degree_most(), 7, || {
        format!("{} acquaintances", view.acquaintances)
    })?;
    ensure(view.cut_off <= view.members, 7, || {
        format!("{} cut off of {} members", view.cut_off, view.members)
    })?;
    for steward in view.stewards.values() {
        ensure(
            steward.leases() <= usize::from(view.config.streams_max) * RANKS,
            5,
            || format!("{} leases granted", steward.leases()),
        )?;
    }
    Ok(())
}
