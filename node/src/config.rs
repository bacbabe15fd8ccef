//! What an operator may set, where it may be said, and what holds when nothing is said.
//!
//! Every setting has one name. It is the flag `--data-dir`, the variable `SHOAL_DATA_DIR` and the
//! key `data_dir` of the TOML file; a flag wins over a variable, a variable over the file, the
//! file over the default. A setting is taken whole from the first place that names it: lists are
//! not joined across places, so that a flag can also shorten one.
//!
//! [`RawConfig`] is what one place says, as text. [`Config`] is what the daemon uses: checked
//! once, types from then on.

mod raw;
mod tls;
mod units;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs, io,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use shoal_protocol::reference::Upstream;
use url::Url;

use crate::origin::{Access, OriginSpec, Reserve};

pub use raw::{RawConfig, variable_of};
pub use tls::{MIRROR_CA_FILE, MirrorTls};
pub use units::{ByteRate, ByteSize, Period, UnitError};

/// Where the configuration file is looked for when nobody names one.
pub const DEFAULT_FILE: &str = "/etc/shoal/shoal.toml";

/// The largest configuration file that is read: guards against a wrong path such as a disk.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Free disk that is left to others unless configured: enough for the host's own logs.
const MIN_FREE_DEFAULT: ByteSize = ByteSize(1 << 30);

/// How long a tag's answer is used without asking the origin again. Short, because a moved tag
/// should be seen soon; long enough that a mass pull asks once.
const TAG_TTL_DEFAULT: Duration = Duration::from_secs(10);

/// For how long a tag's last known answer is given while the origin cannot be asked: longer than an
/// outage that somebody repairs, short enough that nobody runs for ever what nobody can change.
const TAG_STALE_DEFAULT: Duration = Duration::from_hours(7 * 24);

/// The settings of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where blobs, identity and index are kept.
    pub data_dir: PathBuf,
    /// Where clients on this host pull from.
    pub mirror: SocketAddr,
    /// The certificate of the mirror, which speaks plain HTTP without.
    pub mirror_tls: Option<MirrorTls>,
    /// Where other nodes connect; at least one.
    pub listen: Vec<SocketAddr>,
    /// Where other nodes are told to connect, best first; empty to find out.
    pub advertise: Vec<SocketAddr>,
    /// Health, readiness, metrics and status.
    pub admin: SocketAddr,
    /// `host:port` of nodes to join; a name stands for all of its addresses.
    pub join: Vec<String>,
    /// The cluster's key, with which this node issues its own tickets.
    pub cluster_key: Option<PathBuf>,
    /// A ticket issued elsewhere, for nodes that are not to hold the key.
    pub ticket: Option<PathBuf>,
    /// The zone that this node is in: a data centre, or a part of one. Any name; nodes with the same
    /// one are near each other, and what leaves it is spared.
    pub zone: Option<String>,
    /// The rack within the zone, likewise.
    pub rack: Option<String>,
    /// Upstreams that do not simply live at `https://<their own name>`, each with all its origins, in
    /// the order in which they are asked.
    pub origins: BTreeMap<Upstream, Vec<OriginSpec>>,
    /// Who may read an upstream's content; whoever reaches the mirror where nothing is said.
    pub access: BTreeMap<Upstream, Access>,
    /// Most bytes of blobs to keep; without it only `min_free` bounds them.
    pub quota: Option<ByteSize>,
    /// Bytes of disk to leave free.
    pub min_free: ByteSize,
    /// Docker's `config.json`, for the origins' credentials.
    pub docker_config: Option<PathBuf>,
    /// How long a tag's answer is used without asking the origin again.
    pub tag_ttl: Duration,
    /// For how long a tag's last known answer is given while the origin cannot be asked.
    pub tag_stale: Duration,
    /// Pulls to keep for what only the origin can serve, where a registry says how many it still gives.
    pub origin_reserve: Reserve,
    /// What to log: a level, or `target=level` pairs separated by commas.
    pub log: String,
}

