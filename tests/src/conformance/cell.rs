//! One test in one mode, on fresh servers.

use std::{
    fmt, fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::time;

use super::{
    nodes::{Nodes, Recipe, Servers},
    path::Path,
    witness::Witness,
};
use crate::{
    proxy::{Mode, Plan, Proxy},
    smbtorture::{self, SmbtortureError, Verdict},
};

/// How long one test may take. The slowest takes twenty seconds on a quiet machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a test may take with its servers' beginning and end, all of which have limits of their own. It is there
/// so that a mistake in the harness is found as one.
const CELL_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a node that was cut off is watched after it must have stopped.
const OBSERVED_LONGER: Duration = Duration::from_secs(2);

/// Why a test failed that broke off.
const NO_VERDICT: &str = "smbtorture gave no verdict";

/// A column of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Who is tested.
    pub servers: Servers,
    /// What happens to them.
    pub mode: Mode,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.servers {
            Servers::Alone => f.write_str("alone"),
            Servers::Unprotected => write!(f, "unprotected-{}", self.mode),
            Servers::Protected => write!(f, "{}", self.mode),
        }
    }
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It did what the client expects.
    Pass,
    /// It did something else.
    Fail,
    /// It does not apply.
    Skip,
    /// It did not end.
    Hang,
    /// There is no result: the harness could not do what it wanted.
    Broken,
}

impl Ending {
    /// In a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Skip => "skip",
            Self::Hang => "HANG",
            Self::Broken => "broken",
        }
    }
}

/// One test in one mode, and what came of it.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The test.
    pub test: String,
    /// The mode, and the servers.
    pub column: Column,
    /// How it ended.
    pub ending: Ending,
    /// What `smbtorture`, or the harness, said if it did not pass.
    pub reason: String,
    /// How long the test took, without its servers' beginning and end.
    pub took: Duration,
    /// The way of its connections.
    pub path: Path,
    /// What a node that was cut off went on serving.
    pub fence: Option<Fence>,
}

/// What is known of a node that was cut off.
#[derive(Clone, Copy, Debug)]
pub struct Fence {
    /// How long after that it served the newest request that it served at all.
    pub served_for: Duration,
    /// How long it may.
    pub allowed: Duration,
}

impl Cell {
    /// It passed, and what its mode is about has happened.
    pub fn proves(&self) -> bool {
        self.ending == Ending::Pass && self.path.shows(self.column.mode)
    }
}

/// Where logs are left, if they are wanted.
pub type LogDir = Option<PathBuf>;

/// Runs one test. It always ends, and whatever happens is in the cell.
pub(super) async fn run(test: String, column: Column, recipe: &Recipe, logs: &LogDir) -> Cell {
    let mut cell = Cell {
        test,
        column,
        ending: Ending::Broken,
        reason: String::new(),
        took: Duration::ZERO,
        path: Path::default(),
        fence: None,
    };
    match time::timeout(CELL_TIMEOUT, try_run(&mut cell, recipe, logs)).await {
        Ok(Ok(())) => {}
        Ok(Err(err)) => cell.break_off(node::telemetry::chain(err.as_ref()).to_string()),
        Err(_) => cell.break_off(format!("servers and test together did not end within {CELL_TIMEOUT:?}")),
    }
    cell
}

impl Cell {
    fn break_off(&mut self, reason: String) {
        self.ending = Ending::Broken;
        self.reason = reason;
    }
}

async fn try_run(cell: &mut Cell, recipe: &Recipe, logs: &LogDir) -> Result<(), Box<dyn std::error::Error>> {
    let is_partition = cell.column.mode == Mode::Partition;
    let nodes = Nodes::start(cell.column.servers, is_partition, recipe).await?;
    let witness = match nodes.addresses()[0] {
        lost if is_partition => {
            Some(Witness::start(nodes.site().credentials(), lost, nodes.share(0).await).await?)
        }
        _ => None,
    };
    // A node that is cut off does not come back, and with a second one there would be no quorum.
    let harms_max = if is_partition { 1 } else { recipe.kills };
    let plan = Plan { mode: cell.column.mode, harms_max };
    let proxy = Proxy::start(plan, nodes.addresses(), nodes.hurt()).await?;

    let began = Instant::now();
    let said = smbtorture::run(nodes.site(), proxy.address(), &cell.test, TEST_TIMEOUT).await;
    cell.took = began.elapsed();
    cell.path = Path(proxy.log());
    if let Some((witness, cut_off_at)) = witness.zip(nodes.cut_off_at()) {
        let allowed = nodes.fence_after();
        // The proxy still holds the client's old connection open.
        time::sleep_until((cut_off_at + allowed + OBSERVED_LONGER).into()).await;
        let served_for = witness.newest_served().saturating_duration_since(cut_off_at);
        cell.fence = Some(Fence { served_for, allowed });
    }
    drop(proxy);
    let output;
    (cell.ending, output) = match said {
        Ok(report) => (report.verdict.into(), report.output),
        Err(SmbtortureError::TimedOut { output, .. }) => (Ending::Hang, output),
        Err(err) => return Err(err.into()),
    };
    cell.reason = match cell.ending {
        Ending::Pass => String::new(),
        _ => smbtorture::explanation(&output).unwrap_or_else(|| NO_VERDICT.to_owned()),
    };
    if let Some(problem) = cell.path.harm_failed() {
        let problem = problem.to_owned();
        cell.break_off(problem);
    }
    if let Some(logs) = logs {
        let dir = logs.join(format!("{}.{}", cell.test, cell.column));
        keep_logs(&nodes, &dir, &output, &cell.path).await?;
    }
    Ok(nodes.end().await?)
}

/// Copies everything that was said into a directory.
async fn keep_logs(nodes: &Nodes, dir: &std::path::Path, output: &str, path: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("smbtorture"), output)?;
    let path: String = path.0.iter().map(|event| format!("{event}\n")).collect();
    fs::write(dir.join("proxy"), path)?;
    nodes.copy_logs(dir).await
}

impl From<Verdict> for Ending {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Success => Self::Pass,
            // An error is a failure at a place where the test has no words for it.
            Verdict::Failure | Verdict::Error => Self::Fail,
            Verdict::Skip => Self::Skip,
        }
    }
}
