//! What a release has stored is still read.

use std::path::PathBuf;

use prost::Message;
use statedb::{
    AccessMask, AppInstance, AppInstanceVersion, Arbiter, Awaited, Break, BreakTarget, ByteRangeLock, Client,
    ClientGuid, Command, Create, CreateAction, CreateContexts, CreateGuid, CreateOptions, DeletePending,
    DeleteState, Dialect, Durability, DurableAnswer, DurableFileId, DurableReconnectV2, DurableRequestV2,
    FileKey, ImageDigest, Incarnation, Instance, Lease, LeaseEpoch, LeaseId, LeaseKey, LeaseState,
    LeaseVersion, Lock, LockElement, LockKind, LockSequence, LogId, Millis, Node, NodeId, NodeState, Note,
    Open, OpenDescription, OpenState, Opened, OpenedHow, Operation, Oplock, OplockLevel, OplockState,
    Outcome, Owner, Proposer, Reclaim, Record, Rejection, Request, ServingNode, SessionId, Share,
    ShareAccess, ShareName, Sid, Timestamp, Update, WaitingRequest,
};

use super::super::decode;
use crate::WireError;
use crate::pb::storage::v1 as pb;

const OWNER: Owner = Owner { node: NodeId(1), incarnation: Incarnation(2) };
const OPEN: DurableFileId = DurableFileId(0x1234_5678);
const OTHER_OPEN: DurableFileId = DurableFileId(7);
const FILE: FileKey = FileKey { device: 4, inode: 5, extid: 6 };
const DIRECTORY: FileKey = FileKey { device: 4, inode: 2, extid: 0 };
const LEASE: LeaseId = LeaseId { client_guid: ClientGuid([2; 16]), key: LeaseKey([10; 16]) };

fn share() -> ShareName {
    ShareName::new("data")
}

fn user() -> Sid {
    Sid("S-1-5-21-1-2-3-1000".into())
}

/// An open as the first release has stored it. Every field that it knew has a value of its own, so that two exchanged
/// ones are noticed; the others have what stands for "not said".
pub(super) fn first_description() -> OpenDescription {
    OpenDescription {
        durable_file_id: OPEN,
        create_guid: CreateGuid([1; 16]),
        client_guid: ClientGuid([2; 16]),
        app_instance: Some(AppInstance { id: [3; 16], version: None }),
        durable_owner: user(),
        share: share(),
        path: "dir/file.txt".into(),
        file: FILE,
        is_directory: false,
        parent_directory: None,
        granted_access: AccessMask(7),
        share_access: ShareAccess(8),
        create_options: CreateOptions(9),
        create_action: CreateAction::Opened,
        oplock: Oplock::Lease(Lease {
            key: LeaseKey([10; 16]),
            state: LeaseState(LeaseState::READ | LeaseState::HANDLE | LeaseState::WRITE),
            epoch: LeaseEpoch(11),
            version: LeaseVersion::V2,
            parent: None,
        }),
        oplock_state: OplockState::Held,
        durability: Durability::DurableV2,
        durable_open_timeout: Millis(60_000),
        byte_range_locks: vec![ByteRangeLock { offset: 12, length: 13, exclusive: true }],
        lock_sequence_array: vec![0xFF, 14],
        delete_on_close: true,
        position: 15,
        allocation_size: 0,
        is_replay_eligible: false,
        image: vec![16, 17, 18].into(),
    }
}

/// An open with a value of its own in every field.
fn description() -> OpenDescription {
    let version = Some(AppInstanceVersion { high: 30, low: 31 });
    OpenDescription {
        app_instance: Some(AppInstance { id: [3; 16], version }),
        is_directory: true,
        parent_directory: Some(DIRECTORY),
        create_action: CreateAction::Overwritten,
        oplock: Oplock::Lease(lease()),
        oplock_state: OplockState::Breaking,
        durability: Durability::NotDurable,
        allocation_size: 32,
        is_replay_eligible: true,
        ..first_description()
    }
}

fn lease() -> Lease {
    Lease {
        key: LEASE.key,
        state: LeaseState(LeaseState::READ | LeaseState::HANDLE),
        epoch: LeaseEpoch(33),
        version: LeaseVersion::V2,
        parent: Some(LeaseKey([34; 16])),
    }
}

