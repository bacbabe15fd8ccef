//! Images out of a swarm as files, and files into a swarm that has no origin.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::clock::wait_until;
use crate::support::daemon::{Node, Options};
use crate::support::image::Image;
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::swarm::Swarm;
use crate::support::{MIB, ORIGIN_PORT, REPOSITORY, SHOAL, TAG, UPSTREAM, client, machine, push};

/// The test image as an operator names it.
fn name() -> String {
    format!("{UPSTREAM}/{REPOSITORY}:{TAG}")
}

fn image(seed: u64) -> Image {
    Image::generate(seed, &[9 * MIB, 3 * MIB, 1000])
}

fn directory() -> TempDir {
    TempDir::new().expect("temporary directories can be made")
}

/// An origin where nothing listens.
fn nowhere() -> String {
    format!("http://{}:{ORIGIN_PORT}", Place::loopback().address)
}

/// `shoal export` or `shoal import` with the token of `node`.
fn shoal(node: &Node, arguments: &[&str]) -> Output {
    node.place
        .command(SHOAL)
        .args(arguments)
        .args(["--admin", &node.admin()])
        .arg("--data-dir")
        .arg(node.data_dir())
        .output()
        .expect("the built binary starts")
}

fn succeeds(node: &Node, arguments: &[&str]) -> String {
    let output = shoal(node, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the command says where it has to fail.
fn fails(node: &Node, arguments: &[&str]) -> String {
    let output = shoal(node, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} succeeds: {said}");
    said
}

/// Has skopeo copy an image from one place to another.
fn skopeo(from: &str, to: &str) {
    let conf = directory();
    let conf = conf.path().join("registries.conf");
    fs::write(&conf, "").expect("it is writable");
    let output = Command::new("skopeo")
        .arg("--registries-conf")
        .arg(&conf)
        .args(["--insecure-policy", "copy", "--quiet"])
        // docker's own archives have other manifests.
        .args((!to.starts_with("docker-archive:")).then_some("--preserve-digests"))
        .args([from, to])
        .output()
        .expect("skopeo (a Debian package) starts");
    assert!(output.status.success(), "{from} to {to}: {output:?}");
}

/// A node with this origin.
fn node(origin: String) -> Node {
    let options = Options {
        origin,
        ..Options::default()
    };
    Node::start(&Place::loopback(), options)
}

/// An archive of `image` that a node has exported.
fn exported(image: &Image, directory: &Path) -> PathBuf {
    let registry = Registry::serving(image, &Place::loopback());
    let node = node(registry.url());
    let archive = directory.join("exported.tar");
    succeeds(&node, &["export", &name(), "--output", &text(&archive)]);
    archive
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The status of the answer to a question for the test image's tag.
fn status(node: &Node) -> u16 {
    let answer = client::manifest(&node.place, &node.mirror_url(), TAG).finish();
    answer.expect("the mirror answers").status
}

#[test]
fn what_a_node_exports_from_its_peers_is_an_image_to_skopeo() {
    let _machine = machine();
    let image = image(800);
    let mut registry = Registry::serving(&image, &Place::loopback());
    let swarm = Swarm::on_loopback(3, &registry.url());
    swarm.nodes[0].pull(&image).expect("the registry has it");
    swarm.nodes[1].pull(&image).expect("the swarm has it");
    registry.stop();

    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let (layout, archive) = (text(&path("layout")), text(&path("image.tar")));
    let node = &swarm.nodes[2];
    for output in [&layout, &archive] {
        succeeds(node, &["export", &name(), "--output", output]);
    }
    // A second time into the same layout changes nothing.
    let index = fs::read(path("layout/index.json")).expect("it was written");
    succeeds(node, &["export", &name(), "--output", &layout]);
    assert_eq!(
        fs::read(path("layout/index.json")).expect("still there"),
        index
    );

    for (number, from) in [
        format!("oci:{layout}:{TAG}"),
        format!("oci-archive:{archive}:{TAG}"),
    ]
    .iter()
    .enumerate()
    {
        let copy = path(&number.to_string());
        skopeo(from, &format!("dir:{}", copy.display()));
        client::holds_blobs(&copy, &image).expect("skopeo wrote all blobs");
    }
    let piped = shoal(node, &["export", &name(), "--output", "-"]);
    assert_eq!(piped.stdout, fs::read(&archive).expect("it was written"));
}

#[test]
fn an_export_that_fails_leaves_nothing_that_looks_whole() {
    let _machine = machine();
    let image = image(801);
    let registry = Registry::empty(&Place::loopback());
    push::image(&registry, REPOSITORY, TAG, &image);
    let layer = &image.blobs[1].digest;
    let hex = layer.trim_start_matches("sha256:");
    let stored = registry
        .storage()
        .join("docker/registry/v2/blobs/sha256")
        .join(&hex[..2])
        .join(hex);
    let hidden = directory();
    let aside = hidden.path().join("aside");
    fs::rename(&stored, &aside).expect("the storage is the test's own");
    let node = node(registry.url());
    let outputs = directory();
    let archive = outputs.path().join("image.tar");
    let layout = outputs.path().join("layout");
    for output in [&archive, &layout] {
        let said = fails(&node, &["export", &name(), "--output", &text(output)]);
        assert!(said.contains(layer), "{said}");
    }
    fs::rename(&aside, &stored).expect("the storage is the test's own");
    let left: Vec<_> = fs::read_dir(outputs.path())
        .expect("it is there")
        .map(|entry| entry.expect("it can be read").file_name())
        .collect();
    assert_eq!(left, ["layout"], "no archive is left");
    assert!(!layout.join("index.json").exists());
}

#[test]
fn a_swarm_without_any_origin_pulls_by_its_tag_what_one_node_imported() {
    let _machine = machine();
    let image = image(802);
    let directory = directory();
    let archive = exported(&image, directory.path());
    let mut swarm = Swarm::on_loopback(3, &nowhere());
    for node in &swarm.nodes {
        assert_ne!(status(node), 200, "nobody has it");
    }
    let said = succeeds(&swarm.nodes[0], &["import", &text(&archive)]);
    assert!(
        said.contains(&name()) && said.contains("2 other nodes"),
        "{said}"
    );
    for node in swarm.nodes.iter().rev() {
        let pulled = format!("{}/{}", node.mirror(), name());
        client::skopeo(&node.place, &pulled, &image).expect("the swarm has it");
    }
    // Twice is harmless.
    succeeds(&swarm.nodes[1], &["import", &text(&archive)]);

    // It outlives a restart, and the node that took it in.
    swarm.nodes[2].stop();
    swarm.nodes[2].restart();
    swarm.wait_gathered();
    let late = Place::loopback();
    swarm.join(&late);
    swarm.nodes[0].kill();
    for node in &swarm.nodes[1..] {
        node.pull(&image).expect("the others have it");
    }
}

#[test]
fn an_archive_of_skopeo_is_imported_under_the_name_that_is_given() {
    let _machine = machine();
    let image = image(803);
    let directory = directory();
    let exported = exported(&image, directory.path());
    let nameless = directory.path().join("nameless.tar");
    skopeo(
        &format!("oci-archive:{}:{TAG}", exported.display()),
        &format!("oci-archive:{}:{TAG}", nameless.display()),
    );
    let node = node(nowhere());
    let said = fails(&node, &["import", &text(&nameless)]);
    assert!(said.contains("--name UPSTREAM/REPOSITORY:TAG"), "{said}");
    succeeds(&node, &["import", &text(&nameless), "--name", &name()]);
    node.pull(&image).expect("it is here");
}

#[test]
fn files_that_are_damaged_cut_short_or_of_another_kind_are_refused() {
    let _machine = machine();
    let image = image(804);
    let directory = directory();
    let archive = exported(&image, directory.path());
    let whole = fs::read(&archive).expect("it was written");
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).expect("it is writable");
        text(&path)
    };
    let mut tampered = whole.clone();
    tampered[4 * MIB as usize] ^= 1;
    let old = directory.path().join("old.tar");
    skopeo(
        &format!("oci-archive:{}:{TAG}", archive.display()),
        &format!("docker-archive:{}:{}", old.display(), name()),
    );
    let node = node(nowhere());
    for (file, part) in [
        (write("tampered.tar", &tampered), "tampered with"),
        (write("cut.tar", &whole[..whole.len() / 2]), "cut short"),
        (write("text.tar", b"no archive at all"), "no tar archive"),
        (
            write("packed.tar", b"\x1f\x8b\x08\x00\x00\x00\x00"),
            "gunzip",
        ),
        (text(&old), "skopeo copy docker-archive:"),
        (text(&directory.path().join("none.tar")), "No such file"),
    ] {
        let said = fails(&node, &["import", &file]);
        assert!(said.contains(part), "{file}: {said}");
        assert_ne!(status(&node), 200, "{file} is served");
    }
    let left = fs::read_dir(node.data_dir().join("staged")).expect("it is there");
    assert_eq!(left.count(), 0, "what was not taken is deleted");

    let said = fails(&node, &["import", &text(&archive), "--data-dir", "/none"]);
    assert!(said.contains("--data-dir"), "{said}");
    // The file itself was right.
    succeeds(&node, &["import", &text(&archive)]);
    node.pull(&image).expect("it is here");
}

#[test]
fn an_image_larger_than_the_quota_is_refused() {
    let _machine = machine();
    let image = image(805);
    let directory = directory();
    let archive = exported(&image, directory.path());
    let options = Options {
        origin: nowhere(),
        arguments: vec!["--quota".into(), "10MB".into()],
        ..Options::default()
    };
    let node = Node::start(&Place::loopback(), options);
    let said = fails(&node, &["import", &text(&archive)]);
    assert!(said.contains("raise --quota"), "{said}");
    assert_ne!(status(&node), 200);
}

#[test]
fn the_word_of_an_origin_that_answers_counts_and_not_what_was_imported() {
    let _machine = machine();
    let (old, new) = (image(806), image(807));
    let directory = directory();
    let archive = exported(&old, directory.path());
    let mut registry = Registry::empty(&Place::loopback());
    push::image(&registry, REPOSITORY, TAG, &new);
    let options = Options {
        origin: registry.url(),
        tag_ttl: Some("1s"),
        ..Options::default()
    };
    let node = Node::start(&Place::loopback(), options);
    succeeds(&node, &["import", &text(&archive)]);
    node.pull(&new).expect("the origin has it");

    registry.stop();
    succeeds(&node, &["import", &text(&archive)]);
    wait_until(
        "what the origin said is no longer fresh",
        Duration::from_secs(10),
        || node.pull(&old).is_ok(),
    );
}

#[test]
fn without_a_daemon_there_is_nothing_to_export_from() {
    let mut node = node(nowhere());
    node.stop();
    let said = fails(&node, &["export", "redis", "--output", "image.tar"]);
    assert!(said.contains("start one with `shoal node`"), "{said}");
}
