//! Who may read what through the mirror.

use std::{
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    time::Duration,
};

use shoal_protocol::reference::{Repository, Selector};

use super::{
    super::{access::Lifetimes, fake::*, limits::VERDICTS_MAX},
    *,
};

const SECRET: &[u8] = b"for those who may";

/// Amy's `Authorization`: she may read `team/app` and `amy/own`, and nobody else may.
const AMY: HeaderValue = HeaderValue::from_static("Basic YW15OmFteQ==");
const BOB: HeaderValue = HeaderValue::from_static("Basic Ym9iOmJvYg==");

const CHALLENGE: &str = r#"Basic realm="The Registry, \"word for word\"""#;

/// A registry that holds [`SECRET`] in `team/app`, for Amy; what it answers can be set.
struct Registry {
    fake: Fake,
    /// What it answers to all, if that is not 0.
    broken: Arc<AtomicU16>,
    /// Whether Amy has lost her rights.
    revoked: Arc<AtomicBool>,
}

impl Registry {
    async fn start() -> Self {
        let (broken, revoked) = (
            Arc::new(AtomicU16::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (told, lost) = (Arc::clone(&broken), Arc::clone(&revoked));
        let fake = Fake::start(move |seen, _| match told.load(Ordering::SeqCst) {
            0 if seen.header("authorization") != AMY.to_str().ok()
                || lost.load(Ordering::SeqCst) =>
            {
                answer(401, &[("www-authenticate", CHALLENGE)], "")
            }
            0 if seen.target == "/v2/" || seen.target.contains("tags/list") => {
                answer(200, &[], r#"{"tags":["1"]}"#)
            }
            0 if seen.target.starts_with("/v2/team/app/manifests/1") => answer(200, &[], "{}"),
            0 if seen.target == format!("/v2/team/app/blobs/{}", digest_of(SECRET)) => {
                serve_blob(seen, &Bytes::from_static(SECRET))
            }
            0 => status(404),
            code => status(code),
        })
        .await;
        Self {
            fake,
            broken,
            revoked,
        }
    }

    /// A gate that asks this registry's leave.
    fn gate(&self) -> Gate {
        gate(&at(&self.fake), &[(UPSTREAM, Access::Origin)])
    }

    fn break_with(&self, code: u16) {
        self.broken.store(code, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.fake.seen().len()
    }
}

const UPSTREAM: &str = "registry.test";

fn gate(origins: &Origins, rules: &[(&str, Access)]) -> Gate {
    let gate = Gate::new(&rules_of(rules), origins.clone());
    gate.unwrap().unwrap()
}

fn rules_of(rules: &[(&str, Access)]) -> BTreeMap<Upstream, Access> {
    let rule = |(name, access): &(&str, Access)| (name.parse().unwrap(), *access);
    rules.iter().map(rule).collect()
}

fn tag() -> Object {
    Object::Manifest(Selector::Tag("1".parse().unwrap()))
}

fn secret() -> Object {
    Object::Blob(digest_of(SECRET))
}

fn told(outcome: Result<Pass, NoPass>) -> (u16, Vec<HeaderValue>) {
    match outcome {
        Err(NoPass::Refused(Refusal::Told(Told { status, challenges }))) => {
            (status.as_u16(), challenges)
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was let through"),
    }
}

fn failure(outcome: Result<Pass, NoPass>) -> OriginError {
    match outcome {
        Err(NoPass::Refused(Refusal::Origin(error))) => error,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was let through"),
    }
}

#[tokio::test]
async fn a_client_is_given_the_origins_own_challenge_and_reads_with_what_the_origin_takes() {
    let registry = Registry::start().await;
    let gate = registry.gate();
    let challenges = vec![HeaderValue::from_static(CHALLENGE)];
    for object in [tag(), secret(), Object::Lists] {
        let nobody = gate.admit(&hint(), &object, None).await;
        assert_eq!(told(nobody), (401, challenges.clone()));
        let bob = gate.admit(&hint(), &object, Some(&BOB)).await;
        assert_eq!(told(bob), (401, challenges.clone()));
        assert!(gate.admit(&hint(), &object, Some(&AMY)).await.is_ok());
    }
}

#[tokio::test]
async fn what_the_origin_said_holds_for_the_repository_and_for_what_it_holds() {
    let registry = Registry::start().await;
    let gate = registry.gate();
    for (object, asked) in [
        (tag(), 1),
        (tag(), 1),
        (secret(), 2),
        (secret(), 2),
        (tag(), 2),
    ] {
        assert!(gate.admit(&hint(), &object, Some(&AMY)).await.is_ok());
        assert_eq!(registry.asked(), asked);
    }
    // A refusal holds too.
    for _ in 0..3 {
        told(gate.admit(&hint(), &secret(), Some(&BOB)).await);
    }
    assert_eq!(registry.asked(), 3);
}

#[tokio::test]
async fn a_digest_grants_nothing_in_another_repository() {
    let registry = Registry::start().await;
    let gate = registry.gate();
    assert!(gate.admit(&hint(), &secret(), Some(&AMY)).await.is_ok());
    let other = Hint {
        repository: "amy/own".parse::<Repository>().unwrap(),
        ..hint()
    };
    assert!(gate.admit(&other, &Object::Lists, Some(&AMY)).await.is_ok());
    let outcome = gate.admit(&other, &secret(), Some(&AMY)).await;
    assert!(matches!(failure(outcome), OriginError::NotFound(_)));
}

#[tokio::test]
async fn while_the_origin_is_away_what_it_said_is_kept_for_a_while_and_nothing_else_is_let_through()
{
    let registry = Registry::start().await;
    let lifetimes = Lifetimes {
        yes: Duration::ZERO,
        no: Duration::ZERO,
        kept: Duration::from_millis(300),
        held: Duration::from_secs(60),
    };
    let gate = registry.gate().with_lifetimes(lifetimes);
    assert!(gate.admit(&hint(), &secret(), Some(&AMY)).await.is_ok());
    told(gate.admit(&hint(), &secret(), Some(&BOB)).await);
    for code in [500, 502, 503] {
        registry.break_with(code);
        assert!(gate.admit(&hint(), &secret(), Some(&AMY)).await.is_ok());
        assert!(gate.admit(&hint(), &tag(), Some(&AMY)).await.is_ok());
        told(gate.admit(&hint(), &secret(), Some(&BOB)).await);
        failure(gate.admit(&hint(), &secret(), None).await);
        let unknown = Object::Blob(digest_of(b"never asked for"));
        failure(gate.admit(&hint(), &unknown, Some(&AMY)).await);
    }
    tokio::time::sleep(Duration::from_millis(310)).await;
    failure(gate.admit(&hint(), &secret(), Some(&AMY)).await);
}

#[tokio::test]
async fn lost_rights_are_lost_when_the_origins_word_has_aged() {
    let registry = Registry::start().await;
    let lifetimes = Lifetimes {
        yes: Duration::from_millis(200),
        no: Duration::ZERO,
        kept: Duration::from_secs(60),
        held: Duration::from_secs(60),
    };
    let gate = registry.gate().with_lifetimes(lifetimes);
    assert!(gate.admit(&hint(), &secret(), Some(&AMY)).await.is_ok());
    registry.revoked.store(true, Ordering::SeqCst);
    assert!(gate.admit(&hint(), &secret(), Some(&AMY)).await.is_ok());
    tokio::time::sleep(Duration::from_millis(210)).await;
    assert_eq!(
        told(gate.admit(&hint(), &secret(), Some(&AMY)).await).0,
        401
    );
    registry.break_with(502);
    assert_eq!(
        told(gate.admit(&hint(), &secret(), Some(&AMY)).await).0,
        401
    );
}

#[tokio::test]
async fn a_registry_that_denies_by_404_ends_an_old_yes_too() {
    let registry = Registry::start().await;
    let lifetimes = Lifetimes {
        yes: Duration::ZERO,
        no: Duration::ZERO,
        kept: Duration::from_secs(60),
        held: Duration::from_secs(60),
    };
    let gate = registry.gate().with_lifetimes(lifetimes);
    assert!(gate.admit(&hint(), &secret(), Some(&AMY)).await.is_ok());
    registry.break_with(404);
    failure(gate.admit(&hint(), &secret(), Some(&AMY)).await);
    registry.break_with(502);
    failure(gate.admit(&hint(), &secret(), Some(&AMY)).await);
}

#[tokio::test]
async fn beside_an_upstream_that_is_not_for_everybody_only_named_ones_are_served() {
    let registry = Registry::start().await;
    let public = Fake::start(|seen, _| {
        if seen.target == format!("/v2/team/app/blobs/{}", digest_of(b"public")) {
            return serve_blob(seen, &Bytes::from_static(b"public"));
        }
        status(404)
    })
    .await;
    let origins = Origins::new(OriginsConfig {
        upstreams: BTreeMap::from([
            (hint().upstream, vec![spec(&registry.fake)]),
            ("open.test".parse().unwrap(), vec![spec(&public)]),
        ]),
        docker_config: None,
        ..OriginsConfig::default()
    })
    .unwrap();
    let gate = gate(&origins, &[(UPSTREAM, Access::Origin)]);
    let of = |upstream: &str| Hint {
        upstream: upstream.parse().unwrap(),
        ..hint()
    };
    let stranger = gate.admit(&of("evil.test"), &secret(), None).await;
    assert_eq!(
        stranger.err(),
        Some(NoPass::Unnamed("evil.test".parse().unwrap()))
    );
    // What is cached for one upstream is not to be had through another that has not got it.
    failure(gate.admit(&of("open.test"), &secret(), Some(&AMY)).await);
    let its_own = Object::Blob(digest_of(b"public"));
    assert!(
        gate.admit(&of("open.test"), &its_own, Some(&AMY))
            .await
            .is_ok()
    );
    assert!(gate.admit(&of("open.test"), &tag(), None).await.is_ok());
    let shown = public.seen();
    assert!(
        shown
            .iter()
            .all(|seen| seen.header("authorization").is_none())
    );
    assert_eq!(registry.asked(), 0);
}

#[tokio::test]
async fn one_registry_under_two_names_has_one_rule() {
    let registry = Registry::start().await;
    let origins = Origins::new(OriginsConfig {
        upstreams: BTreeMap::from([
            (hint().upstream, vec![spec(&registry.fake)]),
            ("alias".parse().unwrap(), vec![spec(&registry.fake)]),
        ]),
        docker_config: None,
        ..OriginsConfig::default()
    })
    .unwrap();
    let rules = rules_of(&[(UPSTREAM, Access::Origin)]);
    let error = Gate::new(&rules, origins.clone())
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("alias") && error.contains(UPSTREAM),
        "{error}"
    );
    let hub = [
        ("docker.io", Access::Origin),
        ("index.docker.io", Access::Open),
    ];
    assert!(Gate::new(&rules_of(&hub), at(&registry.fake)).is_err());
    let both = rules_of(&[(UPSTREAM, Access::Origin), ("alias", Access::Origin)]);
    assert!(Gate::new(&both, origins.clone()).unwrap().is_some());
    assert!(Gate::new(&BTreeMap::new(), origins).unwrap().is_none());
}

#[tokio::test]
async fn no_more_verdicts_than_the_bound_are_remembered_and_strangers_push_no_rights_out() {
    let registry = Registry::start().await;
    let gate = registry.gate();
    assert!(gate.admit(&hint(), &tag(), Some(&AMY)).await.is_ok());
    for number in 0..VERDICTS_MAX + 2 {
        gate.learn_refusal(&hint(), number);
        assert!(gate.verdicts() <= VERDICTS_MAX);
    }
    let asked = registry.asked();
    assert!(gate.admit(&hint(), &tag(), Some(&AMY)).await.is_ok());
    assert_eq!(registry.asked(), asked);
}

#[tokio::test]
async fn a_node_without_a_login_reads_with_the_clients_while_that_waits() {
    let registry = Registry::start().await;
    let origins = at(&registry.fake);
    let gate = gate(&origins, &[(UPSTREAM, Access::Origin)]);
    let digest = digest_of(SECRET);
    let denied = read(&origins, &digest, 0, None).await;
    assert!(matches!(denied, Err(OriginError::Denied(_))), "{denied:?}");
    let pass = gate.admit(&hint(), &secret(), Some(&AMY)).await.ok();
    assert_eq!(read(&origins, &digest, 0, None).await.unwrap(), SECRET);
    let other = Hint {
        repository: "amy/own".parse::<Repository>().unwrap(),
        ..hint()
    };
    let elsewhere = origins.blob_size(&digest, &other).await;
    assert!(
        matches!(elsewhere, Err(OriginError::Denied(_))),
        "{elsewhere:?}"
    );
    drop(pass);
    let denied = read(&origins, &digest, 0, None).await;
    assert!(matches!(denied, Err(OriginError::Denied(_))), "{denied:?}");
}

#[tokio::test]
async fn what_is_no_registrys_leave_lets_nobody_through() {
    // A page of a portal, and a redirect to a place that asks for a login of its own.
    let elsewhere = Fake::start(|_, _| status(401)).await;
    let page = Fake::start(|_, _| answer(200, &[("content-type", "text/html")], "log in")).await;
    let target = elsewhere.url();
    let leads_away = Fake::start(move |_, _| {
        let location = format!("{target}/login");
        answer(307, &[("location", &location)], "")
    })
    .await;
    for fake in [&page, &leads_away] {
        let gate = gate(&at(fake), &[(UPSTREAM, Access::Origin)]);
        for object in [tag(), secret()] {
            failure(gate.admit(&hint(), &object, Some(&AMY)).await);
        }
    }
    let seen = elsewhere.seen();
    assert!(
        !seen.is_empty()
            && seen
                .iter()
                .all(|seen| seen.header("authorization").is_none())
    );
}

#[tokio::test]
async fn a_store_that_signs_for_get_alone_is_asked_for_the_first_byte() {
    let store = Fake::start(|seen, _| match seen.method.as_str() {
        "GET" => serve_blob(seen, &Bytes::from_static(SECRET)),
        _ => status(403),
    })
    .await;
    let target = store.url();
    let registry = Fake::start(move |_, _| {
        let location = format!("{target}/presigned");
        answer(307, &[("location", &location)], "")
    })
    .await;
    let gate = gate(&at(&registry), &[(UPSTREAM, Access::Origin)]);
    assert!(gate.admit(&hint(), &secret(), Some(&AMY)).await.is_ok());
    let last = store.seen().pop().unwrap();
    assert_eq!(last.header("range"), Some("bytes=0-0"));
}

#[tokio::test]
async fn a_client_without_an_upstream_is_greeted_for_the_default_or_the_only_one() {
    let registry = Registry::start().await;
    let origins = at(&registry.fake);
    let hub: Upstream = Upstream::default();
    let here: Upstream = UPSTREAM.parse().unwrap();
    let only = gate(&origins, &[(UPSTREAM, Access::Origin)]);
    let challenged = Err(NoPass::Refused(Refusal::Told(Told {
        status: StatusCode::UNAUTHORIZED,
        challenges: vec![HeaderValue::from_static(CHALLENGE)],
    })));
    assert_eq!(only.greet(None, &hub, None).await, challenged);
    assert_eq!(only.greet(None, &hub, Some(&AMY)).await, Ok(()));
    assert_eq!(only.greet(Some(&here), &hub, None).await, challenged);
    // The challenge is remembered, and a right is not made up.
    registry.break_with(502);
    assert_eq!(only.greet(None, &hub, None).await, challenged);
    assert!(only.greet(None, &hub, Some(&AMY)).await.is_err());

    // dockerd means Docker Hub, and must not be shown another's realm.
    let asked = registry.asked();
    let several = gate(
        &origins,
        &[(UPSTREAM, Access::Origin), ("docker.io", Access::Open)],
    );
    assert_eq!(several.greet(None, &hub, None).await, Ok(()));
    let others = gate(
        &origins,
        &[(UPSTREAM, Access::Origin), ("quay.io", Access::Open)],
    );
    assert_eq!(others.greet(None, &hub, None).await, Ok(()));
    assert_eq!(registry.asked(), asked);
}

#[test]
fn a_directory_cannot_decide_who_may_read() {
    let upstream = hint().upstream;
    let spec = OriginSpec::at(Url::parse("file:///srv/images").unwrap());
    let origins = with_spec(spec);
    let gate = |access| {
        let rules = BTreeMap::from([
            (upstream.clone(), access),
            ("other.test".parse().unwrap(), Access::Origin),
        ]);
        Gate::new(&rules, origins.clone()).map(drop)
    };
    gate(Access::Open).unwrap();
    let error = gate(Access::Origin).unwrap_err().to_string();
    assert!(error.contains("knows no users"), "{error}");
}

#[test]
fn several_origins_cannot_decide_who_may_read() {
    let upstream = hint().upstream;
    let urls = ["https://one.test", "https://two.test"];
    let list = urls.map(|url| OriginSpec::at(Url::parse(url).unwrap()));
    let origins = Origins::new(OriginsConfig {
        upstreams: BTreeMap::from([(upstream, list.into())]),
        docker_config: None,
        ..OriginsConfig::default()
    })
    .unwrap();
    let rules = rules_of(&[(UPSTREAM, Access::Origin)]);
    let error = Gate::new(&rules, origins.clone())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("several origins"), "{error}");
    // The second of the list is another upstream's registry, which is not for everybody.
    let rules = rules_of(&[(UPSTREAM, Access::Open), ("two.test", Access::Origin)]);
    let error = Gate::new(&rules, origins).err().unwrap().to_string();
    assert!(error.contains("the same registry"), "{error}");
}
