//! What clients ask for by name: upstream, repository, tag or digest.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// A registry as clients write it, `docker.io` or `registry.test:5000`; or an alias from the
/// configuration.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upstream(String);

/// The path of a repository within its upstream, `library/redis`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository(String);

/// A tag, `7.2-alpine`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// A manifest within a repository, by tag or by digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// By tag: what it names may change.
    Tag(Tag),
    /// By digest: what it names never changes.
    Digest(Digest),
}

/// A full image reference, `docker.io/library/redis:7.2`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// The registry.
    pub upstream: Upstream,
    /// The repository within it.
    pub repository: Repository,
    /// The manifest within that.
    pub selector: Selector,
}

/// Why a string is not what it was read as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Not a registry name.
    #[error(
        "`{0}` is not a registry name; write a host name with an optional port, such as docker.io"
    )]
    Upstream(String),
    /// Not a repository path.
    #[error(
        "`{0}` is not a repository name; its path components are lower-case letters and digits, \
         separated by `.`, `_`, `__` or `-`, at most 255 characters in all"
    )]
    Repository(String),
    /// Not a tag.
    #[error("`{0}` is not a tag; tags have up to 128 letters, digits, `_`, `.` and `-`")]
    Tag(String),
    /// The part after `@` is not a digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// The registry that a reference without one means.
pub const DEFAULT_UPSTREAM: &str = "docker.io";

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

impl Upstream {
    /// Whether a first path component is to be read as a registry: it has a dot or a port, or is
    /// `localhost`, the rule that docker applies to references.
    pub fn looks_like_one(component: &str) -> bool {
        component.contains(['.', ':']) || component == "localhost"
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self(DEFAULT_UPSTREAM.to_owned())
    }
}

impl FromStr for Upstream {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') && !port.ends_with(']') => {
                (host, Some(port))
            }
            _ => (text, None),
        };
        let bracketed = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let host_fits = match bracketed {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.split('.').all(|label| {
                        !label.is_empty()
                            && label
                                .bytes()
                                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                            && !label.starts_with('-')
                            && !label.ends_with('-')
                    })
            }
        };
        let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        if host_fits && port_fits && text.len() <= 255 {
            // Host names do not tell case apart; one registry must not be two upstreams.
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(ReferenceError::Upstream(clip(text)))
        }
    }
}

impl Repository {
    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    /// The grammar of the OCI distribution specification:
    /// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` for each component.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fits = !text.is_empty() && text.len() <= 255 && text.split('/').all(is_path_component);
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReferenceError::Repository(clip(text)))
        }
    }
}

fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(|b| alphanumeric(*b))
        || !bytes.last().is_some_and(|b| alphanumeric(*b))
    {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

impl Tag {
    /// The tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    /// The grammar of the OCI distribution specification: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let fits = text.len() <= 128
            && text.bytes().next().is_some_and(word)
            && text
                .bytes()
                .all(|byte| word(byte) || byte == b'.' || byte == b'-');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReferenceError::Tag(clip(text)))
        }
    }
}

impl FromStr for Selector {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.contains(':') {
            Ok(Self::Digest(text.parse()?))
        } else {
            Ok(Self::Tag(text.parse()?))
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// Reads a reference as docker does: `redis` is `docker.io/library/redis:latest`.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (upstream, rest) = match name.split_once('/') {
            Some((first, rest)) if Upstream::looks_like_one(first) => (first.parse()?, rest),
            _ => (Upstream::default(), name),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let path = if upstream == Upstream::default() && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        let selector = match (digest, tag) {
            (Some(digest), _) => Selector::Digest(digest.parse()?),
            (None, tag) => Selector::Tag(tag.unwrap_or("latest").parse()?),
        };
        Ok(Self {
            upstream,
            repository: path.parse()?,
            selector,
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = match self.selector {
            Selector::Tag(_) => ':',
            Selector::Digest(_) => '@',
        };
        write!(
            f,
            "{}/{}{separator}{}",
            self.upstream, self.repository, self.selector
        )
    }
}

macro_rules! text_type {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ReferenceError;

            fn try_from(text: String) -> Result<Self, ReferenceError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    )*};
}

text_type!(Upstream, Repository, Tag);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_docker_reads_them() {
        for (written, meant) in [
            ("redis", "docker.io/library/redis:latest"),
            ("team/app:1", "docker.io/team/app:1"),
            (
                "registry.test/team/image:tag",
                "registry.test/team/image:tag",
            ),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            (
                "quay.io/x/y:t@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                "quay.io/x/y@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            ),
        ] {
            assert_eq!(written.parse::<Reference>().unwrap().to_string(), meant);
        }
    }

    #[test]
    fn names_outside_the_grammar_are_refused() {
        for bad in [
            "", "Upper", "a//b", "../etc", "a/../b", "-a", "a-", "a..b", "a___b", "a%2fb",
        ] {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
        for good in ["a", "a/b/c", "a.b_c__d--e/f0"] {
            assert!(good.parse::<Repository>().is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a b", "a/b"] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
        for bad in [
            "", "a b", "a:0", "a:99999", "-a.b", "a..b", "[::g]:1", "u@h",
        ] {
            assert!(bad.parse::<Upstream>().is_err(), "{bad}");
        }
        for good in ["docker.io", "Registry.Test:5000", "[::1]:5000", "localhost"] {
            assert!(good.parse::<Upstream>().is_ok(), "{good}");
        }
    }
}
