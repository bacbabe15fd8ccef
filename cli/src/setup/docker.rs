//! Docker Engine's daemon.json. JSON has no comments to mark our part by, so what is written has one
//! form, by which it is found again.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail};
use serde_json::value::RawValue;

use super::{Change, Plan, Site, authority, read};

const FILE: &str = "etc/docker/daemon.json";
const CERTIFICATES: &str = "etc/docker/certs.d";
const KEY: &str = "registry-mirrors";

pub(super) fn plan(site: &Site) -> anyhow::Result<Plan> {
    let path = site.file(FILE);
    let before = read(&path)?;
    let url = quoted(site);
    let after = match &before {
        None => new_file(&url),
        Some(text) => match mirrors(&path, text)? {
            Some((_, list)) if lists(list, &url)? => text.clone(),
            Some((at, list)) => {
                let comma = if is_empty(list) { "" } else { ", " };
                inserted(text, at + 1, &format!("{url}{comma}"))
            }
            None => {
                let object = text.find('{').unwrap_or_default() + 1;
                let comma = if text[object..].trim_start().starts_with('}') {
                    ""
                } else {
                    ","
                };
                inserted(text, object, &format!("{}{comma}", member(&url)))
            }
        },
    };
    let mut files = vec![Change {
        path,
        before,
        after: Some(after),
    }];
    files.extend(authority::plan(site, CERTIFICATES)?);
    Ok(Plan {
        files,
        warnings: vec![format!(
            "Docker Engine mirrors Docker Hub only; name other registries in the image: \
             docker pull {}/ghcr.io/OWNER/IMAGE",
            site.mirror
        )],
    })
}

pub(super) fn undo(site: &Site) -> anyhow::Result<Plan> {
    let mut files = authority::undo(site, CERTIFICATES)?;
    files.extend(undo_file(site)?);
    Ok(Plan {
        files,
        warnings: Vec::new(),
    })
}

fn undo_file(site: &Site) -> anyhow::Result<Option<Change>> {
    let path = site.file(FILE);
    let Some(text) = read(&path)? else {
        return Ok(None);
    };
    let url = quoted(site);
    let Some((at, list)) = mirrors(&path, &text)? else {
        return Ok(None);
    };
    if !lists(list, &url)? {
        return Ok(None);
    }
    let object = text.find('{').unwrap_or_default() + 1;
    let own = member(&url);
    let after = if text == new_file(&url) {
        None
    } else if let Some(rest) = text[object..].strip_prefix(&own) {
        let rest = rest.strip_prefix(',').unwrap_or(rest);
        Some(format!("{}{rest}", &text[..object]))
    } else if let Some(rest) = text[at + 1..].strip_prefix(&url) {
        let rest = rest.strip_prefix(", ").unwrap_or(rest);
        Some(format!("{}{rest}", &text[..=at]))
    } else {
        bail!(
            "{} was written anew since; remove {url} from \"{KEY}\" by hand",
            path.display()
        );
    };
    Ok(Some(Change {
        path,
        before: Some(text),
        after,
    }))
}

fn quoted(site: &Site) -> String {
    format!("\"{}\"", site.mirror.url())
}

fn member(url: &str) -> String {
    format!("\n  \"{KEY}\": [{url}]")
}

/// With spaces that [`plan`] writes into no file of somebody else's.
fn new_file(url: &str) -> String {
    format!("{{\n  \"{KEY}\": [ {url} ]\n}}\n")
}

fn inserted(text: &str, at: usize, what: &str) -> String {
    format!("{}{what}{}", &text[..at], &text[at..])
}

/// Where the list of mirrors begins in the file, and its text.
fn mirrors<'a>(path: &Path, text: &'a str) -> anyhow::Result<Option<(usize, &'a str)>> {
    let members: BTreeMap<String, &'a RawValue> = serde_json::from_str(text)
        .with_context(|| format!("{} is not a JSON object", path.display()))?;
    Ok(members.get(KEY).map(|list| {
        let list = list.get();
        (list.as_ptr().addr() - text.as_ptr().addr(), list)
    }))
}

fn lists(list: &str, url: &str) -> anyhow::Result<bool> {
    let urls: Vec<String> = serde_json::from_str(list)
        .with_context(|| format!("\"{KEY}\" in daemon.json is not a list of URLs"))?;
    Ok(urls.iter().any(|one| format!("\"{one}\"") == url))
}

fn is_empty(list: &str) -> bool {
    list.trim_start_matches('[').trim_start().starts_with(']')
}
