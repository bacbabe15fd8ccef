//! One HTTP exchange with one server.

use std::{
    error::Error as _,
    sync::atomic::{AtomicU64, Ordering},
};

use reqwest::{
    Certificate, Client, ClientBuilder, Method, Response,
    header::{ACCEPT_ENCODING, HeaderMap, HeaderValue},
    redirect,
};
use url::Url;

use super::{
    address::{self, NotPublic, PublicResolver},
    error::OriginError,
    limits::{CONNECT_TIMEOUT, HEADERS_TIMEOUT, IDLE_CONNECTION_LIFETIME, IDLE_CONNECTIONS_MAX},
};

/// Which addresses a request may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// The public internet only.
    Public,
    /// Any address.
    Any,
}

/// HTTP clients that trust the same authorities: one for each reach, because a pooled connection
/// must not serve a request that could not have opened it.
///
/// HTTP/1.1 only: parallel ranged reads are then parallel TCP connections, and one that is lost
/// or slow does not hold up the others.
pub(super) struct Transport {
    any: Client,
    public: Client,
    /// Plain http without proxies.
    near: Client,
    proxies: Vec<String>,
    sent: AtomicU64,
}

/// One request.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// Form fields, already encoded.
    pub(super) form: Option<String>,
}

impl Transport {
    /// Clients that trust the system's authorities and `authorities`.
    pub(super) fn new(authorities: &[Certificate]) -> Result<Self, reqwest::Error> {
        let proxies = address::proxies_of_environment();
        let resolver = PublicResolver::new(proxies.clone());
        Ok(Self {
            any: build(authorities, |builder| builder)?,
            public: {
                let resolver = std::sync::Arc::new(resolver);
                build(authorities, |builder| {
                    builder.dns_resolver(resolver.clone())
                })?
            },
            near: builder(&[]).no_proxy().tls_certs_only([]).build()?,
            proxies,
            sent: AtomicU64::new(0),
        })
    }

    /// How many requests were sent so far, answered or not.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Sends `request` to a service of this host or its cloud, over plain http and past all proxies,
    /// which do not have it.
    pub(super) async fn send_near(
        &self,
        request: &Request,
        subject: &str,
    ) -> Result<Response, OriginError> {
        self.exchange(&self.near, request, subject)
            .await
            .map_err(Failure::into_error)
    }

    /// Sends `request` and waits for the head of the answer. A connection that was closed before
    /// it answered is most likely one that the server had given up while it was idle: the request
    /// is sent once more.
    pub(super) async fn send(
        &self,
        reach: Reach,
        request: &Request,
        subject: &str,
    ) -> Result<Response, OriginError> {
        let client = match reach {
            Reach::Any => &self.any,
            Reach::Public => {
                self.check_public(&request.url)
                    .map_err(|refusal| OriginError::Unreachable(format!("{subject}: {refusal}")))?;
                &self.public
            }
        };
        match self.exchange(client, request, subject).await {
            Err(Failure::Closed(_)) => self.exchange(client, request, subject).await,
            outcome => outcome,
        }
        .map_err(Failure::into_error)
    }

    async fn exchange(
        &self,
        client: &Client,
        request: &Request,
        subject: &str,
    ) -> Result<Response, Failure> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        exchange(client, request, subject).await
    }

    fn check_public(&self, url: &Url) -> Result<(), NotPublic> {
        // The resolver lets proxies through, so the proxy itself must not be an upstream.
        match url.host_str() {
            Some(host) if self.proxies.iter().any(|proxy| proxy == host) => {
                Err(NotPublic(host.to_owned()))
            }
            _ => address::check_literal(url),
        }
    }
}

fn build(
    authorities: &[Certificate],
    finish: impl Fn(ClientBuilder) -> ClientBuilder,
) -> Result<Client, reqwest::Error> {
    let built = finish(builder(authorities)).build();
    match built {
        // A machine without CA certificates can still use plain http and authorities of its own,
        // and is told about the rest when it tries.
        Err(error) if authorities.is_empty() => {
            tracing::warn!(
                error = chain(&error),
                "no CA certificates of this system can be used, so no https origin will be \
                 trusted; install them (ca-certificates) or set SSL_CERT_FILE"
            );
            finish(builder(&[])).tls_certs_only([]).build()
        }
        built => built,
    }
}

fn builder(authorities: &[Certificate]) -> ClientBuilder {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Client::builder()
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .pool_idle_timeout(IDLE_CONNECTION_LIFETIME)
        .tls_certs_merge(authorities.iter().cloned())
}

enum Failure {
    /// The connection was closed before any of the answer had come.
    Closed(OriginError),
    Final(OriginError),
}

impl Failure {
    fn into_error(self) -> OriginError {
        match self {
            Self::Closed(error) | Self::Final(error) => error,
        }
    }
}

async fn exchange(client: &Client, request: &Request, subject: &str) -> Result<Response, Failure> {
    let mut sending = client
        .request(request.method.clone(), request.url.clone())
        .headers(request.headers.clone());
    if let Some(form) = &request.form {
        sending = sending
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.clone());
    }
    let host = request.url.host_str().unwrap_or_default();
    match tokio::time::timeout(CONNECT_TIMEOUT + HEADERS_TIMEOUT, sending.send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => {
            let closed = was_closed(&error);
            // The URL may be presigned, and then is a secret.
            let reason = chain(&error.without_url());
            let error = OriginError::Unreachable(format!("{subject}: {host}: {reason}"));
            Err(if closed {
                Failure::Closed(error)
            } else {
                Failure::Final(error)
            })
        }
        Err(_) => Err(Failure::Final(OriginError::Unreachable(format!(
            "{subject}: {host} gave no answer in {} s",
            (CONNECT_TIMEOUT + HEADERS_TIMEOUT).as_secs()
        )))),
    }
}

fn was_closed(error: &reqwest::Error) -> bool {
    if error.is_connect() || error.is_timeout() {
        return false;
    }
    std::iter::successors(error.source(), |&cause| cause.source()).any(|cause| {
        let closed_by_hyper = cause
            .downcast_ref::<hyper::Error>()
            .is_some_and(|error| error.is_incomplete_message() || error.is_canceled());
        let reset = cause.downcast_ref::<std::io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
            )
        });
        closed_by_hyper || reset
    })
}

/// An error with its causes, each once: those of HTTP clients repeat each other.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
