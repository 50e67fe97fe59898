//! Every value that a checked type can have.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use statedb::{
    AccessMask, AppInstance, AppInstanceVersion, Arbiter, Awaited, Break, BreakTarget, ByteRangeLock, Client,
    ClientGuid, CloseReason, Command, Create, CreateAction, CreateContexts, CreateGuid, CreateOptions,
    DeletePending, DeleteState, Dialect, Durability, DurableAnswer, DurableFileId, DurableReconnectV2,
    DurableRequestV2, Event, EventKind, FileKey, ImageDigest, Incarnation, Instance, Lease, LeaseEpoch,
    LeaseId, LeaseKey, LeaseState, LeaseVersion, Lock, LockElement, LockKind, LockSequence, LogId, Millis,
    Node, NodeId, NodeState, Note, Open, OpenDescription, OpenState, Opened, OpenedHow, Operation, Oplock,
    OplockLevel, OplockState, Outcome, Owner, Proposer, Reclaim, Record, Rejection, Request, ServingNode,
    SessionId, Share, ShareAccess, ShareName, Sid, Timestamp, Update, WaitingRequest,
};

pub(super) const ARBITERS: [Arbiter; 3] = [Arbiter::Cluster, Arbiter::SmbServer, Arbiter::SmbCluster];

const DIALECTS: [Dialect; 5] =
    [Dialect::Smb202, Dialect::Smb210, Dialect::Smb300, Dialect::Smb302, Dialect::Smb311];

const CREATE_ACTIONS: [CreateAction; 4] =
    [CreateAction::Superseded, CreateAction::Opened, CreateAction::Created, CreateAction::Overwritten];

const OPLOCK_LEVELS: [OplockLevel; 5] =
    [OplockLevel::None, OplockLevel::LevelII, OplockLevel::Exclusive, OplockLevel::Batch, OplockLevel::Lease];

const LEASE_VERSIONS: [LeaseVersion; 2] = [LeaseVersion::V1, LeaseVersion::V2];

const DURABILITIES: [Durability; 5] = [
    Durability::NotDurable,
    Durability::DurableV1,
    Durability::DurableV2,
    Durability::Resilient,
    Durability::Persistent,
];

const LOCK_KINDS: [LockKind; 3] = [LockKind::Shared, LockKind::Exclusive, LockKind::Unlock];

const HOWS: [OpenedHow; 3] = [OpenedHow::Created, OpenedHow::Replayed, OpenedHow::Reconnected];

const CLOSE_REASONS: [CloseReason; 4] =
    [CloseReason::Expired, CloseReason::Purged, CloseReason::AppInstanceReplaced, CloseReason::Reclaimed];

fn owner() -> impl Strategy<Value = Owner> {
    any::<(u64, u64)>()
        .prop_map(|(node, incarnation)| Owner { node: NodeId(node), incarnation: Incarnation(incarnation) })
}

fn share_name() -> impl Strategy<Value = ShareName> {
    "\\PC{0,20}".prop_map(|name| ShareName::new(&name))
}

fn path() -> impl Strategy<Value = std::sync::Arc<str>> {
    "\\PC{0,40}".prop_map(Into::into)
}

fn user() -> impl Strategy<Value = Sid> {
    "S-1-5-21(-[0-9]{1,10}){4}".prop_map(|sid| Sid(sid.into()))
}

fn id() -> impl Strategy<Value = DurableFileId> + Clone {
    any::<u64>().prop_map(DurableFileId)
}

fn ids() -> impl Strategy<Value = Vec<DurableFileId>> {
    vec(id(), 0..5)
}

fn file() -> impl Strategy<Value = FileKey> {
    any::<(u64, u64, u64)>().prop_map(|(device, inode, extid)| FileKey { device, inode, extid })
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<u64>().prop_map(SessionId)
}

fn millis() -> impl Strategy<Value = Millis> {
    any::<u64>().prop_map(Millis)
}

fn until() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp)
}

