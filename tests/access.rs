//! Private images in the cache: whom the origin lets reads them through the mirror, and nobody else.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::access::AccessLog;
use crate::support::containerd::Containerd;
use crate::support::daemon::{Node, Options};
use crate::support::image::Image;
use crate::support::place::Place;
use crate::support::registry::{LOGIN_REALM, Registry};
use crate::support::swarm::ClusterKey;
use crate::support::{MIB, REPOSITORY, SHOAL, TAG, UPSTREAM, client, machine};

/// Amy and her password, as `htpasswd -B` writes them.
const HTPASSWD: &str = "amy:$2y$05$abcdefghijklmnopqrstuutXu9KzOt.1yBoZUeFWoT/914/JfszCO\n";

/// Amy's credentials, and what becomes of them in a header.
const AMY: &str = "amy:open-sesame";
const AMY_ENCODED: &str = "YW15Om9wZW4tc2VzYW1l";

/// What somebody else tries.
const WRONG: &str = "amy:close-sesame";
const WRONG_ENCODED: &str = "YW15OmNsb3NlLXNlc2FtZQ==";

/// A registry behind a login, and what is needed to start nodes in front of it.
struct Site {
    image: Image,
    registry: Registry,
    directory: TempDir,
}

impl Site {
    fn new(seed: u64) -> Self {
        let image = Image::generate(seed, &[12 * MIB, 5 * MIB]);
        let registry = Registry::behind_a_login(&image, &Place::loopback(), HTPASSWD);
        let directory = TempDir::new().expect("temporary directories can be made");
        let host = registry.url().replace("http://", "");
        let config = format!(r#"{{"auths": {{"{host}": {{"auth": "{AMY_ENCODED}"}}}}}}"#);
        let site = Self {
            image,
            registry,
            directory,
        };
        fs::write(site.file("login.json"), config).expect("it is writable");
        fs::write(site.file("no-login.json"), "{}").expect("it is writable");
        fs::write(site.file("registries.conf"), "").expect("it is writable");
        site
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// What a node is started with whose own login at the registry is in this file.
    fn options(&self, login: &str) -> Options {
        let access = format!("{UPSTREAM}=origin");
        let login = self.file(login);
        let arguments = [
            "--access",
            &access,
            "--docker-config",
            &login,
            "--log",
            "trace",
        ];
        Options {
            origin: self.registry.url(),
            arguments: arguments.map(ToOwned::to_owned).into(),
            ..Options::default()
        }
    }

    /// Pulls the image through the node with skopeo, with these credentials.
    fn skopeo(&self, node: &Node, credentials: Option<&str>) -> Result<(), String> {
        let target = TempDir::new().expect("temporary directories can be made");
        let image = target.path().join("image");
        let mut command = node.place.command("skopeo");
        command
            .arg("--registries-conf")
            .arg(self.file("registries.conf"));
        command.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
        ]);
        match credentials {
            Some(credentials) => command.args(["--src-creds", credentials]),
            None => command.arg("--src-no-creds"),
        };
        command.arg(format!(
            "docker://{}/{UPSTREAM}/{REPOSITORY}:{TAG}",
            node.mirror()
        ));
        command.arg(format!("dir:{}", image.display()));
        let output = command.output().expect("skopeo (a Debian package) starts");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        client::holds_blobs(&image, &self.image)
    }

    /// The status of the image's first layer by its digest, in this repository.
    fn layer(&self, node: &Node, repository: &str, credentials: Option<&str>) -> u16 {
        let digest = &self.image.blobs[1].digest;
        let path = format!("/v2/{repository}/blobs/{digest}");
        status(node, &path, credentials)
    }
}

fn status(node: &Node, path: &str, credentials: Option<&str>) -> u16 {
    let url = format!("http://{}{path}", node.mirror());
    let mut request = client::request(&node.place, &url);
    if let Some(credentials) = credentials {
        request = request.option(&["-u", credentials]);
    }
    request.finish().expect("the mirror answers").status
}

fn private() -> String {
    format!("{UPSTREAM}/{REPOSITORY}")
}

/// Whether none of these says what clients have shown.
fn holds_no_secret(texts: &[&str]) {
    for text in texts {
        for secret in [AMY_ENCODED, WRONG_ENCODED, "open-sesame", "close-sesame"] {
            assert!(!text.contains(secret), "{secret} is there");
        }
    }
}

/// Everything that a node has written to its data directory, as text.
fn written(directory: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(directory).expect("it is readable") {
        let path = entry.expect("it is readable").path();
        if path.is_dir() {
            all += &written(&path);
        } else {
            all += &String::from_utf8_lossy(&fs::read(&path).expect("it is readable"));
        }
    }
    all
}

