//! The status page: one HTML document that needs nothing else, readable on a phone.

use std::fmt::{self, Write as _};

use crate::stats::{NodeStats, SwarmStats};

/// Rows of the longest table; more is for `shoal stats --json`.
const ROWS_MAX: usize = 200;

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:64rem;padding:1rem}\
h1{font-size:1.3rem;margin:0 0 .5rem}h2{font-size:1rem;margin:1.4rem 0 .3rem}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.25rem .6rem .25rem 0;white-space:nowrap;\
border-bottom:1px solid #8884}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
code{font-size:.9em}.bad{color:#c33;font-weight:600}.dim{opacity:.65}";

/// The page.
pub(super) fn render(
    node: &NodeStats,
    swarm: &SwarmStats,
    readiness: &Result<(), String>,
) -> String {
    let mut html = String::with_capacity(8 << 10);
    // Writing to a String cannot fail.
    let _ = write(&mut html, node, swarm, readiness);
    html
}

fn write(
    html: &mut String,
    node: &NodeStats,
    swarm: &SwarmStats,
    readiness: &Result<(), String>,
) -> fmt::Result {
    write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"5\"><title>Shoal</title>\
         <style>{STYLE}</style></head><body><h1>Shoal</h1>\
         <p>Node <code>{}</code>, version {}, up {} s. ",
        Escaped(short(&node.id)),
        Escaped(&node.version),
        node.uptime_seconds,
    )?;
    match readiness {
        Ok(()) => html.push_str("Ready.</p>"),
        Err(reason) => write!(
            html,
            "<span class=\"bad\">Not ready: {}</span></p>",
            Escaped(reason)
        )?,
    }
    sources(html, swarm)?;
    origins(html, node)?;
    members(html, swarm)?;
    blobs(html, swarm)?;
    banned(html, swarm)?;
    html.push_str("</body></html>");
    Ok(())
}

fn sources(html: &mut String, swarm: &SwarmStats) -> fmt::Result {
    html.push_str(
        "<h2>Bytes by source</h2><div class=\"wide\"><table><tr><th>Source</th>\
         <th class=\"n\">Bytes</th><th class=\"n\">Now</th></tr>",
    );
    for (name, bytes, rate) in [
        ("origin", swarm.bytes.from_origin, swarm.rates.from_origin),
        ("peers", swarm.bytes.from_peers, swarm.rates.from_peers),
        ("local", swarm.bytes.from_local, swarm.rates.from_local),
    ] {
        write!(
            html,
            "<tr><td>{name}</td><td class=\"n\">{}</td><td class=\"n\">{}/s</td></tr>",
            Bytes(bytes),
            Bytes(rate)
        )?;
    }
    html.push_str("</table></div><p>");
    match swarm.offload_ratio {
        Some(ratio) => write!(html, "{:.1} % did not come from an origin. ", 100.0 * ratio)?,
        None => html.push_str("Nothing has been pulled yet. "),
    }
    if let Some(copies) = swarm.origin_copies {
        write!(html, "The origin was read {copies:.2} times.")?;
    }
    html.push_str("</p>");
    Ok(())
}

fn members(html: &mut String, swarm: &SwarmStats) -> fmt::Result {
    write!(
        html,
        "<h2>Members: {} of {} answered</h2><div class=\"wide\"><table><tr><th>Node</th>\
         <th>Address</th><th class=\"n\">Origin</th><th class=\"n\">Peers</th>\
         <th class=\"n\">Sent</th><th class=\"n\">In now</th><th class=\"n\">Pulls</th>\
         <th class=\"n\">Store</th></tr>",
        swarm.members_answered, swarm.members_total
    )?;
    for member in swarm.members.iter().take(ROWS_MAX) {
        let slow = if swarm.slow.contains(&member.id) {
            " <span class=\"bad\">slow</span>"
        } else {
            ""
        };
        write!(
            html,
            "<tr><td><code>{}</code>{slow}</td><td>{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}/s</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            Escaped(short(&member.id)),
            Escaped(member.addresses.first().map_or("", String::as_str)),
            Bytes(member.bytes.from_origin),
            Bytes(member.bytes.from_peers),
            Bytes(member.bytes.uploaded),
            Bytes(member.rates.fetched()),
            member.pulls_active,
            Bytes(member.store.used_bytes),
        )?;
    }
    html.push_str("</table></div>");
    more(html, swarm.members.len())
}

