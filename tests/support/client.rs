//! Clients: `skopeo`, and `curl` with its output hashed in this process.
//!
//! A client has to run on its host, so a request is a `curl` process there; its body comes back
//! through a pipe, where it is hashed and thrown away.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::image::{Image, digest_of};
use super::place::Place;
use super::{REPOSITORY, TAG, clock};

/// How many blobs a client reads at once, as containers/image and docker do.
const BLOBS_AT_ONCE: usize = 3;

/// The longest that any request may take: a test that needs longer has failed.
const REQUEST_SECONDS_MAX: &str = "300";

/// A request that has not been sent.
#[must_use]
pub(crate) struct Request<'a> {
    place: &'a Place,
    url: String,
    options: Vec<String>,
}

/// A request whose answer is being read.
pub(crate) struct Transfer {
    curl: Child,
    body: ChildStdout,
    hash: Sha256,
    bytes: u64,
    start: Instant,
    first_byte: Option<Instant>,
}

/// How long a pull took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pull {
    /// Until the first byte of a blob.
    #[allow(dead_code, reason = "only the benchmarks ask for it")]
    pub(crate) first_byte: Duration,
    /// Until the last byte of the last blob.
    pub(crate) took: Duration,
}

/// An answer that came whole.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: u16,
    /// Bytes of the body.
    pub(crate) bytes: u64,
    /// The body's digest, `sha256:…`.
    pub(crate) digest: String,
    /// When the first byte of the body came, or its end.
    pub(crate) first_byte: Instant,
    /// From the start of the client until the body's last byte.
    pub(crate) took: Duration,
}

/// A GET of `url`, sent from `place`.
pub(crate) fn request<'a>(place: &'a Place, url: &str) -> Request<'a> {
    Request {
        place,
        url: url.to_owned(),
        options: Vec::new(),
    }
}

/// A GET of a blob of the test image under `base`.
pub(crate) fn blob<'a>(place: &'a Place, base: &str, digest: &str) -> Request<'a> {
    request(place, &blob_url(base, digest))
}

/// Where a blob of the test image is under `base`.
pub(crate) fn blob_url(base: &str, digest: &str) -> String {
    format!("{}/blobs/{digest}", repository_url(base))
}

/// `curl` at `place`, with what every request has.
pub(crate) fn curl(place: &Place) -> Command {
    let mut command = place.command("curl");
    // Without --no-buffer it keeps the first bytes to itself until it has 4 KiB of them.
    command.args(["-sS", "--http1.1", "--noproxy", "*", "--no-buffer"]);
    command.args(["--max-time", REQUEST_SECONDS_MAX]);
    command
}

/// A GET of a manifest of the test image under `base`, by tag or digest.
pub(crate) fn manifest<'a>(place: &'a Place, base: &str, name: &str) -> Request<'a> {
    request(place, &format!("{}/manifests/{name}", repository_url(base)))
        .option(&["-H", &format!("Accept: {}", Image::media_type())])
}

/// `base` is an origin's URL, or a mirror's with the upstream as its first path component.
fn repository_url(base: &str) -> String {
    let (scheme, rest) = base.split_once("://").expect("base is a URL");
    match rest.split_once('/') {
        None => format!("{scheme}://{rest}/v2/{REPOSITORY}"),
        Some((host, upstream)) => format!("{scheme}://{host}/v2/{upstream}/{REPOSITORY}"),
    }
}

