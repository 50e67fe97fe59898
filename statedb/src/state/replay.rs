//! A CREATE that may have been made before: its client has lost the connection before it got the answer, and says with
//! SMB2_FLAGS_REPLAY_OPERATION that it asks again (MS-SMB2 3.3.5.9 and 3.3.5.9.10).
//!
//! An open is known again by ClientGuid and CreateGuid for as long as its client has not used it: who uses an open has
//! had the answer. After that the same CreateGuid is nothing special any more.

use super::create::{Create, DurableRequestV2};
use super::durability::{answer, wants_persistent};
use super::ids::{CreateGuid, Owner};
use super::open::{Durability, Open, OpenDescription, OpenState};
use super::oplock::Oplock;
use super::outcome::{Opened, OpenedHow, Outcome, Rejection};
use super::reclaim::{check_cluster_decides, has_expired};
use super::state::State;

impl State {
    /// Answers a CREATE that was made before; `None` if it is to be decided as a new one.
    pub(super) fn replay(&mut self, owner: Owner, create: &Create) -> Result<Option<Outcome>, Rejection> {
        let Some(request) = create.contexts.durable_request_v2 else { return Ok(None) };
        // A client that sends no CreateGuid cannot mean an earlier CREATE by it.
        if request.create_guid == CreateGuid::default() {
            return Ok(None);
        }
        if self.waiting.has(create.client.client_guid, request.create_guid) {
            return Err(Rejection::CreatePending);
        }
        let is_persistent_replay = create.is_replay && wants_persistent(create);
        let lost = || self.lost_persistent_open_of(create, request).filter(|_| is_persistent_replay);
        let Some(open) = self.open_of(create, request).or_else(lost) else {
            // Another open besides the one that the client may have would stand in its way.
            return if is_persistent_replay { Err(Rejection::NothingToReplay) } else { Ok(None) };
        };
        check_replay(open, create, request)?;
        let mut opened = answer_again(&open.description, create);
        opened.is_lease_breaking = self.is_lease_breaking(&open.description);
        if let OpenState::Disconnected { .. } = open.state {
            check_cluster_decides(open)?;
            opened.how = OpenedHow::Reconnected;
            self.hand_over(opened.durable_file_id, owner, create.client.session);
        }
        Ok(Some(Outcome::Opened(opened)))
    }

    /// The open that an earlier CREATE with the same CreateGuid has made, if it is still to be had and unused.
    fn open_of(&self, create: &Create, request: DurableRequestV2) -> Option<&Open> {
        self.opens.of_create_guid(create.client.client_guid, request.create_guid).find(|open| {
            let is_lost_for_good = open.connected_through().is_none()
                && (has_expired(open, self.now) || !open.description.outlives_its_connection());
            open.description.is_replay_eligible && !is_lost_for_good
        })
    }

    /// The persistent open that an earlier CREATE with the same CreateGuid has made, used or not, whose client is away.
    /// For that the replay is as good as a reconnect (MS-SMB2 3.3.5.9).
    fn lost_persistent_open_of(&self, create: &Create, request: DurableRequestV2) -> Option<&Open> {
        self.opens.of_create_guid(create.client.client_guid, request.create_guid).find(|open| {
            open.description.durability == Durability::Persistent
                && open.deadline().is_some()
                && !has_expired(open, self.now)
        })
    }
}

/// Whether the CREATE is the one that has made the open, made again by who may do so.
fn check_replay(open: &Open, create: &Create, request: DurableRequestV2) -> Result<(), Rejection> {
    let description = &open.description;
    let id = description.durable_file_id;
    if !create.is_replay {
        // Where every node serves the share, the client may have moved on before its open was found lost, and is to ask
        // again (smbtorture's replay5).
        let is_lost_persistent =
            open.deadline().is_some() && description.durability == Durability::Persistent;
        return Err(if is_lost_persistent && create.share.scale_out {
            Rejection::HeldByPersistentOpen(id)
        } else {
            Rejection::CreateGuidInUse(id)
        });
    }
    if let OpenState::Connected { session, .. } = open.state
        && session != Some(create.client.session)
    {
        return Err(Rejection::CreateGuidInUse(id));
    }
    if description.durable_owner != create.client.user {
        return Err(Rejection::UserMismatch(id));
    }
    if description.durability == Durability::Persistent && !request.persistent {
        return Err(Rejection::PersistentFlagMismatch(id));
    }
    let key_of = |oplock: Oplock| oplock.lease().map(|lease| lease.key);
    if description.share != create.share.name || key_of(description.oplock) != key_of(create.requested) {
        return Err(Rejection::ReplayMismatch(id));
    }
    // Share access, attributes, disposition and options are not compared. Windows does not do it either.
    Ok(())
}

