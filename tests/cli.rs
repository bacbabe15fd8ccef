//! Bad input gets one clear line that says what to do, and an exit code; nothing is lost.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::clock::wait_until;
use crate::support::fake_origin::{FakeOrigin, Faults};
use crate::support::image::Image;
use crate::support::place::Place;
use crate::support::swarm::{ClusterKey, Swarm};
use crate::support::{MIB, REPOSITORY, SHOAL, TAG, UPSTREAM, machine};

/// A daemon that cannot start says so within this time.
const END_LIMIT: Duration = Duration::from_secs(15);

/// What a command that ended has left.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    output: String,
    errors: String,
}

/// Runs `shoal` with nothing from the environment until it ends.
fn shoal(arguments: &[&str]) -> Outcome {
    let mut command = Command::new(SHOAL);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SHOAL_")) {
        command.env_remove(name);
    }
    let pipes = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = pipes
        .args(arguments)
        .spawn()
        .expect("the built binary starts");
    let mut ended = false;
    let deadline = crate::support::clock::now() + END_LIMIT;
    while !ended && crate::support::clock::now() < deadline {
        ended = process.try_wait().expect("its state can be read").is_some();
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = process.kill();
    let output = process.wait_with_output().expect("its output can be read");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let outcome = Outcome {
        code: output.status.code(),
        output: text(&output.stdout),
        errors: text(&output.stderr),
    };
    assert!(
        ended,
        "`shoal {arguments:?}` still ran after {END_LIMIT:?}: {outcome:?}"
    );
    outcome
}

impl Outcome {
    /// Checks that the command failed with `code` and one line that has all of `words`.
    fn fails_with(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.errors.contains("panicked"), "{self:?}");
        let told = |line: &&str| line.starts_with("shoal: ") || line.starts_with("error: ");
        let lines: Vec<_> = self.errors.lines().filter(told).collect();
        assert_eq!(lines.len(), 1, "one line tells what is wrong: {self:?}");
        for word in words {
            assert!(
                lines[0].contains(word),
                "the line does not name `{word}`: {self:?}"
            );
        }
    }
}

/// Addresses and a data directory of its own for a node that is not meant to start.
struct Attempt {
    place: Place,
    directory: TempDir,
}

impl Attempt {
    fn new() -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        Self {
            place: Place::loopback(),
            directory,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).expect("it is writable");
        self.path(name).display().to_string()
    }

    /// As [`node`](Self::node), with the addresses of the configuration or the defaults.
    fn node_with_defaults(&self, more: &[&str]) -> Outcome {
        let data = self.path("data").display().to_string();
        shoal(&[&["node", "--data-dir", &data], more].concat())
    }

    fn node(&self, more: &[&str]) -> Outcome {
        let address = |port: u16| format!("{}:{port}", self.place.address);
        let data = self.path("data").display().to_string();
        let (mirror, admin, listen) = (address(5005), address(5006), address(5004));
        let mut arguments = vec!["node", "--data-dir", &data];
        for (flag, value) in [
            ("--mirror", &mirror),
            ("--admin", &admin),
            ("--listen", &listen),
        ] {
            if !more.contains(&flag) {
                arguments.extend([flag, value]);
            }
        }
        arguments.extend(more);
        shoal(&arguments)
    }
}

#[test]
fn a_flag_or_value_that_makes_no_sense_is_named_with_exit_code_2() {
    let attempt = Attempt::new();
    attempt
        .node(&["--mirror", "nonsense"])
        .fails_with(2, &["--mirror", "nonsense"]);
    attempt
        .node(&["--origin", "no-equals-sign"])
        .fails_with(2, &["--origin", "no-equals-sign"]);
    attempt
        .node(&["--origin", "registry.test=ftp://x"])
        .fails_with(2, &["origin", "ftp"]);
    attempt
        .node(&["--no-such-flag"])
        .fails_with(2, &["--no-such-flag"]);
    shoal(&["no-such-command"]).fails_with(2, &["no-such-command"]);
    shoal(&["demo", "--nodes", "zero"]).fails_with(2, &["--nodes", "zero"]);
    assert!(
        !attempt.path("data").exists(),
        "nothing is made before the arguments are understood"
    );
}

#[test]
fn a_configuration_that_cannot_be_read_is_named_with_its_key_and_exit_code_2() {
    let attempt = Attempt::new();
    let file = attempt.write("shoal.toml", "mirrow = \"127.0.0.1:5005\"\n");
    attempt
        .node(&["--config", &file])
        .fails_with(2, &["mirrow", &file]);
    let file = attempt.write("wrong.toml", "admin = 17\n");
    let outcome = attempt.node(&["--config", &file]);
    outcome.fails_with(2, &["line 1", &file]);
    let file = attempt.write("nonsense.toml", "admin = \"nonsense\"\n");
    let outcome = attempt.node_with_defaults(&["--config", &file]);
    outcome.fails_with(2, &["admin", "nonsense"]);
    let file = attempt.path("absent.toml").display().to_string();
    attempt.node(&["--config", &file]).fails_with(2, &[&file]);
}

#[test]
fn a_port_in_use_is_named_with_exit_code_1() {
    let attempt = Attempt::new();
    for (flag, port) in [("--mirror", 6005), ("--admin", 6006), ("--listen", 6004)] {
        let address = format!("{}:{port}", attempt.place.address);
        let _taken = TcpListener::bind(&address).expect("the port is free");
        attempt.node(&[flag, &address]).fails_with(1, &[&address]);
    }
}

