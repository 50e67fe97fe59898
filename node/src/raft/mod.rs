//! Raft among the sidecars: the one place that names openraft.
//!
//! ```text
//!  propose ──► leader ──► openraft ──► log_storage ──► statedb::store::log      (synced, then acknowledged)
//!                │            └──────► state_machine ─► State ─► statedb::store::applied   (may lag)
//!  peers ◄─ network ─ lanes and gRPC ─ lane::serve, server ◄─ peers
//! ```
//!
//! # What must stay true
//!
//! - A command is answered after the entry that carries it was applied here or on the leader. *Commit,
//!   then speak.*
//! - `purged ≤ applied on disk ≤ applied ≤ committed`.
//! - A node that was restarted, or lost its disk, helps to elect nobody while it may have forgotten a
//!   promise (`voting.rs`).
//! - Cluster time never runs faster than a leader's monotonic clock (`clock.rs`).
//!
//! # What is left out
//!
//! Changing the membership: a cluster has the nodes of its configuration file. Nothing here prevents it.

mod applied_writer;
mod clock;
mod convert;
mod lane;
mod log_storage;
mod network;
mod recent;
mod server;
mod state_machine;
mod types;
mod voting;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::raft::responder::ProgressResponder;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{BasicNode, RaftMetrics, ServerState, SnapshotPolicy};
use proto::pb::raft::v1 as pb;
use proto::pb::raft::v1::raft_server::RaftServer;
use statedb::store::StoreError;
use statedb::store::applied::AppliedStore;
use statedb::store::log::LogStore;
use statedb::{Command, DurableFileId, Limits, LogId, NodeId, Outcome, Owner, State, Timestamp};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use self::clock::LeaderClock;
use self::lane::ForwardError;
use self::log_storage::LogStorage;
use self::network::Peers;
use self::state_machine::{AppliedState, StateMachine};
use self::types::TypeConfig;
use self::voting::Voting;
use crate::events::EventRing;
use crate::liveness::Answer;
use crate::telemetry::chain;

pub use self::lane::PREFACE as LANE_PREFACE;
pub use self::server::{Answers, RaftService};
pub use self::state_machine::{AppliedEntry, LoadError, News};

/// The longest command that may be proposed, encoded as an entry. An open is at most 64 KiB; an update names the
/// opens of one SMB request.
pub const COMMAND_LEN_MAX: usize = 1024 * 1024;

/// The longest message between nodes. The largest is a batch of entries: 1 MiB, one more entry of at most
/// [`COMMAND_LEN_MAX`], and what is around them. A message of a snapshot is
/// bounded likewise.
const MESSAGE_LEN_MAX: usize = 8 * 1024 * 1024;

/// A log filter for what is said hundreds of times a second: what openraft says of each attempt to reach a peer that has
/// failed, and the log of each append. That a peer is reached or not is said once, by `network`.
pub const SAID_TOO_OFTEN: &str = "openraft::core::heartbeat=error,openraft::replication=error,\
    openraft::engine::handler::replication_handler=error,raft_log=warn,chunked_wal=warn";

/// How long a proposal may take before its fate is called unknown. Twice the time in which a leader is
/// replaced and its successor has committed, with the slowest timing that is reasonable.
const PROPOSE_WITHIN: Duration = Duration::from_secs(2);

/// Between two attempts to find the leader. A new one is usually heard of within a heartbeat.
const FIND_LEADER_AFTER: Duration = Duration::from_millis(10);

/// Between two attempts to form a new cluster.
const FORM_AFTER: Duration = Duration::from_millis(200);

/// How often a node looks whether it was told that the cluster is formed.
const FORMED_AFTER: Duration = Duration::from_millis(20);

/// How long a node of a new cluster may take to answer.
const FORM_WITHIN: Duration = Duration::from_secs(1);

/// How many entries are applied until the stored copy is synced and the log is purged. At 1 KiB an entry,
/// the log stays at some 20 MiB beside its last chunk, and a restart replays for a fraction of a second.
const SNAPSHOT_EVERY_ENTRIES: u64 = 10_000;

/// How many entries stay in the log after that, for followers that were away for a moment: without them
/// they would need the whole state.
const KEEP_ENTRIES: u64 = 10_000;

