//! A log in which most of what can happen happens, for seeds: its commands, and what comes of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use statedb::{
    AccessMask, AppInstance, AppInstanceVersion, Arbiter, Client, ClientGuid, Command, Create, CreateAction,
    CreateContexts, CreateGuid, CreateOptions, Dialect, Durability, DurableFileId, DurableReconnectV2,
    DurableRequestV2, FileKey, Incarnation, Instance, Lease, LeaseEpoch, LeaseId, LeaseKey, LeaseState,
    LeaseVersion, Lock, LockElement, LockKind, LockSequence, Millis, NodeId, Note, OpenDescription,
    Operation, Oplock, OplockLevel, OplockState, Owner, Proposer, Reclaim, Request, SessionId, Share,
    ShareAccess, ShareName, Sid, Timestamp,
};

/// Commands, and when they are proposed.
pub(crate) type Log = Vec<(Timestamp, Command)>;

/// How long goes by between two commands.
const STEP: Millis = Millis(1000);

/// Long enough for whatever waits.
const LONG: Millis = Millis(600_000);

/// Two files.
const REPORT: FileKey = FileKey { device: 1, inode: 2, extid: 0 };
const NOTES: FileKey = FileKey { device: 1, inode: 3, extid: 0 };

/// The directory that they are in.
const DIRECTORY: FileKey = FileKey { device: 1, inode: 1, extid: 0 };

/// Two clients that want the same files, each by way of a node of its own.
const ALICE: ClientGuid = ClientGuid([0xA1; 16]);
const BOB: ClientGuid = ClientGuid([0xB0; 16]);

/// A CreateOption (MS-SMB2 2.2.13).
const FILE_DELETE_ON_CLOSE: u32 = 0x1000;

/// The CreateGuid of whatever is durable.
const CREATE_GUID: CreateGuid = CreateGuid([7; 16]);

/// A log that begins with the cluster.
#[derive(Default)]
struct Teller {
    log: Log,
    sequences: BTreeMap<u64, u64>,
}

impl Teller {
    fn propose(&mut self, command: Command) {
        self.propose_after(STEP, command);
    }

    fn propose_after(&mut self, pause: Millis, command: Command) {
        let at = self.log.last().map_or(Timestamp::default(), |(at, _)| at.after(pause));
        self.log.push((at, command));
    }

    fn register(&mut self, node: u64, arbiter: Arbiter) {
        let instance = Instance([u8::try_from(node).expect("there are few nodes"); 16]);
        self.propose(Command::RegisterNode { node: NodeId(node), instance, arbiter });
    }

    /// The node, in its first incarnation, asks for something.
    fn ask(&mut self, node: u64, request: Request) {
        let sequence = self.sequences.entry(node).or_default();
        *sequence += 1;
        let owner = Owner { node: NodeId(node), incarnation: Incarnation(1) };
        let proposer = Proposer { owner, sequence: *sequence, first_outstanding: 0 };
        self.propose(Command::FromSmbNode { proposer, request });
    }
}

