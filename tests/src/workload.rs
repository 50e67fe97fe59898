//! Client machines that open files and keep account of what they were promised; and afterwards claim all of
//! it.
//!
//! The account is the oracle of the failover tests: an open belongs in it from the moment its CREATE was
//! answered, and a lock or a write from the moment of its own answer. What was under way when the node died
//! is in nobody's account.

use std::{
    future::ready,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::sleep;

use crate::smb_client::{
    Client, CreateAction, CreateRequest, Lease, LeaseState, LockElement, NtStatus, Opened, OplockLevel,
    Session, SmbError, Tree,
};

/// Requests that one client has under way at a time.
const PIPELINED: usize = 4;

/// What a client locks, if it locks.
const LOCKED_RANGE: (u64, u64) = (10, 5);

/// How long what a dead process has left may stand in the way of others. With CTDB its recovery takes most of that.
const DURABLE_WITHIN: Duration = Duration::from_secs(60);

/// Between two attempts at it.
const DURABLE_INTERVAL: Duration = Duration::from_millis(50);

/// An open that a client wants, and what it does with it.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The CREATE. What it asks for must be something that a node's death may not take away.
    pub request: CreateRequest,
    /// Lock some bytes.
    pub lock: bool,
    /// Write this at the file's beginning.
    pub write: Option<Vec<u8>>,
}

impl Wish {
    /// Every kind of open in turn, a third of them with a lock, a fifth with data.
    fn numbered(prefix: &str, number: usize) -> Self {
        let path = format!("{prefix}-{number}");
        let write = number.is_multiple_of(5).then(|| path.clone().into_bytes());
        let request = CreateRequest::new(path);
        let request = match number % 4 {
            0 => request.with_lease(Lease::request(LeaseState::READ_WRITE_HANDLE)).durable_v2(),
            1 => request.with_oplock(OplockLevel::Batch).durable_v2(),
            2 => request.with_lease(Lease::request(LeaseState::READ_WRITE_HANDLE)).durable_v1(),
            _ => request.with_oplock(OplockLevel::Batch).durable_v1(),
        };
        Self { request, lock: number.is_multiple_of(3), write }
    }

    /// Opens, locks and writes as wished. An error means that not even the open was granted; a lock or write
    /// that fails is merely not promised.
    ///
    /// # Panics
    /// When the open is granted and is not durable: then there is nothing to test.
    pub async fn obtain(self, share: &Tree) -> Result<Promise, SmbError> {
        let open = share.create(self.request).await?;
        assert!(open.is_durable(), "not durable: {open:?}");
        let mut promise = Promise { open, locked: false, written: None };
        if self.lock {
            let (offset, length) = LOCKED_RANGE;
            promise.locked = promise.open.lock(&[LockElement::exclusive(offset, length)]).await.is_ok();
        }
        if let Some(data) = self.write {
            promise.written = promise.open.write(0, &data).await.is_ok().then_some(data);
        }
        Ok(promise)
    }
}

/// An open that was granted, and what was granted on it.
#[derive(Debug)]
pub struct Promise {
    /// The open as it was granted.
    pub open: Opened,
    /// Whether the bytes were locked.
    pub locked: bool,
    /// What was written at the file's beginning.
    pub written: Option<Vec<u8>>,
}

impl Promise {
    /// Claims the open on another connection, and says what is missing if not everything is as promised.
    pub async fn claim(&self, share: &Tree) -> Result<Opened, BrokenPromise> {
        let claimed = reclaim(share, &self.open).await?;
        let id = self.open.file_id().persistent;
        if self.locked {
            // Only who holds the lock can release it.
            let (offset, length) = LOCKED_RANGE;
            let unlock = [LockElement::unlock(offset, length)];
            claimed.lock(&unlock).await.map_err(refused(id, "unlock"))?;
        }
        if let Some(data) = &self.written {
            let len = u32::try_from(data.len()).expect("a file name");
            let read = claimed.read(0, len).await.map_err(refused(id, "read"))?;
            if read != *data {
                return Err(BrokenPromise { id, what: format!("wrote {data:?}, read {read:?}") });
            }
        }
        Ok(claimed)
    }
}

