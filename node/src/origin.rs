//! Registries, from their client's side: where upstreams really live, how this node logs in to
//! them, and how bytes come from them.
//!
//! A call here asks the origin once (and once more where a login or an idle connection has
//! ended): whoever calls knows whether a peer could serve instead, how long to wait, and whom else
//! to ask. Nothing is cached but authorizations and connections; presigned URLs in particular are
//! asked for anew each time, since they expire.
//!
//! Anyone who can reach the mirror endpoint can name an upstream, so that what an origin may lead
//! this node to is limited; `Site` has the rules. `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` are
//! honoured; the names in a request that goes through a proxy are for the proxy to resolve and
//! to judge.

mod access;
mod address;
mod asking;
mod body;
mod challenge;
mod config;
mod credentials;
mod error;
#[cfg(test)]
mod fake;
mod grants;
mod limits;
mod loans;
mod login;
mod manifest;
mod permission;
mod refusal;
mod retry_after;
mod site;
#[cfg(test)]
mod tests;
mod transport;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use reqwest::{
    Certificate, Method, StatusCode,
    header::{HeaderMap, HeaderValue, LINK},
};
use serde::{Deserialize, de::DeserializeOwned};
use shoal_protocol::{
    digest::Digest,
    limits::BLOB_BYTES_MAX,
    message::{BlobKind, Hint},
    reference::{Tag, Upstream},
};
use url::Url;

pub use self::{
    access::Access,
    config::{Credentials, OriginConfigError, OriginSpec, OriginsConfig, Secret},
    error::OriginError,
};
pub(crate) use self::{
    access::{Gate, NoPass, Pass},
    permission::{Object, Refusal, Told},
};
use self::{
    asking::Asking,
    body::ContentRange,
    grants::Grants,
    limits::{LIST_MAX, LIST_PAGE_BYTES_MAX, LIST_PAGES_MAX, TAGS_PER_PAGE},
    loans::{Loan, Loans},
    site::Site,
    transport::Transport,
};
use crate::clock::Clock;

/// All origins of this node. Cheap to clone; clones share connections and logins.
#[derive(Clone)]
pub struct Origins {
    shared: Arc<Shared>,
}

struct Shared {
    configured: BTreeMap<Upstream, Arc<Site>>,
    docker_config: Option<PathBuf>,
    /// For upstreams without authorities of their own.
    transport: Arc<Transport>,
    grants: Arc<Grants>,
    loans: Arc<Loans>,
}

/// A blob's bytes on their way from an origin.
pub struct OriginBody {
    /// Where in the blob `stream` begins: 0 if the origin ignored the range that it was asked
    /// for, and then `stream` goes on to the blob's end.
    pub start: u64,
    /// Whether the origin gives all of the blob, whatever it was asked for.
    pub whole: bool,
    /// The size of the whole blob in bytes, where the origin said it.
    pub size: Option<u64>,
    /// The bytes. Ends without an error only when all that the origin announced have come; the
    /// digest remains to be checked.
    pub stream: BoxStream<'static, Result<Bytes, OriginError>>,
}

