//! Who is a member: node identities, cluster keys, and the tickets that the one signs for the other.
//!
//! A node is its ed25519 key. A cluster is a key too, and whoever holds it decides who gets in: it
//! signs a [`Ticket`] for each member. Two nodes show each other their tickets before anything else
//! is spoken (see [`network`](crate::network)); [`Admission`] is what a node checks them with.
//!
//! A node that holds the cluster key issues short-lived tickets to itself. A site that keeps the
//! key offline hands out ticket files. A node with neither is a cluster of its own, of which nobody
//! can become a member by accident.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::SigningKey;
use libp2p::{
    PeerId,
    identity::{self, Keypair, ed25519},
};
use serde::{Deserialize, Serialize};
use shoal_protocol::{directory::NodeId, wire};

use crate::clock;

mod ticket;

pub use ticket::{AdmissionError, ClusterId, Roles, Ticket};

/// The name of a node's identity file within its data directory.
pub const IDENTITY_FILE: &str = "identity.key";

/// How long a ticket lasts that a node issues to itself, in seconds. A day: long enough that a
/// clock which is hours off does no harm, short enough that a stolen ticket is soon worthless.
pub const OWN_TICKET_SECONDS: u64 = 24 * 3600;

const IDENTITY_HEADER: &str = "shoal node identity v1";
const CLUSTER_KEY_HEADER: &str = "shoal cluster key v1";

/// The largest file that is read as a key or a ticket, in bytes; ours are about 300.
const FILE_BYTES_MAX: u64 = 4096;

/// Why an identity, a cluster key or a ticket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// It cannot be read.
    #[error("cannot read the {what} {}: {source}", path.display())]
    Read {
        /// Which kind of file.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write the {what} {}: {source}", path.display())]
    Write {
        /// Which kind of file.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is a file already; keys are never overwritten.
    #[error("{} exists already and a {what} is never overwritten; choose another path, or remove the file if no node uses it", path.display())]
    Exists {
        /// Which kind of file.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// The file is something else, or damaged.
    #[error("{} is not a {what}: {reason}", path.display())]
    Foreign {
        /// What it should be.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The ticket of this node would be refused by every other.
    #[error(
        "this node's own ticket would be refused: {0}; have a new one issued with `shoal cluster ticket`"
    )]
    OwnTicket(AdmissionError),
}

/// A node's ed25519 key, which is its name in the swarm.
#[derive(Clone)]
pub struct Identity(ed25519::Keypair);

impl Identity {
    /// A new identity that is written nowhere.
    pub fn generate() -> Self {
        Self(ed25519::Keypair::generate())
    }

    /// The identity in `data_dir`, created (mode 0600) where there is none yet.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, ClusterError> {
        let path = data_dir.join(IDENTITY_FILE);
        match read_key(&path, IDENTITY_HEADER, "node identity") {
            Ok(key) => return Ok(Self(key)),
            Err(ClusterError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let identity = Self::generate();
        match create_key(&path, IDENTITY_HEADER, "node identity", &identity.0) {
            Ok(()) => Ok(identity),
            // Another process was faster: its identity is the one.
            Err(ClusterError::Exists { .. }) => {
                read_key(&path, IDENTITY_HEADER, "node identity").map(Self)
            }
            Err(error) => Err(error),
        }
    }

    /// The public key.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.0.public().to_bytes())
    }

    /// The public key as libp2p spells it.
    pub fn peer_id(&self) -> PeerId {
        self.keypair().public().to_peer_id()
    }

    /// The key pair as libp2p wants it.
    pub fn keypair(&self) -> Keypair {
        self.0.clone().into()
    }

    /// The key as attestations are signed with it.
    pub fn signing_key(&self) -> SigningKey {
        let mut secret = [0; 32];
        secret.copy_from_slice(&self.0.to_bytes()[..32]);
        SigningKey::from_bytes(&secret)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.node_id())
    }
}

/// The libp2p spelling of a node's key; `None` if the bytes are no point on the curve.
pub fn peer_id_of(node: &NodeId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(&node.0).ok()?;
    Some(identity::PublicKey::from(key).to_peer_id())
}

