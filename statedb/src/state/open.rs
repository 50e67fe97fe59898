//! An open: what is known of it, and the states it goes through.
//!
//! ```text
//!   grant, create    disconnect, node-down          expire, close
//! ────────► Connected ────────────────► Disconnected ────────────► (gone)
//!               ▲         reclaim            │
//!               └────────────────────────────┘
//! ```

use std::fmt;
use std::sync::Arc;

use super::command::Update;
use super::event::CloseReason;
use super::ids::{
    AppInstance, ClientGuid, CreateGuid, DurableFileId, FileKey, LeaseId, Owner, SessionId, ShareName, Sid,
};
use super::node::Arbiter;
use super::oplock::{Oplock, OplockState};
use super::outcome::{Outcome, Rejection};
use super::state::State;
use super::time::{Millis, Timestamp};

/// An access mask (MS-SMB2 2.2.13.1): what the open was granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccessMask(pub u32);

/// The ShareAccess of a CREATE (MS-SMB2 2.2.13): READ 1, WRITE 2, DELETE 4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareAccess(pub u32);

/// The CreateOptions of a CREATE (MS-SMB2 2.2.13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CreateOptions(pub u32);

impl CreateOptions {
    /// FILE_DELETE_ON_CLOSE.
    pub const DELETE_ON_CLOSE: u32 = 0x0000_1000;

    /// Whether the file shall be deleted when the open is closed.
    pub(super) fn deletes_on_close(self) -> bool {
        self.0 & Self::DELETE_ON_CLOSE != 0
    }
}

/// What became of the file at the CREATE: `CreateAction` (MS-SMB2 2.2.14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CreateAction {
    /// FILE_SUPERSEDED.
    Superseded,
    /// FILE_OPENED.
    #[default]
    Opened,
    /// FILE_CREATED.
    Created,
    /// FILE_OVERWRITTEN.
    Overwritten,
}

/// What the client was promised about its open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: it is closed with its connection. Where the cluster decides who may share and cache a file, such
    /// opens have to be known too.
    NotDurable,
    /// Durable handle, version 1 (MS-SMB2 3.3.5.9.6).
    DurableV1,
    /// Durable handle, version 2 (MS-SMB2 3.3.5.9.10).
    DurableV2,
    /// Resilient handle (MS-SMB2 3.3.5.15.9).
    Resilient,
    /// Persistent handle (MS-SMB2 3.3.5.9.10, with the persistent flag).
    Persistent,
}

/// A granted byte-range lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteRangeLock {
    /// The first byte, counted from the start of the file.
    pub offset: u64,
    /// How many bytes; zero-length locks exist.
    pub length: u64,
    /// Whether it excludes readers too.
    pub exclusive: bool,
}

/// Tells one image of an open from another: the 64-bit FNV-1a hash of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageDigest(pub u64);

impl ImageDigest {
    /// The digest of an image.
    #[must_use]
    pub fn of(image: &[u8]) -> Self {
        const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        Self(image.iter().fold(OFFSET_BASIS, add))
    }
}

