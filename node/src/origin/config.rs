//! Where upstreams are, as the operator configures it.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Deserializer, de};
use shoal_protocol::reference::Upstream;
use url::Url;

use super::{allowance::Reserve, storage::BucketUrl};

/// Where this node finds the content of upstreams.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OriginsConfig {
    /// Upstreams that do not simply live at `https://` and their own name, or that need a
    /// certificate authority or credentials of their own; each with all of its origins, at least one,
    /// in the order in which they are asked.
    pub upstreams: BTreeMap<Upstream, Vec<OriginSpec>>,
    /// docker's `config.json`, for the credentials of all others. A file that does not exist
    /// means no credentials.
    pub docker_config: Option<PathBuf>,
    /// Pulls to keep, where a registry says how many it still gives.
    pub reserve: Reserve,
}

/// One origin of a configured upstream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginSpec {
    /// A registry, `http://` or `https://`, whose path is put before `/v2/`; or a registry's storage or
    /// an OCI image layout in a directory, `file:///` and its path, or in a bucket of S3, Google or
    /// Azure, `s3://`, `gs://` or `az://` and its name and what all keys begin with. A bucket's query
    /// may have `endpoint`, a server's URL; `region` (S3) or `account` (Azure); `keys`, a file with
    /// credentials; and `anonymous=true`.
    ///
    /// The operator vouches for a registry's host, so it may be private, on any port, and so may the
    /// hosts that it redirects to or names as token realm if all its own addresses are private
    /// (a registry and its store on one network). A registry with a public address leads to
    /// other hosts at public addresses only. Plain http is followed only from an `http://` URL.
    #[serde(deserialize_with = "parse_url")]
    pub url: Url,
    /// PEM certificates of authorities to trust besides the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Who to log in as. Without it, docker's configuration is asked for the host in `url`.
    #[serde(default)]
    pub credentials: Option<Credentials>,
}

/// A user name and where its password is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// `password = "…"` or `password_file = "…"`.
    #[serde(flatten)]
    pub secret: Secret,
}

/// A password, or the file that holds it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub enum Secret {
    /// The password itself.
    #[serde(rename = "password")]
    Password(String),
    /// A file with the password on its first line, read again for each login, so that it can be
    /// rotated.
    #[serde(rename = "password_file")]
    File(PathBuf),
}

/// Why the configuration of origins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OriginConfigError {
    /// The URL cannot be that of an origin.
    #[error(
        "upstream {upstream}: `{url}` is not the URL of an origin: {problem}; write \
         http://HOST[:PORT] or https://HOST[:PORT] for a registry, file:///PATH for a directory, \
         s3://BUCKET[/PREFIX] (or gs:, az:) for a bucket"
    )]
    Url {
        /// Whose.
        upstream: Upstream,
        /// The URL, without any password.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The CA file cannot be read.
    #[error("upstream {upstream}: cannot read its CA file {}", path.display())]
    CaFile {
        /// Whose.
        upstream: Upstream,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The CA file holds no usable certificate.
    #[error(
        "upstream {upstream}: {} holds no PEM certificate that can be used; it must hold \
         `-----BEGIN CERTIFICATE-----` blocks of certificate authorities",
        path.display()
    )]
    CaContent {
        /// Whose.
        upstream: Upstream,
        /// Which file.
        path: PathBuf,
    },
    /// A bucket's options are wrong, or its credentials cannot be read.
    #[error(
        "upstream {upstream}: the bucket `{url}` cannot be used: {problem}; write \
         s3://BUCKET[/PREFIX]?region=REGION&endpoint=URL&keys=FILE (or gs:, or az: with account=NAME), \
         where every option may be left out"
    )]
    Bucket {
        /// Whose.
        upstream: Upstream,
        /// The URL.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// What belongs to another kind of origin is said of this one.
    #[error("upstream {upstream} is {kind}, which needs no {what}; leave that out")]
    Unfit {
        /// Whose.
        upstream: Upstream,
        /// What it is.
        kind: &'static str,
        /// What it does not need.
        what: &'static str,
    },
    /// Clients are to be judged by an origin that knows no clients.
    #[error(
        "upstream {0} is no registry: it knows no users and cannot decide who may read it, as \
         `origin` asks; give it --access {0}=open, or leave the rule out"
    )]
    AccessToStorage(Upstream),
    /// Clients are to be judged by one of several origins.
    #[error(
        "upstream {0} has several origins: a client's credentials are for one of them, and what it may \
         read there says nothing of the others; with --access {0}=origin give it one --origin, and \
         the others names of their own"
    )]
    AccessToSeveral(Upstream),
    /// Two names of one registry have different rules for who may read it.
    #[error(
        "upstreams {one} and {other} are the same registry, and one of them is open: what the other \
         is to keep could be read there; give both the same --access"
    )]
    Access {
        /// The one.
        one: Upstream,
        /// The other.
        other: Upstream,
    },
    /// The system gives no randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// The HTTP client cannot be set up.
    #[error("cannot set up the HTTP client for origins")]
    Client(#[source] reqwest::Error),
}

impl OriginSpec {
    /// A registry at `url`, with the system's authorities and docker's credentials.
    pub fn at(url: Url) -> Self {
        Self {
            url,
            ca_file: None,
            credentials: None,
        }
    }

