//! Never two owners: what must be true of the answers, whatever made them.
//!
//! It knows nothing of shares, deadlines, oplocks or locks; only who was told to own what, who was told to be no more,
//! and what was answered before.

use std::collections::{BTreeMap, BTreeSet};

use statedb::{
    Arbiter, CloseReason, Command, DurableFileId, Event, EventKind, Incarnation, Instance, NodeId, Opened,
    OpenedHow, Outcome, Owner, Proposer, Rejection, Request,
};

/// What proposers were told.
#[derive(Default)]
pub(crate) struct Reference {
    pub(crate) owners: BTreeMap<DurableFileId, Owner>,
    live: BTreeMap<NodeId, Incarnation>,
    fenced: Vec<Owner>,
    instances: BTreeMap<(NodeId, Instance), Incarnation>,
    /// Those that have their records together.
    together: BTreeSet<Owner>,
    answers: BTreeMap<(Owner, u64), Outcome>,
    waiting: BTreeMap<(Owner, u64), Request>,
    events: u64,
    /// Who has lost an open to its client's next session and has not been told yet.
    taken_over: BTreeSet<(DurableFileId, Owner)>,
}

impl Reference {
    pub(crate) fn observe(&mut self, command: &Command, outcome: &Outcome, events: &[Event]) {
        match command {
            Command::RegisterNode { node, instance, arbiter } => {
                if let Outcome::Registered { incarnation, .. } = outcome {
                    let owner = Owner { node: *node, incarnation: *incarnation };
                    // What the first start has said counts, whatever its next sidecar says.
                    if !self.instances.contains_key(&(*node, *instance)) && *arbiter == Arbiter::SmbCluster {
                        self.together.insert(owner);
                    }
                    let known = *self.instances.entry((*node, *instance)).or_insert(*incarnation);
                    assert_eq!(known, *incarnation, "one instance has two incarnations");
                    self.registered(owner);
                }
            }
            Command::NodeDown { node, incarnation } => {
                let owner = Owner { node: *node, incarnation: *incarnation };
                if self.live.get(node) == Some(incarnation) {
                    self.fence(owner);
                }
            }
            Command::ExpireOpens => {
                let Outcome::Expired { closed, .. } = outcome else { panic!("{command}: {outcome}") };
                assert!(closed.iter().all(|open| !self.owners.contains_key(open)), "an owned open expired");
            }
            Command::FromSmbNode { proposer, request } => self.answered(proposer, request, outcome),
        }
        for event in events {
            self.events += 1;
            assert_eq!(event.sequence, self.events, "the events are not counted from 1 without a gap");
            self.happened(event);
        }
        assert!(self.taken_over.is_empty(), "{:?} have lost opens and are not told", self.taken_over);
    }

    fn registered(&mut self, owner: Owner) {
        assert!(!self.fenced.contains(&owner), "{owner} was fenced and is registered again");
        match self.live.get(&owner.node) {
            Some(incarnation) if *incarnation == owner.incarnation => return,
            Some(incarnation) => self.fence(Owner { node: owner.node, incarnation: *incarnation }),
            None => {}
        }
        self.live.insert(owner.node, owner.incarnation);
    }

    fn fence(&mut self, owner: Owner) {
        self.live.remove(&owner.node);
        self.owners.retain(|_, other| *other != owner);
        self.waiting.retain(|(other, _), _| *other != owner);
        self.fenced.push(owner);
    }

    fn answered(&mut self, proposer: &Proposer, request: &Request, outcome: &Outcome) {
        let owner = proposer.owner;
        if self.live.get(&owner.node) != Some(&owner.incarnation) {
            let is_fenced = matches!(outcome, Outcome::Rejected(Rejection::Fenced { .. }));
            assert!(is_fenced, "{owner} is not up and was answered {outcome}");
            return;
        }
        let is_no_answer = matches!(
            outcome,
            Outcome::Rejected(Rejection::AnswerForgotten { .. } | Rejection::TooManyOutstanding { .. })
        );
        if is_no_answer {
            return;
        }
        let key = (owner, proposer.sequence);
        if let Some(first) = self.answers.get(&key) {
            assert_eq!(first, outcome, "{proposer} got two answers");
            return;
        }
        self.answers.insert(key, outcome.clone());
        if *outcome == Outcome::BreakPending {
            self.waiting.insert(key, request.clone());
        }
        self.decided(owner, request, outcome);
    }

