//! The registries.conf.d of podman, buildah, skopeo and CRI-O.
//! (containers-registries.conf(5) and containers-registries.conf.d(5))

use std::{fs, path::PathBuf};

use super::{Client, Plan, Site, authority, block, read, toml_of, undo_blocks};

const DIRECTORY: &str = "etc/containers/registries.conf.d";
const CERTIFICATES: &str = "etc/containers/certs.d";
const MAIN: &str = "etc/containers/registries.conf";
const FILE: &str = "50-shoal.conf";

pub(super) fn plan(site: &Site, client: Client) -> anyhow::Result<Plan> {
    let file = block::File::open(file(site))?;
    let taken = configured(site)?;
    // What speaks plain http counts as insecure.
    let insecure = if site.mirror.tls {
        ""
    } else {
        "insecure = true\n"
    };
    let mut plan = Plan::default();
    let mut lines = Vec::new();
    for registry in &site.registries {
        let registry = registry.as_str();
        if registry.contains(':') {
            plan.warnings.push(format!(
                "{registry} is not mirrored: these clients put the registry in a path, where no port \
                 can stand; give the node an alias for it (--origin NAME=URL) and pull \
                 {}/NAME/IMAGE",
                site.mirror
            ));
            continue;
        }
        if let Some((_, by)) = taken.iter().find(|(name, _)| name == registry) {
            plan.warnings.push(format!(
                "{registry} is configured in {}, which is left as it is; for the mirror, add to its \
                 [[registry]]:\n  [[registry.mirror]]\n  location = \"{}/{registry}\"\n  {}",
                by.display(),
                site.mirror,
                insecure.trim_end()
            ));
            continue;
        }
        lines.push(format!(
            "[[registry]]\nlocation = \"{registry}\"\n[[registry.mirror]]\n\
             location = \"{}/{registry}\"\n{insecure}",
            site.mirror
        ));
    }
    if client == Client::Podman {
        plan.warnings.push(
            "images of other registries need --registry NAME for each: there is no rule for all"
                .to_owned(),
        );
    }
    let end = file.text().len();
    plan.files.push(file.with_toml(end, &lines.concat())?);
    plan.files.extend(authority::plan(site, CERTIFICATES)?);
    Ok(plan)
}

pub(super) fn undo(site: &Site) -> anyhow::Result<Plan> {
    let mut plan = undo_blocks(vec![file(site)])?;
    plan.files.extend(authority::undo(site, CERTIFICATES)?);
    Ok(plan)
}

fn file(site: &Site) -> PathBuf {
    site.file(DIRECTORY).join(FILE)
}

/// Registries that other files configure, by their location or prefix, and in which.
fn configured(site: &Site) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let own = file(site);
    let mut paths = vec![site.file(MAIN)];
    if let Ok(entries) = fs::read_dir(site.file(DIRECTORY)) {
        paths.extend(entries.flatten().map(|entry| entry.path()));
    }
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let is_read = path
            .extension()
            .is_some_and(|extension| extension == "conf");
        if path == own || !is_read {
            continue;
        }
        let table = toml_of(&path, &read(&path)?.unwrap_or_default())?;
        let registries = table.get("registry").and_then(toml::Value::as_array);
        for registry in registries.into_iter().flatten() {
            let name = registry.get("prefix").or_else(|| registry.get("location"));
            if let Some(name) = name.and_then(toml::Value::as_str) {
                found.push((name.to_owned(), path.clone()));
            }
        }
    }
    Ok(found)
}
