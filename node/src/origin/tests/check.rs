//! What the check of origins finds, tells and costs.

use serde_json::json;

use super::{super::fake::*, *};

const BLOB: &[u8] = b"the bytes of a layer";

/// A registry's answers about `team/app:v1`, an index with one manifest with one layer.
struct App {
    index: Bytes,
    manifest: Bytes,
    limits: Option<(&'static str, &'static str)>,
}

impl App {
    fn new() -> Self {
        let layer = json!({ "digest": digest_of(BLOB).to_string(), "size": BLOB.len() });
        let manifest = json!({ "layers": [layer] }).to_string();
        let entry = json!({
            "digest": digest_of(manifest.as_bytes()).to_string(),
            "size": manifest.len()
        });
        Self {
            index: json!({ "manifests": [entry] }).to_string().into(),
            manifest: manifest.into(),
            limits: None,
        }
    }

    fn answer(&self, seen: &Seen) -> hyper::Response<Body> {
        let path = seen.target.strip_prefix("/v2/").unwrap();
        let of = |bytes: &Bytes| format!("team/app/manifests/{}", digest_of(bytes));
        let manifest = if path.is_empty() {
            return answer(200, &[], "{}");
        } else if path == "team/app/manifests/v1" || path == of(&self.index) {
            &self.index
        } else if path == of(&self.manifest) {
            &self.manifest
        } else if path == format!("team/app/blobs/{}", digest_of(BLOB)) {
            return serve_blob(seen, &Bytes::from_static(BLOB));
        } else {
            return status(404);
        };
        let digest = digest_of(manifest).to_string();
        let mut headers = vec![("docker-content-digest", digest.as_str())];
        if let Some((limit, remaining)) = self.limits {
            headers.extend([
                ("ratelimit-limit", limit),
                ("ratelimit-remaining", remaining),
            ]);
        }
        let head = seen.method == "HEAD";
        let body = if head { Bytes::new() } else { manifest.clone() };
        answer(200, &headers, body)
    }
}

fn with_password(registry: &Fake) -> Origins {
    with_spec(OriginSpec {
        credentials: Some(Credentials {
            username: "the user".to_owned(),
            secret: Secret::Password("the password".to_owned()),
        }),
        ..spec(registry)
    })
}

fn with_urls(urls: &[String]) -> Origins {
    let specs = urls
        .iter()
        .map(|url| OriginSpec::at(Url::parse(url).unwrap()));
    Origins::new(OriginsConfig {
        upstreams: BTreeMap::from([(hint().upstream, specs.collect())]),
        ..OriginsConfig::default()
    })
    .unwrap()
}

/// The checks of every origin of the upstream, with the image `team/app:v1` or with none.
async fn check(origins: &Origins, image: bool) -> Vec<OriginCheck> {
    let Hint {
        upstream,
        repository,
    } = hint();
    let tag = "v1".parse().unwrap();
    let image = image.then_some((&repository, &tag));
    origins.check(&upstream, image).await.unwrap()
}

