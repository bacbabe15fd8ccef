//! Lines of ours in a file of somebody else's: between two comments by which they are found again.
//! For TOML and YAML.

use anyhow::bail;

const BEGIN: &str = "# shoal setup: what follows, down to the end mark, is removed by --undo";
const END: &str = "# shoal setup: end";

/// How a file was before, where that cannot be seen after our lines are gone.
const NEW_FILE: &str = " (new file)";
const OPEN_LINE: &str = " (after a line without an end)";

/// `text` with `lines` at byte `at`, which is the beginning of a line or the end. Lines of ours that
/// are there already must have been [taken out](without).
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

/// `text` without our lines: the inside is `None` where the file was ours altogether, and all of it
/// is where nothing of ours is in it.
///
/// # Errors
/// One of the two marks is missing.
#[expect(
    clippy::option_option,
    reason = "whether there is anything to remove, and whether a file is left then"
)]
pub(super) fn remove(text: &str) -> anyhow::Result<Option<Option<String>>> {
    let Some(mark) = text.find(BEGIN) else {
        if text.contains(END) {
            bail!(
                "the end mark of `shoal setup` is there, but not its begin; remove its lines by hand"
            );
        }
        return Ok(None);
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
    Ok(Some((!(is_new && rest.is_empty())).then_some(rest)))
}

/// `text` without our lines, to put others in their place.
pub(super) fn without(text: Option<String>) -> anyhow::Result<Option<String>> {
    match text {
        Some(text) => Ok(remove(&text)?.unwrap_or(Some(text))),
        None => Ok(None),
    }
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
