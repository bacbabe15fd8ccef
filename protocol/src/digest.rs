//! OCI content digests: `algorithm:hex`, as the OCI image specification defines them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A content digest. Parsed once, where it enters; correct by construction from then on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(Repr);

// The 64 bytes of sha512 are kept as two halves because serde derives arrays up to 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
enum Repr {
    Sha256([u8; 32]),
    Sha512([[u8; 32]; 2]),
}

/// The hash function of a [`Digest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256, 64 hex characters.
    Sha256,
    /// SHA-512, 128 hex characters.
    Sha512,
}

/// Why a string is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `:` between algorithm and hex.
    #[error("a digest is written `algorithm:hex`, for example sha256:2cf24d…")]
    NoAlgorithm,
    /// The algorithm is neither `sha256` nor `sha512`.
    #[error("digest algorithm `{0}` is not supported; use sha256 or sha512")]
    UnknownAlgorithm(String),
    /// The encoded part has the wrong length or characters other than lower-case hex.
    #[error("a {algorithm} digest has {expected} lower-case hex characters")]
    BadHex {
        /// The algorithm that was named.
        algorithm: &'static str,
        /// How many characters it needs.
        expected: usize,
    },
}

impl Algorithm {
    /// The name as written in a digest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl Digest {
    /// A SHA-256 digest from its 32 bytes.
    pub fn sha256(bytes: [u8; 32]) -> Self {
        Self(Repr::Sha256(bytes))
    }

    /// A SHA-512 digest from its 64 bytes.
    pub fn sha512(bytes: [u8; 64]) -> Self {
        let mut halves = [[0; 32]; 2];
        halves[0].copy_from_slice(&bytes[..32]);
        halves[1].copy_from_slice(&bytes[32..]);
        Self(Repr::Sha512(halves))
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Repr::Sha256(_) => Algorithm::Sha256,
            Repr::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The hash itself: 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Sha256(bytes) => bytes,
            Repr::Sha512(halves) => halves.as_flattened(),
        }
    }

    /// The hash in lower-case hex.
    pub fn hex(&self) -> String {
        hex::encode(self.as_bytes())
    }

    /// The first 64 bits of the hash, for rendezvous hashing and display.
    pub fn prefix(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.as_bytes()[..8]);
        u64::from_be_bytes(first)
    }

    /// `sha256:2cf24dba5fb0`: enough for a log line.
    pub fn short(&self) -> String {
        format!(
            "{}:{}",
            self.algorithm().name(),
            hex::encode(&self.as_bytes()[..6])
        )
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, encoded) = text.split_once(':').ok_or(DigestError::NoAlgorithm)?;
        match algorithm {
            "sha256" => decode_hex(encoded, "sha256").map(Self::sha256),
            "sha512" => decode_hex(encoded, "sha512").map(Self::sha512),
            other => Err(DigestError::UnknownAlgorithm(
                other.chars().take(32).collect(),
            )),
        }
    }
}

fn decode_hex<const N: usize>(
    encoded: &str,
    algorithm: &'static str,
) -> Result<[u8; N], DigestError> {
    let error = DigestError::BadHex {
        algorithm,
        expected: 2 * N,
    };
    if encoded.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(error);
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(encoded, &mut bytes).map_err(|_| error)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_read_back_as_written() {
        for text in [
            format!("sha256:{}", "0a".repeat(32)),
            format!("sha512:{}", "fe".repeat(64)),
        ] {
            assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_a_digest_is_refused() {
        let upper = format!("sha256:{}", "0A".repeat(32));
        for text in [
            "",
            "sha256",
            "sha256:",
            "md5:00",
            "sha256:baddigeststring",
            &upper,
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