fn origins(html: &mut String, node: &NodeStats) -> fmt::Result {
    if node.origins.is_empty() {
        return Ok(());
    }
    html.push_str(
        "<h2>Origins, as this node sees them</h2><div class=\"wide\"><table><tr><th>Upstream</th>\
         <th>Origin</th><th>State</th><th class=\"n\">For</th><th class=\"n\">Requests</th>\
         <th class=\"n\">Failures</th></tr>",
    );
    for origin in node.origins.iter().take(ROWS_MAX) {
        write!(
            html,
            "<tr><td>{}</td><td>{}</td><td class=\"{}\">{}</td><td class=\"n\">{} s</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            Escaped(&origin.upstream),
            Escaped(&origin.url),
            if matches!(origin.state.as_str(), "up" | "untried") {
                ""
            } else {
                "bad"
            },
            Escaped(&origin.state),
            origin.since_seconds,
            origin.requests,
            origin.failures,
        )?;
    }
    html.push_str("</table></div>");
    more(html, node.origins.len())
}

fn blobs(html: &mut String, swarm: &SwarmStats) -> fmt::Result {
    html.push_str(
        "<h2>Blobs</h2><div class=\"wide\"><table><tr><th>Digest</th><th>Kind</th>\
         <th class=\"n\">Size</th><th class=\"n\">Complete</th><th class=\"n\">Partial</th>\
         <th class=\"n\">Origin copies</th></tr>",
    );
    for blob in swarm.blobs.iter().take(ROWS_MAX) {
        write!(
            html,
            "<tr><td><code>{}</code></td><td>{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{:.2}</td></tr>",
            Escaped(short_digest(&blob.digest)),
            Escaped(&blob.kind),
            Bytes(blob.size),
            blob.holders_complete,
            blob.holders_partial,
            blob.origin_copies,
        )?;
    }
    html.push_str("</table></div>");
    more(html, swarm.blobs.len())
}

fn banned(html: &mut String, swarm: &SwarmStats) -> fmt::Result {
    if swarm.banned.is_empty() {
        return Ok(());
    }
    html.push_str("<h2 class=\"bad\">Banned</h2><ul>");
    for ban in &swarm.banned {
        write!(
            html,
            "<li><code>{}</code> by {} of {}: {}</li>",
            Escaped(short(&ban.id)),
            ban.by.len(),
            swarm.members_answered,
            Escaped(&ban.reason)
        )?;
    }
    html.push_str("</ul>");
    Ok(())
}

fn more(html: &mut String, rows: usize) -> fmt::Result {
    if rows > ROWS_MAX {
        let left = rows - ROWS_MAX;
        write!(
            html,
            "<p class=\"dim\">and {left} more: shoal stats --json</p>"
        )?;
    }
    Ok(())
}

/// The first 12 characters of a node's id.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// The algorithm and the first 12 characters of the hash.
fn short_digest(digest: &str) -> &str {
    let hash = digest.find(':').map_or(0, |colon| colon + 1);
    digest.get(..hash + 12).unwrap_or(digest)
}

/// Text that cannot end the text it stands in, nor an attribute.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                _ => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A number of bytes in decimal units.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        for unit in ["B", "kB", "MB", "GB"] {
            if value < 999.95 {
                let digits = usize::from(unit != "B");
                return write!(f, "{value:.digits$} {unit}");
            }
            value /= 1000.0;
        }
        write!(f, "{value:.1} TB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{OriginStats, SwarmBan};

    #[test]
    fn what_nodes_say_of_themselves_cannot_become_markup() {
        let hostile = "<script>alert('1')</script>\"&";
        let mut node = NodeStats {
            id: hostile.into(),
            version: hostile.into(),
            addresses: vec![hostile.into()],
            ..NodeStats::default()
        };
        node.origins.push(OriginStats {
            upstream: hostile.into(),
            url: hostile.into(),
            state: hostile.into(),
            ..OriginStats::default()
        });
        node.bans.clear();
        let mut swarm = SwarmStats::merge(vec![node.clone()], 1);
        swarm.banned.push(SwarmBan {
            id: hostile.into(),
            by: vec![hostile.into()],
            reason: hostile.into(),
        });
        let html = render(&node, &swarm, &Err(hostile.into()));
        assert!(!html.contains("<script"), "{html}");
        assert!(html.contains("&lt;script&gt;alert(&#39;1&#39;)"));
    }

    #[test]
    fn bytes_are_written_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_500, "1.5 kB"),
            (999_960, "1.0 MB"),
            (7_000_000_000_000, "7.0 TB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
