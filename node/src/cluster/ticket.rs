//! The ticket: a cluster's signed word that a node is a member.

use std::{fmt, path::Path, str::FromStr};

use super::{BASE64, ClusterError, Deserialize, NodeId, Serialize, ed25519, read_text, wire};
use base64::Engine as _;

/// What the text form of a ticket begins with, so that another file is recognised as such.
const TEXT_PREFIX: &str = "shoal-ticket:";

/// The version of the signed statement that this build writes and reads.
const VERSION: u8 = 1;

/// A cluster's ed25519 public key, which is its name.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterId(pub [u8; 32]);

impl fmt::Display for ClusterId {
    /// The first 6 bytes in hex: enough to tell clusters apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..6]))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a ticket allows, as a set of bits. Unknown bits are kept and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles(pub u32);

impl Roles {
    /// Takes part in the swarm.
    pub const MEMBER: Self = Self(1);

    /// Whether all of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A cluster's word that a node is a member until a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    version: u8,
    cluster: ClusterId,
    node: NodeId,
    not_after: u64,
    roles: Roles,
    /// ed25519 by the cluster's key over all of the above. In halves, because serde derives arrays
    /// up to 32.
    signature: [[u8; 32]; 2],
}

/// Why a node is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// Its ticket was signed by another cluster.
    #[error(
        "the ticket is for cluster {theirs}, this is cluster {ours}; give both nodes the same cluster key or tickets of one cluster"
    )]
    ForeignCluster {
        /// The cluster that the ticket names.
        theirs: ClusterId,
        /// Our own.
        ours: ClusterId,
    },
    /// Its ticket is too old.
    #[error("the ticket expired {seconds} s ago; issue a new one, and check both clocks")]
    Expired {
        /// How long ago, in seconds.
        seconds: u64,
    },
    /// It shows someone else's ticket.
    #[error(
        "the ticket was issued to node {issued_to:?}, but node {shown_by:?} shows it; every node needs a ticket of its own"
    )]
    WrongPeer {
        /// Whose ticket it is.
        issued_to: NodeId,
        /// Who showed it.
        shown_by: NodeId,
    },
    /// The signature is not the cluster's.
    #[error("the ticket's signature is wrong: it was forged or damaged")]
    BadSignature,
    /// The ticket does not make its owner a member.
    #[error("the ticket does not carry the member role; issue a new one")]
    NotMember,
    /// It is no ticket that this build can read.
    #[error("not a ticket that this version can read: {0}")]
    Malformed(String),
    /// The node was caught lying.
    #[error("the node is banned: it vouched for wrong bytes")]
    Banned,
}

impl Ticket {
    pub(super) fn sign(key: &ed25519::Keypair, node: NodeId, not_after: u64, roles: Roles) -> Self {
        let mut ticket = Self {
            version: VERSION,
            cluster: ClusterId(key.public().to_bytes()),
            node,
            not_after,
            roles,
            signature: [[0; 32]; 2],
        };
        let signature = key.sign(&ticket.statement());
        ticket
            .signature
            .as_flattened_mut()
            .copy_from_slice(&signature);
        ticket
    }

    /// The cluster that it names.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The node that it was issued to.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The last second since 1970 at which it holds.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// Whether it makes `shown_by` a member of `ours` at `now` (seconds since 1970).
    pub(super) fn verify(
        &self,
        ours: ClusterId,
        shown_by: NodeId,
        now: u64,
    ) -> Result<(), AdmissionError> {
        if self.version != VERSION {
            let reason = format!("version {} of the ticket", self.version);
            return Err(AdmissionError::Malformed(reason));
        }
        if self.cluster != ours {
            return Err(AdmissionError::ForeignCluster {
                theirs: self.cluster,
                ours,
            });
        }
        let signed = ed25519::PublicKey::try_from_bytes(&ours.0)
            .is_ok_and(|key| key.verify(&self.statement(), self.signature.as_flattened()));
        if !signed {
            return Err(AdmissionError::BadSignature);
        }
        if self.node != shown_by {
            return Err(AdmissionError::WrongPeer {
                issued_to: self.node,
                shown_by,
            });
        }
        if now > self.not_after {
            return Err(AdmissionError::Expired {
                seconds: now - self.not_after,
            });
        }
        if !self.roles.contains(Roles::MEMBER) {
            return Err(AdmissionError::NotMember);
        }
        Ok(())
    }

    /// The bytes to show to a peer.
    pub(crate) fn encoded(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Reads what a peer showed.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, AdmissionError> {
        wire::decode(bytes).map_err(|error| AdmissionError::Malformed(error.to_string()))
    }

    /// Reads a ticket file.
    pub fn load(path: &Path) -> Result<Self, ClusterError> {
        let what = "cluster ticket";
        let text = read_text(path, what)?;
        text.parse()
            .map_err(|error: AdmissionError| ClusterError::Foreign {
                what,
                path: path.to_owned(),
                reason: error.to_string(),
            })
    }

    fn statement(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(b"shoal membership ticket\0");
        out.push(self.version);
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.node.0);
        out.extend_from_slice(&self.not_after.to_be_bytes());
        out.extend_from_slice(&self.roles.0.to_be_bytes());
        out
    }
}

impl fmt::Display for Ticket {
    /// The text form: one line to hand out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TEXT_PREFIX}{}", BASE64.encode(self.encoded()))
    }
}

impl FromStr for Ticket {
    type Err = AdmissionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = |reason: &str| AdmissionError::Malformed(reason.to_owned());
        let body = text
            .trim()
            .strip_prefix(TEXT_PREFIX)
            .ok_or_else(|| malformed("it does not begin with `shoal-ticket:`"))?;
        let bytes = BASE64
            .decode(body)
            .map_err(|_| malformed("it is not base64; it is damaged"))?;
        Self::decode(&bytes)
    }
}
