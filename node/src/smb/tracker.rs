//! Which keys the shim asks about: the page's bits, kept in step with the replicated state.
//!
//! An open's keys are tracked from before its client hears of the grant until the open is gone everywhere,
//! because a change that nobody asked about would be a change that nobody replicated.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use frame::{NodeSlot, PageError, PageWriter};

use samba::records::file_key;
use statedb::{DurableFileId, FileKey, Instance, OpenDescription};

use super::keys;
use crate::lease::monotonic_ns;

/// The shared page, and which opens stand behind its bits.
#[derive(Debug)]
pub struct Tracker {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    page: PageWriter,
    opens: BTreeMap<DurableFileId, Keys>,
    files: HashMap<FileKey, usize>,
    leases: HashMap<[u8; 32], usize>,
    /// Those of the opens that do not live in this node's SMB service.
    elsewhere: BTreeSet<DurableFileId>,
}

/// What of an open the shim sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Keys {
    file: FileKey,
    lease: Option<[u8; 32]>,
}

impl Keys {
    fn of(description: &OpenDescription) -> Self {
        Self { file: description.file, lease: keys::lease_of(description) }
    }
}

impl Tracker {
    /// Starts from a page that may carry bits of a former sidecar; they stay until [`Self::replace_all`].
    #[must_use]
    pub fn new(page: PageWriter) -> Self {
        let inner = Inner {
            page,
            opens: BTreeMap::new(),
            files: HashMap::new(),
            leases: HashMap::new(),
            elsewhere: BTreeSet::new(),
        };
        Self { inner: Mutex::new(inner) }
    }

    /// Tracks exactly these opens.
    pub fn replace_all<'a>(&self, opens: impl Iterator<Item = &'a OpenDescription>) {
        let mut inner = self.inner();
        inner.elsewhere.clear();
        inner.opens.clear();
        inner.files.clear();
        inner.leases.clear();
        for description in opens {
            let keys = Keys::of(description);
            inner.opens.insert(description.durable_file_id, keys);
            // Until the reconciler says which are this node's. Then a look is only needless.
            inner.elsewhere.insert(description.durable_file_id);
            *inner.files.entry(keys.file).or_default() += 1;
            if let Some(lease) = keys.lease {
                *inner.leases.entry(lease).or_default() += 1;
            }
        }
        let Inner { page, opens, files, leases, elsewhere } = &mut *inner;
        page.replace_all(
            opens.keys().filter_map(|id| keys::samba_id(*id)),
            files.keys().map(|file| file_key(*file).to_vec()),
            leases.keys().map(|lease| lease.to_vec()),
            elsewhere.iter().filter_map(|id| keys::samba_id(*id)),
        );
    }

    /// Tracks an open, or follows it to other keys.
    pub fn track(&self, description: &OpenDescription) {
        let mut inner = self.inner();
        let (id, keys) = (description.durable_file_id, Keys::of(description));
        if inner.opens.get(&id) == Some(&keys) {
            return;
        }
        // The new keys are tracked before the old ones are forgotten: they may be the same.
        let before = inner.opens.insert(id, keys);
        if let Some(id) = keys::samba_id(id) {
            inner.page.set_id(id);
        }
        inner.count_up(keys);
        if let Some(before) = before {
            inner.count_down(before);
        }
    }

    /// Says whether an open that is tracked lives in this node's SMB service, or in another one or none: under CTDB
    /// the record of such an open is asked about before `smbd` looks at it.
    pub fn set_elsewhere(&self, id: DurableFileId, is_elsewhere: bool) {
        let mut inner = self.inner();
        let changed = if is_elsewhere { inner.elsewhere.insert(id) } else { inner.elsewhere.remove(&id) };
        match keys::samba_id(id) {
            Some(id) if changed && is_elsewhere => inner.page.set_elsewhere(id),
            Some(id) if changed => inner.page.clear_elsewhere(id),
            _ => {}
        }
    }

    /// Says whether there may be opens that are not tracked yet, because this node has not heard of them; see
    /// [`PageWriter::set_look_at_all`].
    pub fn set_look_at_all(&self, look_at_all: bool) {
        self.inner().page.set_look_at_all(look_at_all);
    }

    /// Forgets an open.
    pub fn forget(&self, id: DurableFileId) {
        self.set_elsewhere(id, false);
        let mut inner = self.inner();
        let Some(keys) = inner.opens.remove(&id) else { return };
        if let Some(id) = keys::samba_id(id) {
            inner.page.clear_id(id);
        }
        inner.count_down(keys);
    }

    /// Gives this node its share of the persistent ids; see [`PageWriter::set_allocator`].
    ///
    /// # Errors
    ///
    /// If the record does not fit into the page.
    pub fn set_allocator(&self, slot: NodeSlot, in_use_record: &[u8]) -> Result<(), PageError> {
        self.inner().page.set_allocator(slot, in_use_record)
    }

    /// Lets the processes of this instance serve until then.
    pub fn bind(&self, instance: Instance, until: Instant) {
        self.inner().page.bind(&instance.0, monotonic_ns(until));
    }

    /// Moves the end of what the bound processes may do.
    pub fn extend_lease(&self, until: Instant) {
        self.inner().page.extend_lease(monotonic_ns(until));
    }

    /// Ends every process that was bound.
    pub fn unbind(&self) {
        self.inner().page.unbind();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock can panic")
    }
}

impl Inner {
    fn count_up(&mut self, keys: Keys) {
        *self.files.entry(keys.file).or_default() += 1;
        self.page.set_file(&file_key(keys.file));
        if let Some(lease) = keys.lease {
            *self.leases.entry(lease).or_default() += 1;
            self.page.set_lease(&lease);
        }
    }

    fn count_down(&mut self, keys: Keys) {
        if drop_one(&mut self.files, &keys.file) {
            self.page.clear_file(&file_key(keys.file));
        }
        if let Some(lease) = keys.lease
            && drop_one(&mut self.leases, &lease)
        {
            self.page.clear_lease(&lease);
        }
    }
}

/// Counts one down; true if that was the last.
fn drop_one<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) -> bool {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => {
            *count -= 1;
            false
        }
        Some(_) => counts.remove(key).is_some(),
        None => false,
    }
}