impl Request<'_> {
    /// Adds options of `curl`.
    pub(crate) fn option(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(ToString::to_string));
        self
    }

    /// Asks for a range, written as in the Range header but for `bytes=`.
    pub(crate) fn range(self, range: &str) -> Self {
        self.option(&["-r", range])
    }

    /// Sends the request.
    pub(crate) fn start(self) -> Transfer {
        let mut command = curl(self.place);
        command
            .args(["-w", "%{stderr}\n%{http_code}"])
            .args(self.options)
            .arg(self.url);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let start = clock::now();
        let mut curl = command
            .spawn()
            .unwrap_or_else(|error| panic!("curl (a Debian package) not started: {error}"));
        let body = curl.stdout.take().expect("it is piped");
        Transfer {
            curl,
            body,
            hash: Sha256::new(),
            bytes: 0,
            start,
            first_byte: None,
        }
    }

    /// Sends the request and reads the answer, whatever its status.
    ///
    /// # Errors
    ///
    /// No answer, or one that ended before its end; the text is `curl`'s own.
    pub(crate) fn finish(self) -> Result<Answer, String> {
        let mut transfer = self.start();
        transfer.read_some(u64::MAX);
        transfer.end()
    }

    /// Sends the request and reads the answer into memory.
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish), and a status other than a success.
    pub(crate) fn body(self) -> Result<Vec<u8>, String> {
        let mut transfer = self.option(&["--fail"]).start();
        let mut bytes = Vec::new();
        transfer
            .body
            .read_to_end(&mut bytes)
            .map_err(|error| error.to_string())?;
        transfer.end().map(|_| bytes)
    }
}

impl Transfer {
    /// Reads on until `wanted` bytes have come in all, or the body has ended.
    pub(crate) fn read_some(&mut self, wanted: u64) {
        let mut buffer = vec![0; 64 * 1024];
        while self.bytes < wanted {
            match self.body.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    self.first_byte.get_or_insert_with(clock::now);
                    self.hash.update(&buffer[..count]);
                    self.bytes += count as u64;
                }
            }
        }
    }

    /// Bytes read so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The answer's body as text, whatever its status.
    pub(crate) fn text(mut self) -> String {
        let mut text = String::new();
        let read = self.body.read_to_string(&mut text);
        let _ = self.curl.wait();
        read.expect("the body is text");
        text
    }

    /// Disconnects at once, like a client that is killed.
    pub(crate) fn abort(mut self) {
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }

    /// What came of it, once the body has been read.
    ///
    /// # Errors
    ///
    /// As [`Request::finish`].
    pub(crate) fn end(self) -> Result<Answer, String> {
        let took = self.start.elapsed();
        let first_byte = self.first_byte.unwrap_or(self.start + took);
        drop(self.body);
        let output = self
            .curl
            .wait_with_output()
            .map_err(|error| error.to_string())?;
        let report = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(format!(
                "after {} bytes: {}",
                self.bytes,
                report.trim().replace('\n', " ")
            ));
        }
        let status = report.lines().last().and_then(|line| line.parse().ok());
        let status = status.ok_or_else(|| format!("no status from curl: {report}"))?;
        Ok(Answer {
            status,
            bytes: self.bytes,
            digest: digest_of(self.hash),
            first_byte,
            took,
        })
    }
}

/// The body of a successful GET.
///
/// # Errors
///
/// No answer, or one that is not a success.
pub(crate) fn get(place: &Place, url: &str) -> Result<Vec<u8>, String> {
    request(place, url).option(&["--max-time", "20"]).body()
}

/// Pulls `image` by its tag, as a client does: the manifest, then its blobs, every digest checked.
///
/// # Errors
///
/// What failed, with the blob's digest.
pub(crate) fn pull(place: &Place, base: &str, image: &Image) -> Result<Duration, String> {
    pull_as(place, base, image, TAG)
}

/// As [`pull`], by a tag or a digest of the caller's.
///
/// # Errors
///
/// What failed, with the blob's digest.
pub(crate) fn pull_as(
    place: &Place,
    base: &str,
    image: &Image,
    name: &str,
) -> Result<Duration, String> {
    timed_pull(place, base, image, name).map(|pull| pull.took)
}