/// The node behind a libp2p peer id; `None` if its key is not ed25519.
pub fn node_id_of(peer: &PeerId) -> Option<NodeId> {
    let key = identity::PublicKey::try_decode_protobuf(peer.as_ref().digest()).ok()?;
    Some(NodeId(key.try_into_ed25519().ok()?.to_bytes()))
}

/// The key that makes members. Whoever holds it can admit any node.
#[derive(Clone)]
pub struct ClusterKey(ed25519::Keypair);

impl ClusterKey {
    /// A new key that is written nowhere.
    pub fn generate() -> Self {
        Self(ed25519::Keypair::generate())
    }

    /// Makes a new key and writes it to `path` (mode 0600), where there must be no file yet.
    pub fn create(path: &Path) -> Result<Self, ClusterError> {
        let key = Self::generate();
        create_key(path, CLUSTER_KEY_HEADER, "cluster key", &key.0)?;
        Ok(key)
    }

    /// Reads what [`create`](Self::create) wrote.
    pub fn load(path: &Path) -> Result<Self, ClusterError> {
        read_key(path, CLUSTER_KEY_HEADER, "cluster key").map(Self)
    }

    /// The cluster's name: the public half.
    pub fn cluster(&self) -> ClusterId {
        ClusterId(self.0.public().to_bytes())
    }

    /// A member's ticket, valid until `not_after` (seconds since 1970).
    pub fn issue(&self, node: NodeId, not_after: u64, roles: Roles) -> Ticket {
        Ticket::sign(&self.0, node, not_after, roles)
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey({})", self.cluster())
    }
}

/// What a node gets in with, and what it lets others in by. Cloning it clones a handle.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: NodeId,
    cluster: ClusterId,
    /// Issues our own tickets, where we hold it.
    key: Option<ClusterKey>,
    own: Mutex<Ticket>,
    banned: RwLock<BTreeSet<NodeId>>,
    /// Until when the newest ticket holds that each peer has shown, in seconds since 1970.
    until: Mutex<BTreeMap<NodeId, u64>>,
    alone: bool,
}

impl Admission {
    /// A node that holds the cluster key and issues its own tickets.
    pub fn with_key(key: ClusterKey, identity: &Identity) -> Self {
        Self::issuing(key, identity, false)
    }

    /// A node that was given a ticket. Refuses one that others would refuse.
    pub fn with_ticket(ticket: Ticket, identity: &Identity) -> Result<Self, ClusterError> {
        let admission = Self::unchecked(ticket, identity);
        admission
            .verify(&ticket, identity.node_id())
            .map_err(ClusterError::OwnTicket)?;
        Ok(admission)
    }

    pub(crate) fn unchecked(ticket: Ticket, identity: &Identity) -> Self {
        Self(Arc::new(Inner {
            node: identity.node_id(),
            cluster: ticket.cluster(),
            key: None,
            own: Mutex::new(ticket),
            banned: RwLock::default(),
            until: Mutex::default(),
            alone: false,
        }))
    }

    /// A swarm of one, in a cluster that is made up now and whose key nobody else will see.
    pub fn alone(identity: &Identity) -> Self {
        Self::issuing(ClusterKey::generate(), identity, true)
    }

    fn issuing(key: ClusterKey, identity: &Identity, alone: bool) -> Self {
        let node = identity.node_id();
        let not_after = clock::unix_seconds() + OWN_TICKET_SECONDS;
        let own = key.issue(node, not_after, Roles::MEMBER);
        Self(Arc::new(Inner {
            node,
            cluster: key.cluster(),
            key: Some(key),
            own: Mutex::new(own),
            banned: RwLock::default(),
            until: Mutex::default(),
            alone,
        }))
    }

    /// Whether no cluster was configured, so that nobody can ever join.
    pub fn is_alone(&self) -> bool {
        self.0.alone
    }

