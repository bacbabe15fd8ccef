//! What one place says: flags, environment or file.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, Environment, Place};

/// Every setting of `shoal node` as text, if this place names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// See [`Config::data_dir`](super::Config::data_dir).
    pub data_dir: Option<String>,
    /// See [`Config::mirror`](super::Config::mirror).
    pub mirror: Option<String>,
    /// `generated` or a file; see [`Config::mirror_tls`](super::Config::mirror_tls).
    pub mirror_tls: Option<String>,
    /// The file of the certificate's key.
    pub mirror_tls_key: Option<String>,
    /// Names for a generated certificate.
    pub mirror_tls_name: Option<Vec<String>>,
    /// See [`Config::listen`](super::Config::listen).
    pub listen: Option<Vec<String>>,
    /// See [`Config::advertise`](super::Config::advertise).
    pub advertise: Option<Vec<String>>,
    /// See [`Config::admin`](super::Config::admin).
    pub admin: Option<String>,
    /// See [`Config::join`](super::Config::join).
    pub join: Option<Vec<String>>,
    /// See [`Config::cluster_key`](super::Config::cluster_key).
    pub cluster_key: Option<String>,
    /// See [`Config::ticket`](super::Config::ticket).
    pub ticket: Option<String>,
    /// See [`Config::zone`](super::Config::zone).
    pub zone: Option<String>,
    /// See [`Config::rack`](super::Config::rack).
    pub rack: Option<String>,
    /// See [`Config::quota`](super::Config::quota).
    pub quota: Option<String>,
    /// See [`Config::min_free`](super::Config::min_free).
    pub min_free: Option<String>,
    /// See [`Config::docker_config`](super::Config::docker_config).
    pub docker_config: Option<String>,
    /// See [`Config::tag_ttl`](super::Config::tag_ttl).
    pub tag_ttl: Option<String>,
    /// See [`Config::tag_stale`](super::Config::tag_stale).
    pub tag_stale: Option<String>,
    /// See [`Config::origin_reserve`](super::Config::origin_reserve).
    pub origin_reserve: Option<String>,
    /// See [`Config::log`](super::Config::log).
    pub log: Option<String>,
    /// Upstream to its URLs in order, in a file also to a single one; see
    /// [`Config::origins`](super::Config::origins).
    #[serde(default, deserialize_with = "one_or_more")]
    pub origin: Option<BTreeMap<String, Vec<String>>>,
    /// Upstream to the file of its certificates.
    pub origin_ca: Option<BTreeMap<String, String>>,
    /// Upstream to rule; see [`Config::access`](super::Config::access).
    pub access: Option<BTreeMap<String, String>>,
}

/// The variable that sets a key: `SHOAL_DATA_DIR` for `data_dir`.
pub fn variable_of(key: &str) -> String {
    format!("SHOAL_{}", key.to_ascii_uppercase())
}

impl RawConfig {
    /// What the environment says. Lists are separated by commas.
    pub(super) fn from_environment(environment: Environment<'_>) -> Result<Self, ConfigError> {
        let one = |key: &'static str| {
            environment(&variable_of(key))
                .map(|value| {
                    value.into_string().map_err(|value| ConfigError::Value {
                        place: Place::Variable(key),
                        problem: format!("{} is not UTF-8", value.display()),
                    })
                })
                .transpose()
        };
        let list = |key| {
            one(key).map(|text| {
                text.map(|text| {
                    let items = text.split(',').map(|item| item.trim().to_owned());
                    items.filter(|item| !item.is_empty()).collect::<Vec<_>>()
                })
            })
        };
        let table = |key| {
            list(key)?
                .map(|items| pairs(&Place::Variable(key), &items))
                .transpose()
        };
        let lists = |key| {
            list(key)?
                .map(|items| grouped(&Place::Variable(key), &items))
                .transpose()
        };
        Ok(Self {
            data_dir: one("data_dir")?,
            mirror: one("mirror")?,
            mirror_tls: one("mirror_tls")?,
            mirror_tls_key: one("mirror_tls_key")?,
            mirror_tls_name: list("mirror_tls_name")?,
            listen: list("listen")?,
            advertise: list("advertise")?,
            admin: one("admin")?,
            join: list("join")?,
            cluster_key: one("cluster_key")?,
            ticket: one("ticket")?,
            zone: one("zone")?,
            rack: one("rack")?,
            quota: one("quota")?,
            min_free: one("min_free")?,
            docker_config: one("docker_config")?,
            tag_ttl: one("tag_ttl")?,
            tag_stale: one("tag_stale")?,
            origin_reserve: one("origin_reserve")?,
            log: one("log")?,
            origin: lists("origin")?,
            origin_ca: table("origin_ca")?,
            access: table("access")?,
        })
    }

    /// Reads the `UPSTREAM=VALUE` items of a repeatable flag; the last of an upstream counts.
    pub fn flag_pairs(
        key: &'static str,
        items: &[String],
    ) -> Result<BTreeMap<String, String>, ConfigError> {
        pairs(&Place::Flag(key), items)
    }

    /// The same where an upstream has a list, in the order of its items.
    pub fn flag_lists(
        key: &'static str,
        items: &[String],
    ) -> Result<BTreeMap<String, Vec<String>>, ConfigError> {
        grouped(&Place::Flag(key), items)
    }
}

fn pairs(place: &Place, items: &[String]) -> Result<BTreeMap<String, String>, ConfigError> {
    items.iter().map(|item| pair(place, item)).collect()
}

fn grouped(place: &Place, items: &[String]) -> Result<BTreeMap<String, Vec<String>>, ConfigError> {
    let mut lists = BTreeMap::<_, Vec<_>>::new();
    for item in items {
        let (upstream, value) = pair(place, item)?;
        lists.entry(upstream).or_default().push(value);
    }
    Ok(lists)
}

fn pair(place: &Place, item: &str) -> Result<(String, String), ConfigError> {
    match item.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err(ConfigError::Value {
            place: place.clone(),
            problem: format!(
                "`{item}` names no upstream; write UPSTREAM=VALUE, such as \
                 registry.test=http://10.0.0.1:5000"
            ),
        }),
    }
}

/// A table whose values are a text or a list of texts.
fn one_or_more<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, Vec<String>>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "an origin is a URL or a list of URLs, such as ['URL', 'URL']"
    )]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    let table = Option::<BTreeMap<String, OneOrMore>>::deserialize(deserializer)?;
    Ok(table.map(|table| {
        let lists = table.into_iter().map(|(upstream, urls)| match urls {
            OneOrMore::One(url) => (upstream, vec![url]),
            OneOrMore::More(urls) => (upstream, urls),
        });
        lists.collect()
    }))
}
