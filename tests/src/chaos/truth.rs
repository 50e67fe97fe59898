//! Whether a lease that is given back is true: one client caches what it has read, another one writes, now and then just
//! when the first is away.
//!
//! The reader trusts its cache for as long as it has an unbroken READ lease, over deaths and reclaims. If the lease is
//! given back after somebody's write was acknowledged that the reader has not been told of, the cache is stale, and
//! nobody would ever notice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::RngExt;
use tokio::time;

use super::{
    files::{KnownFile, Presence},
    oracle::{Breach, History},
    visits::{Visited, Visits},
    world::{Arrival, Interrupted, Known, Phase, Traveller, World, answer},
};
use crate::smb_client::{Break, Breaks, CreateRequest, LeaseState, Opened};

/// How long a reader may wait before it claims, so that a writer can be earlier, in milliseconds.
const DELAY_MS: std::ops::Range<u64> = 0..1500;

/// Between two looks at the connection.
const PAUSE: Duration = Duration::from_millis(30);

/// The length of what is written.
const VERSION_LEN: u32 = 8;

/// A file that one reads and another one writes.
#[derive(Debug)]
pub(super) struct Page {
    path: String,
    /// The writer's.
    visits: Visits,
    /// Writes that were begun; the number of the newest one.
    begun: AtomicU64,
    /// The last write that was acknowledged: the number that the file contains then.
    written: AtomicU64,
}

impl Page {
    pub(super) fn new(path: String) -> Self {
        Self { path, visits: Visits::default(), begun: AtomicU64::new(0), written: AtomicU64::new(0) }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }
}

/// The one that caches.
#[derive(Debug)]
pub(super) struct Reader {
    traveller: Traveller,
    page: Arc<Page>,
    own: Option<Cached>,
}

/// An open, and what is cached by it.
#[derive(Debug)]
struct Cached {
    open: Opened,
    id: u64,
    history: History,
    state: LeaseState,
    contents: Vec<u8>,
    /// The page when the contents were read.
    written: u64,
    then: Visited,
    node: usize,
    confirmed: Instant,
}

impl Reader {
    pub(super) fn new(traveller: Traveller, page: Arc<Page>) -> Self {
        Self { traveller, page, own: None }
    }

    /// Reads until it is time to go home.
    pub(super) async fn run(mut self, world: Arc<World>) {
        while let Some(arrival) = self.traveller.arrive(&world).await {
            let number = self.traveller.number;
            let mut breaks = arrival.session.breaks();
            let delay = Duration::from_millis(self.traveller.rng.random_range(DELAY_MS));
            let patient = self.traveller.rng.random();
            let read = async {
                if patient && self.own.is_some() {
                    time::sleep(delay).await;
                }
                self.claim(&world, &arrival).await?;
                world.seat(number, |seat| seat.settled = true);
                self.read(&world, &arrival, &mut breaks).await
            };
            if world.stay(number, &arrival, read).await {
                return;
            }
        }
    }

    async fn claim(&mut self, world: &World, arrival: &Arrival) -> Result<(), Interrupted> {
        let Some(own) = &mut self.own else { return Ok(()) };
        // Before the claim is sent: what is written later will break the lease.
        let written = self.page.written();
        let claim = answer(arrival.tree.create(own.open.reconnect_request()).await)?;
        match claim {
            Ok(open) => {
                own.history.note(format!("reclaimed at node {} with {}", arrival.node, open.lease_state()));
                world.oracle.count(|account| account.lease_checks += 1);
                if open.lease_state().contains(LeaseState::READ) && written > own.written {
                    let what = format!(
                        "{}: {} is given back, but {written} was written since {} was cached",
                        self.page.path,
                        open.lease_state(),
                        own.written
                    );
                    world.oracle.violation(Breach::StaleCache, what, Some(&own.history));
                }
                world.oracle.reclaimed(own.node, own.confirmed);
                own.open = open;
                (own.node, own.confirmed) = (arrival.node, Instant::now());
                let contents = answer(own.open.read(0, VERSION_LEN).await)?.unwrap_or_default();
                if self.page.visits.none_since(own.then) && contents != own.contents {
                    let what = format!("{} was {:?} and is {contents:?}", self.page.path, own.contents);
                    world.oracle.violation(Breach::StaleCache, what, Some(&own.history));
                }
            }
            Err(err) => {
                own.history.note(format!("node {}: {err}", arrival.node));
                let visited = !self.page.visits.none_since(own.then);
                let held = (own.node, own.confirmed);
                world.oracle.refused_after_visits(visited, &err, held, &self.page.path, &own.history);
                self.own = None;
            }
        }
        Ok(())
    }

