//! What a new open is promised: whether, and for how long, it outlives its connection (MS-SMB2 3.3.5.9.6 and
//! 3.3.5.9.10).
//!
//! What was *granted* decides, not what was asked for: without handle caching nobody could be told to give the
//! handle up, so a durable open has BATCH or a lease with H. A persistent one needs neither, because others
//! have to wait for its client anyhow. Share access and desired access have no say.

use super::create::Create;
use super::limits::Limits;
use super::open::{AccessMask, Durability};
use super::oplock::{Lease, LeaseState, Oplock};
use super::outcome::DurableAnswer;
use super::time::Millis;

/// `Open.DurableOpenTimeout` of an open of version 1, of which the client learns nothing. That of Windows 7 and of
/// Samba (MS-SMB2 appendix A, note on 3.3.5.9.6).
const DURABLE_V1_TIMEOUT: Millis = Millis(16 * 60 * 1000);

/// The longest that a client may ask for with version 2; longer ones are cut to it.
const DURABLE_V2_TIMEOUT_MAX: Millis = Millis(300_000);

/// What a client gets with version 2 if neither it nor the share says how long. That of Windows (MS-SMB2 appendix A,
/// note on 3.3.5.9.10).
const DURABLE_V2_TIMEOUT_DEFAULT: Millis = Millis(60_000);

/// Access to data, or to the file's existence: what an open must have for its CREATE to be replayed.
const DATA_OR_DELETE: u32 = AccessMask::READ_DATA
    | AccessMask::WRITE_DATA
    | AccessMask::APPEND_DATA
    | AccessMask::EXECUTE
    | AccessMask::DELETE;

/// What a new open is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GrantedDurability {
    /// The promise.
    pub(super) durability: Durability,
    /// How long the open outlives its connection; zero if it does not.
    pub(super) timeout: Millis,
    /// The context that is answered.
    pub(super) answer: Option<DurableAnswer>,
    /// `Open.IsReplayEligible`. Not only for a durable open: whoever sends a CreateGuid may have to repeat its
    /// CREATE, whatever it was granted.
    pub(super) is_replay_eligible: bool,
}

/// What the open of `create` is promised, if `granted` is what it may cache.
pub(super) fn grant(create: &Create, granted: Oplock, limits: &Limits) -> GrantedDurability {
    let durability = durability(create, granted);
    let timeout = match (durability, create.contexts.durable_request_v2) {
        (Durability::NotDurable, _) => Millis(0),
        (_, None) => DURABLE_V1_TIMEOUT,
        (_, Some(request)) => timeout_v2(request.timeout, create.share.ca_timeout),
    };
    let timeout = timeout.min(limits.durable_open_timeout_max);
    GrantedDurability {
        durability,
        timeout,
        answer: answer(durability, timeout, granted),
        is_replay_eligible: is_replay_eligible(create, durability),
    }
}

/// The context that an open of this durability is answered with, to a client that is told that it may cache
/// `answered`. A replay may be told of less than the open has, and then hears of no durability that hangs on it.
pub(super) fn answer(durability: Durability, timeout: Millis, answered: Oplock) -> Option<DurableAnswer> {
    match durability {
        Durability::Persistent => Some(DurableAnswer::V2 { timeout, persistent: true }),
        Durability::DurableV2 if answered.has_handle_caching() => {
            Some(DurableAnswer::V2 { timeout, persistent: false })
        }
        Durability::DurableV1 if answered.has_handle_caching() => Some(DurableAnswer::V1),
        Durability::DurableV1 | Durability::DurableV2 | Durability::Resilient | Durability::NotDurable => {
            None
        }
    }
}

/// What is left of the requested oplock or lease where the share rules some of it out. To be applied before anything
/// is granted or broken.
///
/// On a share that all nodes serve at once (scale-out), clients get read caching at most (MS-SMB2 3.3.5.9, 3.3.5.9.8
/// and 3.3.5.9.11): BATCH and EXCLUSIVE become level II, a lease loses W and H, and one that has no R then is not
/// granted any state.
pub(super) fn allowed_by_share(create: &Create) -> Oplock {
    if !create.share.scale_out {
        return create.requested;
    }
    match create.requested {
        Oplock::None => Oplock::None,
        Oplock::LevelII | Oplock::Exclusive | Oplock::Batch => Oplock::LevelII,
        Oplock::Lease(lease) => {
            Oplock::Lease(Lease { state: lease.state.and(LeaseState(LeaseState::READ)), ..lease })
        }
    }
}

