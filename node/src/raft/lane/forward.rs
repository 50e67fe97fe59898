//! A follower's end of a lane of proposals.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use proto::pb::raft::v1 as pb;
use proto::pb::storage::v1 as stored;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::{Lane, LaneError};
use crate::telemetry::chain;

/// How many proposals may wait to be sent. More of them wait outside, each for as long as its proposer has patience.
const QUEUE_LEN: usize = 256;

/// With so many proposals under way those are forgotten whose proposers have lost patience: twice as many as an SMB service
/// may have under way by default.
const UNDER_WAY_LEN: usize = 8192;

/// Why a forwarded proposal has no answer.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum ForwardError {
    /// It was not sent: the peer cannot be reached.
    #[error("the peer cannot be reached")]
    NotSent,
    /// It was not sent: the peer refuses to talk to this node.
    #[error("the peer refuses to talk to this node: {0}")]
    Refused(String),
    /// It may have been sent. Nothing is known of its fate.
    #[error("the connection was lost before the answer came")]
    Lost,
}

/// Forwards proposals to one peer, over a lane that is made when it is first needed and again after it broke.
#[derive(Clone, Debug)]
pub(in super::super) struct Forwarder {
    queue: mpsc::Sender<Proposal>,
}

/// Who waits for the answer.
type Answer = oneshot::Sender<Result<pb::ProposeResponse, ForwardError>>;

#[derive(Debug)]
struct Proposal {
    command: stored::Command,
    answer: Answer,
}

impl Forwarder {
    /// Starts the task that owns the lane. It ends with the last of the forwarders.
    pub(in super::super) fn start(address: String, hello: pb::Hello, patience: Duration) -> Self {
        let (queue, proposals) = mpsc::channel(QUEUE_LEN);
        tokio::spawn(forward(address, hello, patience, proposals));
        Self { queue }
    }

    /// Has the peer propose a command, and waits for what it says.
    pub(in super::super) async fn propose(
        &self,
        command: stored::Command,
    ) -> Result<pb::ProposeResponse, ForwardError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Proposal { command, answer }).await.map_err(|_| ForwardError::NotSent)?;
        answered.await.unwrap_or(Err(ForwardError::Lost))
    }
}

async fn forward(
    address: String,
    hello: pb::Hello,
    patience: Duration,
    mut proposals: mpsc::Receiver<Proposal>,
) {
    while let Some(first) = proposals.recv().await {
        match super::open(&address, hello, patience).await {
            Ok(lane) => {
                let Err(error) = carry(lane, first, &mut proposals).await else { return };
                if !error.is_goodbye() {
                    warn!(error = %chain(&error), address, "a lane to a peer is given up");
                }
            }
            Err(error) => {
                debug!(error = %chain(&error), address, "a peer cannot be reached");
                // Those that have queued up meanwhile would not fare better.
                let mut refused = Some(first);
                while let Some(Proposal { answer, .. }) = refused {
                    let error = match &error {
                        LaneError::Refused(reason) => ForwardError::Refused(reason.clone()),
                        _ => ForwardError::NotSent,
                    };
                    // Its proposer may have lost patience.
                    let _ = answer.send(Err(error));
                    refused = proposals.try_recv().ok();
                }
            }
        }
    }
}

/// Sends proposals, and takes answers at the same time: who only sent would wait for a peer that waits for him to read.
/// Ends well when there will be no more proposals.
async fn carry(
    lane: Lane<pb::ProposeResponse>,
    first: Proposal,
    proposals: &mut mpsc::Receiver<Proposal>,
) -> Result<(), LaneError> {
    let under_way = UnderWay::default();
    let (mut outgoing, mut incoming) = lane.split();
    let send = async {
        let mut next = Some(first);
        let mut id = 0;
        while let Some(Proposal { command, answer }) = next {
            id += 1;
            under_way.begin(id, answer);
            outgoing.feed(pb::ProposeRequest { command: Some(command), id }).await?;
            next = match proposals.try_recv() {
                Ok(more) => Some(more),
                Err(_) => {
                    outgoing.flush().await?;
                    proposals.recv().await
                }
            };
        }
        Ok(())
    };
    let receive = async {
        while let Some(response) = incoming.next().await.transpose()? {
            under_way.end(response);
        }
        Err(LaneError::Closed)
    };
    // Whoever is still under way then is told that its fate is unknown.
    tokio::select! {
        sent = send => sent,
        received = receive => received,
    }
}

/// Proposals without an answer, by id.
#[derive(Default)]
struct UnderWay(Mutex<HashMap<u64, Answer>>);

impl UnderWay {
    fn begin(&self, id: u64, answer: Answer) {
        let mut proposals = self.lock();
        if proposals.len() >= UNDER_WAY_LEN {
            proposals.retain(|_, answer| !answer.is_closed());
        }
        proposals.insert(id, answer);
    }

    fn end(&self, response: pb::ProposeResponse) {
        // Its proposer may have lost patience.
        if let Some(answer) = self.lock().remove(&response.id) {
            let _ = answer.send(Ok(response));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Answer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
