//! Which chunk next, and from whom: now the oldest, now the rarest among a sample, within a window
//! ahead of the readers, and first of all what a reader waits for.

use rand::RngExt as _;
use smallvec::SmallVec;

use crate::{
    chunk::Bitfield,
    ctx::Ctx,
    directory::{Distance, Peer},
    link::Link,
    mesh::{Imports, Mesh, Neighbour},
    mutation::Mutation,
    time::Duration,
};

/// Whose chunks are to be looked through for one to request. After a look that found nothing it is
/// enough to look at those who have since got a chunk, or may be asked again: most events change
/// neither.
pub(crate) enum Supply {
    Everyone,
    /// These, in order.
    These(SmallVec<[Peer; 4]>),
}

impl Default for Supply {
    fn default() -> Self {
        Self::These(SmallVec::new())
    }
}

impl Supply {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::These(peers) if peers.is_empty())
    }

    pub(crate) fn add(&mut self, peer: Peer) {
        if let Self::These(peers) = self
            && let Err(at) = peers.binary_search(&peer)
        {
            peers.insert(at, peer);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        match other {
            Self::Everyone => *self = Self::Everyone,
            Self::These(peers) => peers.iter().for_each(|peer| self.add(*peer)),
        }
    }
}

/// Sets of chunks that each look needs, kept for the next: so it allocates nothing.
#[derive(Default)]
pub(crate) struct Sets {
    open: Bitfield,
    candidates: Bitfield,
    from_zone: Bitfield,
    from_afar: Bitfield,
    awaited: Bitfield,
}

/// A neighbour that may be asked for a chunk, and how soon it would send one.
struct Source<'a> {
    peer: Peer,
    neighbour: &'a Neighbour,
    busy: bool,
    /// Bytes requested from it, and when one more chunk would be here.
    expected: (u64, Duration),
}

/// The next request to make for this blob, if there is one to be made.
pub(crate) fn next(mesh: &Mesh, ctx: &mut Ctx) -> Option<(u32, Peer)> {
    let mut sets = std::mem::take(&mut ctx.sets);
    let next = next_with(mesh, ctx, &mut sets);
    ctx.sets = sets;
    next
}

fn next_with(mesh: &Mesh, ctx: &mut Ctx, sets: &mut Sets) -> Option<(u32, Peer)> {
    mesh.find_open(&mut sets.open);
    if sets.open.count() == 0 {
        return None;
    }
    let is_of_use = |neighbour: &Neighbour| neighbour.have.intersects(&sets.open);
    let mut sources = match &mesh.supply {
        Supply::Everyone => sources(mesh, ctx, &mesh.neighbours, is_of_use),
        Supply::These(peers) => {
            let of = |peer| mesh.neighbours.get_key_value(peer);
            sources(mesh, ctx, peers.iter().filter_map(of), is_of_use)
        }
    };
    // A rare chunk is of no use while it waits in the queue of the only node that has it: first
    // what can be sent at once. Otherwise everyone waits for the few that read from the origin,
    // and the uplinks of all others idle [sim: 1.66 times the bound instead of 1.49].
    sources.sort_by_key(|source| source.busy);
    let idle = sources.partition_point(|source| !source.busy);
    among(mesh, ctx, sets, &sources[..idle]).or_else(|| {
        let all = &sources[..];
        (idle < all.len()).then(|| among(mesh, ctx, sets, all))?
    })
}

