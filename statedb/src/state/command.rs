//! Every decision that the cluster can agree on.

use std::fmt;
use std::sync::Arc;

use super::byte_range_lock::Lock;
use super::create::{Create, Dialect};
use super::ids::{
    CreateGuid, DurableFileId, FileKey, Incarnation, Instance, LeaseId, NodeId, Owner, SessionId, ShareName,
    Sid,
};
use super::node::Arbiter;
use super::open::{ImageDigest, OpenDescription};
use super::oplock::{LeaseState, OplockLevel};
use super::time::Millis;

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
        /// Who decides between the opens of this SMB service and others.
        arbiter: Arbiter,
    },
    /// The failure detector has found this incarnation dead. Without effect if the node has gone on to
    /// a later incarnation, or is down already.
    NodeDown {
        /// The node.
        node: NodeId,
        /// The incarnation that is dead. A later one is not meant.
        incarnation: Incarnation,
    },
    /// Close every disconnected open whose deadline has passed, and end every break whose acknowledgement is
    /// overdue. Which ones those are is decided here, by cluster time, not by the proposer.
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
///
/// An SMB server that lets the cluster decide ([`Arbiter::Cluster`]) asks by `Create` for every open. One that
/// decides itself reports what it has decided: `Grant`, `Update`, `Reclaim`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A client wants to open a file, or to have an open back.
    Create(Box<Create>),
    /// The client of a request that waits for a break does not want it any more, or is gone.
    Cancel {
        /// The sequence under which it was asked for.
        sequence: u64,
    },
    /// A client has answered an oplock break (MS-SMB2 3.3.5.22.1).
    AckOplockBreak {
        /// The open.
        open: DurableFileId,
        /// The level that it goes down to.
        level: OplockLevel,
    },
    /// A client has answered a lease break (MS-SMB2 3.3.5.22.2).
    AckLeaseBreak {
        /// The lease.
        lease: LeaseId,
        /// What it goes down to.
        state: LeaseState,
    },
    /// A client locks or unlocks byte ranges (MS-SMB2 3.3.5.14).
    Lock(Lock),
    /// A client is about to do something to the file that breaks what others cache of it.
    Operate {
        /// Through this open.
        open: DurableFileId,
        /// What.
        operation: Operation,
    },
    /// Something of an open of the proposer has changed that nobody else has to agree to.
    Note(Note),
    /// FSCTL_LMR_REQUEST_RESILIENCY (MS-SMB2 3.3.5.15.9).
    RequestResiliency {
        /// On this open.
        open: DurableFileId,
        /// How long it shall outlive its connection; 0 leaves it to the server.
        timeout: Millis,
        /// What the connection negotiated.
        dialect: Dialect,
    },
    /// A session is over: its last connection is lost, or its client has logged off. Its opens are kept or closed
    /// as the protocol says.
    EndSession(SessionId),
    /// A client of the proposer has set up a session in the place of this one, which may be on another node.
    ReplaceSession {
        /// `PreviousSessionId`.
        previous: SessionId,
        /// The user of both: the session of another user is left alone.
        user: Sid,
    },
    /// A client has disconnected from a share: its opens there are closed (MS-SMB2 3.3.5.8).
    EndTreeConnect {
        /// In this session.
        session: SessionId,
        /// From this share.
        share: ShareName,
    },
    /// A file that was to be deleted is deleted, or its SMB server has found that it cannot be.
    FileDeleted(FileKey),
    /// A client is about to be told that it has this open.
    Grant(Box<OpenDescription>),
    /// These opens of the proposer have changed, or such as are in records that it has together with others. All of
    /// them, or none if one is refused. An open stays the open that it is: id, CreateGuid, owner's SID, share and file
    /// do not change, nor does its state.
    Update(Update),
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