    fn happened(&mut self, event: &Event) {
        if let Some(to) = event.to {
            assert_eq!(self.live.get(&to.node), Some(&to.incarnation), "{to} is not up and is told {event}");
        }
        match (&event.kind, event.to) {
            (EventKind::RequestFinished { sequence, outcome }, Some(owner)) => {
                let request = self.waiting.remove(&(owner, *sequence)).expect("what is finished has waited");
                assert_ne!(*outcome, Outcome::BreakPending, "a request that is finished waits");
                self.answers.insert((owner, *sequence), outcome.clone());
                self.decided(owner, &request, outcome);
            }
            // Who had it or kept it is told that its client has it elsewhere now.
            (EventKind::OpenClosed { open, reason: CloseReason::Reclaimed }, Some(owner)) => {
                self.taken_over.remove(&(*open, owner));
            }
            (EventKind::OpenClosed { open, .. }, Some(owner)) => {
                let other = self.owners.remove(open).filter(|other| *other != owner);
                assert_eq!(other, None, "{owner} is told of the end of an open of another");
            }
            _ => {}
        }
    }

    fn decided(&mut self, owner: Owner, request: &Request, outcome: &Outcome) {
        match (request, outcome) {
            (Request::Grant(open), Outcome::Granted) => self.take(open.durable_file_id, owner),
            (Request::Reclaim(reclaim), Outcome::Reclaimed) => self.take(reclaim.durable_file_id, owner),
            (Request::Create(_), Outcome::Opened(Opened { durable_file_id, how, .. })) => match how {
                OpenedHow::Created => self.take(*durable_file_id, owner),
                // The client may know before its SMB server that the connection is lost.
                OpenedHow::Reconnected => {
                    let before = self.owners.insert(*durable_file_id, owner);
                    self.taken_over.extend(before.map(|before| (*durable_file_id, before)));
                }
                OpenedHow::Replayed => {
                    let holder = self.owners.get(durable_file_id);
                    assert_eq!(holder, Some(&owner), "{owner} got another's open by a replay");
                }
            },
            (Request::Update(update), Outcome::Updated) => {
                for open in &update.opens {
                    let other = self.owners.get(&open.durable_file_id);
                    let other = other.filter(|other| !self.may_speak_for(owner, **other));
                    assert_eq!(other, None, "{owner} changed an open of another");
                }
            }
            (Request::Close(open), Outcome::Closed) => {
                let other = self.owners.remove(open).filter(|other| !self.may_speak_for(owner, *other));
                assert_eq!(other, None, "{owner} closed an open of another");
            }
            (Request::Disconnect(open), Outcome::Disconnected { .. } | Outcome::Closed) => {
                let other = self.owners.remove(open).filter(|other| *other != owner);
                assert_eq!(other, None, "{owner} took an open from its owner");
            }
            (
                Request::EndSession(_) | Request::EndTreeConnect { .. },
                Outcome::SessionEnded { disconnected, closed },
            ) => {
                for open in disconnected.iter().chain(closed) {
                    let had = self.owners.remove(open);
                    assert_eq!(had, Some(owner), "{owner} ended the session of another");
                }
            }
            // Whoever had the session, on whichever node, has it no more.
            (Request::ReplaceSession { .. }, Outcome::SessionEnded { disconnected, closed }) => {
                for open in disconnected.iter().chain(closed) {
                    assert!(self.owners.remove(open).is_some(), "an open without an owner was in a session");
                }
            }
            (_, Outcome::Rejected(_))
            | (Request::Create(_), Outcome::BreakPending | Outcome::DeleteFirst { .. })
            | (Request::Operate { .. }, Outcome::BreakPending | Outcome::Proceed)
            | (Request::Cancel { .. }, Outcome::Cancelled)
            | (Request::AckOplockBreak { .. } | Request::AckLeaseBreak { .. }, Outcome::BreakAcknowledged)
            | (Request::Lock(_), Outcome::Locked { .. })
            | (Request::Note(_) | Request::FileDeleted(_), Outcome::Updated)
            | (Request::RequestResiliency { .. }, Outcome::Resilient { .. })
            | (Request::ServeShare(_), Outcome::ShareServed)
            | (Request::ReleaseShare(_), Outcome::ShareServed | Outcome::ShareReleased) => {}
            _ => panic!("{outcome} is no answer to {request}"),
        }
    }

    fn may_speak_for(&self, owner: Owner, other: Owner) -> bool {
        owner == other || (self.together.contains(&owner) && self.together.contains(&other))
    }

    fn take(&mut self, open: DurableFileId, owner: Owner) {
        let before = self.owners.insert(open, owner);
        assert_eq!(before, None, "open {open} was given to {owner} while somebody had it");
    }
}
