//! Clients' credentials, lent to this node for as long as it answers them.
//!
//! Where its own login is not enough to read a repository, it reads with that of the client that
//! waits for the content. A loan ends with the answer, and never leaves this node but for the origin.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use reqwest::header::HeaderValue;
use shoal_protocol::message::Hint;

/// What is lent now. Bounded by the clients' connections.
#[derive(Default)]
pub(super) struct Loans {
    next: AtomicU64,
    headers: Mutex<HashMap<Hint, Vec<(u64, HeaderValue)>>>,
}

/// A client's `Authorization`, for one repository, until this is dropped.
pub(crate) struct Loan {
    loans: Arc<Loans>,
    hint: Hint,
    number: u64,
}

impl Loans {
    pub(super) fn lend(self: &Arc<Self>, hint: Hint, header: HeaderValue) -> Loan {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut headers = self.lock();
        headers
            .entry(hint.clone())
            .or_default()
            .push((number, header));
        Loan {
            loans: Arc::clone(self),
            hint,
            number,
        }
    }

    /// The newest for this repository: tokens age.
    pub(super) fn header(&self, hint: &Hint) -> Option<HeaderValue> {
        let headers = self.lock();
        let (_, header) = headers.get(hint)?.last()?;
        Some(header.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Hint, Vec<(u64, HeaderValue)>>> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        self.headers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut headers = self.loans.lock();
        if let Some(lent) = headers.get_mut(&self.hint) {
            lent.retain(|(number, _)| *number != self.number);
            if lent.is_empty() {
                headers.remove(&self.hint);
            }
        }
    }
}
