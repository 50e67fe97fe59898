//! [`State`] to an ordered stream of records and back.

use std::fmt;

use super::breaks::{Break, BreakTarget};
use super::delete_on_close::DeletePending;
use super::ids::{FileKey, LogId, NodeId, ShareName};
use super::limits::Limits;
use super::node::Node;
use super::open::Open;
use super::share::ServingNode;
use super::state::State;
use super::time::Timestamp;
use super::waiting::WaitingRequest;

/// One row of one table. A snapshot is the stream of all of them; the stored copy keeps them by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Exactly one: where the state stands.
    Meta {
        /// The newest applied entry.
        applied: Option<LogId>,
        /// Cluster time.
        now: Timestamp,
        /// The number that the next event will have.
        next_event: u64,
    },
    /// A node.
    Node(NodeId, Node),
    /// A share and who serves it.
    Share(ShareName, ServingNode),
    /// An open.
    Open(Box<Open>),
    /// A break under way.
    Break(BreakTarget, Break),
    /// A request that waits for breaks.
    Waiting(Box<WaitingRequest>),
    /// A file that is to be deleted.
    Delete(FileKey, DeletePending),
}

/// Why a stream of records is no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// The stream has no meta record.
    NoMeta,
    /// Two records have the same key.
    Duplicate,
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMeta => "the snapshot has no meta record: it is cut off or empty",
            Self::Duplicate => "the snapshot has two records with one key",
        })
    }
}

impl std::error::Error for SnapshotError {}

impl State {
    /// All records: meta, nodes, shares, opens, breaks, waiting requests, deletions, each table by key.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let meta = Record::Meta { applied: self.applied(), now: self.now(), next_event: self.next_event() };
        let nodes = self.nodes().map(|(id, node)| Record::Node(id, node.clone()));
        let shares = self.shares().map(|(name, serving)| Record::Share(name.clone(), serving));
        let opens = self.opens().map(|open| Record::Open(Box::new(open.clone())));
        let breaks = self.breaks().map(|(target, under_way)| Record::Break(target, under_way));
        let waiting = self.waiting_requests().map(|waiting| Record::Waiting(Box::new(waiting.clone())));
        let deletes = self.deletes_pending().map(|(file, pending)| Record::Delete(file, pending.clone()));
        std::iter::once(meta)
            .chain(nodes)
            .chain(shares)
            .chain(opens)
            .chain(breaks)
            .chain(waiting)
            .chain(deletes)
    }

    /// The state that these records are of, in any order.
    ///
    /// # Errors
    ///
    /// If the stream cannot be all the records of one state.
    pub fn from_records(
        limits: Limits,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<Self, SnapshotError> {
        let mut state = Self::new(limits);
        let mut meta = None;
        for record in records {
            let is_new = match record {
                Record::Meta { applied, now, next_event } => {
                    meta.replace((applied, now, next_event)).is_none()
                }
                Record::Node(id, node) => state.nodes.insert(id, node).is_none(),
                Record::Share(name, serving) => state.shares.insert(name, serving).is_none(),
                Record::Open(open) => state.opens.insert(*open).is_none(),
                Record::Break(target, under_way) => state.breaks.insert(target, under_way).is_none(),
                Record::Waiting(waiting) => state.waiting.insert(*waiting).is_none(),
                Record::Delete(file, pending) => state.deletes.insert(file, pending).is_none(),
            };
            if !is_new {
                return Err(SnapshotError::Duplicate);
            }
        }
        let (applied, now, next_event) = meta.ok_or(SnapshotError::NoMeta)?;
        state.set_meta(applied, now, next_event);
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ids::{Incarnation, NodeId, Owner};

    const META: Record =
        Record::Meta { applied: Some(LogId { term: 1, index: 9 }), now: Timestamp(5), next_event: 3 };

    #[test]
    fn records_come_back_in_any_order() {
        let owner = Owner { node: NodeId(1), incarnation: Incarnation(1) };
        let share = Record::Share(ShareName::new("data"), ServingNode { owner });
        let state = State::from_records(Limits::DEFAULT, [share.clone(), META])
            .expect("a share, and where it stands");
        assert_eq!(state.records().collect::<Vec<_>>(), [META, share]);
    }

    #[test]
    fn a_restored_state_has_no_changes_to_tell() {
        let mut state = State::from_records(Limits::DEFAULT, [META]).expect("an empty state");
        assert_eq!(state.take_changes(), Default::default());
    }

    #[test]
    fn a_stream_that_is_no_state_is_refused() {
        assert_eq!(State::from_records(Limits::DEFAULT, []), Err(SnapshotError::NoMeta));
        assert_eq!(State::from_records(Limits::DEFAULT, [META, META]), Err(SnapshotError::Duplicate));
    }
}
