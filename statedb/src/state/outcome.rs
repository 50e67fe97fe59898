//! What a proposer is told.

use std::fmt;

use super::ids::{DurableFileId, Incarnation, Owner, ShareName};
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
    /// These opens are closed, their time is up.
    Expired {
        /// In order of their deadlines.
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
    /// Another open has this id.
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
    /// An update may change neither the CreateGuid, the owner's SID, the share nor the file of an open:
    /// with another one of these it would be another open.
    IdentityChanged(DurableFileId),
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
    pub(super) const OBJECT_NAME_NOT_FOUND: u32 = 0xC000_0034;
    pub(super) const INSUFFICIENT_RESOURCES: u32 = 0xC000_009A;
    pub(super) const INTERNAL_ERROR: u32 = 0xC000_00E5;
    pub(super) const DUPLICATE_OBJECTID: u32 = 0xC000_022A;
    pub(super) const FILE_NOT_AVAILABLE: u32 = 0xC000_0467;
}

impl Rejection {
    /// The NTSTATUS that an SMB server answers with (MS-SMB2 3.3.5.9.7, 3.3.5.9.12).
    #[must_use]
    pub fn ntstatus(&self) -> u32 {
        match self {
            Self::OpenNotFound(_) | Self::OpenConnected { .. } | Self::CreateGuidMismatch(_) => {
                ntstatus::OBJECT_NAME_NOT_FOUND
            }
            Self::DurableFileIdInUse(_) => ntstatus::DUPLICATE_OBJECTID,
            // These say where the open lives, and nothing about what the user may do: the client should
            // try elsewhere or again, and must not conclude that its handle is lost.
            Self::NotOwner { .. } | Self::Fenced { .. } | Self::ShareServedElsewhere { .. } => {
                ntstatus::FILE_NOT_AVAILABLE
            }
            Self::TooManyOutstanding { .. }
            | Self::TooManyOpens { .. }
            | Self::TooManyShares { .. }
            | Self::OpenTooLarge { .. }
            | Self::TimeoutTooLong { .. } => ntstatus::INSUFFICIENT_RESOURCES,
            // No client can cause these, only a mistake in its SMB server or in the sidecar.
            Self::AnswerForgotten { .. } | Self::IdentityChanged(_) => ntstatus::INTERNAL_ERROR,
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
            Self::Expired { closed } => write!(f, "expired closed={}", List(closed)),
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
            Self::IdentityChanged(open) => {
                write!(f, "an update must not change the CreateGuid, owner, share or file of open {open}")
            }
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
    use crate::state::ids::NodeId;

    const OPEN: DurableFileId = DurableFileId(7);

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
                Rejection::IdentityChanged(OPEN),
                ntstatus::INTERNAL_ERROR,
                "an update must not change the CreateGuid, owner, share or file of open 7",
            ),
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
            (Outcome::Expired { closed: Vec::new() }, "expired closed=-"),
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
}
