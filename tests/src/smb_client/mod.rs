//! A small SMB2 client: what a test or a load generator needs to play the part of a Windows machine that
//! holds durable handles, and nothing else.
//!
//! ```no_run
//! # async fn example() -> Result<(), harness::smb_client::SmbError> {
//! use harness::smb_client::{Client, Credentials, CreateRequest};
//!
//! let client = Client::new(Credentials::new("alice", "secret"));
//! let session = client.connect("127.0.0.1:445".parse().unwrap()).await?;
//! let share = session.tree_connect(r"\\127.0.0.1\share").await?;
//! let file = share.create(CreateRequest::durable_v2_with_lease("a.txt")).await?;
//! session.drop_connection().await;
//!
//! let session = client.reconnect("127.0.0.2:445".parse().unwrap(), session.id()).await?;
//! let share = session.tree_connect(r"\\127.0.0.2\share").await?;
//! let same_file = share.create(file.reconnect_request()).await?;
//! assert_eq!(same_file.file_id().persistent, file.file_id().persistent);
//! # Ok(()) }
//! ```
//!
//! It speaks dialect 3.0.2, the simplest that has durable handles v2 and leases v2: no pre-authentication
//! hash, and a tree connect need not be signed as 3.1.1 demands. Requests go unsigned; a server that insists
//! on signatures is refused with [`SmbError::SigningRequired`]. There is no encryption, no multichannel, no
//! compounding, no DFS, no directory enumeration.
//!
//! What must stay true:
//! - every request is answered, refused or timed out within [`Client::request_timeout`]; a request that timed
//!   out may still have been carried out by the server;
//! - requests of one connection are multiplexed by MessageId: all handles are cheap to clone and any number
//!   of tasks may use them at once, limited by the credits that the server grants;
//! - bytes that make no sense become an error that names the structure and what is wrong with it, never a
//!   panic.
//!
//! It shares no code with the SMB server or with Holdfast: a mistake in an encoding cannot cancel itself out.

mod client;
mod connection;
mod error;
mod ntlm;
mod types;
mod wire;

pub use client::{Client, Credentials, Opened, Session, Tree};
pub use connection::Breaks;
pub use error::{NtStatus, SmbError, WireError};
pub use types::{
    AccessMask, Break, ClientGuid, Command, CreateAction, CreateDisposition, CreateGuid, CreateOptions,
    CreateRequest, CreateResponse, Durability, DurableV2Response, FileId, Lease, LeaseKey, LeaseState,
    LeaseVersion, LockElement, LockSequence, OplockLevel, ShareAccess,
};
