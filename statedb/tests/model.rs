//! Share modes, leases, oplocks and byte-range locks once more, and held against the real ones.
//!
//! Goal: what the replicated state decides is what the specification says, not what its author took it for.
//!
//! Method: a second, independent model that is written from MS-FSA 2.1.4.10, 2.1.4.12, 2.1.5.1.2 and 2.1.5.18 and
//! MS-SMB2 3.3.4.6, 3.3.4.7, 3.3.5.14 and 3.3.5.22 alone: it has lists where the state has indexes, sets of letters
//! where that has bits, and locks byte by byte. Three clients and two nodes do random things to two files and their
//! directory; after each of them the model says what may have happened, and everything that is open, cached, locked or
//! waits is compared.
//!
//! What it leaves out: what makes an open durable, application instances, replays, and delete on close. The schedules
//! do not meet these, and take durability from the real state.
//!
//! Each run tries 256 schedules. The long form:
//! `HOLDFAST_PROPTEST_CASES=100000 cargo test --release -p holdfast-statedb --test model`.

#[path = "common/random.rs"]
mod random;

mod model {
    pub(crate) mod cluster;
    pub(crate) mod letters;
    pub(crate) mod locks;
    pub(crate) mod schedule;
    pub(crate) mod share_modes;
}

use std::collections::BTreeMap;

use model::cluster::{Cluster, Seen};
use model::schedule::{Clients, Event, Step, steps};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use statedb::{
    Command, EventKind, Limits, LogId, Millis, OpenDescription, Outcome, Owner, Request, State, Timestamp,
    state::invariants::violations,
};

const LIMITS: Limits = Limits {
    break_timeout: Millis(1_000),
    persistent_oplock_break_timeout: Millis(1_500),
    persistent_lease_break_timeout: Millis(2_000),
    ..Limits::DEFAULT
};

/// The real state, the model, and what has happened to them.
struct Comparison {
    state: State,
    cluster: Cluster,
    clients: Clients,
    now: Timestamp,
    story: Vec<String>,
    answers: Vec<Outcome>,
}

impl Comparison {
    fn new() -> Result<Self, TestCaseError> {
        let mut comparison = Self {
            state: State::new(LIMITS),
            cluster: Cluster::new(LIMITS),
            clients: Clients::default(),
            now: Timestamp(10_000),
            story: Vec::new(),
            answers: Vec::new(),
        };
        for command in comparison.clients.register_all() {
            comparison.apply(&command)?;
        }
        Ok(comparison)
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.now = self.now.after(Millis(step.elapsed));
        let Some(command) = self.clients.command(&step.event, &self.cluster) else { return Ok(()) };
        self.apply(&command)?;
        if let Event::NodeDown(node) = step.event {
            // Its next start is what makes it of use again.
            let command = self.clients.register(node);
            self.apply(&command)?;
        }
        Ok(())
    }

    fn apply(&mut self, command: &Command) -> Result<(), TestCaseError> {
        let log_id = LogId { term: 1, index: self.state.applied().map_or(0, |applied| applied.index + 1) };
        let outcome = self.state.apply(log_id, self.now, command);
        let finished: Vec<(Owner, u64, Outcome)> = self
            .state
            .take_events()
            .into_iter()
            .filter_map(|event| match (event.to, event.kind) {
                (Some(owner), EventKind::RequestFinished { sequence, outcome }) => {
                    Some((owner, sequence, outcome))
                }
                _ => None,
            })
            .collect();
        self.story.push(format!("{} {}\n    {outcome}", self.now, brief(command)));
        self.story.extend(
            finished
                .iter()
                .map(|(owner, sequence, outcome)| format!("    {owner}#{sequence} is told {outcome}")),
        );
        self.answers.push(outcome.clone());
        self.answers.extend(finished.iter().map(|(_, _, outcome)| outcome.clone()));
        self.clients.learn(command, &outcome);

        let seen = Seen { outcome: &outcome, finished, state: &self.state };
        let mut found = violations(&self.state);
        found.extend(self.cluster.follow(self.now, command, &seen).err());
        if found.is_empty() {
            return Ok(());
        }
        let breaks: Vec<_> = self.state.breaks().collect();
        let opens: Vec<_> = self
            .state
            .opens()
            .map(|open| {
                let description = &open.description;
                let OpenDescription { durable_file_id, oplock, oplock_state, durability, .. } = description;
                format!("{durable_file_id} {} {oplock:?} {oplock_state} {durability}", open.state)
            })
            .collect();
        Err(TestCaseError::fail(format!(
            "{}\n\nafter:\n{}\n\nopens {opens:#?}\nbreaks {breaks:?}",
            found.join("\n"),
            self.story.join("\n")
        )))
    }
}

/// A command as a failure tells it.
fn brief(command: &Command) -> String {
    let Command::FromSmbNode { proposer, request } = command else { return command.to_string() };
    match request {
        Request::Create(create) => format!(
            "create {proposer} client={} file={} access={:x} share={} {} {:?} {:?}",
            create.client.client_guid.0[0],
            create.file.inode,
            create.granted_access.0,
            create.share_access.0,
            create.create_action,
            create.requested,
            create.contexts,
        ),
        request => format!("{proposer} {request:?}"),
    }
}

fn compare(steps: &[Step]) -> Result<Comparison, TestCaseError> {
    let mut comparison = Comparison::new()?;
    for step in steps {
        comparison.step(step)?;
    }
    Ok(comparison)
}

proptest! {
    #![proptest_config(random::proptest_config())]

    #[test]
    fn the_state_does_what_the_specification_allows(steps in steps()) {
        compare(&steps)?;
    }
}

/// The comparison would succeed where nothing happens. Here things happen: random schedules reach every kind of answer
/// that the model knows.
#[test]
fn random_schedules_reach_every_answer() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut reached = BTreeMap::<String, u64>::new();
    for _ in 0..600 {
        let steps = steps().new_tree(&mut runner).expect("steps do not filter").current();
        let comparison = compare(&steps).expect("the comparison succeeds");
        for outcome in comparison.answers {
            *reached.entry(random::kind(&outcome)).or_default() += 1;
        }
    }
    let expected = [
        "BreakAcknowledged",
        "BreakPending",
        "Cancelled",
        "Closed",
        "Disconnected",
        "Expired",
        "Fenced",
        "HeldByPersistentOpen",
        "InvalidLockRequest",
        "LeaseKeyInUse",
        "LeaseNotBreaking",
        "LeaseStateNotAccepted",
        "LockNotGranted",
        "Locked",
        "NodeDown",
        "Opened",
        "OplockLevelNotAccepted",
        "OplockNotBreaking",
        "Proceed",
        "RangeNotLocked",
        "Resilient",
        "SessionEnded",
        "SharingViolation",
    ];
    let rare: Vec<_> =
        expected.iter().filter(|kind| reached.get(**kind).is_none_or(|times| *times < 5)).collect();
    assert!(rare.is_empty(), "seldom or never reached: {rare:?}, of {reached:?}");
}
