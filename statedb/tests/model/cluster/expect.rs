//! How the model says that something is not as it must be.

use std::collections::BTreeSet;

use statedb::{DurableFileId, Outcome};

/// NTSTATUS values (MS-ERREF 2.3.1).
pub(super) mod status {
    pub(in super::super) const UNSUCCESSFUL: u32 = 0xC000_0001;
    pub(in super::super) const INVALID_PARAMETER: u32 = 0xC000_000D;
    pub(in super::super) const OBJECT_NAME_NOT_FOUND: u32 = 0xC000_0034;
    pub(in super::super) const SHARING_VIOLATION: u32 = 0xC000_0043;
    pub(in super::super) const LOCK_NOT_GRANTED: u32 = 0xC000_0055;
    pub(in super::super) const RANGE_NOT_LOCKED: u32 = 0xC000_007E;
    pub(in super::super) const REQUEST_NOT_ACCEPTED: u32 = 0xC000_00D0;
    pub(in super::super) const INVALID_OPLOCK_PROTOCOL: u32 = 0xC000_00E3;
    pub(in super::super) const CANCELLED: u32 = 0xC000_0120;
    pub(in super::super) const FILE_CLOSED: u32 = 0xC000_0128;
    pub(in super::super) const INVALID_DEVICE_STATE: u32 = 0xC000_0184;
    pub(in super::super) const FILE_NOT_AVAILABLE: u32 = 0xC000_0467;
}

/// What is wrong, if anything is.
pub(super) type Check = Result<(), String>;

/// Ends a check that fails with what is wrong.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(super) use ensure;

pub(super) fn same_opens(what: &str, expected: &[DurableFileId], real: &[DurableFileId]) -> Check {
    let sorted = |opens: &[DurableFileId]| opens.iter().map(|id| id.0).collect::<BTreeSet<_>>();
    let (expected, real) = (sorted(expected), sorted(real));
    ensure!(expected == real, "{what} are {real:?} instead of {expected:?}");
    Ok(())
}

pub(super) fn expect(outcome: &Outcome, expected: &Outcome) -> Check {
    ensure!(outcome == expected, "{outcome} instead of {expected}");
    Ok(())
}

pub(super) fn expect_status(outcome: &Outcome, allowed: &[u32]) -> Check {
    let status = match outcome {
        Outcome::Rejected(rejection) => Some(rejection.ntstatus()),
        _ => None,
    };
    let is_allowed = status.is_some_and(|status| allowed.contains(&status));
    ensure!(is_allowed, "{outcome} ({status:#x?}) instead of one of {allowed:#x?}");
    Ok(())
}

pub(super) fn expect_refused(outcome: &Outcome) -> Check {
    ensure!(matches!(outcome, Outcome::Rejected(_)), "{outcome}, and it is somebody else's");
    Ok(())
}
