//! What must be true of every [`State`], one function per property.

use super::open::OpenState;
use super::state::State;

/// Everything that is wrong with the state; empty for a sound one.
#[must_use]
pub fn violations(state: &State) -> Vec<String> {
    let mut found = Vec::new();
    connected_opens_are_owned_by_a_live_incarnation(state, &mut found);
    connected_opens_are_owned_by_the_serving_node(state, &mut found);
    shares_are_served_by_a_live_incarnation(state, &mut found);
    kept_opens_are_kept_by_a_live_incarnation(state, &mut found);
    limits_are_kept(state, &mut found);
    found
}

fn connected_opens_are_owned_by_a_live_incarnation(state: &State, found: &mut Vec<String>) {
    for open in state.opens() {
        if let OpenState::Connected { owner } = open.state
            && !state.is_up(owner)
        {
            found.push(format!(
                "open {} is owned by {owner}, which is not up",
                open.description.durable_file_id
            ));
        }
    }
}

fn connected_opens_are_owned_by_the_serving_node(state: &State, found: &mut Vec<String>) {
    for open in state.opens() {
        if let OpenState::Connected { owner } = open.state
            && let Some(serving) = state.serving_node(&open.description.share)
            && serving.owner != owner
        {
            found.push(format!(
                "open {} is owned by {owner}, its share is served by {}",
                open.description.durable_file_id, serving.owner
            ));
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

fn kept_opens_are_kept_by_a_live_incarnation(state: &State, found: &mut Vec<String>) {
    for open in state.opens() {
        if let OpenState::Disconnected { keeper: Some(keeper), .. } = open.state
            && !state.is_up(keeper)
        {
            found.push(format!(
                "open {} is kept by {keeper}, which is not up",
                open.description.durable_file_id
            ));
        }
    }
}

fn limits_are_kept(state: &State, found: &mut Vec<String>) {
    let limits = state.limits();
    if state.opens_len() as u64 > limits.opens_max {
        found.push(format!("{} opens, the limit is {}", state.opens_len(), limits.opens_max));
    }
    for (id, node) in state.nodes() {
        if node.answered.len() as u64 > limits.outstanding_max {
            found.push(format!("node {id}: {} answers are kept", node.answered.len()));
        }
    }
}
