//! A cluster with as many opens as are wanted, and requests for more of them.
//!
//! Ids, GUIDs, files and names are random, so that neighbours in a table have nothing to do with each other in time.
//! The same seed gives the same cluster.

use std::sync::Arc;

use statedb::{
    AccessMask, Arbiter, Client, ClientGuid, Command, Create, CreateAction, CreateContexts, CreateGuid,
    CreateOptions, Dialect, Durability, DurableFileId, DurableRequestV2, FileKey, Incarnation, Instance,
    Lease, LeaseEpoch, LeaseKey, LeaseState, LeaseVersion, Limits, LogId, Millis, NodeId, OpenDescription,
    Oplock, OplockState, Outcome, Owner, Proposer, Request, SessionId, Share, ShareAccess, ShareName, Sid,
    State, Timestamp,
};

/// How many clients share the opens.
const CLIENTS: u64 = 10_000;

/// How many shares their files are in.
const SHARES: u64 = 16;

/// How many requests of an SMB server are on the way at the same time.
const OUTSTANDING: u64 = 64;

/// How many opens there may be beyond those that a population begins with.
const ROOM: u64 = 4096;

/// How an SMB server comes by its opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It lets the cluster decide: durable v2, RWH lease.
    Create,
    /// It reports what it has decided, as Samba does: the same, with an image.
    Grant,
}

impl Kind {
    fn arbiter(self) -> Arbiter {
        match self {
            Self::Create => Arbiter::Cluster,
            Self::Grant => Arbiter::SmbServer,
        }
    }
}

/// A state, and who makes it grow.
pub(crate) struct Population {
    pub(crate) state: State,
    kind: Kind,
    image: usize,
    random: SplitMix64,
    sequence: u64,
    open: Vec<DurableFileId>,
}

impl Population {
    /// `opens` opens, each with an image of so many bytes.
    pub(crate) fn new(kind: Kind, opens: usize, image: usize) -> Self {
        let limits = Limits { opens_max: opens as u64 + ROOM, ..Limits::DEFAULT };
        let mut population = Self {
            state: State::new(limits),
            kind,
            image,
            random: SplitMix64(1),
            sequence: 0,
            open: Vec::with_capacity(opens + ROOM as usize),
        };
        let register =
            Command::RegisterNode { node: NodeId(1), instance: Instance([1; 16]), arbiter: kind.arbiter() };
        population.apply(&register);
        while population.open.len() < opens {
            let command = population.request_open();
            population.apply(&command);
            population.forget_changes();
        }
        population
    }

    /// A request for one more open, as it comes out of the log: nothing in it is shared with another one.
    pub(crate) fn request_open(&mut self) -> Command {
        let id = DurableFileId(self.random.next() >> 1);
        self.open.push(id);
        let request = match self.kind {
            Kind::Create => Request::Create(Box::new(self.create(id))),
            Kind::Grant => Request::Grant(Box::new(self.description(id))),
        };
        self.propose(request)
    }

    /// A request to close some open.
    pub(crate) fn request_close(&mut self) -> Command {
        let position = self.random.below(self.open.len() as u64) as usize;
        let id = self.open.swap_remove(position);
        self.propose(Request::Close(id))
    }

