//! What the tests are made of, so that each of them is a few lines.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) mod access;
pub(crate) mod bucket;
pub(crate) mod client;
pub(crate) mod clock;
pub(crate) mod containerd;
pub(crate) mod daemon;
pub(crate) mod fake_origin;
pub(crate) mod image;
pub(crate) mod meter;
pub(crate) mod middlebox;
pub(crate) mod netns;
pub(crate) mod place;
pub(crate) mod push;
pub(crate) mod raw;
pub(crate) mod realm;
pub(crate) mod registry;
pub(crate) mod swarm;

/// The upstream name under which every test's origin is configured.
pub(crate) const UPSTREAM: &str = "registry.test";

/// The repository of every test image.
pub(crate) const REPOSITORY: &str = "team/image";

/// The tag of every test image.
pub(crate) const TAG: &str = "v1";

/// The port of every test's origin. Not the usual 5000: Debian starts a registry of its own there.
pub(crate) const ORIGIN_PORT: u16 = 5050;

/// Bytes in one MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// Bytes in a chunk of a blob, as the acceptance tests of boundary sizes need it.
pub(crate) const CHUNK: u64 = 4 * MIB;

/// The built binary.
pub(crate) const SHOAL: &str = env!("CARGO_BIN_EXE_shoal");

/// Takes the machine for one test.
///
/// The tests measure time and memory of real processes: two at once would measure each other. A
/// test that failed does not spoil the machine for the next.
pub(crate) fn machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
