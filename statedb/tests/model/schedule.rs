//! Random schedules: what clients, nodes and time do, before it is known what there is for them to do it to.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use statedb::{
    AccessMask, Arbiter, Client, ClientGuid, Command, Create, CreateAction, CreateContexts, CreateGuid,
    CreateOptions, Dialect, Durability, DurableFileId, DurableReconnectV2, DurableRequestV2, FileKey,
    Instance, Lease, LeaseEpoch, LeaseKey, LeaseState, LeaseVersion, Lock, LockElement, LockKind,
    LockSequence, Millis, NodeId, Operation, Oplock, OplockLevel, Outcome, Owner, Proposer, Request,
    SessionId, Share, ShareAccess, ShareName, Sid,
};

use super::cluster::{Caching, Cluster, Open};
use super::letters::letters;

const NODES: u64 = 2;
const CLIENTS: u8 = 3;
const FILES: u64 = 2;
/// The directory that they are in, which is opened, too.
const DIRECTORY: u64 = 0;
const LEASE_KEYS: u8 = 2;
/// Few bytes, so that locks meet.
const BYTES: u64 = 8;
const STEPS_MAX: usize = 60;

/// What happens next, and how much later.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) elapsed: u64,
    pub(crate) event: Event,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Create(Wanted),
    /// The client of a lost open comes back, to a node.
    Reconnect(Index, u64),
    /// A request that waits is given up.
    Cancel(Index),
    /// A request is made again.
    Again(Index),
    /// A lease is acknowledged: one that is broken, if there is one, else any; to what it was broken to, or otherwise.
    AckLease(Index, Option<u32>),
    AckOplock(Index, Option<OplockLevel>),
    Lock(Index, Vec<LockElement>, LockSequence, bool),
    Write(Index),
    Rename(Index),
    SetMetadata(Index),
    RequestResiliency(Index),
    Close(Index),
    Disconnect(Index),
    EndSession(u64, u8),
    NodeDown(u64),
    Expire,
}

/// A CREATE.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    node: u64,
    client: u8,
    file: u64,
    access: u32,
    share_access: u32,
    overwrites: bool,
    asked: Asked,
    /// The key of the client's lease on the directory, if it says so.
    parent: Option<u8>,
    durability: Durability,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Level(Oplock),
    Lease { key: u8, state: u32 },
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..STEPS_MAX)
}

fn step() -> impl Strategy<Value = Step> {
    let elapsed = prop_oneof![8 => Just(0_u64), 3 => 1..300_u64, 1 => 900..4_000_u64];
    (elapsed, event()).prop_map(|(elapsed, event)| Step { elapsed, event })
}

fn event() -> impl Strategy<Value = Event> {
    let any = any::<Index>;
    // Clients know that nothing can be cached without R.
    let acknowledged = prop_oneof![6 => Just(None), 1 => select(vec![0, 1, 3, 5, 7]).prop_map(Some)];
    let level = select(vec![
        OplockLevel::None,
        OplockLevel::LevelII,
        OplockLevel::Exclusive,
        OplockLevel::Batch,
        OplockLevel::Lease,
    ]);
    let level = prop_oneof![2 => Just(None), 1 => level.prop_map(Some)];
    let sequence = (0..4_u32, 0..3_u8).prop_map(|(index, number)| LockSequence { index, number });
    let elements = prop::collection::vec(element(), 0..3);
    prop_oneof![
        20 => wanted().prop_map(Event::Create),
        6 => (any(), 1..=NODES).prop_map(|(which, node)| Event::Reconnect(which, node)),
        1 => any().prop_map(Event::Cancel),
        2 => any().prop_map(Event::Again),
        8 => (any(), acknowledged).prop_map(|(which, state)| Event::AckLease(which, state)),
        5 => (any(), level).prop_map(|(which, level)| Event::AckOplock(which, level)),
        6 => (any(), elements, sequence, prop::bool::ANY)
            .prop_map(|(which, elements, sequence, channels)| Event::Lock(which, elements, sequence, channels)),
        3 => any().prop_map(Event::Write),
        3 => any().prop_map(Event::Rename),
        2 => any().prop_map(Event::SetMetadata),
        1 => any().prop_map(Event::RequestResiliency),
        6 => any().prop_map(Event::Close),
        5 => any().prop_map(Event::Disconnect),
        2 => (1..=NODES, 1..=CLIENTS).prop_map(|(node, client)| Event::EndSession(node, client)),
        1 => (1..=NODES).prop_map(Event::NodeDown),
        3 => Just(Event::Expire),
    ]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    // To look at attributes; at these and the security descriptor; at extended attributes; to read, write, append,
    // execute and delete; and everything.
    let access = select(vec![0x80, 0x2_0080, 0x08, 0x01, 0x02, 0x03, 0x04, 0x20, 0x1_0000, 0x1F_01FF]);
    // Mostly everything is shared: who shares nothing is soon alone.
    let share_access = prop_oneof![3 => Just(7_u32), 1 => 0..8_u32];
    let durability = select(vec![
        Durability::NotDurable,
        Durability::DurableV1,
        Durability::DurableV2,
        Durability::Persistent,
    ]);
    let parent = prop_oneof![2 => Just(None), 1 => (1..=LEASE_KEYS).prop_map(Some)];
    let file = prop_oneof![6 => 1..=FILES, 1 => Just(DIRECTORY)];
    let who = (1..=NODES, 1..=CLIENTS, file);
    let cached = (asked(), parent);
    (who, access, share_access, prop::bool::weighted(0.15), cached, durability).prop_map(
        |((node, client, file), access, share_access, overwrites, (asked, parent), durability)| Wanted {
            node,
            client,
            file,
            access,
            share_access,
            // Who overwrites may write, and what he overwrites is a file.
            overwrites: overwrites && access & 0x02 != 0 && file != DIRECTORY,
            asked,
            parent,
            durability,
        },
    )
}

