//! The story of Holdfast in a few seconds: three nodes on loopback, real `smbd`s, a client that holds files
//! open, and a SIGKILL for the node that has them and leads the cluster.

#![expect(clippy::print_stdout, reason = "to be read on a terminal is what a demo is for")]

use std::{error::Error, fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use harness::{
    cluster::node_id,
    samba::SambaTools,
    stand_in::StandInStory,
    story::{Ending, Reclaimed, Story},
};
use serde_json::json;

/// Kills the file server node that holds a client's open files, and shows that the client gets them back on
/// another node.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Use the stand-in for smbd even if Samba is installed.
    #[arg(long)]
    stand_in: bool,
    /// Also write what happened, and when, as a JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    harness::program::main(tell)
}

async fn tell(arguments: Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let (victim, ending) = match SambaTools::find() {
        _ if arguments.stand_in => without_samba(program).await?,
        Ok(tools) => with_samba(program, tools).await?,
        Err(missing) => {
            println!("No Samba here, so a stand-in for smbd tells the story over gRPC.");
            println!("For the real one: {missing}.\n");
            without_samba(program).await?
        }
    };
    println!("The client turns to node {}:\n", node_id(ending.survivor));
    for (phase, after) in ending.phases() {
        println!("    {:>7.1} ms  {phase}", milliseconds(after));
    }
    println!();
    for file in &ending.files {
        match &file.broken {
            None => println!("    {:<12} handle {:#010x} and all that came with it", file.path, file.id),
            Some(what) => println!("    {:<12} LOST: {what}", file.path),
        }
    }
    if let Some(path) = &arguments.json {
        fs::write(path, format!("{:#}\n", document(victim, &ending)))?;
    }
    let lost = ending.files.iter().filter(|file| file.broken.is_some()).count();
    println!("\n{} of {} handles survived their node.", ending.files.len() - lost, ending.files.len());
    Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn with_samba(program: PathBuf, tools: SambaTools) -> Result<(usize, Ending), Box<dyn Error>> {
    let version = tools.version().unwrap_or_default();
    println!("Three nodes on loopback, each a sidecar beside a real smbd {version}.");
    let mut story = Story::begin(program, tools).await?;
    let victim = story.victim();
    before_the_kill(victim, story.files().iter().map(|file| (file.path, file.granted)));
    Ok((victim, story.kill_and_reclaim().await?))
}

async fn without_samba(program: PathBuf) -> Result<(usize, Ending), Box<dyn Error>> {
    println!("Three nodes on loopback, each a sidecar beside a stand-in.");
    let story = StandInStory::begin(program).await?;
    let (victim, files) = (story.victim(), story.files());
    before_the_kill(victim, files.iter().map(|(path, granted)| (path.as_str(), granted.as_str())));
    Ok((victim, story.kill_and_reclaim().await?))
}

fn before_the_kill<'a>(victim: usize, files: impl Iterator<Item = (&'a str, &'a str)>) {
    let victim = node_id(victim);
    println!("  node {victim} leads the Raft group; a client opens its files there:\n");
    for (path, granted) in files {
        println!("    {path:<12} {granted}");
    }
    println!("\nSIGKILL to node {victim}: its SMB service and its sidecar, all at once.");
}

fn document(victim: usize, ending: &Ending) -> serde_json::Value {
    let phases: serde_json::Map<_, _> =
        ending.phases().map(|(phase, after)| (phase.to_owned(), json!(milliseconds(after)))).collect();
    let file = |file: &Reclaimed| json!({ "path": file.path, "persistent_id": file.id, "kept": file.broken.is_none(), "broken": file.broken });
    json!({
        "victim": node_id(victim),
        "survivor": node_id(ending.survivor),
        "milliseconds_after_kill": phases,
        "files": ending.files.iter().map(file).collect::<Vec<_>>(),
    })
}

fn milliseconds(length: Duration) -> f64 {
    length.as_secs_f64() * 1000.0
}
