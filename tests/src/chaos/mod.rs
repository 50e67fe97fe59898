//! A cluster under load whose nodes die at random moments, and an exact account of what its clients were promised.
//!
//! Each round: clients open, write, lock, rename, close, until they hold as many opens as they are to hold, and go on
//! with it. Then a blow falls ([`Death`]). Every client whose connection is gone goes from node to node until one lets it
//! in, and claims all that it had. When all are back everybody stands still, and the world is compared with what is
//! known of it: each open is claimed a second time, at its own node and at another one, and the share is compared file
//! by file. Then the dead come back, and the next round begins.
//!
//! What is never tested here is speed: clients that come back late are fine, those that are told something wrong are
//! not. The times are reported.

mod files;
mod handle;
mod latecomer;
mod oracle;
mod report;
mod rivals;
mod schedule;
mod truth;
mod visits;
mod worker;
mod world;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all, stream};
use tokio::{net::TcpStream, task::JoinHandle, time};

pub use oracle::{Breach, Excuse, Tally, Violation};
pub use report::Report;
pub use schedule::{Death, Round};

use self::{
    files::{KnownFile, Presence},
    latecomer::Latecomer,
    oracle::Blow,
    rivals::{Register, Rival},
    truth::{Page, Reader, Writer},
    worker::Worker,
    world::{Arrival, Known, Phase, Seat, Traveller, World, share_at},
};
use crate::{
    cluster::{Cluster, ClusterError, ClusterOptions, Clustering},
    ctdb::Ctdbd,
    process::ProcessError,
    samba::{SHARE, SambaError},
    smb_client::{Client, CreateRequest},
};

/// How long clients may take until they hold what they are to hold, or are back, or stand still.
const ALL_TIMEOUT: Duration = Duration::from_secs(180);

/// Between two looks at the clients.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long a file that is to be deleted may take to go.
const DELETED_WITHIN: Duration = Duration::from_secs(10);

/// How long clients stay on a paused node before somebody tells them to leave.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a node that was paused and went on may take to stop serving.
const FENCED_WITHIN: Duration = Duration::from_secs(10);

/// Claims that one client has under way at a time when it claims what is held.
const PIPELINED: usize = 8;

/// How long a second connection may take to be let in. The node may be dead, paused, or serve another share.
const SECOND_CLAIM_TIMEOUT: Duration = Duration::from_secs(5);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Worker,
    Rival,
    Reader,
    Writer,
    Latecomer,
}

/// Clients with a special task in each share.
const SPECIALISTS: [Role; 6] =
    [Role::Rival, Role::Rival, Role::Rival, Role::Reader, Role::Writer, Role::Latecomer];

