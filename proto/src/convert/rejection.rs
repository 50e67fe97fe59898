//! `Rejection`.

use statedb::{DurableFileId, Incarnation, Millis, Rejection, ShareName};

use super::required;
use crate::WireError;
use crate::pb::smb::v1 as pb;
use pb::rejection::Rejection as PbRejection;

impl From<&Rejection> for pb::Rejection {
    fn from(rejection: &Rejection) -> Self {
        let rejection = match *rejection {
            Rejection::Fenced { proposer, current } => PbRejection::Fenced(pb::Fenced {
                proposer: Some(proposer.into()),
                current_incarnation: current.map(|incarnation| incarnation.0),
            }),
            Rejection::AnswerForgotten { sequence } => PbRejection::AnswerForgotten(sequence),
            Rejection::TooManyOutstanding { limit } => PbRejection::TooManyOutstanding(limit),
            Rejection::OpenNotFound(open) => PbRejection::OpenNotFound(open.0),
            Rejection::DurableFileIdInUse(open) => PbRejection::DurableFileIdInUse(open.0),
            Rejection::NotOwner { open, holder } => {
                PbRejection::NotOwner(pb::NotOwner { open: open.0, holder: holder.map(Into::into) })
            }
            Rejection::OpenConnected { open, owner } => {
                PbRejection::OpenConnected(pb::OpenConnected { open: open.0, owner: Some(owner.into()) })
            }
            Rejection::CreateGuidMismatch(open) => PbRejection::CreateGuidMismatch(open.0),
            Rejection::ShareServedElsewhere { ref share, owner } => {
                PbRejection::ShareServedElsewhere(pb::ShareServedElsewhere {
                    share: share.as_str().to_owned(),
                    owner: Some(owner.into()),
                })
            }
            Rejection::TooManyOpens { limit } => PbRejection::TooManyOpens(limit),
            Rejection::IdentityChanged(open) => PbRejection::IdentityChanged(open.0),
            Rejection::OpenChanged(open) => PbRejection::OpenChanged(open.0),
            Rejection::TooManyShares { limit } => PbRejection::TooManyShares(limit),
            Rejection::OpenTooLarge { open, limit } => {
                PbRejection::OpenTooLarge(pb::OpenTooLarge { open: open.0, limit })
            }
            Rejection::TimeoutTooLong { open, limit } => {
                PbRejection::TimeoutTooLong(pb::TimeoutTooLong { open: open.0, limit_ms: limit.0 })
            }
            Rejection::ClientGuidMismatch(open) => PbRejection::ClientGuidMismatch(open.0),
            Rejection::LeaseContextMismatch(open) => PbRejection::LeaseContextMismatch(open.0),
            Rejection::LeaseKeyMismatch(open) => PbRejection::LeaseKeyMismatch(open.0),
            Rejection::NotKept(open) => PbRejection::NotKept(open.0),
            Rejection::PersistentFlagMissing(open) => PbRejection::PersistentFlagMissing(open.0),
            Rejection::PersistentFlagMismatch(open) => PbRejection::PersistentFlagMismatch(open.0),
            Rejection::PathMismatch(open) => PbRejection::PathMismatch(open.0),
            Rejection::UserMismatch(open) => PbRejection::UserMismatch(open.0),
            Rejection::HeldByPersistentOpen(open) => PbRejection::HeldByPersistentOpen(open.0),
            Rejection::DirectoryOfPersistentOpen(open) => PbRejection::DirectoryOfPersistentOpen(open.0),
            Rejection::CreateGuidInUse(open) => PbRejection::CreateGuidInUse(open.0),
            Rejection::ReplayMismatch(open) => PbRejection::ReplayMismatch(open.0),
            Rejection::AppInstanceNotLater(open) => PbRejection::AppInstanceNotLater(open.0),
            Rejection::RangeNotLocked(open) => PbRejection::RangeNotLocked(open.0),
            Rejection::InvalidLockRequest(open) => PbRejection::InvalidLockRequest(open.0),
            Rejection::InvalidLockRange(open) => PbRejection::InvalidLockRange(open.0),
            Rejection::FileClosed(open) => PbRejection::FileClosed(open.0),
            Rejection::OplockNotBreaking(open) => PbRejection::OplockNotBreaking(open.0),
            Rejection::OplockLevelNotAccepted(open) => PbRejection::OplockLevelNotAccepted(open.0),
            Rejection::OplockLevelIsLease(open) => PbRejection::OplockLevelIsLease(open.0),
            Rejection::ContextsExcludeEachOther => PbRejection::ContextsExcludeEachOther(pb::Nothing {}),
            Rejection::CreatePending => PbRejection::CreatePending(pb::Nothing {}),
            Rejection::NothingToReplay => PbRejection::NothingToReplay(pb::Nothing {}),
            Rejection::ResiliencyNotInDialect => PbRejection::ResiliencyNotInDialect(pb::Nothing {}),
            Rejection::Cancelled => PbRejection::Cancelled(pb::Nothing {}),
            Rejection::WrongArbiter => PbRejection::WrongArbiter(pb::Nothing {}),
            Rejection::LeaseKeyInUse(lease) => PbRejection::LeaseKeyInUse(lease.into()),
            Rejection::LeaseNotFound(lease) => PbRejection::LeaseNotFound(lease.into()),
            Rejection::LeaseNotBreaking(lease) => PbRejection::LeaseNotBreaking(lease.into()),
            Rejection::LeaseStateNotAccepted(lease) => PbRejection::LeaseStateNotAccepted(lease.into()),
            Rejection::DeletePending(file) => PbRejection::DeletePending(file.into()),
            Rejection::NotYoursToDelete(file) => PbRejection::NotYoursToDelete(file.into()),
            Rejection::SharingViolation { with } => PbRejection::SharingViolationWith(with.0),
            Rejection::LockNotGranted { with } => PbRejection::LockNotGrantedWith(with.0),
            Rejection::TooManyLocks { limit } => PbRejection::TooManyLocks(limit),
            Rejection::TooManyWaiting { limit } => PbRejection::TooManyWaiting(limit),
            Rejection::ResiliencyTooLong { limit } => PbRejection::ResiliencyTooLongLimitMs(limit.0),
        };
        Self { rejection: Some(rejection) }
    }
}

