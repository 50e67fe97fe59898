//! The end of a session, or of a tree connect, and what becomes of the opens in it.
//!
//! Sessions are no table of the state: they die with their node. An open carries the id of the session that has it, and
//! that is enough to find the opens of a session which its client has replaced, through whichever node it comes back.

use std::collections::BTreeSet;

use super::event::EventKind;
use super::ids::{DurableFileId, Owner, SessionId, ShareName, Sid};
use super::open::Open;
use super::outcome::{Outcome, Rejection};
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
        self.cancel_waiting_of_tree_connect(owner, session, share);
        for id in &closed {
            self.close_open(*id, None);
        }
        Outcome::SessionEnded { disconnected: Vec::new(), closed }
    }

    /// What waits to be opened would have no tree connect to be opened in.
    fn cancel_waiting_of_tree_connect(&mut self, owner: Owner, session: SessionId, share: &ShareName) {
        for index in self.waiting.of_owner(owner) {
            if let Some(Awaited::Create { create, .. }) =
                self.waiting.get(index).map(|waiting| &waiting.awaited)
                && create.client.session == session
                && create.share.name == *share
            {
                self.cancel_waiting(index, Rejection::Cancelled);
            }
        }
    }

    /// Keeps or closes opens that have lost their session, as the protocol says. What lived in the SMB server of
    /// `owner` goes on living there; the others are orphans, so that any node may have them.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::command::{Command, Proposer, Request};
    use crate::state::create::{Create, CreateContexts};
    use crate::state::fixtures::{OWNER, SESSION, create};
    use crate::state::ids::{ClientGuid, FileKey, Instance, LogId};
    use crate::state::limits::Limits;
    use crate::state::node::Arbiter;
    use crate::state::oplock::Oplock;
    use crate::state::time::Timestamp;

    const OTHER_SESSION: SessionId = SessionId(71);

    /// A state with one SMB server, of which everything is asked.
    struct Asked(State);

    impl Asked {
        fn new() -> Self {
            let mut asked = Self(State::new(Limits::DEFAULT));
            let instance = Instance([1; 16]);
            asked.apply(Command::RegisterNode { node: OWNER.node, instance, arbiter: Arbiter::Cluster });
            asked
        }

        fn apply(&mut self, command: Command) -> Outcome {
            let index = self.0.applied().map_or(0, |applied| applied.index + 1);
            let outcome = self.0.apply(LogId { term: 1, index }, Timestamp(0), &command);
            self.0.check_invariants();
            outcome
        }

        fn ask(&mut self, request: Request) -> Outcome {
            let sequence = self.0.applied().map_or(0, |applied| applied.index);
            let proposer = Proposer { owner: OWNER, sequence, first_outstanding: 0 };
            self.apply(Command::FromSmbNode { proposer, request })
        }

        /// Somebody has a batch oplock on one file in each of two shares, and each of two sessions waits for both.
        fn with_two_sessions_that_wait_for_two_shares() -> Self {
            let mut asked = Self::new();
            for (inode, share) in [(1, "data"), (2, "scratch")] {
                for (client, session) in [(1, SessionId(1)), (2, SESSION), (2, OTHER_SESSION)] {
                    let mut create = Create {
                        file: FileKey { device: 1, inode, extid: 0 },
                        ..create(Oplock::Batch, CreateContexts::default())
                    };
                    create.share.name = ShareName::new(share);
                    create.client.client_guid = ClientGuid([client; 16]);
                    create.client.session = session;
                    asked.ask(Request::Create(Box::new(create)));
                }
            }
            assert_eq!(asked.waiting().len(), 4);
            asked
        }

        /// The sessions and shares of the CREATEs that wait.
        fn waiting(&self) -> Vec<(SessionId, &str)> {
            let creates = self.0.waiting.iter().filter_map(|waiting| match &waiting.awaited {
                Awaited::Create { create, .. } => Some((create.client.session, create.share.name.as_str())),
                Awaited::Operation { .. } => None,
            });
            creates.collect()
        }
    }

    #[test]
    fn the_end_of_a_session_ends_its_waiting() {
        let mut asked = Asked::with_two_sessions_that_wait_for_two_shares();
        asked.ask(Request::EndSession(SESSION));
        assert_eq!(asked.waiting(), [(OTHER_SESSION, "data"), (OTHER_SESSION, "scratch")]);
    }

    #[test]
    fn the_end_of_a_tree_connect_ends_the_waiting_for_its_share() {
        let mut asked = Asked::with_two_sessions_that_wait_for_two_shares();
        asked.ask(Request::EndTreeConnect { session: SESSION, share: ShareName::new("data") });
        assert_eq!(
            asked.waiting(),
            [(OTHER_SESSION, "data"), (SESSION, "scratch"), (OTHER_SESSION, "scratch")]
        );
    }

    /// row 3.1.takeover.other-user: the session of another user is left alone, with what waits in it.
    #[test]
    fn a_session_that_is_replaced_waits_no_more_unless_it_is_another_users() {
        let mut asked = Asked::with_two_sessions_that_wait_for_two_shares();
        let waiting_before = asked.waiting().len();
        let user = create(Oplock::None, CreateContexts::default()).client.user;
        let replace = |user| Request::ReplaceSession { previous: SESSION, user };
        asked.ask(replace(Sid("S-1-1-0".into())));
        assert_eq!(asked.waiting().len(), waiting_before);
        asked.ask(replace(user));
        assert_eq!(asked.waiting(), [(OTHER_SESSION, "data"), (OTHER_SESSION, "scratch")]);
    }
}
