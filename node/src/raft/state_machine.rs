//! Raft's state machine: [`State`] in memory, with a stored copy behind it.
//!
//! An entry is applied in memory, then handed to the stored copy, then made known, then answered. Whoever
//! reads the state sees all entries up to some index and none after it. So whoever hears of an entry, or of an event
//! that it caused, finds its effects in the state.

use std::io;
use std::sync::{Arc, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use prost::Message;
use proto::WireError;
use proto::convert::required;
use proto::pb::storage::v1 as pb;
use statedb::store::StoreError;
use statedb::store::applied::{Applied, AppliedStore, Change, StoredRecord, Table};
use statedb::{
    BreakTarget, Changes, Command, DurableFileId, FileKey, Limits, NodeId, Outcome, Record, ShareName, State,
    Timestamp,
};
use tokio::sync::{broadcast, watch};

use super::applied_writer::{AppliedWriter, Meta};
use super::convert::{self, state_log_id};
use super::types::{LogId, Payload, Proposed, StoredMembership, TypeConfig};
use crate::events::EventRing;

/// How many entries are applied under one lock and stored in one batch. Readers wait for one batch.
pub(super) const APPLY_BATCH_MAX: usize = 256;

/// How many batches of news a listener may be behind before it has to look at the state as a whole.
const NEWS_LEN: usize = 1024;

/// Between two looks whether a copy of the state is finished.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(1);

/// The tables of the stored copy. The numbers are on disk.
const NODES: Table = Table::new(1);
const SHARES: Table = Table::new(2);
const OPENS: Table = Table::new(3);
const BREAKS: Table = Table::new(4);
const WAITING: Table = Table::new(5);
const DELETES: Table = Table::new(6);

/// What was applied.
#[derive(Clone, Debug)]
pub enum News {
    /// Some entries, in order.
    Applied {
        /// The newest of them.
        upto: Option<statedb::LogId>,
        /// The commands, and what came of them.
        entries: Vec<AppliedEntry>,
        /// What they changed, together.
        changes: Changes,
    },
    /// The whole state was replaced by a snapshot.
    Replaced,
}

/// A command that was applied.
#[derive(Clone, Debug)]
pub struct AppliedEntry {
    /// Where it stands in the log.
    pub log_id: statedb::LogId,
    proposed: Arc<Proposed>,
    /// What came of it.
    pub outcome: Outcome,
}

impl AppliedEntry {
    /// The command.
    #[must_use]
    pub fn command(&self) -> &Command {
        &self.proposed.command
    }
}

/// What this node has applied, shared by who reads it.
#[derive(Debug)]
pub(super) struct AppliedState {
    machine: RwLock<Machine>,
    applied: watch::Sender<Option<statedb::LogId>>,
    news: broadcast::Sender<Arc<News>>,
    events: Arc<EventRing>,
}

/// What changes together.
#[derive(Debug)]
struct Machine {
    state: State,
    membership: StoredMembership,
    /// When cluster time came to be here what it is in `state`.
    time_since: Instant,
}

/// Why the stored copy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store failed, or its bytes are damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes are sound and mean nothing: another release wrote them.
    #[error("the stored state in {path} cannot be understood; was it written by a newer release?")]
    Record {
        /// The directory.
        path: std::path::PathBuf,
        /// What made no sense.
        source: WireError,
    },
    /// The records do not make a state.
    #[error("the stored state in {path} is not whole")]
    State {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        source: statedb::SnapshotError,
    },
    /// The stored state is older than the beginning of the log: what lies between is lost.
    #[error(
        "the stored state in {path} is damaged: it ends before entry {log_begins}, with which the log begins; \
         move the node's data directory away and start the node with an empty one: it will be rebuilt from its \
         peers"
    )]
    Gap {
        /// The directory.
        path: std::path::PathBuf,
        /// The first entry of the log.
        log_begins: u64,
    },
    /// The thread that stores the state cannot be started.
    #[error("cannot start the thread that stores the applied state")]
    Thread(#[source] io::Error),
}

