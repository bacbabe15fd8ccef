//! TLS on the mirror's port: the certificate that is shown, and how it stays valid.
//!
//! The operator's own files are looked at every [`LOOK_EVERY`] and taken when they have changed and
//! fit together. A generated certificate is replaced before it ends; its authority stays, so that
//! clients are told of that once.

mod authority;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;
use x509_parser::{certificate::X509Certificate, parse_x509_certificate};

use self::authority::Authority;
use crate::{clock::unix_seconds, config::MirrorTls};

/// How often it is looked whether another certificate is to be shown.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why the mirror cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("cannot {doing} {}, which the mirror needs for TLS", path.display())]
    File {
        /// Read or write.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not {expected}: {problem}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Certificate and key cannot be used together.
    #[error(
        "the certificate {} and the key {} cannot be used: {problem}; give the key that the first \
         certificate of the file was made for",
        certificate.display(), key.display()
    )]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with them.
        problem: String,
    },
    /// No certificate can be generated.
    #[error("cannot generate a certificate for the mirror: {0}")]
    Generate(String),
}

/// The mirror's certificates.
pub(crate) struct Certificates {
    source: Source,
    shown: Arc<Shown>,
}

/// Where certificates come from.
enum Source {
    Files(Files),
    Generated(Authority),
}

/// The operator's files.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    /// What they were when they were last read, whether or not that was any good.
    seen: Stamp,
}

/// What tells one version of the files from the next.
type Stamp = [Option<(u64, i64, i64, u64)>; 2];

/// The certificate that clients are shown now.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.0.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

impl Certificates {
    /// What the configuration says, for a mirror at `mirror`.
    ///
    /// # Errors
    /// Files that are missing or are not what they should be.
    pub(crate) fn open(
        config: &MirrorTls,
        data_dir: &Path,
        mirror: SocketAddr,
    ) -> Result<Self, TlsError> {
        let (source, first) = match config {
            MirrorTls::Files { certificate, key } => {
                let mut files = Files {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    seen: Stamp::default(),
                };
                let first = files.read()?;
                (Source::Files(files), first)
            }
            MirrorTls::Generated { names } => {
                let mut authority = Authority::open(data_dir, mirror.ip(), names)?;
                let first = authority.issue()?;
                (Source::Generated(authority), first)
            }
        };
        Ok(Self {
            source,
            shown: Arc::new(Shown(RwLock::new(Arc::new(first)))),
        })
    }

    /// What takes connections.
    ///
    /// # Errors
    /// Never with the algorithms that this is built with.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Generate(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.shown) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config).into())
    }

    /// Shows the next certificate when there is one, for ever.
    pub(crate) async fn keep(mut self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look();
        }
    }

    fn look(&mut self) {
        let next = match &mut self.source {
            Source::Files(files) if files.stamp() != files.seen => files.read(),
            Source::Generated(authority) if authority.is_due() => authority.issue(),
            Source::Files(_) | Source::Generated(_) => return,
        };
        match next {
            Ok(next) => {
                *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
                tracing::info!("the mirror has a new certificate");
            }
            // Where one of two files was replaced, the other is about to be.
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the mirror keeps its certificate"
            ),
        }
    }
}

impl Files {
    fn read(&mut self) -> Result<CertifiedKey, TlsError> {
        self.seen = self.stamp();
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::File {
                doing: "read",
                path,
                source,
            }
        };
        let content = |path: &Path, expected, problem: String| TlsError::Content {
            path: path.to_owned(),
            expected,
            problem,
        };
        let (certificate, key) = (&self.certificate, &self.key);
        let bytes = fs::read(certificate).map_err(unreadable(certificate))?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| content(certificate, "a PEM certificate chain", error.to_string()))?;
        let first = chain.first().ok_or_else(|| {
            let problem = "it has no `-----BEGIN CERTIFICATE-----`";
            content(certificate, "a PEM certificate chain", problem.to_owned())
        })?;
        let ends = ends_at(first)
            .map_err(|problem| content(certificate, "a PEM certificate chain", problem))?;
        let bytes = fs::read(key).map_err(unreadable(key))?;
        let private = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|error| content(key, "a PEM private key", error.to_string()))?;
        let pair = certified(chain, private).map_err(|problem| TlsError::Pair {
            certificate: certificate.clone(),
            key: key.clone(),
            problem,
        })?;
        if ends < unix_seconds() {
            tracing::warn!(
                "the mirror's certificate {} has expired; clients will refuse it",
                certificate.display()
            );
        }
        Ok(pair)
    }

    fn stamp(&self) -> Stamp {
        [&self.certificate, &self.key].map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
        })
    }
}

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

/// A certificate with its key. The error is for people.
fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, String> {
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| error.to_string())
}

/// The second since 1970 at which a certificate ends.
fn ends_at(certificate: &[u8]) -> Result<u64, String> {
    let (_, read) = parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    Ok(end_of(&read))
}

/// The same of one that was read.
fn end_of(certificate: &X509Certificate<'_>) -> u64 {
    u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
