//! Test-only misbehaviour, compiled in with the feature `faults` and never into a release.
//!
//! `SHOAL_FAULT=lie`: as a leaseholder, signs and stores wrong bytes for what it reads from the
//! origin.

use std::sync::LazyLock;

static LIES: LazyLock<bool> =
    LazyLock::new(|| std::env::var("SHOAL_FAULT").is_ok_and(|fault| fault == "lie"));

/// Whether this node vouches for wrong bytes.
pub(crate) fn lies() -> bool {
    *LIES
}
