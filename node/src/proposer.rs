//! Requests of this node's SMB service, each answered exactly once.
//!
//! A request that met a leader change, or no quorum, is asked again under the same sequence until the cluster
//! has a definite answer; the replicated state remembers the first one. So a caller either learns what was
//! decided, or that this incarnation is over.
//!
//! # Requests that wait
//!
//! What has to wait until others give up what they cache is answered `BreakPending`, and decided later. Its final
//! answer is an event, which every node hears when it has applied the entry that decides:
//!
//! ```text
//!  ask ──► BreakPending ──► Waiting ──► event RequestFinished ──► final answer
//!             ▲                │
//!             └── asked again ─┘ events were missed, and it does not wait any more
//! ```
//!
//! A request that waits does not hold up the others: they may run ahead of it by a few hundred while the cluster
//! still keeps its answer. After that its answer is the event alone. If events are missed then, which takes a node that
//! was too far behind for entries and has got the whole state, the answer can be lost ([`RequestError::AnswerLost`]).
//!
//! A request that may wait, and whose caller loses interest before it is decided, is cancelled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt;
use statedb::{Command, EventKind, LogId, Outcome, Owner, Proposer as Identity, Rejection, Request, State};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::events::Subscription;
use crate::raft::{ProposeError, RaftNode};

/// Between two attempts at one request. Elections take hundreds of milliseconds, a reachable leader
/// answers in one; in between lies what loses little time without asking in vain too often.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// How far other requests run ahead of one that waits before the cluster forgets its answer. All answers from its own
/// on are kept until then, and stored again with each: a few hundred cost little, the whole window would cost more than
/// the requests themselves.
const RUN_AHEAD_MAX: u64 = 256;

/// How many requests are cancelled at the same time whose callers have lost interest.
const CANCELS_AT_ONCE: usize = 16;

/// There will be no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The incarnation is over: it was declared down or superseded, or this process is ending.
    #[error("this incarnation of the SMB service has ended")]
    Ended,
    /// It cannot be proposed at all.
    #[error("the request cannot be proposed: {reason}")]
    Refused {
        /// Why not.
        reason: String,
    },
    /// It had to wait, was decided meanwhile, and this node has not heard how.
    #[error(
        "the request was decided while this node was far behind, and its answer is lost: look at the state"
    )]
    AnswerLost,
}

/// What was decided, and an entry of the log by which it was, or a later one. Whoever wants to see the effects in this
/// node's state waits until that is applied.
pub type Decided = (LogId, Outcome);

/// Makes requests in the name of one incarnation.
#[derive(Debug)]
pub struct Proposer {
    raft: Arc<RaftNode>,
    owner: Owner,
    /// Cancelled when the incarnation is over.
    ended: CancellationToken,
    sequences: Mutex<Sequences>,
    /// Requests to be cancelled. No more of them than requests were under way.
    given_up: mpsc::UnboundedSender<u64>,
}

/// A first answer.
#[derive(Debug)]
pub enum Answer<'a> {
    /// There is no other.
    Decided(Decided),
    /// The request waits.
    Waiting(Waiting<'a>),
}

impl Proposer {
    /// A proposer for `owner`, which counts its requests from `first_sequence` on, as its registration said. This node
    /// has applied that registration.
    #[must_use]
    pub fn start(
        raft: Arc<RaftNode>,
        owner: Owner,
        first_sequence: u64,
        ended: CancellationToken,
    ) -> Arc<Self> {
        let (given_up, to_cancel) = mpsc::unbounded_channel();
        let (next_event, limits) = raft.read(|state| (state.next_event(), state.limits()));
        let events = raft.events().subscribe(next_event);
        let sequences = Mutex::new(Sequences::new(first_sequence, limits.outstanding_max));
        let proposer = Arc::new(Self { raft, owner, ended, sequences, given_up });
        tokio::spawn(Arc::clone(&proposer).listen(events));
        tokio::spawn(Arc::clone(&proposer).cancel(to_cancel));
        proposer
    }

    /// In whose name.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Asks until there is a definite answer. Waits as long as there is no quorum; the self-fence ends that.
    ///
    /// # Errors
    ///
    /// When the incarnation is over, which does not mean that the request was not committed; when the request is
    /// too large for the log; and see [`RequestError::AnswerLost`].
    pub async fn propose(&self, request: Request) -> Result<Decided, RequestError> {
        match self.ask(request).await? {
            Answer::Decided(decided) => Ok(decided),
            Answer::Waiting(waiting) => waiting.decided().await,
        }
    }

