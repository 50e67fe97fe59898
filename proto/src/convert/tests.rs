//! What goes out comes back; what was stored by a release is still read; nonsense is named.

use std::path::PathBuf;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use statedb::{
    AccessMask, ByteRangeLock, ClientGuid, Command, CreateGuid, CreateOptions, Durability, DurableFileId,
    FileKey, Incarnation, Instance, Lease, LeaseEpoch, LeaseKey, LeaseState, LeaseVersion, LogId, Millis,
    Node, NodeId, NodeState, Open, OpenDescription, OpenState, Oplock, OplockState, Outcome, Owner, Proposer,
    Reclaim, Record, Rejection, Request, ServingNode, ShareAccess, ShareName, Sid, Timestamp,
};

use super::decode;
use crate::WireError;
use crate::pb::storage::v1 as pb;

fn owner() -> impl Strategy<Value = Owner> {
    any::<(u64, u64)>()
        .prop_map(|(node, incarnation)| Owner { node: NodeId(node), incarnation: Incarnation(incarnation) })
}

fn share() -> impl Strategy<Value = ShareName> {
    "\\PC{0,20}".prop_map(|name| ShareName::new(&name))
}

fn ids() -> impl Strategy<Value = Vec<DurableFileId>> {
    vec(any::<u64>().prop_map(DurableFileId), 0..5)
}

fn oplock() -> impl Strategy<Value = Oplock> {
    let version = prop_oneof![Just(LeaseVersion::V1), Just(LeaseVersion::V2)];
    let lease = (any::<([u8; 16], u32, u16)>(), version).prop_map(|((key, state, epoch), version)| Lease {
        key: LeaseKey(key),
        state: LeaseState(state),
        epoch: LeaseEpoch(epoch),
        version,
    });
    prop_oneof![
        Just(Oplock::None),
        Just(Oplock::LevelII),
        Just(Oplock::Exclusive),
        Just(Oplock::Batch),
        lease.prop_map(Oplock::Lease),
    ]
}

fn description() -> impl Strategy<Value = OpenDescription> {
    let locks = vec(
        any::<(u64, u64, bool)>().prop_map(|(offset, length, exclusive)| ByteRangeLock {
            offset,
            length,
            exclusive,
        }),
        0..4,
    );
    let names = ("S-1-5-21(-[0-9]{1,10}){4}", share(), "\\PC{0,40}");
    let guids = any::<([u8; 16], [u8; 16], Option<[u8; 16]>)>();
    let numbers = any::<(u64, (u64, u64, u64), u32, u32, u32, u64, u64, bool)>();
    let oplock_state = prop_oneof![Just(OplockState::Held), Just(OplockState::Breaking)];
    let durability = prop_oneof![
        Just(Durability::DurableV1),
        Just(Durability::DurableV2),
        Just(Durability::Resilient),
        Just(Durability::Persistent),
    ];
    let bytes = (vec(any::<u8>(), 0..65), vec(any::<u8>(), 0..200));
    (guids, names, numbers, oplock(), oplock_state, durability, locks, bytes).prop_map(
        |(guids, names, numbers, oplock, oplock_state, durability, byte_range_locks, bytes)| {
            let (id, (device, inode, extid), access, share_access, options, timeout, position, delete) =
                numbers;
            OpenDescription {
                durable_file_id: DurableFileId(id),
                create_guid: CreateGuid(guids.0),
                client_guid: ClientGuid(guids.1),
                app_instance_id: guids.2,
                durable_owner: Sid(names.0),
                share: names.1,
                path: names.2,
                file: FileKey { device, inode, extid },
                granted_access: AccessMask(access),
                share_access: ShareAccess(share_access),
                create_options: CreateOptions(options),
                oplock,
                oplock_state,
                durability,
                durable_open_timeout: Millis(timeout),
                byte_range_locks,
                lock_sequence_array: bytes.0,
                delete_on_close: delete,
                position,
                image: bytes.1.into(),
            }
        },
    )
}

fn open() -> impl Strategy<Value = Open> {
    let connected = owner().prop_map(|owner| OpenState::Connected { owner });
    let disconnected = (option::of(owner()), any::<u64>()).prop_map(|(keeper, until)| {
        OpenState::Disconnected { keeper, durable_open_scavenger_timeout: Timestamp(until) }
    });
    (description(), prop_oneof![connected, disconnected])
        .prop_map(|(description, state)| Open { description, state })
}

