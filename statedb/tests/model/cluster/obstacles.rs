//! What is in the way of a request: who excludes it, and who has to give up something first.

use statedb::{
    AccessMask, BreakTarget, Create, CreateAction, Durability, DurableFileId, FileKey, LeaseId, Operation,
    Outcome,
};

use super::expect::{Check, ensure, expect_status, status};
use super::{Caching, Cluster, Open, Presence, lease_of};
use crate::model::letters::{Letters, letters};
use crate::model::share_modes;

/// What is in the way of a request.
#[derive(Debug, Default)]
pub(super) struct Obstacles {
    /// It cannot be done now.
    pub(super) is_blocked: bool,
    /// It may wait.
    pub(super) may_wait: bool,
    /// It may be refused because another open excludes it.
    pub(super) may_violate: bool,
    /// It may be refused because a client has to find its persistent open as it left it.
    pub(super) may_be_unavailable: bool,
    /// What others no longer may cache when it is done.
    pub(super) taken: Vec<(BreakTarget, Letters)>,
    /// What others may be asked to give up for it.
    pub(super) wishes: Vec<(BreakTarget, Letters)>,
}

impl Cluster {
    /// A request that is not done now waits or is refused, and has a reason.
    pub(super) fn not_done(&mut self, obstacles: Obstacles, outcome: &Outcome) -> Check {
        match outcome {
            Outcome::BreakPending => ensure!(obstacles.may_wait, "waits, though {obstacles:?}"),
            outcome => {
                let allowed = [
                    (obstacles.may_violate, status::SHARING_VIOLATION),
                    (obstacles.may_be_unavailable, status::FILE_NOT_AVAILABLE),
                ];
                let allowed: Vec<_> =
                    allowed.into_iter().filter(|(may, _)| *may).map(|(_, status)| status).collect();
                expect_status(outcome, &allowed).map_err(|error| format!("{error}, {obstacles:?}"))?;
            }
        }
        self.wishes.extend(obstacles.wishes);
        Ok(())
    }

    pub(super) fn obstacles_to_create(&self, create: &Create) -> Obstacles {
        let overwrites = matches!(create.create_action, CreateAction::Overwritten | CreateAction::Superseded);
        let excluding: Vec<_> = self
            .opens_of_file(create.file)
            .filter(|open| {
                share_modes::exclude_each_other(
                    (create.granted_access, create.share_access),
                    (open.access, open.share_access),
                )
            })
            .map(|open| open.id)
            .collect();
        let taken = |caching: &Caching| taken_by_open(caching, create.granted_access, overwrites);
        let mut obstacles = self.obstacles(create.file, lease_of(create), taken, &excluding);

        // The client of a lost persistent open has to find the file as it left it, and cannot be asked without a handle
        // to come back to; nor can its locks be kept from who reaches the data.
        for open in self.opens_of_file(create.file) {
            let is_lost = open.durability == Durability::Persistent && open.connected.is_none();
            let is_lease = matches!(open.holder, BreakTarget::Lease(_));
            let reaches_data = !sees_attributes_only(create.granted_access, is_lease);
            if is_lost && reaches_data && lease_of(create) != Some(open.holder) {
                let caching = self.caching(open.holder).expect("an open has a caching");
                let has_locks = !self.locks_of(open).of(open.id).is_empty();
                let can_be_asked = caching.letters.has('H') && (caching.letters.has('W') || !has_locks);
                let is_alone = self.presence(open.holder) != Presence::Connected;
                obstacles.may_be_unavailable = true;
                obstacles.is_blocked |= is_alone && !can_be_asked;
            }
        }
        obstacles
    }

    pub(super) fn obstacles_to_operate(&self, mine: BreakTarget, operation: &Operation) -> Obstacles {
        let caching = self.caching(mine).expect("an open has a caching");
        match operation {
            Operation::Rename { .. } => {
                return self.obstacles(caching.file, Some(mine), taken_by_rename, &[]);
            }
            Operation::SetMetadata => return Obstacles::default(),
            _ => {}
        }
        let mut obstacles = self.obstacles(caching.file, Some(mine), taken_by_write, &[]);
        // An oplock of level II is broken by the writes of its own holder, too.
        if matches!(mine, BreakTarget::Oplock(_)) && caching.letters == letters("R") {
            obstacles.taken.push((mine, letters("R")));
            obstacles.wishes.push((mine, letters("R")));
        }
        obstacles
    }