    /// Applies a command.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub(crate) fn apply(&mut self, command: &Command) {
        let index = self.state.applied().map_or(0, |applied| applied.index + 1);
        let outcome = self.state.apply(LogId { term: 1, index }, Timestamp(index), command);
        assert!(!matches!(outcome, Outcome::Rejected(_) | Outcome::BreakPending), "{command}: {outcome}");
    }

    /// Forgets what has changed, as a node does when it has stored it.
    pub(crate) fn forget_changes(&mut self) {
        self.state.take_changes();
        self.state.take_events();
    }

    fn propose(&mut self, request: Request) -> Command {
        self.sequence += 1;
        let owner = Owner { node: NodeId(1), incarnation: Incarnation(1) };
        let first_outstanding = self.sequence.saturating_sub(OUTSTANDING);
        Command::FromSmbNode {
            proposer: Proposer { owner, sequence: self.sequence, first_outstanding },
            request,
        }
    }

    fn create(&mut self, id: DurableFileId) -> Create {
        let client = self.random.below(CLIENTS);
        Create {
            durable_file_id: Some(id),
            client: Client {
                client_guid: client_guid(client),
                user: user(client),
                session: SessionId(client),
                dialect: Dialect::Smb311,
                persistent_handles: false,
                may_read: true,
            },
            share: Share {
                name: self.share(),
                continuously_available: false,
                scale_out: false,
                ca_timeout: None,
            },
            path: self.path(),
            file: self.file(),
            is_directory: false,
            parent_directory: None,
            granted_access: ACCESS,
            share_access: SHARE_ACCESS,
            create_options: CreateOptions::default(),
            create_action: CreateAction::Opened,
            requested: self.lease(),
            contexts: CreateContexts {
                durable_request_v2: Some(DurableRequestV2 {
                    timeout: TIMEOUT,
                    persistent: false,
                    create_guid: CreateGuid(self.random.sixteen()),
                }),
                ..CreateContexts::default()
            },
            app_instance: None,
            is_replay: false,
            allocation_size: 0,
            image: self.image(),
        }
    }

    fn description(&mut self, id: DurableFileId) -> OpenDescription {
        let client = self.random.below(CLIENTS);
        OpenDescription {
            durable_file_id: id,
            create_guid: CreateGuid(self.random.sixteen()),
            client_guid: client_guid(client),
            app_instance: None,
            durable_owner: user(client),
            share: self.share(),
            path: self.path(),
            file: self.file(),
            is_directory: false,
            parent_directory: None,
            granted_access: ACCESS,
            share_access: SHARE_ACCESS,
            create_options: CreateOptions::default(),
            create_action: CreateAction::Opened,
            oplock: self.lease(),
            oplock_state: OplockState::Held,
            durability: Durability::DurableV2,
            durable_open_timeout: TIMEOUT,
            byte_range_locks: Vec::new(),
            // Samba stores the whole array, used or not.
            lock_sequence_array: vec![0xFF; 64],
            delete_on_close: false,
            position: 0,
            allocation_size: 0,
            is_replay_eligible: false,
            image: self.image(),
        }
    }

    fn lease(&mut self) -> Oplock {
        Oplock::Lease(Lease {
            key: LeaseKey(self.random.sixteen()),
            state: LeaseState(LeaseState::READ | LeaseState::WRITE | LeaseState::HANDLE),
            epoch: LeaseEpoch(1),
            version: LeaseVersion::V2,
            parent: None,
        })
    }

    fn file(&mut self) -> FileKey {
        FileKey { device: 0xFD01, inode: self.random.next(), extid: 0 }
    }

    fn share(&mut self) -> ShareName {
        ShareName::new(&format!("projects-{}", self.random.below(SHARES)))
    }

    /// As long as paths are: some 40 bytes.
    fn path(&mut self) -> Arc<str> {
        format!("customers/{:016x}/report.docx", self.random.next()).into()
    }

    fn image(&self) -> Arc<[u8]> {
        vec![0x1F; self.image].into()
    }
}

/// FILE_READ_DATA and FILE_WRITE_DATA.
const ACCESS: AccessMask = AccessMask(0x3);
/// FILE_SHARE_READ.
const SHARE_ACCESS: ShareAccess = ShareAccess(0x1);
/// What clients of SMB 3 ask for.
const TIMEOUT: Millis = Millis(60_000);

fn client_guid(client: u64) -> ClientGuid {
    ClientGuid(SplitMix64(client).sixteen())
}

fn user(client: u64) -> Sid {
    Sid(format!("S-1-5-21-1004336348-1177238915-682003330-{client}").into())
}

/// A small generator of random numbers (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn sixteen(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next().to_le_bytes());
        bytes[8..].copy_from_slice(&self.next().to_le_bytes());
        bytes
    }
}
