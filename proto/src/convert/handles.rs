//! What an SMB server asks of its sidecar, and how it is answered.

use statedb::{Arbiter, Incarnation, Instance, OpenDescription, Outcome, Request, Timestamp};

use super::enumerations::optional;
use super::{required, sixteen};
use crate::WireError;
use crate::pb::handles::v1 as pb;
use pb::handle_request::Request as PbRequest;

/// An SMB server wants to be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Which start of it.
    pub instance: Instance,
    /// Who decides between its opens and those of others.
    pub arbiter: Arbiter,
}

impl TryFrom<pb::AttachRequest> for Attach {
    type Error = WireError;

    fn try_from(attach: pb::AttachRequest) -> Result<Self, WireError> {
        const MESSAGE: &str = "AttachRequest";
        Ok(Self {
            instance: Instance(sixteen(MESSAGE, "instance", &attach.instance)?),
            arbiter: optional(MESSAGE, "arbiter", attach.arbiter)?.unwrap_or(Arbiter::Cluster),
        })
    }
}

/// One request of an attached SMB server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The incarnation that it believes to be.
    pub incarnation: Incarnation,
    /// What it asks for. In a `Cancel` there is the request id by which the server knows the other request.
    pub request: Request,
}

impl Asked {
    fn new(incarnation: u64, request: PbRequest) -> Result<Self, WireError> {
        Ok(Self { incarnation: Incarnation(incarnation), request: request.try_into()? })
    }
}

impl TryFrom<pb::HandleRequest> for Asked {
    type Error = WireError;

    fn try_from(asked: pb::HandleRequest) -> Result<Self, WireError> {
        Self::new(asked.incarnation, required("HandleRequest", "request", asked.request)?)
    }
}

/// The requests of single calls whose one field is a message.
macro_rules! single_messages {
    ($($message:ident.$field:ident => $request:ident),+ $(,)?) => {$(
        impl TryFrom<pb::$message> for Asked {
            type Error = WireError;

            fn try_from(asked: pb::$message) -> Result<Self, WireError> {
                let what = required(stringify!($message), stringify!($field), asked.$field)?;
                Self::new(asked.incarnation, PbRequest::$request(what.into()))
            }
        }
    )+};
}
single_messages! {
    CreateRequest.create => Create,
    AckOplockBreakRequest.ack => AckOplockBreak,
    AckLeaseBreakRequest.ack => AckLeaseBreak,
    LockRequest.lock => Lock,
    OperateRequest.operate => Operate,
    NoteRequest.note => Note,
    RequestResiliencyRequest.request => RequestResiliency,
    ReplaceSessionRequest.replace => ReplaceSession,
    EndTreeConnectRequest.end => EndTreeConnect,
    FileDeletedRequest.file => FileDeleted,
    GrantRequest.open => Grant,
    UpdateRequest.update => Update,
    ReclaimRequest.reclaim => Reclaim,
}

/// The requests of single calls whose one field is a number or a name.
macro_rules! single_values {
    ($($message:ident.$field:ident => $request:ident),+ $(,)?) => {$(
        impl TryFrom<pb::$message> for Asked {
            type Error = WireError;

            fn try_from(asked: pb::$message) -> Result<Self, WireError> {
                Self::new(asked.incarnation, PbRequest::$request(asked.$field))
            }
        }
    )+};
}
single_values! {
    CloseRequest.durable_file_id => Close,
    DisconnectRequest.durable_file_id => Disconnect,
    EndSessionRequest.session_id => EndSession,
    ServeShareRequest.share => ServeShare,
    ReleaseShareRequest.share => ReleaseShare,
}

/// The answer to a request that is decided. `open` is what an `Opened` is told besides, if its server may not know
/// the open; `now` is cluster time at this node.
#[must_use]
pub fn answer(outcome: &Outcome, open: Option<&OpenDescription>, now: Timestamp) -> pb::Answer {
    let (ntstatus, reason) = match outcome {
        Outcome::Rejected(rejection) => (rejection.ntstatus(), rejection.to_string()),
        _ => (STATUS_SUCCESS, String::new()),
    };
    pb::Answer { outcome: Some(outcome.into()), ntstatus, reason, open: open.map(Into::into), now_ms: now.0 }
}

/// The NTSTATUS of whatever is not rejected (MS-ERREF 2.3.1).
const STATUS_SUCCESS: u32 = 0;