fn asked() -> impl Strategy<Value = Asked> {
    let level = select(vec![Oplock::None, Oplock::LevelII, Oplock::Exclusive, Oplock::Batch, Oplock::Batch]);
    // R, RW, RH and RWH are what clients ask for.
    let state = select(vec![0, 1, 3, 5, 7, 7, 7]);
    prop_oneof![
        2 => level.prop_map(Asked::Level),
        3 => (1..=LEASE_KEYS, state).prop_map(|(key, state)| Asked::Lease { key, state }),
    ]
}

fn element() -> impl Strategy<Value = LockElement> {
    let kind = select(vec![LockKind::Shared, LockKind::Exclusive, LockKind::Unlock]);
    (0..BYTES, 0..4_u64, kind).prop_map(|(offset, length, kind)| LockElement { offset, length, kind })
}

/// Turns events into commands. It looks at the model for what there is.
#[derive(Default)]
pub(crate) struct Clients {
    newest: Vec<Counter>,
    instances: u128,
    create_guids: u128,
    asked: Vec<Command>,
}

/// The newest incarnation of a node, and the requests that it has made.
struct Counter {
    owner: Owner,
    first_sequence: u64,
    next_sequence: u64,
}

impl Clients {
    /// The registration of a node: of a new SMB service, if the one before is not up any more.
    pub(crate) fn register(&mut self, node: u64) -> Command {
        self.instances += 1;
        let instance = Instance(self.instances.to_be_bytes());
        Command::RegisterNode { node: NodeId(node), instance, arbiter: Arbiter::Cluster }
    }

    /// The registration of every node.
    pub(crate) fn register_all(&mut self) -> Vec<Command> {
        (1..=NODES).map(|node| self.register(node)).collect()
    }

    pub(crate) fn learn(&mut self, command: &Command, outcome: &Outcome) {
        if let (Command::RegisterNode { node, .. }, Outcome::Registered { incarnation, first_sequence }) =
            (command, outcome)
        {
            let owner = Owner { node: *node, incarnation: *incarnation };
            self.newest.retain(|counter| counter.owner.node != *node);
            self.newest.push(Counter {
                owner,
                first_sequence: *first_sequence,
                next_sequence: *first_sequence,
            });
        }
    }

