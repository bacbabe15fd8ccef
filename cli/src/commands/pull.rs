//! `shoal pull`: fetch an image into a node, with its progress.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write as _},
};

use anyhow::{Context, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use shoal_node::admin::{Platform, PullEvent, PullLayer};
use shoal_protocol::reference::Reference;

use super::admin::{AdminArgs, AdminClient};
use crate::output::{self, bytes, duration, percent, rate, short};

const BAR: &str = "{prefix} {wide_bar} {decimal_bytes:>10} / {decimal_total_bytes:>10} {msg:>18}";

/// Fetch an image into this host's node, with progress
///
/// Asks the running node; layers that it holds already are not fetched again.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct PullArgs {
    /// The image, as in `docker pull`: redis:7, registry.test/team/image@sha256:…
    #[arg(value_name = "REF")]
    reference: Reference,
    #[command(flatten)]
    admin: AdminArgs,
    /// Platform to choose from a multi-platform image [default: the daemon's own]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Print the daemon's events as JSON, one a line
    #[arg(long)]
    json: bool,
    /// Print only the digest
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

/// Runs the command.
///
/// # Errors
/// Where no daemon answers at the admin address, or the pull fails.
pub(crate) async fn run(args: PullArgs) -> anyhow::Result<()> {
    output::unless_reader_left(pull(&args).await)
}

async fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let client = AdminClient::new(&args.admin);
    let mut query = vec![("ref", args.reference.to_string())];
    if let Some(platform) = &args.platform {
        query.push(("platform", platform.to_string()));
    }
    let mut lines = client.post("/v1/pull", &query).await?;
    let mut tally = Tally::default();
    let mut display = Display::choose(args);
    while let Some(line) = lines.next().await? {
        if args.json {
            output::print(&line)?;
        }
        let event = serde_json::from_str(&line)
            .with_context(|| format!("cannot read what the daemon says: {line}"))?;
        tally.note(&event);
        display.show(&event);
        match event {
            PullEvent::Manifest { .. } | PullEvent::Progress { .. } => {}
            PullEvent::Done { bytes, seconds } => {
                display.close();
                if args.quiet {
                    output::print(&tally.digest)?;
                } else if !args.json {
                    output::print(&tally.summary(&args.reference, bytes, seconds))?;
                }
                return Ok(());
            }
            PullEvent::Failed { error } => {
                display.close();
                bail!("cannot pull {}: {error}", args.reference);
            }
        }
    }
    display.close();
    bail!(
        "the daemon stopped reporting before {} was complete; pull again to go on where it ended",
        args.reference
    )
}

/// What the events add up to.
#[derive(Default)]
struct Tally {
    digest: String,
    /// From the origin and from peers, by blob.
    sources: BTreeMap<String, (u64, u64)>,
}

impl Tally {
    fn note(&mut self, event: &PullEvent) {
        match event {
            PullEvent::Manifest { digest, .. } => self.digest.clone_from(digest),
            PullEvent::Progress {
                digest,
                from_origin,
                from_peers,
                ..
            } => {
                self.sources
                    .insert(digest.clone(), (*from_origin, *from_peers));
            }
            PullEvent::Done { .. } | PullEvent::Failed { .. } => {}
        }
    }

    fn summary(&self, reference: &Reference, total: u64, seconds: f64) -> String {
        let (origin, peers) = self
            .sources
            .values()
            .fold((0, 0), |(origin, peers), (o, p)| (origin + o, peers + p));
        // Bytes that a retry fetched twice must not make the shares exceed the whole.
        let whole = total.max(origin + peers);
        let share = |part: u64| {
            let share = if whole > 0 {
                part as f64 / whole as f64
            } else {
                0.0
            };
            percent(share)
        };
        let speed = if seconds > 0.0 {
            format!(" ({})", rate((total as f64 / seconds) as u64))
        } else {
            String::new()
        };
        format!(
            "{reference}: {} in {}{speed}; {} from peers, {} from the origin, {} was here",
            bytes(total),
            duration(seconds),
            share(peers),
            share(origin),
            share(whole - origin - peers),
        )
    }
}

/// How the progress is shown.
enum Display {
    /// Not at all.
    Silent,
    /// A line for each blob that is complete.
    Lines(BTreeMap<String, Pending>),
    /// A bar for each blob.
    Bars(MultiProgress, BTreeMap<String, ProgressBar>),
}

/// A blob that no line has been written for.
struct Pending {
    size: u64,
    place: usize,
    count: usize,
}

impl Display {
    fn choose(args: &PullArgs) -> Self {
        if args.quiet || args.json {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Bars(MultiProgress::new(), BTreeMap::new())
        } else {
            Self::Lines(BTreeMap::new())
        }
    }

