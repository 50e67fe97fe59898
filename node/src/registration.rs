//! The two ends of an incarnation of this node's SMB service, whichever kind of server it is.

use std::sync::Arc;
use std::time::Duration;

use statedb::{Arbiter, Command, Instance, LogId, NodeId, Outcome, Owner};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::proposer::Proposer;
use crate::raft::{ProposeError, RaftNode};

/// Between two attempts to register or to declare down, while there is no quorum or no leader.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// An incarnation that has just been registered.
#[derive(Debug)]
pub struct Registered {
    /// Who it is.
    pub owner: Owner,
    /// What asks in its name.
    pub proposer: Arc<Proposer>,
    /// Cancelled when it is over, for whichever reason.
    pub ended: CancellationToken,
}

/// Registers an instance of the SMB service of `node`, and waits until this node knows all that came before. `None`
/// if the instance must end, or this process does. An instance that is known keeps the arbiter that it has.
pub async fn register(
    raft: &Arc<RaftNode>,
    node: NodeId,
    instance: Instance,
    arbiter: Arbiter,
) -> Option<Registered> {
    let registration = Command::RegisterNode { node, instance, arbiter };
    let (log_id, outcome) = propose_until_answered(raft, registration).await?;
    let (incarnation, first_sequence) = match outcome {
        Outcome::Registered { incarnation, first_sequence } => (incarnation, first_sequence),
        Outcome::Rejected(rejection) => {
            warn!(%rejection, "an SMB service that was declared down is still there, and must end");
            return None;
        }
        other => {
            error!(outcome = %other, "the SMB service cannot be registered");
            return None;
        }
    };
    raft.applied_through(log_id.index).await;
    let owner = Owner { node, incarnation };
    let ended = CancellationToken::new();
    let proposer = Proposer::start(Arc::clone(raft), owner, first_sequence, ended.clone());
    Some(Registered { owner, proposer, ended })
}

/// Declares an incarnation of this node down of which nobody is left who could serve.
pub async fn declare_down(raft: &RaftNode, owner: Owner) {
    let verdict = Command::NodeDown { node: owner.node, incarnation: owner.incarnation };
    if let Some((_, outcome)) = propose_until_answered(raft, verdict).await {
        info!(%outcome, "the cluster knows that the SMB service of this node has ended");
    }
}

/// Asks until there is an answer; `None` when this process ends.
async fn propose_until_answered(raft: &RaftNode, command: Command) -> Option<(LogId, Outcome)> {
    loop {
        match raft.propose(command.clone()).await {
            Ok(answer) => return Some(answer),
            Err(ProposeError::ShuttingDown) => return None,
            Err(error) => debug!(%error, %command, "no definite answer yet, asking again"),
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}
