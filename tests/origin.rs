//! Origins that are limited, busy or broken, and blobs of awkward sizes.

use std::time::Duration;

use crate::support::access::AccessLog;
use crate::support::fake_origin::{FakeOrigin, Faults};
use crate::support::image::{Blob, Content, Image};
use crate::support::swarm::Swarm;
use crate::support::{CHUNK, MIB, TAG, client, machine};

const NODES: usize = 3;

/// Allowed beside the bytes of a copy: what was on the way when a range ended early.
const SLACK: f64 = 0.02;

fn image(seed: u64) -> Image {
    Image::generate(seed, &[40 * MIB, 12 * MIB, 3 * MIB])
}

#[test]
fn an_origin_without_range_support_is_read_once_in_one_stream() {
    let _machine = machine();
    let image = image(20);
    let origin = FakeOrigin::serving(
        &image,
        Faults {
            no_ranges: true,
            // An origin without a limit sends megabytes of each answer before it is broken off.
            bytes_per_second: Some(30_000_000),
            ..Faults::default()
        },
    );
    let swarm = Swarm::on_loopback(NODES, &origin.url());
    swarm.slowest_pull(&image);
    let copies = origin.copies(&image);
    // Parallel ranges are asked for before it is known that the origin ignores them; those
    // answers are broken off at their start.
    assert!(copies <= 1.25, "{copies:.3} copies were read");
}

#[test]
fn an_origin_that_answers_429_is_left_alone_for_as_long_as_it_asks() {
    let _machine = machine();
    let image = image(21);
    let busy = Some(Duration::from_millis(900));
    let origin = FakeOrigin::serving(
        &image,
        Faults {
            busy,
            ..Faults::default()
        },
    );
    let swarm = Swarm::on_loopback(NODES, &origin.url());
    let took = swarm.slowest_pull(&image);
    assert!(
        took >= Duration::from_secs(1),
        "Retry-After of 1 s was not honoured: {took:?}"
    );

    for blob in &image.blobs {
        let log = origin.log();
        let times = |status: Option<u16>| {
            let of_blob = log
                .iter()
                .filter(|access| access.path.ends_with(&blob.digest));
            let answered = of_blob.filter(move |access| status.is_none_or(|s| s == access.status));
            answered.filter_map(|access| access.at).collect::<Vec<_>>()
        };
        // Ranges that were asked for together with the first refused one cannot be blamed.
        let Some(first) = times(Some(429)).into_iter().min() else {
            continue;
        };
        let (together, over) = (Duration::from_millis(150), Duration::from_millis(950));
        let early = times(None)
            .into_iter()
            .filter(|at| *at > first + together && *at < first + over);
        assert_eq!(
            early.count(),
            0,
            "{} is asked for again too early",
            blob.digest
        );
    }
    assert!(
        origin.copies(&image) <= 1.0 + SLACK,
        "{:.3} copies",
        origin.copies(&image)
    );
}

#[test]
fn a_body_cut_in_half_is_resumed_and_not_read_again() {
    let _machine = machine();
    let image = image(22);
    let origin = FakeOrigin::serving(
        &image,
        Faults {
            cuts: 1,
            ..Faults::default()
        },
    );
    let swarm = Swarm::on_loopback(NODES, &origin.url());
    swarm.slowest_pull(&image);
    // Of the chunk in which the cut fell, at most one copy is lost.
    let bound = 1.0 + SLACK + CHUNK as f64 / image.bytes() as f64;
    let copies = origin.copies(&image);
    assert!(
        copies <= bound,
        "{copies:.3} copies where {bound:.3} are allowed"
    );
}

#[test]
fn presigned_urls_that_end_in_the_middle_of_a_pull_are_asked_for_anew() {
    let _machine = machine();
    let image = Image::generate(26, &[24 * MIB, 8 * MIB]);
    let origin = FakeOrigin::serving(
        &image,
        Faults {
            presigned: Some(Duration::from_millis(300)),
            bytes_per_second: Some(12_000_000),
            ..Faults::default()
        },
    );
    let swarm = Swarm::on_loopback(NODES, &origin.url());
    let took = swarm.slowest_pull(&image);
    let (copies, ended) = (origin.copies(&image), origin.ended());
    println!("{took:?}, {ended} bodies broke off, {copies:.3} copies");
    assert!(ended > 0, "no URL ended while it was read");
    // What had come is kept but for parts of chunks: to begin again would be another copy.
    assert!(copies < 2.0, "{copies:.3} copies were read");
}

#[test]
fn a_manifest_of_four_mebibytes_is_served() {
    let _machine = machine();
    let image = Image::padded(&[Blob::generated(23, 1000)], 4 * MIB as usize);
    let origin = FakeOrigin::serving(&image, Faults::default());
    let swarm = Swarm::on_loopback(NODES, &origin.url());
    swarm.slowest_pull(&image);
    for node in &swarm.nodes {
        let digest = &image.manifest.digest;
        let answer = client::manifest(&node.place, &node.mirror_url(), digest).finish();
        let answer = answer.expect("the mirror answers");
        assert_eq!((answer.status, answer.bytes), (200, 4 * MIB));
        assert_eq!(&answer.digest, digest);
    }
    assert_eq!(origin.manifest_gets(), 1);
}

#[test]
fn blobs_of_nothing_of_one_chunk_and_of_one_byte_more_are_served() {
    let _machine = machine();
    let sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK];
    let blob = |(seed, size): (u64, u64)| match size {
        0 => Blob::new(Content::Literal(Vec::new())),
        size => Blob::generated(seed, size),
    };
    let image = Image::of(&(240..).zip(sizes).map(blob).collect::<Vec<_>>());
    let mut origin = FakeOrigin::serving(&image, Faults::default());
    let mut swarm = Swarm::on_loopback(NODES, &origin.url());
    swarm.slowest_pull(&image);
    assert!(
        (origin.copies(&image) - 1.0).abs() < SLACK,
        "{:.3} copies",
        origin.copies(&image)
    );

    for blob in &image.blobs {
        let node = &swarm.nodes[0];
        let head = client::blob(&node.place, &node.mirror_url(), &blob.digest).option(&["-I"]);
        let head = String::from_utf8_lossy(&head.body().expect("HEAD works")).to_lowercase();
        let length = format!("content-length: {}\r\n", blob.size());
        assert!(
            head.contains(&length),
            "HEAD of {} bytes: {head}",
            blob.size()
        );
    }

    origin.stop();
    let late = swarm.join(&crate::support::place::Place::loopback());
    late.pull(&image)
        .expect("the swarm passes on blobs of every size");
}

#[test]
fn a_blob_that_the_origin_does_not_have_is_a_404_and_a_dead_origin_is_not() {
    let _machine = machine();
    let image = Image::generate(25, &[MIB]);
    let mut origin = FakeOrigin::serving(&image, Faults::default());
    let swarm = Swarm::on_loopback(2, &origin.url());
    let node = &swarm.nodes[0];
    let missing = Blob::generated(999, 10).digest;
    let ask = |name: &str| {
        let answer = client::manifest(&node.place, &node.mirror_url(), name).finish();
        answer.expect("the mirror answers").status
    };
    let blob = client::blob(&node.place, &node.mirror_url(), &missing).finish();
    assert_eq!(blob.expect("the mirror answers").status, 404);
    assert_eq!(
        (ask("no-such-tag"), ask(&missing), ask(TAG)),
        (404, 404, 200)
    );
    origin.stop();
    let status = ask("another-tag");
    assert!(
        (502..=504).contains(&status),
        "{status}: only an origin can say that it has nothing"
    );
}
