//! The systems whose clients are tried.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the clients need on a Debian of which there is nothing yet.
const PACKAGES: &str = "buildah,ca-certificates,containerd,crun,curl,docker-buildx,docker-cli,\
                        docker.io,golang-go,podman,runc,skopeo";

/// BuildKit's own daemon is in no Debian.
const BUILD_BUILDKIT: &str = "
    version=v0.17.3 buildkit=github.com/moby/buildkit
    export GOROOT=/usr/lib/go GOPATH=/go GOCACHE=/go/cache GOBIN=/usr/bin GOFLAGS=-modcacherw \\
        GOTOOLCHAIN=local CGO_ENABLED=0
    go install -ldflags \"-X $buildkit/version.Version=$version\" \
        $buildkit/cmd/buildkitd@$version $buildkit/cmd/buildctl@$version && rm -r /go";

/// What of this machine's network a system needs to fetch something.
const NETWORK: [&str; 2] = ["etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"];

/// A system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
    /// This machine's own, for which `tests/run` is written.
    Debian12,
    /// Debian's next, in a directory.
    Debian13,
}

impl System {
    /// What the table calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Debian12 => "Debian 12",
            Self::Debian13 => "Debian 13",
        }
    }

    /// Where its files are; empty for this machine's own. Debian 13 is fetched
    /// once, which takes some minutes, and kept in the build directory.
    pub(super) fn root(self) -> String {
        match self {
            Self::Debian12 => String::new(),
            Self::Debian13 => {
                let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trixie");
                if !root.exists() {
                    bootstrap("trixie", &root);
                }
                root.display().to_string()
            }
        }
    }
}

fn bootstrap(suite: &str, root: &Path) {
    let unfinished = root.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", "--include", PACKAGES, suite]);
    finish(debootstrap.arg(&unfinished));
    for file in NETWORK {
        let copied = fs::copy(Path::new("/").join(file), unfinished.join(file));
        copied.expect("the build directory is writable");
    }
    let mut build = Command::new("chroot");
    finish(build.arg(&unfinished).args(["sh", "-c", BUILD_BUILDKIT]));
    fs::rename(&unfinished, root).expect("the build directory is writable");
}

fn finish(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} (a Debian package) not started: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}
