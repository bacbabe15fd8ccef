//! S3 servers: s3s-fs, which checks signatures and keeps objects as files, and moto, which
//! docker-registry's S3 driver can write to. `tests/run` installs both in the build directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::client;
use super::clock::wait_until;
use super::place::Place;

/// How long a server may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

const PORT: u16 = 9000;

/// The bucket of every test.
pub(crate) const BUCKET: &str = "images";

/// The keys that s3s-fs takes; moto takes any.
const KEY_ID: &str = "AKTEST";
const SECRET: &str = "SECRET";

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/support/bucket.py");

/// A server of buckets. Dropping it ends the process.
pub(crate) struct S3 {
    place: Place,
    directory: TempDir,
    process: Option<Child>,
}

impl S3 {
    /// s3s-fs, with no bucket.
    pub(crate) fn checking_signatures() -> Self {
        Self::start(|place, directory| {
            let mut command = Command::new(tool("s3s-fs/bin/s3s-fs"));
            command.args(["--host", &place.address.to_string()]);
            command.args(["--port", &PORT.to_string()]);
            command.args(["--access-key", KEY_ID, "--secret-key", SECRET]);
            command.arg(objects(directory));
            command
        })
    }

    /// moto, with an empty bucket.
    pub(crate) fn moto() -> Self {
        let server = Self::start(|place, _| {
            let mut command = Command::new(tool("moto/bin/moto_server"));
            command.args(["--host", &place.address.to_string()]);
            command.args(["--port", &PORT.to_string()]);
            command
        });
        server.script("make", &[]);
        server
    }

    fn start(command: impl FnOnce(&Place, &Path) -> Command) -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        fs::create_dir(objects(directory.path())).expect("it is writable");
        let place = Place::loopback();
        let log = File::create(directory.path().join("log")).expect("it is writable");
        let mut command = command(&place, directory.path());
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{command:?} not started (tests/run installs it): {error}")
            });
        let server = Self {
            place,
            directory,
            process: Some(process),
        };
        wait_until("the S3 server answers", START_LIMIT, || {
            let request = client::request(&server.place, &server.url());
            request.option(&["--max-time", "5"]).finish().is_ok()
        });
        server
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("{}:{PORT}", self.place.address)
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The storage section of docker-registry's configuration that writes into the bucket, below `prefix`.
    pub(crate) fn storage_section(&self, prefix: &str) -> String {
        format!(
            "s3: {{accesskey: {KEY_ID}, secretkey: {SECRET}, region: us-east-1, bucket: {BUCKET}, \
             regionendpoint: \"{}\", secure: false, rootdirectory: /{prefix}}}",
            self.url()
        )
    }

    /// Copies every object of the bucket to another server.
    pub(crate) fn copy_to(&self, other: &Self) {
        self.script("copy", &[&other.url()]);
    }

    /// Puts every file of a directory into the bucket, below `prefix`.
    pub(crate) fn put(&self, directory: &Path, prefix: &str) {
        self.script("put", &[&directory.display().to_string(), prefix]);
    }

    /// The file in which s3s-fs keeps an object.
    pub(crate) fn object(&self, key: &str) -> PathBuf {
        objects(self.directory.path()).join(BUCKET).join(key)
    }

    /// Writes a file of keys: those that the server takes, or others.
    pub(crate) fn write_keys(&self, right: bool) -> PathBuf {
        let path = self.directory.path().join("keys");
        let secret = if right { SECRET } else { "another" };
        let text = format!("aws_access_key_id = {KEY_ID}\naws_secret_access_key = {secret}\n");
        fs::write(&path, text).expect("it is writable");
        path
    }

    fn script(&self, what: &str, arguments: &[&str]) {
        let mut command = Command::new(tool("moto/bin/python"));
        command.args([SCRIPT, what, &self.url()]).args(arguments);
        // The script is told all that it needs.
        command
            .env_remove("AWS_CA_BUNDLE")
            .env_remove("AWS_PROFILE");
        let output = command.output().expect("tests/run installs it");
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn objects(directory: &Path) -> PathBuf {
    directory.join("objects")
}

/// A program that `tests/run` has installed.
fn tool(path: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(path)
}
