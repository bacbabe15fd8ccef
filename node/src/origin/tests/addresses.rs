//! Where requests may go: redirects, private addresses, TLS.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{super::fake::*, *};

#[tokio::test]
async fn a_redirect_to_another_host_is_followed_without_authorization() {
    let blob = Bytes::from_static(b"in the store");
    let digest = digest_of(&blob);
    let store = Fake::start(move |seen, _| serve_blob(seen, &blob)).await;
    let location = format!("{}/bucket/data?signature=secret", store.url());
    let registry = Fake::start(move |seen, _| match seen.header("authorization") {
        None => answer(401, &[("www-authenticate", "Basic realm=\"r\"")], ""),
        Some(_) => answer(307, &[("location", &location)], "<a>Moved</a>"),
    })
    .await;
    let origins = with_spec(OriginSpec {
        credentials: Some(Credentials {
            username: "u".to_owned(),
            secret: Secret::Password("p".to_owned()),
        }),
        ..spec(&registry)
    });

    assert_eq!(read(&origins, &digest, 3, Some(6)).await.unwrap(), "the");
    let seen = store.seen();
    assert_eq!(seen[0].header("range"), Some("bytes=3-5"));
    assert_eq!(seen[0].header("authorization"), None);
    // The next read starts at the registry again: presigned URLs expire.
    read(&origins, &digest, 0, Some(3)).await.unwrap();
    assert_eq!(registry.count("/v2/"), 3);
    assert_eq!(
        registry.accepted(),
        1,
        "redirects leave the connection usable"
    );
}

#[tokio::test]
async fn a_presigned_url_that_has_ended_is_asked_for_anew() {
    let blob = Bytes::from_static(b"in the store");
    let digest = digest_of(&blob);
    let store = Fake::start(move |seen, _| match query(seen)["signed"].as_str() {
        "1" => answer(
            403,
            &[],
            "<Error><Message>Request has expired</Message></Error>",
        ),
        _ => serve_blob(seen, &blob),
    })
    .await;
    let place = store.url();
    let signed = AtomicUsize::new(0);
    let registry = Fake::start(move |_, _| {
        let number = signed.fetch_add(1, Ordering::SeqCst) + 1;
        let location = format!("{place}/data?signed={number}");
        answer(307, &[("location", &location)], "")
    })
    .await;
    let got = read(&at(&registry), &digest, 0, None).await.unwrap();
    assert_eq!(got, "in the store");
    assert_eq!((registry.count("/v2/"), store.count("/data")), (2, 2));
}

#[tokio::test]
async fn a_redirect_on_the_same_host_keeps_the_authorization() {
    let registry = Fake::start(|seen, _| match seen.header("authorization") {
        None => answer(401, &[("www-authenticate", "Basic realm=\"r\"")], ""),
        Some(_) if seen.target == "/moved" => answer(200, &[], "here"),
        Some(_) => answer(302, &[("location", "/moved")], ""),
    })
    .await;
    let origins = with_spec(OriginSpec {
        credentials: Some(Credentials {
            username: "u".to_owned(),
            secret: Secret::Password("p".to_owned()),
        }),
        ..spec(&registry)
    });
    let got = read(&origins, &digest_of(b"here"), 0, None).await.unwrap();
    assert_eq!(got, "here");
}

#[tokio::test]
async fn a_circle_of_redirects_ends_after_five() {
    let registry = Fake::start(|_, _| answer(307, &[("location", "/again")], "")).await;
    let error = read(&at(&registry), &digest_of(b""), 0, None).await;
    assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
    assert_eq!(registry.seen().len(), 6);
}

#[tokio::test]
async fn a_redirect_to_an_unknown_scheme_is_refused() {
    let registry = Fake::start(|_, _| answer(307, &[("location", "file:///etc/passwd")], "")).await;
    let error = read(&at(&registry), &digest_of(b""), 0, None).await;
    assert!(
        matches!(&error, Err(OriginError::Unreachable(text)) if text.contains("not supported")),
        "{error:?}"
    );
}

#[tokio::test]
async fn private_addresses_are_refused_to_an_upstream_that_nobody_configured() {
    let authority = Authority::new();
    let server = Fake::start_tls(|_, _| answer(200, &[], ""), &authority).await;
    let origins = Origins::new(OriginsConfig::default()).unwrap();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let hint = Hint {
            upstream: format!("{host}:{}", server.address.port()).parse().unwrap(),
            repository: "team/app".parse().unwrap(),
        };
        let error = origins.blob_size(&digest_of(b""), &hint).await;
        assert!(
            matches!(&error, Err(OriginError::Unreachable(text)) if text.contains("--origin")),
            "{host}: {error:?}"
        );
    }
    assert_eq!(server.accepted(), 0, "not even a connection is made");
}

#[tokio::test]
async fn tls_trusts_the_configured_authority_and_no_other() {
    let authority = Authority::new();
    let blob = Bytes::from_static(b"over tls");
    let digest = digest_of(&blob);
    let registry = Fake::start_tls(move |seen, _| serve_blob(seen, &blob), &authority).await;

    let trusting = |ca_file| {
        with_spec(OriginSpec {
            ca_file: Some(ca_file),
            ..spec(&registry)
        })
    };
    let got = read(&trusting(authority.file()), &digest, 0, None).await;
    assert_eq!(got.unwrap(), "over tls");

    let other = Authority::new();
    for origins in [at(&registry), trusting(other.file())] {
        let error = read(&origins, &digest, 0, None).await;
        assert!(
            matches!(&error, Err(OriginError::Unreachable(text)) if text.contains("certificate")),
            "{error:?}"
        );
    }
    assert_eq!(registry.seen().len(), 1);
}

#[test]
fn a_ca_file_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    for path in [directory.path().join("missing.pem"), empty] {
        let spec = OriginSpec {
            ca_file: Some(path.clone()),
            ..OriginSpec::at(Url::parse("https://a.test").unwrap())
        };
        let config = OriginsConfig {
            upstreams: BTreeMap::from([(hint().upstream, vec![spec])]),
            docker_config: None,
            ..OriginsConfig::default()
        };
        let error = Origins::new(config).err().unwrap().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}