/// How far a follower may be behind before it gets the whole state instead of entries. More than is ever
/// kept, so that entries are sent as long as there are any.
const SNAPSHOT_LAG_ENTRIES: u64 = 2 * (SNAPSHOT_EVERY_ENTRIES + KEEP_ENTRIES);

/// How many entries are sent at once; they are also bounded in bytes.
const REPLICATE_ENTRIES_MAX: u64 = 512;

/// How long the whole state may take to a follower: a million opens, 2 GiB, at 40 MB a second.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(60);

type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Timing of elections. [`crate::config::Timing`] says what each value means and checks them.
#[derive(Clone, Copy, Debug)]
pub struct RaftTiming {
    /// How often the leader speaks to its followers.
    pub heartbeat_interval: Duration,
    /// The shortest wait of a follower, after the leader's lease, before it stands for election.
    pub election_timeout_min: Duration,
    /// The longest; also the leader's lease.
    pub election_timeout_max: Duration,
}

/// What a node needs to know to take part.
#[derive(Clone, Debug)]
pub struct RaftNodeConfig {
    /// Which of the voters this is.
    pub id: NodeId,
    /// Every voter, and where its peers reach it: `host:port`.
    pub voters: BTreeMap<NodeId, String>,
    /// Where log and state are kept.
    pub data_dir: PathBuf,
    /// Timing of elections.
    pub timing: RaftTiming,
    /// What nodes compare to recognise each other; equal on all of them.
    pub fingerprint: u64,
    /// Bounds of the state; equal on all of them.
    pub limits: Limits,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its data directory cannot be used.
    #[error("cannot {operation} {}", path.display())]
    DataDir {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Its log cannot be used.
    #[error(transparent)]
    Log(#[from] StoreError),
    /// Its stored state cannot be used.
    #[error(transparent)]
    State(#[from] LoadError),
    /// A peer's address is none.
    #[error("the address of node {node}, {address:?}, is not host:port")]
    Address {
        /// The peer.
        node: u64,
        /// Its address.
        address: String,
        /// What is wrong with it.
        source: tonic::transport::Error,
    },
    /// Raft refuses its configuration or its stores.
    #[error("Raft cannot start: {0}")]
    Raft(String),
}

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead. The command was not and will not be proposed.
    #[error("this node does not lead{}", leader.map_or(String::new(), |leader| format!(", node {leader} does")))]
    NotLeader {
        /// Who does, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// No leader was found in time. The command was not and will not be proposed.
    #[error("no leader is known: a quorum of nodes does not answer")]
    NoLeader,
    /// The command may have been committed, or may still be. Ask again with the same sequence.
    #[error("it is not known whether the command was or will be committed; ask again before acting")]
    Unknown,
    /// The command was refused before it was proposed, and will be refused again.
    #[error("the command cannot be proposed: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// This node is shutting down, or has failed.
    #[error("this node is shutting down")]
    ShuttingDown,
}

/// Raft cannot go on here. The node has to end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RaftFailed(String);

/// That this node leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leading {
    /// In which term.
    pub term: u64,
    /// When this node noticed that its leadership had begun; never earlier than it did begin.
    pub since: Instant,
    /// Whether it has applied everything that its predecessors committed.
    pub caught_up: bool,
}

/// What an operator wants to know of Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// leader, follower, candidate, learner or shutdown.
    pub role: &'static str,
    /// The term.
    pub term: u64,
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The newest entry in the log.
    pub last_log_index: Option<u64>,
}

/// One node of the Raft group.
pub struct RaftNode {
    id: u64,
    voters: BTreeMap<u64, String>,
    fingerprint: u64,
    limits: Limits,
    raft: Raft,
    metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    /// The leader in the metrics, which change with every entry: thousands may wait for another leader.
    leader: watch::Receiver<Option<NodeId>>,
    /// Why Raft cannot go on, once it cannot.
    failure: watch::Receiver<Option<String>>,
    applied: Arc<AppliedState>,
    stores: Arc<applied_writer::Status>,
    peers: Peers,
    voting: Voting,
    clock: Mutex<LeaderClock>,
}

impl fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftNode").field("id", &self.id).finish_non_exhaustive()
    }
}

