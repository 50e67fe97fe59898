//! A break that is asked for and not waited for.
//!
//! Who changes a file asks those to let go that cache reads of it, by a message, and goes on at once. What becomes of the message
//! is for the process that gets it to say; if it dies before its client has heard, the client comes back for a cache that is
//! stale. So the cluster hears of such a break before the message is sent. The lease is known then as the receiver is going to
//! store it, which is no news any more when he does. An open whose break is under way ends with its connection (MS-SMB2
//! 3.3.7.1), and if its client was lost in that very moment it is not put back
//! ([`LeaseRecord::may_be_outdated`](samba::records::LeaseRecord::may_be_outdated)).
//!
//! Nobody gets the message for an open whose client is away, and MS-SMB2 3.3.4.7 closes it.

use samba::records::{OplockBreak, ServerId, lease_record_key};
use statedb::Arbiter;

use super::*;

impl Capture {
    /// Answers a process of `smbd` that is about to send a message by which `receiver` is asked to break an oplock or a lease.
    ///
    /// # Errors
    ///
    /// If the process cannot be asked for what is missing.
    pub async fn break_asked(
        &self,
        receiver: ServerId,
        message: &[u8],
        connection: &mut Connection,
    ) -> Result<Reply, ConnectionError> {
        let told = match OplockBreak::decode(message) {
            Some(asked) => self.lease_asked_for(asked, receiver, connection).await,
            None => Err(Refused::Message),
        };
        match told {
            Ok(()) => {}
            Err(Refused::Connection(error)) => return Err(error),
            // Nothing that it does may be heard of any more.
            Err(Refused::Request(RequestError::Ended)) => return Ok(Reply::Fence),
            Err(refused) => {
                warn!(pid = connection.pid(), reason = %chain(&refused), "a break cannot be noted: if its holder dies at once, its client is not told of it");
            }
        }
        Ok(Reply::Proceed)
    }

    async fn lease_asked_for(
        &self,
        asked: OplockBreak,
        receiver: ServerId,
        connection: &mut Connection,
    ) -> Result<(), Refused> {
        // What somebody waits for is noted by the receiver, or by who goes on without him.
        if asked.break_to.has_read_caching() {
            return Ok(());
        }
        let record = self.share_modes_of(asked.file, connection).await?;
        let lease = asked.entry_in(&record, receiver).and_then(|entry| entry.lease());
        let Some((client_guid, lease_key)) = lease else { return Ok(()) };
        let key = lease_record_key(client_guid, lease_key);
        let _in_order = self.stripes(&self.files_behind(Database::Leases, &key)).await;
        for local in self.behind(Database::Leases, &key) {
            let id = local.description.durable_file_id;
            if local.process.is_none() {
                self.close_outdated(id, &local.description, asked).await?;
                continue;
            }
            match self.report(local, |image| break_lease(image, asked)).await {
                Ok(local) => self.opens().insert(local),
                // Closed meanwhile, or another node's.
                Err(Refused::Rejected(outcome)) => {
                    debug!(durable_file_id = %id, %outcome, "a break is too late");
                }
                Err(refused) => return Err(refused),
            }
        }
        self.common_lease_asked_for(&key, asked).await
    }

    /// The same for opens under the lease that other nodes have, or nobody.
    async fn common_lease_asked_for(&self, key: &[u8], asked: OplockBreak) -> Result<(), Refused> {
        loop {
            let mut changed = Update::default();
            for open in self.not_local_behind(key) {
                let is_away = open.deadline().is_some();
                let description = open.description;
                if is_away {
                    self.close_outdated(description.durable_file_id, &description, asked).await?;
                    continue;
                }
                let mut image = OpenImage::decode_for(self.settings.layout, &description.image)?;
                if break_lease(&mut image, asked)? == Changed::Changed {
                    changed.replaces.push(ImageDigest::of(&description.image));
                    changed.opens.push(described(&image, &description));
                }
            }
            if changed.opens.is_empty() {
                return Ok(());
            }
            let (log_id, outcome) = self.proposer.propose(Request::Update(changed)).await?;
            match outcome {
                Outcome::Updated => return Ok(()),
                // Somebody else was faster.
                Outcome::Rejected(Rejection::OpenChanged(_) | Rejection::OpenNotFound(_)) => {
                    self.raft.applied_through(log_id.index).await;
                }
                outcome => return Err(Refused::Rejected(outcome)),
            }
        }
    }

    /// The opens under a lease that this node does not have, and whose records it shares; or that wait here for their clients.
    fn not_local_behind(&self, key: &[u8]) -> Vec<Open> {
        let Some(lease) = keys::lease_id_of(key) else { return Vec::new() };
        let here = Some(ServingNode { owner: self.proposer.owner() });
        let mut opens: Vec<Open> = self.raft.read(|state| {
            let waits_here =
                |open: &Open| open.holder().is_none() && state.serving_node(&open.description.share) == here;
            let behind = state.opens_of_lease(lease);
            behind.filter(|open| open.arbiter == Arbiter::SmbCluster || waits_here(open)).cloned().collect()
        });
        let local = self.opens();
        opens.retain(|open| local.get(open.description.durable_file_id).is_none());
        opens
    }

    async fn close_outdated(
        &self,
        id: DurableFileId,
        description: &OpenDescription,
        asked: OplockBreak,
    ) -> Result<(), Refused> {
        let mut image = OpenImage::decode_for(self.settings.layout, &description.image)?;
        if break_lease(&mut image, asked)? == Changed::Changed {
            info!(durable_file_id = %id, "somebody changes the file of an open whose client is away");
            self.close(id).await?;
        }
        Ok(())
    }
}

/// Brings an image up to date with a break that nobody waits for.
fn break_lease(image: &mut OpenImage, asked: OplockBreak) -> Result<Changed, ImageError> {
    let is_waited_for = image.lease().is_none_or(|lease| lease.current_state.has_write_caching());
    if is_waited_for { Ok(Changed::Same) } else { image.break_lease(asked.break_to) }
}