/// What an SMB server reports of an open, at its grant and whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDescription {
    /// The persistent half of its FileId.
    pub durable_file_id: DurableFileId,
    /// Zero for a v1 handle. Never changes.
    pub create_guid: CreateGuid,
    /// Who may have it back, if it has a lease.
    pub client_guid: ClientGuid,
    /// The application instance that made it, if it said so.
    pub app_instance: Option<AppInstance>,
    /// The user that made it, who alone may have it back (`Open.DurableOwner`).
    pub durable_owner: Sid,
    /// The share it was made through.
    pub share: ShareName,
    /// Its path below the share's root, with `/` between components.
    pub path: Arc<str>,
    /// The file.
    pub file: FileKey,
    /// Whether that is a directory.
    pub is_directory: bool,
    /// The directory that the file is in, if its SMB server said so: what is done to the file breaks the leases on
    /// that.
    pub parent_directory: Option<FileKey>,
    /// What it may do.
    pub granted_access: AccessMask,
    /// What others may do meanwhile.
    pub share_access: ShareAccess,
    /// How it was made.
    pub create_options: CreateOptions,
    /// What became of the file when it was made; answered again to a replay.
    pub create_action: CreateAction,
    /// What it may cache.
    pub oplock: Oplock,
    /// Whether a break of that is under way.
    pub oplock_state: OplockState,
    /// What its client was promised.
    pub durability: Durability,
    /// How long the open outlives its connection. It was told to the client (v2) or is the server's
    /// constant (v1), so scavenging sooner breaks a promise.
    pub durable_open_timeout: Millis,
    /// Its byte-range locks.
    pub byte_range_locks: Vec<ByteRangeLock>,
    /// `Open.LockSequenceArray` (MS-SMB2 3.3.1.10): for index 1 to 64 the last sequence number, 0 to 15,
    /// or 0xFF where none is valid. Empty when no lock was ever sequenced.
    pub lock_sequence_array: Vec<u8>,
    /// Whether the file is deleted when the open is closed.
    pub delete_on_close: bool,
    /// FilePositionInformation.
    pub position: u64,
    /// The allocation size that its client asked for at the CREATE, in bytes; reported to it again while the file is
    /// smaller.
    pub allocation_size: u64,
    /// `Open.IsReplayEligible`: whether a CREATE that says it is a replay may be the CREATE of this open again.
    pub is_replay_eligible: bool,
    /// What the SMB server needs to rebuild its own records; opaque here.
    pub image: Arc<[u8]>,
}

impl OpenDescription {
    /// Whether the file is deleted with the open, be it that this was asked for when it was opened or that it was marked
    /// later.
    #[must_use]
    pub fn deletes_its_file(&self) -> bool {
        self.delete_on_close || self.create_options.deletes_on_close()
    }

    /// Whether the open outlives the loss of its connection (MS-SMB2 3.3.7.1): a break that nobody can
    /// acknowledge any more takes the open with it.
    #[must_use]
    pub fn outlives_its_connection(&self) -> bool {
        match self.durability {
            Durability::NotDurable => false,
            Durability::Resilient | Durability::Persistent => true,
            Durability::DurableV1 | Durability::DurableV2 => {
                self.oplock.has_handle_caching() && self.oplock_state == OplockState::Held
            }
        }
    }

    /// The lease that it belongs to, if it has one.
    #[must_use]
    pub fn lease_id(&self) -> Option<LeaseId> {
        self.oplock.lease().map(|lease| LeaseId { client_guid: self.client_guid, key: lease.key })
    }

    /// Whether `other` describes the same open at a later moment. It may have lost its CreateGuid: Samba forgets it when a
    /// client that has asked for the open with one claims it without (DHnC, MS-SMB2 2.2.13.2.4).
    pub(super) fn is_same_open(&self, other: &Self) -> bool {
        let has_forgotten_guid = other.create_guid == CreateGuid::default();
        self.durable_file_id == other.durable_file_id
            && (self.create_guid == other.create_guid || has_forgotten_guid)
            && self.durable_owner == other.durable_owner
            && self.share == other.share
            && self.file == other.file
    }

    /// How many bytes the parts of variable length take.
    fn variable_bytes(&self) -> u64 {
        let locks = size_of_val(self.byte_range_locks.as_slice());
        let names = self.durable_owner.0.len() + self.share.as_str().len() + self.path.len();
        (names + locks + self.lock_sequence_array.len() + self.image.len()) as u64
    }
}

/// Who holds the open now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenState {
    /// A client has it, through this owner.
    Connected {
        /// The incarnation that serves it.
        owner: Owner,
        /// The client's session there, if the SMB server tells the cluster of sessions.
        session: Option<SessionId>,
    },
    /// Its client is away and may come back.
    Disconnected {
        /// The incarnation whose SMB server still has the open in its own records, after a clean loss of
        /// the connection. `None` for an orphan: that server is dead, or the share has moved away from it.
        keeper: Option<Owner>,
        /// Until when it may be reclaimed (`Open.DurableOpenScavengerTimeout`).
        durable_open_scavenger_timeout: Timestamp,
    },
}

