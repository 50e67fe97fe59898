//! Requests of this node's SMB service, each answered exactly once.
//!
//! A request that met a leader change, or no quorum, is asked again under the same sequence until the cluster
//! has a definite answer; the replicated state remembers the first one. So a caller either learns what was
//! decided, or that this incarnation is over.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use statedb::{Command, LogId, Outcome, Owner, Proposer as Identity, Rejection, Request};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::raft::{ProposeError, RaftNode};

/// Between two attempts at one request. Elections take hundreds of milliseconds, a reachable leader
/// answers in one; in between lies what loses little time without asking in vain too often.
const RETRY_AFTER: Duration = Duration::from_millis(10);

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
}

/// Makes requests in the name of one incarnation.
#[derive(Debug)]
pub struct Proposer {
    raft: Arc<RaftNode>,
    owner: Owner,
    /// Cancelled when the incarnation is over.
    ended: CancellationToken,
    sequences: Mutex<Sequences>,
}

#[derive(Debug)]
struct Sequences {
    next: u64,
    outstanding: BTreeSet<u64>,
}

impl Sequences {
    fn first_outstanding(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next)
    }
}

impl Proposer {
    /// A proposer for `owner`, which counts its requests from `first_sequence` on, as its registration said.
    #[must_use]
    pub fn new(raft: Arc<RaftNode>, owner: Owner, first_sequence: u64, ended: CancellationToken) -> Self {
        let sequences = Sequences { next: first_sequence, outstanding: BTreeSet::new() };
        Self { raft, owner, ended, sequences: Mutex::new(sequences) }
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
    /// When the incarnation is over, which does not mean that the request was not committed; or when the request is
    /// too large for the log.
    pub async fn propose(&self, request: Request) -> Result<(LogId, Outcome), RequestError> {
        let outstanding = Outstanding::begin(&self.sequences);
        tokio::select! {
            answer = self.ask_until_answered(outstanding.sequence, &request) => answer,
            () = self.ended.cancelled() => Err(RequestError::Ended),
        }
    }

    async fn ask_until_answered(
        &self,
        sequence: u64,
        request: &Request,
    ) -> Result<(LogId, Outcome), RequestError> {
        loop {
            let first_outstanding = lock(&self.sequences).first_outstanding();
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
}

/// A sequence that is in use until this is dropped, also when the caller loses interest in the answer.
struct Outstanding<'a> {
    sequences: &'a Mutex<Sequences>,
    sequence: u64,
}

impl<'a> Outstanding<'a> {
    fn begin(sequences: &'a Mutex<Sequences>) -> Self {
        let mut locked = lock(sequences);
        let sequence = locked.next;
        locked.next += 1;
        locked.outstanding.insert(sequence);
        Self { sequences, sequence }
    }
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        lock(self.sequences).outstanding.remove(&self.sequence);
    }
}

fn lock(sequences: &Mutex<Sequences>) -> MutexGuard<'_, Sequences> {
    sequences.lock().expect("no holder of this lock can panic")
}