#[test]
fn whom_the_origin_lets_pulls_and_what_is_cached_is_refused_to_all_others() {
    let _machine = machine();
    let site = Site::new(70);
    let node = Node::start(&Place::loopback(), site.options("login.json"));
    site.skopeo(&node, None)
        .expect_err("the registry wants a login");
    site.skopeo(&node, Some(WRONG))
        .expect_err("the password is wrong");
    site.skopeo(&node, Some(AMY))
        .expect("the registry lets her");
    site.skopeo(&node, None)
        .expect_err("it is in the cache now, and not for everybody");
    site.skopeo(&node, Some(WRONG))
        .expect_err("it is in the cache now, and not for everybody");

    let private = private();
    assert_eq!(site.layer(&node, &private, Some(AMY)), 200);
    assert_eq!(site.layer(&node, &private, Some(WRONG)), 401);
    assert_eq!(site.layer(&node, &private, None), 401);
    for path in [
        "manifests/v1",
        "tags/list",
        &format!("referrers/{}", site.image.manifest.digest),
    ] {
        let path = format!("/v2/{private}/{path}");
        assert_eq!(status(&node, &path, None), 401, "{path}");
        assert_eq!(status(&node, &path, Some(AMY)), 200, "{path}");
    }
    // Knowing a digest grants nothing, not even to her: neither elsewhere in the registry nor under
    // the name of a registry that anybody may run.
    let other = format!("{UPSTREAM}/amy/own");
    assert_eq!(site.layer(&node, &other, Some(AMY)), 404);
    assert_eq!(site.layer(&node, "evil.example/any/image", Some(AMY)), 403);
    assert_eq!(site.layer(&node, "library/redis", None), 403);

    let challenge = |base: &str| {
        let request = client::request(&node.place, &format!("{base}/v2/")).option(&["-i"]);
        let text = request.start().text();
        let line = text
            .lines()
            .find(|line| line.to_lowercase().starts_with("www-authenticate:"));
        line.expect("it says how to log in").to_lowercase()
    };
    let own = challenge(&site.registry.url());
    assert!(own.contains(LOGIN_REALM), "{own}");
    assert_eq!(challenge(&format!("http://{}", node.mirror())), own);

    let copies = site.registry.copies(&site.image);
    assert!(
        (0.99..1.02).contains(&copies),
        "{copies:.3} copies were read"
    );
    let metrics = node.get("/metrics").expect("a node that runs answers");
    let stats = node.stats().to_string();
    let log = node.log();
    assert!(
        log.contains("answered a client"),
        "the log is that of every request"
    );
    holds_no_secret(&[
        &log,
        &String::from_utf8_lossy(&metrics),
        &stats,
        &written(&node.data_dir()),
    ]);
}

#[test]
fn while_the_origin_is_away_those_it_let_are_served_and_the_others_are_told_why_not() {
    let _machine = machine();
    let mut site = Site::new(71);
    let node = Node::start(&Place::loopback(), site.options("login.json"));
    site.skopeo(&node, Some(AMY))
        .expect("the registry lets her");
    let private = private();
    assert_eq!(site.layer(&node, &private, None), 401);
    site.registry.stop();
    site.skopeo(&node, Some(AMY))
        .expect("the registry let her, not long ago");
    assert_eq!(site.layer(&node, &private, Some(AMY)), 200);
    assert_eq!(
        site.layer(&node, &private, None),
        401,
        "as the registry said"
    );

    let url = format!("http://{}/v2/{private}/manifests/{TAG}", node.mirror());
    let unknown = client::request(&node.place, &url)
        .option(&["-u", WRONG])
        .start();
    let told = unknown.text();
    assert!(
        told.contains("cannot ask whether you may read this"),
        "{told}"
    );
    assert_eq!(site.layer(&node, &private, Some(WRONG)), 503);
    holds_no_secret(&[&node.log()]);
}

#[test]
fn nodes_without_a_login_read_with_their_own_clients_and_the_registry_is_read_once() {
    let _machine = machine();
    let site = Site::new(72);
    let key = ClusterKey::new();
    let start = |join: Vec<String>| {
        let options = Options {
            cluster_key: Some(key.path()),
            join,
            ..site.options("no-login.json")
        };
        Node::start(&Place::loopback(), options)
    };
    let first = start(Vec::new());
    let second = start(vec![first.swarm_address()]);
    let nodes = [&first, &second];
    let pulls = client::all_at_once(&nodes, |node| site.skopeo(node, Some(AMY)));
    assert_eq!(pulls, [Ok(()), Ok(())]);
    let copies = site.registry.copies(&site.image);
    assert!(
        (0.99..1.02).contains(&copies),
        "{copies:.3} copies were read"
    );
    for node in nodes {
        site.skopeo(node, None)
            .expect_err("nobody is let without a login");
        assert_eq!(site.layer(node, &private(), Some(WRONG)), 401);
        holds_no_secret(&[&node.log(), &written(&node.data_dir())]);
    }
}

#[test]
fn containerd_answers_the_challenge_with_its_users_credentials_over_tls() {
    let _machine = machine();
    let site = Site::new(73);
    let mut options = site.options("no-login.json");
    options
        .arguments
        .extend(["--mirror-tls", "generated"].map(ToOwned::to_owned));
    let node = Node::start(&Place::loopback(), options);
    let root = TempDir::new().expect("temporary directories can be made");
    let mut setup = Command::new(SHOAL);
    setup
        .args(["setup", "containerd", "--root"])
        .arg(root.path());
    setup.args([
        "--mirror",
        &format!("https://{}", node.mirror()),
        "--mirror-ca",
    ]);
    setup.arg(node.data_dir().join("mirror-ca.pem"));
    assert!(setup.status().expect("shoal starts").success());

    let containerd = Containerd::start();
    let hosts = root.path().join("etc/containerd/certs.d");
    let name = format!("{UPSTREAM}/{REPOSITORY}:{TAG}");
    let pull = |credentials| containerd.pull(&hosts, credentials, &name);
    pull(None).expect_err("the registry wants a login, and its name leads nowhere else");
    pull(Some(WRONG)).expect_err("the password is wrong");
    assert_eq!(pull(Some(AMY)).as_ref(), Ok(&site.image.manifest.digest));
    holds_no_secret(&[&node.log()]);
}
