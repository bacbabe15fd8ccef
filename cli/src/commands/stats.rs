//! `shoal stats`: the whole swarm, from any node.

use std::{
    fmt::{self, Display},
    io::{self, IsTerminal},
    time::Duration,
};

use shoal_node::stats::{SwarmOrigin, SwarmStats};

use super::admin::{AdminArgs, AdminClient};
use crate::output::{self, Align, Table, bytes, duration, percent, rate, short};

/// How often `--watch` asks again.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Blobs that the report lists, the largest first; `--json` has all.
const BLOBS_SHOWN: usize = 20;

/// Clears the screen and moves to its first cell.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show the whole swarm as one node sees it: members, blobs, bytes by source
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print one JSON object instead of the report
    #[arg(long)]
    json: bool,
    /// Print it again every 2 s until interrupted
    #[arg(long)]
    watch: bool,
}

/// Runs the command.
///
/// # Errors
/// Where no daemon answers at the admin address, or what answers is none.
pub(crate) async fn run(args: StatsArgs) -> anyhow::Result<()> {
    output::unless_reader_left(show(&args).await)
}

async fn show(args: &StatsArgs) -> anyhow::Result<()> {
    let client = AdminClient::new(&args.admin);
    let clear = if args.watch && !args.json && io::stdout().is_terminal() {
        CLEAR
    } else {
        ""
    };
    loop {
        let swarm: SwarmStats = client.get("/v1/stats").await?;
        if args.json {
            output::print(&serde_json::to_string(&swarm)?)?;
        } else {
            output::print(&format!("{clear}{}", Report(&swarm)))?;
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// The statistics as people read them.
struct Report<'a>(&'a SwarmStats);

impl Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let swarm = self.0;
        writeln!(
            f,
            "{} of {} members answered\n\n{}",
            swarm.members_answered,
            swarm.members_total,
            members(swarm)
        )?;
        sources(swarm, f)?;
        origins(swarm, f)?;
        for said in &swarm.allowances {
            writeln!(
                f,
                "{}: {} of {} pulls left in {}{}",
                said.upstream,
                said.remaining,
                said.limit,
                duration(said.window_seconds as f64),
                if said.spared {
                    ", kept for what nobody here has"
                } else {
                    ""
                }
            )?;
        }
        blobs(swarm, f)?;
        for ban in &swarm.banned {
            writeln!(
                f,
                "\nBanned: {} by {} of {}: {}",
                short(&ban.id),
                ban.by.len(),
                swarm.members_answered,
                ban.reason
            )?;
        }
        Ok(())
    }
}

fn members(swarm: &SwarmStats) -> Table {
    let mut table = Table::new(&[
        ("NODE", Align::Left),
        ("ADDRESS", Align::Left),
        ("UP", Align::Right),
        ("ORIGIN", Align::Right),
        ("PEERS", Align::Right),
        ("LOCAL", Align::Right),
        ("SENT", Align::Right),
        ("IN NOW", Align::Right),
        ("PULLS", Align::Right),
        ("LEASES", Align::Right),
        ("STORE", Align::Right),
        ("", Align::Left),
    ]);
    for node in &swarm.members {
        let slow = swarm.slow.contains(&node.id);
        table.row([
            short(&node.id).to_owned(),
            node.addresses.first().cloned().unwrap_or_default(),
            duration(node.uptime_seconds as f64),
            bytes(node.bytes.from_origin),
            bytes(node.bytes.from_peers),
            bytes(node.bytes.from_local),
            bytes(node.bytes.uploaded),
            rate(node.rates.fetched()),
            node.pulls_active.to_string(),
            node.leases.len().to_string(),
            bytes(node.store.used_bytes),
            if slow { "slow".into() } else { String::new() },
        ]);
    }
    table
}

fn sources(swarm: &SwarmStats, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let all = swarm.bytes.fetched().saturating_add(swarm.bytes.from_local);
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("BYTES", Align::Right),
        ("SHARE", Align::Right),
        ("NOW", Align::Right),
    ]);
    for (name, count, now) in [
        ("origin", swarm.bytes.from_origin, swarm.rates.from_origin),
        ("peers", swarm.bytes.from_peers, swarm.rates.from_peers),
        ("local", swarm.bytes.from_local, swarm.rates.from_local),
    ] {
        let share = if all > 0 {
            percent(count as f64 / all as f64)
        } else {
            "-".into()
        };
        table.row([name.into(), bytes(count), share, rate(now)]);
    }
    write!(f, "{table}")?;
    match swarm.offload_ratio {
        Some(ratio) => write!(f, "Offload: {}", percent(ratio))?,
        None => write!(f, "Nothing has been pulled yet")?,
    }
    if let Some(copies) = swarm.origin_copies {
        write!(f, "; the origin was read {copies:.2} times")?;
    }
    writeln!(f)
}

