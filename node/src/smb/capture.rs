//! What `smbd` is about to store, turned into requests, and the cluster's answer into a reply.
//!
//! **Commit, then speak.** `smbd` waits in its store until the reply; the client hears of a grant, a lock or a
//! reclaim only after `smbd` goes on. So a reply is given when the cluster has decided, and not before.
//!
//! What concerns no durable open of a protected share is let through without a commit.

mod breaks;
mod in_common;
mod let_go;
mod position;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard};
use std::time::Duration;

use frame::{Database, RecordKey, Reply, TdbError};
use futures::{StreamExt, stream};
use samba::file_stat::FileStat;
use samba::records::{Holder, OpenGlobal, ServerId};
use samba::{Capture as Captured, Change as Changed, ImageError, OpenImage};
use statedb::{
    CreateOptions, DurableFileId, FileKey, ImageDigest, Open, OpenDescription, OpenState, Outcome, Reclaim,
    Rejection, Request, ServingNode, ShareName, Update,
};
use tokio::sync::{Mutex, MutexGuard as AsyncMutexGuard};
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use super::connection::{Change, Connection, ConnectionError};
use super::gate::Gate;
use super::keys;
use super::left_behind::LeftBehind;
use super::local::{LocalOpen, LocalOpens};
use super::processes::is_doomed;
use super::service::Settings;
use super::tracker::Tracker;
use crate::proposer::{Proposer, RequestError};
use crate::raft::RaftNode;
use crate::telemetry::chain;

/// Files are divided among so many locks. Two changes of one file never overtake each other on their way to the
/// log; changes of two files wait for each other once in so many times.
const STRIPES: usize = 64;

/// How often an open may say what it needs before it is not believed any more: share modes and locks, then the
/// lease, then nothing.
const NEEDS_MAX: usize = 3;

/// How many opens of a process that died alone are disconnected at the same time.
const BEREAVED_AT_A_TIME: usize = 64;

/// How long a node that has deleted a file may take to report that its opens are closed. That takes a commit; or a verdict,
/// if the node dies in between.
const DELETED_FILE_CLOSED_WITHIN: Duration = Duration::from_secs(5);

/// How often such a grant is asked for again. Each time it is refused the cluster tells whoever listens.
const GRANT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How often it is looked at what somebody else is just about to change.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// Stands for a process of which nothing is known but that it has an open. No process has this id.
const UNKNOWN_PROCESS: u32 = 0;

/// Turns changes of records into requests.
#[derive(Debug)]
pub struct Capture {
    proposer: Arc<Proposer>,
    raft: Arc<RaftNode>,
    tracker: Arc<Tracker>,
    gate: Arc<Gate>,
    settings: Arc<Settings>,
    left_behind: Arc<LeftBehind>,
    opens: SyncMutex<LocalOpens>,
    /// The newest entry of the log by which an open of a process was disconnected that has died alone.
    bereaved_at: AtomicU64,
    stripes: [Mutex<()>; STRIPES],
}

/// What a change of a shared record means for opens.
#[derive(Debug, Default)]
struct Effects {
    /// Opens that are not as they were, and the images by which the cluster knows them.
    changed: Vec<(ImageDigest, OpenDescription)>,
    /// Opens whose clients are away, and that somebody else's wish has ended.
    purged: Vec<DurableFileId>,
}

