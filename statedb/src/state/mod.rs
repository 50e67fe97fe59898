//! The pure half: what the cluster has agreed on, and the rules by which it changes.
//!
//! Every replica runs [`State::apply`] on the same commands in the same order and must reach the same
//! state. So nothing here asks the time, draws a random number, reads a file or iterates a hash map.
//! Types here derive no serialization: they change with the design, bytes at rest change with a release.

mod app_instance;
mod arbitration;
mod breaks;
mod byte_range_lock;
mod caching;
mod channel_sequence;
mod close;
mod command;
mod contexts;
mod create;
mod delete_on_close;
mod durability;
mod event;
#[cfg(test)]
mod fixtures;
mod ids;
pub mod invariants;
mod limits;
mod lookup;
mod node;
mod note;
mod open;
mod open_table;
mod operate;
mod oplock;
mod outcome;
mod reclaim;
mod replay;
mod resiliency;
mod session;
mod share;
pub mod share_mode;
mod snapshot;
#[allow(clippy::module_inception, reason = "the module's main type is State")]
mod state;
mod time;
mod waiting;

pub use breaks::{Break, BreakTarget};
pub use byte_range_lock::{Lock, LockElement, LockKind, LockSequence};
pub use channel_sequence::{ChannelSequence, CountedRequest, OutdatedRequest};
pub use command::{Command, Note, Operation, Proposer, Reclaim, Request, Update};
pub use create::{Client, Create, CreateContexts, Dialect, DurableReconnectV2, DurableRequestV2, Share};
pub use delete_on_close::{DeletePending, DeleteState};
pub use event::{CloseReason, Event, EventKind};
pub use ids::{
    AppInstance, AppInstanceVersion, ClientGuid, CreateGuid, DurableFileId, FileKey, Incarnation, Instance,
    LeaseId, LeaseKey, LogId, NodeId, Owner, SessionId, ShareName, Sid,
};
pub use limits::Limits;
pub use node::{Arbiter, Node, NodeState};
pub use open::{
    AccessMask, ByteRangeLock, CreateAction, CreateOptions, Durability, ImageDigest, Open, OpenDescription,
    OpenState, ShareAccess,
};
pub use oplock::{Lease, LeaseEpoch, LeaseState, LeaseVersion, Oplock, OplockLevel, OplockState};
pub use outcome::{DurableAnswer, Opened, OpenedHow, Outcome, Rejection};
pub use share::ServingNode;
pub use snapshot::{Record, SnapshotError};
pub use state::{Changes, State};
pub use time::{Millis, Timestamp};
pub use waiting::{Awaited, WaitingRequest};
