//! Whoever comes for the file of a persistent open whose client is away: the whole matrix of what the open caches,
//! shares and has locked, and of what the other one wants (`SEMANTICS.md`, 5.2). Its client comes back afterwards.

use statedb::{
    AccessMask, Arbiter, ByteRangeLock, Client, ClientGuid, Command, Create, CreateAction, CreateContexts,
    CreateGuid, CreateOptions, Dialect, DurableFileId, DurableReconnectV2, DurableRequestV2, Event,
    EventKind, FileKey, Incarnation, Instance, Lease, LeaseEpoch, LeaseId, LeaseKey, LeaseState,
    LeaseVersion, Limits, Lock, LockElement, LockKind, LockSequence, LogId, Millis, NodeId, Opened,
    OpenedHow, Oplock, Outcome, Owner, Proposer, Rejection, Request, SessionId, Share, ShareAccess,
    ShareName, Sid, State, Timestamp,
};

const R: u32 = LeaseState::READ;
const RW: u32 = R | LeaseState::WRITE;
const RH: u32 = R | LeaseState::HANDLE;
const RWH: u32 = RW | LeaseState::HANDLE;

/// The open whose client is away, and the one that comes meanwhile.
const LOST: DurableFileId = DurableFileId(1);
const INTRUDER: DurableFileId = DurableFileId(2);
/// Both through one node: where they are makes no difference.
const OWNER: Owner = Owner { node: NodeId(1), incarnation: Incarnation(1) };
/// The session that is lost, the one that its client comes back with, and the one of the other client.
const EARLIER: SessionId = SessionId(1);
const LATER: SessionId = SessionId(2);
const OTHERS: SessionId = SessionId(3);
const CREATE_GUID: CreateGuid = CreateGuid([1; 16]);

#[derive(Clone, Copy, Debug)]
struct Case {
    /// The state of the lease of the open; it has none if that is 0.
    held: u32,
    shares: u32,
    has_lock: bool,
    /// What the other one wants; it asks for RWH.
    access: u32,
    overwrites: bool,
}

/// What becomes of the other one, and what the client of the open finds when it is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// FILE_NOT_AVAILABLE, and nothing to find.
    Refused,
    /// It has the file, with this lease, and the client's lease was lowered to this if that is less than it was.
    Opened { granted: u32, lowered_to: u32 },
    /// It waits until the client has gone down to this. Then it has the file with this lease, or SHARING_VIOLATION.
    Waits { breaks_to: u32, granted: Option<u32> },
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let reads = AccessMask::READ_DATA;
        let accesses =
            [reads, reads | AccessMask::WRITE_DATA, reads | AccessMask::WRITE_DATA | AccessMask::DELETE];
        let lost = [0, R, RH, RW, RWH].into_iter().flat_map(|held| (0..8).map(move |shares| (held, shares)));
        lost.flat_map(move |(held, shares)| {
            accesses.into_iter().flat_map(move |access| {
                [(false, false), (false, true), (true, false), (true, true)]
                    .map(|(has_lock, overwrites)| Self { held, shares, has_lock, access, overwrites })
            })
        })
    }

    fn is_excluded(self) -> bool {
        let needed_for = [
            (AccessMask::READ_DATA, ShareAccess::READ),
            (AccessMask::WRITE_DATA, ShareAccess::WRITE),
            (AccessMask::DELETE, ShareAccess::DELETE),
        ];
        needed_for.into_iter().any(|(access, share)| self.access & access != 0 && self.shares & share == 0)
    }

    fn expected(self) -> Expected {
        let has = |bit| self.held & bit != 0;
        let can_be_asked = has(LeaseState::HANDLE) && (!self.has_lock || has(LeaseState::WRITE));
        if !can_be_asked {
            return Expected::Refused;
        }
        if self.is_excluded() {
            return Expected::Waits { breaks_to: self.held & !LeaseState::HANDLE, granted: None };
        }
        let left = if self.overwrites { 0 } else { RH };
        // Locks and leases do not go together; but who empties the file finds nothing to be locked.
        let granted = if self.has_lock && !self.overwrites { 0 } else { RH };
        if has(LeaseState::WRITE) {
            Expected::Waits { breaks_to: left, granted: Some(granted) }
        } else {
            Expected::Opened { granted, lowered_to: left }
        }
    }

    fn lost_open(self) -> Create {
        let contexts = CreateContexts {
            durable_request_v2: Some(DurableRequestV2 {
                timeout: Millis(0),
                persistent: true,
                create_guid: CREATE_GUID,
            }),
            ..CreateContexts::default()
        };
        let access = AccessMask::READ_DATA | AccessMask::WRITE_DATA | AccessMask::DELETE;
        let mut create = create(LOST, EARLIER, [1; 16], lease(self.held, [1; 16]), access);
        if self.held == 0 {
            create.requested = Oplock::None;
        }
        Create { share_access: ShareAccess(self.shares), contexts, ..create }
    }

    fn reconnect(self) -> Create {
        let lost = self.lost_open();
        let contexts = CreateContexts {
            durable_reconnect_v2: Some(DurableReconnectV2 {
                durable_file_id: LOST,
                create_guid: CREATE_GUID,
                persistent: true,
            }),
            ..CreateContexts::default()
        };
        Create { client: Client { session: LATER, ..lost.client.clone() }, contexts, ..lost }
    }

    fn intruder(self) -> Create {
        let create_action = if self.overwrites { CreateAction::Overwritten } else { CreateAction::Opened };
        Create { create_action, ..create(INTRUDER, OTHERS, [2; 16], lease(RWH, [2; 16]), self.access) }
    }
}

