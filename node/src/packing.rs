//! Chunks as zstd frames on their way to peers, where that is the faster way.
//!
//! Most layers are compressed already, and some are not. So each chunk is judged by itself: what
//! would a sample of it take at each level, and what does the wire take? With fast links, or where
//! processors are busy, nothing is compressed.

use std::{
    borrow::Cow,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{buffers::Buffer, clock::instant, metrics::Metrics};

/// Levels to choose from. Beyond these, zstd gains less than a tenth for twice the time (its own
/// benchmarks on the Silesia corpus, <https://github.com/facebook/zstd>).
const LEVELS: [i32; 3] = [1, 3, 6];

/// A chunk goes as it is unless it shrinks to this part of itself.
const SHARE_MAX: f64 = 0.95;

/// Nothing that zstd makes of a chunk is worth its time where the wire takes so many bytes a second:
/// level 1 does about half of it on a core.
const RATE_MAX: f64 = 1e9;

/// A sample of a chunk is so many pieces of so many bytes, spread over it.
const PIECES: usize = 7;
const PIECE_BYTES: usize = 16 << 10;

/// The wire's rate is that of about so many bytes sent last: enough for the socket's own buffer not
/// to count.
const METERED_BYTES: u64 = 32 << 20;

/// Decides how chunks are sent. One for each node: its chunks share its uplink.
pub(crate) struct Packer {
    metrics: Arc<Metrics>,
    meter: Mutex<Meter>,
}

/// Bytes sent, and the time during which any were on their way.
#[derive(Default)]
struct Meter {
    sending: usize,
    since: Option<Instant>,
    busy: Duration,
    bytes: u64,
}

impl Meter {
    /// Takes the time up to now, where something is on its way.
    fn tick(&mut self, now: Instant) {
        if let Some(since) = self.since.replace(now)
            && self.sending > 0
        {
            self.busy += now.saturating_duration_since(since);
        }
    }

    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes > METERED_BYTES {
            self.bytes /= 2;
            self.busy /= 2;
        }
    }

    /// Bytes a second, once enough were sent to say.
    fn rate(&self) -> Option<f64> {
        let seconds = self.busy.as_secs_f64();
        (self.bytes >= METERED_BYTES / 8 && seconds > 0.0).then(|| self.bytes as f64 / seconds)
    }
}

/// A chunk on its way; it counts once it is [sent](Self::sent).
pub(crate) struct Sending<'a> {
    packer: &'a Packer,
    sent: u64,
}

impl Sending<'_> {
    /// So many bytes left this node.
    pub(crate) fn sent(mut self, bytes: u64) {
        self.sent = bytes;
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let mut meter = self.packer.meter();
        meter.tick(instant());
        meter.sending -= 1;
        meter.add(self.sent);
    }
}

impl Packer {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            meter: Mutex::default(),
        }
    }

    /// To be held while a chunk is written to its peer.
    pub(crate) fn sending(&self) -> Sending<'_> {
        let mut meter = self.meter();
        meter.tick(instant());
        meter.sending += 1;
        Sending {
            packer: self,
            sent: 0,
        }
    }

    /// The chunk as a zstd frame, where sending that takes less time than sending the chunk. It
    /// blocks for as long as a chunk takes to compress.
    pub(crate) fn pack(&self, chunk: &[u8]) -> Option<Buffer> {
        let rate = self.meter().rate()?;
        self.timed(|| pack(chunk, level(chunk, rate)?))
    }

    /// The chunk of `len` bytes that a zstd frame holds. It blocks likewise.
    ///
    /// # Errors
    /// The bytes are not a frame of that many bytes. No more than `len` are ever written.
    pub(crate) fn unpack(&self, frame: &[u8], len: u32) -> io::Result<Buffer> {
        self.timed(|| unpack(frame, len))
    }

    fn timed<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = instant();
        let done = work();
        let micros = start.elapsed().as_micros();
        let micros = micros.try_into().unwrap_or(u64::MAX);
        self.metrics.packing_micros.add(micros);
        done
    }

    fn meter(&self) -> MutexGuard<'_, Meter> {
        // A meter is whole after every statement that changes it.
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The level at which compressing and sending a byte takes the least time together, on a wire of
/// this many bytes a second; none where sending alone takes less.
fn level(chunk: &[u8], rate: f64) -> Option<i32> {
    if rate > RATE_MAX || chunk.is_empty() {
        return None;
    }
    let sample = sample(chunk);
    let wire = 1.0 / rate;
    let (mut best, mut least) = (None, wire);
    for level in LEVELS {
        let start = instant();
        let packed = pack(&sample, level)?;
        let bytes = sample.len() as f64;
        let cost = start.elapsed().as_secs_f64() / bytes + packed.len() as f64 / bytes * wire;
        if cost >= least {
            break;
        }
        (best, least) = (Some(level), cost);
    }
    best
}