impl AppliedState {
    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        // A panic while applying takes Raft down with it; until that is noticed, what was there is true.
        read(&self.machine.read().unwrap_or_else(PoisonError::into_inner).state)
    }

    /// The newest applied time, and since when it is that here.
    pub(super) fn newest_time(&self) -> (Timestamp, Instant) {
        let machine = self.machine.read().unwrap_or_else(PoisonError::into_inner);
        (machine.state.now(), machine.time_since)
    }

    /// Waits until the state is not being copied. Whoever waited for the lock instead would take the thread from all
    /// other tasks, signs of life among them.
    async fn copied(&self) {
        while matches!(self.machine.try_write(), Err(TryLockError::WouldBlock)) {
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Option<statedb::LogId>> {
        self.applied.subscribe()
    }

    pub(super) fn news(&self) -> broadcast::Receiver<Arc<News>> {
        self.news.subscribe()
    }

    pub(super) fn events(&self) -> &Arc<EventRing> {
        &self.events
    }

    fn publish(&self, applied: Option<statedb::LogId>, news: News) {
        // Nobody may be listening yet.
        let _ = self.news.send(Arc::new(news));
        self.applied.send_replace(applied);
    }
}

/// What Raft drives.
#[derive(Clone, Debug)]
pub(super) struct StateMachine {
    shared: Arc<AppliedState>,
    writer: AppliedWriter,
}

impl StateMachine {
    /// Loads the stored copy, from which a log is replayed that begins with entry `log_begins`.
    pub(super) fn load(store: AppliedStore, limits: Limits, log_begins: u64) -> Result<Self, LoadError> {
        let path = store.dir().to_owned();
        let machine = match store.load()? {
            Some(applied) => Machine::decode(applied, limits).map_err(|error| error.at(path.clone()))?,
            None => Machine::new(State::new(limits), StoredMembership::default()),
        };
        // sled may have gone back to an older state because it found a damaged one.
        if machine.state.applied().map_or(0, |applied| applied.index + 1) < log_begins {
            return Err(LoadError::Gap { path, log_begins });
        }
        // What was written by a process that was killed may not be on disk yet.
        store.sync()?;
        let applied = machine.state.applied();
        let events = Arc::new(EventRing::new(machine.state.next_event()));
        let writer =
            AppliedWriter::start(store, applied.map(|log_id| log_id.index)).map_err(LoadError::Thread)?;
        let shared = AppliedState {
            machine: RwLock::new(machine),
            applied: watch::Sender::new(applied),
            news: broadcast::Sender::new(NEWS_LEN),
            events,
        };
        Ok(Self { shared: Arc::new(shared), writer })
    }

    pub(super) fn shared(&self) -> Arc<AppliedState> {
        Arc::clone(&self.shared)
    }

    pub(super) fn writer(&self) -> AppliedWriter {
        self.writer.clone()
    }

    /// A copy of the whole state, made on a thread where it may take its time.
    async fn snapshot(&self) -> io::Result<SnapshotOf<TypeConfig, SnapshotState>> {
        let shared = Arc::clone(&self.shared);
        let copy = tokio::task::spawn_blocking(move || {
            let machine = shared.machine.read().unwrap_or_else(PoisonError::into_inner);
            SnapshotOf::<TypeConfig, _> {
                meta: machine.snapshot_meta(),
                snapshot: SnapshotState::Whole(Box::new(machine.state.clone())),
            }
        });
        copy.await.map_err(io::Error::other)
    }
}

/// A state on its way. What came from a peer was made a state, and checked, when it came: Raft ends a node whose
/// state machine cannot install what it is given.
#[derive(Clone, Debug)]
pub(super) enum SnapshotState {
    /// The applied state itself, which is always there. Raft asks for a snapshot after so many entries only to know up to
    /// where it may purge the log, and a copy that nobody looks at would keep commands waiting while it is made.
    Applied,
    /// A copy, for a peer or from one.
    Whole(Box<State>),
}

impl SnapshotState {
    /// The copy.
    pub(super) fn whole(self) -> io::Result<State> {
        match self {
            Self::Whole(state) => Ok(*state),
            Self::Applied => Err(io::Error::other("a snapshot that was taken to purge the log is no copy")),
        }
    }
}

impl Machine {
    fn new(state: State, membership: StoredMembership) -> Self {
        Self { state, membership, time_since: Instant::now() }
    }

    fn decode(applied: Applied, limits: Limits) -> Result<Self, DecodeError> {
        let meta: pb::AppliedMeta = pb::AppliedMeta::decode(applied.meta.as_slice())
            .map_err(|error| WireError::undecodable("AppliedMeta", &error))?;
        let state_meta = Record::Meta {
            applied: meta.applied.map(Into::into),
            now: statedb::Timestamp(meta.now_ms),
            next_event: meta.next_event,
        };
        let mut records = vec![state_meta];
        for stored in applied.records {
            records.push(proto::convert::decode::<pb::Record, _>("Record", &stored.value)?);
        }
        let membership = required("AppliedMeta", "membership", meta.membership)?;
        Ok(Self::new(
            State::from_records(limits, records).map_err(DecodeError::State)?,
            convert::stored_membership_from_pb(membership)?,
        ))
    }

    fn snapshot_meta(&self) -> SnapshotMetaOf<TypeConfig> {
        SnapshotMetaOf::<TypeConfig> {
            last_log_id: self.state.applied().map(convert::log_id),
            last_membership: self.membership.clone(),
        }
    }

    fn meta(&self) -> Meta {
        let message = pb::AppliedMeta {
            applied: self.state.applied().map(Into::into),
            now_ms: self.state.now().0,
            next_event: self.state.next_event(),
            membership: Some(convert::stored_membership_to_pb(&self.membership)),
        };
        Meta {
            applied_index: self.state.applied().map(|log_id| log_id.index),
            encoded: message.encode_to_vec(),
        }
    }

    /// The records that changed, as they are now.
    fn stored_changes(&self, changes: &Changes) -> Vec<Change> {
        let state = &self.state;
        let nodes = changes.nodes.iter().map(|id| {
            let record = state.node(*id).map(|node| Record::Node(*id, node.clone()));
            (Slot::of_node(*id), record)
        });
        let shares = changes.shares.iter().map(|name| {
            let record = state.serving_node(name).map(|serving| Record::Share(name.clone(), serving));
            (Slot::of_share(name), record)
        });
        let opens = changes.opens.iter().map(|id| {
            let record = state.open(*id).map(|open| Record::Open(Box::new(open.clone())));
            (Slot::of_open(*id), record)
        });
        let breaks = changes.breaks.iter().map(|target| {
            let record = state.break_under_way(*target).map(|under_way| Record::Break(*target, under_way));
            (Slot::of_break(*target), record)
        });
        let waiting = changes.waiting.iter().map(|index| {
            let record =
                state.waiting_request(*index).map(|waiting| Record::Waiting(Box::new(waiting.clone())));
            (Slot::of_waiting(*index), record)
        });
        let deletes = changes.deletes.iter().map(|file| {
            let record = state.delete_pending(*file).map(|pending| Record::Delete(*file, pending.clone()));
            (Slot::of_delete(*file), record)
        });
        let all = nodes.chain(shares).chain(opens).chain(breaks).chain(waiting).chain(deletes);
        all.map(|(Slot { table, key }, record)| Change { table, key, value: record.as_ref().map(encode) })
            .collect()
    }
}

fn encode(record: &Record) -> Vec<u8> {
    pb::Record::from(record).encode_to_vec()
}

/// A record of a snapshot as it is stored. The meta record is stored apart.
fn stored_record(record: &Record) -> Option<StoredRecord> {
    let Slot { table, key } = match record {
        Record::Meta { .. } => return None,
        Record::Node(id, _) => Slot::of_node(*id),
        Record::Share(name, _) => Slot::of_share(name),
        Record::Open(open) => Slot::of_open(open.description.durable_file_id),
        Record::Break(target, _) => Slot::of_break(*target),
        Record::Waiting(waiting) => Slot::of_waiting(waiting.index),
        Record::Delete(file, _) => Slot::of_delete(*file),
    };
    Some(StoredRecord { table, key, value: encode(record) })
}

/// Where a record is stored. Keys are on disk too: numbers are big-endian, so that their order is that of the state.
struct Slot {
    table: Table,
    key: Vec<u8>,
}

impl Slot {
    fn of_node(id: NodeId) -> Self {
        Self { table: NODES, key: id.0.to_be_bytes().to_vec() }
    }

    fn of_share(name: &ShareName) -> Self {
        Self { table: SHARES, key: name.as_str().as_bytes().to_vec() }
    }

    fn of_open(id: DurableFileId) -> Self {
        Self { table: OPENS, key: id.0.to_be_bytes().to_vec() }
    }

    /// The two kinds of targets differ in the length of their keys.
    fn of_break(target: BreakTarget) -> Self {
        let key = match target {
            BreakTarget::Oplock(open) => open.0.to_be_bytes().to_vec(),
            BreakTarget::Lease(lease) => [lease.client_guid.0, lease.key.0].concat(),
        };
        Self { table: BREAKS, key }
    }

    fn of_waiting(index: u64) -> Self {
        Self { table: WAITING, key: index.to_be_bytes().to_vec() }
    }

    fn of_delete(file: FileKey) -> Self {
        let key = [file.device, file.inode, file.extid].map(u64::to_be_bytes).concat();
        Self { table: DELETES, key }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotState;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let machine = self.shared.machine.read().unwrap_or_else(PoisonError::into_inner);
        Ok((machine.state.applied().map(convert::log_id), machine.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(APPLY_BATCH_MAX);
        while let Some(batch) = batches.next().await {
            let batch = batch.into_iter().collect::<io::Result<Vec<_>>>()?;
            let mut applied_entries = Vec::with_capacity(batch.len());
            let mut answers = Vec::with_capacity(batch.len());
            self.shared.copied().await;
            let (applied, changes, events, meta, stored_changes) = {
                let mut machine = self.shared.machine.write().unwrap_or_else(PoisonError::into_inner);
                let time_before = machine.state.now();
                for (entry, responder) in batch {
                    let log_id = state_log_id(&entry.log_id);
                    let outcome = match entry.payload {
                        Payload::Blank => {
                            machine.state.skip(log_id);
                            None
                        }
                        Payload::Membership(membership) => {
                            machine.state.skip(log_id);
                            machine.membership = StoredMembership::new(Some(entry.log_id), membership);
                            None
                        }
                        Payload::Normal(proposed) => {
                            let outcome = machine.state.apply(log_id, proposed.at, &proposed.command);
                            let entry = AppliedEntry { log_id, proposed, outcome: outcome.clone() };
                            applied_entries.push(entry);
                            Some(outcome)
                        }
                    };
                    answers.extend(responder.map(|responder| (responder, outcome)));
                }
                if machine.state.now() != time_before {
                    machine.time_since = Instant::now();
                }
                let changes = machine.state.take_changes();
                let events = machine.state.take_events();
                let stored_changes = machine.stored_changes(&changes);
                (machine.state.applied(), changes, events, machine.meta(), stored_changes)
            };
            self.writer.write(meta, stored_changes).await.map_err(io::Error::other)?;
            self.shared.events.push(events);
            let news = News::Applied { upto: applied, entries: applied_entries, changes };
            self.shared.publish(applied, news);
            answers.into_iter().for_each(|(responder, outcome)| responder.send(outcome));
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotState,
    ) -> io::Result<()> {
        let state = snapshot.whole()?;
        // As long as it takes for all opens of the cluster, and others need this thread.
        let encoding = tokio::task::spawn_blocking(move || {
            let stored = state.records().filter_map(|record| stored_record(&record)).collect();
            (state, stored)
        });
        let (state, stored) = encoding.await.map_err(io::Error::other)?;
        let (applied, next_event) = (state.applied(), state.next_event());
        let machine = Machine::new(state, meta.last_membership.clone());
        self.writer.replace(machine.meta(), stored).await.map_err(io::Error::other)?;
        *self.shared.machine.write().unwrap_or_else(PoisonError::into_inner) = machine;
        self.shared.events.restart(next_event);
        self.shared.publish(applied, News::Replaced);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotState>>> {
        let snapshot = self.snapshot().await?;
        Ok(snapshot.meta.last_log_id.is_some().then_some(snapshot))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotState;

    /// The state as of now, which is brought as far on disk, because Raft purges the log up to here next.
    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotState>> {
        let meta = self.shared.machine.read().unwrap_or_else(PoisonError::into_inner).snapshot_meta();
        self.writer.sync().await.map_err(io::Error::other)?;
        Ok(SnapshotOf::<TypeConfig, _> { meta, snapshot: SnapshotState::Applied })
    }
}

/// A [`LoadError`] that does not know the directory yet.
enum DecodeError {
    Record(WireError),
    State(statedb::SnapshotError),
}

impl From<WireError> for DecodeError {
    fn from(error: WireError) -> Self {
        Self::Record(error)
    }
}

impl DecodeError {
    fn at(self, path: std::path::PathBuf) -> LoadError {
        match self {
            Self::Record(source) => LoadError::Record { path, source },
            Self::State(source) => LoadError::State { path, source },
        }
    }
}
