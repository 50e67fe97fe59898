//! What all clients share: where the servers are, what time it is, and the account of promises.

use std::{
    net::SocketAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::{sync::watch, time};

use super::{
    files::KnownFile,
    oracle::{Breach, Oracle},
    worker::APPLICATIONS,
};
use crate::smb_client::{Client, CreateRequest, Credentials, Session, SmbError, Tree};

/// What all clients are to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Open, write, lock, close, come back.
    Work,
    /// Come back, and do not go away again. Who has much to do rests.
    Gather,
    /// Stand still, so that the world can be compared with what is known of it.
    Still,
    /// Go home.
    End,
}

/// How long one attempt to log in at a node may take. A paused node accepts connections and says nothing.
const LOG_IN_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a node may let a client wait at the entrance of a share.
const TREE_CONNECT_TIMEOUT: Duration = Duration::from_secs(25);

/// How long a client goes from node to node before it gives up. With a quorum, and with half of the cluster's nodes
/// alive, it should be seconds.
const COME_BACK_TIMEOUT: Duration = Duration::from_secs(90);

/// Between two attempts.
const KNOCK_INTERVAL: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug)]
pub(super) struct World {
    pub(super) oracle: Oracle,
    pub(super) seed: u64,
    pub(super) credentials: Credentials,
    /// Where each node's `smbd` listens.
    pub(super) nodes: Vec<SocketAddr>,
    /// Whether this Samba gives back an open of a file that others have open too.
    pub(super) shared_opens_come_back: bool,
    /// Whether the nodes are one clustered Samba.
    pub(super) clustered: bool,
    phase: watch::Sender<Phase>,
    /// The node that the clients of a share try first, as if its address had moved there; by share.
    homes: Mutex<Vec<Option<usize>>>,
    /// A node that clients had better leave: somebody has told them.
    suspect: watch::Sender<Option<usize>>,
    seats: Mutex<Vec<Seat>>,
}

/// Where one client is, and what it knows.
#[derive(Debug, Default)]
pub(super) struct Seat {
    /// Which share it uses, by number.
    pub(super) share: usize,
    /// It is not in a hurry to come back.
    pub(super) comes_late: bool,
    pub(super) arrival: Option<Arrival>,
    /// Everything that it had has been claimed.
    pub(super) settled: bool,
    /// How many opens each of its applications holds.
    pub(super) held: [usize; APPLICATIONS],
    /// What it knows, since it stands still.
    pub(super) still: Option<Known>,
}

/// What a client knows when it stands still.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) files: Vec<KnownFile>,
    /// The opens that it holds: their names in the account, and the requests that would claim them.
    pub(super) held: Vec<(u64, CreateRequest)>,
}

/// A client in a share.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) client: Client,
    pub(super) share: String,
    pub(super) node: usize,
    pub(super) session: Session,
    pub(super) tree: Tree,
    pub(super) at: Instant,
}

impl World {
    pub(super) fn new(
        seed: u64,
        credentials: Credentials,
        nodes: Vec<SocketAddr>,
        shared_opens_come_back: bool,
        clustered: bool,
        seats: Vec<Seat>,
    ) -> Self {
        Self {
            oracle: Oracle::new(),
            seed,
            credentials,
            nodes,
            shared_opens_come_back,
            clustered,
            phase: watch::Sender::new(Phase::Work),
            homes: Mutex::default(),
            suspect: watch::Sender::new(None),
            seats: Mutex::new(seats),
        }
    }

    /// A source of choices that depends on the seed and the client only.
    pub(super) fn rng(&self, client: usize) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ (client as u64 + 1).rotate_right(16))
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        // Together, so that nobody leaves what he knew in the last phase for the next one.
        self.seats(|seats| {
            self.phase.send_replace(phase);
            if matches!(phase, Phase::Work | Phase::Gather) {
                seats.iter_mut().for_each(|seat| seat.still = None);
            }
        });
    }

    /// Tells what a client knows now that it stands still, unless it has told already or nobody stands still any more.
    pub(super) fn stand_still(&self, client: usize, known: impl FnOnce() -> Known) {
        self.seat(client, |seat| {
            if self.phase() == Phase::Still {
                seat.still.get_or_insert_with(known);
            }
        });
    }

    /// Waits until the phase is another one.
    pub(super) async fn phase_after(&self, phase: Phase) -> Phase {
        let mut phases = self.phase.subscribe();
        *phases.wait_for(|now| *now != phase).await.expect("the world keeps the sender")
    }

    /// Says which node the clients of each share are to try first; none, to let each try another one.
    pub(super) fn set_homes(&self, homes: Vec<Option<usize>>) {
        *self.homes.lock().expect("nobody panics while holding it") = homes;
    }

    fn home(&self, share: usize) -> Option<usize> {
        self.homes.lock().expect("nobody panics while holding it").get(share).copied().flatten()
    }

    pub(super) fn set_suspect(&self, node: Option<usize>) {
        self.suspect.send_replace(node);
    }

    /// Waits until somebody says that a node had better be left.
    pub(super) async fn suspected(&self, node: usize) {
        let mut suspects = self.suspect.subscribe();
        suspects.wait_for(|suspect| *suspect == Some(node)).await.expect("the world keeps the sender");
    }

    /// Lets a client do what it does in a share until it is done, loses its connection or had better leave its node.
    /// Returns whether it is done.
    pub(super) async fn stay(
        &self,
        client: usize,
        arrival: &Arrival,
        stay: impl Future<Output = Result<(), Interrupted>>,
    ) -> bool {
        // Dropped wherever it is: what has to be known of its requests is counted before they are sent.
        let done = tokio::select! {
            done = stay => done.is_ok(),
            () = self.suspected(arrival.node) => false,
        };
        self.seat(client, |seat| seat.settled = false);
        arrival.session.drop_connection().await;
        done
    }

    pub(super) fn seats<T>(&self, look: impl FnOnce(&mut [Seat]) -> T) -> T {
        look(&mut self.seats.lock().expect("nobody panics while holding it"))
    }

    pub(super) fn seat<T>(&self, client: usize, look: impl FnOnce(&mut Seat) -> T) -> T {
        self.seats(|seats| look(&mut seats[client]))
    }
}

