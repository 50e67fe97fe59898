//! One open: what its client was promised of it, and what it does to have that back.

use std::{fmt, time::Instant};

use rand::{RngExt, rngs::StdRng};

use super::{
    files::{KnownFile, Presence},
    oracle::{Excuse, History},
    world::{Arrival, Interrupted, World, answer},
};
use crate::smb_client::{
    AccessMask, CreateAction, CreateOptions, CreateRequest, Lease, LeaseState, LockElement, NtStatus, Opened,
    OplockLevel,
};

/// What a client locks, if it locks: offset and length.
const LOCKED_RANGE: (u64, u64) = (10, 5);

/// Longer than any file of these clients.
const READ_LEN: u32 = 256;

/// What kind of open a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) durability: Durable,
    pub(super) cache: Cache,
    /// FILE_DELETE_ON_CLOSE.
    pub(super) delete_on_close: bool,
    /// A file that other clients have open as well, and nobody changes.
    pub(super) shared: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durable {
    V1,
    V2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cache {
    Batch,
    Lease(LeaseState),
}

impl Kind {
    /// READ and WRITE caching without HANDLE caching, which makes nothing durable.
    const READ_WRITE: LeaseState = LeaseState(LeaseState::READ.0 | LeaseState::WRITE.0);

    /// Draws one.
    pub(super) fn random(rng: &mut StdRng) -> Self {
        let durability = if rng.random_ratio(3, 5) { Durable::V2 } else { Durable::V1 };
        let cache = match rng.random_range(0..100) {
            0..45 => Cache::Lease(LeaseState::READ_WRITE_HANDLE),
            45..80 => Cache::Batch,
            80..95 => Cache::Lease(LeaseState::READ_HANDLE),
            _ => Cache::Lease(Self::READ_WRITE),
        };
        Self { durability, cache, delete_on_close: rng.random_ratio(1, 25), shared: false }
    }

    /// An open of a file that others have open too.
    pub(super) fn shared() -> Self {
        Self {
            durability: Durable::V2,
            cache: Cache::Lease(LeaseState::READ_HANDLE),
            delete_on_close: false,
            shared: true,
        }
    }

    /// Whether such an open is durable.
    pub(super) fn is_durable(self) -> bool {
        self.cache != Cache::Lease(Self::READ_WRITE)
    }

    /// The CREATE that asks for it.
    pub(super) fn request(self, path: &str) -> CreateRequest {
        let request = CreateRequest::new(path);
        let request = match self.cache {
            Cache::Batch => request.with_oplock(OplockLevel::Batch),
            Cache::Lease(state) => request.with_lease(Lease::request(state)),
        };
        let mut request = match self.durability {
            Durable::V1 => request.durable_v1(),
            Durable::V2 => request.durable_v2(),
        };
        if self.delete_on_close {
            request.options = request.options | CreateOptions::DELETE_ON_CLOSE;
        }
        if self.shared {
            request.desired_access = AccessMask::READ_DATA;
        }
        request
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ", self.durability)?;
        match self.cache {
            Cache::Batch => write!(f, "batch")?,
            Cache::Lease(state) => write!(f, "{state}")?,
        }
        if self.delete_on_close {
            write!(f, ", delete on close")?;
        }
        Ok(())
    }
}

/// A request whose answer did not come.
#[derive(Clone, Debug)]
pub(super) enum Doubt {
    Close,
    Lock,
    Delete,
    /// The contents are these, or what they were.
    Contents(Vec<u8>),
    /// The name is one of these, or what it was.
    Names(Vec<String>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) id: u64,
    pub(super) history: History,
    pub(super) path: String,
    kind: Kind,
    /// What its server said of it when it granted it.
    durable: bool,
    open: Opened,
    contents: Vec<u8>,
    locked: bool,
    /// The file is to be deleted at the close.
    deletes: bool,
    doubt: Option<Doubt>,
    /// The node that confirmed it last, and when.
    node: usize,
    confirmed: Instant,
}

/// What came of claiming an open.
#[derive(Debug)]
pub(super) enum Claim {
    /// It is held as before.
    Held,
    /// It is gone, and may be.
    Excused(Excuse),
    /// It is gone, or changed.
    Lost(String),
}

impl Handle {
    /// Takes an open that was just granted into the account.
    pub(super) fn granted(
        world: &World,
        arrival: &Arrival,
        kind: Kind,
        path: String,
        open: Opened,
        contents: Vec<u8>,
    ) -> Self {
        let (id, mut history) = world.oracle.register();
        history.note(format!("{path}: {kind} granted by node {}: {:?}", arrival.node, open.response()));
        Self {
            id,
            history,
            path,
            kind,
            durable: open.is_durable(),
            open,
            contents,
            locked: false,
            deletes: kind.delete_on_close,
            doubt: None,
            node: arrival.node,
            confirmed: Instant::now(),
        }
    }

    pub(super) fn node(&self) -> usize {
        self.node
    }

    pub(super) fn confirmed(&self) -> Instant {
        self.confirmed
    }

    pub(super) fn is_durable(&self) -> bool {
        self.durable
    }

    pub(super) fn is_shared(&self) -> bool {
        self.kind.shared
    }

    /// The CREATE that claims it.
    pub(super) fn claim_request(&self) -> CreateRequest {
        CreateRequest { path: self.path.clone(), ..self.open.reconnect_request() }
    }

    /// Claims it on another connection.
    pub(super) async fn claim(&mut self, world: &World, arrival: &Arrival) -> Result<Claim, Interrupted> {
        let mut names = vec![self.path.clone()];
        if let Some(Doubt::Names(others)) = &self.doubt {
            names.extend(others.iter().cloned());
        }
        let mut refusal = None;
        for name in names {
            let request = CreateRequest { path: name, ..self.open.reconnect_request() };
            match answer(arrival.tree.create(request).await)? {
                Ok(open) => return Ok(self.claimed(arrival, open)),
                // Only of a lease is the name compared, and last of all.
                Err(err) if err.status() == Some(NtStatus::INVALID_PARAMETER) => refusal = Some(err),
                Err(err) => {
                    refusal = Some(err);
                    break;
                }
            }
        }
        let refusal = refusal.expect("an open has a name");
        self.history.note(format!("node {}: {refusal}", arrival.node));
        Ok(match (refusal.status(), self.excuse(world)) {
            (Some(NtStatus::OBJECT_NAME_NOT_FOUND), Some(excuse)) => Claim::Excused(excuse),
            _ => Claim::Lost(format!("{} ({}): {refusal}", self.path, self.kind)),
        })
    }

    fn claimed(&mut self, arrival: &Arrival, open: Opened) -> Claim {
        let (before, after) = (self.open.response(), open.response());
        self.history.note(format!("reclaimed at node {}: {after:?}", arrival.node));
        let problem = if !self.durable {
            Some("was not durable, and came back".to_owned())
        } else if after.file_id.persistent != before.file_id.persistent {
            Some(format!("another persistent id: {:?}", after.file_id))
        } else if after.action != CreateAction::Opened {
            Some(format!("CreateAction {:?}", after.action))
        } else if (after.oplock_level, after.lease) != (before.oplock_level, before.lease) {
            Some(format!("{before:?} became {after:?}"))
        } else {
            None
        };
        self.open = open;
        self.node = arrival.node;
        self.confirmed = Instant::now();
        match problem {
            None => Claim::Held,
            Some(problem) => Claim::Lost(format!("{} ({}): {problem}", self.path, self.kind)),
        }
    }

    /// Why it may be gone.
    fn excuse(&self, world: &World) -> Option<Excuse> {
        if !self.durable {
            Some(Excuse::NeverDurable)
        } else if matches!(self.doubt, Some(Doubt::Close)) {
            Some(Excuse::CloseUnderWay)
        } else if self.deletes || matches!(self.doubt, Some(Doubt::Delete)) {
            Some(Excuse::DeletedOnClose)
        } else if self.kind.shared && !world.shared_opens_come_back {
            Some(Excuse::OthersHadItOpen)
        } else {
            None
        }
    }

    /// Makes sure that a claimed open is as it was promised, and that nothing of it is in doubt any more. An error
    /// in words if it is not.
    pub(super) async fn verify(
        &mut self,
        spare_name: String,
        thorough: bool,
    ) -> Result<Result<(), String>, Interrupted> {
        let in_words = |what: &'static str| move |err: crate::smb_client::SmbError| format!("{what}: {err}");
        macro_rules! ask {
            ($what:literal, $request:expr) => {
                match answer($request.await)? {
                    Ok(answer) => answer,
                    Err(err) => return Ok(Err(in_words($what)(err))),
                }
            };
        }
        let found = ask!("read", self.read());
        match self.doubt.take() {
            Some(Doubt::Contents(contents)) if found == contents => self.contents = contents,
            doubt => self.doubt = doubt,
        }
        if found != self.contents {
            let (expected, found) =
                (String::from_utf8_lossy(&self.contents), String::from_utf8_lossy(&found));
            return Ok(Err(format!("{}: {found:?} instead of {expected:?}", self.path)));
        }
        match &mut self.doubt {
            // A CLOSE gives up the locks before the open.
            Some(Doubt::Lock | Doubt::Close) => {
                match answer(self.open.lock(&[Self::unlock()]).await)? {
                    Ok(()) => {}
                    Err(err) if err.status() == Some(NtStatus::RANGE_NOT_LOCKED) => {}
                    Err(err) => return Ok(Err(in_words("unlock")(err))),
                }
                self.locked = false;
            }
            Some(Doubt::Names(names)) => {
                names.push(spare_name.clone());
                ask!("rename", self.open.rename(&spare_name, false));
                self.path = spare_name;
            }
            Some(Doubt::Delete) => {
                ask!("do not delete", self.open.set_delete_pending(false));
                self.deletes = false;
            }
            Some(Doubt::Contents(_)) | None => {}
        }
        self.doubt = None;
        if self.locked && thorough {
            // Only who holds the lock can release it.
            self.doubt = Some(Doubt::Lock);
            ask!("unlock", self.open.lock(&[Self::unlock()]));
            ask!("lock", self.open.lock(&[Self::lock()]));
            self.doubt = None;
        }
        Ok(Ok(()))
    }

    async fn read(&self) -> Result<Vec<u8>, crate::smb_client::SmbError> {
        match self.open.read(0, READ_LEN).await {
            Err(err) if err.status() == Some(NtStatus::END_OF_FILE) => Ok(Vec::new()),
            result => result,
        }
    }

    fn lock() -> LockElement {
        LockElement::exclusive(LOCKED_RANGE.0, LOCKED_RANGE.1)
    }

    fn unlock() -> LockElement {
        LockElement::unlock(LOCKED_RANGE.0, LOCKED_RANGE.1)
    }

    /// Does something with the open. The answer in words if it is a refusal: nothing that is done here can be
    /// refused.
    pub(super) async fn act(
        &mut self,
        rng: &mut StdRng,
        spare_name: String,
    ) -> Result<Result<(), String>, Interrupted> {
        if self.kind.shared {
            return self.verify(spare_name, false).await;
        }
        let may_lock = self.kind.cache != Cache::Lease(LeaseState::READ_HANDLE);
        let (what, doubt) = match rng.random_range(0..100) {
            0..35 => {
                let mut contents = format!("{:08x} by {}", rng.random::<u32>(), self.path).into_bytes();
                let rest = self.contents.get(contents.len()..).unwrap_or_default();
                contents.extend_from_slice(rest);
                ("write", Doubt::Contents(contents))
            }
            35..55 => {
                let mut contents = self.contents.clone();
                contents.resize(rng.random_range(0..READ_LEN as usize / 2), 0);
                ("set the end", Doubt::Contents(contents))
            }
            55..85 if may_lock => (if self.locked { "unlock" } else { "lock" }, Doubt::Lock),
            85..99 if !self.deletes => ("rename", Doubt::Names(vec![spare_name.clone()])),
            99.. if !self.deletes => ("delete", Doubt::Delete),
            _ => ("touch", Doubt::Contents(self.contents.clone())),
        };
        // Until the answer is there it may have been carried out or not.
        self.doubt = Some(doubt.clone());
        let result = match (&doubt, what) {
            (Doubt::Contents(contents), "write") => self.open.write(0, contents).await.map(drop),
            (Doubt::Contents(contents), "set the end") => {
                self.open.set_end_of_file(contents.len() as u64).await
            }
            (Doubt::Lock, "unlock") => self.open.lock(&[Self::unlock()]).await,
            (Doubt::Lock, _) => self.open.lock(&[Self::lock()]).await,
            (Doubt::Names(_), _) => self.open.rename(&spare_name, false).await,
            (Doubt::Delete, _) => self.open.set_delete_pending(true).await,
            _ => self.open.set_last_write_time(rng.random_range(0..1 << 30)).await,
        };
        match answer(result) {
            Err(interrupted) => {
                self.history.note(format!("{what}: no answer"));
                return Err(interrupted);
            }
            Ok(Err(err)) => return Ok(Err(format!("{} ({}): {what}: {err}", self.path, self.kind))),
            Ok(Ok(())) => {}
        }
        self.doubt = None;
        match doubt {
            Doubt::Contents(contents) => self.contents = contents,
            Doubt::Lock => self.locked = !self.locked,
            Doubt::Names(_) => self.path = spare_name,
            Doubt::Delete => self.deletes = true,
            Doubt::Close => {}
        }
        self.history.note(what);
        Ok(Ok(()))
    }

    /// Closes it.
    pub(super) async fn close(&mut self) -> Result<Result<(), String>, Interrupted> {
        self.doubt = Some(Doubt::Close);
        match answer(self.open.close().await) {
            Err(interrupted) => {
                self.history.note("close: no answer");
                Err(interrupted)
            }
            Ok(result) => {
                self.history.note("closed");
                Ok(result.map_err(|err| format!("{} ({}): close: {err}", self.path, self.kind)))
            }
        }
    }

    /// What may be on the disk while the open lives.
    pub(super) fn file(&self) -> KnownFile {
        let mut file = KnownFile {
            paths: vec![self.path.clone()],
            contents: vec![self.contents.clone()],
            presence: Presence::Must,
            history: self.history.clone(),
        };
        match &self.doubt {
            Some(Doubt::Contents(contents)) => file.contents.push(contents.clone()),
            Some(Doubt::Names(names)) => file.paths.extend(names.iter().cloned()),
            _ => {}
        }
        file
    }

    /// What may be on the disk after the open was closed, or was lost as it may be.
    pub(super) fn file_left(&self, closed: bool) -> KnownFile {
        let deleted = self.deletes || matches!(self.doubt, Some(Doubt::Delete));
        let presence = match deleted {
            false => Presence::Must,
            true if closed || self.durable => Presence::MustNot,
            // Nobody has promised that a node's death deletes it.
            true => Presence::May,
        };
        KnownFile { presence, ..self.file() }
    }

    /// The same if nobody can say what has become of the open.
    pub(super) fn file_in_doubt(&self) -> KnownFile {
        KnownFile { presence: Presence::May, ..self.file() }
    }
}
