//! How many bytes a message takes on the wire, without writing them.

use shoal_protocol::{
    chunk::Bitfield,
    message::{Lease, LeaseReport, Message, OriginFailure},
};

/// What stands around every message: its length and a TLS record.
const FRAMING: u64 = 4 + 22;

/// The version byte and the variant.
const HEAD: u64 = 2;

const DIGEST: u64 = 33;

/// A node's record: its key, a generation in nanoseconds, one IPv4 address with a high port, and no
/// labels.
const RECORD: u64 = 32 + 9 + 1 + 1 + 4 + 3 + 2;

/// bincode's variable integers.
fn int(value: u64) -> u64 {
    match value {
        0..251 => 1,
        251..0x1_0000 => 3,
        0x1_0000..0x1_0000_0000 => 5,
        _ => 9,
    }
}

fn bitfield(bits: &Bitfield) -> u64 {
    let words = u64::from(bits.len().div_ceil(64));
    let word = if bits.count() == 0 { 1 } else { 9 };
    int(bits.len().into()) + int(words) + words * word
}

fn lease(lease: &Lease) -> u64 {
    9 + int(lease.id.number.into()) + int(lease.first.into()) + int(lease.end.into())
}

fn report(report: &LeaseReport) -> u64 {
    lease(&report.lease) + int(report.next.into()) + int(report.bytes)
}

fn chunks(chunks: &[u32]) -> u64 {
    int(chunks.len() as u64) + chunks.iter().map(|chunk| int((*chunk).into())).sum::<u64>()
}

fn failure(failure: Option<&OriginFailure>) -> u64 {
    1 + failure.map_or(0, |failure| match failure {
        OriginFailure::NotFound | OriginFailure::Denied | OriginFailure::NoRanges => 1,
        OriginFailure::Throttled { .. } => 7,
        OriginFailure::Failed(text) => 2 + text.len() as u64,
    })
}

fn size(size: Option<u64>) -> u64 {
    1 + size.map_or(0, int)
}

/// The bytes that a message takes, framing included; an upper bound where exactness would cost.
pub(crate) fn on_the_wire(message: &Message) -> u64 {
    let body = match message {
        Message::Swim(packet) => int(packet.len() as u64) + packet.len() as u64,
        Message::Members { page, .. } => 4 + page.len() as u64 * (RECORD + 9 + 3 + 1),
        Message::Join {
            size: of,
            have,
            urgent,
            leases,
            upstreams,
            want_peers,
            ..
        } => {
            let names: u64 = upstreams
                .iter()
                .map(|upstream| 1 + upstream.as_str().len() as u64)
                .sum();
            DIGEST
                + 1
                + size(*of)
                + bitfield(have)
                + chunks(urgent)
                + 1
                + leases.iter().map(report).sum::<u64>()
                + 1
                + names
                + int(u64::from(*want_peers))
                + 1
        }
        Message::Welcome {
            size: of,
            peers,
            failure: why,
            ..
        } => DIGEST + 9 + size(*of) + 1 + peers.len() as u64 * RECORD + failure(why.as_ref()),
        Message::Acting { .. } => DIGEST + 9,
        Message::Grant { lease: granted, .. } => DIGEST + lease(granted),
        Message::Report {
            report: told,
            size: of,
            failure: why,
            ..
        } => DIGEST + report(told) + size(*of) + failure(why.as_ref()),
        Message::Revoke { lease, .. } => DIGEST + 9 + int(lease.number.into()),
        Message::Lost { chunks: lost, .. } => DIGEST + chunks(lost),
        Message::Leave { .. } | Message::Part { .. } => DIGEST,
        Message::Announce { held, dropped } => {
            let held: u64 = held.iter().map(|(.., size)| DIGEST + 1 + int(*size)).sum();
            6 + held + dropped.len() as u64 * DIGEST
        }
        Message::StreamsWanted {
            upstream, bytes, ..
        } => 1 + upstream.as_str().len() as u64 + DIGEST + 3 + int(*bytes) + 2,
        Message::StreamsGranted { upstream, .. } => 1 + upstream.as_str().len() as u64 + DIGEST + 3,
        Message::Offer { size: of, have, .. } => DIGEST + 1 + size(*of) + bitfield(have) + 1,
        Message::Have { news, queue_ms } => {
            let blobs = news.iter().map(|news| DIGEST + chunks(&news.chunks));
            1 + blobs.sum::<u64>() + int((*queue_ms).into())
        }
        Message::Request { index, .. }
        | Message::Missing { index, .. }
        | Message::Cancel { index, .. }
        | Message::Corrupt { index, .. } => DIGEST + int((*index).into()),
        Message::Queued {
            index, delay_ms, ..
        } => DIGEST + int((*index).into()) + int((*delay_ms).into()),
        Message::Busy {
            index, retry_ms, ..
        }
        | Message::Elsewhere {
            index, retry_ms, ..
        } => DIGEST + int((*index).into()) + int((*retry_ms).into()),
        Message::Mismatch { size, hints, .. } => {
            DIGEST + 1 + int(*size) + 1 + hints.len() as u64 * 64
        }
        Message::Audited { hashes, .. } => DIGEST + 3 + hashes.len() as u64 * 32,
        Message::Proof { .. } => DIGEST + 5 + 32 + 32 + 5 + 64,
        Message::AskTag { .. } => 96,
        Message::Tag { .. } | Message::TagImported { .. } => 200,
        Message::MembersHash(_) | Message::AskStats { .. } => 9,
        Message::Stats { json, .. } => 9 + 5 + json.len() as u64,
        Message::AskToken { .. } => 160,
        Message::Token { .. } | Message::OfferToken { .. } => 2000,
    };
    FRAMING + HEAD + body
}

