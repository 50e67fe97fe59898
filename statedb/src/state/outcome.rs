//! What a proposer is told.

use std::fmt;

use super::ids::{DurableFileId, Incarnation, Owner, ShareName};
use super::time::Timestamp;

/// The result of an applied command. The same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The node may act under this incarnation.
    Registered {
        /// New for a new instance; what it had for one that was known.
        incarnation: Incarnation,
    },
    /// The incarnation is fenced.
    NodeDown {
        /// The opens that now wait for their clients.
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
    /// The proposer serves the share. Before it lets anybody in, it must have taken over the orphans of the share.
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
    /// The answer to this sequence was acknowledged by its proposer and is forgotten.
    AnswerForgotten {
        /// The sequence that was asked again.
        sequence: u64,
    },
    /// More requests are outstanding than a proposer may have.
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
    /// Another node serves the share.
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
    /// An image larger than the cluster keeps.
    ImageTooLarge {
        /// The open.
        open: DurableFileId,
        /// The limit, in bytes.
        limit: u64,
    },
}

/// NTSTATUS values that a rejection becomes (MS-ERREF 2.3.1).
mod ntstatus {
    pub(super) const ACCESS_DENIED: u32 = 0xC000_0022;
    pub(super) const OBJECT_NAME_NOT_FOUND: u32 = 0xC000_0034;
    pub(super) const INSUFFICIENT_RESOURCES: u32 = 0xC000_009A;
    pub(super) const FILE_NOT_AVAILABLE: u32 = 0xC000_0467;
    pub(super) const DUPLICATE_OBJECTID: u32 = 0xC000_022A;
    pub(super) const INTERNAL_ERROR: u32 = 0xC000_00E5;
}

impl Rejection {
    /// The NTSTATUS that an SMB server answers with (MS-SMB2 3.3.5.9.7, 3.3.5.9.12).
    #[must_use]
    pub fn ntstatus(&self) -> u32 {
        match self {
            Self::OpenNotFound(_) | Self::OpenConnected { .. } | Self::CreateGuidMismatch(_) => {
                ntstatus::OBJECT_NAME_NOT_FOUND
            }
            Self::NotOwner { .. } => ntstatus::ACCESS_DENIED,
            Self::DurableFileIdInUse(_) => ntstatus::DUPLICATE_OBJECTID,
            Self::Fenced { .. } | Self::ShareServedElsewhere { .. } => ntstatus::FILE_NOT_AVAILABLE,
            Self::TooManyOpens { .. } | Self::TooManyOutstanding { .. } | Self::ImageTooLarge { .. } => {
                ntstatus::INSUFFICIENT_RESOURCES
            }
            Self::AnswerForgotten { .. } => ntstatus::INTERNAL_ERROR,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registered { incarnation } => write!(f, "registered incarnation={incarnation}"),
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
            Self::Fenced { proposer, current: Some(current) } => {
                write!(f, "{proposer} is fenced: incarnation {current} of its node is the newest")
            }
            Self::Fenced { proposer, current: None } => {
                write!(f, "{proposer} is fenced: its node never registered")
            }
            Self::AnswerForgotten { sequence } => {
                write!(f, "the answer to request {sequence} was acknowledged and is forgotten")
            }
            Self::TooManyOutstanding { limit } => write!(f, "more than {limit} requests are outstanding"),
            Self::OpenNotFound(open) => write!(f, "there is no open {open}"),
            Self::DurableFileIdInUse(open) => write!(f, "the id of open {open} is in use"),
            Self::NotOwner { open, holder: Some(holder) } => write!(f, "open {open} belongs to {holder}"),
            Self::NotOwner { open, holder: None } => write!(f, "open {open} waits for its client"),
            Self::OpenConnected { open, owner } => write!(f, "open {open} is connected through {owner}"),
            Self::CreateGuidMismatch(open) => write!(f, "open {open} was made with another CreateGuid"),
            Self::ShareServedElsewhere { share, owner } => write!(f, "share {share} is served by {owner}"),
            Self::TooManyOpens { limit } => write!(f, "the cluster holds {limit} opens, its limit"),
            Self::ImageTooLarge { open, limit } => {
                write!(f, "the image of open {open} is larger than {limit} bytes")
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
