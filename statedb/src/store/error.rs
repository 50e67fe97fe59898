//! What can go wrong with a store.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The disk lied or failed. Whoever gets this stops the node: it must neither vote nor serve from a
/// store that it cannot trust.
///
/// Cloneable, because one failed sync fails everybody who waited for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Stored bytes are not what was written.
    #[error(
        "{} is damaged at {place}: {found}; move the node's data directory away and start the node with an \
         empty one: it will be rebuilt from its peers",
        path.display()
    )]
    Damaged {
        /// The file, or the directory of the database.
        path: PathBuf,
        /// Where in it: an offset, or a tree and a key.
        place: String,
        /// What was found there.
        found: String,
    },

    /// The operating system refused an operation.
    #[error("cannot {operation} {}{}", path.display(), remedy(source))]
    Io {
        /// What was attempted, as a verb phrase.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },

    /// Another process uses the directory.
    #[error(
        "{} is in use by another process; stop the other node that has this data directory, or give this \
         one a directory of its own",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },

    /// The directory was written by a release whose format this one does not know.
    #[error(
        "{} has format version {found}, this release reads version {supported}; run the release that wrote \
         it",
        path.display()
    )]
    UnknownVersion {
        /// The directory.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The version understood.
        supported: u32,
    },

    /// The caller asked for what would break the log: a bug, not a failure of the disk.
    #[error("refused to {operation} in {}: {reason}", path.display())]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// Of which store.
        path: PathBuf,
        /// Why it would break something.
        reason: String,
    },

    /// The store has failed before, or was closed.
    #[error("the store {} accepts nothing more: {reason}", path.display())]
    Stopped {
        /// The directory.
        path: PathBuf,
        /// The failure that stopped it.
        reason: String,
    },
}

impl StoreError {
    /// An I/O failure, named.
    pub(super) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Damage, named.
    pub(super) fn damaged(path: &Path, place: impl fmt::Display, found: impl fmt::Display) -> Self {
        Self::Damaged { path: path.to_owned(), place: place.to_string(), found: found.to_string() }
    }

    /// A store that is out of use.
    pub(super) fn stopped(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Stopped { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// What to do about a failed operation, where that is certain.
fn remedy(error: &io::Error) -> &'static str {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => "; make space there and start the node again",
        _ => "",
    }
}