/// Why there is no configuration. Each names the place and the value, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that is not what its setting takes.
    #[error("{place}: {problem}")]
    Value {
        /// The flag, variable or key.
        place: Place,
        /// What is wrong with the value, and what to write instead.
        problem: String,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration file {}; check the path and its permissions", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{}, line {line}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Settings that do not go together.
    #[error("{0}")]
    Conflict(&'static str),
    /// There is no home directory to put the data under.
    #[error("no data directory: HOME is not set; give one with --data-dir")]
    NoDataDir,
}

/// Where a setting was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `--data-dir`.
    Flag(&'static str),
    /// `SHOAL_DATA_DIR`.
    Variable(&'static str),
    /// `data_dir` in a file.
    Key(&'static str, PathBuf),
}

/// Variables of the process, or a test's stand-in.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(key) => write!(f, "--{}", key.replace('_', "-")),
            Self::Variable(key) => f.write_str(&variable_of(key)),
            Self::Key(key, file) => write!(f, "{key} in {}", file.display()),
        }
    }
}

impl Config {
    /// Reads the file and the environment, and puts the flags on top.
    ///
    /// `file` is where the file is, if that was said; otherwise [`DEFAULT_FILE`] is read if it
    /// exists.
    pub fn load(
        flags: RawConfig,
        file: Option<&Path>,
        environment: Environment<'_>,
    ) -> Result<Self, ConfigError> {
        let named = file.map(PathBuf::from).or_else(|| {
            environment("SHOAL_CONFIG")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        });
        let must_exist = named.is_some();
        let path = named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let from_file = match read_file(&path) {
            Err(ConfigError::Unreadable { source, .. })
                if !must_exist && source.kind() == io::ErrorKind::NotFound =>
            {
                RawConfig::default()
            }
            read => read?,
        };
        let from_environment = RawConfig::from_environment(environment)?;
        Sources {
            flags,
            environment: from_environment,
            file: from_file,
            path,
        }
        .resolve(environment)
    }
}

fn read_file(path: &Path) -> Result<RawConfig, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_BYTES_MAX {
        return Err(unreadable(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has {size} bytes, more than any configuration"),
        )));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        ConfigError::Syntax {
            path: path.to_owned(),
            line: 1 + text[..start.min(text.len())].matches('\n').count(),
            problem: error.message().replace('\n', " "),
        }
    })
}

/// The three places, strongest first.
struct Sources {
    flags: RawConfig,
    environment: RawConfig,
    file: RawConfig,
    path: PathBuf,
}

impl Sources {
    /// The strongest place that names the setting.
    fn find<T>(
        &self,
        key: &'static str,
        get: impl Fn(&RawConfig) -> Option<&T>,
    ) -> Option<(Place, &T)> {
        get(&self.flags)
            .map(|value| (Place::Flag(key), value))
            .or_else(|| get(&self.environment).map(|value| (Place::Variable(key), value)))
            .or_else(|| get(&self.file).map(|value| (Place::Key(key, self.path.clone()), value)))
    }

