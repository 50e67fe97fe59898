//! The opens that live in this node's SMB service: what its records say of them now.
//!
//! The replicated state learns of a change through the log, a moment later; until then this is the newer
//! truth. It is derived from the records of `smbd` and from the log, and nothing of it is needed after a crash.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::keys;
use statedb::{DurableFileId, FileKey, ImageDigest, OpenDescription, ShareName};

/// An open of this node's SMB service.
#[derive(Clone, Debug)]
pub struct LocalOpen {
    /// As it was last agreed on, or as it is being agreed on.
    pub description: OpenDescription,
    /// The image by which the cluster knows it. Where nodes have their records in common, another one may have changed
    /// it since.
    pub agreed: ImageDigest,
    /// The process that serves it; `None` while it is disconnected.
    pub process: Option<u32>,
}

impl LocalOpen {
    /// An open as the cluster has agreed on it.
    #[must_use]
    pub fn agreed(description: OpenDescription, process: Option<u32>) -> Self {
        Self { agreed: ImageDigest::of(&description.image), description, process }
    }
}

/// All of them, found by id, file, lease and process.
#[derive(Debug, Default)]
pub struct LocalOpens {
    by_id: BTreeMap<DurableFileId, LocalOpen>,
    by_file: HashMap<FileKey, BTreeSet<DurableFileId>>,
    by_lease: HashMap<[u8; 32], BTreeSet<DurableFileId>>,
    by_process: HashMap<u32, BTreeSet<DurableFileId>>,
}

impl LocalOpens {
    /// An open.
    #[must_use]
    pub fn get(&self, id: DurableFileId) -> Option<&LocalOpen> {
        self.by_id.get(&id)
    }

    /// The opens of a file, by id.
    pub fn of_file(&self, file: FileKey) -> impl Iterator<Item = &LocalOpen> {
        self.by_file.get(&file).into_iter().flatten().filter_map(|id| self.by_id.get(id))
    }

    /// The opens of a lease, by id. `lease` is its key in `leases.tdb`.
    pub fn of_lease(&self, lease: &[u8; 32]) -> impl Iterator<Item = &LocalOpen> {
        self.by_lease.get(lease).into_iter().flatten().filter_map(|id| self.by_id.get(id))
    }

    /// The opens that a process serves, by id.
    #[must_use]
    pub fn of_process(&self, process: u32) -> Vec<DurableFileId> {
        self.by_process.get(&process).into_iter().flatten().copied().collect()
    }

    /// The processes that serve opens of a share, or of any.
    #[must_use]
    pub fn processes_of(&self, share: Option<&ShareName>) -> Vec<u32> {
        let is_meant = |open: &LocalOpen| share.is_none_or(|share| open.description.share == *share);
        let is_of_share = |id| self.by_id.get(id).is_some_and(is_meant);
        let serving = self.by_process.iter().filter(|(_, ids)| ids.iter().any(is_of_share));
        serving.map(|(process, _)| *process).collect()
    }

    /// Adds an open, or replaces what was known of it.
    pub fn insert(&mut self, open: LocalOpen) {
        let id = open.description.durable_file_id;
        self.remove(id);
        self.by_file.entry(open.description.file).or_default().insert(id);
        if let Some(lease) = keys::lease_of(&open.description) {
            self.by_lease.entry(lease).or_default().insert(id);
        }
        if let Some(process) = open.process {
            self.by_process.entry(process).or_default().insert(id);
        }
        self.by_id.insert(id, open);
    }

    /// Forgets an open.
    pub fn remove(&mut self, id: DurableFileId) -> Option<LocalOpen> {
        let open = self.by_id.remove(&id)?;
        forget(&mut self.by_file, &open.description.file, id);
        if let Some(lease) = keys::lease_of(&open.description) {
            forget(&mut self.by_lease, &lease, id);
        }
        if let Some(process) = open.process {
            forget(&mut self.by_process, &process, id);
        }
        Some(open)
    }

    /// Says that no process serves the open any more.
    pub fn set_disconnected(&mut self, id: DurableFileId) {
        if let Some(process) = self.by_id.get_mut(&id).and_then(|open| open.process.take()) {
            forget(&mut self.by_process, &process, id);
        }
    }
}

fn forget<K: std::hash::Hash + Eq>(
    index: &mut HashMap<K, BTreeSet<DurableFileId>>,
    key: &K,
    id: DurableFileId,
) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}
