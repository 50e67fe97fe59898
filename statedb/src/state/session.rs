//! The end of a session, or of a tree connect, and what becomes of the opens in it.
//!
//! Sessions are no table of the state: they die with their node. An open carries the id of the session that has it, and
//! that is enough to find the opens of a session which its client has replaced, through whichever node it comes back.

use std::collections::BTreeSet;

use super::event::EventKind;
use super::ids::{DurableFileId, Owner, SessionId, ShareName, Sid};
use super::open::Open;
use super::outcome::Outcome;
use super::state::State;
use super::waiting::Awaited;

impl State {
    /// The last connection of a session of `owner` is lost, or its client has logged off (MS-SMB2 3.3.7.1, 3.3.5.6):
    /// the same for its opens.
    pub(super) fn end_session(&mut self, owner: Owner, session: SessionId) -> Outcome {
        self.cancel_waiting_of_session(owner, session);
        self.lose_opens(owner, self.ids_of_session(session, |open| open.connected_through() == Some(owner)))
    }

    /// A client has set up another session, with `owner`, in the place of `previous` (MS-SMB2 3.3.5.5.3). That one is
    /// over wherever it was; but for one of another user, which is none of this client's business.
    pub(super) fn replace_session(&mut self, owner: Owner, previous: SessionId, user: &Sid) -> Outcome {
        let hosts = self.hosts_of_session(previous, user);
        for host in &hosts {
            self.cancel_waiting_of_session(*host, previous);
        }
        let outcome = self
            .lose_opens(owner, self.ids_of_session(previous, |open| open.description.durable_owner == *user));
        for host in hosts.into_iter().filter(|host| *host != owner) {
            self.tell(Some(host), EventKind::SessionReplaced { session: previous });
        }
        outcome
    }

    /// A client has disconnected from a share (MS-SMB2 3.3.5.8): it does not want its opens there back, whatever they
    /// were promised.
    pub(super) fn end_tree_connect(
        &mut self,
        owner: Owner,
        session: SessionId,
        share: &ShareName,
    ) -> Outcome {
        let closed = self.ids_of_session(session, |open| {
            open.connected_through() == Some(owner) && open.description.share == *share
        });
        for id in &closed {
            self.close_open(*id, None);
        }
        Outcome::SessionEnded { disconnected: Vec::new(), closed }
    }

    /// Keeps or closes opens that have lost their session, as the protocol says. What lived in the SMB server of `owner`
    /// goes on living there; the others are orphans, so that any node may have them.
    fn lose_opens(&mut self, owner: Owner, ids: Vec<DurableFileId>) -> Outcome {
        let (mut disconnected, mut closed) = (Vec::new(), Vec::new());
        for id in ids {
            let holder = self.opens.get(id).and_then(Open::holder);
            match self.lose_connection(id, holder.filter(|holder| *holder == owner)) {
                Some(_) => disconnected.push(id),
                None => closed.push(id),
            }
        }
        Outcome::SessionEnded { disconnected, closed }
    }

    fn ids_of_session(&self, session: SessionId, is_meant: impl Fn(&Open) -> bool) -> Vec<DurableFileId> {
        let opens = self.opens.of_session(session).filter(|open| is_meant(open));
        opens.map(|open| open.description.durable_file_id).collect()
    }

    /// Where a session of this user is: at the SMB servers through which it has opens, or waits for some.
    fn hosts_of_session(&self, session: SessionId, user: &Sid) -> BTreeSet<Owner> {
        let opens = self.opens.of_session(session).filter(|open| open.description.durable_owner == *user);
        let waiting = self.waiting.iter().filter(|waiting| match &waiting.awaited {
            Awaited::Create { create, .. } => create.client.session == session && create.client.user == *user,
            // That is through an open, which is found as such.
            Awaited::Operation { .. } => false,
        });
        opens.filter_map(Open::holder).chain(waiting.map(|waiting| waiting.owner)).collect()
    }
}
