//! Logging in as one cluster.
//!
//! For each upstream one member, its keeper, logs in for all: whoever needs a token asks it first, and
//! logs in alone only where the keeper cannot, and then offers it what it got. So a registry sees one
//! login for each repository and life of a token, however many nodes pull.
//!
//! What travels is Bearer tokens to pull from one repository, got with a daemon's own login: no
//! passwords, nothing of clients, nothing that a token could be got with. A keeper believes of a
//! question only for which repository it is: where to log in it asks the registry itself, so that no
//! member can have it show its credentials to a realm of the member's choice.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use shoal_protocol::{
    limits::{REGISTRY_URL_BYTES_MAX, TOKEN_BYTES_MAX},
    message::{Token, TokenHash, TokenKey},
};

use super::{
    Origins,
    batches::Batches,
    body,
    challenge::Challenge,
    credentials::Login,
    error::OriginError,
    grants::{Grant, Granted},
    limits::REPLACED_AFTER_MIN,
    login,
    site::Site,
};

/// The other members, as far as logins go.
pub(crate) trait Cluster: Send + Sync {
    /// The keeper's token; none where this node is the keeper, or the keeper has none. `rejected` is
    /// one that the registry does not accept; without `anonymous` the token is to be got with
    /// credentials.
    fn ask(
        &self,
        key: TokenKey,
        rejected: Option<TokenHash>,
        anonymous: bool,
    ) -> BoxFuture<'static, Option<Token>>;

    /// Gives the keeper a token that it did not have.
    fn offer(&self, key: TokenKey, token: Token) -> BoxFuture<'static, ()>;
}

/// A login that is needed.
pub(super) struct LogIn {
    pub(super) site: Arc<Site>,
    pub(super) key: TokenKey,
    /// What the registry does not accept, where that is why it is needed.
    pub(super) rejected: Option<HeaderValue>,
    pub(super) batches: Arc<Batches>,
}

impl LogIn {
    /// Gets what `challenge` asks for: from the cluster, if there is one to ask, else by a login of
    /// this node.
    pub(super) async fn for_this_node(
        self,
        challenge: Challenge,
        cluster: Option<Arc<dyn Cluster>>,
    ) -> Result<Granted, OriginError> {
        let credentials = login::credentials(&self.site).await;
        let cluster = cluster.filter(|_| {
            let token = matches!(challenge, Challenge::Bearer { .. });
            token && self.key.registry.len() <= REGISTRY_URL_BYTES_MAX
        });
        if let Some(cluster) = &cluster {
            let rejected = self
                .rejected
                .as_ref()
                .and_then(secret_of)
                .map(TokenHash::of);
            let anonymous = !matches!(credentials, Ok(Some(_)));
            let token = cluster.ask(self.key.clone(), rejected, anonymous).await;
            if let Some(granted) = token.and_then(|token| of_member(token, Some(challenge.clone())))
            {
                return Ok(granted);
            }
        }
        let granted = self.log_in(challenge, credentials).await?;
        if let Some(cluster) = cluster
            && let Some(token) = granted
                .lifetime
                .and_then(|left| to_share(&granted.header, left, granted.anonymous))
        {
            cluster.offer(self.key, token).await;
        }
        Ok(granted)
    }

    /// Logs in for members that have asked; the registry says where, unless it has before.
    async fn for_members(
        self,
        known: Option<Challenge>,
        anonymous: bool,
    ) -> Result<Granted, OriginError> {
        let subject = format!("logging in to {} for the cluster", self.key.registry);
        let credentials = login::credentials(&self.site).await;
        if !anonymous && !matches!(credentials, Ok(Some(_))) {
            return Err(OriginError::Denied(format!(
                "{subject}: there are no credentials here"
            )));
        }
        let challenge = match known {
            Some(challenge) => challenge,
            None => challenge_of(&self.site, &self.key, &subject).await?,
        };
        if challenge == Challenge::Basic {
            return Err(OriginError::Denied(format!(
                "{subject}: it takes passwords, which are not shared"
            )));
        }
        self.log_in(challenge, credentials).await
    }

    async fn log_in(
        &self,
        challenge: Challenge,
        credentials: Result<Option<Login>, String>,
    ) -> Result<Granted, OriginError> {
        let (site, key) = (&self.site, &self.key);
        if self.rejected.is_none() {
            let together = self.batches.log_in(site, key, challenge, credentials);
            return together.await;
        }
        // Perhaps it was for several repositories, and its realm knows no such tokens.
        let scope = challenge.pull_scope(&key.hint.repository);
        login::login(site, &key.hint, challenge, &[scope], credentials).await
    }
}

