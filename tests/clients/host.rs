//! A machine of its own for a client: files, processes and, with other machines at the same place,
//! a network. What a client would find and write at its usual paths is there, and goes with it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::SHOAL;
use crate::support::clock::wait_until;
use crate::support::place::Place;

/// The names under which a client may look for the registry.
pub(super) const NAMES: [&str; 4] = [
    crate::support::UPSTREAM,
    "registry-1.docker.io",
    "index.docker.io",
    "docker.io",
];

/// How long a daemon of a client may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long, in seconds, a command of a client may take.
const COMMAND_SECONDS_MAX: &str = "120";

/// Where programs of Debian are, and `shoal`.
const PROGRAMS: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/run";

/// The machine. Dropping it ends all that runs there.
pub(super) struct Host {
    first: Child,
    pid: String,
    started: Vec<Child>,
}

impl Host {
    /// A machine at `place` with the programs of `system` (the empty path is this one), where the
    /// registry's names lead to this address and its certificate is trusted.
    pub(super) fn new(place: &Place, system: &str, registry: Ipv4Addr, certificate: &str) -> Self {
        let mut command = place.bare_command("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]);
        command.args([include_str!("boot.sh"), "sh", system, SHOAL]);
        let mut first = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (Debian package util-linux) starts");
        let mut pid = String::new();
        let said = first.stdout.take().expect("it is piped");
        let _ = BufReader::new(said).read_line(&mut pid);
        let host = Self {
            first,
            pid: pid.trim().to_owned(),
            started: Vec::new(),
        };
        assert!(
            !host.pid.is_empty(),
            "the machine did not come up; these tests mount file systems and need root"
        );
        let names = NAMES.join(" ");
        host.write(
            "etc/hosts",
            &format!("127.0.0.1 localhost\n{registry} {names}\n"),
        );
        host.append("etc/ssl/certs/ca-certificates.crt", certificate);
        host
    }

    /// Where the machine has a file, seen from here.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/{path}", self.pid))
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).expect("the machine's files are writable");
    }

    /// Adds lines to a file.
    pub(super) fn append(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("it is writable");
        let file = fs::File::options().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.expect("the machine's files are writable");
    }

    /// What a command of the shell prints there, where it succeeds.
    pub(super) fn run(&self, script: &str) -> Result<String, String> {
        let mut command = self.shell(&["timeout", COMMAND_SECONDS_MAX, "sh", "-c", script]);
        let output = command
            .output()
            .expect("nsenter (Debian package util-linux) starts");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (printed, errors) = (said(&output.stdout), said(&output.stderr));
        if output.status.success() {
            Ok(printed)
        } else {
            Err(format!("`{script}`: {printed} {errors}"))
        }
    }

    /// Starts a daemon, and waits until a command succeeds.
    pub(super) fn start(&mut self, daemon: &str, ready: &str) {
        let log = fs::File::create(self.path("tmp/log")).expect("it is writable");
        let mut command = self.shell(&["sh", "-c", &format!("exec {daemon}")]);
        let process = command.stdout(Stdio::null()).stderr(log).spawn();
        self.started.push(process.expect("nsenter starts"));
        wait_until(daemon, START_LIMIT, || self.run(ready).is_ok());
    }

    /// Has `shoal setup` write the mirror into this client's configuration, and says what it said.
    pub(super) fn set_up(&self, client: &str) -> String {
        let registry = crate::support::UPSTREAM;
        let done = self.run(&format!("shoal setup {client} --registry {registry}"));
        done.expect("the client is set up")
    }

    fn shell(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.pid, "--mount", "--pid", "--net"])
            .args(arguments);
        command.stdin(Stdio::null()).env_clear();
        command.env("PATH", PROGRAMS).env("HOME", "/root");
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("tmp/log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(20).collect();
            eprintln!(
                "--- end of the client's log, backwards\n{}",
                lines.join("\n")
            );
        }
        let _ = self.first.kill();
        let _ = self.first.wait();
        for process in &mut self.started {
            let _ = process.wait();
        }
    }
}
