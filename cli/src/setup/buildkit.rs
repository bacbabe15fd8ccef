//! buildkitd.toml. (<https://docs.docker.com/build/buildkit/toml-configuration/>)

use std::path::PathBuf;

use super::{Change, Plan, Site, block, read, toml_of};

const FILE: &str = "etc/buildkit/buildkitd.toml";

pub(super) fn plan(site: &Site) -> anyhow::Result<Plan> {
    let path = file(site);
    let before = read(&path)?;
    let other = block::without(before.clone())?;
    let text = other.as_deref().unwrap_or_default();
    let table = toml_of(&path, text)?;
    let mirror = site.mirror.to_string();
    let has = |name: &str| {
        table
            .get("registry")
            .and_then(|all| all.get(name))
            .is_some()
    };
    let mut plan = Plan::default();
    let mut lines = Vec::new();
    for registry in &site.registries {
        let registry = registry.as_str();
        if has(registry) {
            plan.warnings.push(format!(
                "{} configures {registry} already; for the mirror, add there:\n  \
                 mirrors = [\"{mirror}\"]",
                path.display()
            ));
            continue;
        }
        lines.push(format!(
            "[registry.\"{registry}\"]\nmirrors = [\"{mirror}\"]\n"
        ));
    }
    if !has(&mirror) {
        lines.push(format!("[registry.\"{mirror}\"]\nhttp = true\n"));
    }
    let after = block::insert(other.as_deref(), text.len(), &lines.concat(), "");
    toml_of(&path, &after)?;
    plan.files.push(Change {
        path,
        before,
        after: Some(after),
    });
    plan.warnings.push(
        "a build in a container of its own (docker buildx create) has a network of its own: 127.0.0.1 \
         is not this host there"
            .to_owned(),
    );
    Ok(plan)
}

pub(super) fn file(site: &Site) -> PathBuf {
    site.file(FILE)
}
