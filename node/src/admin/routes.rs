//! From a request to its response.

use std::{convert::Infallible, net::IpAddr};

use bytes::Bytes;
use futures::StreamExt;
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderValue, ORIGIN},
};
use serde::Serialize;
use shoal_protocol::reference::Reference;

use super::{Admin, Platform, PullOptions, Token, carry, page};
use crate::http::{self, Reply, RequestBody};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
/// What Prometheus expects of its text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";
const NDJSON: &str = "application/x-ndjson";

/// Answers `request`. Its body is read by those who may import alone.
pub(super) async fn respond<A: Admin>(
    request: Request<RequestBody>,
    admin: &A,
    token: &Token,
) -> Reply {
    let path = request.uri().path();
    let allowed = match path {
        "/v1/pull" => "POST",
        carry::IMPORT_BLOB | carry::IMPORT_TAG => "PUT",
        _ => "GET, HEAD",
    };
    let method_fits = match *request.method() {
        Method::POST => allowed == "POST",
        Method::PUT => allowed == "PUT",
        Method::GET | Method::HEAD => allowed == "GET, HEAD",
        _ => false,
    };
    let mut reply = match path {
        "/"
        | "/healthz"
        | "/readyz"
        | "/metrics"
        | "/v1/node"
        | "/v1/stats"
        | "/v1/pull"
        | carry::EXPORT_MANIFEST
        | carry::EXPORT_BLOB
        | carry::IMPORT_BLOB
        | carry::IMPORT_TAG
            if !method_fits =>
        {
            let mut reply = text(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{path} takes {allowed}"),
            );
            reply
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(allowed));
            reply
        }
        "/" => status_page(admin).await,
        "/healthz" => text(StatusCode::OK, "ok".into()),
        "/readyz" => match admin.readiness() {
            Ok(()) => text(StatusCode::OK, "ready".into()),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
        },
        "/metrics" => http::full(StatusCode::OK, EXPOSITION, admin.metrics()),
        "/v1/node" => json(&admin.node_stats().await),
        "/v1/stats" => json(&admin.swarm_stats().await),
        "/v1/pull" => match may_act(request.headers()).and_then(|()| pull_of(request.uri())) {
            Ok((reference, options)) => pull(admin, reference, options),
            Err((status, message)) => text(status, message),
        },
        carry::EXPORT_MANIFEST | carry::EXPORT_BLOB | carry::IMPORT_BLOB | carry::IMPORT_TAG => {
            match may_act(request.headers()) {
                Ok(()) => carry::respond(request, admin, token).await,
                Err((status, message)) => text(status, message),
            }
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "not here; see /, /healthz, /readyz, /metrics, /v1/node, /v1/stats, /v1/pull".into(),
        ),
    };
    reply
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

async fn status_page<A: Admin>(admin: &A) -> Reply {
    let node = admin.node_stats().await;
    let swarm = admin.swarm_stats().await;
    let mut reply = http::full(
        StatusCode::OK,
        HTML,
        page::render(&node, &swarm, &admin.readiness()),
    );
    reply.headers_mut().insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
    );
    reply
}

pub(super) fn text(status: StatusCode, mut message: String) -> Reply {
    message.push('\n');
    http::full(status, TEXT, message)
}

pub(super) fn json(value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => http::full(StatusCode::OK, JSON, body),
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot write the answer as JSON: {error}"),
        ),
    }
}

/// Why a request is not answered as it was meant.
pub(super) type Refusal = (StatusCode, String);

/// Refuses requests that a web page made a browser send: by a name that was rebound to this
/// address, or across origins.
fn may_act(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(ORIGIN) {
        return Err((
            StatusCode::FORBIDDEN,
            "requests from web pages are refused".into(),
        ));
    }
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    if host_is_ours(host) {
        Ok(())
    } else {
        Err((
            StatusCode::FORBIDDEN,
            "the Host header names neither an IP address, nor localhost, nor this machine; \
             address the daemon by one of them"
                .into(),
        ))
    }
}

fn host_is_ours(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(name);
    address.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || own_name().is_some_and(|own| name.eq_ignore_ascii_case(&own))
}

/// The machine's host name, where the system tells it.
fn own_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

fn pull_of(uri: &Uri) -> Result<(Reference, PullOptions), Refusal> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let (mut reference, mut options) = (None, PullOptions::default());
    for (key, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match key.as_ref() {
            "ref" => {
                let parsed = value
                    .parse()
                    .map_err(|error| bad(format!("ref: {error}")))?;
                reference = Some(parsed);
            }
            "platform" => {
                let platform: Platform = value
                    .parse()
                    .map_err(|error| bad(format!("platform: {error}")))?;
                options.platform = Some(platform);
            }
            _ => {}
        }
    }
    let reference = reference
        .ok_or_else(|| bad("name an image: /v1/pull?ref=docker.io/library/redis".into()))?;
    Ok((reference, options))
}

fn pull<A: Admin>(admin: &A, reference: Reference, options: PullOptions) -> Reply {
    let lines = admin.pull(reference, options).map(|event| {
        let line = serde_json::to_string(&event).unwrap_or_else(|error| {
            let error = format!("cannot write an event as JSON: {error}");
            serde_json::json!({ "event": "failed", "error": error }).to_string()
        });
        Ok::<_, Infallible>(Bytes::from(line + "\n"))
    });
    http::streamed(StatusCode::OK, NDJSON, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_our_own_names_are_hosts() {
        for host in [
            "127.0.0.1:5006",
            "10.0.0.1",
            "[::1]:5006",
            "localhost:5006",
            "LOCALHOST",
        ] {
            assert!(host_is_ours(host), "{host}");
        }
        if let Some(own) = own_name() {
            assert!(host_is_ours(&format!("{own}:5006")));
        }
        for host in [
            "",
            "evil.example",
            "evil.example:5006",
            "127.0.0.1.evil.example",
            "localhost.x",
        ] {
            assert!(!host_is_ours(host), "{host}");
        }
    }
}
