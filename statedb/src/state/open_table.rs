//! All opens, and the ways to find them.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::num::NonZeroU32;

use super::ids::{ClientGuid, CreateGuid, DurableFileId, FileKey, LeaseId, Owner, SessionId, ShareName};
use super::lookup::Lookup;
use super::node::Arbiter;
use super::open::{Open, OpenDescription, OpenState};
use super::time::Timestamp;

/// The opens by id, with an index for every other way in which a command looks for them.
///
/// Made for a million opens, where what takes time is the memory that is not in a cache. So an index is no tree: opens
/// that have something in common are linked to each other, each new one in front of the one before, which was touched a
/// moment ago. What comes out of an index is sorted, so that the order of the links matters to nobody: it differs
/// between a replica that has applied the log and one that has read a snapshot.
///
/// Invariants: each open is in the chain of each of its keys, and in no other; a chain is never empty.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenTable {
    by_id: Lookup<DurableFileId, Slot>,
    slots: Slots,
    by_file: Lookup<FileKey, Slot>,
    by_holder: Lookup<Owner, Slot>,
    by_share: Lookup<ShareName, Slot>,
    by_lease: Lookup<LeaseId, Slot>,
    by_session: Lookup<SessionId, Slot>,
    /// Without opens of version 1, which have no CreateGuid.
    by_create_guid: Lookup<(ClientGuid, CreateGuid), Slot>,
    by_app_instance: Lookup<[u8; 16], Slot>,
    by_deadline: BTreeSet<(Timestamp, DurableFileId)>,
    /// Those for which [`deletes_in_smb_cluster`] holds.
    deleting: BTreeSet<DurableFileId>,
}

/// Where an open is kept, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot(NonZeroU32);

/// The opens in their places, which do not move.
#[derive(Clone, Debug, Default)]
struct Slots {
    /// Each with [`CHUNK_LEN`] places.
    chunks: Vec<Box<[Option<Kept>]>>,
    unused: Vec<Slot>,
}

/// How many opens are kept side by side: some 30 KiB.
const CHUNK_LEN: usize = 64;

/// Only slots that are in use are in a chain or in the table of ids.
const IN_USE: &str = "a slot in use has an open";

/// An open, and its neighbours in the chains that it is in.
#[derive(Clone, Debug)]
struct Kept {
    open: Open,
    links: [Link; INDEXES],
}

/// The neighbours of an open in one chain.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    before: Option<Slot>,
    after: Option<Slot>,
}

/// The indexes that have chains; each open has a link for each of them.
#[derive(Clone, Copy, Debug)]
enum Index {
    File,
    Holder,
    Share,
    Lease,
    Session,
    CreateGuid,
    AppInstance,
}

/// How many there are.
const INDEXES: usize = Index::AppInstance as usize + 1;

/// What an open is found by, beside its id and its deadline.
#[derive(Clone, PartialEq, Eq)]
struct Keys {
    file: FileKey,
    share: ShareName,
    lease: Option<LeaseId>,
    create_guid: Option<(ClientGuid, CreateGuid)>,
    app_instance: Option<[u8; 16]>,
}

impl Keys {
    fn of(description: &OpenDescription) -> Self {
        let has_guid = description.create_guid != CreateGuid::default();
        Self {
            file: description.file,
            share: description.share.clone(),
            lease: description.lease_id(),
            create_guid: has_guid.then_some((description.client_guid, description.create_guid)),
            app_instance: description.app_instance.map(|instance| instance.id),
        }
    }
}

impl Slots {
    fn get(&self, slot: Slot) -> &Kept {
        let (chunk, place) = slot.place();
        self.chunks[chunk][place].as_ref().expect(IN_USE)
    }

    fn get_mut(&mut self, slot: Slot) -> &mut Kept {
        let (chunk, place) = slot.place();
        self.chunks[chunk][place].as_mut().expect(IN_USE)
    }

    fn link(&mut self, slot: Slot, index: Index) -> &mut Link {
        &mut self.get_mut(slot).links[index as usize]
    }