#[test]
fn a_cluster_key_that_is_missing_or_not_one_is_named() {
    let attempt = Attempt::new();
    let absent = attempt.path("absent.key").display().to_string();
    let outcome = attempt.node(&["--cluster-key", &absent]);
    outcome.fails_with(outcome.code.unwrap_or(1).clamp(1, 2), &[&absent]);
    let foreign = attempt.write("foreign.key", "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n");
    let outcome = attempt.node(&["--cluster-key", &foreign]);
    outcome.fails_with(outcome.code.unwrap_or(1).clamp(1, 2), &[&foreign]);
}

#[test]
fn joining_without_a_key_is_refused_with_the_way_to_get_one() {
    let outcome = Attempt::new().node(&["--join", "127.0.0.1:5004"]);
    outcome.fails_with(2, &["--join", "--cluster-key", "shoal cluster init"]);
}

#[test]
fn making_a_cluster_key_never_overwrites_one() {
    let key = ClusterKey::new();
    let before = fs::read(key.path()).expect("it was written");
    let file = key.path().display().to_string();
    shoal(&["cluster", "init", "--cluster-key", &file]).fails_with(1, &[&file]);
    assert_eq!(fs::read(key.path()).expect("it is still there"), before);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(key.path()).expect("it is there").permissions(),
    );
    assert_eq!(mode & 0o077, 0, "the key is for its owner alone");
}

/// Every file under `path` with its bytes.
fn files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(path).expect("it can be listed").flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.insert(
                entry.path(),
                fs::read(entry.path()).expect("it can be read"),
            );
        }
    }
    found
}

#[test]
fn a_data_directory_of_a_newer_version_is_refused_and_left_as_it_is() {
    let attempt = Attempt::new();
    let data = attempt.path("data");
    fs::create_dir_all(data.join("blobs/sha256/00")).expect("it is writable");
    fs::write(data.join("VERSION"), "4000000\n").expect("it is writable");
    fs::write(data.join("blobs/sha256/00/00"), "a blob of the future").expect("it is writable");
    let before = files(&data);
    attempt
        .node(&[])
        .fails_with(1, &[&data.display().to_string(), "version"]);
    assert_eq!(files(&data), before);
}

#[test]
fn a_second_node_on_the_same_data_is_refused_and_the_first_goes_on() {
    let _machine = machine();
    let image = Image::generate(60, &[MIB]);
    let origin = FakeOrigin::serving(&image, Faults::default());
    let swarm = Swarm::on_loopback(1, &origin.url());
    let node = &swarm.nodes[0];
    let data = node.data_dir().display().to_string();
    let other = Attempt::new();
    let address = |port: u16| format!("{}:{port}", other.place.address);
    let (mirror, admin, listen) = (address(5005), address(5006), address(5004));
    let arguments = [
        "node",
        "--data-dir",
        &data,
        "--mirror",
        &mirror,
        "--admin",
        &admin,
        "--listen",
        &listen,
    ];
    shoal(&arguments).fails_with(1, &[&data]);
    node.pull(&image).expect("the first node is not disturbed");
}

#[test]
fn commands_that_need_a_node_say_so_when_there_is_none() {
    let nobody = format!("{}:5006", Place::loopback().address);
    shoal(&["stats", "--admin", &nobody]).fails_with(1, &[&nobody, "shoal node"]);
    let name = format!("{UPSTREAM}/{REPOSITORY}:{TAG}");
    shoal(&["pull", &name, "--admin", &nobody]).fails_with(1, &[&nobody, "shoal node"]);
}

#[test]
fn shoal_pull_fetches_an_image_into_the_node() {
    let _machine = machine();
    let image = Image::generate(61, &[20 * MIB, MIB]);
    let mut origin = FakeOrigin::serving(&image, Faults::default());
    let swarm = Swarm::on_loopback(1, &origin.url());
    let node = &swarm.nodes[0];
    let name = format!("{UPSTREAM}/{REPOSITORY}:{TAG}");
    let outcome = shoal(&["pull", &name, "--admin", &node.admin()]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    origin.stop();
    node.pull(&image).expect("the node has all of it");

    let absent = format!("{UPSTREAM}/{REPOSITORY}:absent");
    let outcome = shoal(&["pull", &absent, "--admin", &node.admin()]);
    outcome.fails_with(1, &["absent"]);
}

#[test]
fn shoal_stats_tells_a_person_and_a_program_the_same() {
    let _machine = machine();
    let image = Image::generate(62, &[20 * MIB]);
    let origin = FakeOrigin::serving(&image, Faults::default());
    let swarm = Swarm::on_loopback(3, &origin.url());
    swarm.slowest_pull(&image);
    wait_until(
        "every node's bytes are counted",
        Duration::from_secs(5),
        || {
            let stats = swarm.stats(2);
            stats["members_total"] == 3 && stats["members_answered"] == 3
        },
    );
    let copies = swarm.stats(0)["origin_copies"]
        .as_f64()
        .expect("it is a number");
    assert!((0.99..1.02).contains(&copies), "{copies}");
    let outcome = shoal(&["stats", "--admin", &swarm.nodes[1].admin()]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(
        outcome.output.contains(&swarm.nodes[0].id()[..8]),
        "it lists the members: {outcome:?}"
    );
}
