//! The Holdfast daemon: tasks, sockets, disk and clocks around the replicated state.
//!
//! What the cluster has agreed on is in `statedb`; this crate brings commands to it and draws the consequences.
//! The state of an open that must survive this process is never only here.
//!
//! | module | what |
//! |---|---|
//! | [`daemon`] | puts it all together |
//! | [`raft`] | the one place that names openraft |
//! | [`registration`], [`proposer`] | incarnations of this node's SMB service, and their requests, each answered exactly once |
//! | [`liveness`], [`detector`], [`lease`] | who lives, who is declared down, who may serve until when |
//! | [`events`] | the newest events of the cluster, for who listens to this node |
//! | [`smb`] | the Samba beside this node |
//! | [`rpc`] | the services for operators, and for SMB servers without a shim |
//! | [`cli`], [`query`], [`check`] | the command line |
//! | [`config`], [`telemetry`] | what it is told, and what it tells |

pub mod check;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod detector;
pub mod events;
#[cfg(test)]
mod fixtures;
pub mod lease;
pub mod liveness;
pub mod proposer;
pub mod query;
pub mod raft;
pub mod registration;
pub mod rpc;
pub mod smb;
pub mod telemetry;
