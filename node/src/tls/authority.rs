//! A certificate authority for one mirror, kept in the data directory.
//!
//! It can sign for the mirror's own names only (X.509 name constraints), so that whoever is told to
//! trust it trusts it for nothing else. Its key stays; what it signs lives in memory.

use std::{
    fs,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints,
};
use rustls::{pki_types::PrivateKeyDer, sign::CertifiedKey};
use time::OffsetDateTime;
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

use super::{TlsError, certified, end_of};
use crate::{clock::unix_seconds, cluster::create_private, config::MIRROR_CA_FILE};

/// The name of the key's file within the data directory.
const KEY_FILE: &str = "mirror-ca.key";

/// Ten years: clients are told of it by hand.
const AUTHORITY_SECONDS: u64 = 3650 * DAY;

/// A new certificate of the authority is written when the old one has so long to go.
const AUTHORITY_MARGIN_SECONDS: u64 = 365 * DAY;

/// How long a certificate of the mirror lasts. It is made anew at each start.
const SECONDS: u64 = 30 * DAY;

/// One is replaced when it has so long to go.
const MARGIN_SECONDS: u64 = 10 * DAY;

/// Clocks may run apart.
const BACKDATED_SECONDS: u64 = DAY;

const DAY: u64 = 24 * 3600;

/// A small authority.
pub(super) struct Authority {
    names: Vec<String>,
    key: KeyPair,
    /// When the certificate that was issued last is to be replaced, in seconds since 1970.
    due: u64,
}

impl Authority {
    /// The one in `data_dir`, made where there is none; its certificate is written anew where it ends
    /// soon or is for other names.
    pub(super) fn open(
        data_dir: &Path,
        mirror: IpAddr,
        names: &[String],
    ) -> Result<Self, TlsError> {
        let authority = Self {
            names: all_names(mirror, names),
            key: key(&data_dir.join(KEY_FILE))?,
            due: 0,
        };
        let path = data_dir.join(MIRROR_CA_FILE);
        let old = fs::read(&path).ok();
        if old.as_ref().is_some_and(|pem| authority.stands_in(pem)) {
            return Ok(authority);
        }
        let certificate = authority
            .parameters()?
            .self_signed(&authority.key)
            .map_err(generate)?;
        replace(&path, &certificate.pem()).map_err(|source| TlsError::File {
            doing: "write",
            path: path.clone(),
            source,
        })?;
        if old.is_some() {
            tracing::warn!(
                "the mirror's authority has a new certificate, {}; run `shoal setup` again for \
                 clients that have a copy of it",
                path.display()
            );
        }
        Ok(authority)
    }

    /// A certificate for the mirror.
    pub(super) fn issue(&mut self) -> Result<CertifiedKey, TlsError> {
        let authority = self.parameters()?;
        let issuer = Issuer::from_params(&authority, &self.key);
        let key = KeyPair::generate().map_err(generate)?;
        let mut parameters = CertificateParams::new(self.names.clone()).map_err(generate)?;
        parameters.distinguished_name = named("Shoal mirror");
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        valid_for(&mut parameters, SECONDS)?;
        let certificate = parameters.signed_by(&key, &issuer).map_err(generate)?;
        self.due = unix_seconds() + SECONDS - MARGIN_SECONDS;
        let private = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|problem| TlsError::Generate(problem.to_owned()))?;
        certified(vec![certificate.der().clone()], private).map_err(TlsError::Generate)
    }

    /// Whether the certificate that was issued last is to be replaced.
    pub(super) fn is_due(&self) -> bool {
        unix_seconds() >= self.due
    }

    #[cfg(test)]
    pub(super) fn expire(&mut self) {
        self.due = 0;
    }

    /// Its own certificate.
    fn parameters(&self) -> Result<CertificateParams, TlsError> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = named("Shoal mirror authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        parameters.name_constraints = Some(NameConstraints {
            permitted_subtrees: self.names.iter().map(|name| subtree(name)).collect(),
            excluded_subtrees: Vec::new(),
        });
        valid_for(&mut parameters, AUTHORITY_SECONDS)?;
        Ok(parameters)
    }

    /// Whether this is a certificate of this key, for these names, that lasts.
    fn stands_in(&self, pem: &[u8]) -> bool {
        let Ok((_, pem)) = parse_x509_pem(pem) else {
            return false;
        };
        let Ok(read) = pem.parse_x509() else {
            return false;
        };
        let mut allowed: Vec<String> = match read.name_constraints() {
            Ok(Some(constraints)) => {
                let permitted = constraints.value.permitted_subtrees.iter().flatten();
                permitted
                    .filter_map(|subtree| name_of(&subtree.base))
                    .collect()
            }
            Ok(None) | Err(_) => return false,
        };
        allowed.sort();
        end_of(&read) > unix_seconds() + AUTHORITY_MARGIN_SECONDS
            && allowed == self.names
            && read.public_key().subject_public_key.as_ref() == self.key.public_key_raw()
    }
}

