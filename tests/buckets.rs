//! Buckets as origins: no registry runs, and the server of the bucket checks every signature.

use std::fs;

use tempfile::TempDir;

use crate::storage::{copy_as_layout, registry_with};
use crate::support::bucket::{BUCKET, S3};
use crate::support::daemon::{Node, Options};
use crate::support::image::Image;
use crate::support::meter::Meter;
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::swarm::{Swarm, slowest};
use crate::support::{MIB, REPOSITORY, TAG, UPSTREAM, client, machine, push, raw};

const NODES: usize = 8;

/// What a registry's keys begin with.
const PREFIX: &str = "registry";

/// The URL of the bucket, reached at `endpoint`.
fn url(endpoint: &str, bucket: &str, server: &S3, right_keys: bool) -> String {
    let keys = server.write_keys(right_keys);
    format!(
        "s3://{bucket}/{PREFIX}?region=us-east-1&endpoint={endpoint}&keys={}",
        keys.display()
    )
}

fn node_of(origin: String) -> Node {
    let options = Options {
        origin,
        ..Options::default()
    };
    Node::start(&Place::loopback(), options)
}

/// What a client is told that asks for the image's manifest, or one of its blobs.
fn told(node: &Node, what: &str) -> (u16, String) {
    let target = format!("/v2/{UPSTREAM}/{REPOSITORY}/{what}");
    let answer = raw::get(&node.mirror(), &target, &["Connection: close"]);
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    (answer.status, text)
}

#[test]
fn eight_clients_pull_a_bucket_that_a_registry_wrote_and_read_it_once() {
    let _machine = machine();
    let image = Image::generate(710, &[64 * MIB, 24 * MIB, 8 * MIB, 1000]);
    let server = S3::checking_signatures();
    {
        let moto = S3::moto();
        let storage = moto.storage_section(PREFIX);
        let registry = Registry::with_storage(storage, &Place::loopback());
        push::image(&registry, REPOSITORY, TAG, &image);
        moto.copy_to(&server);
    }
    let meter = Meter::before(&server.address());
    let swarm = Swarm::on_loopback(NODES, &url(&meter.url(), BUCKET, &server, true));
    let took = slowest(client::all_at_once(&swarm.nodes, |node| {
        let name = format!("{}/{UPSTREAM}/{REPOSITORY}:{TAG}", node.mirror());
        client::skopeo(&node.place, &name, &image)
    }));
    let copies = meter.bytes() as f64 / image.bytes() as f64;
    println!("8 skopeo clients: {took:?}, {copies:.4} copies left the bucket");
    assert!(
        (1.0..=1.02).contains(&copies),
        "{copies:.4} copies left the bucket"
    );
}

#[test]
fn an_image_layout_in_a_bucket_is_pulled() {
    let _machine = machine();
    let image = Image::generate(711, &[12 * MIB, 1000]);
    let directory = TempDir::new().expect("temporary directories can be made");
    copy_as_layout(&registry_with(&image), directory.path());
    let server = S3::checking_signatures();
    server.put(directory.path(), PREFIX);
    let node = node_of(url(&server.url(), BUCKET, &server, true));
    node.pull(&image).expect("the image is in the bucket");
}

#[test]
fn whatever_is_wrong_with_a_bucket_the_client_is_told() {
    let _machine = machine();
    let image = Image::generate(712, &[9 * MIB, 6 * MIB]);
    let server = S3::checking_signatures();
    server.put(&image.registry_storage(), PREFIX);
    let manifest = format!("manifests/{TAG}");

    let node = node_of(url(&server.url(), "absent", &server, true));
    let (status, said) = told(&node, &manifest);
    assert!(
        status == 503 && said.contains("there is no bucket absent"),
        "{status} {said}"
    );

    let node = node_of(url(&server.url(), BUCKET, &server, false));
    let (status, said) = told(&node, &manifest);
    assert!(
        status == 403 && said.contains("check the keys"),
        "{status} {said}"
    );
    // Keys that are put right are used without a restart.
    server.write_keys(true);

    let [lost, cut] = &image.blobs[1..] else {
        unreachable!("there are two layers and a configuration");
    };
    let file = |digest: &str| {
        let hex = digest.strip_prefix("sha256:").expect("it is one");
        let blobs = format!("{PREFIX}/docker/registry/v2/blobs/sha256");
        server.object(&format!("{blobs}/{}/{hex}/data", &hex[..2]))
    };
    fs::remove_file(file(&lost.digest)).expect("the object is a file");
    let object = fs::File::options().write(true).open(file(&cut.digest));
    let object = object.expect("the object is a file");
    object.set_len(5 * MIB).expect("it can be cut");
    assert_eq!(told(&node, &manifest).0, 200);
    let (status, said) = told(&node, &format!("blobs/{}", lost.digest));
    assert!(
        status == 404 && said.contains(&lost.digest),
        "{status} {said}"
    );
    let (status, said) = told(&node, &format!("blobs/{}", cut.digest));
    let sizes = format!("{} bytes; its manifest says {}", 5 * MIB, cut.size());
    assert!(status == 503 && said.contains(&sizes), "{status} {said}");
}
