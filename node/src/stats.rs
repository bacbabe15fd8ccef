//! What a node says of itself, and what the answers of many say of the swarm.
//!
//! These types are JSON on the admin endpoint, in `shoal stats --json`, and between nodes when one
//! asks the others. Digests and node ids are text in them, sizes are bytes, rates bytes per
//! second.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Bytes by source; or, as a rate, bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceBytes {
    /// Read from origins.
    pub from_origin: u64,
    /// Received from peers.
    pub from_peers: u64,
    /// Served to clients out of the store: client bytes that needed no fetch.
    pub from_local: u64,
    /// Sent to peers.
    pub uploaded: u64,
}

impl SourceBytes {
    /// Combines two of them field by field.
    pub(crate) fn map2(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            from_origin: f(self.from_origin, other.from_origin),
            from_peers: f(self.from_peers, other.from_peers),
            from_local: f(self.from_local, other.from_local),
            uploaded: f(self.uploaded, other.uploaded),
        }
    }

    /// What came in over the network.
    pub fn fetched(self) -> u64 {
        self.from_origin.saturating_add(self.from_peers)
    }

    /// The share of all bytes that did not come from an origin, 0 to 1; `None` before the first.
    pub fn offload_ratio(self) -> Option<f64> {
        let all = self.fetched().saturating_add(self.from_local);
        (all > 0).then(|| 1.0 - self.from_origin as f64 / all as f64)
    }
}

/// One blob in one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStats {
    /// Its digest.
    pub digest: String,
    /// `manifest` or `blob`.
    pub kind: String,
    /// Its size in bytes; 0 while it is not known.
    pub size: u64,
    /// How many of them are here and checked.
    pub have_bytes: u64,
    /// Whether all are here and match the digest.
    pub complete: bool,
    /// Bytes of it that this node read from an origin since it started.
    pub from_origin: u64,
    /// Bytes of it that this node received from peers since it started.
    pub from_peers: u64,
}

/// An origin lease that a node holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStats {
    /// The blob's digest.
    pub blob: String,
    /// The first chunk.
    pub first: u32,
    /// One past the last chunk.
    pub end: u32,
}

/// A peer that a node has banned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanStats {
    /// The banned node's id.
    pub id: String,
    /// The blob that proved it.
    pub blob: String,
    /// What it did.
    pub reason: String,
}

/// How one origin of an upstream does, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OriginStats {
    /// The upstream.
    pub upstream: String,
    /// Where the origin is, without credentials and query.
    pub url: String,
    /// `up`, `limited` (it limits its clients, and is asked after the others), `away` (it is not asked
    /// but by one request after each pause) or `untried` (it was away, and nobody had a reason to ask it
    /// for 10 s and more).
    pub state: String,
    /// Seconds since it is so.
    pub since_seconds: u64,
    /// Requests that ended since the node started.
    pub requests: u64,
    /// How many of them failed, those whose body broke off included.
    pub failures: u64,
    /// Why it is not up.
    pub reason: Option<String>,
}

/// How full a node's store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreStats {
    /// Bytes of content held.
    pub used_bytes: u64,
    /// The most it may hold, where a quota is set.
    pub quota_bytes: Option<u64>,
    /// Bytes free on its file system.
    pub free_bytes: u64,
}

/// How many pulls a registry has said that it still gives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AllowanceStats {
    /// The upstream.
    pub upstream: String,
    /// Pulls that it gives in its window.
    pub limit: u64,
    /// How many of them are left.
    pub remaining: u64,
    /// The length of the window in seconds.
    pub window_seconds: u64,
    /// Whose pulls it counts, in its words: an address, or a user.
    pub source: Option<String>,
    /// How long ago it said so, in seconds.
    pub age_seconds: u64,
    /// Whether no more than the reserve is left.
    pub spared: bool,
}

