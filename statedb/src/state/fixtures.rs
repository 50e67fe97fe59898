//! A CREATE and an open for the tests of this half to vary.

use super::create::{Client, Create, CreateContexts, Dialect, DurableReconnectV2, DurableRequestV2, Share};
use super::ids::{
    ClientGuid, CreateGuid, DurableFileId, FileKey, Incarnation, LeaseKey, NodeId, Owner, SessionId,
    ShareName, Sid,
};
use super::node::Arbiter;
use super::open::{
    AccessMask, CreateAction, CreateOptions, Durability, Open, OpenDescription, OpenState, ShareAccess,
};
use super::oplock::{Lease, LeaseEpoch, LeaseState, LeaseVersion, Oplock, OplockState};
use super::time::{Millis, Timestamp};

/// The open that the tests are about.
pub(super) const ID: DurableFileId = DurableFileId(7);
/// By which it was made, if by version 2.
pub(super) const CREATE_GUID: CreateGuid = CreateGuid([7; 16]);
/// The session of the CREATE.
pub(super) const SESSION: SessionId = SessionId(70);
/// Where the open lives.
pub(super) const OWNER: Owner = Owner { node: NodeId(1), incarnation: Incarnation(1) };
/// Until when the open waits, if it is disconnected.
pub(super) const DEADLINE: Timestamp = Timestamp(60_000);

/// Every oplock and lease that there can be, with one key.
pub(super) fn every_oplock() -> Vec<Oplock> {
    let mut oplocks = vec![Oplock::None, Oplock::LevelII, Oplock::Exclusive, Oplock::Batch];
    oplocks.extend((0..8).map(lease));
    oplocks
}

/// A lease of version 2 in this state.
pub(super) fn lease(state: u32) -> Oplock {
    Oplock::Lease(Lease {
        key: LeaseKey([7; 16]),
        state: LeaseState(state),
        epoch: LeaseEpoch(1),
        version: LeaseVersion::V2,
        parent: None,
    })
}

/// `DH2Q` with `CREATE_GUID`.
pub(super) fn dh2q(timeout: u64, persistent: bool) -> CreateContexts {
    let request = DurableRequestV2 { timeout: Millis(timeout), persistent, create_guid: CREATE_GUID };
    CreateContexts { durable_request_v2: Some(request), ..CreateContexts::default() }
}

/// `DH2C` for `ID`, with `CREATE_GUID`.
pub(super) fn dh2c(persistent: bool) -> DurableReconnectV2 {
    DurableReconnectV2 { durable_file_id: ID, create_guid: CREATE_GUID, persistent }
}

/// Somebody opens a file to read and write it, through a share that promises nothing.
pub(super) fn create(requested: Oplock, contexts: CreateContexts) -> Create {
    Create {
        durable_file_id: None,
        client: Client {
            client_guid: ClientGuid([1; 16]),
            user: Sid("S-1-5-21-1-2-3-1000".into()),
            session: SESSION,
            dialect: Dialect::Smb311,
            persistent_handles: true,
            may_read: true,
        },
        share: Share {
            name: ShareName::new("data"),
            continuously_available: false,
            scale_out: false,
            ca_timeout: None,
        },
        path: "report.txt".into(),
        file: FileKey { device: 1, inode: 2, extid: 0 },
        is_directory: false,
        parent_directory: None,
        granted_access: AccessMask(AccessMask::READ_DATA | AccessMask::WRITE_DATA),
        share_access: ShareAccess::default(),
        create_options: CreateOptions::default(),
        create_action: CreateAction::Created,
        requested,
        contexts,
        app_instance: None,
        is_replay: false,
        allocation_size: 0,
        image: [].into(),
    }
}

/// The open that such a CREATE has made, with its client away.
pub(super) fn disconnected(oplock: Oplock, durability: Durability) -> Open {
    let create = create(oplock, CreateContexts::default());
    let is_v2 = matches!(durability, Durability::DurableV2 | Durability::Persistent);
    let description = OpenDescription {
        durable_file_id: ID,
        create_guid: if is_v2 { CREATE_GUID } else { CreateGuid::default() },
        client_guid: create.client.client_guid,
        app_instance: None,
        durable_owner: create.client.user,
        share: create.share.name,
        path: create.path,
        file: create.file,
        is_directory: false,
        parent_directory: None,
        granted_access: create.granted_access,
        share_access: create.share_access,
        create_options: create.create_options,
        create_action: create.create_action,
        oplock,
        oplock_state: OplockState::Held,
        durability,
        durable_open_timeout: Millis(DEADLINE.0),
        byte_range_locks: Vec::new(),
        lock_sequence_array: Vec::new(),
        delete_on_close: false,
        position: 0,
        allocation_size: 0,
        is_replay_eligible: is_v2,
        image: [].into(),
    };
    let state = OpenState::Disconnected { keeper: None, durable_open_scavenger_timeout: DEADLINE };
    Open { description, arbiter: Arbiter::Cluster, state }
}

/// The same in a session of `OWNER`.
pub(super) fn connected(oplock: Oplock, durability: Durability, session: SessionId) -> Open {
    let state = OpenState::Connected { owner: OWNER, session: Some(session) };
    Open { state, ..disconnected(oplock, durability) }
}
