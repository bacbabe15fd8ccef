//! What a comparison found, for people and for programs.

use std::io::{self, Write};

use serde::Serialize;
use shoal_node::config::ByteRate;

use super::{client::Pull, image::Image, registry::Served};

/// One way of pulling, measured.
#[derive(Debug)]
pub(crate) struct Phase {
    node_seconds: Vec<f64>,
    served: Served,
    failures: Vec<String>,
}

/// Direct pulls against Shoal. Times are in seconds, from the clients' common start.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Daemons, and as many clients.
    nodes: usize,
    /// What one client downloads.
    image_bytes: u64,
    image_layers: usize,
    origin_bytes_per_second: u64,
    /// When the last client had everything, and each one.
    direct_seconds: f64,
    direct_node_seconds: Vec<f64>,
    direct_p50_seconds: f64,
    direct_origin_bytes: u64,
    direct_origin_copies: f64,
    shoal_seconds: f64,
    node_seconds: Vec<f64>,
    p50_seconds: f64,
    max_seconds: f64,
    /// No swarm can be faster: the origin has to send the image once.
    lower_bound_seconds: f64,
    /// `shoal_seconds` in lower bounds.
    ratio: f64,
    /// Bytes that the origin wrote to its sockets for Shoal, headers included; and in images.
    origin_bytes: u64,
    origin_copies: f64,
    origin_streams_peak: u64,
    origin_manifest_gets: u64,
    /// Every digest of every client matched, direct ones too.
    verified: bool,
    /// What went wrong, for each client that failed.
    failures: Vec<String>,
}

impl Phase {
    /// Puts together what the clients and the origin saw. `casualties` are failures of others.
    pub(super) fn new(pulls: &[Pull], served: Served, casualties: Vec<String>) -> Self {
        let seconds = |pull: &Pull| to_millis(pull.elapsed.as_secs_f64());
        let failed = |(number, pull): (usize, &Pull)| {
            let failure = pull.result.as_ref().err()?;
            Some(format!("client {number}: {failure}"))
        };
        let mut failures: Vec<String> = (1..).zip(pulls).filter_map(failed).collect();
        failures.extend(casualties);
        Self {
            node_seconds: pulls.iter().map(seconds).collect(),
            served,
            failures,
        }
    }

    fn max(&self) -> f64 {
        self.node_seconds.iter().copied().fold(0.0, f64::max)
    }

    /// The time by which half of the clients were done.
    fn p50(&self) -> f64 {
        let mut sorted = self.node_seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len().div_ceil(2).saturating_sub(1);
        sorted.get(middle).copied().unwrap_or(0.0)
    }
}

impl Report {
    pub(super) fn new(image: &Image, rate: ByteRate, direct: Phase, shoal: Phase) -> Self {
        let size = image.size();
        let copies = |bytes: u64| to_millis(bytes as f64 / size as f64);
        let lower_bound = size as f64 / rate.0 as f64;
        let verified = direct.failures.is_empty() && shoal.failures.is_empty();
        let prefixed = |prefix: &'static str, failures: &[String]| {
            let named = failures
                .iter()
                .map(move |failure| format!("{prefix} {failure}"));
            named.collect::<Vec<_>>()
        };
        Self {
            nodes: shoal.node_seconds.len(),
            image_bytes: size,
            image_layers: image.layers(),
            origin_bytes_per_second: rate.0,
            direct_seconds: direct.max(),
            direct_p50_seconds: direct.p50(),
            direct_origin_bytes: direct.served.bytes,
            direct_origin_copies: copies(direct.served.bytes),
            shoal_seconds: shoal.max(),
            p50_seconds: shoal.p50(),
            max_seconds: shoal.max(),
            lower_bound_seconds: to_millis(lower_bound),
            ratio: to_millis(shoal.max() / lower_bound),
            origin_bytes: shoal.served.bytes,
            origin_copies: copies(shoal.served.bytes),
            origin_streams_peak: shoal.served.streams_peak,
            origin_manifest_gets: shoal.served.manifest_gets,
            verified,
            failures: [
                prefixed("direct:", &direct.failures),
                prefixed("Shoal:", &shoal.failures),
            ]
            .concat(),
            direct_node_seconds: direct.node_seconds,
            node_seconds: shoal.node_seconds,
        }
    }

    /// Whether every digest of every client matched.
    pub(crate) fn verified(&self) -> bool {
        self.verified
    }
}

/// One JSON value and a newline.
pub(crate) fn write_json<T: Serialize + ?Sized>(out: &mut impl Write, value: &T) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// The comparison at one count of nodes.
pub(crate) fn write_table(out: &mut impl Write, report: &Report) -> io::Result<()> {
    writeln!(
        out,
        "\n{} in {} layers, origin at {}, {}\n",
        megabytes(report.image_bytes),
        report.image_layers,
        ByteRate(report.origin_bytes_per_second),
        clients(report.nodes),
    )?;
    writeln!(out, "{:>8} {:>10} {:>10}", "node", "direct", "Shoal")?;
    let rows = report.direct_node_seconds.iter().zip(&report.node_seconds);
    for (number, (direct, shoal)) in (1..).zip(rows) {
        writeln!(out, "{number:>8} {direct:>8.2} s {shoal:>8.2} s")?;
    }
    let bound = report.lower_bound_seconds;
    let row = |out: &mut dyn Write, name: &str, direct: String, shoal: String| {
        writeln!(out, "{name:>8} {direct:>10} {shoal:>10}")
    };
    let seconds = |value: f64| format!("{value:.2} s");
    let times = |value: f64| format!("{value:.2} ×");
    writeln!(out)?;
    row(
        out,
        "p50",
        seconds(report.direct_p50_seconds),
        seconds(report.p50_seconds),
    )?;
    row(
        out,
        "max",
        seconds(report.direct_seconds),
        seconds(report.shoal_seconds),
    )?;
    row(
        out,
        "of bound",
        times(report.direct_seconds / bound),
        times(report.ratio),
    )?;
    row(
        out,
        "origin",
        times(report.direct_origin_copies),
        times(report.origin_copies),
    )?;
    writeln!(
        out,
        "\nlower bound {bound:.2} s: the origin sends the image once.\n\
         The origin served {} to Shoal, {} directly.",
        megabytes(report.origin_bytes),
        megabytes(report.direct_origin_bytes),
    )?;
    write_verdict(out, report)
}