impl Origins {
    /// Makes this node ask the others' keepers for tokens. Only the first call counts.
    pub(crate) fn join(&self, cluster: Arc<dyn Cluster>) {
        let _ = self.shared.common.cluster.set(cluster);
    }

    /// As the keeper of an upstream: a token for another member; see [`Cluster::ask`].
    pub(crate) async fn token_for_member(
        &self,
        key: TokenKey,
        rejected: Option<TokenHash>,
        anonymous: bool,
    ) -> Option<Token> {
        let site = self.site_of(&key)?;
        let grants = &self.shared.common.grants;
        let is_rejected = |grant: &Grant| {
            rejected.is_some() && secret_of(&grant.header).map(TokenHash::of) == rejected
        };
        let held = grants.held(&key);
        if let Some(grant) = &held
            && is_rejected(grant)
            && !(grant.of_member || grant.batched)
            && grants.age(grant) < REPLACED_AFTER_MIN
        {
            return None;
        }
        let usable = |grant: &Grant| !is_rejected(grant) && (anonymous || !grant.anonymous);
        let login = |known: Option<Challenge>| {
            let login = LogIn {
                site,
                key: key.clone(),
                rejected: held.filter(is_rejected).map(|grant| grant.header),
                batches: Arc::clone(&self.shared.common.batches),
            };
            Some(login.for_members(known, anonymous).boxed())
        };
        match grants.obtain(&key, usable, login).await? {
            // Whoever logged in meanwhile may have done so for itself.
            Ok(grant) => usable(&grant).then(|| grants.to_share(&grant)).flatten(),
            Err(error) => {
                tracing::debug!("{error}");
                None
            }
        }
    }

    /// As the keeper of an upstream: a token that another member has got. It is taken where there is
    /// none, or none with credentials.
    pub(crate) fn take_token(&self, key: TokenKey, token: Token) {
        let anonymous = token.anonymous;
        if self.site_of(&key).is_some()
            && let Some(granted) = of_member(token, None)
        {
            self.shared
                .common
                .grants
                .insert(key, granted, |grant| !anonymous && grant.anonymous);
        }
    }

    /// The registry that a token is asked for, if this node reads the upstream there too.
    fn site_of(&self, key: &TokenKey) -> Option<Arc<Site>> {
        let places = self.places(&key.hint.upstream).ok()?;
        let mut sites = places.iter().filter_map(|place| place.site());
        sites
            .find(|site| site.base.as_str() == key.registry)
            .cloned()
    }
}

/// What the registry asks of those who want to pull: asked by HEAD of a tag, which counts at none.
async fn challenge_of(
    site: &Site,
    key: &TokenKey,
    subject: &str,
) -> Result<Challenge, OriginError> {
    let url = site.url(&format!("{}/manifests/latest", key.hint.repository));
    let answer = site
        .follow(&Method::HEAD, &url, &HeaderMap::new(), None, subject)
        .await?;
    let status = answer.response.status();
    let challenge = Challenge::of(answer.response.headers())
        .filter(|_| status == StatusCode::UNAUTHORIZED && !answer.elsewhere);
    body::collect_refusal(answer.response).await;
    challenge.ok_or_else(|| OriginError::Invalid(format!("{subject}: it asks for no login")))
}

/// The token in an `Authorization` header, if there is one.
pub(super) fn secret_of(header: &HeaderValue) -> Option<&str> {
    header.to_str().ok()?.strip_prefix("Bearer ")
}

/// A grant as other members are told of it. Passwords are not.
pub(super) fn to_share(header: &HeaderValue, left: Duration, anonymous: bool) -> Option<Token> {
    let secret = secret_of(header).filter(|secret| secret.len() <= TOKEN_BYTES_MAX)?;
    Some(Token {
        secret: secret.to_owned(),
        lifetime_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        anonymous,
    })
}

fn of_member(token: Token, challenge: Option<Challenge>) -> Option<Granted> {
    Some(Granted {
        header: login::bearer_header(&token.secret)?,
        lifetime: Some(Duration::from_millis(token.lifetime_ms.into())),
        challenge,
        anonymous: token.anonymous,
        of_member: true,
        batched: false,
    })
}
