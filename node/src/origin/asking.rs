//! One question to a registry, with the login that it takes.

use std::sync::Arc;

use futures::FutureExt;
use reqwest::{
    Method, Response, StatusCode,
    header::{HeaderMap, HeaderValue, RANGE},
};
use shoal_protocol::message::{Hint, TokenKey};
use url::Url;

use super::{
    Common, body,
    challenge::Challenge,
    error::OriginError,
    grants::Grant,
    manifest, refusal,
    sharing::LogIn,
    site::{Answer, Site},
};

/// Answers to one question until the last is taken for the registry's word: to nothing or an old token,
/// to the keeper's, to one that replaces it, to this node's own.
const ATTEMPTS_MAX: usize = 4;

/// Something that is asked of a registry, by one method or more.
pub(super) struct Asking<'a> {
    pub(super) site: Arc<Site>,
    pub(super) hint: &'a Hint,
    pub(super) common: &'a Common,
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
        match self.common.loans.header(self.hint) {
            Some(lent) if refused => self.follow(&method, Some(&lent)).await,
            Some(_) | None => own,
        }
    }

    /// The answer to what the cluster is granted. What the registry does not accept is replaced: by the
    /// keeper of its logins as often as it may have taken the first for good, then by this node's own.
    async fn send_as_node(&self, method: Method) -> Result<Answer, OriginError> {
        let mut grant = self.authorization(None, None, true).await?;
        let mut attempt = 1;
        loop {
            let header = grant.as_ref().map(|grant| &grant.header);
            let answer = self.follow(&method, header).await?;
            if !answer.elsewhere {
                let allowances = &self.common.allowances;
                allowances.note(&self.hint.upstream, answer.response.headers());
            }
            let of_member = grant.as_ref().is_some_and(|grant| grant.of_member);
            let status = answer.response.status();
            // What another's credentials may not read, this node's perhaps may.
            let refused = status == StatusCode::UNAUTHORIZED
                || (of_member && status == StatusCode::FORBIDDEN);
            // A token of one's own that was got just now is no better the next time, unless its realm
            // gave it for other repositories only.
            let batched = grant.as_ref().is_some_and(|grant| grant.batched);
            let final_word = attempt == ATTEMPTS_MAX || (attempt > 1 && !of_member && !batched);
            if !refused || answer.elsewhere || final_word {
                return Ok(answer);
            }
            let challenge = Challenge::of(answer.response.headers());
            if challenge.is_none() && !of_member {
                return Ok(answer);
            }
            body::collect_refusal(answer.response).await;
            let together = status == StatusCode::UNAUTHORIZED && attempt + 1 < ATTEMPTS_MAX;
            grant = self.authorization(challenge, header, together).await?;
            attempt += 1;
        }
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

    /// What to show the registry. Where a login is needed, the cluster's keeper is asked for it if it is
    /// to be done `together`.
    async fn authorization(
        &self,
        challenge: Option<Challenge>,
        rejected: Option<&HeaderValue>,
        together: bool,
    ) -> Result<Option<Grant>, OriginError> {
        let key = TokenKey {
            hint: self.hint.clone(),
            registry: self.site.base.to_string(),
        };
        let login = |challenge| {
            let login = LogIn {
                site: Arc::clone(&self.site),
                key: key.clone(),
                rejected: rejected.cloned(),
                batches: Arc::clone(&self.common.batches),
            };
            let cluster = self.common.cluster.get().filter(|_| together);
            login.for_this_node(challenge, cluster.cloned()).boxed()
        };
        let grants = &self.common.grants;
        grants.authorization(&key, challenge, rejected, login).await
    }
}
