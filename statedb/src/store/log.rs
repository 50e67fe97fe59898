//! The Raft log and the vote, in a write-ahead log.
//!
//! The `raft-log` crate writes the chunks, checks a crc32 per record and syncs on a thread of its own.
//! Added here: encodings that tell damage from a torn tail, group commit, and errors that name file and
//! offset.
//!
//! # Group commit
//!
//! Appending encodes into memory and is done at once; the entries can be read from then on. At most one
//! sync is under way; whatever was appended meanwhile shares the next one. Callbacks run on the sync
//! thread, after the sync, and must not block.
//!
//! # A torn tail and a rotten byte
//!
//! A process that dies in the middle of a write leaves a record cut short at the end of the newest
//! chunk. Nobody was told of it, so it is cut off at the next start. A byte that has changed must never
//! be taken for that, or everything after it would vanish unseen. `raft-log` takes any record whose
//! decoding runs past the end of the file as cut short; so no length or tag is believed before it was
//! checked: positions and votes have a fixed size and a crc32 of their own, payloads a checked header.
//! A rotten byte then always fails a checksum, wherever it is, and the log does not open.
//!
//! What cannot be seen here is a log whose file system has lost the end of a file after a sync.

mod codec;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::chunked_wal::{ChunkedWal, Config as WalConfig};
use raft_log::codeq::OffsetSize;
use raft_log::{Callback, Config, RaftLog, RaftWalTypes};

use self::codec::{Payload, StoreHeader, WalTypes};
use super::error::StoreError;
use super::open_unlocked;

/// The format of the directory as a whole. Written once, when it is made.
const LOG_FORMAT_VERSION: u32 = 1;

/// When a chunk file is closed and the next one begun. Purging removes whole chunks, so the log takes up
/// to one chunk more than it needs; and the entries of the open chunk are always held in memory.
const CHUNK_SIZE_MAX: usize = 16 * 1024 * 1024;

/// How many bytes of payloads are held in memory, so that followers that keep up are never read for from
/// disk. One full chunk is open and one is being left behind.
const CACHE_SIZE_MAX: usize = 2 * CHUNK_SIZE_MAX;

/// How many payloads are held in memory: [`CACHE_SIZE_MAX`] of the smallest that occur, about 64 bytes.
const CACHE_ITEMS_MAX: usize = CACHE_SIZE_MAX / 64;

/// The buffer with which a chunk is read at start. It is allocated once per chunk.
const READ_BUFFER_SIZE: usize = 1024 * 1024;

/// The longest payload of one entry. Longer ones are refused when they are appended.
pub const PAYLOAD_LEN_MAX: usize = 4 * 1024 * 1024;

/// The position of an entry: a term and an index, as in the Raft paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The term of the leader that proposed the entry.
    pub term: u64,
    /// Where it stands. The first entry has index 0.
    pub index: u64,
}

/// Whom this node has voted for.
///
/// The order of the fields is the order in which one vote replaces another: a later term, and within
/// a term the leader that a quorum has elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vote {
    /// In which term.
    pub term: u64,
    /// Whether a quorum has elected it, so that it is the leader.
    pub committed: bool,
    /// The node voted for.
    pub voted_for: u64,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub position: Position,
    /// What it says; opaque here. At most [`PAYLOAD_LEN_MAX`] bytes.
    pub payload: Arc<[u8]>,
}

/// What the log says of itself. Always `purged ≤ last`; `committed ≤ last`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The newest vote.
    pub vote: Option<Vote>,
    /// Up to where entries were known to be committed when that was last written down.
    pub committed: Option<Position>,
    /// Up to where entries were removed because the applied state holds what they did.
    pub purged: Option<Position>,
    /// The newest entry, or [`purged`](Self::purged) if none is left.
    pub last: Option<Position>,
}

/// Called once when a write is on disk, or known not to get there.
pub type OnSynced = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// The log of one node. Dropping it writes out and syncs what is left, and lets go of the directory.
pub struct LogStore {
    shared: Arc<Shared>,
}

/// What the sync thread shares with the store. The thread must never hold the last reference to the
/// `RaftLog`, whose drop waits for that thread: so the store takes it out when it is dropped.
struct Shared {
    dir: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    /// `None` when the store is closed.
    raft_log: Option<RaftLog<WalTypes>>,
    /// Whether a sync is under way. The callbacks of that one are with the sync thread.
    syncing: bool,
    /// Who waits for the next sync.
    waiting: Vec<OnSynced>,
    /// The first failure of a write. After it nothing is accepted.
    failure: Option<StoreError>,
}

