//! One rate for all connections of a server, and the count of what they write.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use shoal_node::{clock, config::ByteRate};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep_until},
};

/// How late a connection may come for a slot and still have it from when the link was free.
/// Timers of a busy machine are late by milliseconds, and without this the rate would never be
/// reached. After a longer pause the link was idle, and idle time is lost.
const LATE: Duration = Duration::from_millis(50);

/// What a connection may write before the next one has its turn. Small, so that connections share
/// the rate evenly; not so small that each packet waits for a timer.
const QUANTUM_BYTES: usize = 64 << 10;

/// Slots of time on a link of a certain rate, given out in the order of asking. Every connection
/// asks for one quantum at a time, so those that have something to write share the rate evenly.
#[derive(Debug)]
pub(crate) struct Throttle {
    rate: ByteRate,
    /// When the link is free again.
    free: Mutex<Instant>,
    written: AtomicU64,
}

impl Throttle {
    /// A link of `rate`, which must not be zero.
    pub(crate) fn new(rate: ByteRate) -> Self {
        Self {
            rate,
            free: Mutex::new(clock::instant()),
            written: AtomicU64::new(0),
        }
    }

    /// Bytes written to all sockets so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Takes the next slot for so many bytes; says when it begins.
    fn reserve(&self, bytes: usize, now: Instant) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = now.saturating_duration_since(*free) > LATE;
        let start = if idle { now } else { *free };
        *free = start + Duration::from_secs_f64(bytes as f64 / self.rate.0 as f64);
        start
    }
}

/// A socket whose writes take their turns.
pub(crate) struct ThrottledSocket {
    socket: TcpStream,
    throttle: Arc<Throttle>,
    /// What the current slot still allows.
    granted: usize,
    /// Until the current slot begins.
    wait: Option<Pin<Box<Sleep>>>,
}

impl ThrottledSocket {
    pub(crate) fn new(socket: TcpStream, throttle: Arc<Throttle>) -> Self {
        Self {
            socket,
            throttle,
            granted: 0,
            wait: None,
        }
    }
}

impl AsyncWrite for ThrottledSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.granted == 0 && !buffer.is_empty() {
            this.granted = buffer.len().min(QUANTUM_BYTES);
            let now = clock::instant();
            let start = this.throttle.reserve(this.granted, now);
            this.wait = (start > now).then(|| Box::pin(sleep_until(start.into())));
        }
        if let Some(wait) = &mut this.wait {
            ready!(wait.as_mut().poll(cx));
            this.wait = None;
        }
        let allowed = &buffer[..buffer.len().min(this.granted)];
        let written = ready!(Pin::new(&mut this.socket).poll_write(cx, allowed))?;
        this.granted -= written;
        this.throttle
            .written
            .fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl AsyncRead for ThrottledSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_each_other_at_the_rate_even_if_asked_for_late() {
        let throttle = Throttle::new(ByteRate(1_000_000));
        let first = throttle.reserve(500_000, clock::instant());
        let late = first + Duration::from_millis(540);
        assert_eq!(
            throttle.reserve(1, late) - first,
            Duration::from_millis(500)
        );
    }

    #[test]
    fn idle_time_is_lost() {
        let throttle = Throttle::new(ByteRate(1_000_000));
        let later = clock::instant() + Duration::from_mins(1);
        assert_eq!(throttle.reserve(1, later), later);
    }
}
