//! Random logs: every command that there is, over a world that is small enough for them to meet.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use statedb::{
    AccessMask, AppInstance, AppInstanceVersion, Arbiter, BreakTarget, ByteRangeLock, Client, ClientGuid,
    Command, Create, CreateAction, CreateContexts, CreateGuid, CreateOptions, DeleteState, Dialect,
    Durability, DurableFileId, DurableReconnectV2, DurableRequestV2, FileKey, Incarnation, Instance, Lease,
    LeaseEpoch, LeaseId, LeaseKey, LeaseState, LeaseVersion, Lock, LockElement, LockKind, LockSequence,
    Millis, NodeId, NodeState, Note, Open, OpenDescription, Operation, Oplock, OplockLevel, OplockState,
    Outcome, Owner, Proposer, Reclaim, Request, SessionId, Share, ShareAccess, ShareName, Sid, State,
};

use crate::common;

/// Two nodes let the cluster decide, one is a separate SMB server, one is of SMB servers that are coherent themselves.
const ARBITERS: [Arbiter; 4] = [Arbiter::Cluster, Arbiter::Cluster, Arbiter::SmbServer, Arbiter::SmbCluster];
/// Ids that SMB servers choose themselves.
const OPENS: u64 = 6;
const SHARES: [&str; 2] = ["data", "scratch"];
/// Where no single node serves.
const SHARED_BY_ALL: &str = "projects";
const FILES: u64 = 3;
/// The directory that all files are in, and that is opened, too.
const DIRECTORY: FileKey = FileKey { device: 1, inode: 9, extid: 0 };
const CLIENTS: u8 = 3;
const COMMANDS_PER_LOG: usize = 100;

/// One entry of the log before it is known what the log before it says.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// How much later than the newest entry, or earlier, as after a leader change.
    pub(crate) elapsed: i64,
    pub(crate) action: Action,
    pub(crate) restore: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Action {
    Register {
        node: NodeId,
        /// Whether the SMB service was started anew, or only its sidecar.
        is_new_instance: bool,
        /// Whether it is configured otherwise than before.
        is_reconfigured: bool,
    },
    Down {
        node: NodeId,
        incarnations_ago: u64,
    },
    Expire,
    Ask {
        node: NodeId,
        incarnations_ago: u64,
        /// What there is that the request is turned towards, and asked for by who would. Random requests alone
        /// seldom meet what they are about.
        aim: Option<Index>,
        /// How many of the newest answers the proposer has not seen yet.
        unseen: u64,
        request: Request,
    },
    /// A command that was proposed before comes again.
    Repeat(Index),
}

/// A log begins with the registration of every node.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let registration = |node| Step {
        elapsed: 0,
        action: Action::Register { node: NodeId(node), is_new_instance: true, is_reconfigured: false },
        restore: false,
    };
    let nodes = 1..=ARBITERS.len() as u64;
    prop::collection::vec(step(), 1..COMMANDS_PER_LOG)
        .prop_map(move |steps| nodes.clone().map(registration).chain(steps).collect())
}

fn step() -> impl Strategy<Value = Step> {
    let elapsed = prop_oneof![12 => Just(0_i64), 3 => 0..400_i64, 1 => 400..3_000_i64, 1 => -3_000..0_i64];
    (elapsed, action(), prop::bool::weighted(0.2)).prop_map(|(elapsed, action, restore)| Step {
        elapsed,
        action,
        restore,
    })
}

