//! What the tests of the replicated state share.

use std::sync::Arc;

use statedb::{
    AccessMask, ClientGuid, CreateAction, CreateGuid, CreateOptions, Durability, DurableFileId, FileKey,
    LogId, Millis, OpenDescription, Oplock, OplockState, ShareAccess, ShareName, Sid, State,
};

/// An open that a test has nothing special to say about: durable v2, a batch oplock, one minute, a file of its own.
pub(crate) fn description(id: u64) -> OpenDescription {
    OpenDescription {
        durable_file_id: DurableFileId(id),
        create_guid: CreateGuid([0x11; 16]),
        client_guid: ClientGuid([0x22; 16]),
        app_instance: None,
        durable_owner: Sid("S-1-5-21-1-2-3-1000".into()),
        share: ShareName::new("data"),
        path: "report.txt".into(),
        file: FileKey { device: 1, inode: 100 + id, extid: 0 },
        is_directory: false,
        parent_directory: None,
        granted_access: AccessMask(0x0012_019F),
        share_access: ShareAccess(7),
        create_options: CreateOptions(0),
        create_action: CreateAction::Opened,
        oplock: Oplock::Batch,
        oplock_state: OplockState::Held,
        durability: Durability::DurableV2,
        durable_open_timeout: Millis(60_000),
        byte_range_locks: Vec::new(),
        lock_sequence_array: Vec::new(),
        delete_on_close: false,
        position: 0,
        allocation_size: 0,
        is_replay_eligible: false,
        image: Arc::from(&b"image"[..]),
    }
}

/// Where the entry after the newest applied one stands.
pub(crate) fn next_log_id(state: &State, term: u64) -> LogId {
    LogId { term, index: state.applied().map_or(0, |applied| applied.index + 1) }
}

/// What a node has that installs a snapshot of `state`.
pub(crate) fn restored(state: &State) -> State {
    State::from_records(state.limits(), state.records()).expect("all records of a state are a state")
}
