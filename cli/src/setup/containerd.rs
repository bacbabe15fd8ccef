//! containerd's `certs.d`: one directory for each registry, `_default` for those without.
//! (<https://github.com/containerd/containerd/blob/main/docs/hosts.md>)

use std::{fmt::Write as _, fs, io, path::PathBuf};

use anyhow::Context;

use super::{Plan, Site, block, read, toml_of};

const DIRECTORY: &str = "etc/containerd/certs.d";
const CONFIGURATION: &str = "etc/containerd/config.toml";
const FILE: &str = "hosts.toml";
const DEFAULT: &str = "_default";

pub(super) fn plan(site: &Site) -> anyhow::Result<Plan> {
    let url = site.mirror.url();
    let mut plan = Plan::default();
    for path in files(site)? {
        let file = block::File::open(path.clone())?;
        if file
            .toml()?
            .get("host")
            .and_then(|hosts| hosts.get(&url))
            .is_some()
        {
            plan.warnings.push(format!(
                "{} names {url} already; it is left as it is",
                path.display()
            ));
            continue;
        }
        // A host is tried before those below it.
        let mut lines = format!("[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
        if let Some(authority) = &site.mirror.authority {
            writeln!(lines, "ca = \"{}\"", authority.display())?;
        }
        let at = block::first_table(file.text());
        plan.files.push(file.with_toml(at, &lines)?);
    }
    plan.warnings.extend(bare_directories(site)?);
    plan.warnings.extend(unread(site)?);
    Ok(plan)
}

/// The directory of all registries.
pub(super) fn directory(site: &Site) -> PathBuf {
    site.file(DIRECTORY)
}

/// The file of `_default`, and those of the registries that have their own: `_default` does not count
/// for these.
pub(super) fn files(site: &Site) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = vec![directory(site).join(DEFAULT).join(FILE)];
    let own = directories(site)?
        .into_iter()
        .map(|directory| directory.join(FILE))
        .filter(|file| file.exists());
    files.extend(own);
    Ok(files)
}

/// The directories of registries other than `_default`, sorted.
fn directories(site: &Site) -> anyhow::Result<Vec<PathBuf>> {
    let directory = directory(site);
    let told = || format!("cannot read {}", directory.display());
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(told)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(told)?;
        if entry.path().is_dir() && entry.file_name() != DEFAULT {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Directories with certificates alone: a hosts.toml beside these would take their place.
fn bare_directories(site: &Site) -> anyhow::Result<Vec<String>> {
    let bare = directories(site)?
        .into_iter()
        .filter(|directory| !directory.join(FILE).exists());
    Ok(bare
        .map(|directory| {
            format!(
                "{} has no {FILE}, so that registry is read without the mirror; write one with its \
                 certificates to change that",
                directory.display()
            )
        })
        .collect())
}

/// Whether containerd's CRI plugin reads this directory at all.
fn unread(site: &Site) -> anyhow::Result<Option<String>> {
    let path = site.file(CONFIGURATION);
    let text = read(&path)?.unwrap_or_default();
    let table = toml_of(&path, &text)?;
    let version = table.get("version").and_then(toml::Value::as_integer);
    let plugin = if version.unwrap_or(2) >= 3 {
        "io.containerd.cri.v1.images"
    } else {
        "io.containerd.grpc.v1.cri"
    };
    let config_path = table.get("plugins").and_then(|plugins| {
        plugins
            .get(plugin)?
            .get("registry")?
            .get("config_path")?
            .as_str()
    });
    let directory = format!("/{DIRECTORY}");
    // Several directories may be named, separated by colons.
    if config_path.is_some_and(|paths| paths.split(':').any(|path| path == directory)) {
        return Ok(None);
    }
    Ok(Some(format!(
        "for Kubernetes, {} has to name this directory, and containerd to be restarted then:\n  \
         [plugins.\"{plugin}\".registry]\n    config_path = \"{directory}\"",
        path.display()
    )))
}
