//! What must be true of every [`State`], and of every step from one to the next; one function per property.
//!
//! Tests run these after every command. They look at everything there is, so a running node does not.

use super::ids::{DurableFileId, Owner};
use super::node::NodeState;
use super::open::{Open, OpenState};
use super::state::State;

impl State {
    /// Checks that nothing here contradicts itself.
    ///
    /// # Panics
    ///
    /// With all [`violations`], if there are any.
    pub fn check_invariants(&self) {
        let found = violations(self);
        assert!(found.is_empty(), "the state contradicts itself:\n{}", found.join("\n"));
    }

    /// Checks that this state can follow `before` by one command.
    ///
    /// # Panics
    ///
    /// With all [`step_violations`], if there are any.
    pub fn check_step_from(&self, before: &Self) {
        let found = step_violations(before, self);
        assert!(found.is_empty(), "no command leads here:\n{}", found.join("\n"));
    }
}

/// Everything that is wrong with the state; empty for a sound one.
#[must_use]
pub fn violations(state: &State) -> Vec<String> {
    let mut found = Vec::new();
    opens_are_held_by_a_live_incarnation(state, &mut found);
    opens_of_a_served_share_are_held_by_its_serving_node(state, &mut found);
    orphans_outlive_their_connection(state, &mut found);
    deadlines_are_within_reach(state, &mut found);
    shares_are_served_by_a_live_incarnation(state, &mut found);
    answers_are_within_the_window(state, &mut found);
    superseded_incarnations_are_older(state, &mut found);
    indexes_agree_with_the_opens(state, &mut found);
    limits_are_kept(state, &mut found);
    found
}

/// Everything that is wrong with `after`, if one command leads to it from `before`.
#[must_use]
pub fn step_violations(before: &State, after: &State) -> Vec<String> {
    let mut found = Vec::new();
    time_and_log_go_forward(before, after, &mut found);
    fenced_incarnations_stay_fenced(before, after, &mut found);
    windows_only_move_forward(before, after, &mut found);
    shares_change_hands_by_way_of_nobody(before, after, &mut found);
    for open in after.opens() {
        if let Some(earlier) = before.open(open.description.durable_file_id) {
            opens_stay_the_same_open(earlier, open, &mut found);
            opens_change_hands_by_way_of_nobody(earlier, open, &mut found);
            deadlines_do_not_move(earlier, open, &mut found);
            expired_opens_do_not_come_back(earlier, open, after, &mut found);
        }
    }
    found
}

fn id(open: &Open) -> DurableFileId {
    open.description.durable_file_id
}

fn opens_are_held_by_a_live_incarnation(state: &State, found: &mut Vec<String>) {
    for open in state.opens() {
        if let Some(holder) = open.holder()
            && !state.is_up(holder)
        {
            found.push(format!("open {} is {}, and {holder} is not up", id(open), open.state));
        }
    }
}

fn opens_of_a_served_share_are_held_by_its_serving_node(state: &State, found: &mut Vec<String>) {
    for open in state.opens() {
        if let Some(holder) = open.holder()
            && let Some(serving) = state.serving_node(&open.description.share)
            && serving.owner != holder
        {
            found.push(format!(
                "open {} is {}, its share is served by {}",
                id(open),
                open.state,
                serving.owner
            ));
        }
    }
}

/// One that is kept may have lost its handle caching since; its SMB server is about to close it.
fn orphans_outlive_their_connection(state: &State, found: &mut Vec<String>) {
    for open in state.opens() {
        if open.holder().is_none() && !open.description.outlives_its_connection() {
            found.push(format!("open {} waits for its client and is not one that may", id(open)));
        }
    }
}

fn deadlines_are_within_reach(state: &State, found: &mut Vec<String>) {
    let latest = state.now().after(state.limits().durable_open_timeout_max);
    for open in state.opens() {
        if let Some(deadline) = open.deadline()
            && deadline > latest
        {
            found.push(format!("open {} waits until {deadline}, longer than any may", id(open)));
        }
    }
}

fn shares_are_served_by_a_live_incarnation(state: &State, found: &mut Vec<String>) {
    for (share, serving) in state.shares() {
        if !state.is_up(serving.owner) {
            found.push(format!("share {share} is served by {}, which is not up", serving.owner));
        }
    }
}

fn answers_are_within_the_window(state: &State, found: &mut Vec<String>) {
    for (node, entry) in state.nodes() {
        let first = entry.first_outstanding;
        let is_stray = |sequence: &&u64| {
            sequence.checked_sub(first).is_none_or(|ahead| ahead >= state.limits().outstanding_max)
        };
        if let Some(stray) = entry.answered.keys().find(is_stray) {
            found.push(format!("node {node} keeps the answer to {stray}, its window begins at {first}"));
        }
        if entry.state != NodeState::Up && !entry.answered.is_empty() {
            found.push(format!("node {node} is down and keeps answers that nobody may ask for"));
        }
    }
}

