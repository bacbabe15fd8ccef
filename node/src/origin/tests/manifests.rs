//! Tags, manifests and lists of tags.

use shoal_protocol::limits::MANIFEST_BYTES_MAX;

use super::{super::fake::*, *};

const MANIFEST: &str = r#"{"schemaVersion":2}"#;

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

async fn read_manifest(origins: &Origins) -> Result<Bytes, OriginError> {
    let digest = digest_of(MANIFEST.as_bytes());
    let body = origins
        .read(&digest, BlobKind::Manifest, &hint(), 0, None)
        .await?;
    whole(body).await
}

#[tokio::test]
async fn a_tag_is_resolved_by_head_alone() {
    let digest = digest_of(MANIFEST.as_bytes()).to_string();
    let registry =
        Fake::start(move |_, _| answer(200, &[("docker-content-digest", &digest)], "")).await;
    let resolved = at(&registry).resolve_tag(&hint(), &tag("v1"), false).await;
    assert_eq!(resolved, Ok(digest_of(MANIFEST.as_bytes())));
    let seen = registry.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].method, "HEAD");
    assert_eq!(seen[0].target, "/v2/team/app/manifests/v1");
    for media_type in [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ] {
        assert!(seen[0].header("accept").unwrap().contains(media_type));
    }
}

#[tokio::test]
async fn where_head_gives_no_digest_the_manifest_is_hashed() {
    for head_status in [200, 405] {
        let registry = Fake::start(move |seen, _| match seen.method.as_str() {
            "HEAD" => answer(head_status, &[], ""),
            _ => answer(200, &[], MANIFEST),
        })
        .await;
        let resolved = at(&registry).resolve_tag(&hint(), &tag("v1"), false).await;
        assert_eq!(resolved, Ok(digest_of(MANIFEST.as_bytes())));
    }
}

#[tokio::test]
async fn a_manifest_is_read_by_digest() {
    let registry = Fake::start(|_, _| answer(200, &[], MANIFEST)).await;
    assert_eq!(read_manifest(&at(&registry)).await.unwrap(), MANIFEST);
    let seen = &registry.seen()[0];
    let digest = digest_of(MANIFEST.as_bytes());
    assert_eq!(seen.target, format!("/v2/team/app/manifests/{digest}"));
    assert!(seen.header("accept").unwrap().contains("oci.image.index"));
}

#[tokio::test]
async fn what_is_no_manifest_is_invalid() {
    for (media_type, body) in [
        ("application/json", "<!doctype html><p>Please log in"),
        ("application/json", r#"{"schemaVersion":"#),
        ("application/json", "[]"),
        ("application/json", ""),
    ] {
        let registry =
            Fake::start(move |_, _| answer(200, &[("content-type", media_type)], body)).await;
        let error = read_manifest(&at(&registry)).await;
        assert!(
            matches!(&error, Err(OriginError::Invalid(text)) if text.contains("no manifest")),
            "{error:?}"
        );
        let error = at(&registry).resolve_tag(&hint(), &tag("v1"), false).await;
        assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
    }
}

#[tokio::test]
async fn a_manifest_may_have_four_mebibytes_and_no_more() {
    for excess in [0, 1] {
        let size = MANIFEST_BYTES_MAX as usize + excess;
        let manifest = format!(r#"{{"a":"{}"}}"#, "x".repeat(size - 8));
        assert_eq!(manifest.len(), size);
        let registry = Fake::start(move |_, _| answer(200, &[], manifest.clone())).await;
        let outcome = read_manifest(&at(&registry)).await;
        if excess == 0 {
            assert_eq!(outcome.unwrap().len(), size);
        } else {
            assert!(
                matches!(outcome, Err(OriginError::Invalid(_))),
                "{outcome:?}"
            );
        }
    }
}

#[tokio::test]
async fn tags_are_followed_through_their_pages_and_sorted() {
    let registry = Fake::start(
        |seen, _| match query(seen).get("last").map(String::as_str) {
            None => answer(
                200,
                &[(
                    "link",
                    r#"</v2/team/app/tags/list?n=2&last=v2>; rel="next""#,
                )],
                r#"{"name":"team/app","tags":["v2","v1","not a tag"]}"#,
            ),
            Some(_) => answer(
                200,
                &[],
                r#"{"name":"team/app","tags":["v10","latest","v1"]}"#,
            ),
        },
    )
    .await;
    let tags = at(&registry).tags(&hint()).await.unwrap();
    assert_eq!(tags, ["latest", "v1", "v10", "v2"].map(tag));
    assert_eq!(registry.count("/v2/team/app/tags/list?n="), 2);
}

#[tokio::test]
async fn a_repository_without_tags_has_an_empty_list() {
    let registry = Fake::start(|_, _| answer(200, &[], r#"{"name":"a","tags":null}"#)).await;
    assert_eq!(at(&registry).tags(&hint()).await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_list_that_leads_elsewhere_or_never_ends_is_invalid() {
    for link in [
        "<http://127.0.0.1:1/v2/x>; rel=\"next\"",
        "</v2/team/app/tags/list?n=1000>; rel=next",
    ] {
        let registry =
            Fake::start(move |_, _| answer(200, &[("link", link)], r#"{"tags":["a"]}"#)).await;
        let error = at(&registry).tags(&hint()).await;
        assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
    }
}

#[tokio::test]
async fn referrers_are_followed_through_their_pages() {
    let registry = Fake::start(|seen, _| {
        let next = r#"</v2/team/app/referrers/x?page=2>; rel="next""#;
        match query(seen).get("page") {
            None => answer(200, &[("link", next)], r#"{"manifests":[{"size":1}]}"#),
            Some(_) => answer(200, &[], r#"{"manifests":[{"size":2},{"size":3}]}"#),
        }
    })
    .await;
    let subject = digest_of(b"subject");
    let listed = at(&registry).referrers(&hint(), &subject).await.unwrap();
    let sizes: Vec<_> = listed
        .iter()
        .filter_map(|entry| entry["size"].as_u64())
        .collect();
    assert_eq!(sizes, [1, 2, 3]);
    assert_eq!(
        registry.seen()[0].target,
        format!("/v2/team/app/referrers/{subject}")
    );
}

#[tokio::test]
async fn a_registry_without_the_referrers_api_says_so_with_404() {
    let registry = Fake::start(|_, _| answer(404, &[], "404 page not found")).await;
    let listed = at(&registry)
        .referrers(&hint(), &digest_of(b"subject"))
        .await;
    assert!(
        matches!(listed, Err(OriginError::NotFound(_))),
        "{listed:?}"
    );
}

#[tokio::test]
async fn the_last_pulls_of_a_registry_are_not_spent_on_a_tag_that_is_known() {
    const MANIFEST: &str = r#"{"schemaVersion":2}"#;
    let registry = Fake::start(|seen, _| {
        let left = [
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", "10;w=21600"),
        ];
        let body = if seen.method == "HEAD" { "" } else { MANIFEST };
        answer(200, &left, body)
    })
    .await;
    let origins = at(&registry);
    let known = origins.resolve_tag(&hint(), &tag("v1"), true).await;
    assert!(
        matches!(&known, Err(OriginError::Throttled { reason, .. }) if reason.contains("10 more of 100")),
        "{known:?}"
    );
    let unknown = origins.resolve_tag(&hint(), &tag("v1"), false).await;
    assert_eq!(unknown, Ok(digest_of(MANIFEST.as_bytes())));
    let gets = registry
        .seen()
        .into_iter()
        .filter(|seen| seen.method == "GET");
    assert_eq!(gets.count(), 1);
    assert_eq!(origins.allowances()[0].remaining, 10);
}