    /// What is asked for when this happens; `None` if there is nobody it could happen to.
    pub(crate) fn command(&mut self, event: &Event, cluster: &Cluster) -> Option<Command> {
        let command = match event {
            Event::Create(wanted) => {
                let create = self.create(wanted);
                self.ask(self.owner(wanted.node), Request::Create(Box::new(create)))
            }
            Event::Reconnect(which, node) => {
                let open = pick(which, cluster.opens.iter().filter(|open| open.until.is_some()))?;
                self.ask(self.owner(*node), Request::Create(Box::new(reconnect(open, *node))))
            }
            Event::Cancel(which) => {
                let waiting = pick(which, cluster.waiting.iter())?;
                self.ask(waiting.owner, Request::Cancel { sequence: waiting.sequence })
            }
            Event::Again(which) => pick(which, self.asked.iter())?.clone(),
            Event::AckLease(which, state) => self.ack_lease(which, *state, cluster)?,
            Event::AckOplock(which, level) => self.ack_oplock(which, *level, cluster)?,
            Event::Lock(which, elements, sequence, multichannel) => {
                let (open, owner) = connected(which, cluster)?;
                if open.file == file(DIRECTORY) {
                    return None;
                }
                let dialect = if *multichannel { Dialect::Smb311 } else { Dialect::Smb210 };
                let lock = Lock {
                    open: open.id,
                    elements: elements.clone(),
                    sequence: *sequence,
                    dialect,
                    multichannel: *multichannel,
                };
                self.ask(owner, Request::Lock(lock))
            }
            Event::Write(which) => self.operate(which, cluster, 0x02, Operation::Write)?,
            Event::Rename(which) => {
                let operation =
                    Operation::Rename { path: "renamed.txt".into(), parent_directory: Some(file(DIRECTORY)) };
                self.operate(which, cluster, 0x1_0000, operation)?
            }
            Event::SetMetadata(which) => self.operate(which, cluster, 0x100, Operation::SetMetadata)?,
            Event::RequestResiliency(which) => {
                let (open, owner) = connected(which, cluster)?;
                if open.durability == Durability::Persistent {
                    return None;
                }
                let request = Request::RequestResiliency {
                    open: open.id,
                    timeout: Millis(1_000),
                    dialect: Dialect::Smb311,
                };
                self.ask(owner, request)
            }
            Event::Close(which) => {
                let (open, owner) = connected(which, cluster)?;
                self.ask(owner, Request::Close(open.id))
            }
            Event::Disconnect(which) => {
                let (open, owner) = connected(which, cluster)?;
                self.ask(owner, Request::Disconnect(open.id))
            }
            Event::EndSession(node, client) => {
                self.ask(self.owner(*node), Request::EndSession(session(*node, *client)))
            }
            Event::NodeDown(node) => {
                let Owner { node, incarnation } = self.owner(*node);
                Command::NodeDown { node, incarnation }
            }
            Event::Expire => Command::ExpireOpens,
        };
        if let Command::FromSmbNode { .. } = command {
            self.asked.push(command.clone());
        }
        Some(command)
    }

    fn ask(&mut self, owner: Owner, request: Request) -> Command {
        let counter = self.newest.iter_mut().find(|counter| counter.owner.node == owner.node);
        let counter = counter.expect("every node is registered first");
        let sequence = counter.next_sequence;
        counter.next_sequence += 1;
        // Nothing is acknowledged, so that every answer can be asked for again.
        let first_outstanding = counter.first_sequence;
        Command::FromSmbNode { proposer: Proposer { owner, sequence, first_outstanding }, request }
    }

    fn owner(&self, node: u64) -> Owner {
        let counter = self.newest.iter().find(|counter| counter.owner.node.0 == node);
        counter.expect("every node is registered first").owner
    }

    fn create(&mut self, wanted: &Wanted) -> Create {
        self.create_guids += 1;
        let create_guid = CreateGuid(self.create_guids.to_be_bytes());
        let request = |persistent| DurableRequestV2 { timeout: Millis(1_500), persistent, create_guid };
        let contexts = match wanted.durability {
            Durability::DurableV1 => CreateContexts { durable_request: true, ..CreateContexts::default() },
            Durability::DurableV2 | Durability::Persistent => {
                let persistent = wanted.durability == Durability::Persistent;
                CreateContexts { durable_request_v2: Some(request(persistent)), ..CreateContexts::default() }
            }
            Durability::NotDurable | Durability::Resilient => CreateContexts::default(),
        };
        Create {
            file: file(wanted.file),
            is_directory: wanted.file == DIRECTORY,
            parent_directory: (wanted.file != DIRECTORY).then_some(file(DIRECTORY)),
            granted_access: AccessMask(wanted.access),
            share_access: ShareAccess(wanted.share_access),
            create_action: if wanted.overwrites { CreateAction::Overwritten } else { CreateAction::Opened },
            requested: match wanted.asked {
                Asked::Level(level) => level,
                Asked::Lease { key, state } => {
                    lease(LeaseKey([key; 16]), state, wanted.parent.map(|parent| LeaseKey([parent; 16])))
                }
            },
            contexts,
            ..anything(wanted.client, wanted.node)
        }
    }

    fn operate(
        &mut self,
        which: &Index,
        cluster: &Cluster,
        needs: u32,
        operation: Operation,
    ) -> Option<Command> {
        let (open, owner) = connected(which, cluster)?;
        let may = open.access.0 & needs != 0 && open.file != file(DIRECTORY);
        may.then(|| self.ask(owner, Request::Operate { open: open.id, operation }))
    }

