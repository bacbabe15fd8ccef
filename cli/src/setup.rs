//! What a container client's configuration says so that it pulls through the mirror: how that is put
//! into files that are there already, and taken out of them again.

mod authority;
mod block;
mod buildkit;
mod containerd;
mod containers;
mod docker;
mod mirror;
mod rancher;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::ValueEnum;
use shoal_protocol::reference::{Reference, Upstream};

pub(crate) use self::mirror::{Mirror, MirrorArg};

/// A program that pulls images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Client {
    /// Docker Engine: images of Docker Hub, in daemon.json
    Docker,
    /// containerd, also under Kubernetes: hosts.toml files
    Containerd,
    /// podman, buildah and skopeo: a file in registries.conf.d
    Podman,
    /// CRI-O: the same file
    Crio,
    /// BuildKit with a daemon of its own: buildkitd.toml
    Buildkit,
    /// k3s: registries.yaml
    K3s,
    /// RKE2: registries.yaml
    Rke2,
}

/// What is to be written, and where.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Under which directory the host's files are.
    pub(crate) root: PathBuf,
    /// Where the mirror answers.
    pub(crate) mirror: Mirror,
    /// The registries to mirror, for clients that want each named.
    pub(crate) registries: Vec<Upstream>,
}

/// What becomes of a file; `None` is a file that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) path: PathBuf,
    pub(crate) before: Option<String>,
    pub(crate) after: Option<String>,
}

/// What is to be done for a client.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Every file with something of ours in it, changed or not.
    pub(crate) files: Vec<Change>,
    /// What was left as it is, and what the operator can do about it.
    pub(crate) warnings: Vec<String>,
}

impl Client {
    /// What makes this client use the mirror.
    ///
    /// # Errors
    /// A file that cannot be read, or is not what the client itself would understand.
    pub(crate) fn plan(self, site: &Site) -> anyhow::Result<Plan> {
        match self {
            Self::Docker => docker::plan(site),
            Self::Containerd => containerd::plan(site),
            Self::Podman | Self::Crio => containers::plan(site, self),
            Self::Buildkit => buildkit::plan(site),
            Self::K3s | Self::Rke2 => rancher::plan(site, self),
        }
    }

    /// What takes that away again, and leaves the rest as it is, byte for byte.
    ///
    /// # Errors
    /// As for [`plan`](Self::plan); or what was written has been changed by someone since.
    pub(crate) fn undo(self, site: &Site) -> anyhow::Result<Plan> {
        match self {
            Self::Docker => docker::undo(site),
            Self::Containerd => undo_blocks(containerd::files(site)?),
            Self::Podman | Self::Crio => containers::undo(site),
            Self::Buildkit => undo_blocks(vec![buildkit::file(site)]),
            Self::K3s | Self::Rke2 => undo_blocks(vec![rancher::file(site, self)]),
        }
    }

    /// What has to be told to a running client after a change, if it does not see it by itself.
    pub(crate) fn restart(self) -> Option<&'static str> {
        match self {
            Self::Containerd | Self::Podman => None,
            Self::Docker => Some("systemctl reload docker"),
            Self::Crio => Some("systemctl reload crio"),
            Self::Buildkit => Some("restart buildkitd"),
            Self::K3s => Some("systemctl restart k3s, or k3s-agent on agents"),
            Self::Rke2 => Some("systemctl restart rke2-server, or rke2-agent on agents"),
        }
    }

    /// The command with which this client pulls an image, if it has one.
    pub(crate) fn pull_command(self, site: &Site, image: &Reference) -> Option<Vec<String>> {
        let image = &image.to_string();
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        Some(match self {
            Self::Docker => words(&["docker", "pull", image]),
            Self::Containerd => {
                let directory = containerd::directory(site).display().to_string();
                words(&["ctr", "images", "pull", "--hosts-dir", &directory, image])
            }
            Self::Podman => words(&["podman", "pull", image]),
            Self::Crio => words(&["crictl", "pull", image]),
            Self::K3s => words(&["k3s", "crictl", "pull", image]),
            Self::Rke2 => words(&["/var/lib/rancher/rke2/bin/crictl", "pull", image]),
            Self::Buildkit => return None,
        })
    }
}

/// As on the command line.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no client is hidden");
        f.write_str(value.get_name())
    }
}

impl Site {
    /// A file of the host, by its path from `/`.
    fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

impl Change {
    pub(crate) fn is_none(&self) -> bool {
        self.before == self.after
    }

    /// Writes the file, or removes it. What is written replaces the file in one step, with the
    /// permissions that it had.
    ///
    /// # Errors
    /// The file system does not allow it.
    pub(crate) fn apply(&self) -> anyhow::Result<()> {
        let told = || format!("cannot change {}", self.path.display());
        let Some(text) = &self.after else {
            fs::remove_file(&self.path).with_context(told)?;
            // The directory of a registry says nothing without its file. One that is not empty, or
            // was there before for another reason, stays.
            if let Some(directory) = self.path.parent()
                && (directory.ends_with("_default") || authority::is_copy(&self.path))
            {
                let _ = fs::remove_dir(directory);
            }
            return Ok(());
        };
        // A link stays a link.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).with_context(told)?;
        let file = tempfile::NamedTempFile::new_in(directory).with_context(told)?;
        fs::write(file.path(), text).with_context(told)?;
        let permissions = match fs::metadata(&path) {
            Ok(metadata) => metadata.permissions(),
            Err(_) => std::os::unix::fs::PermissionsExt::from_mode(0o644),
        };
        fs::set_permissions(file.path(), permissions).with_context(told)?;
        file.as_file().sync_all().with_context(told)?;
        file.persist(&path).with_context(told)?;
        Ok(())
    }
}

/// What a file says; `None` where there is none.
fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn undo_blocks(files: Vec<PathBuf>) -> anyhow::Result<Plan> {
    let mut plan = Plan::default();
    for path in files {
        let change = block::File::open(path)?.without();
        if !change.is_none() {
            plan.files.push(change);
        }
    }
    Ok(plan)
}

/// Reads TOML as the client will.
fn toml_of(path: &Path, text: &str) -> anyhow::Result<toml::Table> {
    text.parse::<toml::Table>().map_err(|error| {
        anyhow::anyhow!("{} is not valid TOML: {}", path.display(), error.message())
    })
}

#[cfg(test)]
mod tests;
