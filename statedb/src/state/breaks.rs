//! Breaks under way: who has been asked to give up what, and until when the answer is waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::caching::{self, Cause, Demand};
use super::event::{CloseReason, EventKind};
use super::ids::{DurableFileId, FileKey, LeaseId, Owner};
use super::open::{Durability, Open};
use super::oplock::{Lease, LeaseState, Oplock, OplockLevel, OplockState};
use super::outcome::{Outcome, Rejection};
use super::state::State;
use super::time::{Millis, Timestamp};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BreakTarget {
    /// The oplock of an open.
    Oplock(DurableFileId),
    /// A lease, and with it what all its opens may cache.
    Lease(LeaseId),
}

/// A break that has not been acknowledged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Break {
    /// What may be cached afterwards, in the terms of leases: for an oplock READ is level II.
    pub to: LeaseState,
    /// What has been wanted since. When the client has acknowledged `to` and this is less, it is asked for that next.
    pub required: LeaseState,
    /// Until when the acknowledgement is waited for. `None` while nobody can be asked: the client of a persistent open
    /// is away, and is asked when it is back.
    pub ack_until: Option<Timestamp>,
}

/// All breaks under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BreakTable {
    by_target: BTreeMap<BreakTarget, Break>,
    by_deadline: BTreeSet<(Timestamp, BreakTarget)>,
}

impl BreakTable {
    pub(super) fn get(&self, target: BreakTarget) -> Option<Break> {
        self.by_target.get(&target).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (BreakTarget, Break)> {
        self.by_target.iter().map(|(target, under_way)| (*target, *under_way))
    }

    pub(super) fn insert(&mut self, target: BreakTarget, under_way: Break) -> Option<Break> {
        let before = self.remove(target);
        self.by_deadline.extend(under_way.ack_until.map(|until| (until, target)));
        self.by_target.insert(target, under_way);
        before
    }

    pub(super) fn remove(&mut self, target: BreakTarget) -> Option<Break> {
        let under_way = self.by_target.remove(&target)?;
        if let Some(until) = under_way.ack_until {
            self.by_deadline.remove(&(until, target));
        }
        Some(under_way)
    }

    /// The breaks whose time is up at `now`, in order of their deadlines.
    pub(super) fn due(&self, now: Timestamp) -> Vec<BreakTarget> {
        let due = self.by_deadline.iter().take_while(|(until, _)| *until <= now);
        due.map(|(_, target)| *target).collect()
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.by_deadline.first().map(|(until, _)| *until)
    }
}

impl fmt::Display for BreakTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oplock(open) => write!(f, "open {open}"),
            Self::Lease(lease) => write!(f, "lease {}", lease.key),
        }
    }
}

/// Who wants something of a file, and so breaks what others cache of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// The file, or directory.
    pub(super) file: FileKey,
    /// The lease of who wishes, which is left alone with all its opens.
    pub(super) lease: Option<LeaseId>,
    /// The open through which it is wished, if there is one whose own oplock is left alone.
    pub(super) open: Option<DurableFileId>,
    /// Who wishes; what becomes due for deletion by it is this SMB server's to delete.
    pub(super) owner: Owner,
}

/// Who caches a file: an open with an oplock, or a lease with its opens.
#[derive(Debug)]
struct Holder {
    target: BreakTarget,
    held: LeaseState,
    opens: Vec<DurableFileId>,
    /// `None` if it can keep what it holds.
    cause: Option<Cause>,
}

/// What is done about one holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// Its client is asked, and acknowledges.
    Ask { to: LeaseState, waits: bool },
    /// It is being asked already.
    AskMore { to: LeaseState, waits: bool },
    /// Its client is told, and need not acknowledge.
    Tell { to: LeaseState },
    /// Nobody is there to be told.
    Lower { to: LeaseState },
    /// Its client is away; it is asked when it is back.
    Save { to: LeaseState, waits: bool },
    /// Its client is away and does not get back what is durable of it; what is resilient stays without any caching.
    Purge,
}