    /// Those that are in use, in no order that means anything.
    fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().flatten())
    }

    fn insert(&mut self, open: Open) -> Slot {
        let slot = self.unused.pop().unwrap_or_else(|| self.add_chunk());
        let (chunk, place) = slot.place();
        self.chunks[chunk][place] = Some(Kept { open, links: [Link::default(); INDEXES] });
        slot
    }

    /// Makes room for more opens, and returns the first place there.
    fn add_chunk(&mut self) -> Slot {
        let first = self.chunks.len() * CHUNK_LEN;
        self.chunks.push((0..CHUNK_LEN).map(|_| None).collect());
        self.unused.extend((first + 1..first + CHUNK_LEN).rev().map(Slot::at));
        Slot::at(first)
    }

    fn remove(&mut self, slot: Slot) -> Open {
        let (chunk, place) = slot.place();
        let kept = self.chunks[chunk][place].take().expect(IN_USE);
        self.unused.push(slot);
        kept.open
    }

    /// Puts an open in front of the others that have a key.
    fn chain<K: Eq + Hash>(&mut self, heads: &mut Lookup<K, Slot>, index: Index, key: K, slot: Slot) {
        let after = heads.insert(key, slot);
        self.link(slot, index).after = after;
        if let Some(after) = after {
            self.link(after, index).before = Some(slot);
        }
    }

    /// Takes an open away from the others that have a key.
    fn unchain<K: Eq + Hash>(&mut self, heads: &mut Lookup<K, Slot>, index: Index, key: &K, slot: Slot) {
        let Link { before, after } = std::mem::take(self.link(slot, index));
        if let Some(after) = after {
            self.link(after, index).before = before;
        }
        match (before, after) {
            (Some(before), _) => self.link(before, index).after = after,
            (None, Some(after)) => *heads.get_mut(key).expect("a chain has a head") = after,
            (None, None) => drop(heads.remove(key)),
        }
    }

    /// The opens of a chain, as they are linked.
    fn linked(&self, head: Option<Slot>, index: Index) -> impl Iterator<Item = &Open> {
        let follow = |slot: Option<Slot>| slot.map(|slot| self.get(slot));
        let chain = std::iter::successors(follow(head), move |kept| follow(kept.links[index as usize].after));
        chain.map(|kept| &kept.open)
    }

    /// The opens of a chain, by id.
    fn sorted(&self, head: Option<&Slot>, index: Index) -> impl Iterator<Item = &Open> + use<'_> {
        let mut opens: Vec<_> = self.linked(head.copied(), index).collect();
        opens.sort_unstable_by_key(|open| open.description.durable_file_id);
        opens.into_iter()
    }
}

impl Slot {
    /// The slot with so many before it.
    fn at(before: usize) -> Self {
        let number = u32::try_from(before + 1).ok().and_then(NonZeroU32::new);
        Self(number.expect("there are fewer than 2^32 opens"))
    }

    /// In which chunk it is, and where there.
    fn place(self) -> (usize, usize) {
        let before = self.0.get() as usize - 1;
        (before / CHUNK_LEN, before % CHUNK_LEN)
    }
}

impl OpenTable {
    pub(super) fn get(&self, id: DurableFileId) -> Option<&Open> {
        self.by_id.get(&id).map(|slot| &self.slots.get(*slot).open)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All of them, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Open> {
        let mut opens: Vec<_> = self.slots.iter().map(|kept| &kept.open).collect();
        opens.sort_unstable_by_key(|open| open.description.durable_file_id);
        opens.into_iter()
    }

    /// The opens of a file, by id.
    pub(super) fn of_file(&self, file: FileKey) -> impl Iterator<Item = &Open> {
        self.slots.sorted(self.by_file.get(&file), Index::File)
    }

    /// The ids of the opens of a file.
    pub(super) fn ids_of_file(&self, file: FileKey) -> Vec<DurableFileId> {
        self.of_file(file).map(|open| open.description.durable_file_id).collect()
    }

    /// The opens of a share, by id.
    pub(super) fn of_share<'a>(&'a self, share: &ShareName) -> impl Iterator<Item = &'a Open> + use<'a> {
        self.slots.sorted(self.by_share.get(share), Index::Share)
    }

