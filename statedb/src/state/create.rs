//! A CREATE as its SMB server understood it, and the order in which it is decided.

use std::fmt;
use std::sync::Arc;

use super::breaks::{BreakTarget, Wish};
use super::caching::{self, Cause, Other};
use super::contexts::Wanted;
use super::delete_on_close::DeleteState;
use super::durability::{self, GrantedDurability};
use super::ids::{
    AppInstance, ClientGuid, CreateGuid, DurableFileId, FileKey, LeaseId, Owner, SessionId, ShareName, Sid,
};
use super::node::Arbiter;
use super::open::{
    AccessMask, CreateAction, CreateOptions, Durability, Open, OpenDescription, OpenState, ShareAccess,
};
use super::oplock::{Lease, Oplock, OplockState};
use super::outcome::{Opened, OpenedHow, Outcome, Rejection};
use super::share_mode;
use super::state::State;
use super::time::Millis;
use super::waiting::Awaited;

/// A CREATE request (MS-SMB2 2.2.13). Its SMB server has found the file, created it if it was to be, and checked the
/// user's access. It has told the client nothing yet, and has not emptied a file that is to be overwritten: others may
/// have to write back first what they cache of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// The persistent id that the open shall have. `None` lets the cluster choose one that was never used.
    pub durable_file_id: Option<DurableFileId>,
    /// Who asks.
    pub client: Client,
    /// Through which share.
    pub share: Share,
    /// The path below the share's root, with `/` between components. A reconnect of an open with a lease has to
    /// name the same.
    pub path: Arc<str>,
    /// The file. Not looked at in a reconnect.
    pub file: FileKey,
    /// Whether that is a directory.
    pub is_directory: bool,
    /// The directory that the file is in. `None` where its leases are of no interest.
    pub parent_directory: Option<FileKey>,
    /// The access that the user gets; what others cache is broken by it.
    pub granted_access: AccessMask,
    /// What others may do meanwhile.
    pub share_access: ShareAccess,
    /// How the file is opened.
    pub create_options: CreateOptions,
    /// What becomes of the file.
    pub create_action: CreateAction,
    /// The oplock or lease that the client asks for: RequestedOplockLevel, or the lease context with the state it
    /// asks for and the epoch it knows.
    pub requested: Oplock,
    /// The contexts about durability.
    pub contexts: CreateContexts,
    /// The contexts SMB2_CREATE_APP_INSTANCE_ID and SMB2_CREATE_APP_INSTANCE_VERSION.
    pub app_instance: Option<AppInstance>,
    /// SMB2_FLAGS_REPLAY_OPERATION.
    pub is_replay: bool,
    /// The context SMB2_CREATE_ALLOCATION_SIZE, in bytes; 0 without it.
    pub allocation_size: u64,
    /// What the SMB server needs to rebuild the open; opaque here.
    pub image: Arc<[u8]>,
}

/// Who sends a CREATE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// `Connection.ClientGuid`.
    pub client_guid: ClientGuid,
    /// The user of the session.
    pub user: Sid,
    /// The session.
    pub session: SessionId,
    /// What the connection negotiated.
    pub dialect: Dialect,
    /// Whether SMB2_GLOBAL_CAP_PERSISTENT_HANDLES was announced on the connection.
    pub persistent_handles: bool,
    /// Whether the user's maximal access to the file includes GENERIC_READ.
    pub may_read: bool,
}

/// `Connection.Dialect`, in the order of their age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// SMB 2.0.2.
    Smb202,
    /// SMB 2.1.
    Smb210,
    /// SMB 3.0.
    Smb300,
    /// SMB 3.0.2.
    Smb302,
    /// SMB 3.1.1.
    Smb311,
}

/// The share that a CREATE comes through, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its name.
    pub name: ShareName,
    /// `Share.IsCA`: whether it grants persistent handles.
    pub continuously_available: bool,
    /// Whether all nodes serve it at the same time (SMB2_SHARE_CAP_SCALEOUT).
    pub scale_out: bool,
    /// `Share.CATimeout`: the timeout for who asks for none.
    pub ca_timeout: Option<Millis>,
}