/// All clients, with the number of their share.
fn roles(workers: usize, shares: usize) -> Vec<(usize, Role)> {
    let workers = (0..workers).map(|number| (number % shares, Role::Worker));
    let specialists = (0..shares).flat_map(|share| SPECIALISTS.map(|role| (share, role)));
    workers.chain(specialists).collect()
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the schedule and the choices of all clients come from.
    pub seed: u64,
    /// How many blows.
    pub rounds: usize,
    /// Of which kinds; none is all.
    pub only: Vec<Death>,
    /// How many client machines work as users do. Beside them are those with a special task, six a share.
    pub clients: usize,
    /// How many opens those hold together when a blow falls.
    pub opens: usize,
    /// Shares, with clients of their own. Between separate `smbd`s each has a serving node of its own.
    pub shares: usize,
    /// The cluster, with Samba.
    pub cluster: ClusterOptions,
    /// A folder that is made if a promise is broken, for everything that helps to find out why.
    pub evidence: PathBuf,
    /// Say on standard error what happens.
    pub verbose: bool,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// The cluster does not work.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A process cannot be killed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A child of `smbd` cannot be found or killed.
    #[error(transparent)]
    Samba(#[from] SambaError),
    /// The files of the share, or the evidence.
    #[error("cannot use {}", path.display())]
    Files {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Runs the whole schedule.
pub async fn run(options: Options) -> Result<Report, ChaosError> {
    let mut chaos = Chaos::begin(options).await?;
    let rounds = schedule::schedule(chaos.options.seed, chaos.options.rounds, &chaos.options.only);
    for (number, mut round) in rounds.into_iter().enumerate() {
        if !chaos.options.cluster.protected && round.death.is_of_a_sidecar() {
            round.death = Death::Node;
        }
        chaos.world.oracle.count(|account| account.round = number + 1);
        chaos.round(number + 1, round).await?;
    }
    chaos.end().await
}

/// A run.
struct Chaos {
    // First, so that no client is left when the cluster goes.
    clients: Vec<JoinHandle<()>>,
    cluster: Cluster,
    world: Arc<World>,
    /// The names of the shares.
    shares: Vec<String>,
    options: Options,
    started: Instant,
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.clients.iter().for_each(JoinHandle::abort);
    }
}

impl Chaos {
    async fn begin(mut options: Options) -> Result<Self, ChaosError> {
        let shares: Vec<String> = (0..options.shares)
            .map(|number| if number == 0 { SHARE.to_owned() } else { format!("{SHARE}{number}") })
            .collect();
        options.cluster.smbd.more_shares.extend(shares.iter().skip(1).cloned());
        let cluster = Cluster::start(options.cluster.clone()).await?;
        let site = cluster.site();
        let nodes = (0..cluster.len()).map(|node| cluster.smb_address(node)).collect();
        let shared_opens_come_back = site.tools().version().as_deref().is_some_and(gives_back_shared_opens);
        let credentials = cluster.credentials();
        let roles = roles(options.clients, options.shares);
        let seats = roles.iter().map(|&(share, role)| Seat {
            share,
            comes_late: role == Role::Latecomer,
            ..Seat::default()
        });
        let clustered = options.cluster.clustering == Clustering::Ctdb;
        let world = Arc::new(World::new(
            options.seed,
            credentials,
            nodes,
            shared_opens_come_back,
            clustered,
            seats.collect(),
        ));
        let registers: Vec<_> = shares.iter().map(|share| Arc::new(Register::of_share(share))).collect();
        let pages: Vec<_> = shares.iter().map(|share| Arc::new(Page::new(format!("{share}-page")))).collect();
        let opens_each = options.opens.div_ceil(options.clients);
        let clients = roles.into_iter().enumerate().map(|(number, (share, role))| {
            let home = match options.cluster.clustering {
                Clustering::Separate => share % cluster.len(),
                Clustering::Ctdb => number % cluster.len(),
            };
            let traveller = Traveller::new(&world, number, &shares[share], home);
            let world = Arc::clone(&world);
            match role {
                Role::Worker => tokio::spawn(Worker::new(traveller, opens_each).run(world)),
                Role::Rival => tokio::spawn(Rival::new(traveller, Arc::clone(&registers[share])).run(world)),
                Role::Reader => tokio::spawn(Reader::new(traveller, Arc::clone(&pages[share])).run(world)),
                Role::Writer => tokio::spawn(Writer::new(traveller, Arc::clone(&pages[share])).run(world)),
                Role::Latecomer => tokio::spawn(Latecomer::new(traveller).run(world)),
            }
        });
        let clients = clients.collect();
        Ok(Self { clients, cluster, world, shares, options, started: Instant::now() })
    }

    fn say(&self, what: impl AsRef<str>) {
        self.world.oracle.note(what.as_ref());
        if self.options.verbose {
            eprintln!("{:8.3} s  {}", self.started.elapsed().as_secs_f64(), what.as_ref());
        }
    }

    async fn round(&mut self, number: usize, round: Round) -> Result<(), ChaosError> {
        let opens = self.options.opens;
        self.all(&format!("{opens} opens held"), |seats| {
            let held: usize = seats.iter().flat_map(|seat| seat.held).sum();
            held >= opens && seats.iter().all(|seat| seat.settled)
        })
        .await;
        time::sleep(round.after).await;
        let (victims, intended) = self.victims(&round).await?;
        self.say(format!("round {number}: {} (node {victims:?}, {intended})", round.death));
        self.strike(round, &victims).await?;
        self.check().await?;
        self.mend(round, &victims).await?;
        self.world.set_phase(Phase::Work);
        Ok(())
    }

    /// Waits until all clients are as wanted. It is taken down if they never are. Meanwhile an `smbd` that is fenced is
    /// started again.
    async fn all(&mut self, what: &str, wanted: impl Fn(&[Seat]) -> bool) -> bool {
        let deadline = Instant::now() + ALL_TIMEOUT;
        while !self.world.seats(|seats| wanted(seats)) {
            self.cluster.restart_fenced().await;
            if Instant::now() >= deadline {
                let state = self
                    .world
                    .seats(|seats| seats.iter().map(|seat| (seat.settled, seat.held)).collect::<Vec<_>>());
                let what = format!("after {ALL_TIMEOUT:?} still not {what}: {state:?}");
                self.world.oracle.violation(Breach::Unavailable, what, None);
                return false;
            }
            time::sleep(LOOK_INTERVAL).await;
        }
        true
    }

    /// Whom a round's blow hits: by the present state of the cluster.
    async fn victims(&mut self, round: &Round) -> Result<(Vec<usize>, &'static str), ChaosError> {
        let mut serving = self.serving(round.aim);
        // A paused leader of CTDB keeps the cluster lock, here a file, until it goes on, and nobody recovers meanwhile. Where
        // nodes are machines, the file system takes the lock from one that hangs.
        if round.death == Death::Pause
            && let Some(ctdbd) = self.cluster.ctdbd(serving)
            && ctdbd.status().await.and_then(|status| status.leader) == Some(serving)
        {
            serving = (serving + 1) % self.cluster.len();
        }
        let leader = if self.options.cluster.protected { self.cluster.leader().await? } else { serving };
        Ok(match round.death {
            Death::Leader => (vec![leader], "leads"),
            Death::TwoNodes => (vec![serving, (serving + 1) % self.cluster.len()], "serves, and the next"),
            _ => (vec![serving], if serving == leader { "serves and leads" } else { "serves" }),
        })
    }

    /// A node that serves clients. Between separate `smbd`s each share has its own.
    fn serving(&self, aim: usize) -> usize {
        if self.options.cluster.clustering == Clustering::Ctdb {
            return aim % self.cluster.len();
        }
        self.world.seats(|seats| {
            let mut clients = vec![0; self.world.nodes.len()];
            for seat in seats.iter().filter(|seat| seat.share == aim % self.shares.len()) {
                seat.arrival.iter().for_each(|arrival| clients[arrival.node] += 1);
            }
            (0..clients.len()).max_by_key(|&node| clients[node]).unwrap_or_default()
        })
    }

    /// Deals the blow, and waits until all clients have what was theirs.
    async fn strike(&mut self, round: Round, victims: &[usize]) -> Result<(), ChaosError> {
        let mut blow = self.blow(round, victims).await?;
        match round.death {
            Death::Pause => {
                time::sleep(PATIENCE).await;
                self.world.set_suspect(Some(victims[0]));
            }
            Death::SidecarForAMoment => self.cluster.start_sidecar(victims[0])?,
            Death::TwoNodes => {
                time::sleep(round.meanwhile).await;
                self.cluster.start_node(victims[1]).await?;
            }
            Death::Aftershock => {
                time::sleep(round.meanwhile).await;
                self.cluster.start_node(victims[0]).await?;
                let successor = self.serving(round.aim);
                self.say(format!("             and then node {successor}"));
                blow = self.blow(round, &[successor]).await?;
            }
            Death::Node | Death::Leader | Death::Smbd | Death::Child | Death::Restart | Death::Sidecar => {}
        }
        let (at, evicted) = blow;
        self.all("everybody back", |seats| {
            let settled = seats.iter().all(|seat| seat.settled);
            let has_come_anew = |client: &usize| seats[*client].arrival.as_ref().is_some_and(|a| a.at > at);
            settled && evicted.iter().all(has_come_anew)
        })
        .await;
        self.say(format!("             all are back after {:.3} s", at.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Says where the clients of the victims go: as an address moves, or each as it likes.
    fn move_addresses(&self, round: Round, victims: &[usize]) {
        let nodes = self.cluster.len();
        let homes = (0..self.shares.len()).map(|share| {
            let now = self.serving(share);
            if !victims.contains(&now) {
                return Some(now);
            }
            (1..nodes).map(|step| (now + step) % nodes).find(|node| !victims.contains(node))
        });
        let together = !round.scattered && self.options.cluster.clustering == Clustering::Separate;
        self.world.set_homes(if together { homes.collect() } else { Vec::new() });
    }

    /// Deals it. Returns when, and which clients have to come back.
    async fn blow(&mut self, round: Round, victims: &[usize]) -> Result<(Instant, Vec<usize>), ChaosError> {
        let there = self.world.seats(|seats| {
            let at_victims = |seat: &Seat| {
                let arrival = seat.arrival.as_ref().filter(|arrival| victims.contains(&arrival.node))?;
                (!seat.comes_late).then(|| arrival.session.client_address())
            };
            let there =
                seats.iter().enumerate().filter_map(|(client, seat)| Some((client, at_victims(seat)?)));
            there.collect::<Vec<_>>()
        });
        let stays = matches!(round.death, Death::Child | Death::Restart | Death::SidecarForAMoment);
        self.move_addresses(round, if stays { &[] } else { victims });
        let mut evicted: Vec<usize> = there.iter().map(|(client, _)| *client).collect();
        // Taken down before it falls: no answer that comes after it may be thought of as older.
        let at = Instant::now();
        self.world.oracle.count(|account| {
            account.blow = Some(Blow { death: round.death, at, victims: victims.to_vec() });
            account.tallies.entry(Some(round.death)).or_default().rounds += 1;
        });
        match round.death {
            Death::Smbd => self.cluster.kill_smbd(victims[0])?,
            Death::Child => {
                evicted.clear();
                if let Some((client, address)) = there.get(round.aim % there.len().max(1)) {
                    self.say(format!("             the child of client {client}"));
                    self.cluster.smbd(victims[0]).kill_child(*address).await?;
                    evicted.push(*client);
                }
            }
            Death::Restart => self.cluster.restart_smbd(victims[0]).await?,
            Death::Sidecar => self.cluster.kill_sidecar(victims[0])?,
            Death::SidecarForAMoment => {
                self.cluster.kill_sidecar(victims[0])?;
                evicted.clear();
            }
            Death::Pause => self.cluster.pause(victims[0]),
            Death::Node | Death::Leader | Death::Aftershock | Death::TwoNodes => {
                for &node in victims {
                    self.cluster.kill(node)?;
                }
            }
        }
        Ok((at, evicted))
    }

    /// Lets everybody stand still, and compares the world with what is known of it.
    async fn check(&mut self) -> Result<(), ChaosError> {
        if !self.everybody_stands_still().await {
            return Ok(());
        }
        let clients: Vec<(Arrival, Known)> = self.world.seats(|seats| {
            let known = |seat: &Seat| Some((seat.arrival.clone()?, seat.still.clone()?));
            seats.iter().filter_map(known).collect()
        });
        let again = clients.iter().map(|(arrival, known)| claim_again(&self.world, arrival, &known.held));
        join_all(again).await;

        let share = self.cluster.site().share_dir();
        let mut files: Vec<KnownFile> = clients.into_iter().flat_map(|(_, known)| known.files).collect();
        files.extend(self.shares.iter().flat_map(|share| worker::shared_files(share)).map(|path| {
            let (_, history) = self.world.oracle.register();
            KnownFile { paths: vec![path], contents: vec![Vec::new()], presence: Presence::May, history }
        }));
        let deadline = Instant::now() + DELETED_WITHIN;
        let look = |last| {
            files::check(&share, &files, &self.world.oracle, last)
                .map_err(|source| ChaosError::Files { path: share.clone(), source })
        };
        while look(Instant::now() >= deadline)? {
            time::sleep(LOOK_INTERVAL * 20).await;
        }
        Ok(())
    }

    /// Lets everybody stand still. Nobody is let in meanwhile, so whoever is away, or has just lost its connection, such as
    /// to a node whose sidecar was not back in time, has to come back first. Returns false if somebody never does.
    async fn everybody_stands_still(&mut self) -> bool {
        let still = |seats: &[Seat]| seats.iter().all(|seat| seat.still.is_some());
        let away = |seats: &[Seat]| seats.iter().any(|seat| seat.still.is_none() && !seat.settled);
        while !self.world.seats(|seats| still(seats)) {
            self.world.set_phase(Phase::Gather);
            if !self.all("everybody there", |seats| !away(seats)).await {
                return false;
            }
            self.world.set_phase(Phase::Still);
            if !self.all("everybody still", |seats| still(seats) || away(seats)).await {
                return false;
            }
        }
        true
    }

    /// Brings everything back that is not there.
    async fn mend(&mut self, round: Round, victims: &[usize]) -> Result<(), ChaosError> {
        if round.death == Death::Pause {
            self.cluster.resume(victims[0]);
            self.world.set_suspect(None);
            let deadline = Instant::now() + FENCED_WITHIN;
            while TcpStream::connect(self.world.nodes[victims[0]]).await.is_ok() {
                if Instant::now() >= deadline {
                    let what = format!("node {} serves on after its pause", victims[0]);
                    self.world.oracle.violation(Breach::OwnedTwice, what, None);
                    break;
                }
                time::sleep(LOOK_INTERVAL).await;
            }
        }
        self.cluster.start_all().await?;
        Ok(())
    }

    /// Sends everybody home, keeps the evidence if there is any, and reports.
    async fn end(mut self) -> Result<Report, ChaosError> {
        self.world.set_phase(Phase::End);
        for client in self.clients.drain(..) {
            // A client that panicked has not done its part.
            if let Err(err) = client.await {
                self.world.oracle.violation(Breach::Unavailable, format!("a client ended: {err}"), None);
            }
        }
        let account = self.world.oracle.account();
        if !account.violations.is_empty() {
            self.keep_evidence(&account.violations)?;
        }
        let (options, elapsed) = (&self.options, self.started.elapsed());
        Ok(Report::new(options, self.cluster.site().tools().version(), account, elapsed))
    }

    fn keep_evidence(&self, violations: &[Violation]) -> Result<(), ChaosError> {
        let dir = &self.options.evidence;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ChaosError::Files { path, source }
        };
        fs::create_dir_all(dir).map_err(failed(dir))?;
        let mut text = format!("seed {}\n", self.options.seed);
        for Violation { round, breach, what, history } in violations {
            text += &format!("\nround {round}: {breach}: {what}\n{history}");
        }
        for (name, text) in
            [("violations", text), ("journal", self.world.oracle.account().journal.join("\n"))]
        {
            let file = dir.join(name);
            fs::write(&file, text).map_err(failed(&file))?;
        }
        for node in 0..self.cluster.len() {
            let smbd = self.cluster.smbd(node).config_file();
            for (name, contents) in [
                ("sidecar", self.cluster.sidecar_log(node)),
                ("smbd", fs::read_to_string(smbd.with_file_name("log")).unwrap_or_default()),
                ("smbd-output", fs::read_to_string(smbd.with_file_name("output")).unwrap_or_default()),
                ("ctdbd", self.cluster.ctdbd(node).map(Ctdbd::log).unwrap_or_default()),
            ] {
                let file = dir.join(format!("node{node}-{name}.log"));
                fs::write(&file, contents).map_err(failed(&file))?;
            }
        }
        Ok(())
    }
}

/// Claims all opens of a client while it holds them: on a connection of its own to the same node, and to the next one.
///
/// Clustered nodes take a client that appears at another node for one that has moved, and end its old connection. So
/// there somebody else has to try; no lease is given to him, but a batch oplock might be.
async fn claim_again(world: &World, arrival: &Arrival, held: &[(u64, CreateRequest)]) {
    let somebody_else = Client::new(world.credentials.clone());
    for node in [arrival.node, (arrival.node + 1) % world.nodes.len()] {
        let address = world.nodes[node];
        let client = if world.clustered && node != arrival.node { &somebody_else } else { &arrival.client };
        let entered =
            async { client.connect(address).await?.tree_connect(&share_at(address, &arrival.share)).await };
        // A dead node, or one that does not serve the share, gives nothing away.
        let Ok(Ok(tree)) = time::timeout(SECOND_CLAIM_TIMEOUT, entered).await else { continue };
        stream::iter(held)
            .for_each_concurrent(PIPELINED, async |(id, request)| {
                let answer = tree.create(request.clone()).await;
                world.oracle.count(|account| account.claimed_again += 1);
                // If the owner has lost its connection meanwhile, this was no second owner.
                if let Ok(open) = answer
                    && arrival.session.echo().await.is_ok()
                {
                    let what = format!(
                        "open {id} ({}) is held at node {} and was given to another at node {node}: {:?}",
                        request.path,
                        arrival.node,
                        open.response()
                    );
                    world.oracle.violation(Breach::OwnedTwice, what, None);
                }
            })
            .await;
        tree.session().drop_connection().await;
    }
}

/// From 4.20 on Samba gives back a durable open of a file that others have open too.
fn gives_back_shared_opens(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(4), Some(20))
}
