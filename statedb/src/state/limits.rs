//! Bounds on what the state may hold.

use super::time::Millis;

/// Bounds on what the state may hold. The same on every node, or replicas would disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Opens in the cluster.
    pub opens_max: u64,
    /// Bytes of one open: its image and its other parts of variable length.
    pub open_bytes_max: u64,
    /// How long an open may outlive its connection. None lives for ever.
    pub durable_open_timeout_max: Millis,
    /// Shares that have a serving node.
    pub shares_max: u64,
    /// How far a proposer's sequence may be ahead of its oldest unanswered request. A proposer that keeps
    /// to it never sees a request refused for it. At least 1.
    pub outstanding_max: u64,
}

impl Limits {
    /// One million opens of about 2 KiB each fit into 4 GiB with room to spare; an image is a few
    /// records of Samba, of which the longest holds two paths of at most 4 KiB; SMB servers promise
    /// minutes, an administrator may promise hours; every home directory can be a share; 4096 outstanding
    /// requests are more than a node has SMB server processes waiting.
    pub const DEFAULT: Self = Self {
        opens_max: 1_000_000,
        open_bytes_max: 64 * 1024,
        durable_open_timeout_max: Millis(24 * 60 * 60 * 1000),
        shares_max: 65_536,
        outstanding_max: 4096,
    };
}
