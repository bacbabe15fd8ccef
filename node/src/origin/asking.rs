//! One question to a registry, with the login that it takes.

use std::sync::Arc;

use futures::FutureExt;
use reqwest::{
    Method, Response, StatusCode,
    header::{HeaderMap, HeaderValue, RANGE},
};
use shoal_protocol::message::Hint;
use url::Url;

use super::{
    body,
    challenge::Challenge,
    error::OriginError,
    grants::Grants,
    loans::Loans,
    login, manifest, refusal,
    site::{Answer, Site},
};

/// Something that is asked of a registry, by one method or more.
pub(super) struct Asking<'a> {
    pub(super) site: Arc<Site>,
    pub(super) hint: &'a Hint,
    pub(super) grants: &'a Arc<Grants>,
    pub(super) loans: &'a Loans,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// What is asked of whom, for errors.
    pub(super) subject: String,
}

impl Asking<'_> {
    pub(super) fn accepting_manifests(mut self) -> Self {
        self.headers.extend(manifest::accept());
        self
    }

    pub(super) fn with_range(mut self, range: &str) -> Self {
        // Always a valid header: `bytes=` and digits.
        if let Ok(range) = HeaderValue::from_str(range) {
            self.headers.insert(RANGE, range);
        }
        self
    }

    /// The answer to GET, if it is a whole one.
    pub(super) async fn get(&self) -> Result<Response, OriginError> {
        let response = self.send(Method::GET).await?.response;
        if response.status() == StatusCode::OK {
            Ok(response)
        } else {
            Err(refusal::error(response, &self.subject).await)
        }
    }

    /// The answer, after logging in where the registry asks for that. Where this node's own login is
    /// not enough, a client's that is lent at the moment is used.
    pub(super) async fn send(&self, method: Method) -> Result<Answer, OriginError> {
        let own = self.send_as_node(method.clone()).await;
        let refused = match &own {
            Ok(answer) => {
                !answer.elsewhere && matches!(answer.response.status().as_u16(), 401 | 403)
            }
            Err(error) => matches!(error, OriginError::Denied(_)),
        };
        match self.loans.header(self.hint) {
            Some(lent) if refused => self.follow(&method, Some(&lent)).await,
            Some(_) | None => own,
        }
    }

    /// The answer to this node's own login. One that the registry no longer accepts is replaced once.
    async fn send_as_node(&self, method: Method) -> Result<Answer, OriginError> {
        let header = self.authorization(None, None).await?;
        let answer = self.follow(&method, header.as_ref()).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED || answer.elsewhere {
            return Ok(answer);
        }
        let Some(challenge) = Challenge::of(answer.response.headers()) else {
            return Ok(answer);
        };
        body::collect_refusal(answer.response).await;
        let header = self.authorization(Some(challenge), header.as_ref()).await?;
        self.follow(&method, header.as_ref()).await
    }

    /// The answer to this authorization, or to none. A registry may redirect to a URL that it signed
    /// some time ago, and that has ended by now: it is asked for another once.
    pub(super) async fn follow(
        &self,
        method: &Method,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, OriginError> {
        let answer = self.follow_once(method, authorization).await?;
        let ended = answer.elsewhere && answer.response.status() == StatusCode::FORBIDDEN;
        if !ended || method != Method::GET {
            return Ok(answer);
        }
        body::collect_refusal(answer.response).await;
        self.follow_once(method, authorization).await
    }

    async fn follow_once(
        &self,
        method: &Method,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, OriginError> {
        self.site
            .follow(
                method,
                &self.url,
                &self.headers,
                authorization,
                &self.subject,
            )
            .await
    }

    async fn authorization(
        &self,
        challenge: Option<Challenge>,
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, OriginError> {
        let (site, hint) = (Arc::clone(&self.site), self.hint.clone());
        let login = |challenge| async move { login::login(&site, &hint, &challenge).await }.boxed();
        self.grants
            .authorization(self.hint, challenge, rejected, login)
            .await
    }
}
