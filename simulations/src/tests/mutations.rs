//! Ten deliberate mistakes of the machines, each caught by the checkers in a world that is sound
//! without it.

use shoal_protocol::mutation::Mutation;

use super::{named, small, sound};
use crate::{
    scenario::{Fault, Planned, Scenario, Victim},
    swarm::attempt,
};

/// The world that shows this mistake, and a word of what the checkers say of it.
fn shown_in(mutation: Mutation) -> (Scenario, &'static str) {
    match mutation {
        Mutation::NoRevocation => (named("frozen"), "spins"),
        Mutation::NoAttestationCheck => (small("corrupt"), "which it does not have"),
        Mutation::HastyTimers => (named("lan"), "in vain"),
        Mutation::LeasesWithoutCap => (named("lan"), "even shares"),
        Mutation::NoEndgameCancel => (ended_by_many(), "not told"),
        Mutation::NoTakeover => (one_steward(), "copies from the origin"),
        Mutation::CompleteUnverified => (small("liar"), "calls"),
        Mutation::NoLost => (hoarder(), "never finished"),
        Mutation::UploadsWithoutBound => (named("lan-32"), "uploads queued"),
        Mutation::InOrder => (one_source(), "bounds that the longest pull took"),
    }
}

/// The steward of everything freezes.
fn one_steward() -> Scenario {
    let mut scenario = named("steward-frozen-32");
    scenario.images[0].layers = 1;
    scenario
}

/// Last chunks are asked of several nodes.
fn ended_by_many() -> Scenario {
    let mut scenario = named("throttled");
    scenario.seed = 2;
    scenario
}

/// A node that reads from the origin gives nobody what it read.
fn hoarder() -> Scenario {
    let mut scenario = small("corrupt");
    scenario.faults = vec![Planned {
        at_share: 0.1,
        fault: Fault::CorruptChunks,
        victim: Victim::Holder,
        left_out: false,
    }];
    scenario
}

/// All have to come from one node, which others can do without only if they do not all want the
/// same chunk.
fn one_source() -> Scenario {
    let mut scenario = named("warm-48");
    scenario.warm = 1;
    scenario.images[0].layers = 1;
    scenario.limits.ratio = Some(1.13);
    scenario
}

#[test]
fn each_of_ten_mistakes_is_caught() {
    for mutation in Mutation::ALL {
        let (mut scenario, word) = shown_in(mutation);
        sound(scenario.clone());
        scenario.config.mutation = Some(mutation);
        let Err(caught) = attempt(&scenario) else {
            panic!("{mutation:?} is not caught in {}", scenario.name);
        };
        assert!(caught.contains(word), "{mutation:?}: {caught}");
    }
}