/// Why a change is not made.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the process could not be asked")]
    Connection(#[from] ConnectionError),
    #[error("the record cannot be understood")]
    Record(#[from] samba::RecordError),
    #[error("the open cannot be captured")]
    Image(#[from] ImageError),
    #[error("the cluster refused: {0}")]
    Rejected(Outcome),
    #[error("open {0}, whose records are lost for the moment, has a byte-range lock there")]
    LockOfAnother(DurableFileId),
    #[error("a message by which an oplock is to be broken makes no sense; an smbd of another version?")]
    Message,
    #[error("the process gave it up")]
    GivenUp,
    #[error("open {0} is another connection's, or nobody's any more")]
    NotItsOwn(DurableFileId),
}

impl Refused {
    /// What `smbd` makes of it is what its client sees.
    fn tdb_error(&self) -> TdbError {
        match self {
            Self::Rejected(Outcome::Rejected(rejection)) => match rejection {
                // STATUS_OBJECT_NAME_NOT_FOUND: there is nothing to come back to.
                Rejection::OpenNotFound(_)
                | Rejection::OpenConnected { .. }
                | Rejection::NotOwner { .. }
                | Rejection::CreateGuidMismatch(_) => TdbError::NoExist,
                // STATUS_NO_MEMORY: a limit.
                Rejection::TooManyOpens { .. } | Rejection::OpenTooLarge { .. } => TdbError::Oom,
                // STATUS_FILE_LOCK_CONFLICT: somebody else has it; a client tries that again.
                _ => TdbError::Lock,
            },
            Self::LockOfAnother(_) => TdbError::Lock,
            Self::Record(_) | Self::Image(_) => TdbError::Corrupt,
            _ => TdbError::Io,
        }
    }
}

impl Capture {
    /// Starts from the opens that the incarnation has already: none, unless its sidecar was restarted.
    #[must_use]
    pub fn new(
        proposer: Arc<Proposer>,
        raft: Arc<RaftNode>,
        tracker: Arc<Tracker>,
        gate: Arc<Gate>,
        settings: Arc<Settings>,
        left_behind: Arc<LeftBehind>,
        opens: Vec<Open>,
    ) -> Self {
        let mut local = LocalOpens::default();
        for Open { description, state, .. } in opens {
            // Whether a client has the open is the cluster's to say; an image may be older than the last reclaim.
            let process = match state {
                OpenState::Connected { .. } => Some(UNKNOWN_PROCESS),
                OpenState::Disconnected { .. } => None,
            };
            local.insert(LocalOpen::agreed(description, process));
        }
        let stripes = std::array::from_fn(|_| Mutex::new(()));
        Self {
            proposer,
            raft,
            tracker,
            gate,
            settings,
            left_behind,
            opens: SyncMutex::new(local),
            bereaved_at: AtomicU64::new(0),
            stripes,
        }
    }

    /// What a process is told about a change that it wants to make; `None` if it has given the change up itself.
    ///
    /// # Errors
    ///
    /// If the process cannot be asked for what is missing.
    pub async fn decide(
        &self,
        change: Change,
        connection: &mut Connection,
    ) -> Result<Result<Option<Reply>, RequestError>, ConnectionError> {
        let decided = match &change {
            Change::Store { database: Database::OpenGlobal, value, deletes_file, .. } => {
                self.open_stored(value, *deletes_file, connection).await
            }
            Change::Delete { database: Database::OpenGlobal, key } => {
                self.open_deleted(key, connection.pid()).await
            }
            Change::Store { database, key, value, .. } => {
                self.shared_changed(*database, key, Some(value), connection).await
            }
            Change::Delete { database, key } => self.shared_changed(*database, key, None, connection).await,
        };
        match decided {
            Ok(()) => Ok(Ok(Some(Reply::Proceed))),
            Err(Refused::Request(error @ RequestError::Ended)) => Ok(Err(error)),
            Err(Refused::Connection(error)) => Err(error),
            Err(Refused::GivenUp) => Ok(Ok(None)),
            Err(refused @ Refused::NotItsOwn(_)) => {
                debug!(pid = connection.pid(), reason = %refused, "a change that smbd wanted to make is skipped");
                Ok(Ok(Some(Reply::Skip)))
            }
            // A client has asked for what is not its own, or not there any more: nothing that an operator has to see.
            Err(refused) if refused.tdb_error() == TdbError::NoExist => {
                debug!(pid = connection.pid(), reason = %refused, "a claim is refused");
                Ok(Ok(Some(Reply::Refuse { tdb_error: TdbError::NoExist })))
            }
            Err(refused) => {
                warn!(pid = connection.pid(), reason = %chain(&refused), "a change that smbd wanted to make is refused");
                Ok(Ok(Some(Reply::Refuse { tdb_error: refused.tdb_error() })))
            }
        }
    }

    /// A process has ended by itself while its siblings live. What it did not hand over is disconnected for it, as after
    /// a clean loss of the connection; its records are rewritten by the reconciler. May be said several times.
    ///
    /// # Errors
    ///
    /// If there is no answer: see [`RequestError`].
    pub async fn process_ended(&self, process: u32) -> Result<(), RequestError> {
        // One that ends in good order leaves its shares first.
        if !self.gate.entered(process).is_empty() {
            self.left_behind.locks_were_left();
        }
        let served = self.opens().of_process(process);
        let mut bereaved =
            stream::iter(served).map(|id| self.bereave(id, process)).buffer_unordered(BEREAVED_AT_A_TIME);
        while let Some(done) = bereaved.next().await {
            done?;
        }
        Ok(())
    }

    async fn bereave(&self, id: DurableFileId, process: u32) -> Result<(), RequestError> {
        let file = match self.opens().get(id) {
            Some(local) if local.process == Some(process) => local.description.file,
            // Settled meanwhile.
            _ => return Ok(()),
        };
        // What the process has asked last may still be under way.
        let _in_order = self.stripe(file).await;
        if self.opens().get(id).is_none_or(|local| local.process != Some(process)) {
            return Ok(());
        }
        self.left_behind.add(id);
        let (log_id, outcome) = self.proposer.propose(Request::Disconnect(id)).await?;
        info!(durable_file_id = %id, process, %outcome, "an smbd process has died with an open");
        if !matches!(outcome, Outcome::Disconnected { .. }) {
            self.left_behind.settle(id);
        }
        // Before the process is forgotten: whoever does not see it any more must see this.
        self.bereaved_at.fetch_max(log_id.index, Ordering::AcqRel);
        self.lost_its_client(id, &outcome);
        Ok(())
    }

    /// Whether an open lives here, with a client or for one.
    #[must_use]
    pub fn has(&self, id: DurableFileId) -> bool {
        let process = self.opens().get(id).map(|local| local.process);
        process.is_some_and(|process| process.is_none_or(|process| !is_doomed(process)))
    }

    /// The processes that serve opens of a share, or of any.
    #[must_use]
    pub fn processes_of(&self, share: Option<&ShareName>) -> Vec<u32> {
        let mut processes = self.opens().processes_of(share);
        processes.retain(|process| *process != UNKNOWN_PROCESS);
        processes
    }

    /// Takes from the records of its opens who has them, where that is not known: what the cluster knows may be older
    /// than the last reclaim. Returns the processes.
    pub fn take_stock(&self, records: Vec<OpenGlobal>) -> BTreeSet<u32> {
        let mut processes = BTreeSet::new();
        for record in records {
            let Some(process) = process_of(record.holder()) else { continue };
            let mut opens = self.opens();
            let Some(local) = opens.get(record.open_persistent_id) else { continue };
            if local.process != Some(UNKNOWN_PROCESS) {
                continue;
            }
            let mut description = local.description.clone();
            let refreshed =
                OpenImage::decode_for(self.settings.layout, &description.image).and_then(|mut image| {
                    image.update_open_global(&record.encode(self.settings.layout))?;
                    Ok(image)
                });
            match refreshed {
                Ok(image) => description = described(&image, &description),
                Err(error) => {
                    warn!(durable_file_id = %record.open_persistent_id, error = %chain(&error), "an open's record is not the one that was captured")
                }
            }
            let agreed = local.agreed;
            opens.insert(LocalOpen { description, agreed, process: Some(process) });
            processes.insert(process);
        }
        processes
    }

    /// Up to which entry of the log the databases have to be reconciled for all opens of processes that died alone to
    /// be where their clients find them.
    #[must_use]
    pub fn bereaved_at(&self) -> u64 {
        self.bereaved_at.load(Ordering::Acquire)
    }

    /// A file is deleted that a dead `smbd` should have deleted.
    ///
    /// # Errors
    ///
    /// If there is no answer: see [`RequestError`].
    pub async fn file_deleted(&self, file: FileKey) -> Result<(), RequestError> {
        let (_, outcome) = self.proposer.propose(Request::FileDeleted(file)).await?;
        match outcome {
            Outcome::Updated => debug!(%file, "a deletion is reported"),
            outcome => warn!(%file, %outcome, "a deletion is not this node's to report"),
        }
        Ok(())
    }

    async fn open_stored(
        &self,
        value: &[u8],
        deletes_file: bool,
        connection: &mut Connection,
    ) -> Result<(), Refused> {
        let record = OpenGlobal::decode(self.settings.layout, value)?;
        let id = record.open_persistent_id;
        let Some(cookie) = record.backend_cookie.as_ref().filter(|_| record.durable) else {
            // Not durable, or not any more. An open whose file smbd is about to delete is closed when its record goes: if
            // smbd dies before it has deleted the file, somebody else has to.
            let deletes_its_file = self.opens().get(id).map(|local| local.description.deletes_its_file());
            return if deletes_its_file == Some(false) { self.close(id).await } else { Ok(()) };
        };
        let _in_order = self.stripe(cookie.file).await;
        let local = self.opens().get(id).cloned();
        if let Some(local) = &local
            && self.is_of_second_claim(local, &record)?
        {
            return Err(Refused::NotItsOwn(id));
        }
        match (local, process_of(record.holder())) {
            (Some(local), Some(process)) => self.changed_or_back(local, value, process).await,
            (Some(local), None) => self.disconnected(local, value).await,
            (None, Some(process)) => {
                let known = self.raft.read(|state| state.open(id).cloned());
                match known {
                    Some(open) if open.connected_through() == Some(self.proposer.owner()) => {
                        // Granted through a sidecar that was restarted before it could say so.
                        let local = LocalOpen::agreed(open.description, Some(process));
                        self.changed_or_back(local, value, process).await
                    }
                    Some(open) => {
                        let local = LocalOpen::agreed(open.description, None);
                        self.changed_or_back(local, value, process).await
                    }
                    None => {
                        let service_path = &cookie.service_path;
                        self.granted(&record, service_path, value, process, deletes_file, connection).await
                    }
                }
            }
            // Somebody whose claim was refused writes that nobody has the open now. Nodes that have their records in common
            // have that of the one who has it.
            (None, None) if self.settings.is_clustered() && self.is_held_elsewhere(id) => {
                Err(Refused::NotItsOwn(id))
            }
            // Of a share that is not protected, or expired meanwhile.
            (None, None) => Ok(()),
        }
    }

    /// Whether a record is what a second claim makes of an open whose client has it still, or has it again.
    ///
    /// `smbd` stores the record as that of who claims it, before it looks into the share modes and refuses; and stores it
    /// once more as one that nobody can come back to, when the process ends. What the record says meanwhile would be lost.
    fn is_of_second_claim(&self, local: &LocalOpen, record: &OpenGlobal) -> Result<bool, Refused> {
        let is_first_claim = local.process.is_none() && process_of(record.holder()).is_some();
        if is_first_claim || local.process == Some(UNKNOWN_PROCESS) {
            return Ok(false);
        }
        // Each claim gives the open a volatile id of its own.
        let known = OpenImage::decode(&local.description.image)?;
        Ok(known.open_global().open_volatile_id != record.open_volatile_id)
    }

    fn is_held_elsewhere(&self, id: DurableFileId) -> bool {
        let holder = self.raft.read(|state| state.open(id).and_then(Open::holder));
        holder.is_some_and(|owner| owner != self.proposer.owner())
    }

    /// A new durable open.
    async fn granted(
        &self,
        record: &OpenGlobal,
        service_path: &str,
        value: &[u8],
        process: u32,
        deletes_file: bool,
        connection: &mut Connection,
    ) -> Result<(), Refused> {
        let Some(share) = self.share(service_path, connection.pid()) else {
            debug!(service_path, "a durable open of a share that is not protected");
            return Ok(());
        };
        let image = match self.image_of_new(value, connection).await {
            // Its entry or its lease is not there any more, or is just being removed. smbd would find that out next; but until
            // then a node that has not heard of the end might put them back.
            Err(Refused::Image(ImageError::NoShareModeEntry { id, .. } | ImageError::NoLease { id, .. }))
                if self.is_left_behind(id, connection).await? =>
            {
                debug!(durable_file_id = %id, "a client has come back for an open that somebody has purged");
                return Err(Refused::Rejected(Outcome::Rejected(Rejection::OpenNotFound(id))));
            }
            image => image?,
        };
        if image.entry().server_id == ServerId::DISCONNECTED {
            // No new one: the open has ended in the cluster, and its records are still to be removed.
            let gone = Rejection::OpenNotFound(record.open_persistent_id);
            return Err(Refused::Rejected(Outcome::Rejected(gone)));
        }
        let create_options = CreateOptions(if deletes_file { CreateOptions::DELETE_ON_CLOSE } else { 0 });
        let description = OpenDescription { create_options, ..image.describe(share) };
        // Tracked before the cluster knows: the next change of the open can come as soon as smbd goes on.
        self.tracker.track(&description);
        let outcome = self.grant(&description).await?;
        if outcome != Outcome::Granted {
            self.tracker.forget(record.open_persistent_id);
            return Err(Refused::Rejected(outcome));
        }
        self.opens().insert(LocalOpen::agreed(description, Some(process)));
        Ok(())
    }

    /// Reports a new open.
    ///
    /// `smbd` deletes a file before it says that the last open of it is closed. Until then another node may have made a file
    /// that has got the same inode, in another share of the same file system. So who is refused for an open whose file is not
    /// there any more asks again.
    async fn grant(&self, description: &OpenDescription) -> Result<Outcome, Refused> {
        let deadline = Instant::now() + DELETED_FILE_CLOSED_WITHIN;
        loop {
            let (_, outcome) = self.proposer.propose(Request::Grant(Box::new(description.clone()))).await?;
            match outcome {
                Outcome::Rejected(Rejection::SharingViolation { with })
                    if Instant::now() < deadline && self.has_lost_its_file(with).await =>
                {
                    debug!(durable_file_id = %description.durable_file_id, %with, "a new file has the inode of one that was deleted");
                    sleep(GRANT_AGAIN_AFTER).await;
                }
                outcome => return Ok(outcome),
            }
        }
    }

    /// Whether the file of an open is not under its name any more, or the open itself is gone.
    async fn has_lost_its_file(&self, id: DurableFileId) -> bool {
        let known = self.raft.read(|state| state.open(id).map(|open| Arc::clone(&open.description.image)));
        let Some(image) = known else { return true };
        let found = tokio::task::spawn_blocking(move || {
            let image = OpenImage::decode(&image)?;
            Ok::<_, ImageError>(FileStat::read(image.cookie(), image.path()).is_ok())
        });
        matches!(found.await, Ok(Ok(false)))
    }

    /// Whether the record of an open is what `smbd` leaves behind when somebody wants the file of a client that is away:
    /// it takes the open from the share modes alone, and finds that out when the client is back, right after this store.
    async fn is_left_behind(&self, id: DurableFileId, connection: &mut Connection) -> Result<bool, Refused> {
        let key =
            RecordKey { database: Database::OpenGlobal, key: samba::records::open_global_key(id).to_vec() };
        let fetched = connection.fetch(vec![key]).await?.ok_or(Refused::GivenUp)?;
        let Some(before) = fetched.into_iter().find_map(|record| record.value) else { return Ok(false) };
        let before = OpenGlobal::decode(self.settings.layout, &before)?;
        Ok(process_of(before.holder()).is_none())
    }

    async fn image_of_new(&self, value: &[u8], connection: &mut Connection) -> Result<OpenImage, Refused> {
        let mut records = BTreeMap::new();
        for _ in 0..NEEDS_MAX {
            match OpenImage::capture(self.settings.layout, value, &records)? {
                Captured::Complete(mut image) => {
                    let opened_as = image.cookie().base_name.clone();
                    image.keep_to_name(&opened_as, |share, path| self.settings.libtdb.name_hash(share, path));
                    return Ok(*image);
                }
                Captured::Need(keys) => {
                    let fetched = connection.fetch(keys).await?.ok_or(Refused::GivenUp)?;
                    records.extend(fetched.into_iter().map(|record| {
                        let key = RecordKey { database: record.database, key: record.key };
                        (key, record.value)
                    }));
                }
            }
        }
        // Only a process that answers something else than it was asked gets here.
        Err(Refused::GivenUp)
    }

    /// An open of ours, or an orphan, is stored with a process: changed, or reclaimed by its client.
    async fn changed_or_back(&self, local: LocalOpen, value: &[u8], process: u32) -> Result<(), Refused> {
        let id = local.description.durable_file_id;
        let is_back = local.process.is_none();
        let local = LocalOpen { process: Some(process), ..local };
        if is_back {
            let reclaim = Reclaim { durable_file_id: id, create_guid: local.description.create_guid };
            let (_, outcome) = self.proposer.propose(Request::Reclaim(reclaim)).await?;
            match outcome {
                Outcome::Reclaimed => {
                    self.left_behind.settle(id);
                    info!(durable_file_id = %id, share = %local.description.share, "a client has its open back")
                }
                // Asked again after a restart of this sidecar: the first answer got lost, not the decision.
                Outcome::Rejected(Rejection::OpenConnected { owner, .. })
                    if owner == self.proposer.owner() => {}
                outcome => {
                    if matches!(outcome, Outcome::Rejected(Rejection::OpenNotFound(_))) {
                        self.opens().remove(id);
                    }
                    return Err(Refused::Rejected(outcome));
                }
            }
        }
        let local = if is_back && !self.settings.is_clustered() {
            // What changed is who has it, and a survivor would write that anew.
            let mut image = OpenImage::decode_for(self.settings.layout, &local.description.image)?;
            image.update_open_global(value)?;
            LocalOpen { description: described(&image, &local.description), ..local }
        } else {
            self.report(local, |image| image.update_open_global(value)).await?
        };
        self.opens().insert(local);
        Ok(())
    }

    /// Reports what `change` makes of an open, again if another node was faster. Returns what the open is then.
    async fn report(
        &self,
        mut local: LocalOpen,
        change: impl Fn(&mut OpenImage) -> Result<Changed, ImageError>,
    ) -> Result<LocalOpen, Refused> {
        loop {
            let mut image = OpenImage::decode_for(self.settings.layout, &local.description.image)?;
            let changed = change(&mut image)?;
            let description = described(&image, &local.description);
            if changed != Changed::Changed {
                return Ok(LocalOpen { description, ..local });
            }
            match self.update(vec![(local.agreed, description.clone())]).await {
                Ok(()) => return Ok(LocalOpen::agreed(description, local.process)),
                Err(Refused::Rejected(Outcome::Rejected(Rejection::OpenChanged(id)))) => {
                    let known = self.raft.read(|state| state.open(id).map(|open| open.description.clone()));
                    let gone = Refused::Rejected(Outcome::Rejected(Rejection::OpenNotFound(id)));
                    local = LocalOpen::agreed(known.ok_or(gone)?, local.process);
                }
                Err(refused) => return Err(refused),
            }
        }
    }

    /// The connection of an open is lost cleanly: `smbd` keeps it for its client.
    async fn disconnected(&self, local: LocalOpen, value: &[u8]) -> Result<(), Refused> {
        let id = local.description.durable_file_id;
        let was_connected = local.process.is_some();
        let local = match self.report(local, |image| image.update_open_global(value)).await {
            // Gone meanwhile, or moved. smbd would die of a refusal here (4.17: smbXsrv_open_close uses the record after it is freed).
            Err(Refused::Rejected(outcome)) => {
                debug!(durable_file_id = %id, %outcome, "a client is away whose open is not this node's any more");
                self.opens().remove(id);
                return Err(Refused::NotItsOwn(id));
            }
            reported => reported?,
        };
        self.opens().insert(local);
        if was_connected {
            let (_, outcome) = self.proposer.propose(Request::Disconnect(id)).await?;
            debug!(durable_file_id = %id, %outcome, "a client is away");
            self.lost_its_client(id, &outcome);
        }
        Ok(())
    }

    fn lost_its_client(&self, id: DurableFileId, outcome: &Outcome) {
        let mut opens = self.opens();
        match outcome {
            Outcome::Disconnected { .. } => opens.set_disconnected(id),
            // Closed, because it does not outlive its connection; or not ours any more.
            _ => drop(opens.remove(id)),
        }
    }

    /// An open is closed by its client, by its time, or by somebody who wanted the file; or `process` has found the record of
    /// one that is dead, which has closed nothing.
    async fn open_deleted(&self, key: &[u8], process: u32) -> Result<(), Refused> {
        let Some(id) = keys::open_of(key) else { return Ok(()) };
        let served_by = self.opens().get(id).and_then(|local| local.process);
        let is_dead =
            |served_by: &u32| ![process, UNKNOWN_PROCESS].contains(served_by) && is_doomed(*served_by);
        if let Some(dead) = served_by.filter(is_dead) {
            return Ok(self.bereave(id, dead).await?);
        }
        let file = match self.opens().get(id) {
            Some(local) => Some(local.description.file),
            None => self.raft.read(|state| state.open(id).map(|open| open.description.file)),
        };
        let Some(file) = file else { return Ok(()) };
        let _in_order = self.stripe(file).await;
        self.close(id).await
    }

    async fn close(&self, id: DurableFileId) -> Result<(), Refused> {
        let (_, outcome) = self.proposer.propose(Request::Close(id)).await?;
        // If it is somebody else's by now, what smbd deletes is only a leftover.
        debug!(durable_file_id = %id, %outcome, "an open is closed");
        self.opens().remove(id);
        Ok(())
    }

    /// A record that several opens share has changed: share modes, byte-range locks, or a lease.
    async fn shared_changed(
        &self,
        database: Database,
        key: &[u8],
        value: Option<&[u8]>,
        connection: &mut Connection,
    ) -> Result<(), Refused> {
        self.own_changed(database, key, value, connection.pid()).await?;
        self.common_changed(database, key, value, connection).await
    }

    /// What it means for opens of this node.
    async fn own_changed(
        &self,
        database: Database,
        key: &[u8],
        value: Option<&[u8]>,
        process: u32,
    ) -> Result<(), Refused> {
        let files = self.files_behind(database, key);
        let _in_order = self.stripes(&files).await;
        loop {
            let Effects { changed, purged } = self.effects(database, key, value, process)?;
            debug!(%database, changed = changed.len(), purged = purged.len(), "a shared record is changed");
            for id in purged {
                info!(durable_file_id = %id, "somebody wanted the file of an open whose client is away");
                self.close(id).await?;
            }
            if changed.is_empty() {
                return Ok(());
            }
            match self.update(changed.clone()).await {
                Ok(()) => {
                    let mut opens = self.opens();
                    for (_, description) in changed {
                        let process = opens.get(description.durable_file_id).and_then(|local| local.process);
                        opens.insert(LocalOpen::agreed(description, process));
                    }
                    return Ok(());
                }
                Err(Refused::Rejected(Outcome::Rejected(Rejection::OpenChanged(id)))) => {
                    self.look_again_at(id)
                }
                // One of them is not ours any more: expired, or moved with its share. The others are.
                Err(Refused::Rejected(Outcome::Rejected(
                    Rejection::OpenNotFound(id) | Rejection::NotOwner { open: id, .. },
                ))) if self.opens().remove(id).is_some() => {}
                Err(refused) => return Err(refused),
            }
        }
    }

    /// What a new value of a shared record, stored by `process`, means for the opens behind it.
    fn effects(
        &self,
        database: Database,
        key: &[u8],
        value: Option<&[u8]>,
        process: u32,
    ) -> Result<Effects, Refused> {
        let mut effects = Effects::default();
        for local in self.behind(database, key) {
            let before = OpenImage::decode_for(self.settings.layout, &local.description.image)?;
            let mut image = before.clone();
            let change = match database {
                Database::Locking => self.update_locking(&mut image, value)?,
                Database::Brlock => image.update_brlock(value)?,
                Database::Leases => image.update_lease(key, value)?,
                Database::OpenGlobal | Database::TconGlobal => Changed::Same,
            };
            match change {
                Changed::Same => {}
                // So begins a close; the delete of the open's own record follows, and says it all. If it was no close,
                // somebody has made it give way. He stores an entry of his own before his client hears of it, and with
                // that this is reported.
                Changed::Changed
                    if database == Database::Locking
                        && local.process == Some(process)
                        && !self.settings.is_clustered()
                        && image.has_only_let_go_since(&before, value.unwrap_or_default())? => {}
                Changed::Changed => {
                    effects.changed.push((local.agreed, described(&image, &local.description)));
                }
                // smbd purges an open whose client is away, or whose process is dead, by taking its entry from the share
                // modes, and leaves its own record behind. Whoever takes that for an open would give back a cache that
                // is stale by now. The entry of an open that a living process has is taken away by that process alone.
                Changed::Gone
                    if database == Database::Locking
                        && !self.settings.is_clustered()
                        && is_purged_by(process, &local, &before) =>
                {
                    effects.purged.push(local.description.durable_file_id);
                }
                // Of an open that is being closed: the delete of its own record follows.
                Changed::Gone => {}
            }
        }
        if database == Database::Locking {
            for orphan in self.orphans_behind(key) {
                // Its entry is not the one of its image any more: placing it has changed it. Only its end counts.
                if OpenImage::decode_for(self.settings.layout, &orphan.image)?.update_locking(value)?
                    == Changed::Gone
                {
                    effects.purged.push(orphan.durable_file_id);
                }
            }
        }
        Ok(effects)
    }

    /// Brings an image up to date with new share modes of its file.
    fn update_locking(&self, image: &mut OpenImage, value: Option<&[u8]>) -> Result<Changed, ImageError> {
        let known_as = image.path().to_owned();
        let changed = image.update_locking(value)?;
        image.keep_to_name(&known_as, |share, path| self.settings.libtdb.name_hash(share, path));
        Ok(changed)
    }

    /// Reports what opens are now, and by which images the cluster knows them. If another node was faster, this one knows
    /// afterwards what that has reported.
    async fn update(&self, changed: Vec<(ImageDigest, OpenDescription)>) -> Result<(), Refused> {
        for (_, description) in &changed {
            debug!(durable_file_id = %description.durable_file_id, "an open has changed");
            self.tracker.track(description);
        }
        let (mut replaces, opens): (Vec<_>, Vec<_>) = changed.into_iter().unzip();
        if !self.settings.is_clustered() {
            // Nobody else changes opens of this node.
            replaces.clear();
        }
        let (log_id, outcome) = self.proposer.propose(Request::Update(Update { opens, replaces })).await?;
        match outcome {
            Outcome::Updated => Ok(()),
            outcome => {
                if matches!(outcome, Outcome::Rejected(Rejection::OpenChanged(_))) {
                    self.raft.applied_through(log_id.index).await;
                }
                Err(Refused::Rejected(outcome))
            }
        }
    }

    /// Another node has changed an open, or has it by now.
    fn look_again_at(&self, id: DurableFileId) {
        let known = self.raft.read(|state| state.open(id).cloned());
        let mut opens = self.opens();
        let process = opens.get(id).and_then(|local| local.process);
        match known {
            Some(open) if open.holder() == Some(self.proposer.owner()) => {
                opens.insert(LocalOpen::agreed(open.description, process));
            }
            _ => drop(opens.remove(id)),
        }
    }

    /// The orphans of a file that wait here, which nobody owns and this node serves.
    ///
    /// One that a client has come back for is an open of this node from the answer to its claim on; on a follower the state
    /// shows that later.
    fn orphans_behind(&self, key: &[u8]) -> Vec<OpenDescription> {
        let Some(file) = keys::file_of(key) else { return Vec::new() };
        let here = Some(ServingNode { owner: self.proposer.owner() });
        let mut orphans: Vec<OpenDescription> = self.raft.read(|state| {
            let orphans = state.opens_of_file(file).filter(|open| {
                open.holder().is_none() && state.serving_node(&open.description.share) == here
            });
            orphans.map(|open| open.description.clone()).collect()
        });
        let opens = self.opens();
        orphans.retain(|orphan| opens.get(orphan.durable_file_id).is_none());
        orphans
    }

    /// This node's own opens that share a record.
    fn behind(&self, database: Database, key: &[u8]) -> Vec<LocalOpen> {
        let opens = self.opens();
        match database {
            Database::Locking | Database::Brlock => {
                keys::file_of(key).map(|file| opens.of_file(file).cloned().collect())
            }
            Database::Leases => {
                <[u8; 32]>::try_from(key).ok().map(|lease| opens.of_lease(&lease).cloned().collect())
            }
            Database::OpenGlobal | Database::TconGlobal => None,
        }
        .unwrap_or_default()
    }

    fn files_behind(&self, database: Database, key: &[u8]) -> BTreeSet<FileKey> {
        self.behind(database, key).iter().map(|local| local.description.file).collect()
    }

    /// The share that a path belongs to, if that is protected. Where two shares have one path, it is the one
    /// that the process has a tree connect to.
    fn share(&self, service_path: &str, process: u32) -> Option<ShareName> {
        let entered = self.gate.entered(process);
        let at_path: Vec<_> = self.settings.samba.shares_at(service_path).collect();
        let is_protected = |share: &&ShareName| !self.settings.unprotected.contains(*share);
        let mut candidates: Vec<_> = at_path.iter().copied().filter(is_protected).cloned().collect();
        if at_path.is_empty() && entered.len() == 1 {
            // A path with variables, which only smbd can expand: there is only one share that it can be.
            candidates.extend(entered.iter().cloned());
        }
        candidates.sort_by_key(|share| !entered.contains(share));
        let share = candidates.into_iter().next();
        if share.is_none() && at_path.is_empty() && !entered.is_empty() {
            error!(
                service_path,
                "no share has this path: its durable opens are not replicated; is smb.conf the one that smbd runs with?"
            );
        }
        share
    }

    async fn stripe(&self, file: FileKey) -> AsyncMutexGuard<'_, ()> {
        self.stripes[stripe_of(file)].lock().await
    }

    /// The locks of several files, in an order that cannot deadlock.
    async fn stripes(&self, files: &BTreeSet<FileKey>) -> Vec<AsyncMutexGuard<'_, ()>> {
        let stripes: BTreeSet<_> = files.iter().map(|file| stripe_of(*file)).collect();
        let mut locked = Vec::with_capacity(stripes.len());
        for stripe in stripes {
            locked.push(self.stripes[stripe].lock().await);
        }
        locked
    }

    fn opens(&self) -> MutexGuard<'_, LocalOpens> {
        self.opens.lock().expect("no holder of this lock can panic")
    }
}

/// Inode numbers of files that are made together follow each other, and so are spread over the stripes.
fn stripe_of(file: FileKey) -> usize {
    usize::try_from(file.inode % STRIPES as u64).expect("it is less than STRIPES")
}

/// An open as its image has it now; what no record says of it stays as it was.
fn described(image: &OpenImage, before: &OpenDescription) -> OpenDescription {
    OpenDescription { create_options: before.create_options, ..image.describe(before.share.clone()) }
}

/// Whether an open whose entry `process` takes from the share modes is purged by that, and not being closed by the
/// process that has it.
fn is_purged_by(process: u32, local: &LocalOpen, image: &OpenImage) -> bool {
    match local.process {
        // This sidecar was restarted, and knows it from the image only, which may be older than the last claim. If that
        // one lives, it is this one.
        Some(UNKNOWN_PROCESS) => process_of(image.open_global().holder())
            .is_some_and(|holder| holder != process && is_doomed(holder)),
        holder => holder != Some(process),
    }
}

fn process_of(holder: Holder) -> Option<u32> {
    match holder {
        Holder::Process(server_id) => u32::try_from(server_id.pid).ok(),
        Holder::Disconnected => None,
    }
}
