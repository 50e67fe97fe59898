//! A client comes back for its open.
//!
//! An SMB server that decides itself has compared what it knows: the user, the ClientGuid, the lease context and the
//! name. It reports the reclaim ([`State::reclaim`]), and here is decided what only the cluster knows: whether the
//! open is still there to be had, and whether this node is the one to have it. For one that lets the cluster decide
//! all of it is decided here, in the order of MS-SMB2 3.3.5.9.7 and 3.3.5.9.12 ([`State::reconnect`]).
//!
//! Of two survivors that both try, the log puts one first, and the other meets a connected open. A refusal changes
//! nothing: the open stays for whom it waits for.

use super::breaks::BreakTarget;
use super::command::Reclaim;
use super::contexts::Reconnect;
use super::create::{Create, DurableReconnectV2};
use super::event::{CloseReason, EventKind};
use super::ids::{DurableFileId, Owner, SessionId};
use super::node::Arbiter;
use super::open::{CreateAction, Durability, Open, OpenDescription, OpenState};
use super::outcome::{Opened, OpenedHow, Outcome, Rejection};
use super::state::State;
use super::time::Timestamp;

impl State {
    pub(super) fn reclaim(&mut self, owner: Owner, reclaim: &Reclaim) -> Result<Outcome, Rejection> {
        let id = reclaim.durable_file_id;
        let open = self.opens.get(id).ok_or(Rejection::OpenNotFound(id))?;
        if open.arbiter == Arbiter::Cluster {
            return Err(Rejection::WrongArbiter);
        }
        check_reclaimable(open, reclaim, self.now)?;
        // A client that has left a living node may have its open through another that has the same records.
        if let Some(keeper) = open.holder()
            && keeper != owner
            && !self.has_records_of(owner, open)
        {
            return Err(Rejection::NotOwner { open: id, holder: Some(keeper) });
        }
        self.check_serving_node(owner, &open.description.share)?;
        // From here on it is decided by who has it: another kind of server may have kept it before.
        let arbiter = self.arbiter_of(owner);
        if open.arbiter != arbiter {
            self.put_open(Open { arbiter, ..open.clone() });
        }
        self.client_is_back(id, owner, None);
        Ok(Outcome::Reclaimed)
    }

    /// A client wants an open back, and the cluster decides. It gets what it had: its lease with the epoch that it had,
    /// for the lease was replicated and not rebuilt from the request.
    pub(super) fn reconnect(
        &mut self,
        owner: Owner,
        create: &Create,
        reconnect: Reconnect,
    ) -> Result<Outcome, Rejection> {
        let open = self.wanted_open(create, reconnect)?;
        let id = open.description.durable_file_id;
        let is_delete_on_close =
            open.description.delete_on_close || self.deletes.contains_key(&open.description.file);
        check_reconnect(open, create, reconnect, is_delete_on_close)?;
        check_cluster_decides(open)?;
        let opened = Opened {
            durable_file_id: id,
            how: OpenedHow::Reconnected,
            create_action: CreateAction::Opened,
            oplock: open.description.oplock,
            is_lease_breaking: self.is_lease_breaking(&open.description),
            durable: None,
        };
        self.hand_over(id, owner, create.client.session);
        Ok(Outcome::Opened(opened))
    }

    /// The open that a client names, if it is still there to be had through this share. For a persistent one the
    /// CreateGuid is enough: its client may never have heard of the id.
    fn wanted_open(&self, create: &Create, reconnect: Reconnect) -> Result<&Open, Rejection> {
        let id = match reconnect {
            Reconnect::V1(id) | Reconnect::V2(DurableReconnectV2 { durable_file_id: id, .. }) => id,
        };
        let by_id = self.opens.get(id);
        let by_create_guid = || match reconnect {
            Reconnect::V2(DurableReconnectV2 { create_guid, persistent: true, .. })
                if create.share.continuously_available && create.client.persistent_handles =>
            {
                self.opens
                    .of_create_guid(create.client.client_guid, create_guid)
                    .find(|open| open.description.durability == Durability::Persistent)
            }
            Reconnect::V1(_) | Reconnect::V2(_) => None,
        };
        by_id
            .or_else(by_create_guid)
            .filter(|open| open.description.share == create.share.name && !has_expired(open, self.now))
            .ok_or(Rejection::OpenNotFound(id))
    }

