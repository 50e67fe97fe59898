//! Under CTDB: what a change of a record means for opens that other nodes have, or nobody.
//!
//! All nodes have the records of a file in common, so a store by the `smbd` beside this node may concern any open of the
//! file. What it changes is reported, whoever has the open; the cluster refuses a report that is older than another
//! node's (`Update::replaces`), and then it is worked out again.
//!
//! # An open that is missing from the share modes
//!
//! - It is just being closed by the node that has it: then there is nothing to do.
//! - `smbd` has purged it, because it was in somebody's way: `smbd` does that to opens whose clients are away, and leaves
//!   their own records behind.
//! - CTDB has lost it with a node that died: then somebody may have come whom it would have kept out, or for whom it would
//!   have had to be broken.
//!
//! The same value shows who has come. If he contradicts the open, it is closed in the cluster before the store goes on:
//! whoever took what is left of it for an open would give back a cache that is stale. If nobody does, the open stays as it
//! is, and an orphan is put back. In doubt this node first learns all that the others have committed: an open that has
//! moved meanwhile has an entry that is not recognised by what was known of it. And a recovery may have brought an older
//! record back, with entries of opens that have ended: those contradict nobody (see [`samba::materialise::Present`]).

use std::collections::HashSet;
use std::time::Duration;

use samba::databases::Location;
use samba::materialise::{LocksInTheWay, Present, Traces, locks_in_the_way, stands_in_the_way};
use samba::records::{BrlockEntry, LeaseRecord, LockingRecord, ServerId, lease_record_key};
use statedb::{Arbiter, ClientGuid, LeaseKey, LeaseState};

use super::*;

/// How long ctdbd may take to say whether a process lives, while `smbd` waits for it in a store. It knows that without
/// asking anybody but the node of the process.
const CTDBD_ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// Opens that a record was stored without, although they are in it as far as this node knows.
#[derive(Debug, Default)]
struct Found {
    changed: Update,
    missing: Vec<OpenImage>,
}

impl Capture {
    /// A record has changed that opens have in common which this node does not have; or which its living processes have
    /// not taken from it themselves.
    pub(super) async fn common_changed(
        &self,
        database: Database,
        key: &[u8],
        value: Option<&[u8]>,
        connection: &mut Connection,
    ) -> Result<(), Refused> {
        if !self.settings.is_clustered() {
            return Ok(());
        }
        let mut has_caught_up = false;
        loop {
            let found = self.found(database, key, value, connection.pid())?;
            if !found.missing.is_empty() && !has_caught_up {
                self.catch_up().await?;
                has_caught_up = true;
                continue;
            }
            for image in &found.missing {
                self.settle_missing(image, database, value, connection).await?;
            }
            if found.changed.opens.is_empty() {
                return Ok(());
            }
            let (log_id, outcome) = self.proposer.propose(Request::Update(found.changed)).await?;
            match outcome {
                Outcome::Updated => return Ok(()),
                // Somebody else was faster. What he has made of it is the base of what this store makes of it.
                Outcome::Rejected(Rejection::OpenChanged(_) | Rejection::OpenNotFound(_)) => {
                    self.raft.applied_through(log_id.index).await;
                }
                outcome => return Err(Refused::Rejected(outcome)),
            }
        }
    }