fn lease(state: u32, key: [u8; 16]) -> Oplock {
    Oplock::Lease(Lease {
        key: LeaseKey(key),
        state: LeaseState(state),
        epoch: LeaseEpoch(0),
        version: LeaseVersion::V2,
        parent: None,
    })
}

/// An open that shares everything, through a continuously available share.
fn create(
    id: DurableFileId,
    session: SessionId,
    client_guid: [u8; 16],
    requested: Oplock,
    access: u32,
) -> Create {
    Create {
        durable_file_id: Some(id),
        client: Client {
            client_guid: ClientGuid(client_guid),
            user: Sid("S-1-5-21-1-2-3-1000".into()),
            session,
            dialect: Dialect::Smb311,
            persistent_handles: true,
            may_read: true,
        },
        share: Share {
            name: ShareName::new("data"),
            continuously_available: true,
            scale_out: false,
            ca_timeout: None,
        },
        path: "report.txt".into(),
        file: FileKey { device: 1, inode: 100, extid: 0 },
        is_directory: false,
        parent_directory: None,
        granted_access: AccessMask(access),
        share_access: ShareAccess(ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE),
        create_options: CreateOptions(0),
        create_action: CreateAction::Opened,
        requested,
        contexts: CreateContexts::default(),
        app_instance: None,
        is_replay: false,
        allocation_size: 0,
        image: [].into(),
    }
}

/// A cluster in which one SMB server asks.
struct Cluster {
    state: State,
    next_sequence: u64,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self { state: State::new(Limits::DEFAULT), next_sequence: 0 };
        let instance = Instance([1; 16]);
        let registered =
            cluster.apply(&Command::RegisterNode { node: OWNER.node, instance, arbiter: Arbiter::Cluster });
        let Outcome::Registered { first_sequence, .. } = registered else { panic!("{registered}") };
        cluster.next_sequence = first_sequence;
        cluster
    }

    fn apply(&mut self, command: &Command) -> Outcome {
        let index = self.state.applied().map_or(0, |applied| applied.index + 1);
        let outcome = self.state.apply(LogId { term: 1, index }, Timestamp(0), command);
        self.state.check_invariants();
        outcome
    }

    fn ask(&mut self, request: Request) -> Outcome {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let proposer = Proposer { owner: OWNER, sequence, first_outstanding: sequence };
        self.apply(&Command::FromSmbNode { proposer, request })
    }

    fn create(&mut self, create: Create) -> Outcome {
        self.ask(Request::Create(Box::new(create)))
    }

    fn lock_one_byte(&mut self) -> Outcome {
        let element = LockElement { offset: 0, length: 1, kind: LockKind::Exclusive };
        self.ask(Request::Lock(Lock {
            open: LOST,
            elements: vec![element],
            sequence: LockSequence::default(),
            dialect: Dialect::Smb311,
            multichannel: false,
        }))
    }

    /// What the client of the open is told to go down to, if it is, and how the request of the other one ended.
    fn take_told(&mut self) -> (Option<LeaseState>, Option<Outcome>) {
        let events = self.state.take_events();
        let broken = events.iter().find_map(|event| match event {
            Event { kind: EventKind::LeaseBreak { to, .. }, .. } => Some(*to),
            _ => None,
        });
        let finished = events.into_iter().find_map(|event| match event.kind {
            EventKind::RequestFinished { outcome, .. } => Some(outcome),
            _ => None,
        });
        (broken, finished)
    }
}