    /// Asks until there is an answer, be it that the request has to wait.
    ///
    /// # Errors
    ///
    /// As [`Self::propose`].
    pub async fn ask(&self, request: Request) -> Result<Answer<'_>, RequestError> {
        let outstanding = Outstanding::begin(self, &request);
        Ok(match self.first_answer(outstanding.sequence, &request).await? {
            FirstAnswer::Decided(decided) => {
                outstanding.end();
                Answer::Decided(decided)
            }
            FirstAnswer::Waits(end) => Answer::Waiting(Waiting { outstanding, request, end }),
        })
    }

    async fn first_answer(&self, sequence: u64, request: &Request) -> Result<FirstAnswer, RequestError> {
        loop {
            let (log_id, outcome) = tokio::select! {
                answer = self.ask_until_answered(sequence, request) => answer?,
                () = self.ended.cancelled() => return Err(RequestError::Ended),
            };
            match outcome {
                Outcome::Rejected(Rejection::AnswerForgotten { .. }) => return Err(RequestError::AnswerLost),
                Outcome::BreakPending => {}
                outcome => return Ok(FirstAnswer::Decided((log_id, outcome))),
            }
            match self.sequences().wait(sequence) {
                Ok(end) => return Ok(FirstAnswer::Waits(end)),
                Err(Heard::End(outcome)) => {
                    return Ok(FirstAnswer::Decided((self.newest_applied(log_id), outcome)));
                }
                // Its end may be among what was missed.
                Err(Heard::Nothing | Heard::NotAll) => {}
            }
        }
    }

    async fn ask_until_answered(&self, sequence: u64, request: &Request) -> Result<Decided, RequestError> {
        loop {
            let first_outstanding = self.sequences().first_outstanding();
            let identity = Identity { owner: self.owner, sequence, first_outstanding };
            let command = Command::FromSmbNode { proposer: identity, request: request.clone() };
            match self.raft.propose(command).await {
                Ok((_, Outcome::Rejected(rejection @ Rejection::Fenced { .. }))) => {
                    debug!(%rejection, "the incarnation is fenced");
                    self.ended.cancel();
                    return Err(RequestError::Ended);
                }
                Ok((_, Outcome::Rejected(Rejection::TooManyOutstanding { .. }))) => {}
                Ok(answer) => return Ok(answer),
                Err(ProposeError::ShuttingDown) => return Err(RequestError::Ended),
                Err(ProposeError::Refused { reason }) => return Err(RequestError::Refused { reason }),
                Err(error) => debug!(%error, sequence, "no definite answer yet, asking again"),
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// Hears how requests end that wait.
    async fn listen(self: Arc<Self>, mut events: Subscription) {
        loop {
            let read = tokio::select! {
                read = events.read() => read,
                () = self.ended.cancelled() => return,
            };
            match read {
                Ok(events) => {
                    for event in events.iter().filter(|event| event.to == Some(self.owner)) {
                        if let EventKind::RequestFinished { sequence, outcome } = &event.kind {
                            self.sequences().end(*sequence, outcome);
                        }
                    }
                }
                Err(missed) => {
                    debug!(%missed, "asking how requests have ended that do not wait any more");
                    let (next_event, waiting) = self.raft.read(|state| {
                        let mine = state.waiting_requests().filter(|waiting| waiting.owner == self.owner);
                        (state.next_event(), mine.map(|waiting| waiting.sequence).collect())
                    });
                    events.go_on_from(next_event);
                    self.sequences().missed(&waiting);
                }
            }
        }
    }

    /// Cancels requests in which nobody is interested any more.
    async fn cancel(self: Arc<Self>, to_cancel: mpsc::UnboundedReceiver<u64>) {
        let cancelling =
            UnboundedReceiverStream::new(to_cancel).for_each_concurrent(CANCELS_AT_ONCE, async |sequence| {
                if let Err(error) = self.propose(Request::Cancel { sequence }).await {
                    debug!(%error, sequence, "a request that nobody waits for is not cancelled");
                }
            });
        tokio::select! {
            () = cancelling => {}
            () = self.ended.cancelled() => {}
        }
    }

    /// The newest entry that is applied here, which is `log_id` or a later one.
    fn newest_applied(&self, log_id: LogId) -> LogId {
        self.raft.read(State::applied).map_or(log_id, |applied| applied.max(log_id))
    }

    fn sequences(&self) -> MutexGuard<'_, Sequences> {
        self.sequences.lock().expect("no holder of this lock can panic")
    }
}

enum FirstAnswer {
    Decided(Decided),
    /// Its end comes here. Nothing comes if it was missed.
    Waits(oneshot::Receiver<Outcome>),
}

/// A request that waits until others have given up what they cache. When this is dropped before it is decided, it is
/// cancelled.
#[derive(Debug)]
pub struct Waiting<'a> {
    outstanding: Outstanding<'a>,
    request: Request,
    end: oneshot::Receiver<Outcome>,
}

