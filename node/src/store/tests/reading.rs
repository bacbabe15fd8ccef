//! Readers of a blob that grows.

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use shoal_protocol::{limits::CHUNK_BYTES_MIN, message::BlobKind};

use super::support::*;
use crate::{
    content::PullError,
    piece::{Piece, in_memory},
    store::{Blob, DemandEvent, Store, Verdict},
};

#[tokio::test]
async fn a_reader_follows_the_contiguous_prefix_and_gets_the_last_byte_last() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 2 * CHUNK_BYTES_MIN);
    let blob = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    let mut stream = read_all(&blob);
    sample.write(&blob, 1);
    assert_waits(&mut stream).await;
    sample.write(&blob, 0);
    let all_but_one = sample.bytes.len() - 1;
    assert_eq!(
        drain(&mut stream, all_but_one).await,
        sample.bytes[..all_but_one]
    );
    assert_waits(&mut stream).await;
    assert_eq!(blob.verify().await, Verdict::Matches);
    assert_eq!(drain(&mut stream, 1).await, sample.bytes[all_but_one..]);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn an_empty_blob_ends_once_it_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 0);
    let blob = sample.fill(&store);
    let mut stream = read_all(&blob);
    assert_waits(&mut stream).await;
    assert_eq!(blob.verify().await, Verdict::Matches);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_range_that_leaves_out_the_end_does_not_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 3 * CHUNK_BYTES_MIN);
    let blob = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    sample.write(&blob, 1);
    let range = CHUNK_BYTES_MIN + 10..2 * CHUNK_BYTES_MIN - 10;
    let stream = blob.stream(range.clone(), demand(0, 1).0);
    let pieces: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert!(pieces.iter().all(|piece| piece.len() <= 1 << 20));
    assert_eq!(
        pieces.concat(),
        sample.bytes[range.start as usize..range.end as usize]
    );
}

#[tokio::test]
async fn a_reader_sees_what_its_own_node_reads_from_the_origin_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, CHUNK_BYTES_MIN);
    let blob = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    let mut stream = read_all(&blob);
    let mut ahead = blob.begin_ahead(0).unwrap();
    ahead.write(&sample.bytes[..1000]).unwrap();
    assert_eq!(drain(&mut stream, 1000).await, sample.bytes[..1000]);
    // The origin breaks off; a peer has the same chunk, and the reader goes on.
    drop(ahead);
    assert_waits(&mut stream).await;
    sample.write(&blob, 0);
    assert_eq!(blob.verify().await, Verdict::Matches);
    assert_eq!(
        drain(&mut stream, sample.bytes.len() - 1000).await,
        sample.bytes[1000..]
    );
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_reader_that_was_given_other_bytes_than_the_blobs_is_broken_off() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, CHUNK_BYTES_MIN);
    let blob = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    let mut fooled = read_all(&blob);
    let mut ahead = blob.begin_ahead(0).unwrap();
    ahead.write(&[9; 1000]).unwrap();
    assert_eq!(drain(&mut fooled, 1000).await, [9; 1000]);
    drop(ahead);
    let mut patient = read_all(&blob);
    sample.write(&blob, 0);
    assert_eq!(blob.verify().await, Verdict::Matches);
    assert!(matches!(
        fooled.next().await,
        Some(Err(PullError::Corrupt(_)))
    ));
    assert!(fooled.next().await.is_none());
    assert_eq!(drain(&mut patient, sample.bytes.len()).await, sample.bytes);
}

#[tokio::test]
async fn a_reader_that_has_had_a_dropped_chunk_is_broken_off() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 3 * CHUNK_BYTES_MIN);
    let blob = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    let lie = vec![9; CHUNK_BYTES_MIN as usize];
    blob.write_chunk(0, &lie, &attest(&sample.digest, 0, &lie))
        .unwrap();
    let mut fooled = read_all(&blob);
    drain(&mut fooled, lie.len()).await;
    let mut unread = read_all(&blob);
    blob.drop_chunk(0).unwrap();
    for index in 0..3 {
        sample.write(&blob, index);
    }
    assert!(matches!(
        fooled.next().await,
        Some(Err(PullError::Corrupt(_)))
    ));
    assert_eq!(blob.verify().await, Verdict::Matches);
    assert_eq!(drain(&mut unread, sample.bytes.len()).await, sample.bytes);
}

