//! Samba's records as checked types, whatever layout they are stored in.
//!
//! Each type decodes and encodes itself for a [`Layout`](crate::Layout); the bytes are the business of one module
//! per layout. What is decoded without an error is encoded to the same bytes again, which is tested on
//! records of a real smbd (`testdata/`).
//!
//! Left out: sessions, connections and `smbXsrv_client_global`, which a reclaim does not need, and the
//! header that CTDB puts before each value of a clustered database.

mod brlock;
mod codec;
mod error;
mod identity;
mod lease;
mod locking;
mod ndr;
mod open_global;
mod oplock_break;
mod parts;
mod tcon_global;
mod v4_17;
mod v4_22;
mod v4_25;
mod version_0;

pub use brlock::BrlockEntry;
pub use codec::LOCKING_PRELUDE;
pub use error::{Problem, RecordError};
pub use identity::{Holder, NtTime, SecurityId, ServerId, UnixMicros, UnixNanos};
pub use lease::{LeaseFile, LeaseRecord, lease_record_key};
pub use locking::{
    DeleteMark, DeleteTokens, LockingRecord, ShareModeData, ShareModeEntry, ShareModeLock, ShareModes,
    Watcher, file_key,
};
pub use open_global::{CookieStat, DurableCookie, OpenGlobal, open_global_key};
pub use oplock_break::OplockBreak;
pub use tcon_global::TconGlobal;
