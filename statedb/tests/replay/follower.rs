//! Who copies only what he is told has changed, as the stored copy does.

use std::collections::BTreeMap;

use statedb::{
    Break, BreakTarget, Changes, DeletePending, DurableFileId, FileKey, Node, NodeId, Open, ServingNode,
    ShareName, State, WaitingRequest,
};

/// A copy of every table.
#[derive(Default)]
pub(crate) struct Follower {
    nodes: BTreeMap<NodeId, Node>,
    shares: BTreeMap<ShareName, ServingNode>,
    opens: BTreeMap<DurableFileId, Open>,
    breaks: BTreeMap<BreakTarget, Break>,
    waiting: BTreeMap<u64, WaitingRequest>,
    deletes: BTreeMap<FileKey, DeletePending>,
}

impl Follower {
    pub(crate) fn follow(&mut self, state: &State, changes: &Changes) {
        for id in &changes.nodes {
            copy_row(&mut self.nodes, id, state.node(*id).cloned());
        }
        for share in &changes.shares {
            copy_row(&mut self.shares, share, state.serving_node(share));
        }
        for id in &changes.opens {
            copy_row(&mut self.opens, id, state.open(*id).cloned());
        }
        for target in &changes.breaks {
            copy_row(&mut self.breaks, target, state.break_under_way(*target));
        }
        for index in &changes.waiting {
            copy_row(&mut self.waiting, index, state.waiting_request(*index).cloned());
        }
        for file in &changes.deletes {
            copy_row(&mut self.deletes, file, state.delete_pending(*file).cloned());
        }
    }

    pub(crate) fn assert_is_copy_of(&self, state: &State) {
        assert!(
            state.nodes().eq(self.nodes.iter().map(|(id, node)| (*id, node))),
            "an untold change of a node"
        );
        assert!(
            state.shares().eq(self.shares.iter().map(|(name, serving)| (name, *serving))),
            "an untold change of a share"
        );
        assert!(state.opens().eq(self.opens.values()), "an untold change of an open");
        assert!(
            state.breaks().eq(self.breaks.iter().map(|(target, under_way)| (*target, *under_way))),
            "an untold change of a break"
        );
        assert!(state.waiting_requests().eq(self.waiting.values()), "an untold change of who waits");
        assert!(
            state.deletes_pending().eq(self.deletes.iter().map(|(file, pending)| (*file, pending))),
            "an untold change of a deletion"
        );
    }
}

fn copy_row<K: Ord + Clone, V>(table: &mut BTreeMap<K, V>, key: &K, row: Option<V>) {
    match row {
        Some(row) => table.insert(key.clone(), row),
        None => table.remove(key),
    };
}
