//! The check of a registry.

use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::{
    Method, Response, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use shoal_protocol::{
    digest::Digest,
    message::BlobKind,
    reference::{Tag, Upstream},
};
use tokio::time::timeout;

use super::{Checked, Failure, Findings, Found, first_blob};
use crate::{
    origin::{
        body::{self, ContentRange},
        challenge::Challenge,
        credentials::Login,
        error::OriginError,
        limits::TAG_TIMEOUT,
        login, manifest, refusal,
        registry::{Registry, refuses_method},
        site::{Answer, Site},
    },
    stats::AllowanceStats,
};

/// Whether a registry answers and lets this node in; what needs no login may be read even where the
/// credentials cannot be.
pub(super) async fn site(findings: &mut Findings<'_>, site: &Site) -> bool {
    let upstream = findings.upstream;
    let Some(challenge) = findings.step(Checked::Reach, reach(site, upstream)).await else {
        return false;
    };
    let Some(challenge) = challenge else {
        return true;
    };
    let looked_up = credentials(site, &challenge);
    let credentials = findings.step(Checked::Credentials, looked_up).await;
    match (credentials.flatten(), &challenge) {
        // Tokens are given to nobody in particular too, and each for one repository.
        (None, Challenge::Bearer { .. }) => true,
        (credentials, _) => {
            let tried = log_in(site, &challenge, credentials);
            findings.step(Checked::Login, tried).await.is_some()
        }
    }
}

/// What the registry asks for, if it asks for a login.
async fn reach(site: &Site, upstream: &Upstream) -> Result<Found<Option<Challenge>>, Failure> {
    let subject = format!("asking {}", site.url(""));
    let Answer {
        response,
        elsewhere,
    } = ask(site, None, &subject).await?;
    let status = response.status();
    let host = host(&response);
    match (status, Challenge::of(response.headers())) {
        (StatusCode::UNAUTHORIZED, _) if elsewhere => Err(Failure {
            error: OriginError::Denied(format!(
                "{subject}: it redirects to {host}, which wants a login, and logins are sent to no other \
                 host than the configured one"
            )),
            todo: Some(format!(
                "name that host: --origin {upstream}={}",
                response.url().origin().ascii_serialization()
            )),
        }),
        (StatusCode::OK, _) => {
            body::collect_refusal(response).await;
            Ok(Found::new(
                None,
                "it answers, and asks for no login".to_owned(),
            ))
        }
        (StatusCode::UNAUTHORIZED, Some(challenge)) => {
            body::collect_refusal(response).await;
            let wants = match &challenge {
                Challenge::Basic => "a user name and password".to_owned(),
                Challenge::Bearer { realm, .. } => format!("a token of {}", realm_host(realm)),
            };
            let detail = format!("it answers, and asks for {wants}");
            Ok(Found::new(Some(challenge), detail))
        }
        _ => Err(refusal::error(response, &subject).await.into()),
    }
}

/// The answer to a question that every registry has one to.
async fn ask(
    site: &Site,
    authorization: Option<&HeaderValue>,
    subject: &str,
) -> Result<Answer, OriginError> {
    let (url, headers) = (site.url(""), HeaderMap::new());
    site.follow(&Method::GET, &url, &headers, authorization, subject)
        .await
}

/// Whom this node logs in as. That nobody is known is no failure: what is public can be read without.
async fn credentials(site: &Site, challenge: &Challenge) -> Result<Found<Option<Login>>, Failure> {
    let found = login::credentials(site).await.map_err(|problem| Failure {
        error: OriginError::Denied(problem),
        todo: Some(
            "repair it, as the user that the daemon runs as; until then it reads what is public"
                .to_owned(),
        ),
    })?;
    let place = match (&site.credentials, &site.docker_config) {
        (Some(_), _) => "the configuration".to_owned(),
        (None, Some(file)) => format!("docker's configuration {}", file.display()),
        (None, None) => "docker's configuration, which this user does not have".to_owned(),
    };
    let detail = match (&found, challenge) {
        (Some(Login::Password { .. }), _) => format!("a user name and password from {place}"),
        (Some(Login::RefreshToken(_)), _) => format!("an identity token from {place}"),
        (None, Challenge::Basic) => format!("none are known from {place}"),
        (None, Challenge::Bearer { .. }) => {
            format!("none are known from {place}; what is public can be read without")
        }
    };
    Ok(Found::new(found, detail))
}

/// Logs in as `docker login` does: to the registry as a whole, with no repository named.
async fn log_in(
    site: &Site,
    challenge: &Challenge,
    credentials: Option<Login>,
) -> Result<Found<()>, Failure> {
    let subject = format!("logging in to {}", site.base);
    let scopes: Vec<String> = match challenge {
        Challenge::Bearer {
            scope: Some(scope), ..
        } => vec![scope.clone()],
        Challenge::Bearer { scope: None, .. } | Challenge::Basic => Vec::new(),
    };
    let (header, _) = login::header(site, challenge, &scopes, credentials, &subject).await?;
    let Answer { response, .. } = ask(site, Some(&header), &subject).await?;
    if response.status() != StatusCode::OK {
        return Err(refusal::error(response, &subject).await.into());
    }
    body::collect_refusal(response).await;
    let detail = match challenge {
        Challenge::Basic => "the registry takes them".to_owned(),
        Challenge::Bearer { realm, .. } => {
            format!(
                "{} gave a token for them, and the registry takes it",
                realm_host(realm)
            )
        }
    };
    Ok(Found::new((), detail))
}

/// Whether the image is there, how many pulls the registry still gives, and where blobs come from. GETs of
/// manifests are counted, answered or not.
pub(super) async fn image(
    findings: &mut Findings<'_>,
    registry: &Registry<'_>,
    tag: &Tag,
    manifest_gets: &AtomicU64,
) {
    let asked = async {
        timeout(TAG_TIMEOUT, ask_tag(registry, tag, manifest_gets))
            .await
            .unwrap_or_else(|_| {
                let (hint, seconds) = (registry.hint, TAG_TIMEOUT.as_secs());
                let text = format!(
                    "{} did not say in {seconds} s what {tag} of {} is",
                    hint.upstream, hint.repository
                );
                Err(OriginError::Unreachable(text).into())
            })
    };
    let Some((digest, allowance)) = findings.step(Checked::Tag, asked).await else {
        return;
    };
    if let Some(allowance) = allowance {
        let judged = std::future::ready(judge(&allowance));
        if findings.step(Checked::Limit, judged).await.is_none() {
            return;
        }
    }
    let tried = read_blob(registry, digest, manifest_gets);
    findings.step(Checked::Blob, tried).await;
}

/// What the tag names, by HEAD where the registry answers that with a digest, and what it says of limits.
async fn ask_tag(
    registry: &Registry<'_>,
    tag: &Tag,
    manifest_gets: &AtomicU64,
) -> Result<Found<(Digest, Option<AllowanceStats>)>, Failure> {
    let path = format!("{}/manifests/{tag}", registry.hint.repository);
    let asking = registry
        .asking(&path, &format!("tag {tag}"))
        .accepting_manifests();
    let Answer { response, .. } = asking.send(Method::HEAD).await?;
    let status = response.status();
    if !status.is_success() && !refuses_method(status) {
        return Err(refusal::error(response, &asking.subject).await.into());
    }
    let (common, upstream) = (registry.common, &registry.hint.upstream);
    let allowance = common.allowances.of(upstream, response.headers());
    let named = manifest::digest_header(response.headers()).filter(|_| status.is_success());
    if let Some(digest) = named {
        let detail = format!("{tag} names {digest}, by HEAD, which counts as no pull");
        return Ok(Found::new((digest, allowance), detail));
    }
    manifest_gets.fetch_add(1, Ordering::Relaxed);
    let manifest = manifest::read(asking.get().await?, &asking.subject).await?;
    let digest = manifest::digest_of(&manifest);
    let detail = format!(
        "{tag} names {digest}; it does not say so to HEAD, so that each question about a tag is a GET"
    );
    Ok(Found::new((digest, allowance), detail))
}

/// Whether enough pulls are left to spend one on a check.
fn judge(allowance: &AllowanceStats) -> Result<Found<()>, Failure> {
    let AllowanceStats {
        limit,
        remaining,
        window_seconds,
        source,
        spared,
        ..
    } = allowance;
    let of = source
        .as_ref()
        .map_or_else(String::new, |source| format!(", counted for {source}"));
    let minutes = window_seconds / 60;
    let text = format!("{remaining} of {limit} pulls in {minutes} minutes are left{of}");
    if !spared {
        return Ok(Found::new((), text));
    }
    Err(Failure {
        error: OriginError::Throttled {
            reason: format!(
                "{text}: they are kept for what no node has, and none is spent on this check"
            ),
            retry_after: None,
        },
        todo: Some(
            "wait, log in with an account that may pull more, add another origin, or keep fewer with \
             --origin-reserve"
                .to_owned(),
        ),
    })
}

/// Whether a byte of the image's first blob comes, from which host, and whether it takes ranges.
async fn read_blob(
    registry: &Registry<'_>,
    digest: Digest,
    manifest_gets: &AtomicU64,
) -> Result<Found<()>, Failure> {
    let read = |digest: Digest| async move {
        manifest_gets.fetch_add(1, Ordering::Relaxed);
        let kind = BlobKind::Manifest;
        registry.read(&digest, kind, 0, None).await
    };
    let blob = first_blob(digest, read).await?;
    let asking = registry.asking_blob(&blob).with_range("bytes=0-0");
    let Answer {
        response,
        elsewhere,
    } = asking.send(Method::GET).await?;
    let place = if elsewhere {
        format!("{}, where the registry redirects to", host(&response))
    } else {
        "the registry itself".to_owned()
    };
    let part = ContentRange::of(response.headers());
    let empty = part.is_some_and(|part| part.size == Some(0));
    let ranges = match response.status() {
        StatusCode::PARTIAL_CONTENT if part.and_then(|part| part.range) == Some((0, 1)) => {
            let byte = body::stream(response, Some(1), 1, asking.subject.clone());
            body::gather(byte, &asking.subject).await?;
            "ranges are answered"
        }
        StatusCode::PARTIAL_CONTENT => {
            let subject = &asking.subject;
            let text = format!(
                "{subject}: asked for its first byte, the origin answers with another part"
            );
            return Err(OriginError::Invalid(text).into());
        }
        StatusCode::RANGE_NOT_SATISFIABLE if empty => "ranges are answered",
        // The rest of it is left where it is.
        StatusCode::OK => {
            "ranges are not answered, so that each blob is read in one stream, by one node, and from its \
             start where it breaks off"
        }
        _ => return Err(refusal::error(response, &asking.subject).await.into()),
    };
    let detail = format!("a byte of {} came from {place}; {ranges}", blob.short());
    Ok(Found::new((), detail))
}

fn host(response: &Response) -> String {
    response.url().host_str().unwrap_or_default().to_owned()
}

/// The host of a token realm, or what stands there in its place.
fn realm_host(realm: &str) -> String {
    let url = url::Url::parse(realm).ok();
    let host = url.and_then(|url| url.host_str().map(str::to_owned));
    host.unwrap_or_else(|| realm.chars().take(100).collect())
}
