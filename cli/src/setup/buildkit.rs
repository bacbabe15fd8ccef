//! buildkitd.toml. (<https://docs.docker.com/build/buildkit/toml-configuration/>)

use std::path::PathBuf;

use super::{Plan, Site, block};

const FILE: &str = "etc/buildkit/buildkitd.toml";

pub(super) fn plan(site: &Site) -> anyhow::Result<Plan> {
    let path = file(site);
    let file = block::File::open(path.clone())?;
    let table = file.toml()?;
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
        let how = match &site.mirror.authority {
            Some(authority) => Some(format!("ca = [\"{}\"]", authority.display())),
            None if site.mirror.tls => None,
            None => Some("http = true".to_owned()),
        };
        lines.extend(how.map(|how| format!("[registry.\"{mirror}\"]\n{how}\n")));
    }
    let end = file.text().len();
    plan.files.push(file.with_toml(end, &lines.concat())?);
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
