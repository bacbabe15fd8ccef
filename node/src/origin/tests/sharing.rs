//! Members that log in as one.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use shoal_protocol::message::{Token, TokenHash, TokenKey};

use super::{super::fake::*, *};

const BLOB: &[u8] = b"behind a login";

/// What a registry with a realm of its own does; it has users, and an old token or more may be revoked.
#[derive(Default)]
struct Rules {
    /// Tokens up to this number are not accepted.
    revoked: AtomicUsize,
    /// Whether a token that was got without credentials opens nothing.
    private: AtomicBool,
    /// Seconds.
    lifetime: AtomicUsize,
    given: AtomicUsize,
}

async fn registry(rules: &Arc<Rules>) -> Fake {
    let rules = Arc::clone(rules);
    Fake::start(move |seen, base| {
        if seen.target.starts_with("/token") {
            let number = rules.given.fetch_add(1, Ordering::SeqCst) + 1;
            let who = seen.header("authorization").map_or("nobody", |_| "amy");
            let lifetime = rules.lifetime.load(Ordering::SeqCst);
            let body = format!(r#"{{"token":"{who}-{number}","expires_in":{lifetime}}}"#);
            return answer(200, &[], body);
        }
        let token = seen
            .header("authorization")
            .and_then(|header| header.strip_prefix("Bearer ")?.split_once('-'));
        let good = token.is_some_and(|(who, number)| {
            let revoked = rules.revoked.load(Ordering::SeqCst);
            let open = who == "amy" || !rules.private.load(Ordering::SeqCst);
            open && number.parse::<usize>().is_ok_and(|number| number > revoked)
        });
        if good {
            return serve_blob(seen, &Bytes::from_static(BLOB));
        }
        let challenge = format!(r#"Bearer realm="{base}/token",service="fake""#);
        answer(401, &[("www-authenticate", &challenge)], "")
    })
    .await
}

/// The members of a cluster in one process, the first of which is the keeper.
struct Members {
    all: Vec<Origins>,
    keeper: Arc<Keeper>,
}

/// The keeper, as the others reach it.
struct Keeper {
    origins: Origins,
    /// What it hands out in place of its own, where it lies.
    lie: Mutex<Option<Token>>,
    silent: bool,
}

impl Cluster for Arc<Keeper> {
    fn ask(
        &self,
        key: TokenKey,
        rejected: Option<TokenHash>,
        anonymous: bool,
    ) -> BoxFuture<'static, Option<Token>> {
        let keeper = Arc::clone(self);
        async move {
            let lie = keeper.lie.lock().unwrap().clone();
            if keeper.silent || lie.is_some() {
                return lie;
            }
            let asked = keeper.origins.token_for_member(key, rejected, anonymous);
            asked.await
        }
        .boxed()
    }

    fn offer(&self, key: TokenKey, token: Token) -> BoxFuture<'static, ()> {
        self.origins.take_token(key, token);
        futures::future::ready(()).boxed()
    }
}

/// Members that read `registry.test` at `registry`, with credentials or without.
fn members(registry: &Fake, with_credentials: &[bool], silent: bool) -> Members {
    let node = |with_credentials: &bool| {
        let credentials = with_credentials.then(|| Credentials {
            username: "amy".to_owned(),
            secret: Secret::Password("s3cret".to_owned()),
        });
        with_spec(OriginSpec {
            credentials,
            ..spec(registry)
        })
    };
    let all: Vec<Origins> = with_credentials.iter().map(node).collect();
    let keeper = Arc::new(Keeper {
        origins: all[0].clone(),
        lie: Mutex::default(),
        silent,
    });
    for origins in &all[1..] {
        origins.join(Arc::new(Arc::clone(&keeper)));
    }
    Members { all, keeper }
}

impl Members {
    async fn all_read(&self) {
        let readers = self
            .all
            .iter()
            .map(|origins| async { read(origins, &digest_of(BLOB), 0, None).await.unwrap() });
        for bytes in join_all(readers).await {
            assert_eq!(bytes, BLOB);
        }
    }
}

fn rules(lifetime: usize) -> Arc<Rules> {
    Arc::new(Rules {
        lifetime: lifetime.into(),
        ..Rules::default()
    })
}