fn image() -> impl Strategy<Value = std::sync::Arc<[u8]>> {
    vec(any::<u8>(), 0..200).prop_map(Into::into)
}

fn create_guid() -> impl Strategy<Value = CreateGuid> {
    any::<[u8; 16]>().prop_map(CreateGuid)
}

fn lease_state() -> impl Strategy<Value = LeaseState> {
    any::<u32>().prop_map(LeaseState)
}

fn lease_id() -> impl Strategy<Value = LeaseId> {
    any::<([u8; 16], [u8; 16])>()
        .prop_map(|(client, key)| LeaseId { client_guid: ClientGuid(client), key: LeaseKey(key) })
}

fn app_instance() -> impl Strategy<Value = AppInstance> {
    any::<([u8; 16], Option<(u64, u64)>)>().prop_map(|(id, version)| AppInstance {
        id,
        version: version.map(|(high, low)| AppInstanceVersion { high, low }),
    })
}

fn oplock() -> impl Strategy<Value = Oplock> {
    let lease = (any::<([u8; 16], u32, u16, Option<[u8; 16]>)>(), select(&LEASE_VERSIONS[..])).prop_map(
        |((key, state, epoch, parent), version)| Lease {
            key: LeaseKey(key),
            state: LeaseState(state),
            epoch: LeaseEpoch(epoch),
            version,
            parent: parent.map(LeaseKey),
        },
    );
    prop_oneof![
        Just(Oplock::None),
        Just(Oplock::LevelII),
        Just(Oplock::Exclusive),
        Just(Oplock::Batch),
        lease.prop_map(Oplock::Lease),
    ]
}

prop_compose! {
    fn description()(
        guids in any::<([u8; 16], [u8; 16])>(),
        app_instance in option::of(app_instance()),
        (durable_owner, share, path) in (user(), share_name(), path()),
        (file, parent_directory) in (file(), option::of(file())),
        (id, access, share_access, options) in any::<(u64, u32, u32, u32)>(),
        create_action in select(&CREATE_ACTIONS[..]),
        (oplock, oplock_state) in (oplock(), select(&[OplockState::Held, OplockState::Breaking][..])),
        (durability, timeout) in (select(&DURABILITIES[..]), millis()),
        locks in vec(any::<(u64, u64, bool)>(), 0..4),
        lock_sequence_array in vec(any::<u8>(), 0..=64),
        (is_directory, delete_on_close, is_replay_eligible) in any::<(bool, bool, bool)>(),
        (position, allocation_size) in any::<(u64, u64)>(),
        image in image(),
    ) -> OpenDescription {
        OpenDescription {
            durable_file_id: DurableFileId(id),
            create_guid: CreateGuid(guids.0),
            client_guid: ClientGuid(guids.1),
            app_instance,
            durable_owner,
            share,
            path,
            file,
            is_directory,
            parent_directory,
            granted_access: AccessMask(access),
            share_access: ShareAccess(share_access),
            create_options: CreateOptions(options),
            create_action,
            oplock,
            oplock_state,
            durability,
            durable_open_timeout: timeout,
            byte_range_locks: locks
                .into_iter()
                .map(|(offset, length, exclusive)| ByteRangeLock { offset, length, exclusive })
                .collect(),
            lock_sequence_array,
            delete_on_close,
            position,
            allocation_size,
            is_replay_eligible,
            image,
        }
    }
}

fn open() -> impl Strategy<Value = Open> {
    let connected =
        (owner(), option::of(session())).prop_map(|(owner, session)| OpenState::Connected { owner, session });
    let disconnected = (option::of(owner()), until()).prop_map(|(keeper, until)| OpenState::Disconnected {
        keeper,
        durable_open_scavenger_timeout: until,
    });
    (description(), select(&ARBITERS[..]), prop_oneof![connected, disconnected])
        .prop_map(|(description, arbiter, state)| Open { description, arbiter, state })
}