impl State {
    /// Breaks what others cache of the file of an open. True if the acknowledgement of somebody has to be waited for.
    pub(super) fn break_others(&mut self, id: DurableFileId, cause: Cause) -> Result<bool, Rejection> {
        let Some(open) = self.opens.get(id) else { return Ok(false) };
        let Some(owner) = open.connected_through() else { return Ok(false) };
        let is_spared = caching::spares_own(cause, open.description.oplock);
        let wish = Wish {
            file: open.description.file,
            lease: open.description.lease_id(),
            open: is_spared.then_some(id),
            owner,
        };
        self.break_for(wish, |_| Some(cause))
    }

    /// Tells who caches a directory that something in it has changed, but for the holder of the lease that the cause of
    /// it named as the parent's (MS-SMB2 3.3.4.20).
    pub(super) fn break_directory(&mut self, directory: FileKey, owner: Owner, except: Option<LeaseId>) {
        let wish = Wish { file: directory, lease: except, open: None, owner };
        let waits = self.break_for(wish, |_| Some(Cause::ChangeInDirectory));
        debug_assert_eq!(waits, Ok(false), "who caches a directory is not waited for");
    }

    /// Breaks what others cache of a file. `cause` says what the wish means for one of their opens, if anything. True if an
    /// acknowledgement has to be waited for. Refused, and nothing changed, if a persistent open is in the way whose
    /// client could not be asked even when it is back.
    pub(super) fn break_for(
        &mut self,
        wish: Wish,
        cause: impl Fn(&Open) -> Option<Cause>,
    ) -> Result<bool, Rejection> {
        let mut measures = Vec::new();
        for holder in self.holders(wish, cause) {
            if let Some(measure) = self.measure(&holder)? {
                measures.push((holder, measure));
            }
        }
        let mut waits = false;
        for (holder, measure) in measures {
            waits |= match measure {
                Measure::Ask { waits, .. } | Measure::AskMore { waits, .. } | Measure::Save { waits, .. } => {
                    waits
                }
                Measure::Tell { .. } | Measure::Lower { .. } | Measure::Purge => false,
            };
            self.take(measure, &holder, wish.owner);
        }
        Ok(waits)
    }

    /// Who caches the file beside who wishes, and what the wish means for it: for a lease the most that it means for any of
    /// its opens.
    fn holders(&self, wish: Wish, cause: impl Fn(&Open) -> Option<Cause>) -> Vec<Holder> {
        let mut holders: BTreeMap<BreakTarget, Holder> = BTreeMap::new();
        for open in self.opens.of_file(wish.file) {
            let id = open.description.durable_file_id;
            let lease = open.description.lease_id();
            if wish.open == Some(id) || (lease.is_some() && lease == wish.lease) {
                continue;
            }
            let target = break_target(open);
            let held = open.description.oplock.caching();
            let holder = holders.entry(target).or_insert_with(|| Holder {
                target,
                held,
                opens: Vec::new(),
                cause: None,
            });
            holder.opens.push(id);
            holder.cause = holder.cause.max(cause(open));
        }
        holders.into_values().collect()
    }