/// Whether a CREATE asks for a persistent open where there are any. Elsewhere the flag means nothing.
pub(super) fn wants_persistent(create: &Create) -> bool {
    let is_flagged = create.contexts.durable_request_v2.is_some_and(|request| request.persistent);
    is_flagged
        && create.share.continuously_available
        && create.client.persistent_handles
        && !create.is_directory
}

fn durability(create: &Create, granted: Oplock) -> Durability {
    if wants_persistent(create) {
        return Durability::Persistent;
    }
    if create.is_directory || !granted.has_handle_caching() {
        return Durability::NotDurable;
    }
    match create.contexts.durable_request_v2 {
        Some(_) => Durability::DurableV2,
        // A lease may have H from another open. Who has not asked for it has not asked for this.
        None if create.contexts.durable_request && create.requested.has_handle_caching() => {
            Durability::DurableV1
        }
        None => Durability::NotDurable,
    }
}

fn timeout_v2(requested: Millis, ca_timeout: Option<Millis>) -> Millis {
    match (requested, ca_timeout) {
        (Millis(0), None | Some(Millis(0))) => DURABLE_V2_TIMEOUT_DEFAULT,
        (Millis(0), Some(ca_timeout)) => ca_timeout,
        (requested, _) => requested.min(DURABLE_V2_TIMEOUT_MAX),
    }
}

