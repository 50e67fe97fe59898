//! The wire and disk formats of Holdfast, and nothing that decides anything.
//!
//! - [`pb`] is generated from `proto/*.proto`: encoded and unchecked.
//! - [`convert`] goes between those types and the checked ones of `statedb`: `From` on the way out,
//!   which cannot fail, and `TryFrom` on the way in, which names what made no sense.
//!
//! # What must stay true
//!
//! - What `From` made, `TryFrom` takes back, unchanged. Otherwise a node could commit an entry that its peers
//!   cannot read.
//! - Bytes that a release has written stay readable: `testdata` keeps them, a test reads them.
//! - What a checked type cannot hold, or SMB2 does not allow, is refused here and named: sizes of identities, values of
//!   enumerations, how many ranges a LOCK has. How much a whole message may have is for who receives it to say.

pub mod convert;
mod error;

pub use error::WireError;

/// Types generated from the `.proto` files.
#[allow(missing_docs, clippy::all, reason = "generated; the .proto files have the documentation")]
pub mod pb {
    /// What SMB servers and the cluster have in common (`smb.proto`).
    pub mod smb {
        /// The first format.
        pub mod v1 {
            tonic::include_proto!("holdfast.smb.v1");
        }
    }
    /// What rests on disk (`storage.proto`).
    pub mod storage {
        /// The first format.
        pub mod v1 {
            tonic::include_proto!("holdfast.storage.v1");
        }
    }
    /// Node to node (`raft.proto`).
    pub mod raft {
        /// The first format.
        pub mod v1 {
            tonic::include_proto!("holdfast.raft.v1");
        }
    }
    /// SMB server to sidecar (`handles.proto`).
    pub mod handles {
        /// The first format.
        pub mod v1 {
            tonic::include_proto!("holdfast.handles.v1");
        }
    }
    /// Sidecar to SMB server and to operators (`events.proto`).
    pub mod events {
        /// The first format.
        pub mod v1 {
            tonic::include_proto!("holdfast.events.v1");
        }
    }
    /// Operator to node (`ops.proto`).
    pub mod ops {
        /// The first format.
        pub mod v1 {
            tonic::include_proto!("holdfast.ops.v1");
        }
    }
}
