//! Meeting a registry's challenge: Basic, and the token flows of the distribution specification.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{
    Method, StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
};
use shoal_protocol::message::Hint;
use url::{Url, form_urlencoded};

use super::{
    body,
    challenge::Challenge,
    credentials::{self, Login},
    error::OriginError,
    grants::Granted,
    limits::{PASSWORD_LIFETIME, TOKEN_ANSWER_BYTES_MAX, TOKEN_LIFETIME_DEFAULT},
    refusal,
    site::Site,
    transport::Request,
};

/// The credentials that this node has for a registry. The error is for people.
pub(super) async fn credentials(site: &Site) -> Result<Option<Login>, String> {
    credentials::find(
        site.credentials.as_ref(),
        site.docker_config.as_deref(),
        &site.base,
    )
    .await
}

/// Gets what `challenge` asks for with these credentials, to pull from the repository of `hint`; a token
/// is for all of `scopes`.
pub(super) async fn login(
    site: &Site,
    hint: &Hint,
    challenge: Challenge,
    scopes: &[String],
    credentials: Result<Option<Login>, String>,
) -> Result<Granted, OriginError> {
    let host = site.base.host_str().unwrap_or_default();
    let Hint {
        upstream,
        repository,
    } = hint;
    let subject = format!("logging in to {host} for {upstream}/{repository}");
    // Public content needs no credentials, so it goes on without; the operator hears of it, and
    // whoever is then refused is told why.
    let (login, remark) = match credentials {
        Ok(login) => (login, None),
        Err(problem) => {
            tracing::warn!(%upstream, problem, "goes on without credentials");
            (None, Some(problem))
        }
    };
    let anonymous = login.is_none();
    let outcome = header(site, &challenge, scopes, login, &subject).await;
    match (outcome, remark) {
        (Ok((header, lifetime)), _) => Ok(Granted {
            header,
            lifetime: Some(lifetime),
            challenge: Some(challenge),
            anonymous,
            of_member: false,
            batched: false,
        }),
        (Err(OriginError::Denied(text)), Some(remark)) => {
            Err(OriginError::Denied(format!("{text}; {remark}")))
        }
        (Err(error), _) => Err(error),
    }
}

/// The header that meets `challenge`, and for how long it is used.
pub(super) async fn header(
    site: &Site,
    challenge: &Challenge,
    scopes: &[String],
    login: Option<Login>,
    subject: &str,
) -> Result<(HeaderValue, Duration), OriginError> {
    match challenge {
        Challenge::Basic => basic(login, subject, site.base.host_str().unwrap_or_default()),
        Challenge::Bearer { realm, service, .. } => {
            token(site, realm, service.as_deref(), scopes, login, subject).await
        }
    }
}

fn basic(
    login: Option<Login>,
    subject: &str,
    host: &str,
) -> Result<(HeaderValue, Duration), OriginError> {
    match login {
        Some(Login::Password { username, password }) => {
            let header = basic_header(&username, &password, subject)?;
            Ok((header, PASSWORD_LIFETIME))
        }
        Some(Login::RefreshToken(_)) | None => Err(OriginError::Denied(format!(
            "{subject}: it asks for a user name and password and none are known; run `docker \
             login {host}` as the user that the daemon runs as, or configure credentials for the \
             upstream"
        ))),
    }
}

