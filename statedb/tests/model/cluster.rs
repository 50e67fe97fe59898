//! The cluster as the specification describes a single server, in lists that are searched from one end to the other.
//!
//! [`Cluster::follow`] is told a command and what the real state made of it. Where the specification leaves one answer,
//! that has to be the answer. Where it leaves several (how much of what was asked for is granted, in how many steps a
//! holder is asked to give up what it caches, which of two reasons to refuse is told) the real one is taken over, if it
//! is among those.

mod breaks;
mod expect;
mod losing;
mod obstacles;
mod opening;
mod operations;
mod take_over;

use std::collections::BTreeSet;
use std::sync::Arc;

use statedb::{
    AccessMask, Awaited, BreakTarget, ClientGuid, Command, Create, CreateGuid, Durability, DurableFileId,
    FileKey, Incarnation, LeaseId, Limits, Millis, NodeId, Oplock, Outcome, Owner, Proposer, Request,
    SessionId, ShareAccess, State, Timestamp,
};

use super::letters::{Letters, letters};
use super::locks::{Locks, Sequences};
use expect::{Check, ensure, expect, expect_refused, expect_status, same_opens, status};

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
    /// The directory that the file is in.
    directory: Option<FileKey>,
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

fn lease_of(create: &Create) -> Option<BreakTarget> {
    let lease = create.requested.lease()?;
    Some(BreakTarget::Lease(LeaseId { client_guid: create.client.client_guid, key: lease.key }))
}

fn caching_key(open: &statedb::Open) -> BreakTarget {
    let id = open.description.durable_file_id;
    open.description.lease_id().map_or(BreakTarget::Oplock(id), BreakTarget::Lease)
}
