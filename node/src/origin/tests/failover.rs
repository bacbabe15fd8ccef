//! Several origins for one upstream.

use super::*;
use crate::origin::fake::{self, answer, digest_of, serve_blob, status};

fn in_order(fakes: &[&Fake]) -> Origins {
    Origins::new(OriginsConfig {
        upstreams: BTreeMap::from([(
            hint().upstream,
            fakes.iter().map(|fake| spec(fake)).collect(),
        )]),
        docker_config: None,
        ..OriginsConfig::default()
    })
    .unwrap()
}

const BLOB: &[u8] = b"a layer";

async fn healthy() -> Fake {
    Fake::start(|seen, _| serve_blob(seen, &Bytes::from_static(BLOB))).await
}

#[tokio::test]
async fn what_the_first_does_not_give_the_next_is_asked_for() {
    for code in [400, 401, 403, 404, 429, 500, 503] {
        let first = Fake::start(move |_, _| status(code)).await;
        let second = healthy().await;
        let origins = in_order(&[&first, &second]);
        let got = read(&origins, &digest_of(BLOB), 0, None).await;
        assert_eq!(got.unwrap(), BLOB, "{code}");
        assert_eq!(first.count("/v2/team/app/blobs/"), 1, "{code}");
        assert_eq!(
            origins.blob_size(&digest_of(BLOB), &hint()).await,
            Ok(BLOB.len() as u64)
        );
    }
}

#[tokio::test]
async fn the_first_that_has_it_is_asked_alone() {
    let (first, second) = (healthy().await, healthy().await);
    let origins = in_order(&[&first, &second]);
    read(&origins, &digest_of(BLOB), 0, None).await.unwrap();
    assert_eq!((first.seen().len(), second.seen().len()), (1, 0));
}

#[tokio::test]
async fn there_is_no_such_thing_only_if_all_say_so() {
    let outcome = async |codes: [u16; 2]| {
        let [first, second] =
            codes.map(|code| Fake::start(move |_, _| answer(code, &[("retry-after", "7")], "")));
        let (first, second) = (first.await, second.await);
        let tag = "v1".parse().unwrap();
        let origins = in_order(&[&first, &second]);
        let error = origins.resolve_tag(&hint(), &tag, false).await.unwrap_err();
        let text = error.to_string();
        for fake in [&first, &second] {
            assert!(text.contains(&fake.address.to_string()), "{text}");
        }
        error
    };
    assert!(matches!(
        outcome([404, 404]).await,
        OriginError::NotFound(_)
    ));
    assert!(matches!(outcome([404, 403]).await, OriginError::Denied(_)));
    assert!(matches!(outcome([401, 404]).await, OriginError::Denied(_)));
    for codes in [[500, 404], [404, 500], [403, 502], [429, 500], [418, 404]] {
        let error = outcome(codes).await;
        assert!(matches!(error, OriginError::Unreachable(_)), "{error:?}");
    }
    let error = outcome([429, 404]).await;
    let OriginError::Throttled { retry_after, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(retry_after, Some(std::time::Duration::from_secs(7)));
}

#[tokio::test]
async fn what_one_registry_granted_is_not_shown_to_the_next() {
    let private = Fake::start(|seen, base| match seen.header("authorization") {
        _ if seen.target.starts_with("/token") => answer(200, &[], r#"{"token":"secret"}"#),
        Some(_) => status(404),
        None => {
            let challenge = format!("Bearer realm=\"{base}/token\",service=\"private\"");
            answer(401, &[("www-authenticate", &challenge)], "")
        }
    })
    .await;
    let public = healthy().await;
    let origins = in_order(&[&private, &public]);
    for _ in 0..2 {
        read(&origins, &digest_of(BLOB), 0, None).await.unwrap();
    }
    assert_eq!(private.count("/token"), 1);
    let seen = public.seen();
    assert_eq!(seen.len(), 2);
    assert!(
        seen.iter()
            .all(|seen| seen.header("authorization").is_none())
    );
}

#[tokio::test]
async fn one_that_is_away_costs_one_attempt_and_is_noticed_when_it_is_back() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead =
        OriginSpec::at(Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap());
    drop(listener);
    let healthy = healthy().await;
    let origins = Origins::new(OriginsConfig {
        upstreams: BTreeMap::from([(hint().upstream, vec![dead, spec(&healthy)])]),
        docker_config: None,
        ..OriginsConfig::default()
    })
    .unwrap();
    for _ in 0..5 {
        read(&origins, &digest_of(BLOB), 0, None).await.unwrap();
    }
    let stats = origins.stats();
    let told: Vec<_> = stats
        .iter()
        .map(|origin| (origin.state.as_str(), origin.requests, origin.failures))
        .collect();
    assert_eq!(told, [("away", 1, 1), ("up", 5, 0)]);
    assert!(stats[0].reason.as_ref().unwrap().contains("127.0.0.1"));
}

#[tokio::test]
async fn with_every_origin_away_a_request_fails_at_once_with_the_reason() {
    let broken = Fake::start(|_, _| status(502)).await;
    let origins = at(&broken);
    for _ in 0..8 {
        let error = read(&origins, &digest_of(BLOB), 0, None).await.unwrap_err();
        assert!(error.to_string().contains("502"), "{error}");
        assert!(matches!(error, OriginError::Unreachable(_)), "{error:?}");
    }
    assert_eq!(broken.seen().len(), 3, "three failures are enough");
}

#[tokio::test]
async fn a_body_that_breaks_off_sends_the_next_request_elsewhere() {
    let cut =
        Fake::start(|_, _| fake::cut(200, &[], Bytes::from_static(&BLOB[..3]), BLOB.len() as u64))
            .await;
    let healthy = healthy().await;
    let origins = in_order(&[&cut, &healthy]);
    let error = read(&origins, &digest_of(BLOB), 0, None).await.unwrap_err();
    assert!(
        matches!(error, OriginError::Truncated { got: 3, .. }),
        "{error:?}"
    );
    let rest = read(&origins, &digest_of(BLOB), 3, Some(BLOB.len() as u64)).await;
    assert_eq!(rest.unwrap(), BLOB[3..]);
    assert_eq!((cut.seen().len(), healthy.seen().len()), (1, 1));
}

#[tokio::test]
async fn whoever_gives_up_a_silent_origin_does_not_hide_that_from_others() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let healthy = healthy().await;
    let origins = Origins::new(OriginsConfig {
        upstreams: BTreeMap::from([(
            hint().upstream,
            vec![OriginSpec::at(Url::parse(&url).unwrap()), spec(&healthy)],
        )]),
        docker_config: None,
        ..OriginsConfig::default()
    })
    .unwrap();
    let wait = std::time::Duration::from_millis(1100);
    let digest = digest_of(BLOB);
    let given_up = tokio::time::timeout(wait, read(&origins, &digest, 0, None)).await;
    assert!(given_up.is_err());
    assert_eq!(origins.stats()[0].state, "away");
    assert_eq!(read(&origins, &digest, 0, None).await.unwrap(), BLOB);
}

