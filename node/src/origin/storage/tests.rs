//! Directories and buckets as origins.

mod buckets;

use std::{fs, os::unix::fs::symlink, path::Path};

use bytes::Bytes;
use futures::TryStreamExt;
use reqwest::Certificate;
use tempfile::TempDir;

use super::*;
use crate::origin::manifest::digest_of;

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;
const BLOB: &[u8] = b"0123456789";

fn hint(repository: &str) -> Hint {
    Hint {
        upstream: "corp.test".parse().unwrap(),
        repository: repository.parse().unwrap(),
    }
}

fn app() -> Hint {
    hint("team/app")
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A registry's storage with `MANIFEST` as `team/app:v1` and `BLOB` in it.
fn registry() -> TempDir {
    let root = TempDir::new().unwrap();
    for (kind, bytes) in [(BlobKind::Manifest, MANIFEST), (BlobKind::Blob, BLOB)] {
        let digest = digest_of(bytes);
        let spot = registry_layout::spot(&app(), &digest, kind);
        write(&root.path().join(spot.data), bytes);
        let link = root.path().join(spot.link.unwrap());
        write(&link, digest.to_string().as_bytes());
    }
    let current = registry_layout::tag_link(&app(), &tag("v1"));
    let digest = digest_of(MANIFEST).to_string();
    write(&root.path().join(current), digest.as_bytes());
    root
}

/// An image layout with `MANIFEST` by three names and `BLOB`.
fn layout() -> TempDir {
    let root = TempDir::new().unwrap();
    write(
        &root.path().join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    let digest = digest_of(MANIFEST).to_string();
    let named = |name: &str| {
        serde_json::json!({
            "digest": digest, "annotations": { "org.opencontainers.image.ref.name": name },
        })
    };
    let manifests = [
        named("v1"),
        named("team/app:v2"),
        named("corp.test/team/other:v3"),
        serde_json::json!({ "digest": digest }),
    ];
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
    write(
        &root.path().join("index.json"),
        index.to_string().as_bytes(),
    );
    for bytes in [MANIFEST, BLOB] {
        write(
            &root.path().join(image_layout::spot(&digest_of(bytes)).data),
            bytes,
        );
    }
    root
}

fn at(root: &TempDir) -> Storage {
    Storage::directory(root.path().to_owned())
}

async fn read(
    storage: &Storage,
    hint: &Hint,
    bytes: &[u8],
    kind: BlobKind,
    start: u64,
    end: Option<u64>,
) -> Result<Bytes, OriginError> {
    let digest = digest_of(bytes);
    let body = storage.read(hint, &digest, kind, start, end).await?;
    assert_eq!(body.start, start);
    let pieces: Vec<Bytes> = body.stream.try_collect().await?;
    Ok(pieces.concat().into())
}

async fn blob(storage: &Storage, start: u64, end: Option<u64>) -> Result<Bytes, OriginError> {
    read(storage, &app(), BLOB, BlobKind::Blob, start, end).await
}

/// Where [`BLOB`]'s bytes are.
fn data(root: &TempDir) -> PathBuf {
    let spot = registry_layout::spot(&app(), &digest_of(BLOB), BlobKind::Blob);
    root.path().join(spot.data)
}

#[tokio::test]
async fn both_layouts_give_tags_manifests_and_ranges() {
    for root in [registry(), layout()] {
        let storage = at(&root);
        let digest = storage.resolve_tag(&app(), &tag("v1")).await.unwrap();
        assert_eq!(digest, digest_of(MANIFEST));
        let manifest = read(&storage, &app(), MANIFEST, BlobKind::Manifest, 0, None).await;
        assert_eq!(manifest.unwrap(), MANIFEST);
        let size = storage.blob_size(&app(), &digest_of(BLOB)).await;
        assert_eq!(size.unwrap(), 10);
        for (start, end, bytes) in [
            (0, None, "0123456789"),
            (0, Some(4), "0123"),
            (4, Some(8), "4567"),
            (8, Some(12), "89"),
            (7, None, "789"),
        ] {
            assert_eq!(blob(&storage, start, end).await.unwrap(), bytes);
        }
        for (start, end) in [(10, None), (10, Some(11)), (5, Some(5)), (5, Some(4))] {
            let error = blob(&storage, start, end).await;
            assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
        }
        for missing in [
            storage.resolve_tag(&app(), &tag("v9")).await.map(drop),
            storage
                .blob_size(&app(), &digest_of(b"else"))
                .await
                .map(drop),
            read(&storage, &app(), b"else", BlobKind::Manifest, 0, None)
                .await
                .map(drop),
        ] {
            assert!(
                matches!(missing, Err(OriginError::NotFound(_))),
                "{missing:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_empty_blob_can_be_read() {
    let root = layout();
    let digest = digest_of(b"");
    write(&root.path().join(image_layout::spot(&digest).data), b"");
    for end in [None, Some(100)] {
        let bytes = read(&at(&root), &app(), b"", BlobKind::Blob, 0, end).await;
        assert_eq!(bytes.unwrap(), "");
    }
}

#[tokio::test]
async fn the_tags_of_a_layout_are_those_of_the_repository() {
    let (registry, layout) = (registry(), layout());
    assert_eq!(at(&registry).tags(&app()).await.unwrap(), [tag("v1")]);
    let missing = at(&registry).tags(&hint("team/none")).await;
    assert!(matches!(missing, Err(OriginError::NotFound(_))));
    let storage = at(&layout);
    let tags = storage.tags(&app()).await.unwrap();
    assert_eq!(tags, [tag("v1"), tag("v2")]);
    let tags = storage.tags(&hint("team/other")).await.unwrap();
    assert_eq!(tags, [tag("v1"), tag("v3")]);
    // The index is read again.
    fs::write(layout.path().join("index.json"), r#"{"manifests":[]}"#).unwrap();
    assert!(storage.tags(&app()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_repository_has_only_what_is_linked_into_it() {
    let root = registry();
    let storage = at(&root);
    for (bytes, kind) in [(MANIFEST, BlobKind::Manifest), (BLOB, BlobKind::Blob)] {
        let error = read(&storage, &hint("team/none"), bytes, kind, 0, None).await;
        assert!(matches!(error, Err(OriginError::NotFound(_))), "{error:?}");
        let object = match kind {
            BlobKind::Manifest => Object::Manifest(Selector::Digest(digest_of(bytes))),
            BlobKind::Blob => Object::Blob(digest_of(bytes)),
        };
        assert!(storage.holds(&hint("team/none"), &object).await.is_err());
        storage.holds(&app(), &object).await.unwrap();
    }
    // A layer is no manifest.
    let error = read(&storage, &app(), BLOB, BlobKind::Manifest, 0, None).await;
    assert!(matches!(error, Err(OriginError::NotFound(_))), "{error:?}");
    let spot = registry_layout::spot(&app(), &digest_of(BLOB), BlobKind::Blob);
    let link = root.path().join(spot.link.unwrap());
    fs::write(link, digest_of(b"else").to_string()).unwrap();
    let error = blob(&storage, 0, None).await;
    assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_away_and_not_empty() {
    let root = TempDir::new().unwrap();
    let storage = at(&root);
    let away = |answer: Result<Digest, OriginError>| {
        assert!(
            matches!(answer, Err(OriginError::Unreachable(_))),
            "{answer:?}"
        );
    };
    away(storage.resolve_tag(&app(), &tag("v1")).await);
    let mounted = registry();
    fs::rename(mounted.path().join("docker"), root.path().join("docker")).unwrap();
    storage.resolve_tag(&app(), &tag("v1")).await.unwrap();
    fs::remove_dir_all(root.path().join("docker")).unwrap();
    away(storage.resolve_tag(&app(), &tag("v1")).await);
    fs::remove_dir(root.path()).unwrap();
    away(storage.resolve_tag(&app(), &tag("v1")).await);
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_read_breaks_off() {
    let root = registry();
    let digest = digest_of(BLOB);
    let (storage, app) = (at(&root), app());
    let body = storage.read(&app, &digest, BlobKind::Blob, 0, None);
    let body = body.await.unwrap();
    let file = fs::File::options().write(true).open(data(&root)).unwrap();
    file.set_len(4).unwrap();
    let pieces: Result<Vec<Bytes>, _> = body.stream.try_collect().await;
    assert!(
        matches!(
            pieces,
            Err(OriginError::Truncated {
                expected: Some(10),
                got: 4,
                ..
            })
        ),
        "{pieces:?}"
    );
}

#[tokio::test]
async fn no_link_is_followed_out_of_the_directory() {
    let (root, elsewhere) = (registry(), TempDir::new().unwrap());
    let outside = elsewhere.path().join("secret");
    fs::write(&outside, BLOB).unwrap();
    fs::remove_file(data(&root)).unwrap();
    symlink(&outside, data(&root)).unwrap();
    let storage = at(&root);
    let error = blob(&storage, 0, None).await;
    assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
    let error = storage.blob_size(&app(), &digest_of(BLOB)).await;
    assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
    // Within it, as a store that shares files has them, they are.
    let inside = root.path().join("shared");
    fs::write(&inside, BLOB).unwrap();
    fs::remove_file(data(&root)).unwrap();
    symlink(&inside, data(&root)).unwrap();
    assert_eq!(blob(&storage, 0, None).await.unwrap(), BLOB);

    let tags = root
        .path()
        .join("docker/registry/v2/repositories/team/app/_manifests/tags");
    fs::remove_dir_all(&tags).unwrap();
    symlink(elsewhere.path(), &tags).unwrap();
    let error = storage.tags(&app()).await;
    assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
}

#[test]
fn what_may_not_be_read_is_denied_and_not_missing() {
    let denied = io_failure(std::io::ErrorKind::PermissionDenied);
    assert!(matches!(denied, OriginError::Denied(_)), "{denied:?}");
    let broken = io_failure(std::io::ErrorKind::NotADirectory);
    assert!(matches!(broken, OriginError::Unreachable(_)), "{broken:?}");
}

fn io_failure(kind: std::io::ErrorKind) -> OriginError {
    let error = object_store::Error::Generic {
        store: "test",
        source: Box::new(std::io::Error::from(kind)),
    };
    bucket::failure(&error, "reading")
}