fn request() -> impl Strategy<Value = Request> {
    let id = any::<u64>().prop_map(DurableFileId);
    prop_oneof![
        description().prop_map(|open| Request::Grant(Box::new(open))),
        vec(description(), 0..3).prop_map(Request::Update),
        id.clone().prop_map(Request::Disconnect),
        id.clone().prop_map(Request::Close),
        (id, any::<[u8; 16]>()).prop_map(|(durable_file_id, guid)| {
            Request::Reclaim(Reclaim { durable_file_id, create_guid: CreateGuid(guid) })
        }),
        share().prop_map(Request::ServeShare),
        share().prop_map(Request::ReleaseShare),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        any::<(u64, [u8; 16])>().prop_map(|(node, instance)| Command::RegisterNode {
            node: NodeId(node),
            instance: Instance(instance)
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
    let open = any::<u64>().prop_map(DurableFileId);
    prop_oneof![
        (owner(), any::<Option<u64>>()).prop_map(|(proposer, current)| Rejection::Fenced {
            proposer,
            current: current.map(Incarnation)
        }),
        any::<u64>().prop_map(|sequence| Rejection::AnswerForgotten { sequence }),
        any::<u64>().prop_map(|limit| Rejection::TooManyOutstanding { limit }),
        open.clone().prop_map(Rejection::OpenNotFound),
        open.clone().prop_map(Rejection::DurableFileIdInUse),
        (open.clone(), option::of(owner())).prop_map(|(open, holder)| Rejection::NotOwner { open, holder }),
        (open.clone(), owner()).prop_map(|(open, owner)| Rejection::OpenConnected { open, owner }),
        open.clone().prop_map(Rejection::CreateGuidMismatch),
        open.clone().prop_map(Rejection::IdentityChanged),
        (share(), owner()).prop_map(|(share, owner)| Rejection::ShareServedElsewhere { share, owner }),
        any::<u64>().prop_map(|limit| Rejection::TooManyOpens { limit }),
        any::<u64>().prop_map(|limit| Rejection::TooManyShares { limit }),
        (open.clone(), any::<u64>()).prop_map(|(open, limit)| Rejection::OpenTooLarge { open, limit }),
        (open, any::<u64>())
            .prop_map(|(open, limit)| Rejection::TimeoutTooLong { open, limit: Millis(limit) }),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        any::<(u64, u64)>().prop_map(|(incarnation, first_sequence)| Outcome::Registered {
            incarnation: Incarnation(incarnation),
            first_sequence
        }),
        (ids(), ids()).prop_map(|(disconnected, closed)| Outcome::NodeDown { disconnected, closed }),
        ids().prop_map(|closed| Outcome::Expired { closed }),
        any::<u64>().prop_map(|until| Outcome::Disconnected { until: Timestamp(until) }),
        Just(Outcome::Granted),
        Just(Outcome::Updated),
        Just(Outcome::Reclaimed),
        Just(Outcome::Closed),
        Just(Outcome::ShareServed),
        Just(Outcome::ShareReleased),
        rejection().prop_map(Outcome::Rejected),
    ]
}

fn node() -> impl Strategy<Value = Node> {
    let state = prop_oneof![
        Just(NodeState::Up),
        any::<u64>().prop_map(|since| NodeState::Down { since: Timestamp(since) })
    ];
    let superseded =
        btree_map(any::<u64>().prop_map(Incarnation), any::<[u8; 16]>().prop_map(Instance), 0..3);
    let answered = btree_map(any::<u64>(), outcome(), 0..4);
    (any::<(u64, [u8; 16], u64)>(), superseded, state, answered).prop_map(
        |((incarnation, instance, first_outstanding), superseded, state, answered)| Node {
            incarnation: Incarnation(incarnation),
            instance: Instance(instance),
            superseded,
            state,
            first_outstanding,
            answered,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    let log_id = any::<(u64, u64)>().prop_map(|(term, index)| LogId { term, index });
    prop_oneof![
        (option::of(log_id), any::<u64>())
            .prop_map(|(applied, now)| Record::Meta { applied, now: Timestamp(now) }),
        (any::<u64>(), node()).prop_map(|(id, node)| Record::Node(NodeId(id), node)),
        (share(), owner()).prop_map(|(share, owner)| Record::Share(share, ServingNode { owner })),
        open().prop_map(|open| Record::Open(Box::new(open))),
    ]
}

fn round_trip<M, T>(message: &'static str, value: &T) -> Result<T, WireError>
where
    M: Message + Default + for<'a> From<&'a T>,
    T: TryFrom<M, Error = WireError>,
{
    decode::<M, T>(message, &M::from(value).encode_to_vec())
}

proptest! {
    #[test]
    fn every_command_comes_back(command in command()) {
        prop_assert_eq!(round_trip::<pb::Command, _>("Command", &command), Ok(command));
    }

    #[test]
    fn every_outcome_comes_back(outcome in outcome()) {
        prop_assert_eq!(round_trip::<pb::Outcome, _>("Outcome", &outcome), Ok(outcome));
    }

    #[test]
    fn every_record_comes_back(record in record()) {
        prop_assert_eq!(round_trip::<pb::Record, _>("Record", &record), Ok(record));
    }

    #[test]
    fn no_bytes_make_a_conversion_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode::<pb::Command, Command>("Command", &bytes);
        let _ = decode::<pb::Outcome, Outcome>("Outcome", &bytes);
        let _ = decode::<pb::Record, Record>("Record", &bytes);
    }

    #[test]
    fn a_damaged_message_is_an_error_or_another_value(
        record in record(), position in any::<prop::sample::Index>(), damage in 1_u8..,
    ) {
        let mut bytes = pb::Record::from(&record).encode_to_vec();
        if !bytes.is_empty() {
            let position = position.index(bytes.len());
            bytes[position] ^= damage;
        }
        let _ = decode::<pb::Record, Record>("Record", &bytes);
    }
}

/// An open in which every field has a value of its own, so that two exchanged ones are noticed.
fn sample_description() -> OpenDescription {
    OpenDescription {
        durable_file_id: DurableFileId(0x1234_5678),
        create_guid: CreateGuid([1; 16]),
        client_guid: ClientGuid([2; 16]),
        app_instance_id: Some([3; 16]),
        durable_owner: Sid("S-1-5-21-1-2-3-1000".to_owned()),
        share: ShareName::new("data"),
        path: "dir/file.txt".to_owned(),
        file: FileKey { device: 4, inode: 5, extid: 6 },
        granted_access: AccessMask(7),
        share_access: ShareAccess(8),
        create_options: CreateOptions(9),
        oplock: Oplock::Lease(Lease {
            key: LeaseKey([10; 16]),
            state: LeaseState(LeaseState::READ | LeaseState::HANDLE | LeaseState::WRITE),
            epoch: LeaseEpoch(11),
            version: LeaseVersion::V2,
        }),
        oplock_state: OplockState::Held,
        durability: Durability::DurableV2,
        durable_open_timeout: Millis(60_000),
        byte_range_locks: vec![ByteRangeLock { offset: 12, length: 13, exclusive: true }],
        lock_sequence_array: vec![0xFF, 14],
        delete_on_close: true,
        position: 15,
        image: vec![16, 17, 18].into(),
    }
}

/// Values under the names of their golden files.
type Named<T> = Vec<(&'static str, T)>;

fn samples() -> (Named<Command>, Named<Outcome>, Named<Record>) {
    let owner = Owner { node: NodeId(1), incarnation: Incarnation(2) };
    let open = DurableFileId(0x1234_5678);
    let from = |request| Command::FromSmbNode {
        proposer: Proposer { owner, sequence: 40, first_outstanding: 38 },
        request,
    };
    let batch = OpenDescription { oplock: Oplock::Batch, app_instance_id: None, ..sample_description() };
    let commands = vec![
        ("register-node", Command::RegisterNode { node: NodeId(1), instance: Instance([19; 16]) }),
        ("node-down", Command::NodeDown { node: NodeId(1), incarnation: Incarnation(2) }),
        ("expire-opens", Command::ExpireOpens),
        ("grant", from(Request::Grant(Box::new(sample_description())))),
        ("update", from(Request::Update(vec![batch.clone(), sample_description()]))),
        ("disconnect", from(Request::Disconnect(open))),
        (
            "reclaim",
            from(Request::Reclaim(Reclaim { durable_file_id: open, create_guid: CreateGuid([1; 16]) })),
        ),
        ("close", from(Request::Close(open))),
        ("serve-share", from(Request::ServeShare(ShareName::new("data")))),
        ("release-share", from(Request::ReleaseShare(ShareName::new("data")))),
    ];
    let fenced = Rejection::Fenced { proposer: owner, current: Some(Incarnation(3)) };
    let outcomes = vec![
        ("registered", Outcome::Registered { incarnation: Incarnation(2), first_sequence: 4096 }),
        ("node-down", Outcome::NodeDown { disconnected: vec![open], closed: vec![DurableFileId(7)] }),
        ("expired", Outcome::Expired { closed: vec![open] }),
        ("granted", Outcome::Granted),
        ("updated", Outcome::Updated),
        ("disconnected", Outcome::Disconnected { until: Timestamp(70_000) }),
        ("reclaimed", Outcome::Reclaimed),
        ("closed", Outcome::Closed),
        ("share-served", Outcome::ShareServed),
        ("share-released", Outcome::ShareReleased),
        ("rejected-fenced", Outcome::Rejected(fenced.clone())),
    ];
    let answers = [(38, Outcome::Granted), (39, Outcome::Rejected(fenced))];
    let node = Node {
        incarnation: Incarnation(2),
        instance: Instance([19; 16]),
        superseded: [(Incarnation(1), Instance([20; 16]))].into(),
        state: NodeState::Up,
        first_outstanding: 38,
        answered: answers.into(),
    };
    let down = Node { state: NodeState::Down { since: Timestamp(10_000) }, ..node.clone() };
    let connected = Open { description: sample_description(), state: OpenState::Connected { owner } };
    let waits =
        OpenState::Disconnected { keeper: Some(owner), durable_open_scavenger_timeout: Timestamp(70_000) };
    let orphan = OpenState::Disconnected { keeper: None, durable_open_scavenger_timeout: Timestamp(70_000) };
    let records = vec![
        ("meta", Record::Meta { applied: Some(LogId { term: 3, index: 99 }), now: Timestamp(12_345) }),
        ("node-up", Record::Node(NodeId(1), node)),
        ("node-down", Record::Node(NodeId(2), down)),
        ("share", Record::Share(ShareName::new("data"), ServingNode { owner })),
        ("open-connected", Record::Open(Box::new(connected))),
        ("open-kept", Record::Open(Box::new(Open { description: batch.clone(), state: waits }))),
        ("open-orphaned", Record::Open(Box::new(Open { description: batch, state: orphan }))),
    ];
    (commands, outcomes, records)
}

/// The bytes of every stored message as format version 1 wrote them. `UPDATE=1 cargo test` writes the files
/// anew, which is right only before a release.
#[test]
fn what_a_release_has_stored_is_still_read() {
    fn check<M, T>(message: &'static str, samples: Vec<(&str, T)>)
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
    let (commands, outcomes, records) = samples();
    check::<pb::Command, _>("Command", commands);
    check::<pb::Outcome, _>("Outcome", outcomes);
    check::<pb::Record, _>("Record", records);

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
    };
    check_message("AppliedMeta", "meta", &meta);
}

/// What is in a golden file; with `UPDATE` set, after it was written anew.
fn golden_bytes(message: &str, name: &str, encode: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/v1").join(message.to_lowercase());
    let file = dir.join(name).with_extension("bin");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(&dir).expect("writable");
        std::fs::write(&file, encode()).expect("writable");
    }
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

#[test]
fn nonsense_is_named_by_message_and_field() {
    let description = pb::OpenDescription::from(&sample_description());
    let with = |change: fn(&mut pb::OpenDescription)| {
        let mut changed = description.clone();
        change(&mut changed);
        OpenDescription::try_from(changed).expect_err("it makes no sense").to_string()
    };
    assert_eq!(with(|open| open.create_guid.truncate(3)), "OpenDescription.create_guid: 3 bytes, not 16");
    assert_eq!(with(|open| open.file = None), "OpenDescription.file: is missing");
    assert_eq!(with(|open| open.durability = 0), "OpenDescription.durability: is not specified");
    assert_eq!(
        with(|open| open.oplock_state = 77),
        "OpenDescription.oplock_state: unknown enumeration value 77"
    );
    assert_eq!(with(|open| open.oplock = None), "OpenDescription.oplock: is missing");
    let lease = |change: fn(&mut pb::Lease)| {
        let mut lease = pb::Lease::from(Lease {
            key: LeaseKey([1; 16]),
            state: LeaseState(1),
            epoch: LeaseEpoch(1),
            version: LeaseVersion::V1,
        });
        change(&mut lease);
        Lease::try_from(lease).expect_err("it makes no sense").to_string()
    };
    assert_eq!(lease(|lease| lease.epoch = 65_536), "Lease.epoch: 65536 exceeds 65535");
    assert_eq!(lease(|lease| lease.version = 0), "Lease.version: is not specified");
    let empty = Command::try_from(pb::Command { command: None }).expect_err("it makes no sense");
    assert_eq!(empty, WireError::missing("Command", "command"));
}