#[tokio::test]
async fn one_that_limits_its_clients_is_asked_rather_than_nobody() {
    let limits = Fake::start(|seen, _| {
        if seen.method == "HEAD" {
            return answer(429, &[("retry-after", "600")], "");
        }
        serve_blob(seen, &Bytes::from_static(BLOB))
    })
    .await;
    let empty = Fake::start(|_, _| status(404)).await;
    let origins = in_order(&[&limits, &empty]);
    let size = origins.blob_size(&digest_of(BLOB), &hint()).await;
    assert!(
        matches!(size, Err(OriginError::Throttled { .. })),
        "{size:?}"
    );
    assert_eq!(origins.stats()[0].state, "limited");
    let got = read(&origins, &digest_of(BLOB), 0, None).await;
    assert_eq!(got.unwrap(), BLOB);
    assert_eq!(limits.seen().len(), 2);
}

#[tokio::test]
async fn a_page_is_no_answer_whatever_its_status() {
    const PAGE: &[(&str, &str)] = &[("content-type", "text/html; charset=utf-8")];
    for code in [200, 401, 403, 404] {
        let portal = Fake::start(move |_, _| answer(code, PAGE, "<p>Log in")).await;
        let origins = at(&portal);
        let tag = "v1".parse().unwrap();
        let digest = digest_of(BLOB);
        for error in [
            origins.resolve_tag(&hint(), &tag, false).await.err(),
            origins.blob_size(&digest, &hint()).await.err(),
            read(&origins, &digest, 0, None).await.err(),
        ] {
            let away = matches!(&error, Some(OriginError::Unreachable(_)));
            assert!(away, "{code}: {error:?}");
        }
    }
}

#[tokio::test]
async fn a_registrys_404_is_one_though_the_server_before_it_words_it() {
    const PAGE: &[(&str, &str)] = &[("content-type", "text/html")];
    for greeting in [200, 401] {
        let registry = Fake::start(move |seen, _| match seen.target.as_str() {
            "/v2/" => answer(greeting, &[("content-type", "application/json")], "{}"),
            _ => answer(404, PAGE, "<h1>404 Not Found</h1>"),
        })
        .await;
        let outcome = read(&at(&registry), &digest_of(BLOB), 0, None).await;
        assert!(
            matches!(outcome, Err(OriginError::NotFound(_))),
            "{outcome:?}"
        );
    }
    // One that names itself is believed without another question.
    let registry = Fake::start(|_, _| {
        let version = ("docker-distribution-api-version", "registry/2.0");
        answer(404, &[PAGE[0], version], "<h1>404 Not Found</h1>")
    })
    .await;
    let outcome = read(&at(&registry), &digest_of(BLOB), 0, None).await;
    assert!(
        matches!(outcome, Err(OriginError::NotFound(_))),
        "{outcome:?}"
    );
    assert_eq!(registry.seen().len(), 1);
}