impl LogStore {
    /// Opens the log in `dir`, which is created if there is none. Reads and checks all of it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] if another process has it open, [`StoreError::Damaged`] if a byte of it is not
    /// what was written.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with_chunk_size(dir, CHUNK_SIZE_MAX)
    }

    fn open_with_chunk_size(dir: &Path, chunk_size_max: usize) -> Result<Self, StoreError> {
        open_unlocked(|| Self::try_open(dir, chunk_size_max))
    }

    fn try_open(dir: &Path, chunk_size_max: usize) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir)
            .map_err(|error| StoreError::io("create the log directory", dir, error))?;
        let config = config(dir, chunk_size_max)?;
        let mut raft_log = RaftLog::open(Arc::new(config.clone()))
            .map_err(|error| explain_open_error(dir, &config, error))?;
        check_version(dir, &mut raft_log)?;
        let inner = Inner { raft_log: Some(raft_log), syncing: false, waiting: Vec::new(), failure: None };
        Ok(Self { shared: Arc::new(Shared { dir: dir.to_owned(), inner: Mutex::new(inner) }) })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Where the log begins and ends, and the vote.
    pub fn state(&self) -> Result<LogState, StoreError> {
        self.shared.read(|raft_log| {
            let state = raft_log.log_state();
            Ok(LogState {
                vote: state.vote().copied(),
                committed: state.committed().copied(),
                purged: state.purged().copied(),
                last: state.last().copied(),
            })
        })
    }

    /// The entries of `range` that the log has, in order and without a hole.
    ///
    /// Stops early when the payloads exceed `payload_len_max` together; the first entry is always there.
    pub fn read(&self, range: Range<u64>, payload_len_max: usize) -> Result<Vec<Entry>, StoreError> {
        self.shared.read(|raft_log| {
            let end = raft_log.log_state().last().map_or(0, |last| last.index + 1).min(range.end);
            let mut entries = Vec::new();
            let mut payload_len = 0;
            for entry in raft_log.read(range.start, end.max(range.start)) {
                let (position, Payload(payload)) =
                    entry.map_err(|error| explain_read_error(&self.shared.dir, range.start, &error))?;
                payload_len += payload.len();
                if payload_len > payload_len_max && !entries.is_empty() {
                    break;
                }
                entries.push(Entry { position, payload });
            }
            Ok(entries)
        })
    }

    /// Appends entries, which must follow the last one. They can be read when this returns, and are on
    /// disk when `on_synced` is called.
    pub fn append(
        &self,
        entries: impl IntoIterator<Item = Entry>,
        on_synced: OnSynced,
    ) -> Result<(), StoreError> {
        let entries: Vec<_> =
            entries.into_iter().map(|entry| (entry.position, Payload(entry.payload))).collect();
        if let Some((position, payload)) =
            entries.iter().find(|(_, Payload(bytes))| bytes.len() > PAYLOAD_LEN_MAX)
        {
            let reason = format!("entry {} has {} bytes", position.index, payload.0.len());
            let (operation, path) = ("append more than an entry may have", self.shared.dir.clone());
            return Err(StoreError::Refused { operation, path, reason });
        }
        self.shared.write("append to the log", Some(on_synced), |raft_log| {
            raft_log.append(entries)?;
            Ok(())
        })
    }

    /// Writes the vote down. It may be answered when `on_synced` is called, not before: a node that forgot
    /// a vote could vote twice in one term.
    pub fn save_vote(&self, vote: Vote, on_synced: OnSynced) -> Result<(), StoreError> {
        self.shared.write("save the vote in", Some(on_synced), |raft_log| {
            raft_log.save_vote(vote)?;
            Ok(())
        })
    }

    /// Writes down that entries are committed up to `position`. Not synced by itself: it saves a restarted
    /// node time and nothing depends on it. Beyond the last entry it counts as the last one.
    pub fn save_committed(&self, position: Position) -> Result<(), StoreError> {
        self.shared.write("save the commit index in", None, |raft_log| {
            let state = raft_log.log_state();
            let Some(committed) = state.last().copied().map(|last| last.min(position)) else { return Ok(()) };
            if Some(&committed) > state.committed() {
                raft_log.commit(committed)?;
            }
            Ok(())
        })
    }

    /// Removes every entry after `keep`, all of them if it is `None`. Never a committed one.
    pub fn truncate_after(&self, keep: Option<Position>, on_synced: OnSynced) -> Result<(), StoreError> {
        self.shared.write("truncate the log", Some(on_synced), |raft_log| {
            let next = keep.map_or(0, |keep| keep.index + 1);
            if raft_log.log_state().last().is_some_and(|last| next <= last.index) {
                raft_log.truncate(next)?;
            }
            Ok(())
        })
    }

    /// Removes every entry up to `upto`, which may lie beyond the last one: the log then goes on after it.
    pub fn purge(&self, upto: Position, on_synced: OnSynced) -> Result<(), StoreError> {
        self.shared.write("purge the log", Some(on_synced), |raft_log| {
            // After `upto` of a later term nothing of an earlier one can be right. raft-log would keep it.
            let contradicts_last =
                raft_log.log_state().last().is_some_and(|last| upto > *last && upto.index < last.index);
            if contradicts_last {
                raft_log.truncate(upto.index + 1)?;
            }
            raft_log.purge(upto)?;
            Ok(())
        })
    }

    /// How many bytes the chunk files of the log have.
    pub fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.shared.read(|raft_log| Ok(raft_log.on_disk_size()))
    }
}