#[tokio::test]
async fn fifty_nodes_log_in_once() {
    let rules = rules(300);
    let registry = registry(&rules).await;
    for credentials in [true, false] {
        let before = registry.count("/token");
        members(&registry, &[credentials; 50], false)
            .all_read()
            .await;
        assert_eq!(registry.count("/token") - before, 1);
    }
    let token = registry.seen().into_iter();
    let mut token = token.filter(|seen| seen.target.starts_with("/token"));
    let login = format!("Basic {}", STANDARD.encode("amy:s3cret"));
    let first = token.next().unwrap();
    assert_eq!(first.header("authorization"), Some(login.as_str()));
    assert_eq!(query(&first)["scope"], "repository:team/app:pull");
}

#[tokio::test]
async fn a_token_that_ends_is_renewed_once_for_all() {
    let rules = rules(1);
    let registry = registry(&rules).await;
    let members = members(&registry, &[true; 20], false);
    members.all_read().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    members.all_read().await;
    assert_eq!(registry.count("/token"), 2);
}

#[tokio::test]
async fn a_token_that_is_revoked_is_replaced_once_for_all() {
    let rules = rules(300);
    let registry = registry(&rules).await;
    let members = members(&registry, &[true; 20], false);
    // The keeper has what another got: what it gets itself it keeps for some seconds at least.
    read(&members.all[1], &digest_of(BLOB), 0, None)
        .await
        .unwrap();
    let key = TokenKey {
        hint: hint(),
        registry: spec(&registry).url.to_string(),
    };
    let replaced =
        members
            .keeper
            .origins
            .token_for_member(key.clone(), Some(TokenHash::of("amy-1")), false);
    assert_eq!(
        replaced.await,
        None,
        "it is too young to be replaced on others' word"
    );
    let offered = |secret: &str| Token {
        secret: secret.to_owned(),
        lifetime_ms: 300_000,
        anonymous: false,
    };
    let fresh = self::members(&registry, &[true; 20], false);
    fresh.keeper.origins.take_token(key, offered("amy-1"));
    fresh.all_read().await;
    assert_eq!(registry.count("/token"), 1, "what was offered is used");
    rules.revoked.store(1, Ordering::SeqCst);
    fresh.all_read().await;
    assert_eq!(registry.count("/token"), 2);
}

#[tokio::test]
async fn a_keeper_without_credentials_gives_the_others_what_one_of_them_got() {
    let rules = rules(300);
    rules.private.store(true, Ordering::SeqCst);
    let registry = registry(&rules).await;
    let mut with_credentials = [true; 10];
    with_credentials[0] = false;
    let members = members(&registry, &with_credentials, false);
    read(&members.all[3], &digest_of(BLOB), 0, None)
        .await
        .unwrap();
    members.all_read().await;
    assert_eq!(registry.count("/token"), 1);
}

#[tokio::test]
async fn a_keeper_that_is_silent_costs_each_node_a_login_of_its_own() {
    let rules = rules(300);
    let registry = registry(&rules).await;
    members(&registry, &[true; 3], true).all_read().await;
    // The first two offer theirs, which nobody asks for.
    assert!((2..=3).contains(&registry.count("/token")));
}

#[tokio::test]
async fn a_keeper_that_gives_out_nonsense_keeps_nobody_from_reading() {
    let rules = rules(300);
    let registry = registry(&rules).await;
    for nonsense in ["amy-0", "two words", "a\nb", ""] {
        let members = members(&registry, &[true; 3], false);
        *members.keeper.lie.lock().unwrap() = Some(Token {
            secret: nonsense.to_owned(),
            lifetime_ms: u32::MAX,
            anonymous: false,
        });
        members.all_read().await;
    }
}

