//! Statuses and connections.

use std::time::Duration;

use shoal_protocol::message::{OriginFailure, TagFailure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
};

use super::{super::fake::*, *};
use crate::content::PullError;

async fn failure(code: u16, headers: &'static [(&str, &str)]) -> OriginError {
    let registry = Fake::start(move |_, _| {
        let body = r#"{"errors":[{"code":"TOLD","message":"the registry's words"}]}"#;
        answer(code, headers, body)
    })
    .await;
    let error = read(&at(&registry), &digest_of(b""), 0, None).await;
    let error = error.unwrap_err();
    let text = error.to_string();
    for part in ["registry.test/team/app", "TOLD: the registry's words"] {
        assert!(text.contains(part), "{text}");
    }
    error
}

#[tokio::test]
async fn statuses_are_told_apart_by_what_can_be_done_about_them() {
    for (code, headers, wire) in [
        (404, &[] as &[_], OriginFailure::NotFound),
        (401, &[], OriginFailure::Denied),
        (403, &[], OriginFailure::Denied),
        (429, &[], OriginFailure::Throttled { retry_ms: None }),
        (
            429,
            &[("retry-after", "3")],
            OriginFailure::Throttled {
                retry_ms: Some(3000),
            },
        ),
        (
            503,
            &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")],
            OriginFailure::Throttled { retry_ms: Some(0) },
        ),
    ] {
        let error = failure(code, headers).await;
        assert_eq!(OriginFailure::from(&error), wire, "{code}");
    }
    for code in [500, 502, 504] {
        assert!(matches!(
            failure(code, &[]).await,
            OriginError::Unreachable(_)
        ));
    }
    assert!(matches!(failure(400, &[]).await, OriginError::Invalid(_)));
}

#[tokio::test]
async fn failures_keep_their_meaning_for_clients_and_tags() {
    let throttled = failure(429, &[("retry-after", "3")]).await;
    let wait = Some(Duration::from_secs(3));
    assert!(matches!(
        PullError::from(&throttled),
        PullError::Throttled { retry_after, .. } if retry_after == wait
    ));
    assert_eq!(TagFailure::from(&throttled), TagFailure::Throttled(Some(3)));
    let gone = failure(404, &[]).await;
    assert!(matches!(PullError::from(&gone), PullError::NotFound(_)));
    let broken = failure(502, &[]).await;
    assert!(matches!(
        PullError::from(&broken),
        PullError::Unavailable(_)
    ));
    assert!(matches!(
        TagFailure::from(&broken),
        TagFailure::Unreachable(_)
    ));
}

#[tokio::test]
async fn an_origin_that_does_not_listen_is_unreachable() {
    // Bound, so that no other test gets the port, but not listening.
    let silent = TcpSocket::new_v4().unwrap();
    silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let origins = with_spec(OriginSpec::at(Url::parse(&url).unwrap()));
    let error = read(&origins, &digest_of(b""), 0, None).await;
    assert!(
        matches!(&error, Err(OriginError::Unreachable(text)) if text.contains("refused")),
        "{error:?}"
    );
}

/// A server that answers `answered` requests on each connection and closes it on the next,
/// unanswered; counts the requests that came.
async fn server_that_closes(answered: usize) -> (Origins, Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            for number in 0..=answered {
                if stream.read(&mut buffer).await.unwrap_or(0) == 0 {
                    break;
                }
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                if number < answered {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(answer).await.unwrap();
                }
            }
        }
    });
    (
        with_spec(OriginSpec::at(Url::parse(&url).unwrap())),
        requests,
    )
}

#[tokio::test]
async fn a_connection_that_had_ended_is_replaced_once() {
    let (origins, requests) = server_that_closes(1).await;
    for _ in 0..3 {
        let got = read(&origins, &digest_of(b"ok"), 0, None).await;
        assert_eq!(got.unwrap(), "ok");
    }
    let sent = requests.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(sent, 5, "the second and third read were each sent twice");
}

#[tokio::test]
async fn a_server_that_always_closes_is_asked_twice() {
    let (origins, requests) = server_that_closes(0).await;
    let error = read(&origins, &digest_of(b"ok"), 0, None).await;
    assert!(
        matches!(error, Err(OriginError::Unreachable(_))),
        "{error:?}"
    );
    assert_eq!(requests.load(std::sync::atomic::Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let origins = with_spec(OriginSpec::at(Url::parse(&url).unwrap()));
    let error = read(&origins, &digest_of(b""), 0, None).await;
    assert!(
        matches!(&error, Err(OriginError::Unreachable(text)) if text.contains("no answer in")),
        "{error:?}"
    );
    drop(listener);
}

#[tokio::test]
async fn parallel_reads_use_parallel_connections_and_keep_them() {
    let blob = Bytes::from(vec![1; 1 << 20]);
    let digest = digest_of(&blob);
    let registry = Fake::start(move |seen, _| serve_blob(seen, &blob)).await;
    let origins = at(&registry);
    let mut bodies = Vec::new();
    for _ in 0..4 {
        let body = origins
            .read(&digest, BlobKind::Blob, &hint(), 0, None)
            .await;
        bodies.push(body.unwrap());
    }
    assert_eq!(registry.accepted(), 4);
    for body in bodies {
        assert_eq!(whole(body).await.unwrap().len(), 1 << 20);
    }
    read(&origins, &digest, 0, None).await.unwrap();
    assert_eq!(registry.accepted(), 4);
}
