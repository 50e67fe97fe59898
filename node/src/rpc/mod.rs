//! What this node answers over gRPC: decode, delegate, encode. Raft's own service is in [`crate::raft`].

pub mod ops;
