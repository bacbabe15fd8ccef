//! Several origins for one upstream.

use super::*;
use crate::origin::fake::{answer, digest_of, serve_blob, status};

fn in_order(fakes: &[&Fake]) -> Origins {
    Origins::new(OriginsConfig {
        upstreams: BTreeMap::from([(
            hint().upstream,
            fakes.iter().map(|fake| spec(fake)).collect(),
        )]),
        docker_config: None,
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
        let error = origins.resolve_tag(&hint(), &tag).await.unwrap_err();
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
