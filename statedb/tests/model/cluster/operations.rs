//! What is done through opens.

use statedb::{DurableFileId, Lock, LockKind, Operation, Outcome, Owner};

use super::expect::{Check, ensure, expect, expect_status, status};
use super::{Cluster, Seen};
use crate::model::locks::Refusal;

impl Cluster {
    pub(super) fn operate(
        &mut self,
        owner: Owner,
        id: DurableFileId,
        operation: &Operation,
        outcome: &Outcome,
    ) -> Check {
        let Some(open) = self.connected(owner, id) else {
            return expect_status(outcome, &[status::FILE_CLOSED]);
        };
        let holder = open.holder;
        let obstacles = self.obstacles_to_operate(holder, operation);
        match outcome {
            Outcome::Proceed => {
                ensure!(!obstacles.is_blocked, "goes on in spite of {obstacles:?}");
                self.give_way(&obstacles);
                let is_seen_in_the_directory =
                    matches!(operation, Operation::Rename { .. } | Operation::SetMetadata);
                self.directory_has_changed(id, is_seen_in_the_directory);
                Ok(())
            }
            outcome => self.not_done(obstacles, outcome),
        }
    }

    /// MS-SMB2 3.3.5.14, and case LOCK_CONTROL of MS-FSA 2.1.4.12.
    pub(super) fn lock(&mut self, owner: Owner, lock: &Lock, seen: &Seen) -> Check {
        let outcome = seen.outcome;
        let Some(open) = self.connected(owner, lock.open) else {
            return expect_status(outcome, &[status::FILE_CLOSED]);
        };
        let (file, holder, durability) = (open.file, open.holder, open.durability);
        let number = lock.sequence.number;
        let locks = lock.elements.iter().any(|element| element.kind != LockKind::Unlock);
        let mut sequences = open.sequences.clone();
        if let Some(entry) = sequences.entry(lock, durability) {
            if *entry == Some(number) {
                return expect(outcome, &Outcome::Locked { is_replay: true });
            }
            *entry = None;
        }
        let obstacles = self.obstacles_to_operate(holder, &Operation::Write);
        self.wishes.extend(obstacles.wishes.iter().cloned());
        // Who caches writes may have locked the range without telling; a LOCK does not wait until he has told.
        let is_in_the_way = [
            (obstacles.may_be_unavailable, status::FILE_NOT_AVAILABLE),
            (obstacles.is_blocked, status::LOCK_NOT_GRANTED),
        ];
        if is_in_the_way.iter().any(|(may, status)| *may && expect_status(outcome, &[*status]).is_ok()) {
            self.connected(owner, lock.open).expect("it was connected before").sequences = sequences;
            return Ok(());
        }
        let requested = self.locks_of_file(file).request(lock);
        if let Some(entry) = sequences.entry(lock, durability).filter(|_| requested.is_ok()) {
            *entry = Some(number);
        }
        self.connected(owner, lock.open).expect("it was connected before").sequences = sequences;
        match requested {
            Ok(()) if !locks || !obstacles.is_blocked => {
                if locks {
                    self.give_way(&obstacles);
                }
                expect(outcome, &Outcome::Locked { is_replay: false })
            }
            Ok(()) => Err(format!("{outcome}, in spite of {:?}", obstacles.taken)),
            Err(Refusal::InvalidParameter) => expect_status(outcome, &[status::INVALID_PARAMETER]),
            Err(Refusal::LockNotGranted) => expect_status(outcome, &[status::LOCK_NOT_GRANTED]),
            Err(Refusal::RangeNotLocked) => expect_status(outcome, &[status::RANGE_NOT_LOCKED]),
        }
    }
}
