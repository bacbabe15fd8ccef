//! Origins that are no registries: a directory or a bucket that holds a registry's storage or an OCI
//! image layout, read with no registry in between.
//!
//! Which of the two it is shows when it is first read, so that a directory may be mounted later than
//! the node starts. What is not there is believed only while the layout itself is: an empty mount
//! point is an origin that is away, not one without content.

mod bucket;
mod cloud;
mod image_layout;
mod links;
mod registry_layout;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use futures::{StreamExt, stream};
use shoal_protocol::{
    digest::Digest,
    limits::{BLOB_BYTES_MAX, MANIFEST_BYTES_MAX},
    message::{BlobKind, Hint},
    reference::{Selector, Tag},
};
use tokio::sync::OnceCell;

pub(super) use self::cloud::BucketUrl;
use self::{bucket::Bucket, links::Links};
use super::{
    OriginBody, body,
    error::OriginError,
    limits::{LINK_BYTES_MAX, LIST_MAX},
    manifest,
    permission::Object,
    transport::Transport,
};

/// A directory or a bucket with content.
pub(super) struct Storage {
    place: Place,
    /// The place, for people.
    shown: String,
    opened: OnceCell<Opened>,
    links: Links,
}

enum Place {
    /// Opened when it is read, since it may be mounted later than the node starts.
    Directory(PathBuf),
    Bucket(Bucket),
}

struct Opened {
    bucket: Bucket,
    layout: Layout,
}

/// How content is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// As a registry keeps it, with links that put it into repositories.
    Registry,
    /// As an OCI image layout, which knows tags but no repositories: every repository of the
    /// upstream has all of it.
    Image,
}

/// Where a blob or manifest is.
#[derive(Debug, PartialEq, Eq)]
struct Spot {
    /// The link that puts it into the repository, where the layout has links.
    link: Option<String>,
    /// Its bytes.
    data: String,
}

impl Storage {
    /// One in a directory of this host, which nothing is read from yet.
    pub(super) fn directory(place: PathBuf) -> Self {
        let shown = place.display().to_string();
        Self::at(Place::Directory(place), shown)
    }

    /// One in a bucket, which nothing is asked of yet. The error is for people.
    pub(super) fn bucket(url: BucketUrl, transport: Arc<Transport>) -> Result<Self, String> {
        let shown = url.shown();
        Ok(Self::at(Place::Bucket(url.open(transport)?), shown))
    }

    fn at(place: Place, shown: String) -> Self {
        Self {
            place,
            shown,
            opened: OnceCell::new(),
            links: Links::new(),
        }
    }

