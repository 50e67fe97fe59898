//! What a proposer is told.

use std::fmt;

use super::ids::{DurableFileId, FileKey, Incarnation, LeaseId, Owner, ShareName};
use super::open::CreateAction;
use super::oplock::Oplock;
use super::time::{Millis, Timestamp};

/// The result of an applied command. The same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The node may act under this incarnation.
    Registered {
        /// New for a new instance; what it had for one that was known.
        incarnation: Incarnation,
        /// Where the proposer starts to count its requests. It is above every sequence that an earlier
        /// run of the same sidecar can have on the way, so none of those is mistaken for one of this run.
        first_sequence: u64,
    },
    /// The incarnation is fenced. Nothing has changed if it was already.
    NodeDown {
        /// The opens that are orphans now: they wait for their clients, and no SMB server has them.
        disconnected: Vec<DurableFileId>,
        /// The opens that do not outlive a connection and are closed.
        closed: Vec<DurableFileId>,
    },
    /// The time of these opens, or of the acknowledgements of these breaks, is up.
    Expired {
        /// What is closed, in order of the deadlines.
        closed: Vec<DurableFileId>,
        /// How many breaks were ended without the acknowledgement that they waited for.
        breaks_ended: u64,
    },
    /// The CREATE has succeeded; its client may be told.
    Opened(Opened),
    /// The CREATE, or the operation, waits until others have given up what they cache. A `RequestFinished` event says
    /// how it ended, and so does the same request when it is made again.
    BreakPending,
    /// The CREATE has taken the file from an open whose client had wanted it deleted. Delete it, say `FileDeleted`, and
    /// ask again.
    DeleteFirst {
        /// The file.
        file: FileKey,
    },
    /// The request that waited is given up, or was decided before.
    Cancelled,
    /// The client has it (MS-SMB2 3.3.5.22.1, 3.3.5.22.2).
    BreakAcknowledged,
    /// The byte ranges are locked or unlocked.
    Locked {
        /// Whether that was done before, and this was the same request again.
        is_replay: bool,
    },
    /// The client may go on: nobody caches any more what it is about to change.
    Proceed,
    /// The open is resilient.
    Resilient {
        /// How long it outlives its connection.
        timeout: Millis,
    },
    /// The session, or the tree connect, is over.
    SessionEnded {
        /// The opens that wait for their client now.
        disconnected: Vec<DurableFileId>,
        /// The opens that are closed.
        closed: Vec<DurableFileId>,
    },
    /// The open is the cluster's; its client may be told.
    Granted,
    /// The changes are the cluster's.
    Updated,
    /// The open waits for its client until then.
    Disconnected {
        /// `Open.DurableOpenScavengerTimeout`.
        until: Timestamp,
    },
    /// The open belongs to the proposer; its client may be told.
    Reclaimed,
    /// The open is gone.
    Closed,
    /// The proposer serves the share. Before it lets anybody in, it must have taken over the orphans of the
    /// share. As the answer to a release: it still serves the share, for a client has an open there.
    ShareServed,
    /// The proposer does not serve the share (any more).
    ShareReleased,
    /// The rules say no.
    Rejected(Rejection),
}

/// What the client of a CREATE is told (MS-SMB2 2.2.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The open, new or back again. What it is like says the state.
    pub durable_file_id: DurableFileId,
    /// How the client came by it.
    pub how: OpenedHow,
    /// `CreateAction`.
    pub create_action: CreateAction,
    /// The oplock level or lease that is answered.
    pub oplock: Oplock,
    /// SMB2_LEASE_FLAG_BREAK_IN_PROGRESS.
    pub is_lease_breaking: bool,
    /// The context about durability that is answered, if any is.
    pub durable: Option<DurableAnswer>,
}

/// How a client came by its open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenedHow {
    /// It is new.
    Created,
    /// The CREATE was a replay: the open was there already, with its client connected.
    Replayed,
    /// It had waited for its client.
    Reconnected,
}

/// A context about durability in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurableAnswer {
    /// SMB2_CREATE_DURABLE_HANDLE_RESPONSE (MS-SMB2 2.2.14.2.3).
    V1,
    /// SMB2_CREATE_DURABLE_HANDLE_RESPONSE_V2 (MS-SMB2 2.2.14.2.12).
    V2 {
        /// How long the open outlives its connection.
        timeout: Millis,
        /// SMB2_DHANDLE_FLAG_PERSISTENT.
        persistent: bool,
    },
}

