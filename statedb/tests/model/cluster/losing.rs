//! What is left of opens whose connection is lost, or that are closed.

use statedb::{Awaited, BreakTarget, Durability, DurableFileId, Outcome, Owner, SessionId};

use super::expect::{Check, ensure, same_opens};
use super::{Cluster, Open, Presence};

impl Cluster {
    pub(super) fn end_session(&mut self, owner: Owner, session: SessionId, outcome: &Outcome) -> Check {
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
    pub(super) fn lose_all(
        &mut self,
        is_lost: impl Fn(&Open) -> bool,
    ) -> (Vec<DurableFileId>, Vec<DurableFileId>) {
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
    pub(super) fn are_closed(&self, gone: &[DurableFileId], told: &[DurableFileId]) -> Check {
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
    pub(super) fn close(&mut self, id: DurableFileId) {
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
    pub(super) fn may_have_lost_handle_caching(&mut self, holder: BreakTarget) {
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
}