prop_compose! {
    fn contexts()(
        durable_request in any::<bool>(),
        durable_reconnect in option::of(id()),
        request in option::of((millis(), any::<bool>(), create_guid())),
        reconnect in option::of((id(), create_guid(), any::<bool>())),
    ) -> CreateContexts {
        CreateContexts {
            durable_request,
            durable_reconnect,
            durable_request_v2: request.map(|(timeout, persistent, create_guid)| {
                DurableRequestV2 { timeout, persistent, create_guid }
            }),
            durable_reconnect_v2: reconnect.map(|(durable_file_id, create_guid, persistent)| {
                DurableReconnectV2 { durable_file_id, create_guid, persistent }
            }),
        }
    }
}

prop_compose! {
    fn create()(
        durable_file_id in option::of(id()),
        (client_guid, user, session, dialect) in
            (any::<[u8; 16]>(), user(), session(), select(&DIALECTS[..])),
        (persistent_handles, may_read, continuously_available, scale_out) in
            any::<(bool, bool, bool, bool)>(),
        (name, ca_timeout, path) in (share_name(), option::of(millis()), path()),
        (file, is_directory, parent_directory) in (file(), any::<bool>(), option::of(file())),
        (access, share_access, options) in any::<(u32, u32, u32)>(),
        create_action in select(&CREATE_ACTIONS[..]),
        (requested, contexts, app_instance) in (oplock(), contexts(), option::of(app_instance())),
        (is_replay, allocation_size) in any::<(bool, u64)>(),
        image in image(),
    ) -> Create {
        Create {
            durable_file_id,
            client: Client {
                client_guid: ClientGuid(client_guid),
                user,
                session,
                dialect,
                persistent_handles,
                may_read,
            },
            share: Share { name, continuously_available, scale_out, ca_timeout },
            path,
            file,
            is_directory,
            parent_directory,
            granted_access: AccessMask(access),
            share_access: ShareAccess(share_access),
            create_options: CreateOptions(options),
            create_action,
            requested,
            contexts,
            app_instance,
            is_replay,
            allocation_size,
            image,
        }
    }
}

prop_compose! {
    fn lock()(
        open in id(),
        elements in vec((any::<(u64, u64)>(), select(&LOCK_KINDS[..])), 0..=64),
        (index, number) in (any::<u32>(), 0..16_u8),
        dialect in select(&DIALECTS[..]),
        multichannel in any::<bool>(),
    ) -> Lock {
        Lock {
            open,
            elements: elements
                .into_iter()
                .map(|((offset, length), kind)| LockElement { offset, length, kind })
                .collect(),
            sequence: LockSequence { index, number },
            dialect,
            multichannel,
        }
    }
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        Just(Operation::Write),
        Just(Operation::SetMetadata),
        (path(), option::of(file()))
            .prop_map(|(path, parent_directory)| Operation::Rename { path, parent_directory }),
        any::<bool>().prop_map(Operation::SetDeletePending),
    ]
}

fn note() -> impl Strategy<Value = Note> {
    (id(), any::<Option<u64>>(), option::of(image()), any::<bool>())
        .prop_map(|(open, position, image, is_used)| Note { open, position, image, is_used })
}