/// The create contexts about durability, as they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreateContexts {
    /// SMB2_CREATE_DURABLE_HANDLE_REQUEST, `DHnQ`.
    pub durable_request: bool,
    /// SMB2_CREATE_DURABLE_HANDLE_RECONNECT, `DHnC`: the open that the client wants back.
    pub durable_reconnect: Option<DurableFileId>,
    /// SMB2_CREATE_DURABLE_HANDLE_REQUEST_V2, `DH2Q`.
    pub durable_request_v2: Option<DurableRequestV2>,
    /// SMB2_CREATE_DURABLE_HANDLE_RECONNECT_V2, `DH2C`.
    pub durable_reconnect_v2: Option<DurableReconnectV2>,
}

/// `DH2Q` (MS-SMB2 2.2.13.2.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurableRequestV2 {
    /// How long the client wants its open to outlive the connection; 0 leaves it to the server.
    pub timeout: Millis,
    /// SMB2_DHANDLE_FLAG_PERSISTENT.
    pub persistent: bool,
    /// By which the open is found again.
    pub create_guid: CreateGuid,
}

/// `DH2C` (MS-SMB2 2.2.13.2.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurableReconnectV2 {
    /// The open that the client wants back.
    pub durable_file_id: DurableFileId,
    /// By which it made that open.
    pub create_guid: CreateGuid,
    /// SMB2_DHANDLE_FLAG_PERSISTENT.
    pub persistent: bool,
}

impl Create {
    /// How many bytes the parts of variable length take.
    pub(super) fn variable_bytes(&self) -> u64 {
        let names = self.client.user.0.len() + self.share.name.as_str().len() + self.path.len();
        (names + self.image.len()) as u64
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Smb202 => "2.0.2",
            Self::Smb210 => "2.1",
            Self::Smb300 => "3.0",
            Self::Smb302 => "3.0.2",
            Self::Smb311 => "3.1.1",
        })
    }
}

impl State {
    /// Decides a CREATE (MS-SMB2 3.3.5.9): the contexts first, in the order in which the specification processes them, then
    /// what others have of the file.
    pub(super) fn create(
        &mut self,
        owner: Owner,
        sequence: u64,
        create: &Create,
    ) -> Result<Outcome, Rejection> {
        self.check_serving_node(owner, &create.share.name)?;
        match create.contexts.wanted()? {
            Wanted::NewOpen => {}
            Wanted::Reconnect(wanted) => return self.reconnect(owner, create, wanted),
        }
        let id = match create.durable_file_id {
            Some(id) if id.0 & CHOSEN_BY_CLUSTER != 0 => return Err(Rejection::DurableFileIdInUse(id)),
            Some(id) => id,
            None => self.unused_id(),
        };
        let limit = self.limits.open_bytes_max;
        if create.variable_bytes() > limit {
            return Err(Rejection::OpenTooLarge { open: id, limit });
        }
        let was_in_use = self.opens.get(id).is_some();
        self.close_earlier_app_instances(create)?;
        // The SMB server that had this id is told of its end; it must not mean the new open.
        if was_in_use && self.opens.get(id).is_none() {
            return Err(Rejection::DurableFileIdInUse(id));
        }
        if let Some(answered_before) = self.replay(owner, create)? {
            return Ok(answered_before);
        }
        self.check_id_is_free(id)?;
        match self.open_or_break(owner, id, create)? {
            Outcome::BreakPending => {
                let awaited = Awaited::Create { durable_file_id: id, create: Box::new(create.clone()) };
                self.wait(owner, sequence, create.file, awaited)
            }
            decided => Ok(decided),
        }
    }

    /// Refuses an id that an open has, or that the open of a CREATE which waits will have.
    pub(super) fn check_id_is_free(&self, id: DurableFileId) -> Result<(), Rejection> {
        if self.opens.get(id).is_some() || self.waiting.has_id(id) {
            return Err(Rejection::DurableFileIdInUse(id));
        }
        Ok(())
    }

    /// An id that no open ever had: each entry of the log chooses one at most, and those that SMB servers choose for
    /// themselves are smaller.
    fn unused_id(&self) -> DurableFileId {
        let index = self.applied().expect("a request is an applied entry").index;
        DurableFileId(CHOSEN_BY_CLUSTER | index)
    }