/// Why the rules say no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The proposer is fenced: it was declared down, superseded, or never registered.
    Fenced {
        /// Who asked.
        proposer: Owner,
        /// The node's incarnation now, if it ever registered.
        current: Option<Incarnation>,
    },
    /// The sequence is below the proposer's window: its answer was acknowledged and is forgotten, or an
    /// earlier run of the same sidecar proposed it and this one has started to count anew.
    AnswerForgotten {
        /// The sequence that was asked again.
        sequence: u64,
    },
    /// More requests are outstanding than a proposer may have. This is no answer to the request, which
    /// nobody has looked at: it may be made again when others have been answered.
    TooManyOutstanding {
        /// The limit.
        limit: u64,
    },
    /// There is no such open.
    OpenNotFound(DurableFileId),
    /// Another open has this id, or a CREATE that waits has named it.
    DurableFileIdInUse(DurableFileId),
    /// The open belongs to somebody else.
    NotOwner {
        /// The open.
        open: DurableFileId,
        /// Who has it, if anybody.
        holder: Option<Owner>,
    },
    /// A client has the open; only a disconnected one can be reclaimed.
    OpenConnected {
        /// The open.
        open: DurableFileId,
        /// Through whom.
        owner: Owner,
    },
    /// The CreateGuid is not the one that the open was made with.
    CreateGuidMismatch(DurableFileId),
    /// Contexts about durability that exclude each other.
    ContextsExcludeEachOther,
    /// A lease can be had back by its own client alone.
    ClientGuidMismatch(DurableFileId),
    /// The open has a lease and the request no lease context, or the other way round.
    LeaseContextMismatch(DurableFileId),
    /// The lease context names another lease than the open has, or is of another version.
    LeaseKeyMismatch(DurableFileId),
    /// The open is one that is not kept: not durable, or without handle caching.
    NotKept(DurableFileId),
    /// The open is persistent and the request does not say so.
    PersistentFlagMissing(DurableFileId),
    /// The request says persistent and the open is not; or it is the replay of a persistent one and does not say so.
    PersistentFlagMismatch(DurableFileId),
    /// The open has a lease, and the request names another file.
    PathMismatch(DurableFileId),
    /// The open is another user's.
    UserMismatch(DurableFileId),
    /// Somebody has the file open in a way that excludes this one.
    SharingViolation {
        /// Who.
        with: DurableFileId,
    },
    /// The file is a persistent open's, whose client is away and must be able to come back.
    HeldByPersistentOpen(DurableFileId),
    /// A persistent open below the directory waits for its client, which knows it by this path.
    DirectoryOfPersistentOpen(DurableFileId),
    /// The file is to be deleted.
    DeletePending(FileKey),
    /// The file is not this SMB server's to delete: somebody else was told to, or it is done.
    NotYoursToDelete(FileKey),
    /// An open with this CreateGuid is there already.
    CreateGuidInUse(DurableFileId),
    /// The CREATE that this one repeats waits still.
    CreatePending,
    /// The replay of a CREATE for a persistent open that is not there, or that its client has used since.
    NothingToReplay,
    /// The replay is not of the CREATE that made the open: another lease, or one where there was none.
    ReplayMismatch(DurableFileId),
    /// A later instance of the application has the file.
    AppInstanceNotLater(DurableFileId),
    /// The lease key is in use for another file.
    LeaseKeyInUse(LeaseId),
    /// The range is locked by somebody else, or by the same open otherwise.
    LockNotGranted {
        /// By this open.
        with: DurableFileId,
    },
    /// The range is not locked exactly so.
    RangeNotLocked(DurableFileId),
    /// The request mixes locking and unlocking, or has no ranges, or is for a directory.
    InvalidLockRequest(DurableFileId),
    /// The range goes beyond the last byte that an offset can name.
    InvalidLockRange(DurableFileId),
    /// The open has as many locks as it may.
    TooManyLocks {
        /// The limit.
        limit: u64,
    },
    /// The FileId is of no open of this SMB server.
    FileClosed(DurableFileId),
    /// No break of this oplock is under way.
    OplockNotBreaking(DurableFileId),
    /// An oplock break was acknowledged with a level that it cannot go down to.
    OplockLevelNotAccepted(DurableFileId),
    /// An oplock break was acknowledged with the level LEASE, which is none of an oplock.
    OplockLevelIsLease(DurableFileId),
    /// There is no such lease.
    LeaseNotFound(LeaseId),
    /// No break of this lease is under way.
    LeaseNotBreaking(LeaseId),
    /// A lease break was acknowledged with more than it was broken to.
    LeaseStateNotAccepted(LeaseId),
    /// Resiliency does not exist in this dialect.
    ResiliencyNotInDialect,
    /// The open would be resilient for longer than any may.
    ResiliencyTooLong {
        /// The limit.
        limit: Millis,
    },
    /// It waited for others, and was given up.
    Cancelled,
    /// As many requests wait for others as may.
    TooManyWaiting {
        /// The limit.
        limit: u64,
    },
    /// The SMB server lets the cluster decide and has reported a decision of its own, or the other way round.
    WrongArbiter,
    /// An update may change neither the CreateGuid, the owner's SID, the share nor the file of an open:
    /// with another one of these it would be another open.
    IdentityChanged(DurableFileId),
    /// Another SMB server that has the record of this open too has changed it meanwhile. Who asks has to look again.
    OpenChanged(DurableFileId),
    /// Another node serves the share, or a client still has an open there through another node.
    ShareServedElsewhere {
        /// The share.
        share: ShareName,
        /// By whom.
        owner: Owner,
    },
    /// The cluster holds as many opens as it may.
    TooManyOpens {
        /// The limit.
        limit: u64,
    },
    /// The cluster knows as many served shares as it may.
    TooManyShares {
        /// The limit.
        limit: u64,
    },
    /// The description of the open, with its image, is larger than the cluster keeps.
    OpenTooLarge {
        /// The open.
        open: DurableFileId,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The open would outlive its connection for longer than any may.
    TimeoutTooLong {
        /// The open.
        open: DurableFileId,
        /// The limit.
        limit: Millis,
    },
}