    /// How content is laid out there, for people.
    pub(super) async fn layout(&self) -> Result<&'static str, OriginError> {
        let opened = self.open(&format!("opening {}", self.shown)).await?;
        Ok(match opened.layout {
            Layout::Registry => "a registry's own storage",
            Layout::Image => "an OCI image layout",
        })
    }

    pub(super) async fn resolve_tag(&self, hint: &Hint, tag: &Tag) -> Result<Digest, OriginError> {
        let subject = self.subject(hint, &format!("tag {tag}"));
        let Opened { bucket, layout } = self.open(&subject).await?;
        let digest = match layout {
            Layout::Registry => {
                let link = registry_layout::tag_link(hint, tag);
                read_link(bucket, &link, &subject).await
            }
            Layout::Image => image_layout::resolve_tag(bucket, hint, tag, &subject).await,
        };
        self.confirm(digest, &subject).await
    }

    pub(super) async fn read(
        &self,
        hint: &Hint,
        digest: &Digest,
        kind: BlobKind,
        start: u64,
        end: Option<u64>,
    ) -> Result<OriginBody, OriginError> {
        let subject = self.subject(hint, &named(kind, digest));
        let Opened { bucket, layout } = self.open(&subject).await?;
        let spot = layout.spot(hint, digest, kind);
        let body = match kind {
            BlobKind::Manifest => read_manifest(bucket, &spot, digest, &subject).await,
            BlobKind::Blob => {
                let (linked, body) = tokio::join!(
                    self.check_link(bucket, &spot, hint, digest, &subject),
                    bucket.read(&spot.data, start, end, BLOB_BYTES_MAX, &subject),
                );
                linked.and(body)
            }
        };
        self.confirm(body, &subject).await
    }

    pub(super) async fn blob_size(&self, hint: &Hint, digest: &Digest) -> Result<u64, OriginError> {
        let size = self.size(hint, digest, BlobKind::Blob).await?;
        if size > BLOB_BYTES_MAX {
            let subject = self.subject(hint, &format!("the size of {digest}"));
            return Err(body::too_large(&subject, BLOB_BYTES_MAX));
        }
        Ok(size)
    }

    pub(super) async fn tags(&self, hint: &Hint) -> Result<Vec<Tag>, OriginError> {
        let subject = self.subject(hint, "the tags");
        let Opened { bucket, layout } = self.open(&subject).await?;
        let tags = match layout {
            Layout::Registry => registry_layout::tags(bucket, hint, &subject).await,
            Layout::Image => image_layout::tags(bucket, hint, &subject).await,
        };
        let mut tags = self.confirm(tags, &subject).await?;
        if tags.len() > LIST_MAX {
            return Err(OriginError::Invalid(format!(
                "{subject}: there are more than {LIST_MAX}"
            )));
        }
        tags.sort_unstable();
        tags.dedup();
        Ok(tags)
    }

    /// Neither layout lists referrers; clients find them by tags then.
    pub(super) fn no_referrers(&self, hint: &Hint) -> OriginError {
        let subject = self.subject(hint, "the referrers");
        OriginError::NotFound(format!("{subject}: it has no list of them"))
    }

    /// Whether the repository has `object`.
    pub(super) async fn holds(&self, hint: &Hint, object: &Object) -> Result<(), OriginError> {
        match object {
            Object::Manifest(Selector::Tag(tag)) => self.resolve_tag(hint, tag).await.map(drop),
            Object::Manifest(Selector::Digest(digest)) => {
                self.size(hint, digest, BlobKind::Manifest).await.map(drop)
            }
            Object::Blob(digest) => self.size(hint, digest, BlobKind::Blob).await.map(drop),
            Object::Lists => self.tags(hint).await.map(drop),
        }
    }

    async fn size(&self, hint: &Hint, digest: &Digest, kind: BlobKind) -> Result<u64, OriginError> {
        let subject = self.subject(hint, &named(kind, digest));
        let Opened { bucket, layout } = self.open(&subject).await?;
        let spot = layout.spot(hint, digest, kind);
        let (linked, size) = tokio::join!(
            spot.check(bucket, digest, &subject),
            bucket.size(&spot.data, &subject),
        );
        self.confirm(linked.and(size), &subject).await
    }

    /// Whether the link of a blob is there, or was not long ago.
    async fn check_link(
        &self,
        bucket: &Bucket,
        spot: &Spot,
        hint: &Hint,
        digest: &Digest,
        subject: &str,
    ) -> Result<(), OriginError> {
        if !self.links.holds(&hint.repository, digest) {
            spot.check(bucket, digest, subject).await?;
            self.links.remember(&hint.repository, digest);
        }
        Ok(())
    }

    /// What is asked of whom.
    fn subject(&self, hint: &Hint, what: &str) -> String {
        let Hint {
            upstream,
            repository,
        } = hint;
        format!(
            "reading {what} of {upstream}/{repository} from {}",
            self.shown
        )
    }

    async fn open(&self, subject: &str) -> Result<&Opened, OriginError> {
        self.opened.get_or_try_init(|| self.look(subject)).await
    }

    async fn look(&self, subject: &str) -> Result<Opened, OriginError> {
        let bucket = match &self.place {
            Place::Directory(path) => Bucket::directory(path, subject).await?,
            Place::Bucket(bucket) => bucket.clone(),
        };
        let layout = if image_layout::is_in(&bucket, subject).await? {
            Layout::Image
        } else if registry_layout::is_in(&bucket, subject).await? {
            Layout::Registry
        } else {
            return Err(OriginError::Unreachable(format!(
                "{subject}: there is neither a registry's storage (docker/registry/v2/repositories) \
                 nor an OCI image layout (oci-layout)"
            )));
        };
        Ok(Opened { bucket, layout })
    }

    /// An answer, after another look at the layout where it is that there is no such thing.
    async fn confirm<T>(
        &self,
        answer: Result<T, OriginError>,
        subject: &str,
    ) -> Result<T, OriginError> {
        if matches!(answer, Err(OriginError::NotFound(_))) {
            self.look(subject).await?;
        }
        answer
    }
}

impl Layout {
    fn spot(self, hint: &Hint, digest: &Digest, kind: BlobKind) -> Spot {
        match self {
            Self::Registry => registry_layout::spot(hint, digest, kind),
            Self::Image => image_layout::spot(digest),
        }
    }
}

impl Spot {
    /// Whether the link is there, and names the digest.
    async fn check(
        &self,
        bucket: &Bucket,
        digest: &Digest,
        subject: &str,
    ) -> Result<(), OriginError> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        let linked = read_link(bucket, link, subject).await?;
        if linked != *digest {
            return Err(OriginError::Invalid(format!(
                "{subject}: {link} names {linked}"
            )));
        }
        Ok(())
    }
}

async fn read_manifest(
    bucket: &Bucket,
    spot: &Spot,
    digest: &Digest,
    subject: &str,
) -> Result<OriginBody, OriginError> {
    spot.check(bucket, digest, subject).await?;
    let bytes = bucket
        .whole(&spot.data, MANIFEST_BYTES_MAX, subject)
        .await?;
    let manifest = manifest::checked(bytes, "a file", subject)?;
    Ok(OriginBody {
        start: 0,
        whole: true,
        size: Some(manifest.len() as u64),
        stream: stream::iter([Ok(manifest)]).boxed(),
    })
}

/// The digest that a link names.
async fn read_link(bucket: &Bucket, key: &str, subject: &str) -> Result<Digest, OriginError> {
    let link = bucket.whole(key, LINK_BYTES_MAX, subject).await?;
    let digest = std::str::from_utf8(&link)
        .ok()
        .and_then(|link| link.trim_end().parse().ok());
    digest.ok_or_else(|| OriginError::Invalid(format!("{subject}: {key} holds no digest")))
}

fn named(kind: BlobKind, digest: &Digest) -> String {
    match kind {
        BlobKind::Manifest => format!("manifest {digest}"),
        BlobKind::Blob => format!("blob {digest}"),
    }
}
