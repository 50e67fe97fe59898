//! `LogId`, `Owner`, `FileKey` and lists of `DurableFileId`.

use statedb::{DurableFileId, FileKey, Incarnation, LogId, NodeId, Owner};

use crate::pb::storage::v1 as pb;

impl From<LogId> for pb::LogId {
    fn from(log_id: LogId) -> Self {
        Self { term: log_id.term, index: log_id.index }
    }
}

impl From<pb::LogId> for LogId {
    fn from(log_id: pb::LogId) -> Self {
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

/// Ids as plain numbers.
pub(super) fn numbers(ids: &[DurableFileId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}

/// Plain numbers as ids.
pub(super) fn durable_file_ids(numbers: Vec<u64>) -> Vec<DurableFileId> {
    numbers.into_iter().map(DurableFileId).collect()
}
