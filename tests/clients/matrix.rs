//! Every client in every situation.

use super::programs::Client;
use super::site::Site;
use super::system::System;
use super::table::{self, Row};
use crate::support::access::AccessLog;
use crate::support::machine;

/// What a client is put into, in the order of the table's columns.
pub(super) const SITUATIONS: [&str; 5] = [
    "cold",
    "warm",
    "the registry down",
    "the daemon down",
    "the daemon killed midway",
];

/// Allowed beside the bytes of a copy: what was on the way when a range ended early.
const SLACK: f64 = 0.02;

/// Takes a client through all situations; what comes of it has to be what the table says.
pub(super) fn take(client: &Client, system: System) {
    let _machine = machine();
    let mut site = Site::new(system, client.upstream());
    let version = site.bare_host().run(client.version);
    let results = [
        cold(&site, client),
        warm(&site, client),
        without_registry(&mut site, client),
        without_daemon(&mut site, client),
        killed(&mut site, client),
    ];
    table::check(Row {
        client: client.name,
        system: system.name(),
        version: number(&version.expect("the client is installed")),
        way: client.way,
        results,
    });
}

/// The number in what a program says of its version.
fn number(said: &str) -> String {
    let mut words = said
        .split_whitespace()
        .map(|word| word.trim_start_matches('v'));
    let is_number = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
    let word = words
        .find(is_number)
        .expect("a version begins with a digit");
    word.trim_end_matches(',').to_owned()
}

fn cold(site: &Site, client: &Client) -> &'static str {
    let host = site.host(client);
    site.pull(client, &host)
        .expect("it comes through the mirror");
    let copies = site.copies_through_node();
    assert!(
        (1.0..1.0 + SLACK).contains(&copies),
        "{copies:.3} copies were read"
    );
    assert_eq!(
        site.requests_past_node(),
        0,
        "all of it goes through the mirror"
    );
    "yes"
}

/// On another machine, from the same node.
fn warm(site: &Site, client: &Client) -> &'static str {
    let before = site.copies_through_node();
    let host = site.host(client);
    site.pull(client, &host)
        .expect("it comes from the node's store");
    let read = site.copies_through_node() - before;
    assert!(read.abs() < 1e-9, "{read:.3} copies were read again");
    assert_eq!(
        site.requests_past_node(),
        0,
        "all of it goes through the mirror"
    );
    "yes"
}

fn without_registry(site: &mut Site, client: &Client) -> &'static str {
    site.origin.stop();
    site.registry.stop();
    let host = site.host(client);
    site.pull(client, &host)
        .expect("it comes from the node's store");
    site.origin.start();
    site.registry.start();
    "yes"
}

fn without_daemon(site: &mut Site, client: &Client) -> &'static str {
    site.node.kill();
    let host = site.host(client);
    if !client.falls_back {
        site.pull(client, &host)
            .expect_err("the image's name is the mirror's");
        return "no: the image's name is the mirror's";
    }
    site.pull(client, &host)
        .expect("it comes from the registry");
    let copies = site.copies_past_node();
    assert!(
        (copies - 1.0).abs() < 1e-9,
        "{copies:.3} copies came from the registry"
    );
    "from the registry"
}

fn killed(site: &mut Site, client: &Client) -> &'static str {
    site.renew_node(client.upstream());
    let digest = site.layer().digest.clone();
    let before = site.registry.bytes_of(&digest);
    let host = site.host(client);
    let result = if site.pull_and_kill(client, &host).is_ok() {
        if site.registry.bytes_of(&digest) - before < site.layer().size() {
            "the rest from the registry"
        } else {
            "the layer anew from the registry"
        }
    } else if client.pull(&host).is_ok() {
        "fails; pulled again, from the registry"
    } else {
        site.node.restart();
        client.pull(&host).expect("the daemon runs again");
        "fails; pulled again when the daemon runs"
    };
    site.compare(client, &host);
    result
}
