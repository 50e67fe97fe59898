//! Who lives: this node's signs of life to the leader, and the leader's verdicts.
//!
//! Three loops and one answer:
//!
//! - [`keep_alive`] runs on every node. It asks the leader, or itself, and extends the service lease by the answer.
//! - [`Leadership::answer`] is the leader's answer to such a question.
//! - [`lead`] runs on every node and does something only on the leader: it declares silent nodes down, and
//!   proposes to expire opens when the next deadline has come.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use statedb::{Command, NodeState, Outcome, Owner};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::Timing;
use crate::detector::Detector;
use crate::lease::ServiceLease;
use crate::raft::RaftNode;

/// How often the leader looks for overdue nodes and expired opens, as a fraction of the heartbeat interval: a
/// verdict comes late by no more than half a heartbeat.
const LOOKS_PER_HEARTBEAT: u32 = 2;

/// What the leader knows of the liveness of the nodes, shared by its loop and its answers.
#[derive(Debug)]
pub struct Leadership {
    timing: Timing,
    /// The term in which this node leads, and the detector of that term.
    detector: Mutex<Option<(u64, Detector)>>,
}

/// What the leader says to a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Go on; this long ago a quorum confirmed the leader.
    GoOn {
        /// Before the answer was given.
        quorum_age: Duration,
    },
    /// The incarnation is not up: it was declared down or superseded.
    Fenced,
    /// No answer now: the leader is new and does not know everything yet, or the verdict is on its way.
    AskAgain,
    /// This node does not lead.
    NotLeader,
}

impl Leadership {
    /// Of nobody yet.
    #[must_use]
    pub fn new(timing: Timing) -> Self {
        Self { timing, detector: Mutex::new(None) }
    }

    /// Answers a sign of life of `owner`, which arrived just now.
    #[must_use]
    pub fn answer(&self, raft: &RaftNode, owner: Owner) -> Answer {
        let now = Instant::now();
        // A leader that has not applied all that its predecessors committed might not know of a verdict.
        let Some(leading) = raft.leading() else { return Answer::NotLeader };
        let Some(quorum_acked) = raft.last_quorum_acked() else { return Answer::AskAgain };
        if !leading.caught_up {
            return Answer::AskAgain;
        }
        let mut detector = self.detector();
        let detector = self.of_term(&mut detector, leading.term, leading.since);
        if !detector.heard(owner, now) {
            return Answer::AskAgain;
        }
        // Looked up while the detector is locked: a verdict is proposed only after `overdue` has condemned.
        if !raft.read(|state| state.is_up(owner)) {
            return Answer::Fenced;
        }
        Answer::GoOn { quorum_age: now.saturating_duration_since(quorum_acked) }
    }

    /// The incarnations to declare down now, and the term in which this node may.
    fn overdue(&self, raft: &RaftNode) -> Option<(u64, Vec<Owner>)> {
        let leading = raft.leading().filter(|leading| leading.caught_up)?;
        let up = raft.read(|state| {
            let up = state.nodes().filter(|(_, node)| node.state == NodeState::Up);
            up.map(|(id, node)| Owner { node: id, incarnation: node.incarnation }).collect::<Vec<_>>()
        });
        let mut detector = self.detector();
        let overdue = self.of_term(&mut detector, leading.term, leading.since).overdue(up, Instant::now());
        Some((leading.term, overdue))
    }

    fn of_term<'a>(
        &self,
        detector: &'a mut Option<(u64, Detector)>,
        term: u64,
        since: Instant,
    ) -> &'a mut Detector {
        if detector.as_ref().is_none_or(|(of_term, _)| *of_term != term) {
            let timing = self.timing;
            *detector = Some((
                term,
                Detector::new(since, timing.node_down_after_election(), timing.node_down_after()),
            ));
        }
        &mut detector.as_mut().expect("it was just put there").1
    }

    fn detector(&self) -> MutexGuard<'_, Option<(u64, Detector)>> {
        self.detector.lock().expect("no holder of this lock can panic")
    }
}

/// Leads, whenever this node is the leader. Ends when `stop` is cancelled.
pub async fn lead(raft: Arc<RaftNode>, leadership: Arc<Leadership>, stop: CancellationToken) {
    let look_every = leadership.timing.heartbeat_interval() / LOOKS_PER_HEARTBEAT;
    while !sleep_or_stop(look_every, &stop).await {
        let Some((term, overdue)) = leadership.overdue(&raft) else { continue };
        for owner in overdue {
            warn!(node_id = %owner.node, incarnation = %owner.incarnation, "a node is silent, declaring it down");
            let verdict = Command::NodeDown { node: owner.node, incarnation: owner.incarnation };
            // A leader that was paused finds all silent when it goes on. Its successor must not take its word for it.
            match raft.propose_in_term(term, verdict).await {
                Ok((_, Outcome::NodeDown { disconnected, closed })) => info!(
                    node_id = %owner.node, incarnation = %owner.incarnation,
                    disconnected = disconnected.len(), closed = closed.len(),
                    "a node is down, its opens wait for their clients"
                ),
                Ok((_, outcome)) => debug!(%outcome, "an odd outcome of a verdict"),
                Err(error) => info!(%error, "the verdict is not committed yet"),
            }
        }
        if raft.read(|state| state.next_deadline()).is_some_and(|deadline| deadline <= raft.cluster_now()) {
            match raft.propose(Command::ExpireOpens).await {
                Ok((_, outcome)) => info!(%outcome, "opens whose time is up"),
                Err(error) => debug!(%error, "opens that are due are not expired yet"),
            }
        }
    }
}

/// Tells the leader that the SMB service lives, and extends its lease by the answers. `fenced` is told when the
/// cluster has declared it down. Ends when `stop` is cancelled.
pub async fn keep_alive(
    raft: Arc<RaftNode>,
    leadership: Arc<Leadership>,
    lease: Arc<ServiceLease>,
    fenced: impl Fn(Owner),
    stop: CancellationToken,
) {
    let (interval, patience) = (leadership.timing.heartbeat_interval(), leadership.timing.self_fence_after());
    let mut living = lease.owner();
    // One does not wait for the other: on a busy machine, or from a leader that is gone, answers take longer than the
    // interval, and every one counts. None is waited for longer than it could extend the lease, so there are few.
    let mut questions = FuturesUnordered::new();
    loop {
        let owner = *living.borrow_and_update();
        questions.extend(owner.map(|owner| {
            let (raft, leadership) = (&raft, &leadership);
            async move {
                let asked_at = Instant::now();
                let answer = match leadership.answer(raft, owner) {
                    Answer::NotLeader => raft.keep_alive(owner, patience).await,
                    answer => answer,
                };
                (owner, asked_at, answer)
            }
        }));
        let next_question = tokio::time::sleep(interval);
        tokio::pin!(next_question);
        loop {
            tokio::select! {
                () = &mut next_question => break,
                Some((owner, asked_at, answer)) = questions.next() => match answer {
                    Answer::GoOn { quorum_age } => lease.extend(owner, asked_at, quorum_age),
                    Answer::Fenced => fenced(owner),
                    Answer::AskAgain | Answer::NotLeader => {}
                },
                // A new incarnation gets its lease at once.
                changed = living.changed() => if changed.is_err() { return } else { break },
                () = stop.cancelled() => return,
            }
        }
    }
}

/// True if it was told to stop.
async fn sleep_or_stop(length: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(length) => false,
        () = stop.cancelled() => true,
    }
}