fn create() -> Create {
    Create {
        durable_file_id: Some(OPEN),
        client: Client {
            client_guid: ClientGuid([2; 16]),
            user: user(),
            session: SessionId(40),
            dialect: Dialect::Smb311,
            persistent_handles: true,
            may_read: true,
        },
        share: Share {
            name: share(),
            continuously_available: true,
            scale_out: true,
            ca_timeout: Some(Millis(41)),
        },
        path: "dir/file.txt".into(),
        file: FILE,
        is_directory: true,
        parent_directory: Some(DIRECTORY),
        granted_access: AccessMask(42),
        share_access: ShareAccess(43),
        create_options: CreateOptions(44),
        create_action: CreateAction::Superseded,
        requested: Oplock::Lease(lease()),
        contexts: CreateContexts {
            durable_request: true,
            durable_reconnect: Some(DurableFileId(45)),
            durable_request_v2: Some(DurableRequestV2 {
                timeout: Millis(46),
                persistent: true,
                create_guid: CreateGuid([47; 16]),
            }),
            durable_reconnect_v2: Some(DurableReconnectV2 {
                durable_file_id: DurableFileId(48),
                create_guid: CreateGuid([49; 16]),
                persistent: true,
            }),
        },
        app_instance: Some(AppInstance {
            id: [50; 16],
            version: Some(AppInstanceVersion { high: 54, low: 55 }),
        }),
        is_replay: true,
        allocation_size: 51,
        image: vec![52, 53].into(),
    }
}

