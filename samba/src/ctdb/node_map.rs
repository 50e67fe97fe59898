//! What ctdbd holds of the nodes of its cluster.

use super::packet::{Fields, PacketError, Pnn};

/// A node of the cluster, as one ctdbd sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Which node.
    pub pnn: Pnn,
    /// What is wrong with it: CTDB's `NODE_FLAGS_*`.
    flags: u32,
}

impl NodeStatus {
    const DISCONNECTED: u32 = 0x01;
    const BANNED: u32 = 0x08;
    const DELETED: u32 = 0x10;
    const STOPPED: u32 = 0x20;

    /// A node's address takes as much as an IPv6 one: `struct sockaddr_in6`.
    const ADDRESS_LEN: usize = 28;

    /// Whether this ctdbd can talk to it. What a node that is not connected held is lost with the next recovery.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.flags & (Self::DISCONNECTED | Self::DELETED) == 0
    }

    /// Whether it takes part in the cluster's databases.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.is_connected() && self.flags & (Self::BANNED | Self::STOPPED) == 0
    }

    /// Reads a node map: a count and the nodes.
    pub(super) fn decode_all(data: &[u8]) -> Result<Vec<Self>, PacketError> {
        let mut fields = Fields { rest: data, packet: "the node map" };
        let count = fields.u32("count")?;
        let node = |_| {
            let (pnn, flags) = (Pnn(fields.u32("pnn")?), fields.u32("flags")?);
            fields.take::<{ Self::ADDRESS_LEN }>("address")?;
            Ok(Self { pnn, flags })
        };
        (0..count).map(node).collect()
    }
}
