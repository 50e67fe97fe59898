//! A lease, as `leases.tdb` has it.

use statedb::{ClientGuid, FileKey, LeaseEpoch, LeaseKey, LeaseState};

use super::error::RecordError;
use crate::version::Layout;

/// The key of a lease's record in `leases.tdb`.
#[must_use]
pub fn lease_record_key(client_guid: ClientGuid, lease_key: LeaseKey) -> [u8; 32] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&client_guid.0);
    key[16..].copy_from_slice(&lease_key.0);
    key
}

/// A record of `leases.tdb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// What the holder may cache.
    pub current_state: LeaseState,
    /// A break was sent and not acknowledged yet.
    pub breaking: bool,
    /// What the client was told to break to.
    pub breaking_to_requested: LeaseState,
    /// What it has to break to in the end.
    pub breaking_to_required: LeaseState,
    /// 1 or 2: the form of the lease context.
    pub lease_version: u16,
    /// How often the lease was granted more, or a break of it has begun. Of version 1 no client hears of it.
    pub epoch: LeaseEpoch,
    /// The files that are open under the lease: one, but for hard links and renames.
    pub files: Vec<LeaseFile>,
}

/// A file that is open under a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseFile {
    /// The file.
    pub file: FileKey,
    /// The share's path on this host.
    pub service_path: Option<String>,
    /// The file's path below that.
    pub base_name: Option<String>,
    /// The stream's name, if it is one.
    pub stream_name: Option<String>,
}

impl LeaseRecord {
    /// Decodes a record's value.
    pub fn decode(layout: Layout, value: &[u8]) -> Result<Self, RecordError> {
        layout.codec().decode_lease(value)
    }

    /// The record's value, byte for byte what smbd would store.
    #[must_use]
    pub fn encode(&self, layout: Layout) -> Vec<u8> {
        layout.codec().encode_lease(self)
    }

    /// The record as its holder stores it when it is told to break the lease to that (`process_oplock_break_message` in smbd's
    /// `smb2_oplock.c`).
    #[must_use]
    pub fn broken_to(&self, break_to: LeaseState) -> Self {
        let break_to = break_to.and(self.current_state);
        let next = LeaseEpoch(self.epoch.0.wrapping_add(1));
        if self.breaking {
            Self { breaking_to_required: break_to.and(self.breaking_to_required), ..self.clone() }
        } else if break_to == self.current_state {
            self.clone()
        } else if self.current_state == LeaseState(LeaseState::READ) {
            Self { current_state: LeaseState::NONE, epoch: next, ..self.clone() }
        } else {
            let (requested, required) = (break_to, break_to);
            Self {
                breaking: true,
                breaking_to_requested: requested,
                breaking_to_required: required,
                epoch: next,
                ..self.clone()
            }
        }
    }

    /// Whether the file may have been changed although the holder has not acknowledged the break: nobody waits for one who
    /// caches reads alone.
    #[must_use]
    pub fn may_be_outdated(&self) -> bool {
        self.breaking
            && !self.current_state.has_write_caching()
            && !self.breaking_to_required.has_read_caching()
    }

    /// Whether another record of the same lease is newer.
    ///
    /// An upgrade and the begin of a break count the epoch up. What follows within a break does not (`downgrade_lease` and
    /// `process_oplock_break_message` in smbd's `smb2_oplock.c`), but only takes away.
    #[must_use]
    pub fn is_older_than(&self, other: &Self) -> bool {
        let lost = |before: LeaseState, after: LeaseState| before != after && before.0 & after.0 == after.0;
        match other.epoch.0.wrapping_sub(self.epoch.0) {
            0 => {
                lost(self.current_state, other.current_state)
                    || (self.current_state == other.current_state
                        && lost(self.breaking_to_required, other.breaking_to_required))
            }
            ahead => ahead <= u16::MAX / 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: LeaseState = LeaseState(LeaseState::READ);
    const READ_HANDLE: LeaseState = LeaseState(LeaseState::READ | LeaseState::HANDLE);
    const ALL: LeaseState = LeaseState(LeaseState::READ | LeaseState::WRITE | LeaseState::HANDLE);

    fn lease(current_state: LeaseState) -> LeaseRecord {
        LeaseRecord {
            current_state,
            breaking: false,
            breaking_to_requested: LeaseState::NONE,
            breaking_to_required: LeaseState::NONE,
            lease_version: 2,
            epoch: LeaseEpoch(u16::MAX),
            files: Vec::new(),
        }
    }

    fn breaking(current_state: LeaseState, requested: LeaseState, required: LeaseState) -> LeaseRecord {
        LeaseRecord {
            breaking: true,
            breaking_to_requested: requested,
            breaking_to_required: required,
            epoch: LeaseEpoch(0),
            ..lease(current_state)
        }
    }

    #[test]
    fn a_break_is_noted_as_smbd_notes_it() {
        let none = LeaseState::NONE;
        let cases = [
            (lease(ALL), READ_HANDLE, breaking(ALL, READ_HANDLE, READ_HANDLE)),
            (lease(READ_HANDLE), none, breaking(READ_HANDLE, none, none)),
            // No more than the lease has.
            (lease(READ_HANDLE), LeaseState(READ.0 | LeaseState::WRITE), breaking(READ_HANDLE, READ, READ)),
            (lease(READ_HANDLE), ALL, lease(READ_HANDLE)),
            // Nobody acknowledges the loss of read caching alone.
            (lease(READ), none, LeaseRecord { epoch: LeaseEpoch(0), ..lease(none) }),
            // One that is under way goes further, and the client is told of that later.
            (breaking(ALL, READ_HANDLE, READ_HANDLE), none, breaking(ALL, READ_HANDLE, none)),
            (breaking(ALL, READ_HANDLE, none), READ_HANDLE, breaking(ALL, READ_HANDLE, none)),
        ];
        for (before, break_to, after) in cases {
            assert_eq!(before.broken_to(break_to), after, "{before:?} to {break_to}");
        }
    }

    #[test]
    fn what_is_cached_may_be_outdated_when_nobody_waits_for_the_acknowledgement() {
        let none = LeaseState::NONE;
        assert!(breaking(READ_HANDLE, none, none).may_be_outdated());
        assert!(breaking(READ_HANDLE, READ, none).may_be_outdated());
        for lease in [
            lease(READ_HANDLE),
            lease(none),
            breaking(READ_HANDLE, READ, READ),
            // Others wait until the holder has written back what it has.
            breaking(ALL, READ_HANDLE, none),
        ] {
            assert!(!lease.may_be_outdated(), "{lease:?}");
        }
    }
}