/// What one node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStats {
    /// Its id: the public key in hex.
    pub id: String,
    /// Where its swarm port is reached.
    pub addresses: Vec<String>,
    /// The version of the daemon.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Bytes since it started.
    pub bytes: SourceBytes,
    /// Bytes per second over the last 10 s.
    pub rates: SourceBytes,
    /// The blobs that it holds or fetches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<BlobStats>,
    /// Pulls in progress.
    pub pulls_active: u64,
    /// Origin leases held now.
    pub leases: Vec<LeaseStats>,
    /// Digests of the blobs that it is the steward of.
    pub stewarding: Vec<String>,
    /// The peers that it has banned.
    pub bans: Vec<BanStats>,
    /// How the origins do that it is configured with, in their order, and others that it asked.
    pub origins: Vec<OriginStats>,
    /// How full its store is.
    pub store: StoreStats,
    /// Connections to peers.
    pub connections: u64,
    /// Members that it believes alive, itself among them.
    pub members_alive: u64,
    /// Members that it believes down and still remembers.
    pub members_down: u64,
    /// Origin streams open now.
    pub origin_streams: u64,
    /// What registries have said that they still give.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowances: Vec<AllowanceStats>,
    /// Blobs left out of `blobs` to keep the answer within a message; the smallest ones.
    pub blobs_omitted: usize,
}

impl NodeStats {
    /// The statistics as JSON of at most `bytes_max` bytes: where they are more, the smallest
    /// blobs are left out, and counted in `blobs_omitted`.
    pub fn to_json_within(mut self, bytes_max: usize) -> Vec<u8> {
        self.blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size));
        loop {
            // These types have no map keys or values that JSON cannot write.
            let json = serde_json::to_vec(&self).unwrap_or_default();
            if json.len() <= bytes_max || self.blobs.is_empty() {
                return json;
            }
            let keep = self.blobs.len() / 2;
            self.blobs_omitted += self.blobs.len() - keep;
            self.blobs.truncate(keep);
        }
    }
}

/// One blob in the whole swarm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SwarmBlob {
    /// Its digest.
    pub digest: String,
    /// `manifest` or `blob`.
    pub kind: String,
    /// Its size in bytes; 0 where nobody knows it.
    pub size: u64,
    /// How many members hold all of it.
    pub holders_complete: usize,
    /// How many hold a part.
    pub holders_partial: usize,
    /// Bytes of it read from origins by all members together.
    pub origin_bytes: u64,
    /// The same in multiples of its size.
    pub origin_copies: f64,
}

/// A banned node, as the members who banned it report it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmBan {
    /// The banned node's id.
    pub id: String,
    /// The ids of those who banned it, sorted.
    pub by: Vec<String>,
    /// What it did, in the words of the first of them.
    pub reason: String,
}

/// One origin of an upstream, as the members together see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SwarmOrigin {
    /// The upstream.
    pub upstream: String,
    /// Where the origin is, without credentials and query.
    pub url: String,
    /// Members for which it is up.
    pub up: usize,
    /// Members whose requests it limits.
    pub limited: usize,
    /// Members for which it is away.
    pub away: usize,
    /// Members for which it was, and that had no reason to try it again.
    pub untried: usize,
    /// Requests of all members.
    pub requests: u64,
    /// How many of them failed.
    pub failures: u64,
    /// Why it is not up, in the words of the first member that says so.
    pub reason: Option<String>,
}

/// What the answers of many nodes say of the swarm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SwarmStats {
    /// Members that were asked.
    pub members_total: usize,
    /// Members that answered in time; everything below speaks of these alone.
    pub members_answered: usize,
    /// Their answers without the blobs, by id.
    pub members: Vec<NodeStats>,
    /// The blobs that any of them holds, the largest first.
    pub blobs: Vec<SwarmBlob>,
    /// The sum of their bytes.
    pub bytes: SourceBytes,
    /// The sum of their rates.
    pub rates: SourceBytes,
    /// The share of all bytes that did not come from an origin; null before the first byte.
    pub offload_ratio: Option<f64>,
    /// How often the origin was read: bytes read from it over the bytes of the distinct blobs
    /// that were fetched from anywhere. 1 is the least that a cold swarm can do; null before the
    /// first fetch.
    pub origin_copies: Option<f64>,
    /// The origins of all members, those of an upstream in their order.
    pub origins: Vec<SwarmOrigin>,
    /// What registries still give, as the member that heard from each last says.
    pub allowances: Vec<AllowanceStats>,
    /// Who is banned by whom.
    pub banned: Vec<SwarmBan>,
    /// Ids of members that pull at less than half of the median rate of all that pull.
    pub slow: Vec<String>,
}