    /// Whether there is such an open in a share.
    pub(super) fn has_in_share(&self, share: &ShareName, is_meant: impl FnMut(&Open) -> bool) -> bool {
        self.slots.linked(self.by_share.get(share).copied(), Index::Share).any(is_meant)
    }

    /// The opens of a lease, by id.
    pub(super) fn of_lease(&self, lease: LeaseId) -> impl Iterator<Item = &Open> {
        self.slots.sorted(self.by_lease.get(&lease), Index::Lease)
    }

    /// The opens of a session, by id.
    pub(super) fn of_session(&self, session: SessionId) -> impl Iterator<Item = &Open> {
        self.slots.sorted(self.by_session.get(&session), Index::Session)
    }

    /// The opens that a client made with a CreateGuid, by id.
    pub(super) fn of_create_guid(
        &self,
        client_guid: ClientGuid,
        create_guid: CreateGuid,
    ) -> impl Iterator<Item = &Open> {
        self.slots.sorted(self.by_create_guid.get(&(client_guid, create_guid)), Index::CreateGuid)
    }

    /// The opens that an application made which calls itself so, by id.
    pub(super) fn of_app_instance(&self, id: [u8; 16]) -> impl Iterator<Item = &Open> {
        self.slots.sorted(self.by_app_instance.get(&id), Index::AppInstance)
    }

    /// The opens that live in the SMB server of `owner`, by id.
    pub(super) fn held_by(&self, owner: Owner) -> Vec<DurableFileId> {
        let opens = self.slots.sorted(self.by_holder.get(&owner), Index::Holder);
        opens.map(|open| open.description.durable_file_id).collect()
    }

    /// The disconnected opens whose time is up at `now`, in order of their deadlines.
    pub(super) fn due(&self, now: Timestamp) -> Vec<DurableFileId> {
        self.by_deadline.range(..=(now, DurableFileId(u64::MAX))).map(|(_, id)| *id).collect()
    }

    /// The opens whose files an SMB cluster deletes with them, by id.
    pub(super) fn deleting(&self) -> impl Iterator<Item = &Open> {
        self.deleting.iter().filter_map(|id| self.get(*id))
    }

    /// The earliest deadline of a disconnected open.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// What is known of an open, to be changed; not what the indexes are made of.
    pub(super) fn description_mut(&mut self, id: DurableFileId) -> Option<&mut OpenDescription> {
        let slot = *self.by_id.get(&id)?;
        Some(&mut self.slots.get_mut(slot).open.description)
    }

    /// Puts an open in its place, and returns the one that was there before.
    pub(super) fn insert(&mut self, open: Open) -> Option<Open> {
        let id = open.description.durable_file_id;
        let Some(&slot) = self.by_id.get(&id) else {
            let slot = self.slots.insert(open);
            self.by_id.insert(id, slot);
            self.index(id, slot);
            return None;
        };
        let known = &self.slots.get(slot).open;
        // Most changes of an open are of nothing that it is found by.
        let is_found_alike = known.state == open.state
            && deletes_in_smb_cluster(known) == deletes_in_smb_cluster(&open)
            && Keys::of(&known.description) == Keys::of(&open.description);
        if !is_found_alike {
            self.unindex(id, slot);
        }
        let before = std::mem::replace(&mut self.slots.get_mut(slot).open, open);
        if !is_found_alike {
            self.index(id, slot);
        }
        Some(before)
    }

    pub(super) fn remove(&mut self, id: DurableFileId) -> Option<Open> {
        let slot = self.by_id.remove(&id)?;
        self.unindex(id, slot);
        Some(self.slots.remove(slot))
    }

