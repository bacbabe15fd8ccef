//! A containerd with everything of its own.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::clock::wait_until;

/// How long containerd may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The daemon. Dropping it ends the process and deletes what it has pulled.
pub(crate) struct Containerd {
    directory: TempDir,
    process: Child,
}

impl Containerd {
    /// Starts one without its CRI plugin.
    pub(crate) fn start() -> Self {
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
            containerd.ctr(&["version"]).is_ok()
        });
        containerd
    }

    /// Pulls an image, with the hosts.toml files in `hosts`, and says its manifest's digest.
    ///
    /// # Errors
    ///
    /// What `ctr` said.
    pub(crate) fn pull(
        &self,
        hosts: &Path,
        credentials: Option<&str>,
        name: &str,
    ) -> Result<String, String> {
        let hosts = hosts.display().to_string();
        let mut arguments = vec![
            "images",
            "pull",
            "--snapshotter",
            "native",
            "--hosts-dir",
            &hosts,
        ];
        arguments.extend(credentials.into_iter().flat_map(|user| ["--user", user]));
        arguments.push(name);
        self.ctr(&arguments)?;
        let list = self.ctr(&["images", "list", &format!("name=={name}")])?;
        let line = list.lines().nth(1).ok_or("the image is not listed")?;
        let digest = line.split_whitespace().nth(2);
        Ok(digest.ok_or("the list has no digest")?.to_owned())
    }

    /// What `ctr` prints, where it succeeds.
    fn ctr(&self, arguments: &[&str]) -> Result<String, String> {
        let socket = self.directory.path().join("socket");
        let mut command = Command::new("ctr");
        command.arg("--address").arg(socket).args(arguments);
        let output = command.stdin(Stdio::null()).output();
        let output = output.expect("ctr (of containerd) starts");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(said(&output.stdout))
        } else {
            Err(said(&output.stderr))
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