/// As [`pull_as`]; tells when the first byte came, too.
///
/// # Errors
///
/// What failed, with the blob's digest.
pub(crate) fn timed_pull(
    place: &Place,
    base: &str,
    image: &Image,
    name: &str,
) -> Result<Pull, String> {
    let start = clock::now();
    let bytes = manifest(place, base, name)
        .body()
        .map_err(|error| format!("manifest: {error}"))?;
    let digest = digest_of(Sha256::new_with_prefix(&bytes));
    if digest != image.manifest.digest {
        return Err(format!(
            "the manifest is {digest} and not {}",
            image.manifest.digest
        ));
    }
    let manifest: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let layers = manifest["layers"].as_array().into_iter().flatten();
    let digests: Vec<&str> = layers
        .chain([&manifest["config"]])
        .map(|descriptor| descriptor["digest"].as_str().expect("the test wrote it"))
        .collect();
    let first_byte = Mutex::new(None::<Instant>);
    each_at_once(&digests, |digest| {
        let answer = check_blob(place, base, digest)?;
        let mut first = first_byte.lock().expect("a client does not panic");
        *first = Some(first.map_or(answer.first_byte, |first| first.min(answer.first_byte)));
        Ok(())
    })?;
    let first_byte = first_byte.into_inner().expect("a client does not panic");
    Ok(Pull {
        first_byte: first_byte.map_or(Duration::ZERO, |first| first.duration_since(start)),
        took: start.elapsed(),
    })
}

/// What [`check_blob`] says of an answer that came whole and is not what was asked for.
pub(crate) const WRONG_BYTES: &str = "a whole answer with other bytes";

/// Reads one blob and checks status and digest.
///
/// # Errors
///
/// What is wrong with the answer.
pub(crate) fn check_blob(place: &Place, base: &str, digest: &str) -> Result<Answer, String> {
    let answer = blob(place, base, digest).finish();
    match answer {
        Ok(answer) if answer.status == 200 && answer.digest == digest => Ok(answer),
        Ok(answer) if answer.status == 200 => Err(format!("blob {digest}: {WRONG_BYTES}")),
        other => Err(format!("blob {digest}: {other:?}")),
    }
}

fn each_at_once(
    digests: &[&str],
    check: impl Fn(&str) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(digest) = digests.get(next.fetch_add(1, Ordering::Relaxed)) {
            check(digest)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..BLOBS_AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a client does not panic"))
    })
}

/// Copies `name` (`host:port/repository:tag` or `…@digest`) into a directory with `skopeo`, which
/// checks every digest, and compares what arrived with `image`.
///
/// # Errors
///
/// What `skopeo` said, or which blob is missing.
pub(crate) fn skopeo(place: &Place, name: &str, image: &Image) -> Result<Duration, String> {
    let directory = TempDir::new().map_err(|error| error.to_string())?;
    let took = skopeo_into(directory.path(), place, name)?;
    holds_blobs(&directory.path().join("image"), image)?;
    Ok(took)
}

/// Copies `name` to `image` in a directory with `skopeo`, which checks every digest.
///
/// # Errors
///
/// What `skopeo` said.
pub(crate) fn skopeo_into(directory: &Path, place: &Place, name: &str) -> Result<Duration, String> {
    let registries = directory.join("registries.conf");
    fs::write(&registries, "").map_err(|error| error.to_string())?;
    let target = directory.join("image");
    let mut command = place.command("skopeo");
    command
        .arg("--registries-conf")
        .arg(registries)
        .arg("--insecure-policy");
    command.args([
        "copy",
        "--quiet",
        "--src-tls-verify=false",
        &format!("docker://{name}"),
    ]);
    command
        .arg(format!("dir:{}", target.display()))
        .env("TMPDIR", directory);
    let start = clock::now();
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("skopeo (a Debian package) not started: {error}"));
    let took = start.elapsed();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(took)
}

/// Whether a `dir:` image of skopeo has every blob of this one.
///
/// # Errors
///
/// Which is missing, or has another size.
pub(crate) fn holds_blobs(target: &Path, image: &Image) -> Result<(), String> {
    for blob in &image.blobs {
        let path = target.join(blob.digest.trim_start_matches("sha256:"));
        let size = fs::metadata(&path).map(|metadata| metadata.len());
        if size.as_ref().ok() != Some(&blob.size()) {
            return Err(format!(
                "{} has {size:?} bytes, not {}",
                blob.digest,
                blob.size()
            ));
        }
    }
    Ok(())
}

/// Runs `work` once for every place, all at the same moment, and gives the results in order.
pub(crate) fn all_at_once<P: Sync, T: Send>(places: &[P], work: impl Fn(&P) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let workers: Vec<_> = places
            .iter()
            .map(|place| scope.spawn(move || work(place)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a client does not panic"))
            .collect()
    })
}
