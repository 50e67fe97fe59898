//! Random commands: replicas stay equal, nothing contradicts itself, and no open ever has two owners.
//!
//! Goal: whatever the log says, every replica reaches the same state and gives the same answers, also one
//! that was restored from a snapshot in between; who follows the changes it is told misses none; and what
//! proposers were told is consistent with promise and protocol.
//!
//! Method: commands over a world that is small enough for them to meet (three nodes, six ids, two shares),
//! three replicas of which one is restored at random points, the invariants after every command, and beside
//! the state an independent reference that looks at commands and answers alone.
//!
//! Each run tries 256 logs. The long form:
//! `HOLDFAST_PROPTEST_CASES=100000 cargo test --release -p holdfast-statedb --test replay`.

mod common;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use statedb::{
    ByteRangeLock, Changes, Command, CreateGuid, Durability, DurableFileId, Incarnation, Instance, Lease,
    LeaseEpoch, LeaseKey, LeaseState, LeaseVersion, Limits, Millis, Node, NodeId, NodeState, Open,
    OpenDescription, Oplock, OplockState, Outcome, Owner, Proposer, Reclaim, Rejection, Request, ServingNode,
    ShareName, State, Timestamp,
};

const NODES: u64 = 3;
const OPENS: u64 = 6;
const SHARES: [&str; 2] = ["data", "scratch"];
const DEFAULT_CASES: u32 = 256;
const COMMANDS_PER_LOG: usize = 80;

/// Small enough to be reached.
const LIMITS: Limits = Limits {
    opens_max: 4,
    open_bytes_max: 130,
    durable_open_timeout_max: Millis(5_000),
    shares_max: 2,
    outstanding_max: 8,
};

/// One entry of the log before it is known what the log before it says.
#[derive(Clone, Debug)]
struct Step {
    /// How much later than the newest entry, or earlier, as after a leader change.
    elapsed: i64,
    action: Action,
    restore: bool,
}

#[derive(Clone, Debug)]
enum Action {
    Register {
        node: NodeId,
        /// Whether the SMB service was started anew, or only its sidecar.
        is_new_instance: bool,
    },
    Down {
        node: NodeId,
        incarnations_ago: u64,
    },
    Expire,
    Ask {
        node: NodeId,
        incarnations_ago: u64,
        /// Whether it is asked by who has the open, if anybody has, and a reclaim is of an open that waits,
        /// if one does. Random requests alone seldom meet what they are about.
        is_apt: bool,
        /// How many of the newest answers the proposer has not seen yet.
        unseen: u64,
        request: Request,
    },
    /// A command that was proposed before comes again.
    Repeat(Index),
}

/// A log begins with the registration of every node.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let registration = |node| Step {
        elapsed: 0,
        action: Action::Register { node: NodeId(node), is_new_instance: true },
        restore: false,
    };
    prop::collection::vec(step(), 1..COMMANDS_PER_LOG)
        .prop_map(move |steps| (1..=NODES).map(registration).chain(steps).collect())
}

fn step() -> impl Strategy<Value = Step> {
    let elapsed = prop_oneof![12 => Just(0_i64), 3 => 0..400_i64, 1 => -3_000..0_i64];
    (elapsed, action(), prop::bool::weighted(0.2)).prop_map(|(elapsed, action, restore)| Step {
        elapsed,
        action,
        restore,
    })
}