    /// Moves an open on to another state; without effect if there is no such open.
    pub(super) fn set_state(&mut self, id: DurableFileId, state: OpenState) {
        let Some(&slot) = self.by_id.get(&id) else { return };
        self.unindex_state(id, slot);
        self.slots.get_mut(slot).open.state = state;
        self.index_state(id, slot);
    }

    fn index(&mut self, id: DurableFileId, slot: Slot) {
        let Self { slots, by_file, by_share, by_lease, by_create_guid, by_app_instance, .. } = self;
        let Keys { file, share, lease, create_guid, app_instance } =
            Keys::of(&slots.get(slot).open.description);
        slots.chain(by_file, Index::File, file, slot);
        slots.chain(by_share, Index::Share, share, slot);
        lease.into_iter().for_each(|key| slots.chain(by_lease, Index::Lease, key, slot));
        create_guid.into_iter().for_each(|key| slots.chain(by_create_guid, Index::CreateGuid, key, slot));
        app_instance.into_iter().for_each(|key| slots.chain(by_app_instance, Index::AppInstance, key, slot));
        if deletes_in_smb_cluster(&self.slots.get(slot).open) {
            self.deleting.insert(id);
        }
        self.index_state(id, slot);
    }

    fn unindex(&mut self, id: DurableFileId, slot: Slot) {
        let Self { slots, by_file, by_share, by_lease, by_create_guid, by_app_instance, .. } = self;
        let Keys { file, share, lease, create_guid, app_instance } =
            Keys::of(&slots.get(slot).open.description);
        slots.unchain(by_file, Index::File, &file, slot);
        slots.unchain(by_share, Index::Share, &share, slot);
        lease.iter().for_each(|key| slots.unchain(by_lease, Index::Lease, key, slot));
        create_guid.iter().for_each(|key| slots.unchain(by_create_guid, Index::CreateGuid, key, slot));
        app_instance.iter().for_each(|key| slots.unchain(by_app_instance, Index::AppInstance, key, slot));
        self.deleting.remove(&id);
        self.unindex_state(id, slot);
    }

    fn index_state(&mut self, id: DurableFileId, slot: Slot) {
        let Self { slots, by_holder, by_session, by_deadline, .. } = self;
        let Open { state, .. } = slots.get(slot).open;
        state.holder().into_iter().for_each(|key| slots.chain(by_holder, Index::Holder, key, slot));
        session_of(state).into_iter().for_each(|key| slots.chain(by_session, Index::Session, key, slot));
        by_deadline.extend(state.deadline().map(|deadline| (deadline, id)));
    }

    fn unindex_state(&mut self, id: DurableFileId, slot: Slot) {
        let Self { slots, by_holder, by_session, by_deadline, .. } = self;
        let Open { state, .. } = slots.get(slot).open;
        state.holder().iter().for_each(|key| slots.unchain(by_holder, Index::Holder, key, slot));
        session_of(state).iter().for_each(|key| slots.unchain(by_session, Index::Session, key, slot));
        if let Some(deadline) = state.deadline() {
            by_deadline.remove(&(deadline, id));
        }
    }

    /// Whether an index finds the same opens in both tables.
    fn finds_the_same<K: Eq + Hash>(
        &self,
        other: &Self,
        index: Index,
        heads: impl Fn(&Self) -> &Lookup<K, Slot>,
        key: impl Fn(&Open) -> Option<K>,
    ) -> bool {
        let ids = |table: &Self, key: &K| -> Vec<_> {
            let opens = table.slots.sorted(heads(table).get(key), index);
            opens.map(|open| open.description.durable_file_id).collect()
        };
        let mut first = self.slots.iter().filter(|kept| kept.links[index as usize].before.is_none());
        heads(self).len() == heads(other).len()
            && first.all(|kept| key(&kept.open).is_none_or(|key| ids(self, &key) == ids(other, &key)))
    }
}

