//! What Holdfast promises of `smbtorture`'s durable tests, checked against what was seen.

use super::{
    cell::{Cell, Column, Ending},
    nodes::Servers,
    suite::{INTRUDER_TESTS, RECLAIM_TESTS, TAKEOVER_TESTS},
};
use crate::{cluster::Clustering, proxy::Mode, smb_client::NtStatus};

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

    /// That every one of these cells is as wanted. `None` if there are none.
    fn of_each(
        text: &str,
        cells: &[&Cell],
        wanted: impl Fn(&Cell) -> bool,
        seen: impl FnOnce(usize) -> String,
    ) -> Option<Self> {
        let broken: Vec<String> = cells.iter().filter(|cell| !wanted(cell)).map(|cell| why(cell)).collect();
        let seen = seen(cells.len() - broken.len());
        (!cells.is_empty()).then(|| Self { text: text.to_owned(), seen, broken })
    }
}

/// All promises of which the run has seen anything.
pub(super) fn check(cells: &[Cell], clustering: Clustering) -> Vec<Promise> {
    let seen = Seen { cells, clustering };
    let mut promises = vec![
        seen.everything_ends(),
        seen.reclaims_fail_without_holdfast(),
        seen.reclaims_survive(Mode::Kill, "passes over a kill, at another node"),
        seen.reclaims_survive(Mode::Partition, "passes when its node is cut off, at another node"),
        seen.lost_nodes_are_fenced(),
    ];
    promises.extend([Mode::Pin, Mode::Switch, Mode::KillChild].map(|mode| seen.as_alone(mode)));
    match clustering {
        Clustering::Separate => {
            promises.extend(
                [Mode::RoundRobin, Mode::Switch, Mode::KillSplit].map(|mode| seen.one_serving_node(mode)),
            );
        }
        Clustering::Ctdb => {
            promises.push(seen.all_prove(
                Mode::RoundRobin,
                &TAKEOVER_TESTS,
                "a session takes over from one at another living node",
            ));
            promises.push(seen.all_prove(
                Mode::KillSplit,
                &INTRUDER_TESTS,
                "whoever wants the file meets the dead node's opens on the survivor",
            ));
        }
    }
    promises.into_iter().flatten().collect()
}

/// What a run has shown.
struct Seen<'a> {
    cells: &'a [Cell],
    clustering: Clustering,
}

impl<'a> Seen<'a> {
    fn everything_ends(&self) -> Option<Promise> {
        let all: Vec<&Cell> = self.cells.iter().collect();
        let ends = |cell: &Cell| !matches!(cell.ending, Ending::Hang | Ending::Broken);
        let seen = |ended| format!("{ended} of {} runs", all.len());
        Promise::of_each("every test ends by itself, with a result", &all, ends, seen)
    }

    /// The control: whatever the tests show, they would not show it without Holdfast.
    fn reclaims_fail_without_holdfast(&self) -> Option<Promise> {
        let column = Column { servers: Servers::Unprotected, mode: Mode::Kill };
        let cells = self.cells_of(column, |test| RECLAIM_TESTS.contains(&test));
        let fails = |cell: &Cell| cell.ending == Ending::Fail && cell.path.shows(Mode::Kill);
        let seen = |failed| format!("{failed} of {} fail", cells.len());
        let text = "control: without Holdfast every reclaim test fails over a kill";
        Promise::of_each(text, &cells, fails, seen)
    }

    fn reclaims_survive(&self, mode: Mode, what: &str) -> Option<Promise> {
        self.all_prove(mode, &RECLAIM_TESTS, &format!("every reclaim test {what}"))
    }

    /// These tests pass, and in doing so show what the mode is about.
    fn all_prove(&self, mode: Mode, tests: &[&str], what: &str) -> Option<Promise> {
        let cells = self.cells_of(Column { servers: Servers::Protected, mode }, |test| tests.contains(&test));
        let returns: usize = cells.iter().map(|cell| cell.path.returns()).sum();
        let returns = if returns == 0 { String::new() } else { format!(", {returns} returns after harm") };
        let seen = |passed| format!("{passed} of {} pass{returns}", cells.len());
        Promise::of_each(&format!("{mode}: {what}"), &cells, Cell::proves, seen)
    }

    /// What one Samba does by itself, it does with Holdfast too.
    fn as_alone(&self, mode: Mode) -> Option<Promise> {
        let alone = self.cells_of(Column { servers: Servers::Alone, mode: Mode::Pin }, |_| true);
        let passes_alone =
            |test: &str| alone.iter().any(|cell| cell.test == test && cell.ending == Ending::Pass);
        let mut cells = self.cells_of(Column { servers: Servers::Protected, mode }, passes_alone);
        let mut text = format!("{mode}: what passes on one smbd alone passes");
        if self.clustering == Clustering::Separate {
            // A client that stays at the old node keeps the share there. What the other one is told is promised too.
            let all = cells.len();
            cells.retain(|cell| cell.path.tree_connects_beside().is_empty());
            if cells.len() < all {
                text += ", if nobody stays behind at the old node";
            }
        }
        let idle = cells.iter().filter(|cell| !cell.path.shows(mode)).count();
        let idle = if idle == 0 { String::new() } else { format!("; {idle} came to no failover") };
        let seen = |passed| format!("{passed} of {} pass{idle}", cells.len());
        Promise::of_each(&text, &cells, |cell| cell.ending == Ending::Pass, seen)
    }

    /// A node that hears from no other stops serving in time: before another one may serve in its place.
    fn lost_nodes_are_fenced(&self) -> Option<Promise> {
        let column = Column { servers: Servers::Protected, mode: Mode::Partition };
        let mut longest = None;
        let mut broken = Vec::new();
        for cell in self.cells_of(column, |_| true) {
            let Some(fence) = cell.fence else { continue };
            longest = longest.max(Some(fence.served_for));
            if fence.served_for > fence.allowed {
                let (served, allowed) = (fence.served_for, fence.allowed);
                broken.push(format!("{}: served for {served:?}, {allowed:?} are allowed", cell.test));
            }
        }
        let text = "partition: a node that is cut off serves nothing after its fence time".to_owned();
        longest.map(|longest| Promise { text, seen: format!("for {longest:?} at most"), broken })
    }

    /// Between separate `smbd`s a share has one serving node, and the others say so.
    fn one_serving_node(&self, mode: Mode) -> Option<Promise> {
        let cells = self.cells_of(Column { servers: Servers::Protected, mode }, |_| true);
        let mut refused = 0;
        let mut broken = Vec::new();
        for cell in &cells {
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
        let text = format!(
            "{mode}: while one node serves the share, a tree connect at another is answered {SERVED_ELSEWHERE}"
        );
        (refused + broken.len() > 0).then(|| Promise { text, seen: format!("{refused} refused"), broken })
    }

    fn cells_of(&self, column: Column, concerns: impl Fn(&str) -> bool) -> Vec<&'a Cell> {
        self.cells.iter().filter(|cell| cell.column == column && concerns(&cell.test)).collect()
    }
}

/// A cell that is not as promised, in a line.
fn why(cell: &Cell) -> String {
    let Cell { test, column, ending, path, .. } = cell;
    let reason = cell.reason.lines().next().unwrap_or("no reason given");
    format!("{test} ({column}, {path}): {}: {reason}", ending.word())
}