/// NTSTATUS values that a rejection becomes (MS-ERREF 2.3.1).
mod ntstatus {
    pub(super) const UNSUCCESSFUL: u32 = 0xC000_0001;
    pub(super) const INVALID_PARAMETER: u32 = 0xC000_000D;
    pub(super) const INVALID_DEVICE_REQUEST: u32 = 0xC000_0010;
    pub(super) const ACCESS_DENIED: u32 = 0xC000_0022;
    pub(super) const OBJECT_NAME_NOT_FOUND: u32 = 0xC000_0034;
    pub(super) const SHARING_VIOLATION: u32 = 0xC000_0043;
    pub(super) const LOCK_NOT_GRANTED: u32 = 0xC000_0055;
    pub(super) const DELETE_PENDING: u32 = 0xC000_0056;
    pub(super) const RANGE_NOT_LOCKED: u32 = 0xC000_007E;
    pub(super) const INSUFFICIENT_RESOURCES: u32 = 0xC000_009A;
    pub(super) const FILE_FORCED_CLOSED: u32 = 0xC000_00B6;
    pub(super) const REQUEST_NOT_ACCEPTED: u32 = 0xC000_00D0;
    pub(super) const INVALID_OPLOCK_PROTOCOL: u32 = 0xC000_00E3;
    pub(super) const INTERNAL_ERROR: u32 = 0xC000_00E5;
    pub(super) const CANCELLED: u32 = 0xC000_0120;
    pub(super) const FILE_CLOSED: u32 = 0xC000_0128;
    pub(super) const INVALID_DEVICE_STATE: u32 = 0xC000_0184;
    pub(super) const INVALID_LOCK_RANGE: u32 = 0xC000_01A1;
    pub(super) const DUPLICATE_OBJECTID: u32 = 0xC000_022A;
    pub(super) const FILE_NOT_AVAILABLE: u32 = 0xC000_0467;
}

