//! Networks that lose, delay and reorder what nodes say.

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::Xoshiro256PlusPlus};

use super::world::{MS, SECOND, World, blob};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pulls_end_on_bad_networks(
        count in 3_usize..=6,
        chunks in 1_u32..=40,
        lost in 0.0..0.2_f64,
        delay_ms in 1_u32..60,
        seed: u64,
    ) {
        let mut world = World::new(count);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        world.rule = Box::new(move |_, _, _| {
            let delay = MS * rng.random_range(1..=delay_ms);
            (rng.random::<f64>() >= lost).then_some(delay)
        });
        for node in 0..count {
            world.pull(node, blob(1), chunks);
        }
        let took = world.run_until(SECOND * 60, |world| world.all_have(blob(1)));
        prop_assert!(took.is_some(), "not ended after a minute");
        let copies = f64::from(world.read(blob(1))) / f64::from(chunks);
        prop_assert!(copies <= count as f64, "{copies} copies");
    }
}
