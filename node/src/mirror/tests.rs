//! The mirror as its clients see it: bytes over a real socket.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use self::support::{Answer, Cut, Mirror, TestContent, digest_of, manifest, pattern};
use super::*;
use crate::content::{PullError, Stale};

mod support;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[tokio::test]
async fn the_base_says_that_this_is_a_registry() {
    let mirror = Mirror::start(TestContent::default()).await;
    for target in ["/v2/", "/v2"] {
        let answer = mirror.get(target).await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"{}"[..]));
        assert_eq!(
            answer.header("docker-distribution-api-version"),
            "registry/2.0"
        );
    }
    assert_eq!(mirror.ask("HEAD", "/v2/", &[]).await.status, 200);
    assert_eq!(mirror.metrics.mirror_requests(200), 3);
}

#[tokio::test]
async fn a_manifest_comes_by_get_and_head_by_tag_and_digest() {
    let found = manifest(r#"{"manifests":[]}"#, "application/x; charset=utf-8");
    let digest = found.digest.to_string();
    let mut content = TestContent::with_manifest("docker.io/library/redis:7", found.clone());
    content
        .manifests
        .insert(format!("docker.io/library/redis@{digest}"), found.clone());
    let mirror = Mirror::start(content).await;

    for selector in ["7", digest.as_str()] {
        let target = format!("/v2/library/redis/manifests/{selector}");
        for method in ["GET", "HEAD"] {
            let answer = mirror
                .ask(method, &target, &["Accept-Encoding: gzip, zstd"])
                .await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-type"), "application/x");
            assert_eq!(
                answer.header("content-length"),
                found.bytes.len().to_string()
            );
            assert_eq!(answer.header("docker-content-digest"), digest);
            assert_eq!(answer.header("etag"), format!("\"{digest}\""));
            assert!(answer.headers("content-encoding").is_empty());
            assert!(answer.headers("warning").is_empty());
            let body: &[u8] = if method == "GET" { &found.bytes } else { b"" };
            assert_eq!(answer.body, body);
        }
    }
}

#[tokio::test]
async fn what_the_client_has_is_not_sent_again() {
    let found = manifest("{}", INDEX);
    let (mut content, blob) = TestContent::with_blob(pattern(100));
    content
        .manifests
        .insert("docker.io/a/b:1".into(), found.clone());
    let mirror = Mirror::start(content).await;
    for (target, digest) in [
        ("/v2/a/b/manifests/1".to_owned(), found.digest),
        (format!("/v2/a/b/blobs/{blob}"), blob),
    ] {
        for tags in [format!("\"{digest}\""), format!("\"x\", W/\"{digest}\"")] {
            for method in ["GET", "HEAD"] {
                let line = format!("If-None-Match: {tags}");
                let answer = mirror.ask(method, &target, &[&line]).await;
                assert_eq!((answer.status, answer.body.len()), (304, 0));
                assert_eq!(answer.header("etag"), format!("\"{digest}\""));
            }
        }
        let other = mirror
            .ask("GET", &target, &["If-None-Match: \"sha256:0\""])
            .await;
        assert_eq!(other.status, 200);
    }
    let absent = format!("/v2/a/b/blobs/{}", digest_of(b"absent"));
    let answer = mirror.ask("GET", &absent, &["If-None-Match: *"]).await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn a_stale_manifest_says_so() {
    let mut found = manifest("{}", INDEX);
    found.stale = Some(Stale {
        reason: "cannot reach \"docker.io\"\r\n".into(),
        age_seconds: 90,
    });
    let mirror = Mirror::start(TestContent::with_manifest("docker.io/a/b:1", found)).await;
    let answer = mirror.get("/v2/a/b/manifests/1").await;
    assert_eq!(
        answer.headers("warning"),
        [
            "110 - \"Response is Stale\"",
            "299 - \"cannot reach 'docker.io'??\""
        ]
    );
    assert_eq!(answer.header("age"), "90");
    assert_eq!(mirror.metrics.stale_tags.get(), 1);
}

#[tokio::test]
async fn blobs_come_whole_and_exact() {
    for len in [0, 1, 2048, 3_000_001] {
        let (content, digest) = TestContent::with_blob(pattern(len));
        let mirror = Mirror::start(content).await;
        let target = format!("/v2/a/b/blobs/{digest}");
        for method in ["GET", "HEAD"] {
            let answer = mirror
                .ask(method, &target, &["Accept-Encoding: gzip"])
                .await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-length"), len.to_string());
            assert_eq!(answer.header("content-type"), "application/octet-stream");
            assert_eq!(answer.header("accept-ranges"), "bytes");
            assert_eq!(answer.header("docker-content-digest"), digest.to_string());
            assert!(answer.headers("transfer-encoding").is_empty());
            if method == "GET" {
                assert!(answer.body == pattern(len));
            } else {
                assert!(answer.body.is_empty());
            }
        }
        assert_eq!(mirror.metrics.mirror_bytes.get(), len as u64);
    }
}

#[tokio::test]
async fn ranges_are_served_as_clients_resume_and_probe() {
    let bytes = pattern(2048);
    let (content, digest) = TestContent::with_blob(bytes.clone());
    let mirror = Mirror::start(content).await;
    let target = format!("/v2/a/b/blobs/{digest}");
    let range = async |lines: &[&str]| mirror.ask("GET", &target, lines).await;

    for (line, content_range, part) in [
        ("Range: bytes=500-1499", "bytes 500-1499/2048", 500..1500),
        ("Range: bytes=500-", "bytes 500-2047/2048", 500..2048),
        ("Range: bytes=-500", "bytes 1548-2047/2048", 1548..2048),
        ("Range: bytes=2000-5000", "bytes 2000-2047/2048", 2000..2048),
        ("Range: bytes=0-1", "bytes 0-1/2048", 0..2),
    ] {
        let answer = range(&[line]).await;
        assert_eq!(answer.status, 206, "{line}");
        assert_eq!(answer.header("content-range"), content_range);
        assert_eq!(answer.header("content-length"), part.len().to_string());
        assert_eq!(answer.body, bytes[part]);
    }
    for line in ["Range: bytes=500-0", "Range: bytes=5000-10000"] {
        let answer = range(&[line]).await;
        assert_eq!(answer.status, 416, "{line}");
        assert_eq!(answer.header("content-range"), "bytes */2048");
        assert_eq!(answer.code(), "RANGE_INVALID");
    }
    for line in ["Range: bytes=x", "Range: lines=0-1"] {
        let answer = range(&[line]).await;
        assert_eq!((answer.status, answer.body.len()), (200, 2048), "{line}");
        assert!(answer.headers("content-range").is_empty());
    }

    let same = format!("If-Range: \"{digest}\"");
    assert_eq!(range(&["Range: bytes=0-1", &same]).await.status, 206);
    let other = "If-Range: \"sha256:0\"";
    assert_eq!(range(&["Range: bytes=0-1", other]).await.status, 200);
}

#[tokio::test]
async fn several_ranges_come_as_parts_in_the_order_asked_for() {
    let bytes = pattern(2048);
    let (content, digest) = TestContent::with_blob(bytes.clone());
    let mirror = Mirror::start(content).await;
    let target = format!("/v2/a/b/blobs/{digest}");
    let range = async |line: &str| mirror.ask("GET", &target, &[line]).await;

    // Those that the blob does not have are left out.
    let answer = range("Range: bytes=500-501, 0-1, 9000-, 3-2, -3").await;
    assert_eq!(answer.status, 206);
    assert_eq!(
        answer.header("content-length"),
        answer.body.len().to_string()
    );
    assert_eq!(answer.header("etag"), format!("\"{digest}\""));
    assert!(answer.headers("content-range").is_empty());
    let boundary = answer
        .header("content-type")
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let mut wanted = Vec::new();
    for part in [500..502, 0..2, 2045..2048] {
        let place = format!("{}-{}", part.start, part.end - 1);
        wanted.extend(
            format!(
                "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n\
                 Content-Range: bytes {place}/2048\r\n\r\n"
            )
            .into_bytes(),
        );
        wanted.extend(&bytes[part]);
    }
    wanted.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
    assert_eq!(
        String::from_utf8_lossy(&answer.body),
        String::from_utf8_lossy(&wanted)
    );
    assert_eq!(mirror.metrics.mirror_bytes.get(), 7);

    let none = range("Range: bytes=5000-5001,6000-").await;
    assert_eq!(
        (none.status, none.header("content-range")),
        (416, "bytes */2048")
    );
    let overlapping = range("Range: bytes=0-9,9-10").await;
    assert_eq!((overlapping.status, overlapping.body.len()), (200, 2048));
    let many = vec!["1-1"; 1025].join(",");
    let too_many = range(&format!("Range: bytes={many}")).await;
    assert_eq!((too_many.status, too_many.body.len()), (200, 2048));
}

#[tokio::test]
async fn a_part_that_fails_breaks_the_connection_off() {
    let (mut content, digest) = TestContent::with_blob(pattern(1_000_000));
    content.cut = Some((300_000, Cut::End));
    let mirror = Mirror::start(content).await;
    let target = format!("/v2/a/b/blobs/{digest}");
    let answer = mirror
        .ask("GET", &target, &["Range: bytes=0-299999,300001-999999"])
        .await;
    assert_eq!(answer.status, 206);
    let announced: usize = answer.header("content-length").parse().unwrap();
    assert!(answer.body.len() < announced);
    assert_eq!(mirror.metrics.mirror_aborts.get(), 1);
}

#[tokio::test]
async fn the_upstream_is_named_by_ns_or_path_or_default() {
    let mirror = Mirror::start(TestContent::default()).await;
    for (target, meant) in [
        ("/v2/library/redis/manifests/7", "docker.io/library/redis:7"),
        ("/v2/redis/manifests/7", "docker.io/redis:7"),
        ("/v2/quay.io/team/app/manifests/7", "quay.io/team/app:7"),
        ("/v2/localhost/app/manifests/7", "localhost/app:7"),
        ("/v2/lab/team/app/manifests/7", "lab/team/app:7"),
        ("/v2/lab/manifests/7", "docker.io/lab:7"),
        ("/v2/team/app/manifests/7?ns=ghcr.io", "ghcr.io/team/app:7"),
        (
            "/v2/team/app/manifests/7?ns=localhost%3A5002",
            "localhost:5002/team/app:7",
        ),
        ("/v2/lab/app/manifests/7?ns=ghcr.io", "ghcr.io/lab/app:7"),
    ] {
        assert_eq!(mirror.last_asked(target).await.as_deref(), Some(meant));
    }
    let answer = mirror
        .get("/v2/team/app/manifests/7?ns=localhost%3A5002")
        .await;
    assert_eq!(answer.header("oci-namespace"), "localhost:5002");
}

#[tokio::test]
async fn names_that_are_none_never_reach_the_content() {
    let mirror = Mirror::start(TestContent::default()).await;
    let long = format!("/v2/{}/manifests/1", "a/".repeat(5000));
    let bad = format!("/v2/a/b/blobs/sha256:{}", "G".repeat(64));
    for (target, status, code) in [
        ("/v2/a%2fb/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a/../b/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a/%2e%2e/b/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a%5cb/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a%252fb/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a//b/manifests/1", 400, "NAME_INVALID"),
        ("/v2/Upper/b/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a..b/c/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a/b/manifests/1?ns=a%20b", 400, "NAME_INVALID"),
        ("/v2/a/b/manifests/sha256:bad", 400, "DIGEST_INVALID"),
        (
            "/v2/a/b/blobs/sha256:baddigeststring",
            400,
            "DIGEST_INVALID",
        ),
        (&bad, 400, "DIGEST_INVALID"),
        ("/v2/a/b/manifests/.INVALID", 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/_catalog", 404, "UNSUPPORTED"),
        ("/v2/manifests/1", 404, "UNSUPPORTED"),
        ("/v2x/", 404, "UNSUPPORTED"),
        ("/", 404, "UNSUPPORTED"),
        (&long, 414, "NAME_INVALID"),
    ] {
        let answer = mirror.get(target).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{target}"
        );
    }
    assert_eq!(*mirror.content.asked.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn writing_is_refused_and_never_with_401() {
    let mirror = Mirror::start(TestContent::default()).await;
    for (method, target) in [
        ("POST", "/v2/a/b/blobs/uploads/"),
        ("PUT", "/v2/a/b/manifests/1"),
        ("PATCH", "/v2/a/b/blobs/uploads/x"),
        ("DELETE", "/v2/a/b/manifests/1"),
    ] {
        let answer = mirror.ask(method, target, &["Content-Length: 0"]).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (405, "UNSUPPORTED")
        );
        assert_eq!(answer.header("allow"), "GET, HEAD");
    }
}

#[tokio::test]
async fn failures_keep_their_meaning() {
    let throttled = |retry_after| PullError::Throttled {
        reason: "slow down".into(),
        retry_after,
    };
    for (error, status, manifest_code) in [
        (PullError::NotFound("n".into()), 404, "MANIFEST_UNKNOWN"),
        (PullError::Denied("d".into()), 403, "DENIED"),
        (throttled(None), 429, "TOOMANYREQUESTS"),
        (PullError::Unavailable("u".into()), 503, "UNAVAILABLE"),
        (PullError::TimedOut("t".into()), 504, "UNAVAILABLE"),
        (PullError::Corrupt("c".into()), 502, "UNAVAILABLE"),
    ] {
        let content = TestContent {
            missing: Some(error),
            ..TestContent::default()
        };
        let mirror = Mirror::start(content).await;
        let blob = digest_of(b"x");
        for (target, code) in [
            ("/v2/a/b/manifests/1".to_owned(), manifest_code),
            (
                format!("/v2/a/b/blobs/{blob}"),
                manifest_code.replace("MANIFEST", "BLOB").as_str(),
            ),
            (
                "/v2/a/b/tags/list".to_owned(),
                manifest_code.replace("MANIFEST", "NAME").as_str(),
            ),
        ] {
            let answer = mirror.get(&target).await;
            assert_eq!((answer.status, answer.code().as_str()), (status, code));
            let head = mirror.ask("HEAD", &target, &[]).await;
            assert_eq!((head.status, head.body.len()), (status, 0));
        }
    }

    let content = TestContent {
        missing: Some(throttled(Some(Duration::from_millis(2100)))),
        ..TestContent::default()
    };
    let answer = Mirror::start(content)
        .await
        .get("/v2/a/b/manifests/1")
        .await;
    assert_eq!(answer.header("retry-after"), "3");
}

#[tokio::test]
async fn tags_come_in_pages() {
    let content = TestContent {
        tags: ["b", "a", "d", "c"].map(|tag| tag.parse().unwrap()).into(),
        ..TestContent::default()
    };
    let mirror = Mirror::start(content).await;
    let page = async |query: &str| {
        let answer = mirror
            .get(&format!("/v2/quay.io/x/y/tags/list{query}"))
            .await;
        let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(json["name"], "quay.io/x/y");
        let link = answer.headers("link").first().map(ToString::to_string);
        (json["tags"].to_string(), link)
    };
    assert_eq!(page("").await, (r#"["a","b","c","d"]"#.into(), None));
    let next = "</v2/quay.io/x/y/tags/list?n=2&last=b>; rel=\"next\"";
    assert_eq!(
        page("?n=2").await,
        (r#"["a","b"]"#.into(), Some(next.into()))
    );
    assert_eq!(page("?n=2&last=b").await, (r#"["c","d"]"#.into(), None));
    assert_eq!(page("?last=bb").await, (r#"["c","d"]"#.into(), None));
    assert_eq!(page("?n=0").await, ("[]".into(), None));
    assert_eq!(page("?n=9&last=z").await, ("[]".into(), None));

    let answer = mirror
        .get("/v2/x/y/tags/list?n=1&ns=localhost%3A5002")
        .await;
    assert_eq!(
        answer.header("link"),
        "</v2/x/y/tags/list?n=1&last=a&ns=localhost%3A5002>; rel=\"next\""
    );
}

#[tokio::test]
async fn referrers_are_a_list_even_where_there_are_none() {
    let subject = digest_of(b"subject");
    let index =
        r#"{"schemaVersion":2,"manifests":[{"artifactType":"sbom"},{"artifactType":"sig"}]}"#;
    let tag = subject.to_string().replace(':', "-");
    let content =
        TestContent::with_manifest(&format!("docker.io/a/b:{tag}"), manifest(index, INDEX));
    let mirror = Mirror::start(content).await;
    let list = async |target: String| {
        let answer = mirror.get(&target).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, INDEX));
        let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        (json["manifests"].as_array().unwrap().len(), answer)
    };
    let (count, answer) = list(format!("/v2/a/b/referrers/{subject}")).await;
    assert_eq!(count, 2);
    assert!(answer.headers("oci-filters-applied").is_empty());
    let (count, answer) = list(format!("/v2/a/b/referrers/{subject}?artifactType=sig")).await;
    assert_eq!(count, 1);
    assert_eq!(answer.header("oci-filters-applied"), "artifactType");
    let (count, _) = list(format!("/v2/a/c/referrers/{subject}")).await;
    assert_eq!(count, 0);
}

#[tokio::test]
async fn referrers_are_those_that_the_origin_lists() {
    let subject = digest_of(b"subject");
    let tag = subject.to_string().replace(':', "-");
    let other = manifest(r#"{"schemaVersion":2,"manifests":[{}]}"#, INDEX);
    let mut content = TestContent::with_manifest(&format!("docker.io/a/b:{tag}"), other);
    let listed = ["sbom", "sig"].map(|kind| serde_json::json!({ "artifactType": kind }));
    content.referrers = Some(listed.to_vec());
    let mirror = Mirror::start(content).await;
    for (query, kinds) in [("", &["sbom", "sig"][..]), ("?artifactType=sig", &["sig"])] {
        let answer = mirror
            .get(&format!("/v2/a/b/referrers/{subject}{query}"))
            .await;
        let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        let entries = json["manifests"].as_array().unwrap().iter();
        let found: Vec<_> = entries
            .filter_map(|entry| entry["artifactType"].as_str())
            .collect();
        assert_eq!(found, kinds);
    }
}

#[tokio::test]
async fn an_origin_that_is_away_is_not_taken_for_one_without_referrers() {
    let content = TestContent {
        missing: Some(PullError::Unavailable("the origin is away".into())),
        ..TestContent::default()
    };
    let mirror = Mirror::start(content).await;
    let subject = digest_of(b"subject");
    assert_eq!(
        mirror
            .get(&format!("/v2/a/b/referrers/{subject}"))
            .await
            .status,
        503
    );
}

#[tokio::test]
async fn a_body_that_fails_breaks_the_connection_and_never_ends_in_silence() {
    for cut in [Cut::Error, Cut::End] {
        let (mut content, digest) = TestContent::with_blob(pattern(1_000_000));
        content.cut = Some((300_000, cut));
        let mirror = Mirror::start(content).await;
        let mut stream = mirror.connect().await;
        let request = format!("GET /v2/a/b/blobs/{digest} HTTP/1.1\r\nHost: h\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut raw = Vec::new();
        // The connection was to be kept alive: that it ends is the sign.
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut raw))
            .await
            .expect("the connection ends");
        let answer = Answer::parse(&raw);
        assert_eq!(answer.header("content-length"), "1000000");
        assert!(answer.body.len() <= 300_000);
        assert_eq!(answer.body, pattern(1_000_000)[..answer.body.len()]);
        assert_eq!(mirror.metrics.mirror_aborts.get(), 1);
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_stream() {
    for cut in [(1000, Cut::Stall), (0, Cut::StallBeforeHeaders)] {
        let (mut content, digest) = TestContent::with_blob(pattern(1_000_000));
        content.cut = Some(cut);
        let mirror = Mirror::start(content).await;
        let alive = Arc::clone(&mirror.content.alive);
        let reaches = async |wanted: usize| {
            for _ in 0..500 {
                if alive.load(Ordering::SeqCst) == wanted {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            false
        };
        let mut stream = mirror.connect().await;
        let request = format!("GET /v2/a/b/blobs/{digest} HTTP/1.1\r\nHost: h\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(reaches(1).await, "the content is asked");
        drop(stream);
        assert!(reaches(0).await, "the content is let go");
    }
}

#[tokio::test]
async fn a_tls_client_is_turned_away_at_once() {
    let mirror = Mirror::start(TestContent::default()).await;
    let mut stream = mirror.connect().await;
    // The start of a ClientHello record; the rest never comes.
    stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    let mut raw = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut raw))
        .await
        .expect("closed at once");
    assert!(raw.is_empty());
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request() {
    let mirror = Mirror::start(TestContent::default()).await;
    let mut stream = mirror.connect().await;
    for _ in 0..3 {
        stream
            .write_all(b"GET /v2/ HTTP/1.1\r\nHost: h\r\n\r\n")
            .await
            .unwrap();
        let mut raw = Vec::new();
        while !raw.ends_with(b"{}") {
            assert!(stream.read_buf(&mut raw).await.unwrap() > 0);
        }
        assert_eq!(Answer::parse(&raw).status, 200);
    }
}

#[tokio::test]
async fn heads_without_end_are_refused() {
    let mirror = Mirror::start(TestContent::default()).await;
    let filler = format!("X-Filler: {}", "x".repeat(40 << 10));
    assert_eq!(mirror.ask("GET", "/v2/", &[&filler]).await.status, 431);
    let many: Vec<_> = (0..120).map(|n| format!("X-{n}: 1")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(mirror.ask("GET", "/v2/", &many).await.status, 431);
}

#[tokio::test]
async fn a_shutdown_lets_running_answers_end_and_accepts_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (content, digest) = TestContent::with_blob(pattern(8_000_000));
    let options = MirrorOptions {
        default_upstream: Upstream::default(),
        aliases: BTreeSet::new(),
        metrics: Arc::default(),
        gate: None,
    };
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(
        listener,
        None,
        Arc::new(content),
        options,
        stop.clone(),
    ));

    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /v2/a/b/blobs/{digest} HTTP/1.1\r\nHost: h\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut raw = vec![0; 1000];
    stream.read_exact(&mut raw).await.unwrap();
    stop.cancel();
    stream.read_to_end(&mut raw).await.unwrap();
    assert_eq!(Answer::parse(&raw).body.len(), 8_000_000);
    served.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
