//! The pure half: what the cluster has agreed on, and the rules by which it changes.
//!
//! Every replica runs [`State::apply`] on the same commands in the same order and must reach the same
//! state. So nothing here asks the time, draws a random number, reads a file or iterates a hash map.
//! Types here derive no serialization: they change with the design, bytes at rest change with a release.

mod command;
mod ids;
pub mod invariants;
mod node;
mod open;
mod outcome;
mod share;
mod snapshot;
#[allow(clippy::module_inception, reason = "the module's main type is State")]
mod state;
mod time;

pub use command::{Command, Proposer, Reclaim, Request};
pub use ids::{
    ClientGuid, CreateGuid, DurableFileId, FileKey, Incarnation, Instance, LeaseKey, LogId, NodeId, Owner,
    ShareName, Sid,
};
pub use node::{Node, NodeState};
pub use open::{
    AccessMask, ByteRangeLock, CreateOptions, Durability, Lease, LeaseEpoch, LeaseState, LeaseVersion, Open,
    OpenDescription, OpenState, Oplock, OplockState, ShareAccess,
};
pub use outcome::{Outcome, Rejection};
pub use share::ServingNode;
pub use snapshot::{Record, SnapshotError};
pub use state::{Changes, Limits, State};
pub use time::{Millis, Timestamp};