pub(super) fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        create().prop_map(|create| Request::Create(Box::new(create))),
        any::<u64>().prop_map(|sequence| Request::Cancel { sequence }),
        (id(), select(&OPLOCK_LEVELS[..])).prop_map(|(open, level)| Request::AckOplockBreak { open, level }),
        (lease_id(), lease_state()).prop_map(|(lease, state)| Request::AckLeaseBreak { lease, state }),
        lock().prop_map(Request::Lock),
        (id(), operation()).prop_map(|(open, operation)| Request::Operate { open, operation }),
        note().prop_map(Request::Note),
        (id(), millis(), select(&DIALECTS[..]))
            .prop_map(|(open, timeout, dialect)| Request::RequestResiliency { open, timeout, dialect }),
        session().prop_map(Request::EndSession),
        (session(), user()).prop_map(|(previous, user)| Request::ReplaceSession { previous, user }),
        (session(), share_name()).prop_map(|(session, share)| Request::EndTreeConnect { session, share }),
        file().prop_map(Request::FileDeleted),
        description().prop_map(|open| Request::Grant(Box::new(open))),
        (vec(description(), 0..3), vec(any::<u64>().prop_map(ImageDigest), 0..3))
            .prop_map(|(opens, replaces)| Request::Update(Update { opens, replaces })),
        id().prop_map(Request::Disconnect),
        id().prop_map(Request::Close),
        (id(), create_guid()).prop_map(|(durable_file_id, create_guid)| {
            Request::Reclaim(Reclaim { durable_file_id, create_guid })
        }),
        share_name().prop_map(Request::ServeShare),
        share_name().prop_map(Request::ReleaseShare),
    ]
}

pub(super) fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (any::<(u64, [u8; 16])>(), select(&ARBITERS[..])).prop_map(|((node, instance), arbiter)| {
            Command::RegisterNode { node: NodeId(node), instance: Instance(instance), arbiter }
        }),
        owner().prop_map(|owner| Command::NodeDown { node: owner.node, incarnation: owner.incarnation }),
        Just(Command::ExpireOpens),
        (owner(), any::<(u64, u64)>(), request()).prop_map(
            |(owner, (sequence, first_outstanding), request)| {
                Command::FromSmbNode { proposer: Proposer { owner, sequence, first_outstanding }, request }
            }
        ),
    ]
}

fn rejection() -> impl Strategy<Value = Rejection> {
    let limit = any::<u64>();
    let of_nothing = select(vec![
        Rejection::ContextsExcludeEachOther,
        Rejection::CreatePending,
        Rejection::NothingToReplay,
        Rejection::ResiliencyNotInDialect,
        Rejection::Cancelled,
        Rejection::WrongArbiter,
    ]);
    let of_open = select(vec![
        Rejection::OpenNotFound,
        Rejection::DurableFileIdInUse,
        Rejection::CreateGuidMismatch,
        Rejection::IdentityChanged,
        Rejection::OpenChanged,
        Rejection::ClientGuidMismatch,
        Rejection::LeaseContextMismatch,
        Rejection::LeaseKeyMismatch,
        Rejection::NotKept,
        Rejection::PersistentFlagMissing,
        Rejection::PersistentFlagMismatch,
        Rejection::PathMismatch,
        Rejection::UserMismatch,
        Rejection::HeldByPersistentOpen,
        Rejection::DirectoryOfPersistentOpen,
        Rejection::CreateGuidInUse,
        Rejection::ReplayMismatch,
        Rejection::AppInstanceNotLater,
        Rejection::RangeNotLocked,
        Rejection::InvalidLockRequest,
        Rejection::InvalidLockRange,
        Rejection::FileClosed,
        Rejection::OplockNotBreaking,
        Rejection::OplockLevelNotAccepted,
        Rejection::OplockLevelIsLease,
    ] as Vec<fn(DurableFileId) -> Rejection>);
    let of_lease = select(vec![
        Rejection::LeaseKeyInUse,
        Rejection::LeaseNotFound,
        Rejection::LeaseNotBreaking,
        Rejection::LeaseStateNotAccepted,
    ] as Vec<fn(LeaseId) -> Rejection>);
    prop_oneof![
        of_nothing,
        (of_open, id()).prop_map(|(rejection, open)| rejection(open)),
        (of_lease, lease_id()).prop_map(|(rejection, lease)| rejection(lease)),
        file().prop_map(Rejection::DeletePending),
        file().prop_map(Rejection::NotYoursToDelete),
        id().prop_map(|with| Rejection::SharingViolation { with }),
        id().prop_map(|with| Rejection::LockNotGranted { with }),
        (owner(), any::<Option<u64>>()).prop_map(|(proposer, current)| Rejection::Fenced {
            proposer,
            current: current.map(Incarnation)
        }),
        limit.prop_map(|sequence| Rejection::AnswerForgotten { sequence }),
        limit.prop_map(|limit| Rejection::TooManyOutstanding { limit }),
        limit.prop_map(|limit| Rejection::TooManyOpens { limit }),
        limit.prop_map(|limit| Rejection::TooManyShares { limit }),
        limit.prop_map(|limit| Rejection::TooManyLocks { limit }),
        limit.prop_map(|limit| Rejection::TooManyWaiting { limit }),
        millis().prop_map(|limit| Rejection::ResiliencyTooLong { limit }),
        (id(), option::of(owner())).prop_map(|(open, holder)| Rejection::NotOwner { open, holder }),
        (id(), owner()).prop_map(|(open, owner)| Rejection::OpenConnected { open, owner }),
        (share_name(), owner()).prop_map(|(share, owner)| Rejection::ShareServedElsewhere { share, owner }),
        (id(), limit).prop_map(|(open, limit)| Rejection::OpenTooLarge { open, limit }),
        (id(), millis()).prop_map(|(open, limit)| Rejection::TimeoutTooLong { open, limit }),
    ]
}

