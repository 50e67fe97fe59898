//! What Holdfast knows of Samba.
//!
//! `smbd` keeps an open in four volatile databases, and a tree connect in a fifth. This crate reads their
//! records, makes of them a self-contained image of one durable open, and writes the image of an orphaned
//! open into the databases of another smbd, which then does the reclaim by its own logic.
//!
//! ```text
//!  values that smbd stores ──records──► checked types ──image──► OpenImage ──► statedb::OpenDescription
//!                                                                    │          (replicated)
//!            smbd on a survivor ◄──tdb, databases── materialise ◄────┘
//! ```
//!
//! - [`version`]: which layout a given smbd has. An unknown version is refused by name.
//! - [`records`]: the records as checked types, byte-exact in both directions.
//! - [`image`]: everything a survivor needs of one open, and the facts in it.
//! - [`materialise`]: what to store for an orphan, and what to take away again; pure.
//! - [`file_stat`]: the file's metadata as smbd is going to compare them.
//! - [`tdb`], [`ctdb`], [`databases`]: the same on the databases of a running smbd, whether it is one of a CTDB
//!   cluster or not.
//! - [`config`]: whether `smb.conf` allows durable handles.
//! - [`identity`], [`preload`]: whether all nodes are the same to a client, and whether smbd can load the shim.
//! - [`proc_stat`]: whether a process of smbd's lives.
//!
//! What it does not do: talk to the shim (that is the `frame` crate and `node`), decide what is to be
//! materialised and when, or watch for smbd's end.

pub mod allocator;
pub mod config;
pub mod ctdb;
pub mod databases;
mod dos_attributes;
pub mod file_stat;
pub mod identity;
pub mod image;
pub mod materialise;
mod moved_files;
pub mod preload;
pub mod proc_stat;
mod process;
mod record_store;
pub mod records;
pub mod tdb;
pub mod version;

pub use ctdb::CtdbError;
pub use databases::{LocalDatabases, Location, Orphan, PlaceError, StoreError};
pub use image::{Capture, Change, ImageError, OpenImage};
pub use materialise::MaterialiseError;
pub use process::CommandError;
pub use records::RecordError;
pub use tdb::LibtdbError;
pub use version::{Layout, SambaVersion, VersionError};
