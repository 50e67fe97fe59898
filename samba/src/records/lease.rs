//! A lease, as `leases.tdb` has it.

use statedb::{ClientGuid, FileKey, LeaseEpoch, LeaseKey, LeaseState};

use super::error::RecordError;
use crate::version::Layout;

/// The key of a lease's record in `leases.tdb`.
#[must_use]
pub fn lease_record_key(client_guid: ClientGuid, lease_key: LeaseKey) -> [u8; 32] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&client_guid.0);
    key[16..].copy_from_slice(&lease_key.0);
    key
}

/// A record of `leases.tdb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// What the holder may cache.
    pub current_state: LeaseState,
    /// A break was sent and not acknowledged yet.
    pub breaking: bool,
    /// What the client was told to break to.
    pub breaking_to_requested: LeaseState,
    /// What it has to break to in the end.
    pub breaking_to_required: LeaseState,
    /// 1 or 2: the form of the lease context.
    pub lease_version: u16,
    /// How often the lease has changed; 0 for version 1.
    pub epoch: LeaseEpoch,
    /// The files that are open under the lease: one, but for hard links and renames.
    pub files: Vec<LeaseFile>,
}

/// A file that is open under a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseFile {
    /// The file.
    pub file: FileKey,
    /// The share's path on this host.
    pub service_path: Option<String>,
    /// The file's path below that.
    pub base_name: Option<String>,
    /// The stream's name, if it is one.
    pub stream_name: Option<String>,
}

impl LeaseRecord {
    /// Decodes a record's value.
    pub fn decode(layout: Layout, value: &[u8]) -> Result<Self, RecordError> {
        layout.codec().decode_lease(value)
    }

    /// The record's value, byte for byte what smbd would store.
    #[must_use]
    pub fn encode(&self, layout: Layout) -> Vec<u8> {
        layout.codec().encode_lease(self)
    }
}
