//! The cluster as the specification describes a single server, in lists that are searched from one end to the other.
//!
//! [`Cluster::follow`] is told a command and what the real state made of it. Where the specification leaves one answer,
//! that has to be the answer. Where it leaves several (how much of what was asked for is granted, in how many steps a
//! holder is asked to give up what it caches, which of two reasons to refuse is told) the real one is taken over, if it
//! is among those.

use std::collections::BTreeSet;
use std::sync::Arc;

use statedb::{
    AccessMask, Awaited, BreakTarget, ClientGuid, Command, Create, CreateAction, CreateGuid, Durability,
    DurableFileId, FileKey, Incarnation, LeaseId, LeaseState, Limits, Lock, LockKind, Millis, NodeId,
    OpenState, Opened, OpenedHow, Operation, Oplock, OplockLevel, Outcome, Owner, Proposer, Request,
    SessionId, ShareAccess, State, Timestamp,
};

use super::letters::{Letters, letters};
use super::locks::{Locks, Refusal, Sequences};
use super::share_modes;

/// NTSTATUS values (MS-ERREF 2.3.1).
mod status {
    pub(super) const UNSUCCESSFUL: u32 = 0xC000_0001;
    pub(super) const INVALID_PARAMETER: u32 = 0xC000_000D;
    pub(super) const OBJECT_NAME_NOT_FOUND: u32 = 0xC000_0034;
    pub(super) const SHARING_VIOLATION: u32 = 0xC000_0043;
    pub(super) const LOCK_NOT_GRANTED: u32 = 0xC000_0055;
    pub(super) const RANGE_NOT_LOCKED: u32 = 0xC000_007E;
    pub(super) const REQUEST_NOT_ACCEPTED: u32 = 0xC000_00D0;
    pub(super) const INVALID_OPLOCK_PROTOCOL: u32 = 0xC000_00E3;
    pub(super) const CANCELLED: u32 = 0xC000_0120;
    pub(super) const FILE_CLOSED: u32 = 0xC000_0128;
    pub(super) const INVALID_DEVICE_STATE: u32 = 0xC000_0184;
    pub(super) const FILE_NOT_AVAILABLE: u32 = 0xC000_0467;
}

/// What the real state has made of a command.
pub(crate) struct Seen<'a> {
    /// The answer to it.
    pub(crate) outcome: &'a Outcome,
    /// The requests that waited and were decided by it, in this order.
    pub(crate) finished: Vec<(Owner, u64, Outcome)>,
    /// The state afterwards.
    pub(crate) state: &'a State,
}

/// An open.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) id: DurableFileId,
    pub(crate) client: ClientGuid,
    pub(crate) create_guid: CreateGuid,
    pub(crate) file: FileKey,
    /// By what its caching is known: its lease, or itself.
    pub(crate) holder: BreakTarget,
    pub(crate) oplock: Oplock,
    /// What its client calls the file.
    pub(crate) path: Arc<str>,
    pub(crate) access: AccessMask,
    pub(crate) share_access: ShareAccess,
    pub(crate) durability: Durability,
    pub(crate) timeout: Millis,
    /// Through whom its client has it, if it is not away.
    pub(crate) connected: Option<(Owner, SessionId)>,
    /// Until when its client may be away.
    pub(crate) until: Option<Timestamp>,
    sequences: Sequences,
}

/// What somebody may cache of a file: one oplock, or one lease with all its opens.
#[derive(Clone, Debug)]
pub(crate) struct Caching {
    pub(crate) holder: BreakTarget,
    pub(crate) file: FileKey,
    pub(crate) letters: Letters,
    pub(crate) breaking: Option<Breaking>,
}

/// A break that waits for its acknowledgement.
#[derive(Clone, Debug)]
pub(crate) struct Breaking {
    /// What the client was told.
    pub(crate) to: Letters,
    /// What it will be told at the latest when it has acknowledged that.
    required: Letters,
    /// Until when it may take its time. `None` while it is away.
    pub(crate) until: Option<Timestamp>,
}

/// A request that waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) owner: Owner,
    pub(crate) sequence: u64,
    what: Awaited,
}

/// Whether the holder of a caching can be asked to give it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// A client of it is connected.
    Connected,
    /// All are away, and were promised this.
    Away(Durability),
}

/// What is in the way of a request.
#[derive(Debug, Default)]
struct Obstacles {
    /// It cannot be done now.
    is_blocked: bool,
    /// It may wait.
    may_wait: bool,
    /// It may be refused because another open excludes it.
    may_violate: bool,
    /// It may be refused because a client has to find its persistent open as it left it.
    may_be_unavailable: bool,
    /// What others no longer may cache when it is done.
    taken: Vec<(BreakTarget, Letters)>,
    /// What others may be asked to give up for it.
    wishes: Vec<(BreakTarget, Letters)>,
}

/// The model.
#[derive(Debug)]
pub(crate) struct Cluster {
    limits: Limits,
    now: Timestamp,
    up: Vec<Owner>,
    pub(crate) opens: Vec<Open>,
    pub(crate) cachings: Vec<Caching>,
    locks: Vec<(FileKey, Locks)>,
    pub(crate) waiting: Vec<Waiting>,
    answers: Vec<(Owner, u64, Outcome)>,
    /// What holders may be asked to give up by what happens in this step.
    wishes: Vec<(BreakTarget, Letters)>,
    /// What holders must not rely on any more after this step.
    taken: Vec<(BreakTarget, Letters)>,
    /// Whose breaks nobody can acknowledge any more.
    given_up: Vec<BreakTarget>,
    /// Requests that nobody wants to be answered any more.
    cancelled: Vec<(Owner, u64)>,
}

type Check = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

