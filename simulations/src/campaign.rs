//! Every world with many seeds: what `--campaign` runs, and the table of what came of it.
//!
//! Whole, it takes hours. Each run is kept as it ends, so a campaign that was stopped goes on where
//! it was; what other versions of the code did stays until it is run anew, and the table says which
//! version a figure is of.

mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{
    machines,
    scenario::{NAMES, Scenario},
};

/// The first seed: the code was tuned on smaller ones.
const SEED: u64 = 100;

/// The worlds of the bounds that the exchange is held to, and with how many seeds.
const HELD: &[(&str, u64)] = &[
    ("cold-10", 20),
    ("cold-100", 20),
    ("cold-1000", 20),
    ("single-10", 20),
    ("single-100", 20),
    ("single-1000", 20),
    ("single-10000", 2),
    ("small-1000", 20),
    ("layers-100", 20),
    ("crash-slow-100", 20),
    ("racks-100", 20),
    ("fast-100", 20),
    ("warm1-100", 20),
];

/// Seeds of all other worlds, with as many nodes as they have by default.
const OTHERS: u64 = 5;

/// The file with a line for each run.
const RUNS: &str = "runs.jsonl";

/// A world and a seed.
type Name = (String, u64);

/// What is kept of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Run {
    scenario: String,
    seed: u64,
    lower_bound_seconds: f64,
    p50_seconds: f64,
    p99_seconds: f64,
    max_seconds: f64,
    origin_copies: f64,
    control_share: f64,
    peak_origin_streams: usize,
    upload_most: f64,
    peak_memory_bytes: Option<u64>,
    invariants_broken: usize,
    violations: Vec<String>,
    trace_hash: String,
    /// The version of the code, as [`version`] names it.
    #[serde(default)]
    version: String,
}

impl Run {
    fn name(&self) -> Name {
        (self.scenario.clone(), self.seed)
    }

    fn tell(&self) -> String {
        let Self { scenario, seed, .. } = self;
        let late = self.p99_seconds - self.lower_bound_seconds;
        let mut told = format!("{scenario} seed {seed}: 99 % {late:.2} s after the bound");
        for violation in &self.violations {
            told += "\n  VIOLATION ";
            told += violation;
        }
        told
    }
}

/// The runs that there are, and where they are kept.
struct Campaign {
    directory: PathBuf,
    version: String,
    runs: BTreeMap<Name, Run>,
}

/// Runs what this version of the code has not run yet, and keeps it in a directory; `say` hears of
/// each run when it has ended. Tells whether all of it was sound.
///
/// # Errors
/// The directory cannot be read or written, or a run did not end.
pub(crate) fn run(directory: &Path, say: impl Fn(&str) + Sync) -> anyhow::Result<bool> {
    let mut campaign = Campaign::open(directory)?;
    let plan = plan();
    campaign.runs.retain(|name, _| plan.contains(name));
    campaign.save()?;
    let missing: Vec<Name> = plan
        .iter()
        .filter(|name| !campaign.has(name))
        .cloned()
        .collect();
    say(&format!(
        "{} runs of {} are left for {}",
        missing.len(),
        plan.len(),
        campaign.version
    ));
    // A large world takes two cores by itself.
    let nodes = |name: &Name| Scenario::named(&name.0, name.1).map_or(0, |world| world.nodes);
    let (large, small): (Vec<Name>, Vec<Name>) = missing
        .into_iter()
        .partition(|name| nodes(name) >= machines::THREADED_FROM);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let campaign = Mutex::new(campaign);
    for (names, threads) in [(small, cores), (large, cores.div_ceil(2))] {
        side_by_side(&names, threads, |name| {
            let run = attempt(name)?;
            let told = run.tell();
            let mut campaign = campaign.lock().unwrap_or_else(PoisonError::into_inner);
            campaign.add(run)?;
            say(&told);
            Ok(())
        })?;
    }
    let campaign = campaign
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok(campaign.runs.values().all(|run| run.violations.is_empty()))
}

/// Does something with each of these, on so many threads. Whatever fails ends its thread, and is
/// told when the others have done the rest.
fn side_by_side(
    names: &[Name],
    threads: usize,
    act: impl Fn(&Name) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let left = Mutex::new(names.iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || -> anyhow::Result<()> {
        while let Some(name) = next() {
            act(name)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(done) => done?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
}

/// All runs of a campaign, in the order of the table.
fn plan() -> Vec<Name> {
    let is_held = |name: &str| {
        let mut held = HELD.iter().filter_map(|(held, _)| held.rsplit_once('-'));
        held.any(|(held, _)| held == name)
    };
    let others = NAMES
        .iter()
        .map(|(name, _)| (*name, OTHERS))
        .filter(|(name, _)| !is_held(name));
    let worlds = HELD.iter().copied().chain(others);
    worlds
        .flat_map(|(name, seeds)| (SEED..SEED + seeds).map(move |seed| (name.to_owned(), seed)))
        .collect()
}

/// A process of its own for a run: so its memory is known.
fn attempt((scenario, seed): &Name) -> anyhow::Result<Run> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--json", "--scenario", scenario, "--seed"])
        .arg(seed.to_string())
        .output()?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!("{scenario} seed {seed} did not end: {errors}")
    })
}

/// What decides how a run goes, from the top of the repository. What a campaign writes is elsewhere:
/// it would be of another version after each run.
const CODE: [&str; 3] = [":/protocol", ":/simulations/src", ":/Cargo.lock"];

/// The version of the code that runs, as far as git knows it: its last commit, and whether it was
/// changed since.
fn version() -> String {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(arguments).arg("--").args(CODE).output()
    };
    let last = git(&["log", "-1", "--abbrev=9", "--format=%h"]);
    let changed = git(&["diff", "--quiet", "HEAD"]);
    let (Ok(last), Ok(changed)) = (last, changed) else {
        return "unknown".to_owned();
    };
    let dirty = if changed.status.success() {
        ""
    } else {
        "-dirty"
    };
    format!("{}{dirty}", String::from_utf8_lossy(&last.stdout).trim())
}

impl Campaign {
    /// What a directory holds, or nothing yet.
    fn open(directory: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        let path = directory.join(RUNS);
        let lines = if path.exists() {
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?
        } else {
            String::new()
        };
        let mut runs = BTreeMap::new();
        for (number, line) in lines.lines().enumerate() {
            let run: Run = serde_json::from_str(line).with_context(|| {
                format!(
                    "line {} of {} is no run; delete it",
                    number + 1,
                    path.display()
                )
            })?;
            runs.insert(run.name(), run);
        }
        Ok(Self {
            directory: directory.to_owned(),
            version: version(),
            runs,
        })
    }

    fn has(&self, name: &Name) -> bool {
        let run = self.runs.get(name);
        run.is_some_and(|run| run.version == self.version)
    }

    fn add(&mut self, mut run: Run) -> anyhow::Result<()> {
        run.version.clone_from(&self.version);
        self.runs.insert(run.name(), run);
        self.save()
    }

    /// A file is replaced whole: nobody who stops a campaign loses what it has done.
    fn save(&self) -> anyhow::Result<()> {
        let mut lines = String::new();
        for run in self.runs.values() {
            lines += &serde_json::to_string(run)?;
            lines.push('\n');
        }
        let runs: Vec<&Run> = self.runs.values().collect();
        for (name, content) in [(RUNS, lines), ("table.md", table::markdown(&runs))] {
            let path = self.directory.join(name);
            let new = self.directory.join(format!("{name}.new"));
            fs::write(&new, content)
                .and_then(|()| fs::rename(&new, &path))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}