/// A durable, resilient or persistent open: `Open` of MS-SMB2 3.3.1.10, the half that has to survive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// What the SMB server reported last.
    pub description: OpenDescription,
    /// Who decided that it may be beside the others on its file: the kind of the SMB server that had it last.
    pub arbiter: Arbiter,
    /// Who holds it.
    pub state: OpenState,
}

impl OpenState {
    /// The owner or keeper: the incarnation in whose SMB server the open lives, if any does.
    #[must_use]
    pub fn holder(&self) -> Option<Owner> {
        match *self {
            Self::Connected { owner, .. } => Some(owner),
            Self::Disconnected { keeper, .. } => keeper,
        }
    }

    /// The deadline of a disconnected open.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        match *self {
            Self::Connected { .. } => None,
            Self::Disconnected { durable_open_scavenger_timeout, .. } => Some(durable_open_scavenger_timeout),
        }
    }
}

impl Open {
    /// The owner or keeper: the incarnation in whose SMB server the open lives, if any does.
    #[must_use]
    pub fn holder(&self) -> Option<Owner> {
        self.state.holder()
    }

    /// The deadline of a disconnected open.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        self.state.deadline()
    }

    /// The owner of a connected open.
    #[must_use]
    pub fn connected_through(&self) -> Option<Owner> {
        match self.state {
            OpenState::Connected { owner, .. } => Some(owner),
            OpenState::Disconnected { .. } => None,
        }
    }

    /// The session of a connected open.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        match self.state {
            OpenState::Connected { session, .. } => session,
            OpenState::Disconnected { .. } => None,
        }
    }
}

impl State {
    pub(super) fn grant(
        &mut self,
        owner: Owner,
        description: &OpenDescription,
    ) -> Result<Outcome, Rejection> {
        let id = description.durable_file_id;
        self.check_id_is_free(id)?;
        self.check_serving_node(owner, &description.share)?;
        self.check_bounds(description)?;
        self.check_room()?;
        let arbiter = self.arbiter_of(owner);
        self.refuse_conflict(owner, arbiter, description)?;
        self.record_contradictions(owner, arbiter, description);
        let state = OpenState::Connected { owner, session: None };
        self.keep_reopened_file(description.file);
        self.put_open(Open { description: description.clone(), arbiter, state });
        Ok(Outcome::Granted)
    }

    pub(super) fn update(&mut self, owner: Owner, update: &Update) -> Result<Outcome, Rejection> {
        let mut updated = Vec::with_capacity(update.opens.len());
        for (position, description) in update.opens.iter().enumerate() {
            let open = self.reported_open(owner, description.durable_file_id)?;
            let current = || ImageDigest::of(&open.description.image);
            if !update.replaces.is_empty() && update.replaces.get(position) != Some(&current()) {
                return Err(Rejection::OpenChanged(description.durable_file_id));
            }
            if !open.description.is_same_open(description) {
                return Err(Rejection::IdentityChanged(description.durable_file_id));
            }
            self.check_bounds(description)?;
            updated.push(Open { description: description.clone(), arbiter: open.arbiter, state: open.state });
        }
        for open in &updated {
            self.refuse_conflict(owner, open.arbiter, &open.description)?;
        }
        for open in updated {
            self.record_contradictions(owner, open.arbiter, &open.description);
            self.put_open(open);
        }
        Ok(Outcome::Updated)
    }

    pub(super) fn disconnect(&mut self, owner: Owner, id: DurableFileId) -> Result<Outcome, Rejection> {
        self.held_open(owner, id)?;
        Ok(match self.lose_connection(id, Some(owner)) {
            Some(until) => Outcome::Disconnected { until },
            None => Outcome::Closed,
        })
    }

    pub(super) fn close(&mut self, owner: Owner, id: DurableFileId) -> Result<Outcome, Rejection> {
        let open = self.opens.get(id).ok_or(Rejection::OpenNotFound(id))?;
        let reason = match open.holder() {
            Some(holder) if holder == owner => None,
            // An orphan is closed by who serves its share: somebody there wanted the file.
            None if self.serves(owner, &open.description.share) => None,
            // Likewise, and where all have the same records anybody may have met it there.
            _ if self.has_records_of(owner, open) => Some(CloseReason::Purged),
            holder => return Err(Rejection::NotOwner { open: id, holder }),
        };
        self.close_open(id, reason);
        Ok(Outcome::Closed)
    }

