//! What an operator can do about what an origin answers.

use super::{Checked, Findings};
use crate::origin::error::OriginError;

/// Words of errors of connections, and what helps. Those of the HTTP client's own libraries have no types
/// that say as much.
const CONNECTIONS: [(&str, &str); 5] = [
    (
        "InvalidContentType",
        "it does not speak TLS there: if it speaks plain http, say --origin {upstream}=http://HOST:PORT",
    ),
    (
        "certificate",
        "if its authority is one of your own, name it with --origin-ca {upstream}=FILE; if the certificate \
         is out of date or for another name, replace it, and look at this host's clock",
    ),
    (
        "dns error",
        "correct the name in --origin {upstream}=URL, or let this host resolve it",
    ),
    (
        "Connection refused",
        "start what should listen there, or correct host and port in --origin {upstream}=URL",
    ),
    (
        "HTML page",
        "correct the URL in --origin {upstream}=URL, or have the proxy, filter or portal let this host \
         through",
    ),
];

/// What to do about `error`.
pub(super) fn on(error: &OriginError, what: Checked, findings: &Findings<'_>) -> String {
    let text = error.to_string();
    let &Findings {
        upstream, storage, ..
    } = findings;
    let advice = match error {
        OriginError::NotFound(_) if what == Checked::Reach => {
            "correct the URL in --origin {upstream}=URL: a registry answers below /v2/ of it"
        }
        OriginError::NotFound(_) | OriginError::Truncated { .. } | OriginError::Invalid(_)
            if what == Checked::Blob =>
        {
            "push or copy the image there again: what it names is missing there, or damaged"
        }
        OriginError::NotFound(_) => {
            "correct the image's name; some registries say the same to whom may not read it"
        }
        OriginError::Denied(_) if storage => {
            "let the user that the daemon runs as read the directory, or give the bucket's credentials"
        }
        OriginError::Denied(_) if what == Checked::Reach => {
            "correct the URL in --origin {upstream}=URL, or have what stands before the registry let this \
             host through: whoever may log in is not even asked to"
        }
        OriginError::Denied(_) => {
            "log in as somebody who may pull: `docker login` as the user that the daemon runs as, or another \
             file with --docker-config"
        }
        OriginError::Throttled { .. } => {
            "wait, log in with an account that may pull more, or name another origin after it"
        }
        OriginError::Unreachable(_) | OriginError::Truncated { .. } | OriginError::Invalid(_) => {
            let known = CONNECTIONS.iter().find(|(words, _)| text.contains(words));
            match known {
                Some((_, advice)) => advice,
                None if storage => {
                    "mount the directory, or correct the path or bucket in --origin {upstream}=URL"
                }
                None if matches!(error, OriginError::Invalid(_)) => {
                    "is it a registry's URL, and nothing in between? See what it answers to curl -i"
                }
                None => {
                    "let this host reach it: look at the network, the firewall and HTTPS_PROXY; or name \
                     another origin after it"
                }
            }
        }
    };
    advice.replace("{upstream}", upstream.as_str())
}