/// A median of fewer says nothing about who is slow.
const PULLERS_FOR_SLOW_MIN: usize = 3;

impl SwarmStats {
    /// Merges the answers of members, of which there are `total`. Their order does not matter; of
    /// two answers with one id, the node with the longer uptime counts.
    pub fn merge(answers: Vec<NodeStats>, total: usize) -> Self {
        let mut nodes = BTreeMap::<String, NodeStats>::new();
        for answer in answers {
            match nodes.get(&answer.id) {
                Some(known) if known.uptime_seconds >= answer.uptime_seconds => {}
                _ => {
                    nodes.insert(answer.id.clone(), answer);
                }
            }
        }
        let mut members: Vec<_> = nodes.into_values().collect();

        let sum = |field: fn(&NodeStats) -> SourceBytes| {
            members
                .iter()
                .map(field)
                .fold(SourceBytes::default(), |sum, one| {
                    sum.map2(one, u64::saturating_add)
                })
        };
        let (bytes, rates) = (sum(|node| node.bytes), sum(|node| node.rates));
        let (blobs, origin_copies) = merge_blobs(&members);
        let banned = merge_bans(&members);
        let origins = merge_origins(&members);
        let slow = slow_members(&members);
        let allowances = merge_allowances(&members);
        for member in &mut members {
            member.blobs.clear();
        }
        Self {
            members_total: total.max(members.len()),
            members_answered: members.len(),
            members,
            blobs,
            bytes,
            rates,
            offload_ratio: bytes.offload_ratio(),
            origin_copies,
            origins,
            allowances,
            banned,
            slow,
        }
    }
}

fn merge_blobs(members: &[NodeStats]) -> (Vec<SwarmBlob>, Option<f64>) {
    let mut merged = BTreeMap::<&str, SwarmBlob>::new();
    let mut fetched = BTreeSet::<&str>::new();
    for blob in members.iter().flat_map(|member| &member.blobs) {
        let into = merged.entry(&blob.digest).or_insert_with(|| SwarmBlob {
            digest: blob.digest.clone(),
            kind: blob.kind.clone(),
            ..SwarmBlob::default()
        });
        into.size = into.size.max(blob.size);
        into.holders_complete += usize::from(blob.complete);
        into.holders_partial += usize::from(!blob.complete && blob.have_bytes > 0);
        into.origin_bytes = into.origin_bytes.saturating_add(blob.from_origin);
        if blob.from_origin > 0 || blob.from_peers > 0 {
            fetched.insert(&blob.digest);
        }
    }
    for blob in merged.values_mut() {
        blob.origin_copies = ratio(blob.origin_bytes, blob.size).unwrap_or_default();
    }
    let origin_bytes = merged.values().map(|blob| blob.origin_bytes).sum();
    let distinct_bytes = fetched.iter().map(|digest| merged[digest].size).sum();
    let origin_copies = ratio(origin_bytes, distinct_bytes);

    let mut blobs: Vec<_> = merged.into_values().collect();
    blobs.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.digest.cmp(&b.digest)));
    (blobs, origin_copies)
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn merge_bans(members: &[NodeStats]) -> Vec<SwarmBan> {
    let mut merged = BTreeMap::<&str, SwarmBan>::new();
    for member in members {
        for ban in &member.bans {
            let into = merged.entry(&ban.id).or_insert_with(|| SwarmBan {
                id: ban.id.clone(),
                by: Vec::new(),
                reason: ban.reason.clone(),
            });
            // Members come sorted, so only the last can be this one.
            if into.by.last() != Some(&member.id) {
                into.by.push(member.id.clone());
            }
        }
    }
    merged.into_values().collect()
}