/// The next request to one of these, for a chunk that is open.
fn among(
    mesh: &Mesh,
    ctx: &mut Ctx,
    sets: &mut Sets,
    sources: &[Source<'_>],
) -> Option<(u32, Peer)> {
    if sources.is_empty() {
        return None;
    }
    let Sets {
        open,
        candidates,
        from_zone,
        from_afar,
        awaited,
    } = sets;
    let imports = mesh.imports.as_ref().filter(|_| !ctx.is_hungry());
    candidates.reset(mesh.have.len());
    if imports.is_some() {
        from_zone.reset(mesh.have.len());
        from_afar.reset(mesh.have.len());
    }
    for Source { neighbour, .. } in sources {
        match neighbour.distance {
            Distance::Rack if imports.is_some() => from_zone.union_with(&neighbour.have),
            Distance::Zone if imports.is_some() => from_afar.union_with(&neighbour.have),
            Distance::Near | Distance::Rack | Distance::Zone => {
                candidates.union_with(&neighbour.have);
            }
        }
    }
    // What this node alone brings in, and nobody near has: the whole rack waits for it.
    awaited.reset(0);
    if let Some(imports) = imports {
        from_zone.intersect_with(&imports.rack);
        from_afar.intersect_with(&imports.zone);
        from_zone.union_with(from_afar);
        awaited.clone_from(from_zone);
        awaited.subtract(candidates);
        candidates.union_with(from_zone);
    }
    candidates.intersect_with(open);
    awaited.intersect_with(open);
    let chunk = head_of_a_reader(mesh, candidates)
        .or_else(|| awaited.next_set(0))
        .or_else(|| rarest(mesh, ctx, candidates))?;
    let peer = soonest(ctx, imports, chunk, sources)?;
    Some((chunk, peer))
}

/// Another source for a chunk that is already requested elsewhere.
pub(crate) fn second_source(mesh: &Mesh, ctx: &mut Ctx, chunk: u32, first: Peer) -> Option<Peer> {
    let has = |neighbour: &Neighbour| neighbour.have.contains(chunk);
    let mut sources = sources(mesh, ctx, &mesh.neighbours, has);
    sources.retain(|source| source.peer != first);
    soonest(ctx, mesh.imports.as_ref(), chunk, &sources)
}

/// Whether a chunk may be fetched from so far, given what this node is to bring in from afar.
fn may_cross(imports: Option<&Imports>, chunk: u32, distance: Distance) -> bool {
    match (imports, distance) {
        (None, _) | (_, Distance::Near) => true,
        (Some(imports), Distance::Rack) => imports.rack.contains(chunk),
        (Some(imports), Distance::Zone) => imports.zone.contains(chunk),
    }
}

/// Those of some neighbours that may be asked now and are of use.
fn sources<'a>(
    mesh: &Mesh,
    ctx: &Ctx,
    neighbours: impl IntoIterator<Item = (&'a Peer, &'a Neighbour)>,
    is_of_use: impl Fn(&Neighbour) -> bool,
) -> SmallVec<[Source<'a>; 20]> {
    // With few neighbours each of them has to carry more than its usual share.
    let chunk_bytes = mesh.chunk_bytes();
    let target = ctx.outstanding_target(chunk_bytes);
    let share = target.div_ceil(mesh.neighbours.len().max(1));
    let per_peer = ctx.config.outstanding_per_peer.max(share) as u64 * chunk_bytes;
    let new = Link::default();
    neighbours
        .into_iter()
        .filter(|(_, neighbour)| is_of_use(neighbour))
        .filter_map(|(peer, neighbour)| {
            let link = ctx.links.get(peer).unwrap_or(&new);
            (link.is_usable(ctx.now) && link.outstanding_bytes < per_peer).then(|| Source {
                peer: *peer,
                neighbour,
                busy: link.is_busy(ctx.now),
                expected: (link.outstanding_bytes, link.expected(ctx.now, chunk_bytes)),
            })
        })
        .collect()
}

/// A chunk that a client waits for.
fn head_of_a_reader(mesh: &Mesh, candidates: &Bitfield) -> Option<u32> {
    let mut readers = mesh.readers.values();
    readers.find_map(|reader| {
        let mut awaited = mesh.awaited(reader);
        awaited.find(|chunk| candidates.contains(*chunk))
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
        let copies = mesh.availability.copies(chunk);
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

/// Of those that have the chunk and may send it so far, the one that should deliver it first; the
/// nearest before all others, ties at random.
fn soonest(
    ctx: &mut Ctx,
    imports: Option<&Imports>,
    chunk: u32,
    sources: &[Source<'_>],
) -> Option<Peer> {
    sources
        .iter()
        .filter(|source| {
            let neighbour = source.neighbour;
            neighbour.have.contains(chunk) && may_cross(imports, chunk, neighbour.distance)
        })
        .min_by_key(|source| {
            let tie = ctx.rng.random::<u32>();
            (source.neighbour.distance, source.expected, tie)
        })
        .map(|source| source.peer)
}
