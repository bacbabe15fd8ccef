//! One node: the daemon as a process, its log, its admin endpoint, and what can be done to it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::clock::wait_until;
use super::image::{Blob, Image};
use super::place::Place;
use super::{SHOAL, UPSTREAM, client};

/// How long a node may take from its start until it is ready.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long a node may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Lines of a node's log that a failed test prints.
const LOG_LINES_SHOWN: usize = 40;

/// What a node is started with, beside its addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Where the upstream [`UPSTREAM`] is read from.
    pub(crate) origin: String,
    /// Another name of that upstream.
    pub(crate) alias: Option<String>,
    /// Swarm addresses of other nodes.
    pub(crate) join: Vec<String>,
    /// The key of the cluster.
    pub(crate) cluster_key: Option<PathBuf>,
    /// The node's ticket, where it does not have the key.
    pub(crate) ticket: Option<PathBuf>,
    /// What else is said on the command line.
    pub(crate) arguments: Vec<String>,
    /// The value of `SHOAL_FAULT`.
    pub(crate) fault: Option<String>,
    /// Variables of its environment.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// How long a tag is used before the origin is asked again, where not the default.
    pub(crate) tag_ttl: Option<&'static str>,
}

/// A node that was started. Dropping it kills the process and deletes its data; after a failed
/// test the end of its log is printed.
pub(crate) struct Node {
    /// Where it runs.
    pub(crate) place: Place,
    options: Options,
    directory: TempDir,
    process: Option<Child>,
}

/// The bytes that a node has moved, as it reports them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    /// Read from the origin.
    pub(crate) from_origin: u64,
    /// Received from other nodes.
    pub(crate) from_peers: u64,
    /// Sent to other nodes.
    pub(crate) uploaded: u64,
}

impl Node {
    /// Starts a node at `place` and waits until it is ready.
    pub(crate) fn start(place: &Place, options: Options) -> Self {
        let mut node = Self::spawn(place, options);
        node.wait_ready();
        node
    }

    /// Starts a node at `place`; it may not be ready yet.
    pub(crate) fn spawn(place: &Place, options: Options) -> Self {
        let mut node = Self::prepare(place, options);
        node.launch();
        node
    }

    /// Starts a node that has no key but a ticket, issued for it with the key in this file.
    pub(crate) fn start_with_ticket(place: &Place, options: Options, cluster_key: &Path) -> Self {
        let mut node = Self::prepare(place, options);
        let data = node.data_dir().display().to_string();
        let key = cluster_key.display().to_string();
        let id = shoal(&["cluster", "identity", "--data-dir", &data]);
        let issue = [
            "cluster",
            "ticket",
            "--cluster-key",
            &key,
            "--node",
            id.trim(),
        ];
        let ticket = node.directory.path().join("ticket");
        fs::write(&ticket, shoal(&issue)).expect("it is writable");
        node.options.ticket = Some(ticket);
        node.launch();
        node.wait_ready();
        node
    }

