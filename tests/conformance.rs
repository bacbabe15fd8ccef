//! The read side of the OCI distribution specification, as the mirror gives it in front of Debian's
//! registry: what the specification's own conformance suite checks of pulls, of listing tags and of
//! referrers, each check also on content that the node has not seen yet.

use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

use crate::support::daemon::{Node, Options};
use crate::support::place::Place;
use crate::support::raw::{self, Answer};
use crate::support::registry::Registry;
use crate::support::{UPSTREAM, machine, push};

const REPOSITORY: &str = "conformance/repo1";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry that is filled by a test, and a node in front of it.
struct Mirror {
    registry: Registry,
    node: Node,
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex::encode(Sha512::digest(bytes)))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * at % 251) as u8).collect()
}

impl Mirror {
    fn start() -> Self {
        let registry = Registry::empty(&Place::loopback());
        let options = Options {
            origin: registry.url(),
            ..Options::default()
        };
        let node = Node::start(&Place::loopback(), options);
        Self { registry, node }
    }

    fn push_blob(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        push::blob(&self.registry, REPOSITORY, &digest, bytes);
        digest
    }

    fn push_manifest(&self, name: Option<&str>, kind: &str, manifest: &Value) -> String {
        let text = manifest.to_string();
        let digest = sha256(text.as_bytes());
        let name = name.unwrap_or(&digest);
        push::manifest(&self.registry, REPOSITORY, name, kind, &text);
        digest
    }

    /// A manifest of no layers, set apart from others by `name`.
    fn image(&self, name: &str) -> Value {
        let config = json!({ "architecture": "amd64", "os": "linux", "name": name }).to_string();
        let digest = self.push_blob(config.as_bytes());
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest,
                "size": config.len(),
            },
            "layers": [],
        })
    }

    fn ask(&self, method: &str, rest: &str, headers: &[&str]) -> Answer {
        let target = format!("/v2/{UPSTREAM}/{REPOSITORY}/{rest}");
        raw::ask(&self.node.mirror(), method, &target, headers, b"")
    }

    fn get(&self, rest: &str) -> Answer {
        self.ask("GET", rest, &[])
    }

    /// What is the same in every answer of what exists, by HEAD and by GET.
    fn check_exists(&self, rest: &str, digest: &str, kind: &str, bytes: &[u8]) {
        for method in ["HEAD", "GET"] {
            let answer = self.ask(method, rest, &["Accept: text/html", "Accept: */*"]);
            let header = |name| answer.header(name).unwrap_or_default().to_owned();
            assert_eq!(answer.status, 200, "{method} {rest}");
            assert_eq!(header("content-length"), bytes.len().to_string());
            assert_eq!(header("content-type"), kind);
            assert_eq!(header("docker-content-digest"), digest);
            assert_eq!(header("etag"), format!("\"{digest}\""));
            assert_eq!(answer.header("content-encoding"), None);
            let body = if method == "GET" { bytes } else { b"" };
            assert!(answer.body == body, "{method} {rest}");
        }
        let known = format!("If-None-Match: \"{digest}\"");
        let unchanged = self.ask("GET", rest, &[&known]);
        assert_eq!((unchanged.status, unchanged.body.len()), (304, 0), "{rest}");
    }
}

#[test]
fn blobs_of_every_kind_are_pulled() {
    let _machine = machine();
    let mirror = Mirror::start();
    assert_eq!(raw::get(&mirror.node.mirror(), "/v2/", &[]).status, 200);
    for bytes in [&b""[..], b"{}", &pattern(2048), &pattern(3_000_000)] {
        for digest in [sha256(bytes), sha512(bytes)] {
            push::blob(&mirror.registry, REPOSITORY, &digest, bytes);
            let rest = format!("blobs/{digest}");
            mirror.check_exists(&rest, &digest, "application/octet-stream", bytes);
        }
    }
    for method in ["GET", "HEAD"] {
        let absent = format!("blobs/{}", sha256(b"absent"));
        assert_eq!(mirror.ask(method, &absent, &[]).status, 404);
    }
    let absent = mirror.get(&format!("blobs/{}", sha256(b"absent")));
    assert_eq!(absent.error_code(), "BLOB_UNKNOWN");
    let bad = mirror.get("blobs/sha256:baddigeststring");
    assert_eq!(
        (bad.status, bad.error_code()),
        (400, "DIGEST_INVALID".into())
    );
}

