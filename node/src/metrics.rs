//! What a node counts, and how Prometheus reads it.
//!
//! Counters are plain atomics that any part of the daemon may add to; nothing here is global, so
//! that several nodes can live in one process of tests.

use std::{
    collections::VecDeque,
    fmt::{Display, Write as _},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use shoal_protocol::time::{Duration, Time};

use crate::stats::{AllowanceStats, OriginStats, SourceBytes};

/// How far back rates look. Long enough to be steady at 4 MiB a chunk, short enough to show a
/// stall while it lasts.
pub const RATE_WINDOW: Duration = Duration::from_secs(10);

/// The least time between two samples, which bounds them to about eleven.
const SAMPLE_SPACING: Duration = Duration::from_millis(900);

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds one until the guard is dropped.
    pub fn hold(&self) -> Held<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Held(self)
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One unit of a [`Gauge`], given back when dropped.
#[derive(Debug)]
pub struct Held<'a>(&'a Gauge);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a request to an origin ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginOutcome {
    /// All of the answer arrived.
    Ok,
    /// 404.
    NotFound,
    /// 401 or 403.
    Denied,
    /// 429.
    Throttled,
    /// Any other status.
    Refused,
    /// No connection, or no answer in time.
    Unreachable,
    /// The body ended early.
    Cut,
}

impl OriginOutcome {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Ok, "ok"),
        (Self::NotFound, "not_found"),
        (Self::Denied, "denied"),
        (Self::Throttled, "throttled"),
        (Self::Refused, "refused"),
        (Self::Unreachable, "unreachable"),
        (Self::Cut, "cut"),
    ];
}

/// The status codes that the mirror answers with, each counted on its own.
const MIRROR_CODES: [u16; 16] = [
    200, 206, 304, 400, 401, 403, 404, 405, 414, 416, 429, 500, 501, 502, 503, 504,
];

/// Everything that a node counts. Shared as an `Arc`.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Blob and manifest bytes read from origins.
    pub bytes_from_origin: Counter,
    /// Chunk bytes received from peers and found right.
    pub bytes_from_peers: Counter,
    /// Bytes served to clients out of the store, with no fetch.
    pub bytes_from_local: Counter,
    /// Chunk bytes sent to peers.
    pub bytes_uploaded: Counter,
    /// Bytes that compression kept off the wire.
    pub bytes_saved: Counter,
    /// Microseconds spent compressing chunks and unpacking them.
    pub packing_micros: Counter,
    /// Body bytes that the mirror sent to clients, from wherever they came.
    pub mirror_bytes: Counter,
    /// Mirror answers that were broken off because their bytes failed.
    pub mirror_aborts: Counter,
    /// Manifests served by tag that could not be revalidated at their origin.
    pub stale_tags: Counter,
    /// Chunks checked and stored.
    pub chunks_stored: Counter,
    /// Chunks that did not match their attestation.
    pub chunks_rejected: Counter,
    /// Requests of peers that were answered BUSY.
    pub uploads_refused: Counter,
    /// Blobs whose digest was checked and right.
    pub blobs_completed: Counter,
    /// Blobs whose digest did not match.
    pub blobs_mismatched: Counter,
    /// Blobs dropped to make room.
    pub blobs_evicted: Counter,
    /// Origin leases that this node began to work on.
    pub leases_begun: Counter,
    /// Origin leases that were taken from this node, or that it gave up.
    pub leases_revoked: Counter,
    /// Peers banned.
    pub bans: Counter,
    /// Pulls in progress.
    pub pulls_active: Gauge,
    /// Origin streams open.
    pub origin_streams: Gauge,
    /// Origin leases held.
    pub leases_held: Gauge,
    /// Blobs that this node is the steward of.
    pub blobs_stewarded: Gauge,
    /// Members alive, this node among them.
    pub members_alive: Gauge,
    /// Connections to peers.
    pub connections: Gauge,
    /// Bytes in the store.
    pub store_bytes: Gauge,
    /// Complete blobs in the store.
    pub store_blobs: Gauge,
    mirror_requests: [Counter; MIRROR_CODES.len() + 1],
    origin_requests: [Counter; OriginOutcome::ALL.len()],
    allowances: Mutex<Vec<AllowanceStats>>,
    rates: Mutex<RateWindow>,
}