    fn one<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &'static str,
        get: impl Fn(&RawConfig) -> Option<&String>,
    ) -> Result<Option<T>, ConfigError> {
        self.find(key, get)
            .map(|(place, text)| parse(place, text))
            .transpose()
    }

    fn list<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &'static str,
        get: impl Fn(&RawConfig) -> Option<&Vec<String>>,
    ) -> Result<Vec<T>, ConfigError> {
        let Some((place, texts)) = self.find(key, get) else {
            return Ok(Vec::new());
        };
        texts
            .iter()
            .map(|text| parse(place.clone(), text))
            .collect()
    }

    fn path(
        &self,
        key: &'static str,
        get: impl Fn(&RawConfig) -> Option<&String>,
    ) -> Result<Option<PathBuf>, ConfigError> {
        match self.find(key, get) {
            Some((place, text)) if text.is_empty() => Err(ConfigError::Value {
                place,
                problem: "the path is empty".to_owned(),
            }),
            found => Ok(found.map(|(_, text)| PathBuf::from(text))),
        }
    }

    fn resolve(&self, environment: Environment<'_>) -> Result<Config, ConfigError> {
        let cluster_key = self.path("cluster_key", |raw| raw.cluster_key.as_ref())?;
        let ticket = self.path("ticket", |raw| raw.ticket.as_ref())?;
        let join: Vec<HostPort> = self.list("join", |raw| raw.join.as_ref())?;
        if cluster_key.is_some() && ticket.is_some() {
            return Err(ConfigError::Conflict(
                "--cluster-key and --ticket are both set; a node with the key issues its own \
                 ticket, so give one of them",
            ));
        }
        if !join.is_empty() && cluster_key.is_none() && ticket.is_none() {
            return Err(ConfigError::Conflict(
                "--join needs --cluster-key or --ticket: without either no cluster lets this node \
                 in; make a key with `shoal cluster init --cluster-key FILE` and give it to every \
                 node",
            ));
        }
        let mut listen: Vec<Address> = self.list("listen", |raw| raw.listen.as_ref())?;
        if listen.is_empty() {
            listen.push(Address(SocketAddr::from(([0, 0, 0, 0], 5004))));
        }
        let advertise: Vec<Address> = self.list("advertise", |raw| raw.advertise.as_ref())?;
        let local = |address: Option<Address>, port: u16| {
            address.map_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)), |a| a.0)
        };
        Ok(Config {
            data_dir: match self.path("data_dir", |raw| raw.data_dir.as_ref())? {
                Some(path) => path,
                None => default_data_dir(environment)?,
            },
            mirror: local(self.one("mirror", |raw| raw.mirror.as_ref())?, 5005),
            mirror_tls: self.mirror_tls()?,
            listen: listen.into_iter().map(|address| address.0).collect(),
            advertise: advertise.into_iter().map(|address| address.0).collect(),
            admin: local(self.one("admin", |raw| raw.admin.as_ref())?, 5006),
            join: join.into_iter().map(|host| host.0).collect(),
            cluster_key,
            ticket,
            zone: self
                .one::<Label>("zone", |raw| raw.zone.as_ref())?
                .map(|label| label.0),
            rack: self
                .one::<Label>("rack", |raw| raw.rack.as_ref())?
                .map(|label| label.0),
            origins: self.origins()?,
            access: self.access()?,
            quota: self.one("quota", |raw| raw.quota.as_ref())?,
            min_free: self
                .one("min_free", |raw| raw.min_free.as_ref())?
                .unwrap_or(MIN_FREE_DEFAULT),
            docker_config: match self.path("docker_config", |raw| raw.docker_config.as_ref())? {
                Some(path) => Some(path),
                None => default_docker_config(environment),
            },
            origin_reserve: self
                .one("origin_reserve", |raw| raw.origin_reserve.as_ref())?
                .unwrap_or_default(),
            tag_ttl: self
                .one::<Period>("tag_ttl", |raw| raw.tag_ttl.as_ref())?
                .map_or(TAG_TTL_DEFAULT, |period| period.0),
            tag_stale: self
                .one::<Period>("tag_stale", |raw| raw.tag_stale.as_ref())?
                .map_or(TAG_STALE_DEFAULT, |period| period.0),
            log: self
                .find("log", |raw| raw.log.as_ref())
                .map_or_else(|| "info".to_owned(), |(_, text)| text.clone()),
        })
    }

    fn access(&self) -> Result<BTreeMap<Upstream, Access>, ConfigError> {
        let Some((place, table)) = self.find("access", |raw| raw.access.as_ref()) else {
            return Ok(BTreeMap::new());
        };
        table
            .iter()
            .map(|(upstream, rule)| {
                Ok((parse(place.clone(), upstream)?, parse(place.clone(), rule)?))
            })
            .collect()
    }

    fn origins(&self) -> Result<BTreeMap<Upstream, Vec<OriginSpec>>, ConfigError> {
        let mut origins = BTreeMap::<Upstream, Vec<OriginSpec>>::new();
        if let Some((place, table)) = self.find("origin", |raw| raw.origin.as_ref()) {
            for (upstream, urls) in table {
                let list = origins.entry(parse(place.clone(), upstream)?).or_default();
                for url in urls {
                    let spec = OriginSpec::at(parse::<OriginUrl>(place.clone(), url)?.0);
                    list.push(spec);
                }
                if urls.is_empty() {
                    return Err(ConfigError::Value {
                        place,
                        problem: format!(
                            "the list of {upstream} is empty; name an origin, or leave it out"
                        ),
                    });
                }
            }
        }
        if let Some((place, table)) = self.find("origin_ca", |raw| raw.origin_ca.as_ref()) {
            for (upstream, file) in table {
                let upstream: Upstream = parse(place.clone(), upstream)?;
                let own_url = parse::<OriginUrl>(place.clone(), &format!("https://{upstream}"))?.0;
                let list = origins
                    .entry(upstream)
                    .or_insert_with(|| vec![OriginSpec::at(own_url)]);
                let alone = list.len() == 1;
                // A directory among registries has no use for them; one alone is a mistake.
                for spec in list
                    .iter_mut()
                    .filter(|spec| alone || spec.url.scheme() != "file")
                {
                    spec.ca_file = Some(PathBuf::from(file));
                }
            }
        }
        Ok(origins)
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(place: Place, text: &str) -> Result<T, ConfigError> {
    text.parse().map_err(|error: T::Err| ConfigError::Value {
        place,
        problem: error.to_string(),
    })
}

/// What an operator calls a zone or a rack.
struct Label(String);

struct Address(SocketAddr);
struct HostPort(String);
struct OriginUrl(Url);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| {
            format!(
                "`{text}` is not an address; write IP:PORT, such as 127.0.0.1:5005 or [::]:5004"
            )
        })
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
        let fits = match text.rsplit_once(':') {
            // More colons than the port's are an IPv6 address, which needs its brackets.
            Some((host, _)) if host.contains(':') => text.parse::<SocketAddr>().is_ok(),
            Some((host, digits)) => !host.is_empty() && !host.contains('/') && port(digits),
            None => false,
        };
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "`{text}` is not a node's address; write HOST:PORT, such as node-1.example:5004"
            ))
        }
    }
}

