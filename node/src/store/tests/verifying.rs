//! When a blob is complete, and what makes it partial again.

use std::time::Duration;

use shoal_protocol::{directory::NodeId, limits::CHUNK_BYTES_MIN, message::BlobKind};

use super::support::*;
use crate::store::{BlobState, StoreError, Verdict};

#[tokio::test]
async fn blobs_of_the_sizes_at_the_borders_become_complete() {
    for size in [0, 1, CHUNK_BYTES_MIN, CHUNK_BYTES_MIN + 1] {
        for sample in [Sample::new(1, size), Sample::sha512(1, size)] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(&dir);
            sample.complete(&store).await;
            let blob = store.get(&sample.digest).unwrap();
            assert_eq!(blob.state(), BlobState::Complete, "{size}");
            assert_eq!(
                drain(&mut read_all(&blob), size as usize).await,
                sample.bytes
            );
            drop((blob, store));
            assert_eq!(open(&dir).complete().len(), 1, "{size} after a restart");
        }
    }
}

#[tokio::test]
async fn a_blob_is_not_complete_before_its_digest_has_matched() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 2 * CHUNK_BYTES_MIN);
    let blob = sample.fill(&store);
    assert!(blob.have().is_full());
    assert_eq!(blob.state(), BlobState::Partial);
    assert!(store.complete().is_empty());
    assert_eq!(blob.verify().await, Verdict::Matches);
    assert_eq!(blob.state(), BlobState::Complete);
    assert_eq!(store.complete().len(), 1);
    assert_eq!(blob.verify().await, Verdict::Matches, "again, at once");
}

#[tokio::test]
async fn verification_overlaps_the_transfer() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 3 * CHUNK_BYTES_MIN);
    let blob = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    let verifying = tokio::spawn({
        let blob = std::sync::Arc::clone(&blob);
        async move { blob.verify().await }
    });
    for index in [1, 0, 2] {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!verifying.is_finished());
        sample.write(&blob, index);
    }
    assert_eq!(verifying.await.unwrap(), Verdict::Matches);
}

#[tokio::test]
async fn a_lie_differs_and_the_truth_in_its_place_matches() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 3 * CHUNK_BYTES_MIN);
    let blob = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    sample.write(&blob, 0);
    sample.write(&blob, 2);
    let lie = vec![9; CHUNK_BYTES_MIN as usize];
    blob.write_chunk(1, &lie, &attest_as(9, &sample.digest, 1, &lie))
        .unwrap();
    assert_eq!(blob.signers().len(), 2);
    assert_eq!(blob.verify().await, Verdict::Differs);
    assert_eq!(blob.state(), BlobState::Partial);
    assert!(blob.drop_chunk(1).unwrap());
    assert!(!blob.drop_chunk(1).unwrap());
    sample.write(&blob, 1);
    assert_eq!(blob.signers(), [sample.attestation(0).signer]);
    assert_ne!(blob.signers(), [NodeId([0; 32])]);
    assert_eq!(blob.verify().await, Verdict::Matches);
}

#[tokio::test]
async fn a_chunk_replaced_while_it_is_verified_is_hashed_as_it_is_now() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 3 * CHUNK_BYTES_MIN);
    let blob = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    let lie = vec![9; CHUNK_BYTES_MIN as usize];
    blob.write_chunk(0, &lie, &attest(&sample.digest, 0, &lie))
        .unwrap();
    sample.write(&blob, 1);
    let verifying = tokio::spawn({
        let blob = std::sync::Arc::clone(&blob);
        async move { blob.verify().await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    blob.drop_chunk(0).unwrap();
    sample.write(&blob, 0);
    sample.write(&blob, 2);
    assert_eq!(verifying.await.unwrap(), Verdict::Matches);
}

#[test]
fn bytes_that_are_not_those_attested_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 100);
    let blob = store.begin(sample.digest, BlobKind::Blob, 100).unwrap();
    let attestation = sample.attestation(0);
    let mut damaged = sample.bytes.clone();
    damaged[50] ^= 1;
    for bytes in [&damaged[..], &sample.bytes[..99], &[]] {
        let error = blob.write_chunk(0, bytes, &attestation).unwrap_err();
        assert!(
            matches!(error, StoreError::Mismatch { index: 0, .. }),
            "{error}"
        );
    }
    // Well attested, but not as long as the chunk is.
    let short = attest(&sample.digest, 0, &sample.bytes[..99]);
    assert!(blob.write_chunk(0, &sample.bytes[..99], &short).is_err());
    assert!(
        blob.write_chunk(1, &[], &attest(&sample.digest, 1, &[]))
            .is_err()
    );
    assert_eq!(blob.have().count(), 0);
    assert!(matches!(
        blob.read_chunk(0),
        Err(StoreError::Missing { .. })
    ));
    assert!(blob.write_chunk(0, &sample.bytes, &attestation).unwrap());
    assert!(
        !blob.write_chunk(0, &sample.bytes, &attestation).unwrap(),
        "not new"
    );
}

