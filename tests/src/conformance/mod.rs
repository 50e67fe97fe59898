//! Conformance: `smbtorture`'s tests of durable handles, unmodified, through a proxy that moves, cuts or kills
//! what is behind it; and whether what comes of it is what Holdfast promises.
//!
//! Every test runs in every mode on servers of its own, which nobody has used before. Two controls are part of
//! the same run: one `smbd` alone shows what a test is worth on this version of Samba, and the same nodes without
//! Holdfast show that it is Holdfast that makes the difference.
//!
//! What must stay true:
//! - A pass counts only with the path that it means: a test that never came to another node proves nothing.
//! - Every test ends. One that hangs is a failure with a name, and nothing of it is left behind.

mod cell;
mod nodes;
mod path;
mod promises;
mod report;
mod suite;
mod witness;

use futures::{StreamExt, stream};

pub use self::{
    cell::{Cell, Column, Ending, Fence, LogDir},
    nodes::{Recipe, Servers},
    path::{Path, TreeConnectBeside},
    promises::Promise,
    report::{document, in_short, table},
    suite::{INTRUDER_TESTS, RECLAIM_TESTS, SUITES, TAKEOVER_TESTS},
};
use crate::proxy::Mode;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How servers are made.
    pub recipe: Recipe,
    /// The tests.
    pub tests: Vec<String>,
    /// The modes, of servers with Holdfast.
    pub modes: Vec<Mode>,
    /// How many tests run at the same time.
    pub jobs: usize,
    /// Where to leave logs.
    pub logs: LogDir,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Samba's version.
    pub smbd: String,
    /// Every test in every mode.
    pub cells: Vec<Cell>,
    /// What that says.
    pub promises: Vec<Promise>,
}

/// Runs everything. `progress` is told of each cell as it ends, with the number of all.
pub async fn run(options: &Options, mut progress: impl FnMut(&Cell, usize)) -> Matrix {
    let plan: Vec<(String, Column)> = columns(&options.modes)
        .into_iter()
        .flat_map(|column| options.tests.iter().map(move |test| (test.clone(), column)))
        .collect();
    let all = plan.len();
    let mut running = stream::iter(plan.clone())
        .map(|(test, column)| cell::run(test, column, &options.recipe, &options.logs))
        .buffer_unordered(options.jobs.max(1));
    let mut cells = Vec::new();
    while let Some(cell) = running.next().await {
        progress(&cell, all);
        cells.push(cell);
    }
    let position =
        |cell: &Cell| plan.iter().position(|(test, column)| (test, column) == (&cell.test, &cell.column));
    cells.sort_by_key(position);
    let promises = promises::check(&cells, options.recipe.clustering);
    Matrix { smbd: options.recipe.tools.version().unwrap_or_default(), cells, promises }
}

/// The controls that the modes need, and the modes.
fn columns(modes: &[Mode]) -> Vec<Column> {
    let mut columns = vec![Column { servers: Servers::Alone, mode: Mode::Pin }];
    if modes.contains(&Mode::Kill) {
        columns.push(Column { servers: Servers::Unprotected, mode: Mode::Kill });
    }
    columns.extend(modes.iter().map(|&mode| Column { servers: Servers::Protected, mode }));
    columns
}
