//! What a restart finds.

use std::{fs, time::Duration};

use shoal_protocol::{
    directory::NodeId,
    limits::CHUNK_BYTES_MIN,
    message::{BlobKind, TagKey, TagRecord},
};

use super::support::*;
use crate::store::{BlobState, Store, StoreConfig, StoreError, Verdict};

#[tokio::test]
async fn a_complete_blob_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 2 * CHUNK_BYTES_MIN + 5);
    sample.complete(&open(&dir)).await;
    assert!(blob_file(&dir, &sample.digest).exists());
    assert!(!partial_file(&dir, &sample.digest).exists());

    let store = open(&dir);
    assert_eq!(
        store.complete(),
        [(sample.digest, BlobKind::Blob, sample.size())]
    );
    let blob = store.get(&sample.digest).unwrap();
    assert_eq!(blob.state(), BlobState::Complete);
    let (bytes, attestation) = blob.read_chunk(2).unwrap();
    assert_eq!(bytes, sample.chunk(2));
    assert_eq!(attestation, sample.attestation(2));
    assert_eq!(
        drain(&mut read_all(&blob), sample.bytes.len()).await,
        sample.bytes
    );
}

#[test]
fn a_partial_blob_resumes_with_the_chunks_that_still_hash() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 4 * CHUNK_BYTES_MIN);
    let store = open(&dir);
    let blob = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    for index in [0, 1, 3] {
        sample.write(&blob, index);
    }
    // Bytes that were never committed do not count.
    let mut ahead = blob.begin_ahead(2).unwrap();
    ahead.write(sample.chunk(2)).unwrap();
    drop((store, blob, ahead));
    flip(&partial_file(&dir, &sample.digest), CHUNK_BYTES_MIN + 77);

    let store = open(&dir);
    assert!(store.complete().is_empty());
    let blob = store.get(&sample.digest).unwrap();
    assert_eq!(blob.have().iter().collect::<Vec<_>>(), [0, 3]);
    assert_eq!(blob.state(), BlobState::Partial);
    let again = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    assert!(std::sync::Arc::ptr_eq(&blob, &again));
}

#[tokio::test]
async fn a_crash_between_complete_and_in_its_place_is_resumed_and_hashed_again() {
    for moved_bytes in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let sample = Sample::new(1, CHUNK_BYTES_MIN + 1);
        sample.complete(&open(&dir)).await;
        // Put back what the move had not done yet.
        let (partial, blob) = (
            partial_file(&dir, &sample.digest),
            blob_file(&dir, &sample.digest),
        );
        let sidecar = |path: &std::path::PathBuf| path.with_added_extension("chunks");
        fs::rename(sidecar(&blob), sidecar(&partial)).unwrap();
        if !moved_bytes {
            fs::rename(&blob, &partial).unwrap();
        }

        let store = open(&dir);
        assert!(
            store.complete().is_empty(),
            "not before its digest has matched again"
        );
        let resumed = store.get(&sample.digest).unwrap();
        assert!(resumed.have().is_full());
        assert_eq!(resumed.state(), BlobState::Partial);
        drop(resumed);
        sample.complete(&store).await;
        assert!(blob.exists() && !partial.exists());
    }
}

#[tokio::test]
async fn a_complete_blob_is_synced_once_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&StoreConfig {
        settle_after: Duration::from_secs(2),
        ..config(&dir)
    })
    .unwrap();
    let (sample, other) = (
        Sample::new(1, CHUNK_BYTES_MIN),
        Sample::new(2, 3 * CHUNK_BYTES_MIN),
    );
    let blob = sample.fill(&store);
    assert_eq!(blob.verify().await, Verdict::Matches);
    drop(blob);
    let growing = store
        .begin(other.digest, BlobKind::Blob, other.size())
        .unwrap();
    let file = blob_file(&dir, &sample.digest);
    for index in 0..other.chunks() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        other.write(&growing, index);
        assert!(!file.exists(), "while chunks come in");
    }
    let reopened = store.get(&sample.digest).unwrap();
    assert_eq!(
        reopened.state(),
        BlobState::Complete,
        "it is served as it is"
    );
    until(|| file.exists()).await;
    let (bytes, _) = reopened.read_chunk(0).unwrap();
    assert_eq!(bytes, sample.bytes, "wherever its file is");
    drop((reopened, growing));
    until(|| std::sync::Arc::strong_count(&store.0) == 1).await;
    drop(store);
    assert_eq!(open(&dir).complete().len(), 1);
}

#[test]
fn a_directory_of_a_newer_version_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("VERSION"), "2\n").unwrap();
    let error = Store::open(&config(&dir)).err().unwrap();
    assert!(
        matches!(
            error,
            StoreError::Newer {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("newer shoal"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    fs::write(dir.path().join("VERSION"), "hello").unwrap();
    let error = Store::open(&config(&dir)).err().unwrap();
    assert!(matches!(error, StoreError::NotAVersion(_)), "{error}");
}

#[test]
fn a_second_open_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let error = Store::open(&config(&dir)).err().unwrap();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
    drop(store);
    open(&dir);
}

#[tokio::test]
async fn an_index_that_is_deleted_or_damaged_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 10);
    sample.complete(&open(&dir)).await;
    let index = dir.path().join("index");
    let damages: [&dyn Fn(); 4] = [
        &|| fs::remove_dir_all(&index).unwrap(),
        &|| {
            for file in fs::read_dir(&index).unwrap() {
                let path = file.unwrap().path();
                if path.is_file() {
                    let len = fs::metadata(&path).unwrap().len() as usize;
                    fs::write(&path, vec![0xa5; len]).unwrap();
                }
            }
        },
        &|| fs::write(index.join("snap.00000000000000ff"), b"stray").unwrap(),
        &|| {
            fs::remove_dir_all(&index).unwrap();
            fs::write(&index, b"a file where a directory should be").unwrap();
        },
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage();
        let store = open(&dir);
        assert_eq!(store.complete().len(), 1, "damage {number}");
        assert!(store.get(&sample.digest).is_some());
    }
}

#[test]
fn leftovers_that_cannot_be_used_are_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir));
    let digest = Sample::new(1, 5).digest;
    let partial = partial_file(&dir, &digest);
    fs::write(&partial, b"bytes without a sidecar").unwrap();
    let other = partial_file(&dir, &Sample::new(2, 5).digest).with_added_extension("chunks");
    fs::write(&other, b"a sidecar without bytes").unwrap();
    let foreign = dir.path().join("partial/README");
    fs::write(&foreign, b"not ours").unwrap();
    let store = open(&dir);
    assert!(!partial.exists() && !other.exists() && foreign.exists());
    assert!(store.get(&digest).is_none());
}

#[test]
fn tags_are_remembered_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let key = |tag: &str| TagKey {
        upstream: "registry.test:5000".parse().unwrap(),
        repository: "team/image".parse().unwrap(),
        tag: tag.parse().unwrap(),
    };
    let record = |asked_at| TagRecord {
        digest: Sample::new(1, 1).digest,
        asked_at,
        asked_by: NodeId([3; 32]),
    };
    let store = open(&dir);
    store.put_tag(&key("a"), &record(1)).unwrap();
    store.put_tag(&key("a"), &record(2)).unwrap();
    drop(store);
    let store = open(&dir);
    assert_eq!(store.tag(&key("a")), Some(record(2)));
    assert_eq!(store.tag(&key("b")), None);
}
