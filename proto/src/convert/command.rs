//! `Command` and `Proposer`.

use statedb::{Command, Incarnation, Instance, NodeId, Proposer};

use super::enumerations::optional;
use super::open::STORED_ARBITER;
use super::{required, sixteen};
use crate::WireError;
use crate::pb::smb::v1 as smb;
use crate::pb::storage::v1 as pb;
use pb::command::Command as PbCommand;

impl From<&Command> for pb::Command {
    fn from(command: &Command) -> Self {
        let command = match command {
            Command::RegisterNode { node, instance, arbiter } => PbCommand::RegisterNode(pb::RegisterNode {
                node_id: node.0,
                instance: instance.0.to_vec(),
                arbiter: smb::Arbiter::from(*arbiter).into(),
            }),
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
                arbiter: optional("RegisterNode", "arbiter", register.arbiter)?.unwrap_or(STORED_ARBITER),
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
