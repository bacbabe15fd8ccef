//! Debian's `docker-registry` as an origin.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::ORIGIN_PORT;
use super::access::{Access, AccessLog};
use super::client;
use super::clock::wait_until;
use super::image::Image;
use super::place::Place;

/// How long a registry may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The realm of a registry behind a login.
pub(crate) const LOGIN_REALM: &str = "the registry of the tests";

/// Where a registry keeps what is pushed to it.
const STORAGE: &str = "storage";

/// The port that clients expect a registry at.
const HTTPS_PORT: u16 = 443;

/// A registry that serves one image, and the log of what it was asked.
pub(crate) struct Registry {
    url: String,
    place: Place,
    directory: TempDir,
    process: Option<Child>,
}

/// What a registry serves.
struct Contents {
    /// The driver, with its parameters.
    storage: String,
    read_only: bool,
}

impl Contents {
    fn of(image: &Image) -> Self {
        Self {
            storage: files(&image.registry_storage()),
            read_only: true,
        }
    }
}

/// The driver that keeps content in a directory.
fn files(directory: &Path) -> String {
    format!("filesystem: {{rootdirectory: {}}}", directory.display())
}

impl Registry {
    /// Starts a registry at `place` that holds `image`.
    pub(crate) fn serving(image: &Image, place: &Place) -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        let url = Self::plain_url(place);
        Self::listening(Contents::of(image), place, directory, url, "", "")
    }

    /// The same for those alone who log in as in this file of Apache's htpasswd.
    pub(crate) fn behind_a_login(image: &Image, place: &Place, htpasswd: &str) -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        let path = directory.path().join("htpasswd");
        fs::write(&path, htpasswd).expect("it is writable");
        let login = format!(
            "auth: {{htpasswd: {{realm: \"{LOGIN_REALM}\", path: {}}}}}\n",
            path.display()
        );
        let url = Self::plain_url(place);
        Self::listening(Contents::of(image), place, directory, url, "", &login)
    }

    /// The same over TLS, at the port where clients expect it, for these names.
    pub(crate) fn serving_as(names: &[&str], image: &Image, place: &Place) -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("these are names of hosts");
        let (certificate, key) = (
            directory.path().join("tls.crt"),
            directory.path().join("tls.key"),
        );
        fs::write(&certificate, made.cert.pem()).expect("it is writable");
        fs::write(&key, made.signing_key.serialize_pem()).expect("it is writable");
        let tls = format!(
            ", tls: {{certificate: {}, key: {}}}",
            certificate.display(),
            key.display()
        );
        let url = format!("https://{}:{HTTPS_PORT}", place.address);
        Self::listening(Contents::of(image), place, directory, url, &tls, "")
    }

    /// Starts a registry at `place` that holds nothing and takes what is [pushed](super::push).
    pub(crate) fn empty(place: &Place) -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        let storage = files(&directory.path().join(STORAGE));
        Self::writing_to(storage, place, directory)
    }

    /// The same, which keeps it as this driver does.
    pub(crate) fn with_storage(storage: String, place: &Place) -> Self {
        let directory = TempDir::new().expect("temporary directories can be made");
        Self::writing_to(storage, place, directory)
    }

    fn writing_to(storage: String, place: &Place, directory: TempDir) -> Self {
        let contents = Contents {
            storage,
            read_only: false,
        };
        let url = Self::plain_url(place);
        Self::listening(contents, place, directory, url, "", "")
    }

    fn plain_url(place: &Place) -> String {
        format!("http://{}:{ORIGIN_PORT}", place.address)
    }

    /// `tls` and `login` are parts of docker-registry's configuration.
    fn listening(
        contents: Contents,
        place: &Place,
        directory: TempDir,
        url: String,
        tls: &str,
        login: &str,
    ) -> Self {
        let Contents { storage, read_only } = contents;
        let (_, address) = url.split_once("://").expect("it is a URL");
        let configuration = format!(
            "version: 0.1\n\
             log: {{level: warn, accesslog: {{disabled: false}}}}\n\
             storage:\n  \
               {storage}\n  \
               maintenance: {{readonly: {{enabled: {read_only}}}}}\n\
             http: {{addr: \"{address}\", secret: test{tls}}}\n{login}"
        );
        fs::write(directory.path().join("config.yml"), configuration).expect("it is writable");
        let mut registry = Self {
            url,
            place: place.clone(),
            directory,
            process: None,
        };
        registry.start();
        registry
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("{}:{ORIGIN_PORT}", self.place.address)
    }

    /// The directory with what was pushed.
    pub(crate) fn storage(&self) -> PathBuf {
        self.directory.path().join(STORAGE)
    }

    /// The URL that a node is given for the upstream.
    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// The certificate to trust, where it has one.
    pub(crate) fn certificate(&self) -> String {
        fs::read_to_string(self.directory.path().join("tls.crt")).expect("it serves over TLS")
    }

    /// Its process.
    #[allow(dead_code, reason = "only the benchmarks ask for it")]
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Child::id)
    }

    /// Stops the process; its port refuses connections from now on.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it, for the first time or again.
    pub(crate) fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("access.log"))
            .expect("it is writable");
        let errors =
            File::create(self.directory.path().join("errors.log")).expect("it is writable");
        let mut command = self.place.command("docker-registry");
        // The S3 driver, linked in, panics on this variable.
        command.env_remove("AWS_CA_BUNDLE").arg("serve");
        command.arg(self.directory.path().join("config.yml"));
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let process = command.spawn().unwrap_or_else(|error| {
            panic!("docker-registry (a Debian package) not started: {error}")
        });
        self.process = Some(process);
        wait_until("docker-registry answers", START_LIMIT, || {
            let request = client::request(&self.place, &format!("{}/v2/", self.url));
            request
                .option(&["--insecure", "--max-time", "5"])
                .finish()
                .is_ok()
        });
    }
}

