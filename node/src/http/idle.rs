//! Which connections are closed when there is no room for a new one: those on which no request is
//! being answered, the one that has waited longest first.
//!
//! Without this, as many idle connections as there is room for would keep every other client out
//! until they time out.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

/// The connections of one endpoint that wait for a request.
#[derive(Default)]
pub(super) struct Idle {
    waiting: Mutex<Waiting>,
    /// Another one has begun to wait.
    more: Notify,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    connections: BTreeMap<u64, Arc<Notify>>,
}

impl Idle {
    /// A connection that was accepted.
    pub(super) fn accepted(self: &Arc<Self>) -> Activity {
        let activity = Activity(Arc::new(Connection {
            idle: Arc::clone(self),
            leave: Arc::default(),
            doing: Mutex::new(Doing::Sending),
        }));
        activity.sent();
        activity
    }

    /// Asks the connection that has waited longest to end; where none waits, the next that does.
    pub(super) async fn close_one(&self) {
        loop {
            let longest = lock(&self.waiting).connections.pop_first();
            if let Some((_, leave)) = longest {
                leave.notify_one();
                return;
            }
            self.more.notified().await;
        }
    }
}

/// What one connection is doing. Clones are of the same connection.
#[derive(Clone)]
pub(super) struct Activity(Arc<Connection>);

struct Connection {
    idle: Arc<Idle>,
    /// Room is needed.
    leave: Arc<Notify>,
    doing: Mutex<Doing>,
}

#[derive(Clone, Copy)]
enum Doing {
    /// Waiting for a request, under this number.
    Waiting(u64),
    /// A request is being answered.
    Answering,
    /// The answer is complete; the last of it may not have been sent.
    Sending,
}

impl Activity {
    /// A request has come.
    pub(super) fn asked(&self) {
        self.0.stop_waiting();
        *lock(&self.0.doing) = Doing::Answering;
    }

    fn answered(&self) {
        *lock(&self.0.doing) = Doing::Sending;
    }

    /// All that was to be sent is sent.
    pub(super) fn sent(&self) {
        let Connection { idle, leave, doing } = &*self.0;
        let mut doing = lock(doing);
        if matches!(*doing, Doing::Sending) {
            let mut waiting = lock(&idle.waiting);
            let number = waiting.next;
            waiting.next += 1;
            waiting.connections.insert(number, Arc::clone(leave));
            *doing = Doing::Waiting(number);
            idle.more.notify_one();
        }
    }

    /// Waits until this connection has to make room, and may.
    pub(super) async fn has_to_leave(&self) {
        loop {
            self.0.leave.notified().await;
            if matches!(*lock(&self.0.doing), Doing::Waiting(_)) {
                return;
            }
        }
    }

    /// The body of an answer, at whose end the answer is complete.
    pub(super) fn until_the_end_of<B>(self, body: B) -> Answer<B> {
        Answer {
            body,
            activity: self,
        }
    }
}

impl Connection {
    fn stop_waiting(&self) {
        if let Doing::Waiting(number) = *lock(&self.doing) {
            lock(&self.idle.waiting).connections.remove(&number);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

/// A body whose end is noticed, however it ends.
pub(super) struct Answer<B> {
    body: B,
    activity: Activity,
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Answer<B> {
    fn drop(&mut self) {
        self.activity.answered();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::Full;

    use super::*;

    async fn leaves(activity: &Activity) -> bool {
        let soon = Duration::from_millis(20);
        tokio::time::timeout(soon, activity.has_to_leave())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn the_longest_idle_leaves_first_and_one_that_answers_never() {
        let idle = Arc::new(Idle::default());
        let [first, second, third] = [(); 3].map(|()| idle.accepted());
        first.asked();
        idle.close_one().await;
        assert!(leaves(&second).await);
        assert!(!leaves(&first).await && !leaves(&third).await);

        // Its answer is complete, and then sent: now it waits, but not as long as the third.
        drop(
            first
                .clone()
                .until_the_end_of(Full::new(bytes::Bytes::new())),
        );
        first.sent();
        idle.close_one().await;
        assert!(leaves(&third).await);
        assert!(!leaves(&first).await);
    }

    #[tokio::test]
    async fn where_none_is_idle_the_next_that_is_leaves() {
        let idle = Arc::new(Idle::default());
        let only = idle.accepted();
        only.asked();
        let (closing, ()) = tokio::join!(
            tokio::spawn({
                let idle = Arc::clone(&idle);
                async move { idle.close_one().await }
            }),
            async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                drop(
                    only.clone()
                        .until_the_end_of(Full::new(bytes::Bytes::new())),
                );
                assert!(
                    !leaves(&only).await,
                    "the end of the answer is not sent yet"
                );
                only.sent();
            }
        );
        closing.unwrap();
        assert!(leaves(&only).await);
    }

    #[tokio::test]
    async fn a_request_that_comes_first_keeps_its_connection() {
        let idle = Arc::new(Idle::default());
        let only = idle.accepted();
        idle.close_one().await;
        only.asked();
        assert!(!leaves(&only).await);
    }

    #[tokio::test]
    async fn one_that_has_ended_is_forgotten() {
        let idle = Arc::new(Idle::default());
        drop(idle.accepted());
        assert!(lock(&idle.waiting).connections.is_empty());
    }
}