    fn measure(&self, holder: &Holder) -> Result<Option<Measure>, Rejection> {
        let opens = || holder.opens.iter().filter_map(|id| self.opens.get(*id));
        let demand = holder.cause.and_then(|cause| caching::demand(cause, holder.held));
        let Some(Demand { to, waits }) = demand else { return Ok(None) };
        let to = match holder.target {
            BreakTarget::Oplock(_) => caching::oplock_after(to).caching(),
            BreakTarget::Lease(_) => to,
        };
        if self.breaks.get(holder.target).is_some() {
            return Ok(Some(Measure::AskMore { to, waits }));
        }
        if opens().any(|open| open.connected_through().is_some()) {
            let is_asked = caching::needs_ack(holder.held);
            return Ok(Some(if is_asked { Measure::Ask { to, waits } } else { Measure::Tell { to } }));
        }
        // All clients are away. That of a persistent open must find it when it is back.
        if let Some(open) = opens().find(|open| open.description.durability == Durability::Persistent) {
            let holds_locks_alone =
                !open.description.byte_range_locks.is_empty() && !holder.held.has_write_caching();
            if !holder.held.has_handle_caching() || holds_locks_alone {
                return Err(Rejection::HeldByPersistentOpen(open.description.durable_file_id));
            }
            return Ok(Some(Measure::Save { to, waits }));
        }
        // A resilient open keeps its place without any caching (MS-SMB2 3.3.4.6). A durable one goes with its handle
        // caching, and with its write caching too, which nobody is there to write back.
        let is_durable = |open: &Open| open.description.durability != Durability::Resilient;
        let lost = holder.held.without(to.0);
        let goes = (lost.has_handle_caching() || lost.has_write_caching()) && opens().any(is_durable);
        Ok(Some(if goes { Measure::Purge } else { Measure::Lower { to } }))
    }

    fn take(&mut self, measure: Measure, holder: &Holder, wished_by: Owner) {
        let target = holder.target;
        match measure {
            Measure::Ask { to, .. } => self.ask(target, to, to),
            Measure::AskMore { to, .. } => {
                if let Some(under_way) = self.breaks.get(target) {
                    self.put_break(target, Break { required: under_way.required.and(to), ..under_way });
                }
            }
            Measure::Tell { to } => {
                let from = holder.held;
                self.count_change(target);
                self.set_caching(target, to);
                self.announce(target, from, to, None);
            }
            Measure::Lower { to } => {
                self.count_change(target);
                self.set_caching(target, to);
            }
            Measure::Save { to, .. } => {
                self.put_break(target, Break { to, required: to, ack_until: None });
                self.set_oplock_state(target, OplockState::Breaking);
            }
            Measure::Purge => {
                for id in &holder.opens {
                    let is_resilient = |open: &Open| open.description.durability == Durability::Resilient;
                    if !self.opens.get(*id).is_some_and(is_resilient) {
                        self.close_open_for(*id, Some(CloseReason::Purged), Some(wished_by));
                    }
                }
                self.take(Measure::Lower { to: LeaseState::NONE }, holder, wished_by);
            }
        }
    }

    /// Asks the client of a holder to go down to `to`, on any of its connections.
    fn ask(&mut self, target: BreakTarget, to: LeaseState, required: LeaseState) {
        let from = self.caching_of(target);
        let until = self.now.after(self.break_timeout(target));
        self.put_break(target, Break { to, required, ack_until: Some(until) });
        self.set_oplock_state(target, OplockState::Breaking);
        self.count_change(target);
        self.announce(target, from, to, Some(until));
    }

    fn announce(
        &mut self,
        target: BreakTarget,
        from: LeaseState,
        to: LeaseState,
        ack_until: Option<Timestamp>,
    ) {
        let Some(owner) = self.opens_of(target).find_map(Open::connected_through) else { return };
        let kind = match target {
            BreakTarget::Oplock(open) => {
                EventKind::OplockBreak { open, to: caching::oplock_after(to).level(), ack_until }
            }
            BreakTarget::Lease(lease) => {
                let Some(Lease { epoch, version, .. }) = self.lease(lease) else { return };
                EventKind::LeaseBreak { lease, from, to, epoch, version, ack_until }
            }
        };
        self.tell(Some(owner), kind);
    }