impl AccessLog for Registry {
    fn log(&self) -> Vec<Access> {
        let text = fs::read_to_string(self.directory.path().join("access.log"));
        text.expect("the log is readable")
            .lines()
            .filter_map(Access::parse)
            .collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn the_access_log_counts_what_clients_read_even_if_they_leave() {
    let image = Image::generate(900, &[8 << 20, 1 << 20]);
    let place = Place::loopback();
    let mut registry = Registry::serving(&image, &place);
    client::pull(&place, &registry.url(), &image).expect("a direct pull works");
    assert!((registry.copies(&image) - 1.0).abs() < 1e-9);
    assert_eq!(registry.manifest_gets(), 1);

    let digest = &image.blobs[1].digest;
    let part = client::blob(&place, &registry.url(), digest)
        .range("0-999")
        .finish();
    assert_eq!(part.expect("ranges work").bytes, 1000);
    assert_eq!(registry.bytes_of(digest), (8 << 20) + 1000);
    assert_eq!(registry.gets_of(digest), 2);

    let mut slow = client::blob(&place, &registry.url(), digest).start();
    slow.read_some(100_000);
    slow.abort();
    wait_until("the broken request is logged", START_LIMIT, || {
        registry.gets_of(digest) == 3
    });
    let counted = registry.bytes_of(digest) - (8 << 20) - 1000;
    assert!(
        (100_000..8 << 20).contains(&counted),
        "{counted} bytes for a broken request"
    );

    registry.stop();
    assert!(
        client::pull(&place, &registry.url(), &image).is_err(),
        "a stopped one refuses"
    );
}

#[test]
fn links_of_a_lab_are_shaped_in_both_directions() {
    let lab = super::netns::Lab::new(3, Some(100));
    let image = Image::generate(902, &[6_000_000]);
    let serve = |host: usize| Registry::serving(&image, &lab.hosts()[host]);
    let (first, second) = (serve(0), serve(1));
    let once = |reader: usize, registries: &[&Registry]| {
        let pull = |registry: &&Registry| {
            client::pull(&lab.hosts()[reader], &registry.url(), &image).expect("it serves")
        };
        let times = client::all_at_once(registries, pull);
        times
            .into_iter()
            .max()
            .expect("there are some")
            .as_secs_f64()
    };
    // A busy machine makes a pull slower, and nothing makes it faster than its link.
    let seconds = |reader: usize, registries: &[&Registry]| {
        let times = (0..3).map(|_| once(reader, registries));
        times.fold(f64::INFINITY, f64::min)
    };
    let one = seconds(2, &[&first]);
    assert!(
        (0.45..0.75).contains(&one),
        "6 MB at 100 Mbit/s took {one:.2} s"
    );
    let down = seconds(2, &[&first, &second]);
    assert!(
        (0.9..1.4).contains(&down),
        "twice 6 MB into one link took {down:.2} s"
    );
    let up = seconds(2, &[&first, &first]);
    assert!(
        (0.9..1.4).contains(&up),
        "twice 6 MB out of one link took {up:.2} s"
    );
}

#[test]
fn skopeo_pulls_the_generated_image_from_a_registry_in_a_lab() {
    let lab = super::netns::Lab::new(2, Some(400));
    let image = Image::generate(900, &[8 << 20, 1 << 20]);
    let registry = Registry::serving(&image, &lab.hosts()[0]);
    let name = format!(
        "{}:{ORIGIN_PORT}/{}:{}",
        lab.hosts()[0].address,
        super::REPOSITORY,
        super::TAG
    );
    let took = client::skopeo(&lab.hosts()[1], &name, &image).expect("skopeo pulls");
    assert!(
        took > Duration::from_millis(140),
        "9 MiB at 400 Mbit/s take longer than {took:?}"
    );
    assert!((registry.copies(&image) - 1.0).abs() < 1e-9);
}