impl Drop for LogStore {
    fn drop(&mut self) {
        let raft_log = match self.shared.inner.lock() {
            Ok(mut inner) => inner.raft_log.take(),
            Err(poisoned) => poisoned.into_inner().raft_log.take(),
        };
        // Outside the lock: this waits for the sync thread, and that takes the lock for its callbacks.
        drop(raft_log);
    }
}

impl fmt::Debug for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStore").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked while he held the lock may have left the log half written.
        self.inner.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            let mut inner = poisoned.into_inner();
            inner.fail(StoreError::stopped(&self.dir, "a write to it panicked"));
            inner
        })
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&RaftLog<WalTypes>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let inner = self.lock();
        match &inner.raft_log {
            Some(raft_log) => read(raft_log),
            None => Err(StoreError::stopped(&self.dir, "it was closed")),
        }
    }

    /// Runs one write in memory. With `on_synced`, it takes part in the next sync; without, it reaches the
    /// disk with whatever is synced next.
    fn write(
        self: &Arc<Self>,
        operation: &'static str,
        on_synced: Option<OnSynced>,
        write: impl FnOnce(&mut RaftLog<WalTypes>) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let Inner { raft_log: Some(raft_log), failure: None, .. } = &mut *inner else {
            return Err(inner.why_stopped(&self.dir));
        };
        if let Err(source) = write(raft_log) {
            // raft-log checks before it writes and says "invalid input" when the log would contradict itself.
            if source.kind() == io::ErrorKind::InvalidInput {
                let (path, reason) = (self.dir.clone(), source.to_string());
                return Err(StoreError::Refused { operation, path, reason });
            }
            let error = StoreError::io(operation, &self.dir, source);
            inner.fail(error.clone());
            return Err(error);
        }
        let Some(on_synced) = on_synced else { return Ok(()) };
        inner.waiting.push(on_synced);
        if inner.syncing { Ok(()) } else { self.start_sync(&mut inner) }
    }

    /// Sends all that is written in memory to the sync thread, and with it all who wait.
    fn start_sync(self: &Arc<Self>, inner: &mut Inner) -> Result<(), StoreError> {
        let Some(raft_log) = &mut inner.raft_log else { return Err(inner.why_stopped(&self.dir)) };
        let callbacks = std::mem::take(&mut inner.waiting);
        let sync = Sync { shared: Arc::clone(self), callbacks };
        inner.syncing = true;
        raft_log.flush(true, Some(sync)).map_err(|source| {
            let error = StoreError::io("sync the log in", &self.dir, source);
            inner.fail(error.clone());
            error
        })
    }

    /// On the sync thread: a sync has ended. The next one is started before anybody is told of this one.
    fn sync_ended(self: &Arc<Self>, callbacks: Vec<OnSynced>, result: &Result<(), StoreError>) {
        let mut inner = self.lock();
        inner.syncing = false;
        let mut failed = Vec::new();
        let mut next_result = Ok(());
        match result {
            Ok(()) if inner.waiting.is_empty() => {}
            // On failure the callbacks have gone with the sync that was not taken, and were told.
            Ok(()) if inner.raft_log.is_some() => drop(self.start_sync(&mut inner)),
            Ok(()) => {
                next_result = Err(inner.why_stopped(&self.dir));
                failed = std::mem::take(&mut inner.waiting);
            }
            Err(error) => {
                inner.fail(error.clone());
                next_result = Err(error.clone());
                failed = std::mem::take(&mut inner.waiting);
            }
        }
        drop(inner);
        callbacks.into_iter().for_each(|callback| callback(result.clone()));
        failed.into_iter().for_each(|callback| callback(next_result.clone()));
    }
}

impl Inner {
    /// Remembers the first failure; later ones are its consequences.
    fn fail(&mut self, error: StoreError) {
        self.failure.get_or_insert(error);
    }

    fn why_stopped(&self, dir: &Path) -> StoreError {
        match &self.failure {
            Some(failure) => StoreError::stopped(dir, failure),
            None => StoreError::stopped(dir, "it was closed"),
        }
    }
}

