//! TLS on the mirror's port, as the operator configures it.

use std::{net::IpAddr, path::PathBuf, str::FromStr};

use super::{ConfigError, Sources};

/// The name of the file, within the data directory, with the certificate of the authority that signs
/// generated certificates.
pub const MIRROR_CA_FILE: &str = "mirror-ca.pem";

/// The value of `mirror_tls` that is not a file.
const GENERATED: &str = "generated";

/// The certificate that the mirror shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorTls {
    /// One of its own making, for localhost and these names.
    Generated {
        /// Host names and addresses.
        names: Vec<String>,
    },
    /// The operator's.
    Files {
        /// The certificate and those between it and its authority, in PEM.
        certificate: PathBuf,
        /// Its key, in PEM.
        key: PathBuf,
    },
}

/// A DNS name without wildcards, or an address.
struct CertificateName(String);

impl FromStr for CertificateName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self(ip.to_string()));
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        };
        if text.len() <= 253 && text.split('.').all(label) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(format!(
                "`{text}` is not a host name or an address; write one such as node-1.example"
            ))
        }
    }
}

impl Sources {
    pub(super) fn mirror_tls(&self) -> Result<Option<MirrorTls>, ConfigError> {
        let certificate = self.path("mirror_tls", |raw| raw.mirror_tls.as_ref())?;
        let key = self.path("mirror_tls_key", |raw| raw.mirror_tls_key.as_ref())?;
        let names: Vec<CertificateName> =
            self.list("mirror_tls_name", |raw| raw.mirror_tls_name.as_ref())?;
        let names: Vec<String> = names.into_iter().map(|name| name.0).collect();
        let generated = certificate
            .as_ref()
            .is_some_and(|path| path.as_os_str() == GENERATED);
        match (certificate, key) {
            (Some(_), None) if generated => Ok(Some(MirrorTls::Generated { names })),
            (_, _) if !names.is_empty() => Err(ConfigError::Conflict(
                "--mirror-tls-name is for --mirror-tls generated; a certificate of your own has its \
                 names already",
            )),
            (Some(certificate), Some(key)) if !generated => {
                Ok(Some(MirrorTls::Files { certificate, key }))
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err(ConfigError::Conflict(
                "--mirror-tls FILE needs --mirror-tls-key FILE, the certificate's key; or write \
                 --mirror-tls generated",
            )),
            (_, Some(_)) => Err(ConfigError::Conflict(
                "--mirror-tls-key needs --mirror-tls FILE, the certificate of that key",
            )),
        }
    }
}