impl Metrics {
    /// Counts an answer of the mirror by its status code.
    pub fn mirror_request(&self, code: u16) {
        let at = MIRROR_CODES.iter().position(|known| *known == code);
        self.mirror_requests[at.unwrap_or(MIRROR_CODES.len())].increment();
    }

    /// How many answers the mirror gave with this status code; those that are not told apart
    /// count as 0.
    pub fn mirror_requests(&self, code: u16) -> u64 {
        MIRROR_CODES
            .iter()
            .position(|known| *known == code)
            .map_or(0, |at| self.mirror_requests[at].get())
    }

    /// Counts a request to an origin by how it ended.
    pub fn origin_request(&self, outcome: OriginOutcome) {
        self.origin_requests[outcome as usize].increment();
    }

    /// Replaces what registries have said that they still give.
    pub fn set_allowances(&self, allowances: Vec<AllowanceStats>) {
        *self
            .allowances
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = allowances;
    }

    /// Bytes by source since the start.
    pub fn bytes(&self) -> SourceBytes {
        SourceBytes {
            from_origin: self.bytes_from_origin.get(),
            from_peers: self.bytes_from_peers.get(),
            from_local: self.bytes_from_local.get(),
            uploaded: self.bytes_uploaded.get(),
        }
    }

    /// Remembers the bytes so far, for [`rates`](Self::rates). To be called about once a second.
    pub fn sample(&self, now: Time) {
        let bytes = self.bytes();
        self.window().sample(now, bytes);
    }

    /// Bytes per second by source over the last [`RATE_WINDOW`].
    pub fn rates(&self, now: Time) -> SourceBytes {
        let bytes = self.bytes();
        self.window().rates(now, bytes)
    }

    fn window(&self) -> std::sync::MutexGuard<'_, RateWindow> {
        // A window is whole after every statement that changes it.
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it, and how the origins do, in the Prometheus text format, version 0.0.4.
    pub fn render(&self, origins: &[OriginStats]) -> String {
        let mut out = Exposition::default();
        out.family(
            "shoal_build_info",
            "gauge",
            "The version of the daemon, as a label.",
            [(format!("version=\"{}\"", env!("CARGO_PKG_VERSION")), 1)],
        );
        out.family(
            "shoal_received_bytes_total",
            "counter",
            "Bytes by where they came from; local is what clients got without a fetch.",
            [
                ("source=\"origin\"".to_owned(), self.bytes_from_origin.get()),
                ("source=\"peers\"".to_owned(), self.bytes_from_peers.get()),
                ("source=\"local\"".to_owned(), self.bytes_from_local.get()),
            ],
        );
        let codes = MIRROR_CODES.iter().map(u16::to_string);
        out.family(
            "shoal_mirror_requests_total",
            "counter",
            "Answers of the mirror by HTTP status code.",
            codes
                .chain(["other".to_owned()])
                .zip(&self.mirror_requests)
                .filter(|(_, counter)| counter.get() > 0)
                .map(|(code, counter)| (format!("code=\"{code}\""), counter.get())),
        );
        out.family(
            "shoal_origin_requests_total",
            "counter",
            "Requests to origins by how they ended.",
            OriginOutcome::ALL.iter().map(|(outcome, name)| {
                let count = self.origin_requests[*outcome as usize].get();
                (format!("outcome=\"{name}\""), count)
            }),
        );
        let allowances = self
            .allowances
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let by_upstream = |value: fn(&AllowanceStats) -> u64| {
            let samples = allowances.iter();
            samples.map(move |said| (format!("upstream=\"{}\"", said.upstream), value(said)))
        };
        out.family(
            "shoal_origin_pulls_limit",
            "gauge",
            "Pulls that a registry gives in its window, where it says so.",
            by_upstream(|said| said.limit),
        );
        out.family(
            "shoal_origin_pulls_remaining",
            "gauge",
            "How many of them were left when it last said so.",
            by_upstream(|said| said.remaining),
        );
        out.family(
            "shoal_packing_seconds_total",
            "counter",
            "Time spent compressing chunks for peers and unpacking those from peers.",
            [(String::new(), self.packing_micros.get() as f64 / 1e6)],
        );
        let of_each = |value: fn(&OriginStats) -> u64| {
            let samples = origins
                .iter()
                .map(move |origin| (labels_of(origin), value(origin)));
            samples.collect::<Vec<_>>()
        };
        out.family(
            "shoal_origin_up",
            "gauge",
            "Whether an origin is asked as usual: not while it is away, or limits its clients.",
            of_each(|origin| u64::from(matches!(origin.state.as_str(), "up" | "untried"))),
        );
        out.family(
            "shoal_origin_state_seconds",
            "gauge",
            "For how long that has been so.",
            of_each(|origin| origin.since_seconds),
        );
        out.family(
            "shoal_origin_asked_total",
            "counter",
            "Questions to an origin that ended, in an answer or not.",
            of_each(|origin| origin.requests),
        );
        out.family(
            "shoal_origin_failures_total",
            "counter",
            "Questions to an origin that it did not answer, and answers that broke off.",
            of_each(|origin| origin.failures),
        );
        for (name, help, counter) in self.plain_counters() {
            out.family(name, "counter", help, [(String::new(), counter.get())]);
        }
        for (name, help, gauge) in self.plain_gauges() {
            out.family(name, "gauge", help, [(String::new(), gauge.get())]);
        }
        out.0
    }

