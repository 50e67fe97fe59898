//! What the specification leaves open is taken over from the real state, and all the rest compared with it.

use std::sync::Arc;

use statedb::{Awaited, BreakTarget, Durability, OpenState, State};

use super::expect::{Check, ensure, same_opens};
use super::obstacles::Obstacles;
use super::{Breaking, Cluster, Open, Presence, Waiting, caching_key};
use crate::model::letters::{Letters, letters};
use crate::model::locks::Sequences;

impl Cluster {
    pub(super) fn wishes_of_who_waits(&mut self) {
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

    pub(super) fn wished(&self, holder: BreakTarget) -> Letters {
        let wishes = self.wishes.iter().filter(|(other, _)| *other == holder);
        wishes.fold(Letters::default(), |all, (_, wish)| all.and(wish))
    }

    /// Compares all there is with the real state.
    pub(super) fn take_over(&mut self, state: &State) -> Check {
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
            // Read caching alone is given up without an acknowledgement, and by who is away as much as is wished, or
            // all.
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

    pub(super) fn what_was_taken_is_given_up(&self) -> Check {
        for (holder, taken) in &self.taken {
            let Some(caching) = self.caching(*holder) else { continue };
            let left = caching.breaking.as_ref().map_or(&caching.letters, |breaking| &breaking.required);
            ensure!(left.common(taken).is_empty(), "{holder} goes on caching {left}, and {taken} was taken");
        }
        Ok(())
    }

    /// Who waits, waits for the acknowledgement of somebody.
    pub(super) fn nobody_waits_for_nothing(&self) -> Check {
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
}