    /// A client has acknowledged the break of its oplock (MS-SMB2 3.3.5.22.1).
    pub(super) fn ack_oplock_break(
        &mut self,
        owner: Owner,
        id: DurableFileId,
        level: OplockLevel,
    ) -> Result<Outcome, Rejection> {
        let target = BreakTarget::Oplock(id);
        let open = self.connected_open(owner, id)?;
        let file = open.description.file;
        let Some(under_way) = self.breaks.get(target) else { return Err(Rejection::OplockNotBreaking(id)) };
        let accepted = caching::accept_oplock_ack(under_way.to, level);
        // A client that answers nonsense has lost its oplock all the same.
        self.end_break(target, accepted.unwrap_or(Oplock::None).caching());
        self.clear_replay_eligible(id);
        self.file_released(file);
        match (accepted, level) {
            (Some(_), _) => Ok(Outcome::BreakAcknowledged),
            (None, OplockLevel::Lease) => Err(Rejection::OplockLevelIsLease(id)),
            (None, _) => Err(Rejection::OplockLevelNotAccepted(id)),
        }
    }

    /// A client has acknowledged the break of its lease (MS-SMB2 3.3.5.22.2).
    pub(super) fn ack_lease_break(
        &mut self,
        owner: Owner,
        lease: LeaseId,
        state: LeaseState,
    ) -> Result<Outcome, Rejection> {
        let target = BreakTarget::Lease(lease);
        let open = self.opens.of_lease(lease).find(|open| open.connected_through() == Some(owner));
        let file = open.ok_or(Rejection::LeaseNotFound(lease))?.description.file;
        let Some(under_way) = self.breaks.get(target) else { return Err(Rejection::LeaseNotBreaking(lease)) };
        if !caching::accept_lease_ack(under_way.to, state) {
            return Err(Rejection::LeaseStateNotAccepted(lease));
        }
        self.end_break(target, state);
        for id in self.ids_of(target) {
            self.clear_replay_eligible(id);
        }
        self.file_released(file);
        Ok(Outcome::BreakAcknowledged)
    }

    /// Ends the breaks whose acknowledgements are overdue: their holders have nothing any more (MS-SMB2 3.3.6.1). Returns
    /// how many those are.
    pub(super) fn end_overdue_breaks(&mut self) -> u64 {
        let due = self.breaks.due(self.now);
        for target in &due {
            let from = self.caching_of(*target);
            let none = LeaseState::default();
            let file = self.opens_of(*target).next().map(|open| open.description.file);
            self.forget_break(*target);
            self.count_change(*target);
            self.set_caching(*target, none);
            self.announce(*target, from, none, None);
            if let Some(file) = file {
                self.file_released(file);
            }
        }
        due.len() as u64
    }

    /// An open that somebody is to answer a break for has lost its client. If no other client can answer for its lease,
    /// the break is over; that of a persistent open is asked for when its client is back.
    pub(super) fn break_lost_its_client(&mut self, target: BreakTarget) {
        let Some(under_way) = self.breaks.get(target) else { return };
        if self.opens_of(target).any(|open| open.connected_through().is_some()) {
            return;
        }
        if self.opens_of(target).any(|open| open.description.durability == Durability::Persistent) {
            self.put_break(target, Break { ack_until: None, ..under_way });
        } else {
            self.forget_break(target);
            self.set_caching(target, under_way.required);
        }
    }

    /// The client of this open is back, and is asked for what somebody has wanted meanwhile.
    pub(super) fn ask_for_saved_break(&mut self, id: DurableFileId) {
        let Some(target) = self.opens.get(id).map(break_target) else { return };
        if let Some(Break { to, required, ack_until: None }) = self.breaks.get(target) {
            self.ask(target, to, required);
        }
    }

    /// The break is acknowledged: this is what its holder may cache from now on. If less was wanted in the meantime, it is
    /// asked for that next.
    fn end_break(&mut self, target: BreakTarget, acknowledged: LeaseState) {
        let Some(under_way) = self.breaks.get(target) else { return };
        self.forget_break(target);
        self.set_caching(target, acknowledged);
        let wanted = acknowledged.and(under_way.required);
        if wanted == acknowledged {
            return;
        }
        if caching::needs_ack(acknowledged) {
            self.ask(target, wanted, wanted);
        } else {
            self.count_change(target);
            self.set_caching(target, wanted);
            self.announce(target, acknowledged, wanted, None);
        }
    }

