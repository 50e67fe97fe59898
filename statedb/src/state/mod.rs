//! The pure half: what the cluster has agreed on, and the rules by which it changes.
//!
//! Every replica runs [`State::apply`] on the same commands in the same order and must reach the same
//! state. So nothing here asks the time, draws a random number, reads a file or iterates a hash map.
//! Types here derive no serialization: they change with the design, bytes at rest change with a release.

mod command;
mod ids;
pub mod invariants;
mod limits;
mod node;
mod open;
mod open_table;
mod oplock;
mod outcome;
mod reclaim;
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
pub use limits::Limits;
pub use node::{Node, NodeState};
pub use open::{
    AccessMask, ByteRangeLock, CreateOptions, Durability, Open, OpenDescription, OpenState, ShareAccess,
};
pub use oplock::{Lease, LeaseEpoch, LeaseState, LeaseVersion, Oplock, OplockState};
pub use outcome::{Outcome, Rejection};
pub use share::ServingNode;
pub use snapshot::{Record, SnapshotError};
pub use state::{Changes, State};
pub use time::{Millis, Timestamp};
