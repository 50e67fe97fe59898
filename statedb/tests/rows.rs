//! The checked list: every rule of `SEMANTICS.md` that the state decides has a test that claims to show it.
//!
//! A row is claimed by its name, so the names never change:
//!
//! ```text
//! # row 4.2.5, 4.3.12: another name            in a golden script, above the commands that show it
//! /// row 2.2.3: the level that was granted    in Rust, among the doc comments of a `#[test]`
//! ```
//!
//! A claim is only a claim: whether the test shows what the row says is for the reader to see. What a machine can see
//! is checked here: no row without a claim, no claim of a row that is not there or that is the SMB server's, no claim
//! without commands, no two rows of one name, and for every rule on which the sources differ the choice that was made.
//!
//! `UPDATE_ROWS=1 cargo test -p holdfast-statedb --test rows` writes `testscripts/ROWS.md`, the map from rows to tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// What the tables of rules begin with.
const RULES: &str = "| row | rule | answer | source | by |";
/// What the table of choices begins with.
const CHOICES: &str = "| about | who says what | we follow |";

/// A rule of `SEMANTICS.md`.
struct Row {
    name: String,
    /// Whether the sources differ on it.
    is_disputed: bool,
    /// Whether the replicated state decides it, and not the SMB server.
    is_ours: bool,
}

/// What a test says that it shows.
struct Claim {
    row: String,
    /// The file of the test, and its name there.
    test: String,
}

#[test]
fn every_row_is_shown_by_a_test() {
    let mut faults = Vec::new();
    let rows = rows(&mut faults);
    let claims = claims(&mut faults);
    let ours: BTreeSet<_> = rows.iter().filter(|row| row.is_ours).map(|row| row.name.as_str()).collect();
    let claimed: BTreeSet<_> = claims.iter().map(|claim| claim.row.as_str()).collect();

    let unshown = ours.difference(&claimed).map(|row| format!("no test shows row {row}"));
    let strays = claims.iter().filter(|claim| !ours.contains(claim.row.as_str()));
    let strays = strays.map(|Claim { row, test }| format!("{test}: row {row} is no rule of the state's"));
    faults.extend(unshown.chain(strays));
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_disputed_row_says_whom_we_follow() {
    let rows = rows(&mut Vec::new());
    let disputed: BTreeSet<_> =
        rows.iter().filter(|row| row.is_disputed).map(|row| row.name.clone()).collect();
    let decided: BTreeSet<_> = table_lines(CHOICES).iter().flat_map(|line| quoted(cells(line)[0])).collect();
    assert_eq!(disputed, decided, "the rows with a dagger, and the rows of the table of choices");
}

#[test]
fn the_map_from_rows_to_tests_is_current() {
    let map = map(&claims(&mut Vec::new()));
    let path = crate_root().join("testscripts/ROWS.md");
    if env::var_os("UPDATE_ROWS").is_some() {
        fs::write(&path, &map).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == map, "{} is not current: run this test with UPDATE_ROWS=1", path.display());
}

fn crate_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The lines below every table head that reads so.
fn table_lines(head: &str) -> Vec<String> {
    let text = fs::read_to_string(crate_root().join("SEMANTICS.md")).unwrap();
    let mut found = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        if line == head {
            is_inside = true;
        } else if !line.starts_with('|') {
            is_inside = false;
        } else if is_inside && !line.starts_with("|---") {
            found.push(line.to_owned());
        }
    }
    assert!(!found.is_empty(), "no table in SEMANTICS.md begins with {head}");
    found
}

fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split('|').map(str::trim).collect()
}

/// What stands between back ticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn is_row_name(name: &str) -> bool {
    let is_usual =
        |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || ".-".contains(letter);
    name.starts_with(|letter: char| letter.is_ascii_digit()) && name.chars().all(is_usual)
}

fn rows(faults: &mut Vec<String>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for line in table_lines(RULES) {
        let cells = cells(&line);
        let name = cells[0].trim_end_matches('†').trim().trim_matches('`').to_owned();
        let by = cells.last().copied();
        if cells.len() != 5 || !is_row_name(&name) || !matches!(by, Some("state" | "server")) {
            faults.push(format!("SEMANTICS.md: this is no row: {line}"));
            continue;
        }
        if rows.iter().any(|row| row.name == name) {
            faults.push(format!("SEMANTICS.md: two rows are called {name}"));
        }
        rows.push(Row { name, is_disputed: cells[0].ends_with('†'), is_ours: by == Some("state") });
    }
    rows
}

