//! Raft's log and vote, on [`statedb::store::log`].
//!
//! What is written is on its way to the disk when a method returns. A vote, and the acknowledgement of
//! entries, are given only after they are on disk: *commit, then speak*.
//!
//! The store's calls take its lock for microseconds, and read old entries from the page cache; they are made
//! on the task that needs them. The newest entries are read several times soon after they were written: for each
//! follower, and to be applied. They are kept as they are, so that nothing is decoded for that.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use statedb::store::StoreError;
use statedb::store::log::{self, LogStore, OnSynced, Position};
use tokio::sync::oneshot;

use super::applied_writer::AppliedWriter;
use super::convert::{decode_payload, encode_payload, vote_from_parts};
use super::recent::Recent;
use super::types::{CommittedLeaderId, Entry, LogId, TypeConfig, Vote};

/// How many bytes of payloads one read for replication returns. With the largest entry on top, and the
/// frame around each, a message stays below what peers accept ([`super::MESSAGE_LEN_MAX`]).
const REPLICATE_LEN_MAX: usize = 1024 * 1024;

/// Raft's view of the log.
#[derive(Clone, Debug)]
pub(super) struct LogStorage {
    store: Arc<LogStore>,
    recent: Arc<Mutex<Recent>>,
    /// The stored copy of the state, which must be on disk as far as the log is purged.
    applied: AppliedWriter,
}

impl LogStorage {
    pub(super) fn new(store: Arc<LogStore>, applied: AppliedWriter) -> Self {
        Self { store, recent: Arc::default(), applied }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().expect("no holder of this lock can panic")
    }

    fn read(&self, range: impl RangeBounds<u64>, payload_len_max: usize) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        if let Some(entries) = self.recent().read(start..end, payload_len_max) {
            return Ok(entries);
        }
        let entries = self.store.read(start..end, payload_len_max).map_err(|error| self.failed(error))?;
        entries
            .into_iter()
            .map(|entry| {
                let index = entry.position.index;
                let payload = decode_payload(entry.payload).map_err(|error| {
                    let found = format!("entry {index} in {}: {error}", self.store.dir().display());
                    io::Error::new(io::ErrorKind::InvalidData, found)
                })?;
                Ok(Entry { log_id: log_id(entry.position), payload })
            })
            .collect()
    }

    /// Runs a write and waits until it is on disk.
    async fn synced(
        &self,
        write: impl FnOnce(&LogStore, OnSynced) -> Result<(), StoreError>,
    ) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        // Nobody waits any more when Raft is shutting down.
        let on_synced: OnSynced = Box::new(move |result| drop(sender.send(result)));
        write(&self.store, on_synced).map_err(|error| self.failed(error))?;
        receiver.await.map_err(io::Error::other)?.map_err(|error| self.failed(error))
    }

    /// Remembers why this node ends, for who has to tell it.
    fn failed(&self, error: StoreError) -> io::Error {
        self.applied.status().log_failed(error)
    }
}

fn position(log_id: &LogId) -> Position {
    Position { term: log_id.leader_id.term, index: log_id.index }
}

fn log_id(position: Position) -> LogId {
    LogId { leader_id: CommittedLeaderId::from(position.term), index: position.index }
}

impl RaftLogReader<TypeConfig> for LogStorage {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.read(range, usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        let vote = self.store.state().map_err(|error| self.failed(error))?.vote;
        Ok(vote.map(|vote| vote_from_parts(vote.term, vote.voted_for, vote.committed)))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, REPLICATE_LEN_MAX)
    }
}

impl RaftLogStorage<TypeConfig> for LogStorage {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.store.state().map_err(|error| self.failed(error))?;
        Ok(LogState { last_purged_log_id: state.purged.map(log_id), last_log_id: state.last.map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = log::Vote {
            term: vote.leader_id.term,
            committed: vote.committed,
            voted_for: vote.leader_id.voted_for,
        };
        self.synced(|store, on_synced| store.save_vote(vote, on_synced)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        match committed {
            Some(committed) => {
                self.store.save_committed(position(&committed)).map_err(|error| self.failed(error))
            }
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.store.state().map_err(|error| self.failed(error))?.committed.map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let stored = entries.iter().map(|entry| log::Entry {
            position: position(&entry.log_id),
            payload: encode_payload(&entry.payload),
        });
        let stores = self.applied.status();
        let on_synced: OnSynced = Box::new(move |result| {
            callback.io_completed(result.map_err(|error| stores.log_failed(error)));
        });
        self.store.append(stored, on_synced).map_err(|error| self.failed(error))?;
        self.recent().append(entries);
        Ok(())
    }

    async fn truncate_after(&mut self, keep: Option<LogId>) -> io::Result<()> {
        self.recent().truncate_after(keep.map(|keep| keep.index));
        self.synced(|store, on_synced| store.truncate_after(keep.as_ref().map(position), on_synced)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        // purged ≤ applied on disk: what the log forgets must be known from elsewhere.
        self.applied.ensure_synced(upto.index).await.map_err(io::Error::other)?;
        self.recent().purge(upto.index);
        // Nobody waits for this to be on disk. If it gets lost, the log holds more than it needs.
        self.store.purge(position(&upto), Box::new(drop)).map_err(|error| self.failed(error))
    }
}
