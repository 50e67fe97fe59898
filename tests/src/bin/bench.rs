//! What Holdfast costs and how soon it helps, measured on one machine in one run; and the same of what else there is.
//!
//! - *Latency*: the same CREATE and CLOSE, in turn, on a server without and one with. Taking turns is what makes the
//!   difference mean something on a machine that does other things too.
//! - *Throughput*: how many files a second can be opened and closed on many connections, each with one request
//!   under way, on the same two servers in turn.
//! - *Failover*: the node that serves the client and leads the Raft group gets SIGKILL, again and again; from
//!   the signal to the moment at which the client has claimed and checked all its files on another node.
//! - *Deaths*: the same for different nodes and signals, and beside it how long CTDB's own recovery takes.
//!
//! `--side-by-side` does all of it for every [`Contest`]; what cannot be had on this machine is said, not guessed.

#![expect(clippy::print_stdout, reason = "to be read on a terminal is what a benchmark is for")]

use std::{
    error::Error,
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use futures::future::try_join_all;
use harness::{
    contest::{Blow, Contest, Pair, Trials},
    samba::SambaTools,
    smb_client::{CreateRequest, LockElement, SmbError, Tree},
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
    /// How often each blow falls on each cluster; 0 leaves the part out.
    #[arg(long, value_name = "N", default_value_t = 10)]
    deaths: usize,
    /// Only these parts.
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// What to compare with the same Samba without it.
    #[arg(long, value_name = "CONTEST", value_enum, value_delimiter = ',', default_values_t = [Contest::Holdfast])]
    contests: Vec<Contest>,
    /// Compare everything that there is.
    #[arg(long, conflicts_with = "contests")]
    side_by_side: bool,
    /// The version of Samba, such as 4.22, in a root that `tests/roots/make` has made; otherwise this machine's.
    #[arg(long, value_name = "VERSION")]
    samba: Option<String>,
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
    /// From the death of the node that serves and leads to the client's reclaim, with its phases.
    Failover,
    /// From different deaths to the client's reclaim. Left out unless asked for, or side by side.
    Deaths,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        match &self.only[..] {
            [] => part != Part::Deaths || self.side_by_side,
            only => only.contains(&part),
        }
    }

    fn contests(&self) -> &[Contest] {
        if self.side_by_side { Contest::value_variants() } else { &self.contests }
    }
}

/// Opens before the first one that counts: caches fill, connections are made.
const WARM_UP: usize = 50;

fn main() -> ExitCode {
    harness::program::main(measure)
}

