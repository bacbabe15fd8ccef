//! Requests that no client should send, and clients that no server wishes for: each gets its error or
//! its bounded wait, and costs the node nothing that stays.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::support::access::AccessLog;
use crate::support::client;
use crate::support::clock::{self, wait_until};
use crate::support::daemon::Node;
use crate::support::fake_origin::{FakeOrigin, Faults};
use crate::support::image::{Blob, Image};
use crate::support::raw::{self, Answer, Raw, head};
use crate::support::swarm::Swarm;
use crate::support::{MIB, REPOSITORY, UPSTREAM, machine};

/// Connections that a node serves at a time.
const CONNECTIONS_MAX: usize = 4096;

/// How long a client may take to send a head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What one client gets of a node that others beset, at the latest.
const PATIENCE: Duration = Duration::from_secs(5);

/// A node with an image, and what it cost before anything happened to it.
struct Victim {
    origin: FakeOrigin,
    swarm: Swarm,
    layer: Blob,
    files: usize,
    bytes: u64,
}

impl Victim {
    fn start(seed: u64, layer_bytes: u64) -> Self {
        let image = Image::generate(seed, &[layer_bytes]);
        let origin = FakeOrigin::serving(&image, Faults::default());
        let swarm = Swarm::on_loopback(1, &origin.url());
        let node = &swarm.nodes[0];
        node.pull(&image).expect("the node has the image");
        // What the first connections and the origin's leave behind is no cost of what follows.
        let all = [(); 64];
        client::all_at_once(&all, |()| raw::get(&node.mirror(), "/v2/", &[]));
        let (files, bytes) = (node.open_files(), node.resident_bytes());
        let layer = image.blobs[1].clone();
        Self {
            origin,
            swarm,
            layer,
            files,
            bytes,
        }
    }

    fn node(&self) -> &Node {
        &self.swarm.nodes[0]
    }

    fn mirror(&self) -> String {
        self.node().mirror()
    }

    fn blob(&self) -> String {
        format!("/v2/{UPSTREAM}/{REPOSITORY}/blobs/{}", self.layer.digest)
    }

    /// Another client is served as ever.
    fn serves(&self) {
        let start = clock::now();
        self.node().read(&self.layer).expect("it is served");
        assert!(start.elapsed() < PATIENCE, "it took {:?}", start.elapsed());
    }

    /// Nothing is left: files, memory, a panic in the log.
    fn is_unharmed(&self, bytes_more: u64) {
        self.serves();
        let files = || self.node().open_files();
        wait_until(
            "the connections are closed",
            Duration::from_secs(10),
            || files() <= self.files + 8,
        );
        let more = self.node().resident_bytes().saturating_sub(self.bytes);
        println!(
            "{} MB more than before, {} files for {}",
            more / 1_000_000,
            files(),
            self.files
        );
        assert!(more < bytes_more, "{more} bytes more than before");
        let log = self.node().log();
        assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    }
}

/// The status of the answer to these bytes; 0 where the connection was closed without one.
fn status_of(victim: &Victim, bytes: &[u8]) -> u16 {
    let mut connection = Raw::connect(&victim.mirror());
    connection.send(bytes);
    Answer::parse(&connection.read_to_end()).status
}

