//! How numbers and tables are written for people.

use std::{
    fmt,
    io::{self, Write as _},
};

/// Writes `text` and a line end to standard output at once. A reader that has gone away
/// (`| head`) shows as [`io::ErrorKind::BrokenPipe`].
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end_matches('\n'))?;
    out.flush()
}

/// The result of a command whose output was cut off by its reader: that is no failure.
pub(crate) fn unless_reader_left(result: anyhow::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error)
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// A number of bytes in decimal units: `999 B`, `1.5 kB`, `268.4 MB`.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        // What would be rounded up to 1000.0 belongs to the next unit.
        if value < 999.95 {
            let digits = usize::from(unit != "B");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// A number of bytes per second.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// A span of time: `850 ms`, `12.3 s`, `2m05s`, `3h12m`, `4d03h`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1000.0)
    } else if seconds < 59.95 {
        format!("{seconds:.1} s")
    } else if whole < 3600 {
        format!("{}m{:02}s", whole / 60, whole % 60)
    } else if whole < 86_400 {
        format!("{}h{:02}m", whole / 3600, whole / 60 % 60)
    } else {
        format!("{}d{:02}h", whole / 86_400, whole / 3600 % 24)
    }
}

/// A share between 0 and 1: `87.5 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The start of a node id or a digest, enough to tell them apart.
pub(crate) fn short(name: &str) -> &str {
    let hash = name.find(':').map_or(0, |colon| colon + 1);
    name.get(..hash + 12).unwrap_or(name)
}

/// On which side a column is flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table with a line of headings. Every column is as wide as its widest cell.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells that are missing stay empty, those too many are left out.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head: Vec<String> = self
            .columns
            .iter()
            .map(|(heading, _)| (*heading).to_owned())
            .collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&head).chain(&self.rows).collect();
        let cell = |line: &[String], at: usize| line.get(at).map_or("", String::as_str).to_owned();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|at| {
                lines
                    .iter()
                    .map(|line| cell(line, at).chars().count())
                    .max()
                    .unwrap_or_default()
            })
            .collect();
        for line in lines {
            let cells: Vec<String> = self
                .columns
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(at, ((_, align), width))| {
                    let cell = cell(line, at);
                    match align {
                        Align::Left => format!("{cell:<width$}"),
                        Align::Right => format!("{cell:>width$}"),
                    }
                })
                .collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_short() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (268_435_456, "268.4 MB"),
            (u64::MAX, "18446744.1 TB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in [
            (0.0, "0 ms"),
            (0.85, "850 ms"),
            (0.9996, "1.0 s"),
            (12.34, "12.3 s"),
            (59.97, "1m00s"),
            (125.0, "2m05s"),
            (11_520.0, "3h12m"),
            (356_400.0, "4d03h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(percent(0.875), "87.5 %");
    }

    #[test]
    fn names_are_cut_where_they_still_differ() {
        assert_eq!(short("sha256:0123456789abcdef"), "sha256:0123456789ab");
        assert_eq!(short("0123456789abcdef"), "0123456789ab");
        assert_eq!(short("short"), "short");
    }

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(&[("NODE", Align::Left), ("SENT", Align::Right)]);
        table.row(["a".into(), "10 kB".into()]);
        table.row(["longer".into(), "1 B".into()]);
        table.row(["x".into()]);
        assert_eq!(
            table.to_string(),
            "NODE     SENT\na       10 kB\nlonger    1 B\nx\n"
        );
    }
}