#[test]
fn ranges_of_a_blob_are_pulled() {
    let _machine = machine();
    let mirror = Mirror::start();
    let bytes = pattern(2048);
    let digest = mirror.push_blob(&bytes);
    let get = |range: &str| {
        let line = format!("Range: bytes={range}");
        mirror.ask("GET", &format!("blobs/{digest}"), &[&line])
    };
    for (range, place, part) in [
        ("500-1499", "bytes 500-1499/2048", 500..1500),
        ("500-", "bytes 500-2047/2048", 500..2048),
        ("-500", "bytes 1548-2047/2048", 1548..2048),
        ("2000-5000", "bytes 2000-2047/2048", 2000..2048),
    ] {
        let answer = get(range);
        assert_eq!(
            (answer.status, answer.header("content-range")),
            (206, Some(place))
        );
        let length = part.len().to_string();
        assert_eq!(answer.header("content-length"), Some(&*length));
        assert!(answer.body == bytes[part], "{range}");
    }
    for range in ["500-0", "5000-10000"] {
        assert_eq!(get(range).status, 416, "{range}");
    }
    // Several at once, as clients of zstd:chunked layers and stargz ask.
    let answer = get("1000-1009,0-3");
    let kind = answer.header("content-type").expect("it has one");
    assert_eq!(
        (answer.status, kind.split('=').next()),
        (206, Some("multipart/byteranges; boundary"))
    );
    let parts = String::from_utf8_lossy(&answer.body);
    let at = |text: &str| parts.find(text).expect("the part is there");
    assert!(at("bytes 1000-1009/2048") < at("bytes 0-3/2048"));
}

#[test]
fn manifests_of_every_kind_are_pulled_by_tag_and_digest() {
    let _machine = machine();
    let mirror = Mirror::start();
    let image = mirror.image("one");
    let digest = mirror.push_manifest(Some("image"), MANIFEST, &image);
    let descriptor = |digest: &str, kind: &str, size: usize| json!({ "mediaType": kind, "digest": digest, "size": size });
    let mut artifact = mirror.image("two");
    artifact["artifactType"] = "application/vnd.example+json".into();
    artifact["org.example.custom"] = json!({ "kept": [1, 2] });
    artifact["subject"] = descriptor(&digest, MANIFEST, image.to_string().len());
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [descriptor(&digest, MANIFEST, image.to_string().len())],
    });
    let nested_in = mirror.push_manifest(Some("index"), INDEX, &index);
    let nested = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [descriptor(&nested_in, INDEX, index.to_string().len())],
    });
    for (tag, kind, manifest) in [
        ("image", MANIFEST, &image),
        ("artifact", MANIFEST, &artifact),
        ("index", INDEX, &index),
        ("nested", INDEX, &nested),
    ] {
        let digest = mirror.push_manifest(Some(tag), kind, manifest);
        let text = manifest.to_string();
        for name in [tag, &digest] {
            let rest = format!("manifests/{name}");
            mirror.check_exists(&rest, &digest, kind, text.as_bytes());
        }
    }
    let absent = sha256(b"absent");
    for name in [&*absent, "missing-tag", ".INVALID_MANIFEST_NAME"] {
        let answer = mirror.get(&format!("manifests/{name}"));
        assert_eq!(
            (answer.status, answer.error_code()),
            (404, "MANIFEST_UNKNOWN".into()),
            "{name}"
        );
        let head = mirror.ask("HEAD", &format!("manifests/{name}"), &[]);
        assert_eq!((head.status, head.body.len()), (404, 0), "{name}");
    }
    let bad = mirror.get("manifests/sha256:baddigeststring");
    assert_eq!(
        (bad.status, bad.error_code()),
        (400, "DIGEST_INVALID".into())
    );
}