async fn token(
    site: &Site,
    realm: &str,
    service: Option<&str>,
    scopes: &[String],
    login: Option<Login>,
    subject: &str,
) -> Result<(HeaderValue, Duration), OriginError> {
    let mut url = Url::parse(realm).map_err(|problem| {
        OriginError::Invalid(format!(
            "{subject}: its token realm `{realm}` is no URL: {problem}"
        ))
    })?;
    let mut headers = HeaderMap::new();
    let mut fields: Vec<(&str, &str)> = service
        .map(|service| ("service", service))
        .into_iter()
        .collect();
    let scopes = scopes.iter().map(String::as_str);
    let form = if let Some(Login::RefreshToken(refresh_token)) = &login {
        // One field with spaces (RFC 6749, section 3.3), where the query has one for each.
        let scopes: Vec<&str> = scopes.collect();
        let scopes = scopes.join(" ");
        if !scopes.is_empty() {
            fields.push(("scope", scopes.as_str()));
        }
        fields.extend([
            ("grant_type", "refresh_token"),
            ("client_id", "shoal"),
            ("refresh_token", refresh_token),
        ]);
        let mut form = form_urlencoded::Serializer::new(String::new());
        Some(form.extend_pairs(fields).finish())
    } else {
        if let Some(Login::Password { username, password }) = &login {
            fields.push(("account", username));
            headers.insert(AUTHORIZATION, basic_header(username, password, subject)?);
        }
        fields.extend(scopes.map(|scope| ("scope", scope)));
        url.query_pairs_mut().extend_pairs(fields);
        None
    };
    let method = if form.is_some() {
        Method::POST
    } else {
        Method::GET
    };
    let request = Request {
        method,
        url,
        headers,
        form,
    };
    let response = site.send(&request, subject).await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST => {
            // OAuth 2 refuses a refresh token with this status (RFC 6749, section 5.2).
            let error = refusal::error(response, subject).await;
            return Err(OriginError::Denied(error.to_string()));
        }
        _ => {
            let error = refusal::error(response, subject).await;
            // It is the realm that does not exist, which says nothing about the content.
            return Err(if let OriginError::NotFound(text) = error {
                OriginError::Unreachable(text)
            } else {
                error
            });
        }
    }
    let answer = body::collect(response, TOKEN_ANSWER_BYTES_MAX, subject).await?;
    read_answer(&answer).ok_or_else(|| {
        OriginError::Invalid(format!("{subject}: the realm's answer holds no token"))
    })
}

/// The header with the token of a realm's answer, which has two spellings, and its life.
fn read_answer(answer: &[u8]) -> Option<(HeaderValue, Duration)> {
    let answer: serde_json::Value = serde_json::from_slice(answer).ok()?;
    let text = |field: &str| answer[field].as_str().filter(|text| !text.is_empty());
    let token = text("token").or(text("access_token"))?;
    let lifetime = answer["expires_in"].as_u64().filter(|seconds| *seconds > 0);
    let lifetime = lifetime.map_or(TOKEN_LIFETIME_DEFAULT, Duration::from_secs);
    Some((bearer_header(token)?, lifetime))
}

/// The header that shows a token; none for what cannot be one.
pub(super) fn bearer_header(token: &str) -> Option<HeaderValue> {
    secret_header(&format!("Bearer {token}")).filter(|_| !token.is_empty())
}

fn basic_header(username: &str, password: &str, subject: &str) -> Result<HeaderValue, OriginError> {
    let encoded = STANDARD.encode(format!("{username}:{password}"));
    secret_header(&format!("Basic {encoded}"))
        .ok_or_else(|| OriginError::Invalid(format!("{subject}: the credentials are too long")))
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_looked_up_again_long_before_ecrs_ends() {
        let login = Login::Password {
            username: "AWS".to_owned(),
            password: "token".to_owned(),
        };
        let (_, lifetime) = basic(Some(login), "reading", "registry.test").unwrap();
        let ecr = Duration::from_hours(12);
        assert!(lifetime < ecr / 12);
    }

    #[test]
    fn tokens_come_in_two_spellings_and_live_a_minute_unless_told() {
        for (answer, header, seconds) in [
            (r#"{"token":"a"}"#, "Bearer a", 60),
            (r#"{"access_token":"b","expires_in":300}"#, "Bearer b", 300),
            (
                r#"{"token":"","access_token":"c","expires_in":0}"#,
                "Bearer c",
                60,
            ),
        ] {
            let (read, lifetime) = read_answer(answer.as_bytes()).unwrap();
            assert_eq!(read, header);
            assert_eq!(lifetime, Duration::from_secs(seconds));
        }
        for answer in ["", "{}", r#"{"token":5}"#, r#"{"token":"a\nb"}"#] {
            assert!(read_answer(answer.as_bytes()).is_none(), "{answer}");
        }
    }
}