fn action() -> impl Strategy<Value = Action> {
    let register = (node(), prop::bool::weighted(0.2))
        .prop_map(|(node, is_new_instance)| Action::Register { node, is_new_instance });
    let down = (node(), incarnations_ago())
        .prop_map(|(node, incarnations_ago)| Action::Down { node, incarnations_ago });
    let ask = (node(), incarnations_ago(), prop::bool::weighted(0.5), 0..9_u64, request()).prop_map(
        |(node, incarnations_ago, is_apt, unseen, request)| Action::Ask {
            node,
            incarnations_ago,
            is_apt,
            unseen,
            request,
        },
    );
    prop_oneof![
        4 => register,
        1 => down,
        1 => Just(Action::Expire),
        24 => ask,
        2 => any::<Index>().prop_map(Action::Repeat),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        8 => description().prop_map(|open| Request::Grant(Box::new(open))),
        3 => prop::collection::vec(description(), 1..3).prop_map(Request::Update),
        6 => open().prop_map(Request::Disconnect),
        8 => (open(), create_guid()).prop_map(|(durable_file_id, create_guid)| {
            Request::Reclaim(Reclaim { durable_file_id, create_guid })
        }),
        2 => open().prop_map(Request::Close),
        3 => share().prop_map(Request::ServeShare),
        3 => share().prop_map(Request::ReleaseShare),
    ]
}

fn node() -> impl Strategy<Value = NodeId> {
    (1..=NODES).prop_map(NodeId)
}

/// Mostly the newest incarnation speaks, or is meant.
fn incarnations_ago() -> impl Strategy<Value = u64> {
    prop_oneof![20 => Just(0), 1 => Just(1)]
}

fn open() -> impl Strategy<Value = DurableFileId> {
    (1..=OPENS).prop_map(DurableFileId)
}

fn share() -> impl Strategy<Value = ShareName> {
    select(&SHARES[..]).prop_map(ShareName::new)
}

fn create_guid() -> impl Strategy<Value = CreateGuid> {
    prop_oneof![8 => Just(CreateGuid([1; 16])), 1 => Just(CreateGuid([2; 16]))]
}

fn description() -> impl Strategy<Value = OpenDescription> {
    let usual_or_other_share = prop_oneof![9 => Just(None), 1 => share().prop_map(Some)];
    let what = (open(), create_guid(), usual_or_other_share, 1..6_usize);
    let how = (oplock(), prop::bool::weighted(0.1), durability(), 0..6_000_u64, 0..4_u64);
    (what, how).prop_map(
        |((id, create_guid, share, image), (oplock, breaking, durability, timeout, locks))| {
            OpenDescription {
                durable_file_id: id,
                create_guid,
                // An update has to name the share that the grant named.
                share: share.unwrap_or_else(|| ShareName::new(SHARES[id.0 as usize % SHARES.len()])),
                oplock,
                oplock_state: if breaking { OplockState::Breaking } else { OplockState::Held },
                durability,
                durable_open_timeout: Millis(timeout),
                byte_range_locks: (0..locks)
                    .map(|lock| ByteRangeLock { offset: lock, length: 1, exclusive: true })
                    .collect(),
                image: vec![0x5A; 8 * image].into(),
                ..common::description(id.0)
            }
        },
    )
}

fn oplock() -> impl Strategy<Value = Oplock> {
    let lease = |state| {
        Oplock::Lease(Lease {
            key: LeaseKey([3; 16]),
            state: LeaseState(state),
            epoch: LeaseEpoch(1),
            version: LeaseVersion::V2,
        })
    };
    prop_oneof![
        4 => Just(Oplock::Batch),
        4 => Just(lease(7)),
        1 => (0..8_u32).prop_map(lease),
        1 => Just(Oplock::None),
    ]
}

fn durability() -> impl Strategy<Value = Durability> {
    prop_oneof![
        6 => Just(Durability::DurableV2),
        1 => Just(Durability::DurableV1),
        1 => Just(Durability::Persistent),
    ]
}

/// Turns actions into commands. Sequences are counted here, so that most requests are new ones.
#[derive(Default)]
struct Proposers {
    newest: BTreeMap<NodeId, Incarnation>,
    instances: u128,
    next_sequence: BTreeMap<Owner, u64>,
    proposed: Vec<Command>,
}

