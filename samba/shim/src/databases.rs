//! Which open `TDB_CONTEXT` is which of the five databases, and what `tdb_error()` has to say of it.
//!
//! A fixed table: libtdb refuses to open the same file twice in one process, so there is at most one context
//! for each. It is inherited by fork, as the contexts are.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};

use frame::{Database, DatabaseFile, TdbError};

use crate::libtdb::Context;

struct Slot {
    context: AtomicPtr<Context>,
    /// Whether the file is ctdb's.
    is_clustered: AtomicBool,
    /// The error of the last call if that was refused here and never reached libtdb; else 0.
    refused: AtomicU8,
}

static SLOTS: [Slot; Database::ALL.len()] = [const {
    Slot {
        context: AtomicPtr::new(ptr::null_mut()),
        is_clustered: AtomicBool::new(false),
        refused: AtomicU8::new(0),
    }
}; Database::ALL.len()];

/// The database that this context is, if it is one of the five.
pub(crate) fn database_of(context: *mut Context) -> Option<Database> {
    if context.is_null() {
        return None;
    }
    Database::ALL.into_iter().find(|database| slot(*database).context.load(Ordering::Relaxed) == context)
}

/// The file that this context has open, if it is one of the five databases.
pub(crate) fn file_of(context: *mut Context) -> Option<DatabaseFile> {
    let database = database_of(context)?;
    Some(DatabaseFile { database, is_clustered: slot(database).is_clustered.load(Ordering::Relaxed) })
}

/// The open context of a database, and its file; `None` where this process has not opened it.
pub(crate) fn context_of(database: Database) -> Option<(*mut Context, DatabaseFile)> {
    let context = slot(database).context.load(Ordering::Relaxed);
    file_of(context).map(|file| (context, file))
}

/// Remembers a context. The caller has [`forgotten`](forget) the address before, because libtdb may have
/// closed a context unseen and malloc may give its address to another.
pub(crate) fn remember(file: DatabaseFile, context: *mut Context) {
    let slot = slot(file.database);
    slot.refused.store(0, Ordering::Relaxed);
    slot.is_clustered.store(file.is_clustered, Ordering::Relaxed);
    slot.context.store(context, Ordering::Relaxed);
}

/// Forgets a context that is closed, whichever it was.
pub(crate) fn forget(context: *mut Context) {
    if let Some(database) = database_of(context) {
        slot(database).context.store(ptr::null_mut(), Ordering::Relaxed);
    }
}

/// Sets what [`refused`] returns: an error after a call that was refused here, `None` after one that libtdb
/// made.
pub(crate) fn set_refused(database: Database, error: Option<TdbError>) {
    slot(database).refused.store(error.map_or(0, |error| error as u8), Ordering::Relaxed);
}

/// Why the last call on this database was refused here, if it was.
pub(crate) fn refused(database: Database) -> Option<TdbError> {
    TdbError::from_wire(slot(database).refused.load(Ordering::Relaxed))
}

fn slot(database: Database) -> &'static Slot {
    &SLOTS[database as usize]
}
