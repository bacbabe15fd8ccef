//! Links that were found to be right, so that the ranges of one blob are not a look at its link each:
//! requests to buckets cost money and a round trip.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use shoal_protocol::{digest::Digest, reference::Repository, time::Time};

use crate::{
    clock::Clock,
    origin::limits::{LINK_LIFETIME, LINKS_MAX},
};

/// Which repositories are known to hold which blobs.
pub(super) struct Links {
    clock: Clock,
    found: Mutex<HashMap<(Repository, Digest), Time>>,
}

impl Links {
    pub(super) fn new() -> Self {
        Self {
            clock: Clock::start(),
            found: Mutex::default(),
        }
    }

    /// Whether the link was found not long ago.
    pub(super) fn holds(&self, repository: &Repository, digest: &Digest) -> bool {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (repository.clone(), *digest);
        found
            .get(&key)
            .is_some_and(|at| self.clock.now() < *at + LINK_LIFETIME)
    }

    /// Remembers that the link is there. What has ended is forgotten, or all, rather than grow without
    /// bound.
    pub(super) fn remember(&self, repository: &Repository, digest: &Digest) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        if found.len() >= LINKS_MAX {
            found.retain(|_, at| now < *at + LINK_LIFETIME);
        }
        if found.len() >= LINKS_MAX {
            found.clear();
        }
        found.insert((repository.clone(), *digest), now);
    }
}