/// Everybody who waits for one sync.
struct Sync {
    shared: Arc<Shared>,
    callbacks: Vec<OnSynced>,
}

impl Callback for Sync {
    fn send(mut self, result: io::Result<()>) {
        let result =
            result.map_err(|source| StoreError::io("write and sync the log in", &self.shared.dir, source));
        self.shared.sync_ended(std::mem::take(&mut self.callbacks), &result);
    }
}

impl Drop for Sync {
    /// The sync thread has stopped without a word to those still in its queue. They must not wait for ever.
    fn drop(&mut self) {
        if self.callbacks.is_empty() {
            return;
        }
        let error = StoreError::stopped(&self.shared.dir, "its sync thread has stopped");
        std::mem::take(&mut self.callbacks).into_iter().for_each(|callback| callback(Err(error.clone())));
    }
}

fn config(dir: &Path, chunk_size_max: usize) -> Result<Config, StoreError> {
    let Some(dir_name) = dir.to_str() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
        return Err(StoreError::io("open the log in", dir, source));
    };
    Ok(Config {
        wal: WalConfig {
            chunk_max_size: Some(chunk_size_max),
            read_buffer_size: Some(READ_BUFFER_SIZE),
            truncate_incomplete_record: Some(true),
            // The batches are made here; waiting for more would only add latency.
            flush_batch_wait: Some(Duration::ZERO),
            // At most one sync is queued, so this bounds nothing; and a callback that starts the next sync
            // must not wait for the bytes of its own to be released.
            flush_queue_max_bytes: Some(usize::MAX / 2),
            ..WalConfig::new(dir_name)
        },
        log_cache_max_items: Some(CACHE_ITEMS_MAX),
        log_cache_capacity: Some(CACHE_SIZE_MAX),
    })
}

/// Reads the format version of the directory, or writes it into a new one.
fn check_version(dir: &Path, raft_log: &mut RaftLog<WalTypes>) -> Result<(), StoreError> {
    let state = raft_log.log_state();
    match state.user_data {
        Some(StoreHeader { version: LOG_FORMAT_VERSION }) => Ok(()),
        Some(StoreHeader { version: found }) => {
            Err(StoreError::UnknownVersion { path: dir.to_owned(), found, supported: LOG_FORMAT_VERSION })
        }
        None if state.vote().is_none() && state.last().is_none() => {
            // Synced with the first write that is.
            raft_log
                .save_user_data(Some(StoreHeader { version: LOG_FORMAT_VERSION }))
                .map_err(|error| StoreError::io("write the format version of", dir, error))?;
            Ok(())
        }
        None => Err(StoreError::damaged(dir, "its first record", "a log without a format version")),
    }
}

/// Tells a lock, a failing disk and damage apart, and finds out where the damage is.
fn explain_open_error(dir: &Path, config: &Config, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::WouldBlock => StoreError::Locked { path: dir.to_owned() },
        // What raft-log reports of bytes that it cannot decode or that contradict each other.
        io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::Other => {
            let (path, place, found) = locate_damage(&config.wal)
                .unwrap_or_else(|| (dir.to_owned(), "one of its chunk files".to_owned(), error.to_string()));
            StoreError::Damaged { path, place, found }
        }
        _ => StoreError::io("open the log in", dir, error),
    }
}

/// The file and offset of the first record that does not decode.
fn locate_damage(config: &WalConfig) -> Option<(PathBuf, String, String)> {
    let mut damage = None;
    let lock = ChunkedWal::<RaftWalTypes<WalTypes>>::acquire_lock(config).ok()?;
    let mut end_of_sound = (None, 0);
    ChunkedWal::<RaftWalTypes<WalTypes>>::dump_records(config, &lock, |chunk, _, record| {
        match record {
            Ok((segment, _)) => end_of_sound = (Some(chunk), segment.end().0),
            Err(error) if damage.is_none() => {
                let offset = if end_of_sound.0 == Some(chunk) { end_of_sound.1 } else { 0 };
                damage = Some((
                    PathBuf::from(config.chunk_path(chunk)),
                    format!("the record at byte {offset}"),
                    error.to_string(),
                ));
            }
            Err(_) => {}
        }
        Ok(())
    })
    .ok()?;
    damage
}

fn explain_read_error(dir: &Path, index: u64, error: &io::Error) -> StoreError {
    match error.raw_os_error() {
        Some(code) => StoreError::io("read the log in", dir, io::Error::from_raw_os_error(code)),
        None => StoreError::damaged(dir, format_args!("an entry at or after index {index}"), error),
    }
}

#[cfg(test)]
mod tests;