async fn check_one(origins: &Origins, image: bool) -> OriginCheck {
    let mut all = check(origins, image).await;
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// What was tried, and whether it was well.
fn outcomes(origin: &OriginCheck) -> Vec<(&'static str, bool)> {
    let outcome = |check: &Check| (check.what.as_str(), check.ok);
    origin.checks.iter().map(outcome).collect()
}

/// What an origin that cannot be reached is said to need.
async fn todo(url: String) -> String {
    let origin = check_one(&with_urls(&[url]), true).await;
    assert_eq!(outcomes(&origin), [("reach", false)], "{origin:?}");
    origin.checks[0].todo.clone().unwrap()
}

#[tokio::test]
async fn an_open_registry_is_asked_for_its_tag_and_one_byte_of_a_blob() {
    let store = Fake::start(|seen, _| serve_blob(seen, &Bytes::from_static(BLOB))).await;
    let location = format!(
        "http://localhost:{}/data?signature=key",
        store.address.port()
    );
    let app = App::new();
    let registry = Fake::start(move |seen, _| {
        if seen.target.contains("/blobs/") {
            return answer(307, &[("location", &location)], "");
        }
        app.answer(seen)
    })
    .await;
    let origins = at(&registry);

    let origin = check_one(&origins, true).await;
    let expected = [("reach", true), ("tag", true), ("blob", true)];
    assert_eq!(outcomes(&origin), expected, "{origin:?}");
    let blob = &origin.checks[2].detail;
    assert!(
        blob.contains("localhost") && blob.contains("ranges are answered"),
        "{blob}"
    );
    assert!(!format!("{origin:?}").contains("signature"), "{origin:?}");
    assert_eq!(store.seen()[0].header("range"), Some("bytes=0-0"));
    let (asked, stored) = (registry.seen(), store.seen());
    assert_eq!(origin.requests, (asked.len() + stored.len()) as u64);
    let of_manifests = |seen: &&Seen| seen.method == "GET" && seen.target.contains("/manifests/");
    let gets = asked.iter().filter(of_manifests).count();
    assert_eq!((origin.manifest_gets, gets), (2, 2));

    // Without an image there is one question more.
    let origin = check_one(&origins, false).await;
    assert_eq!(outcomes(&origin), [("reach", true)]);
    assert_eq!((origin.requests, origin.manifest_gets), (1, 0));
    assert_eq!(registry.seen().len(), asked.len() + 1);
}

#[tokio::test]
async fn a_registry_with_a_realm_is_logged_in_to_and_says_how_many_pulls_it_gives() {
    let app = App {
        limits: Some(("100;w=21600", "76;w=21600")),
        ..App::new()
    };
    let registry = Fake::start(move |seen, base| {
        if seen.target.starts_with("/token") {
            return match seen.header("authorization") {
                Some("Basic dGhlIHVzZXI6dGhlIHBhc3N3b3Jk") => {
                    answer(200, &[], r#"{"token":"hidden"}"#)
                }
                _ => status(401),
            };
        }
        if seen.header("authorization") == Some("Bearer hidden") {
            return app.answer(seen);
        }
        let challenge = format!(r#"Bearer realm="{base}/token",service="fake""#);
        answer(401, &[("www-authenticate", &challenge)], "")
    })
    .await;

    let origin = check_one(&with_password(&registry), true).await;
    let expected = [
        ("reach", true),
        ("credentials", true),
        ("login", true),
        ("tag", true),
        ("limit", true),
        ("blob", true),
    ];
    assert_eq!(outcomes(&origin), expected, "{origin:?}");
    assert!(origin.checks[4].detail.contains("76 of 100"), "{origin:?}");
    let told = serde_json::to_string(&origin).unwrap();
    for secret in ["hidden", "the user", "the password", "dGhl"] {
        assert!(!told.contains(secret), "{told}");
    }
    assert_eq!(origin.requests, registry.seen().len() as u64);
    // As a whole, and then for the image's repository.
    assert_eq!(registry.count("/token"), 2);

    // Nobody in particular may perhaps read what is public: that shows with an image only.
    let origin = check_one(&at(&registry), false).await;
    assert_eq!(
        outcomes(&origin),
        [("reach", true), ("credentials", true)],
        "{origin:?}"
    );
    let origin = check_one(&at(&registry), true).await;
    let last = origin.checks.last().unwrap();
    assert_eq!((last.what, last.ok), (Checked::Tag, false), "{origin:?}");
    assert!(last.todo.as_ref().unwrap().contains("docker login"));
}

#[tokio::test]
async fn a_password_that_is_refused_is_tried_once() {
    let registry = Fake::start(|_, _| {
        let challenge = ("www-authenticate", "Basic realm=\"r\"");
        answer(401, &[challenge], "")
    })
    .await;
    let origin = check_one(&with_password(&registry), true).await;
    let expected = [("reach", true), ("credentials", true), ("login", false)];
    assert_eq!(outcomes(&origin), expected);
    let todo = origin.checks[2].todo.as_ref().unwrap();
    assert!(todo.contains("docker login"), "{todo}");
    assert_eq!(registry.seen().len(), 2);

    // Where there is none, nothing is tried, and the reason says so.
    let origin = check_one(&at(&registry), true).await;
    assert_eq!(outcomes(&origin), expected);
    assert!(origin.checks[2].detail.contains("none are known"));
    assert_eq!(registry.seen().len(), 3);
}

#[tokio::test]
async fn credentials_that_cannot_be_read_are_named_and_public_content_is_still_tried() {
    let app = App::new();
    let registry = Fake::start(move |seen, base| {
        if seen.target.starts_with("/token") {
            return answer(200, &[], r#"{"token":"t"}"#);
        }
        if seen.header("authorization").is_some() {
            return app.answer(seen);
        }
        let challenge = format!(r#"Bearer realm="{base}/token""#);
        answer(401, &[("www-authenticate", &challenge)], "")
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.json");
    std::fs::write(&config, r#"{"credsStore": "shoal-test-no-such-helper"}"#).unwrap();
    let origins = Origins::new(OriginsConfig {
        upstreams: BTreeMap::from([(hint().upstream, vec![spec(&registry)])]),
        docker_config: Some(config),
        ..OriginsConfig::default()
    })
    .unwrap();
    let origin = check_one(&origins, true).await;
    let expected = [
        ("reach", true),
        ("credentials", false),
        ("tag", true),
        ("blob", true),
    ];
    assert_eq!(outcomes(&origin), expected, "{origin:?}");
    assert!(origin.checks[1].detail.contains("helper"), "{origin:?}");
}

#[tokio::test]
async fn the_last_pulls_are_not_spent_on_a_check() {
    let app = App {
        limits: Some(("100;w=21600", "10;w=21600")),
        ..App::new()
    };
    let registry = Fake::start(move |seen, _| app.answer(seen)).await;
    let origin = check_one(&at(&registry), true).await;
    let expected = [("reach", true), ("tag", true), ("limit", false)];
    assert_eq!(outcomes(&origin), expected);
    assert_eq!(origin.manifest_gets, 0);
    let heads = |seen: &Seen| seen.method == "HEAD" || seen.target == "/v2/";
    assert!(registry.seen().iter().all(heads));
}

#[tokio::test]
async fn what_a_registry_cannot_do_is_said() {
    let app = App::new();
    let registry = Fake::start(move |seen, _| {
        if seen.target.contains("/blobs/") {
            answer(200, &[], BLOB)
        } else if seen.method == "HEAD" {
            status(405)
        } else {
            app.answer(seen)
        }
    })
    .await;
    let origin = check_one(&at(&registry), true).await;
    assert!(origin.ok(), "{origin:?}");
    let [_, tag, blob] = &origin.checks[..] else {
        panic!("{origin:?}")
    };
    assert!(tag.detail.contains("HEAD"), "{tag:?}");
    assert!(blob.detail.contains("not answered"), "{blob:?}");
    assert_eq!(origin.manifest_gets, 3);
}

#[tokio::test]
async fn a_damaged_manifest_is_told_from_a_missing_image() {
    let app = App::new();
    let named = digest_of(b"another").to_string();
    let registry = Fake::start(move |seen, _| {
        if seen.method == "HEAD" {
            return answer(200, &[("docker-content-digest", &named)], "");
        }
        if seen.target.ends_with(&named) {
            return answer(200, &[], app.manifest.clone());
        }
        app.answer(seen)
    })
    .await;
    let origin = check_one(&at(&registry), true).await;
    let expected = [("reach", true), ("tag", true), ("blob", false)];
    assert_eq!(outcomes(&origin), expected);
    assert!(origin.checks[2].detail.contains("damaged"), "{origin:?}");
    assert!(origin.checks[2].todo.as_ref().unwrap().contains("again"));
    assert_eq!(origin.manifest_gets, 1, "it was read, if in vain");
}

#[tokio::test]
async fn another_part_of_a_blob_than_was_asked_for_is_no_answer() {
    let app = App::new();
    let registry = Fake::start(move |seen, _| {
        if seen.target.contains("/blobs/") {
            return answer(206, &[("content-range", "bytes 1-1/20")], "h");
        }
        app.answer(seen)
    })
    .await;
    let origin = check_one(&at(&registry), true).await;
    let expected = [("reach", true), ("tag", true), ("blob", false)];
    assert_eq!(outcomes(&origin), expected, "{origin:?}");
}

#[tokio::test]
async fn of_several_origins_one_has_to_have_the_tag() {
    let app = App::new();
    let full = Fake::start(move |seen, _| app.answer(seen)).await;
    let empty = || {
        Fake::start(|seen, _| match seen.target.as_str() {
            "/v2/" => answer(200, &[], "{}"),
            _ => status(404),
        })
    };
    let (first, last) = (empty().await, empty().await);

    let origins = with_urls(&[first.url(), full.url(), last.url()]);
    let all = check(&origins, true).await;
    assert!(all.iter().all(OriginCheck::ok), "{all:?}");
    assert!(all[0].checks[1].detail.contains("another origin"));
    let urls: Vec<&str> = all.iter().map(|origin| origin.url.as_str()).collect();
    assert_eq!(urls[1], format!("{}/", full.url()));

    let origins = with_urls(&[first.url(), last.url()]);
    for origin in check(&origins, true).await {
        assert_eq!(outcomes(&origin), [("reach", true), ("tag", false)]);
        let todo = origin.checks[1].todo.as_ref().unwrap();
        assert!(todo.contains("image's name"), "{todo}");
    }
}

#[tokio::test]
async fn whoever_cannot_reach_a_registry_is_told_what_to_do() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let authority = Authority::new();
    let tls = Fake::start_tls(|_, _| answer(200, &[], "{}"), &authority).await;
    let plain = Fake::start(|_, _| answer(200, &[], "{}")).await;
    let portal = Fake::start(|_, _| answer(200, &[("content-type", "text/html")], "<html>")).await;
    let other = Fake::start(|_, _| status(404)).await;
    let limited = Fake::start(|_, _| status(429)).await;
    for (url, words) in [
        (refused, "start what should listen"),
        (tls.url(), "--origin-ca registry.test=FILE"),
        (plain.url().replace("http:", "https:"), "plain http"),
        (portal.url(), "portal"),
        (other.url(), "below /v2/"),
        (limited.url(), "wait"),
    ] {
        let todo = todo(url.clone()).await;
        assert!(todo.contains(words), "{url}: {todo}");
    }
    let trusting = with_spec(OriginSpec {
        ca_file: Some(authority.file()),
        ..spec(&tls)
    });
    assert!(check_one(&trusting, false).await.ok());
}

#[tokio::test]
async fn a_login_that_would_go_to_another_host_is_asked_for_by_its_name() {
    let registry =
        Fake::start(|_, _| answer(401, &[("www-authenticate", "Basic realm=\"r\"")], "")).await;
    let location = format!("{}/v2/", registry.url());
    let before = Fake::start(move |_, _| answer(307, &[("location", &location)], "")).await;
    let origin = check_one(&with_password(&before), true).await;
    assert_eq!(outcomes(&origin), [("reach", false)]);
    let todo = origin.checks[0].todo.as_ref().unwrap();
    let expected = format!("--origin registry.test={}", registry.url());
    assert!(todo.ends_with(&expected), "{todo}");
}

#[tokio::test]
async fn a_directory_says_what_it_holds() {
    let root = tempfile::tempdir().unwrap();
    let origins = with_urls(&[format!("file://{}", root.path().display())]);
    let origin = check_one(&origins, true).await;
    assert_eq!(outcomes(&origin), [("layout", false)]);
    let todo = origin.checks[0].todo.as_ref().unwrap();
    assert!(todo.contains("mount the directory"), "{todo}");

    let write = |name: String, bytes: &[u8]| {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let App { manifest, .. } = App::new();
    write(
        "oci-layout".to_owned(),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    let index = json!({ "manifests": [{
        "digest": digest_of(&manifest).to_string(),
        "annotations": { "org.opencontainers.image.ref.name": "v1" }
    }]});
    write("index.json".to_owned(), index.to_string().as_bytes());
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest_of(bytes).hex());
    write(blob(&manifest), &manifest);
    let origin = check_one(&origins, true).await;
    let expected = [("layout", true), ("tag", true), ("blob", false)];
    assert_eq!(outcomes(&origin), expected, "{origin:?}");

    write(blob(BLOB), BLOB);
    let origin = check_one(&origins, true).await;
    assert!(origin.ok(), "{origin:?}");
    assert_eq!((origin.requests, origin.manifest_gets), (0, 0));
}