    /// The directory in `url`, if that is what it names.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        (self.url.scheme() == "file")
            .then(|| self.url.to_file_path().ok())
            .flatten()
    }

    /// The bucket in `url`, if that is what it names.
    pub(super) fn bucket(
        &self,
        upstream: &Upstream,
    ) -> Result<Option<BucketUrl>, OriginConfigError> {
        if !BucketUrl::fits(&self.url) {
            return Ok(None);
        }
        let bucket = BucketUrl::parse(&self.url);
        let bucket = bucket.map_err(|problem| self.unusable(upstream, problem))?;
        Ok(Some(bucket))
    }

    /// The error for a bucket that cannot be used.
    pub(super) fn unusable(&self, upstream: &Upstream, problem: String) -> OriginConfigError {
        OriginConfigError::Bucket {
            upstream: upstream.clone(),
            url: self.url.to_string(),
            problem,
        }
    }

    /// Checks what a URL's type does not.
    pub(super) fn check(&self, upstream: &Upstream) -> Result<(), OriginConfigError> {
        let url = &self.url;
        let local = url.scheme() == "file";
        let bucket = BucketUrl::fits(url);
        let problem = if local && self.directory().is_none() {
            "it names no path on this host"
        } else if !bucket && !matches!(url.scheme(), "http" | "https" | "file") {
            "its scheme is none of http, https, file, s3, gs and az"
        } else if !local && url.host().is_none() {
            "it has no host"
        } else if !url.username().is_empty() || url.password().is_some() {
            "credentials do not belong in it but in `credentials` or docker's config.json, or a \
             bucket's in a file"
        } else if url.fragment().is_some() || (url.query().is_some() && !bucket) {
            "it has a query or a fragment"
        } else {
            return self.check_fitting(upstream);
        };
        let mut shown = url.clone();
        // Fails only for URLs that cannot hold a password.
        let _ = shown.set_password(None);
        Err(OriginConfigError::Url {
            upstream: upstream.clone(),
            url: shown.into(),
            problem,
        })
    }

    fn check_fitting(&self, upstream: &Upstream) -> Result<(), OriginConfigError> {
        let (local, bucket) = (self.url.scheme() == "file", BucketUrl::fits(&self.url));
        let what = if local && self.ca_file.is_some() {
            "certificates"
        } else if (local || bucket) && self.credentials.is_some() {
            "logins of a registry"
        } else {
            return self.bucket(upstream).map(drop);
        };
        Err(OriginConfigError::Unfit {
            upstream: upstream.clone(),
            kind: if local { "a directory" } else { "a bucket" },
            what,
        })
    }
}

fn parse_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    Url::parse(&text).map_err(|problem| de::Error::custom(format!("`{text}`: {problem}")))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password(_) => f.write_str("Password(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_reads_from_toml() {
        let config: OriginsConfig = toml::from_str(
            r#"
            docker_config = "/root/.docker/config.json"
            [[upstreams."registry.test"]]
            url = "http://10.0.0.1:5000"
            [[upstreams."quay.io"]]
            url = "https://quay.mirror/cache"
            ca_file = "/etc/ca.pem"
            credentials = { username = "puller", password_file = "/run/secret" }
            "#,
        )
        .unwrap();
        let plain = &config.upstreams[&"registry.test".parse().unwrap()][0];
        assert_eq!(plain.url.as_str(), "http://10.0.0.1:5000/");
        let quay = &config.upstreams[&"quay.io".parse().unwrap()][0];
        let credentials = quay.credentials.as_ref().unwrap();
        assert!(matches!(&credentials.secret, Secret::File(path) if path.ends_with("secret")));
    }

    #[test]
    fn passwords_are_not_shown() {
        let spec: OriginSpec = toml::from_str(
            r#"
            url = "https://a"
            credentials = { username = "u", password = "hunter2" }
            "#,
        )
        .unwrap();
        assert!(!format!("{spec:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_not_an_origins_url_is_refused() {
        let upstream: Upstream = "a.test".parse().unwrap();
        for url in [
            "ftp://a.test",
            "unix:/run/registry.sock",
            "file://elsewhere/srv/images",
            "file:///srv/images?x=1",
            "https://user:word@a.test",
            "https://a.test/?x=1",
            "s3:///prefix",
            "s3://user:word@bucket",
            "s3://bucket?x=1",
            "s3://bucket#part",
        ] {
            let spec = OriginSpec::at(Url::parse(url).unwrap());
            let error = spec.check(&upstream).unwrap_err().to_string();
            assert!(!error.contains("word@"), "{error}");
        }
        for url in [
            "https://a.test:5000/prefix",
            "file:///srv/images",
            "s3://bucket",
            "gs://bucket/a/b",
            "az://container?account=a",
        ] {
            let spec = OriginSpec::at(Url::parse(url).unwrap());
            assert!(spec.check(&upstream).is_ok());
        }
        let mut spec = OriginSpec::at(Url::parse("file:///srv/images").unwrap());
        spec.ca_file = Some("/ca.pem".into());
        let error = spec.check(&upstream).unwrap_err().to_string();
        assert!(error.contains("certificates"), "{error}");
    }
}