impl Rejection {
    /// The NTSTATUS that an SMB server answers with (MS-SMB2 3.3.5.9.7, 3.3.5.9.12).
    #[must_use]
    pub fn ntstatus(&self) -> u32 {
        match self {
            Self::OpenNotFound(_)
            | Self::OpenConnected { .. }
            | Self::CreateGuidMismatch(_)
            | Self::ClientGuidMismatch(_)
            | Self::LeaseContextMismatch(_)
            | Self::LeaseKeyMismatch(_)
            | Self::NotKept(_)
            | Self::PersistentFlagMissing(_)
            | Self::LeaseNotFound(_) => ntstatus::OBJECT_NAME_NOT_FOUND,
            Self::ContextsExcludeEachOther
            | Self::PersistentFlagMismatch(_)
            | Self::PathMismatch(_)
            | Self::LeaseKeyInUse(_)
            | Self::InvalidLockRequest(_)
            | Self::OplockLevelIsLease(_)
            | Self::ResiliencyTooLong { .. } => ntstatus::INVALID_PARAMETER,
            Self::UserMismatch(_) | Self::ReplayMismatch(_) | Self::DirectoryOfPersistentOpen(_) => {
                ntstatus::ACCESS_DENIED
            }
            Self::SharingViolation { .. } => ntstatus::SHARING_VIOLATION,
            Self::DeletePending(_) => ntstatus::DELETE_PENDING,
            Self::AppInstanceNotLater(_) => ntstatus::FILE_FORCED_CLOSED,
            Self::LockNotGranted { .. } => ntstatus::LOCK_NOT_GRANTED,
            Self::RangeNotLocked(_) => ntstatus::RANGE_NOT_LOCKED,
            Self::InvalidLockRange(_) => ntstatus::INVALID_LOCK_RANGE,
            Self::FileClosed(_) => ntstatus::FILE_CLOSED,
            Self::Cancelled => ntstatus::CANCELLED,
            Self::OplockNotBreaking(_) => ntstatus::INVALID_DEVICE_STATE,
            Self::OplockLevelNotAccepted(_) => ntstatus::INVALID_OPLOCK_PROTOCOL,
            Self::LeaseNotBreaking(_) => ntstatus::UNSUCCESSFUL,
            Self::LeaseStateNotAccepted(_) => ntstatus::REQUEST_NOT_ACCEPTED,
            Self::ResiliencyNotInDialect => ntstatus::INVALID_DEVICE_REQUEST,
            Self::DurableFileIdInUse(_) | Self::CreateGuidInUse(_) => ntstatus::DUPLICATE_OBJECTID,
            // The client should come again: its open is on its way, or is somebody's who has the first right to it.
            Self::HeldByPersistentOpen(_) | Self::CreatePending | Self::NothingToReplay => {
                ntstatus::FILE_NOT_AVAILABLE
            }
            // These say where the open lives, and nothing about what the user may do: the client should
            // try elsewhere or again, and must not conclude that its handle is lost.
            Self::NotOwner { .. } | Self::Fenced { .. } | Self::ShareServedElsewhere { .. } => {
                ntstatus::FILE_NOT_AVAILABLE
            }
            Self::TooManyOutstanding { .. }
            | Self::TooManyOpens { .. }
            | Self::TooManyShares { .. }
            | Self::TooManyLocks { .. }
            | Self::TooManyWaiting { .. }
            | Self::OpenTooLarge { .. }
            | Self::TimeoutTooLong { .. } => ntstatus::INSUFFICIENT_RESOURCES,
            // No client can cause these, only a mistake in its SMB server or in the sidecar.
            Self::AnswerForgotten { .. }
            | Self::IdentityChanged(_)
            | Self::OpenChanged(_)
            | Self::NotYoursToDelete(_)
            | Self::WrongArbiter => ntstatus::INTERNAL_ERROR,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registered { incarnation, first_sequence } => {
                write!(f, "registered incarnation={incarnation} first_sequence={first_sequence}")
            }
            Self::NodeDown { disconnected, closed } => {
                write!(f, "node-down disconnected={} closed={}", List(disconnected), List(closed))
            }
            Self::Expired { closed, breaks_ended } => {
                write!(f, "expired closed={} breaks_ended={breaks_ended}", List(closed))
            }
            Self::Opened(opened) => opened.fmt(f),
            Self::BreakPending => f.write_str("break-pending"),
            Self::DeleteFirst { file } => write!(f, "delete-first file={file}"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::BreakAcknowledged => f.write_str("break-acknowledged"),
            Self::Locked { is_replay: false } => f.write_str("locked"),
            Self::Locked { is_replay: true } => f.write_str("locked before"),
            Self::Proceed => f.write_str("proceed"),
            Self::Resilient { timeout } => write!(f, "resilient timeout={timeout}"),
            Self::SessionEnded { disconnected, closed } => {
                write!(f, "session-ended disconnected={} closed={}", List(disconnected), List(closed))
            }
            Self::Granted => f.write_str("granted"),
            Self::Updated => f.write_str("updated"),
            Self::Disconnected { until } => write!(f, "disconnected until={until}"),
            Self::Reclaimed => f.write_str("reclaimed"),
            Self::Closed => f.write_str("closed"),
            Self::ShareServed => f.write_str("share-served"),
            Self::ShareReleased => f.write_str("share-released"),
            Self::Rejected(rejection) => write!(f, "rejected: {rejection}"),
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fenced { proposer, current: Some(current) } if *current == proposer.incarnation => {
                write!(f, "{proposer} is fenced: it was declared down")
            }
            Self::Fenced { proposer, current: Some(current) } => {
                write!(f, "{proposer} is fenced: the newest incarnation of its node is {current}")
            }
            Self::Fenced { proposer, current: None } => {
                write!(f, "{proposer} is fenced: its node never registered")
            }
            Self::AnswerForgotten { sequence } => {
                write!(f, "request {sequence} is older than those that its proposer waits for")
            }
            Self::TooManyOutstanding { limit } => write!(f, "more than {limit} requests are outstanding"),
            Self::OpenNotFound(open) => write!(f, "there is no open {open}"),
            Self::DurableFileIdInUse(open) => write!(f, "the id of open {open} is in use"),
            Self::NotOwner { open, holder: Some(holder) } => write!(f, "open {open} belongs to {holder}"),
            Self::NotOwner { open, holder: None } => write!(f, "open {open} waits for its client"),
            Self::OpenConnected { open, owner } => write!(f, "open {open} is connected through {owner}"),
            Self::CreateGuidMismatch(open) => write!(f, "open {open} was made with another CreateGuid"),
            Self::ContextsExcludeEachOther => f.write_str("contexts about durability exclude each other"),
            Self::ClientGuidMismatch(open) => write!(f, "the lease of open {open} is another client's"),
            Self::LeaseContextMismatch(open) => {
                write!(f, "either open {open} or the request has a lease, and not both")
            }
            Self::LeaseKeyMismatch(open) => write!(f, "open {open} has another lease"),
            Self::NotKept(open) => write!(f, "open {open} is not one that is kept for its client"),
            Self::PersistentFlagMissing(open) => {
                write!(f, "open {open} is persistent and the request does not say so")
            }
            Self::PersistentFlagMismatch(open) => {
                write!(f, "the request and open {open} differ in whether it is persistent")
            }
            Self::PathMismatch(open) => write!(f, "open {open} is of another path"),
            Self::UserMismatch(open) => write!(f, "open {open} is another user's"),
            Self::SharingViolation { with } => write!(f, "open {with} does not share the file so"),
            Self::HeldByPersistentOpen(open) => {
                write!(f, "persistent open {open} waits for its client and excludes others")
            }
            Self::DirectoryOfPersistentOpen(open) => {
                write!(f, "persistent open {open} waits for its client below this directory")
            }
            Self::DeletePending(file) => write!(f, "file {file} is to be deleted"),
            Self::NotYoursToDelete(file) => write!(f, "file {file} is not this SMB server's to delete"),
            Self::CreateGuidInUse(open) => write!(f, "open {open} has this CreateGuid"),
            Self::CreatePending => f.write_str("the same CREATE waits still"),
            Self::NothingToReplay => {
                f.write_str("there is no unused persistent open that this CREATE has made")
            }
            Self::ReplayMismatch(open) => write!(f, "open {open} was made by another CREATE"),
            Self::AppInstanceNotLater(open) => {
                write!(f, "the application that has open {open} is not an earlier instance")
            }
            Self::LeaseKeyInUse(lease) => write!(f, "lease {} is of another file", lease.key),
            Self::LockNotGranted { with } => write!(f, "open {with} has locked the range"),
            Self::RangeNotLocked(open) => write!(f, "open {open} has not locked exactly this range"),
            Self::InvalidLockRequest(open) => write!(f, "the lock request on open {open} makes no sense"),
            Self::InvalidLockRange(open) => {
                write!(f, "the range to lock of open {open} goes beyond the last byte of any file")
            }
            Self::TooManyLocks { limit } => write!(f, "the open has {limit} locks, the limit"),
            Self::FileClosed(open) => write!(f, "open {open} is closed, or is not this node's"),
            Self::OplockNotBreaking(open) => write!(f, "no break of the oplock of open {open} is under way"),
            Self::OplockLevelNotAccepted(open) => {
                write!(f, "the oplock of open {open} cannot be broken to this level")
            }
            Self::OplockLevelIsLease(open) => {
                write!(f, "open {open} has an oplock, and its break was acknowledged with a lease")
            }
            Self::LeaseNotFound(lease) => write!(f, "there is no lease {}", lease.key),
            Self::LeaseNotBreaking(lease) => write!(f, "no break of lease {} is under way", lease.key),
            Self::LeaseStateNotAccepted(lease) => {
                write!(f, "lease {} was broken to less than what was acknowledged", lease.key)
            }
            Self::ResiliencyNotInDialect => f.write_str("SMB 2.0.2 has no resiliency"),
            Self::ResiliencyTooLong { limit } => write!(f, "an open is resilient for {limit} at most"),
            Self::Cancelled => f.write_str("it was given up while it waited"),
            Self::TooManyWaiting { limit } => {
                write!(f, "{limit} requests wait for breaks, the cluster's limit")
            }
            Self::WrongArbiter => {
                f.write_str("the SMB server registered with another way to decide between opens")
            }
            Self::IdentityChanged(open) => {
                write!(f, "an update must not change the CreateGuid, owner, share or file of open {open}")
            }
            Self::OpenChanged(open) => write!(f, "open {open} has been changed meanwhile"),
            Self::ShareServedElsewhere { share, owner } => write!(f, "share {share} is served by {owner}"),
            Self::TooManyOpens { limit } => write!(f, "the cluster holds {limit} opens, its limit"),
            Self::TooManyShares { limit } => write!(f, "{limit} shares are served, the cluster's limit"),
            Self::OpenTooLarge { open, limit } => {
                write!(f, "the description of open {open} is larger than {limit} bytes")
            }
            Self::TimeoutTooLong { open, limit } => {
                write!(f, "the timeout of open {open} is longer than {limit}")
            }
        }
    }
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { durable_file_id, how, create_action, oplock, is_lease_breaking, durable } = self;
        let how = match how {
            OpenedHow::Created => "opened",
            OpenedHow::Replayed => "replayed",
            OpenedHow::Reconnected => "reconnected",
        };
        write!(f, "{how} open={durable_file_id} action={create_action} oplock={oplock}")?;
        if let Oplock::Lease(lease) = oplock {
            write!(f, " epoch={}", lease.epoch.0)?;
        }
        if *is_lease_breaking {
            f.write_str(" breaking")?;
        }
        match durable {
            None => Ok(()),
            Some(DurableAnswer::V1) => f.write_str(" durable=v1"),
            Some(DurableAnswer::V2 { timeout, persistent: false }) => {
                write!(f, " durable=v2 timeout={timeout}")
            }
            Some(DurableAnswer::V2 { timeout, persistent: true }) => {
                write!(f, " durable=persistent timeout={timeout}")
            }
        }
    }
}

