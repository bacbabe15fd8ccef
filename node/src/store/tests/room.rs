//! Quota, eviction, removal.

use shoal_protocol::{limits::BLOB_BYTES_MAX, message::BlobKind};

use super::support::*;
use crate::store::{Store, StoreConfig, StoreError};

#[tokio::test]
async fn the_least_recently_used_blobs_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_quota(&dir, 800);
    let samples: Vec<_> = (0..8).map(|seed| Sample::new(seed, 100)).collect();
    for sample in &samples {
        sample.complete(&store).await;
    }
    drop(store.get(&samples[0].digest).unwrap());
    drop(
        store
            .begin(Sample::new(9, 350).digest, BlobKind::Blob, 350)
            .unwrap(),
    );
    let gone: Vec<_> = samples[1..5].iter().map(|sample| sample.digest).collect();
    assert_eq!(
        store.evictions(),
        gone,
        "all but the one that was used again"
    );
    assert!(store.evictions().is_empty(), "told once");
    for (number, sample) in samples.iter().enumerate() {
        let stays = !(1..5).contains(&number);
        assert_eq!(store.get(&sample.digest).is_some(), stays, "{number}");
        assert_eq!(blob_file(&dir, &sample.digest).exists(), stays, "{number}");
    }
    let usage = store.usage().unwrap();
    assert_eq!((usage.bytes_used, usage.quota), (750, Some(800)));
    assert_eq!((usage.blobs, usage.partials), (4, 1));
}

#[tokio::test]
async fn what_is_in_use_stays_and_full_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_quota(&dir, 250);
    let (held, idle) = (Sample::new(1, 100), Sample::new(2, 100));
    held.complete(&store).await;
    let holder = store.get(&held.digest).unwrap();
    idle.complete(&store).await;
    let wanted = Sample::new(3, 151);
    let error = store.begin(wanted.digest, BlobKind::Blob, 151).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Full {
                needed: 151,
                used: 200,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        store.get(&idle.digest).is_some(),
        "nothing goes where it would not be enough"
    );
    assert!(store.begin(wanted.digest, BlobKind::Blob, 150).is_ok());
    assert!(store.get(&idle.digest).is_none());
    assert!(store.get(&held.digest).is_some());
    drop(holder);
}

#[tokio::test]
async fn the_order_of_use_and_a_lowered_quota_outlast_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Sample::new(1, 100), Sample::new(2, 100));
    let store = open(&dir);
    old.complete(&store).await;
    new.complete(&store).await;
    // Uses are kept to the second: what was written to the index is set apart by hand.
    store.0.index.touch(&new.digest, 1_000);
    store.0.index.touch(&old.digest, 2_000);
    drop(store);
    let store = with_quota(&dir, 150);
    assert!(store.get(&new.digest).is_none());
    assert!(store.get(&old.digest).is_some());
}

#[test]
fn a_partial_blob_that_nobody_fetches_gives_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_quota(&dir, 100);
    let (one, two) = (Sample::new(1, 80), Sample::new(2, 80));
    let fetching = store.begin(one.digest, BlobKind::Blob, 80).unwrap();
    let error = store.begin(two.digest, BlobKind::Blob, 80).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    drop(fetching);
    store.begin(two.digest, BlobKind::Blob, 80).unwrap();
    assert!(store.get(&one.digest).is_none());
    assert!(store.evictions().is_empty(), "it was never announced");
}

#[test]
fn free_disk_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let min_free_bytes = u64::MAX / 2;
    let store = Store::open(&StoreConfig {
        min_free_bytes,
        ..config(&dir)
    })
    .unwrap();
    let error = store
        .begin(Sample::new(1, 5).digest, BlobKind::Blob, 5)
        .unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_eq!(store.usage().unwrap().bytes_used, 0);
}

#[test]
fn a_blob_of_another_size_is_refused_until_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let digest = Sample::new(1, 5).digest;
    let held = store.begin(digest, BlobKind::Blob, 5).unwrap();
    let error = store.begin(digest, BlobKind::Blob, 6).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Size {
                known: 5,
                asked: 6,
                ..
            }
        ),
        "{error}"
    );
    let error = store
        .begin(Sample::new(2, 5).digest, BlobKind::Blob, BLOB_BYTES_MAX + 1)
        .unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");

    assert!(store.remove(&digest).unwrap());
    assert!(!store.remove(&digest).unwrap());
    assert!(store.get(&digest).is_none());
    let anew = store.begin(digest, BlobKind::Blob, 6).unwrap();
    // Who still holds the old one does no harm to the new.
    let sample = Sample::new(1, 5);
    sample.write(&held, 0);
    assert_eq!((anew.size(), anew.have().count()), (6, 0));
    assert_eq!(store.usage().unwrap().bytes_used, 6);
}

#[test]
fn a_blob_whose_files_were_deleted_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 50);
    drop(sample.fill(&store));
    std::fs::remove_file(partial_file(&dir, &sample.digest)).unwrap();
    let blob = store.begin(sample.digest, BlobKind::Blob, 50).unwrap();
    assert_eq!(blob.have().count(), 0);
    assert_eq!(store.usage().unwrap().bytes_used, 50);
}

#[test]
fn one_blob_per_digest_however_many_begin_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let digest = Sample::new(1, 500).digest;
    let blobs: Vec<_> = std::thread::scope(|scope| {
        let begun: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| store.begin(digest, BlobKind::Blob, 500).unwrap()))
            .collect();
        begun
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(
        blobs
            .iter()
            .all(|blob| std::sync::Arc::ptr_eq(blob, &blobs[0]))
    );
    assert_eq!(store.usage().unwrap().bytes_used, 500);
}