fn merge_origins(members: &[NodeStats]) -> Vec<SwarmOrigin> {
    let mut merged = Vec::<SwarmOrigin>::new();
    for origin in members.iter().flat_map(|member| &member.origins) {
        let same = |have: &SwarmOrigin| have.upstream == origin.upstream && have.url == origin.url;
        let at = merged.iter().position(same).unwrap_or_else(|| {
            merged.push(SwarmOrigin {
                upstream: origin.upstream.clone(),
                url: origin.url.clone(),
                ..SwarmOrigin::default()
            });
            merged.len() - 1
        });
        let into = &mut merged[at];
        match origin.state.as_str() {
            "up" => into.up += 1,
            "limited" => into.limited += 1,
            "untried" => into.untried += 1,
            _ => into.away += 1,
        }
        into.requests = into.requests.saturating_add(origin.requests);
        into.failures = into.failures.saturating_add(origin.failures);
        if into.reason.is_none() {
            into.reason.clone_from(&origin.reason);
        }
    }
    // Stable: the order within an upstream is that of the first member.
    merged.sort_by(|a, b| a.upstream.cmp(&b.upstream));
    merged
}

fn merge_allowances(members: &[NodeStats]) -> Vec<AllowanceStats> {
    let mut merged = BTreeMap::<&str, &AllowanceStats>::new();
    for allowance in members.iter().flat_map(|member| &member.allowances) {
        let newest = merged.entry(&allowance.upstream).or_insert(allowance);
        // Of those of one second the one that knows of more pulls.
        let order = |said: &AllowanceStats| (said.age_seconds, said.remaining);
        if order(allowance) < order(newest) {
            *newest = allowance;
        }
    }
    merged.into_values().cloned().collect()
}

