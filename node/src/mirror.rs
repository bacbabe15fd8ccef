//! The mirror endpoint: the read side of the OCI distribution API over HTTP/1.1.
//!
//! It turns requests into questions to a [`Content`] and its answers into responses. It never
//! answers 401 of its own (a client would send its user's password to whatever realm is named; an
//! origin's challenge is passed on word for word, where clients read by its leave), never says
//! 404 unless the origin did, never sends a `Content-Encoding`, and never lets a body end short in
//! silence: the connection is broken off instead.

use std::{collections::BTreeSet, sync::Arc};

use shoal_protocol::reference::Upstream;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub use self::media_type::media_type_of;
use crate::{content::Content, http, metrics::Metrics, origin::Gate};

mod body;
mod conditions;
mod error;
mod media_type;
mod multipart;
mod range;
mod respond;
mod routes;

/// How the mirror reads names.
#[derive(Clone)]
pub struct MirrorOptions {
    /// The upstream of requests that name none; dockerd's `registry-mirrors` sends such.
    pub default_upstream: Upstream,
    /// Configured upstreams that may stand first in a path although they do not look like a
    /// registry.
    pub aliases: BTreeSet<Upstream>,
    /// Where requests and bytes are counted.
    pub metrics: Arc<Metrics>,
    /// Who may read what; all may read everything without.
    pub(crate) gate: Option<Arc<Gate>>,
}

/// Serves the mirror, by TLS alone where it is given, until `shutdown`; running answers then have 5 s to end.
pub async fn serve<C: Content>(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    content: Arc<C>,
    options: MirrorOptions,
    shutdown: CancellationToken,
) {
    let options = Arc::new(options);
    let handler = move |request| {
        let (content, options) = (Arc::clone(&content), Arc::clone(&options));
        async move { respond::respond(&request, &content, &options).await }
    };
    http::serve(listener, tls, handler, shutdown).await;
}

#[cfg(test)]
mod tests;
