//! A registry's own storage, as distribution writes it below `docker/registry/v2/`.
//!
//! Bytes are kept once, by digest, for all repositories. A link puts them into one: without it the
//! repository does not have them, whatever else is stored.

use shoal_protocol::{
    digest::Digest,
    message::{BlobKind, Hint},
    reference::Tag,
};

use super::{Spot, bucket::Bucket};
use crate::origin::error::OriginError;

const BASE: &str = "docker/registry/v2";

/// Whether this is the layout.
pub(super) async fn is_in(bucket: &Bucket, subject: &str) -> Result<bool, OriginError> {
    let names = bucket.names(BASE, subject).await?;
    Ok(names.iter().any(|name| name == "repositories"))
}

/// The link that says which manifest a tag names.
pub(super) fn tag_link(hint: &Hint, tag: &Tag) -> String {
    format!("{}/_manifests/tags/{tag}/current/link", repository(hint))
}

pub(super) fn spot(hint: &Hint, digest: &Digest, kind: BlobKind) -> Spot {
    let links = match kind {
        BlobKind::Manifest => "_manifests/revisions",
        BlobKind::Blob => "_layers",
    };
    let (algorithm, hex) = (digest.algorithm().name(), digest.hex());
    Spot {
        link: Some(format!(
            "{}/{links}/{algorithm}/{hex}/link",
            repository(hint)
        )),
        data: format!("{BASE}/blobs/{algorithm}/{}/{hex}/data", &hex[..2]),
    }
}

/// The tags, in no order.
pub(super) async fn tags(
    bucket: &Bucket,
    hint: &Hint,
    subject: &str,
) -> Result<Vec<Tag>, OriginError> {
    let manifests = format!("{}/_manifests", repository(hint));
    let names = bucket.names(&format!("{manifests}/tags"), subject).await?;
    if names.is_empty() && bucket.names(&manifests, subject).await?.is_empty() {
        return Err(OriginError::NotFound(format!(
            "{subject}: there is no such repository"
        )));
    }
    Ok(names
        .into_iter()
        .filter_map(|name| Tag::try_from(name).ok())
        .collect())
}

fn repository(hint: &Hint) -> String {
    format!("{BASE}/repositories/{}", hint.repository)
}
