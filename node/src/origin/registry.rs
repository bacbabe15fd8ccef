//! One repository of one registry, asked over HTTP.

use std::{collections::BTreeSet, sync::Arc};

use futures::{
    StreamExt,
    stream::{self},
};
use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, LINK},
};
use serde::{Deserialize, de::DeserializeOwned};
use shoal_protocol::{
    digest::Digest,
    limits::BLOB_BYTES_MAX,
    message::{BlobKind, Hint},
    reference::Tag,
};
use url::Url;

use super::{
    Common, OriginBody,
    asking::Asking,
    body::{self, ContentRange},
    error::OriginError,
    limits::{LIST_MAX, LIST_PAGE_BYTES_MAX, LIST_PAGES_MAX, TAGS_PER_PAGE},
    manifest, refusal,
    site::Site,
};

/// A repository, its registry, and what is needed to log in there. The questions are those of
/// [`Origins`](super::Origins).
pub(super) struct Registry<'a> {
    pub(super) site: Arc<Site>,
    pub(super) hint: &'a Hint,
    pub(super) common: &'a Common,
}

impl<'a> Registry<'a> {
    pub(super) async fn resolve_tag(&self, tag: &Tag, known: bool) -> Result<Digest, OriginError> {
        let what = format!("tag {tag}");
        let path = format!("{}/manifests/{tag}", self.hint.repository);
        let asking = self.asking(&path, &what).accepting_manifests();
        let answer = asking.send(Method::HEAD).await?;
        let status = answer.response.status();
        if status.is_success() {
            if let Some(digest) = manifest::digest_header(answer.response.headers()) {
                return Ok(digest);
            }
        } else if !refuses_method(status) {
            return Err(refusal::error(answer.response, &asking.subject).await);
        }
        if known && let Some(reason) = self.common.allowances.spared(&self.hint.upstream) {
            return Err(OriginError::Throttled {
                reason,
                retry_after: None,
            });
        }
        let response = asking.get().await?;
        let manifest = manifest::read(response, &asking.subject).await?;
        Ok(manifest::digest_of(&manifest))
    }

    pub(super) async fn read(
        &self,
        digest: &Digest,
        kind: BlobKind,
        start: u64,
        end: Option<u64>,
    ) -> Result<OriginBody, OriginError> {
        match kind {
            BlobKind::Manifest => self.read_manifest(digest).await,
            BlobKind::Blob => self.read_blob(digest, start, end).await,
        }
    }

    async fn read_manifest(&self, digest: &Digest) -> Result<OriginBody, OriginError> {
        let path = format!("{}/manifests/{digest}", self.hint.repository);
        let what = format!("manifest {digest}");
        let asking = self.asking(&path, &what).accepting_manifests();
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
        start: u64,
        end: Option<u64>,
    ) -> Result<OriginBody, OriginError> {
        let mut asking = self.asking_blob(digest);
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

    pub(super) async fn blob_size(&self, digest: &Digest) -> Result<u64, OriginError> {
        let asking = self.asking_blob(digest);
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
            let subject = format!("the size of {digest} in {}", self.hint.repository);
            return Err(body::too_large(&subject, BLOB_BYTES_MAX));
        }
        Ok(size)
    }

    pub(super) async fn tags(&self) -> Result<Vec<Tag>, OriginError> {
        #[derive(Deserialize)]
        struct Page {
            // Some registries write null for a repository without tags.
            tags: Option<Vec<String>>,
        }
        let path = format!("{}/tags/list", self.hint.repository);
        let mut asking = self.asking(&path, "the tags");
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

    pub(super) async fn referrers(
        &self,
        subject: &Digest,
    ) -> Result<Vec<serde_json::Value>, OriginError> {
        #[derive(Deserialize)]
        struct Page {
            manifests: Vec<serde_json::Value>,
        }
        let path = format!("{}/referrers/{subject}", self.hint.repository);
        let asking = self.asking(&path, "the referrers");
        let mut referrers = Vec::new();
        each_page(asking, |page: Page| {
            referrers.extend(page.manifests);
            referrers.len()
        })
        .await?;
        Ok(referrers)
    }

    pub(super) fn asking_blob(&self, digest: &Digest) -> Asking<'a> {
        let path = format!("{}/blobs/{digest}", self.hint.repository);
        self.asking(&path, &format!("blob {digest}"))
    }

    /// A question for `path` under the registry's `/v2/`.
    pub(super) fn asking(&self, path: &str, what: &str) -> Asking<'a> {
        let Hint {
            upstream,
            repository,
        } = self.hint;
        Asking {
            subject: format!(
                "reading {what} of {upstream}/{repository} from {}",
                self.site.base
            ),
            url: self.site.url(path),
            headers: HeaderMap::new(),
            site: Arc::clone(&self.site),
            hint: self.hint,
            common: self.common,
        }
    }
}

/// Whether a status says that the method, rather than the content, is not to be had.
pub(super) fn refuses_method(status: StatusCode) -> bool {
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
