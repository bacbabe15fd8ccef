//! Web servers that are measured: docker-registry and nginx, as caches and as servers of files.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::ORIGIN_PORT;
use crate::support::client;
use crate::support::clock::wait_until;
use crate::support::place::Place;

/// How long a program may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A server, as a process with its files.
pub(crate) struct Server {
    process: Child,
    _directory: TempDir,
}

impl Server {
    fn start(mut command: Command, directory: TempDir, place: &Place, base: &str) -> Self {
        let errors = fs::File::create(directory.path().join("errors.log"));
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.expect("it is writable"))
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} not started: {error}"));
        let server = Self {
            process,
            _directory: directory,
        };
        wait_until("the server answers", START_LIMIT, || {
            client::request(place, base).finish().is_ok()
        });
        server
    }

    /// A registry that reads from another what it does not have, and where it answers.
    pub(crate) fn registry_cache(place: &Place, origin: &str) -> (Self, String) {
        let directory = TempDir::new().expect("temporary directories can be made");
        let path = directory.path();
        let configuration = format!(
            "version: 0.1\n\
             log: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             proxy: {{remoteurl: \"{origin}\"}}\n\
             http: {{addr: \"{}:{ORIGIN_PORT}\", secret: test}}\n",
            path.join("data").display(),
            place.address,
        );
        fs::write(path.join("config.yml"), configuration).expect("it is writable");
        let mut command = place.command("docker-registry");
        // The S3 driver, linked in, panics on this variable.
        command.env_remove("AWS_CA_BUNDLE").arg("serve");
        command.arg(path.join("config.yml"));
        let base = format!("http://{}:{ORIGIN_PORT}", place.address);
        (Self::start(command, directory, place, &base), base)
    }

    /// nginx as it is set up for large files: in slices of 4 MiB, so that what one client has
    /// caused to be read another one gets at once, and each slice is read once.
    pub(crate) fn nginx_cache(place: &Place, origin: &str) -> (Self, String) {
        let directory = TempDir::new().expect("temporary directories can be made");
        let address = format!("{}:{ORIGIN_PORT}", place.address);
        let http = format!(
            "proxy_cache_path {}/cache levels=1:2 keys_zone=blobs:10m max_size=20g \
                 inactive=1d use_temp_path=off;\n\
             upstream origin {{ server {}; keepalive 64; }}\n\
             server {{\n\
               listen {address};\n\
               proxy_http_version 1.1;\n  proxy_set_header Connection \"\";\n\
               location / {{ proxy_pass http://origin; }}\n\
               location ~ /blobs/ {{\n\
                 slice 4m;\n    proxy_pass http://origin;\n\
                 proxy_set_header Range $slice_range;\n\
                 proxy_cache blobs;\n    proxy_cache_key $uri$slice_range;\n\
                 proxy_cache_valid 200 206 1d;\n    proxy_cache_lock on;\n\
                 proxy_cache_lock_timeout 300s;\n    proxy_cache_lock_age 300s;\n\
               }}\n\
             }}\n",
            directory.path().display(),
            origin.trim_start_matches("http://"),
        );
        Self::nginx(place, &address, &http, directory)
    }

    /// nginx that serves a directory of files, and where it does.
    pub(crate) fn nginx_files(place: &Place, files: &Path) -> (Self, String) {
        let directory = TempDir::new().expect("temporary directories can be made");
        // A port of its own: the registry that holds the same files is on this host too.
        let address = format!("{}:8080", place.address);
        let http = format!("server {{ listen {address}; root {}; }}\n", files.display());
        Self::nginx(place, &address, &http, directory)
    }

    /// nginx with this within `http`.
    fn nginx(place: &Place, address: &str, http: &str, directory: TempDir) -> (Self, String) {
        let path = directory.path().display().to_string();
        let configuration = format!(
            "daemon off;\nuser root;\nworker_processes auto;\npid {path}/pid;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n\
               access_log off;\n  sendfile on;\n  tcp_nopush on;\n\
               client_body_temp_path {path}/body;\n  proxy_temp_path {path}/temp;\n\
               fastcgi_temp_path {path}/fastcgi;\n  uwsgi_temp_path {path}/uwsgi;\n\
               scgi_temp_path {path}/scgi;\n{http}\
             }}\n"
        );
        let file = directory.path().join("nginx.conf");
        fs::write(&file, configuration).expect("it is writable");
        let mut command = place.command("nginx");
        command.args(["-p", &path, "-e", "stderr", "-c"]).arg(file);
        let base = format!("http://{address}");
        (Self::start(command, directory, place, &base), base)
    }

    /// The process and its children: nginx works in those.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let pid = self.process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        std::iter::once(pid).chain(children).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked to, nginx stops those it works in too.
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").arg(pid).status();
        let _ = self.process.wait();
    }
}