fn action() -> impl Strategy<Value = Action> {
    let register = (node(), prop::bool::weighted(0.2), prop::bool::weighted(0.1)).prop_map(
        |(node, is_new_instance, is_reconfigured)| Action::Register {
            node,
            is_new_instance,
            is_reconfigured,
        },
    );
    let down = (node(), incarnations_ago())
        .prop_map(|(node, incarnations_ago)| Action::Down { node, incarnations_ago });
    let aim = prop_oneof![8 => any::<Index>().prop_map(Some), 1 => Just(None)];
    let ask = (node(), incarnations_ago(), aim, 0..9_u64, request()).prop_map(
        |(node, incarnations_ago, aim, unseen, request)| Action::Ask {
            node,
            incarnations_ago,
            aim,
            unseen,
            request,
        },
    );
    prop_oneof![
        4 => register,
        1 => down,
        2 => Just(Action::Expire),
        40 => ask,
        2 => any::<Index>().prop_map(Action::Repeat),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        40 => create().prop_map(|create| Request::Create(Box::new(create))),
        1 => (0..9_u64).prop_map(|sequence| Request::Cancel { sequence }),
        3 => (open(), level()).prop_map(|(open, level)| Request::AckOplockBreak { open, level }),
        4 => (client_guid(), lease_key(), lease_state()).prop_map(|(client_guid, key, state)| {
            Request::AckLeaseBreak { lease: LeaseId { client_guid, key }, state }
        }),
        6 => lock().prop_map(Request::Lock),
        6 => (open(), operation()).prop_map(|(open, operation)| Request::Operate { open, operation }),
        2 => note().prop_map(Request::Note),
        1 => (open(), 0..3_000_u64, dialect()).prop_map(|(open, timeout, dialect)| Request::RequestResiliency {
            open,
            timeout: Millis(timeout),
            dialect,
        }),
        2 => session().prop_map(Request::EndSession),
        1 => (session(), user()).prop_map(|(previous, user)| Request::ReplaceSession { previous, user }),
        1 => (session(), any_share()).prop_map(|(session, share)| Request::EndTreeConnect { session, share }),
        2 => file().prop_map(Request::FileDeleted),
        8 => description().prop_map(|open| Request::Grant(Box::new(open))),
        3 => prop::collection::vec(description(), 1..3).prop_map(|opens| Request::Update(opens.into())),
        6 => open().prop_map(Request::Disconnect),
        6 => (open(), create_guid()).prop_map(|(durable_file_id, create_guid)| {
            Request::Reclaim(Reclaim { durable_file_id, create_guid })
        }),
        4 => open().prop_map(Request::Close),
        2 => share().prop_map(Request::ServeShare),
        2 => share().prop_map(Request::ReleaseShare),
    ]
}

fn node() -> impl Strategy<Value = NodeId> {
    (1..=ARBITERS.len() as u64).prop_map(NodeId)
}

/// Mostly the newest incarnation speaks, or is meant.
fn incarnations_ago() -> impl Strategy<Value = u64> {
    prop_oneof![20 => Just(0), 1 => Just(1)]
}

fn open() -> impl Strategy<Value = DurableFileId> {
    (1..=OPENS).prop_map(DurableFileId)
}

/// A share that a single node serves.
fn share() -> impl Strategy<Value = ShareName> {
    select(&SHARES[..]).prop_map(ShareName::new)
}

fn any_share() -> impl Strategy<Value = ShareName> {
    prop_oneof![6 => Just(ShareName::new(SHARED_BY_ALL)), 1 => share()]
}

fn create_guid() -> impl Strategy<Value = CreateGuid> {
    prop_oneof![8 => Just(1), 1 => 0..5_u8].prop_map(|byte| CreateGuid([byte; 16]))
}

fn client_guid() -> impl Strategy<Value = ClientGuid> {
    (1..=CLIENTS).prop_map(|byte| ClientGuid([byte; 16]))
}

fn lease_key() -> impl Strategy<Value = LeaseKey> {
    (1..3_u8).prop_map(|byte| LeaseKey([byte; 16]))
}

fn lease_state() -> impl Strategy<Value = LeaseState> {
    prop_oneof![3 => Just(7), 1 => Just(3), 1 => 0..8_u32].prop_map(LeaseState)
}

/// A session of some node.
fn session() -> impl Strategy<Value = SessionId> {
    (node(), 1..=u64::from(CLIENTS)).prop_map(|(node, number)| session_of(node, SessionId(number)))
}

/// The session of the same number on another node: SMB servers draw the ids from ranges of their own.
fn session_of(node: NodeId, session: SessionId) -> SessionId {
    const NUMBER_MASK: u64 = 0xFF;
    SessionId(node.0 * (NUMBER_MASK + 1) + (session.0 & NUMBER_MASK))
}

fn user() -> impl Strategy<Value = Sid> {
    prop_oneof![9 => Just("S-1-5-21-1-2-3-1000"), 1 => Just("S-1-5-21-1-2-3-1001")]
        .prop_map(|sid| Sid(sid.into()))
}

fn dialect() -> impl Strategy<Value = Dialect> {
    select(vec![Dialect::Smb202, Dialect::Smb210, Dialect::Smb300, Dialect::Smb302, Dialect::Smb311])
}

fn level() -> impl Strategy<Value = OplockLevel> {
    select(vec![
        OplockLevel::None,
        OplockLevel::LevelII,
        OplockLevel::Exclusive,
        OplockLevel::Batch,
        OplockLevel::Lease,
    ])
}