    /// Gives an open to a client that has come for it, in a session of `owner`. The SMB server that has had it so far
    /// is told, unless that is the one that gets it and knows.
    pub(super) fn hand_over(&mut self, id: DurableFileId, owner: Owner, session: SessionId) {
        let Some(open) = self.opens.get(id) else { return };
        let (holder, was_connected) = (open.holder(), open.connected_through().is_some());
        if was_connected {
            self.lose_connection(id, None);
        }
        if holder.is_some_and(|holder| was_connected || holder != owner) {
            self.tell(holder, EventKind::OpenClosed { open: id, reason: CloseReason::Reclaimed });
        }
        self.client_is_back(id, owner, Some(session));
    }

    /// Whether the answer to a client says SMB2_LEASE_FLAG_BREAK_IN_PROGRESS. A break that waits for a client to return
    /// is announced to it after the answer.
    pub(super) fn is_lease_breaking(&self, open: &OpenDescription) -> bool {
        let under_way = open.lease_id().and_then(|lease| self.breaks.get(BreakTarget::Lease(lease)));
        under_way.is_some_and(|under_way| under_way.ack_until.is_some())
    }
}

/// The checks of MS-SMB2 3.3.5.9.12 that are the cluster's, in its order, then those that are ours.
fn check_reclaimable(open: &Open, reclaim: &Reclaim, now: Timestamp) -> Result<(), Rejection> {
    let id = reclaim.durable_file_id;
    // The CreateGuid is compared before the state, so that a stranger who probes DurableFileIds cannot
    // learn which of them are connected.
    if open.description.create_guid != reclaim.create_guid {
        return Err(Rejection::CreateGuidMismatch(id));
    }
    if let Some(owner) = open.connected_through() {
        return Err(Rejection::OpenConnected { open: id, owner });
    }
    // Neither of the two is to be had any more, whether or not somebody has committed that yet: its time
    // is up, or it lost its handle caching while its client was away.
    if has_expired(open, now) || !open.description.outlives_its_connection() {
        return Err(Rejection::OpenNotFound(id));
    }
    Ok(())
}

/// An open that an SMB server has decided on itself is given back by that, or by one of its kind. The others let any of
/// them have it: a client need not return to the node that it has left, even if that keeps its open still.
pub(super) fn check_cluster_decides(open: &Open) -> Result<(), Rejection> {
    if open.arbiter != Arbiter::Cluster {
        return Err(Rejection::NotOwner { open: open.description.durable_file_id, holder: open.holder() });
    }
    Ok(())
}

/// Whether the time of a disconnected open is up, whether or not somebody has committed that yet.
pub(super) fn has_expired(open: &Open, now: Timestamp) -> bool {
    open.deadline().is_some_and(|deadline| deadline <= now)
}

/// The checks of MS-SMB2 3.3.5.9.7 (`DHnC`) or 3.3.5.9.12 (`DH2C`) on the open that was found, in the order in which a
/// client can tell them apart: all that end in OBJECT_NAME_NOT_FOUND, then the name, then the user. The text compares
/// the name earlier for `DHnC`; clients know it as it is here.
fn check_reconnect(
    open: &Open,
    create: &Create,
    reconnect: Reconnect,
    is_delete_on_close: bool,
) -> Result<(), Rejection> {
    let description = &open.description;
    check_client_guid(description, create)?;
    if let Reconnect::V2(reconnect) = reconnect {
        check_persistent_flag(description, reconnect)?;
        // An open of version 1 has a CreateGuid of zero, and can be named by that.
        if description.create_guid != reconnect.create_guid {
            return Err(Rejection::CreateGuidMismatch(description.durable_file_id));
        }
    }
    // From here on both versions are alike. An open of either can be had back by either.
    if description.durability == Durability::NotDurable {
        return Err(Rejection::NotKept(description.durable_file_id));
    }
    check_session(open, create, reconnect)?;
    check_lease_context(description, create)?;
    if !description.outlives_its_connection() {
        return Err(Rejection::NotKept(description.durable_file_id));
    }
    check_lease(description, create)?;
    if description.oplock.lease().is_some() && !is_delete_on_close && description.path != create.path {
        return Err(Rejection::PathMismatch(description.durable_file_id));
    }
    if description.durable_owner != create.client.user {
        return Err(Rejection::UserMismatch(description.durable_file_id));
    }
    Ok(())
}