#[tokio::test]
async fn failing_breaks_off_those_who_read_now_and_not_who_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 100);
    let blob = store.begin(sample.digest, BlobKind::Blob, 100).unwrap();
    let (mut now, error) = (
        read_all(&blob),
        PullError::Unavailable("no one has it".into()),
    );
    assert_waits(&mut now).await;
    blob.fail(error.clone());
    assert_eq!(now.next().await, Some(Err(error)));
    let mut later = read_all(&blob);
    assert_waits(&mut later).await;
    sample.write(&blob, 0);
    assert_eq!(blob.verify().await, Verdict::Matches);
    assert_eq!(drain(&mut later, 100).await, sample.bytes);
}

#[tokio::test]
async fn the_driver_hears_where_readers_are_and_that_they_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 3 * CHUNK_BYTES_MIN);
    let blob = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    let (line, mut events) = demand(5, 8);
    let mut stream = Box::pin(blob.stream(10..2 * CHUNK_BYTES_MIN, line));
    let at = |chunk| DemandEvent::At {
        blob: sample.digest,
        reader: 5,
        chunk,
        end_chunk: 2,
    };
    assert_waits(&mut stream).await;
    assert_eq!(events.try_recv(), Ok(at(0)));
    sample.write(&blob, 0);
    drain(&mut stream, CHUNK_BYTES_MIN as usize - 10).await;
    assert_waits(&mut stream).await;
    assert_eq!(events.try_recv(), Ok(at(1)));
    assert!(events.try_recv().is_err(), "said once");
    drop(stream);
    assert_eq!(
        events.try_recv(),
        Ok(DemandEvent::Gone {
            blob: sample.digest,
            reader: 5
        })
    );
}

#[tokio::test]
async fn no_wait_and_no_end_is_lost_when_the_driver_is_slow() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 100);
    let blob = store.begin(sample.digest, BlobKind::Blob, 100).unwrap();
    let (events, mut received) = tokio::sync::mpsc::channel(1);
    let readers: Vec<_> = (0..20)
        .map(|reader| {
            let line = crate::store::Demand::new(events.clone(), reader);
            let mut stream = Box::pin(blob.stream(0..100, line));
            tokio::spawn(async move {
                let _ = tokio::time::timeout(Duration::from_millis(200), stream.next()).await;
            })
        })
        .collect();
    drop(events);
    let (mut at, mut gone) = (0, 0);
    while let Some(event) = received.recv().await {
        match event {
            DemandEvent::At { .. } => at += 1,
            DemandEvent::Gone { .. } => gone += 1,
        }
    }
    assert_eq!((at, gone), (20, 20));
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test]
async fn a_complete_blob_makes_no_demands() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 100);
    sample.complete(&store).await;
    let blob = store.get(&sample.digest).unwrap();
    let (line, mut events) = demand(1, 8);
    let mut stream = Box::pin(blob.stream(0..100, line));
    drain(&mut stream, 100).await;
    drop(stream);
    assert_eq!(events.recv().await, None);
}

/// A reader that may be given pieces of the file, of a blob that is complete.
async fn complete_in_pieces(
    store: &Store,
    sample: &Sample,
) -> (Arc<Blob>, BoxStream<'static, Result<Piece, PullError>>) {
    sample.complete(store).await;
    let blob = store.get(&sample.digest).unwrap();
    let pieces = blob.pieces(0..sample.size(), demand(0, 1).0).boxed();
    (blob, pieces)
}

/// The next piece, which must be in the file.
async fn in_file(pieces: &mut BoxStream<'static, Result<Piece, PullError>>) -> Piece {
    let piece = pieces.next().await.unwrap().unwrap();
    assert!(
        matches!(piece, Piece::File(_)),
        "the temporary directory's file system should know RWF_NOWAIT, as ext4, XFS and btrfs do"
    );
    piece
}

