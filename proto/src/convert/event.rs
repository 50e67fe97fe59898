//! `Event`.

use statedb::{DurableFileId, Event, EventKind, LeaseState, SessionId, ShareName, Timestamp};

use super::enumerations::specified;
use super::oplock::epoch;
use super::required;
use crate::WireError;
use crate::pb::events::v1 as pb;
use crate::pb::smb::v1 as smb;
use pb::event::Kind;

impl From<&Event> for pb::Event {
    fn from(event: &Event) -> Self {
        Self { sequence: event.sequence, to: event.to.map(Into::into), kind: Some((&event.kind).into()) }
    }
}

impl TryFrom<pb::Event> for Event {
    type Error = WireError;

    fn try_from(event: pb::Event) -> Result<Self, WireError> {
        Ok(Self {
            sequence: event.sequence,
            to: event.to.map(Into::into),
            kind: required("Event", "kind", event.kind)?.try_into()?,
        })
    }
}

impl From<&EventKind> for Kind {
    fn from(kind: &EventKind) -> Self {
        match kind {
            EventKind::OplockBreak { open, to, ack_until } => Self::OplockBreak(pb::OplockBreak {
                durable_file_id: open.0,
                to: smb::OplockLevel::from(*to).into(),
                ack_until_ms: ack_until.map(|until| until.0),
            }),
            EventKind::LeaseBreak { lease, from, to, epoch, version, ack_until } => {
                Self::LeaseBreak(pb::LeaseBreak {
                    lease: Some((*lease).into()),
                    from: from.0,
                    to: to.0,
                    epoch: epoch.0.into(),
                    version: smb::LeaseVersion::from(*version).into(),
                    ack_until_ms: ack_until.map(|until| until.0),
                })
            }
            EventKind::RequestFinished { sequence, outcome } => Self::RequestFinished(pb::RequestFinished {
                sequence: *sequence,
                outcome: Some(outcome.into()),
            }),
            EventKind::OpenClosed { open, reason } => Self::OpenClosed(pb::OpenClosed {
                durable_file_id: open.0,
                reason: pb::CloseReason::from(*reason).into(),
            }),
            EventKind::SessionReplaced { session } => Self::SessionReplaced(session.0),
            EventKind::DeleteFile { file, share, path } => Self::DeleteFile(pb::DeleteFile {
                file: Some((*file).into()),
                share: share.to_string(),
                path: path.as_ref().to_owned(),
            }),
            EventKind::NodeUp { owner } => Self::NodeUp((*owner).into()),
            EventKind::NodeDown { owner, disconnected, closed } => Self::NodeDown(pb::NodeDown {
                owner: Some((*owner).into()),
                disconnected: *disconnected,
                closed: *closed,
            }),
            EventKind::ConflictRefused { open, with, holder } => Self::ConflictRefused(pb::ConflictRefused {
                durable_file_id: open.0,
                with: with.0,
                holder: holder.map(Into::into),
            }),
            EventKind::Contradiction { open, with } => {
                Self::Contradiction(pb::Contradiction { durable_file_id: open.0, with: with.0 })
            }
        }
    }
}

impl TryFrom<Kind> for EventKind {
    type Error = WireError;

    fn try_from(kind: Kind) -> Result<Self, WireError> {
        Ok(match kind {
            Kind::OplockBreak(under_way) => Self::OplockBreak {
                open: DurableFileId(under_way.durable_file_id),
                to: specified("OplockBreak", "to", under_way.to)?,
                ack_until: under_way.ack_until_ms.map(Timestamp),
            },
            Kind::LeaseBreak(under_way) => Self::LeaseBreak {
                lease: required("LeaseBreak", "lease", under_way.lease)?.try_into()?,
                from: LeaseState(under_way.from),
                to: LeaseState(under_way.to),
                epoch: epoch("LeaseBreak", under_way.epoch)?,
                version: specified("LeaseBreak", "version", under_way.version)?,
                ack_until: under_way.ack_until_ms.map(Timestamp),
            },
            Kind::RequestFinished(finished) => Self::RequestFinished {
                sequence: finished.sequence,
                outcome: required("RequestFinished", "outcome", finished.outcome)?.try_into()?,
            },
            Kind::OpenClosed(closed) => Self::OpenClosed {
                open: DurableFileId(closed.durable_file_id),
                reason: specified("OpenClosed", "reason", closed.reason)?,
            },
            Kind::SessionReplaced(session) => Self::SessionReplaced { session: SessionId(session) },
            Kind::DeleteFile(delete) => Self::DeleteFile {
                file: required("DeleteFile", "file", delete.file)?.into(),
                share: ShareName::new(&delete.share),
                path: delete.path.into(),
            },
            Kind::NodeUp(owner) => Self::NodeUp { owner: owner.into() },
            Kind::NodeDown(down) => Self::NodeDown {
                owner: required("NodeDown", "owner", down.owner)?.into(),
                disconnected: down.disconnected,
                closed: down.closed,
            },
            Kind::ConflictRefused(conflict) => Self::ConflictRefused {
                open: DurableFileId(conflict.durable_file_id),
                with: DurableFileId(conflict.with),
                holder: conflict.holder.map(Into::into),
            },
            Kind::Contradiction(contradiction) => Self::Contradiction {
                open: DurableFileId(contradiction.durable_file_id),
                with: DurableFileId(contradiction.with),
            },
        })
    }
}