/// Values under the names of their golden files.
type Named<T> = Vec<(&'static str, T)>;

fn commands() -> Named<Command> {
    let from = |request| Command::FromSmbNode {
        proposer: Proposer { owner: OWNER, sequence: 40, first_outstanding: 38 },
        request,
    };
    let register = |arbiter| Command::RegisterNode { node: NodeId(1), instance: Instance([19; 16]), arbiter };
    let operate = |operation| from(Request::Operate { open: OPEN, operation });
    let batch = OpenDescription { oplock: Oplock::Batch, app_instance: None, ..first_description() };
    let lock = Lock {
        open: OPEN,
        elements: vec![
            LockElement { offset: 60, length: 61, kind: LockKind::Exclusive },
            LockElement { offset: 62, length: 63, kind: LockKind::Shared },
            LockElement { offset: 64, length: 65, kind: LockKind::Unlock },
        ],
        sequence: LockSequence { index: 7, number: 15 },
        dialect: Dialect::Smb302,
        multichannel: true,
    };
    vec![
        ("register-node", register(Arbiter::SmbServer)),
        ("node-down", Command::NodeDown { node: NodeId(1), incarnation: Incarnation(2) }),
        ("expire-opens", Command::ExpireOpens),
        ("grant", from(Request::Grant(Box::new(first_description())))),
        ("update", from(Request::Update(vec![batch, first_description()].into()))),
        ("disconnect", from(Request::Disconnect(OPEN))),
        (
            "reclaim",
            from(Request::Reclaim(Reclaim { durable_file_id: OPEN, create_guid: CreateGuid([1; 16]) })),
        ),
        ("close", from(Request::Close(OPEN))),
        ("serve-share", from(Request::ServeShare(share()))),
        ("release-share", from(Request::ReleaseShare(share()))),
        ("register-node-cluster", register(Arbiter::Cluster)),
        ("grant-all-fields", from(Request::Grant(Box::new(description())))),
        ("create", from(Request::Create(Box::new(create())))),
        (
            "create-oplock",
            from(Request::Create(Box::new(Create { requested: Oplock::Exclusive, ..create() }))),
        ),
        ("cancel", from(Request::Cancel { sequence: 39 })),
        ("ack-oplock-break", from(Request::AckOplockBreak { open: OPEN, level: OplockLevel::LevelII })),
        (
            "ack-lease-break",
            from(Request::AckLeaseBreak { lease: LEASE, state: LeaseState(LeaseState::READ) }),
        ),
        ("lock", from(Request::Lock(lock))),
        ("write", operate(Operation::Write)),
        ("set-metadata", operate(Operation::SetMetadata)),
        (
            "rename",
            operate(Operation::Rename { path: "dir/new.txt".into(), parent_directory: Some(DIRECTORY) }),
        ),
        ("set-delete-pending", operate(Operation::SetDeletePending(true))),
        (
            "note",
            from(Request::Note(Note {
                open: OPEN,
                position: Some(0),
                image: Some(vec![66].into()),
                is_used: true,
            })),
        ),
        (
            "request-resiliency",
            from(Request::RequestResiliency { open: OPEN, timeout: Millis(67), dialect: Dialect::Smb210 }),
        ),
        ("end-session", from(Request::EndSession(SessionId(68)))),
        ("replace-session", from(Request::ReplaceSession { previous: SessionId(68), user: user() })),
        ("end-tree-connect", from(Request::EndTreeConnect { session: SessionId(68), share: share() })),
        ("file-deleted", from(Request::FileDeleted(FILE))),
        (
            "update-replacing",
            from(Request::Update(Update {
                opens: vec![description()],
                replaces: vec![ImageDigest(0x0102_0304_0506_0708)],
            })),
        ),
    ]
}

fn outcomes() -> Named<Outcome> {
    let opened = |durable| {
        Outcome::Opened(Opened {
            durable_file_id: OPEN,
            how: OpenedHow::Reconnected,
            create_action: CreateAction::Created,
            oplock: Oplock::Lease(lease()),
            is_lease_breaking: true,
            durable,
        })
    };
    let v2 = DurableAnswer::V2 { timeout: Millis(70), persistent: true };
    vec![
        ("registered", Outcome::Registered { incarnation: Incarnation(2), first_sequence: 4096 }),
        ("node-down", Outcome::NodeDown { disconnected: vec![OPEN], closed: vec![OTHER_OPEN] }),
        ("expired", Outcome::Expired { closed: vec![OPEN], breaks_ended: 0 }),
        ("granted", Outcome::Granted),
        ("updated", Outcome::Updated),
        ("disconnected", Outcome::Disconnected { until: Timestamp(70_000) }),
        ("reclaimed", Outcome::Reclaimed),
        ("closed", Outcome::Closed),
        ("share-served", Outcome::ShareServed),
        ("share-released", Outcome::ShareReleased),
        ("rejected-fenced", Outcome::Rejected(fenced())),
        ("expired-breaks", Outcome::Expired { closed: vec![OPEN], breaks_ended: 71 }),
        ("opened", opened(None)),
        ("opened-v1", opened(Some(DurableAnswer::V1))),
        ("opened-v2", opened(Some(v2))),
        ("break-pending", Outcome::BreakPending),
        ("delete-first", Outcome::DeleteFirst { file: FILE }),
        ("cancelled", Outcome::Cancelled),
        ("break-acknowledged", Outcome::BreakAcknowledged),
        ("locked", Outcome::Locked { is_replay: true }),
        ("proceed", Outcome::Proceed),
        ("resilient", Outcome::Resilient { timeout: Millis(72) }),
        ("session-ended", Outcome::SessionEnded { disconnected: vec![OPEN], closed: vec![OTHER_OPEN] }),
    ]
}

fn fenced() -> Rejection {
    Rejection::Fenced { proposer: OWNER, current: Some(Incarnation(3)) }
}

/// Every rejection but `Fenced`.
fn rejections() -> Vec<Rejection> {
    vec![
        Rejection::AnswerForgotten { sequence: 80 },
        Rejection::TooManyOutstanding { limit: 81 },
        Rejection::OpenNotFound(OPEN),
        Rejection::DurableFileIdInUse(OPEN),
        Rejection::NotOwner { open: OPEN, holder: Some(OWNER) },
        Rejection::OpenConnected { open: OPEN, owner: OWNER },
        Rejection::CreateGuidMismatch(OPEN),
        Rejection::ContextsExcludeEachOther,
        Rejection::ClientGuidMismatch(OPEN),
        Rejection::LeaseContextMismatch(OPEN),
        Rejection::LeaseKeyMismatch(OPEN),
        Rejection::NotKept(OPEN),
        Rejection::PersistentFlagMissing(OPEN),
        Rejection::PersistentFlagMismatch(OPEN),
        Rejection::PathMismatch(OPEN),
        Rejection::UserMismatch(OPEN),
        Rejection::SharingViolation { with: OTHER_OPEN },
        Rejection::HeldByPersistentOpen(OPEN),
        Rejection::DirectoryOfPersistentOpen(OPEN),
        Rejection::DeletePending(FILE),
        Rejection::NotYoursToDelete(FILE),
        Rejection::CreateGuidInUse(OPEN),
        Rejection::CreatePending,
        Rejection::NothingToReplay,
        Rejection::ReplayMismatch(OPEN),
        Rejection::AppInstanceNotLater(OPEN),
        Rejection::LeaseKeyInUse(LEASE),
        Rejection::LockNotGranted { with: OTHER_OPEN },
        Rejection::RangeNotLocked(OPEN),
        Rejection::InvalidLockRequest(OPEN),
        Rejection::InvalidLockRange(OPEN),
        Rejection::TooManyLocks { limit: 82 },
        Rejection::FileClosed(OPEN),
        Rejection::OplockNotBreaking(OPEN),
        Rejection::OplockLevelNotAccepted(OPEN),
        Rejection::OplockLevelIsLease(OPEN),
        Rejection::LeaseNotFound(LEASE),
        Rejection::LeaseNotBreaking(LEASE),
        Rejection::LeaseStateNotAccepted(LEASE),
        Rejection::ResiliencyNotInDialect,
        Rejection::ResiliencyTooLong { limit: Millis(83) },
        Rejection::Cancelled,
        Rejection::TooManyWaiting { limit: 84 },
        Rejection::WrongArbiter,
        Rejection::IdentityChanged(OPEN),
        Rejection::ShareServedElsewhere { share: share(), owner: OWNER },
        Rejection::TooManyOpens { limit: 85 },
        Rejection::TooManyShares { limit: 86 },
        Rejection::OpenTooLarge { open: OPEN, limit: 87 },
        Rejection::TimeoutTooLong { open: OPEN, limit: Millis(88) },
    ]
}

fn records() -> Named<Record> {
    let applied = Some(LogId { term: 3, index: 99 });
    let meta = |next_event| Record::Meta { applied, now: Timestamp(12_345), next_event };
    let node = Node {
        incarnation: Incarnation(2),
        instance: Instance([19; 16]),
        superseded: [(Incarnation(1), Instance([20; 16]))].into(),
        arbiter: Arbiter::SmbServer,
        state: NodeState::Up,
        registered_at: 0,
        first_outstanding: 38,
        answered: [(38, Outcome::Granted), (39, Outcome::Rejected(fenced()))].into(),
    };
    let together = Node {
        arbiter: Arbiter::SmbCluster,
        answered: [(38, Outcome::Rejected(Rejection::OpenChanged(OPEN)))].into(),
        ..node.clone()
    };
    let down = Node { state: NodeState::Down { since: Timestamp(10_000) }, ..node.clone() };
    let rejected = (38..).zip(rejections().into_iter().map(Outcome::Rejected)).collect();
    let registered = Node { registered_at: 95, ..node.clone() };
    let node_cluster = Node { arbiter: Arbiter::Cluster, answered: rejected, ..node.clone() };

    let open = |description, arbiter, state| Record::Open(Box::new(Open { description, arbiter, state }));
    let batch = OpenDescription { oplock: Oplock::Batch, app_instance: None, ..first_description() };
    let connected = |session| OpenState::Connected { owner: OWNER, session };
    let waits =
        |keeper| OpenState::Disconnected { keeper, durable_open_scavenger_timeout: Timestamp(70_000) };

    let under_way = Break {
        to: LeaseState(LeaseState::READ | LeaseState::HANDLE),
        required: LeaseState(LeaseState::READ),
        ack_until: Some(Timestamp(90)),
    };
    let waiting = |awaited| {
        Record::Waiting(Box::new(WaitingRequest {
            index: 91,
            owner: OWNER,
            sequence: 92,
            file: FILE,
            awaited,
        }))
    };
    let delete = |state| Record::Delete(FILE, delete_pending(Arbiter::Cluster, &[], state));
    vec![
        ("meta", meta(0)),
        ("node-up", Record::Node(NodeId(1), node)),
        ("node-down", Record::Node(NodeId(2), down)),
        ("share", Record::Share(share(), ServingNode { owner: OWNER })),
        ("open-connected", open(first_description(), Arbiter::SmbServer, connected(None))),
        ("open-kept", open(batch.clone(), Arbiter::SmbServer, waits(Some(OWNER)))),
        ("open-orphaned", open(batch, Arbiter::SmbServer, waits(None))),
        ("meta-next-event", meta(93)),
        ("node-cluster", Record::Node(NodeId(1), node_cluster)),
        ("open-cluster", open(description(), Arbiter::Cluster, connected(Some(SessionId(94))))),
        ("break-oplock", Record::Break(BreakTarget::Oplock(OPEN), Break { ack_until: None, ..under_way })),
        ("break-lease", Record::Break(BreakTarget::Lease(LEASE), under_way)),
        ("waiting-create", waiting(Awaited::Create { durable_file_id: OPEN, create: Box::new(create()) })),
        ("waiting-operation", waiting(Awaited::Operation { open: OPEN, operation: Operation::Write })),
        ("delete-pending", delete(DeleteState::Pending)),
        ("node-smb-cluster", Record::Node(NodeId(1), together)),
        ("delete-due", delete(DeleteState::Due(Some(OWNER)))),
        (
            "delete-due-smb-server",
            Record::Delete(FILE, delete_pending(Arbiter::SmbServer, b"image", DeleteState::Due(None))),
        ),
        ("node-registered-at", Record::Node(NodeId(1), registered)),
    ]
}

/// The bytes of every stored message as format version 1 wrote them, those of the first release among them, which knew
/// fewer fields. `UPDATE=1 cargo test` writes the files that are missing; one that is there is never written anew.
#[test]
fn what_a_release_has_stored_is_still_read() {
    fn check<M, T>(message: &'static str, samples: Named<T>)
    where
        M: Message + Default + for<'a> From<&'a T>,
        T: TryFrom<M, Error = WireError> + PartialEq + std::fmt::Debug,
    {
        for (name, sample) in samples {
            let golden = golden_bytes(message, name, || M::from(&sample).encode_to_vec());
            assert_eq!(decode::<M, T>(message, &golden), Ok(sample), "{message} {name}");
        }
    }
    fn check_message<M: Message + Default + PartialEq + std::fmt::Debug>(
        message: &'static str,
        name: &str,
        sample: &M,
    ) {
        let golden = golden_bytes(message, name, || sample.encode_to_vec());
        assert_eq!(M::decode(golden.as_slice()).as_ref(), Ok(sample), "{message} {name}");
    }
    check::<pb::Command, _>("Command", commands());
    check::<crate::pb::smb::v1::Outcome, _>("Outcome", outcomes());
    check::<pb::Record, _>("Record", records());

    let members = [1, 2, 3].map(|node_id| pb::Member { node_id, address: format!("10.0.0.{node_id}:7400") });
    let membership =
        pb::Membership { configs: vec![pb::VoterSet { node_ids: vec![1, 2, 3] }], members: members.into() };
    let command =
        pb::ProposedCommand { proposed_at_ms: 12_345, command: Some((&Command::ExpireOpens).into()) };
    for (name, payload) in [
        ("blank", pb::log_entry::Payload::Blank(pb::Blank {})),
        ("command", pb::log_entry::Payload::Command(command)),
        ("membership", pb::log_entry::Payload::Membership(membership.clone())),
    ] {
        check_message("LogEntry", name, &pb::LogEntry { payload: Some(payload) });
    }
    let stored =
        pb::StoredMembership { log_id: Some(pb::LogId { term: 0, index: 0 }), membership: Some(membership) };
    let meta = pb::AppliedMeta {
        applied: Some(pb::LogId { term: 3, index: 99 }),
        now_ms: 12_345,
        membership: Some(stored),
        next_event: 0,
    };
    check_message("AppliedMeta", "meta", &meta);
    check_message("AppliedMeta", "meta-next-event", &pb::AppliedMeta { next_event: 95, ..meta });
}

/// What is in a golden file; with `UPDATE` set, after it was written if it was missing.
fn golden_bytes(message: &str, name: &str, encode: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/v1").join(message.to_lowercase());
    let file = dir.join(name).with_extension("bin");
    if std::env::var_os("UPDATE").is_some() && !file.exists() {
        std::fs::create_dir_all(&dir).expect("writable");
        std::fs::write(&file, encode()).expect("writable");
    }
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn delete_pending(arbiter: Arbiter, image: &[u8], state: DeleteState) -> DeletePending {
    DeletePending { share: share(), path: "dir/file.txt".into(), arbiter, image: image.into(), state }
}
