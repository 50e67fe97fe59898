//! What Holdfast costs and how soon it helps, measured on one machine in one run.
//!
//! - *Latency*: the same CREATE and CLOSE, in turn, on a plain `smbd` and on one that a cluster of three
//!   protects. Taking turns is what makes the difference mean something on a machine that does other things
//!   too.
//! - *Failover*: the node that serves the client and leads the Raft group gets SIGKILL, again and again; from
//!   the signal to the moment at which the client has claimed and checked all its files on another node.

#![expect(clippy::print_stdout, reason = "to be read on a terminal is what a benchmark is for")]

use std::{error::Error, fs, path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use harness::{
    cluster::{Cluster, ClusterOptions},
    samba::{SambaSite, SambaTools, SmbdOptions},
    smb_client::{Client, CreateRequest, LockElement, Tree},
    story::Story,
};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Measures what Holdfast adds to an open, and the time from a node's death to the client's reclaim.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// How many opens of each kind to time on each server; 0 leaves the part out.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    creates: usize,
    /// How many times to kill the leading node under a client; 0 leaves the part out.
    #[arg(long, value_name = "N", default_value_t = 50)]
    kills: usize,
    /// Also write the figures as a JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Opens before the first one that counts: caches fill, connections are made.
const WARM_UP: usize = 50;

fn main() -> ExitCode {
    if let Some(code) = harness::sidecar_main_if_asked() {
        return code;
    }
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Runtime::new().expect("a process can start its threads");
    match runtime.block_on(measure(&arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {}", node::telemetry::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let tools = SambaTools::find()?;
    let mut document = json!({ "smbd": tools.version() });
    if arguments.creates > 0 {
        document["latency_ms"] = latency(tools.clone(), arguments.creates).await?;
    }
    let mut lost = 0;
    if arguments.kills > 0 {
        let failover = failover(tools, arguments.kills).await?;
        lost = failover["lost"].as_u64().unwrap_or_default();
        document["failover"] = failover;
    }
    if let Some(path) = &arguments.json {
        fs::write(path, format!("{document:#}\n"))?;
    }
    Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is timed.
const OPERATIONS: [&str; 5] = ["durable create", "lock", "unlock", "durable close", "plain create + close"];

/// One server's times, in µs, by operation.
struct Times([Histogram<u64>; OPERATIONS.len()]);

impl Times {
    fn new() -> Result<Self, hdrhistogram::CreationError> {
        let mut histograms = Vec::new();
        for _ in OPERATIONS {
            histograms.push(Histogram::new(3)?);
        }
        Ok(Self(histograms.try_into().expect("one for each operation")))
    }

    /// Goes through all operations once, on a file of its own.
    async fn sample(&mut self, share: &Tree, path: &str, counts: bool) -> Result<(), Box<dyn Error>> {
        let mut lap = Lap { started: Instant::now(), times: Vec::with_capacity(OPERATIONS.len()) };
        let open = share.create(CreateRequest::durable_v2_with_lease(path)).await?;
        lap.end();
        if !open.is_durable() {
            return Err("the server granted no durable handle: there is nothing to compare".into());
        }
        open.lock(&[LockElement::exclusive(0, 1)]).await?;
        lap.end();
        open.lock(&[LockElement::unlock(0, 1)]).await?;
        lap.end();
        open.close().await?;
        lap.end();
        share.create(CreateRequest::new(path)).await?.close().await?;
        lap.end();
        if counts {
            for (histogram, time) in self.0.iter_mut().zip(lap.times) {
                histogram.record(time)?;
            }
        }
        Ok(())
    }
}

/// A stop-watch that goes on.
struct Lap {
    started: Instant,
    times: Vec<u64>,
}

impl Lap {
    fn end(&mut self) {
        let now = Instant::now();
        self.times.push(u64::try_from((now - self.started).as_micros()).unwrap_or(u64::MAX));
        self.started = now;
    }
}

async fn latency(tools: SambaTools, samples: usize) -> Result<Value, Box<dyn Error>> {
    let plain_site = SambaSite::new(tools.clone())?;
    let mut plain = plain_site.smbd("plain", SmbdOptions::default())?;
    plain.start().await?;
    let mut cluster = Cluster::start(ClusterOptions::with_samba(std::env::current_exe()?, tools)).await?;
    let leader = cluster.leader().await?;
    let follower = (leader + 1) % cluster.len();

    let on_plain = connect(&Client::new(plain_site.credentials()), plain.address(), &plain.share()).await?;
    let client = Client::new(cluster.credentials());
    let on_follower = connect(&client, cluster.smb_address(follower), &cluster.share(follower)).await?;
    let servers = [("without Holdfast", &on_plain), ("with Holdfast", &on_follower)];

    let mut times = [Times::new()?, Times::new()?];
    for sample in 0..WARM_UP + samples {
        // Each server is the first one every other time.
        for turn in 0..servers.len() {
            let server = (sample + turn) % servers.len();
            let path = format!("bench-{}", sample % 100);
            times[server].sample(servers[server].1, &path, sample >= WARM_UP).await?;
        }
    }

    println!("Latency in ms, {samples} samples each, in turn; the protected smbd is beside a follower.\n");
    println!("    {:<22} {:>18} {:>18} {:>10}", "", servers[0].0, servers[1].0, "added");
    println!("    {:<22} {:>9}{:>9} {:>9}{:>9} {:>10}", "", "p50", "p99", "p50", "p99", "p50");
    let mut document = json!({ "samples": samples });
    for (index, operation) in OPERATIONS.into_iter().enumerate() {
        let [without, with] = [0, 1].map(|server: usize| {
            let histogram = &times[server].0[index];
            [0.5, 0.99].map(|quantile| milliseconds(histogram.value_at_quantile(quantile)))
        });
        let added = with[0] - without[0];
        println!(
            "    {operation:<22} {:>9.2}{:>9.2} {:>9.2}{:>9.2} {added:>10.2}",
            without[0], without[1], with[0], with[1]
        );
        document[operation] = json!({
            "without": { "p50": without[0], "p99": without[1] },
            "with": { "p50": with[0], "p99": with[1] },
            "added_p50": added,
        });
    }
    println!();
    Ok(document)
}

async fn connect(client: &Client, server: std::net::SocketAddr, share: &str) -> Result<Tree, Box<dyn Error>> {
    Ok(client.connect(server).await?.tree_connect(share).await?)
}

async fn failover(tools: SambaTools, kills: usize) -> Result<Value, Box<dyn Error>> {
    let mut story = Story::begin(std::env::current_exe()?, tools).await?;
    let mut phases: Vec<(&'static str, Histogram<u64>)> = Vec::new();
    let (mut reclaimed, mut lost) = (0, 0);
    for kill in 0..kills {
        if kill > 0 {
            story.begin_again().await?;
        }
        let ending = story.kill_and_reclaim().await?;
        for (phase, after) in ending.phases() {
            let micros = u64::try_from(after.as_micros())?;
            match phases.iter_mut().find(|(known, _)| *known == phase) {
                Some((_, histogram)) => histogram.record(micros)?,
                None => {
                    let mut histogram = Histogram::new(3)?;
                    histogram.record(micros)?;
                    phases.push((phase, histogram));
                }
            }
        }
        for file in &ending.files {
            match &file.broken {
                None => reclaimed += 1,
                Some(what) => {
                    lost += 1;
                    println!("    kill {kill}: {} is LOST: {what}", file.path);
                }
            }
        }
    }
    println!(
        "Failover, {kills} kills of the node that serves and leads: {reclaimed} handles reclaimed, {lost} lost."
    );
    println!("Milliseconds after SIGKILL:\n\n    {:<66} {:>8} {:>8} {:>8}", "", "p50", "p99", "max");
    let mut document = json!({ "kills": kills, "reclaimed": reclaimed, "lost": lost });
    for (phase, histogram) in &phases {
        let [p50, p99, max] =
            [0.5, 0.99, 1.0].map(|quantile| milliseconds(histogram.value_at_quantile(quantile)));
        println!("    {phase:<66} {p50:>8.0} {p99:>8.0} {max:>8.0}");
        document["milliseconds_after_kill"][*phase] = json!({ "p50": p50, "p99": p99, "max": max });
    }
    Ok(document)
}

fn milliseconds(micros: u64) -> f64 {
    std::time::Duration::from_micros(micros).as_secs_f64() * 1000.0
}