    fn show(&mut self, event: &PullEvent) {
        match event {
            PullEvent::Manifest { digest, layers } => self.begin(digest, layers),
            PullEvent::Progress {
                digest,
                have_bytes,
                from_peers,
                ..
            } => self.advance(digest, *have_bytes, *from_peers),
            PullEvent::Done { .. } | PullEvent::Failed { .. } => {}
        }
    }

    fn begin(&mut self, digest: &str, layers: &[PullLayer]) {
        let total = layers.iter().map(|layer| layer.size).sum();
        let head = format!(
            "{}: {} blobs, {}",
            short(digest),
            layers.len(),
            bytes(total)
        );
        match self {
            Self::Silent => {}
            Self::Lines(pending) => {
                say(&head);
                for (at, layer) in layers.iter().enumerate() {
                    pending.insert(
                        layer.digest.clone(),
                        Pending {
                            size: layer.size,
                            place: at + 1,
                            count: layers.len(),
                        },
                    );
                }
            }
            Self::Bars(all, bars) => {
                // The terminal may have gone; the pull has not.
                let _ = all.println(head);
                let style = ProgressStyle::with_template(BAR)
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
                for layer in layers {
                    let bar = ProgressBar::new(layer.size)
                        .with_style(style.clone())
                        .with_prefix(short(&layer.digest).to_owned());
                    let bar = bars.entry(layer.digest.clone()).or_insert(all.add(bar));
                    bar.tick();
                }
            }
        }
    }

    fn advance(&mut self, digest: &str, have_bytes: u64, from_peers: u64) {
        match self {
            Self::Silent => {}
            Self::Lines(pending) => {
                if let Some(blob) = pending.get(digest)
                    && have_bytes >= blob.size
                {
                    let Pending { size, place, count } = blob;
                    say(&format!(
                        "{place} of {count}: {} {} {}",
                        short(digest),
                        bytes(*size),
                        peers_share(from_peers, *size)
                    ));
                    pending.remove(digest);
                }
            }
            Self::Bars(_, bars) => {
                let Some(bar) = bars.get(digest) else { return };
                bar.set_position(have_bytes);
                bar.set_message(peers_share(from_peers, have_bytes));
                if Some(have_bytes) >= bar.length() {
                    bar.abandon();
                }
            }
        }
    }

    /// Leaves the last state on the screen.
    fn close(&mut self) {
        if let Self::Bars(_, bars) = self {
            for bar in bars.values() {
                bar.abandon();
            }
        }
    }
}

/// `87.5 % from peers`; nothing where nothing came from them.
fn peers_share(from_peers: u64, of: u64) -> String {
    if from_peers == 0 || of == 0 {
        return String::new();
    }
    let share = (from_peers as f64 / of as f64).min(1.0);
    format!("{} from peers", percent(share))
}

/// Progress goes to standard error, and nobody reading it is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{}", line.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(digest: &str, have_bytes: u64, from_origin: u64, from_peers: u64) -> PullEvent {
        PullEvent::Progress {
            digest: digest.into(),
            have_bytes,
            from_origin,
            from_peers,
        }
    }

    #[test]
    fn the_summary_says_how_much_how_fast_and_from_where() {
        let reference: Reference = "quay.io/a/b:1".parse().unwrap();
        let mut tally = Tally::default();
        for event in [
            progress("a", 10, 10, 0),
            progress("a", 500_000, 100_000, 400_000),
            progress("b", 500_000, 0, 300_000),
        ] {
            tally.note(&event);
        }
        assert_eq!(
            tally.summary(&reference, 1_000_000, 2.0),
            "quay.io/a/b:1: 1.0 MB in 2.0 s (500.0 kB/s); 70.0 % from peers, \
             10.0 % from the origin, 20.0 % was here"
        );
        let empty = Tally::default().summary(&reference, 0, 0.0);
        assert!(!empty.contains("NaN"), "{empty}");
    }

    #[test]
    fn the_bars_have_a_style() {
        ProgressStyle::with_template(BAR).unwrap();
    }

    #[test]
    fn a_line_is_written_once_for_a_blob() {
        let mut display = Display::Lines(BTreeMap::new());
        display.begin(
            "sha256:00",
            &[PullLayer {
                digest: "a".into(),
                size: 5,
                media_type: String::new(),
            }],
        );
        let left = |display: &Display| match display {
            Display::Lines(pending) => pending.len(),
            Display::Silent | Display::Bars(..) => unreachable!(),
        };
        display.advance("a", 4, 4);
        assert_eq!(left(&display), 1);
        display.advance("a", 5, 5);
        display.advance("a", 5, 5);
        assert_eq!(left(&display), 0);
    }
}