#[test]
fn names_and_digests_that_are_none_are_refused_and_never_reach_the_origin() {
    let _machine = machine();
    let victim = Victim::start(80, MIB);
    let asked_before = victim.origin.log().len();
    let at = |rest: &str| format!("/v2/{UPSTREAM}/{REPOSITORY}/{rest}");
    let hex = "0".repeat(64);
    let mut targets = vec![
        "/v2/../../etc/passwd".to_owned(),
        "/v2/../etc/passwd/manifests/1".to_owned(),
        "/v2/%2e%2e/%2e%2e/etc/passwd/manifests/1".to_owned(),
        "/v2/%252e%252e/%252e%252e/etc/passwd/manifests/1".to_owned(),
        "/v2/x%2fy/manifests/1".to_owned(),
        "/v2/x%252fy/manifests/1".to_owned(),
        "/v2/x%5cy/manifests/1".to_owned(),
        "/v2/x%00y/manifests/1".to_owned(),
        "/v2/x%ff/manifests/1".to_owned(),
        "/v2/x%/manifests/1".to_owned(),
        "/v2/x%zz/manifests/1".to_owned(),
        "/v2//x//manifests//1".to_owned(),
        format!("/v2/{UPSTREAM}/x/manifests/1?ns=../../etc"),
        format!("/v2/{UPSTREAM}/x/manifests/1?ns=http://127.0.0.1/"),
        format!("/v2/{UPSTREAM}/x/manifests/1?ns=a%0d%0aX-Injected:%201"),
        format!("/v2/{}/manifests/1", "x".repeat(300)),
        format!("/v2/{}/manifests/1", "x/".repeat(4000)),
    ];
    for selector in [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "sha256:",
        "sha256:../../../etc/passwd",
        &format!("sha256:{}", &hex[1..]),
        &format!("sha256:{hex}0"),
        &format!("sha256:{}", "G".repeat(64)),
        &format!("SHA256:{hex}"),
        &format!("sha512:{hex}"),
        &format!("md5:{}", &hex[..32]),
        &format!("{UPSTREAM}@sha256:{hex}"),
    ] {
        for kind in ["manifests", "blobs", "referrers"] {
            targets.push(at(&format!("{kind}/{selector}")));
        }
    }
    for target in &targets {
        for method in ["GET", "HEAD"] {
            let answer = raw::ask(&victim.mirror(), method, target, &[], b"");
            assert!(
                matches!(answer.status, 400 | 404 | 414),
                "{} for {target}",
                answer.status
            );
            assert_eq!(answer.header("x-injected"), None);
            if method == "GET" {
                answer.error_code();
            }
        }
    }
    let asked = &victim.origin.log()[asked_before..];
    assert!(asked.is_empty(), "{asked:?}");
    // An encoded colon is a colon.
    let encoded = victim.blob().replace("sha256:", "sha256%3A");
    assert_eq!(raw::get(&victim.mirror(), &encoded, &[]).status, 200);
    victim.is_unharmed(20_000_000);
}

#[test]
fn ranges_without_measure_are_answered_within_the_blob() {
    let _machine = machine();
    let victim = Victim::start(81, MIB);
    let size = victim.layer.size() as usize;
    let nines = "9".repeat(100);
    let many = vec!["0-0"; 5000].join(",");
    let all_of_it = vec!["0-"; 1000].join(",");
    let apart: Vec<_> = (0..1000)
        .map(|number| format!("{0}-{0}", number * 2))
        .collect();
    for (range, status, length) in [
        (format!("0-{nines}"), 206, size),
        (format!("-{nines}"), 206, size),
        (format!("{nines}-"), 416, 0),
        (format!("{nines}-{nines}"), 416, 0),
        (format!("{nines}-0"), 416, 0),
        (format!("{}-{}", u64::MAX, u64::MAX), 416, 0),
        ("-0".to_owned(), 416, 0),
        (format!("{nines}-,{nines}-"), 416, 0),
        (many, 200, size),
        (all_of_it, 200, size),
        ("-,-,-".to_owned(), 200, size),
    ] {
        let line = format!("Range: bytes={range}");
        let answer = raw::get(&victim.mirror(), &victim.blob(), &[&line]);
        let shown = &line[..line.len().min(60)];
        assert_eq!(answer.status, status, "{shown}");
        if status != 416 {
            assert_eq!(answer.body.len(), length, "{shown}");
        }
    }
    let line = format!("Range: bytes={}", apart.join(","));
    let answer = raw::get(&victim.mirror(), &victim.blob(), &[&line]);
    assert_eq!(answer.status, 206, "a thousand ranges apart");
    let length = answer.body.len().to_string();
    assert_eq!(answer.header("content-length"), Some(&*length));
    assert!(answer.body.len() < size);
    victim.is_unharmed(30_000_000);
}