fn file() -> impl Strategy<Value = FileKey> {
    let some_file = (1..=FILES).prop_map(|inode| FileKey { device: 1, inode, extid: 0 });
    prop_oneof![6 => some_file, 1 => Just(DIRECTORY)]
}

fn oplock() -> impl Strategy<Value = Oplock> {
    let level = select(vec![Oplock::None, Oplock::LevelII, Oplock::Exclusive, Oplock::Batch, Oplock::Batch]);
    let parent = prop_oneof![3 => Just(None), 1 => lease_key().prop_map(Some)];
    let version = prop_oneof![3 => Just(LeaseVersion::V2), 1 => Just(LeaseVersion::V1)];
    let lease = (lease_key(), lease_state(), version, parent).prop_map(|(key, state, version, parent)| {
        // A context of version 1 has no epoch.
        let epoch = LeaseEpoch(u16::from(version == LeaseVersion::V2));
        Oplock::Lease(Lease { key, state, epoch, version, parent })
    });
    prop_oneof![2 => level, 3 => lease]
}

fn create() -> impl Strategy<Value = Create> {
    let access = select(vec![0x80, 0x2_0080, 0x01, 0x03, 0x1_0000, 0x1F_01FF]);
    let share_access = prop_oneof![3 => Just(7_u32), 1 => 0..8_u32];
    // FILE_DELETE_ON_CLOSE
    let options = prop_oneof![6 => Just(0_u32), 1 => Just(0x1000)];
    let action = prop_oneof![
        5 => Just(CreateAction::Opened),
        1 => select(vec![CreateAction::Created, CreateAction::Overwritten, CreateAction::Superseded]),
    ];
    let how = (access, share_access, options, action, oplock());
    let id = prop_oneof![8 => Just(None), 1 => open().prop_map(Some)];
    let what = (id, any_share(), file(), prop_oneof![20 => Just(8_usize), 1 => Just(120)]);
    let special = (contexts(), app_instance(), prop::bool::weighted(0.2));
    (client(), what, how, special).prop_map(
        |(
            client,
            (durable_file_id, share, file, image),
            (access, share_access, options, create_action, requested),
            (contexts, app_instance, is_replay),
        )| {
            Create {
                durable_file_id,
                client,
                share: Share {
                    name: share,
                    continuously_available: true,
                    scale_out: file.inode == FILES,
                    ca_timeout: None,
                },
                path: "report.txt".into(),
                file,
                is_directory: file == DIRECTORY,
                parent_directory: (file != DIRECTORY).then_some(DIRECTORY),
                granted_access: AccessMask(access),
                share_access: ShareAccess(share_access),
                create_options: CreateOptions(options),
                create_action,
                requested,
                contexts,
                app_instance,
                is_replay,
                allocation_size: 0,
                image: vec![0x5A; image].into(),
            }
        },
    )
}

fn client() -> impl Strategy<Value = Client> {
    (client_guid(), user(), session(), dialect(), prop::bool::weighted(0.9), prop::bool::weighted(0.9))
        .prop_map(|(client_guid, user, session, dialect, persistent_handles, may_read)| Client {
            client_guid,
            user,
            session,
            dialect,
            persistent_handles,
            may_read,
        })
}

fn contexts() -> impl Strategy<Value = CreateContexts> {
    let none = CreateContexts::default;
    let v2 = (0..6_000_u64, prop::bool::weighted(0.4), 1..5_u8).prop_map(|(timeout, persistent, guid)| {
        DurableRequestV2 { timeout: Millis(timeout), persistent, create_guid: CreateGuid([guid; 16]) }
    });
    let v2_again = (open(), 1..5_u8, prop::bool::ANY).prop_map(|(durable_file_id, guid, persistent)| {
        DurableReconnectV2 { durable_file_id, create_guid: CreateGuid([guid; 16]), persistent }
    });
    let v2 = v2.boxed();
    let request = v2.clone().prop_map(move |v2| CreateContexts { durable_request_v2: Some(v2), ..none() });
    let reconnect = open().prop_map(move |open| CreateContexts { durable_reconnect: Some(open), ..none() });
    let reconnect_v2 =
        v2_again.prop_map(move |again| CreateContexts { durable_reconnect_v2: Some(again), ..none() });
    let both = v2.prop_map(move |v2| CreateContexts {
        durable_request: true,
        durable_request_v2: Some(v2),
        ..none()
    });
    prop_oneof![
        3 => Just(none()),
        3 => Just(CreateContexts { durable_request: true, ..none() }),
        6 => request,
        2 => reconnect,
        4 => reconnect_v2,
        1 => both,
    ]
}

