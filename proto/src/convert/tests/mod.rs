//! What goes out comes back, and nonsense is named.

mod golden;
mod strategies;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;
use statedb::{
    Arbiter, Command, Create, DurableFileId, Event, Incarnation, Instance, Lease, LeaseEpoch, LeaseKey,
    LeaseState, LeaseVersion, Lock, OpenDescription, Outcome, Record, Rejection, Request, Timestamp,
};

use super::{Asked, Attach, answer, decode};
use crate::WireError;
use crate::pb::{events::v1 as events, handles::v1 as handles, smb::v1 as smb, storage::v1 as storage};
use handles::handle_request;
use strategies::{command, event, outcome, record, request};

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
        prop_assert_eq!(round_trip::<storage::Command, _>("Command", &command), Ok(command));
    }

    #[test]
    fn every_outcome_comes_back(outcome in outcome()) {
        prop_assert_eq!(round_trip::<smb::Outcome, _>("Outcome", &outcome), Ok(outcome));
    }

    #[test]
    fn every_record_comes_back(record in record()) {
        prop_assert_eq!(round_trip::<storage::Record, _>("Record", &record), Ok(record));
    }

    #[test]
    fn every_event_comes_back(event in event()) {
        prop_assert_eq!(round_trip::<events::Event, _>("Event", &event), Ok(event));
    }

    #[test]
    fn every_request_of_an_smb_server_comes_back(
        request in request(), incarnation in any::<u64>(), request_id in any::<u64>(),
    ) {
        let message =
            handles::HandleRequest { incarnation, request_id, request: Some((&request).into()) };
        let asked = decode::<handles::HandleRequest, Asked>("HandleRequest", &message.encode_to_vec());
        prop_assert_eq!(asked, Ok(Asked { incarnation: Incarnation(incarnation), request }));
    }

    #[test]
    fn no_bytes_make_a_conversion_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode::<storage::Command, Command>("Command", &bytes);
        let _ = decode::<smb::Outcome, Outcome>("Outcome", &bytes);
        let _ = decode::<storage::Record, Record>("Record", &bytes);
        let _ = decode::<events::Event, Event>("Event", &bytes);
        let _ = decode::<handles::HandleRequest, Asked>("HandleRequest", &bytes);
    }

    #[test]
    fn a_damaged_message_is_an_error_or_another_value(
        record in record(), position in any::<Index>(), damage in 1_u8..,
    ) {
        let mut bytes = storage::Record::from(&record).encode_to_vec();
        if !bytes.is_empty() {
            let position = position.index(bytes.len());
            bytes[position] ^= damage;
        }
        let _ = decode::<storage::Record, Record>("Record", &bytes);
    }

    #[test]
    fn a_single_call_asks_for_what_the_stream_would(request in request()) {
        if let Some(single) = single_call(&request) {
            prop_assert_eq!(single, Ok(Asked { incarnation: INCARNATION, request }));
        }
    }
}

const INCARNATION: Incarnation = Incarnation(7);