#[test]
fn tags_are_listed_in_pages() {
    let _machine = machine();
    let mirror = Mirror::start();
    let unknown = mirror.get("tags/list");
    assert_eq!(
        (unknown.status, unknown.error_code()),
        (404, "NAME_UNKNOWN".into())
    );

    let image = mirror.image("one");
    let mut tags = ["test5", "Test1", "test10", "_x", "test2", "0.1"];
    for tag in tags {
        mirror.push_manifest(Some(tag), MANIFEST, &image);
    }
    tags.sort_unstable();
    let list = |query: &str| {
        let answer = mirror.get(&format!("tags/list{query}"));
        assert_eq!(answer.status, 200, "{query}");
        let json = answer.json();
        assert_eq!(json["name"], format!("{UPSTREAM}/{REPOSITORY}"));
        let link = answer.header("link").map(str::to_owned);
        (json["tags"].clone(), link)
    };
    assert_eq!(list(""), (json!(tags), None));
    assert_eq!(list("?n=0"), (json!([]), None));
    assert_eq!(
        list(&format!("?last={}", tags[2])),
        (json!(tags[3..]), None)
    );
    assert_eq!(list("?n=100"), (json!(tags), None));

    // From page to page by the links alone.
    let mut seen = Vec::new();
    let mut next = Some(format!("/v2/{UPSTREAM}/{REPOSITORY}/tags/list?n=4"));
    while let Some(target) = next {
        let answer = raw::get(&mirror.node.mirror(), &target, &[]);
        let page = answer.json()["tags"].as_array().expect("a list").clone();
        assert!(page.len() <= 4);
        seen.extend(page);
        next = answer.header("link").map(|link| {
            let (target, relation) = link.split_once('>').expect("<target>; rel=…");
            assert_eq!(relation, "; rel=\"next\"");
            target.trim_start_matches('<').to_owned()
        });
    }
    assert_eq!(json!(seen), json!(tags));
}

/// Debian's registry has no referrers API: its clients keep an index under a tag.
#[test]
fn referrers_are_listed_from_the_tag_where_the_origin_has_no_list() {
    let _machine = machine();
    let mirror = Mirror::start();
    let subject = mirror.push_manifest(Some("v1"), MANIFEST, &mirror.image("subject"));
    let list = |digest: &str, query: &str| {
        let answer = mirror.get(&format!("referrers/{digest}{query}"));
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some(INDEX))
        );
        let json = answer.json();
        assert_eq!(
            (&json["schemaVersion"], &json["mediaType"]),
            (&json!(2), &json!(INDEX))
        );
        let filters = answer.header("oci-filters-applied").map(str::to_owned);
        (json["manifests"].clone(), filters)
    };
    assert_eq!(
        list(&sha256(b"nothing refers to it"), ""),
        (json!([]), None)
    );

    let referrer = |kind: &str| {
        let mut manifest = mirror.image(kind);
        manifest["artifactType"] = kind.into();
        let digest = mirror.push_manifest(None, MANIFEST, &manifest);
        json!({
            "mediaType": MANIFEST,
            "digest": digest,
            "size": manifest.to_string().len(),
            "artifactType": kind,
            "annotations": { "org.example": kind },
        })
    };
    let all = [referrer("application/a"), referrer("application/b")];
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": all });
    mirror.push_manifest(Some(&subject.replace(':', "-")), INDEX, &index);
    assert_eq!(list(&subject, ""), (json!(all), None));
    let (some, filters) = list(&subject, "?artifactType=application/b");
    assert_eq!(
        (some, filters.as_deref()),
        (json!(all[1..]), Some("artifactType"))
    );
    let bad = mirror.get("referrers/sha256:baddigeststring");
    assert_eq!(
        (bad.status, bad.error_code()),
        (400, "DIGEST_INVALID".into())
    );
}

#[test]
fn the_registry_may_be_named_apart_and_nothing_is_written() {
    let _machine = machine();
    let mirror = Mirror::start();
    let digest = mirror.push_blob(b"some bytes");
    let address = mirror.node.mirror();
    let target = format!("/v2/{REPOSITORY}/blobs/{digest}?ns={UPSTREAM}");
    let answer = raw::get(&address, &target, &[]);
    assert_eq!((answer.status, &*answer.body), (200, &b"some bytes"[..]));
    assert_eq!(answer.header("oci-namespace"), Some(UPSTREAM));

    for (method, rest) in [
        ("POST", "blobs/uploads/"),
        ("PATCH", "blobs/uploads/1"),
        ("PUT", "manifests/v1"),
        ("DELETE", "manifests/v1"),
        ("DELETE", &*format!("blobs/{digest}")),
    ] {
        let target = format!("/v2/{UPSTREAM}/{REPOSITORY}/{rest}");
        let answer = raw::ask(&address, method, &target, &[], b"{}");
        assert_eq!(
            (answer.status, answer.error_code()),
            (405, "UNSUPPORTED".into())
        );
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
}
