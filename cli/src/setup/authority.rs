//! Copies of the mirror's authority, for clients that look for one in a directory of each registry.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Change, Site, read};

const FILE: &str = "shoal-ca.crt";

/// The mirror's copy under `directory`, if it takes one, and none for any other address.
pub(super) fn plan(site: &Site, directory: &str) -> anyhow::Result<Vec<Change>> {
    let own = site
        .file(directory)
        .join(site.mirror.to_string())
        .join(FILE);
    let mut changes = Vec::new();
    if let Some(pem) = site.mirror.authority_pem()? {
        changes.push(Change {
            before: read(&own)?,
            path: own.clone(),
            after: Some(pem),
        });
    }
    let kept = |change: &Change| !changes.is_empty() && change.path == own;
    let others: Vec<Change> = undo(site, directory)?
        .into_iter()
        .filter(|change| !kept(change))
        .collect();
    changes.extend(others);
    Ok(changes)
}

/// None for any address.
pub(super) fn undo(site: &Site, directory: &str) -> anyhow::Result<Vec<Change>> {
    let registries = fs::read_dir(site.file(directory));
    let mut paths: Vec<PathBuf> = registries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join(FILE))
        .filter(|path| path.exists())
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            Ok(Change {
                before: read(&path)?,
                path,
                after: None,
            })
        })
        .collect()
}

/// Whether this file is such a copy, and its directory was made for it.
pub(super) fn is_copy(path: &Path) -> bool {
    path.ends_with(FILE)
}
