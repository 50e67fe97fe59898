//! Which node serves a share.
//!
//! Between separate SMB servers nobody but the cluster keeps share modes and oplocks coherent, so a
//! share has one serving node at a time. It becomes that by the first tree connect, and stays it until
//! the last tree connect is gone or the node is declared down.

use super::ids::Owner;

/// The node that serves a share now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServingNode {
    /// The incarnation that holds tree connects to the share.
    pub owner: Owner,
}
