//! The table in README.md of what came of it. The tests write it (`tests/matrix`), and fail where
//! something else comes of it than it says; only versions may differ.

use std::fs;
use std::path::{Path, PathBuf};

use super::matrix::SITUATIONS;

const BEGIN: &str = "<!-- Written by tests/matrix, down to the end mark. -->\n";
const END: &str = "<!-- The end of what tests/matrix writes. -->\n";

/// Set to `write`, the tests put what came of it into the table.
const SWITCH: &str = "MATRIX";

/// Which of a line's cells is the version.
const VERSION: usize = 1;

/// A client's line.
pub(super) struct Row {
    pub(super) client: &'static str,
    pub(super) system: &'static str,
    pub(super) version: String,
    pub(super) way: &'static str,
    pub(super) results: [&'static str; SITUATIONS.len()],
}

impl Row {
    fn line(&self) -> String {
        let cells = [self.client, &self.version, self.system, self.way];
        line(cells.iter().chain(&self.results))
    }
}

/// Compares a row with the table, or writes it there.
pub(super) fn check(row: Row) {
    let line = row.line();
    println!("{line}");
    if std::env::var(SWITCH).as_deref() == Ok("write") {
        write(&line);
    } else {
        compare(&line);
    }
}

fn write(line: &str) {
    let file = readme();
    let (head, table, tail) = parts(&file);
    let other = |known: &&str| key(known) != key(line);
    let mut lines: Vec<&str> = table.lines().skip(2).filter(other).collect();
    lines.push(line);
    let rows = super::rows();
    let place = |line: &&str| rows.iter().position(|row| *row == key(line));
    lines.retain(|line| place(line).is_some());
    lines.sort_by_key(place);
    let table = format!("{}{}\n", headings(), lines.join("\n"));
    fs::write(path(), format!("{head}{BEGIN}{table}{END}{tail}")).expect("README.md is writable");
}

fn compare(line: &str) {
    let file = readme();
    let (_, table, _) = parts(&file);
    let known = table.lines().find(|known| key(known) == key(line));
    let known = known.unwrap_or_else(|| panic!("README.md has no such line: tests/matrix\n{line}"));
    assert_eq!(
        without_version(known),
        without_version(line),
        "README.md says something else; tests/matrix writes its table anew"
    );
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")
}

fn readme() -> String {
    fs::read_to_string(path()).expect("README.md is readable")
}

/// What stands before the table, the table, and what stands after it.
fn parts(file: &str) -> (&str, &str, &str) {
    let (head, rest) = file
        .split_once(BEGIN)
        .expect("README.md has the begin mark");
    let (table, tail) = rest.split_once(END).expect("README.md has the end mark");
    (head, table, tail)
}

fn headings() -> String {
    let cells = ["client", "version", "of", "by"];
    let rule = "---|".repeat(cells.len() + SITUATIONS.len());
    format!("{}\n|{rule}\n", line(cells.iter().chain(&SITUATIONS)))
}

fn line<'a>(cells: impl Iterator<Item = &'a &'a str>) -> String {
    cells.fold("|".to_owned(), |line, cell| format!("{line} {cell} |"))
}

fn cells(line: &str) -> Vec<&str> {
    line.split('|').map(str::trim).collect()
}

/// Which row a line is: the client and the system.
fn key(line: &str) -> String {
    let cells = cells(line);
    let cell = |at: usize| cells.get(at).copied().unwrap_or_default();
    format!("{} {}", cell(1), cell(3))
}

fn without_version(line: &str) -> Vec<&str> {
    let mut cells = cells(line);
    cells.remove(VERSION + 1);
    cells
}

#[test]
fn the_table_has_every_client_and_situation_that_is_tested_and_no_other() {
    let file = readme();
    let (_, table, _) = parts(&file);
    let lines = table
        .strip_prefix(&headings())
        .expect("the situations are those of the tests");
    let known: Vec<String> = lines.lines().map(key).collect();
    assert_eq!(known, super::rows(), "tests/matrix writes the table anew");
}
