//! The registries.yaml of k3s and RKE2. (<https://docs.k3s.io/installation/private-registry>)

use std::path::PathBuf;

use anyhow::bail;

use super::{Client, Plan, Site, block};

pub(super) fn plan(site: &Site, client: Client) -> anyhow::Result<Plan> {
    let path = file(site, client);
    let file = block::File::open(path.clone())?;
    let entry = |indent: &str| {
        format!(
            "{indent}\"*\":\n{indent}  endpoint:\n{indent}    - \"{}\"\n",
            site.mirror.url()
        )
    };
    let certificate = site.mirror.authority.as_ref().map(|authority| {
        format!(
            "configs:\n  \"{}\":\n    tls:\n      ca_file: \"{}\"\n",
            site.mirror,
            authority.display()
        )
    });
    let mut warnings = vec![
        "a registry with a mirror of its own in this file does not use the one for \"*\""
            .to_owned(),
    ];
    // Our lines stand in one place, and what is there may have both sections.
    let own_file = file.text().is_empty();
    if let Some(certificate) = certificate.as_ref().filter(|_| !own_file) {
        warnings.push(format!(
            "for the mirror's certificate, add by hand to {}:\n{certificate}",
            path.display()
        ));
    }
    let change = match section(file.text()) {
        Section::None => {
            let certificate = certificate.filter(|_| own_file).unwrap_or_default();
            let lines = format!("mirrors:\n{}{certificate}", entry("  "));
            let end = file.text().len();
            file.with(end, &lines, "")
        }
        Section::Block { at, indent } => file.with(at, &entry(&indent), &indent),
        Section::Wildcard => bail!(
            "{} has a mirror for \"*\" already; add {} to its endpoints by hand",
            path.display(),
            site.mirror.url()
        ),
        Section::Other => bail!(
            "{} writes its mirrors on one line; write them as a block, one registry to a line, and \
             run this again",
            path.display()
        ),
    };
    Ok(Plan {
        files: vec![change],
        warnings,
    })
}

pub(super) fn file(site: &Site, client: Client) -> PathBuf {
    site.file(&format!("etc/rancher/{client}/registries.yaml"))
}

/// What there is of `mirrors:`.
enum Section {
    None,
    /// Its entries begin here, so far in.
    Block {
        at: usize,
        indent: String,
    },
    /// It has one for all registries.
    Wildcard,
    /// In a form that is not looked into.
    Other,
}

fn section(text: &str) -> Section {
    let mut lines = text.split_inclusive('\n');
    let mut at = 0;
    while let Some(line) = lines.next() {
        at += line.len();
        let Some(rest) = line.strip_prefix("mirrors:") else {
            continue;
        };
        let rest = rest.trim();
        if !(rest.is_empty() || rest.starts_with('#')) || !line.ends_with('\n') {
            return Section::Other;
        }
        let meaning = |line: &&str| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#')
        };
        let entries: Vec<&str> = lines
            .filter(meaning)
            .take_while(|line| line.starts_with(' '))
            .collect();
        let indent = entries.first().map_or("  ", |line| {
            &line[..line.len() - line.trim_start_matches(' ').len()]
        });
        let is_wildcard = |line: &&&str| {
            let name = line.trim().trim_start_matches(['"', '\'']);
            name.starts_with("*\":") || name.starts_with("*':")
        };
        return if entries.iter().any(|line| is_wildcard(&line)) {
            Section::Wildcard
        } else {
            Section::Block {
                at,
                indent: indent.to_owned(),
            }
        };
    }
    Section::None
}
