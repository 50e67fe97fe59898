//! What this node answers over gRPC: decode, delegate, encode. Raft's own service is in [`crate::raft`].

pub mod attach;
pub mod events;
pub mod handles;
mod hold;
pub mod listen;
pub mod ops;

#[cfg(test)]
mod tests;
