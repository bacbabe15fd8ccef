//! Buckets, at servers that answer as each test says.

use std::sync::atomic::{AtomicBool, Ordering};

use hyper::Response;
use object_store::{
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    path::Path as Key,
};
use percent_encoding::percent_decode_str;

use super::*;
use crate::origin::fake::{Authority, Body, Fake, Seen, answer, cut, query, serve_blob};

/// A bucket at a server, with this at the end of its URL.
fn bucket(url: &str, server: &Fake, more: &str, authorities: &[Certificate]) -> Storage {
    let url = format!("{url}?endpoint={}{more}", server.url());
    let url = BucketUrl::parse(&url.parse().unwrap()).unwrap();
    let transport = Transport::new(authorities).unwrap();
    Storage::bucket(url, Arc::new(transport)).unwrap()
}

/// The bucket `images` of S3, read with keys, with `prefix/` in it.
fn amazon(server: &Fake, directory: &TempDir) -> Storage {
    let more = format!("&region=eu-test-1&keys={}", keys(directory).display());
    bucket("s3://images/prefix", server, &more, &[])
}

fn keys(directory: &TempDir) -> PathBuf {
    let path = directory.path().join("keys");
    let text = "[default]\naws_access_key_id = AKID\naws_secret_access_key = SECRET\n";
    fs::write(&path, text).unwrap();
    path
}

