//! Blobs that come from outside the exchange.

use ed25519_dalek::SigningKey;
use shoal_protocol::message::BlobKind;
use tempfile::TempDir;

use super::support::{Sample, open, with_quota};
use crate::store::{Admitted, BlobState, Staged, Store, StoreError, Verdict};

const MIB: u64 = 1 << 20;

fn stage(store: &Store, sample: &Sample) -> Staged {
    let key = SigningKey::from_bytes(&[7; 32]);
    store
        .stage(sample.digest, BlobKind::Blob, sample.size(), key)
        .unwrap()
}

#[tokio::test]
async fn a_staged_blob_is_here_once_it_is_admitted_and_after_a_restart() {
    let dir = TempDir::new().unwrap();
    for sample in [
        Sample::new(1, 0),
        Sample::new(2, 1000),
        Sample::sha512(3, 9 * MIB + 1),
    ] {
        let store = open(&dir);
        let mut staged = stage(&store, &sample);
        for piece in sample.bytes.chunks(100_000) {
            staged.write(piece).unwrap();
            assert!(store.get(&sample.digest).is_none());
        }
        assert!(matches!(staged.admit(), Ok(Admitted::Complete)));
        drop(store);
        let store = open(&dir);
        let blob = store.get(&sample.digest).unwrap();
        assert_eq!(blob.state(), BlobState::Complete);
        for index in 0..sample.chunks() {
            let (bytes, attestation) = blob.read_chunk(index).unwrap();
            assert_eq!(bytes, sample.chunk(index));
            assert_eq!(attestation, sample.attestation(index));
        }
    }
}

#[test]
fn what_is_not_the_blob_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let sample = Sample::new(4, 5 * MIB);
    let mut other = sample.bytes.clone();
    other[3_000_000] ^= 1;

    let mut staged = stage(&store, &sample);
    staged.write(&other).unwrap();
    assert!(matches!(staged.admit(), Err(StoreError::Differs { .. })));
    let mut staged = stage(&store, &sample);
    staged.write(&sample.bytes[1..]).unwrap();
    assert!(matches!(staged.admit(), Err(StoreError::Length { .. })));
    let mut staged = stage(&store, &sample);
    staged.write(&sample.bytes).unwrap();
    assert!(matches!(staged.write(b"x"), Err(StoreError::Length { .. })));
    drop(staged);

    assert!(store.get(&sample.digest).is_none());
    assert_eq!(store.usage().unwrap().bytes_used, 0);
    let left = std::fs::read_dir(dir.path().join("staged")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn a_quota_holds_for_what_is_staged() {
    let dir = TempDir::new().unwrap();
    let store = with_quota(&dir, MIB);
    let sample = Sample::new(5, 2 * MIB);
    let key = SigningKey::from_bytes(&[7; 32]);
    let staged = store.stage(sample.digest, BlobKind::Blob, sample.size(), key);
    assert!(matches!(staged.err(), Some(StoreError::Full { .. })));
}

#[tokio::test]
async fn a_pull_that_is_under_way_is_given_what_it_does_not_have() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let sample = Sample::new(6, 9 * MIB);
    let pulled = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    sample.write(&pulled, 1);
    let mut staged = stage(&store, &sample);
    staged.write(&sample.bytes).unwrap();
    let Ok(Admitted::Given(blob, given)) = staged.admit() else {
        panic!("the pull has the blob open");
    };
    assert_eq!(given.len() as u32, sample.chunks() - 1);
    assert!(given.iter().all(|(index, _)| *index != 1));
    assert_eq!(blob.verify().await, Verdict::Matches);
    assert_eq!(store.usage().unwrap().bytes_used, sample.size());

    // A partial blob that nobody has open gives way.
    let sample = Sample::new(7, 9 * MIB);
    sample.write(
        &store
            .begin(sample.digest, BlobKind::Blob, sample.size())
            .unwrap(),
        0,
    );
    let mut staged = stage(&store, &sample);
    staged.write(&sample.bytes).unwrap();
    assert!(matches!(staged.admit(), Ok(Admitted::Complete)));
    let blob = store.get(&sample.digest).unwrap();
    assert_eq!(blob.state(), BlobState::Complete);
}