/// A lease is its client's; an oplock goes with the open.
fn check_client_guid(open: &OpenDescription, create: &Create) -> Result<(), Rejection> {
    if open.oplock.lease().is_some() && open.client_guid != create.client.client_guid {
        return Err(Rejection::ClientGuidMismatch(open.durable_file_id));
    }
    Ok(())
}

fn check_persistent_flag(open: &OpenDescription, reconnect: DurableReconnectV2) -> Result<(), Rejection> {
    let is_persistent = open.durability == Durability::Persistent;
    match (is_persistent, reconnect.persistent) {
        (true, false) => Err(Rejection::PersistentFlagMissing(open.durable_file_id)),
        (false, true) => Err(Rejection::PersistentFlagMismatch(open.durable_file_id)),
        (true, true) | (false, false) => Ok(()),
    }
}

/// An open that a session has is not to be had; but for a persistent one, whose client may know of the loss of a
/// connection, or of a node, before the cluster does. It comes with another session then.
fn check_session(open: &Open, create: &Create, reconnect: Reconnect) -> Result<(), Rejection> {
    let OpenState::Connected { owner, session } = open.state else { return Ok(()) };
    let is_persistent = open.description.durability == Durability::Persistent;
    let is_v2 = matches!(reconnect, Reconnect::V2(_));
    if is_persistent && is_v2 && session != Some(create.client.session) {
        return Ok(());
    }
    Err(Rejection::OpenConnected { open: open.description.durable_file_id, owner })
}

fn check_lease_context(open: &OpenDescription, create: &Create) -> Result<(), Rejection> {
    if open.oplock.lease().is_some() != create.requested.lease().is_some() {
        return Err(Rejection::LeaseContextMismatch(open.durable_file_id));
    }
    Ok(())
}

