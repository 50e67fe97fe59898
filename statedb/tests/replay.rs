//! Random commands: replicas stay equal, nothing contradicts itself, and no open ever has two owners.
//!
//! Goal: whatever the log says, every replica reaches the same state, gives the same answers and tells the same events
//! under the same numbers, also one that was restored from a snapshot in between; who follows the changes it is told
//! misses none; and what proposers were told is consistent with promise and protocol.
//!
//! Method: every command there is, over a world that is small enough for them to meet (four nodes of all kinds of
//! arbiter, three clients, three files in one directory, three shares), three replicas of which one is restored at
//! random points, the invariants after every command, and beside the state an independent reference that looks at
//! commands, answers and events alone.
//!
//! Each run tries 256 logs. The long form, more than a million commands in about two minutes:
//! `HOLDFAST_PROPTEST_CASES=20000 cargo test --release -p holdfast-statedb --test replay`.

mod common;
#[path = "common/random.rs"]
mod random;

mod replay {
    pub(crate) mod follower;
    pub(crate) mod reference;
    pub(crate) mod steps;
}

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use replay::follower::Follower;
use replay::reference::Reference;
use replay::steps::{Proposers, Step, steps};
use statedb::{Command, Limits, Millis, Outcome, Request, State, Timestamp};

/// Small enough to be reached.
const LIMITS: Limits = Limits {
    opens_max: 8,
    open_bytes_max: 150,
    durable_open_timeout_max: Millis(5_000),
    shares_max: 2,
    outstanding_max: 8,
    waiting_max: 2,
    locks_max: 3,
    resiliency_timeout_max: Millis(2_000),
    break_timeout: Millis(500),
    persistent_oplock_break_timeout: Millis(700),
    persistent_lease_break_timeout: Millis(900),
};

/// A refusal leaves who serves, and who is up, as it was, and makes no open. A report of an SMB server that decides
/// itself leaves everything; other requests can have effects before they are refused: what is in their way is broken,
/// and an open is used by a wrong request as by a right one.
fn assert_nothing_gained(command: &Command, before: &State, after: &State) {
    assert!(before.shares().eq(after.shares()), "a refused command changed a share");
    let standing = |state: &State| {
        state.nodes().map(|(id, node)| (id, node.incarnation, node.state)).collect::<Vec<_>>()
    };
    assert_eq!(standing(before), standing(after), "a refused command changed a node");
    let ids =
        |state: &State| state.opens().map(|open| open.description.durable_file_id).collect::<BTreeSet<_>>();
    let waited = before.waiting_requests().count() > after.waiting_requests().count();
    assert!(waited || ids(after).is_subset(&ids(before)), "a refused command made an open");
    let is_report = matches!(
        command,
        Command::FromSmbNode {
            request: Request::Grant(_) | Request::Update(_) | Request::Disconnect(_) | Request::Close(_),
            ..
        }
    );
    assert!(!is_report || before.opens().eq(after.opens()), "a refused report changed an open");
}

/// The log of a failure, and what every command of it was answered.
type Story = Vec<String>;

