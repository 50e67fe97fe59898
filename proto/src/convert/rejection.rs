//! `Rejection`.

use statedb::{DurableFileId, Incarnation, Millis, Rejection, ShareName};

use super::required;
use crate::WireError;
use crate::pb::storage::v1 as pb;
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
            Rejection::TooManyShares { limit } => PbRejection::TooManyShares(limit),
            Rejection::OpenTooLarge { open, limit } => {
                PbRejection::OpenTooLarge(pb::OpenTooLarge { open: open.0, limit })
            }
            Rejection::TimeoutTooLong { open, limit } => {
                PbRejection::TimeoutTooLong(pb::TimeoutTooLong { open: open.0, limit_ms: limit.0 })
            }
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
            PbRejection::TooManyShares(limit) => Self::TooManyShares { limit },
            PbRejection::OpenTooLarge(too_large) => {
                Self::OpenTooLarge { open: DurableFileId(too_large.open), limit: too_large.limit }
            }
            PbRejection::TimeoutTooLong(too_long) => {
                Self::TimeoutTooLong { open: DurableFileId(too_long.open), limit: Millis(too_long.limit_ms) }
            }
        })
    }
}