impl Cluster {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            now: Timestamp(0),
            up: Vec::new(),
            opens: Vec::new(),
            cachings: Vec::new(),
            locks: Vec::new(),
            waiting: Vec::new(),
            answers: Vec::new(),
            wishes: Vec::new(),
            taken: Vec::new(),
            given_up: Vec::new(),
            cancelled: Vec::new(),
        }
    }

    /// Does what the command asks for.
    ///
    /// # Errors
    ///
    /// If the real state has done what the specification does not allow.
    pub(crate) fn follow(&mut self, proposed_at: Timestamp, command: &Command, seen: &Seen) -> Check {
        self.now = self.now.max(proposed_at);
        self.wishes.clear();
        self.taken.clear();
        self.given_up.clear();
        self.cancelled.clear();
        match command {
            Command::RegisterNode { node, .. } => self.register(*node, seen.outcome)?,
            Command::NodeDown { node, incarnation } => self.node_down(*node, *incarnation, seen.outcome)?,
            Command::ExpireOpens => self.expire(seen.outcome)?,
            Command::FromSmbNode { proposer, request } => self.answer(proposer, request, seen)?,
        }
        self.wishes_of_who_waits();
        for (owner, sequence, outcome) in &seen.finished {
            self.finish(*owner, *sequence, outcome)?;
            self.wishes_of_who_waits();
        }
        self.take_over(seen.state)?;
        self.what_was_taken_is_given_up()?;
        self.nobody_waits_for_nothing()
    }

    // ---- nodes and time ----

    fn register(&mut self, node: NodeId, outcome: &Outcome) -> Check {
        let Outcome::Registered { incarnation, .. } = outcome else {
            return Err(format!("a new SMB service was answered {outcome}"));
        };
        let before: Vec<_> = self.up.iter().copied().filter(|owner| owner.node == node).collect();
        for owner in before.into_iter().filter(|owner| owner.incarnation != *incarnation) {
            self.dies(owner);
        }
        let owner = Owner { node, incarnation: *incarnation };
        if !self.up.contains(&owner) {
            self.up.push(owner);
        }
        Ok(())
    }

    fn node_down(&mut self, node: NodeId, incarnation: Incarnation, outcome: &Outcome) -> Check {
        let away: Vec<_> =
            self.opens.iter().filter(|open| open.until.is_some()).map(|open| open.id).collect();
        let (kept, gone) = self.dies(Owner { node, incarnation });
        let Outcome::NodeDown { disconnected, closed } = outcome else {
            return Err(format!("a verdict was answered {outcome}"));
        };
        // Those that its SMB server has kept are told too.
        let disconnected: Vec<_> = disconnected.iter().copied().filter(|id| !away.contains(id)).collect();
        same_opens("kept", &kept, &disconnected)?;
        self.are_closed(&gone, closed)
    }

    fn dies(&mut self, owner: Owner) -> (Vec<DurableFileId>, Vec<DurableFileId>) {
        self.up.retain(|other| *other != owner);
        self.waiting.retain(|waiting| waiting.owner != owner);
        self.answers.retain(|(other, _, _)| *other != owner);
        self.lose_all(|open| open.connected.is_some_and(|(through, _)| through == owner))
    }

    /// MS-SMB2 3.3.6.1, 3.3.6.2, 3.3.6.5.
    fn expire(&mut self, outcome: &Outcome) -> Check {
        let is_due = |open: &&Open| open.until.is_some_and(|until| until <= self.now);
        let due: Vec<_> = self.opens.iter().filter(is_due).map(|open| open.id).collect();
        for id in &due {
            self.close(*id);
        }
        let mut overdue = Vec::new();
        for caching in &mut self.cachings {
            let until = caching.breaking.as_ref().and_then(|breaking| breaking.until);
            if until.is_some_and(|until| until <= self.now) {
                caching.letters = letters("");
                caching.breaking = None;
                overdue.push(caching.holder);
            }
        }
        for holder in overdue {
            self.may_have_lost_handle_caching(holder);
        }
        let Outcome::Expired { closed, .. } = outcome else {
            return Err(format!("the scavenger was answered {outcome}"));
        };
        // One whose lease has gone with the break has nothing left to come back to.
        let closed: Vec<_> = closed.iter().copied().filter(|id| due.contains(id)).collect();
        same_opens("expired", &due, &closed)
    }

    // ---- requests ----

    fn answer(&mut self, proposer: &Proposer, request: &Request, seen: &Seen) -> Check {
        let (owner, sequence, outcome) = (proposer.owner, proposer.sequence, seen.outcome);
        if !self.up.contains(&owner) {
            return expect_status(outcome, &[status::FILE_NOT_AVAILABLE]);
        }
        let first = self.answers.iter().find(|(to, of, _)| (*to, *of) == (owner, sequence));
        if let Some((_, _, first)) = first {
            ensure!(first == outcome, "asked again: first {first}, then {outcome}");
            return Ok(());
        }
        self.answers.push((owner, sequence, outcome.clone()));
        let awaited = match request {
            Request::Create(create) => {
                let id = seen.new_open();
                self.create(owner, id, create, outcome)?;
                Some(Awaited::Create { durable_file_id: id, create: create.clone() })
            }
            Request::Operate { open, operation } => {
                self.operate(owner, *open, operation, outcome)?;
                Some(Awaited::Operation { open: *open, operation: operation.clone() })
            }
            _ => {
                self.decide(owner, request, seen)?;
                None
            }
        };
        if *outcome == Outcome::BreakPending {
            let what = awaited.ok_or_else(|| format!("{request} waits"))?;
            self.waiting.push(Waiting { owner, sequence, what });
        }
        Ok(())
    }

    fn decide(&mut self, owner: Owner, request: &Request, seen: &Seen) -> Check {
        let outcome = seen.outcome;
        match request {
            Request::Cancel { sequence } => {
                self.cancelled.push((owner, *sequence));
                expect(outcome, &Outcome::Cancelled)
            }
            Request::AckOplockBreak { open, level } => self.ack_oplock(owner, *open, *level, outcome),
            Request::AckLeaseBreak { lease, state } => self.ack_lease(*lease, *state, outcome),
            Request::Lock(lock) => self.lock(owner, lock, seen),
            Request::RequestResiliency { open, timeout, .. } => {
                let Some(open) = self.connected(owner, *open) else {
                    return expect_status(outcome, &[status::FILE_CLOSED]);
                };
                open.durability = Durability::Resilient;
                open.timeout = *timeout;
                expect(outcome, &Outcome::Resilient { timeout: *timeout })
            }
            Request::EndSession(session) => self.end_session(owner, *session, outcome),
            Request::Disconnect(id) => {
                let until = self.now;
                let Some(open) = self.connected(owner, *id) else {
                    return expect_refused(outcome);
                };
                let until = until.after(open.timeout);
                let (kept, _) = self.lose_all(|open| open.id == *id);
                expect(
                    outcome,
                    &if kept.is_empty() { Outcome::Closed } else { Outcome::Disconnected { until } },
                )
            }
            Request::Close(id) => {
                if self.connected(owner, *id).is_none() {
                    return expect_refused(outcome);
                }
                self.close(*id);
                expect(outcome, &Outcome::Closed)
            }
            _ => Err(format!("the schedules do not ask for {request}")),
        }
    }

    /// A request that waited is decided.
    fn finish(&mut self, owner: Owner, sequence: u64, outcome: &Outcome) -> Check {
        let is_it = |waiting: &Waiting| (waiting.owner, waiting.sequence) == (owner, sequence);
        let place = self.waiting.iter().position(is_it);
        let place = place.ok_or_else(|| format!("{owner}#{sequence} did not wait and is told {outcome}"))?;
        let Waiting { what, .. } = self.waiting.remove(place);
        ensure!(*outcome != Outcome::BreakPending, "{owner}#{sequence} is told that it waits");
        for answer in self.answers.iter_mut().filter(|(to, of, _)| (*to, *of) == (owner, sequence)) {
            answer.2 = outcome.clone();
        }
        if self.cancelled.contains(&(owner, sequence)) {
            return expect_status(outcome, &[status::CANCELLED]);
        }
        match &what {
            Awaited::Create { durable_file_id, create } => {
                self.create(owner, *durable_file_id, create, outcome)
            }
            Awaited::Operation { open, operation } => self.operate(owner, *open, operation, outcome),
        }
    }

    // ---- opening ----

    fn create(&mut self, owner: Owner, id: DurableFileId, create: &Create, outcome: &Outcome) -> Check {
        let contexts = create.contexts;
        let wants_back = contexts
            .durable_reconnect
            .or(contexts.durable_reconnect_v2.map(|reconnect| reconnect.durable_file_id));
        if let Some(wanted) = wants_back {
            return self.reconnect(owner, wanted, create, outcome);
        }
        // MS-SMB2 3.3.5.9.8: a lease is of one file.
        let lease = lease_of(create);
        let lease_file = lease.and_then(|lease| self.caching(lease)).map(|caching| caching.file);
        if lease_file.is_some_and(|file| file != create.file) {
            return expect_status(outcome, &[status::INVALID_PARAMETER]);
        }
        let obstacles = self.obstacles_to_create(create);
        match outcome {
            Outcome::Opened(opened) => {
                ensure!(!obstacles.is_blocked, "was opened in spite of {obstacles:?}");
                self.give_way(&obstacles);
                self.opened(owner, id, create, opened)
            }
            outcome => self.not_done(obstacles, outcome),
        }
    }

    /// A request that is not done now waits or is refused, and has a reason.
    fn not_done(&mut self, obstacles: Obstacles, outcome: &Outcome) -> Check {
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

    fn obstacles_to_create(&self, create: &Create) -> Obstacles {
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

        // The client of a lost persistent open has to find the file as it left it, and cannot be asked without a handle to
        // come back to; nor can its locks be kept from who reaches the data.
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

    fn obstacles_to_operate(&self, mine: BreakTarget, operation: &Operation) -> Obstacles {
        let caching = self.caching(mine).expect("an open has a caching");
        if let Operation::Rename { .. } = operation {
            return self.obstacles(caching.file, Some(mine), taken_by_rename, &[]);
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
    fn obstacles(
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
            // Who has acknowledged down to something without R, which means nothing, may lose that too.
            let is_void = !caching.letters.has('R') && !wish.is_empty();
            let wish = if is_void { caching.letters.clone() } else { wish.common(&caching.letters) };
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
                // Its share mode holds, and it caches nothing any more.
                Presence::Away(Durability::Resilient) => {
                    obstacles.is_blocked |= excludes;
                    obstacles.may_violate |= excludes;
                }
                // It is closed.
                Presence::Away(_) => {}
            }
            obstacles.taken.push((caching.holder, taken));
            obstacles.wishes.push((caching.holder, wish));
        }
        obstacles
    }

    /// A request is done: who is away and had something to give up is not waited for.
    fn give_way(&mut self, obstacles: &Obstacles) {
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
                // Of a lease the durable opens are closed, the resilient ones stay.
                Presence::Away(_) => {
                    let is_durable = |open: &&Open| open.durability != Durability::Resilient;
                    for id in
                        self.opens_of(*holder).filter(is_durable).map(|open| open.id).collect::<Vec<_>>()
                    {
                        self.close(id);
                    }
                    if let Some(caching) = self.caching_mut(*holder) {
                        caching.letters = caching.letters.after_losing(taken);
                    }
                }
            }
        }
        self.wishes.extend(obstacles.wishes.iter().cloned());
    }

    fn opened(&mut self, owner: Owner, id: DurableFileId, create: &Create, opened: &Opened) -> Check {
        ensure!(opened.durable_file_id == id, "open {} was made instead of {id}", opened.durable_file_id);
        ensure!(opened.how == OpenedHow::Created, "{id} is {:?}", opened.how);
        let holder = match opened.oplock {
            Oplock::Lease(_) => lease_of(create).ok_or("a lease was granted to who asked for none")?,
            _ => BreakTarget::Oplock(id),
        };
        let granted = Letters::from(opened.oplock);
        self.check_granted(create, holder, &granted, opened.is_lease_breaking)?;
        match self.cachings.iter_mut().find(|caching| caching.holder == holder) {
            Some(caching) => caching.letters = granted,
            None => {
                self.cachings.push(Caching { holder, file: create.file, letters: granted, breaking: None })
            }
        }
        self.opens.push(Open {
            id,
            client: create.client.client_guid,
            create_guid: create
                .contexts
                .durable_request_v2
                .map(|request| request.create_guid)
                .unwrap_or_default(),
            file: create.file,
            holder,
            oplock: opened.oplock,
            path: Arc::clone(&create.path),
            access: create.granted_access,
            share_access: create.share_access,
            durability: Durability::NotDurable,
            timeout: Millis(0),
            connected: Some((owner, create.client.session)),
            until: None,
            sequences: Sequences::none(),
        });
        Ok(())
    }

    /// Nobody is granted more than he asked for, nor what somebody else must rely on not being granted
    /// (MS-FSA 2.1.5.18.1, 2.1.5.18.2); and who is alone is granted what he asked for.
    fn check_granted(
        &self,
        create: &Create,
        holder: BreakTarget,
        granted: &Letters,
        is_lease_breaking: bool,
    ) -> Check {
        let asked = Letters::from(create.requested);
        let mine = self.caching(holder);
        let before = mine.map(|caching| caching.letters.clone()).unwrap_or_default();
        let wanted = before.and(&asked);
        ensure!(granted.is_within(&wanted), "{granted} granted to who had {before} and asked for {asked}");
        ensure!(before.is_within(granted), "{before} became {granted}");
        let was_breaking = mine.is_some_and(|caching| caching.breaking.is_some());
        if was_breaking || is_lease_breaking {
            // Somebody who waits may have asked for it a moment ago.
            ensure!(was_breaking || !self.wished(holder).is_empty(), "{holder} is said to be broken");
            ensure!(*granted == before, "{before} became {granted} while it was broken");
            return Ok(());
        }

        let others: Vec<_> = self.opens_of_file(create.file).filter(|open| open.holder != holder).collect();
        let cached: Vec<_> = self
            .cachings
            .iter()
            .filter(|caching| caching.file == create.file && caching.holder != holder)
            .collect();
        if *granted != before {
            let writes = cached.iter().any(|caching| caching.letters.has('W'));
            ensure!(!writes, "{granted} granted while another caches writes");
            let is_alone = others.iter().all(|open| sees_attributes_only(open.access, true))
                && cached.iter().all(|caching| caching.letters.is_empty());
            ensure!(!granted.has('W') || is_alone, "{granted} granted beside others");
        }

        let has_locks = self.locks.iter().any(|(file, locks)| *file == create.file && !locks.0.is_empty());
        let is_upgrade = before.is_within(&asked);
        if has_locks || !is_upgrade {
            return Ok(());
        }
        let at_least = if others.is_empty() {
            asked
        } else if mine.is_none() && cached.iter().all(|caching| self.can_be_shared(caching)) {
            asked.without(&letters("W"))
        } else {
            before
        };
        // How much of an oplock is left for an open that does not touch the content, or is not alone, is the server's
        // to say (MS-SMB2 3.3.5.9).
        let is_lease = create.requested.lease().is_some();
        let must_be_granted =
            is_lease || (others.is_empty() && !sees_attributes_only(create.granted_access, false));
        ensure!(!must_be_granted || at_least.is_within(granted), "{granted} granted where {at_least} can be");
        Ok(())
    }

    /// Whether another lease of RH can be granted beside it.
    fn can_be_shared(&self, caching: &Caching) -> bool {
        let is_lease = matches!(caching.holder, BreakTarget::Lease(_));
        let is_breaking = caching.breaking.is_some() || !self.wished(caching.holder).is_empty();
        caching.letters.is_empty() || (is_lease && !is_breaking && !caching.letters.has('W'))
    }

    /// The client of an open that was lost comes back with all that it has to name.
    fn reconnect(&mut self, owner: Owner, id: DurableFileId, create: &Create, outcome: &Outcome) -> Check {
        let is_there = |open: &Open| open.id == id && open.until.is_some_and(|until| until > self.now);
        let Some(place) = self.opens.iter().position(is_there) else {
            return expect_status(outcome, &[status::OBJECT_NAME_NOT_FOUND]);
        };
        let open = &self.opens[place];
        let caching = self.caching(open.holder).expect("an open has a caching");
        let Outcome::Opened(opened) = outcome else {
            return Err(format!("the client of {id} is back and is told {outcome}"));
        };
        ensure!(opened.how == OpenedHow::Reconnected, "{id} is {:?}", opened.how);
        let told = Letters::from(opened.oplock);
        ensure!(told == caching.letters, "{id} had {} and is told {told}", caching.letters);
        let open = &mut self.opens[place];
        open.connected = Some((owner, create.client.session));
        open.until = None;
        Ok(())
    }

    // ---- losing and closing ----

    fn end_session(&mut self, owner: Owner, session: SessionId, outcome: &Outcome) -> Check {
        for waiting in &self.waiting {
            let is_in_session = match &waiting.what {
                Awaited::Create { create, .. } => create.client.session == session,
                Awaited::Operation { .. } => false,
            };
            if waiting.owner == owner && is_in_session {
                self.cancelled.push((owner, waiting.sequence));
            }
        }
        let (kept, gone) = self.lose_all(|open| open.connected == Some((owner, session)));
        let Outcome::SessionEnded { disconnected, closed } = outcome else {
            return Err(format!("the end of a session was answered {outcome}"));
        };
        same_opens("kept", &kept, disconnected)?;
        self.are_closed(&gone, closed)
    }

    /// The connections of these opens are lost (MS-SMB2 3.3.7.1). Returns what is kept and what is closed.
    fn lose_all(&mut self, is_lost: impl Fn(&Open) -> bool) -> (Vec<DurableFileId>, Vec<DurableFileId>) {
        let lost: Vec<_> = self.opens.iter().filter(|open| is_lost(open)).cloned().collect();
        let (kept, gone): (Vec<_>, Vec<_>) = lost.into_iter().partition(|open| self.is_kept(open));
        for open in &gone {
            self.close(open.id);
        }
        for open in &kept {
            let until = self.now.after(open.timeout);
            let open = self.opens.iter_mut().find(|other| other.id == open.id).expect("it is kept");
            open.connected = None;
            open.until = Some(until);
        }
        for open in &kept {
            self.has_lost_a_client(open.holder);
        }
        let ids = |opens: Vec<Open>| opens.into_iter().map(|open| open.id).collect();
        (ids(kept), ids(gone))
    }

    /// The opens that are told to be closed are these, and others at most that went with them.
    fn are_closed(&self, gone: &[DurableFileId], told: &[DurableFileId]) -> Check {
        let are_told = gone.iter().all(|id| told.contains(id));
        let are_gone = told.iter().all(|id| self.opens.iter().all(|open| open.id != *id));
        ensure!(are_told && are_gone, "closed are {told:?} instead of {gone:?}");
        Ok(())
    }

    fn is_kept(&self, open: &Open) -> bool {
        let caching = self.caching(open.holder).expect("an open has a caching");
        match open.durability {
            Durability::NotDurable => false,
            Durability::Resilient | Durability::Persistent => true,
            Durability::DurableV1 | Durability::DurableV2 => {
                let has_locks = !self.locks_of(open).of(open.id).is_empty();
                caching.letters.has('H')
                    && caching.breaking.is_none()
                    && (caching.letters.has('W') || !has_locks)
            }
        }
    }

    /// The open is gone, with its locks, and with its lease if it was the last open of that.
    fn close(&mut self, id: DurableFileId) {
        let closed = self.opens.iter().find(|open| open.id == id).map(|open| open.holder);
        self.opens.retain(|open| open.id != id);
        for (_, locks) in &mut self.locks {
            locks.forget(id);
        }
        let opens = &self.opens;
        self.cachings.retain(|caching| opens.iter().any(|open| open.holder == caching.holder));
        if let Some(holder) = closed {
            self.has_lost_a_client(holder);
        }
    }

    /// If it was the last client that a break could be acknowledged by, nobody waits for that any more. What is left of
    /// the lease is kept, or closed; a persistent open's client is asked when it is back.
    fn has_lost_a_client(&mut self, holder: BreakTarget) {
        let presence = self.presence(holder);
        let Some(caching) = self.caching_mut(holder) else { return };
        match (presence, &mut caching.breaking) {
            (Presence::Connected, _) | (_, None) => {}
            (Presence::Away(Durability::Persistent), Some(breaking)) => breaking.until = None,
            (Presence::Away(_), Some(breaking)) => {
                caching.letters = breaking.required.clone();
                caching.breaking = None;
                self.given_up.push(holder);
                self.may_have_lost_handle_caching(holder);
            }
        }
    }

    /// Without handle caching nothing durable is left for who is away (MS-SMB2 3.3.5.9.7).
    fn may_have_lost_handle_caching(&mut self, holder: BreakTarget) {
        if self.caching(holder).is_none_or(|caching| caching.letters.has('H')) {
            return;
        }
        let is_lost = |open: &&Open| {
            let is_durable = matches!(open.durability, Durability::DurableV1 | Durability::DurableV2);
            is_durable && open.connected.is_none()
        };
        for id in self.opens_of(holder).filter(is_lost).map(|open| open.id).collect::<Vec<_>>() {
            self.close(id);
        }
    }

    // ---- breaks ----

    /// MS-SMB2 3.3.5.22.1.
    fn ack_oplock(
        &mut self,
        owner: Owner,
        id: DurableFileId,
        level: OplockLevel,
        outcome: &Outcome,
    ) -> Check {
        if self.connected(owner, id).is_none() {
            return expect_status(outcome, &[status::FILE_CLOSED]);
        }
        let caching = self.caching_mut(BreakTarget::Oplock(id));
        let Some(caching) = caching.filter(|caching| caching.breaking.is_some()) else {
            return expect_status(outcome, &[status::INVALID_DEVICE_STATE]);
        };
        let breaking = caching.breaking.take().expect("it is breaking");
        let acknowledged = match level {
            OplockLevel::None => letters(""),
            // Who was to have nothing and says level II has nothing.
            OplockLevel::LevelII => letters("R").common(&breaking.to),
            OplockLevel::Exclusive | OplockLevel::Batch | OplockLevel::Lease => {
                caching.letters = letters("");
                let is_lease = level == OplockLevel::Lease;
                let allowed =
                    if is_lease { status::INVALID_PARAMETER } else { status::INVALID_OPLOCK_PROTOCOL };
                return expect_status(outcome, &[allowed]);
            }
        };
        self.acknowledged(BreakTarget::Oplock(id), acknowledged, &breaking);
        expect(outcome, &Outcome::BreakAcknowledged)
    }

    /// MS-SMB2 3.3.5.22.2.
    fn ack_lease(&mut self, lease: LeaseId, state: LeaseState, outcome: &Outcome) -> Check {
        let holder = BreakTarget::Lease(lease);
        let Some(caching) = self.caching_mut(holder) else {
            return expect_status(outcome, &[status::OBJECT_NAME_NOT_FOUND]);
        };
        let Some(breaking) = caching.breaking.clone() else {
            return expect_status(outcome, &[status::UNSUCCESSFUL]);
        };
        let acknowledged = Letters::from(state);
        if !acknowledged.is_within(&breaking.to) {
            return expect_status(outcome, &[status::REQUEST_NOT_ACCEPTED]);
        }
        self.acknowledged(holder, acknowledged, &breaking);
        expect(outcome, &Outcome::BreakAcknowledged)
    }

    fn acknowledged(&mut self, holder: BreakTarget, letters: Letters, breaking: &Breaking) {
        let still_too_much = letters.without(&breaking.required);
        self.wishes.push((holder, still_too_much.clone()));
        self.taken.push((holder, still_too_much));
        let caching = self.caching_mut(holder).expect("what is acknowledged is there");
        caching.letters = letters;
        caching.breaking = None;
        self.may_have_lost_handle_caching(holder);
    }

    // ---- operations and locks ----

    fn operate(
        &mut self,
        owner: Owner,
        id: DurableFileId,
        operation: &Operation,
        outcome: &Outcome,
    ) -> Check {
        let Some(open) = self.connected(owner, id) else {
            return expect_status(outcome, &[status::FILE_CLOSED]);
        };
        let holder = open.holder;
        let obstacles = self.obstacles_to_operate(holder, operation);
        match outcome {
            Outcome::Proceed => {
                ensure!(!obstacles.is_blocked, "goes on in spite of {obstacles:?}");
                self.give_way(&obstacles);
                Ok(())
            }
            outcome => self.not_done(obstacles, outcome),
        }
    }

    /// MS-SMB2 3.3.5.14, and case LOCK_CONTROL of MS-FSA 2.1.4.12.
    fn lock(&mut self, owner: Owner, lock: &Lock, seen: &Seen) -> Check {
        let outcome = seen.outcome;
        let Some(open) = self.connected(owner, lock.open) else {
            return expect_status(outcome, &[status::FILE_CLOSED]);
        };
        let (file, holder, durability) = (open.file, open.holder, open.durability);
        let number = lock.sequence.number;
        let locks = lock.elements.iter().any(|element| element.kind != LockKind::Unlock);
        let mut sequences = open.sequences.clone();
        if let Some(entry) = sequences.entry(lock, durability) {
            if *entry == Some(number) {
                return expect(outcome, &Outcome::Locked { is_replay: true });
            }
            *entry = None;
        }
        let obstacles = self.obstacles_to_operate(holder, &Operation::Write);
        self.wishes.extend(obstacles.wishes.iter().cloned());
        // Who caches writes may have locked the range without telling; a LOCK does not wait until he has told.
        let is_in_the_way = [
            (obstacles.may_be_unavailable, status::FILE_NOT_AVAILABLE),
            (obstacles.is_blocked, status::LOCK_NOT_GRANTED),
        ];
        if is_in_the_way.iter().any(|(may, status)| *may && expect_status(outcome, &[*status]).is_ok()) {
            return Ok(());
        }
        let requested = self.locks_of_file(file).request(lock);
        if let Some(entry) = sequences.entry(lock, durability).filter(|_| requested.is_ok()) {
            *entry = Some(number);
        }
        self.connected(owner, lock.open).expect("it was connected before").sequences = sequences;
        match requested {
            Ok(()) if !locks || !obstacles.is_blocked => {
                if locks {
                    self.give_way(&obstacles);
                }
                expect(outcome, &Outcome::Locked { is_replay: false })
            }
            Ok(()) => Err(format!("{outcome}, in spite of {:?}", obstacles.taken)),
            Err(Refusal::InvalidParameter) => expect_status(outcome, &[status::INVALID_PARAMETER]),
            Err(Refusal::LockNotGranted) => expect_status(outcome, &[status::LOCK_NOT_GRANTED]),
            Err(Refusal::RangeNotLocked) => expect_status(outcome, &[status::RANGE_NOT_LOCKED]),
        }
    }

    // ---- what the specification leaves open is taken over ----

    fn wishes_of_who_waits(&mut self) {
        let wishes: Vec<_> =
            self.waiting.iter().flat_map(|waiting| self.obstacles_to(waiting).wishes).collect();
        self.wishes.extend(wishes);
    }

    fn obstacles_to(&self, waiting: &Waiting) -> Obstacles {
        match &waiting.what {
            Awaited::Create { create, .. } => self.obstacles_to_create(create),
            Awaited::Operation { open, operation } => {
                let Some(open) = self.opens.iter().find(|other| other.id == *open) else {
                    return Obstacles::default();
                };
                self.obstacles_to_operate(open.holder, operation)
            }
        }
    }

    fn wished(&self, holder: BreakTarget) -> Letters {
        let wishes = self.wishes.iter().filter(|(other, _)| *other == holder);
        wishes.fold(Letters::default(), |all, (_, wish)| all.and(wish))
    }

    /// Compares all there is with the real state.
    fn take_over(&mut self, state: &State) -> Check {
        self.take_over_purges(state);
        let ids: Vec<_> = self.opens.iter().map(|open| open.id).collect();
        same_opens(
            "there",
            &ids,
            &state.opens().map(|open| open.description.durable_file_id).collect::<Vec<_>>(),
        )?;
        for place in 0..self.opens.len() {
            self.take_over_open(place, state)?;
        }
        for place in 0..self.cachings.len() {
            self.take_over_caching(place, state)?;
        }
        for (target, _) in state.breaks() {
            ensure!(self.caching(target).is_some(), "{target} is broken and nobody has it");
        }
        let mut waiting: Vec<_> =
            self.waiting.iter().map(|waiting| (waiting.owner, waiting.sequence)).collect();
        let mut real: Vec<_> =
            state.waiting_requests().map(|waiting| (waiting.owner, waiting.sequence)).collect();
        waiting.sort_unstable();
        real.sort_unstable();
        ensure!(waiting == real, "there wait {real:?} instead of {waiting:?}");
        Ok(())
    }

    /// An open that is away and would have to give up something may be closed, or has to be, also if whoever wished for
    /// that still waits for others, or is refused because of others.
    fn take_over_purges(&mut self, state: &State) {
        let is_purged = |open: &&Open| {
            let is_durable = matches!(open.durability, Durability::DurableV1 | Durability::DurableV2);
            let real = state.opens_of_file(open.file).find(|other| caching_key(other) == open.holder);
            let has_lost_handle_caching =
                real.is_some_and(|real| !Letters::from(real.description.oplock).has('H'));
            let is_breaking = state.break_under_way(open.holder).is_some();
            open.until.is_some()
                && is_durable
                && state.open(open.id).is_none()
                && (!self.wished(open.holder).is_empty()
                    || self.given_up.contains(&open.holder)
                    || has_lost_handle_caching
                    || is_breaking)
        };
        for id in self.opens.iter().filter(is_purged).map(|open| open.id).collect::<Vec<_>>() {
            self.close(id);
        }
    }

    fn take_over_open(&mut self, place: usize, state: &State) -> Check {
        let locks = self.locks_of(&self.opens[place]).of(self.opens[place].id);
        let open = &mut self.opens[place];
        let id = open.id;
        let real = state.open(id).ok_or_else(|| format!("{id} is not there"))?;
        let description = &real.description;
        ensure!(description.file == open.file, "{id} is of another file");
        ensure!(caching_key(real) == open.holder, "{id} caches as {}", caching_key(real));
        ensure!(description.granted_access == open.access, "{id} may do something else");
        ensure!(description.share_access == open.share_access, "{id} shares something else");
        let mut real_locks = description.byte_range_locks.clone();
        let mut locks = locks;
        real_locks.sort_unstable();
        locks.sort_unstable();
        ensure!(real_locks == locks, "{id} locks {real_locks:?} instead of {locks:?}");
        let sequences = Sequences::from_array(&description.lock_sequence_array);
        ensure!(sequences == open.sequences, "{id} has another lock sequence array");
        match real.state {
            OpenState::Connected { owner, session } => {
                ensure!(
                    open.connected.map(|(owner, _)| owner) == Some(owner),
                    "{id} is connected to {owner}"
                );
                ensure!(open.connected.map(|(_, session)| session) == session, "{id} is in another session");
            }
            OpenState::Disconnected { durable_open_scavenger_timeout: until, .. } => {
                ensure!(open.until == Some(until), "{id} waits until {until} instead of {:?}", open.until);
            }
        }
        // Which opens are durable, and what files are called, is not this model's to say.
        open.durability = description.durability;
        open.timeout = description.durable_open_timeout;
        open.oplock = description.oplock;
        open.path = Arc::clone(&description.path);
        Ok(())
    }

    fn take_over_caching(&mut self, place: usize, state: &State) -> Check {
        let wished = self.wished(self.cachings[place].holder);
        let presence = self.presence(self.cachings[place].holder);
        let (now, limits) = (self.now, self.limits);
        let is_given_up = self.given_up.contains(&self.cachings[place].holder);
        let caching = &mut self.cachings[place];
        let (holder, had) = (caching.holder, caching.letters.clone());
        let real = state.opens_of_file(caching.file).find(|open| caching_key(open) == holder);
        let real = real.ok_or_else(|| format!("{holder} is not there"))?;
        let has = Letters::from(real.description.oplock);
        let under_way = state.break_under_way(holder);

        let rest = caching.breaking.as_ref().map_or(&had, |breaking| &breaking.required);
        let at_least = rest.after_losing(&wished);
        if has != had {
            // Read caching alone is given up without an acknowledgement, and by who is away as much as is wished, or all.
            let is_lost = presence == Presence::Away(Durability::Resilient);
            let is_told =
                caching.breaking.is_none() && under_way.is_none() && (is_lost || had == letters("R"));
            let is_enough = at_least.is_within(&has)
                || (is_lost && has.is_empty() && (is_given_up || !wished.is_empty()));
            ensure!(is_told && is_enough && has.is_within(&had), "{holder}: {had} became {has}");
            caching.letters = has.clone();
        }
        let Some(under_way) = under_way else {
            ensure!(caching.breaking.is_none(), "{holder}: the break is over without a reason");
            return Ok(());
        };
        let (to, required) = (Letters::from(under_way.to), Letters::from(under_way.required));
        match &caching.breaking {
            Some(before) => {
                ensure!(before.to == to, "{holder} was told {} and now {to}", before.to);
                ensure!(required.is_within(&before.required), "{holder}: {required} is more than before");
            }
            None => ensure!(to.is_within(&has) && to != has, "{holder} has {has} and is broken to {to}"),
        }
        ensure!(required.is_within(&to), "{holder} is broken to {to}, then to {required}");
        ensure!(
            at_least.is_within(&required),
            "{holder} has {has} and is broken to {required}, {wished} would do"
        );
        match (presence, under_way.ack_until) {
            (Presence::Connected, Some(until)) => {
                let longest = limits
                    .break_timeout
                    .max(limits.persistent_oplock_break_timeout)
                    .max(limits.persistent_lease_break_timeout);
                let before = caching.breaking.as_ref().and_then(|breaking| breaking.until);
                match before {
                    Some(before) => ensure!(before == until, "{holder}: the time for its break has moved"),
                    None => ensure!(until > now && until <= now.after(longest), "{holder} has until {until}"),
                }
            }
            (Presence::Away(Durability::Persistent), None) => {}
            (presence, until) => {
                return Err(format!("{holder} is {presence:?} and has until {until:?} to acknowledge"));
            }
        }
        caching.breaking = Some(Breaking { to, required, until: under_way.ack_until });
        Ok(())
    }

    fn what_was_taken_is_given_up(&self) -> Check {
        for (holder, taken) in &self.taken {
            let Some(caching) = self.caching(*holder) else { continue };
            let left = caching.breaking.as_ref().map_or(&caching.letters, |breaking| &breaking.required);
            ensure!(left.common(taken).is_empty(), "{holder} goes on caching {left}, and {taken} was taken");
        }
        Ok(())
    }

    /// Who waits, waits for the acknowledgement of somebody.
    fn nobody_waits_for_nothing(&self) -> Check {
        for waiting in &self.waiting {
            let obstacles = self.obstacles_to(waiting);
            let is_asked = |(holder, _): &(BreakTarget, Letters)| {
                self.caching(*holder).is_some_and(|caching| caching.breaking.is_some())
            };
            let (owner, sequence) = (waiting.owner, waiting.sequence);
            ensure!(obstacles.may_wait, "{owner}#{sequence} waits, though {obstacles:?}");
            ensure!(obstacles.wishes.iter().any(is_asked), "{owner}#{sequence} waits and nobody is asked");
        }
        Ok(())
    }

    // ---- looking things up ----

    /// An open that a client has through this owner.
    fn connected(&mut self, owner: Owner, id: DurableFileId) -> Option<&mut Open> {
        let is_it =
            |open: &&mut Open| open.id == id && open.connected.is_some_and(|(through, _)| through == owner);
        self.opens.iter_mut().find(is_it)
    }

    fn opens_of_file(&self, file: FileKey) -> impl Iterator<Item = &Open> {
        self.opens.iter().filter(move |open| open.file == file)
    }

    fn opens_of(&self, holder: BreakTarget) -> impl Iterator<Item = &Open> {
        self.opens.iter().filter(move |open| open.holder == holder)
    }

    pub(crate) fn caching(&self, holder: BreakTarget) -> Option<&Caching> {
        self.cachings.iter().find(|caching| caching.holder == holder)
    }

    fn caching_mut(&mut self, holder: BreakTarget) -> Option<&mut Caching> {
        self.cachings.iter_mut().find(|caching| caching.holder == holder)
    }

    fn presence(&self, holder: BreakTarget) -> Presence {
        let mut promised = BTreeSet::new();
        for open in self.opens_of(holder) {
            if open.connected.is_some() {
                return Presence::Connected;
            }
            promised.insert(match open.durability {
                Durability::Persistent => 2,
                Durability::Resilient => 1,
                _ => 0,
            });
        }
        Presence::Away(match promised.last() {
            Some(2) => Durability::Persistent,
            Some(1) => Durability::Resilient,
            _ => Durability::DurableV2,
        })
    }

    fn locks_of(&self, open: &Open) -> Locks {
        let locks = self.locks.iter().find(|(file, _)| *file == open.file);
        locks.map(|(_, locks)| locks.clone()).unwrap_or_default()
    }

    fn locks_of_file(&mut self, file: FileKey) -> &mut Locks {
        let place = self.locks.iter().position(|(other, _)| *other == file).unwrap_or_else(|| {
            self.locks.push((file, Locks::default()));
            self.locks.len() - 1
        });
        &mut self.locks[place].1
    }
}