/// Ids with commas between them, `-` for none.
struct List<'a>(&'a [DurableFileId]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("-");
        }
        for (position, id) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{id}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ids::{ClientGuid, LeaseKey, NodeId};
    use crate::state::oplock::{Lease, LeaseEpoch, LeaseState, LeaseVersion};

    const OPEN: DurableFileId = DurableFileId(7);
    const FILE: FileKey = FileKey { device: 0xFD01, inode: 42, extid: 0 };
    const LEASE: LeaseId = LeaseId { client_guid: ClientGuid([1; 16]), key: LeaseKey([9; 16]) };

    fn owner(node: u64, incarnation: u64) -> Owner {
        Owner { node: NodeId(node), incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn every_rejection_has_its_ntstatus_and_its_sentence() {
        let share = ShareName::new("data");
        for (rejection, status, sentence) in [
            (
                Rejection::Fenced { proposer: owner(1, 1), current: None },
                ntstatus::FILE_NOT_AVAILABLE,
                "1.1 is fenced: its node never registered",
            ),
            (
                Rejection::Fenced { proposer: owner(1, 1), current: Some(Incarnation(1)) },
                ntstatus::FILE_NOT_AVAILABLE,
                "1.1 is fenced: it was declared down",
            ),
            (
                Rejection::Fenced { proposer: owner(1, 1), current: Some(Incarnation(2)) },
                ntstatus::FILE_NOT_AVAILABLE,
                "1.1 is fenced: the newest incarnation of its node is 2",
            ),
            (
                Rejection::AnswerForgotten { sequence: 3 },
                ntstatus::INTERNAL_ERROR,
                "request 3 is older than those that its proposer waits for",
            ),
            (
                Rejection::TooManyOutstanding { limit: 8 },
                ntstatus::INSUFFICIENT_RESOURCES,
                "more than 8 requests are outstanding",
            ),
            (Rejection::OpenNotFound(OPEN), ntstatus::OBJECT_NAME_NOT_FOUND, "there is no open 7"),
            (Rejection::DurableFileIdInUse(OPEN), ntstatus::DUPLICATE_OBJECTID, "the id of open 7 is in use"),
            (
                Rejection::NotOwner { open: OPEN, holder: Some(owner(2, 1)) },
                ntstatus::FILE_NOT_AVAILABLE,
                "open 7 belongs to 2.1",
            ),
            (
                Rejection::NotOwner { open: OPEN, holder: None },
                ntstatus::FILE_NOT_AVAILABLE,
                "open 7 waits for its client",
            ),
            (
                Rejection::OpenConnected { open: OPEN, owner: owner(2, 1) },
                ntstatus::OBJECT_NAME_NOT_FOUND,
                "open 7 is connected through 2.1",
            ),
            (
                Rejection::CreateGuidMismatch(OPEN),
                ntstatus::OBJECT_NAME_NOT_FOUND,
                "open 7 was made with another CreateGuid",
            ),
            (
                Rejection::ContextsExcludeEachOther,
                ntstatus::INVALID_PARAMETER,
                "contexts about durability exclude each other",
            ),
            (
                Rejection::ClientGuidMismatch(OPEN),
                ntstatus::OBJECT_NAME_NOT_FOUND,
                "the lease of open 7 is another client's",
            ),
            (
                Rejection::LeaseContextMismatch(OPEN),
                ntstatus::OBJECT_NAME_NOT_FOUND,
                "either open 7 or the request has a lease, and not both",
            ),
            (Rejection::LeaseKeyMismatch(OPEN), ntstatus::OBJECT_NAME_NOT_FOUND, "open 7 has another lease"),
            (
                Rejection::NotKept(OPEN),
                ntstatus::OBJECT_NAME_NOT_FOUND,
                "open 7 is not one that is kept for its client",
            ),
            (
                Rejection::PersistentFlagMissing(OPEN),
                ntstatus::OBJECT_NAME_NOT_FOUND,
                "open 7 is persistent and the request does not say so",
            ),
            (
                Rejection::PersistentFlagMismatch(OPEN),
                ntstatus::INVALID_PARAMETER,
                "the request and open 7 differ in whether it is persistent",
            ),
            (Rejection::PathMismatch(OPEN), ntstatus::INVALID_PARAMETER, "open 7 is of another path"),
            (Rejection::UserMismatch(OPEN), ntstatus::ACCESS_DENIED, "open 7 is another user's"),
            (
                Rejection::SharingViolation { with: OPEN },
                ntstatus::SHARING_VIOLATION,
                "open 7 does not share the file so",
            ),
            (
                Rejection::HeldByPersistentOpen(OPEN),
                ntstatus::FILE_NOT_AVAILABLE,
                "persistent open 7 waits for its client and excludes others",
            ),
            (
                Rejection::DirectoryOfPersistentOpen(OPEN),
                ntstatus::ACCESS_DENIED,
                "persistent open 7 waits for its client below this directory",
            ),
            (Rejection::DeletePending(FILE), ntstatus::DELETE_PENDING, "file fd01:42:0 is to be deleted"),
            (
                Rejection::NotYoursToDelete(FILE),
                ntstatus::INTERNAL_ERROR,
                "file fd01:42:0 is not this SMB server's to delete",
            ),
            (Rejection::CreateGuidInUse(OPEN), ntstatus::DUPLICATE_OBJECTID, "open 7 has this CreateGuid"),
            (Rejection::CreatePending, ntstatus::FILE_NOT_AVAILABLE, "the same CREATE waits still"),
            (
                Rejection::NothingToReplay,
                ntstatus::FILE_NOT_AVAILABLE,
                "there is no unused persistent open that this CREATE has made",
            ),
            (Rejection::ReplayMismatch(OPEN), ntstatus::ACCESS_DENIED, "open 7 was made by another CREATE"),
            (
                Rejection::AppInstanceNotLater(OPEN),
                ntstatus::FILE_FORCED_CLOSED,
                "the application that has open 7 is not an earlier instance",
            ),
            (
                Rejection::LeaseKeyInUse(LEASE),
                ntstatus::INVALID_PARAMETER,
                "lease 09090909090909090909090909090909 is of another file",
            ),
            (
                Rejection::LockNotGranted { with: OPEN },
                ntstatus::LOCK_NOT_GRANTED,
                "open 7 has locked the range",
            ),
            (
                Rejection::RangeNotLocked(OPEN),
                ntstatus::RANGE_NOT_LOCKED,
                "open 7 has not locked exactly this range",
            ),
            (
                Rejection::InvalidLockRequest(OPEN),
                ntstatus::INVALID_PARAMETER,
                "the lock request on open 7 makes no sense",
            ),
            (
                Rejection::InvalidLockRange(OPEN),
                ntstatus::INVALID_LOCK_RANGE,
                "the range to lock of open 7 goes beyond the last byte of any file",
            ),
            (
                Rejection::TooManyLocks { limit: 2 },
                ntstatus::INSUFFICIENT_RESOURCES,
                "the open has 2 locks, the limit",
            ),
            (Rejection::FileClosed(OPEN), ntstatus::FILE_CLOSED, "open 7 is closed, or is not this node's"),
            (
                Rejection::OplockNotBreaking(OPEN),
                ntstatus::INVALID_DEVICE_STATE,
                "no break of the oplock of open 7 is under way",
            ),
            (
                Rejection::OplockLevelNotAccepted(OPEN),
                ntstatus::INVALID_OPLOCK_PROTOCOL,
                "the oplock of open 7 cannot be broken to this level",
            ),
            (
                Rejection::OplockLevelIsLease(OPEN),
                ntstatus::INVALID_PARAMETER,
                "open 7 has an oplock, and its break was acknowledged with a lease",
            ),
            (
                Rejection::LeaseNotFound(LEASE),
                ntstatus::OBJECT_NAME_NOT_FOUND,
                "there is no lease 09090909090909090909090909090909",
            ),
            (
                Rejection::LeaseNotBreaking(LEASE),
                ntstatus::UNSUCCESSFUL,
                "no break of lease 09090909090909090909090909090909 is under way",
            ),
            (
                Rejection::LeaseStateNotAccepted(LEASE),
                ntstatus::REQUEST_NOT_ACCEPTED,
                "lease 09090909090909090909090909090909 was broken to less than what was acknowledged",
            ),
            (
                Rejection::ResiliencyNotInDialect,
                ntstatus::INVALID_DEVICE_REQUEST,
                "SMB 2.0.2 has no resiliency",
            ),
            (
                Rejection::ResiliencyTooLong { limit: Millis(300_000) },
                ntstatus::INVALID_PARAMETER,
                "an open is resilient for 300s at most",
            ),
            (Rejection::Cancelled, ntstatus::CANCELLED, "it was given up while it waited"),
            (
                Rejection::TooManyWaiting { limit: 2 },
                ntstatus::INSUFFICIENT_RESOURCES,
                "2 requests wait for breaks, the cluster's limit",
            ),
            (
                Rejection::WrongArbiter,
                ntstatus::INTERNAL_ERROR,
                "the SMB server registered with another way to decide between opens",
            ),
            (
                Rejection::IdentityChanged(OPEN),
                ntstatus::INTERNAL_ERROR,
                "an update must not change the CreateGuid, owner, share or file of open 7",
            ),
            (Rejection::OpenChanged(OPEN), ntstatus::INTERNAL_ERROR, "open 7 has been changed meanwhile"),
            (
                Rejection::ShareServedElsewhere { share, owner: owner(2, 1) },
                ntstatus::FILE_NOT_AVAILABLE,
                "share data is served by 2.1",
            ),
            (
                Rejection::TooManyOpens { limit: 2 },
                ntstatus::INSUFFICIENT_RESOURCES,
                "the cluster holds 2 opens, its limit",
            ),
            (
                Rejection::TooManyShares { limit: 2 },
                ntstatus::INSUFFICIENT_RESOURCES,
                "2 shares are served, the cluster's limit",
            ),
            (
                Rejection::OpenTooLarge { open: OPEN, limit: 256 },
                ntstatus::INSUFFICIENT_RESOURCES,
                "the description of open 7 is larger than 256 bytes",
            ),
            (
                Rejection::TimeoutTooLong { open: OPEN, limit: Millis(300_000) },
                ntstatus::INSUFFICIENT_RESOURCES,
                "the timeout of open 7 is longer than 300s",
            ),
        ] {
            assert_eq!(rejection.ntstatus(), status, "{rejection}");
            assert_eq!(rejection.to_string(), sentence);
        }
    }

    #[test]
    fn every_outcome_is_one_line() {
        let opens = |ids: &[u64]| ids.iter().copied().map(DurableFileId).collect::<Vec<_>>();
        for (outcome, line) in [
            (
                Outcome::Registered { incarnation: Incarnation(2), first_sequence: 4096 },
                "registered incarnation=2 first_sequence=4096",
            ),
            (
                Outcome::NodeDown { disconnected: opens(&[1, 2]), closed: opens(&[3]) },
                "node-down disconnected=1,2 closed=3",
            ),
            (Outcome::Expired { closed: Vec::new(), breaks_ended: 1 }, "expired closed=- breaks_ended=1"),
            (Outcome::BreakPending, "break-pending"),
            (Outcome::DeleteFirst { file: FILE }, "delete-first file=fd01:42:0"),
            (Outcome::Cancelled, "cancelled"),
            (Outcome::BreakAcknowledged, "break-acknowledged"),
            (Outcome::Locked { is_replay: false }, "locked"),
            (Outcome::Locked { is_replay: true }, "locked before"),
            (Outcome::Proceed, "proceed"),
            (Outcome::Resilient { timeout: Millis(120_000) }, "resilient timeout=120s"),
            (
                Outcome::SessionEnded { disconnected: opens(&[1]), closed: opens(&[2, 3]) },
                "session-ended disconnected=1 closed=2,3",
            ),
            (Outcome::Granted, "granted"),
            (Outcome::Updated, "updated"),
            (Outcome::Disconnected { until: Timestamp(70_000) }, "disconnected until=70s"),
            (Outcome::Reclaimed, "reclaimed"),
            (Outcome::Closed, "closed"),
            (Outcome::ShareServed, "share-served"),
            (Outcome::ShareReleased, "share-released"),
            (Outcome::Rejected(Rejection::OpenNotFound(OPEN)), "rejected: there is no open 7"),
        ] {
            assert_eq!(outcome.to_string(), line);
        }
    }
    #[test]
    fn an_opened_file_is_one_line_whatever_its_client_is_told() {
        let opened = |how, oplock, durable| Opened {
            durable_file_id: OPEN,
            how,
            create_action: CreateAction::Created,
            oplock,
            is_lease_breaking: false,
            durable,
        };
        let lease = Oplock::Lease(Lease {
            key: LEASE.key,
            state: LeaseState(LeaseState::READ | LeaseState::HANDLE),
            epoch: LeaseEpoch(3),
            version: LeaseVersion::V2,
            parent: None,
        });
        let v2 = |persistent| Some(DurableAnswer::V2 { timeout: Millis(60_000), persistent });
        for (opened, line) in [
            (opened(OpenedHow::Created, Oplock::None, None), "opened open=7 action=created oplock=none"),
            (
                opened(OpenedHow::Created, Oplock::Batch, Some(DurableAnswer::V1)),
                "opened open=7 action=created oplock=batch durable=v1",
            ),
            (
                opened(OpenedHow::Replayed, Oplock::Batch, v2(false)),
                "replayed open=7 action=created oplock=batch durable=v2 timeout=60s",
            ),
            (
                opened(OpenedHow::Reconnected, lease, v2(true)),
                "reconnected open=7 action=created oplock=RH epoch=3 durable=persistent timeout=60s",
            ),
            (
                Opened { is_lease_breaking: true, ..opened(OpenedHow::Reconnected, lease, None) },
                "reconnected open=7 action=created oplock=RH epoch=3 breaking",
            ),
        ] {
            assert_eq!(Outcome::Opened(opened).to_string(), line);
        }
    }
}
