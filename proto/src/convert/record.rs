//! `Record`, and what is in it of `Node`, `Break`, `WaitingRequest` and `DeletePending`.

use statedb::{
    Arbiter, Awaited, Break, BreakTarget, DeletePending, DeleteState, DurableFileId, FileKey, Incarnation,
    Instance, LeaseState, Node, NodeId, NodeState, Record, ServingNode, ShareName, Timestamp, WaitingRequest,
};

use super::enumerations::optional;
use super::open::STORED_ARBITER;
use super::request::{operate, operation};
use super::{required, sixteen};
use crate::WireError;
use crate::pb::smb::v1 as smb;
use crate::pb::storage::v1 as pb;
use pb::break_record::Target as PbTarget;
use pb::delete_record::State as PbDeleteState;
use pb::node_record::State as PbNodeState;
use pb::record::Record as PbRecord;
use pb::waiting_record::Awaited as PbAwaited;

impl From<&Record> for pb::Record {
    fn from(record: &Record) -> Self {
        let record = match record {
            Record::Meta { applied, now, next_event } => PbRecord::Meta(pb::StateMeta {
                applied: applied.map(Into::into),
                now_ms: now.0,
                next_event: *next_event,
            }),
            Record::Node(id, node) => PbRecord::Node(node_record(*id, node)),
            Record::Share(share, serving) => PbRecord::Share(pb::ShareRecord {
                share: share.as_str().to_owned(),
                owner: Some(serving.owner.into()),
            }),
            Record::Open(open) => PbRecord::Open(Box::new(open.as_ref().into())),
            Record::Break(target, under_way) => PbRecord::BreakUnderWay(break_record(*target, *under_way)),
            Record::Waiting(waiting) => PbRecord::Waiting(waiting_record(waiting)),
            Record::Delete(file, pending) => PbRecord::Delete(delete_record(*file, pending)),
        };
        Self { record: Some(record) }
    }
}

impl TryFrom<pb::Record> for Record {
    type Error = WireError;

    fn try_from(record: pb::Record) -> Result<Self, WireError> {
        Ok(match required("Record", "record", record.record)? {
            PbRecord::Meta(meta) => Self::Meta {
                applied: meta.applied.map(Into::into),
                now: Timestamp(meta.now_ms),
                next_event: meta.next_event,
            },
            PbRecord::Node(record) => Self::Node(NodeId(record.node_id), node(record)?),
            PbRecord::Share(share) => {
                let owner = required("ShareRecord", "owner", share.owner)?.into();
                Self::Share(ShareName::new(&share.share), ServingNode { owner })
            }
            PbRecord::Open(open) => Self::Open(Box::new((*open).try_into()?)),
            PbRecord::BreakUnderWay(record) => {
                let (target, under_way) = break_under_way(record)?;
                Self::Break(target, under_way)
            }
            PbRecord::Waiting(record) => Self::Waiting(Box::new(waiting(record)?)),
            PbRecord::Delete(record) => {
                let (file, pending) = delete_pending(record)?;
                Self::Delete(file, pending)
            }
        })
    }
}

fn node_record(id: NodeId, node: &Node) -> pb::NodeRecord {
    let state = match node.state {
        NodeState::Up => PbNodeState::Up(pb::Up {}),
        NodeState::Down { since } => PbNodeState::Down(pb::Down { since_ms: since.0 }),
    };
    let answered = node
        .answered
        .iter()
        .map(|(sequence, outcome)| pb::Answered { sequence: *sequence, outcome: Some(outcome.into()) })
        .collect();
    let superseded = node
        .superseded
        .iter()
        .map(|(incarnation, instance)| pb::SupersededInstance {
            incarnation: incarnation.0,
            instance: instance.0.to_vec(),
        })
        .collect();
    pb::NodeRecord {
        node_id: id.0,
        incarnation: node.incarnation.0,
        instance: node.instance.0.to_vec(),
        state: Some(state),
        first_outstanding: node.first_outstanding,
        superseded,
        answered,
        arbiter: smb::Arbiter::from(node.arbiter).into(),
        registered_at: node.registered_at,
    }
}

fn node(record: pb::NodeRecord) -> Result<Node, WireError> {
    let state = match required("NodeRecord", "state", record.state)? {
        PbNodeState::Up(pb::Up {}) => NodeState::Up,
        PbNodeState::Down(down) => NodeState::Down { since: Timestamp(down.since_ms) },
    };
    let superseded = record
        .superseded
        .into_iter()
        .map(|earlier| {
            let instance = sixteen("SupersededInstance", "instance", &earlier.instance)?;
            Ok((Incarnation(earlier.incarnation), Instance(instance)))
        })
        .collect::<Result<_, WireError>>()?;
    let answered = record
        .answered
        .into_iter()
        .map(|answered| {
            Ok((answered.sequence, required("Answered", "outcome", answered.outcome)?.try_into()?))
        })
        .collect::<Result<_, WireError>>()?;
    Ok(Node {
        incarnation: Incarnation(record.incarnation),
        instance: Instance(sixteen("NodeRecord", "instance", &record.instance)?),
        superseded,
        arbiter: optional("NodeRecord", "arbiter", record.arbiter)?.unwrap_or(STORED_ARBITER),
        state,
        registered_at: record.registered_at,
        first_outstanding: record.first_outstanding,
        answered,
    })
}