impl FromStr for Label {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "" => Err("the label is empty; give one, or leave the setting out"),
            label => Ok(Self(label.to_owned())),
        }
    }
}

impl FromStr for OriginUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Self(url)),
            Ok(url) if text.starts_with("file:///") => Ok(Self(url)),
            Ok(url) if matches!(url.scheme(), "s3" | "gs" | "az") && url.has_host() => {
                Ok(Self(url))
            }
            _ => Err(format!(
                "`{text}` is not an origin; write http://HOST[:PORT] or https://HOST[:PORT] for a \
                 registry, file:///PATH for a directory, s3://BUCKET[/PREFIX] (or gs:, az:) for a \
                 bucket"
            )),
        }
    }
}

fn home(environment: Environment<'_>, below: &str) -> Option<PathBuf> {
    environment("HOME")
        .filter(|home| !home.is_empty())
        .map(|home| Path::new(&home).join(below))
}

fn default_data_dir(environment: Environment<'_>) -> Result<PathBuf, ConfigError> {
    if is_root() {
        return Ok(PathBuf::from("/var/lib/shoal"));
    }
    match environment("XDG_DATA_HOME").map(PathBuf::from) {
        // The XDG specification tells to ignore relative paths.
        Some(path) if path.is_absolute() => Ok(path.join("shoal")),
        _ => home(environment, ".local/share/shoal").ok_or(ConfigError::NoDataDir),
    }
}

/// Docker's own rule, for the file that `docker login` writes; `None` where there is none.
fn default_docker_config(environment: Environment<'_>) -> Option<PathBuf> {
    let dir = match environment("DOCKER_CONFIG").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => home(environment, ".docker")?,
    };
    Some(dir.join("config.json")).filter(|file| file.exists())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[cfg(test)]
mod tests;