#[tokio::test]
async fn a_keeper_logs_in_where_its_own_registry_says_and_nowhere_else() {
    let rules = rules(300);
    let registry = registry(&rules).await;
    let members = members(&registry, &[true; 2], false);
    let elsewhere = Fake::start(|_, _| answer(200, &[], r#"{"token":"t"}"#)).await;
    let key = |registry: String| TokenKey {
        hint: hint(),
        registry,
    };
    let asked = members
        .keeper
        .origins
        .token_for_member(key(elsewhere.url()), None, true);
    assert_eq!(asked.await, None);
    assert_eq!(elsewhere.accepted(), 0);
    let upstream = Hint {
        upstream: "unknown.test".parse().unwrap(),
        ..hint()
    };
    let unknown = TokenKey {
        hint: upstream,
        registry: "http://127.0.0.1:1/".to_owned(),
    };
    let asked = members.keeper.origins.token_for_member(unknown, None, true);
    assert_eq!(asked.await, None);
    let mine = key(spec(&registry).url.to_string());
    let asked = members
        .keeper
        .origins
        .token_for_member(mine, None, true)
        .await;
    assert_eq!(asked.unwrap().secret, "amy-1");
}

#[tokio::test]
async fn passwords_stay_where_they_are() {
    let basic = format!("Basic {}", STANDARD.encode("amy:s3cret"));
    let registry = Fake::start(move |seen, _| {
        if seen.header("authorization") == Some(basic.as_str()) {
            return serve_blob(seen, &Bytes::from_static(BLOB));
        }
        answer(401, &[("www-authenticate", "Basic realm=\"r\"")], "")
    })
    .await;
    let members = members(&registry, &[true; 2], false);
    members.all_read().await;
    let key = TokenKey {
        hint: hint(),
        registry: spec(&registry).url.to_string(),
    };
    let asked = members.keeper.origins.token_for_member(key, None, true);
    assert_eq!(asked.await, None);
}

/// How a realm takes a question for several scopes.
#[derive(Clone, Copy, Debug)]
enum Realm {
    /// As it should.
    Grants,
    /// It gives a token for the first alone.
    FirstOnly,
    /// It refuses.
    Refuses,
}

async fn registry_of_many(realm: Realm) -> Fake {
    Fake::start(move |seen, base| {
        if let Some((_, query)) = seen.target.split_once("/token?") {
            let scopes = url::form_urlencoded::parse(query.as_bytes());
            let scopes = scopes.filter(|(name, _)| name == "scope");
            let scopes: Vec<_> = scopes.map(|(_, scope)| scope.replace(':', "-")).collect();
            let granted = match realm {
                Realm::Refuses if scopes.len() > 1 => return status(403),
                Realm::FirstOnly => scopes[0].clone(),
                Realm::Grants | Realm::Refuses => scopes.join("."),
            };
            return answer(
                200,
                &[],
                format!(r#"{{"token":"{granted}","expires_in":300}}"#),
            );
        }
        let repository = seen.target["/v2/".len()..].split('/').next().unwrap();
        let scope = format!("repository-{repository}-pull");
        let token = seen.header("authorization");
        let token = token.and_then(|header| header.strip_prefix("Bearer "));
        if token.is_some_and(|token| token.split('.').any(|granted| granted == scope)) {
            return serve_blob(seen, &Bytes::from_static(BLOB));
        }
        let challenge = format!(r#"Bearer realm="{base}/token",service="fake""#);
        answer(401, &[("www-authenticate", &challenge)], "")
    })
    .await
}

#[tokio::test]
async fn many_repositories_of_a_registry_take_few_logins() {
    const REPOSITORIES: usize = 10;
    for (realm, logins) in [
        (Realm::Grants, 2..=3),
        (Realm::FirstOnly, 2..=2 * REPOSITORIES),
        (Realm::Refuses, 2..=2 * REPOSITORIES),
    ] {
        let registry = registry_of_many(realm).await;
        let members = members(&registry, &[true; 20], false);
        let readers = members.all.iter().flat_map(|origins| {
            (0..REPOSITORIES).map(move |number| async move {
                let hint = Hint {
                    repository: format!("app{number}").parse().unwrap(),
                    ..hint()
                };
                let digest = digest_of(BLOB);
                let body = origins.read(&digest, BlobKind::Blob, &hint, 0, None).await;
                whole(body.unwrap()).await.unwrap()
            })
        });
        for bytes in join_all(readers).await {
            assert_eq!(bytes, BLOB);
        }
        let count = registry.count("/token");
        assert!(logins.contains(&count), "{realm:?}: {count} logins");
    }
}