    async fn read(
        &mut self,
        world: &World,
        arrival: &Arrival,
        breaks: &mut Breaks,
    ) -> Result<(), Interrupted> {
        loop {
            match world.phase() {
                Phase::End => return Ok(()),
                Phase::Still => world.stand_still(self.traveller.number, || self.known(world)),
                Phase::Work | Phase::Gather if self.own.is_none() => self.open(world, arrival).await?,
                Phase::Work | Phase::Gather => {}
            }
            // Also while everybody stands still: the writer may wait for it.
            if let Some(Break::Lease { key, new, ack_required, .. }) = breaks.next(PAUSE).await {
                let Some(own) = &mut self.own else { continue };
                own.history.note(format!("break to {new}"));
                if ack_required {
                    answer(arrival.tree.acknowledge_lease_break(key, new).await)?.ok();
                }
                own.state = new;
                if !new.contains(LeaseState::READ_HANDLE) {
                    answer(own.open.close().await)?.ok();
                    self.own = None;
                }
            }
            if arrival.session.echo().await.is_err() {
                return Err(Interrupted);
            }
            if let Some(own) = &mut self.own {
                own.confirmed = Instant::now();
            }
        }
    }

    async fn open(&mut self, world: &World, arrival: &Arrival) -> Result<(), Interrupted> {
        let request = CreateRequest::durable_v2_with_lease(&self.page.path);
        let open = match answer(arrival.tree.create(request).await)? {
            Ok(open) => open,
            Err(err) => {
                let what = format!("node {}: {}: {err}", arrival.node, self.page.path);
                world.oracle.violation(Breach::Unavailable, what, None);
                return Ok(());
            }
        };
        if open.lease_state() != LeaseState::READ_WRITE_HANDLE {
            // The writer has it open. Another time.
            answer(open.close().await)?.ok();
            return Ok(());
        }
        // Nobody else has it open, and nobody can without this client's consent: nothing changes until then.
        let (written, then) = (self.page.written(), self.page.visits.now());
        let contents = answer(open.read(0, VERSION_LEN).await)?.unwrap_or_default();
        let (id, mut history) = world.oracle.register();
        history.note(format!("{} granted by node {}, {written} cached", self.page.path, arrival.node));
        let (state, node, confirmed) = (open.lease_state(), arrival.node, Instant::now());
        self.own = Some(Cached { open, id, history, state, contents, written, then, node, confirmed });
        Ok(())
    }

    fn known(&self, world: &World) -> Known {
        let (_, history) = world.oracle.register();
        let file = KnownFile {
            paths: vec![self.page.path.clone()],
            contents: Vec::new(),
            presence: Presence::May,
            history,
        };
        Known {
            files: vec![file],
            held: self.own.iter().map(|own| (own.id, own.open.reconnect_request())).collect(),
        }
    }
}

/// The one that writes.
#[derive(Debug)]
pub(super) struct Writer {
    traveller: Traveller,
    page: Arc<Page>,
}

impl Writer {
    pub(super) fn new(traveller: Traveller, page: Arc<Page>) -> Self {
        Self { traveller, page }
    }

    /// Writes until it is time to go home.
    pub(super) async fn run(mut self, world: Arc<World>) {
        while let Some(arrival) = self.traveller.arrive(&world).await {
            let number = self.traveller.number;
            // Having come here after a death, perhaps before the reader.
            let at_once = self.traveller.rng.random();
            let write = async {
                if at_once {
                    self.intrude(&world, &arrival).await?;
                }
                world.seat(number, |seat| seat.settled = true);
                loop {
                    match world.phase() {
                        Phase::End => return Ok(()),
                        Phase::Still => world.stand_still(number, Known::default),
                        Phase::Work if self.traveller.rng.random_ratio(1, 250) => {
                            self.intrude(&world, &arrival).await?;
                        }
                        Phase::Work | Phase::Gather => {}
                    }
                    time::sleep(PAUSE).await;
                    if arrival.session.echo().await.is_err() {
                        return Err(Interrupted);
                    }
                }
            };
            if world.stay(number, &arrival, write).await {
                return;
            }
        }
    }

    /// Opens the file and writes into it the number of the write.
    async fn intrude(&self, world: &World, arrival: &Arrival) -> Result<(), Interrupted> {
        let number = self.page.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let _visit = self.page.visits.begin();
        let intrude = async {
            let open = arrival.tree.create(CreateRequest::new(&self.page.path)).await?;
            open.write(0, &number.to_le_bytes()).await?;
            self.page.written.store(number, Ordering::SeqCst);
            open.close().await
        };
        if let Err(err) = answer(intrude.await)? {
            let what = format!("node {}: {}: {err}", arrival.node, self.page.path);
            world.oracle.violation(Breach::Unavailable, what, None);
        }
        Ok(())
    }
}