async fn measure(arguments: Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let tools = arguments.samba.as_deref().map_or_else(SambaTools::find, SambaTools::in_root)?;
    let mut document = json!({ "smbd": tools.version() });
    let mut all_is_well = true;
    for &contest in arguments.contests() {
        let mut figures = json!({ "name": contest.to_string() });
        match contest.tools(&tools) {
            Ok(tools) => {
                println!("{contest}, smbd {}\n", tools.version().unwrap_or_default());
                figures["smbd"] = json!(tools.version());
                match measure_contest(&arguments, contest, &tools, &mut figures).await {
                    Ok(lost_here) => all_is_well &= lost_here == 0,
                    // What the others do is worth knowing all the same.
                    Err(error) => {
                        let error = node::telemetry::chain(error.as_ref()).to_string();
                        println!("{contest} is broken off: {error}\n");
                        figures["broken_off"] = json!(error);
                        all_is_well = false;
                    }
                }
            }
            Err(missing) => {
                let missing = node::telemetry::chain(&missing).to_string();
                println!("{contest} is left out: {missing}\n");
                figures["left_out"] = json!(missing);
            }
        }
        let name = contest.to_possible_value().map(|value| value.get_name().to_owned());
        document[name.unwrap_or_default()] = figures;
        // After each, so that a run that is broken off has not been for nothing.
        if let Some(path) = &arguments.json {
            fs::write(path, format!("{document:#}\n"))?;
        }
    }
    Ok(if all_is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures one contest. Returns how many handles Holdfast has lost.
async fn measure_contest(
    arguments: &Arguments,
    contest: Contest,
    tools: &SambaTools,
    figures: &mut Value,
) -> Result<u64, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    if arguments.wants(Part::Latency) && arguments.creates > 0 {
        let pair = Pair::start(contest, program.clone(), tools).await?;
        figures["latency_ms"] = latency(&pair, arguments.creates).await?;
    }
    if arguments.wants(Part::Throughput) && arguments.seconds > 0 {
        let pair = Pair::start(contest, program.clone(), tools).await?;
        let time = Duration::from_secs(arguments.seconds);
        figures["per_second"] = throughput(&pair, arguments.connections, time).await?;
    }
    let mut lost = 0;
    if arguments.wants(Part::Failover) && arguments.kills > 0 && contest == Contest::Holdfast {
        let failover = failover(program.clone(), tools.clone(), arguments.kills).await?;
        lost += failover["lost"].as_u64().unwrap_or_default();
        figures["failover"] = failover;
    }
    if arguments.wants(Part::Deaths)
        && arguments.deaths > 0
        && let Some(trials) = Trials::start(contest, program, tools).await?
    {
        let deaths = deaths(trials, arguments.deaths).await?;
        if contest.is_holdfast() {
            let counts = deaths.as_object().into_iter().flatten();
            lost += counts.filter_map(|(_, figures)| figures["lost"].as_u64()).sum::<u64>();
        }
        figures["deaths"] = deaths;
    }
    Ok(lost)
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
    async fn sample(
        &mut self,
        share: &Tree,
        durable: CreateRequest,
        counts: bool,
    ) -> Result<(), Box<dyn Error>> {
        let plain = CreateRequest::new(&durable.path);
        let mut lap = Lap { started: Instant::now(), times: Vec::with_capacity(OPERATIONS.len()) };
        let open = share.create(durable).await?;
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
        share.create(plain).await?.close().await?;
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

/// What a column of two is called.
const SERVERS: [&str; 2] = ["without", "with"];

async fn latency(pair: &Pair, samples: usize) -> Result<Value, Box<dyn Error>> {
    let shares = pair.connect().await?;
    let mut times = [Times::new()?, Times::new()?];
    for sample in 0..WARM_UP + samples {
        let mut requests = pair.requests(&format!("bench-{}", sample % 100)).map(Some);
        // Each server is the first one every other time.
        for turn in 0..shares.len() {
            let server = (sample + turn) % shares.len();
            let request = requests[server].take().expect("each has one turn");
            times[server].sample(&shares[server], request, sample >= WARM_UP).await?;
        }
    }

    println!("Latency in ms, {samples} samples each, in turn. Clients use a node that does not lead.\n");
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

async fn throughput(pair: &Pair, connections: usize, time: Duration) -> Result<Value, Box<dyn Error>> {
    let mut shares: [Vec<Tree>; 2] = Default::default();
    for _ in 0..connections {
        let [without, with] = pair.connect().await?;
        shares[0].push(without);
        shares[1].push(with);
    }
    println!(
        "Per second on {connections} connections, {} s each, in turns of {} s.\n",
        time.as_secs(),
        TURN.as_secs()
    );
    println!("    {:<22} {:>18} {:>18} {:>10}", "", SERVERS[0], SERVERS[1], "ratio");
    let mut document = json!({ "connections": connections, "seconds": time.as_secs() });
    for (kind, durable) in KINDS {
        let (mut done, mut elapsed) = ([0_usize; 2], [Duration::ZERO; 2]);
        while elapsed.iter().any(|elapsed| *elapsed < time) {
            for (server, shares) in shares.iter().enumerate() {
                let started = Instant::now();
                let turn = shares.iter().enumerate().map(async |(number, share)| {
                    let path = format!("bench-{number}");
                    let mut done = 0;
                    while started.elapsed() < TURN {
                        let [without, with] = pair.requests(&path);
                        let request = match durable {
                            false => CreateRequest::new(&path),
                            true => [without, with].into_iter().nth(server).expect("there are two"),
                        };
                        share.create(request).await?.close().await?;
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

async fn deaths(mut trials: Trials, times: usize) -> Result<Value, Box<dyn Error>> {
    println!(
        "Milliseconds from the signal until the client has all its handles; CTDB's own recovery beside it."
    );
    println!("A refusal is an answer after which a real client gives the handle up. {times} times each.\n");
    println!(
        "    {:<22} {:>8} {:>8} {:>8} {:>6} {:>9}   {:>8} {:>8} {:>8}",
        "", "p50", "p99", "max", "lost", "refusals", "CTDB p50", "p99", "max"
    );
    let mut document = json!({});
    for &blow in Blow::value_variants() {
        let (mut reclaimed, mut recovered) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
        let (mut lost, mut refusals) = (0, 0);
        for _ in 0..times {
            let ending = trials.trial(blow).await?;
            lost += ending.lost;
            refusals += ending.refusals;
            for (histogram, time) in
                [(&mut reclaimed, ending.reclaimed), (&mut recovered, ending.ctdb_recovered)]
            {
                if let Some(time) = time {
                    histogram.record(u64::try_from(time.as_micros())?)?;
                }
            }
        }
        let quantiles = |histogram: &Histogram<u64>| {
            [0.5, 0.99, 1.0].map(|quantile| milliseconds(histogram.value_at_quantile(quantile)))
        };
        let cells = |histogram: &Histogram<u64>| {
            let cells = quantiles(histogram).map(|time| format!("{time:>8.0}")).join(" ");
            if histogram.is_empty() { " ".repeat(cells.len()) } else { cells }
        };
        let name = blow.to_string();
        println!("    {name:<22} {} {lost:>6} {refusals:>9}   {}", cells(&reclaimed), cells(&recovered));
        let named = |histogram: &Histogram<u64>| {
            let [p50, p99, max] = quantiles(histogram);
            if histogram.is_empty() { Value::Null } else { json!({ "p50": p50, "p99": p99, "max": max }) }
        };
        document[name] = json!({
            "times": times,
            "lost": lost,
            "refusals": refusals,
            "ms_to_reclaimed": named(&reclaimed),
            "ms_to_ctdb_recovered": named(&recovered),
        });
    }
    println!();
    Ok(document)
}

async fn failover(program: PathBuf, tools: SambaTools, kills: usize) -> Result<Value, Box<dyn Error>> {
    let mut story = Story::begin(program, tools).await?;
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
    println!();
    Ok(document)
}

fn milliseconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64() * 1000.0
}
