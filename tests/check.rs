//! `shoal origin check`: what it says of origins that are well and of those that are not.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::credentials::HTPASSWD;
use crate::storage::{copy_as_layout, registry_with};
use crate::support::bucket::{BUCKET, S3};
use crate::support::image::Image;
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::{ORIGIN_PORT, REPOSITORY, SHOAL, TAG, UPSTREAM, machine};

/// What the command has left.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    output: String,
    errors: String,
}

/// Runs `shoal origin check` as a user who has nothing.
fn check(arguments: &[&str]) -> Outcome {
    let home = TempDir::new().expect("temporary directories can be made");
    let mut command = Command::new(SHOAL);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SHOAL_")) {
        command.env_remove(name);
    }
    command.env_remove("DOCKER_CONFIG").env("HOME", home.path());
    let command = command.args(["origin", "check"]).args(arguments);
    let ended = command
        .stdin(Stdio::null())
        .output()
        .expect("the built binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome {
        code: ended.status.code(),
        output: text(&ended.stdout),
        errors: text(&ended.stderr),
    }
}

impl Outcome {
    /// Checks the exit code, and that there is a line with each of these groups of words.
    fn says(&self, code: i32, lines: &[&[&str]]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for words in lines {
            let said = |line: &str| words.iter().all(|word| line.contains(word));
            assert!(self.output.lines().any(said), "no line {words:?}: {self:?}");
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.output).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// What was tried at the first origin of a report, and whether it was well.
fn outcomes(report: &Value) -> Vec<(&str, bool)> {
    let checks = report["origins"][0]["checks"].as_array();
    let checks = checks.expect("there is an origin").iter();
    checks
        .filter_map(|check| Some((check["what"].as_str()?, check["ok"].as_bool()?)))
        .collect()
}

fn image() -> String {
    format!("{REPOSITORY}:{TAG}")
}

/// `--origin` of the tests' upstream.
fn origin(url: &str) -> String {
    format!("--origin={UPSTREAM}={url}")
}

#[test]
fn a_registry_behind_a_login_is_told_from_one_that_refuses_it() {
    let _machine = machine();
    let registry = Registry::behind_a_login(
        &Image::generate(730, &[100_000]),
        &Place::loopback(),
        HTPASSWD,
    );
    let directory = TempDir::new().expect("temporary directories can be made");
    let docker_config = |login: &str| {
        let file = directory.path().join("config.json");
        let auths = json!({ "auths": { registry.address(): { "auth": login } } });
        fs::write(&file, auths.to_string()).expect("it is writable");
        format!("--docker-config={}", file.display())
    };
    // AWS:ecr.token, and AWS:another.
    let (right, wrong) = ("QVdTOmVjci50b2tlbg==", "QVdTOmFub3RoZXI=");
    let origin = origin(&registry.url());

    let outcome = check(&[&origin, &docker_config(right), "--image", &image()]);
    outcome.says(
        0,
        &[
            &["ok", "reach", "user name and password"],
            &["ok", "credentials", "config.json"],
            &["ok", "login"],
            &["ok", "tag", "v1 names sha256:"],
            &["ok", "blob", "the registry itself", "ranges are answered"],
            &["cost: ", "6 requests", "1 GET of a manifest"],
        ],
    );
    assert!(!outcome.output.contains("failed"), "{outcome:?}");
    let told = check(&[
        &origin,
        &docker_config(right),
        "--image",
        &image(),
        "--json",
    ]);
    let report = told.json();
    assert_eq!(report["ok"], true, "{report}");
    let expected = ["reach", "credentials", "login", "tag", "blob"].map(|what| (what, true));
    assert_eq!(outcomes(&report), expected);
    assert_eq!(report["origins"][0]["manifest_gets"], 1, "{report}");
    for secret in ["AWS", "ecr.token", right] {
        let hidden = ![&outcome, &told].iter().any(|o| o.output.contains(secret));
        assert!(hidden, "{secret} in {outcome:?} or {told:?}");
    }

    let outcome = check(&[&origin, &docker_config(wrong)]);
    outcome.says(
        1,
        &[&["failed", "login", "401"], &["to do:", "docker login"]],
    );
    let outcome = check(&[&origin]);
    outcome.says(1, &[&["failed", "login", "none are known"]]);
    let outcome = check(&[
        &origin,
        &docker_config(right),
        "--image=team/image:none",
        "--json",
    ]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let report = outcome.json();
    assert_eq!(report["ok"], false);
    assert_eq!(outcomes(&report).last(), Some(&("tag", false)));
    let todo = &report["origins"][0]["checks"][3]["todo"];
    assert!(todo.as_str().is_some_and(|todo| todo.contains("name")));
}

#[test]
fn an_origin_where_nobody_listens_is_named_though_the_next_is_well() {
    let _machine = machine();
    let registry = Registry::serving(&Image::generate(731, &[1000]), &Place::loopback());
    let nobody = format!("http://{}:{ORIGIN_PORT}", Place::loopback().address);
    let (first, second) = (origin(&nobody), origin(&registry.url()));
    let outcome = check(&[&first, &second, UPSTREAM, "--image", &image()]);
    outcome.says(
        1,
        &[
            &[UPSTREAM, &nobody],
            &["failed", "reach", "Connection refused"],
            &["to do:", "start what should listen"],
            &[UPSTREAM, &registry.url()],
            &["ok", "blob"],
        ],
    );
    let outcome = check(&[&first, "--json"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert_eq!(outcomes(&outcome.json()), [("reach", false)]);
}

#[test]
fn directories_and_buckets_of_the_configuration_file_say_what_they_hold() {
    let _machine = machine();
    let directory = TempDir::new().expect("temporary directories can be made");
    let layout = directory.path().join("layout");
    copy_as_layout(
        &registry_with(&Image::generate(732, &[1000, 2000])),
        &layout,
    );
    let server = S3::checking_signatures();
    server.put(&layout, "layout");
    let bucket = |right_keys: bool| {
        let keys = server.write_keys(right_keys);
        let (endpoint, keys) = (server.url(), keys.display());
        format!("s3://{BUCKET}/layout?endpoint={endpoint}&keys={keys}")
    };
    let file = directory.path().join("shoal.toml");
    let config = format!("--config={}", file.display());
    let write = |bucket: &str| {
        let text = format!(
            "[origin]\n'a.test' = 'file://{}'\n'b.test' = '{bucket}'\n",
            layout.display()
        );
        fs::write(&file, text).expect("it is writable");
    };

    write(&bucket(true));
    let outcome = check(&[&config]);
    let holds = ["ok", "layout", "an OCI image layout"];
    outcome.says(0, &[&["a.test at file://"], &["b.test at s3://"], &holds]);
    for upstream in ["a.test", "b.test"] {
        let outcome = check(&[&config, upstream, "--image", &image()]);
        outcome.says(0, &[&holds, &["ok", "tag"], &["ok", "blob"]]);
    }
    // Which of the two is meant?
    let outcome = check(&[&config, "--image", &image()]);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.errors.contains("a.test, b.test"), "{outcome:?}");

    write(&bucket(false));
    let outcome = check(&[&config]);
    outcome.says(
        1,
        &[&holds, &["failed", "layout"], &["to do:", "credentials"]],
    );
}
