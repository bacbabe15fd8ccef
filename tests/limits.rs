//! What a node costs its host.

use crate::support::access::AccessLog;
use crate::support::fake_origin::{FakeOrigin, Faults};
use crate::support::image::{Blob, Image};
use crate::support::swarm::Swarm;
use crate::support::{MIB, client, machine};

/// The most memory that a node may have resident, in bytes.
const RESIDENT_BYTES_MAX: u64 = 200_000_000;

#[test]
fn memory_stays_under_200_mb_while_eight_nodes_exchange_a_4_gb_image() {
    let image = Image::generate(50, &[2048 * MIB, 1024 * MIB, 768 * MIB, 256 * MIB]);
    exchange(8, &image);
}

#[test]
#[ignore = "takes 60 GB of disk: tests/run --long"]
fn memory_stays_under_200_mb_while_two_nodes_exchange_a_30_gb_image() {
    let image = Image::generate(51, &[7168 * MIB; 4]);
    assert!(image.bytes() > 30_000_000_000);
    exchange(2, &image);
}

/// So many nodes pull the image at once. The origin makes its bytes as they are asked for.
fn exchange(nodes: usize, image: &Image) {
    let _machine = machine();
    let origin = FakeOrigin::serving(image, Faults::default());
    let swarm = Swarm::on_loopback(nodes, &origin.url());
    // The clients count the bytes and discard them: hashing all of it again is not what is tested.
    let results = client::all_at_once(&swarm.nodes, |node| {
        let read = |blob: &Blob| {
            let request = client::blob(&node.place, &node.mirror_url(), &blob.digest);
            let answer = request.option(&["-o", "/dev/null"]).finish();
            answer.map(|answer| assert_eq!(answer.status, 200, "{}", blob.digest))
        };
        image.blobs.iter().try_for_each(read)
    });
    for (node, result) in swarm.nodes.iter().zip(results) {
        result.expect("every client gets the image");
        let stats = node.stats();
        let blobs = stats["blobs"].as_array().expect("blobs is a list");
        let complete = blobs.iter().filter(|blob| blob["complete"] == true);
        let bytes: u64 = complete.filter_map(|blob| blob["size"].as_u64()).sum();
        assert!(
            bytes >= image.bytes(),
            "the node has checked all {} bytes: {bytes}",
            image.bytes()
        );
    }
    let peaks: Vec<_> = swarm
        .nodes
        .iter()
        .map(|node| node.peak_resident_bytes() / 1_000_000)
        .collect();
    println!(
        "peak resident MB: {peaks:?}; {:.3} copies",
        origin.copies(image)
    );
    let highest = peaks.iter().max().expect("there are nodes");
    assert!(
        highest * 1_000_000 <= RESIDENT_BYTES_MAX,
        "peak resident MB: {peaks:?}"
    );
    assert!(
        origin.copies(image) <= 1.02,
        "{:.3} copies",
        origin.copies(image)
    );
}
