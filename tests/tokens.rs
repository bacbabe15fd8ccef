//! What a cluster costs the origin's login and its limit of pulls.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::access::{Access, AccessLog};
use crate::support::daemon::Node;
use crate::support::fake_origin::{FakeOrigin, Faults, LOGIN};
use crate::support::image::Image;
use crate::support::raw;
use crate::support::swarm::Swarm;
use crate::support::{MIB, TAG, UPSTREAM, client, machine};

/// Images, each in a repository of its own.
fn images(count: u64) -> Vec<(String, Image)> {
    let image = |number| {
        let layers = [100_000 + number];
        (
            format!("team/app{number}"),
            Image::generate(600 + number, &layers),
        )
    };
    (0..count).map(image).collect()
}

/// docker's configuration with a login for the origin.
fn docker_config(origin: &FakeOrigin) -> (TempDir, String) {
    let directory = TempDir::new().expect("temporary directories can be made");
    let path = directory.path().join("config.json");
    let url = origin.url();
    let (_, host) = url.split_once("://").expect("it is a URL");
    let auths = format!(r#"{{"auths":{{"{host}":{{"auth":"{LOGIN}"}}}}}}"#);
    fs::write(&path, auths).expect("it is writable");
    let path = path.display().to_string();
    (directory, path)
}

/// Pulls as containerd does: the tag by HEAD, the manifest by its digest, then the blobs.
fn pull(node: &Node, repository: &str, image: &Image) -> Result<(), String> {
    let ask = |method: &str, rest: &str, bytes: u64| {
        let target = format!("/v2/{UPSTREAM}/{repository}/{rest}");
        let answer = raw::ask(&node.mirror(), method, &target, &[], b"");
        let got = answer.body.len() as u64;
        if answer.status == 200 && got == bytes {
            Ok(answer)
        } else {
            Err(format!(
                "{method} {target}: {got} bytes after {}",
                answer.head
            ))
        }
    };
    let named = ask("HEAD", &format!("manifests/{TAG}"), 0)?;
    if named.header("docker-content-digest") != Some(&image.manifest.digest) {
        return Err(format!("the tag is another image's: {}", named.head));
    }
    let manifest = &image.manifest;
    ask(
        "GET",
        &format!("manifests/{}", manifest.digest),
        manifest.size(),
    )?;
    for blob in &image.blobs {
        ask("GET", &format!("blobs/{}", blob.digest), blob.size())?;
    }
    Ok(())
}

fn count(log: &[Access], is: impl Fn(&&Access) -> bool) -> usize {
    log.iter().filter(is).count()
}

fn logins(origin: &FakeOrigin) -> usize {
    count(&origin.log(), |access| access.path == "/token")
}

#[test]
fn fifty_nodes_pull_ten_private_images_with_a_few_logins_and_read_each_manifest_once() {
    let _machine = machine();
    let images = images(10);
    let faults = Faults {
        token_lifetime: Some(Duration::from_secs(300)),
        ..Faults::default()
    };
    let origin = FakeOrigin::serving_all(images.clone(), faults);
    let (_directory, config) = docker_config(&origin);
    // So long that no answer about a tag ends before the test.
    let arguments = ["--docker-config", &config, "--tag-ttl", "10m"];
    let swarm = Swarm::with_arguments(50, &origin.url(), &arguments);
    let numbered: Vec<_> = swarm.nodes.iter().enumerate().collect();
    let pulls = client::all_at_once(&numbered, |(number, node)| {
        // Not all begin with the same.
        let mut order = images.iter().cycle().skip(number % 10).take(10);
        order.try_for_each(|(repository, image)| pull(node, repository, image))
    });
    let failed: Vec<_> = pulls.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:?}");

    let log = origin.log();
    let of = |method: &str| {
        count(&log, |access| {
            access.method == method && access.status == 200 && access.path.contains("/manifests/")
        })
    };
    let (heads, gets) = (of("HEAD"), of("GET"));
    let refused = count(&log, |access| access.status == 401);
    println!(
        "{} logins, {heads} tags asked by HEAD, {gets} manifests read, {refused} times refused first",
        logins(&origin)
    );
    assert!(logins(&origin) < images.len(), "{} logins", logins(&origin));
    assert_eq!(gets, images.len(), "each manifest is read once");
    assert!(heads <= 2 * images.len(), "{heads} tags asked");

    for node in &swarm.nodes {
        assert!(!node.log().contains("token-"), "a token in a log");
        let stats = node.stats().to_string();
        assert!(!stats.contains("token-"), "a token in the statistics");
    }
}

#[test]
fn a_pull_outlasts_its_tokens_which_are_renewed_once_for_all() {
    let _machine = machine();
    let image = Image::generate(620, &[24 * MIB, 8 * MIB]);
    let lifetime = Duration::from_secs(2);
    let faults = Faults {
        token_lifetime: Some(lifetime),
        bytes_per_second: Some(6_000_000),
        ..Faults::default()
    };
    let origin = FakeOrigin::serving(&image, faults);
    let (_directory, config) = docker_config(&origin);
    let swarm = Swarm::with_arguments(6, &origin.url(), &["--docker-config", &config]);
    let took = swarm.slowest_pull(&image);
    assert!(took > 2 * lifetime, "tokens ended meanwhile: {took:?}");
    let logins = logins(&origin);
    println!("{logins} logins in {took:?}");
    // A token is used for four fifths of its life.
    let lives = took.as_secs_f64() / (lifetime.as_secs_f64() * 0.8);
    assert!(logins >= 2, "they were renewed");
    assert!(
        logins as f64 <= 2.0 * (lives + 1.0),
        "{logins} logins in {took:?}"
    );
}

#[test]
fn an_origin_that_gives_a_hundred_manifests_serves_a_thousand_pulls() {
    const PULLS: usize = 1000;
    let _machine = machine();
    let images = images(10);
    let faults = Faults {
        manifests_max: Some(100),
        ..Faults::default()
    };
    let origin = FakeOrigin::serving_all(images.clone(), faults);
    let swarm = Swarm::with_arguments(5, &origin.url(), &[]);
    let pulls = client::all_at_once(&swarm.nodes, |node| {
        let mut order = images.iter().cycle().take(PULLS / 5);
        order.try_for_each(|(repository, image)| pull(node, repository, image))
    });
    let failed: Vec<_> = pulls.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:?}");

    let log = origin.log();
    let asked = count(&log, |access| access.path.contains("/manifests/"));
    println!("{asked} requests for manifests");
    assert!(asked <= 100, "{asked} requests for manifests");
    assert_eq!(origin.manifest_gets(), images.len());

    // What the origin said of it last, on any node.
    let stats = swarm.stats(0);
    let allowance = &stats["allowances"][0];
    assert_eq!(allowance["upstream"], UPSTREAM);
    assert_eq!(allowance["limit"], 100);
    let left = allowance["remaining"].as_u64().expect("it is a number");
    assert!(
        (100 - asked as u64..100).contains(&left),
        "{left} left after {asked}"
    );
    assert!(
        swarm
            .nodes
            .iter()
            .any(|node| node.metric("shoal_origin_pulls_remaining") > 0.0)
    );
}