impl Seen<'_> {
    /// The id of an open that this command makes, now or when it has waited: what it is, is the state's to choose.
    fn new_open(&self) -> DurableFileId {
        const CHOSEN_BY_THE_CLUSTER: u64 = 1 << 63;
        let index = self.state.applied().map_or(0, |applied| applied.index);
        DurableFileId(CHOSEN_BY_THE_CLUSTER | index)
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
fn sees_attributes_only(access: AccessMask, is_lease: bool) -> bool {
    let read_control = if is_lease { 0x2_0000 } else { 0 };
    access.0 & !(0x80 | 0x100 | 0x10_0000 | read_control) == 0
}

fn lease_of(create: &Create) -> Option<BreakTarget> {
    let lease = create.requested.lease()?;
    Some(BreakTarget::Lease(LeaseId { client_guid: create.client.client_guid, key: lease.key }))
}

fn caching_key(open: &statedb::Open) -> BreakTarget {
    let id = open.description.durable_file_id;
    open.description.lease_id().map_or(BreakTarget::Oplock(id), BreakTarget::Lease)
}

fn same_opens(what: &str, expected: &[DurableFileId], real: &[DurableFileId]) -> Check {
    let sorted = |opens: &[DurableFileId]| opens.iter().map(|id| id.0).collect::<BTreeSet<_>>();
    let (expected, real) = (sorted(expected), sorted(real));
    ensure!(expected == real, "{what} are {real:?} instead of {expected:?}");
    Ok(())
}

fn expect(outcome: &Outcome, expected: &Outcome) -> Check {
    ensure!(outcome == expected, "{outcome} instead of {expected}");
    Ok(())
}

fn expect_status(outcome: &Outcome, allowed: &[u32]) -> Check {
    let status = match outcome {
        Outcome::Rejected(rejection) => Some(rejection.ntstatus()),
        _ => None,
    };
    let is_allowed = status.is_some_and(|status| allowed.contains(&status));
    ensure!(is_allowed, "{outcome} ({status:#x?}) instead of one of {allowed:#x?}");
    Ok(())
}

fn expect_refused(outcome: &Outcome) -> Check {
    ensure!(matches!(outcome, Outcome::Rejected(_)), "{outcome}, and it is somebody else's");
    Ok(())
}