/// Every story, with its name.
pub(crate) fn all() -> [(&'static str, Log); 3] {
    [("leases", leases()), ("oplocks", oplocks()), ("reports", reports())]
}

/// Where the cluster decides: a lease is broken, a durable handle is lost and had back, a file is deleted.
fn leases() -> Log {
    let mut teller = Teller::default();
    teller.register(1, Arbiter::Cluster);
    teller.register(2, Arbiter::Cluster);
    let open = DurableFileId(7);
    let durable = CreateContexts {
        durable_request_v2: Some(DurableRequestV2 {
            timeout: Millis(60_000),
            persistent: false,
            create_guid: CREATE_GUID,
        }),
        ..CreateContexts::default()
    };
    let first = Create { contexts: durable, ..create(ALICE, REPORT, Some(open), lease(ALICE)) };
    teller.ask(1, Request::Create(Box::new(first.clone())));
    teller.ask(1, Request::Create(Box::new(Create { is_replay: true, ..first })));
    teller.ask(1, lock(open, LockKind::Exclusive));
    teller.ask(1, lock(open, LockKind::Unlock));
    let image = Some(Arc::from(&b"image"[..]));
    teller.ask(1, Request::Note(Note { open, position: Some(512), image, is_used: false }));

    let other = DurableFileId(8);
    teller.ask(2, Request::Create(Box::new(create(BOB, REPORT, Some(other), lease(BOB)))));
    let broken = LeaseId { client_guid: ALICE, key: lease_key(ALICE) };
    let state = LeaseState(LeaseState::READ | LeaseState::HANDLE);
    teller.ask(1, Request::AckLeaseBreak { lease: broken, state });
    teller.ask(1, Request::EndSession(session(ALICE)));
    let reconnect = CreateContexts {
        durable_reconnect_v2: Some(DurableReconnectV2 {
            durable_file_id: open,
            create_guid: CREATE_GUID,
            persistent: false,
        }),
        ..CreateContexts::default()
    };
    let again = Create { contexts: reconnect, ..create(ALICE, REPORT, None, lease(ALICE)) };
    teller.ask(1, Request::Create(Box::new(again)));

    teller.ask(2, Request::Operate { open: other, operation: Operation::Write });
    teller.ask(2, Request::Operate { open: other, operation: Operation::SetMetadata });
    let rename = Operation::Rename { path: "dir/final.txt".into(), parent_directory: Some(DIRECTORY) };
    teller.ask(2, Request::Operate { open: other, operation: rename });
    teller.ask(1, Request::AckLeaseBreak { lease: broken, state: LeaseState::NONE });
    teller.ask(2, Request::Operate { open: other, operation: Operation::SetDeletePending(true) });
    teller.ask(1, Request::Close(open));
    teller.ask(2, Request::Close(other));
    teller.ask(2, Request::FileDeleted(REPORT));
    teller.log
}

/// Where the cluster decides: oplocks, resiliency, a request that is given up, sessions that end, a node that dies.
fn oplocks() -> Log {
    let mut teller = Teller::default();
    teller.register(1, Arbiter::Cluster);
    teller.register(2, Arbiter::Cluster);
    let open = DurableFileId(7);
    let durable = CreateContexts { durable_request: true, ..CreateContexts::default() };
    let version = Some(AppInstanceVersion { high: 1, low: 2 });
    let app_instance = Some(AppInstance { id: [0xAA; 16], version });
    let first = Create { contexts: durable, app_instance, ..create(ALICE, NOTES, Some(open), Oplock::Batch) };
    teller.ask(1, Request::Create(Box::new(first)));
    teller.ask(2, Request::Create(Box::new(create(BOB, NOTES, Some(DurableFileId(8)), Oplock::Exclusive))));
    teller.ask(2, Request::Cancel { sequence: 1 });
    teller.ask(2, Request::Create(Box::new(create(BOB, NOTES, Some(DurableFileId(9)), Oplock::LevelII))));
    teller.ask(1, Request::AckOplockBreak { open, level: OplockLevel::LevelII });
    teller.ask(1, Request::RequestResiliency { open, timeout: Millis(120_000), dialect: Dialect::Smb311 });
    teller.ask(1, Request::Disconnect(open));
    let version = Some(AppInstanceVersion { high: 2, low: 0 });
    let app_instance = Some(AppInstance { id: [0xAA; 16], version });
    let later = Create { app_instance, ..create(BOB, NOTES, Some(DurableFileId(10)), Oplock::None) };
    teller.ask(2, Request::Create(Box::new(later)));
    teller.ask(2, Request::EndTreeConnect { session: session(BOB), share: share_name() });

    let persistent = CreateContexts {
        durable_request_v2: Some(DurableRequestV2 {
            timeout: Millis(0),
            persistent: true,
            create_guid: CREATE_GUID,
        }),
        ..CreateContexts::default()
    };
    let last = Create {
        contexts: persistent,
        create_options: CreateOptions(FILE_DELETE_ON_CLOSE),
        ..create(ALICE, NOTES, Some(DurableFileId(11)), lease(ALICE))
    };
    teller.ask(1, Request::Create(Box::new(last)));
    teller.ask(2, Request::ReplaceSession { previous: session(ALICE), user: user() });
    teller.propose(Command::NodeDown { node: NodeId(1), incarnation: Incarnation(1) });
    teller.ask(2, Request::Create(Box::new(create(BOB, NOTES, Some(DurableFileId(12)), Oplock::None))));
    teller.propose_after(LONG, Command::ExpireOpens);
    teller.log
}

/// Where SMB servers decide by themselves, as Samba does.
fn reports() -> Log {
    let mut teller = Teller::default();
    teller.register(1, Arbiter::SmbServer);
    teller.register(2, Arbiter::SmbCluster);
    let open = DurableFileId(7);
    let granted = description(open, Oplock::Batch);
    teller.ask(1, Request::ServeShare(share_name()));
    teller.ask(1, Request::Grant(Box::new(granted.clone())));
    teller.ask(1, Request::Update(vec![OpenDescription { position: 512, ..granted.clone() }].into()));
    teller.ask(1, Request::Disconnect(open));
    teller.ask(1, Request::Reclaim(Reclaim { durable_file_id: open, create_guid: CREATE_GUID }));
    teller.ask(1, Request::ReleaseShare(share_name()));
    teller.propose(Command::NodeDown { node: NodeId(1), incarnation: Incarnation(1) });
    teller.ask(2, Request::ServeShare(share_name()));
    teller.ask(2, Request::Reclaim(Reclaim { durable_file_id: open, create_guid: CREATE_GUID }));
    let contradiction = description(DurableFileId(8), Oplock::Exclusive);
    teller.ask(2, Request::Grant(Box::new(contradiction)));
    teller.ask(2, Request::Close(open));
    teller.propose_after(LONG, Command::ExpireOpens);
    teller.log
}

fn create(client_guid: ClientGuid, file: FileKey, id: Option<DurableFileId>, requested: Oplock) -> Create {
    Create {
        durable_file_id: id,
        client: Client {
            client_guid,
            user: user(),
            session: session(client_guid),
            dialect: Dialect::Smb311,
            persistent_handles: true,
            may_read: true,
        },
        share: Share {
            name: share_name(),
            continuously_available: true,
            scale_out: false,
            ca_timeout: Some(Millis(30_000)),
        },
        path: path(),
        file,
        is_directory: false,
        parent_directory: Some(DIRECTORY),
        granted_access: AccessMask(AccessMask::READ_DATA | AccessMask::WRITE_DATA | AccessMask::DELETE),
        share_access: ShareAccess(ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE),
        create_options: CreateOptions::default(),
        create_action: CreateAction::Opened,
        requested,
        contexts: CreateContexts::default(),
        app_instance: None,
        is_replay: false,
        allocation_size: 4096,
        image: [].into(),
    }
}

fn lock(open: DurableFileId, kind: LockKind) -> Request {
    Request::Lock(Lock {
        open,
        elements: vec![LockElement { offset: 10, length: 20, kind }],
        sequence: LockSequence { index: 1, number: 3 + kind as u8 },
        dialect: Dialect::Smb311,
        multichannel: true,
    })
}

fn description(durable_file_id: DurableFileId, oplock: Oplock) -> OpenDescription {
    OpenDescription {
        durable_file_id,
        create_guid: CREATE_GUID,
        client_guid: ALICE,
        app_instance: None,
        durable_owner: user(),
        share: share_name(),
        path: path(),
        file: REPORT,
        is_directory: false,
        parent_directory: None,
        granted_access: AccessMask(AccessMask::READ_DATA),
        share_access: ShareAccess(ShareAccess::READ),
        create_options: CreateOptions::default(),
        create_action: CreateAction::Created,
        oplock,
        oplock_state: OplockState::Held,
        durability: Durability::DurableV2,
        durable_open_timeout: Millis(60_000),
        byte_range_locks: Vec::new(),
        lock_sequence_array: Vec::new(),
        delete_on_close: false,
        position: 0,
        allocation_size: 0,
        is_replay_eligible: false,
        image: [0x1F; 8].into(),
    }
}

fn lease(client: ClientGuid) -> Oplock {
    Oplock::Lease(Lease {
        key: lease_key(client),
        state: LeaseState(LeaseState::READ | LeaseState::WRITE | LeaseState::HANDLE),
        epoch: LeaseEpoch(1),
        version: LeaseVersion::V2,
        parent: Some(LeaseKey([0xDD; 16])),
    })
}

fn lease_key(client: ClientGuid) -> LeaseKey {
    LeaseKey(client.0)
}

fn session(client: ClientGuid) -> SessionId {
    SessionId(u64::from(client.0[0]))
}

fn user() -> Sid {
    Sid("S-1-5-21-1-2-3-1000".into())
}

fn share_name() -> ShareName {
    ShareName::new("data")
}

fn path() -> Arc<str> {
    "dir/report.txt".into()
}