/// The request by way of the message of its single call; a `Cancel` has none.
fn single_call(request: &Request) -> Option<Result<Asked, WireError>> {
    use handle_request::Request as Pb;
    let incarnation = INCARNATION.0;
    Some(match Pb::from(request) {
        Pb::Cancel(_) => return None,
        Pb::Create(create) => handles::CreateRequest { incarnation, create: Some(*create) }.try_into(),
        Pb::AckOplockBreak(ack) => handles::AckOplockBreakRequest { incarnation, ack: Some(ack) }.try_into(),
        Pb::AckLeaseBreak(ack) => handles::AckLeaseBreakRequest { incarnation, ack: Some(ack) }.try_into(),
        Pb::Lock(lock) => handles::LockRequest { incarnation, lock: Some(lock) }.try_into(),
        Pb::Operate(operate) => handles::OperateRequest { incarnation, operate: Some(operate) }.try_into(),
        Pb::Note(note) => handles::NoteRequest { incarnation, note: Some(note) }.try_into(),
        Pb::RequestResiliency(request) => {
            handles::RequestResiliencyRequest { incarnation, request: Some(request) }.try_into()
        }
        Pb::Close(durable_file_id) => handles::CloseRequest { incarnation, durable_file_id }.try_into(),
        Pb::Disconnect(durable_file_id) => {
            handles::DisconnectRequest { incarnation, durable_file_id }.try_into()
        }
        Pb::EndSession(session_id) => handles::EndSessionRequest { incarnation, session_id }.try_into(),
        Pb::ReplaceSession(replace) => {
            handles::ReplaceSessionRequest { incarnation, replace: Some(replace) }.try_into()
        }
        Pb::EndTreeConnect(end) => handles::EndTreeConnectRequest { incarnation, end: Some(end) }.try_into(),
        Pb::FileDeleted(file) => handles::FileDeletedRequest { incarnation, file: Some(file) }.try_into(),
        Pb::ServeShare(share) => handles::ServeShareRequest { incarnation, share }.try_into(),
        Pb::ReleaseShare(share) => handles::ReleaseShareRequest { incarnation, share }.try_into(),
        Pb::Grant(open) => handles::GrantRequest { incarnation, open: Some(*open) }.try_into(),
        Pb::Update(update) => handles::UpdateRequest { incarnation, update: Some(update) }.try_into(),
        Pb::Reclaim(reclaim) => handles::ReclaimRequest { incarnation, reclaim: Some(reclaim) }.try_into(),
    })
}

#[test]
fn a_server_that_does_not_say_who_decides_leaves_it_to_the_cluster() {
    let attach = |arbiter| Attach::try_from(handles::AttachRequest { instance: vec![1; 16], arbiter });
    let instance = Instance([1; 16]);
    assert_eq!(attach(0), Ok(Attach { instance, arbiter: Arbiter::Cluster }));
    for arbiter in strategies::ARBITERS {
        assert_eq!(attach(smb::Arbiter::from(arbiter).into()), Ok(Attach { instance, arbiter }));
    }
    let error = attach(9).expect_err("there is no such arbiter").to_string();
    assert_eq!(error, "AttachRequest.arbiter: unknown enumeration value 9");
}

#[test]
fn an_answer_says_what_the_client_is_told() {
    let decided = answer(&Outcome::Proceed, None, Timestamp(5));
    assert_eq!((decided.ntstatus, decided.reason.as_str(), decided.now_ms), (0, "", 5));
    assert_eq!(decided.open, None);

    let rejection = Rejection::FileClosed(DurableFileId(3));
    let description = golden::first_description();
    let rejected = answer(&Outcome::Rejected(rejection.clone()), Some(&description), Timestamp(6));
    assert_eq!((rejected.ntstatus, rejected.reason), (rejection.ntstatus(), rejection.to_string()));
    assert_eq!(rejected.open.map(OpenDescription::try_from), Some(Ok(description)));
}

/// What is wrong with a message after this change to it.
fn nonsense<M: Clone, T: TryFrom<M, Error = WireError> + std::fmt::Debug>(
    message: &M,
    change: fn(&mut M),
) -> String {
    let mut changed = message.clone();
    change(&mut changed);
    T::try_from(changed).expect_err("it makes no sense").to_string()
}