#[tokio::test]
async fn what_is_complete_and_cached_stays_in_its_file_but_for_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 9 * CHUNK_BYTES_MIN + 1);
    let (blob, mut pieces) = complete_in_pieces(&store, &sample).await;
    let mut given = vec![in_file(&mut pieces).await];
    // Deleted, it can be read on.
    drop(blob);
    assert!(store.remove(&sample.digest).unwrap());
    given.extend(pieces.map(Result::unwrap).collect::<Vec<_>>().await);
    assert!(matches!(given.last(), Some(Piece::Bytes(_))));
    let all = in_memory(stream::iter(given.into_iter().map(Ok)), io::Error::other);
    let all: Vec<_> = all.map(Result::unwrap).collect().await;
    assert!(all.concat() == sample.bytes);
}

#[tokio::test]
async fn what_is_on_its_way_is_read_into_memory() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 3 * CHUNK_BYTES_MIN);
    let blob = sample.fill(&store);
    let pieces = blob.pieces(0..2 * CHUNK_BYTES_MIN, demand(0, 1).0);
    let pieces: Vec<_> = pieces.map(Result::unwrap).collect().await;
    assert!(pieces.iter().all(|piece| matches!(piece, Piece::Bytes(_))));
}

#[tokio::test]
async fn what_the_disk_has_to_give_is_read_into_memory() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 8 * CHUNK_BYTES_MIN);
    let (_blob, mut pieces) = complete_in_pieces(&store, &sample).await;
    let file = File::open(blob_file(&dir, &sample.digest)).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let first = pieces.next().await.unwrap().unwrap();
    let Piece::Bytes(first) = first else {
        panic!("the first bytes are not in the page cache");
    };
    assert!(first == sample.bytes[..first.len()]);
}

#[tokio::test]
async fn a_reader_that_has_had_a_file_of_which_a_chunk_is_dropped_is_broken_off() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Sample::new(1, 4 * CHUNK_BYTES_MIN);
    let (blob, mut pieces) = complete_in_pieces(&store, &sample).await;
    in_file(&mut pieces).await;
    blob.drop_chunk(1).unwrap();
    // That the chunk is here again changes nothing: who knows what was sent.
    sample.write(&blob, 1);
    assert_eq!(blob.verify().await, Verdict::Matches);
    let next = pieces.next().await;
    assert!(matches!(next, Some(Err(PullError::Corrupt(_)))));
    assert!(pieces.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_threads_read_while_eight_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let sample = Arc::new(Sample::new(1, 8 * CHUNK_BYTES_MIN + 3));
    let blob = store
        .begin(sample.digest, BlobKind::Blob, sample.size())
        .unwrap();
    let verifying = tokio::spawn({
        let blob = Arc::clone(&blob);
        async move { blob.verify().await }
    });
    let streams: Vec<_> = (0..8)
        .map(|_| {
            let (mut stream, sample) = (read_all(&blob), Arc::clone(&sample));
            tokio::spawn(
                async move { drain(&mut stream, sample.bytes.len()).await == sample.bytes },
            )
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let uploads: Vec<_> = (0..8)
        .map(|_| {
            let (blob, sample, done) = (Arc::clone(&blob), Arc::clone(&sample), Arc::clone(&done));
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for index in blob.have().iter() {
                        assert_eq!(blob.read_chunk(index).unwrap().0, sample.chunk(index));
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            })
        })
        .collect();
    // Each writer writes every chunk, in its own order: one of them is first, none does harm.
    let writers: Vec<_> = (0..8u32)
        .map(|writer| {
            let (blob, sample) = (Arc::clone(&blob), Arc::clone(&sample));
            std::thread::spawn(move || {
                (0..sample.chunks())
                    .map(|step| (step * 2 + writer) % sample.chunks())
                    .filter(|index| {
                        let chunk = sample.chunk(*index);
                        blob.write_chunk(*index, chunk, &sample.attestation(*index))
                            .unwrap()
                    })
                    .count()
            })
        })
        .collect();
    assert_eq!(verifying.await.unwrap(), Verdict::Matches);
    for stream in streams {
        assert!(stream.await.unwrap());
    }
    done.store(true, Ordering::Relaxed);
    for upload in uploads {
        upload.join().unwrap();
    }
    let new: usize = writers
        .into_iter()
        .map(|writer| writer.join().unwrap())
        .sum();
    assert_eq!(new, sample.chunks() as usize, "every chunk was new once");
}