#[test]
fn requests_that_are_no_http_are_refused_and_end_their_connection() {
    let _machine = machine();
    let victim = Victim::start(82, MIB);
    let get = "GET /v2/ HTTP/1.1";
    let filler = |bytes: usize| format!("X-Filler: {}", "x".repeat(bytes));
    let many: Vec<String> = (0..5000).map(|number| format!("X-{number}: 1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long_line = format!("GET /v2/{} HTTP/1.1", "a".repeat(200 << 10));
    let cases: Vec<(Vec<u8>, &[u16])> = vec![
        (head(get, &[&filler(40 << 10)]), &[431]),
        (head(get, &[&filler(4 << 20)]), &[431]),
        (head(get, &many), &[431]),
        (head(&long_line, &[]), &[414, 431]),
        (head("GET /v2/ HTTP/9.9", &[]), &[400, 505, 0]),
        (head("GET /v2/", &[]), &[400, 0]),
        (head("G\0T /v2/ HTTP/1.1", &[]), &[400, 0]),
        (head("GET /v2/\u{e9} HTTP/1.1", &[]), &[400, 404]),
        (head(get, &["no colon"]), &[400]),
        (head(get, &["Space : 1"]), &[400]),
        (head(get, &["X: a\0b"]), &[400]),
        (head(get, &["Content-Length: -1"]), &[400]),
        (head(get, &["Content-Length: +5"]), &[400]),
        (
            head(get, &["Content-Length: 99999999999999999999999"]),
            &[400],
        ),
        (
            head(get, &["Content-Length: 1", "Content-Length: 2"]),
            &[400],
        ),
        (head(get, &["Transfer-Encoding: gzip"]), &[400]),
        (
            head("GET /v2/ HTTP/1.0", &["Transfer-Encoding: chunked"]),
            &[400],
        ),
        (head("CONNECT 127.0.0.1:22 HTTP/1.1", &[]), &[404, 405]),
        (head("OPTIONS * HTTP/1.1", &[]), &[404, 405]),
        (head("TRACE /v2/ HTTP/1.1", &[]), &[405]),
        (head("PRI * HTTP/2.0", &[]), &[400, 505, 0]),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(), &[400, 0]),
        (vec![0xff; 100_000], &[400, 431, 0]),
        (b"\r\n\r\n\r\n\r\nx\r\n\r\n".to_vec(), &[400, 0]),
    ];
    for (bytes, statuses) in &cases {
        let status = status_of(&victim, bytes);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        assert!(statuses.contains(&status), "{status} for {shown:?}");
    }
    victim.is_unharmed(20_000_000);
}

/// Whoever reads the end of a body otherwise than this server would have part of it answered as a
/// request of another client.
#[test]
fn what_follows_a_body_is_never_taken_for_a_request() {
    let _machine = machine();
    let victim = Victim::start(83, MIB);
    let smuggled = "GET /v2/smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for (headers, body) in [
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "0\r\n\r\n",
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "0\r\n\r\n",
        ),
        ("Transfer-Encoding: chunked", "0\r\n\r\n"),
        (
            "Transfer-Encoding: chunked",
            "5;x=1\r\nabcde\r\n0\r\nA: b\r\n\r\n",
        ),
        ("Transfer-Encoding: chunked", "ffffffffffffffff\r\n"),
        ("Transfer-Encoding: chunked", "-1\r\n"),
        ("Content-Length: 3", "abc"),
        ("Content-Length: 1000000", "abc"),
        ("Expect: 100-continue\r\nContent-Length: 3", "abc"),
    ] {
        for method in ["GET", "POST"] {
            let mut connection = Raw::connect(&victim.mirror());
            let request =
                format!("{method} /v2/ HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{body}{smuggled}");
            connection.send(request.as_bytes());
            let all = String::from_utf8_lossy(&connection.read_to_end()).into_owned();
            assert_eq!(
                all.matches("HTTP/1.1 ").count(),
                1,
                "{method} {headers}: {all}"
            );
            let status = Answer::parse(all.as_bytes()).status;
            assert!(
                [200, 400, 405].contains(&status),
                "{status} for {method} {headers}"
            );
        }
    }
    victim.is_unharmed(20_000_000);
}