/// Claims an open on another connection. An error says what is missing if it is not the same open with the same oplock
/// or lease.
pub async fn reclaim(share: &Tree, open: &Opened) -> Result<Opened, BrokenPromise> {
    let id = open.file_id().persistent;
    let broken = |what: String| BrokenPromise { id, what };
    let claimed = share.create(open.reconnect_request()).await.map_err(refused(id, "reclaim"))?;
    let (before, after) = (open.response(), claimed.response());
    if claimed.file_id().persistent != id {
        return Err(broken(format!("another persistent id: {:?}", after.file_id)));
    }
    if after.action != CreateAction::Opened {
        return Err(broken(format!("CreateAction {:?}", after.action)));
    }
    if (after.oplock_level, after.lease) != (before.oplock_level, before.lease) {
        return Err(broken(format!("{before:?} became {after:?}")));
    }
    Ok(claimed)
}

/// Opens a file again and again until that makes a durable open with a batch oplock, which nothing else about the file may be
/// in the way of for long. The error is what stood in the way to the end.
pub async fn until_durable(share: &Tree, path: &str) -> Result<Opened, String> {
    let deadline = Instant::now() + DURABLE_WITHIN;
    loop {
        let stands_in_the_way = match share.create(CreateRequest::durable_v2_with_batch(path)).await {
            Ok(open) if open.is_durable() => return Ok(open),
            Ok(open) => {
                let granted = format!("{:?}", open.response());
                open.close().await.map_err(|err| err.to_string())?;
                granted
            }
            Err(err) => err.to_string(),
        };
        if Instant::now() >= deadline {
            return Err(stands_in_the_way);
        }
        sleep(DURABLE_INTERVAL).await;
    }
}

/// What was promised and not given.
fn refused(id: u64, what: &'static str) -> impl FnOnce(SmbError) -> BrokenPromise {
    move |err| BrokenPromise { id, what: format!("{what}: {err}") }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenPromise {
    /// The open's persistent id.
    pub id: u64,
    /// What is missing or different.
    pub what: String,
}

/// One client machine, and what it holds.
#[derive(Debug)]
pub struct Holder {
    client: Client,
    session_id: u64,
    /// What it was promised.
    pub promises: Vec<Promise>,
}

impl Holder {
    /// Connects and opens files until the connection is lost. Every grant is counted in `granted` as well.
    ///
    /// `name` keeps the files of different clients apart.
    pub async fn fill(
        client: Client,
        server: SocketAddr,
        share: &str,
        name: &str,
        granted: &AtomicUsize,
    ) -> Result<Self, SmbError> {
        let session = client.connect(server).await?;
        let share = session.tree_connect(share).await?;
        let promises = stream::iter(0..)
            .take_until(session.ended())
            .map(|number| Wish::numbered(name, number).obtain(&share))
            .buffer_unordered(PIPELINED)
            .filter_map(|obtained| {
                granted.fetch_add(usize::from(obtained.is_ok()), Ordering::Relaxed);
                ready(match obtained {
                    // What was under way when the connection was lost is nobody's.
                    Err(SmbError::Disconnected { .. }) => None,
                    obtained => Some(obtained),
                })
            })
            .try_collect()
            .await?;
        Ok(Self { client, session_id: session.id(), promises })
    }

    /// Connects to another server and claims everything. The session is returned with what was claimed; it
    /// holds the opens until it is dropped.
    pub async fn claim_all(&self, server: SocketAddr, share: &str) -> Result<Claims, SmbError> {
        let session = self.client.reconnect(server, self.session_id).await?;
        let share = session.tree_connect(share).await?;
        let results: Vec<_> = stream::iter(&self.promises)
            .map(|promise| promise.claim(&share))
            .buffer_unordered(PIPELINED)
            .collect()
            .await;
        let (mut claimed, mut broken) = (Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok(open) => claimed.push(open),
                Err(promise) => broken.push(promise),
            }
        }
        Ok(Claims { session, claimed, broken })
    }

    /// Claims everything once more while it is held by somebody, and returns the ids of which it got a second
    /// one.
    pub async fn claim_again(&self, server: SocketAddr, share: &str) -> Result<Vec<u64>, SmbError> {
        // Not in place of the session that holds them.
        let session = self.client.connect(server).await?;
        let share = session.tree_connect(share).await?;
        let mut twice = Vec::new();
        for promise in &self.promises {
            match share.create(promise.open.reconnect_request()).await {
                Err(err) if err.status() == Some(NtStatus::OBJECT_NAME_NOT_FOUND) => {}
                Err(err) => return Err(err),
                Ok(open) => twice.push(open.file_id().persistent),
            }
        }
        Ok(twice)
    }
}

/// What came of claiming everything.
#[derive(Debug)]
pub struct Claims {
    /// The session that holds what was claimed.
    pub session: Session,
    /// Opens that are as promised.
    pub claimed: Vec<Opened>,
    /// Promises that were not kept.
    pub broken: Vec<BrokenPromise>,
}
