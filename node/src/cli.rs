//! The command line: `holdfast run`, and the verbs that ask a running cluster.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::Config;
use crate::{check, daemon, query, telemetry};

/// Keeps the durable handles of SMB clients alive when their file server node dies.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the sidecar of this node until it is told to end (SIGTERM, SIGINT).
    Run {
        /// The configuration.
        #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG")]
        config: PathBuf,
    },
    /// Shows the cluster as one node sees it: who leads, which nodes are up, which shares they serve.
    Status(Target),
    /// Lists the opens that would survive the death of their node.
    Handles {
        #[command(flatten)]
        target: Target,
        /// Only opens of this share.
        #[arg(long)]
        share: Option<String>,
        /// Only opens that live on this node.
        #[arg(long, value_name = "ID")]
        node: Option<u64>,
        /// Only opens whose clients are away.
        #[arg(long)]
        disconnected: bool,
    },
    /// Shows what has happened in the cluster: breaks, nodes that came and went, opens that were closed.
    Events {
        #[command(flatten)]
        target: Target,
        /// Only events after the one with this number. Without it and without --follow: all that are remembered.
        #[arg(long, value_name = "N")]
        after: Option<u64>,
        /// Goes on with what happens next; without --after, begins with that.
        #[arg(long)]
        follow: bool,
    },
    /// Looks at the Samba beside this node.
    #[command(subcommand)]
    Samba(SambaVerb),
}

#[derive(Debug, Subcommand)]
enum SambaVerb {
    /// Tells whether this node's smbd, smb.conf, identity and shim are right, and what to change. Changes nothing.
    Check {
        /// The sidecar's configuration.
        #[arg(
            long,
            value_name = "FILE",
            env = "HOLDFAST_CONFIG",
            default_value = "/etc/holdfast/holdfast.toml"
        )]
        config: PathBuf,
        /// The library that smbd is to preload.
        #[arg(long, value_name = "FILE", default_value = "/usr/lib/holdfast/libholdfast_tdb.so")]
        shim: PathBuf,
        /// What this command printed with --output json on another node: what has to be the same is compared. May be given
        /// once for each node.
        #[arg(long, value_name = "FILE")]
        compare: Vec<PathBuf>,
        /// How to show what was found.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Whom to ask, and how to show the answer.
#[derive(Debug, Args)]
pub struct Target {
    /// The node to ask, as host:port.
    #[arg(long, value_name = "HOST:PORT", env = "HOLDFAST_ADDRESS", conflicts_with = "config")]
    pub address: Option<String>,
    /// Ask this node's own sidecar, found by its configuration.
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG", default_value = "/etc/holdfast/holdfast.toml")]
    pub config: PathBuf,
    /// How to show the answer.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// How to show an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON document; of events, one a line.
    Json,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Run { config } => run(&config),
        Verb::Status(target) => query::status(&target),
        Verb::Handles { target, share, node, disconnected } => {
            query::handles(&target, query::HandlesFilter { share, node, disconnected })
        }
        Verb::Events { target, after, follow } => query::events(&target, after, follow),
        Verb::Samba(SambaVerb::Check { config, shim, compare, output }) => {
            check::samba(&check::Subject { config, shim, compare }, output)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is where the log goes too; a command that failed says why there, and nothing else.
            eprintln!("holdfast: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &std::path::Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    telemetry::init(&config.node.log)?;
    daemon::run(config)
}