/// Opens that are not as they were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// As they are now.
    pub opens: Vec<OpenDescription>,
    /// What the proposer has made them of: the digest of the image that each of them had then, in the same order. If an
    /// open has another one by now, another SMB server that has its records too was faster, and nothing is changed.
    /// Empty if nobody else can have changed them.
    pub replaces: Vec<ImageDigest>,
}

impl From<Vec<OpenDescription>> for Update {
    /// Of opens that nobody else can have changed.
    fn from(opens: Vec<OpenDescription>) -> Self {
        Self { opens, replaces: Vec::new() }
    }
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

/// Something that a client does to a file, as far as others may have cached what it changes (MS-FSA 2.1.4.12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Data are written, or the file is made longer or shorter.
    Write,
    /// Times, attributes or a security descriptor are changed: of interest to who caches the directory alone.
    SetMetadata,
    /// The file gets another name.
    Rename {
        /// Its path from now on.
        path: Arc<str>,
        /// The directory that it will be in.
        parent_directory: Option<FileKey>,
    },
    /// FileDispositionInformation: the file shall be deleted when nobody has it open any more, or shall not.
    SetDeletePending(bool),
}

/// What has changed of an open; `None` for what has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The open.
    pub open: DurableFileId,
    /// FilePositionInformation.
    pub position: Option<u64>,
    /// What the SMB server needs to rebuild the open.
    pub image: Option<Arc<[u8]>>,
    /// Whether its client has used it, so that a CREATE cannot be a replay of its own any more.
    pub is_used: bool,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegisterNode { node, instance, arbiter } => {
                write!(f, "register-node {node} instance={instance} arbiter={arbiter}")
            }
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
            Self::Create(_) => "create",
            Self::Cancel { .. } => "cancel",
            Self::AckOplockBreak { .. } => "ack-oplock-break",
            Self::AckLeaseBreak { .. } => "ack-lease-break",
            Self::Lock(_) => "lock",
            Self::Operate { operation, .. } => operation.verb(),
            Self::Note(_) => "note",
            Self::RequestResiliency { .. } => "request-resiliency",
            Self::EndSession(_) => "end-session",
            Self::ReplaceSession { .. } => "replace-session",
            Self::EndTreeConnect { .. } => "end-tree-connect",
            Self::FileDeleted(_) => "file-deleted",
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

