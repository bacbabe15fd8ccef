//! A queue of what is to happen, by time.
//!
//! A radix heap: time only goes forward, so an entry's place needs to be known only as exactly as
//! the highest bit in which its time differs from the present. An entry moves a few times through
//! plain vectors instead of sifting through a tree, which takes half the time of a binary heap at
//! a million entries. What is due at the same time comes out in the order in which it went in.

use std::collections::VecDeque;

/// Entries due in the future, earliest first.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    /// No entry is due before this time.
    last: u64,
    /// Due at `last`.
    due: VecDeque<T>,
    /// `later[bit]`: due at a time whose highest bit that differs from `last` is `bit`.
    later: Vec<Vec<(u64, T)>>,
    /// Which of them are not empty.
    filled: u64,
    len: usize,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self {
            last: 0,
            due: VecDeque::new(),
            later: (0..64).map(|_| Vec::new()).collect(),
            filled: 0,
            len: 0,
        }
    }

    /// How many entries wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds an entry; one for the past is due now.
    pub(crate) fn push(&mut self, at: u64, item: T) {
        self.len += 1;
        self.place(at, item);
    }

    fn place(&mut self, at: u64, item: T) {
        if at <= self.last {
            self.due.push_back(item);
        } else {
            let bit = (at ^ self.last).ilog2();
            self.later[bit as usize].push((at, item));
            self.filled |= 1 << bit;
        }
    }

    /// Takes out the earliest entry that is due at `limit` or before, with its time.
    pub(crate) fn pop(&mut self, limit: u64) -> Option<(u64, T)> {
        if self.due.is_empty() {
            self.refill(limit)?;
        } else if self.last > limit {
            return None;
        }
        let item = self.due.pop_front()?;
        self.len -= 1;
        Some((self.last, item))
    }

    /// Moves on to the time of the earliest entry.
    fn refill(&mut self, limit: u64) -> Option<()> {
        if self.filled == 0 {
            return None;
        }
        let bit = self.filled.trailing_zeros() as usize;
        let earliest = self.later[bit].iter().map(|(at, _)| *at).min()?;
        if earliest > limit {
            return None;
        }
        self.last = earliest;
        self.filled &= !(1 << bit);
        let mut entries = std::mem::take(&mut self.later[bit]);
        for (at, item) in entries.drain(..) {
            self.place(at, item);
        }
        // Its memory serves the next ones.
        self.later[bit] = entries;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::Queue;

    #[test]
    fn entries_come_out_by_time_and_then_in_the_order_of_their_coming() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut queue = Queue::new();
        let mut model = std::collections::BTreeSet::new();
        let mut now = 0;
        for number in 0..20_000u64 {
            let span: u32 = rng.random_range(0..30);
            let at = now + rng.random_range(0..=1u64 << span);
            queue.push(at, number);
            model.insert((at, number));
            if rng.random_range(0..3) > 0 {
                let limit = now + rng.random_range(0..1 << 20);
                let expected = model.first().copied();
                let expected = expected.filter(|(at, _)| *at <= limit);
                assert_eq!(queue.pop(limit), expected);
                if let Some(key) = expected {
                    model.remove(&key);
                    now = key.0;
                }
            }
            assert_eq!(queue.len(), model.len());
        }
        for key in model {
            assert_eq!(queue.pop(u64::MAX), Some(key));
        }
    }
}
