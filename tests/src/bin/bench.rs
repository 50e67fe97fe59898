//! What Holdfast costs and how soon it helps, measured on one machine in one run.
//!
//! - *Latency*: the same CREATE and CLOSE, in turn, on a plain `smbd` and on one that a cluster of three
//!   protects. Taking turns is what makes the difference mean something on a machine that does other things
//!   too.
//! - *Throughput*: how many files a second can be opened and closed on many connections, each with one request
//!   under way, on the same two servers in turn.
//! - *Failover*: the node that serves the client and leads the Raft group gets SIGKILL, again and again; from
//!   the signal to the moment at which the client has claimed and checked all its files on another node.

#![expect(clippy::print_stdout, reason = "to be read on a terminal is what a benchmark is for")]

use std::{
    error::Error,
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use futures::future::try_join_all;
use harness::{
    cluster::{Cluster, ClusterOptions},
    samba::{SambaSite, SambaTools, Smbd, SmbdOptions},
    smb_client::{Client, CreateRequest, Credentials, LockElement, SmbError, Tree},
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
    /// How long to count opens on each server and of each kind, in seconds; 0 leaves the part out.
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
    /// On how many connections at the same time.
    #[arg(long, value_name = "N", default_value_t = 16)]
    connections: usize,
    /// Only these parts.
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Also write the figures as a JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One client, one request after the other.
    Latency,
    /// Many connections.
    Throughput,
    /// From a node's death to the client's reclaim.
    Failover,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
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
    if arguments.wants(Part::Latency) && arguments.creates > 0 {
        document["latency_ms"] = latency(tools.clone(), arguments.creates).await?;
    }
    if arguments.wants(Part::Throughput) && arguments.seconds > 0 {
        let time = Duration::from_secs(arguments.seconds);
        document["per_second"] = throughput(tools.clone(), arguments.connections, time).await?;
    }
    let mut lost = 0;
    if arguments.wants(Part::Failover) && arguments.kills > 0 {
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

/// A plain `smbd`, and a cluster of three whose followers are measured: most nodes follow.
struct Servers {
    plain_site: SambaSite,
    plain: Smbd,
    cluster: Cluster,
    follower: usize,
}

/// In the order of [`Servers::all`].
const SERVERS: [&str; 2] = ["without Holdfast", "with Holdfast"];

impl Servers {
    async fn start(tools: SambaTools) -> Result<Self, Box<dyn Error>> {
        let plain_site = SambaSite::new(tools.clone())?;
        let mut plain = plain_site.smbd("plain", SmbdOptions::default())?;
        plain.start().await?;
        let mut cluster = Cluster::start(ClusterOptions::with_samba(std::env::current_exe()?, tools)).await?;
        let follower = (cluster.leader().await? + 1) % cluster.len();
        Ok(Self { plain_site, plain, cluster, follower })
    }

    fn all(&self) -> [Server; SERVERS.len()] {
        let (cluster, follower) = (&self.cluster, self.follower);
        [
            Server {
                credentials: self.plain_site.credentials(),
                address: self.plain.address(),
                share: self.plain.share(),
            },
            Server {
                credentials: cluster.credentials(),
                address: cluster.smb_address(follower),
                share: cluster.share(follower),
            },
        ]
    }
}

/// Where to connect to.
struct Server {
    credentials: Credentials,
    address: SocketAddr,
    share: String,
}

impl Server {
    /// A connection of its own, as a client machine of its own.
    async fn connect(&self) -> Result<Tree, SmbError> {
        let client = Client::new(self.credentials.clone());
        client.connect(self.address).await?.tree_connect(&self.share).await
    }
}

async fn latency(tools: SambaTools, samples: usize) -> Result<Value, Box<dyn Error>> {
    let servers = Servers::start(tools).await?;
    let [plain, protected] = servers.all();
    let shares = [plain.connect().await?, protected.connect().await?];

    let mut times = [Times::new()?, Times::new()?];
    for sample in 0..WARM_UP + samples {
        // Each server is the first one every other time.
        for turn in 0..shares.len() {
            let server = (sample + turn) % shares.len();
            let path = format!("bench-{}", sample % 100);
            times[server].sample(&shares[server], &path, sample >= WARM_UP).await?;
        }
    }

    println!("Latency in ms, {samples} samples each, in turn; the protected smbd is beside a follower.\n");
    println!("    {:<22} {:>18} {:>18} {:>10}", "", SERVERS[0], SERVERS[1], "added");
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

/// How long a server is asked before it is the other one's turn.
const TURN: Duration = Duration::from_secs(1);

/// What is counted, and whether it begins with a durable CREATE.
const KINDS: [(&str, bool); 2] = [("durable create + close", true), ("plain create + close", false)];

async fn throughput(tools: SambaTools, connections: usize, time: Duration) -> Result<Value, Box<dyn Error>> {
    let servers = Servers::start(tools).await?;
    let mut shares = Vec::new();
    for server in servers.all() {
        shares.push(try_join_all((0..connections).map(|_| server.connect())).await?);
    }
    println!(
        "Per second on {connections} connections, {} s each, in turns of {} s.\n",
        time.as_secs(),
        TURN.as_secs()
    );
    println!("    {:<22} {:>18} {:>18} {:>10}", "", SERVERS[0], SERVERS[1], "ratio");
    let mut document = json!({ "connections": connections, "seconds": time.as_secs() });
    for (kind, durable) in KINDS {
        let request = if durable { CreateRequest::durable_v2_with_lease } else { CreateRequest::new };
        let (mut done, mut elapsed) = ([0_usize; SERVERS.len()], [Duration::ZERO; SERVERS.len()]);
        while elapsed.iter().any(|elapsed| *elapsed < time) {
            for (server, shares) in shares.iter().enumerate() {
                let started = Instant::now();
                let turn = shares.iter().enumerate().map(async |(number, share)| {
                    let mut done = 0;
                    while started.elapsed() < TURN {
                        share.create(request(format!("bench-{number}"))).await?.close().await?;
                        done += 1;
                    }
                    Ok::<_, SmbError>(done)
                });
                done[server] += try_join_all(turn).await?.into_iter().sum::<usize>();
                elapsed[server] += started.elapsed();
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "nobody opens 2^52 files in a benchmark")]
        let [without, with] = [0, 1].map(|server: usize| done[server] as f64 / elapsed[server].as_secs_f64());
        let ratio = with / without;
        println!("    {kind:<22} {without:>18.0} {with:>18.0} {ratio:>10.2}");
        document[kind] = json!({ "without": without, "with": with, "ratio": ratio });
    }
    println!();
    Ok(document)
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
    Duration::from_micros(micros).as_secs_f64() * 1000.0
}