/// A client machine that finds its way into a share, and back into it.
#[derive(Debug)]
pub(super) struct Traveller {
    pub(super) number: usize,
    pub(super) client: Client,
    pub(super) share: String,
    pub(super) rng: StdRng,
    previous_session: u64,
    previous_node: usize,
}

impl Traveller {
    /// `home` is the node that it tries first.
    pub(super) fn new(world: &World, number: usize, share: &str, home: usize) -> Self {
        Self {
            number,
            client: Client::new(world.credentials.clone()),
            share: share.to_owned(),
            rng: world.rng(number),
            previous_session: 0,
            previous_node: home,
        }
    }

    /// Goes from node to node until one lets it into the share. `None` if none did for far too long, which is taken
    /// down, or if it is time to go home.
    pub(super) async fn arrive(&mut self, world: &World) -> Option<Arrival> {
        // While the world is compared with what is known of it, nobody may change it.
        world.phase_after(Phase::Still).await;
        let (began, mut attempts) = (Instant::now(), 0);
        let mut candidates: Vec<usize> =
            (0..world.nodes.len()).filter(|&node| node != self.previous_node).collect();
        candidates.shuffle(&mut self.rng);
        if self.previous_session == 0 {
            candidates.insert(0, self.previous_node);
        } else {
            candidates.push(self.previous_node);
            let share = world.seat(self.number, |seat| seat.share);
            if let Some(home) = world.home(share) {
                candidates.retain(|&node| node != home);
                candidates.insert(0, home);
            }
        }
        let mut last_problem: Option<String> = None;
        for &node in candidates.iter().cycle() {
            if world.phase() == Phase::End {
                return None;
            }
            attempts += 1;
            match self.enter(world, node).await {
                Ok(arrival) => {
                    world.oracle.note(format!(
                        "client {} enters {} at node {node} after {:?}, {attempts} attempts; {}",
                        self.number,
                        self.share,
                        began.elapsed(),
                        last_problem.unwrap_or_default(),
                    ));
                    (self.previous_node, self.previous_session) = (node, arrival.session.id());
                    world.seat(self.number, |seat| {
                        seat.settled = false;
                        seat.arrival = Some(arrival.clone());
                    });
                    return Some(arrival);
                }
                Err(problem) => last_problem = Some(format!("node {node}: {problem}")),
            }
            if began.elapsed() >= COME_BACK_TIMEOUT {
                break;
            }
            time::sleep(KNOCK_INTERVAL + Duration::from_millis(self.rng.random_range(0..10))).await;
        }
        world.oracle.violation(
            Breach::Unavailable,
            format!(
                "client {} found no way into {} in {COME_BACK_TIMEOUT:?}: {}",
                self.number,
                self.share,
                last_problem.unwrap_or_default(),
            ),
            None,
        );
        None
    }

    async fn enter(&self, world: &World, node: usize) -> Result<Arrival, String> {
        let address = world.nodes[node];
        let session = time::timeout(LOG_IN_TIMEOUT, self.client.reconnect(address, self.previous_session))
            .await
            .map_err(|_| format!("no session within {LOG_IN_TIMEOUT:?}"))?
            .map_err(|err| node::telemetry::chain(&err).to_string())?;
        let tree = time::timeout(TREE_CONNECT_TIMEOUT, session.tree_connect(&share_at(address, &self.share)))
            .await
            .map_err(|_| format!("not let in within {TREE_CONNECT_TIMEOUT:?}"))?
            .map_err(|err| err.to_string())?;
        let (client, share) = (self.client.clone(), self.share.clone());
        Ok(Arrival { client, share, node, session, tree, at: Instant::now() })
    }
}

/// What to tree connect to.
pub(super) fn share_at(server: SocketAddr, share: &str) -> String {
    format!(r"\\{}\{share}", server.ip())
}

/// The answer did not come: the connection is lost, or as good as lost. Whether the request was carried out is
/// unknown.
#[derive(Debug)]
pub(super) struct Interrupted;

/// Tells a server's refusal, which is an answer, from an answer that did not come.
pub(super) fn answer<T>(result: Result<T, SmbError>) -> Result<Result<T, SmbError>, Interrupted> {
    match result {
        Err(SmbError::Disconnected { .. } | SmbError::TimedOut { .. } | SmbError::Connect { .. }) => {
            Err(Interrupted)
        }
        answered => Ok(answered),
    }
}