/// What clients on the host call the mirror, where it listens, and what the operator says; sorted.
fn all_names(mirror: IpAddr, names: &[String]) -> Vec<String> {
    let mut all = vec![
        "localhost".to_owned(),
        Ipv4Addr::LOCALHOST.to_string(),
        Ipv6Addr::LOCALHOST.to_string(),
    ];
    if !mirror.is_unspecified() {
        all.push(mirror.to_string());
    }
    all.extend_from_slice(names);
    all.sort();
    all.dedup();
    all
}

fn subtree(name: &str) -> GeneralSubtree {
    match name.parse::<IpAddr>() {
        Ok(ip) => {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip, bits))
        }
        Err(_) => GeneralSubtree::DnsName(name.to_owned()),
    }
}

/// A name as [`subtree`] takes it: an address comes with its mask.
fn name_of(name: &GeneralName<'_>) -> Option<String> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "names of other kinds are none of ours"
    )]
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let (address, _) = bytes.split_at(bytes.len() / 2);
            let v4 = <[u8; 4]>::try_from(address).map(IpAddr::from);
            let v6 = <[u8; 16]>::try_from(address).map(IpAddr::from);
            v4.or(v6).ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}

fn named(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn valid_for(parameters: &mut CertificateParams, seconds: u64) -> Result<(), TlsError> {
    let now = unix_seconds();
    let date = |seconds: u64| {
        OffsetDateTime::from_unix_timestamp(seconds.cast_signed())
            .map_err(|error| TlsError::Generate(error.to_string()))
    };
    parameters.not_before = date(now.saturating_sub(BACKDATED_SECONDS))?;
    parameters.not_after = date(now + seconds)?;
    Ok(())
}

/// The key in this file, made (mode 0600) where there is none.
fn key(path: &PathBuf) -> Result<KeyPair, TlsError> {
    let file = |doing, source| TlsError::File {
        doing,
        path: path.clone(),
        source,
    };
    if !path.exists() {
        let made = KeyPair::generate().map_err(generate)?;
        match create_private(path, &made.serialize_pem()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(file("write", error));
            }
            // Another process may have been faster: its key is the one.
            Ok(()) | Err(_) => {}
        }
    }
    let pem = fs::read_to_string(path).map_err(|source| file("read", source))?;
    KeyPair::from_pem(&pem).map_err(|error| TlsError::Content {
        path: path.clone(),
        expected: "the key of this mirror's authority (remove it to have another made)",
        problem: error.to_string(),
    })
}

/// Puts a file that everybody may read in the place of another, in one step.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let scratch = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&scratch)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&scratch, path)
        });
    if written.is_err() {
        let _ = fs::remove_file(&scratch);
    }
    written
}

fn generate(error: rcgen::Error) -> TlsError {
    TlsError::Generate(error.to_string())
}
