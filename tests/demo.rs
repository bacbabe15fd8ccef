//! `shoal demo`: the main job in one command.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::clock::wait_until;
use crate::support::{SHOAL, machine};

/// Marks the environment of a demo and of all that it starts.
const MARK: &str = "E2E_MARK_OF_DEMO";

/// A run of the demo with a temporary directory of its own.
struct Demo {
    directory: TempDir,
    mark: String,
}

impl Demo {
    fn new() -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        let mark = format!("{MARK}={}", directory.path().display());
        Self { directory, mark }
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let (name, value) = self.mark.split_once('=').expect("it was put together so");
        let mut command = Command::new(SHOAL);
        command
            .arg("demo")
            .args(arguments)
            .env("TMPDIR", self.directory.path())
            .env(name, value);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().expect("the built binary starts")
    }

    /// The processes of this demo that still run.
    fn processes(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
        let is_ours = |process: &PathBuf| {
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == self.mark.as_bytes())
        };
        entries.map(|entry| entry.path()).filter(is_ours).collect()
    }

    fn left_nothing_behind(&self) {
        assert_eq!(
            self.processes(),
            Vec::<PathBuf>::new(),
            "processes were left behind"
        );
        let files: Vec<_> = list(self.directory.path());
        assert!(files.is_empty(), "files were left behind: {files:?}");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        for process in self.processes() {
            let _ = Command::new("kill")
                .arg("-KILL")
                .args(process.file_name())
                .status();
        }
    }
}

fn list(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path)
        .expect("it can be listed")
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// How often the demo may run until its time is within the bound.
const RUNS_MAX: usize = 6;

#[test]
fn the_demo_with_its_defaults_keeps_its_promise_and_leaves_nothing_behind() {
    let _machine = machine();
    let demo = Demo::new();
    let run = || {
        let process = demo.start(&["--json"]);
        let output = process.wait_with_output().expect("its output can be read");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", output.status);
        let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
        println!("{report}");
        report
    };
    let is_slow = |report: &Value| {
        let seconds = |name: &str| report[name].as_f64().expect("it is a number");
        seconds("shoal_seconds") > 1.25 * seconds("lower_bound_seconds") + 1.0
    };
    let mut report = run();
    for _ in 1..RUNS_MAX {
        if !is_slow(&report) {
            break;
        }
        // Other work on the machine makes a run longer, never shorter.
        report = run();
    }
    let number = |name: &str| {
        report[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name}: {report}"))
    };
    assert_eq!(report["verified"], true);
    assert_eq!(report["nodes"], 8);
    assert!(number("image_bytes") >= 250e6, "{report}");
    assert!(number("origin_copies") <= 1.02, "{report}");
    assert!(
        number("origin_copies") >= 0.99,
        "the origin was read: {report}"
    );
    let copies = number("origin_bytes") / number("image_bytes");
    assert!(
        (copies - number("origin_copies")).abs() < 0.03,
        "the two agree: {report}"
    );
    let bound = number("lower_bound_seconds");
    assert!((4.0..7.0).contains(&bound), "256 MiB at 50 MB/s: {report}");
    assert!(!is_slow(&report), "{report}");
    assert!(
        number("shoal_seconds") >= bound * 0.9,
        "faster than the origin can be: {report}"
    );
    assert!(
        number("direct_seconds") >= 6.0 * bound,
        "eight direct pulls share it: {report}"
    );
    demo.left_nothing_behind();
}

#[test]
fn the_demo_shows_how_time_and_origin_bytes_grow() {
    let _machine = machine();
    let demo = Demo::new();
    let process = demo.start(&["--scale", "--image-size", "64MiB", "--json"]);
    let output = process.wait_with_output().expect("its output can be read");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    let reports: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let reports = reports
        .as_array()
        .expect("one report for each count of nodes");
    let nodes: Vec<_> = reports
        .iter()
        .map(|report| report["nodes"].as_u64())
        .collect();
    assert_eq!(nodes, [1, 2, 4, 8].map(Some));
    for report in reports {
        assert_eq!(report["verified"], true);
        let copies = report["origin_copies"].as_f64();
        assert!(copies.is_some_and(|copies| copies <= 1.02), "{report}");
    }
    demo.left_nothing_behind();
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_behind_either() {
    let _machine = machine();
    let demo = Demo::new();
    // At this rate it would go on for minutes.
    let process = demo.start(&[
        "--nodes",
        "3",
        "--image-size",
        "64MiB",
        "--origin-rate",
        "4MB/s",
    ]);
    wait_until("the demo is under way", Duration::from_mins(1), || {
        !list(demo.directory.path()).is_empty() || demo.processes().len() > 1
    });
    std::thread::sleep(Duration::from_secs(1));
    let pid = process.id().to_string();
    let signal = Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .expect("kill runs");
    assert!(signal.success(), "it was still running");
    let output = process.wait_with_output().expect("its output can be read");
    let interrupted = !output.status.success() || output.status.signal().is_some();
    assert!(interrupted, "an interrupted demo does not claim success");
    wait_until("its processes are gone", Duration::from_secs(10), || {
        demo.processes().is_empty()
    });
    demo.left_nothing_behind();
}
