//! What must be true of every [`State`], and of every step from one to the next; one function per property.
//!
//! Tests run these after every command. They look at everything there is, so a running node does not.
//!
//! What may be shared, cached and locked is checked between opens of SMB servers that let the cluster decide
//! ([`Arbiter::Cluster`]). Of the others it has only been recorded what they decided themselves.

use std::collections::{BTreeMap, BTreeSet};

use super::breaks::BreakTarget;
use super::delete_on_close::DeleteState;
use super::ids::{DurableFileId, FileKey, Owner};
use super::node::{Arbiter, NodeState};
use super::open::{ByteRangeLock, Durability, Open, OpenDescription, OpenState};
use super::oplock::{LeaseState, LeaseVersion, Oplock, OplockState};
use super::outcome::Outcome;
use super::state::State;
use super::waiting::Awaited;

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
    indexes_agree_with_the_records(state, &mut found);
    limits_are_kept(state, &mut found);
    breaks_are_of_something_that_is_cached(state, &mut found);
    breaks_of_a_connected_holder_have_a_deadline(state, &mut found);
    breaking_opens_have_a_break(state, &mut found);
    opens_of_a_lease_agree(state, &mut found);
    disconnected_durable_opens_are_not_breaking(state, &mut found);
    waiting_requests_wait_for_a_break(state, &mut found);
    files_that_are_due_for_deletion_are_closed(state, &mut found);
    lock_sequence_arrays_are_well_formed(state, &mut found);
    for opens in opens_that_the_cluster_arbitrates(state).values() {
        share_modes_are_compatible(opens, &mut found);
        cachings_are_compatible(opens, &mut found);
        locks_are_compatible(opens, &mut found);
    }
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
    event_numbers_only_grow(before, after, &mut found);
    closed_opens_do_not_come_back(before, after, &mut found);
    for open in after.opens() {
        if let Some(earlier) = before.open(open.description.durable_file_id) {
            opens_stay_the_same_open(earlier, open, &mut found);
            opens_change_hands_by_way_of_nobody(earlier, open, &mut found);
            deadlines_do_not_move(earlier, open, &mut found);
            expired_opens_do_not_come_back(earlier, open, after, &mut found);
            leases_change_with_their_epoch(earlier, open, &mut found);
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

/// One that is kept may have lost its handle caching since; its SMB server is about to close it. So may an orphan in the
/// records that SMB servers have together; whichever of them has taken it is about to close the open.
fn orphans_outlive_their_connection(state: &State, found: &mut Vec<String>) {
    for open in state.opens().filter(|open| open.arbiter != Arbiter::SmbCluster) {
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

/// A state that is put together from its records makes its indexes anew.
fn indexes_agree_with_the_records(state: &State, found: &mut Vec<String>) {
    match State::from_records(state.limits(), state.records()) {
        Ok(rebuilt) if rebuilt == *state => {}
        Ok(_) => found.push("an index is not what the records make it".to_owned()),
        Err(error) => found.push(format!("the records are no state: {error}")),
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
    let waiting = state.waiting_requests().count() as u64;
    if waiting > limits.waiting_max {
        found.push(format!("{waiting} requests wait, the limit is {}", limits.waiting_max));
    }
    for open in state.opens().filter(|open| is_arbitrated_by_the_cluster(open)) {
        let locks = open.description.byte_range_locks.len() as u64;
        if locks > limits.locks_max {
            found.push(format!("open {} has {locks} locks, the limit is {}", id(open), limits.locks_max));
        }
    }
}

/// Whether the cluster has decided what this open may do.
fn is_arbitrated_by_the_cluster(open: &Open) -> bool {
    open.arbiter == Arbiter::Cluster
}

/// The opens of each file that the cluster has decided about.
fn opens_that_the_cluster_arbitrates(state: &State) -> BTreeMap<FileKey, Vec<&Open>> {
    let mut files = BTreeMap::<FileKey, Vec<&Open>>::new();
    for open in state.opens().filter(|open| is_arbitrated_by_the_cluster(open)) {
        files.entry(open.description.file).or_default().push(open);
    }
    files
}

/// What the open's caching is known by: its lease, which it may share with others, or itself.
fn caching_key(description: &OpenDescription) -> BreakTarget {
    match description.lease_id() {
        Some(lease) => BreakTarget::Lease(lease),
        None => BreakTarget::Oplock(description.durable_file_id),
    }
}

fn opens_of_target(state: &State, target: BreakTarget) -> Vec<&Open> {
    match target {
        BreakTarget::Oplock(open) => state.open(open).into_iter().collect(),
        BreakTarget::Lease(lease) => state.opens_of_lease(lease).collect(),
    }
}

fn breaks_are_of_something_that_is_cached(state: &State, found: &mut Vec<String>) {
    for (target, under_way) in state.breaks() {
        let opens = opens_of_target(state, target);
        if opens.is_empty() {
            found.push(format!("{target} is broken and nobody has it"));
        }
        for open in opens {
            let caching = open.description.oplock.caching();
            if caching_key(&open.description) != target {
                found.push(format!("open {} is broken as {target} and is none", id(open)));
            }
            let (to, required) = (under_way.to, under_way.required);
            if caching == to || caching.0 & to.0 != to.0 || to.0 & required.0 != required.0 {
                found.push(format!("open {} caches {caching}, its break is to {to}, {required}", id(open)));
            }
        }
    }
}

fn breaks_of_a_connected_holder_have_a_deadline(state: &State, found: &mut Vec<String>) {
    for (target, under_way) in state.breaks() {
        let is_connected =
            opens_of_target(state, target).iter().any(|open| open.connected_through().is_some());
        if is_connected && under_way.ack_until.is_none() {
            found.push(format!("the break of {target} waits for ever"));
        }
    }
}

/// An open whose client is away while another answers for its lease has no part in that, unless it is persistent.
fn breaking_opens_have_a_break(state: &State, found: &mut Vec<String>) {
    for open in state.opens().filter(|open| is_arbitrated_by_the_cluster(open)) {
        let OpenDescription { oplock_state, durability, .. } = open.description;
        let is_breaking = oplock_state == OplockState::Breaking;
        let has_part = open.connected_through().is_some() || durability == Durability::Persistent;
        let is_under_way = state.break_under_way(caching_key(&open.description)).is_some();
        if (is_breaking && !is_under_way) || (has_part && is_under_way && !is_breaking) {
            found.push(format!("open {} is {oplock_state}, the table of breaks disagrees", id(open)));
        }
    }
}

fn opens_of_a_lease_agree(state: &State, found: &mut Vec<String>) {
    for open in state.opens().filter(|open| is_arbitrated_by_the_cluster(open)) {
        let Some(lease) = open.description.oplock.lease() else { continue };
        let lease_id = open.description.lease_id().expect("an open with a lease has the lease's id");
        for other in state.opens_of_lease(lease_id).filter(|other| id(other) > id(open)) {
            let other_lease = other.description.oplock.lease().expect("an open of a lease has a lease");
            if (lease.state, lease.epoch, lease.version, open.description.file)
                != (other_lease.state, other_lease.epoch, other_lease.version, other.description.file)
            {
                found.push(format!("opens {} and {} disagree on lease {}", id(open), id(other), lease.key));
            }
        }
    }
}

/// Nobody could acknowledge it, and nobody would send it again when the client is back.
fn disconnected_durable_opens_are_not_breaking(state: &State, found: &mut Vec<String>) {
    for open in state.opens().filter(|open| is_arbitrated_by_the_cluster(open)) {
        let is_durable = matches!(open.description.durability, Durability::DurableV1 | Durability::DurableV2);
        let is_breaking = open.description.oplock_state == OplockState::Breaking;
        if open.connected_through().is_none() && is_durable && is_breaking {
            found.push(format!("open {} waits for its client while it is broken", id(open)));
        }
    }
}

fn waiting_requests_wait_for_a_break(state: &State, found: &mut Vec<String>) {
    let broken: BTreeSet<FileKey> = state
        .breaks()
        .flat_map(|(target, _)| opens_of_target(state, target))
        .map(|open| open.description.file)
        .collect();
    for waiting in state.waiting_requests() {
        let (index, owner) = (waiting.index, waiting.owner);
        if !broken.contains(&waiting.file) {
            found.push(format!("the request of entry {index} waits for nothing"));
        }
        if !state.is_up(owner) {
            found.push(format!("the request of entry {index} is {owner}'s, which is not up"));
        }
        let answered = state.node(owner.node).and_then(|node| node.answered.get(&waiting.sequence));
        if answered.is_some_and(|outcome| *outcome != Outcome::BreakPending) {
            found.push(format!("the request of entry {index} waits and is answered"));
        }
    }
}

/// An SMB server that decides itself is not asked before it reports an open.
fn files_that_are_due_for_deletion_are_closed(state: &State, found: &mut Vec<String>) {
    for (file, pending) in state.deletes_pending() {
        match pending.state {
            DeleteState::Pending if state.opens_of_file(file).next().is_none() => {
                found.push(format!("file {file} is to be deleted at its last close, and closed"));
            }
            DeleteState::Due(_) if state.opens_of_file(file).any(is_arbitrated_by_the_cluster) => {
                found.push(format!("file {file} is deleted while it is open"));
            }
            DeleteState::Due(Some(owner)) if !state.is_up(owner) => {
                found.push(format!("file {file} is {owner}'s to delete, which is not up"));
            }
            DeleteState::Pending | DeleteState::Due(_) => {}
        }
    }
}

/// MS-SMB2 3.3.1.10: 64 entries, each of them a number of four bits or void.
fn lock_sequence_arrays_are_well_formed(state: &State, found: &mut Vec<String>) {
    const ENTRIES: usize = 64;
    const NUMBER_MAX: u8 = 0xF;
    const VOID: u8 = 0xFF;
    for open in state.opens().filter(|open| is_arbitrated_by_the_cluster(open)) {
        let array = &open.description.lock_sequence_array;
        let is_entry = |entry: &u8| *entry <= NUMBER_MAX || *entry == VOID;
        if array.len() > ENTRIES || !array.iter().all(is_entry) {
            found.push(format!("the lock sequence array of open {} is none", id(open)));
        }
    }
}

/// Pairs of opens, each once.
fn pairs<'a>(opens: &'a [&'a Open]) -> impl Iterator<Item = (&'a Open, &'a Open)> {
    opens.iter().enumerate().flat_map(|(first, one)| opens[..first].iter().map(|other| (*other, *one)))
}

fn share_modes_are_compatible(opens: &[&Open], found: &mut Vec<String>) {
    for (one, other) in pairs(opens) {
        if excludes(&one.description, &other.description) || excludes(&other.description, &one.description) {
            found.push(format!("opens {} and {} exclude each other", id(one), id(other)));
        }
    }
}

/// What MS-FSA 2.1.5.1.2.2 lets one share bit govern: FILE_SHARE_READ, FILE_SHARE_WRITE, FILE_SHARE_DELETE, and
/// FILE_READ_DATA or FILE_EXECUTE, FILE_WRITE_DATA or FILE_APPEND_DATA, DELETE.
const SHARED_ACCESS: [(u32, u32); 3] = [(0x1, 0x21), (0x2, 0x06), (0x4, 0x1_0000)];

/// Whether one open keeps the other from what it was granted. An open without access to data neither keeps nor is kept.
fn excludes(keeper: &OpenDescription, other: &OpenDescription) -> bool {
    let touches_data = SHARED_ACCESS.iter().any(|(_, access)| keeper.granted_access.0 & access != 0);
    touches_data
        && SHARED_ACCESS
            .iter()
            .any(|(share, access)| keeper.share_access.0 & share == 0 && other.granted_access.0 & access != 0)
}

/// Who caches writes has the file for himself: nobody else caches anything, or reads or writes past him.
fn cachings_are_compatible(opens: &[&Open], found: &mut Vec<String>) {
    for (one, other) in pairs(opens) {
        if caching_key(&one.description) == caching_key(&other.description) {
            continue;
        }
        for (writer, other) in [(one, other), (other, one)] {
            if writer.description.oplock.caching().0 & LeaseState::WRITE == 0 {
                continue;
            }
            if other.description.oplock.caching().0 != 0 || touches_content(&other.description) {
                found.push(format!("open {} caches writes beside open {}", id(writer), id(other)));
            }
        }
    }
}

/// Whether the open can see what others cache (MS-FSA 2.1.4.12): it has more than FILE_READ_ATTRIBUTES,
/// FILE_WRITE_ATTRIBUTES, READ_CONTROL and SYNCHRONIZE.
fn touches_content(description: &OpenDescription) -> bool {
    const ATTRIBUTES_ONLY: u32 = 0x0080 | 0x0100 | 0x0002_0000 | 0x0010_0000;
    description.granted_access.0 & !ATTRIBUTES_ONLY != 0
}

fn locks_are_compatible(opens: &[&Open], found: &mut Vec<String>) {
    for (one, other) in pairs(opens) {
        let locks = &one.description.byte_range_locks;
        for lock in locks {
            for against in &other.description.byte_range_locks {
                if (lock.exclusive || against.exclusive) && overlap(lock, against) {
                    let offset = lock.offset.max(against.offset);
                    found.push(format!("opens {} and {} lock byte {offset}", id(one), id(other)));
                }
            }
        }
    }
}

/// MS-FSA 2.1.4.10. A lock of no bytes lies between two bytes, and only a lock of both is in its way.
fn overlap(one: &ByteRangeLock, other: &ByteRangeLock) -> bool {
    let end = |lock: &ByteRangeLock| u128::from(lock.offset) + u128::from(lock.length);
    u128::from(one.offset) < end(other) && u128::from(other.offset) < end(one)
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
                // An interim answer is the only one that another may follow.
                let is_final = *outcome != Outcome::BreakPending;
                if is_final && later.answered.get(sequence).is_some_and(|later| later != outcome) {
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
    if !earlier.description.is_same_open(&later.description) {
        found.push(format!("open {} has become another one", later.description.durable_file_id));
    }
}

/// But where the cluster decides, or SMB servers have their records together, a client may come for its open through
/// another node than the one that keeps it, and for a persistent one through another than the one that has it.
fn opens_change_hands_by_way_of_nobody(earlier: &Open, later: &Open, found: &mut Vec<String>) {
    let is_persistent = later.description.durability == Durability::Persistent;
    let may_be_fetched = match later.arbiter {
        Arbiter::Cluster => earlier.connected_through().is_none() || is_persistent,
        Arbiter::SmbCluster => earlier.connected_through().is_none(),
        Arbiter::SmbServer => false,
    };
    if let (Some(from), Some(to)) = (earlier.holder(), later.holder())
        && from != to
        && !may_be_fetched
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
        && let OpenState::Connected { owner, .. } = later.state
    {
        found.push(format!("open {} expired at {deadline} and came back through {owner}", id(later)));
    }
}

fn event_numbers_only_grow(before: &State, after: &State, found: &mut Vec<String>) {
    if after.next_event() < before.next_event() {
        found.push(format!("event {} comes again", after.next_event()));
    }
}

/// The ids that the cluster chooses carry this bit and the place of their CREATE in the log.
const CHOSEN_BY_THE_CLUSTER: u64 = 1 << 63;

/// An open that is new has a new id: that of the entry that made it, or of the CREATE that waited.
fn closed_opens_do_not_come_back(before: &State, after: &State, found: &mut Vec<String>) {
    let applied = after.applied().map_or(0, |applied| applied.index);
    for open in after.opens().filter(|open| before.open(id(open)).is_none()) {
        let id = id(open);
        let is_new = id.0 == CHOSEN_BY_THE_CLUSTER | applied
            || before.waiting_requests().any(|waiting| {
                matches!(waiting.awaited, Awaited::Create { durable_file_id, .. } if durable_file_id == id)
            });
        if id.0 & CHOSEN_BY_THE_CLUSTER != 0 && !is_new {
            found.push(format!("open {id} was closed and came back"));
        }
    }
}

/// MS-SMB2 3.3.1.12: the epoch grows by one with every change of the state, and with nothing else. A break that begins
/// counts as a change.
fn leases_change_with_their_epoch(earlier: &Open, later: &Open, found: &mut Vec<String>) {
    if !is_arbitrated_by_the_cluster(later) {
        return;
    }
    let (Oplock::Lease(before), Oplock::Lease(now)) = (earlier.description.oplock, later.description.oplock)
    else {
        return;
    };
    if before.key != now.key || before.version != now.version {
        found.push(format!("open {} has another lease than before", id(later)));
    }
    if now.state.0 & !before.state.0 != 0 && now.epoch == before.epoch && now.version == LeaseVersion::V2 {
        found.push(format!("the lease of open {} has grown and its epoch has not", id(later)));
    }
    if now.epoch.0.wrapping_sub(before.epoch.0) > u16::MAX / 2 {
        found.push(format!("the epoch of the lease of open {} went back", id(later)));
    }
}