impl Origins {
    /// Reads certificate files and sets up clients. Nothing is connected to yet.
    pub fn new(config: OriginsConfig) -> Result<Self, OriginConfigError> {
        let transport = Arc::new(Transport::new(&[]).map_err(OriginConfigError::Client)?);
        let mut configured = BTreeMap::new();
        for (upstream, spec) in config.upstreams {
            spec.check(&upstream)?;
            let transport = match &spec.ca_file {
                None => Arc::clone(&transport),
                Some(path) => {
                    let authorities = read_authorities(&upstream, path)?;
                    Arc::new(Transport::new(&authorities).map_err(|_| {
                        OriginConfigError::CaContent {
                            upstream: upstream.clone(),
                            path: path.clone(),
                        }
                    })?)
                }
            };
            let site = Site::configured(spec, config.docker_config.clone(), transport);
            configured.insert(upstream, Arc::new(site));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                configured,
                docker_config: config.docker_config,
                transport,
                grants: Grants::new(Clock::start()),
                loans: Arc::default(),
            }),
        })
    }

    /// What a tag names now: asked by HEAD, which costs nothing at registries that count pulls;
    /// by GET, and the manifest hashed, where HEAD is not answered with a digest.
    pub async fn resolve_tag(&self, hint: &Hint, tag: &Tag) -> Result<Digest, OriginError> {
        let what = format!("tag {tag}");
        let path = format!("{}/manifests/{tag}", hint.repository);
        let asking = self.asking(hint, &path, &what)?.accepting_manifests();
        let answer = asking.send(Method::HEAD).await?;
        let status = answer.response.status();
        if status.is_success() {
            if let Some(digest) = manifest::digest_header(answer.response.headers()) {
                return Ok(digest);
            }
        } else if !refuses_method(status) {
            return Err(refusal::error(answer.response, &asking.subject).await);
        }
        let response = asking.get().await?;
        let manifest = manifest::read(response, &asking.subject).await?;
        Ok(manifest::digest_of(&manifest))
    }

    /// The bytes of a blob or manifest from `start` up to `end`, which is not included, or to the
    /// end of it.
    ///
    /// The answer may begin elsewhere than asked: see [`OriginBody::start`]. An `end` beyond the
    /// blob's own is no error. A manifest is always read whole, and checked to be JSON of at most
    /// [`MANIFEST_BYTES_MAX`](shoal_protocol::limits::MANIFEST_BYTES_MAX) bytes, before this returns.
    ///
    /// # Errors
    /// Those of the request here, those of the body in the stream. A range that is empty, or
    /// begins at or beyond the blob's end, is [`OriginError::Invalid`]; a blob of 0 bytes can
    /// be read from 0.
    pub async fn read(
        &self,
        digest: &Digest,
        kind: BlobKind,
        hint: &Hint,
        start: u64,
        end: Option<u64>,
    ) -> Result<OriginBody, OriginError> {
        match kind {
            BlobKind::Manifest => self.read_manifest(digest, hint).await,
            BlobKind::Blob => self.read_blob(digest, hint, start, end).await,
        }
    }

    async fn read_manifest(&self, digest: &Digest, hint: &Hint) -> Result<OriginBody, OriginError> {
        let path = format!("{}/manifests/{digest}", hint.repository);
        let what = format!("manifest {digest}");
        let asking = self.asking(hint, &path, &what)?.accepting_manifests();
        let manifest = manifest::read(asking.get().await?, &asking.subject).await?;
        Ok(OriginBody {
            start: 0,
            whole: true,
            size: Some(manifest.len() as u64),
            stream: stream::iter([Ok(manifest)]).boxed(),
        })
    }

    async fn read_blob(
        &self,
        digest: &Digest,
        hint: &Hint,
        start: u64,
        end: Option<u64>,
    ) -> Result<OriginBody, OriginError> {
        let mut asking = self.asking_blob(digest, hint)?;
        let invalid = |asking: &Asking<'_>, problem: String| {
            OriginError::Invalid(format!("{}: {problem}", asking.subject))
        };
        if end.is_some_and(|end| end <= start) {
            return Err(invalid(
                &asking,
                format!("a range from byte {start} that ends before it"),
            ));
        }
        let asked = match end {
            None if start == 0 => None,
            None => Some(format!("bytes={start}-")),
            Some(end) => Some(format!("bytes={start}-{}", end - 1)),
        };
        if let Some(range) = &asked {
            asking = asking.with_range(range);
        }
        let response = asking.send(Method::GET).await?.response;
        let length = body::content_length(response.headers());
        let range = ContentRange::of(response.headers());
        let whole = response.status() == StatusCode::OK;
        let (start, expected, size) = match response.status() {
            StatusCode::OK => (0, length, length),
            StatusCode::PARTIAL_CONTENT => {
                let Some(ContentRange {
                    range: Some((first, past)),
                    size,
                }) = range
                else {
                    let problem = "the partial answer does not say which part it is";
                    return Err(invalid(&asking, problem.to_owned()));
                };
                // Less than asked for is right only at the blob's end.
                let complete = end.is_some_and(|end| past == end) || Some(past) == size;
                if first != start
                    || !complete
                    || end.is_some_and(|end| past > end)
                    || length.is_some_and(|length| length != past - first)
                {
                    let problem = format!(
                        "asked for {}, the origin answers with bytes {first}-{} in {} bytes",
                        asked.as_deref().unwrap_or("all bytes"),
                        past - 1,
                        length.unwrap_or(past - first),
                    );
                    return Err(invalid(&asking, problem));
                }
                (start, Some(past - first), size)
            }
            // Every range lies outside an empty blob.
            StatusCode::RANGE_NOT_SATISFIABLE
                if start == 0 && range.is_some_and(|range| range.size == Some(0)) =>
            {
                return Ok(OriginBody {
                    start: 0,
                    whole: true,
                    size: Some(0),
                    stream: stream::empty().boxed(),
                });
            }
            _ => return Err(refusal::error(response, &asking.subject).await),
        };
        if size.is_some_and(|size| size > BLOB_BYTES_MAX) {
            return Err(body::too_large(&asking.subject, BLOB_BYTES_MAX));
        }
        Ok(OriginBody {
            start,
            whole,
            size,
            stream: body::stream(response, expected, BLOB_BYTES_MAX, asking.subject),
        })
    }

    /// The size of a blob in bytes: asked by HEAD, or by GET of the first byte where the registry,
    /// or the store that it redirects to, does not answer HEAD (GHCR's does not).
    pub async fn blob_size(&self, digest: &Digest, hint: &Hint) -> Result<u64, OriginError> {
        let asking = self.asking_blob(digest, hint)?;
        let answer = asking.send(Method::HEAD).await?;
        let status = answer.response.status();
        let length = body::content_length(answer.response.headers());
        let size = match length.filter(|_| status == StatusCode::OK) {
            Some(size) => size,
            // A presigned URL is signed for one method, and says 403 to others.
            None if status.is_success()
                || refuses_method(status)
                || (answer.elsewhere && status == StatusCode::FORBIDDEN) =>
            {
                first_byte_size(asking.with_range("bytes=0-0")).await?
            }
            None => return Err(refusal::error(answer.response, &asking.subject).await),
        };
        if size > BLOB_BYTES_MAX {
            let subject = format!("the size of {digest} in {}", hint.repository);
            return Err(body::too_large(&subject, BLOB_BYTES_MAX));
        }
        Ok(size)
    }

    /// The tags of a repository, sorted, each once. Names that are not tags are left out.
    ///
    /// # Errors
    /// [`OriginError::Invalid`] for a list of over 100,000 tags or 1,000 pages.
    pub async fn tags(&self, hint: &Hint) -> Result<Vec<Tag>, OriginError> {
        #[derive(Deserialize)]
        struct Page {
            // Some registries write null for a repository without tags.
            tags: Option<Vec<String>>,
        }
        let path = format!("{}/tags/list", hint.repository);
        let mut asking = self.asking(hint, &path, "the tags")?;
        asking.url.set_query(Some(&format!("n={TAGS_PER_PAGE}")));
        let mut tags = BTreeSet::new();
        each_page(asking, |page: Page| {
            let names = page.tags.unwrap_or_default();
            tags.extend(names.into_iter().filter_map(|tag| Tag::try_from(tag).ok()));
            tags.len()
        })
        .await?;
        Ok(tags.into_iter().collect())
    }

    /// The descriptors of the manifests that refer to `subject`.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] where the registry does not have the referrers API; as for
    /// [`tags`](Self::tags) otherwise.
    pub async fn referrers(
        &self,
        hint: &Hint,
        subject: &Digest,
    ) -> Result<Vec<serde_json::Value>, OriginError> {
        #[derive(Deserialize)]
        struct Page {
            manifests: Vec<serde_json::Value>,
        }
        let path = format!("{}/referrers/{subject}", hint.repository);
        let asking = self.asking(hint, &path, "the referrers")?;
        let mut referrers = Vec::new();
        each_page(asking, |page: Page| {
            referrers.extend(page.manifests);
            referrers.len()
        })
        .await?;
        Ok(referrers)
    }

    fn asking_blob<'a>(
        &'a self,
        digest: &Digest,
        hint: &'a Hint,
    ) -> Result<Asking<'a>, OriginError> {
        let path = format!("{}/blobs/{digest}", hint.repository);
        self.asking(hint, &path, &format!("blob {digest}"))
    }

    fn asking<'a>(
        &'a self,
        hint: &'a Hint,
        path: &str,
        what: &str,
    ) -> Result<Asking<'a>, OriginError> {
        let site = self.site(&hint.upstream)?;
        let (upstream, repository) = (&hint.upstream, &hint.repository);
        Ok(Asking {
            subject: format!(
                "reading {what} of {upstream}/{repository} from {}",
                site.base
            ),
            url: site.url(path),
            headers: HeaderMap::new(),
            site,
            hint,
            grants: &self.shared.grants,
            loans: &self.shared.loans,
        })
    }

    fn site(&self, upstream: &Upstream) -> Result<Arc<Site>, OriginError> {
        let shared = &*self.shared;
        Ok(match shared.configured.get(upstream) {
            Some(site) => Arc::clone(site),
            None => Arc::new(Site::public(
                upstream,
                shared.docker_config.clone(),
                Arc::clone(&shared.transport),
            )?),
        })
    }

    /// The upstreams that the operator configured.
    fn configured(&self) -> impl Iterator<Item = &Upstream> {
        self.shared.configured.keys()
    }

    /// Lets this node read a repository with a client's `Authorization` where its own login is not
    /// enough, until the loan is dropped.
    fn lend(&self, hint: Hint, header: HeaderValue) -> Loan {
        self.shared.loans.lend(hint, header)
    }
}