/// The lease that the answer to a CREATE tells of.
fn granted_by(outcome: &Outcome) -> Option<u32> {
    match outcome {
        Outcome::Opened(Opened { oplock, .. }) => Some(oplock.caching().0),
        _ => None,
    }
}

/// row 5.2.no-h, 5.2.waits, 5.2.owner-returns, 5.2.locks: every combination.
#[test]
fn whoever_comes_for_a_persistent_open_is_refused_waits_or_harms_nobody() {
    for case in Case::all() {
        let mut cluster = Cluster::new();
        assert_eq!(granted_by(&cluster.create(case.lost_open())), Some(case.held), "{case:?}");
        if case.has_lock {
            assert_eq!(cluster.lock_one_byte(), Outcome::Locked { is_replay: false }, "{case:?}");
        }
        cluster.ask(Request::EndSession(EARLIER));
        cluster.take_told();

        let answer = cluster.create(case.intruder());
        let expected = case.expected();
        match expected {
            Expected::Refused => {
                assert_eq!(answer, Outcome::Rejected(Rejection::HeldByPersistentOpen(LOST)), "{case:?}");
            }
            Expected::Opened { granted, .. } => assert_eq!(granted_by(&answer), Some(granted), "{case:?}"),
            Expected::Waits { .. } => assert_eq!(answer, Outcome::BreakPending, "{case:?}"),
        }
        assert_eq!(cluster.take_told(), (None, None), "nobody is there to be told: {case:?}");

        let reconnected = cluster.create(case.reconnect());
        assert_eq!(granted_by(&reconnected), Some(case.held), "the lease is the one that it was: {case:?}");
        assert!(
            matches!(reconnected, Outcome::Opened(Opened { how: OpenedHow::Reconnected, .. })),
            "{case:?}"
        );
        let locks = &cluster.state.open(LOST).unwrap().description.byte_range_locks;
        let taken = ByteRangeLock { offset: 0, length: 1, exclusive: true };
        assert_eq!(*locks, vec![taken; usize::from(case.has_lock)], "{case:?}");

        let breaks_to = match expected {
            Expected::Refused => None,
            Expected::Opened { lowered_to, .. } => (lowered_to != case.held).then_some(lowered_to),
            Expected::Waits { breaks_to, .. } => Some(breaks_to),
        };
        assert_eq!(cluster.take_told(), (breaks_to.map(LeaseState), None), "{case:?}");

        let Some(breaks_to) = breaks_to else { continue };
        let lease = LeaseId { client_guid: ClientGuid([1; 16]), key: LeaseKey([1; 16]) };
        let acknowledged = cluster.ask(Request::AckLeaseBreak { lease, state: LeaseState(breaks_to) });
        assert_eq!(acknowledged, Outcome::BreakAcknowledged, "{case:?}");
        let (_, finished) = cluster.take_told();
        if let Expected::Waits { granted, .. } = expected {
            let finished = finished.unwrap_or_else(|| panic!("it waits for ever: {case:?}"));
            assert_eq!(granted_by(&finished), granted, "{case:?}");
            if granted.is_none() {
                let violation = Rejection::SharingViolation { with: LOST };
                assert_eq!(finished, Outcome::Rejected(violation), "{case:?}");
            }
        }
    }
}