/// What the client has not heard the first time. A lease is answered as it is now. Of an oplock a client may ask for
/// less this time, and is answered that; the open keeps its own, and nobody is ever told that he has more than
/// he has.
fn answer_again(open: &OpenDescription, create: &Create) -> Opened {
    let oplock = match open.oplock {
        held @ Oplock::Lease(_) => held,
        held if create.requested.caching().is_within(held.caching()) => create.requested,
        held => held,
    };
    Opened {
        durable_file_id: open.durable_file_id,
        how: OpenedHow::Replayed,
        create_action: open.create_action,
        oplock,
        is_lease_breaking: false,
        durable: answer(open.durability, open.durable_open_timeout, oplock),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::fixtures::{ID, SESSION, connected, create, dh2q, disconnected, every_oplock, lease};
    use crate::state::ids::{LeaseKey, SessionId, ShareName, Sid};
    use crate::state::open::{CreateAction, CreateOptions, ShareAccess};
    use crate::state::oplock::{Lease, LeaseState};
    use crate::state::outcome::DurableAnswer;
    use crate::state::time::Millis;

    const REQUEST: DurableRequestV2 = DurableRequestV2 {
        timeout: Millis(0),
        persistent: false,
        create_guid: crate::state::fixtures::CREATE_GUID,
    };

    fn replayed(requested: Oplock) -> Create {
        Create { is_replay: true, ..create(requested, dh2q(0, false)) }
    }

    fn check(open: &Open, create: &Create) -> Result<(), Rejection> {
        check_replay(open, create, REQUEST)
    }

    /// row 7.same-session.plain: without the flag.
    /// row 7.same-session.flag: with it.
    /// row 7.other-session.plain: without, in another session.
    /// row 7.other-session.flag: with it, in another session.
    /// row 7.lost.plain: without, after the loss.
    /// row 7.lost.flag: with it, after the loss.
    #[test]
    fn an_open_is_answered_again_to_a_replay_in_its_session_or_in_none() {
        let in_use = Err(Rejection::CreateGuidInUse(ID));
        for durability in [Durability::DurableV2, Durability::Persistent] {
            let request = DurableRequestV2 { persistent: durability == Durability::Persistent, ..REQUEST };
            for (open, is_replay, expected) in [
                (connected(Oplock::Batch, durability, SESSION), false, &in_use),
                (connected(Oplock::Batch, durability, SESSION), true, &Ok(())),
                (connected(Oplock::Batch, durability, SessionId(1)), false, &in_use),
                (connected(Oplock::Batch, durability, SessionId(1)), true, &in_use),
                (disconnected(Oplock::Batch, durability), false, &in_use),
                (disconnected(Oplock::Batch, durability), true, &Ok(())),
            ] {
                let create = Create { is_replay, ..create(Oplock::Batch, dh2q(0, false)) };
                assert_eq!(check_replay(&open, &create, request), *expected, "{} {is_replay}", open.state);
            }
        }
    }

    /// row 7.check.user: the user.
    #[test]
    fn another_user_gets_no_answer() {
        for open in [
            disconnected(Oplock::Batch, Durability::DurableV2),
            connected(Oplock::Batch, Durability::DurableV2, SESSION),
        ] {
            let mut create = replayed(Oplock::Batch);
            create.client.user = Sid("S-1-5-21-1-2-3-1001".into());
            assert_eq!(check(&open, &create), Err(Rejection::UserMismatch(ID)), "{}", open.state);
        }
    }

    /// row 7.check.lease: on one side only, or another key. The state does not matter.
    #[test]
    fn a_replay_names_the_lease_of_the_open_or_none() {
        let mut other_key = lease(LeaseState::READ);
        if let Oplock::Lease(Lease { key, .. }) = &mut other_key {
            *key = LeaseKey([8; 16]);
        }
        for held in every_oplock() {
            for requested in every_oplock().into_iter().chain([other_key]) {
                let is_same = match (held.lease(), requested.lease()) {
                    (None, None) => true,
                    (Some(held), Some(requested)) => held.key == requested.key,
                    _ => false,
                };
                let expected = if is_same { Ok(()) } else { Err(Rejection::ReplayMismatch(ID)) };
                let open = connected(held, Durability::DurableV2, SESSION);
                assert_eq!(check(&open, &replayed(requested)), expected, "{held}, replayed with {requested}");
            }
        }
    }

    /// row 7.persistent-bit: the replay of a persistent open asks for a persistent one. The other way round is what a
    /// client does where no persistent ones are granted.
    #[test]
    fn the_replay_of_a_persistent_open_says_so() {
        for (durability, persistent, expected) in [
            (Durability::DurableV2, false, Ok(())),
            (Durability::DurableV2, true, Ok(())),
            (Durability::Persistent, false, Err(Rejection::PersistentFlagMismatch(ID))),
            (Durability::Persistent, true, Ok(())),
        ] {
            let open = connected(Oplock::Batch, durability, SESSION);
            let request = DurableRequestV2 { persistent, ..REQUEST };
            let checked = check_replay(&open, &replayed(Oplock::Batch), request);
            assert_eq!(checked, expected, "{durability} persistent={persistent}");
        }
    }

    /// row 7.check.parameters: they are not compared.
    #[test]
    fn a_replay_may_differ_in_what_the_open_does_not_take_from_it() {
        let open = connected(Oplock::Batch, Durability::DurableV2, SESSION);
        let replay = replayed(Oplock::Batch);
        for replay in [
            Create { share_access: ShareAccess(7), ..replay.clone() },
            Create { create_options: CreateOptions(0x40), ..replay.clone() },
            Create { create_action: CreateAction::Opened, ..replay.clone() },
            Create { is_directory: true, ..replay.clone() },
            Create { path: "other.txt".into(), ..replay.clone() },
        ] {
            assert_eq!(check(&open, &replay), Ok(()));
            assert_eq!(answer_again(&open.description, &replay).create_action, CreateAction::Created);
        }
    }

    #[test]
    fn a_replay_comes_through_the_share_of_the_open() {
        let open = disconnected(Oplock::Batch, Durability::DurableV2);
        let mut replay = replayed(Oplock::Batch);
        replay.share.name = ShareName::new("scratch");
        assert_eq!(check(&open, &replay), Err(Rejection::ReplayMismatch(ID)));
    }

    /// Every oplock asked for again, against every one that is held.
    ///
    /// row 7.check.level: the level asked for is answered, with DH2Q if it had been durable.
    #[test]
    fn an_oplock_is_answered_as_asked_for_and_never_above_the_one_held() {
        use Oplock::{Batch, Exclusive, LevelII, None};
        for (held, answers) in [
            (None, [None, None, None, None]),
            (LevelII, [None, LevelII, LevelII, LevelII]),
            (Exclusive, [None, LevelII, Exclusive, Exclusive]),
            (Batch, [None, LevelII, Exclusive, Batch]),
        ] {
            for (requested, expected) in [None, LevelII, Exclusive, Batch].into_iter().zip(answers) {
                let open = connected(held, Durability::DurableV2, SESSION).description;
                let answer = answer_again(&open, &replayed(requested));
                let durable = (expected == Batch)
                    .then_some(DurableAnswer::V2 { timeout: open.durable_open_timeout, persistent: false });
                assert_eq!((answer.oplock, answer.durable), (expected, durable), "{held}, asked {requested}");
            }
        }
    }

    /// row 7.answer.lease: a lease is answered as it is now, whatever is asked for.
    #[test]
    fn a_lease_is_answered_as_it_is() {
        for held in (0..8).map(lease) {
            for requested in (0..8).map(lease) {
                let open = connected(held, Durability::DurableV2, SESSION).description;
                assert_eq!(answer_again(&open, &replayed(requested)).oplock, held, "asked {requested}");
            }
        }
    }
}
