//! `Record`, and `Node` inside it.

use statedb::{Incarnation, Instance, Node, NodeId, NodeState, Record, ServingNode, ShareName, Timestamp};

use super::{required, sixteen};
use crate::WireError;
use crate::pb::storage::v1 as pb;
use pb::node_record::State as PbNodeState;
use pb::record::Record as PbRecord;

impl From<&Record> for pb::Record {
    fn from(record: &Record) -> Self {
        let record = match record {
            Record::Meta { applied, now } => {
                PbRecord::Meta(pb::StateMeta { applied: applied.map(Into::into), now_ms: now.0 })
            }
            Record::Node(id, node) => PbRecord::Node(node_record(*id, node)),
            Record::Share(share, serving) => PbRecord::Share(pb::ShareRecord {
                share: share.as_str().to_owned(),
                owner: Some(serving.owner.into()),
            }),
            Record::Open(open) => PbRecord::Open(Box::new(open.as_ref().into())),
        };
        Self { record: Some(record) }
    }
}

impl TryFrom<pb::Record> for Record {
    type Error = WireError;

    fn try_from(record: pb::Record) -> Result<Self, WireError> {
        Ok(match required("Record", "record", record.record)? {
            PbRecord::Meta(meta) => {
                Self::Meta { applied: meta.applied.map(Into::into), now: Timestamp(meta.now_ms) }
            }
            PbRecord::Node(record) => Self::Node(NodeId(record.node_id), node(record)?),
            PbRecord::Share(share) => {
                let owner = required("ShareRecord", "owner", share.owner)?.into();
                Self::Share(ShareName::new(&share.share), ServingNode { owner })
            }
            PbRecord::Open(open) => Self::Open(Box::new((*open).try_into()?)),
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
        state,
        first_outstanding: record.first_outstanding,
        answered,
    })
}
