//! `Command`, `Proposer` and `Request`.

use statedb::{
    Command, CreateGuid, DurableFileId, Incarnation, Instance, NodeId, Proposer, Reclaim, Request, ShareName,
};

use super::{required, sixteen};
use crate::WireError;
use crate::pb::storage::v1 as pb;
use pb::command::Command as PbCommand;
use pb::from_smb_node::Request as PbRequest;

impl From<&Command> for pb::Command {
    fn from(command: &Command) -> Self {
        let command = match command {
            Command::RegisterNode { node, instance } => {
                PbCommand::RegisterNode(pb::RegisterNode { node_id: node.0, instance: instance.0.to_vec() })
            }
            Command::NodeDown { node, incarnation } => {
                PbCommand::NodeDown(pb::NodeDown { node_id: node.0, incarnation: incarnation.0 })
            }
            Command::ExpireOpens => PbCommand::ExpireOpens(pb::ExpireOpens {}),
            Command::FromSmbNode { proposer, request } => PbCommand::FromSmbNode(pb::FromSmbNode {
                proposer: Some((*proposer).into()),
                request: Some(request.into()),
            }),
        };
        Self { command: Some(command) }
    }
}

impl TryFrom<pb::Command> for Command {
    type Error = WireError;

    fn try_from(command: pb::Command) -> Result<Self, WireError> {
        Ok(match required("Command", "command", command.command)? {
            PbCommand::RegisterNode(register) => Self::RegisterNode {
                node: NodeId(register.node_id),
                instance: Instance(sixteen("RegisterNode", "instance", &register.instance)?),
            },
            PbCommand::NodeDown(down) => {
                Self::NodeDown { node: NodeId(down.node_id), incarnation: Incarnation(down.incarnation) }
            }
            PbCommand::ExpireOpens(pb::ExpireOpens {}) => Self::ExpireOpens,
            PbCommand::FromSmbNode(from) => Self::FromSmbNode {
                proposer: required("FromSmbNode", "proposer", from.proposer)?.try_into()?,
                request: required("FromSmbNode", "request", from.request)?.try_into()?,
            },
        })
    }
}

impl From<Proposer> for pb::Proposer {
    fn from(proposer: Proposer) -> Self {
        Self {
            owner: Some(proposer.owner.into()),
            sequence: proposer.sequence,
            first_outstanding: proposer.first_outstanding,
        }
    }
}

impl TryFrom<pb::Proposer> for Proposer {
    type Error = WireError;

    fn try_from(proposer: pb::Proposer) -> Result<Self, WireError> {
        Ok(Self {
            owner: required("Proposer", "owner", proposer.owner)?.into(),
            sequence: proposer.sequence,
            first_outstanding: proposer.first_outstanding,
        })
    }
}

impl From<&Request> for PbRequest {
    fn from(request: &Request) -> Self {
        match request {
            Request::Grant(open) => Self::Grant(Box::new(open.as_ref().into())),
            Request::Update(opens) => {
                Self::Update(pb::Update { opens: opens.iter().map(Into::into).collect() })
            }
            Request::Disconnect(id) => Self::Disconnect(id.0),
            Request::Reclaim(reclaim) => Self::Reclaim(pb::Reclaim {
                durable_file_id: reclaim.durable_file_id.0,
                create_guid: reclaim.create_guid.0.to_vec(),
            }),
            Request::Close(id) => Self::Close(id.0),
            Request::ServeShare(share) => Self::ServeShare(share.as_str().to_owned()),
            Request::ReleaseShare(share) => Self::ReleaseShare(share.as_str().to_owned()),
        }
    }
}

impl TryFrom<PbRequest> for Request {
    type Error = WireError;

    fn try_from(request: PbRequest) -> Result<Self, WireError> {
        Ok(match request {
            PbRequest::Grant(open) => Self::Grant(Box::new((*open).try_into()?)),
            PbRequest::Update(update) => {
                Self::Update(update.opens.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?)
            }
            PbRequest::Disconnect(id) => Self::Disconnect(DurableFileId(id)),
            PbRequest::Reclaim(reclaim) => Self::Reclaim(Reclaim {
                durable_file_id: DurableFileId(reclaim.durable_file_id),
                create_guid: CreateGuid(sixteen("Reclaim", "create_guid", &reclaim.create_guid)?),
            }),
            PbRequest::Close(id) => Self::Close(DurableFileId(id)),
            PbRequest::ServeShare(share) => Self::ServeShare(ShareName::new(&share)),
            PbRequest::ReleaseShare(share) => Self::ReleaseShare(ShareName::new(&share)),
        })
    }
}