    /// The cluster that this node belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.0.cluster
    }

    /// The ticket to show. Renewed when half of its time is over, if this node holds the key.
    pub fn own_ticket(&self) -> Ticket {
        let mut own = self.0.own.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::unix_seconds();
        if let Some(key) = &self.0.key
            && own.not_after() < now + OWN_TICKET_SECONDS / 2
        {
            *own = key.issue(self.0.node, now + OWN_TICKET_SECONDS, Roles::MEMBER);
        }
        *own
    }

    /// Whether `peer`, which has proved that it owns its key, may speak with us.
    pub fn verify(&self, ticket: &Ticket, peer: NodeId) -> Result<(), AdmissionError> {
        if self.is_banned(&peer) {
            return Err(AdmissionError::Banned);
        }
        ticket.verify(self.0.cluster, peer, clock::unix_seconds())
    }

    /// [`verify`](Self::verify), and remembers how long the peer is admitted for.
    pub fn admit(&self, ticket: &Ticket, peer: NodeId) -> Result<(), AdmissionError> {
        self.verify(ticket, peer)?;
        let mut until = self.0.until.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = until.entry(peer).or_default();
        *latest = ticket.not_after().max(*latest);
        Ok(())
    }

    /// Whether `peer` was admitted, its ticket has not expired since, and it is not banned.
    pub fn is_admitted(&self, peer: &NodeId) -> bool {
        let until = self.0.until.lock().unwrap_or_else(PoisonError::into_inner);
        let valid = until
            .get(peer)
            .is_some_and(|until| clock::unix_seconds() <= *until);
        valid && !self.is_banned(peer)
    }

    /// Never lets `node` in again, while this process lives.
    pub fn ban(&self, node: NodeId) {
        let mut banned = self
            .0
            .banned
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        banned.insert(node);
    }

    /// Whether [`ban`](Self::ban) was called for `node`.
    pub fn is_banned(&self, node: &NodeId) -> bool {
        let banned = self.0.banned.read().unwrap_or_else(PoisonError::into_inner);
        banned.contains(node)
    }
}

fn read_text(path: &Path, what: &'static str) -> Result<String, ClusterError> {
    let read = |source| ClusterError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    let foreign = |reason: &str| ClusterError::Foreign {
        what,
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let length = std::fs::metadata(path).map_err(read)?.len();
    if length > FILE_BYTES_MAX {
        return Err(foreign("it is too large"));
    }
    let bytes = std::fs::read(path).map_err(read)?;
    String::from_utf8(bytes).map_err(|_| foreign("it is not text"))
}

fn read_key(
    path: &Path,
    header: &str,
    what: &'static str,
) -> Result<ed25519::Keypair, ClusterError> {
    let text = read_text(path, what)?;
    let foreign = |reason: String| ClusterError::Foreign {
        what,
        path: path.to_owned(),
        reason,
    };
    let body = text
        .strip_prefix(header)
        .ok_or_else(|| foreign(format!("its first line should be `{header}`")))?;
    let secret = BASE64
        .decode(body.trim())
        .ok()
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .ok_or_else(|| {
            foreign("its second line should be 32 bytes in base64; it is damaged".into())
        })?;
    let secret =
        ed25519::SecretKey::try_from_bytes(secret).map_err(|error| foreign(error.to_string()))?;
    Ok(secret.into())
}

fn create_key(
    path: &Path,
    header: &str,
    what: &'static str,
    key: &ed25519::Keypair,
) -> Result<(), ClusterError> {
    let text = format!("{header}\n{}\n", BASE64.encode(&key.to_bytes()[..32]));
    create_private(path, &text).map_err(|source| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::AlreadyExists {
            ClusterError::Exists { what, path }
        } else {
            ClusterError::Write { what, path, source }
        }
    })
}

/// Creates a file with mode 0600 that is there either as a whole or not at all.
pub(crate) fn create_private(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let scratch = path.with_file_name(name);
    // What a process of the same id left behind when it died here.
    let _ = std::fs::remove_file(&scratch);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&scratch)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            // Unlike a rename, a link never replaces what is there.
            std::fs::hard_link(&scratch, path)
        });
    let _ = std::fs::remove_file(&scratch);
    written
}

#[cfg(test)]
mod tests;
