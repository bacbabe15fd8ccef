//! Which chunk next, and from whom: now the oldest, now the rarest among a sample, within a window
//! ahead of the readers, and first of all what a reader waits for.

use rand::RngExt as _;

use crate::{
    chunk::Bitfield,
    ctx::Ctx,
    directory::{Distance, Peer},
    mesh::{Imports, Mesh},
    mutation::Mutation,
};

/// The next request to make for this blob, if there is one to be made.
pub(crate) fn next(mesh: &Mesh, ctx: &mut Ctx) -> Option<(u32, Peer)> {
    let usable = usable_neighbours(mesh, ctx);
    // A rare chunk is of no use while it waits in the queue of the only node that has it: first
    // what can be sent at once. Otherwise everyone waits for the few that read from the origin,
    // and the uplinks of all others idle [sim: 1.66 times the bound instead of 1.49].
    let idle: Vec<Peer> = usable
        .iter()
        .copied()
        .filter(|peer| {
            ctx.links
                .get(peer)
                .is_none_or(|link| !link.is_busy(ctx.now))
        })
        .collect();
    among(mesh, ctx, &idle).or_else(|| among(mesh, ctx, &usable))
}

/// The next request to one of these.
fn among(mesh: &Mesh, ctx: &mut Ctx, usable: &[Peer]) -> Option<(u32, Peer)> {
    if usable.is_empty() {
        return None;
    }
    let mut candidates = Bitfield::new(mesh.have.len());
    let imports = mesh.imports.as_ref().filter(|_| !ctx.is_hungry());
    let [mut from_zone, mut from_afar] = match imports {
        Some(_) => [candidates.clone(), candidates.clone()],
        None => [Bitfield::new(0), Bitfield::new(0)],
    };
    for peer in usable {
        let neighbour = &mesh.neighbours[peer];
        match neighbour.distance {
            Distance::Rack if imports.is_some() => from_zone.union_with(&neighbour.have),
            Distance::Zone if imports.is_some() => from_afar.union_with(&neighbour.have),
            Distance::Near | Distance::Rack | Distance::Zone => {
                candidates.union_with(&neighbour.have);
            }
        }
    }
    // What this node alone brings in, and nobody near has: the whole rack waits for it.
    let mut awaited = Bitfield::new(0);
    if let Some(imports) = imports {
        from_zone.intersect_with(&imports.rack);
        from_afar.intersect_with(&imports.zone);
        from_zone.union_with(&from_afar);
        awaited = from_zone.clone();
        awaited.subtract(&candidates);
        awaited.subtract(&mesh.have);
        candidates.union_with(&from_zone);
    }
    candidates.subtract(&mesh.have);
    for chunk in mesh.flights.keys() {
        candidates.remove(*chunk);
    }
    for running in mesh.leases.values() {
        for chunk in running.next..running.lease.end {
            candidates.remove(chunk);
        }
    }
    awaited.intersect_with(&candidates);
    let chunk = head_of_a_reader(mesh, &candidates)
        .or_else(|| awaited.next_set(0))
        .or_else(|| rarest(mesh, ctx, &candidates))?;
    let mut sources = usable.to_vec();
    sources.retain(|peer| may_cross(mesh, imports, chunk, *peer));
    let peer = source(mesh, ctx, chunk, &sources)?;
    Some((chunk, peer))
}

/// Another source for a chunk that is already requested elsewhere.
pub(crate) fn second_source(mesh: &Mesh, ctx: &mut Ctx, chunk: u32, first: Peer) -> Option<Peer> {
    let mut usable = usable_neighbours(mesh, ctx);
    let imports = mesh.imports.as_ref();
    usable.retain(|peer| *peer != first && may_cross(mesh, imports, chunk, *peer));
    source(mesh, ctx, chunk, &usable)
}

