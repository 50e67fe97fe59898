//! The keys of the shared records that this process has stored last.
//!
//! They are those of the open that it makes durable next, almost always: so the sidecar, which needs these records to
//! know the open, gets them with the question instead of asking back. A wrong guess costs that question.

use std::cell::RefCell;

use frame::{Database, RecordKey};

/// The longest key of a shared record: that of a lease.
const KEY_MAX: usize = 32;

/// A key and its length.
#[derive(Clone, Copy)]
struct Key {
    bytes: [u8; KEY_MAX],
    len: usize,
}

/// The newest key of a file and that of a lease.
#[derive(Clone, Copy)]
struct Recent {
    file: Key,
    lease: Key,
}

const NONE: Key = Key { bytes: [0; KEY_MAX], len: 0 };

thread_local! {
    // One thread makes all database calls of a process, and the tick makes none.
    static RECENT: RefCell<Recent> = const { RefCell::new(Recent { file: NONE, lease: NONE }) };
}

/// A record is about to be stored.
pub(crate) fn note(database: Database, key: &[u8]) {
    let mut bytes = [0; KEY_MAX];
    let Some(start) = bytes.get_mut(..key.len()) else { return };
    start.copy_from_slice(key);
    let key = Key { bytes, len: key.len() };
    RECENT.with_borrow_mut(|recent| match database {
        Database::Locking => recent.file = key,
        Database::Leases => recent.lease = key,
        Database::Brlock | Database::OpenGlobal | Database::TconGlobal => {}
    });
}

/// The records to look up.
pub(crate) fn keys() -> Vec<RecordKey> {
    let Recent { file, lease } = RECENT.with_borrow(|recent| *recent);
    // Share modes and byte-range locks of a file have one key.
    let keys = [(Database::Locking, file), (Database::Brlock, file), (Database::Leases, lease)];
    let known = keys.into_iter().filter(|(_, key)| key.len > 0);
    known
        .map(|(database, Key { bytes, len })| RecordKey {
            database,
            key: bytes.get(..len).unwrap_or_default().to_vec(),
        })
        .collect()
}