fn sample(chunk: &[u8]) -> Cow<'_, [u8]> {
    if chunk.len() <= PIECES * PIECE_BYTES {
        return Cow::Borrowed(chunk);
    }
    let step = (chunk.len() - PIECE_BYTES) / (PIECES - 1);
    let pieces = (0..PIECES).map(|piece| &chunk[piece * step..][..PIECE_BYTES]);
    Cow::Owned(pieces.collect::<Vec<_>>().concat())
}

/// The bytes as a zstd frame, if that is shorter by enough.
fn pack(bytes: &[u8], level: i32) -> Option<Buffer> {
    let mut packed = Buffer::of((bytes.len() as f64 * SHARE_MAX) as usize);
    // It fails where the frame does not fit.
    let len = zstd::bulk::compress_to_buffer(bytes, &mut packed[..], level).ok()?;
    packed.truncate(len);
    Some(packed)
}

fn unpack(frame: &[u8], len: u32) -> io::Result<Buffer> {
    let mut chunk = Buffer::of(len as usize);
    let written = zstd::bulk::decompress_to_buffer(frame, &mut chunk[..])?;
    if written == chunk.len() {
        Ok(chunk)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: f64 = 1e6 / 8.0;

    /// Bytes as a program's text has them: few of the possible values, many repetitions.
    fn text(bytes: usize) -> Vec<u8> {
        let words = (0_u32..).flat_map(|n| format!("symbol_{} ", n * n % 997).into_bytes());
        words.take(bytes).collect()
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut noise = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        noise
    }

    /// A packer that has sent at this many bytes a second.
    fn packer(rate: f64) -> Packer {
        let packer = Packer::new(Arc::default());
        let mut meter = packer.meter();
        meter.bytes = METERED_BYTES / 2;
        meter.busy = Duration::from_secs_f64(meter.bytes as f64 / rate);
        drop(meter);
        packer
    }

    #[test]
    fn what_shrinks_is_packed_for_a_slow_wire_and_comes_out_as_it_was() {
        for bytes in [3000, 300_000, 4 << 20] {
            let chunk = text(bytes);
            let packed = packer(50.0 * MBIT).pack(&chunk).expect("it shrinks");
            assert!(packed.len() < chunk.len() / 2, "{}", packed.len());
            assert_eq!(unpack(&packed, bytes as u32).unwrap()[..], chunk[..]);
        }
    }

    #[test]
    fn what_does_not_shrink_goes_as_it_is() {
        assert!(packer(MBIT).pack(&noise(4 << 20)).is_none());
        assert!(packer(MBIT).pack(&noise(700)).is_none());
        assert!(packer(MBIT).pack(&[]).is_none());
    }

    #[test]
    fn a_sample_that_shrinks_does_not_make_a_chunk_that_grows() {
        let mut chunk = noise(4 << 20);
        let step = (chunk.len() - PIECE_BYTES) / (PIECES - 1);
        for piece in 0..PIECES {
            chunk[piece * step..][..PIECE_BYTES].fill(0);
        }
        assert_eq!(packer(MBIT).pack(&chunk).map(|packed| packed.len()), None);
    }

    #[test]
    fn a_fast_wire_and_an_unknown_one_get_chunks_as_they_are() {
        let chunk = text(4 << 20);
        assert!(packer(2.0 * RATE_MAX).pack(&chunk).is_none());
        assert!(Packer::new(Arc::default()).pack(&chunk).is_none());
    }

    #[test]
    fn the_slower_the_wire_the_higher_the_level() {
        let chunk = text(4 << 20);
        let slow = level(&chunk, MBIT / 10.0);
        assert_eq!(slow, LEVELS.last().copied());
        assert!(level(&chunk, 200.0 * MBIT) <= slow);
    }

    #[test]
    fn frames_of_another_length_and_what_is_no_frame_are_refused() {
        let chunk = text(100_000);
        let packed = pack(&chunk, 1).expect("it shrinks");
        assert!(unpack(&packed, 99_999).is_err());
        assert!(unpack(&packed, 100_001).is_err());
        assert!(unpack(&packed[..packed.len() - 1], 100_000).is_err());
        assert!(unpack(b"not a frame", 100_000).is_err());
        assert!(unpack(&[], 100_000).is_err());
    }

    #[test]
    fn only_the_time_with_something_on_its_way_counts() {
        let mut meter = Meter::default();
        let start = instant();
        let at = |seconds| start + Duration::from_secs(seconds);
        meter.tick(at(0));
        meter.sending = 1;
        meter.tick(at(2));
        meter.add(METERED_BYTES / 2);
        meter.sending = 0;
        meter.tick(at(100));
        let expected = METERED_BYTES as f64 / 4.0;
        assert!((meter.rate().expect("enough was sent") - expected).abs() < 1.0);
    }
}