impl Waiting<'_> {
    /// The sequence of the request, by which it can be cancelled.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.outstanding.sequence
    }

    /// Waits until it is decided: at the latest when the breaks that it waits for are overdue.
    ///
    /// # Errors
    ///
    /// As [`Proposer::propose`].
    pub async fn decided(mut self) -> Result<Decided, RequestError> {
        let Outstanding { proposer, sequence, .. } = self.outstanding;
        let decided = loop {
            let end = tokio::select! {
                end = &mut self.end => end,
                () = proposer.ended.cancelled() => return Err(RequestError::Ended),
            };
            if let Ok(outcome) = end {
                // The event came after its entry was applied here.
                break (proposer.newest_applied(LogId::default()), outcome);
            }
            proposer.sequences().ask_again(sequence);
            match proposer.first_answer(sequence, &self.request).await? {
                FirstAnswer::Decided(decided) => break decided,
                FirstAnswer::Waits(end) => self.end = end,
            }
        };
        self.outstanding.end();
        Ok(decided)
    }
}

/// A sequence that is in use until this is dropped, also when the caller loses interest in the answer.
#[derive(Debug)]
struct Outstanding<'a> {
    proposer: &'a Proposer,
    sequence: u64,
    /// Whether it would go on waiting, for nobody.
    is_to_be_cancelled: bool,
}

impl<'a> Outstanding<'a> {
    fn begin(proposer: &'a Proposer, request: &Request) -> Self {
        let is_to_be_cancelled = matches!(request, Request::Create(_) | Request::Operate { .. });
        Self { proposer, sequence: proposer.sequences().begin(), is_to_be_cancelled }
    }

    /// Its request is decided.
    fn end(mut self) {
        self.is_to_be_cancelled = false;
    }
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        self.proposer.sequences().forget(self.sequence);
        if self.is_to_be_cancelled {
            // Without effect when the incarnation is over.
            let _ = self.proposer.given_up.send(self.sequence);
        }
    }
}

/// The sequences in use.
#[derive(Debug)]
struct Sequences {
    next: u64,
    /// [`RUN_AHEAD_MAX`], or less where the cluster has few answers to keep.
    run_ahead_max: u64,
    /// Requests without any answer, and what was heard of their end meanwhile.
    asked: BTreeMap<u64, Heard>,
    /// Requests that wait, and who waits for them.
    waiting: BTreeMap<u64, oneshot::Sender<Outcome>>,
}

/// What was heard of the end of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    /// Nothing, and nothing was missed.
    Nothing,
    /// Nothing, and something was missed.
    NotAll,
    /// This is it.
    End(Outcome),
}

