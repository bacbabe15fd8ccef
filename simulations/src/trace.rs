//! A number that names a run: two runs that did anything differently have different ones.

use std::collections::VecDeque;

use shoal_protocol::{digest::Digest, event::Action, message::Message};

/// Everything that the machines did so far, mixed into 128 bits. Not cryptographic: it tells runs
/// apart, and costs nothing.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    state: [u64; 2],
    pub(crate) actions: u64,
    log: Option<Log>,
}

/// The last lines of what was done, for people.
#[derive(Clone, Debug)]
struct Log {
    lines: VecDeque<String>,
    most: usize,
    /// Of this host alone.
    of: Option<usize>,
}

/// Characters of a line of the log.
const LINE: usize = 180;

impl Trace {
    pub(crate) fn new() -> Self {
        Self {
            state: [0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b],
            actions: 0,
            log: None,
        }
    }

    /// From now on the last `most` lines are kept, of one host or of all.
    pub(crate) fn keep_lines(&mut self, most: usize, of: Option<usize>) {
        let lines = VecDeque::new();
        self.log = Some(Log { lines, most, of });
    }

    /// What was kept.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.log.map_or_else(Vec::new, |log| log.lines.into())
    }

    /// Keeps a line, where lines are kept.
    pub(crate) fn line(&mut self, text: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            if log.lines.len() >= log.most {
                log.lines.pop_front();
            }
            log.lines.push_back(text().chars().take(LINE).collect());
        }
    }

    fn word(&mut self, word: u64) {
        let [a, b] = self.state;
        let a = (a ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
        self.state = [
            a,
            b.rotate_left(17)
                .wrapping_add(a)
                .wrapping_mul(0xd6e8_feb8_6659_fd93),
        ];
    }

    /// An action of a host at a time.
    pub(crate) fn action(&mut self, now: u64, host: usize, action: &Action) {
        self.actions += 1;
        self.word(now);
        let followed = self
            .log
            .as_ref()
            .is_some_and(|log| log.of.is_none_or(|of| of == host));
        if followed && !is_routine(action) {
            self.line(|| format!("{:10.6} s: node {host}: {action:?}", now as f64 / 1e9));
        }
        let chunk = |blob: &Digest, index: u32| blob.prefix() ^ u64::from(index);
        let (kind, what) = match action {
            Action::Send { to, message } => (
                1,
                u64::from(to.0) << 32 | crate::bytes::on_the_wire(message),
            ),
            Action::SendChunk { to, blob, index } => {
                (2, chunk(blob, *index) ^ u64::from(to.0) << 32)
            }
            Action::Expect { from, blob, index } => {
                (3, chunk(blob, *index) ^ u64::from(from.0) << 32)
            }
            Action::Unexpect { from, blob, index } => {
                (4, chunk(blob, *index) ^ u64::from(from.0) << 32)
            }
            Action::ReadOrigin { blob, lease, .. } => (
                5,
                chunk(blob, lease.first) ^ u64::from(lease.end) << 32 ^ lease.id.term,
            ),
            Action::StopOrigin { blob, lease } => (6, blob.prefix() ^ lease.term),
            Action::Sized { blob, size, .. } => (7, blob.prefix() ^ size),
            Action::Failed { blob, .. } => (8, blob.prefix()),
            Action::Discard { blob } => (9, blob.prefix()),
            Action::DropForeign { blob } => (10, blob.prefix()),
            Action::DropDiffering { blob, .. } => (11, blob.prefix()),
            Action::SendHashes { to, blob } => (12, blob.prefix() ^ u64::from(to.0)),
            Action::CheckChunk { blob, index } => (13, chunk(blob, *index)),
            Action::CheckProof { blob, index, .. } => (14, chunk(blob, *index)),
            Action::AskOrigin { .. } => (15, 0),
            Action::TagResolved { .. } => (16, 0),
            Action::Ban { peer, .. } => (17, u64::from(peer.0)),
            Action::MemberUp(peer) => (18, u64::from(peer.0)),
            Action::MemberDown(peer) => (19, u64::from(peer.0)),
            Action::Note(note) => (20, note.len() as u64),
        };
        self.word((host as u64) << 8 | kind);
        self.word(what);
    }

    /// The name of the run, in hexadecimal.
    pub(crate) fn name(&self) -> String {
        format!("{:016x}", self.state[0] ^ self.state[1].rotate_left(32))
    }
}

/// What happens all the time and says little.
fn is_routine(action: &Action) -> bool {
    match action {
        Action::Send { message, .. } => matches!(
            message,
            Message::Swim(_)
                | Message::MembersHash(_)
                | Message::Members { .. }
                | Message::Have { .. }
                | Message::Queued { .. }
        ),
        Action::Expect { .. } | Action::Unexpect { .. } => true,
        Action::SendChunk { .. }
        | Action::ReadOrigin { .. }
        | Action::StopOrigin { .. }
        | Action::Sized { .. }
        | Action::Failed { .. }
        | Action::Discard { .. }
        | Action::DropForeign { .. }
        | Action::DropDiffering { .. }
        | Action::SendHashes { .. }
        | Action::CheckChunk { .. }
        | Action::CheckProof { .. }
        | Action::AskOrigin { .. }
        | Action::TagResolved { .. }
        | Action::Ban { .. }
        | Action::MemberUp(_)
        | Action::MemberDown(_)
        | Action::Note(_) => false,
    }
}