#[test]
fn bytes_written_ahead_count_once_they_are_committed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 100);
    let blob = store.begin(sample.digest, BlobKind::Blob, 100).unwrap();
    let mut early = blob.begin_ahead(0).unwrap();
    early.write(&sample.bytes[..60]).unwrap();
    let early = early.commit(&sample.attestation(0)).unwrap_err();
    assert!(matches!(early, StoreError::Missing { .. }), "{early}");
    let mut other = blob.begin_ahead(0).unwrap();
    other.write(&sample.bytes[..60]).unwrap();
    let more = other.write(&[0; 41]).unwrap_err();
    assert!(
        matches!(more, StoreError::OutOfPlace { offset: 60, .. }),
        "{more}"
    );
    other.write(&sample.bytes[60..]).unwrap();
    assert_eq!(blob.have().count(), 0);
    assert!(matches!(
        other.commit(&attest(&sample.digest, 0, &[0; 100])),
        Err(StoreError::Mismatch { .. })
    ));
    let mut whole = blob.begin_ahead(0).unwrap();
    whole.write(&sample.bytes).unwrap();
    assert!(whole.commit(&sample.attestation(0)).unwrap());
    assert_eq!(blob.read_chunk(0).unwrap().0, sample.bytes);
}

#[test]
fn of_two_that_read_a_chunk_from_the_origin_the_later_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 100);
    let blob = store.begin(sample.digest, BlobKind::Blob, 100).unwrap();
    let mut former = blob.begin_ahead(0).unwrap();
    former.write(&sample.bytes[..60]).unwrap();
    let mut later = blob.begin_ahead(0).unwrap();
    later.write(&sample.bytes[..10]).unwrap();
    former.write(&[9; 40]).unwrap();
    assert!(!former.commit(&sample.attestation(0)).unwrap());
    later.write(&sample.bytes[10..]).unwrap();
    assert!(later.commit(&sample.attestation(0)).unwrap());
    assert_eq!(blob.read_chunk(0).unwrap().0, sample.bytes);
    // Nor does anyone write where the chunk is already.
    let mut last = blob.begin_ahead(0).unwrap();
    last.write(&[9; 100]).unwrap();
    assert!(last.commit(&sample.attestation(0)).unwrap());
    assert_eq!(blob.read_chunk(0).unwrap().0, sample.bytes);
}

#[tokio::test]
async fn rot_is_found_and_the_blob_is_partial_until_healed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 2 * CHUNK_BYTES_MIN);
    sample.complete(&store).await;
    flip(&blob_file(&dir, &sample.digest), CHUNK_BYTES_MIN + 1);
    let blob = store.get(&sample.digest).unwrap();
    assert!(blob.check_chunk(0).unwrap());
    assert!(!blob.check_chunk(1).unwrap());
    assert_eq!(blob.state(), BlobState::Partial);
    assert_eq!(blob.have().iter().collect::<Vec<_>>(), [0]);
    assert!(store.complete().is_empty());
    assert_eq!(store.evictions(), [sample.digest]);
    assert!(partial_file(&dir, &sample.digest).exists());
    drop((blob, store));

    let store = open(&dir);
    assert_eq!(store.get(&sample.digest).unwrap().have().count(), 1);
    sample.complete(&store).await;
    assert_eq!(store.complete().len(), 1);
    assert!(blob_file(&dir, &sample.digest).exists());
}