prop_compose! {
    fn opened()(
        durable_file_id in id(),
        how in select(&HOWS[..]),
        create_action in select(&CREATE_ACTIONS[..]),
        oplock in oplock(),
        is_lease_breaking in any::<bool>(),
        durable in option::of(option::of((millis(), any::<bool>()))),
    ) -> Opened {
        let durable = durable.map(|v2| match v2 {
            None => DurableAnswer::V1,
            Some((timeout, persistent)) => DurableAnswer::V2 { timeout, persistent },
        });
        Opened { durable_file_id, how, create_action, oplock, is_lease_breaking, durable }
    }
}

pub(super) fn outcome() -> impl Strategy<Value = Outcome> {
    let of_nothing = select(vec![
        Outcome::BreakPending,
        Outcome::Cancelled,
        Outcome::BreakAcknowledged,
        Outcome::Proceed,
        Outcome::Granted,
        Outcome::Updated,
        Outcome::Reclaimed,
        Outcome::Closed,
        Outcome::ShareServed,
        Outcome::ShareReleased,
    ]);
    prop_oneof![
        of_nothing,
        any::<(u64, u64)>().prop_map(|(incarnation, first_sequence)| Outcome::Registered {
            incarnation: Incarnation(incarnation),
            first_sequence
        }),
        (ids(), ids()).prop_map(|(disconnected, closed)| Outcome::NodeDown { disconnected, closed }),
        (ids(), any::<u64>()).prop_map(|(closed, breaks_ended)| Outcome::Expired { closed, breaks_ended }),
        opened().prop_map(Outcome::Opened),
        file().prop_map(|file| Outcome::DeleteFirst { file }),
        any::<bool>().prop_map(|is_replay| Outcome::Locked { is_replay }),
        millis().prop_map(|timeout| Outcome::Resilient { timeout }),
        (ids(), ids()).prop_map(|(disconnected, closed)| Outcome::SessionEnded { disconnected, closed }),
        until().prop_map(|until| Outcome::Disconnected { until }),
        rejection().prop_map(Outcome::Rejected),
    ]
}

prop_compose! {
    fn node()(
        (incarnation, instance, first_outstanding) in any::<(u64, [u8; 16], u64)>(),
        registered_at in any::<u64>(),
        superseded in
            btree_map(any::<u64>().prop_map(Incarnation), any::<[u8; 16]>().prop_map(Instance), 0..3),
        arbiter in select(&ARBITERS[..]),
        down_since in option::of(until()),
        answered in btree_map(any::<u64>(), outcome(), 0..4),
    ) -> Node {
        Node {
            incarnation: Incarnation(incarnation),
            instance: Instance(instance),
            superseded,
            arbiter,
            state: down_since.map_or(NodeState::Up, |since| NodeState::Down { since }),
            registered_at,
            first_outstanding,
            answered,
        }
    }
}

