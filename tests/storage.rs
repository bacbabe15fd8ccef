//! Origins that are no registries: nodes pull from a registry's storage and from an OCI image layout,
//! and no registry runs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::clock::wait_until;
use crate::support::daemon::{Node, Options};
use crate::support::image::Image;
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::swarm::Swarm;
use crate::support::{MIB, REPOSITORY, SHOAL, TAG, UPSTREAM, client, machine, push};

const NODES: usize = 3;

/// How long a node may give the tag's former image: ages of tags are whole seconds.
const TAG_LIMIT: Duration = Duration::from_secs(10);

/// Allowed beside the bytes of a copy: what was on the way when a range ended early.
const SLACK: f64 = 0.02;

fn image(seed: u64) -> Image {
    Image::generate(seed, &[20 * MIB, 5 * MIB, 1000])
}

fn url(directory: &Path) -> String {
    format!("file://{}", directory.display())
}

/// A registry that `image` was pushed to.
pub(crate) fn registry_with(image: &Image) -> Registry {
    let registry = Registry::empty(&Place::loopback());
    push::image(&registry, REPOSITORY, TAG, image);
    registry
}

/// Has skopeo write what the registry holds as an OCI image layout.
pub(crate) fn copy_as_layout(registry: &Registry, layout: &Path) {
    let conf = TempDir::new().expect("temporary directories can be made");
    let conf = conf.path().join("registries.conf");
    fs::write(&conf, "").expect("it is writable");
    let output = Command::new("skopeo")
        .arg("--registries-conf")
        .arg(&conf)
        .args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--preserve-digests",
            "--src-tls-verify=false",
        ])
        .arg(format!(
            "docker://{}/{REPOSITORY}:{TAG}",
            registry.address()
        ))
        .arg(format!("oci:{}:{TAG}", layout.display()))
        .output()
        .expect("skopeo (a Debian package) starts");
    assert!(output.status.success(), "{output:?}");
}

/// What all nodes have read of the origin, in images.
fn copies(swarm: &Swarm, image: &Image) -> f64 {
    let bytes: u64 = swarm
        .nodes
        .iter()
        .map(|node| node.traffic().from_origin)
        .sum();
    bytes as f64 / image.bytes() as f64
}

#[test]
fn nodes_pull_from_the_directory_of_a_registry_that_does_not_run() {
    let _machine = machine();
    let image = image(700);
    let mut registry = registry_with(&image);
    registry.stop();
    let swarm = Swarm::on_loopback(NODES, &url(&registry.storage()));
    swarm.slowest_pull(&image);
    let copies = copies(&swarm, &image);
    assert!(copies <= 1.0 + SLACK, "{copies:.3} copies were read");
    println!("{copies:.3} copies were read");

    let node = &swarm.nodes[0];
    let status = |path: &str| {
        let url = format!("http://{}/v2/{UPSTREAM}{path}", node.mirror());
        let answer = client::request(&node.place, &url).finish();
        answer.expect("the mirror answers").status
    };
    assert_eq!(status(&format!("/{REPOSITORY}/tags/list")), 200);
    assert_eq!(status(&format!("/{REPOSITORY}/manifests/other")), 404);
    assert_eq!(status(&format!("/team/none/manifests/{TAG}")), 404);
}

#[test]
fn nodes_pull_from_an_image_layout_and_see_its_index_change() {
    let _machine = machine();
    let directory = TempDir::new().expect("temporary directories can be made");
    let layout = directory.path().join("layout");
    let (first, second) = (image(701), image(702));
    let mut registry = registry_with(&first);
    copy_as_layout(&registry, &layout);
    let options = Options {
        origin: url(&layout),
        tag_ttl: Some("1ms"),
        ..Options::default()
    };
    let node = Node::start(&Place::loopback(), options);
    node.pull(&first).expect("the image is in the layout");

    push::image(&registry, REPOSITORY, TAG, &second);
    copy_as_layout(&registry, &layout);
    registry.stop();
    wait_until("the tag names the other image", TAG_LIMIT, || {
        node.pull(&second).is_ok()
    });
}

#[test]
fn a_directory_that_is_to_judge_clients_is_refused() {
    let rule = format!("{UPSTREAM}=origin");
    let origin = format!("{UPSTREAM}=file:///srv/images");
    let data = TempDir::new().expect("temporary directories can be made");
    let output = Command::new(SHOAL)
        .args(["node", "--origin", &origin, "--access", &rule])
        .arg("--data-dir")
        .arg(data.path())
        .output()
        .expect("the built binary starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("it knows no users"),
        "{said}"
    );
}
