//! What the `main` of every program of the harness does.

use std::{error::Error, process::ExitCode};

use clap::Parser;
use tokio::{runtime::Runtime, select, signal};

/// The conventional exit code of a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Runs this process as `holdfast` if it was started to be that; otherwise does the work that its arguments ask for.
///
/// SIGINT ends the work by dropping it, and with it every server that it has started, and their files.
pub fn main<A, W>(work: impl FnOnce(A) -> W) -> ExitCode
where
    A: Parser,
    W: Future<Output = Result<ExitCode, Box<dyn Error>>>,
{
    if let Some(code) = crate::sidecar_main_if_asked() {
        return code;
    }
    let arguments = A::parse();
    let runtime = Runtime::new().expect("a process can start its threads");
    let ended = runtime.block_on(async {
        select! {
            ended = work(arguments) => ended,
            _ = signal::ctrl_c() => Ok(ExitCode::from(INTERRUPTED)),
        }
    });
    ended.unwrap_or_else(|err| {
        eprintln!("{}: {}", A::command().get_name(), node::telemetry::chain(err.as_ref()));
        ExitCode::FAILURE
    })
}