    fn found(
        &self,
        database: Database,
        key: &[u8],
        value: Option<&[u8]>,
        process: u32,
    ) -> Result<Found, Refused> {
        let mut found = Found::default();
        for open in self.opens_behind(database, key) {
            let description = open.description;
            let local = self.opens().get(description.durable_file_id).map(|local| local.process);
            if local == Some(Some(process)) {
                continue;
            }
            let known = OpenImage::decode_for(self.settings.layout, &description.image)?;
            let mut image = known.clone();
            let change = match database {
                Database::Locking => self.update_locking(&mut image, value)?,
                Database::Leases => image.update_lease(key, value)?,
                Database::Brlock => image.update_brlock(value)?,
                Database::OpenGlobal | Database::TconGlobal => Changed::Same,
            };
            match (change, database) {
                (Changed::Gone, Database::Locking) => found.missing.push(known),
                // An open's locks are changed by the node that has it alone.
                (Changed::Changed, Database::Brlock)
                    if local.is_none() && image.byte_range_locks().is_empty() =>
                {
                    found.missing.push(known);
                }
                (Changed::Changed, Database::Locking | Database::Leases) if local.is_none() => {
                    found.changed.replaces.push(ImageDigest::of(&description.image));
                    found.changed.opens.push(described(&image, &description));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// All opens that have a record in common, as far as the cluster has agreed on them.
    fn opens_behind(&self, database: Database, key: &[u8]) -> Vec<Open> {
        let is_common = |open: &&Open| open.arbiter == Arbiter::SmbCluster;
        self.raft.read(|state| match database {
            Database::Locking | Database::Brlock => {
                let of_file = keys::file_of(key).map(|file| state.opens_of_file(file));
                of_file.into_iter().flatten().filter(is_common).cloned().collect()
            }
            Database::Leases => {
                let of_lease = keys::lease_id_of(key).map(|lease| state.opens_of_lease(lease));
                of_lease.into_iter().flatten().filter(is_common).cloned().collect()
            }
            Database::OpenGlobal | Database::TconGlobal => Vec::new(),
        })
    }

    /// Closes an open that is missing from a value, if what is in it contradicts the open.
    async fn settle_missing(
        &self,
        image: &OpenImage,
        database: Database,
        value: Option<&[u8]>,
        connection: &mut Connection,
    ) -> Result<(), Refused> {
        let Some(value) = value else { return Ok(()) };
        let id = image.durable_file_id();
        let is_contradicted = match database {
            Database::Brlock => {
                let locks = BrlockEntry::decode_all(self.settings.layout, value)?;
                let ended = self.ended(locks.iter().map(|lock| lock.server_id)).await;
                let locks = self.present(&ended).locks_of(&locks);
                let record = self.share_modes_of(image.file(), connection).await?;
                match locks_in_the_way(&locks, &record, image, |_| true) {
                    LocksInTheWay::None => false,
                    LocksInTheWay::Overlap => return Err(Refused::LockOfAnother(id)),
                    LocksInTheWay::BreaksCaching => true,
                }
            }
            _ => self.is_contradicted(image, value, connection).await?,
        };
        if is_contradicted {
            info!(durable_file_id = %id, "somebody has the file of an open whose client is away, and contradicts it");
            self.close(id).await?;
        } else {
            debug!(durable_file_id = %id, %database, "an open is missing from a record, and nobody contradicts it");
        }
        Ok(())
    }

    async fn is_contradicted(
        &self,
        image: &OpenImage,
        value: &[u8],
        connection: &mut Connection,
    ) -> Result<bool, Refused> {
        let layout = self.settings.layout;
        let record = LockingRecord::decode(layout, value)?;
        // Whoever has the entry, living or dead: it is not there, or this would not be asked.
        let traces = Traces::of_orphan(image, None, |_| false);
        let entries_of = |record: &LockingRecord| {
            record.share_modes().map_or_else(Vec::new, |share_modes| share_modes.entries.clone())
        };
        let ended = self.ended(entries_of(&record).iter().map(|entry| entry.server_id)).await;
        let record = self.present(&ended).entries_of(&record, traces);
        let entries = entries_of(&record);
        let leases: BTreeSet<_> = entries.iter().filter_map(|entry| entry.lease()).collect();
        let lease_key = |(client, key): (ClientGuid, LeaseKey)| lease_record_key(client, key).to_vec();
        let wanted =
            leases.iter().map(|lease| RecordKey { database: Database::Leases, key: lease_key(*lease) });
        let mut states: BTreeMap<Vec<u8>, LeaseState> = BTreeMap::new();
        for record in self.fetch(wanted.collect(), connection).await? {
            if let Some(value) = record.value {
                states.insert(record.key, LeaseRecord::decode(layout, &value)?.current_state);
            }
        }
        let state_of = |client, key| states.get(&lease_key((client, key))).copied();
        Ok(stands_in_the_way(&record, image, traces, |_| true, state_of))
    }

    pub(super) async fn share_modes_of(
        &self,
        file: FileKey,
        connection: &mut Connection,
    ) -> Result<LockingRecord, Refused> {
        let key = samba::records::file_key(file).to_vec();
        let fetched = self.fetch(vec![RecordKey { database: Database::Locking, key }], connection).await?;
        let value = fetched.into_iter().find_map(|record| record.value).unwrap_or_default();
        Ok(LockingRecord::decode(self.settings.layout, &value)?)
    }

    /// Which of these processes do not live any more, on whichever node they were. If ctdbd cannot say it, all live.
    async fn ended(&self, processes: impl Iterator<Item = ServerId>) -> HashSet<ServerId> {
        let named: HashSet<_> = processes.filter(|process| *process != ServerId::DISCONNECTED).collect();
        let Location::Clustered { socket } = self.settings.location() else { return HashSet::new() };
        if named.is_empty() {
            return named;
        }
        let ask = move || {
            let mut ctdbd = samba::ctdb::Connection::open(&socket, CTDBD_ANSWERS_WITHIN)?;
            let mut ended = HashSet::new();
            for process in named {
                if !ctdbd.process_exists(process)? {
                    ended.insert(process);
                }
            }
            Ok::<_, samba::CtdbError>(ended)
        };
        match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => {
                warn!(error = %chain(&error), "ctdbd does not say which processes live: all are taken for living ones");
                HashSet::new()
            }
            Err(error) => {
                error!(%error, "the question which processes live was cut short");
                HashSet::new()
            }
        }
    }

    fn present(
        &self,
        ended: &HashSet<ServerId>,
    ) -> Present<impl Fn(ServerId) -> bool, impl Fn(DurableFileId) -> bool> {
        Present {
            is_alive: |process| !ended.contains(&process),
            is_known: |id| self.raft.read(|state| state.open(id).is_some()),
        }
    }

    async fn fetch(
        &self,
        keys: Vec<RecordKey>,
        connection: &mut Connection,
    ) -> Result<Vec<frame::Record>, Refused> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        connection.fetch(keys).await?.ok_or(Refused::GivenUp)
    }

    /// Waits until this node has applied all that was committed before the call.
    ///
    /// # Errors
    ///
    /// If there is no answer: see [`RequestError`].
    pub async fn catch_up(&self) -> Result<(), RequestError> {
        // A report of nothing follows all of it.
        let (log_id, _) = self.proposer.propose(Request::Update(Update::default())).await?;
        self.raft.applied_through(log_id.index).await;
        Ok(())
    }

    /// Closes an orphan whose file somebody has whom it would have kept out.
    ///
    /// # Errors
    ///
    /// If there is no answer: see [`RequestError`].
    pub async fn close_contradicted(&self, id: DurableFileId) -> Result<(), RequestError> {
        let (_, outcome) = self.proposer.propose(Request::Close(id)).await?;
        info!(durable_file_id = %id, %outcome, "an orphan is closed for who has its file");
        Ok(())
    }

    /// Another node has these opens now, or nobody any more: they are not this one's to report.
    pub fn forget_moved(&self, opens: impl Iterator<Item = DurableFileId>) {
        let me = Some(self.proposer.owner());
        for id in opens {
            let holder = self.raft.read(|state| state.open(id).and_then(Open::holder));
            let mut opens = self.opens();
            if holder != me && opens.get(id).is_some_and(|local| local.process.is_none()) {
                opens.remove(id);
            }
        }
    }
}
