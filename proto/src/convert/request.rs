//! `Request`, as a sidecar proposes it and as an SMB server asks for it, and its parts.

use statedb::{
    CreateGuid, DurableFileId, FileKey, ImageDigest, LeaseState, Millis, Note, Operation, Reclaim, Request,
    SessionId, ShareName, Sid, Update,
};

use super::enumerations::specified;
use super::{required, sixteen};
use crate::WireError;
use crate::pb::handles::v1::handle_request::Request as Asked;
use crate::pb::smb::v1 as pb;
use crate::pb::storage::v1::from_smb_node::Request as Proposed;
use pb::operate::Operation as PbOperation;

/// Both list the same requests, one at rest and one on the way.
///
/// What a `Cancel` names is the sequence of a request to who proposes it, and the request id to the SMB server that asks
/// for it. The sidecar, which knows both, puts one in the place of the other.
macro_rules! requests {
    ($($pb:ty),+) => {$(
        impl From<&Request> for $pb {
            fn from(request: &Request) -> Self {
                match request {
                    Request::Create(create) => Self::Create(Box::new(create.as_ref().into())),
                    Request::Cancel { sequence } => Self::Cancel(*sequence),
                    Request::AckOplockBreak { open, level } => Self::AckOplockBreak(pb::AckOplockBreak {
                        durable_file_id: open.0,
                        level: pb::OplockLevel::from(*level).into(),
                    }),
                    Request::AckLeaseBreak { lease, state } => {
                        Self::AckLeaseBreak(pb::AckLeaseBreak { lease: Some((*lease).into()), state: state.0 })
                    }
                    Request::Lock(lock) => Self::Lock(lock.into()),
                    Request::Operate { open, operation } => Self::Operate(operate(*open, operation)),
                    Request::Note(note) => Self::Note(note.into()),
                    Request::RequestResiliency { open, timeout, dialect } => {
                        Self::RequestResiliency(pb::RequestResiliency {
                            durable_file_id: open.0,
                            timeout_ms: timeout.0,
                            dialect: pb::Dialect::from(*dialect).into(),
                        })
                    }
                    Request::EndSession(session) => Self::EndSession(session.0),
                    Request::ReplaceSession { previous, user } => Self::ReplaceSession(pb::ReplaceSession {
                        previous_session_id: previous.0,
                        user: user.to_string(),
                    }),
                    Request::EndTreeConnect { session, share } => Self::EndTreeConnect(pb::EndTreeConnect {
                        session_id: session.0,
                        share: share.to_string(),
                    }),
                    Request::FileDeleted(file) => Self::FileDeleted((*file).into()),
                    Request::Grant(open) => Self::Grant(Box::new(open.as_ref().into())),
                    Request::Update(update) => Self::Update(pb::Update {
                        opens: update.opens.iter().map(Into::into).collect(),
                        replaces: update.replaces.iter().map(|digest| digest.0).collect(),
                    }),
                    Request::Disconnect(id) => Self::Disconnect(id.0),
                    Request::Reclaim(reclaim) => Self::Reclaim((*reclaim).into()),
                    Request::Close(id) => Self::Close(id.0),
                    Request::ServeShare(share) => Self::ServeShare(share.to_string()),
                    Request::ReleaseShare(share) => Self::ReleaseShare(share.to_string()),
                }
            }
        }

        impl TryFrom<$pb> for Request {
            type Error = WireError;

            fn try_from(request: $pb) -> Result<Self, WireError> {
                type Pb = $pb;
                Ok(match request {
                    Pb::Create(create) => Self::Create(Box::new((*create).try_into()?)),
                    Pb::Cancel(sequence) => Self::Cancel { sequence },
                    Pb::AckOplockBreak(ack) => Self::AckOplockBreak {
                        open: DurableFileId(ack.durable_file_id),
                        level: specified("AckOplockBreak", "level", ack.level)?,
                    },
                    Pb::AckLeaseBreak(ack) => Self::AckLeaseBreak {
                        lease: required("AckLeaseBreak", "lease", ack.lease)?.try_into()?,
                        state: LeaseState(ack.state),
                    },
                    Pb::Lock(lock) => Self::Lock(lock.try_into()?),
                    Pb::Operate(operate) => {
                        let (open, operation) = operation(operate)?;
                        Self::Operate { open, operation }
                    }
                    Pb::Note(note) => Self::Note(note.into()),
                    Pb::RequestResiliency(request) => Self::RequestResiliency {
                        open: DurableFileId(request.durable_file_id),
                        timeout: Millis(request.timeout_ms),
                        dialect: specified("RequestResiliency", "dialect", request.dialect)?,
                    },
                    Pb::EndSession(session) => Self::EndSession(SessionId(session)),
                    Pb::ReplaceSession(replace) => Self::ReplaceSession {
                        previous: SessionId(replace.previous_session_id),
                        user: Sid(replace.user.into()),
                    },
                    Pb::EndTreeConnect(end) => Self::EndTreeConnect {
                        session: SessionId(end.session_id),
                        share: ShareName::new(&end.share),
                    },
                    Pb::FileDeleted(file) => Self::FileDeleted(FileKey::from(file)),
                    Pb::Grant(open) => Self::Grant(Box::new((*open).try_into()?)),
                    Pb::Update(update) => {
                        let opens = update.opens.into_iter().map(TryInto::try_into);
                        Self::Update(Update {
                            opens: opens.collect::<Result<_, _>>()?,
                            replaces: update.replaces.into_iter().map(ImageDigest).collect(),
                        })
                    }
                    Pb::Disconnect(id) => Self::Disconnect(DurableFileId(id)),
                    Pb::Reclaim(reclaim) => Self::Reclaim(reclaim.try_into()?),
                    Pb::Close(id) => Self::Close(DurableFileId(id)),
                    Pb::ServeShare(share) => Self::ServeShare(ShareName::new(&share)),
                    Pb::ReleaseShare(share) => Self::ReleaseShare(ShareName::new(&share)),
                })
            }
        }
    )+};
}
requests!(Proposed, Asked);