prop_compose! {
    fn waiting()(
        (index, sequence) in any::<(u64, u64)>(),
        owner in owner(),
        file in file(),
        awaited in prop_oneof![
            (id(), create()).prop_map(|(durable_file_id, create)| {
                Awaited::Create { durable_file_id, create: Box::new(create) }
            }),
            (id(), operation()).prop_map(|(open, operation)| Awaited::Operation { open, operation }),
        ],
    ) -> WaitingRequest {
        WaitingRequest { index, owner, sequence, file, awaited }
    }
}

pub(super) fn record() -> impl Strategy<Value = Record> {
    let log_id = any::<(u64, u64)>().prop_map(|(term, index)| LogId { term, index });
    let target = prop_oneof![id().prop_map(BreakTarget::Oplock), lease_id().prop_map(BreakTarget::Lease)];
    let under_way = (lease_state(), lease_state(), option::of(until()))
        .prop_map(|(to, required, ack_until)| Break { to, required, ack_until });
    let delete_state =
        prop_oneof![Just(DeleteState::Pending), option::of(owner()).prop_map(DeleteState::Due),];
    let pending = (share_name(), path(), select(&ARBITERS[..]), image(), delete_state).prop_map(
        |(share, path, arbiter, image, state)| DeletePending { share, path, arbiter, image, state },
    );
    prop_oneof![
        (option::of(log_id), until(), any::<u64>()).prop_map(|(applied, now, next_event)| Record::Meta {
            applied,
            now,
            next_event
        }),
        (any::<u64>(), node()).prop_map(|(id, node)| Record::Node(NodeId(id), node)),
        (share_name(), owner()).prop_map(|(share, owner)| Record::Share(share, ServingNode { owner })),
        open().prop_map(|open| Record::Open(Box::new(open))),
        (target, under_way).prop_map(|(target, under_way)| Record::Break(target, under_way)),
        waiting().prop_map(|waiting| Record::Waiting(Box::new(waiting))),
        (file(), pending).prop_map(|(file, pending)| Record::Delete(file, pending)),
    ]
}

fn event_kind() -> impl Strategy<Value = EventKind> {
    let ack = || option::of(until());
    prop_oneof![
        (id(), select(&OPLOCK_LEVELS[..]), ack()).prop_map(|(open, to, ack_until)| EventKind::OplockBreak {
            open,
            to,
            ack_until
        }),
        (lease_id(), lease_state(), lease_state(), any::<u16>(), select(&LEASE_VERSIONS[..]), ack())
            .prop_map(|(lease, from, to, epoch, version, ack_until)| EventKind::LeaseBreak {
                lease,
                from,
                to,
                epoch: LeaseEpoch(epoch),
                version,
                ack_until
            }),
        (any::<u64>(), outcome())
            .prop_map(|(sequence, outcome)| EventKind::RequestFinished { sequence, outcome }),
        (id(), select(&CLOSE_REASONS[..])).prop_map(|(open, reason)| EventKind::OpenClosed { open, reason }),
        session().prop_map(|session| EventKind::SessionReplaced { session }),
        (file(), share_name(), path()).prop_map(|(file, share, path)| EventKind::DeleteFile {
            file,
            share,
            path
        }),
        owner().prop_map(|owner| EventKind::NodeUp { owner }),
        (owner(), any::<(u64, u64)>()).prop_map(|(owner, (disconnected, closed))| EventKind::NodeDown {
            owner,
            disconnected,
            closed
        }),
        (id(), id(), option::of(owner())).prop_map(|(open, with, holder)| EventKind::ConflictRefused {
            open,
            with,
            holder
        }),
        (id(), id()).prop_map(|(open, with)| EventKind::Contradiction { open, with }),
    ]
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    (any::<u64>(), option::of(owner()), event_kind()).prop_map(|(sequence, to, kind)| Event {
        sequence,
        to,
        kind,
    })
}