fn slow_members(members: &[NodeStats]) -> Vec<String> {
    let pulling = || members.iter().filter(|member| member.pulls_active > 0);
    let mut rates: Vec<_> = pulling().map(|member| member.rates.fetched()).collect();
    if rates.len() < PULLERS_FOR_SLOW_MIN {
        return Vec::new();
    }
    rates.sort_unstable();
    let median = rates[rates.len() / 2];
    pulling()
        .filter(|member| member.rates.fetched() < median / 2)
        .map(|member| member.id.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, from_origin: u64, from_peers: u64, complete: bool) -> NodeStats {
        let bytes = SourceBytes {
            from_origin,
            from_peers,
            ..SourceBytes::default()
        };
        NodeStats {
            id: id.into(),
            bytes,
            rates: bytes,
            blobs: vec![BlobStats {
                digest: "sha256:aa".into(),
                kind: "blob".into(),
                size: 1000,
                have_bytes: if complete { 1000 } else { 10 },
                complete,
                from_origin,
                from_peers,
            }],
            pulls_active: 1,
            ..NodeStats::default()
        }
    }

    #[test]
    fn the_swarm_is_the_sum_of_those_who_answered() {
        let swarm = SwarmStats::merge(
            vec![
                node("b", 400, 600, true),
                node("a", 600, 400, true),
                node("c", 0, 10, false),
            ],
            5,
        );
        assert_eq!((swarm.members_answered, swarm.members_total), (3, 5));
        assert_eq!(swarm.members[0].id, "a");
        assert!(swarm.members.iter().all(|member| member.blobs.is_empty()));
        assert_eq!(swarm.bytes.from_origin, 1000);
        assert_eq!(swarm.bytes.from_peers, 1010);
        assert_eq!(swarm.offload_ratio, Some(1.0 - 1000.0 / 2010.0));
        assert_eq!(swarm.origin_copies, Some(1.0));
        let blob = &swarm.blobs[0];
        assert_eq!((blob.holders_complete, blob.holders_partial), (2, 1));
        assert_eq!((blob.origin_bytes, blob.size), (1000, 1000));
    }

    #[test]
    fn what_was_on_disk_before_does_not_dilute_the_copies() {
        let mut warm = node("a", 0, 0, true);
        warm.blobs[0].digest = "sha256:bb".into();
        let swarm = SwarmStats::merge(vec![warm, node("b", 2000, 0, true)], 2);
        assert_eq!(swarm.origin_copies, Some(2.0));
        let idle = SwarmStats::merge(vec![node("a", 0, 0, true)], 1);
        assert_eq!((idle.origin_copies, idle.offload_ratio), (None, None));
    }

    #[test]
    fn what_a_registry_said_last_counts() {
        let said = |id: &str, remaining, age_seconds| NodeStats {
            allowances: vec![AllowanceStats {
                upstream: "docker.io".into(),
                remaining,
                age_seconds,
                ..AllowanceStats::default()
            }],
            ..node(id, 0, 0, true)
        };
        let nodes = vec![said("a", 76, 0), said("b", 75, 0), said("c", 9, 600)];
        let allowances = SwarmStats::merge(nodes, 3).allowances;
        assert_eq!(allowances.len(), 1);
        assert_eq!(allowances[0].remaining, 75);
    }

    #[test]
    fn an_answer_that_comes_twice_counts_once() {
        let swarm = SwarmStats::merge(vec![node("a", 5, 0, true), node("a", 5, 0, true)], 1);
        assert_eq!(swarm.members_answered, 1);
        assert_eq!(swarm.bytes.from_origin, 5);
    }

    #[test]
    fn bans_name_all_who_made_them() {
        let mut nodes = vec![node("b", 0, 0, true), node("a", 0, 0, true)];
        for node in &mut nodes {
            for blob in ["sha256:01", "sha256:02"] {
                node.bans.push(BanStats {
                    id: "liar".into(),
                    blob: blob.into(),
                    reason: "signed a wrong hash".into(),
                });
            }
        }
        assert_eq!(
            SwarmStats::merge(nodes, 2).banned,
            [SwarmBan {
                id: "liar".into(),
                by: vec!["a".into(), "b".into()],
                reason: "signed a wrong hash".into(),
            }]
        );
    }

    #[test]
    fn slow_is_less_than_half_of_the_median_of_those_who_pull() {
        let mut idle = node("idle", 0, 0, true);
        idle.pulls_active = 0;
        let pullers = vec![
            node("a", 0, 100, false),
            node("b", 0, 100, false),
            node("c", 0, 49, false),
        ];
        let slow = SwarmStats::merge([pullers.clone(), vec![idle]].concat(), 4).slow;
        assert_eq!(slow, ["c"]);
        assert!(SwarmStats::merge(pullers[1..].to_vec(), 2).slow.is_empty());
    }

    #[test]
    fn the_largest_blobs_stay_when_the_answer_is_too_long() {
        let mut node = node("a", 0, 0, true);
        let blob = node.blobs[0].clone();
        node.blobs = (0..100)
            .map(|size| BlobStats {
                size,
                ..blob.clone()
            })
            .collect();
        let whole: NodeStats =
            serde_json::from_slice(&node.clone().to_json_within(1 << 20)).unwrap();
        assert_eq!((whole.blobs.len(), whole.blobs_omitted), (100, 0));
        let json = node.to_json_within(4000);
        assert!(json.len() <= 4000);
        let cut: NodeStats = serde_json::from_slice(&json).unwrap();
        assert_eq!(cut.blobs.len() + cut.blobs_omitted, 100);
        assert_eq!(cut.blobs[0].size, 99);
    }

    #[test]
    fn stats_of_another_version_can_be_read() {
        let old: NodeStats =
            serde_json::from_str(r#"{"id":"a","members_alive":3,"new":1}"#).unwrap();
        assert_eq!((old.id.as_str(), old.members_alive), ("a", 3));
    }
}