/// Whether a status says that the method, rather than the content, is not to be had.
fn refuses_method(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 405 | 501)
}

/// A blob's size from the answer to a request for its first byte.
async fn first_byte_size(asking: Asking<'_>) -> Result<u64, OriginError> {
    let response = asking.send(Method::GET).await?.response;
    let size = match response.status() {
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
            ContentRange::of(response.headers()).and_then(|range| range.size)
        }
        StatusCode::OK => body::content_length(response.headers()),
        _ => return Err(refusal::error(response, &asking.subject).await),
    };
    size.ok_or_else(|| {
        OriginError::Invalid(format!(
            "{}: the origin does not say how large it is",
            asking.subject
        ))
    })
}

/// Reads a list page by page. `take` says how many entries there are so far.
async fn each_page<P: DeserializeOwned>(
    mut asking: Asking<'_>,
    mut take: impl FnMut(P) -> usize,
) -> Result<(), OriginError> {
    for _ in 0..LIST_PAGES_MAX {
        let response = asking.get().await?;
        let next = next_page(response.headers(), &asking.url);
        let body = body::collect(response, LIST_PAGE_BYTES_MAX, &asking.subject).await?;
        let page = serde_json::from_slice(&body).map_err(|problem| {
            let subject = &asking.subject;
            OriginError::Invalid(format!("{subject}: the answer is no such list: {problem}"))
        })?;
        if take(page) > LIST_MAX {
            break;
        }
        match next {
            None => return Ok(()),
            Some(next) if next.origin() == asking.url.origin() => asking.url = next,
            Some(_) => {
                return Err(OriginError::Invalid(format!(
                    "{}: the list goes on at another host",
                    asking.subject
                )));
            }
        }
    }
    Err(OriginError::Invalid(format!(
        "{}: the list is longer than {LIST_MAX} entries or {LIST_PAGES_MAX} pages",
        asking.subject
    )))
}

/// The URL of the next page, from `Link: <…>; rel="next"`.
fn next_page(headers: &HeaderMap, current: &Url) -> Option<Url> {
    headers
        .get_all(LINK)
        .iter()
        .filter_map(|link| link.to_str().ok())
        .find_map(|link| {
            let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
            let parameters = parameters.to_ascii_lowercase().replace(['"', ' '], "");
            let next = parameters
                .split(';')
                .any(|parameter| parameter == "rel=next");
            current.join(target).ok().filter(|_| next)
        })
}

fn read_authorities(
    upstream: &Upstream,
    path: &PathBuf,
) -> Result<Vec<Certificate>, OriginConfigError> {
    let pem = std::fs::read(path).map_err(|source| OriginConfigError::CaFile {
        upstream: upstream.clone(),
        path: path.clone(),
        source,
    })?;
    Certificate::from_pem_bundle(&pem)
        .ok()
        .filter(|authorities| !authorities.is_empty())
        .ok_or_else(|| OriginConfigError::CaContent {
            upstream: upstream.clone(),
            path: path.clone(),
        })
}