/// The state that is asked for is not looked at.
fn check_lease(open: &OpenDescription, create: &Create) -> Result<(), Rejection> {
    match (open.oplock.lease(), create.requested.lease()) {
        (Some(held), Some(named)) if (held.key, held.version) != (named.key, named.version) => {
            Err(Rejection::LeaseKeyMismatch(open.durable_file_id))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::create::CreateContexts;
    use crate::state::fixtures::{
        self, DEADLINE, ID, OWNER, SESSION, connected, create, dh2c, disconnected, every_oplock, lease,
    };
    use crate::state::ids::{ClientGuid, CreateGuid, LeaseKey, Sid};
    use crate::state::open::{AccessMask, CreateOptions, ShareAccess};
    use crate::state::oplock::{Lease, LeaseState, LeaseVersion, Oplock, OplockState};

    const V1: Reconnect = Reconnect::V1(ID);
    const V2: Reconnect = Reconnect::V2(DurableReconnectV2 {
        durable_file_id: ID,
        create_guid: fixtures::CREATE_GUID,
        persistent: false,
    });
    const V2_PERSISTENT: Reconnect = Reconnect::V2(DurableReconnectV2 {
        durable_file_id: ID,
        create_guid: fixtures::CREATE_GUID,
        persistent: true,
    });
    const RH: u32 = LeaseState::READ | LeaseState::HANDLE;

    /// The client that made the open comes back for it.
    fn returning(requested: Oplock) -> Create {
        create(requested, CreateContexts::default())
    }

    fn check(open: &Open, create: &Create, reconnect: Reconnect) -> Result<(), Rejection> {
        check_reconnect(open, create, reconnect, open.description.delete_on_close)
    }

    fn lease_with(edit: impl FnOnce(&mut Lease)) -> Oplock {
        let mut lease = lease(RH).lease().expect("a lease");
        edit(&mut lease);
        Oplock::Lease(lease)
    }

    fn v2(create_guid: CreateGuid, persistent: bool) -> Reconnect {
        Reconnect::V2(DurableReconnectV2 { create_guid, ..dh2c(persistent) })
    }

    /// Both forms, each with an open that is right and one thing wrong with the request.
    ///
    /// row 4.2.4: DHnC, another ClientGuid.
    /// row 4.2.5: DHnC, another name.
    /// row 4.2.6: DHnC, a lease on one side only.
    /// row 4.2.10: DHnC, another lease key or version.
    /// row 4.2.11: DHnC, another user.
    /// row 4.3.3: DH2C, another ClientGuid.
    /// row 4.3.9: DH2C, a lease on one side only.
    /// row 4.3.11: DH2C, another lease key or version.
    /// row 4.3.12: DH2C, another name.
    /// row 4.3.13: DH2C, another user.
    /// row 4.1.oplock: with an oplock the name is not looked at.
    #[test]
    fn a_request_with_one_thing_wrong_is_refused_for_that() {
        let with_lease = returning(lease(RH));
        let with_oplock = returning(Oplock::Batch);
        let other_user = |mut create: Create| {
            create.client.user = Sid("S-1-5-21-1-2-3-1001".into());
            create
        };
        let other_client = |mut create: Create| {
            create.client.client_guid = ClientGuid([2; 16]);
            create
        };
        let other_name = |mut create: Create| {
            create.path = "".into();
            create
        };
        let other_key = returning(lease_with(|lease| lease.key = LeaseKey([8; 16])));
        let other_version = returning(lease_with(|lease| lease.version = LeaseVersion::V1));
        for (oplock, request, expected) in [
            (lease(RH), with_lease.clone(), Ok(())),
            (lease(RH), other_client(with_lease.clone()), Err(Rejection::ClientGuidMismatch(ID))),
            (lease(RH), with_oplock.clone(), Err(Rejection::LeaseContextMismatch(ID))),
            (lease(RH), other_key, Err(Rejection::LeaseKeyMismatch(ID))),
            (lease(RH), other_version, Err(Rejection::LeaseKeyMismatch(ID))),
            (lease(RH), other_name(with_lease.clone()), Err(Rejection::PathMismatch(ID))),
            (lease(RH), other_user(with_lease.clone()), Err(Rejection::UserMismatch(ID))),
            (Oplock::Batch, with_oplock.clone(), Ok(())),
            (Oplock::Batch, other_client(with_oplock.clone()), Ok(())),
            (Oplock::Batch, with_lease, Err(Rejection::LeaseContextMismatch(ID))),
            (Oplock::Batch, other_name(with_oplock.clone()), Ok(())),
            (Oplock::Batch, other_user(with_oplock), Err(Rejection::UserMismatch(ID))),
        ] {
            for reconnect in [V1, V2] {
                let open = disconnected(oplock, Durability::DurableV2);
                assert_eq!(check(&open, &request, reconnect), expected, "{oplock} {reconnect:?}");
            }
            let open = disconnected(oplock, Durability::Persistent);
            assert_eq!(check(&open, &request, V2_PERSISTENT), expected, "{oplock}, persistent");
        }
    }

    /// With everything wrong at once, what is found first decides; then it is put right, and the next is found.
    ///
    /// row 4.2.5: DHnC, the name comes after everything about the lease.
    /// row 4.3.12: DH2C, likewise.
    /// row 4.2.11: DHnC, the user comes last.
    /// row 4.3.13: DH2C, likewise.
    #[test]
    fn checks_come_in_their_order() {
        let mut open = connected(lease(RH), Durability::DurableV2, SESSION);
        open.description.oplock = lease(LeaseState::READ);
        let mut request = returning(Oplock::Batch);
        request.client.client_guid = ClientGuid([2; 16]);
        request.client.user = Sid("S-1-5-21-1-2-3-1001".into());
        request.path = "other.txt".into();
        let mut reconnect = dh2c(true);
        reconnect.create_guid = CreateGuid::default();

        let mut refused_for = Vec::new();
        for _ in 0..16 {
            let Err(rejection) = check(&open, &request, Reconnect::V2(reconnect)) else { break };
            match rejection {
                Rejection::ClientGuidMismatch(_) => request.client.client_guid = open.description.client_guid,
                Rejection::PersistentFlagMismatch(_) => reconnect.persistent = false,
                Rejection::CreateGuidMismatch(_) => reconnect.create_guid = fixtures::CREATE_GUID,
                Rejection::OpenConnected { .. } => {
                    open.state = disconnected(lease(RH), Durability::DurableV2).state
                }
                Rejection::LeaseContextMismatch(_) => {
                    request.requested = lease_with(|lease| lease.key = LeaseKey([8; 16]));
                }
                Rejection::NotKept(_) => open.description.oplock = lease(RH),
                Rejection::LeaseKeyMismatch(_) => request.requested = lease(RH),
                Rejection::PathMismatch(_) => request.path = open.description.path.clone(),
                Rejection::UserMismatch(_) => request.client.user = open.description.durable_owner.clone(),
                ref other => panic!("not a refusal of a reconnect: {other}"),
            }
            refused_for.push(rejection);
        }
        let expected = [
            Rejection::ClientGuidMismatch(ID),
            Rejection::PersistentFlagMismatch(ID),
            Rejection::CreateGuidMismatch(ID),
            Rejection::OpenConnected { open: ID, owner: OWNER },
            Rejection::LeaseContextMismatch(ID),
            Rejection::NotKept(ID),
            Rejection::LeaseKeyMismatch(ID),
            Rejection::PathMismatch(ID),
            Rejection::UserMismatch(ID),
        ];
        assert_eq!(refused_for, expected);
        // Only these two are told apart from "there is no such open" by a client of version 1.
        let told_apart = refused_for.iter().map(Rejection::ntstatus).filter(|status| *status != 0xC000_0034);
        assert_eq!(told_apart.collect::<Vec<_>>(), [0xC000_000D, 0xC000_000D, 0xC000_0022]);
    }

    /// Every durability with every oplock and lease, held and breaking.
    ///
    /// row 4.2.7: DHnC, durable without lease needs BATCH.
    /// row 4.2.8: DHnC, durable with a lease needs H.
    /// row 4.2.9: DHnC, it is durable or resilient at all.
    /// row 4.3.7: DH2C, it is durable or resilient at all.
    /// row 4.3.10: DH2C, BATCH or H.
    #[test]
    fn an_open_comes_back_if_it_is_one_that_is_kept() {
        for oplock in every_oplock() {
            for oplock_state in [OplockState::Held, OplockState::Breaking] {
                for (durability, reconnects) in [
                    (Durability::NotDurable, [V1, v2(CreateGuid::default(), false)]),
                    (Durability::DurableV1, [V1, v2(CreateGuid::default(), false)]),
                    (Durability::DurableV2, [V1, V2]),
                    (Durability::Resilient, [V1, v2(CreateGuid::default(), false)]),
                    (Durability::Persistent, [V1, V2_PERSISTENT]),
                ] {
                    let mut open = disconnected(oplock, durability);
                    open.description.oplock_state = oplock_state;
                    let has_h = ["batch", "H", "RH", "WH", "RWH"].contains(&oplock.to_string().as_str());
                    let expected = match durability {
                        Durability::NotDurable => Err(Rejection::NotKept(ID)),
                        Durability::Resilient | Durability::Persistent => Ok(()),
                        _ if has_h && oplock_state == OplockState::Held => Ok(()),
                        _ => Err(Rejection::NotKept(ID)),
                    };
                    for reconnect in reconnects {
                        assert_eq!(
                            check(&open, &returning(oplock), reconnect),
                            expected,
                            "{durability} {oplock} {oplock_state} {reconnect:?}"
                        );
                    }
                }
            }
        }
    }

    /// row 4.3.4: a persistent open needs the flag.
    /// row 4.3.5: the flag needs a persistent open.
    /// row 4.3.6: another CreateGuid.
    /// row 4.3.v2-by-v1: DHnC names no CreateGuid.
    /// row 4.3.v1-by-guid: an open of version 1 has a CreateGuid of zero.
    /// row 4.3.v1-by-zero: by which it can be had.
    /// row 4.3.v2-by-zero: an open of version 2 has not.
    #[test]
    fn flag_and_create_guid_are_those_of_the_open() {
        let (guid, other, zero) = (fixtures::CREATE_GUID, CreateGuid([8; 16]), CreateGuid::default());
        let missing = Err(Rejection::PersistentFlagMissing(ID));
        let mismatch = Err(Rejection::PersistentFlagMismatch(ID));
        let other_guid = Err(Rejection::CreateGuidMismatch(ID));
        for (durability, reconnect, expected) in [
            (Durability::DurableV1, V1, &Ok(())),
            (Durability::DurableV1, v2(zero, false), &Ok(())),
            (Durability::DurableV1, v2(guid, false), &other_guid),
            (Durability::DurableV1, v2(zero, true), &mismatch),
            (Durability::DurableV2, V1, &Ok(())),
            (Durability::DurableV2, v2(guid, false), &Ok(())),
            (Durability::DurableV2, v2(other, false), &other_guid),
            (Durability::DurableV2, v2(zero, false), &other_guid),
            (Durability::DurableV2, v2(guid, true), &mismatch),
            (Durability::DurableV2, v2(other, true), &mismatch),
            (Durability::Persistent, V1, &Ok(())),
            (Durability::Persistent, v2(guid, true), &Ok(())),
            (Durability::Persistent, v2(guid, false), &missing),
            (Durability::Persistent, v2(other, true), &other_guid),
            (Durability::Persistent, v2(other, false), &missing),
        ] {
            let open = disconnected(Oplock::Batch, durability);
            let checked = check(&open, &returning(Oplock::Batch), reconnect);
            assert_eq!(checked, *expected, "{durability} {reconnect:?}");
        }
    }

    /// row 4.2.9: DHnC, no session has it.
    /// row 4.3.8: DH2C, likewise.
    /// row 4.3.8.persistent: but a persistent one is taken over by another session.
    #[test]
    fn an_open_that_a_session_has_is_taken_over_if_it_is_persistent_alone() {
        let connected_there = Err(Rejection::OpenConnected { open: ID, owner: OWNER });
        for (durability, reconnect, session, expected) in [
            (Durability::DurableV1, V1, SESSION, &connected_there),
            (Durability::DurableV1, V1, SessionId(1), &connected_there),
            (Durability::DurableV2, V2, SESSION, &connected_there),
            (Durability::DurableV2, V2, SessionId(1), &connected_there),
            (Durability::Resilient, V1, SessionId(1), &connected_there),
            (Durability::Persistent, V1, SessionId(1), &connected_there),
            (Durability::Persistent, V2_PERSISTENT, SESSION, &connected_there),
            (Durability::Persistent, V2_PERSISTENT, SessionId(1), &Ok(())),
        ] {
            let open = connected(Oplock::Batch, durability, session);
            let checked = check(&open, &returning(Oplock::Batch), reconnect);
            assert_eq!(checked, *expected, "{durability} {reconnect:?} {session}");
        }
    }

    /// row 5.3.name: the name of a file that is to be deleted may be gone already.
    #[test]
    fn the_name_of_a_file_that_is_to_be_deleted_is_not_compared() {
        let open = disconnected(lease(RH), Durability::DurableV2);
        let request = Create { path: "other.txt".into(), ..returning(lease(RH)) };
        for reconnect in [V1, V2] {
            assert_eq!(check_reconnect(&open, &request, reconnect, false), Err(Rejection::PathMismatch(ID)));
            assert_eq!(check_reconnect(&open, &request, reconnect, true), Ok(()));
        }
    }

    /// row 4.1.oplock: whatever else is asked for.
    /// row 4.1.lease: likewise, the state of the lease too.
    #[test]
    fn what_else_a_reconnect_asks_for_is_not_looked_at() {
        let different = |requested| Create {
            durable_file_id: Some(DurableFileId(1)),
            granted_access: AccessMask::default(),
            share_access: ShareAccess(7),
            create_options: CreateOptions(0x1000),
            create_action: CreateAction::Superseded,
            is_directory: true,
            is_replay: true,
            allocation_size: 1,
            ..returning(requested)
        };
        for reconnect in [V1, V2] {
            let open = disconnected(Oplock::Batch, Durability::DurableV2);
            for requested in [Oplock::None, Oplock::LevelII, Oplock::Exclusive, Oplock::Batch] {
                assert_eq!(check(&open, &different(requested), reconnect), Ok(()), "{requested}");
            }
            let open = disconnected(lease(RH), Durability::DurableV2);
            for requested in (0..8).map(lease) {
                assert_eq!(check(&open, &different(requested), reconnect), Ok(()), "{requested}");
            }
        }
    }

    /// row 3.3.durable: no timer runs while it is connected.
    /// row 3.3.minimum: before its time is up, the open stays.
    #[test]
    fn time_runs_for_a_disconnected_open_alone() {
        let away = disconnected(Oplock::Batch, Durability::DurableV2);
        let there = connected(Oplock::Batch, Durability::DurableV2, SESSION);
        for (now, expected) in [(0, false), (DEADLINE.0 - 1, false), (DEADLINE.0, true), (u64::MAX, true)] {
            assert_eq!(has_expired(&away, Timestamp(now)), expected, "{now}");
            assert!(!has_expired(&there, Timestamp(now)), "{now}");
        }
    }

    #[test]
    fn an_open_that_an_smb_server_has_decided_on_is_that_ones_to_give_back() {
        for (arbiter, is_to_be_had) in
            [(Arbiter::Cluster, true), (Arbiter::SmbServer, false), (Arbiter::SmbCluster, false)]
        {
            let open = Open { arbiter, ..disconnected(Oplock::Batch, Durability::DurableV2) };
            assert_eq!(check_cluster_decides(&open).is_ok(), is_to_be_had, "{arbiter}");
        }
    }
}