#[cfg(test)]
mod tests {
    use shoal_protocol::{
        digest::Digest,
        directory::{Directory, NodeId, NodeRecord, Place},
        message::{BlobKind, LeaseId, News},
        wire,
    };

    use super::*;

    #[test]
    fn the_estimate_is_what_is_written_or_a_little_more() {
        let directory = Directory::new();
        let peer = |key| {
            directory.intern(&NodeRecord {
                id: NodeId([key; 32]),
                generation: 1_700_000_000_000_000_000,
                addresses: vec![([10, 0, 0, key], 5004).into()],
                place: Place::default(),
            })
        };
        let blob = Digest::sha256([7; 32]);
        let id = LeaseId {
            term: u64::MAX / 3,
            number: 300,
        };
        let granted = Lease {
            id,
            first: 1000,
            end: 1004,
        };
        let told = LeaseReport {
            lease: granted,
            next: 1001,
            bytes: 4 << 20,
        };
        let messages = [
            Message::Request { blob, index: 1234 },
            Message::Have {
                news: [vec![1, 300, 2000], vec![7]]
                    .into_iter()
                    .map(|chunks| News {
                        blob,
                        chunks: chunks.into(),
                    })
                    .collect(),
                queue_ms: 5,
            },
            Message::Grant {
                blob,
                lease: granted,
            },
            Message::Report {
                blob,
                report: told.clone(),
                size: Some(10_000_000_000),
                failure: None,
            },
            Message::Join {
                blob,
                kind: BlobKind::Blob,
                size: Some(10_000_000_000),
                have: Bitfield::full(2384),
                urgent: vec![7],
                leases: vec![told],
                upstreams: vec!["registry.test".parse().unwrap()],
                want_peers: 32,
                takeover: false,
            },
            Message::Offer {
                blob,
                kind: BlobKind::Blob,
                size: None,
                have: Bitfield::new(2384),
                answer: true,
            },
            Message::Welcome {
                blob,
                term: u64::MAX / 3,
                size: Some(1 << 30),
                peers: (0..32).map(peer).collect(),
                failure: None,
            },
            Message::Announce {
                held: vec![(blob, BlobKind::Blob, 1 << 20)],
                dropped: vec![blob],
            },
        ];
        for message in messages {
            let real = wire::encode_message(message.clone(), &directory).len() as u64 + FRAMING;
            let estimate = on_the_wire(&message);
            assert!(
                (real..=real + 8).contains(&estimate),
                "{estimate} for {real}: {message:?}"
            );
        }
    }
}