#[test]
fn nonsense_is_named_by_message_and_field() {
    let description = smb::OpenDescription::from(&golden::first_description());
    let open = |change| nonsense::<_, OpenDescription>(&description, change);
    assert_eq!(open(|open| open.create_guid.truncate(3)), "OpenDescription.create_guid: 3 bytes, not 16");
    assert_eq!(open(|open| open.file = None), "OpenDescription.file: is missing");
    assert_eq!(open(|open| open.durability = 0), "OpenDescription.durability: is not specified");
    assert_eq!(
        open(|open| open.oplock_state = 77),
        "OpenDescription.oplock_state: unknown enumeration value 77"
    );
    assert_eq!(open(|open| open.oplock = None), "OpenDescription.oplock: is missing");
    assert_eq!(
        open(|open| open.lock_sequence_array = vec![0; 65]),
        "OpenDescription.lock_sequence_array: 65 bytes, more than 64"
    );
    assert_eq!(
        open(|open| {
            open.app_instance_id = None;
            open.app_instance_version = Some(smb::AppInstanceVersion { high: 1, low: 2 });
        }),
        "OpenDescription.app_instance_id: is missing"
    );
    let level = smb::OplockLevel::Lease.into();
    let lease_without_lease = smb::Oplock { oplock: Some(smb::oplock::Oplock::Level(level)) };
    assert_eq!(
        statedb::Oplock::try_from(lease_without_lease).expect_err("which lease?").to_string(),
        "Oplock.level: says lease and does not say which"
    );
    let lease = smb::Lease::from(Lease {
        key: LeaseKey([1; 16]),
        state: LeaseState(1),
        epoch: LeaseEpoch(1),
        version: LeaseVersion::V1,
        parent: None,
    });
    let lease = |change| nonsense::<_, Lease>(&lease, change);
    assert_eq!(lease(|lease| lease.epoch = 65_536), "Lease.epoch: 65536 exceeds 65535");
    assert_eq!(lease(|lease| lease.version = 0), "Lease.version: is not specified");
    assert_eq!(lease(|lease| lease.parent_key = Some(Vec::new())), "Lease.parent_key: 0 bytes, not 16");
    let empty = Command::try_from(storage::Command { command: None }).expect_err("it makes no sense");
    assert_eq!(empty, WireError::missing("Command", "command"));
}

#[test]
fn a_create_says_who_asks_for_what() {
    let client = smb::Client {
        client_guid: vec![1; 16],
        dialect: smb::Dialect::Smb311.into(),
        ..smb::Client::default()
    };
    let level = smb::oplock::Oplock::Level(smb::OplockLevel::None.into());
    let create = smb::Create {
        client: Some(client),
        share: Some(smb::Share::default()),
        file: Some(smb::FileKey::default()),
        requested_oplock: Some(smb::Oplock { oplock: Some(level) }),
        ..smb::Create::default()
    };
    let plain = Create::try_from(create.clone()).expect("nothing that must be there is missing");
    assert_eq!((plain.durable_file_id, plain.app_instance), (None, None));
    assert_eq!(plain.contexts, statedb::CreateContexts::default());

    let create = |change| nonsense::<_, Create>(&create, change);
    assert_eq!(create(|create| create.client = None), "Create.client: is missing");
    assert_eq!(create(|create| create.share = None), "Create.share: is missing");
    assert_eq!(create(|create| create.file = None), "Create.file: is missing");
    assert_eq!(create(|create| create.requested_oplock = None), "Create.requested_oplock: is missing");
    assert_eq!(
        create(|create| create.client.as_mut().expect("it has one").dialect = 0),
        "Client.dialect: is not specified"
    );
    assert_eq!(
        create(|create| {
            let request = smb::DurableRequestV2 { create_guid: vec![1; 17], ..Default::default() };
            create.contexts =
                Some(smb::CreateContexts { durable_request_v2: Some(request), ..Default::default() });
        }),
        "DurableRequestV2.create_guid: 17 bytes, not 16"
    );
}

#[test]
fn a_lock_has_a_bounded_number_of_ranges() {
    let element = smb::LockElement { offset: 0, length: 1, kind: smb::LockKind::Exclusive.into() };
    let lock = smb::Lock {
        elements: vec![element; 256],
        dialect: smb::Dialect::Smb21.into(),
        ..smb::Lock::default()
    };
    assert_eq!(Lock::try_from(lock.clone()).map(|lock| lock.elements.len()), Ok(256));
    let lock = |change| nonsense::<_, Lock>(&lock, change);
    assert_eq!(
        lock(|lock| lock.elements.push(smb::LockElement::default())),
        "Lock.elements: 257 elements, more than 256"
    );
    assert_eq!(lock(|lock| lock.elements[0].kind = 0), "LockElement.kind: is not specified");
    assert_eq!(lock(|lock| lock.dialect = 0x02FF), "Lock.dialect: unknown enumeration value 767");
    assert_eq!(
        lock(|lock| lock.sequence = Some(smb::LockSequence { index: 1, number: 16 })),
        "LockSequence.number: 16 exceeds 15"
    );
}
