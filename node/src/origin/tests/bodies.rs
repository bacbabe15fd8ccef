//! Bytes of blobs: ranges, what is cut short, sizes.

use super::{super::fake::*, *};

#[tokio::test]
async fn ranges_are_asked_for_and_checked() {
    let blob = Bytes::from_static(b"0123456789");
    let digest = digest_of(&blob);
    let registry = Fake::start(move |seen, _| serve_blob(seen, &blob)).await;
    let origins = at(&registry);
    for (start, end, range, bytes) in [
        (0, None, None, "0123456789"),
        (0, Some(4), Some("bytes=0-3"), "0123"),
        (4, Some(8), Some("bytes=4-7"), "4567"),
        (8, Some(12), Some("bytes=8-11"), "89"),
        (7, None, Some("bytes=7-"), "789"),
    ] {
        let body = origins
            .read(&digest, BlobKind::Blob, &hint(), start, end)
            .await
            .unwrap();
        assert_eq!((body.start, body.size), (start, Some(10)));
        assert_eq!(whole(body).await.unwrap(), bytes);
        let seen = registry.seen().pop().unwrap();
        assert_eq!(seen.header("range"), range);
        assert_eq!(seen.target, format!("/v2/team/app/blobs/{digest}"));
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
    }
    for (start, end) in [(10, None), (10, Some(11)), (5, Some(5)), (5, Some(4))] {
        let error = read(&origins, &digest, start, end).await;
        assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
    }
}

#[tokio::test]
async fn an_origin_that_ignores_ranges_begins_at_zero() {
    let registry = Fake::start(|_, _| answer(200, &[], "0123456789")).await;
    let body = at(&registry)
        .read(&digest_of(b""), BlobKind::Blob, &hint(), 4, Some(8))
        .await
        .unwrap();
    assert_eq!((body.start, body.size), (0, Some(10)));
    assert_eq!(whole(body).await.unwrap(), "0123456789");
}

#[tokio::test]
async fn another_part_than_was_asked_for_is_invalid() {
    for content_range in [
        "bytes 0-3/10",
        "bytes 4-9/10",
        "bytes 4-5/10",
        "bytes 4-7/6",
        "bytes */10",
        "nonsense",
    ] {
        let registry =
            Fake::start(move |_, _| answer(206, &[("content-range", content_range)], "0123")).await;
        let error = read(&at(&registry), &digest_of(b""), 4, Some(8)).await;
        assert!(
            matches!(error, Err(OriginError::Invalid(_))),
            "{content_range}: {error:?}"
        );
    }
}

#[tokio::test]
async fn an_empty_blob_is_read_with_and_without_a_range() {
    let registry = Fake::start(|seen, _| serve_blob(seen, &Bytes::new())).await;
    let origins = at(&registry);
    for end in [None, Some(1)] {
        let body = origins
            .read(&digest_of(b""), BlobKind::Blob, &hint(), 0, end)
            .await
            .unwrap();
        assert_eq!((body.start, body.size), (0, Some(0)));
        assert_eq!(whole(body).await.unwrap(), "");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_never_ends_in_silence() {
    let registry = Fake::start(|seen, _| match seen.header("range") {
        None => cut(200, &[], Bytes::from_static(b"01234"), 10),
        Some(_) => cut(
            206,
            &[("content-range", "bytes 2-9/10")],
            Bytes::from_static(b"234"),
            8,
        ),
    })
    .await;
    let origins = at(&registry);
    for (start, sent, promised) in [(0, 5, 10), (2, 3, 8)] {
        let body = origins
            .read(&digest_of(b""), BlobKind::Blob, &hint(), start, None)
            .await
            .unwrap();
        let outcomes: Vec<_> = body.stream.collect().await;
        let (last, before) = outcomes.split_last().unwrap();
        let got: usize = before
            .iter()
            .map(|piece| piece.as_ref().unwrap().len())
            .sum();
        assert_eq!(got, sent, "what came is passed on");
        assert!(
            matches!(
                last,
                Err(OriginError::Truncated { expected: Some(expected), got, .. })
                    if *expected == promised && *got == sent as u64
            ),
            "{last:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_given_up() {
    let registry = Fake::start(|_, _| stall(Bytes::from_static(b"01234"), 10)).await;
    let error = read(&at(&registry), &digest_of(b""), 0, None).await;
    assert!(
        matches!(&error, Err(OriginError::Unreachable(text)) if text.contains("after the first 5")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_blob_of_absurd_size_is_invalid() {
    let size = BLOB_BYTES_MAX + 1;
    let registry = Fake::start(move |_, _| cut(200, &[], Bytes::from_static(b"x"), size)).await;
    let error = read(&at(&registry), &digest_of(b""), 0, None).await;
    assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
    let error = at(&registry).blob_size(&digest_of(b""), &hint()).await;
    assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
}

#[tokio::test]
async fn a_size_is_asked_for_by_head() {
    let blob = Bytes::from_static(b"0123456789");
    let registry = Fake::start(move |seen, _| serve_blob(seen, &blob)).await;
    let size = at(&registry).blob_size(&digest_of(b""), &hint()).await;
    assert_eq!(size, Ok(10));
    assert_eq!(registry.seen().len(), 1);
}

#[tokio::test]
async fn where_head_is_refused_the_first_byte_tells_the_size() {
    for size in [0, 1, 10] {
        let blob = Bytes::from(vec![7; size]);
        let store = Fake::start(move |seen, _| match seen.method.as_str() {
            "HEAD" => status(403),
            _ => serve_blob(seen, &blob),
        })
        .await;
        let location = store.url();
        let registry = Fake::start(move |_, _| answer(307, &[("location", &location)], "")).await;
        let got = at(&registry).blob_size(&digest_of(b""), &hint()).await;
        assert_eq!(got, Ok(size as u64));
        assert_eq!(store.seen()[1].header("range"), Some("bytes=0-0"));
    }
}

#[tokio::test]
async fn a_registry_that_says_no_to_head_is_believed() {
    let registry = Fake::start(|_, _| status(404)).await;
    let error = at(&registry).blob_size(&digest_of(b""), &hint()).await;
    assert!(matches!(error, Err(OriginError::NotFound(_))), "{error:?}");
    assert_eq!(registry.seen().len(), 1);
}