/// All claims of all tests, in the order of the files.
fn claims(faults: &mut Vec<String>) -> Vec<Claim> {
    let mut claims = Vec::new();
    for path in files_below("testscripts") {
        if path.extension().is_none() {
            claims_of_script(&path, &mut claims, faults);
        }
    }
    for path in files_below("src/state").into_iter().chain(files_below("tests")) {
        if path.extension().is_some_and(|extension| extension == "rs") {
            claims_of_rust(&path, &mut claims, faults);
        }
    }
    claims
}

fn files_below(directory: &str) -> Vec<PathBuf> {
    let (mut files, mut directories) = (Vec::new(), vec![crate_root().join(directory)]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { directories.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// `row 4.2.5, 4.3.12: what is shown`, as names and the rest.
fn parse_claim(text: &str) -> Option<(Vec<String>, &str)> {
    let claim = text.strip_prefix("row ")?;
    let (names, shown) = claim.split_once(':').unwrap_or((claim, ""));
    let names: Vec<_> = names.split(',').map(|name| name.trim().to_owned()).collect();
    names.iter().all(|name| is_row_name(name)).then_some((names, shown.trim()))
}

/// A claim holds from its comment to the next one, and needs a command and its outcome in between.
fn claims_of_script(path: &Path, claims: &mut Vec<Claim>, faults: &mut Vec<String>) {
    let text = fs::read_to_string(path).unwrap();
    let mut blocks: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("# ").filter(|comment| comment.starts_with("row ")) {
            Some(comment) => blocks.push((comment, Vec::new())),
            None => blocks.iter_mut().next_back().into_iter().for_each(|(_, lines)| lines.push(line)),
        }
    }
    for (comment, lines) in blocks {
        let Some((names, shown)) = parse_claim(comment) else {
            faults.push(format!("{}: this claim names no row: {comment}", relative(path)));
            continue;
        };
        // What stands in parentheses prepares only.
        let is_command = |line: &&str| !line.is_empty() && !line.starts_with(['#', '(']);
        let until_outcome = lines.iter().take_while(|line| **line != "---").filter(|line| is_command(line));
        if until_outcome.count() == 0 || !lines.contains(&"---") {
            faults.push(format!("{}: this claim has no command and outcome: {comment}", relative(path)));
        }
        let test = format!("{}: {shown}", relative(path));
        claims.extend(names.into_iter().map(|row| Claim { row, test: test.clone() }));
    }
}

/// A claim belongs to the function below it, which has to be a test.
fn claims_of_rust(path: &Path, claims: &mut Vec<Claim>, faults: &mut Vec<String>) {
    let text = fs::read_to_string(path).unwrap();
    let mut names: Vec<String> = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if let Some(comment) = line.strip_prefix("/// ").filter(|comment| comment.starts_with("row ")) {
            match parse_claim(comment) {
                Some((claimed, _)) => names.extend(claimed),
                None => faults.push(format!("{}: this claim names no row: {comment}", relative(path))),
            }
        } else if line.starts_with("#[") {
            is_test |= line == "#[test]";
        } else if !line.starts_with("///") {
            let function = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next());
            match function.filter(|_| is_test) {
                Some(function) => {
                    let test = format!("{}: {function}", relative(path));
                    claims.extend(names.drain(..).map(|row| Claim { row, test: test.clone() }));
                }
                None if !names.is_empty() => {
                    faults.push(format!(
                        "{}: no test below the claim of {}",
                        relative(path),
                        names.join(", ")
                    ));
                }
                None => {}
            }
            names.clear();
            is_test = false;
        }
    }
}

/// The path as the map and the faults name it.
fn relative(path: &Path) -> String {
    path.strip_prefix(crate_root()).unwrap_or(path).display().to_string()
}

/// The map, as it is stored.
fn map(claims: &[Claim]) -> String {
    let mut tests: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Claim { row, test } in claims {
        tests.entry(row).or_default().push(test);
    }
    let mut map = String::from(
        "# Which test shows which row of SEMANTICS.md\n\n\
         Written by `UPDATE_ROWS=1 cargo test -p holdfast-statedb --test rows`.\n\n\
         | row | shown by |\n|---|---|\n",
    );
    let rows = rows(&mut Vec::new()).into_iter().filter(|row| row.is_ours);
    for row in rows {
        let tests = tests.get(row.name.as_str()).map(|tests| tests.join("<br>")).unwrap_or_default();
        map += &format!("| `{}` | {tests} |\n", row.name);
    }
    map
}