impl RaftNode {
    /// Opens the stores and takes part. Peers reach it once a gRPC server serves [`Self::server`].
    ///
    /// # Errors
    ///
    /// If the data directory is in use, damaged, or cannot be written.
    pub async fn start(config: RaftNodeConfig) -> Result<Arc<Self>, StartError> {
        let RaftNodeConfig { id: NodeId(id), voters, data_dir, timing, fingerprint, limits } = config;
        let voters: BTreeMap<_, _> = voters.into_iter().map(|(NodeId(id), address)| (id, address)).collect();
        let peers = Peers::new(id, fingerprint, &voters, timing)?;
        let (log, state_machine, voting) = tokio::task::spawn_blocking(move || open(data_dir, limits))
            .await
            .map_err(|error| StartError::Raft(error.to_string()))??;
        let applied = state_machine.shared();
        let stores = state_machine.writer().status();
        let log_storage = LogStorage::new(Arc::new(log), state_machine.writer());
        let raft_config = openraft_config(timing, &voting)
            .validate()
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let raft = Raft::new(id, Arc::new(raft_config), peers.clone(), log_storage, state_machine)
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let metrics = raft.metrics();
        let (leader_sender, leader) = watch::channel(None);
        let (failure_sender, failure) = watch::channel(None);
        tokio::spawn(digest(metrics.clone(), leader_sender, failure_sender));
        let clock = Mutex::default();
        let node = Arc::new(Self {
            id,
            voters,
            fingerprint,
            limits,
            raft,
            metrics,
            leader,
            failure,
            applied,
            stores,
            peers,
            voting,
            clock,
        });
        tokio::spawn(Arc::clone(&node).become_voter(timing.election_timeout_max));
        if node.voters.keys().next() == Some(&id) && node.is_new() {
            tokio::spawn(Arc::clone(&node).form_cluster());
        }
        Ok(node)
    }