/// An open that can do nothing to data or name needs no protection from being made twice.
fn is_replay_eligible(create: &Create, durability: Durability) -> bool {
    let can_do_harm = !create.is_directory && create.granted_access.0 & DATA_OR_DELETE != 0;
    create.contexts.durable_request_v2.is_some() && (durability == Durability::Persistent || can_do_harm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::create::CreateContexts;
    use crate::state::fixtures::{create, dh2q, every_oplock, lease};
    use crate::state::open::ShareAccess;
    use crate::state::oplock::OplockLevel;

    const DHNQ: CreateContexts = CreateContexts {
        durable_request: true,
        durable_reconnect: None,
        durable_request_v2: None,
        durable_reconnect_v2: None,
    };

    fn granted(create: &Create, granted: Oplock) -> GrantedDurability {
        grant(create, granted, &Limits::DEFAULT)
    }

    /// BATCH, and every lease with H.
    fn has_h(oplock: Oplock) -> bool {
        ["batch", "H", "RH", "WH", "RWH"].contains(&oplock.to_string().as_str())
    }

    /// Everything that can be asked for, with everything that can be granted of it.
    ///
    /// row 2.2.1: DHnQ without BATCH or H asked for is ignored.
    /// row 2.2.3: what was granted decides.
    /// row 2.2.5: DHnQ is answered with DHnQ.
    #[test]
    fn v1_is_granted_where_handle_caching_was_asked_for_and_granted() {
        for requested in every_oplock() {
            for oplock in every_oplock() {
                let expected = if has_h(requested) && has_h(oplock) {
                    (Durability::DurableV1, Millis(960_000), Some(DurableAnswer::V1))
                } else {
                    (Durability::NotDurable, Millis(0), None)
                };
                let GrantedDurability { durability, timeout, answer, is_replay_eligible } =
                    granted(&create(requested, DHNQ), oplock);
                assert_eq!((durability, timeout, answer), expected, "{requested} asked, {oplock} granted");
                assert!(!is_replay_eligible, "version 1 has no CreateGuid to recognise a replay by");
            }
        }
    }

    /// row 2.3.4: what was granted decides.
    #[test]
    fn v2_is_granted_where_handle_caching_was_granted() {
        let answer = DurableAnswer::V2 { timeout: Millis(60_000), persistent: false };
        for requested in every_oplock() {
            for oplock in every_oplock() {
                let expected = if has_h(oplock) {
                    (Durability::DurableV2, Millis(60_000), Some(answer))
                } else {
                    (Durability::NotDurable, Millis(0), None)
                };
                let granted = granted(&create(requested, dh2q(60_000, false)), oplock);
                assert_eq!(
                    (granted.durability, granted.timeout, granted.answer),
                    expected,
                    "{oplock} granted"
                );
            }
        }
    }

    #[test]
    fn nothing_is_promised_to_who_has_not_asked() {
        for oplock in every_oplock() {
            let expected = GrantedDurability {
                durability: Durability::NotDurable,
                timeout: Millis(0),
                answer: None,
                is_replay_eligible: false,
            };
            assert_eq!(granted(&create(oplock, CreateContexts::default()), oplock), expected, "{oplock}");
        }
    }

    /// row 2.2.2: version 1.
    /// row 2.3.5: version 2.
    /// row 2.4.6: nor is one persistent.
    /// row 10.3: so a directory open with a lease has nothing to outlive its connection by.
    #[test]
    fn directories_are_not_durable() {
        for contexts in [DHNQ, dh2q(60_000, false), dh2q(60_000, true)] {
            for oplock in every_oplock() {
                let mut create = create(oplock, contexts);
                create.is_directory = true;
                create.share.continuously_available = true;
                let expected = GrantedDurability {
                    durability: Durability::NotDurable,
                    timeout: Millis(0),
                    answer: None,
                    is_replay_eligible: false,
                };
                assert_eq!(granted(&create, oplock), expected, "{oplock} {contexts:?}");
            }
        }
    }

    /// All share modes with all kinds of access, a stat open's among them.
    ///
    /// row 2.2.4: a stat open with an RH lease is durable.
    /// row 2.2.7: access and share access have no influence.
    #[test]
    fn access_and_share_access_have_no_say() {
        let masks = [
            AccessMask::READ_ATTRIBUTES,
            AccessMask::READ_DATA,
            AccessMask::READ_DATA | AccessMask::WRITE_DATA,
            AccessMask::DELETE,
        ];
        for (contexts, expected) in
            [(DHNQ, Durability::DurableV1), (dh2q(60_000, false), Durability::DurableV2)]
        {
            for oplock in [Oplock::Batch, lease(LeaseState::READ | LeaseState::HANDLE)] {
                for access in masks {
                    for share_access in (0..8).map(ShareAccess) {
                        let mut create = create(oplock, contexts);
                        create.granted_access = AccessMask(access);
                        create.share_access = share_access;
                        let durability = granted(&create, oplock).durability;
                        assert_eq!(durability, expected, "access {access:#x}, {share_access:?}");
                    }
                }
            }
        }
    }

    /// row 2.4.1: flag, share and connection, all three.
    /// row 2.4.2: with any oplock or lease, or none.
    /// row 2.4.3: otherwise the flag is ignored, and none is answered.
    #[test]
    fn persistence_needs_the_flag_the_share_and_the_connection_and_no_oplock() {
        for combination in 0..8 {
            let [flag, continuously_available, persistent_handles] =
                [1, 2, 4].map(|bit| combination & bit != 0);
            for oplock in every_oplock() {
                let mut create = create(oplock, dh2q(60_000, flag));
                create.share.continuously_available = continuously_available;
                create.client.persistent_handles = persistent_handles;
                let expected = match (combination, has_h(oplock)) {
                    (7, _) => Durability::Persistent,
                    (_, true) => Durability::DurableV2,
                    (_, false) => Durability::NotDurable,
                };
                let granted = granted(&create, oplock);
                assert_eq!(granted.durability, expected, "{oplock}, combination {combination}");
                let is_answered_as_persistent =
                    matches!(granted.answer, Some(DurableAnswer::V2 { persistent: true, .. }));
                assert_eq!(is_answered_as_persistent, combination == 7, "{oplock} {combination}");
            }
        }
    }

    /// row 2.2.6: version 1 has a constant.
    /// row 2.3.6: version 2 has what was asked for up to 300 s, else what the share says, else 60 s.
    /// row 2.3.7: the shortest is honoured.
    #[test]
    fn timeouts_are_what_was_asked_for_within_bounds() {
        let request = |timeout| dh2q(timeout, false);
        for (contexts, ca_timeout, expected) in [
            (DHNQ, None, 960_000),
            (DHNQ, Some(5_000), 960_000),
            (request(1), None, 1),
            (request(1), Some(5_000), 1),
            (request(60_000), None, 60_000),
            (request(300_000), None, 300_000),
            (request(300_001), None, 300_000),
            (request(u64::from(u32::MAX)), None, 300_000),
            (request(0), None, 60_000),
            (request(0), Some(0), 60_000),
            (request(0), Some(5_000), 5_000),
            (request(0), Some(600_000), 600_000),
        ] {
            for continuously_available in [false, true] {
                let mut create = create(Oplock::Batch, contexts);
                create.share.ca_timeout = ca_timeout.map(Millis);
                create.share.continuously_available = continuously_available;
                let granted = granted(&create, Oplock::Batch);
                assert_eq!(granted.timeout, Millis(expected), "{contexts:?} {ca_timeout:?}");
                let answered = match granted.answer {
                    Some(DurableAnswer::V2 { timeout, .. }) => timeout,
                    Some(DurableAnswer::V1) => Millis(expected),
                    None => panic!("not durable: {contexts:?}"),
                };
                assert_eq!(answered, granted.timeout, "the client is told what is kept");
            }
        }
    }

    #[test]
    fn no_open_is_promised_more_than_the_cluster_keeps() {
        let limits = Limits { durable_open_timeout_max: Millis(10_000), ..Limits::DEFAULT };
        for (contexts, expected) in [
            (DHNQ, DurableAnswer::V1),
            (dh2q(60_000, false), DurableAnswer::V2 { timeout: Millis(10_000), persistent: false }),
            (dh2q(60_000, true), DurableAnswer::V2 { timeout: Millis(10_000), persistent: true }),
        ] {
            let mut create = create(Oplock::Batch, contexts);
            create.share.continuously_available = true;
            let granted = grant(&create, Oplock::Batch, &limits);
            assert_eq!((granted.timeout, granted.answer), (Millis(10_000), Some(expected)));
        }
    }

    /// row 2.3.8: who can reach data, or delete, may have to repeat its CREATE.
    /// row 2.3.9: a stat open need not, unless it is persistent.
    #[test]
    fn an_open_can_be_replayed_if_making_it_twice_does_harm() {
        for (access, can_do_harm) in [
            (AccessMask::READ_DATA, true),
            (AccessMask::WRITE_DATA, true),
            (AccessMask::APPEND_DATA, true),
            (AccessMask::EXECUTE, true),
            (AccessMask::DELETE, true),
            (AccessMask::DELETE | AccessMask::READ_ATTRIBUTES, true),
            (AccessMask::READ_ATTRIBUTES, false),
            (AccessMask::READ_ATTRIBUTES | AccessMask::WRITE_ATTRIBUTES | AccessMask::SYNCHRONIZE, false),
            (0, false),
        ] {
            for oplock in every_oplock() {
                for (contexts, expected) in [
                    (CreateContexts::default(), false),
                    (DHNQ, false),
                    (dh2q(60_000, false), can_do_harm),
                    (dh2q(60_000, true), true),
                ] {
                    let mut create = create(oplock, contexts);
                    create.granted_access = AccessMask(access);
                    create.share.continuously_available = true;
                    let granted = granted(&create, oplock);
                    assert_eq!(granted.is_replay_eligible, expected, "{access:#x} {oplock} {contexts:?}");
                }
            }
        }
    }

    /// row 2.4.5: R at most, and level II for an oplock.
    #[test]
    fn a_scale_out_share_allows_read_caching_at_most() {
        for requested in every_oplock() {
            let mut create = create(requested, CreateContexts::default());
            assert_eq!(allowed_by_share(&create), requested, "any other share allows everything");
            create.share.scale_out = true;
            let allowed = allowed_by_share(&create);
            assert_eq!(
                allowed.caching(),
                LeaseState(requested.caching().0 & LeaseState::READ),
                "{requested}"
            );
            match requested {
                Oplock::Lease(lease) => {
                    assert_eq!(allowed.lease().map(|allowed| allowed.key), Some(lease.key));
                }
                Oplock::None => assert_eq!(allowed.level(), OplockLevel::None),
                _ => assert_eq!(allowed.level(), OplockLevel::LevelII),
            }
        }
    }

    /// Every durability with every oplock that a replay may be answered with.
    ///
    /// row 7.check.level: DH2Q only if the level that is answered had been durable.
    #[test]
    fn durability_is_answered_with_the_level_that_it_hangs_on() {
        let timeout = Millis(60_000);
        for oplock in every_oplock() {
            let v2 = |persistent| Some(DurableAnswer::V2 { timeout, persistent });
            for (durability, expected) in [
                (Durability::NotDurable, None),
                (Durability::DurableV1, has_h(oplock).then_some(DurableAnswer::V1)),
                (Durability::DurableV2, v2(false).filter(|_| has_h(oplock))),
                (Durability::Resilient, None),
                (Durability::Persistent, v2(true)),
            ] {
                assert_eq!(answer(durability, timeout, oplock), expected, "{durability} {oplock}");
            }
        }
    }
}