impl TryFrom<pb::Rejection> for Rejection {
    type Error = WireError;

    fn try_from(rejection: pb::Rejection) -> Result<Self, WireError> {
        Ok(match required("Rejection", "rejection", rejection.rejection)? {
            PbRejection::Fenced(fenced) => Self::Fenced {
                proposer: required("Fenced", "proposer", fenced.proposer)?.into(),
                current: fenced.current_incarnation.map(Incarnation),
            },
            PbRejection::AnswerForgotten(sequence) => Self::AnswerForgotten { sequence },
            PbRejection::TooManyOutstanding(limit) => Self::TooManyOutstanding { limit },
            PbRejection::OpenNotFound(open) => Self::OpenNotFound(DurableFileId(open)),
            PbRejection::DurableFileIdInUse(open) => Self::DurableFileIdInUse(DurableFileId(open)),
            PbRejection::NotOwner(not_owner) => Self::NotOwner {
                open: DurableFileId(not_owner.open),
                holder: not_owner.holder.map(Into::into),
            },
            PbRejection::OpenConnected(connected) => Self::OpenConnected {
                open: DurableFileId(connected.open),
                owner: required("OpenConnected", "owner", connected.owner)?.into(),
            },
            PbRejection::CreateGuidMismatch(open) => Self::CreateGuidMismatch(DurableFileId(open)),
            PbRejection::ShareServedElsewhere(served) => Self::ShareServedElsewhere {
                share: ShareName::new(&served.share),
                owner: required("ShareServedElsewhere", "owner", served.owner)?.into(),
            },
            PbRejection::TooManyOpens(limit) => Self::TooManyOpens { limit },
            PbRejection::IdentityChanged(open) => Self::IdentityChanged(DurableFileId(open)),
            PbRejection::OpenChanged(open) => Self::OpenChanged(DurableFileId(open)),
            PbRejection::TooManyShares(limit) => Self::TooManyShares { limit },
            PbRejection::OpenTooLarge(too_large) => {
                Self::OpenTooLarge { open: DurableFileId(too_large.open), limit: too_large.limit }
            }
            PbRejection::TimeoutTooLong(too_long) => {
                Self::TimeoutTooLong { open: DurableFileId(too_long.open), limit: Millis(too_long.limit_ms) }
            }
            PbRejection::ClientGuidMismatch(open) => Self::ClientGuidMismatch(DurableFileId(open)),
            PbRejection::LeaseContextMismatch(open) => Self::LeaseContextMismatch(DurableFileId(open)),
            PbRejection::LeaseKeyMismatch(open) => Self::LeaseKeyMismatch(DurableFileId(open)),
            PbRejection::NotKept(open) => Self::NotKept(DurableFileId(open)),
            PbRejection::PersistentFlagMissing(open) => Self::PersistentFlagMissing(DurableFileId(open)),
            PbRejection::PersistentFlagMismatch(open) => Self::PersistentFlagMismatch(DurableFileId(open)),
            PbRejection::PathMismatch(open) => Self::PathMismatch(DurableFileId(open)),
            PbRejection::UserMismatch(open) => Self::UserMismatch(DurableFileId(open)),
            PbRejection::HeldByPersistentOpen(open) => Self::HeldByPersistentOpen(DurableFileId(open)),
            PbRejection::DirectoryOfPersistentOpen(open) => {
                Self::DirectoryOfPersistentOpen(DurableFileId(open))
            }
            PbRejection::CreateGuidInUse(open) => Self::CreateGuidInUse(DurableFileId(open)),
            PbRejection::ReplayMismatch(open) => Self::ReplayMismatch(DurableFileId(open)),
            PbRejection::AppInstanceNotLater(open) => Self::AppInstanceNotLater(DurableFileId(open)),
            PbRejection::RangeNotLocked(open) => Self::RangeNotLocked(DurableFileId(open)),
            PbRejection::InvalidLockRequest(open) => Self::InvalidLockRequest(DurableFileId(open)),
            PbRejection::InvalidLockRange(open) => Self::InvalidLockRange(DurableFileId(open)),
            PbRejection::FileClosed(open) => Self::FileClosed(DurableFileId(open)),
            PbRejection::OplockNotBreaking(open) => Self::OplockNotBreaking(DurableFileId(open)),
            PbRejection::OplockLevelNotAccepted(open) => Self::OplockLevelNotAccepted(DurableFileId(open)),
            PbRejection::OplockLevelIsLease(open) => Self::OplockLevelIsLease(DurableFileId(open)),
            PbRejection::ContextsExcludeEachOther(pb::Nothing {}) => Self::ContextsExcludeEachOther,
            PbRejection::CreatePending(pb::Nothing {}) => Self::CreatePending,
            PbRejection::NothingToReplay(pb::Nothing {}) => Self::NothingToReplay,
            PbRejection::ResiliencyNotInDialect(pb::Nothing {}) => Self::ResiliencyNotInDialect,
            PbRejection::Cancelled(pb::Nothing {}) => Self::Cancelled,
            PbRejection::WrongArbiter(pb::Nothing {}) => Self::WrongArbiter,
            PbRejection::LeaseKeyInUse(lease) => Self::LeaseKeyInUse(lease.try_into()?),
            PbRejection::LeaseNotFound(lease) => Self::LeaseNotFound(lease.try_into()?),
            PbRejection::LeaseNotBreaking(lease) => Self::LeaseNotBreaking(lease.try_into()?),
            PbRejection::LeaseStateNotAccepted(lease) => Self::LeaseStateNotAccepted(lease.try_into()?),
            PbRejection::DeletePending(file) => Self::DeletePending(file.into()),
            PbRejection::NotYoursToDelete(file) => Self::NotYoursToDelete(file.into()),
            PbRejection::SharingViolationWith(open) => Self::SharingViolation { with: DurableFileId(open) },
            PbRejection::LockNotGrantedWith(open) => Self::LockNotGranted { with: DurableFileId(open) },
            PbRejection::TooManyLocks(limit) => Self::TooManyLocks { limit },
            PbRejection::TooManyWaiting(limit) => Self::TooManyWaiting { limit },
            PbRejection::ResiliencyTooLongLimitMs(limit) => Self::ResiliencyTooLong { limit: Millis(limit) },
        })
    }
}