impl PartialEq for OpenTable {
    /// Whether there are the same opens, and found in the same ways. Where they are kept and in which order they are
    /// linked does not matter.
    fn eq(&self, other: &Self) -> bool {
        let keys = |open: &Open| Keys::of(&open.description);
        self.iter().eq(other.iter())
            && self.by_deadline == other.by_deadline
            && self.deleting == other.deleting
            && self.finds_the_same(other, Index::File, |table| &table.by_file, |open| Some(keys(open).file))
            && self.finds_the_same(other, Index::Holder, |table| &table.by_holder, Open::holder)
            && self.finds_the_same(
                other,
                Index::Share,
                |table| &table.by_share,
                |open| Some(keys(open).share),
            )
            && self.finds_the_same(other, Index::Lease, |table| &table.by_lease, |open| keys(open).lease)
            && self.finds_the_same(other, Index::Session, |table| &table.by_session, Open::session)
            && self.finds_the_same(
                other,
                Index::CreateGuid,
                |table| &table.by_create_guid,
                |open| keys(open).create_guid,
            )
            && self.finds_the_same(
                other,
                Index::AppInstance,
                |table| &table.by_app_instance,
                |open| keys(open).app_instance,
            )
    }
}

impl Eq for OpenTable {}

/// Whether an SMB cluster that decides for itself deletes the file with the open. (Where this cluster decides, a description
/// changes in its place, past the indexes.)
fn deletes_in_smb_cluster(open: &Open) -> bool {
    open.arbiter == Arbiter::SmbCluster && open.description.deletes_its_file()
}