fn check(steps: Vec<Step>, story: &mut Story) {
    let mut replicas = [State::new(LIMITS), State::new(LIMITS), State::new(LIMITS)];
    let mut proposers = Proposers::default();
    let mut reference = Reference::default();
    let mut follower = Follower::default();
    let mut clock = Timestamp(10_000);
    for Step { elapsed, action, restore } in steps {
        // A new leader's clock may be behind what has been applied; it goes on from there.
        let proposed_at = Timestamp(clock.0.saturating_add_signed(elapsed));
        clock = clock.max(proposed_at);
        let before = replicas[0].clone();
        let command = proposers.command(action, &before);

        let log_id = common::next_log_id(&before, 1);
        let outcome = replicas[0].apply(log_id, proposed_at, &command);
        let events = replicas[0].take_events();
        story.push(format!("{} {command:?}\n    {outcome}", replicas[0].now()));
        story.extend(events.iter().map(|event| format!("    {event}")));
        for replica in &mut replicas[1..] {
            assert_eq!(replica.apply(log_id, proposed_at, &command), outcome, "{command}: answers differ");
            assert_eq!(replica.take_events(), events, "{command}: events differ");
        }
        if restore {
            replicas[2] = common::restored(&replicas[2]);
        }

        let changes = replicas[0].take_changes();
        let [state, others @ ..] = &replicas;
        assert!(others.iter().all(|other| other == state), "{command}: replicas differ");
        state.check_invariants();
        state.check_step_from(&before);
        if let Outcome::Rejected(_) = outcome {
            assert_nothing_gained(&command, &before, state);
        }
        follower.follow(state, &changes);
        follower.assert_is_copy_of(state);
        proposers.learn(&command, &outcome);
        reference.observe(&command, &outcome, &events);
        for open in state.opens() {
            let id = open.description.durable_file_id;
            assert_eq!(
                open.connected_through().as_ref(),
                reference.owners.get(&id),
                "{command}: who has {id}?"
            );
        }
    }
}

proptest! {
    #![proptest_config(random::proptest_config())]

    #[test]
    fn replicas_stay_equal_and_no_open_has_two_owners(steps in steps()) {
        let mut story = Story::new();
        let checked = catch_unwind(AssertUnwindSafe(|| check(steps, &mut story)));
        if let Err(panicked) = checked {
            let message = panicked.downcast_ref::<String>().map_or("a check failed", String::as_str);
            return Err(TestCaseError::fail(format!("{message}\n\nafter:\n{}", story.join("\n"))));
        }
    }
}

/// The property would hold of a state that refuses everything. This one does not: random logs reach every
/// kind of answer that they are meant to try.
#[test]
fn random_logs_reach_every_answer() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut reached = BTreeMap::<String, u64>::new();
    for _ in 0..800 {
        let mut state = State::new(LIMITS);
        let mut proposers = Proposers::default();
        for Step { elapsed, action, .. } in
            steps().new_tree(&mut runner).expect("steps do not filter").current()
        {
            let proposed_at = Timestamp(state.now().0.saturating_add_signed(elapsed));
            let command = proposers.command(action, &state);
            let outcome = state.apply(common::next_log_id(&state, 1), proposed_at, &command);
            proposers.learn(&command, &outcome);
            *reached.entry(random::kind(&outcome)).or_default() += 1;
        }
    }
    let expected = [
        "AnswerForgotten",
        "BreakAcknowledged",
        "BreakPending",
        "Cancelled",
        "Closed",
        "ContextsExcludeEachOther",
        "CreateGuidInUse",
        "CreateGuidMismatch",
        "DeletePending",
        "Disconnected",
        "DurableFileIdInUse",
        "Expired",
        "Fenced",
        "FileClosed",
        "Granted",
        "HeldByPersistentOpen",
        "IdentityChanged",
        "InvalidLockRequest",
        "LeaseKeyInUse",
        "LeaseNotBreaking",
        "LeaseNotFound",
        "LockNotGranted",
        "Locked",
        "NodeDown",
        "NotOwner",
        "NotYoursToDelete",
        "NothingToReplay",
        "OpenConnected",
        "OpenNotFound",
        "OpenTooLarge",
        "Opened",
        "Proceed",
        "RangeNotLocked",
        "Reclaimed",
        "Registered",
        "ReplayMismatch",
        "ResiliencyNotInDialect",
        "ResiliencyTooLong",
        "Resilient",
        "SessionEnded",
        "ShareReleased",
        "ShareServed",
        "ShareServedElsewhere",
        "SharingViolation",
        "TimeoutTooLong",
        "TooManyOpens",
        "TooManyOutstanding",
        "Updated",
        "WrongArbiter",
    ];
    let rare: Vec<_> =
        expected.iter().filter(|kind| reached.get(**kind).is_none_or(|times| *times < 20)).collect();
    assert!(rare.is_empty(), "seldom or never reached: {rare:?}, of {reached:?}");
}