impl Sequences {
    fn new(first: u64, outstanding_max: u64) -> Self {
        let run_ahead_max = RUN_AHEAD_MAX.min(outstanding_max / 2);
        Self { next: first, run_ahead_max, asked: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    /// The first sequence whose answer the cluster has to keep.
    fn first_outstanding(&self) -> u64 {
        let first_asked = self.asked.first_key_value().map_or(self.next, |(sequence, _)| *sequence);
        let first_waiting = self.waiting.first_key_value().map_or(self.next, |(sequence, _)| *sequence);
        first_asked.min(first_waiting.max(self.next.saturating_sub(self.run_ahead_max)))
    }

    fn begin(&mut self) -> u64 {
        let sequence = self.next;
        self.next += 1;
        self.ask_again(sequence);
        sequence
    }

    fn ask_again(&mut self, sequence: u64) {
        self.asked.insert(sequence, Heard::Nothing);
    }

    /// A request that was asked for has to wait. Returns what will hear of its end, if that is still to come.
    fn wait(&mut self, sequence: u64) -> Result<oneshot::Receiver<Outcome>, Heard> {
        match self.asked.insert(sequence, Heard::Nothing) {
            Some(heard @ (Heard::End(_) | Heard::NotAll)) => Err(heard),
            Some(Heard::Nothing) | None => {
                let (sender, receiver) = oneshot::channel();
                self.asked.remove(&sequence);
                self.waiting.insert(sequence, sender);
                Ok(receiver)
            }
        }
    }

    /// A request that had to wait is decided.
    fn end(&mut self, sequence: u64, outcome: &Outcome) {
        if let Some(sender) = self.waiting.remove(&sequence) {
            // It may have been given up meanwhile.
            let _ = sender.send(outcome.clone());
        } else if let Some(heard) = self.asked.get_mut(&sequence) {
            *heard = Heard::End(outcome.clone());
        }
    }

    /// Ends of requests were missed: of those that do not wait any more.
    fn missed(&mut self, still_waiting: &BTreeSet<u64>) {
        // Whoever waits for one that is dropped here asks again.
        self.waiting.retain(|sequence, _| still_waiting.contains(sequence));
        self.asked
            .values_mut()
            .filter(|heard| **heard == Heard::Nothing)
            .for_each(|heard| *heard = Heard::NotAll);
    }

    fn forget(&mut self, sequence: u64) {
        self.asked.remove(&sequence);
        self.waiting.remove(&sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_as_long_as_its_request_is_outstanding() {
        let mut sequences = Sequences::new(100, 4096);
        assert_eq!(sequences.first_outstanding(), 100);
        assert_eq!((sequences.begin(), sequences.begin()), (100, 101));
        sequences.forget(101);
        assert_eq!(sequences.first_outstanding(), 100);
        sequences.forget(100);
        assert_eq!(sequences.first_outstanding(), 102);
    }

    #[test]
    fn a_request_that_waits_holds_others_up_no_further_than_a_few_hundred() {
        let mut sequences = Sequences::new(100, 4096);
        let waiting = sequences.begin();
        let _end = sequences.wait(waiting).expect("its end is still to come");
        for _ in 0..RUN_AHEAD_MAX - 1 {
            let other = sequences.begin();
            sequences.forget(other);
            assert_eq!(sequences.first_outstanding(), waiting);
        }
        let other = sequences.begin();
        sequences.forget(other);
        assert_eq!(sequences.first_outstanding(), waiting + 1);
        // One that is only slow holds them up as long as it takes: nobody else knows its answer.
        let slow = sequences.begin();
        for _ in 0..2 * RUN_AHEAD_MAX {
            let other = sequences.begin();
            sequences.forget(other);
        }
        assert_eq!(sequences.first_outstanding(), slow);
    }

    #[test]
    fn the_end_of_a_request_is_heard_before_and_after_the_news_that_it_waits() {
        let mut sequences = Sequences::new(0, 4096);
        let early = sequences.begin();
        sequences.end(early, &Outcome::Proceed);
        assert_eq!(sequences.wait(early).expect_err("it was heard"), Heard::End(Outcome::Proceed));

        let late = sequences.begin();
        let mut end = sequences.wait(late).expect("its end is still to come");
        assert!(end.try_recv().is_err());
        sequences.end(late, &Outcome::Cancelled);
        assert_eq!(end.try_recv(), Ok(Outcome::Cancelled));
        // Of an earlier run, or given up.
        sequences.forget(early);
        sequences.end(7, &Outcome::Cancelled);
        assert!(sequences.waiting.is_empty() && sequences.asked.is_empty());
    }

    #[test]
    fn after_a_gap_all_ask_again_but_those_that_are_known_to_wait() {
        let mut sequences = Sequences::new(0, 4096);
        let [waits, ended, asked] = [(); 3].map(|()| sequences.begin());
        let mut ends = [waits, ended].map(|sequence| sequences.wait(sequence).expect("it is to come"));
        sequences.missed(&BTreeSet::from([waits]));
        assert_eq!(ends[0].try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(ends[1].try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(sequences.wait(asked).expect_err("it may have ended"), Heard::NotAll);
        // The cluster says once more that it waits.
        let mut end = sequences.wait(asked).expect("nothing was missed since");
        sequences.end(asked, &Outcome::Proceed);
        assert_eq!(end.try_recv(), Ok(Outcome::Proceed));
    }
}
