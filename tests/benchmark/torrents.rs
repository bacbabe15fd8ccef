//! BitTorrent as a contender: libtorrent at every host, with a tracker of its own.

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{Course, Entrant};
use crate::support::client::{self, Pull};
use crate::support::clock::wait_until;
use crate::support::image::Image;
use crate::support::place::Place;

/// BitTorrent clients and their tracker.
pub(super) struct Torrents<'a> {
    course: &'a Course<'a>,
    directory: TempDir,
    tracker: Child,
    seed: Mutex<Client>,
    clients: Vec<Mutex<Option<Client>>>,
}

/// One of them.
struct Client {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// How long the tracker may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The script that is a client.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/benchmark/torrent.py");

/// The interpreter that Debian's python3-libtorrent is for.
const PYTHON: &str = "/usr/bin/python3";

impl<'a> Torrents<'a> {
    pub(super) fn start(course: &'a Course<'a>) -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        let path = directory.path();
        let address = course.origin.address;
        let url = format!("http://{address}:6969/announce");

        let (file, torrent) = torrent_of(course.image, path);
        let made = Command::new(PYTHON)
            .args([SCRIPT, "make"])
            .args([&file, &torrent])
            .arg(&url)
            .output()
            .unwrap_or_else(|error| panic!("{PYTHON} not started: {error}"));
        let said: Value = serde_json::from_slice(&made.stdout)
            .unwrap_or_else(|_| panic!("no torrent (Debian package python3-libtorrent): {made:?}"));
        let hash = said["hash"].as_str().expect("it says the hash");
        // Debian's tracker serves what it is told to, and reads that as nobody.
        let served = path.join("served");
        fs::write(&served, format!("{hash}\n")).expect("it is writable");
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("it is ours");

        let mut tracker = course.origin.command("opentracker");
        tracker.args(["-i", &address.to_string(), "-p", "6969", "-P", "6969"]);
        tracker.arg("-w").arg(served);
        tracker.stdin(Stdio::null()).stdout(Stdio::null());
        let tracker = tracker
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("opentracker (a Debian package) not started: {error}"));
        wait_until("the tracker answers", START_LIMIT, || {
            client::request(course.origin, &url).finish().is_ok()
        });
        let mut seed = Client::start(course.origin, "seed", &torrent, path);
        seed.next();
        Self {
            course,
            tracker,
            seed: Mutex::new(seed),
            clients: course.nodes.iter().map(|_| Mutex::new(None)).collect(),
            directory,
        }
    }

    fn torrent(&self) -> PathBuf {
        self.directory.path().join("image.torrent")
    }

    /// Says something to the origin's client, which answers how many bytes it has sent.
    fn tell_seed(&self, what: &str) -> f64 {
        let mut seed = self.seed.lock().expect("nobody panicked");
        let _ = writeln!(seed.input, "{what}");
        seed.next()["sent_bytes"].as_f64().unwrap_or(f64::NAN)
    }
}

/// The image's blobs in one file, and where its metadata is to be.
fn torrent_of(image: &Image, directory: &Path) -> (PathBuf, PathBuf) {
    let path = directory.join("image");
    let mut file = fs::File::create(&path).expect("it is writable");
    for blob in &image.blobs {
        let mut offset = 0;
        while offset < blob.size() {
            let block = blob.content.read(offset, 1 << 20);
            file.write_all(&block).expect("the disk has room");
            offset += block.len() as u64;
        }
    }
    (path, directory.join("image.torrent"))
}

impl Client {
    fn start(place: &Place, what: &str, torrent: &Path, directory: &Path) -> Self {
        let mut command = place.command(PYTHON);
        command.args([SCRIPT, what]).args([torrent, directory]);
        command.arg(place.address.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command
            .spawn()
            .unwrap_or_else(|error| panic!("{PYTHON} not started: {error}"));
        Self {
            input: process.stdin.take().expect("it is piped"),
            output: BufReader::new(process.stdout.take().expect("it is piped")),
            process,
        }
    }

    /// What it says next.
    fn next(&mut self) -> Value {
        let mut line = String::new();
        let _ = self.output.read_line(&mut line);
        serde_json::from_str(&line).unwrap_or(Value::Null)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Entrant for Torrents<'_> {
    fn pull(&self, node: usize) -> Result<Pull, String> {
        let place = &self.course.nodes[node];
        let directory = self.directory.path().join(node.to_string());
        fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        let mut client = Client::start(place, "pull", &self.torrent(), &directory);
        let said = client.next();
        let seconds = said["seconds"].as_f64().ok_or("the client ended")?;
        let took = Duration::from_secs_f64(seconds);
        // It gives away what it has until the race is over.
        *self.clients[node].lock().expect("nobody panicked") = Some(client);
        Ok(Pull {
            first_byte: took,
            took,
        })
    }

    fn leave_to_nodes(&self) {
        self.tell_seed("leave");
    }

    fn processes(&self) -> Vec<u32> {
        let pid = |client: &Mutex<Option<Client>>| {
            let client = client.lock().expect("nobody panicked");
            client.as_ref().map(|client| client.process.id())
        };
        self.clients.iter().filter_map(pid).collect()
    }

    fn origin_copies(&self) -> f64 {
        self.tell_seed("") / self.course.image.bytes() as f64
    }
}

impl Drop for Torrents<'_> {
    fn drop(&mut self) {
        let _ = self.tracker.kill();
        let _ = self.tracker.wait();
    }
}
