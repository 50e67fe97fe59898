//! A CREATE for the tests of this crate to vary.

use statedb::{
    AccessMask, Client, ClientGuid, Create, CreateAction, CreateContexts, CreateOptions, Dialect, FileKey,
    Lease, LeaseEpoch, LeaseKey, LeaseState, LeaseVersion, Oplock, SessionId, Share, ShareAccess, ShareName,
    Sid,
};

/// The file that is opened.
pub(crate) const FILE: FileKey = FileKey { device: 1, inode: 2, extid: 0 };

/// Client `client` opens [`FILE`] to read and write it, in a session with the same number, and lets others do so too.
pub(crate) fn create(client: u8, requested: Oplock) -> Create {
    Create {
        durable_file_id: None,
        client: Client {
            client_guid: ClientGuid([client; 16]),
            user: Sid("S-1-5-21-1-2-3-1000".into()),
            session: SessionId(client.into()),
            dialect: Dialect::Smb311,
            persistent_handles: true,
            may_read: true,
        },
        share: Share {
            name: ShareName::new("data"),
            continuously_available: true,
            // On such a share nobody caches anything that others would have to wait for.
            scale_out: false,
            ca_timeout: None,
        },
        path: "report.txt".into(),
        file: FILE,
        is_directory: false,
        parent_directory: None,
        granted_access: AccessMask(AccessMask::READ_DATA | AccessMask::WRITE_DATA),
        share_access: ShareAccess(ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE),
        create_options: CreateOptions::default(),
        create_action: CreateAction::Opened,
        requested,
        contexts: CreateContexts::default(),
        app_instance: None,
        is_replay: false,
        allocation_size: 0,
        image: [].into(),
    }
}

/// A lease for which others have to wait.
pub(crate) fn lease(key: u8) -> Oplock {
    Oplock::Lease(Lease {
        key: LeaseKey([key; 16]),
        state: LeaseState(LeaseState::READ | LeaseState::HANDLE | LeaseState::WRITE),
        epoch: LeaseEpoch(0),
        version: LeaseVersion::V2,
        parent: None,
    })
}