impl Proposers {
    fn command(&mut self, action: Action, state: &State) -> Command {
        let command = match action {
            Action::Register { node, is_new_instance } => {
                Command::RegisterNode { node, instance: self.instance(node, is_new_instance, state) }
            }
            Action::Down { node, incarnations_ago } => {
                Command::NodeDown { node, incarnation: self.owner(node, incarnations_ago).incarnation }
            }
            Action::Expire => Command::ExpireOpens,
            Action::Ask { node, incarnations_ago, is_apt, unseen, request } => {
                let random = self.owner(node, incarnations_ago);
                let (owner, request) = if is_apt { apt(random, request, state) } else { (random, request) };
                Command::FromSmbNode { proposer: self.proposer(owner, unseen), request }
            }
            Action::Repeat(_) if self.proposed.is_empty() => Command::ExpireOpens,
            Action::Repeat(which) => which.get(&self.proposed).clone(),
        };
        self.proposed.push(command.clone());
        command
    }

    fn instance(&mut self, node: NodeId, is_new: bool, state: &State) -> Instance {
        match state.node(node) {
            Some(node) if !is_new && node.state == NodeState::Up => node.instance,
            _ => {
                self.instances += 1;
                Instance(self.instances.to_le_bytes())
            }
        }
    }

    fn proposer(&mut self, owner: Owner, unseen: u64) -> Proposer {
        let next = self.next_sequence.entry(owner).or_default();
        let sequence = *next;
        *next += 1;
        Proposer { owner, sequence, first_outstanding: sequence.saturating_sub(unseen) }
    }

    fn owner(&self, node: NodeId, incarnations_ago: u64) -> Owner {
        let newest = self.newest.get(&node).map_or(1, |incarnation| incarnation.0);
        Owner { node, incarnation: Incarnation(newest.saturating_sub(incarnations_ago)) }
    }

    fn learn(&mut self, command: &Command, outcome: &Outcome) {
        if let (Command::RegisterNode { node, .. }, Outcome::Registered { incarnation, first_sequence }) =
            (command, outcome)
        {
            self.newest.insert(*node, *incarnation);
            let owner = Owner { node: *node, incarnation: *incarnation };
            self.next_sequence.insert(owner, *first_sequence);
        }
    }
}

/// The request turned towards what is there, and who would make it.
fn apt(owner: Owner, request: Request, state: &State) -> (Owner, Request) {
    let holder = |open: &DurableFileId| state.open(*open).and_then(Open::holder);
    let holder = match &request {
        Request::Reclaim(reclaim) => {
            let waits = |open: &&Open| open.connected_through().is_none();
            let Some(open) = state.opens().find(waits) else { return (owner, request) };
            let serving = state.serving_node(&open.description.share).map(|serving| serving.owner);
            let reclaim = Reclaim { durable_file_id: open.description.durable_file_id, ..*reclaim };
            return (open.holder().or(serving).unwrap_or(owner), Request::Reclaim(reclaim));
        }
        Request::Update(opens) => opens.first().and_then(|open| holder(&open.durable_file_id)),
        Request::Disconnect(open) | Request::Close(open) => holder(open),
        Request::Grant(_) | Request::ServeShare(_) | Request::ReleaseShare(_) => None,
    };
    (holder.unwrap_or(owner), request)
}

/// Never two owners: what must be true of the answers, whatever made them.
///
/// It knows nothing of shares, deadlines or oplocks; only who was told to own what, who was told to be no
/// more, and what was answered before.
#[derive(Default)]
struct Reference {
    owners: BTreeMap<DurableFileId, Owner>,
    live: BTreeMap<NodeId, Incarnation>,
    fenced: Vec<Owner>,
    instances: BTreeMap<(NodeId, Instance), Incarnation>,
    first_answers: BTreeMap<(Owner, u64), Outcome>,
}

