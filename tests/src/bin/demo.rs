//! The story of Holdfast in a few seconds: three nodes on loopback, real `smbd`s, a client that holds files
//! open, and a SIGKILL for the node that has them and leads the cluster.

#![expect(clippy::print_stdout, reason = "to be read on a terminal is what a demo is for")]

use std::{error::Error, fs, path::PathBuf, process::ExitCode};

use clap::Parser;
use harness::{samba::SambaTools, story::Story};
use serde_json::json;

/// Kills the file server node that holds a client's open files, and shows that the client gets them back on
/// another node.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Also write what happened, and when, as a JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The conventional exit code of a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    if let Some(code) = harness::sidecar_main_if_asked() {
        return code;
    }
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Runtime::new().expect("a process can start its threads");
    let told = runtime.block_on(async {
        tokio::select! {
            told = tell(&arguments) => told,
            // The story is dropped, and with it the cluster and its files.
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(INTERRUPTED)),
        }
    });
    told.unwrap_or_else(|err| {
        let causes = std::iter::successors(err.source(), |&err| err.source()).map(|err| format!(": {err}"));
        eprintln!("demo: {err}{}", causes.collect::<String>());
        ExitCode::FAILURE
    })
}

async fn tell(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let tools = SambaTools::find()?;
    println!(
        "Three nodes on loopback, each a sidecar beside a real smbd {}.",
        tools.version().unwrap_or_default()
    );
    let program = std::env::current_exe()?;
    let mut story = Story::begin(program, tools).await?;
    println!("  node {} leads the Raft group; a client opens its files there:\n", story.victim());
    for file in story.files() {
        println!("    {:<12} {}", file.path, file.granted);
    }

    println!("\nSIGKILL to node {}: smbd, its children and the sidecar, all at once.", story.victim());
    let ending = story.kill_and_reclaim().await?;
    println!("The client turns to node {}:\n", ending.survivor);
    for (phase, after) in ending.phases() {
        println!("    {:>7.1} ms  {phase}", after.as_secs_f64() * 1000.0);
    }
    println!();
    for file in &ending.files {
        match &file.broken {
            None => println!("    {:<12} handle {:#010x} and all that came with it", file.path, file.id),
            Some(what) => println!("    {:<12} LOST: {what}", file.path),
        }
    }

    if let Some(path) = &arguments.json {
        let phases: serde_json::Map<_, _> = ending
            .phases()
            .map(|(phase, after)| (phase.to_owned(), json!(after.as_secs_f64() * 1000.0)))
            .collect();
        let files: Vec<_> = ending
            .files
            .iter()
            .map(|file| json!({ "path": file.path, "persistent_id": file.id, "kept": file.broken.is_none(), "broken": file.broken }))
            .collect();
        let document = json!({
            "victim": story.victim(),
            "survivor": ending.survivor,
            "milliseconds_after_kill": phases,
            "files": files,
        });
        fs::write(path, format!("{document:#}\n"))?;
    }
    let lost = ending.files.iter().filter(|file| file.broken.is_some()).count();
    println!("\n{} of {} handles survived their node.", ending.files.len() - lost, ending.files.len());
    Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