    fn plain_counters(&self) -> [(&'static str, &'static str, &Counter); 14] {
        [
            (
                "shoal_uploaded_bytes_total",
                "Chunk bytes sent to peers.",
                &self.bytes_uploaded,
            ),
            (
                "shoal_saved_bytes_total",
                "Bytes that compression kept off the wire, of the chunks sent to peers.",
                &self.bytes_saved,
            ),
            (
                "shoal_mirror_sent_bytes_total",
                "Body bytes sent to clients.",
                &self.mirror_bytes,
            ),
            (
                "shoal_mirror_aborts_total",
                "Answers broken off because their bytes failed.",
                &self.mirror_aborts,
            ),
            (
                "shoal_stale_tags_total",
                "Manifests served by tag without revalidation.",
                &self.stale_tags,
            ),
            (
                "shoal_chunks_stored_total",
                "Chunks checked and stored.",
                &self.chunks_stored,
            ),
            (
                "shoal_chunks_rejected_total",
                "Chunks that did not match their attestation.",
                &self.chunks_rejected,
            ),
            (
                "shoal_uploads_refused_total",
                "Requests of peers that were answered BUSY.",
                &self.uploads_refused,
            ),
            (
                "shoal_blobs_completed_total",
                "Blobs whose digest was checked and right.",
                &self.blobs_completed,
            ),
            (
                "shoal_blobs_mismatched_total",
                "Blobs whose digest did not match.",
                &self.blobs_mismatched,
            ),
            (
                "shoal_blobs_evicted_total",
                "Blobs dropped to make room.",
                &self.blobs_evicted,
            ),
            (
                "shoal_leases_begun_total",
                "Origin leases that this node began to work on.",
                &self.leases_begun,
            ),
            (
                "shoal_leases_revoked_total",
                "Origin leases taken from this node, or given up by it.",
                &self.leases_revoked,
            ),
            ("shoal_bans_total", "Peers banned.", &self.bans),
        ]
    }

    fn plain_gauges(&self) -> [(&'static str, &'static str, &Gauge); 8] {
        [
            (
                "shoal_pulls_active",
                "Pulls in progress.",
                &self.pulls_active,
            ),
            (
                "shoal_origin_streams",
                "Origin streams open.",
                &self.origin_streams,
            ),
            (
                "shoal_leases_held",
                "Origin leases held.",
                &self.leases_held,
            ),
            (
                "shoal_blobs_stewarded",
                "Blobs that this node is the steward of.",
                &self.blobs_stewarded,
            ),
            (
                "shoal_members_alive",
                "Members alive, this node among them.",
                &self.members_alive,
            ),
            (
                "shoal_peer_connections",
                "Connections to peers.",
                &self.connections,
            ),
            (
                "shoal_store_bytes",
                "Bytes in the store.",
                &self.store_bytes,
            ),
            (
                "shoal_store_blobs",
                "Complete blobs in the store.",
                &self.store_blobs,
            ),
        ]
    }
}