    pub(super) fn expire_opens(&mut self) -> Outcome {
        let closed = self.opens.due(self.now);
        for open in &closed {
            self.close_open(*open, Some(CloseReason::Expired));
        }
        let breaks_ended = self.end_overdue_breaks();
        Outcome::Expired { closed, breaks_ended }
    }

    /// Refuses another open when there are as many as there may be.
    pub(super) fn check_room(&self) -> Result<(), Rejection> {
        let limit = self.limits.opens_max;
        if self.opens.len() as u64 >= limit {
            return Err(Rejection::TooManyOpens { limit });
        }
        Ok(())
    }

    pub(super) fn check_bounds(&self, description: &OpenDescription) -> Result<(), Rejection> {
        let open = description.durable_file_id;
        let limit = self.limits.open_bytes_max;
        if description.variable_bytes() > limit {
            return Err(Rejection::OpenTooLarge { open, limit });
        }
        let limit = self.limits.durable_open_timeout_max;
        if description.durable_open_timeout > limit {
            return Err(Rejection::TimeoutTooLong { open, limit });
        }
        Ok(())
    }
}

impl fmt::Display for CreateAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superseded => "superseded",
            Self::Opened => "opened",
            Self::Created => "created",
            Self::Overwritten => "overwritten",
        })
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotDurable => "not-durable",
            Self::DurableV1 => "durable-v1",
            Self::DurableV2 => "durable-v2",
            Self::Resilient => "resilient",
            Self::Persistent => "persistent",
        })
    }
}

