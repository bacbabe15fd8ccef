//! Damage in transit, for tests: with the feature `faults`, `SHOAL_FAULT=corrupt-out=0.05` flips a
//! byte in that share of the chunks that this node sends. Without the feature there is nothing.

#[cfg(not(feature = "faults"))]
use bytes::Bytes;

#[cfg(feature = "faults")]
pub(super) use enabled::Damage;

/// No damage.
#[cfg(not(feature = "faults"))]
#[derive(Clone, Default)]
pub(super) struct Damage;

#[cfg(not(feature = "faults"))]
impl Damage {
    pub(super) fn from_env() -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "the shape of the one that does damage")]
    pub(super) fn apply(&self, bytes: Bytes) -> Bytes {
        bytes
    }
}

#[cfg(feature = "faults")]
mod enabled {
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;

    use crate::network::outbox::lock;

    /// Damages a share of the chunks, evenly spread, so that a test sees what it asked for.
    #[derive(Clone, Default)]
    pub(in crate::network) struct Damage {
        share: f64,
        owed: Arc<Mutex<f64>>,
    }

    impl Damage {
        pub(in crate::network) fn from_env() -> Self {
            let setting = std::env::var("SHOAL_FAULT").unwrap_or_default();
            let share = setting
                .split(',')
                .find_map(|fault| fault.trim().strip_prefix("corrupt-out="))
                .and_then(|share| share.parse().ok())
                .unwrap_or_default();
            Self::new(share)
        }

        pub(in crate::network) fn new(share: f64) -> Self {
            Self {
                share,
                owed: Arc::default(),
            }
        }

        pub(in crate::network) fn apply(&self, bytes: Bytes) -> Bytes {
            let mut owed = lock(&self.owed);
            *owed += self.share;
            if *owed < 1.0 || bytes.is_empty() {
                return bytes;
            }
            *owed -= 1.0;
            drop(owed);
            let mut damaged = bytes.to_vec();
            let middle = damaged.len() / 2;
            damaged[middle] ^= 0x55;
            damaged.into()
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_asked_share_of_chunks_is_damaged_in_one_byte() {
            let damage = Damage::new(0.25);
            let whole = Bytes::from_static(&[7; 100]);
            let sent: Vec<_> = (0..8).map(|_| damage.apply(whole.clone())).collect();
            assert_eq!(sent.iter().filter(|bytes| **bytes != whole).count(), 2);
            let wrong = sent.iter().flatten().filter(|byte| **byte != 7).count();
            assert_eq!(wrong, 2);
        }
    }
}