    /// Opens the file, or breaks what others cache of it and says that it has to wait for that.
    pub(super) fn open_or_break(
        &mut self,
        owner: Owner,
        id: DurableFileId,
        create: &Create,
    ) -> Result<Outcome, Rejection> {
        // Where the CREATE has waited, another node can have begun to serve the share.
        self.check_serving_node(owner, &create.share.name)?;
        if self.deletes.contains_key(&create.file) {
            return Err(Rejection::DeletePending(create.file));
        }
        self.check_room()?;
        let lease = create.lease_id();
        self.check_lease_key(lease, create.file)?;
        if self.opens.of_file(create.file).next().is_none() {
            return Ok(self.make_open(owner, id, create));
        }
        self.refuse_beside_reported(id, create)?;
        self.check_persistent_opens(create, lease)?;
        self.check_share_modes(create, lease)?;
        let wish = Wish { file: create.file, lease, open: None, owner };
        if self.break_for(wish, |open| create.cause(open))? {
            return Ok(Outcome::BreakPending);
        }
        match self.deletes.get(&create.file).map(|pending| pending.state) {
            None => {}
            Some(DeleteState::Due(Some(deleter))) if deleter == owner => {
                return Ok(Outcome::DeleteFirst { file: create.file });
            }
            Some(_) => return Err(Rejection::DeletePending(create.file)),
        }
        // Whoever had nothing to give up but its place, has it still.
        if let Some(with) = self.excluding(create).next() {
            return Err(Rejection::SharingViolation { with: with.description.durable_file_id });
        }
        Ok(self.make_open(owner, id, create))
    }

    /// Makes the open, with as much of the oplock or lease as can be had beside the others.
    fn make_open(&mut self, owner: Owner, id: DurableFileId, create: &Create) -> Outcome {
        let lease = create.lease_id();
        let oplock = self.grantable(create, lease);
        if let (Some(lease), Some(granted)) = (lease, oplock.lease()) {
            for sibling in self.ids_of(BreakTarget::Lease(lease)) {
                self.edit_open(sibling, |open| open.oplock = oplock_of_sibling(open.oplock, granted));
            }
        }
        let is_lease_breaking =
            lease.is_some_and(|lease| self.breaks.get(BreakTarget::Lease(lease)).is_some());
        let GrantedDurability { durability, timeout, answer, is_replay_eligible } =
            durability::grant(create, oplock, &self.limits);
        let description = OpenDescription {
            durable_file_id: id,
            create_guid: create
                .contexts
                .durable_request_v2
                .map(|request| request.create_guid)
                .unwrap_or_default(),
            client_guid: create.client.client_guid,
            app_instance: create.app_instance,
            durable_owner: create.client.user.clone(),
            share: create.share.name.clone(),
            path: Arc::clone(&create.path),
            file: create.file,
            is_directory: create.is_directory,
            parent_directory: create.parent_directory,
            granted_access: create.granted_access,
            share_access: create.share_access,
            create_options: create.create_options,
            create_action: create.create_action,
            oplock,
            oplock_state: if is_lease_breaking { OplockState::Breaking } else { OplockState::Held },
            durability,
            durable_open_timeout: timeout,
            byte_range_locks: Vec::new(),
            lock_sequence_array: Vec::new(),
            delete_on_close: create.create_options.deletes_on_close(),
            position: 0,
            allocation_size: create.allocation_size,
            is_replay_eligible,
            image: Arc::clone(&create.image),
        };
        let state = OpenState::Connected { owner, session: Some(create.client.session) };
        self.put_open(Open { description, arbiter: Arbiter::Cluster, state });
        // The lease of a lost persistent open may have a break that was saved. Here is a client that can answer it.
        self.ask_for_saved_break(id);
        if create.create_action != CreateAction::Opened {
            self.break_parent(id, owner);
        }
        Outcome::Opened(Opened {
            durable_file_id: id,
            how: OpenedHow::Created,
            create_action: create.create_action,
            oplock,
            is_lease_breaking,
            durable: answer,
        })
    }

    fn grantable(&self, create: &Create, lease: Option<LeaseId>) -> Oplock {
        let requested = durability::allowed_by_share(create);
        let beside = |open: &&Open| lease.is_none() || open.description.lease_id() != lease;
        let others = self.opens.of_file(create.file).filter(beside).map(|open| Other {
            caching: open.description.oplock.caching(),
            is_lease: open.description.oplock.lease().is_some(),
            is_stat_only: open.description.granted_access.is_stat_only(),
        });
        let mut locks = self.opens.of_file(create.file).map(|open| &open.description.byte_range_locks);
        let file_has_locks = !create.overwrites() && locks.any(|locks| !locks.is_empty());
        let is_directory = create.is_directory;
        if let (Some(lease), Oplock::Lease(asked)) = (lease, requested)
            && let Some(current) = self.lease(lease)
        {
            let is_breaking = self.breaks.get(BreakTarget::Lease(lease)).is_some();
            let lease =
                caching::upgraded(current, asked.state, is_breaking, is_directory, others, file_has_locks);
            return Oplock::Lease(Lease { parent: asked.parent, ..lease });
        }
        let is_stat_only =
            create.granted_access.is_stat_only() && create.create_action == CreateAction::Opened;
        caching::grant(requested, is_directory, is_stat_only, others, file_has_locks)
    }

