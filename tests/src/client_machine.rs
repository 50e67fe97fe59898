//! Client machines as an SMB server sees them, for tests of the cluster without SMB on the wire: what a server would
//! have made of their requests.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use statedb::{
    AccessMask, Client, ClientGuid, Create, CreateAction, CreateContexts, CreateGuid, CreateOptions, Dialect,
    DurableFileId, DurableReconnectV2, DurableRequestV2, FileKey, Lease, LeaseEpoch, LeaseKey, LeaseState,
    LeaseVersion, Millis, Oplock, SessionId, Share, ShareAccess, ShareName, Sid,
};

/// READ caching.
pub const R: LeaseState = LeaseState(LeaseState::READ);
/// READ and HANDLE caching.
pub const RH: LeaseState = LeaseState(LeaseState::READ | LeaseState::HANDLE);
/// READ, WRITE and HANDLE caching.
pub const RWH: LeaseState = LeaseState(LeaseState::READ | LeaseState::WRITE | LeaseState::HANDLE);

/// FILE_GENERIC_READ and FILE_GENERIC_WRITE.
pub const READ_WRITE: AccessMask = AccessMask(0x0012_019f);
/// FILE_READ_ATTRIBUTES: all that a stat open has.
pub const READ_ATTRIBUTES: AccessMask = AccessMask(0x80);

/// FILE_SHARE_READ, FILE_SHARE_WRITE and FILE_SHARE_DELETE.
pub const SHARE_ALL: ShareAccess = ShareAccess(7);
/// Nobody else.
pub const SHARE_NONE: ShareAccess = ShareAccess(0);

/// How long a durable open of these clients outlives its connection, unless they say otherwise: longer than any
/// failover on a busy machine.
const TIMEOUT: Millis = Millis(120_000);

/// A client machine with one session.
#[derive(Clone, Debug)]
pub struct ClientMachine {
    /// Who sends its requests.
    pub client: Client,
    /// The share that it is connected to.
    pub share: Share,
}

impl ClientMachine {
    /// A machine that nobody has seen before, connected to an ordinary share.
    #[must_use]
    pub fn new() -> Self {
        let client = Client {
            client_guid: ClientGuid(rand::random()),
            user: Sid("S-1-5-21-1-2-3-1000".into()),
            session: SessionId(rand::random()),
            dialect: Dialect::Smb311,
            persistent_handles: true,
            may_read: true,
        };
        let share = Share {
            name: ShareName::new("data"),
            continuously_available: false,
            scale_out: false,
            ca_timeout: None,
        };
        Self { client, share }
    }

    /// A machine that nobody has seen before, connected to a share that grants persistent handles.
    #[must_use]
    pub fn continuously_available() -> Self {
        let mut machine = Self::new();
        machine.share.name = ShareName::new("vault");
        machine.share.continuously_available = true;
        machine
    }

    /// The same machine after it has set up another session.
    #[must_use]
    pub fn in_new_session(&self) -> Self {
        let mut machine = self.clone();
        machine.client.session = SessionId(rand::random());
        machine
    }

    /// The session that it has.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.client.session
    }

    /// A CREATE of an existing file, for reading and writing, with all sharing, without caching or durability.
    #[must_use]
    pub fn create(&self, path: &str) -> Create {
        Create {
            durable_file_id: None,
            client: self.client.clone(),
            share: self.share.clone(),
            path: path.into(),
            file: file_key(path),
            is_directory: false,
            parent_directory: None,
            granted_access: READ_WRITE,
            share_access: SHARE_ALL,
            create_options: CreateOptions::default(),
            create_action: CreateAction::Opened,
            requested: Oplock::None,
            contexts: CreateContexts::default(),
            app_instance: None,
            is_replay: false,
            allocation_size: 0,
            image: Arc::default(),
        }
    }

    /// The same CREATE with a lease, and durable.
    #[must_use]
    pub fn durable_create(&self, path: &str, state: LeaseState) -> Create {
        Create { requested: lease(state), contexts: durable_v2(false), ..self.create(path) }
    }

    /// The same CREATE with a lease, and persistent.
    #[must_use]
    pub fn persistent_create(&self, path: &str, state: LeaseState) -> Create {
        Create { requested: lease(state), contexts: durable_v2(true), ..self.create(path) }
    }

    /// The CREATE by which this machine wants back, in its present session, what an earlier CREATE has opened.
    #[must_use]
    pub fn reconnect(&self, earlier: &Create, open: DurableFileId) -> Create {
        let request = earlier.contexts.durable_request_v2.unwrap_or(DurableRequestV2 {
            timeout: Millis(0),
            persistent: false,
            create_guid: CreateGuid::default(),
        });
        let reconnect = DurableReconnectV2 {
            durable_file_id: open,
            create_guid: request.create_guid,
            persistent: request.persistent,
        };
        Create {
            client: self.client.clone(),
            contexts: CreateContexts { durable_reconnect_v2: Some(reconnect), ..CreateContexts::default() },
            ..earlier.clone()
        }
    }

    /// The CREATE by which this machine asks again, in its present session, for what it got no answer to.
    #[must_use]
    pub fn replay(&self, unanswered: &Create) -> Create {
        Create { client: self.client.clone(), is_replay: true, ..unanswered.clone() }
    }
}

impl Default for ClientMachine {
    fn default() -> Self {
        Self::new()
    }
}

/// A lease of version 2 with a key of its own.
#[must_use]
pub fn lease(state: LeaseState) -> Oplock {
    Oplock::Lease(Lease {
        key: LeaseKey(rand::random()),
        state,
        epoch: LeaseEpoch(0),
        version: LeaseVersion::V2,
        parent: None,
    })
}

/// A durable request of version 2 with a CreateGuid of its own.
#[must_use]
pub fn durable_v2(persistent: bool) -> CreateContexts {
    let request = DurableRequestV2 { timeout: TIMEOUT, persistent, create_guid: CreateGuid(rand::random()) };
    CreateContexts { durable_request_v2: Some(request), ..CreateContexts::default() }
}

/// What a file system that all nodes share would call the file.
fn file_key(path: &str) -> FileKey {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    FileKey { device: 1, inode: hasher.finish(), extid: 0 }
}
