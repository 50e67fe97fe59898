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
    /// Requests that wait for breaks.
    pub waiting_max: u64,
    /// Byte-range locks of one open.
    pub locks_max: u64,
    /// `MaxResiliencyTimeout` (MS-SMB2 3.3.1.5).
    pub resiliency_timeout_max: Millis,
    /// How long the acknowledgement of a break is waited for (MS-SMB2 3.3.2.1, 3.3.2.5).
    pub break_timeout: Millis,
    /// The same for the oplock of a persistent open.
    pub persistent_oplock_break_timeout: Millis,
    /// The same for the lease of a persistent open.
    pub persistent_lease_break_timeout: Millis,
}

impl Limits {
    /// One million opens of about 2 KiB each fit into 4 GiB with room to spare; an image is a few
    /// records of Samba, of which the longest holds two paths of at most 4 KiB; SMB servers promise
    /// minutes, an administrator may promise hours; every home directory can be a share; 4096 outstanding
    /// requests are more than a node has SMB server processes waiting, and 65,536 requests that wait take no more
    /// than as many opens; a database may lock thousands of records of one file.
    /// The times are those of Windows (MS-SMB2 appendix A, notes on 3.3.4.6, 3.3.4.7 and 3.3.5.15.9).
    pub const DEFAULT: Self = Self {
        opens_max: 1_000_000,
        open_bytes_max: 64 * 1024,
        durable_open_timeout_max: Millis(24 * 60 * 60 * 1000),
        shares_max: 65_536,
        outstanding_max: 4096,
        waiting_max: 65_536,
        locks_max: 16_384,
        resiliency_timeout_max: Millis(300_000),
        break_timeout: Millis(35_000),
        persistent_oplock_break_timeout: Millis(60_000),
        persistent_lease_break_timeout: Millis(180_000),
    };
}
