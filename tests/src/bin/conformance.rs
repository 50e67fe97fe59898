//! Samba's own tests of durable handles in front of nodes that die, and whether what comes of it is what is
//! promised: see [`harness::conformance`].

#![expect(clippy::print_stdout, reason = "a table for people is what this program is for")]

use std::{error::Error, fs, path::PathBuf, process::ExitCode, time::Instant};

use clap::{Parser, ValueEnum};
use harness::{
    cluster::Clustering,
    conformance::{self, Options, RECLAIM_TESTS, Recipe, SUITES},
    proxy::Mode,
    samba::SambaTools,
    smbtorture,
};
use wildmatch::WildMatch;

/// Runs smbtorture's durable tests against nodes that are moved, cut off and killed under it.
///
/// The exit code is 0 if every promise that was checked has held, and 1 otherwise.
#[derive(Debug, Parser)]
#[command(name = "conformance")]
struct Arguments {
    /// The version of Samba, such as 4.22, in a root that `tests/roots/make` has made; otherwise this machine's.
    #[arg(long, value_name = "VERSION")]
    samba: Option<String>,
    /// Let the nodes be one clustered Samba, with a ctdbd beside each smbd; otherwise they are separate ones.
    #[arg(long)]
    ctdb: bool,
    /// What happens to the nodes.
    #[arg(long, value_delimiter = ',', default_values_t = Mode::value_variants().to_vec())]
    modes: Vec<Mode>,
    /// Only tests whose names match.
    #[arg(long, value_name = "GLOB", default_value = "*")]
    tests: String,
    /// Only the tests that must survive the death of their node, and only that: what continuous integration runs.
    #[arg(long)]
    short: bool,
    /// Let every reconnect of a test be another crash, up to so many. Killed nodes come back meanwhile.
    #[arg(long, value_name = "N", default_value_t = 1)]
    kills: usize,
    /// How many tests run at the same time.
    #[arg(long, value_name = "N", default_value_t = 2)]
    jobs: usize,
    /// Also write the matrix as a JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave there what smbtorture, the proxy, the smbds and the sidecars have said of each test.
    #[arg(long, value_name = "DIRECTORY")]
    logs: Option<PathBuf>,
    /// Samba's log level.
    #[arg(long, value_name = "LEVEL", default_value_t = 0)]
    log_level: u8,
}

fn main() -> ExitCode {
    harness::program::main(run)
}

async fn run(arguments: Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let tools = arguments.samba.as_deref().map_or_else(SambaTools::find, SambaTools::in_root)?;
    let mut tests = smbtorture::list(&tools, SUITES)?;
    let wanted = WildMatch::new(&arguments.tests);
    tests.retain(|test| wanted.matches(test));
    let mut modes = arguments.modes.clone();
    if arguments.short {
        tests.retain(|test| RECLAIM_TESTS.contains(&test.as_str()));
        modes = vec![Mode::Kill];
    }
    let options = Options {
        recipe: Recipe {
            program: std::env::current_exe()?,
            tools,
            clustering: if arguments.ctdb { Clustering::Ctdb } else { Clustering::Separate },
            kills: arguments.kills,
            log_level: arguments.log_level,
        },
        tests,
        modes,
        jobs: arguments.jobs,
        logs: arguments.logs.clone(),
    };

    let began = Instant::now();
    let mut done = 0;
    let matrix = conformance::run(&options, |cell, all| {
        done += 1;
        let (column, test, short) = (cell.column.to_string(), &cell.test, conformance::in_short(cell));
        let elapsed = began.elapsed().as_secs_f64();
        eprintln!("[{done:>3}/{all}] {elapsed:>5.0} s  {column:<16} {test:<55} {short}");
    })
    .await;

    println!("Samba {}\n\n{}\n", matrix.smbd, conformance::table(&matrix));
    for promise in &matrix.promises {
        let verdict = if promise.held() { "held  " } else { "BROKEN" };
        println!("{verdict}  {} ({})", promise.text, promise.seen);
        for broken in &promise.broken {
            println!("          {broken}");
        }
    }
    if let Some(path) = &arguments.json {
        fs::write(path, format!("{:#}\n", conformance::document(&matrix)))?;
    }
    let held = matrix.promises.iter().all(conformance::Promise::held);
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
