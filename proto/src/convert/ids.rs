//! `LogId`, `Owner`, `FileKey`, `LeaseId`, `AppInstance` and lists of `DurableFileId`.

use statedb::{
    AppInstance, AppInstanceVersion, ClientGuid, DurableFileId, FileKey, Incarnation, LeaseId, LeaseKey,
    LogId, NodeId, Owner,
};

use super::sixteen;
use crate::WireError;
use crate::pb::smb::v1 as pb;
use crate::pb::storage::v1 as stored;

impl From<LogId> for stored::LogId {
    fn from(log_id: LogId) -> Self {
        Self { term: log_id.term, index: log_id.index }
    }
}

impl From<stored::LogId> for LogId {
    fn from(log_id: stored::LogId) -> Self {
        Self { term: log_id.term, index: log_id.index }
    }
}

impl From<Owner> for pb::Owner {
    fn from(owner: Owner) -> Self {
        Self { node_id: owner.node.0, incarnation: owner.incarnation.0 }
    }
}

impl From<pb::Owner> for Owner {
    fn from(owner: pb::Owner) -> Self {
        Self { node: NodeId(owner.node_id), incarnation: Incarnation(owner.incarnation) }
    }
}

impl From<FileKey> for pb::FileKey {
    fn from(file: FileKey) -> Self {
        Self { device: file.device, inode: file.inode, extid: file.extid }
    }
}

impl From<pb::FileKey> for FileKey {
    fn from(file: pb::FileKey) -> Self {
        Self { device: file.device, inode: file.inode, extid: file.extid }
    }
}

impl From<LeaseId> for pb::LeaseId {
    fn from(lease: LeaseId) -> Self {
        Self { client_guid: lease.client_guid.0.to_vec(), key: lease.key.0.to_vec() }
    }
}

impl TryFrom<pb::LeaseId> for LeaseId {
    type Error = WireError;

    fn try_from(lease: pb::LeaseId) -> Result<Self, WireError> {
        const MESSAGE: &str = "LeaseId";
        Ok(Self {
            client_guid: ClientGuid(sixteen(MESSAGE, "client_guid", &lease.client_guid)?),
            key: LeaseKey(sixteen(MESSAGE, "key", &lease.key)?),
        })
    }
}

impl From<AppInstance> for pb::AppInstance {
    fn from(instance: AppInstance) -> Self {
        Self { id: instance.id.to_vec(), version: instance.version.map(Into::into) }
    }
}

impl TryFrom<pb::AppInstance> for AppInstance {
    type Error = WireError;

    fn try_from(instance: pb::AppInstance) -> Result<Self, WireError> {
        Ok(Self {
            id: sixteen("AppInstance", "id", &instance.id)?,
            version: instance.version.map(Into::into),
        })
    }
}

impl From<AppInstanceVersion> for pb::AppInstanceVersion {
    fn from(version: AppInstanceVersion) -> Self {
        Self { high: version.high, low: version.low }
    }
}

impl From<pb::AppInstanceVersion> for AppInstanceVersion {
    fn from(version: pb::AppInstanceVersion) -> Self {
        Self { high: version.high, low: version.low }
    }
}

/// Ids as plain numbers.
pub(super) fn numbers(ids: &[DurableFileId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}

/// Plain numbers as ids.
pub(super) fn durable_file_ids(numbers: Vec<u64>) -> Vec<DurableFileId> {
    numbers.into_iter().map(DurableFileId).collect()
}
