//! The systems whose clients are tried.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a client needs on a Debian of which there is nothing yet.
const PACKAGES: &str = "ca-certificates,containerd,crun,curl,docker-buildx,docker-cli,docker.io,\
                        podman,buildah,skopeo,runc";

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

    /// Where its files are; empty for this machine's own. Debian 13 is fetched from Debian's mirror
    /// once, which takes about 40 s, and kept in the build directory.
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
    let status = Command::new("debootstrap")
        .args(["--variant=minbase", "--include", PACKAGES, suite])
        .arg(&unfinished)
        .stdout(Stdio::null())
        .status()
        .unwrap_or_else(|error| panic!("debootstrap (a Debian package) not started: {error}"));
    assert!(status.success(), "debootstrap: {status}");
    fs::rename(&unfinished, root).expect("the build directory is writable");
}