    /// The opens whose share mode excludes this one, or the other way round.
    fn excluding(&self, create: &Create) -> impl Iterator<Item = &Open> {
        self.opens.of_file(create.file).filter(|open| create.excludes(open))
    }

    /// Refuses a CREATE that a client would find in its way when it comes back for its persistent open, and could not be
    /// asked about: it has no handle caching, or locks that no write caching protects. How the open shares the file does
    /// not matter, as smbtorture has it.
    fn check_persistent_opens(&self, create: &Create, lease: Option<LeaseId>) -> Result<(), Rejection> {
        let is_barred_by = |open: &&Open| {
            let description = &open.description;
            let has_lone_locks =
                !description.byte_range_locks.is_empty() && !description.oplock.caching().has_write_caching();
            description.durability == Durability::Persistent
                && open.deadline().is_some()
                && (!description.oplock.has_handle_caching() || has_lone_locks)
                && (lease.is_none() || description.lease_id() != lease)
                && create.cause(open).is_some()
        };
        match self.opens.of_file(create.file).find(is_barred_by) {
            Some(open) => Err(Rejection::HeldByPersistentOpen(open.description.durable_file_id)),
            None => Ok(()),
        }
    }

    /// Refuses a CREATE that waiting does not help: whoever excludes it has no handle caching to give up.
    fn check_share_modes(&self, create: &Create, lease: Option<LeaseId>) -> Result<(), Rejection> {
        for open in self.excluding(create) {
            let with = open.description.durable_file_id;
            let is_own_lease = lease.is_some() && open.description.lease_id() == lease;
            if open.description.oplock.has_handle_caching() && !is_own_lease {
                continue;
            }
            let is_away = open.deadline().is_some();
            return Err(match open.description.durability {
                Durability::Persistent if is_away => Rejection::HeldByPersistentOpen(with),
                _ => Rejection::SharingViolation { with },
            });
        }
        Ok(())
    }

    fn check_lease_key(&self, lease: Option<LeaseId>, file: FileKey) -> Result<(), Rejection> {
        let Some(lease) = lease else { return Ok(()) };
        match self.opens.of_lease(lease).next() {
            Some(open) if open.description.file != file => Err(Rejection::LeaseKeyInUse(lease)),
            _ => Ok(()),
        }
    }
}

/// Set in the ids that the cluster chooses.
const CHOSEN_BY_CLUSTER: u64 = 1 << 63;

/// What an open has of its lease, but for the parent key, which is the open's own.
fn oplock_of_sibling(current: Oplock, granted: Lease) -> Oplock {
    match current {
        Oplock::Lease(lease) => Oplock::Lease(Lease { parent: lease.parent, ..granted }),
        oplock => oplock,
    }
}

impl Create {
    fn lease_id(&self) -> Option<LeaseId> {
        let lease = self.requested.lease()?;
        Some(LeaseId { client_guid: self.client.client_guid, key: lease.key })
    }

    fn excludes(&self, open: &Open) -> bool {
        let other = &open.description;
        share_mode::excludes(
            (self.granted_access, self.share_access),
            (other.granted_access, other.share_access),
        )
    }

    fn overwrites(&self) -> bool {
        matches!(self.create_action, CreateAction::Superseded | CreateAction::Overwritten)
    }

    /// Whether another open of the file would have to give something up, or to be closed.
    pub(super) fn wants_room_of(&self, open: &Open) -> bool {
        let held = open.description.oplock.caching();
        let demand = self.cause(open).and_then(|cause| caching::demand(cause, held));
        self.excludes(open) || demand.is_some()
    }

    /// What it means for another open of the file, if anything.
    fn cause(&self, open: &Open) -> Option<Cause> {
        if !self.overwrites() && self.granted_access.leaves_alone(open.description.oplock) {
            return None;
        }
        Some(Cause::Open { overwrites: self.overwrites(), excludes: self.excludes(open) })
    }
}
