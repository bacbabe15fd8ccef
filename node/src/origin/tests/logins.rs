//! Bearer, Basic, and docker's configuration.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{super::fake::*, *};

const BLOB: &[u8] = b"behind a login";

/// A registry that wants a token of its own realm; `accepts` says which of those it gave are
/// still good, by their number.
async fn registry_with_realm(
    accepts: impl Fn(usize) -> bool + Send + Sync + 'static,
    expires_in: u64,
) -> Fake {
    let given = AtomicUsize::new(0);
    Fake::start(move |seen, base| {
        if seen.target.starts_with("/token") {
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            let body = format!(r#"{{"token":"t{number}","expires_in":{expires_in}}}"#);
            return answer(200, &[], body);
        }
        let number = seen
            .header("authorization")
            .and_then(|header| header.strip_prefix("Bearer t"))
            .and_then(|number| number.parse().ok());
        if number.is_some_and(&accepts) {
            return serve_blob(seen, &Bytes::from_static(BLOB));
        }
        let challenge = format!(
            r#"Bearer realm="{base}/token",service="fake registry",scope="repository:team/app:pull""#
        );
        answer(401, &[("www-authenticate", &challenge)], "")
    })
    .await
}

async fn read_blob(origins: &Origins) -> Result<Bytes, OriginError> {
    read(origins, &digest_of(BLOB), 0, None).await
}

#[tokio::test]
async fn twenty_readers_share_one_login() {
    let registry = registry_with_realm(|_| true, 300).await;
    let origins = at(&registry);
    let readers = (0..20).map(|_| read_blob(&origins));
    for outcome in futures::future::join_all(readers).await {
        assert_eq!(outcome.unwrap(), BLOB);
    }
    assert_eq!(registry.count("/token"), 1);
    let seen = registry.seen();
    let token = seen
        .iter()
        .find(|s| s.target.starts_with("/token"))
        .unwrap();
    assert_eq!(query(token)["service"], "fake registry");
    assert_eq!(query(token)["scope"], "repository:team/app:pull");
    assert_eq!(token.header("authorization"), None);

    // From now on there is no refusal first.
    let before = registry.seen().len();
    read_blob(&origins).await.unwrap();
    assert_eq!(registry.seen().len(), before + 1);
}

#[tokio::test]
async fn a_reader_that_gives_up_leaves_the_login_to_the_others() {
    let registry = registry_with_realm(|_| true, 300).await;
    let origins = at(&registry);
    let impatient = tokio::time::timeout(std::time::Duration::from_millis(1), read_blob(&origins));
    let (_, outcome) = tokio::join!(impatient, read_blob(&origins));
    assert_eq!(outcome.unwrap(), BLOB);
}

#[tokio::test]
async fn a_token_that_is_no_longer_accepted_is_renewed_once() {
    let revoked = Arc::new(AtomicUsize::new(0));
    let good = Arc::clone(&revoked);
    let registry = registry_with_realm(move |n| n > good.load(Ordering::SeqCst), 300).await;
    let origins = at(&registry);
    read_blob(&origins).await.unwrap();
    revoked.store(1, Ordering::SeqCst);
    let readers = (0..5).map(|_| read_blob(&origins));
    for outcome in futures::future::join_all(readers).await {
        assert_eq!(outcome.unwrap(), BLOB);
    }
    assert_eq!(registry.count("/token"), 2);
}

#[tokio::test]
async fn a_registry_that_accepts_no_token_denies() {
    let registry = registry_with_realm(|_| false, 300).await;
    let error = read_blob(&at(&registry)).await;
    assert!(matches!(error, Err(OriginError::Denied(_))), "{error:?}");
    assert_eq!(registry.count("/token"), 1);
    assert_eq!(registry.count("/v2/"), 2);
}

#[tokio::test]
async fn the_failure_of_a_realm_is_not_that_of_the_content() {
    let failure = async |code| {
        let registry = Fake::start(move |seen, base| {
            if seen.target.starts_with("/token") {
                return answer(code, &[("retry-after", "7")], "");
            }
            let challenge = format!(r#"Bearer realm="{base}/token""#);
            answer(401, &[("www-authenticate", &challenge)], "")
        })
        .await;
        read_blob(&at(&registry)).await.unwrap_err()
    };
    assert!(matches!(failure(401).await, OriginError::Denied(_)));
    assert!(matches!(failure(404).await, OriginError::Unreachable(_)));
    assert!(matches!(
        failure(503).await,
        OriginError::Throttled { retry_after: Some(wait), .. } if wait.as_secs() == 7
    ));
}

#[tokio::test]
async fn dockers_credentials_are_shown_to_the_realm_and_to_basic_registries() {
    for basic in [false, true] {
        let registry = Fake::start(move |seen, base| {
            let login = format!("Basic {}", STANDARD.encode("amy:s3cret"));
            let authorization = seen.header("authorization");
            if seen.target.starts_with("/token") {
                assert_eq!(authorization, Some(login.as_str()));
                return answer(200, &[], r#"{"access_token":"t"}"#);
            }
            let wanted = if basic { login.as_str() } else { "Bearer t" };
            if authorization == Some(wanted) {
                return serve_blob(seen, &Bytes::from_static(BLOB));
            }
            let challenge = if basic {
                "Basic realm=\"r\"".to_owned()
            } else {
                format!(r#"Bearer realm="{base}/token""#)
            };
            answer(401, &[("www-authenticate", &challenge)], "")
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let auth = STANDARD.encode("amy:s3cret");
        let auths = format!(
            r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#,
            registry.address
        );
        std::fs::write(&path, auths).unwrap();
        let origins = Origins::new(OriginsConfig {
            upstreams: BTreeMap::from([(hint().upstream, vec![spec(&registry)])]),
            docker_config: Some(path),
            ..OriginsConfig::default()
        })
        .unwrap();
        assert_eq!(read_blob(&origins).await.unwrap(), BLOB, "basic: {basic}");
        let token = registry
            .seen()
            .into_iter()
            .find(|s| s.target.starts_with("/token"));
        assert_eq!(token.is_none(), basic);
        if let Some(token) = token {
            assert_eq!(query(&token)["account"], "amy");
        }
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let registry = Fake::start(|seen, base| {
        if seen.target.starts_with("/token") {
            assert_eq!(
                (seen.method.as_str(), seen.target.as_str()),
                ("POST", "/token")
            );
            let form: BTreeMap<_, _> = url::form_urlencoded::parse(&seen.body).collect();
            assert_eq!(form["grant_type"], "refresh_token");
            assert_eq!(form["refresh_token"], "long lived");
            assert_eq!(form["scope"], "repository:team/app:pull");
            return answer(200, &[], r#"{"access_token":"t"}"#);
        }
        if seen.header("authorization") == Some("Bearer t") {
            return serve_blob(seen, &Bytes::from_static(BLOB));
        }
        let challenge = format!(r#"Bearer realm="{base}/token""#);
        answer(401, &[("www-authenticate", &challenge)], "")
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let config = format!(
        r#"{{"auths":{{"{}":{{"identitytoken":"long lived"}}}}}}"#,
        registry.address
    );
    std::fs::write(&path, config).unwrap();
    let origins = Origins::new(OriginsConfig {
        upstreams: BTreeMap::from([(hint().upstream, vec![spec(&registry)])]),
        docker_config: Some(path),
        ..OriginsConfig::default()
    })
    .unwrap();
    assert_eq!(read_blob(&origins).await.unwrap(), BLOB);
}

#[tokio::test]
async fn without_credentials_the_operator_is_told_what_to_do() {
    let registry =
        Fake::start(|_, _| answer(401, &[("www-authenticate", "Basic realm=\"r\"")], "")).await;
    let error = read_blob(&at(&registry)).await.unwrap_err();
    assert!(matches!(error, OriginError::Denied(_)));
    assert!(error.to_string().contains("docker login"), "{error}");
}

#[tokio::test]
async fn credentials_are_not_sent_to_a_realm_over_plain_http_by_an_https_registry() {
    let realm = Fake::start(|_, _| answer(200, &[], r#"{"token":"t"}"#)).await;
    let challenge = format!(r#"Bearer realm="{}/token""#, realm.url());
    let authority = Authority::new();
    let registry = Fake::start_tls(
        move |_, _| answer(401, &[("www-authenticate", &challenge)], ""),
        &authority,
    )
    .await;
    let origins = with_spec(OriginSpec {
        ca_file: Some(authority.file()),
        ..spec(&registry)
    });
    let error = read_blob(&origins).await;
    assert!(
        matches!(&error, Err(OriginError::Unreachable(text)) if text.contains("plain http")),
        "{error:?}"
    );
    assert_eq!(realm.accepted(), 0);
}