fn session_of(state: OpenState) -> Option<SessionId> {
    match state {
        OpenState::Connected { session, .. } => session,
        OpenState::Disconnected { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::state::fixtures::{connected, disconnected};
    use crate::state::ids::{AppInstance, Incarnation, LeaseKey, NodeId};
    use crate::state::open::Durability;
    use crate::state::oplock::{Lease, LeaseEpoch, LeaseState, LeaseVersion, Oplock};

    /// How many different values each property of an open takes.
    const VALUES: u64 = 3;

    /// A small generator of numbers that look random (Numerical Recipes).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }

        fn byte(&mut self) -> u8 {
            u8::try_from(self.below(VALUES)).expect("there are few values")
        }

        fn state(&mut self) -> OpenState {
            let owner = Owner { node: NodeId(self.below(VALUES)), incarnation: Incarnation(1) };
            let until = Timestamp(self.below(VALUES));
            match self.below(4) {
                0 => OpenState::Connected { owner, session: None },
                1 => OpenState::Connected { owner, session: Some(SessionId(self.below(VALUES))) },
                2 => OpenState::Disconnected { keeper: Some(owner), durable_open_scavenger_timeout: until },
                _ => OpenState::Disconnected { keeper: None, durable_open_scavenger_timeout: until },
            }
        }

        fn open(&mut self) -> Open {
            let lease = Oplock::Lease(Lease {
                key: LeaseKey([self.byte(); 16]),
                state: LeaseState(LeaseState::READ),
                epoch: LeaseEpoch(1),
                version: LeaseVersion::V2,
                parent: None,
            });
            let oplock = if self.below(2) == 0 { lease } else { Oplock::Batch };
            let mut open = disconnected(oplock, Durability::DurableV2);
            open.state = self.state();
            let description = &mut open.description;
            description.durable_file_id = DurableFileId(self.below(20));
            description.file.inode = self.below(VALUES);
            description.share = ShareName::new(["data", "home", "scratch"][usize::from(self.byte())]);
            description.create_guid = CreateGuid([self.byte(); 16]);
            let instance = AppInstance { id: [self.byte(); 16], version: None };
            description.app_instance = (self.below(2) == 0).then_some(instance);
            description.delete_on_close = self.below(VALUES) == 0;
            open.arbiter = [Arbiter::Cluster, Arbiter::SmbCluster][usize::from(self.below(2) == 0)];
            open
        }
    }

    fn ids<'a>(opens: impl Iterator<Item = &'a Open>) -> Vec<DurableFileId> {
        opens.map(|open| open.description.durable_file_id).collect()
    }

    /// Every way to find opens finds those, in the order of their ids, that a look at all opens finds.
    fn check(table: &OpenTable) {
        let meant = |is_meant: &dyn Fn(&Open) -> bool| ids(table.iter().filter(|open| is_meant(open)));
        for open in table.iter() {
            let Open { description, state, .. } = open;
            let Keys { file, share, lease, create_guid, app_instance } = Keys::of(description);
            assert_eq!(ids(table.of_file(file)), meant(&|open| open.description.file == file));
            assert_eq!(ids(table.of_share(&share)), meant(&|open| open.description.share == share));
            assert!(table.has_in_share(&share, |other| other == open));
            if let Some(lease) = lease {
                assert_eq!(
                    ids(table.of_lease(lease)),
                    meant(&|open| open.description.lease_id() == Some(lease))
                );
            }
            if let Some((client, guid)) = create_guid {
                let found = ids(table.of_create_guid(client, guid));
                assert_eq!(found, meant(&|open| Keys::of(&open.description).create_guid == create_guid));
            }
            if let Some(id) = app_instance {
                let found = ids(table.of_app_instance(id));
                assert_eq!(found, meant(&|open| Keys::of(&open.description).app_instance == app_instance));
            }
            if let Some(holder) = state.holder() {
                assert_eq!(table.held_by(holder), meant(&|open| open.holder() == Some(holder)));
            }
            if let Some(session) = open.session() {
                assert_eq!(ids(table.of_session(session)), meant(&|open| open.session() == Some(session)));
            }
        }
        assert_eq!(table.next_deadline(), table.iter().filter_map(Open::deadline).min());
        let due = table.due(Timestamp(0));
        assert_eq!(due, meant(&|open| open.deadline() == Some(Timestamp(0))));
        assert_eq!(ids(table.deleting()), meant(&deletes_in_smb_cluster));
        assert_eq!(table.len(), table.iter().count());
    }

    #[test]
    fn every_index_finds_what_a_look_at_all_opens_finds() {
        let mut numbers = Numbers(1);
        let mut table = OpenTable::default();
        let mut known = BTreeMap::new();
        for _ in 0..3000 {
            let open = numbers.open();
            let id = open.description.durable_file_id;
            match numbers.below(4) {
                0 => assert_eq!(table.remove(id), known.remove(&id)),
                1 => {
                    let state = numbers.state();
                    table.set_state(id, state);
                    known.entry(id).and_modify(|open: &mut Open| open.state = state);
                }
                _ => assert_eq!(table.insert(open.clone()), known.insert(id, open)),
            }
            assert!(table.iter().eq(known.values()));
            check(&table);
        }

        // The same opens in another order are the same table, whatever came and went before.
        let mut rebuilt = OpenTable::default();
        known.into_values().rev().for_each(|open| drop(rebuilt.insert(open)));
        check(&rebuilt);
        assert_eq!(table, rebuilt);
    }

    #[test]
    fn tables_with_other_opens_or_other_indexes_differ() {
        let open = connected(Oplock::Batch, Durability::DurableV2, SessionId(1));
        let mut table = OpenTable::default();
        table.insert(open.clone());
        let mut other = table.clone();
        assert_eq!(table, other);
        other.set_state(
            open.description.durable_file_id,
            OpenState::Connected {
                owner: Owner { node: NodeId(1), incarnation: Incarnation(1) },
                session: Some(SessionId(2)),
            },
        );
        assert_ne!(table, other, "another session");

        // What no caller does: something by which an open is found changes behind the back of the index.
        let mut stale = table.clone();
        let mut sound = table.clone();
        let description = stale.description_mut(open.description.durable_file_id).expect("it is there");
        description.file.inode += 1;
        sound.insert(stale.get(open.description.durable_file_id).expect("it is there").clone());
        assert_ne!(stale, sound, "an index that was left behind");
    }
}