    /// Ends this node's part. Proposals that are under way are answered [`ProposeError::ShuttingDown`] or
    /// [`ProposeError::Unknown`].
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            warn!(%error, "Raft did not end in order");
        }
    }

    /// Waits until Raft has failed, and returns why: a store that lied or is full, usually. The node must
    /// then end. After [`Self::shutdown`] this never returns.
    pub async fn failed(&self) -> RaftFailed {
        let mut failure = self.failure.clone();
        let Ok(failure) = failure.wait_for(Option::is_some).await else {
            return std::future::pending().await;
        };
        let store_failure = self.stores.failure().map(|error| chain(error).to_string());
        RaftFailed(store_failure.or_else(|| failure.clone()).unwrap_or_default())
    }

    /// The service that peers talk to, to be added to a gRPC server. `answers` has what is not Raft's to answer.
    pub fn server<A: Answers>(self: &Arc<Self>, answers: A) -> RaftServer<RaftService<A>> {
        RaftService::server(Arc::clone(self), answers)
    }

    /// Serves peers that have opened a lane, until there will be no more of them.
    pub async fn serve_lanes(self: Arc<Self>, mut lanes: mpsc::Receiver<TcpStream>) {
        let mut served = JoinSet::new();
        loop {
            tokio::select! {
                lane = lanes.recv() => match lane {
                    Some(stream) => drop(served.spawn(lane::serve(Arc::clone(&self), stream))),
                    None => return,
                },
                Some(_) = served.join_next() => {}
            }
        }
    }

    /// Reads the replicated state, as far as this node has applied it. Keep it short: applying waits.
    pub fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        self.applied.read(read)
    }

    /// The newest applied entry, to wait for changes of. Reads after a change see it.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<Option<LogId>> {
        self.applied.watch()
    }

    /// Waits until the entry at `index` is applied here. For ever, if it never is.
    pub async fn applied_through(&self, index: u64) {
        let mut applied = self.applied.watch();
        let reached = |applied: &Option<LogId>| applied.is_some_and(|applied| applied.index >= index);
        if applied.wait_for(reached).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the state, as far as this node has applied it, is as wanted. For ever, if it never is.
    pub async fn until(&self, wanted: impl Fn(&State) -> bool) {
        let mut applied = self.applied.watch();
        loop {
            // Marked as seen before the look, so that no change between that and the wait is missed.
            applied.mark_unchanged();
            if self.read(&wanted) {
                return;
            }
            if applied.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What is applied from now on, in order. A listener that falls far behind gets `Lagged` and has to look
    /// at the state as a whole.
    #[must_use]
    pub fn news(&self) -> broadcast::Receiver<Arc<News>> {
        self.applied.news()
    }

    /// What the entries that are applied from now on have to tell, in order; the newest of it is kept.
    #[must_use]
    pub fn events(&self) -> &Arc<EventRing> {
        self.applied.events()
    }

    /// What an operator wants to know.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        let metrics = self.metrics.borrow_watched();
        RaftStatus {
            role: match metrics.state {
                ServerState::Leader => "leader",
                ServerState::Follower => "follower",
                ServerState::Candidate => "candidate",
                ServerState::Learner => "learner",
                ServerState::Shutdown => "shutdown",
            },
            term: metrics.current_term,
            leader: metrics.current_leader.map(NodeId),
            last_log_index: metrics.last_log_index,
        }
    }

    /// The leader, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.metrics.borrow_watched().current_leader.map(NodeId)
    }

    /// Whether this node leads, and since when. It may have been superseded without knowing it yet:
    /// [`Self::last_quorum_acked`] says how long ago that was impossible.
    #[must_use]
    pub fn leading(&self) -> Option<Leading> {
        let (term, caught_up) = {
            let metrics = self.metrics.borrow_watched();
            if metrics.state != ServerState::Leader || metrics.current_leader != Some(self.id) {
                return None;
            }
            let term = metrics.current_term;
            // A leader's first entry follows everything that was committed before it.
            (term, metrics.last_applied.is_some_and(|applied| applied.leader_id.term == term))
        };
        let since = self.clock().leads_in(term, Instant::now());
        Some(Leading { term, since, caught_up })
    }

    /// When, at the latest, a quorum was known to follow this node. `None` if it does not lead.
    #[must_use]
    pub fn last_quorum_acked(&self) -> Option<Instant> {
        // Before the age is looked at, so that the instant is rather too early than too late.
        let now = Instant::now();
        let age = self.metrics.borrow_watched().last_quorum_acked.map(|acked| acked.elapsed());
        // A cluster of one is its own quorum, and nobody acknowledges anything.
        match age {
            Some(age) => now.checked_sub(age),
            None => (self.voters.len() == 1 && self.leading().is_some()).then_some(now),
        }
    }

    /// Cluster time as this node would propose it now: on the leader it runs, elsewhere it is what was
    /// applied.
    #[must_use]
    pub fn cluster_now(&self) -> Timestamp {
        match self.leading() {
            Some(leading) => self.stamp(leading),
            None => self.read(State::now),
        }
    }

    /// Has the leader propose a command, here or elsewhere, and waits for its outcome: at most two seconds
    /// for a leader, and as long for the outcome.
    ///
    /// # Errors
    ///
    /// See [`ProposeError`]. After [`ProposeError::Unknown`] the command may be proposed again unchanged: it
    /// is applied once.
    pub async fn propose(&self, command: Command) -> Result<(LogId, Outcome), ProposeError> {
        let deadline = Instant::now() + PROPOSE_WITHIN;
        loop {
            if self.metrics.borrow_watched().running_state.is_err() {
                return Err(ProposeError::ShuttingDown);
            }
            let attempt = match self.leader() {
                Some(leader) if leader.0 == self.id => self.propose_local(command.clone()).await,
                Some(leader) => tokio::select! {
                    answer = self.propose_remote(leader, &command) => answer,
                    // A frozen leader would answer when it thaws, if ever.
                    () = self.superseded(leader) => Err(ProposeError::Unknown),
                },
                None => Err(ProposeError::NotLeader { leader: None }),
            };
            match attempt {
                Err(ProposeError::NotLeader { .. }) if Instant::now() < deadline => {
                    let mut metrics = self.metrics.clone();
                    // Another leader may have been elected between the attempt and now: look again soon.
                    if let Ok(Err(_)) = tokio::time::timeout(FIND_LEADER_AFTER, metrics.changed()).await {
                        return Err(ProposeError::ShuttingDown);
                    }
                }
                Err(ProposeError::NotLeader { .. }) => return Err(ProposeError::NoLeader),
                answered => return answered,
            }
        }
    }

    /// Proposes a command as the leader, and waits for its outcome.
    ///
    /// # Errors
    ///
    /// [`ProposeError::NotLeader`] if this node does not lead; never [`ProposeError::NoLeader`].
    pub async fn propose_local(&self, command: Command) -> Result<(LogId, Outcome), ProposeError> {
        self.propose_leading(|_| true, command).await
    }

    /// Proposes what only the leader of a certain term may want, because it follows from what that one knows: never
    /// through another leader.
    ///
    /// # Errors
    ///
    /// [`ProposeError::NotLeader`] if this node does not lead in this term, or not any more; never
    /// [`ProposeError::NoLeader`].
    pub async fn propose_in_term(
        &self,
        term: u64,
        command: Command,
    ) -> Result<(LogId, Outcome), ProposeError> {
        self.propose_leading(|leading| leading.term == term, command).await
    }

    async fn propose_leading(
        &self,
        is_wanted: impl FnOnce(&Leading) -> bool,
        command: Command,
    ) -> Result<(LogId, Outcome), ProposeError> {
        let not_leader = || ProposeError::NotLeader { leader: self.leader() };
        let leading = self.leading().filter(is_wanted).ok_or_else(not_leader)?;
        let proposed = convert::proposed(self.stamp(leading), command);
        let len = proposed.encoded.len();
        if len > COMMAND_LEN_MAX {
            let reason = format!("it has {len} bytes, more than {COMMAND_LEN_MAX}");
            return Err(ProposeError::Refused { reason });
        }
        let (responder, answer) = ProgressResponder::complete_only();
        // Bound to the term whose clock it was stamped by.
        let write = self.raft.write(Arc::new(proposed)).responder(responder).with_leader(leading.term);
        write.await.map_err(|_| ProposeError::ShuttingDown)?;
        match tokio::time::timeout(PROPOSE_WITHIN, answer).await {
            Ok(Ok(Ok(response))) => {
                let outcome = response.data.ok_or(ProposeError::Unknown)?;
                Ok((convert::state_log_id(&response.log_id), outcome))
            }
            Ok(Ok(Err(ClientWriteError::ForwardToLeader(_) | ClientWriteError::PreconditionFailed(_)))) => {
                Err(not_leader())
            }
            // Dropped by a new leader's log, perhaps; Raft ended; or no quorum in time.
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }

    async fn propose_remote(
        &self,
        leader: NodeId,
        command: &Command,
    ) -> Result<(LogId, Outcome), ProposeError> {
        use pb::propose_response::Result as PbResult;
        let nobody = || ProposeError::NotLeader { leader: None };
        let forwarder = self.peers.forwarder(leader.0).ok_or_else(nobody)?;
        let response = tokio::time::timeout(PROPOSE_WITHIN, forwarder.propose(command.into())).await;
        let result = match response {
            Ok(Ok(response)) => response.result,
            Ok(Err(ForwardError::NotSent)) => return Err(nobody()),
            Ok(Err(ForwardError::Refused(reason))) => return Err(ProposeError::Refused { reason }),
            Ok(Err(ForwardError::Lost)) | Err(_) => return Err(ProposeError::Unknown),
        };
        match result {
            Some(PbResult::Applied(pb::Applied { log_id: Some(log_id), outcome: Some(outcome) })) => {
                let outcome = outcome.try_into().map_err(|error| {
                    warn!(%error, node_id = %leader, "the leader's answer makes no sense");
                    ProposeError::Unknown
                })?;
                Ok((log_id.into(), outcome))
            }
            Some(PbResult::NotLeader(not_leader)) => {
                Err(ProposeError::NotLeader { leader: not_leader.leader.map(NodeId) })
            }
            Some(PbResult::Refused(refused)) => Err(ProposeError::Refused { reason: refused.reason }),
            Some(PbResult::Applied(_) | PbResult::Unknown(_)) | None => Err(ProposeError::Unknown),
        }
    }

    /// Waits until this node knows another leader.
    async fn superseded(&self, leader: NodeId) {
        let is_another = |newest: &Option<NodeId>| newest.is_some_and(|newest| newest != leader);
        if self.leader.clone().wait_for(is_another).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Tells the leader, another node, that `owner` lives. An answer that does not come within `patience` is
    /// [`Answer::AskAgain`].
    pub async fn keep_alive(&self, owner: Owner, patience: Duration) -> Answer {
        use pb::keep_alive_response::Answer as PbAnswer;
        let Some(leader) = self.leader() else { return Answer::AskAgain };
        let Some(mut peer) = self.peers.control(leader.0) else { return Answer::AskAgain };
        let request = pb::KeepAliveRequest { envelope: Some(peer.envelope), owner: Some(owner.into()) };
        let Ok(response) = network::within(patience, peer.client.keep_alive(request)).await else {
            return Answer::AskAgain;
        };
        match response.into_inner().answer {
            Some(PbAnswer::GoOn(pb::GoOn { quorum_age_us })) => {
                Answer::GoOn { quorum_age: Duration::from_micros(quorum_age_us) }
            }
            Some(PbAnswer::Fenced(pb::IncarnationFenced {})) => Answer::Fenced,
            Some(PbAnswer::NotLeader(_)) => Answer::NotLeader,
            Some(PbAnswer::AskAgain(pb::AskAgain {})) | None => Answer::AskAgain,
        }
    }

    /// Asks another node whether the records of an open are settled ([`Answers::is_settled`]), and lives. No answer
    /// within `patience` is a no.
    pub async fn is_settled_at(
        &self,
        peer: NodeId,
        open: DurableFileId,
        applied: u64,
        patience: Duration,
    ) -> bool {
        let Some(mut peer) = self.peers.control(peer.0) else { return false };
        let envelope = Some(peer.envelope);
        let request = pb::SettledRequest { envelope, durable_file_id: open.0, applied };
        let response = network::within(patience, peer.client.settled(request)).await;
        response.is_ok_and(|response| response.into_inner().is_settled)
    }

    /// Waits until this node has applied everything that it can have served or acknowledged before a restart, and
    /// whatever else was committed when this was called. For ever, if no leader is elected.
    ///
    /// It has an entry of its own committed for that: everything before it is in the leader's log by then. What a leader
    /// says of its commit index would not do, because it may have been on its way since before the restart.
    pub async fn caught_up(&self) {
        loop {
            match self.propose(Command::ExpireOpens).await {
                Ok((log_id, _)) => return self.applied_through(log_id.index).await,
                Err(ProposeError::ShuttingDown) => std::future::pending::<()>().await,
                Err(_) => tokio::time::sleep(FIND_LEADER_AFTER).await,
            }
        }
    }

    fn clock(&self) -> std::sync::MutexGuard<'_, LeaderClock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stamp(&self, leading: Leading) -> Timestamp {
        let newest_applied = self.applied.newest_time();
        self.clock().stamp(leading, newest_applied, Instant::now())
    }

    /// This node's vote.
    fn vote(&self) -> types::Vote {
        self.metrics.borrow_watched().vote
    }

    /// Whether this node has never taken part in a cluster that has decided anything.
    fn is_new(&self) -> bool {
        voting::is_new(self.metrics.borrow_watched().last_log_index)
    }

    /// Lets this node vote and stand for election when it may.
    async fn become_voter(self: Arc<Self>, leader_lease: Duration) {
        self.voting.wait_for_lease(leader_lease).await;
        if !self.voting.remembers() {
            tokio::select! {
                () = self.caught_up() => match self.voting.remember() {
                    Ok(()) => info!("this node was brought up to date and votes from now on"),
                    Err(error) => return warn!(%error, "this node cannot become a voter"),
                },
                () = self.formed() => {}
            }
        }
        self.raft.runtime_config().elect(true);
    }

    /// Waits until this node takes part in a new cluster.
    async fn formed(&self) {
        while !self.voting.remembers() {
            tokio::time::sleep(FORMED_AFTER).await;
        }
    }

    /// Forms a new cluster, as the node with the lowest id, when all its nodes are new. See [`voting`].
    async fn form_cluster(self: Arc<Self>) {
        while self.is_new() && self.leader().is_none() {
            if self.all_are_new(false).await && self.all_are_new(true).await {
                match self.initialize().await {
                    Ok(()) => return info!(nodes = self.voters.len(), "a new cluster is formed"),
                    Err(error) => warn!(error, "the cluster cannot be formed"),
                }
            }
            tokio::time::sleep(FORM_AFTER).await;
        }
    }

    async fn all_are_new(&self, tell_them: bool) -> bool {
        let answers = self.peers.ids().filter_map(|id| self.peers.control(id)).map(|mut peer| async move {
            let to = peer.envelope.to;
            let request = pb::FormRequest { envelope: Some(peer.envelope), all_are_new: tell_them };
            match network::within(FORM_WITHIN, peer.client.form(request)).await {
                Ok(response) if response.get_ref().is_new => true,
                Ok(_) => {
                    warn!(peer = to, "not forming a new cluster: this node is new, but a peer is not");
                    false
                }
                Err(status) => {
                    info!(peer = to, %status, "waiting for all nodes of a new cluster");
                    false
                }
            }
        });
        futures::future::join_all(answers).await.into_iter().all(|is_new| is_new)
    }

    async fn initialize(&self) -> Result<(), String> {
        self.voting.remember().map_err(|error| error.to_string())?;
        let members: BTreeMap<_, _> =
            self.voters.iter().map(|(id, address)| (*id, BasicNode::new(address))).collect();
        match self.raft.initialize(members).await {
            // It was, and this node was restarted before anybody was elected.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Tells who leads, whenever that changes, and why Raft ends if it fails. Ends with Raft. The one task that wakes with
/// every change of the metrics, of which there are several for each entry.
async fn digest(
    mut metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    leader: watch::Sender<Option<NodeId>>,
    failure: watch::Sender<Option<String>>,
) {
    loop {
        let (newest, fatal) = {
            let metrics = metrics.borrow_watched();
            let fatal = match &metrics.running_state {
                Err(openraft::errors::Fatal::Stopped) | Ok(()) => None,
                Err(fatal) => Some(fatal.to_string()),
            };
            (metrics.current_leader.map(NodeId), fatal)
        };
        leader.send_if_modified(|known| std::mem::replace(known, newest) != newest);
        if fatal.is_some() {
            failure.send_replace(fatal);
        }
        if metrics.changed().await.is_err() {
            // Kept as long as somebody may ask: without Raft there is no other leader and no other failure.
            failure.closed().await;
            return;
        }
    }
}

/// Opens what is on disk.
fn open(data_dir: PathBuf, limits: Limits) -> Result<(LogStore, StateMachine, Voting), StartError> {
    let failed = |operation| {
        let path = data_dir.clone();
        move |source| StartError::DataDir { operation, path, source }
    };
    std::fs::create_dir_all(&data_dir).map_err(failed("create the data directory"))?;
    // The log first: it locks the directory against a second process with a clear message.
    let log = LogStore::open(&data_dir.join("log"))?;
    let applied = AppliedStore::open(&data_dir.join("applied")).map_err(LoadError::Store)?;
    let log_state = log.state()?;
    let log_begins = log_state.purged.map_or(0, |purged| purged.index + 1);
    let state_machine = StateMachine::load(applied, limits, log_begins)?;
    let voting = Voting::at_start(&data_dir, &log_state).map_err(failed("mark a new voter in"))?;
    Ok((log, state_machine, voting))
}

fn openraft_config(timing: RaftTiming, voting: &Voting) -> openraft::Config {
    let millis = |length: Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "holdfast".to_owned(),
        heartbeat_interval: millis(timing.heartbeat_interval),
        election_timeout_min: millis(timing.election_timeout_min),
        election_timeout_max: millis(timing.election_timeout_max),
        install_snapshot_timeout: millis(SNAPSHOT_WITHIN),
        max_payload_entries: REPLICATE_ENTRIES_MAX,
        replication_lag_threshold: SNAPSHOT_LAG_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY_ENTRIES),
        max_in_snapshot_log_to_keep: KEEP_ENTRIES,
        // Followers write while the leader syncs, instead of after it.
        broadcast_submitted_on_append: Some(true),
        // A peer that was restarted should be spoken to within the shortest election timeout.
        backoff: "10ms 20ms 40ms ...100ms".to_owned(),
        enable_elect: voting.is_allowed(),
        enable_pre_vote: Some(true),
        // A restarted leader has forgotten its clock and must be elected like everybody else.
        enable_leader_restore: Some(false),
        // A node that lost its disk comes back with an empty log. `voting` makes that safe.
        allow_log_reversion: Some(true),
        ..openraft::Config::default()
    }
}
