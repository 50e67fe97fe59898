//! Who may open a file, and what he may cache of it.

use std::sync::Arc;

use statedb::{
    BreakTarget, Create, CreateAction, Durability, DurableFileId, Millis, Opened, OpenedHow, Oplock, Outcome,
    Owner,
};

use super::expect::{Check, ensure, expect_status, status};
use super::obstacles::sees_attributes_only;
use super::{Caching, Cluster, Open, lease_of};
use crate::model::letters::{Letters, letters};
use crate::model::locks::Sequences;

impl Cluster {
    pub(super) fn create(
        &mut self,
        owner: Owner,
        id: DurableFileId,
        create: &Create,
        outcome: &Outcome,
    ) -> Check {
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
            Some(caching) => {
                if caching.letters != granted {
                    // What was taken a moment ago is given again, now that it can be.
                    self.taken.retain(|(other, _)| *other != holder);
                }
                caching.letters = granted;
            }
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
            directory: create.parent_directory,
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
        if create.create_action != CreateAction::Opened {
            self.directory_has_changed(id, true);
        }
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
        let mut asked = Letters::from(create.requested);
        if create.is_directory {
            // No oplock on a directory, and nobody caches writes to one (MS-FSA 2.1.5.18).
            let is_lease = create.requested.lease().is_some();
            asked = if is_lease { asked.without(&letters("W")) } else { letters("") };
        }
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
}
