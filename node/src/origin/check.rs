//! Whether origins give what pulls need: each is asked as the daemon would ask it, and what it answers is
//! told to people, with what to do where it is not well.
//!
//! Every origin of an upstream is asked, whatever those before it say, and how it did before does not
//! matter: that others could serve instead is no reason to leave a broken one. A step that fails ends the
//! check of its origin where the daemon would not get further either.
//!
//! No secret is told: no password or token, no user name either (at some registries that is the token),
//! and of a redirect the host alone, since the rest may be signed.

mod advice;
mod registry;
mod storage;

use std::{sync::atomic::AtomicU64, time::Duration};

use bytes::Bytes;
use serde::Serialize;
use shoal_protocol::{
    digest::{Algorithm, Digest},
    message::Hint,
    reference::{Repository, Tag, Upstream},
};

use super::{
    OriginBody, Origins, body,
    error::OriginError,
    manifest,
    place::{Place, Source},
};
use crate::{clock, image::Document};

/// An index may name an index; no image seen goes deeper.
const INDEX_DEPTH_MAX: usize = 3;

/// What was found out about one origin of an upstream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OriginCheck {
    /// Whose.
    pub upstream: Upstream,
    /// Where it is, without what may be a secret.
    pub url: String,
    /// What was tried, in this order.
    pub checks: Vec<Check>,
    /// HTTP requests that this took, with logins, redirects and repetitions; 0 for a directory. Only right
    /// where nothing else is asked of these [`Origins`] meanwhile.
    pub requests: u64,
    /// GETs of manifests among them. Registries that limit pulls, as Docker Hub does, count these.
    pub manifest_gets: u64,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What.
    pub what: Checked,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found, or why it failed.
    pub detail: String,
    /// What to do about it, where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Whether the origin said that there is no such thing.
    #[serde(skip)]
    missing: bool,
}

/// What can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Checked {
    /// Does a registry answer, and what does it ask for?
    Reach,
    /// Are there credentials for it, and can they be read?
    Credentials,
    /// Does it take them?
    Login,
    /// Does a directory or bucket hold one of the layouts that can be read?
    Layout,
    /// What does the image's tag name?
    Tag,
    /// How many pulls does the registry still give?
    Limit,
    /// Does one byte of the image's first blob come, and where from?
    Blob,
}

impl Checked {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reach => "reach",
            Self::Credentials => "credentials",
            Self::Login => "login",
            Self::Layout => "layout",
            Self::Tag => "tag",
            Self::Limit => "limit",
            Self::Blob => "blob",
        }
    }
}

impl OriginCheck {
    /// Whether all of it is as it should be.
    pub fn ok(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }
}

impl Origins {
    /// Asks each origin of an upstream, in their order, what a pull would: whether it answers, takes this
    /// node's login and, with an `image`, has the tag and gives a byte of a blob.
    ///
    /// A tag is asked for by HEAD, which registries that count pulls do not count. To find a blob takes one
    /// GET of a manifest, two where the tag names an index; it is not spent where no more pulls are left
    /// than the [`Reserve`](super::Reserve). Takes some seconds for an origin that does not answer.
    ///
    /// # Errors
    /// For an upstream that nobody configured and whose name makes no URL; what origins answer is in the
    /// checks.
    pub async fn check(
        &self,
        upstream: &Upstream,
        image: Option<(&Repository, &Tag)>,
    ) -> Result<Vec<OriginCheck>, OriginError> {
        let mut all = Vec::new();
        for place in self.places(upstream)? {
            all.push(check(upstream, &place, image).await);
        }
        pass_over_missing(&mut all);
        Ok(all)
    }
}

async fn check(
    upstream: &Upstream,
    place: &Place,
    image: Option<(&Repository, &Tag)>,
) -> OriginCheck {
    let before = place.sent();
    let mut findings = Findings {
        upstream,
        storage: place.storage().is_some(),
        checks: Vec::new(),
    };
    let manifest_gets = AtomicU64::new(0);
    let usable = match (place.site(), place.storage()) {
        (Some(site), _) => registry::site(&mut findings, site).await,
        (None, Some(storage)) => storage::layout(&mut findings, storage).await,
        (None, None) => false,
    };
    if let Some((repository, tag)) = image.filter(|_| usable) {
        let hint = Hint {
            upstream: upstream.clone(),
            repository: repository.clone(),
        };
        let source = place.source(&hint);
        match &source {
            Source::Registry(registry) => {
                registry::image(&mut findings, registry, tag, &manifest_gets).await;
            }
            Source::Storage(storage) => storage::image(&mut findings, storage, &hint, tag).await,
        }
    }
    OriginCheck {
        upstream: upstream.clone(),
        url: place.health().url().to_owned(),
        checks: findings.checks,
        requests: place.sent() - before,
        manifest_gets: manifest_gets.into_inner(),
    }
}

