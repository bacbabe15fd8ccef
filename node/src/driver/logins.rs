//! Asking the keepers of upstreams' logins, and answering as one; see [`origin`](crate::origin).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use shoal_protocol::{
    directory::Peer,
    message::{Message, Token, TokenAnswer, TokenHash, TokenKey},
    reference::Upstream,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{Fact, Parts};
use crate::{network::Network, origin::Cluster};

/// A keeper that is silent for so long is passed over: several times what an answer takes between the
/// most distant sites.
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);

/// How long a keeper that is logging in is waited for. A realm that takes longer is asked by this node
/// too, while its clients still wait.
const LOGIN_PATIENCE: Duration = Duration::from_secs(5);

/// After so long a keeper says that it is logging in.
const SAY_AFTER: Duration = Duration::from_millis(100);

/// Questions of members that wait for a login: one from each node of the largest cluster.
const QUESTIONS_MAX: usize = 16_384;

/// The logins of this node and of those for which it keeps them.
pub(crate) struct Logins {
    facts: mpsc::Sender<Fact>,
    network: Network,
    next: AtomicU64,
    /// Whom this node has asked, and who waits for the answer.
    waiting: Mutex<BTreeMap<u64, (Peer, mpsc::Sender<TokenAnswer>)>>,
    questions: Arc<Semaphore>,
}

impl Logins {
    pub(crate) fn new(facts: mpsc::Sender<Fact>, network: Network) -> Arc<Self> {
        Arc::new(Self {
            facts,
            network,
            next: AtomicU64::new(0),
            waiting: Mutex::default(),
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
        })
    }

    /// A member has answered.
    pub(super) fn answered(&self, from: Peer, id: u64, answer: TokenAnswer) {
        if let Some((asked, reply)) = self.lock().get(&id)
            && *asked == from
        {
            // There is room for the two answers that a question has; more are nobody's.
            let _ = reply.try_send(answer);
        }
    }

    /// A member went away: nobody waits for its answers any more.
    pub(super) fn gone(&self, peer: Peer) {
        self.lock().retain(|_, (asked, _)| *asked != peer);
    }

    /// Room for one more question of a member.
    fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.questions).try_acquire_owned().ok()
    }

    async fn keepers(&self, upstream: Upstream) -> Vec<Peer> {
        let (reply, keepers) = oneshot::channel();
        let asked = self.facts.send(Fact::WantKeepers { upstream, reply }).await;
        if asked.is_err() {
            return Vec::new();
        }
        keepers.await.unwrap_or_default()
    }

    async fn ask_one(
        &self,
        keeper: Peer,
        key: TokenKey,
        rejected: Option<TokenHash>,
        anonymous: bool,
    ) -> Option<Token> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, mut answers) = mpsc::channel(2);
        self.lock().insert(id, (keeper, reply));
        let _forget = Forget { logins: self, id };
        let question = Message::AskToken {
            id,
            key,
            rejected,
            anonymous,
        };
        self.network.send(keeper, question);
        let mut patience = ANSWER_PATIENCE;
        loop {
            match tokio::time::timeout(patience, answers.recv()).await {
                Ok(Some(TokenAnswer::Granted(token))) => return Some(token),
                Ok(Some(TokenAnswer::LoggingIn)) => patience = LOGIN_PATIENCE,
                Ok(Some(TokenAnswer::None) | None) | Err(_) => return None,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (Peer, mpsc::Sender<TokenAnswer>)>> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the wait for an answer, however that ends.
struct Forget<'a> {
    logins: &'a Logins,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.logins.lock().remove(&self.id);
    }
}

/// What origins see of it.
pub(crate) struct Keepers(pub(crate) Arc<Logins>);

impl Cluster for Keepers {
    fn ask(
        &self,
        key: TokenKey,
        rejected: Option<TokenHash>,
        anonymous: bool,
    ) -> BoxFuture<'static, Option<Token>> {
        let logins = Arc::clone(&self.0);
        async move {
            for keeper in logins.keepers(key.hint.upstream.clone()).await {
                let token = logins.ask_one(keeper, key.clone(), rejected, anonymous);
                if let Some(token) = token.await {
                    return Some(token);
                }
            }
            None
        }
        .boxed()
    }

    fn offer(&self, key: TokenKey, token: Token) -> BoxFuture<'static, ()> {
        let logins = Arc::clone(&self.0);
        async move {
            let keepers = logins.keepers(key.hint.upstream.clone()).await;
            if let Some(keeper) = keepers.first() {
                let offer = Message::OfferToken { key, token };
                logins.network.send(*keeper, offer);
            }
        }
        .boxed()
    }
}

/// Answers a member that asks this node as a keeper.
pub(super) fn answer(
    parts: &Arc<Parts>,
    from: Peer,
    id: u64,
    key: TokenKey,
    rejected: Option<TokenHash>,
    anonymous: bool,
) {
    let Some(room) = parts.logins.room() else {
        return;
    };
    let parts = Arc::clone(parts);
    tokio::spawn(async move {
        let _room = room;
        let say = |answer| parts.network.send(from, Message::Token { id, answer });
        let token = parts.origins.token_for_member(key, rejected, anonymous);
        tokio::pin!(token);
        let token = if let Ok(token) = tokio::time::timeout(SAY_AFTER, &mut token).await {
            token
        } else {
            say(TokenAnswer::LoggingIn);
            token.await
        };
        say(token.map_or(TokenAnswer::None, TokenAnswer::Granted));
    });
}