/// How time and origin bytes grow with the nodes.
pub(crate) fn write_scale(out: &mut impl Write, reports: &[Report]) -> io::Result<()> {
    if let Some(first) = reports.first() {
        writeln!(
            out,
            "\n{} in {} layers, origin at {}, lower bound {:.2} s\n",
            megabytes(first.image_bytes),
            first.image_layers,
            ByteRate(first.origin_bytes_per_second),
            first.lower_bound_seconds,
        )?;
    }
    writeln!(out, "{:>6} {:^22} {:^33}", "", "direct", "Shoal")?;
    writeln!(
        out,
        "{:>6} {:>10} {:>11} {:>10} {:>10} {:>11}",
        "nodes", "time", "origin", "time", "of bound", "origin"
    )?;
    for report in reports {
        writeln!(
            out,
            "{:>6} {:>8.2} s {:>9.2} × {:>8.2} s {:>8.2} × {:>9.2} ×",
            report.nodes,
            report.direct_seconds,
            report.direct_origin_copies,
            report.shoal_seconds,
            report.ratio,
            report.origin_copies,
        )?;
    }
    reports
        .iter()
        .try_for_each(|report| write_verdict(out, report))
}

fn write_verdict(out: &mut impl Write, report: &Report) -> io::Result<()> {
    if report.verified {
        return writeln!(out, "Every digest matched at {}.", clients(report.nodes));
    }
    writeln!(out, "NOT VERIFIED at {}:", clients(report.nodes))?;
    report
        .failures
        .iter()
        .try_for_each(|failure| writeln!(out, "  {failure}"))
}

fn clients(count: usize) -> String {
    match count {
        1 => "1 client".to_owned(),
        count => format!("{count} clients"),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Three digits after the point: more would be noise in the report.
fn to_millis(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_node::config::ByteSize;

    use super::*;
    use crate::demo::client::PullFailure;

    fn phase(seconds: &[f64], bytes: u64) -> Phase {
        let pull = |seconds: &f64| Pull {
            elapsed: Duration::from_secs_f64(*seconds),
            result: Ok(()),
        };
        let served = Served {
            bytes,
            ..Served::default()
        };
        Phase::new(
            &seconds.iter().map(pull).collect::<Vec<_>>(),
            served,
            Vec::new(),
        )
    }

    fn report() -> Report {
        let image = Image::generate(ByteSize(1 << 20), 1);
        let size = image.size();
        Report::new(
            &image,
            ByteRate(size),
            phase(&[3.0, 4.0, 2.0, 3.5], 4 * size),
            phase(&[1.25, 1.0, 1.1, 1.2], size),
        )
    }

    #[test]
    fn times_are_compared_with_the_lower_bound_and_bytes_with_the_image() {
        let report = report();
        assert_eq!(
            (report.direct_seconds, report.direct_p50_seconds),
            (4.0, 3.0)
        );
        assert_eq!((report.shoal_seconds, report.p50_seconds), (1.25, 1.1));
        assert_eq!((report.lower_bound_seconds, report.ratio), (1.0, 1.25));
        assert_eq!(
            (report.direct_origin_copies, report.origin_copies),
            (4.0, 1.0)
        );
        assert!(report.verified());
    }

    #[test]
    fn one_failed_client_is_enough_not_to_be_verified() {
        let image = Image::generate(ByteSize(1 << 20), 1);
        let mut pulls = vec![Pull {
            elapsed: Duration::from_secs(1),
            result: Ok(()),
        }];
        pulls.push(Pull {
            elapsed: Duration::from_secs(1),
            result: Err(PullFailure::Stalled {
                path: "/v2/x".to_owned(),
            }),
        });
        let broken = Phase::new(&pulls, Served::default(), Vec::new());
        let report = Report::new(&image, ByteRate(1), phase(&[1.0, 1.0], 1), broken);
        assert!(!report.verified());
        let mut table = Vec::new();
        write_table(&mut table, &report).unwrap();
        let table = String::from_utf8(table).unwrap();
        assert!(
            table.contains("NOT VERIFIED at 2 clients:\n  Shoal: client 2: GET /v2/x: no byte"),
            "{table}"
        );
    }

    #[test]
    fn the_json_has_what_programs_count_on() {
        let mut json = Vec::new();
        write_json(&mut json, &report()).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        for key in [
            "nodes",
            "image_bytes",
            "direct_seconds",
            "shoal_seconds",
            "lower_bound_seconds",
            "origin_bytes",
            "origin_copies",
            "p50_seconds",
            "max_seconds",
        ] {
            assert!(value[key].is_number(), "{key}: {value}");
        }
        assert_eq!(value["verified"], true);
        assert_eq!(value["node_seconds"].as_array().map(Vec::len), Some(4));
    }

    #[test]
    fn the_table_of_growth_has_a_row_for_each_count() {
        let mut table = Vec::new();
        write_scale(&mut table, &[report(), report()]).unwrap();
        let table = String::from_utf8(table).unwrap();
        let rows = table.lines().filter(|line| line.contains("4.00 ×"));
        assert_eq!(rows.count(), 2, "{table}");
    }
}