/// Of several origins it is enough that one has the tag.
fn pass_over_missing(all: &mut [OriginCheck]) {
    let found = |check: &Check| check.what == Checked::Tag && check.ok;
    if !all.iter().flat_map(|origin| &origin.checks).any(found) {
        return;
    }
    for check in all.iter_mut().flat_map(|origin| &mut origin.checks) {
        if check.what == Checked::Tag && check.missing {
            check.ok = true;
            check.todo = None;
            check.detail += "; another origin of the upstream has it";
        }
    }
}

/// What was found out so far about one origin.
struct Findings<'a> {
    upstream: &'a Upstream,
    /// Whether the origin is a directory or a bucket.
    storage: bool,
    checks: Vec<Check>,
}

/// What one step has found, and what is told of it.
struct Found<T> {
    value: T,
    detail: String,
}

impl<T> Found<T> {
    fn new(value: T, detail: String) -> Self {
        Self { value, detail }
    }
}

/// Why a step failed.
struct Failure {
    error: OriginError,
    /// What to do, where it does not follow from the error.
    todo: Option<String>,
}

impl From<OriginError> for Failure {
    fn from(error: OriginError) -> Self {
        Self { error, todo: None }
    }
}

impl Findings<'_> {
    /// Tries one thing and writes down what came of it; none where it failed.
    async fn step<T>(
        &mut self,
        what: Checked,
        tried: impl Future<Output = Result<Found<T>, Failure>>,
    ) -> Option<T> {
        let began = clock::instant();
        let outcome = tried.await;
        let took = began.elapsed();
        match outcome {
            Ok(Found { value, detail }) => {
                self.note(what, true, detail, None, took);
                Some(value)
            }
            Err(Failure { error, todo }) => {
                let todo = todo.unwrap_or_else(|| advice::on(&error, what, self));
                self.note(what, false, error.to_string(), Some(todo), took);
                if let Some(check) = self.checks.last_mut() {
                    check.missing = matches!(error, OriginError::NotFound(_));
                }
                None
            }
        }
    }

    fn note(
        &mut self,
        what: Checked,
        ok: bool,
        detail: String,
        todo: Option<String>,
        took: Duration,
    ) {
        self.checks.push(Check {
            what,
            ok,
            detail,
            todo,
            seconds: took.as_secs_f64(),
            missing: false,
        });
    }
}

/// The first blob that a manifest names, by way of the first manifest of an index; each is read with `read`.
async fn first_blob<F>(digest: Digest, read: impl Fn(Digest) -> F) -> Result<Digest, OriginError>
where
    F: Future<Output = Result<OriginBody, OriginError>>,
{
    let mut next = digest;
    for _ in 0..INDEX_DEPTH_MAX {
        let subject = format!("manifest {next}");
        let manifest = body::gather(read(next).await?.stream, &subject).await?;
        let document = document(&manifest, &next, &subject)?;
        let entry = document.manifests.first();
        let blob = document.layers.first().or(document.config.as_ref());
        let named = entry.or(blob).ok_or_else(|| {
            OriginError::Invalid(format!("{subject} names neither a manifest nor a blob"))
        })?;
        let named_digest = named.digest.parse().map_err(|problem| {
            OriginError::Invalid(format!("{subject} names `{}`: {problem}", named.digest))
        })?;
        if entry.is_none() {
            return Ok(named_digest);
        }
        next = named_digest;
    }
    Err(OriginError::Invalid(format!(
        "manifest {digest} is an index of indexes, more than {INDEX_DEPTH_MAX} deep"
    )))
}

fn document(manifest: &Bytes, digest: &Digest, subject: &str) -> Result<Document, OriginError> {
    if digest.algorithm() == Algorithm::Sha256 && manifest::digest_of(manifest) != *digest {
        return Err(OriginError::Invalid(format!(
            "{subject}: its bytes have another digest, so that they are damaged where they are kept or on \
             the way"
        )));
    }
    serde_json::from_slice(manifest).map_err(|problem| {
        OriginError::Invalid(format!("{subject} is none of an image: {problem}"))
    })
}
