//! Every decision that the cluster can agree on.

use std::fmt;

use super::ids::{CreateGuid, DurableFileId, Incarnation, Instance, NodeId, Owner, ShareName};
use super::open::OpenDescription;

/// One entry of the log that changes the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The SMB service of `node` has started, or its sidecar has. The same instance gets the incarnation
    /// that it had. A new one supersedes the node's incarnation before it, which is a `NodeDown` of that
    /// one if it was up: whoever proposes this has seen to it that the earlier service has ended. An
    /// instance that was superseded or declared down is refused for ever.
    RegisterNode {
        /// The node.
        node: NodeId,
        /// The name its SMB service gave itself.
        instance: Instance,
    },
    /// The failure detector has found this incarnation dead. Without effect if the node has gone on to
    /// a later incarnation, or is down already.
    NodeDown {
        /// The node.
        node: NodeId,
        /// The incarnation that is dead. A later one is not meant.
        incarnation: Incarnation,
    },
    /// Close every disconnected open whose deadline has passed. Which ones those are is decided here, by
    /// cluster time, not by the proposer.
    ExpireOpens,
    /// What an SMB node asks for. Fenced by incarnation and applied exactly once.
    FromSmbNode {
        /// Who asks.
        proposer: Proposer,
        /// For what.
        request: Request,
    },
}

/// Who proposes a request, and how its repetition is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposer {
    /// The node and the incarnation that it believes to be.
    pub owner: Owner,
    /// Counts the requests of this incarnation. A repetition carries the number of the original.
    pub sequence: u64,
    /// Every request below this sequence has been answered, so those answers can be forgotten. From the
    /// first request of a restarted sidecar on, also: whatever its earlier run still has on the way.
    pub first_outstanding: u64,
}

/// What an SMB node may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A client is about to be told that it has this open.
    Grant(Box<OpenDescription>),
    /// These opens of the proposer have changed. All of them, or none if one is refused. An open stays
    /// the open that it is: id, CreateGuid, owner's SID, share and file do not change, nor does its state.
    Update(Vec<OpenDescription>),
    /// The connection of this open of the proposer is gone, and the SMB server keeps the open. One that
    /// does not outlive its connection is closed.
    Disconnect(DurableFileId),
    /// A client is about to be told that it has its open back.
    Reclaim(Reclaim),
    /// The open is closed, or purged by somebody who wanted the file. An orphan can be purged by the node
    /// that serves its share.
    Close(DurableFileId),
    /// A client wants to connect to the share through the proposer. What others keep of the share's
    /// opens becomes orphaned; while a client of theirs is connected, this is refused.
    ServeShare(ShareName),
    /// The proposer has no tree connect to the share any more.
    ReleaseShare(ShareName),
}

/// A client's reconnect, as its SMB server understood it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaim {
    /// The open it wants back.
    pub durable_file_id: DurableFileId,
    /// The CreateGuid by which the open was made; zero for v1. A v1 reconnect names none, and its SMB
    /// server fills in what its own record of the open says.
    pub create_guid: CreateGuid,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegisterNode { node, instance } => write!(f, "register-node {node} instance={instance}"),
            Self::NodeDown { node, incarnation } => write!(f, "node-down {node}.{incarnation}"),
            Self::ExpireOpens => f.write_str("expire-opens"),
            Self::FromSmbNode { proposer, request } => {
                write!(f, "{} {proposer}{request:#}", request.verb())
            }
        }
    }
}

impl fmt::Display for Proposer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.owner, self.sequence)
    }
}

impl Request {
    /// Its name in logs and scripts.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Grant(_) => "grant",
            Self::Update(_) => "update",
            Self::Disconnect(_) => "disconnect",
            Self::Reclaim(_) => "reclaim",
            Self::Close(_) => "close",
            Self::ServeShare(_) => "serve-share",
            Self::ReleaseShare(_) => "release-share",
        }
    }
}

impl fmt::Display for Request {
    /// The arguments; the alternate form leaves the verb away.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            f.write_str(self.verb())?;
        }
        match self {
            Self::Grant(open) => write!(f, " open={} oplock={}", open.durable_file_id, open.oplock),
            Self::Update(opens) => {
                opens.iter().try_for_each(|open| write!(f, " open={}", open.durable_file_id))
            }
            Self::Disconnect(id) | Self::Close(id) => write!(f, " open={id}"),
            Self::Reclaim(reclaim) => write!(f, " open={}", reclaim.durable_file_id),
            Self::ServeShare(share) | Self::ReleaseShare(share) => write!(f, " share={share}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_one_line() {
        let owner = Owner { node: NodeId(1), incarnation: Incarnation(2) };
        let open = DurableFileId(7);
        let reclaim = Reclaim { durable_file_id: open, create_guid: CreateGuid::default() };
        let share = ShareName::new("Data");
        let ask = |request| {
            let proposer = Proposer { owner, sequence: 5, first_outstanding: 4 };
            Command::FromSmbNode { proposer, request }
        };
        for (command, line) in [
            (
                Command::RegisterNode { node: NodeId(1), instance: Instance([0xA1; 16]) },
                "register-node 1 instance=a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1",
            ),
            (Command::NodeDown { node: NodeId(1), incarnation: Incarnation(2) }, "node-down 1.2"),
            (Command::ExpireOpens, "expire-opens"),
            (ask(Request::Update(Vec::new())), "update 1.2#5"),
            (ask(Request::Disconnect(open)), "disconnect 1.2#5 open=7"),
            (ask(Request::Reclaim(reclaim)), "reclaim 1.2#5 open=7"),
            (ask(Request::Close(open)), "close 1.2#5 open=7"),
            (ask(Request::ServeShare(share.clone())), "serve-share 1.2#5 share=data"),
            (ask(Request::ReleaseShare(share)), "release-share 1.2#5 share=data"),
        ] {
            assert_eq!(command.to_string(), line);
        }
        assert_eq!(Request::Close(open).to_string(), "close open=7");
    }
}