#[test]
fn slow_clients_wait_for_themselves_alone() {
    let _machine = machine();
    let victim = Victim::start(84, 32 * MIB);
    thread::scope(|scope| {
        // One that sends its head a byte at a time, and one that sends nothing.
        let dribbling = scope.spawn(|| {
            let start = clock::now();
            let mut connection = Raw::connect(&victim.mirror());
            for byte in head("GET /v2/ HTTP/1.1", &[]) {
                if start.elapsed() > 2 * HEAD_TIMEOUT || !connection.send(&[byte]) {
                    break;
                }
                thread::sleep(Duration::from_secs(1));
            }
            let answer = connection.read_to_end();
            assert_ne!(Answer::parse(&answer).status, 200);
            start.elapsed()
        });
        let silent = scope.spawn(|| {
            let start = clock::now();
            assert_eq!(Raw::connect(&victim.mirror()).read_to_end(), b"");
            start.elapsed()
        });
        // Some that read at a crawl, and some that have closed their half before or after a head.
        let crawling = scope.spawn(|| {
            let mut connections: Vec<Raw> = (0..20)
                .map(|_| {
                    let mut connection = Raw::connect(&victim.mirror());
                    connection.send(&head(&format!("GET {} HTTP/1.1", victim.blob()), &[]));
                    connection
                })
                .collect();
            for _ in 0..60 {
                for connection in &mut connections {
                    assert!(!connection.read_some(100).is_empty());
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        for request in [
            &b""[..],
            b"GET /v2/ HT",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\n",
        ] {
            let mut connection = Raw::connect(&victim.mirror());
            connection.send(request);
            connection.end_sending();
            let start = clock::now();
            assert_ne!(Answer::parse(&connection.read_to_end()).status, 200);
            assert!(start.elapsed() < Duration::from_secs(2));
        }
        for _ in 0..5 {
            victim.serves();
        }
        crawling.join().expect("a crawling client gets its bytes");
        for waited in [dribbling.join(), silent.join()] {
            let waited = waited.expect("its connection is closed");
            let limit = HEAD_TIMEOUT..HEAD_TIMEOUT + Duration::from_secs(4);
            assert!(limit.contains(&waited), "closed after {waited:?}");
        }
    });
    victim.is_unharmed(60_000_000);
}

/// Lets this process, and those that it starts, open as many files as the system lets it.
fn may_open(files: usize) {
    let limits = fs::read_to_string("/proc/self/limits").expect("the kernel tells limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(4)?.parse().ok());
    assert!(
        hard.is_some_and(|hard: usize| hard >= files),
        "this test opens {files} files: {limits}"
    );
    let process = std::process::id().to_string();
    let limit = format!("--nofile={files}:");
    let status = Command::new("prlimit")
        .args(["--pid", &process, &limit])
        .status();
    let raised = status.expect("prlimit (of util-linux) runs").success();
    assert!(
        raised,
        "the limit of open files cannot be raised to {files}"
    );
}

#[test]
fn ten_thousand_connections_keep_nobody_out() {
    let _machine = machine();
    may_open(16_384);
    let victim = Victim::start(85, 8 * MIB);
    let half_a_head = b"GET /v2/ HTTP/1.1\r\nHost: ";
    let whole_head = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut kept = Vec::new();
    for (request, count) in [
        (&b""[..], 10_000),
        (half_a_head, 5000),
        (whole_head, 5000),
        (half_a_head, 5000),
        (whole_head, 5000),
    ] {
        let start = clock::now();
        let connect = |_| {
            let mut connection = Raw::connect(&victim.mirror());
            connection.send(request);
            connection
        };
        let mut connections: Vec<Raw> = (0..count).map(connect).collect();
        println!("{count} connections in {:.2?}", start.elapsed());
        let files = victim.node().open_files();
        assert!(
            files <= victim.files + CONNECTIONS_MAX + 64,
            "{files} files"
        );
        victim.serves();
        // The last of them is not the one that makes room.
        if !request.is_empty() {
            let last = connections.last_mut().expect("there are some");
            last.send(b"x\r\n\r\n");
            assert_eq!(Answer::parse(&last.read_some(4096)).status, 200);
        }
        drop(connections);
        // What 4,096 connections took, of which the allocator keeps some.
        victim.is_unharmed(256_000_000);
        kept.push(victim.node().resident_bytes());
    }
    // What the allocator keeps for the next thousands is used by them.
    assert!(kept[4] < kept[2] + 60_000_000, "{kept:?}");
}

#[test]
fn a_thousand_clients_that_take_nothing_in_cost_little_and_hold_nobody_up() {
    let _machine = machine();
    may_open(16_384);
    let victim = Victim::start(86, 32 * MIB);
    let request = head(&format!("GET {} HTTP/1.1", victim.blob()), &[]);
    let connections: Vec<Raw> = (0..1000)
        .map(|_| {
            let mut connection = Raw::connect(&victim.mirror());
            assert!(connection.send(&request));
            connection
        })
        .collect();
    victim.serves();
    let more = victim.node().resident_bytes().saturating_sub(victim.bytes);
    println!(
        "{} MB more for 1,000 answers that nobody takes in",
        more / 1_000_000
    );
    assert!(more < 100_000_000, "{more} bytes more");
    drop(connections);
    victim.is_unharmed(150_000_000);
}