    fn ack_lease(&mut self, which: &Index, state: Option<u32>, cluster: &Cluster) -> Option<Command> {
        let opens =
            || cluster.opens.iter().filter(|open| open.connected.is_some() && open.oplock.lease().is_some());
        let is_breaking = |open: &&Open| breaking(open, cluster).is_some();
        let open = pick(which, opens().filter(is_breaking)).or_else(|| pick(which, opens()))?;
        let (owner, _) = open.connected?;
        let asked_for = breaking(open, cluster).map_or(0, |caching| {
            let to = &caching.breaking.as_ref().expect("it is breaking").to;
            (0..8).find(|bits| super::letters::Letters::from(LeaseState(*bits)) == *to).unwrap_or(0)
        });
        let statedb::BreakTarget::Lease(lease) = open.holder else { return None };
        let state = LeaseState(state.unwrap_or(asked_for));
        Some(self.ask(owner, Request::AckLeaseBreak { lease, state }))
    }

    fn ack_oplock(
        &mut self,
        which: &Index,
        level: Option<OplockLevel>,
        cluster: &Cluster,
    ) -> Option<Command> {
        let opens =
            || cluster.opens.iter().filter(|open| open.connected.is_some() && open.oplock.lease().is_none());
        let is_breaking = |open: &&Open| breaking(open, cluster).is_some();
        let open = pick(which, opens().filter(is_breaking)).or_else(|| pick(which, opens()))?;
        let (owner, _) = open.connected?;
        let to = breaking(open, cluster).and_then(|caching| caching.breaking.as_ref());
        let asked_for = match to {
            Some(breaking) if breaking.to == letters("R") => OplockLevel::LevelII,
            _ => OplockLevel::None,
        };
        let level = level.unwrap_or(asked_for);
        Some(self.ask(owner, Request::AckOplockBreak { open: open.id, level }))
    }
}

fn pick<'a, T>(which: &Index, from: impl Iterator<Item = &'a T>) -> Option<&'a T> {
    let from: Vec<_> = from.collect();
    if from.is_empty() { None } else { Some(*which.get(&from)) }
}

fn connected<'a>(which: &Index, cluster: &'a Cluster) -> Option<(&'a Open, Owner)> {
    let open = pick(which, cluster.opens.iter().filter(|open| open.connected.is_some()))?;
    Some((open, open.connected?.0))
}

fn breaking<'a>(open: &Open, cluster: &'a Cluster) -> Option<&'a Caching> {
    cluster.caching(open.holder).filter(|caching| caching.breaking.is_some())
}

fn file(number: u64) -> FileKey {
    FileKey { device: 1, inode: number, extid: 0 }
}

fn session(node: u64, client: u8) -> SessionId {
    SessionId(node << 8 | u64::from(client))
}

/// The keys are of both versions.
fn lease(key: LeaseKey, state: u32, parent: Option<LeaseKey>) -> Oplock {
    let is_v1 = key.0[0].is_multiple_of(2);
    Oplock::Lease(Lease {
        key,
        state: LeaseState(state),
        epoch: LeaseEpoch(0),
        version: if is_v1 { LeaseVersion::V1 } else { LeaseVersion::V2 },
        parent,
    })
}

/// A CREATE of a client through a node, without anything that this is about.
fn anything(client: u8, node: u64) -> Create {
    Create {
        durable_file_id: None,
        client: Client {
            client_guid: ClientGuid([client; 16]),
            user: Sid("S-1-5-21-1-2-3-1000".into()),
            session: session(node, client),
            dialect: Dialect::Smb311,
            persistent_handles: true,
            may_read: true,
        },
        share: Share {
            name: ShareName::new("data"),
            continuously_available: true,
            scale_out: false,
            ca_timeout: None,
        },
        path: "report.txt".into(),
        file: file(0),
        is_directory: false,
        parent_directory: None,
        granted_access: AccessMask(0),
        share_access: ShareAccess(0),
        create_options: CreateOptions(0),
        create_action: CreateAction::Opened,
        requested: Oplock::None,
        contexts: CreateContexts::default(),
        app_instance: None,
        is_replay: false,
        allocation_size: 0,
        image: Vec::new().into(),
    }
}

/// The CREATE with which the client of an open comes back for it.
fn reconnect(open: &Open, node: u64) -> Create {
    let durable_file_id: DurableFileId = open.id;
    let contexts = if open.create_guid == CreateGuid::default() {
        CreateContexts { durable_reconnect: Some(durable_file_id), ..CreateContexts::default() }
    } else {
        let persistent = open.durability == Durability::Persistent;
        let create_guid = open.create_guid;
        let reconnect = DurableReconnectV2 { durable_file_id, create_guid, persistent };
        CreateContexts { durable_reconnect_v2: Some(reconnect), ..CreateContexts::default() }
    };
    let requested = match open.oplock.lease() {
        Some(held) => lease(held.key, 7, None),
        None => Oplock::Batch,
    };
    Create {
        path: Arc::clone(&open.path),
        file: open.file,
        contexts,
        requested,
        ..anything(open.client.0[0], node)
    }
}
