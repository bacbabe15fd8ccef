//! An OCI image layout: `oci-layout`, `index.json`, and blobs by digest.
//!
//! The index may change at any time, and so is read for every question about tags. A tag is the
//! annotation `org.opencontainers.image.ref.name`: the tag alone, which then holds for every repository
//! of the upstream, or `REPOSITORY:TAG`, before which the upstream's name may stand.

use std::collections::HashMap;

use serde::Deserialize;
use shoal_protocol::{digest::Digest, message::Hint, reference::Tag};

use super::{Spot, bucket::Bucket};
use crate::origin::{
    error::OriginError,
    limits::{LINK_BYTES_MAX, LIST_PAGE_BYTES_MAX},
};

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The file that says which layout this is.
const MARKER: &str = "oci-layout";

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    annotations: Option<HashMap<String, String>>,
}

/// Whether this is the layout.
pub(super) async fn is_in(bucket: &Bucket, subject: &str) -> Result<bool, OriginError> {
    // Read, not only looked for: to HEAD the server of a bucket cannot say why it refuses, and whoever
    // stands before it may answer with a page of its own.
    let marker = match bucket.whole(MARKER, LINK_BYTES_MAX, subject).await {
        Ok(marker) => serde_json::from_slice::<serde_json::Value>(&marker).unwrap_or_default(),
        Err(OriginError::NotFound(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    if marker["imageLayoutVersion"].is_string() {
        Ok(true)
    } else {
        Err(OriginError::Invalid(format!(
            "{subject}: {MARKER} is not that of an OCI image layout"
        )))
    }
}

pub(super) fn spot(digest: &Digest) -> Spot {
    Spot {
        link: None,
        data: format!("blobs/{}/{}", digest.algorithm().name(), digest.hex()),
    }
}

pub(super) async fn resolve_tag(
    bucket: &Bucket,
    hint: &Hint,
    tag: &Tag,
    subject: &str,
) -> Result<Digest, OriginError> {
    let index = index(bucket, subject).await?;
    let named = index
        .manifests
        .iter()
        .find(|manifest| manifest.tag(hint).as_ref() == Some(tag));
    let digest = &named
        .ok_or_else(|| {
            OriginError::NotFound(format!("{subject}: index.json has no such {REF_NAME}"))
        })?
        .digest;
    digest
        .parse()
        .map_err(|problem| OriginError::Invalid(format!("{subject}: `{digest}`: {problem}")))
}

/// The tags, in no order.
pub(super) async fn tags(
    bucket: &Bucket,
    hint: &Hint,
    subject: &str,
) -> Result<Vec<Tag>, OriginError> {
    let index = index(bucket, subject).await?;
    let tags = index.manifests.iter();
    Ok(tags.filter_map(|manifest| manifest.tag(hint)).collect())
}

async fn index(bucket: &Bucket, subject: &str) -> Result<Index, OriginError> {
    let bytes = bucket
        .whole("index.json", LIST_PAGE_BYTES_MAX, subject)
        .await?;
    serde_json::from_slice(&bytes).map_err(|problem| {
        OriginError::Invalid(format!(
            "{subject}: index.json is no image index: {problem}"
        ))
    })
}

impl Descriptor {
    /// The tag of the repository that this has, if any.
    fn tag(&self, hint: &Hint) -> Option<Tag> {
        let name = self.annotations.as_ref()?.get(REF_NAME)?.as_str();
        let Hint {
            upstream,
            repository,
        } = hint;
        let name = name.strip_prefix(&format!("{upstream}/")).unwrap_or(name);
        // The name of another repository is no tag.
        let tag = name.strip_prefix(&format!("{repository}:")).unwrap_or(name);
        Tag::try_from(tag.to_owned()).ok()
    }
}
