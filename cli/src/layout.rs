//! OCI image layouts on disk, as directories and as tar archives of them: what `shoal export` writes
//! and `shoal import` reads.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

pub(crate) mod read;
pub(crate) mod write;

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use shoal_protocol::digest::Digest;

/// The tag, or a name with a tag.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The full name, as containerd and docker write it.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// The file that says that this is a layout, and the only version there is.
const MARK: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// A manifest or blob as a manifest or an index names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Named>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The platform of an image in an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Named {
    pub(crate) os: String,
    pub(crate) architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
    /// What else there is, such as the version of the system.
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

/// `index.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

/// A manifest of an image, or an index of several.
#[derive(Deserialize)]
pub(crate) struct Document {
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
    #[serde(default)]
    pub(crate) config: Option<Descriptor>,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
}

impl Descriptor {
    pub(crate) fn digest(&self) -> anyhow::Result<Digest> {
        let digest = self.digest.parse();
        digest.with_context(|| format!("a manifest names `{}`", self.digest))
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            schema_version: 2,
            media_type: INDEX_TYPE.to_owned(),
            manifests: Vec::new(),
        }
    }
}

impl Document {
    /// Reads a manifest or index.
    pub(crate) fn parse(digest: &Digest, bytes: &[u8]) -> anyhow::Result<Self> {
        let document: Self = serde_json::from_slice(bytes)
            .with_context(|| format!("cannot read manifest {digest}"))?;
        if document.manifests.is_empty() && document.config.is_none() {
            bail!(
                "{digest} is neither an image manifest nor an index; manifests of Docker's schema 1 \
                 cannot stand in an image layout"
            );
        }
        Ok(document)
    }

    /// The blobs of an image: its layers and its config.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.layers.iter().chain(&self.config)
    }
}

/// Where a layout has a blob.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}