    /// MS-FSA 2.1.4.12 and 2.1.5.1.2, and for holders that are away MS-SMB2 3.3.4.6 and 3.3.4.7.
    pub(super) fn obstacles(
        &self,
        file: FileKey,
        mine: Option<BreakTarget>,
        taken: impl Fn(&Caching) -> Letters,
        excluding: &[DurableFileId],
    ) -> Obstacles {
        let mut obstacles = Obstacles::default();
        for caching in self.cachings.iter().filter(|caching| caching.file == file) {
            let theirs: Vec<_> =
                self.opens_of(caching.holder).filter(|open| excluding.contains(&open.id)).collect();
            let excludes = !theirs.is_empty();
            if excludes && (mine == Some(caching.holder) || !caching.letters.has('H')) {
                let is_lost =
                    |open: &&&Open| open.durability == Durability::Persistent && open.connected.is_none();
                let lost = theirs.iter().filter(is_lost).count();
                obstacles.is_blocked = true;
                obstacles.may_be_unavailable |= lost > 0;
                obstacles.may_violate |= lost < theirs.len();
            }
            if mine == Some(caching.holder) {
                continue;
            }
            let handle = letters("H");
            let taken = if excludes { taken(caching).and(&handle) } else { taken(caching) };
            let wish = if excluding.is_empty() { taken.clone() } else { taken.and(&handle) };
            let wish = wish.common(&caching.letters);
            let taken = taken.common(&caching.letters);
            let must_be_asked = taken.has('W') || taken.has('H');
            match self.presence(caching.holder) {
                Presence::Connected => {
                    obstacles.is_blocked |= must_be_asked;
                    obstacles.may_wait |= wish.has('W') || wish.has('H');
                }
                Presence::Away(Durability::Persistent) => {
                    // Its client is asked when it is back, if it has something to keep its handle by, or was asked
                    // before it was lost.
                    let is_in_conflict = !taken.is_empty();
                    let will_be_asked = caching.letters.has('H') || caching.breaking.is_some();
                    obstacles.is_blocked |= must_be_asked || (is_in_conflict && !will_be_asked);
                    obstacles.may_be_unavailable |= is_in_conflict;
                    obstacles.may_wait |= wish.has('H') || (is_in_conflict && will_be_asked);
                }
                // Its share mode holds; what is durable of its lease is closed.
                Presence::Away(Durability::Resilient) => {
                    let stays = theirs.iter().any(|open| open.durability == Durability::Resilient);
                    obstacles.is_blocked |= stays;
                    obstacles.may_violate |= stays;
                }
                // It is closed.
                Presence::Away(_) => {}
            }
            obstacles.taken.push((caching.holder, taken));
            obstacles.wishes.push((caching.holder, wish));
        }
        obstacles
    }

    /// Something was done to a file, through an open, that is seen in its directory or may be. Who caches that, but
    /// under the key that the open has named as its parent's, has to look again; nobody waits for it (MS-FSA 2.1.4.12,
    /// with PARENT_OBJECT).
    pub(super) fn directory_has_changed(&mut self, id: DurableFileId, is_seen: bool) {
        let Some(open) = self.opens.iter().find(|open| open.id == id) else { return };
        let Some(directory) = open.directory else { return };
        let parent = open.oplock.lease().and_then(|lease| lease.parent);
        let client_guid = open.client;
        let own = parent.map(|key| BreakTarget::Lease(LeaseId { client_guid, key }));
        for caching in self.cachings.iter_mut().filter(|caching| caching.file == directory) {
            if Some(caching.holder) == own {
                continue;
            }
            self.wishes.push((caching.holder, letters("RH")));
            if is_seen {
                self.taken.push((caching.holder, letters("R")));
            }
            if is_seen && caching.letters == letters("R") && caching.breaking.is_none() {
                caching.letters = letters("");
            }
        }
    }

    /// A request is done: who is away and had something to give up is not waited for.
    pub(super) fn give_way(&mut self, obstacles: &Obstacles) {
        for (holder, taken) in obstacles.taken.iter().filter(|(_, taken)| !taken.is_empty()) {
            match self.presence(*holder) {
                Presence::Connected | Presence::Away(Durability::Persistent) => {
                    self.taken.push((*holder, taken.clone()));
                    // Read caching alone is over when its holder is told.
                    let caching = self.caching_mut(*holder).expect("what is in the way is there");
                    if caching.letters == letters("R") && caching.breaking.is_none() {
                        caching.letters = letters("");
                    }
                }
                // Of a lease the durable opens are closed, and the resilient ones stay without any caching.
                Presence::Away(_) => {
                    let is_durable = |open: &&Open| open.durability != Durability::Resilient;
                    let durable: Vec<_> =
                        self.opens_of(*holder).filter(is_durable).map(|open| open.id).collect();
                    for id in &durable {
                        self.close(*id);
                    }
                    if let Some(caching) = self.caching_mut(*holder) {
                        let lost = if durable.is_empty() { taken.clone() } else { caching.letters.clone() };
                        caching.letters = caching.letters.after_losing(&lost);
                    }
                }
            }
        }
        self.wishes.extend(obstacles.wishes.iter().cloned());
    }
}

/// MS-FSA 2.1.4.12, case OPEN.
fn taken_by_open(caching: &Caching, access: AccessMask, overwrites: bool) -> Letters {
    let is_lease = matches!(caching.holder, BreakTarget::Lease(_));
    if sees_attributes_only(access, is_lease) {
        return letters("");
    }
    match (is_lease, overwrites) {
        (true, true) => letters("RW"),
        (true, false) => letters("W"),
        (false, true) => letters("RWH"),
        // Down to level II, if it is more than that.
        (false, false) => letters("WH"),
    }
}

/// MS-FSA 2.1.4.12, cases WRITE and LOCK_CONTROL.
fn taken_by_write(caching: &Caching) -> Letters {
    match caching.holder {
        BreakTarget::Lease(_) => letters("RW"),
        BreakTarget::Oplock(_) => letters("RWH"),
    }
}

/// MS-FSA 2.1.4.12, case FileRenameInformation.
fn taken_by_rename(caching: &Caching) -> Letters {
    match caching.holder {
        BreakTarget::Lease(_) => letters("H"),
        BreakTarget::Oplock(_) if caching.letters.has('H') => letters("RWH"),
        BreakTarget::Oplock(_) => letters(""),
    }
}

/// FILE_READ_ATTRIBUTES, FILE_WRITE_ATTRIBUTES and SYNCHRONIZE; READ_CONTROL too where leases are concerned
/// (MS-FSA 2.1.4.12).
pub(super) fn sees_attributes_only(access: AccessMask, is_lease: bool) -> bool {
    let read_control = if is_lease { 0x2_0000 } else { 0 };
    access.0 & !(0x80 | 0x100 | 0x10_0000 | read_control) == 0
}
