//! Where the mirror answers, and how clients know that it is the mirror.

use std::{fmt, fs, path::PathBuf, str::FromStr};

use anyhow::Context;

/// The mirror, as clients reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// `HOST:PORT`.
    pub(crate) address: String,
    /// Whether it speaks https.
    pub(crate) tls: bool,
    /// The certificate of its authority in PEM, where clients do not know that already.
    pub(crate) authority: Option<PathBuf>,
}

/// `[http://|https://]HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MirrorArg {
    pub(crate) address: String,
    pub(crate) tls: Option<bool>,
}

impl Mirror {
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// What is in the authority's file.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn authority_pem(&self) -> anyhow::Result<Option<String>> {
        self.authority
            .as_ref()
            .map(|path| {
                fs::read_to_string(path).with_context(|| {
                    format!(
                        "cannot read the authority of the mirror's certificate, {}; start the node \
                         first, or name the file with --mirror-ca",
                        path.display()
                    )
                })
            })
            .transpose()
    }
}

/// As clients name it: `HOST:PORT`.
impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl FromStr for MirrorArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tls, address) = match text.split_once("://") {
            Some(("http", address)) => (Some(false), address),
            Some(("https", address)) => (Some(true), address),
            Some(_) => (None, ""),
            None => (None, text),
        };
        let address = address.strip_suffix('/').unwrap_or(address);
        let fits = address.rsplit_once(':').is_some_and(|(host, port)| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
            let is_host = host.chars().all(is_name)
                || format!("{host}:0")
                    .parse::<std::net::SocketAddrV6>()
                    .is_ok();
            !host.is_empty() && is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if fits {
            Ok(Self {
                address: address.to_owned(),
                tls,
            })
        } else {
            Err(format!(
                "`{text}` is not a mirror's address; write HOST:PORT, such as 127.0.0.1:5005, or \
                 https://HOST:PORT"
            ))
        }
    }
}
