//! The SMB service beside this node, when it is Samba: the shim's socket, and what follows from what it says.
//!
//! | module | what |
//! |---|---|
//! | [`connection`] | one `smbd` process: frames in, frames out |
//! | [`processes`] | which processes live |
//! | [`service`] | incarnations: register, reattach, fence, declare down |
//! | [`gate`] | tree connects: who may enter a share |
//! | [`tree_connects`] | who is in which share, kept for the next run of the sidecar |
//! | [`capture`] | stores and deletes of records, turned into requests |
//! | [`look`] | under CTDB: when `smbd` may look at an open that another node had |
//! | [`local`] | the opens that live in this `smbd` |
//! | `deletion` | files that a dead `smbd` should have deleted |
//! | [`left_behind`] | what a process leaves that dies alone |
//! | [`reconcile`] | the orphans in this node's databases |
//! | `recoveries` | under CTDB: what a recovery has brought back of opens that have ended is removed |
//! | `stale_records` | under CTDB: no record of long ago comes back with a node that has hung |
//! | [`tracker`] | the shared page |
//!
//! Nothing else here is needed after a crash: it is rebuilt from the log and from what `smbd` says again.

pub mod capture;
pub mod connection;
mod deletion;
pub mod gate;
mod keys;
pub mod left_behind;
pub mod local;
pub mod look;
pub mod processes;
pub mod reconcile;
mod recoveries;
pub mod service;
mod stale_records;
pub mod tracker;
pub mod tree_connects;
