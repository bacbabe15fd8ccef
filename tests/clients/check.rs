//! `shoal setup --check`: what stands between a client and the mirror.

use super::host::Host;
use super::programs::{CTR, Client, DOCKER, PODMAN};
use super::site::Site;
use super::system::System;
use crate::support::{UPSTREAM, machine};

/// What `shoal setup --check` says, whether all was well or not.
fn check(host: &Host, arguments: &str) -> (bool, String) {
    match host.run(&format!("shoal setup {arguments}")) {
        Ok(said) => (true, said),
        Err(said) => (false, said),
    }
}

#[test]
fn a_check_with_an_image_has_the_client_pull_it_and_sees_the_mirror_asked() {
    let _machine = machine();
    for client in [&PODMAN, &CTR, &DOCKER] {
        let site = Site::new(System::Debian12, client.upstream());
        let host = site.host(client);
        let (good, said) = check_with_image(&host, client);
        assert!(good && said.contains("ok   the mirror answered"), "{said}");
        assert_eq!(site.requests_past_node(), 0, "{said}");
        site.compare(client, &host);
    }
}

fn check_with_image(host: &Host, client: &Client) -> (bool, String) {
    let (setup, image) = (client.setup, client.image);
    check(
        host,
        &format!("{setup} --registry {UPSTREAM} --check {image}"),
    )
}

#[test]
fn a_check_with_an_image_says_why_the_mirror_was_not_asked() {
    let _machine = machine();
    let site = Site::new(System::Debian12, DOCKER.upstream());

    let mut host = site.bare_host();
    DOCKER.start_daemon(&mut host);
    host.set_up("docker");
    let (good, said) = check_with_image(&host, &DOCKER);
    assert!(
        !good && said.contains("FAIL the mirror was not asked"),
        "{said}"
    );
    assert!(said.contains("systemctl reload docker"), "{said}");

    let host = site.bare_host();
    host.run("shoal setup podman")
        .expect("without this registry");
    let (good, said) = check(&host, &format!("podman --check {}", PODMAN.image));
    assert!(
        !good && said.contains("FAIL the mirror was not asked"),
        "{said}"
    );
    assert!(said.contains("--registry NAME"), "{said}");

    let (good, said) = check(&host, "podman --check registry.test/Not/a:name");
    assert!(!good && said.contains("is not a repository name"), "{said}");
    for (client, word) in [
        ("crio", "cannot start crictl"),
        ("buildkit", "build one FROM"),
    ] {
        host.set_up(client);
        let (good, said) = check(&host, &format!("{client} --check {}", PODMAN.image));
        assert!(!good && said.contains(word), "{said}");
    }
}

#[test]
fn a_check_says_what_is_missing_between_the_client_and_the_mirror() {
    let _machine = machine();
    let mut site = Site::new(System::Debian12, UPSTREAM);
    let host = site.bare_host();
    let (good, said) = check(&host, "podman --check");
    assert!(!good && said.contains("does not name the mirror"), "{said}");
    host.set_up("podman");
    let again = format!("podman --registry {UPSTREAM} --check");
    assert!(check(&host, &again).0);
    site.node.stop();
    let (good, said) = check(&host, &again);
    assert!(!good && said.contains("no mirror answers"), "{said}");
    host.run("shoal setup podman --undo").expect("it is undone");
    let file = host.path("etc/containers/registries.conf.d/50-shoal.conf");
    assert!(!file.exists());
}