impl From<&Note> for pb::Note {
    fn from(note: &Note) -> Self {
        Self {
            durable_file_id: note.open.0,
            position: note.position,
            image: note.image.as_ref().map(|image| image.to_vec()),
            is_used: note.is_used,
        }
    }
}

impl From<pb::Note> for Note {
    fn from(note: pb::Note) -> Self {
        Self {
            open: DurableFileId(note.durable_file_id),
            position: note.position,
            image: note.image.map(Into::into),
            is_used: note.is_used,
        }
    }
}

impl From<Reclaim> for pb::Reclaim {
    fn from(reclaim: Reclaim) -> Self {
        Self { durable_file_id: reclaim.durable_file_id.0, create_guid: reclaim.create_guid.0.to_vec() }
    }
}

impl TryFrom<pb::Reclaim> for Reclaim {
    type Error = WireError;

    fn try_from(reclaim: pb::Reclaim) -> Result<Self, WireError> {
        Ok(Self {
            durable_file_id: DurableFileId(reclaim.durable_file_id),
            create_guid: CreateGuid(sixteen("Reclaim", "create_guid", &reclaim.create_guid)?),
        })
    }
}

pub(super) fn operate(open: DurableFileId, operation: &Operation) -> pb::Operate {
    let operation = match operation {
        Operation::Write => PbOperation::Write(pb::Nothing {}),
        Operation::SetMetadata => PbOperation::SetMetadata(pb::Nothing {}),
        Operation::Rename { path, parent_directory } => PbOperation::Rename(pb::Rename {
            path: path.as_ref().to_owned(),
            parent_directory: parent_directory.map(Into::into),
        }),
        Operation::SetDeletePending(pending) => PbOperation::SetDeletePending(*pending),
    };
    pb::Operate { durable_file_id: open.0, operation: Some(operation) }
}

pub(super) fn operation(operate: pb::Operate) -> Result<(DurableFileId, Operation), WireError> {
    let operation = match required("Operate", "operation", operate.operation)? {
        PbOperation::Write(pb::Nothing {}) => Operation::Write,
        PbOperation::SetMetadata(pb::Nothing {}) => Operation::SetMetadata,
        PbOperation::Rename(rename) => Operation::Rename {
            path: rename.path.into(),
            parent_directory: rename.parent_directory.map(Into::into),
        },
        PbOperation::SetDeletePending(pending) => Operation::SetDeletePending(pending),
    };
    Ok((DurableFileId(operate.durable_file_id), operation))
}