/// What is in a directory, as a server of the bucket `images` gives it, below `prefix/`.
fn serve(seen: &Seen, root: &Path) -> Response<Body> {
    let query = query(seen);
    if let Some(prefix) = query.get("prefix") {
        let below = root.join(prefix.strip_prefix("prefix/").unwrap());
        let names = fs::read_dir(below).into_iter().flatten();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let azure = query.get("comp").is_some_and(|what| what == "list");
        let prefixes = names.map(|name| {
            if azure {
                format!("<BlobPrefix><Name>{prefix}{name}/</Name></BlobPrefix>")
            } else {
                format!("<CommonPrefixes><Prefix>{prefix}{name}/</Prefix></CommonPrefixes>")
            }
        });
        let prefixes = prefixes.collect::<Vec<_>>().concat();
        let list = if azure {
            format!("<EnumerationResults><Blobs>{prefixes}</Blobs></EnumerationResults>")
        } else {
            format!("<ListBucketResult>{prefixes}</ListBucketResult>")
        };
        return answer(200, &[], list);
    }
    let path = seen.target.split('?').next().unwrap_or_default();
    let path = percent_decode_str(path).decode_utf8().unwrap();
    let key = path.strip_prefix("/images/prefix/").unwrap();
    let Ok(bytes) = fs::read(root.join(key)) else {
        return answer(404, &[], "<Error><Code>NoSuchKey</Code></Error>");
    };
    let mut response = serve_blob(seen, &bytes.into());
    for (name, value) in [
        ("etag", "\"1\""),
        ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        // It says how somebody stored it, and is none of the bytes.
        ("content-encoding", "gzip"),
    ] {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

async fn server_of(root: &TempDir) -> Fake {
    let root = root.path().to_owned();
    Fake::start(move |seen, _| serve(seen, &root)).await
}

async fn check_reads(storage: &Storage) {
    let digest = storage.resolve_tag(&app(), &tag("v1")).await.unwrap();
    assert_eq!(digest, digest_of(MANIFEST));
    let manifest = read(storage, &app(), MANIFEST, BlobKind::Manifest, 0, None).await;
    assert_eq!(manifest.unwrap(), MANIFEST);
    let size = storage.blob_size(&app(), &digest_of(BLOB)).await;
    assert_eq!(size.unwrap(), 10);
    for (start, end, bytes) in [
        (0, None, "0123456789"),
        (4, Some(8), "4567"),
        (8, Some(12), "89"),
        (7, None, "789"),
    ] {
        assert_eq!(blob(storage, start, end).await.unwrap(), bytes);
    }
    let beyond = blob(storage, 10, Some(11)).await;
    assert!(matches!(beyond, Err(OriginError::Invalid(_))), "{beyond:?}");
    let missing = read(storage, &app(), b"else", BlobKind::Blob, 0, None).await;
    assert!(
        matches!(missing, Err(OriginError::NotFound(_))),
        "{missing:?}"
    );
}

#[tokio::test]
async fn a_bucket_is_read_as_a_directory_is_and_requests_are_signed() {
    let directory = TempDir::new().unwrap();
    for root in [registry(), layout()] {
        let server = server_of(&root).await;
        let storage = amazon(&server, &directory);
        check_reads(&storage).await;
        assert!(storage.tags(&app()).await.unwrap().contains(&tag("v1")));
        for seen in server.seen() {
            let signed = seen.header("authorization").unwrap();
            assert!(
                signed.starts_with("AWS4-HMAC-SHA256 Credential=AKID/")
                    && signed.contains("/eu-test-1/s3/aws4_request"),
                "{signed}"
            );
        }
    }
}

#[tokio::test]
async fn the_protocols_of_google_and_azure_are_spoken_at_an_endpoint() {
    let directory = TempDir::new().unwrap();
    let key = directory.path().join("key");
    fs::write(&key, "azure_storage_account_key = a2V5\n").unwrap();
    for root in [registry(), layout()] {
        let google = server_of(&root).await;
        let storage = bucket("gs://images/prefix", &google, "&anonymous=true", &[]);
        check_reads(&storage).await;
        assert!(
            google
                .seen()
                .iter()
                .all(|seen| seen.header("authorization").is_none())
        );

        let azure = server_of(&root).await;
        let more = format!("&account=corp&keys={}", key.display());
        check_reads(&bucket("az://images/prefix", &azure, &more, &[])).await;
        for seen in azure.seen() {
            let signed = seen.header("authorization").unwrap();
            assert!(signed.starts_with("SharedKey corp:"), "{signed}");
        }
    }
}

#[tokio::test]
async fn a_server_with_an_authority_of_its_own_is_trusted_with_its_certificate_alone() {
    let (root, directory, authority) = (registry(), TempDir::new().unwrap(), Authority::new());
    let path = root.path().to_owned();
    let server = Fake::start_tls(move |seen, _| serve(seen, &path), &authority).await;
    let more = format!("&keys={}", keys(&directory).display());
    let at =
        |authorities: &[Certificate]| bucket("s3://images/prefix", &server, &more, authorities);
    let unknown = at(&[]).resolve_tag(&app(), &tag("v1")).await.unwrap_err();
    assert!(
        matches!(&unknown, OriginError::Unreachable(text) if text.contains("certificate")),
        "{unknown:?}"
    );
    let pem = fs::read(authority.file()).unwrap();
    let trusted = at(&Certificate::from_pem_bundle(&pem).unwrap());
    trusted.resolve_tag(&app(), &tag("v1")).await.unwrap();
}

#[tokio::test]
async fn the_ranges_of_a_blob_cost_one_request_each_and_its_link_one_for_all() {
    let (root, directory) = (registry(), TempDir::new().unwrap());
    let server = server_of(&root).await;
    let storage = amazon(&server, &directory);
    blob(&storage, 0, Some(1)).await.unwrap();
    let before = server.seen().len();
    for start in 1..10 {
        blob(&storage, start, Some(start + 1)).await.unwrap();
    }
    assert_eq!(server.seen().len(), before + 9);
    // What one repository has, another does not.
    let other = read(&storage, &hint("team/none"), BLOB, BlobKind::Blob, 0, None).await;
    assert!(matches!(other, Err(OriginError::NotFound(_))), "{other:?}");
}

#[tokio::test]
async fn each_refusal_says_what_to_do_and_is_not_taken_for_a_missing_image() {
    enum Kind {
        Denied,
        Unreachable,
        Throttled,
    }
    let directory = TempDir::new().unwrap();
    for (status, code, region, kind, advice) in [
        (
            403,
            "SignatureDoesNotMatch",
            None,
            Kind::Denied,
            "check the keys",
        ),
        (
            403,
            "InvalidAccessKeyId",
            None,
            Kind::Denied,
            "check the keys",
        ),
        (403, "AccessDenied", None, Kind::Denied, "s3:ListBucket"),
        (400, "ExpiredToken", None, Kind::Denied, "session token"),
        (403, "RequestTimeTooSkewed", None, Kind::Denied, "clock"),
        (
            404,
            "NoSuchBucket",
            None,
            Kind::Unreachable,
            "no bucket images",
        ),
        (
            301,
            "PermanentRedirect",
            Some("us-west-2"),
            Kind::Unreachable,
            "region=us-west-2",
        ),
        (
            400,
            "AuthorizationHeaderMalformed",
            Some("b"),
            Kind::Unreachable,
            "region=b",
        ),
        (503, "SlowDown", None, Kind::Throttled, "SlowDown"),
        (
            500,
            "InternalError",
            None,
            Kind::Unreachable,
            "InternalError",
        ),
    ] {
        let server = Fake::start(move |_, _| {
            let headers: Vec<_> = region
                .map(|region| ("x-amz-bucket-region", region))
                .into_iter()
                .collect();
            answer(
                status,
                &headers,
                format!("<Error><Code>{code}</Code></Error>"),
            )
        })
        .await;
        let error = amazon(&server, &directory)
            .resolve_tag(&app(), &tag("v1"))
            .await;
        let error = error.unwrap_err();
        let fits = match kind {
            Kind::Denied => matches!(error, OriginError::Denied(_)),
            Kind::Unreachable => matches!(error, OriginError::Unreachable(_)),
            Kind::Throttled => matches!(error, OriginError::Throttled { .. }),
        };
        let text = error.to_string();
        assert!(fits && text.contains(advice), "{error:?}");
        assert!(
            text.contains("s3://images/prefix") && text.contains(code),
            "{text}"
        );
        assert_eq!(server.seen().len(), 1, "{code} is not asked again here");
    }
}

#[tokio::test]
async fn a_page_of_something_in_between_is_not_taken_for_a_layout() {
    let (root, directory) = (layout(), TempDir::new().unwrap());
    let path = root.path().to_owned();
    let portal = AtomicBool::new(true);
    let server = Fake::start(move |seen, _| {
        if portal.swap(false, Ordering::SeqCst) {
            answer(200, &[("content-type", "text/html")], "<html>Log in</html>")
        } else {
            serve(seen, &path)
        }
    })
    .await;
    let storage = amazon(&server, &directory);
    let error = storage.resolve_tag(&app(), &tag("v1")).await;
    assert!(matches!(error, Err(OriginError::Invalid(_))), "{error:?}");
    storage.resolve_tag(&app(), &tag("v1")).await.unwrap();
}

#[tokio::test]
async fn an_object_that_is_cut_short_is_an_error() {
    let directory = TempDir::new().unwrap();
    let path = format!(
        "/images/prefix/{}",
        image_layout::spot(&digest_of(BLOB)).data
    );
    let server = Fake::start(move |seen, _| {
        if seen.target == path {
            cut(200, &[], Bytes::from_static(b"0123"), 10)
        } else {
            answer(200, &[], r#"{"imageLayoutVersion":"1.0.0"}"#)
        }
    })
    .await;
    let error = blob(&amazon(&server, &directory), 0, None).await;
    let expected = Some(10);
    assert!(
        matches!(&error, Err(OriginError::Truncated { expected: e, got: 4, .. }) if *e == expected),
        "{error:?}"
    );
}

/// The services of Amazon's that give credentials: of an instance, of a pod, and for a web identity.
async fn credentials_service() -> Fake {
    let expiration = "2100-01-01T00:00:00Z";
    let keys = format!(
        r#"{{"AccessKeyId":"ASIA","SecretAccessKey":"s","Token":"session","Expiration":"{expiration}"}}"#
    );
    let identity = format!(
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
         <AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
         <SessionToken>session</SessionToken><Expiration>{expiration}</Expiration>\
         </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    );
    Fake::start(move |seen, _| {
        let path = seen.target.split('?').next().unwrap_or_default();
        let has = |name: &str, value: &str| seen.header(name) == Some(value);
        match (seen.method.as_str(), path) {
            ("PUT", "/latest/api/token") => answer(200, &[], "metadata token"),
            ("GET", "/latest/meta-data/iam/security-credentials/")
                if has("x-aws-ec2-metadata-token", "metadata token") =>
            {
                answer(200, &[], "the-role")
            }
            ("GET", "/latest/meta-data/iam/security-credentials/the-role")
                if has("x-aws-ec2-metadata-token", "metadata token") =>
            {
                answer(200, &[], keys.clone())
            }
            ("GET", "/v1/credentials") if has("authorization", "the identity") => {
                answer(200, &[], keys.clone())
            }
            ("POST", "/") if query(seen)["WebIdentityToken"] == "the identity" => {
                answer(200, &[], identity.clone())
            }
            _ => answer(404, &[], ""),
        }
    })
    .await
}

#[tokio::test]
async fn the_credentials_of_an_instance_a_pod_and_a_web_identity_are_used() {
    let (root, directory) = (registry(), TempDir::new().unwrap());
    let (server, service) = (server_of(&root).await, credentials_service().await);
    let token = directory.path().join("token");
    fs::write(&token, "the identity").unwrap();
    let token = token.to_str().unwrap();
    let url = service.url();
    let new = AmazonS3Builder::new;
    let instance = new().with_metadata_endpoint(&url);
    let pod = new()
        .with_config(
            AmazonS3ConfigKey::ContainerCredentialsFullUri,
            format!("{url}/v1/credentials"),
        )
        .with_config(AmazonS3ConfigKey::ContainerAuthorizationTokenFile, token);
    let identity = new()
        .with_config(AmazonS3ConfigKey::WebIdentityTokenFile, token)
        .with_config(AmazonS3ConfigKey::RoleArn, "arn:aws:iam::1:role/puller")
        .with_config(AmazonS3ConfigKey::StsEndpoint, &url);
    for builder in [instance, pod, identity] {
        let before = server.seen().len();
        let bucket = format!("s3://images/prefix?endpoint={}", server.url());
        let bucket = BucketUrl::parse(&bucket.parse().unwrap()).unwrap();
        let transport = Arc::new(Transport::new(&[]).unwrap());
        let store = bucket.amazon(builder, transport).unwrap();
        let bucket = Bucket::remote(store, Key::from("prefix"));
        let storage = Storage::at(Place::Bucket(bucket), "s3://images/prefix".to_owned());
        assert_eq!(blob(&storage, 0, None).await.unwrap(), BLOB);
        for seen in &server.seen()[before..] {
            let signed = seen.header("authorization").unwrap();
            assert!(signed.contains("Credential=ASIA/"), "{signed}");
            assert_eq!(seen.header("x-amz-security-token"), Some("session"));
        }
    }
}
