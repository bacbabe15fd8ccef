//! What an origin was asked, request by request, and the sums that the tests judge it by.

use std::time::Instant;

use super::image::Image;

/// One request that an origin has answered, or tried to.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// `GET`, `HEAD`, …
    pub(crate) method: String,
    /// The path, without a query.
    pub(crate) path: String,
    /// The status of the answer.
    pub(crate) status: u16,
    /// Bytes of the answer's body that were written.
    pub(crate) bytes: u64,
    /// The request's Range header, where the origin records it.
    pub(crate) range: Option<String>,
    /// When the request came, where the origin records it.
    pub(crate) at: Option<Instant>,
}

impl Access {
    /// A line of Apache's combined log format, as `docker-registry` writes it.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut quoted = line.split('"');
        let (_client, request, answer) = (quoted.next()?, quoted.next()?, quoted.next()?);
        let mut request = request.split(' ');
        let (method, target) = (request.next()?.to_owned(), request.next()?);
        let path = target.split('?').next()?.to_owned();
        let mut answer = answer.split_whitespace();
        let (status, bytes) = (answer.next()?.parse().ok()?, answer.next()?.parse().ok()?);
        Some(Self {
            method,
            path,
            status,
            bytes,
            range: None,
            at: None,
        })
    }

    fn is_get_of(&self, kind: &str, digest: &str) -> bool {
        self.method == "GET" && self.path.ends_with(&format!("/{kind}/{digest}"))
    }
}

/// Sums over the requests that an origin has seen.
pub(crate) trait AccessLog {
    /// The requests so far.
    fn log(&self) -> Vec<Access>;

    /// Bytes written for the blob with this digest.
    fn bytes_of(&self, digest: &str) -> u64 {
        let log = self.log();
        log.iter()
            .filter(|access| access.is_get_of("blobs", digest))
            .map(|access| access.bytes)
            .sum()
    }

    /// Bytes written for an image's blobs, as multiples of the image.
    fn copies(&self, image: &Image) -> f64 {
        let bytes: u64 = image
            .blobs
            .iter()
            .map(|blob| self.bytes_of(&blob.digest))
            .sum();
        bytes as f64 / image.bytes() as f64
    }

    /// How often the blob with this digest was asked for.
    fn gets_of(&self, digest: &str) -> usize {
        self.log()
            .iter()
            .filter(|access| access.is_get_of("blobs", digest))
            .count()
    }

    /// How often the image's manifest was read: GETs by its digest or by a tag, which answer with
    /// the same bytes.
    fn manifest_gets(&self) -> usize {
        let is_read = |access: &&Access| {
            access.method == "GET" && access.status == 200 && access.path.contains("/manifests/")
        };
        self.log().iter().filter(is_read).count()
    }
}

#[test]
fn a_line_of_the_combined_log_format_is_understood() {
    let line = r#"10.0.0.1 - - [21/Nov/2026:11:54:33 +0000] "GET /v2/a/b/blobs/sha256:00?ns=x HTTP/1.1" 206 91 "" "curl/7.88.1""#;
    let access = Access::parse(line).unwrap();
    assert_eq!(
        (access.method.as_str(), access.status, access.bytes),
        ("GET", 206, 91)
    );
    assert!(access.is_get_of("blobs", "sha256:00"));
}