    pub(super) fn put_break(&mut self, target: BreakTarget, under_way: Break) {
        self.breaks.insert(target, under_way);
        self.changes.breaks.insert(target);
    }

    /// No break is under way any more.
    pub(super) fn forget_break(&mut self, target: BreakTarget) {
        if self.breaks.remove(target).is_some() {
            self.changes.breaks.insert(target);
            self.set_oplock_state(target, OplockState::Held);
        }
    }

    /// What the opens of a target may cache from now on. An open that waits for its client and is not one that may wait any
    /// more is closed.
    pub(super) fn set_caching(&mut self, target: BreakTarget, state: LeaseState) {
        for id in self.ids_of(target) {
            self.edit_open(id, |open| {
                open.oplock = match open.oplock {
                    Oplock::Lease(lease) => Oplock::Lease(Lease { state, ..lease }),
                    _ => caching::oplock_after(state),
                };
            });
            let is_lost = self
                .opens
                .get(id)
                .is_some_and(|open| open.deadline().is_some() && !open.description.outlives_its_connection());
            if is_lost {
                self.close_open(id, Some(CloseReason::Purged));
            }
        }
    }

    /// The epoch of a lease counts the changes that its client has to know the order of (MS-SMB2 3.3.1.12).
    fn count_change(&mut self, target: BreakTarget) {
        for id in self.ids_of(target) {
            self.edit_open(id, |open| {
                if let Oplock::Lease(lease) = &mut open.oplock {
                    lease.epoch = lease.next_epoch();
                }
            });
        }
    }

    /// A break is in flight only where somebody can answer it, or must be asked when he is back: an open whose client is
    /// away while another one answers for the same lease is not lost by that.
    fn set_oplock_state(&mut self, target: BreakTarget, state: OplockState) {
        for id in self.ids_of(target) {
            let can_break = self.opens.get(id).is_some_and(|open| {
                open.connected_through().is_some() || open.description.durability == Durability::Persistent
            });
            if can_break || state == OplockState::Held {
                self.edit_open(id, |open| open.oplock_state = state);
            }
        }
    }

    fn break_timeout(&self, target: BreakTarget) -> Millis {
        let is_persistent =
            self.opens_of(target).any(|open| open.description.durability == Durability::Persistent);
        match (is_persistent, target) {
            (false, _) => self.limits.break_timeout,
            (true, BreakTarget::Oplock(_)) => self.limits.persistent_oplock_break_timeout,
            (true, BreakTarget::Lease(_)) => self.limits.persistent_lease_break_timeout,
        }
    }

    fn caching_of(&self, target: BreakTarget) -> LeaseState {
        self.opens_of(target).next().map_or(LeaseState::default(), |open| open.description.oplock.caching())
    }

    /// A lease as its opens have it.
    pub(super) fn lease(&self, lease: LeaseId) -> Option<Lease> {
        self.opens.of_lease(lease).next()?.description.oplock.lease()
    }

    pub(super) fn opens_of(&self, target: BreakTarget) -> impl Iterator<Item = &Open> {
        let (open, lease) = match target {
            BreakTarget::Oplock(id) => (self.opens.get(id), None),
            BreakTarget::Lease(lease) => (None, Some(self.opens.of_lease(lease))),
        };
        open.into_iter().chain(lease.into_iter().flatten())
    }

    pub(super) fn ids_of(&self, target: BreakTarget) -> Vec<DurableFileId> {
        self.opens_of(target).map(|open| open.description.durable_file_id).collect()
    }
}

/// What is broken when the caching of an open is.
pub(super) fn break_target(open: &Open) -> BreakTarget {
    let lease = open.description.lease_id();
    lease.map_or(BreakTarget::Oplock(open.description.durable_file_id), BreakTarget::Lease)
}