fn app_instance() -> impl Strategy<Value = Option<AppInstance>> {
    let version =
        prop_oneof![Just(None), (0..3_u64).prop_map(|low| Some(AppInstanceVersion { high: 1, low })),];
    let instance = (1..3_u8, version).prop_map(|(id, version)| Some(AppInstance { id: [id; 16], version }));
    prop_oneof![8 => Just(None), 1 => instance]
}

fn lock() -> impl Strategy<Value = Lock> {
    let kind = select(vec![LockKind::Shared, LockKind::Exclusive, LockKind::Exclusive, LockKind::Unlock]);
    let offset = prop_oneof![20 => 0..8_u64, 1 => Just(u64::MAX)];
    let element =
        (offset, 0..4_u64, kind).prop_map(|(offset, length, kind)| LockElement { offset, length, kind });
    let sequence = (0..4_u32, 0..3_u8).prop_map(|(index, number)| LockSequence { index, number });
    (open(), prop::collection::vec(element, 0..3), sequence, dialect(), prop::bool::ANY).prop_map(
        |(open, elements, sequence, dialect, multichannel)| Lock {
            open,
            elements,
            sequence,
            dialect,
            multichannel,
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    let rename = select(vec!["renamed.txt", "report.txt"]);
    prop_oneof![
        Just(Operation::Write),
        Just(Operation::SetMetadata),
        rename.prop_map(|path| Operation::Rename { path: path.into(), parent_directory: Some(DIRECTORY) }),
        prop::bool::ANY.prop_map(Operation::SetDeletePending),
    ]
}

fn note() -> impl Strategy<Value = Note> {
    let image = prop_oneof![
        4 => Just(None),
        4 => Just(Some(vec![0x5B; 8].into())),
        1 => Just(Some(vec![0x5B; 200].into())),
    ];
    let position = prop_oneof![Just(None), (0..9_u64).prop_map(Some)];
    (open(), position, image, prop::bool::ANY).prop_map(|(open, position, image, is_used)| Note {
        open,
        position,
        image,
        is_used,
    })
}

fn description() -> impl Strategy<Value = OpenDescription> {
    let usual_or_other_share = prop_oneof![9 => Just(None), 1 => share().prop_map(Some)];
    // What SMB servers decide by themselves and what the cluster decides is about different files.
    let reported_file = (1..=FILES).prop_map(|inode| FileKey { device: 2, inode, extid: 0 });
    let usual_or_other_file = prop_oneof![6 => Just(None), 1 => reported_file.prop_map(Some)];
    let what = (open(), create_guid(), usual_or_other_share, usual_or_other_file, 1..6_usize);
    let oplock = prop_oneof![3 => Just(Oplock::Batch), 3 => oplock()];
    let how = (oplock, prop::bool::weighted(0.1), durability(), 0..6_000_u64, 0..4_u64);
    (what, how).prop_map(
        |((id, create_guid, share, file, image), (oplock, breaking, durability, timeout, locks))| {
            let usual = common::description(id.0);
            OpenDescription {
                durable_file_id: id,
                create_guid,
                // An update has to name the share and the file that the grant named.
                share: share.unwrap_or_else(|| ShareName::new(SHARES[id.0 as usize % SHARES.len()])),
                file: file.unwrap_or(usual.file),
                oplock,
                oplock_state: if breaking { OplockState::Breaking } else { OplockState::Held },
                durability,
                durable_open_timeout: Millis(timeout),
                byte_range_locks: (0..locks)
                    .map(|lock| ByteRangeLock { offset: lock, length: 1, exclusive: true })
                    .collect(),
                image: vec![0x5A; 8 * image].into(),
                ..usual
            }
        },
    )
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
pub(crate) struct Proposers {
    newest: BTreeMap<NodeId, Incarnation>,
    instances: u128,
    next_sequence: BTreeMap<Owner, u64>,
    proposed: Vec<Command>,
}

impl Proposers {
    pub(crate) fn command(&mut self, action: Action, state: &State) -> Command {
        let command = match action {
            Action::Register { node, is_new_instance, is_reconfigured } => Command::RegisterNode {
                node,
                instance: self.instance(node, is_new_instance, state),
                arbiter: ARBITERS[(node.0 as usize - 1 + usize::from(is_reconfigured)) % ARBITERS.len()],
            },
            Action::Down { node, incarnations_ago } => {
                Command::NodeDown { node, incarnation: self.owner(node, incarnations_ago).incarnation }
            }
            Action::Expire => Command::ExpireOpens,
            Action::Ask { node, incarnations_ago, aim, unseen, request } => {
                let random = self.owner(node, incarnations_ago);
                let (owner, request) = match aim {
                    Some(which) => aimed(which, random, request, state),
                    None => (random, request),
                };
                let request = in_own_session(owner.node, request);
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

    pub(crate) fn learn(&mut self, command: &Command, outcome: &Outcome) {
        if let (Command::RegisterNode { node, .. }, Outcome::Registered { incarnation, first_sequence }) =
            (command, outcome)
        {
            self.newest.insert(*node, *incarnation);
            let owner = Owner { node: *node, incarnation: *incarnation };
            self.next_sequence.insert(owner, *first_sequence);
        }
    }
}

/// The request as it comes in a session of this node. Only who replaces a session names one of another.
fn in_own_session(node: NodeId, request: Request) -> Request {
    match request {
        Request::Create(mut create) => {
            create.client.session = session_of(node, create.client.session);
            Request::Create(create)
        }
        Request::EndSession(session) => Request::EndSession(session_of(node, session)),
        Request::EndTreeConnect { session, share } => {
            Request::EndTreeConnect { session: session_of(node, session), share }
        }
        request => request,
    }
}

/// The request turned towards what is there, and who would make it.
fn aimed(which: Index, owner: Owner, request: Request, state: &State) -> (Owner, Request) {
    let owner = suitable(which, owner, &request, state);
    let is_connected = |open: &&Open| open.connected_through().is_some();
    let is_lost = |open: &&Open| open.connected_through().is_none();
    let connected =
        || pick(which, state.opens().filter(is_connected)).map(|open| (id(open), holder(open, owner)));
    let request_of_open = |open: DurableFileId| match &request {
        Request::Lock(lock) => Some(Request::Lock(Lock { open, ..lock.clone() })),
        Request::Operate { operation, .. } => Some(Request::Operate { open, operation: operation.clone() }),
        Request::Note(note) => Some(Request::Note(Note { open, ..note.clone() })),
        Request::RequestResiliency { timeout, dialect, .. } => {
            Some(Request::RequestResiliency { open, timeout: *timeout, dialect: *dialect })
        }
        Request::Disconnect(_) => Some(Request::Disconnect(open)),
        Request::Close(_) => Some(Request::Close(open)),
        _ => None,
    };
    if let Some((open, holder)) = connected()
        && let Some(request) = request_of_open(open)
    {
        return (holder, request);
    }
    match request {
        Request::Create(create) => {
            let contexts = create.contexts;
            let wants_back = contexts.durable_reconnect.is_some() || contexts.durable_reconnect_v2.is_some();
            let create = match pick(which, state.opens().filter(is_lost)) {
                Some(open) if wants_back => reconnect(*create, &open.description),
                _ => *create,
            };
            let is_replayable = |open: &&Open| open.description.is_replay_eligible;
            match pick(which, state.opens().filter(is_replayable)) {
                Some(open) if create.is_replay => {
                    (holder(open, owner), Request::Create(Box::new(replay(create, open))))
                }
                _ => (owner, Request::Create(Box::new(create))),
            }
        }
        Request::Cancel { sequence } => match pick(which, state.waiting_requests()) {
            Some(waiting) => (waiting.owner, Request::Cancel { sequence: waiting.sequence }),
            None => (owner, Request::Cancel { sequence }),
        },
        Request::AckOplockBreak { .. } | Request::AckLeaseBreak { .. } => {
            let breaks: Vec<_> = state.breaks().collect();
            let Some((target, under_way)) = pick(which, breaks.iter()) else { return (owner, request) };
            match *target {
                BreakTarget::Oplock(open) => {
                    let has_read = under_way.to.0 & LeaseState::READ != 0;
                    let level = if has_read { OplockLevel::LevelII } else { OplockLevel::None };
                    let owner = state.open(open).map_or(owner, |open| holder(open, owner));
                    (owner, Request::AckOplockBreak { open, level })
                }
                BreakTarget::Lease(lease) => {
                    let owner =
                        state.opens_of_lease(lease).find_map(Open::connected_through).unwrap_or(owner);
                    (owner, Request::AckLeaseBreak { lease, state: under_way.to })
                }
            }
        }
        Request::EndSession(_) | Request::EndTreeConnect { .. } => {
            let open = pick(which, state.opens().filter(|open| open.session().is_some()));
            let Some((open, session)) = open.and_then(|open| Some((open, open.session()?))) else {
                return (owner, request);
            };
            let request = match request {
                Request::EndSession(_) => Request::EndSession(session),
                _ => Request::EndTreeConnect { session, share: open.description.share.clone() },
            };
            (holder(open, owner), request)
        }
        Request::FileDeleted(file) => {
            let due = state.deletes_pending().find_map(|(file, pending)| match pending.state {
                DeleteState::Due(Some(owner)) => Some((owner, file)),
                _ => None,
            });
            let (owner, file) = due.unwrap_or((owner, file));
            (owner, Request::FileDeleted(file))
        }
        Request::Reclaim(reclaim) => {
            let Some(open) = pick(which, state.opens().filter(is_lost)) else {
                return (owner, Request::Reclaim(reclaim));
            };
            let serving = state.serving_node(&open.description.share).map(|serving| serving.owner);
            let by = open.holder().or(serving).unwrap_or(owner);
            (by, Request::Reclaim(Reclaim { durable_file_id: id(open), ..reclaim }))
        }
        Request::Update(update) => {
            let first = update.opens.first().and_then(|open| state.open(open.durable_file_id));
            (first.map_or(owner, |open| holder(open, owner)), Request::Update(update))
        }
        request => (owner, request),
    }
}

fn pick<'a, T>(which: Index, from: impl Iterator<Item = &'a T>) -> Option<&'a T> {
    let from: Vec<_> = from.collect();
    if from.is_empty() { None } else { Some(*which.get(&from)) }
}

fn id(open: &Open) -> DurableFileId {
    open.description.durable_file_id
}

fn holder(open: &Open, otherwise: Owner) -> Owner {
    open.holder().unwrap_or(otherwise)
}

/// Somebody who makes such requests: who lets the cluster decide, or who reports what he has decided.
fn suitable(which: Index, owner: Owner, request: &Request, state: &State) -> Owner {
    let decides_itself = state.node(owner.node).is_some_and(|node| node.arbiter != Arbiter::Cluster);
    let is_report = matches!(
        request,
        Request::Grant(_)
            | Request::Update(_)
            | Request::Reclaim(_)
            | Request::ServeShare(_)
            | Request::ReleaseShare(_)
    );
    let is_for_all = matches!(request, Request::Disconnect(_) | Request::Close(_));
    match (is_report, decides_itself) {
        (true, false) => some_node(which, owner, Arbiter::SmbServer, state),
        (false, true) if !is_for_all => some_node(which, owner, Arbiter::Cluster, state),
        _ => owner,
    }
}

/// A node that is up and whose SMB service is of this kind, if there is one.
fn some_node(which: Index, otherwise: Owner, arbiter: Arbiter, state: &State) -> Owner {
    let nodes: Vec<_> = state
        .nodes()
        .filter(|(_, node)| node.arbiter == arbiter && node.state == NodeState::Up)
        .map(|(id, node)| Owner { node: id, incarnation: node.incarnation })
        .collect();
    if nodes.is_empty() { otherwise } else { *which.get(&nodes) }
}

/// What the client of a lost open asks for.
fn reconnect(create: Create, open: &OpenDescription) -> Create {
    let durable_file_id = open.durable_file_id;
    let contexts = match create.contexts.durable_reconnect {
        Some(_) => CreateContexts { durable_reconnect: Some(durable_file_id), ..create.contexts },
        None => CreateContexts {
            durable_reconnect_v2: Some(DurableReconnectV2 {
                durable_file_id,
                create_guid: open.create_guid,
                persistent: open.durability == Durability::Persistent,
            }),
            ..create.contexts
        },
    };
    Create { contexts, path: open.path.clone(), requested: open.oplock, ..by_client_of(create, open) }
}

/// What the client of an open asks for that has not heard of it.
fn replay(create: Create, open: &Open) -> Create {
    let description = &open.description;
    let request = DurableRequestV2 {
        timeout: Millis(1_000),
        persistent: description.durability == Durability::Persistent,
        create_guid: description.create_guid,
    };
    let contexts = CreateContexts { durable_request_v2: Some(request), ..CreateContexts::default() };
    let mut create = Create { contexts, requested: description.oplock, ..by_client_of(create, description) };
    if let Some(session) = open.session() {
        create.client.session = session;
    }
    create
}

fn by_client_of(create: Create, open: &OpenDescription) -> Create {
    let client =
        Client { client_guid: open.client_guid, user: open.durable_owner.clone(), ..create.client.clone() };
    Create { client, ..create }
}
