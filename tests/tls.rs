//! Clients that speak https to the mirror.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::clock::wait_until;
use crate::support::daemon::{Node, Options};
use crate::support::fake_origin::{FakeOrigin, Faults};
use crate::support::image::Image;
use crate::support::place::Place;
use crate::support::{MIB, REPOSITORY, SHOAL, TAG, UPSTREAM, client, machine};

/// Puts a directory in the place of this machine's /etc/containers, for the rest alone.
const WITH_CONTAINERS: &str = "mount --bind \"$1\" /etc/containers && shift && exec \"$@\"";

/// Within which a node sees that its certificate's files have changed, with a little for the machine.
const LOOK_LIMIT: Duration = Duration::from_secs(20);

fn start(origin: &FakeOrigin, arguments: &[&str]) -> Node {
    let options = Options {
        origin: origin.url(),
        arguments: arguments.iter().map(ToString::to_string).collect(),
        ..Options::default()
    };
    Node::start(&Place::loopback(), options)
}

fn authority(node: &Node) -> PathBuf {
    node.data_dir().join("mirror-ca.pem")
}

/// The status of `/v2/` at this URL, for a client that trusts this authority besides the system's.
fn status(node: &Node, url: &str, authority: &Path) -> Result<u16, String> {
    let authority = authority.display().to_string();
    let request = client::request(&node.place, url).option(&["--cacert", &authority]);
    request.finish().map(|answer| answer.status)
}

/// Copies `name` into a directory of its own, and compares what arrived.
fn copy(command: &mut Command, name: &str, image: &Image) -> Result<(), String> {
    let directory = TempDir::new().expect("temporary directories can be made");
    let target = directory.path().join("image");
    command.arg(format!("docker://{name}"));
    command.arg(format!("dir:{}", target.display()));
    let output = command.output().expect("skopeo (a Debian package) starts");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    client::holds_blobs(&target, image)
}

#[test]
fn curl_and_skopeo_pull_over_tls_once_they_know_the_nodes_authority() {
    let _machine = machine();
    let image = Image::generate(60, &[6 * MIB, MIB]);
    let origin = FakeOrigin::serving(&image, Faults::default());
    let node = start(
        &origin,
        &[
            "--mirror-tls",
            "generated",
            "--mirror-tls-name",
            "node-1.example",
        ],
    );
    let ca = authority(&node);
    let base = format!("https://{}/v2/", node.mirror());
    assert_eq!(status(&node, &base, &ca), Ok(200));
    assert!(
        client::get(&node.place, &base).is_err(),
        "curl trusts nobody"
    );
    let plain = format!("http://{}/v2/", node.mirror());
    assert_eq!(status(&node, &plain, &ca), Ok(400));
    let by_name = client::request(&node.place, "https://node-1.example:5005/v2/")
        .option(&["--cacert", &ca.display().to_string()])
        .option(&["--connect-to", &format!("::{}:", node.place.local())]);
    assert_eq!(by_name.finish().expect("the name is known").status, 200);

    let name = format!("{}/{UPSTREAM}/{REPOSITORY}:{TAG}", node.mirror());
    let skopeo = |certificates: &Path| {
        let mut command = node.place.command("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--src-cert-dir"]);
        command.arg(certificates);
        copy(&mut command, &name, &image)
    };
    let certificates = TempDir::new().expect("temporary directories can be made");
    let error = skopeo(certificates.path()).expect_err("skopeo trusts nobody");
    assert!(error.contains("certificate"), "{error}");
    fs::copy(&ca, certificates.path().join("ca.crt")).expect("it is readable");
    skopeo(certificates.path()).expect("skopeo pulls");
}

#[test]
fn skopeo_pulls_over_tls_by_what_setup_wrote_and_setup_sees_it() {
    let _machine = machine();
    let image = Image::generate(61, &[3 * MIB]);
    let origin = FakeOrigin::serving(&image, Faults::default());
    let node = start(&origin, &["--mirror-tls", "generated"]);
    let root = TempDir::new().expect("temporary directories can be made");
    let setup = |arguments: &[&str]| {
        let mut command = Command::new(SHOAL);
        command
            .args(["setup", "podman", "--registry", UPSTREAM])
            .args(arguments);
        command.arg("--root").arg(root.path());
        command.args(["--mirror", &format!("https://{}", node.mirror())]);
        command.arg("--mirror-ca").arg(authority(&node));
        command.output().expect("shoal starts")
    };
    assert!(setup(&[]).status.success());
    let checked = setup(&["--check"]);
    assert!(checked.status.success(), "{checked:?}");

    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", WITH_CONTAINERS, "sh"]);
    command.arg(root.path().join("etc/containers"));
    command.args(["skopeo", "--insecure-policy", "copy", "--quiet"]);
    let name = format!("{UPSTREAM}/{REPOSITORY}:{TAG}");
    copy(&mut command, &name, &image).expect("skopeo pulls through the mirror alone");

    assert!(setup(&["--undo"]).status.success());
    let left = root
        .path()
        .join("etc/containers/certs.d")
        .join(node.mirror());
    assert!(!left.exists(), "{} is left", left.display());
}

#[test]
fn a_certificate_of_ones_own_is_replaced_while_the_node_runs() {
    let _machine = machine();
    let image = Image::generate(62, &[MIB]);
    let origin = FakeOrigin::serving(&image, Faults::default());
    let directory = TempDir::new().expect("temporary directories can be made");
    let file = |name: &str| directory.path().join(name);
    let write = || {
        let names = ["node-1.example".to_owned()];
        let own = rcgen::generate_simple_self_signed(names).expect("it can be made");
        fs::write(file("key"), own.signing_key.serialize_pem()).expect("it is writable");
        fs::write(file("certificate"), own.cert.pem()).expect("it is writable");
    };
    write();
    let (certificate, key) = (file("certificate"), file("key"));
    let node = start(
        &origin,
        &[
            "--mirror-tls",
            &certificate.display().to_string(),
            "--mirror-tls-key",
            &key.display().to_string(),
        ],
    );
    let trusted = || {
        client::request(&node.place, "https://node-1.example:5005/v2/")
            .option(&["--cacert", &certificate.display().to_string()])
            .option(&["--connect-to", &format!("::{}:", node.place.local())])
            .finish()
            .is_ok()
    };
    assert!(trusted());
    write();
    assert!(!trusted(), "it still shows the first");
    wait_until("the node shows the new certificate", LOOK_LIMIT, trusted);
}