fn origins(swarm: &SwarmStats, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if swarm.origins.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&[
        ("UPSTREAM", Align::Left),
        ("ORIGIN", Align::Left),
        ("REQUESTS", Align::Right),
        ("FAILURES", Align::Right),
        ("STATE", Align::Left),
    ]);
    for origin in &swarm.origins {
        let SwarmOrigin {
            up,
            limited,
            away,
            untried,
            ..
        } = *origin;
        let all = up + limited + away + untried;
        let told = |state: &str, count: usize| match count {
            0 => None,
            count if count == all => Some(state.to_owned()),
            count => Some(format!("{state} for {count} of {all}")),
        };
        let states = [
            told("away", away),
            told("limited", limited),
            told("untried", untried),
            told("up", up),
        ];
        table.row([
            origin.upstream.clone(),
            origin.url.clone(),
            origin.requests.to_string(),
            origin.failures.to_string(),
            states.into_iter().flatten().collect::<Vec<_>>().join(", "),
        ]);
    }
    write!(f, "\n{table}")?;
    for origin in &swarm.origins {
        if let Some(reason) = &origin.reason {
            writeln!(f, "{}: {reason}", origin.url)?;
        }
    }
    Ok(())
}

fn blobs(swarm: &SwarmStats, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if swarm.blobs.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&[
        ("BLOB", Align::Left),
        ("KIND", Align::Left),
        ("SIZE", Align::Right),
        ("COMPLETE", Align::Right),
        ("PARTIAL", Align::Right),
        ("ORIGIN COPIES", Align::Right),
    ]);
    for blob in swarm.blobs.iter().take(BLOBS_SHOWN) {
        table.row([
            short(&blob.digest).to_owned(),
            blob.kind.clone(),
            bytes(blob.size),
            blob.holders_complete.to_string(),
            blob.holders_partial.to_string(),
            format!("{:.2}", blob.origin_copies),
        ]);
    }
    write!(f, "\n{table}")?;
    let left = swarm.blobs.len().saturating_sub(BLOBS_SHOWN);
    if left > 0 {
        writeln!(f, "and {left} smaller ones; --json lists them")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use shoal_node::stats::{
        AllowanceStats, BanStats, BlobStats, NodeStats, OriginStats, SourceBytes,
    };

    use super::*;

    #[test]
    fn the_report_names_members_sources_blobs_and_the_banned() {
        let node = NodeStats {
            id: "aa".repeat(32),
            addresses: vec!["10.0.0.1:5004".into()],
            uptime_seconds: 125,
            bytes: SourceBytes {
                from_origin: 1_000_000,
                from_peers: 7_000_000,
                ..SourceBytes::default()
            },
            blobs: (0..30)
                .map(|n| BlobStats {
                    digest: format!("sha256:{n:064}"),
                    kind: "blob".into(),
                    size: 1_000_000 + n,
                    complete: true,
                    from_origin: 1,
                    ..BlobStats::default()
                })
                .collect(),
            bans: vec![BanStats {
                id: "bb".repeat(32),
                blob: String::new(),
                reason: "signed a wrong hash".into(),
            }],
            allowances: vec![AllowanceStats {
                upstream: "docker.io".into(),
                limit: 100,
                remaining: 7,
                window_seconds: 21_600,
                spared: true,
                ..AllowanceStats::default()
            }],
            ..NodeStats::default()
        };
        let origin = |url: &str, state: &str| OriginStats {
            upstream: "docker.io".into(),
            url: url.into(),
            state: state.into(),
            requests: 4,
            failures: 3,
            reason: (state == "away").then(|| "connection refused".into()),
            ..OriginStats::default()
        };
        let node = NodeStats {
            origins: vec![
                origin("https://b.test/", "away"),
                origin("https://a.test/", "up"),
            ],
            ..node
        };
        let other = NodeStats {
            id: "cc".repeat(32),
            origins: vec![
                origin("https://b.test/", "up"),
                origin("https://a.test/", "up"),
            ],
            ..NodeStats::default()
        };
        let report = Report(&SwarmStats::merge(vec![node, other], 3)).to_string();
        for part in [
            "2 of 3 members answered",
            "docker.io  https://b.test/         8         6  away for 1 of 2, up for 1 of 2",
            "docker.io  https://a.test/         8         6  up\n",
            "https://b.test/: connection refused",
            "aaaaaaaaaaaa  10.0.0.1:5004  2m05s  1.0 MB  7.0 MB",
            "peers   7.0 MB  87.5 %",
            "Offload: 87.5 %",
            "docker.io: 7 of 100 pulls left in 6h00m, kept for what nobody here has",
            "and 10 smaller ones",
            "Banned: bbbbbbbbbbbb by 1 of 2: signed a wrong hash",
        ] {
            assert!(report.contains(part), "{part}\n{report}");
        }
    }

    #[test]
    fn an_idle_swarm_divides_by_nothing() {
        let report = Report(&SwarmStats::merge(vec![NodeStats::default()], 1)).to_string();
        assert!(report.contains("Nothing has been pulled yet"), "{report}");
        assert!(!report.contains("NaN"), "{report}");
    }
}