/// The text of an exposition, family by family.
/// The labels that tell an origin from others.
fn labels_of(origin: &OriginStats) -> String {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let (upstream, url) = (escaped(&origin.upstream), escaped(&origin.url));
    format!("upstream=\"{upstream}\",origin=\"{url}\"")
}

#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn family(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, impl Display)>,
    ) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = if labels.is_empty() {
                writeln!(self.0, "{name} {value}")
            } else {
                writeln!(self.0, "{name}{{{labels}}} {value}")
            };
        }
    }
}

/// Totals of the last [`RATE_WINDOW`], oldest first.
#[derive(Debug, Default)]
struct RateWindow(VecDeque<(Time, SourceBytes)>);

impl RateWindow {
    fn sample(&mut self, now: Time, bytes: SourceBytes) {
        if self
            .0
            .back()
            .is_some_and(|(at, _)| now.since(*at) < SAMPLE_SPACING)
        {
            return;
        }
        self.0.push_back((now, bytes));
        // The newest sample that is a whole window old is where the window begins.
        while self
            .0
            .get(1)
            .is_some_and(|(at, _)| now.since(*at) >= RATE_WINDOW)
        {
            self.0.pop_front();
        }
    }

    fn rates(&self, now: Time, bytes: SourceBytes) -> SourceBytes {
        let Some((at, then)) = self.0.front() else {
            return SourceBytes::default();
        };
        let seconds = now.since(*at).as_secs_f64();
        if seconds < 0.1 {
            return SourceBytes::default();
        }
        bytes.map2(*then, |now, then| {
            (now.saturating_sub(then) as f64 / seconds) as u64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Time {
        Time::ZERO + Duration::from_secs(n)
    }

    #[test]
    fn rates_look_back_ten_seconds_and_fall_to_zero_in_a_stall() {
        let metrics = Metrics::default();
        assert_eq!(metrics.rates(second(0)), SourceBytes::default());
        for n in 0..=20 {
            metrics.sample(second(n));
            metrics.bytes_from_peers.add(100);
        }
        // Of the 100 bytes each second, those of seconds 10 to 20 lie in the window.
        assert_eq!(metrics.rates(second(20)).from_peers, 110);
        for n in 21..=31 {
            metrics.sample(second(n));
        }
        assert_eq!(metrics.rates(second(31)), SourceBytes::default());
    }

    #[test]
    fn samples_are_bounded_however_often_they_are_taken() {
        let mut window = RateWindow::default();
        for n in 0..100_000 {
            window.sample(Time::from_nanos(n * 1_000_000), SourceBytes::default());
        }
        assert!(window.0.len() <= 13, "{}", window.0.len());
    }

    #[test]
    fn gauges_fall_when_what_they_count_ends() {
        let gauge = Gauge::default();
        let held = gauge.hold();
        assert_eq!(gauge.get(), 1);
        drop(held);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn prometheus_can_read_every_line() {
        let metrics = Metrics::default();
        metrics.bytes_from_origin.add(7);
        metrics.mirror_request(206);
        metrics.mirror_request(599);
        metrics.origin_request(OriginOutcome::Throttled);
        let origin = OriginStats {
            upstream: "docker.io".to_owned(),
            url: "https://a.test/\"".to_owned(),
            state: "away".to_owned(),
            requests: 3,
            ..OriginStats::default()
        };
        let text = metrics.render(&[origin]);
        for line in [
            "shoal_received_bytes_total{source=\"origin\"} 7",
            "shoal_mirror_requests_total{code=\"206\"} 1",
            "shoal_mirror_requests_total{code=\"other\"} 1",
            "shoal_origin_requests_total{outcome=\"throttled\"} 1",
            r#"shoal_origin_up{upstream="docker.io",origin="https://a.test/\""} 0"#,
            r#"shoal_origin_asked_total{upstream="docker.io",origin="https://a.test/\""} 3"#,
            "# TYPE shoal_store_bytes gauge",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
        let mut families = std::collections::BTreeSet::new();
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap();
                assert!(families.insert(family), "{family} appears twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            } else {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(name.split('{').next().unwrap(), family);
                value.parse::<u64>().unwrap();
            }
        }
    }
}