impl fmt::Display for OpenState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { owner, session: None } => write!(f, "connected {owner}"),
            Self::Connected { owner, session: Some(session) } => {
                write!(f, "connected {owner} session={session}")
            }
            Self::Disconnected { keeper: Some(keeper), durable_open_scavenger_timeout: until } => {
                write!(f, "disconnected until={until} keeper={keeper}")
            }
            Self::Disconnected { keeper: None, durable_open_scavenger_timeout: until } => {
                write!(f, "disconnected until={until}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ids::LeaseKey;
    use crate::state::oplock::{Lease, LeaseEpoch, LeaseState, LeaseVersion};

    fn description(durability: Durability, oplock: Oplock, oplock_state: OplockState) -> OpenDescription {
        OpenDescription {
            durable_file_id: DurableFileId(1),
            create_guid: CreateGuid::default(),
            client_guid: ClientGuid::default(),
            app_instance: None,
            durable_owner: Sid("S-1-5-21-1-2-3-1000".into()),
            share: ShareName::new("data"),
            path: "report.txt".into(),
            file: FileKey { device: 1, inode: 2, extid: 0 },
            is_directory: false,
            parent_directory: None,
            granted_access: AccessMask::default(),
            share_access: ShareAccess::default(),
            create_options: CreateOptions::default(),
            create_action: CreateAction::default(),
            oplock,
            oplock_state,
            durability,
            durable_open_timeout: Millis(60_000),
            byte_range_locks: Vec::new(),
            lock_sequence_array: Vec::new(),
            delete_on_close: false,
            position: 0,
            allocation_size: 0,
            is_replay_eligible: false,
            image: Arc::from([]),
        }
    }

    fn lease(state: u32) -> Oplock {
        Oplock::Lease(Lease {
            key: LeaseKey([0; 16]),
            state: LeaseState(state),
            epoch: LeaseEpoch(1),
            version: LeaseVersion::V2,
            parent: None,
        })
    }

    /// The whole matrix of MS-SMB2 3.3.7.1: each oplock, and whether a durable open with it is kept while the
    /// oplock is held.
    #[test]
    fn outlives_its_connection_as_the_protocol_says() {
        let (r, h, w) = (LeaseState::READ, LeaseState::HANDLE, LeaseState::WRITE);
        let kept_while_held = [
            (Oplock::None, false),
            (Oplock::LevelII, false),
            (Oplock::Exclusive, false),
            (Oplock::Batch, true),
            (lease(0), false),
            (lease(r), false),
            (lease(w), false),
            (lease(r | w), false),
            (lease(h), true),
            (lease(r | h), true),
            (lease(w | h), true),
            (lease(r | w | h), true),
        ];
        for (oplock, kept_while_held) in kept_while_held {
            for oplock_state in [OplockState::Held, OplockState::Breaking] {
                for (durability, expected) in [
                    (Durability::NotDurable, false),
                    (Durability::DurableV1, kept_while_held && oplock_state == OplockState::Held),
                    (Durability::DurableV2, kept_while_held && oplock_state == OplockState::Held),
                    (Durability::Resilient, true),
                    (Durability::Persistent, true),
                ] {
                    assert_eq!(
                        description(durability, oplock, oplock_state).outlives_its_connection(),
                        expected,
                        "{durability} {oplock} {oplock_state}"
                    );
                }
            }
        }
    }

    #[test]
    fn is_the_same_open_whatever_may_change() {
        let create_guid = CreateGuid([9; 16]);
        let open = OpenDescription {
            create_guid,
            ..description(Durability::DurableV2, Oplock::Batch, OplockState::Held)
        };
        let changed = OpenDescription {
            create_guid: CreateGuid::default(),
            client_guid: ClientGuid([1; 16]),
            path: "renamed.txt".into(),
            oplock: Oplock::None,
            durability: Durability::Resilient,
            position: 512,
            delete_on_close: true,
            ..open.clone()
        };
        assert!(open.is_same_open(&changed));
        for other in [
            OpenDescription { durable_file_id: DurableFileId(2), ..open.clone() },
            OpenDescription { create_guid: CreateGuid([1; 16]), ..open.clone() },
            OpenDescription { durable_owner: Sid("S-1-1-0".into()), ..open.clone() },
            OpenDescription { share: ShareName::new("scratch"), ..open.clone() },
            OpenDescription { file: FileKey { extid: 1, ..open.file }, ..open.clone() },
        ] {
            assert!(!open.is_same_open(&other), "{other:?}");
        }
    }

    #[test]
    fn images_are_told_apart() {
        // The test vectors of FNV-1a.
        assert_eq!(ImageDigest::of(b""), ImageDigest(0xcbf2_9ce4_8422_2325));
        assert_eq!(ImageDigest::of(b"foobar"), ImageDigest(0x8594_4171_f739_67e8));
    }

    #[test]
    fn every_part_of_variable_length_counts_against_the_bound() {
        let open = description(Durability::DurableV2, Oplock::Batch, OplockState::Held);
        let lock = ByteRangeLock { offset: 0, length: 1, exclusive: true };
        for larger in [
            OpenDescription { durable_owner: Sid("S-1-5-21-1-2-3-10000".into()), ..open.clone() },
            OpenDescription { share: ShareName::new("data2"), ..open.clone() },
            OpenDescription { path: "report2.txt".into(), ..open.clone() },
            OpenDescription { byte_range_locks: vec![lock], ..open.clone() },
            OpenDescription { lock_sequence_array: vec![0xFF; 64], ..open.clone() },
            OpenDescription { image: Arc::from([0]), ..open.clone() },
        ] {
            assert!(larger.variable_bytes() > open.variable_bytes(), "{larger:?}");
        }
    }

    #[test]
    fn states_say_who_holds_the_open_and_until_when() {
        use crate::state::ids::{Incarnation, NodeId};

        let owner = Owner { node: NodeId(1), incarnation: Incarnation(2) };
        let until = Timestamp(70_000);
        let connected = OpenState::Connected { owner, session: None };
        let kept = OpenState::Disconnected { keeper: Some(owner), durable_open_scavenger_timeout: until };
        let orphan = OpenState::Disconnected { keeper: None, durable_open_scavenger_timeout: until };
        for (state, holder, deadline, display) in [
            (connected, Some(owner), None, "connected 1.2"),
            (kept, Some(owner), Some(until), "disconnected until=70s keeper=1.2"),
            (orphan, None, Some(until), "disconnected until=70s"),
        ] {
            assert_eq!(state.holder(), holder, "{display}");
            assert_eq!(state.deadline(), deadline, "{display}");
            assert_eq!(state.to_string(), display);
        }
    }
}