    fn prepare(place: &Place, options: Options) -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        Self {
            place: place.clone(),
            options,
            directory,
            process: None,
        }
    }

    /// Waits until the node says that it is ready.
    pub(crate) fn wait_ready(&mut self) {
        wait_until("the node is ready", START_LIMIT, || {
            let process = self.process.as_mut().expect("it was launched");
            let ended = process.try_wait().expect("its state can be read");
            assert!(
                ended.is_none(),
                "the node ended instead of starting: {ended:?}"
            );
            self.get("/readyz").is_ok()
        });
    }

    /// Starts the node again, on the same data and addresses.
    pub(crate) fn restart(&mut self) {
        self.launch();
        self.wait_ready();
    }

    fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path());
        let log = log.expect("the log is writable");
        let mut command = self.place.command(SHOAL);
        command.arg("node").arg("--data-dir").arg(self.data_dir());
        command.args(["--mirror", &format!("{}:5005", self.place.local())]);
        command.args(["--admin", &self.admin()]);
        command.args([
            "--listen",
            &self.swarm_address(),
            "--advertise",
            &self.swarm_address(),
        ]);
        for name in [UPSTREAM].into_iter().chain(self.options.alias.as_deref()) {
            command.args(["--origin", &format!("{name}={}", self.options.origin)]);
        }
        for address in &self.options.join {
            command.args(["--join", address]);
        }
        if let Some(ttl) = self.options.tag_ttl {
            command.args(["--tag-ttl", ttl]);
        }
        if let Some(key) = &self.options.cluster_key {
            command.arg("--cluster-key").arg(key);
        }
        if let Some(ticket) = &self.options.ticket {
            command.arg("--ticket").arg(ticket);
        }
        command.args(&self.options.arguments);
        command.envs(
            self.options
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        );
        command.envs(
            self.options
                .fault
                .as_ref()
                .map(|fault| ("SHOAL_FAULT", fault)),
        );
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.process = Some(command.spawn().expect("the built binary starts"));
    }

    /// The address that other nodes join.
    pub(crate) fn swarm_address(&self) -> String {
        swarm_address(&self.place)
    }

    /// The address of the admin endpoint, for the node's own host.
    pub(crate) fn admin(&self) -> String {
        format!("{}:5006", self.place.local())
    }

    /// `host:port` of the mirror, for clients on the node's own host.
    pub(crate) fn mirror(&self) -> String {
        format!("{}:5005", self.place.local())
    }

    /// The base under which a client finds the test image.
    pub(crate) fn mirror_url(&self) -> String {
        format!("http://{}/{UPSTREAM}", self.mirror())
    }

    /// The directory of the node's data.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// What the node has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Pulls `image` through the mirror by its tag, every digest checked.
    ///
    /// # Errors
    ///
    /// What failed.
    pub(crate) fn pull(&self, image: &Image) -> Result<Duration, String> {
        client::pull(&self.place, &self.mirror_url(), image)
    }

    /// Reads one blob through the mirror, its digest checked.
    ///
    /// # Errors
    ///
    /// What failed.
    pub(crate) fn read(&self, blob: &Blob) -> Result<client::Answer, String> {
        client::check_blob(&self.place, &self.mirror_url(), &blob.digest)
    }

    /// A successful GET from the admin endpoint.
    ///
    /// # Errors
    ///
    /// No answer, or one that is not a success.
    pub(crate) fn get(&self, path: &str) -> Result<Vec<u8>, String> {
        client::get(&self.place, &format!("http://{}{path}", self.admin()))
    }

    /// The node's own statistics, as `/v1/node` gives them.
    pub(crate) fn stats(&self) -> Value {
        let bytes = self
            .get("/v1/node")
            .expect("a node that runs answers on /v1/node");
        serde_json::from_slice(&bytes).expect("/v1/node answers with JSON")
    }

    /// The node's name in the swarm.
    pub(crate) fn id(&self) -> String {
        self.stats()["id"]
            .as_str()
            .expect("id is a string")
            .to_owned()
    }

    /// How many members the node sees, itself included.
    pub(crate) fn members_alive(&self) -> u64 {
        self.stats()["members_alive"]
            .as_u64()
            .expect("members_alive is a number")
    }

    /// What the node has moved.
    pub(crate) fn traffic(&self) -> Traffic {
        let stats = self.stats();
        let bytes = |name: &str| {
            stats["bytes"][name]
                .as_u64()
                .expect("bytes by source are numbers")
        };
        Traffic {
            from_origin: bytes("from_origin"),
            from_peers: bytes("from_peers"),
            uploaded: bytes("uploaded"),
        }
    }

    /// The sum of the metrics whose name contains `part`.
    pub(crate) fn metric(&self, part: &str) -> f64 {
        let text = self
            .get("/metrics")
            .expect("a node that runs answers on /metrics");
        let text = String::from_utf8_lossy(&text).into_owned();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let named = samples.filter(|line| {
            line.split(['{', ' '])
                .next()
                .is_some_and(|name| name.contains(part))
        });
        named
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The most memory that the process has had resident, in bytes.
    pub(crate) fn peak_resident_bytes(&self) -> u64 {
        peak_resident_bytes(self.pid()).expect("the process runs, and the kernel reports VmHWM")
    }

    /// How many files and sockets the process has open.
    pub(crate) fn open_files(&self) -> usize {
        let path = Path::new("/proc").join(self.pid().to_string()).join("fd");
        fs::read_dir(path).expect("the process runs").count()
    }

    /// The memory that the process has resident now, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        status_bytes(self.pid(), "VmRSS:").expect("the process runs, and the kernel reports VmRSS")
    }

    /// Sends SIGKILL to a node that others are still looking at; [`kill`](Self::kill) reaps it.
    pub(crate) fn signal_kill(&self) {
        self.signal("KILL");
    }

    /// Ends the process at once, with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Asks the process to end, with SIGTERM, and waits until it has, with success.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        let process = self.process.as_mut().expect("it runs");
        let mut status = None;
        wait_until("the node ends after SIGTERM", STOP_LIMIT, || {
            status = process.try_wait().expect("its state can be read");
            status.is_some()
        });
        self.process = None;
        assert!(
            status.is_some_and(|status| status.success()),
            "SIGTERM ends a node well: {status:?}"
        );
    }

    /// Stops the process from running, with SIGSTOP: its sockets stay open and silent.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets a frozen process run on.
    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(pid)
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "SIG{name} is delivered"
        );
    }
}

/// The most memory that a process has had resident, in bytes (proc(5)); none if it is gone.
pub(crate) fn peak_resident_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, name: &str) -> Option<u64> {
    let path = Path::new("/proc").join(pid.to_string()).join("status");
    let status = fs::read_to_string(path).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = value.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

/// What a `shoal` command prints; it has to succeed.
pub(crate) fn shoal(arguments: &[&str]) -> String {
    let output = Command::new(SHOAL).args(arguments).output();
    let output = output.expect("the built binary starts");
    assert!(
        output.status.success(),
        "`shoal {}` failed: {output:?}",
        arguments.join(" ")
    );
    String::from_utf8(output.stdout).expect("it prints text")
}

/// The swarm address of a node at `place`.
pub(crate) fn swarm_address(place: &Place) -> String {
    format!("{}:5004", place.address)
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!(
                "--- end of the log of the node at {}\n{}",
                self.place.address,
                shown.join("\n")
            );
        }
    }
}