fn superseded_incarnations_are_older(state: &State, found: &mut Vec<String>) {
    for (node, entry) in state.nodes() {
        for (incarnation, instance) in &entry.superseded {
            if *incarnation >= entry.incarnation || *instance == entry.instance {
                found.push(format!("node {node}: {incarnation} was not superseded by {}", entry.incarnation));
            }
        }
    }
}

fn indexes_agree_with_the_opens(state: &State, found: &mut Vec<String>) {
    if state.opens != state.opens.rebuilt() {
        found.push("an index of the opens is not what the opens make it".to_owned());
    }
}

fn limits_are_kept(state: &State, found: &mut Vec<String>) {
    let limits = state.limits();
    if state.opens_len() as u64 > limits.opens_max {
        found.push(format!("{} opens, the limit is {}", state.opens_len(), limits.opens_max));
    }
    let shares = state.shares().count() as u64;
    if shares > limits.shares_max {
        found.push(format!("{shares} shares, the limit is {}", limits.shares_max));
    }
}

fn time_and_log_go_forward(before: &State, after: &State, found: &mut Vec<String>) {
    if after.now() < before.now() {
        found.push(format!("cluster time went back from {} to {}", before.now(), after.now()));
    }
    if after.applied() <= before.applied() {
        found.push(format!("applied went from {:?} to {:?}", before.applied(), after.applied()));
    }
}

fn fenced_incarnations_stay_fenced(before: &State, after: &State, found: &mut Vec<String>) {
    for (node, earlier) in before.nodes() {
        let Some(later) = after.node(node) else {
            found.push(format!("node {node} was forgotten"));
            continue;
        };
        let owner = Owner { node, incarnation: earlier.incarnation };
        if later.incarnation < earlier.incarnation {
            found
                .push(format!("node {node} went back from {} to {}", earlier.incarnation, later.incarnation));
        }
        if after.is_up(owner) && !before.is_up(owner) {
            found.push(format!("{owner} was fenced and is up again"));
        }
        if (later.incarnation == earlier.incarnation) != (later.instance == earlier.instance) {
            found.push(format!("{owner} and its instance did not go together"));
        }
    }
}

fn windows_only_move_forward(before: &State, after: &State, found: &mut Vec<String>) {
    for (node, earlier) in before.nodes() {
        if let Some(later) = after.node(node)
            && later.incarnation == earlier.incarnation
        {
            if later.first_outstanding < earlier.first_outstanding {
                found.push(format!("the window of node {node} went back"));
            }
            for (sequence, outcome) in &earlier.answered {
                if later.answered.get(sequence).is_some_and(|later| later != outcome) {
                    found.push(format!("node {node} would get another answer to {sequence} than before"));
                }
            }
        }
    }
}

fn shares_change_hands_by_way_of_nobody(before: &State, after: &State, found: &mut Vec<String>) {
    for (share, later) in after.shares() {
        if let Some(earlier) = before.serving_node(share)
            && earlier != later
        {
            found.push(format!("share {share} went from {} straight to {}", earlier.owner, later.owner));
        }
    }
}

fn opens_stay_the_same_open(earlier: &Open, later: &Open, found: &mut Vec<String>) {
    let (earlier, later) = (&earlier.description, &later.description);
    if (earlier.create_guid, &earlier.durable_owner, &earlier.share, earlier.file)
        != (later.create_guid, &later.durable_owner, &later.share, later.file)
    {
        found.push(format!("open {} has become another one", later.durable_file_id));
    }
}

fn opens_change_hands_by_way_of_nobody(earlier: &Open, later: &Open, found: &mut Vec<String>) {
    if let (Some(from), Some(to)) = (earlier.holder(), later.holder())
        && from != to
    {
        found.push(format!("open {} went from {from} straight to {to}", id(later)));
    }
}

fn deadlines_do_not_move(earlier: &Open, later: &Open, found: &mut Vec<String>) {
    if let (Some(promised), Some(deadline)) = (earlier.deadline(), later.deadline())
        && promised != deadline
    {
        found.push(format!("the deadline of open {} moved from {promised} to {deadline}", id(later)));
    }
}

fn expired_opens_do_not_come_back(earlier: &Open, later: &Open, after: &State, found: &mut Vec<String>) {
    if let Some(deadline) = earlier.deadline()
        && deadline <= after.now()
        && let OpenState::Connected { owner } = later.state
    {
        found.push(format!("open {} expired at {deadline} and came back through {owner}", id(later)));
    }
}
