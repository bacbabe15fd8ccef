//! Lines of ours in a file of somebody else's: between two comments by which they are found again.
//! For TOML and YAML.

use std::path::PathBuf;

use anyhow::{Context, bail};

use super::{Change, read, toml_of};

const BEGIN: &str = "# shoal setup: what follows, down to the end mark, is removed by --undo";
const END: &str = "# shoal setup: end";

/// How a file was before, where that cannot be seen after our lines are gone.
const NEW_FILE: &str = " (new file)";
const OPEN_LINE: &str = " (after a line without an end)";

/// A file, and what is in it besides our lines.
pub(super) struct File {
    path: PathBuf,
    before: Option<String>,
    other: Option<String>,
}

impl File {
    /// Reads it; it may be missing.
    ///
    /// # Errors
    /// It cannot be read, or one of our two marks is missing.
    pub(super) fn open(path: PathBuf) -> anyhow::Result<Self> {
        let before = read(&path)?;
        let other = match &before {
            Some(text) => remove(text).with_context(|| path.display().to_string())?,
            None => None,
        };
        Ok(Self {
            path,
            before,
            other,
        })
    }

    /// What is in it besides our lines.
    pub(super) fn text(&self) -> &str {
        self.other.as_deref().unwrap_or_default()
    }

    /// Its [`text`](Self::text) as TOML.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn toml(&self) -> anyhow::Result<toml::Table> {
        toml_of(&self.path, self.text())
    }

    /// With these lines of ours at byte `at` of its [`text`](Self::text), the beginning of a line or
    /// the end.
    pub(super) fn with(self, at: usize, lines: &str, indent: &str) -> Change {
        let after = insert(self.other.as_deref(), at, lines, indent);
        Change {
            path: self.path,
            before: self.before,
            after: Some(after),
        }
    }

    /// The same where it is TOML.
    ///
    /// # Errors
    /// It would be none.
    pub(super) fn with_toml(self, at: usize, lines: &str) -> anyhow::Result<Change> {
        let change = self.with(at, lines, "");
        toml_of(&change.path, change.after.as_deref().unwrap_or_default())?;
        Ok(change)
    }

    /// Without our lines.
    pub(super) fn without(self) -> Change {
        Change {
            path: self.path,
            before: self.before,
            after: self.other,
        }
    }
}

/// `text`, which has no lines of ours, with these at byte `at`.
pub(super) fn insert(text: Option<&str>, at: usize, lines: &str, indent: &str) -> String {
    let (text, state) = match text {
        None => ("", NEW_FILE),
        Some(text) if at > 0 && !text[..at].ends_with('\n') => (text, OPEN_LINE),
        Some(text) => (text, ""),
    };
    let (head, tail) = text.split_at(at);
    let joint = if state == OPEN_LINE { "\n" } else { "" };
    format!("{head}{joint}{indent}{BEGIN}{state}\n{lines}{indent}{END}\n{tail}")
}

/// `text` without our lines; `None` where the file was ours altogether.
///
/// # Errors
/// One of the two marks is missing.
pub(super) fn remove(text: &str) -> anyhow::Result<Option<String>> {
    let Some(mark) = text.find(BEGIN) else {
        if text.contains(END) {
            bail!(
                "the end mark of `shoal setup` is there, but not its begin; remove its lines by hand"
            );
        }
        return Ok(Some(text.to_owned()));
    };
    let Some(end) = text[mark..].find(END).map(|end| mark + end) else {
        bail!(
            "the begin mark of `shoal setup` is there, but not its end; remove its lines by hand"
        );
    };
    let first = text[mark..].lines().next().unwrap_or_default();
    let is_new = first.ends_with(NEW_FILE);
    // The mark may stand indented.
    let mut from = text[..mark].rfind('\n').map_or(0, |newline| newline + 1);
    if first.ends_with(OPEN_LINE) {
        from = from.saturating_sub(1);
    }
    let to = text[end..]
        .find('\n')
        .map_or(text.len(), |newline| end + newline + 1);
    let rest = format!("{}{}", &text[..from], &text[to..]);
    Ok((!(is_new && rest.is_empty())).then_some(rest))
}

/// Where the first table of a TOML file begins: what stands before it belongs to no table.
pub(super) fn first_table(text: &str) -> usize {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with('[') {
            return at;
        }
        at += line.len();
    }
    at
}