impl Reference {
    fn observe(&mut self, command: &Command, outcome: &Outcome) {
        match command {
            Command::RegisterNode { node, instance } => {
                if let Outcome::Registered { incarnation, .. } = outcome {
                    let known = *self.instances.entry((*node, *instance)).or_insert(*incarnation);
                    assert_eq!(known, *incarnation, "one instance has two incarnations");
                    self.registered(Owner { node: *node, incarnation: *incarnation });
                }
            }
            Command::NodeDown { node, incarnation } => {
                let owner = Owner { node: *node, incarnation: *incarnation };
                if self.live.get(node) == Some(incarnation) {
                    self.fence(owner);
                }
            }
            Command::ExpireOpens => {
                let Outcome::Expired { closed } = outcome else { panic!("{command}: {outcome}") };
                assert!(closed.iter().all(|open| !self.owners.contains_key(open)), "an owned open expired");
            }
            Command::FromSmbNode { proposer, request } => self.answered(proposer, request, outcome),
        }
    }

    fn registered(&mut self, owner: Owner) {
        assert!(!self.fenced.contains(&owner), "{owner} was fenced and is registered again");
        match self.live.get(&owner.node) {
            Some(incarnation) if *incarnation == owner.incarnation => return,
            Some(incarnation) => self.fence(Owner { node: owner.node, incarnation: *incarnation }),
            None => {}
        }
        self.live.insert(owner.node, owner.incarnation);
    }

    fn fence(&mut self, owner: Owner) {
        self.live.remove(&owner.node);
        self.owners.retain(|_, other| *other != owner);
        self.fenced.push(owner);
    }

    fn answered(&mut self, proposer: &Proposer, request: &Request, outcome: &Outcome) {
        let owner = proposer.owner;
        if self.live.get(&owner.node) != Some(&owner.incarnation) {
            let is_fenced = matches!(outcome, Outcome::Rejected(Rejection::Fenced { .. }));
            assert!(is_fenced, "{owner} is not up and was answered {outcome}");
            return;
        }
        let is_no_answer = matches!(
            outcome,
            Outcome::Rejected(Rejection::AnswerForgotten { .. } | Rejection::TooManyOutstanding { .. })
        );
        if is_no_answer {
            return;
        }
        let key = (owner, proposer.sequence);
        if let Some(first) = self.first_answers.get(&key) {
            assert_eq!(first, outcome, "{proposer} got two answers");
            return;
        }
        self.first_answers.insert(key, outcome.clone());
        self.decided(owner, request, outcome);
    }

    fn decided(&mut self, owner: Owner, request: &Request, outcome: &Outcome) {
        match (request, outcome) {
            (Request::Grant(open), Outcome::Granted) => self.take(open.durable_file_id, owner),
            (Request::Reclaim(reclaim), Outcome::Reclaimed) => self.take(reclaim.durable_file_id, owner),
            (Request::Update(opens), Outcome::Updated) => {
                for open in opens {
                    let other = self.owners.get(&open.durable_file_id).filter(|other| **other != owner);
                    assert_eq!(other, None, "{owner} changed an open of another");
                }
            }
            (
                Request::Disconnect(open) | Request::Close(open),
                Outcome::Disconnected { .. } | Outcome::Closed,
            ) => {
                let other = self.owners.remove(open).filter(|other| *other != owner);
                assert_eq!(other, None, "{owner} took an open from its owner");
            }
            (_, Outcome::Rejected(_)) => {}
            (Request::ServeShare(_), Outcome::ShareServed) => {}
            (Request::ReleaseShare(_), Outcome::ShareServed | Outcome::ShareReleased) => {}
            _ => panic!("{} is no answer to {request}", outcome),
        }
    }

    fn take(&mut self, open: DurableFileId, owner: Owner) {
        let before = self.owners.insert(open, owner);
        assert_eq!(before, None, "open {open} was given to {owner} while somebody had it");
    }
}

/// What somebody has who copies only what he is told has changed, as the stored copy does.
#[derive(Default)]
struct Follower {
    nodes: BTreeMap<NodeId, Node>,
    shares: BTreeMap<ShareName, ServingNode>,
    opens: BTreeMap<DurableFileId, Open>,
}

impl Follower {
    fn follow(&mut self, state: &State, changes: &Changes) {
        for id in &changes.nodes {
            copy_row(&mut self.nodes, id, state.node(*id).cloned());
        }
        for share in &changes.shares {
            copy_row(&mut self.shares, share, state.serving_node(share));
        }
        for id in &changes.opens {
            copy_row(&mut self.opens, id, state.open(*id).cloned());
        }
    }

