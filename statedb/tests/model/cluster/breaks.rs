//! Who has to give up what he caches, and what he acknowledges.

use statedb::{BreakTarget, DurableFileId, LeaseId, LeaseState, OplockLevel, Outcome, Owner};

use super::expect::{Check, expect, expect_status, status};
use super::{Breaking, Cluster};
use crate::model::letters::{Letters, letters};

impl Cluster {
    /// MS-SMB2 3.3.5.22.1.
    pub(super) fn ack_oplock(
        &mut self,
        owner: Owner,
        id: DurableFileId,
        level: OplockLevel,
        outcome: &Outcome,
    ) -> Check {
        if self.connected(owner, id).is_none() {
            return expect_status(outcome, &[status::FILE_CLOSED]);
        }
        let caching = self.caching_mut(BreakTarget::Oplock(id));
        let Some(caching) = caching.filter(|caching| caching.breaking.is_some()) else {
            return expect_status(outcome, &[status::INVALID_DEVICE_STATE]);
        };
        let breaking = caching.breaking.take().expect("it is breaking");
        let acknowledged = match level {
            OplockLevel::None => letters(""),
            // Who was to have nothing and says level II has nothing.
            OplockLevel::LevelII => letters("R").common(&breaking.to),
            OplockLevel::Exclusive | OplockLevel::Batch | OplockLevel::Lease => {
                caching.letters = letters("");
                let is_lease = level == OplockLevel::Lease;
                let allowed =
                    if is_lease { status::INVALID_PARAMETER } else { status::INVALID_OPLOCK_PROTOCOL };
                return expect_status(outcome, &[allowed]);
            }
        };
        self.acknowledged(BreakTarget::Oplock(id), acknowledged, &breaking);
        expect(outcome, &Outcome::BreakAcknowledged)
    }

    /// MS-SMB2 3.3.5.22.2.
    pub(super) fn ack_lease(&mut self, lease: LeaseId, state: LeaseState, outcome: &Outcome) -> Check {
        let holder = BreakTarget::Lease(lease);
        let Some(caching) = self.caching_mut(holder) else {
            return expect_status(outcome, &[status::OBJECT_NAME_NOT_FOUND]);
        };
        let Some(breaking) = caching.breaking.clone() else {
            return expect_status(outcome, &[status::UNSUCCESSFUL]);
        };
        let acknowledged = Letters::from(state);
        if !acknowledged.is_within(&breaking.to) {
            return expect_status(outcome, &[status::REQUEST_NOT_ACCEPTED]);
        }
        self.acknowledged(holder, acknowledged, &breaking);
        expect(outcome, &Outcome::BreakAcknowledged)
    }

    pub(super) fn acknowledged(&mut self, holder: BreakTarget, letters: Letters, breaking: &Breaking) {
        let still_too_much = letters.without(&breaking.required);
        self.wishes.push((holder, still_too_much.clone()));
        self.taken.push((holder, still_too_much));
        let caching = self.caching_mut(holder).expect("what is acknowledged is there");
        caching.letters = letters;
        caching.breaking = None;
        self.may_have_lost_handle_caching(holder);
    }
}
