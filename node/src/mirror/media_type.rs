//! The media type of a manifest from its own bytes.
//!
//! Buckets and directories do not store content types, so it is read from the JSON as the image
//! specifications describe it.

use serde::Deserialize;
use serde::de::IgnoredAny;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    media_type: Option<String>,
    signatures: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

/// The media type that a manifest names, or, where it names none, the one that its fields imply.
/// `None` where it is no manifest.
pub fn media_type_of(manifest: &[u8]) -> Option<String> {
    let shape: Shape = serde_json::from_slice(manifest).ok()?;
    if let Some(named) = shape.media_type.filter(|named| !named.is_empty()) {
        return Some(named);
    }
    let implied = if shape.schema_version == Some(1) {
        if shape.signatures.is_some() {
            "application/vnd.docker.distribution.manifest.v1+prettyjws"
        } else {
            "application/vnd.docker.distribution.manifest.v1+json"
        }
    } else if shape.manifests.is_some() {
        "application/vnd.oci.image.index.v1+json"
    } else if shape.config.is_some() || shape.layers.is_some() {
        "application/vnd.oci.image.manifest.v1+json"
    } else {
        return None;
    };
    Some(implied.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_media_type_is_named_or_implied() {
        for (manifest, media_type) in [
            (
                r#"{"schemaVersion":2,"mediaType":"application/x","config":{}}"#,
                Some("application/x"),
            ),
            (
                r#"{"schemaVersion":1,"name":"a","signatures":[]}"#,
                Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
            ),
            (
                r#"{"schemaVersion":1,"name":"a"}"#,
                Some("application/vnd.docker.distribution.manifest.v1+json"),
            ),
            (
                r#"{"schemaVersion":2,"manifests":[]}"#,
                Some("application/vnd.oci.image.index.v1+json"),
            ),
            (
                r#"{"schemaVersion":2,"config":{},"layers":[]}"#,
                Some("application/vnd.oci.image.manifest.v1+json"),
            ),
            (r#"{"architecture":"amd64","os":"linux"}"#, None),
            ("not json", None),
            ("", None),
        ] {
            assert_eq!(media_type_of(manifest.as_bytes()).as_deref(), media_type);
        }
    }
}
