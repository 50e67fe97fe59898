//! Nodes that die at random moments under clients at work, again and again: is anything lost that a client was
//! promised?

#![expect(clippy::print_stdout, reason = "the result is to be read on a terminal")]

use std::{error::Error, fs, path::PathBuf, process::ExitCode};

use clap::Parser;
use harness::{
    chaos::{self, Death, Options},
    cluster::ClusterOptions,
    samba::SambaTools,
};

/// Kills nodes under clients that hold thousands of durable opens, and keeps exact account of what the clients are
/// promised. The exit code is 0 only if every promise was kept.
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Arguments {
    /// How many blows.
    #[arg(long, value_name = "N", default_value_t = 50)]
    rounds: usize,
    /// Only blows of these kinds.
    #[arg(long, value_name = "DEATH", value_delimiter = ',')]
    only: Vec<Death>,
    /// Client machines.
    #[arg(long, value_name = "N", default_value_t = 20)]
    clients: usize,
    /// Opens that they hold together when a blow falls.
    #[arg(long, value_name = "N", default_value_t = 5000)]
    opens: usize,
    /// Shares of the same files, each with clients of its own.
    #[arg(long, value_name = "N", default_value_t = 2)]
    shares: usize,
    /// The version of Samba, such as 4.22, in a root that `tests/roots/make` has made; otherwise this machine's.
    #[arg(long, value_name = "VERSION")]
    samba: Option<String>,
    /// Let the nodes be one clustered Samba, with a ctdbd beside each smbd; otherwise they are separate ones.
    #[arg(long)]
    ctdb: bool,
    /// Leave Holdfast out: the control, which has to fail.
    #[arg(long)]
    unprotected: bool,
    /// What the schedule is made from; by default another one each time.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Give the nodes time, so that none is taken for dead on a machine that has other things to do.
    #[arg(long)]
    patient: bool,
    /// Where to keep logs and histories if a promise is broken; by default a folder that names the seed.
    #[arg(long, value_name = "FOLDER")]
    evidence: Option<PathBuf>,
    /// The sidecars' log filter.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    /// Samba's log level.
    #[arg(long, value_name = "LEVEL", default_value_t = 0)]
    log_level: u8,
    /// Also write the result as a JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    harness::program::main(unleash)
}

async fn unleash(arguments: Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let seed = arguments.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    println!("Seed {seed}.");
    let tools = arguments.samba.as_deref().map_or_else(SambaTools::find, SambaTools::in_root)?;
    let program = std::env::current_exe()?;
    let mut cluster = match arguments.ctdb {
        true => ClusterOptions::with_ctdb(program, tools),
        false => ClusterOptions::with_samba(program, tools),
    };
    if arguments.unprotected {
        cluster = cluster.unprotected();
    }
    if arguments.patient {
        cluster = cluster.patient();
    }
    cluster.log.clone_from(&arguments.log);
    cluster.smbd.log_level = arguments.log_level;
    let evidence = arguments.evidence.clone();
    let report = chaos::run(Options {
        seed,
        rounds: arguments.rounds,
        only: arguments.only,
        clients: arguments.clients,
        opens: arguments.opens,
        shares: arguments.shares,
        cluster,
        evidence: evidence
            .unwrap_or_else(|| std::env::temp_dir().join(format!("holdfast-chaos-seed-{seed}"))),
        verbose: true,
    })
    .await?;
    println!("{report}");
    if let Some(path) = &arguments.json {
        fs::write(path, format!("{:#}\n", report.json()))?;
    }
    Ok(if report.all_kept() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