    fn assert_is_copy_of(&self, state: &State) {
        assert!(
            state.nodes().eq(self.nodes.iter().map(|(id, node)| (*id, node))),
            "an untold change of a node"
        );
        assert!(
            state.shares().eq(self.shares.iter().map(|(name, serving)| (name, *serving))),
            "an untold change of a share"
        );
        assert!(state.opens().eq(self.opens.values()), "an untold change of an open");
    }
}

fn copy_row<K: Ord + Clone, V>(table: &mut BTreeMap<K, V>, key: &K, row: Option<V>) {
    match row {
        Some(row) => table.insert(key.clone(), row),
        None => table.remove(key),
    };
}

/// A refusal leaves opens, shares and who is up as they were.
fn assert_unchanged(before: &State, after: &State) {
    assert!(before.opens().eq(after.opens()), "a refused command changed an open");
    assert!(before.shares().eq(after.shares()), "a refused command changed a share");
    let standing = |state: &State| {
        state.nodes().map(|(id, node)| (id, node.incarnation, node.state)).collect::<Vec<_>>()
    };
    assert_eq!(standing(before), standing(after), "a refused command changed a node");
}

fn replay(steps: Vec<Step>) {
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
        for replica in &mut replicas[1..] {
            assert_eq!(replica.apply(log_id, proposed_at, &command), outcome, "{command}: answers differ");
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
            assert_unchanged(&before, state);
        }
        follower.follow(state, &changes);
        follower.assert_is_copy_of(state);
        proposers.learn(&command, &outcome);
        reference.observe(&command, &outcome);
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

fn cases() -> u32 {
    std::env::var("HOLDFAST_PROPTEST_CASES").map_or(DEFAULT_CASES, |cases| {
        cases.parse().expect("HOLDFAST_PROPTEST_CASES is a number of logs to try")
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        // A failure prints the log that caused it; one that is fixed becomes a script, not a file of seeds.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn replicas_stay_equal_and_no_open_has_two_owners(steps in steps()) {
        replay(steps);
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
    for _ in 0..400 {
        let mut state = State::new(LIMITS);
        let mut proposers = Proposers::default();
        for Step { elapsed, action, .. } in
            steps().new_tree(&mut runner).expect("steps do not filter").current()
        {
            let proposed_at = Timestamp(state.now().0.saturating_add_signed(elapsed));
            let command = proposers.command(action, &state);
            let outcome = state.apply(common::next_log_id(&state, 1), proposed_at, &command);
            proposers.learn(&command, &outcome);
            *reached.entry(kind(&outcome)).or_default() += 1;
        }
    }
    let expected = [
        "AnswerForgotten",
        "Closed",
        "CreateGuidMismatch",
        "Disconnected",
        "DurableFileIdInUse",
        "Expired",
        "Fenced",
        "Granted",
        "IdentityChanged",
        "NodeDown",
        "NotOwner",
        "OpenConnected",
        "OpenNotFound",
        "OpenTooLarge",
        "Reclaimed",
        "Registered",
        "ShareReleased",
        "ShareServed",
        "ShareServedElsewhere",
        "TimeoutTooLong",
        "TooManyOpens",
        "TooManyOutstanding",
        "Updated",
    ];
    let rare: Vec<_> =
        expected.iter().filter(|kind| reached.get(**kind).is_none_or(|times| *times < 20)).collect();
    assert!(rare.is_empty(), "seldom or never reached: {rare:?}, of {reached:?}");
}

/// The name of the variant.
fn kind(outcome: &Outcome) -> String {
    let debug = match outcome {
        Outcome::Rejected(rejection) => format!("{rejection:?}"),
        outcome => format!("{outcome:?}"),
    };
    debug.chars().take_while(|letter| letter.is_alphanumeric()).collect()
}
