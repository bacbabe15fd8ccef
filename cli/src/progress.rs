//! How far a copy of blobs is: one bar on a terminal, a line for each blob elsewhere.

use std::io::{self, IsTerminal, Write as _};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{bytes, short};

const BAR: &str = "{prefix} {wide_bar} {decimal_bytes:>10} / {decimal_total_bytes:>10} {decimal_bytes_per_sec:>12}";

/// Progress of so many blobs, on standard error.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    count: usize,
    begun: usize,
}

impl Progress {
    /// Says what is about to be copied: blobs, and bytes in all.
    pub(crate) fn begin(what: &str, count: usize, total: u64, quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        if !quiet {
            say(&format!("{what}: {count} blobs, {}", bytes(total)));
        }
        let bar = (!quiet && terminal).then(|| {
            let style =
                ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style)
        });
        Self {
            bar,
            lines: !quiet && !terminal,
            count,
            begun: 0,
        }
    }

    /// The next blob begins.
    pub(crate) fn blob(&mut self, digest: &str, size: u64) {
        self.begun += 1;
        let (at, count) = (self.begun, self.count);
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("{at} of {count}: {}", short(digest)));
        }
        if self.lines {
            say(&format!(
                "{at} of {count}: {} {}",
                short(digest),
                bytes(size)
            ));
        }
    }

    /// So many more bytes were copied, or need not be.
    pub(crate) fn advance(&self, bytes: u64) {
        self.counter()(bytes);
    }

    /// The same, for whoever copies.
    pub(crate) fn counter(&self) -> impl Fn(u64) + Send + 'static + use<> {
        let bar = self.bar.clone();
        move |bytes| {
            if let Some(bar) = &bar {
                bar.inc(bytes);
            }
        }
    }
}

impl Drop for Progress {
    /// Leaves the last state on the screen.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// Progress goes to standard error, and nobody reading it is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_a_style() {
        ProgressStyle::with_template(BAR).unwrap();
    }
}