/// Whether a chunk may be fetched from a neighbour, given what this node is to bring in from afar.
fn may_cross(mesh: &Mesh, imports: Option<&Imports>, chunk: u32, peer: Peer) -> bool {
    match (imports, mesh.neighbours[&peer].distance) {
        (None, _) | (_, Distance::Near) => true,
        (Some(imports), Distance::Rack) => imports.rack.contains(chunk),
        (Some(imports), Distance::Zone) => imports.zone.contains(chunk),
    }
}

fn usable_neighbours(mesh: &Mesh, ctx: &Ctx) -> Vec<Peer> {
    // With few neighbours each of them has to carry more than its usual share.
    let target = ctx.outstanding_target(mesh.chunk_bytes());
    let share = target.div_ceil(mesh.neighbours.len().max(1));
    let per_peer = ctx.config.outstanding_per_peer.max(share);
    mesh.neighbours
        .keys()
        .copied()
        .filter(|peer| {
            ctx.links
                .get(peer)
                .is_none_or(|link| link.is_usable(ctx.now) && link.outstanding < per_peer)
        })
        .collect()
}

/// The chunk that a client waits for, or the one after it.
fn head_of_a_reader(mesh: &Mesh, candidates: &Bitfield) -> Option<u32> {
    mesh.readers.values().find_map(|range| {
        let missing = mesh.have.next_clear(range.start)?;
        (missing..range.end.min(missing + 2)).find(|chunk| candidates.contains(*chunk))
    })
}

fn rarest(mesh: &Mesh, ctx: &mut Ctx, candidates: &Bitfield) -> Option<u32> {
    if ctx.config.makes(Mutation::InOrder) {
        return candidates.next_set(0);
    }
    let window = window(mesh, ctx);
    if ctx.rng.random::<f64>() < ctx.config.oldest_share
        && let Some(oldest) = candidates.next_set(window.start)
    {
        return Some(oldest);
    }
    let mut best: Option<(u16, u32)> = None;
    for _ in 0..ctx.config.rarest_sample {
        let from = ctx.rng.random_range(window.clone());
        let inside = |chunk: &u32| window.contains(chunk);
        let Some(chunk) = candidates
            .next_set(from)
            .filter(inside)
            .or_else(|| candidates.next_set(window.start).filter(inside))
        else {
            break;
        };
        let copies = mesh.availability[chunk as usize];
        if best.is_none_or(|(fewest, _)| copies < fewest) {
            best = Some((copies, chunk));
        }
    }
    // Nothing within the window: whatever there is, rather than idle.
    best.map(|(_, chunk)| chunk)
        .or_else(|| candidates.next_set(0))
}

/// The chunks among which the rarest is looked for. Strict order would cost a quarter of the
/// swarm's rate, no order at all would keep readers waiting.
fn window(mesh: &Mesh, ctx: &Ctx) -> std::ops::Range<u32> {
    let all = 0..mesh.have.len();
    if mesh.neighbours.len() < 2 {
        return all;
    }
    let Some(reader) = mesh.readers.values().map(|range| range.start).min() else {
        return all;
    };
    let Some(start) = mesh.have.next_clear(reader) else {
        return all;
    };
    start
        ..start
            .saturating_add(ctx.config.window_chunks)
            .min(mesh.have.len())
}

/// Of those that have the chunk, the one that should deliver it first; ties at random.
fn source(mesh: &Mesh, ctx: &mut Ctx, chunk: u32, usable: &[Peer]) -> Option<Peer> {
    let mut best = None;
    for peer in usable {
        if !mesh.neighbours[peer].have.contains(chunk) {
            continue;
        }
        let expected = ctx
            .links
            .get(peer)
            .map_or((0, crate::time::Duration::ZERO), |link| {
                (link.outstanding, link.expected(ctx.now))
            });
        let distance = mesh.neighbours[peer].distance;
        let rank = (distance, expected, ctx.rng.random::<u32>());
        if best.is_none_or(|(other, _)| rank < other) {
            best = Some((rank, *peer));
        }
    }
    best.map(|(_, peer)| peer)
}