impl Operation {
    fn verb(&self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::SetMetadata => "set-metadata",
            Self::Rename { .. } => "rename",
            Self::SetDeletePending(_) => "set-delete-pending",
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
            Self::Create(create) => {
                write!(f, " share={} path={} oplock={}", create.share.name, create.path, create.requested)
            }
            Self::Cancel { sequence } => write!(f, " sequence={sequence}"),
            Self::AckOplockBreak { open, level } => write!(f, " open={open} level={level}"),
            Self::AckLeaseBreak { lease, state } => write!(f, " key={} state={state}", lease.key),
            Self::Lock(lock) => write!(f, " open={}", lock.open),
            Self::Operate { open, operation: Operation::SetDeletePending(pending) } => {
                write!(f, " open={open} pending={pending}")
            }
            Self::Operate { open, operation: Operation::Rename { path, .. } } => {
                write!(f, " open={open} path={path}")
            }
            Self::Operate { open, .. } => write!(f, " open={open}"),
            Self::Note(note) => write!(f, " open={}", note.open),
            Self::RequestResiliency { open, timeout, .. } => write!(f, " open={open} timeout={timeout}"),
            Self::EndSession(session) => write!(f, " session={session}"),
            Self::ReplaceSession { previous, user } => write!(f, " previous={previous} user={user}"),
            Self::EndTreeConnect { session, share } => write!(f, " session={session} share={share}"),
            Self::FileDeleted(file) => write!(f, " file={file}"),
            Self::Grant(open) => write!(f, " open={} oplock={}", open.durable_file_id, open.oplock),
            Self::Update(update) => {
                update.opens.iter().try_for_each(|open| write!(f, " open={}", open.durable_file_id))
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
    use crate::state::byte_range_lock::LockSequence;
    use crate::state::create::CreateContexts;
    use crate::state::fixtures;
    use crate::state::ids::{ClientGuid, LeaseKey};
    use crate::state::open::Durability;
    use crate::state::oplock::Oplock;

    #[test]
    fn every_command_is_one_line() {
        let owner = Owner { node: NodeId(1), incarnation: Incarnation(2) };
        let open = DurableFileId(7);
        let reclaim = Reclaim { durable_file_id: open, create_guid: CreateGuid::default() };
        let share = ShareName::new("Data");
        let lease = LeaseId { client_guid: ClientGuid([1; 16]), key: LeaseKey([9; 16]) };
        let session = SessionId(70);
        let file = FileKey { device: 0xFD01, inode: 42, extid: 0 };
        let lock = Lock {
            open,
            elements: Vec::new(),
            sequence: LockSequence::default(),
            dialect: Dialect::Smb311,
            multichannel: false,
        };
        let note = Note { open, position: None, image: None, is_used: true };
        let granted = fixtures::disconnected(Oplock::Batch, Durability::DurableV2).description;
        let ask = |request| {
            let proposer = Proposer { owner, sequence: 5, first_outstanding: 4 };
            Command::FromSmbNode { proposer, request }
        };
        let operate = |operation| ask(Request::Operate { open, operation });
        for (command, line) in [
            (
                Command::RegisterNode {
                    node: NodeId(1),
                    instance: Instance([0xA1; 16]),
                    arbiter: Arbiter::SmbServer,
                },
                "register-node 1 instance=a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1 arbiter=smb-server",
            ),
            (Command::NodeDown { node: NodeId(1), incarnation: Incarnation(2) }, "node-down 1.2"),
            (Command::ExpireOpens, "expire-opens"),
            (
                ask(Request::Create(Box::new(fixtures::create(Oplock::Batch, CreateContexts::default())))),
                "create 1.2#5 share=data path=report.txt oplock=batch",
            ),
            (ask(Request::Cancel { sequence: 4 }), "cancel 1.2#5 sequence=4"),
            (
                ask(Request::AckOplockBreak { open, level: OplockLevel::LevelII }),
                "ack-oplock-break 1.2#5 open=7 level=level2",
            ),
            (
                ask(Request::AckLeaseBreak { lease, state: LeaseState(LeaseState::READ) }),
                "ack-lease-break 1.2#5 key=09090909090909090909090909090909 state=R",
            ),
            (ask(Request::Lock(lock)), "lock 1.2#5 open=7"),
            (operate(Operation::Write), "write 1.2#5 open=7"),
            (operate(Operation::SetMetadata), "set-metadata 1.2#5 open=7"),
            (
                operate(Operation::Rename { path: "new.txt".into(), parent_directory: None }),
                "rename 1.2#5 open=7 path=new.txt",
            ),
            (operate(Operation::SetDeletePending(true)), "set-delete-pending 1.2#5 open=7 pending=true"),
            (ask(Request::Note(note)), "note 1.2#5 open=7"),
            (
                ask(Request::RequestResiliency { open, timeout: Millis(1_500), dialect: Dialect::Smb210 }),
                "request-resiliency 1.2#5 open=7 timeout=1500ms",
            ),
            (ask(Request::EndSession(session)), "end-session 1.2#5 session=70"),
            (
                ask(Request::ReplaceSession { previous: session, user: Sid("S-1-1-0".into()) }),
                "replace-session 1.2#5 previous=70 user=S-1-1-0",
            ),
            (
                ask(Request::EndTreeConnect { session, share: share.clone() }),
                "end-tree-connect 1.2#5 session=70 share=data",
            ),
            (ask(Request::FileDeleted(file)), "file-deleted 1.2#5 file=fd01:42:0"),
            (ask(Request::Grant(Box::new(granted))), "grant 1.2#5 open=7 oplock=batch"),
            (ask(Request::Update(Vec::new().into())), "update 1.2#5"),
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