fn break_record(target: BreakTarget, under_way: Break) -> pb::BreakRecord {
    let target = match target {
        BreakTarget::Oplock(open) => PbTarget::DurableFileId(open.0),
        BreakTarget::Lease(lease) => PbTarget::Lease(lease.into()),
    };
    pb::BreakRecord {
        target: Some(target),
        to: under_way.to.0,
        required: under_way.required.0,
        ack_until_ms: under_way.ack_until.map(|until| until.0),
    }
}

fn break_under_way(record: pb::BreakRecord) -> Result<(BreakTarget, Break), WireError> {
    let target = match required("BreakRecord", "target", record.target)? {
        PbTarget::DurableFileId(open) => BreakTarget::Oplock(DurableFileId(open)),
        PbTarget::Lease(lease) => BreakTarget::Lease(lease.try_into()?),
    };
    let under_way = Break {
        to: LeaseState(record.to),
        required: LeaseState(record.required),
        ack_until: record.ack_until_ms.map(Timestamp),
    };
    Ok((target, under_way))
}

fn waiting_record(waiting: &WaitingRequest) -> pb::WaitingRecord {
    let awaited = match &waiting.awaited {
        Awaited::Create { durable_file_id, create } => PbAwaited::Create(pb::WaitingCreate {
            durable_file_id: durable_file_id.0,
            create: Some(create.as_ref().into()),
        }),
        Awaited::Operation { open, operation } => PbAwaited::Operate(operate(*open, operation)),
    };
    pb::WaitingRecord {
        index: waiting.index,
        owner: Some(waiting.owner.into()),
        sequence: waiting.sequence,
        file: Some(waiting.file.into()),
        awaited: Some(awaited),
    }
}

fn waiting(record: pb::WaitingRecord) -> Result<WaitingRequest, WireError> {
    const MESSAGE: &str = "WaitingRecord";
    let awaited = match required(MESSAGE, "awaited", record.awaited)? {
        PbAwaited::Create(waiting) => Awaited::Create {
            durable_file_id: DurableFileId(waiting.durable_file_id),
            create: Box::new(required("WaitingCreate", "create", waiting.create)?.try_into()?),
        },
        PbAwaited::Operate(waiting) => {
            let (open, operation) = operation(waiting)?;
            Awaited::Operation { open, operation }
        }
    };
    Ok(WaitingRequest {
        index: record.index,
        owner: required(MESSAGE, "owner", record.owner)?.into(),
        sequence: record.sequence,
        file: required(MESSAGE, "file", record.file)?.into(),
        awaited,
    })
}

fn delete_record(file: FileKey, pending: &DeletePending) -> pb::DeleteRecord {
    let state = match pending.state {
        DeleteState::Pending => PbDeleteState::Pending(smb::Nothing {}),
        DeleteState::Due(to) => PbDeleteState::Due(pb::DeleteDue { to: to.map(Into::into) }),
    };
    pb::DeleteRecord {
        file: Some(file.into()),
        share: pending.share.to_string(),
        path: pending.path.as_ref().to_owned(),
        state: Some(state),
        arbiter: match pending.arbiter {
            // As it was stored before there were others.
            Arbiter::Cluster => smb::Arbiter::Unspecified,
            Arbiter::SmbServer | Arbiter::SmbCluster => smb::Arbiter::from(pending.arbiter),
        }
        .into(),
        image: pending.image.to_vec(),
    }
}

fn delete_pending(record: pb::DeleteRecord) -> Result<(FileKey, DeletePending), WireError> {
    const MESSAGE: &str = "DeleteRecord";
    let state = match required(MESSAGE, "state", record.state)? {
        PbDeleteState::Pending(smb::Nothing {}) => DeleteState::Pending,
        PbDeleteState::Due(due) => DeleteState::Due(due.to.map(Into::into)),
    };
    let file = required(MESSAGE, "file", record.file)?.into();
    let pending = DeletePending {
        share: ShareName::new(&record.share),
        path: record.path.into(),
        arbiter: optional(MESSAGE, "arbiter", record.arbiter)?.unwrap_or(Arbiter::Cluster),
        image: record.image.into(),
        state,
    };
    Ok((file, pending))
}
