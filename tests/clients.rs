//! Real clients, configured by `shoal setup` alone. The registry's name leads nowhere, so that
//! whatever they get came through the mirror.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::clock::wait_until;
use crate::support::daemon::{Node, Options};
use crate::support::image::Image;
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::{MIB, REPOSITORY, SHOAL, TAG, UPSTREAM, client, machine};

/// Puts its first argument in place of the registries.conf.d of this machine, for the rest alone.
const WITH_REGISTRIES: &str =
    "mount --bind \"$1\" /etc/containers/registries.conf.d && shift && exec \"$@\"";

/// How long containerd may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A host's files, as `shoal setup` finds and leaves them.
struct Host {
    root: TempDir,
    mirror: String,
    admin: String,
}

impl Host {
    fn new(node: &Node) -> Self {
        Self {
            root: TempDir::new().expect("temporary directories can be made"),
            mirror: node.mirror(),
            admin: node.admin(),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn setup(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(SHOAL);
        command.arg("setup").args(arguments);
        command.arg("--root").arg(self.root.path());
        command.args(["--mirror", &self.mirror, "--admin", &self.admin]);
        command.args(["--registry", UPSTREAM]);
        command.output().expect("shoal starts")
    }

    fn set_up(&self, client: &str) {
        let output = self.setup(&[client]);
        assert!(output.status.success(), "{output:?}");
        let checked = self.setup(&[client, "--check"]);
        assert!(checked.status.success(), "{checked:?}");
    }
}

fn name() -> String {
    format!("{UPSTREAM}/{REPOSITORY}:{TAG}")
}

/// What a client prints, where it succeeds.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} not started: {error}"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(said(&output.stdout))
    } else {
        Err(format!("{command:?}: {}", said(&output.stderr)))
    }
}

/// A program of containers/image, with the host's registries.conf.d.
fn containers(host: &Host, program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", WITH_REGISTRIES, "sh"]);
    command.arg(host.path("etc/containers/registries.conf.d"));
    command.arg(program);
    command
}

/// Pulls into a storage of its own, and says the image's ID.
fn pull_into_storage(host: &Host, program: &str, storage: &Path) -> Result<String, String> {
    let mut command = containers(host, program);
    command.arg("--root").arg(storage.join("root"));
    command.arg("--runroot").arg(storage.join("run"));
    command.args(["--storage-driver", "vfs", "pull", "--quiet", &name()]);
    run(&mut command)
}

/// A containerd with everything of its own.
struct Containerd {
    directory: TempDir,
    process: Child,
}

impl Containerd {
    fn start() -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        let of = |name: &str| directory.path().join(name).display().to_string();
        let configuration = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n\
             [grpc]\naddress = '{}'\n",
            of("root"),
            of("state"),
            of("socket"),
        );
        fs::write(of("config.toml"), configuration).expect("it is writable");
        let log = fs::File::create(of("log")).expect("it is writable");
        let process = Command::new("containerd")
            .args(["--config", &of("config.toml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("containerd (a Debian package) not started: {error}"));
        let containerd = Self { directory, process };
        wait_until("containerd answers", START_LIMIT, || {
            run(&mut containerd.ctr(&["version"])).is_ok()
        });
        containerd
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.directory.path().join("socket"));
        command.args(arguments);
        command
    }

    /// Pulls and unpacks, and says the manifest's digest.
    fn pull(&self, host: &Host) -> Result<String, String> {
        let hosts = host.path("etc/containerd/certs.d").display().to_string();
        let name = name();
        run(&mut self.ctr(&[
            "images",
            "pull",
            "--snapshotter",
            "native",
            "--hosts-dir",
            &hosts,
            &name,
        ]))?;
        let list = run(&mut self.ctr(&["images", "list", &format!("name=={name}")]))?;
        let line = list.lines().nth(1).ok_or("the image is not listed")?;
        let digest = line
            .split_whitespace()
            .nth(2)
            .ok_or("the list has no digest")?;
        Ok(digest.to_owned())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn id_of(image: &Image) -> &str {
    image.blobs[0].digest.trim_start_matches("sha256:")
}

/// A registry, a node before it, and the image in the registry.
fn served(seed: u64) -> (Image, Registry, Node) {
    let image = Image::generate(seed, &[9 * MIB, 5 * MIB]);
    let registry = Registry::serving(&image, &Place::loopback());
    let options = Options {
        origin: registry.url(),
        ..Options::default()
    };
    let node = Node::start(&Place::loopback(), options);
    (image, registry, node)
}

#[test]
fn podman_and_buildah_pull_through_what_setup_wrote_also_without_the_registry() {
    let _machine = machine();
    let (image, mut registry, node) = served(70);
    let host = Host::new(&node);
    host.set_up("podman");
    for (step, program) in ["podman", "buildah", "podman", "buildah"]
        .iter()
        .enumerate()
    {
        let storage = TempDir::new().expect("temporary directories can be made");
        let id = pull_into_storage(&host, program, storage.path());
        assert_eq!(id.as_deref(), Ok(id_of(&image)), "step {step}");
        if step == 1 {
            registry.stop();
        }
    }
    println!(
        "{}, {}",
        run(Command::new("podman").arg("--version")).unwrap_or_default(),
        run(Command::new("buildah").arg("--version")).unwrap_or_default()
    );
    assert!(node.traffic().from_origin < 2 * image.bytes());
}

#[test]
fn skopeo_copies_through_what_setup_wrote() {
    let _machine = machine();
    let (image, _registry, node) = served(71);
    let host = Host::new(&node);
    host.set_up("crio");
    let target = TempDir::new().expect("temporary directories can be made");
    let mut command = containers(&host, "skopeo");
    command.args(["--insecure-policy", "copy", "--quiet"]);
    command.arg(format!("docker://{}", name()));
    command.arg(format!("dir:{}", target.path().display()));
    run(&mut command).expect("it comes through the mirror");
    client::holds_blobs(target.path(), &image).expect("all of it is there");
}

#[test]
fn containerd_pulls_through_what_setup_wrote_also_without_the_registry() {
    let _machine = machine();
    let (image, mut registry, node) = served(72);
    let host = Host::new(&node);
    host.set_up("containerd");
    let cold = Containerd::start();
    assert_eq!(cold.pull(&host).as_ref(), Ok(&image.manifest.digest));
    println!("{}", run(&mut cold.ctr(&["version"])).unwrap_or_default());
    registry.stop();
    let warm = Containerd::start();
    assert_eq!(warm.pull(&host).as_ref(), Ok(&image.manifest.digest));
}

#[test]
fn a_check_says_what_is_missing_between_the_client_and_the_mirror() {
    let _machine = machine();
    let (_image, _registry, mut node) = served(73);
    let host = Host::new(&node);
    let check = || {
        let output = host.setup(&["podman", "--check"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said)
    };
    let (good, said) = check();
    assert!(!good && said.contains("does not name the mirror"), "{said}");
    host.set_up("podman");
    node.stop();
    let (good, said) = check();
    assert!(!good && said.contains("no mirror answers"), "{said}");
    let undone = host.setup(&["podman", "--undo"]);
    assert!(undone.status.success(), "{undone:?}");
    assert!(
        !host
            .path("etc/containers/registries.conf.d/50-shoal.conf")
            .exists()
    );
}
