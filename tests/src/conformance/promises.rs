//! What Holdfast promises of `smbtorture`'s durable tests, checked against what was seen.

use super::{
    cell::{Cell, Column, Ending},
    nodes::Servers,
    suite::RECLAIM_TESTS,
};
use crate::{proxy::Mode, smb_client::NtStatus};

/// What a tree connect is answered at a node while another one serves the share.
const SERVED_ELSEWHERE: NtStatus = NtStatus::FILE_LOCK_CONFLICT;

/// A promise, and whether it was kept.
#[derive(Clone, Debug)]
pub struct Promise {
    /// What was promised.
    pub text: String,
    /// What the run has shown of it, in a few words.
    pub seen: String,
    /// What contradicts it. Nothing: it held.
    pub broken: Vec<String>,
}

impl Promise {
    /// Whether it was kept.
    pub fn held(&self) -> bool {
        self.broken.is_empty()
    }
}

/// All promises of which the run has seen anything.
pub(super) fn check(cells: &[Cell]) -> Vec<Promise> {
    let mut promises = vec![everything_ends(cells)];
    promises.extend(reclaims_fail_without_holdfast(cells));
    promises.extend(reclaims_survive_kills(cells));
    promises.extend(
        [Mode::Pin, Mode::Switch, Mode::KillChild].map(|mode| as_alone(cells, mode)).into_iter().flatten(),
    );
    promises.extend(
        [Mode::RoundRobin, Mode::KillSplit].map(|mode| one_serving_node(cells, mode)).into_iter().flatten(),
    );
    promises
}

fn everything_ends(cells: &[Cell]) -> Promise {
    let hung = cells.iter().filter(|cell| matches!(cell.ending, Ending::Hang | Ending::Broken));
    Promise {
        text: "every test ends by itself, with a result".to_owned(),
        seen: format!("{} runs", cells.len()),
        broken: hung.map(why).collect(),
    }
}

/// The control: whatever the tests show, they would not show it without Holdfast.
fn reclaims_fail_without_holdfast(cells: &[Cell]) -> Option<Promise> {
    let column = Column { servers: Servers::Unprotected, mode: Mode::Kill };
    let (seen, broken) = examine(cells, column, is_reclaim, |cell| {
        cell.ending == Ending::Fail && cell.path.shows(Mode::Kill)
    })?;
    let text = "control: without Holdfast every reclaim test fails when its node is killed".to_owned();
    Some(Promise { text, seen: format!("{seen} of {} fail", seen + broken.len()), broken })
}

fn reclaims_survive_kills(cells: &[Cell]) -> Option<Promise> {
    let column = Column { servers: Servers::Protected, mode: Mode::Kill };
    let (seen, broken) = examine(cells, column, is_reclaim, Cell::proves)?;
    let text = "kill: every reclaim test passes, with the client at another node after the kill".to_owned();
    Some(Promise { text, seen: format!("{seen} of {} pass", seen + broken.len()), broken })
}

/// What one Samba does by itself, it does with Holdfast too.
fn as_alone(cells: &[Cell], mode: Mode) -> Option<Promise> {
    let passes_alone = |test: &str| {
        let alone = Column { servers: Servers::Alone, mode: Mode::Pin };
        cells.iter().any(|cell| cell.test == test && cell.column == alone && cell.ending == Ending::Pass)
    };
    let column = Column { servers: Servers::Protected, mode };
    let (seen, broken) = examine(cells, column, passes_alone, |cell| cell.ending == Ending::Pass)?;
    let idle = cells.iter().filter(|cell| {
        cell.column == column
            && cell.ending == Ending::Pass
            && passes_alone(&cell.test)
            && !cell.path.shows(mode)
    });
    let idle = match idle.count() {
        0 => String::new(),
        idle => format!(", {idle} of them without having been put to the test"),
    };
    let text = format!("{mode}: what passes on one smbd alone passes");
    Some(Promise { text, seen: format!("{seen} of {} pass{idle}", seen + broken.len()), broken })
}

/// Between separate `smbd`s a share has one serving node, and the others say so.
fn one_serving_node(cells: &[Cell], mode: Mode) -> Option<Promise> {
    let column = Column { servers: Servers::Protected, mode };
    let mut refused = 0;
    let mut broken = Vec::new();
    let mut any = false;
    for cell in cells.iter().filter(|cell| cell.column == column) {
        any = true;
        for beside in cell.path.tree_connects_beside() {
            match beside.status {
                Some(SERVED_ELSEWHERE) => refused += 1,
                status => broken.push(format!(
                    "{}: node {} answered the tree connect of c{} with {}",
                    cell.test,
                    beside.backend,
                    beside.connection,
                    status.map_or("nothing".to_owned(), |status| status.to_string()),
                )),
            }
        }
    }
    if any && refused == 0 && broken.is_empty() {
        broken.push("no test came to a second node".to_owned());
    }
    let text = format!(
        "{mode}: while one node serves the share, the answer to a tree connect at another is {SERVED_ELSEWHERE}"
    );
    any.then(|| Promise { text, seen: format!("{refused} refused"), broken })
}

/// Counts the cells of a column that are as wanted, and says why of the others. `None` if there are none.
fn examine(
    cells: &[Cell],
    column: Column,
    concerns: impl Fn(&str) -> bool,
    wanted: impl Fn(&Cell) -> bool,
) -> Option<(usize, Vec<String>)> {
    let concerned: Vec<&Cell> =
        cells.iter().filter(|cell| cell.column == column && concerns(&cell.test)).collect();
    let broken: Vec<String> = concerned.iter().filter(|cell| !wanted(cell)).map(|cell| why(cell)).collect();
    (!concerned.is_empty()).then(|| (concerned.len() - broken.len(), broken))
}

fn is_reclaim(test: &str) -> bool {
    RECLAIM_TESTS.contains(&test)
}

fn why(cell: &Cell) -> String {
    let Cell { test, column, ending, reason, path, .. } = cell;
    let colon = if reason.is_empty() { "" } else { ": " };
    format!("{test} ({column}, {path}): {}{colon}{reason}", ending.word())
}
