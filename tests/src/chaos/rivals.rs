//! Client machines that compete for the same files, each of which only one may have open.
//!
//! A register says who has been told that a file is his, and how often that happened. It cannot say what a client thinks
//! that is cut off; but whoever does something with a file, successfully, that another one has been given before, or gets
//! it back after another one had it, is a second owner.

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
use crate::smb_client::{
    Break, Breaks, CreateRequest, Lease, LeaseState, NtStatus, Opened, OplockLevel, ShareAccess,
};

/// Files that are competed for in a share.
const FILES: usize = 3;

/// Between two things that a rival does.
const PAUSE_MS: std::ops::Range<u64> = 5..40;

/// Who was given a file.
#[derive(Debug)]
pub(super) struct Register {
    path: String,
    /// How often the file was given to somebody; the number of the newest grant.
    grants: AtomicU64,
    visits: Visits,
}

impl Register {
    /// The registers of a share.
    pub(super) fn of_share(share: &str) -> Vec<Self> {
        (0..FILES)
            .map(|number| Self {
                path: format!("{share}-contested-{number}"),
                grants: AtomicU64::new(0),
                visits: Visits::default(),
            })
            .collect()
    }

    fn grants(&self) -> u64 {
        self.grants.load(Ordering::SeqCst)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Rival {
    traveller: Traveller,
    registers: Arc<Vec<Register>>,
    own: Option<Own>,
}

/// A file that a rival was given.
#[derive(Debug)]
struct Own {
    open: Opened,
    id: u64,
    history: History,
    register: usize,
    /// The number of the grant.
    grant: u64,
    /// Who had asked for it when it was granted.
    then: Visited,
    node: usize,
    confirmed: Instant,
}

impl Rival {
    pub(super) fn new(traveller: Traveller, registers: Arc<Vec<Register>>) -> Self {
        Self { traveller, registers, own: None }
    }

    /// Competes until it is time to go home.
    pub(super) async fn run(mut self, world: Arc<World>) {
        while let Some(arrival) = self.traveller.arrive(&world).await {
            let number = self.traveller.number;
            let mut breaks = arrival.session.breaks();
            let compete = async {
                self.claim(&world, &arrival).await?;
                world.seat(number, |seat| seat.settled = true);
                self.compete(&world, &arrival, &mut breaks).await
            };
            if world.stay(number, &arrival, compete).await {
                return;
            }
        }
    }

    /// Claims what it had.
    async fn claim(&mut self, world: &World, arrival: &Arrival) -> Result<(), Interrupted> {
        let Some(own) = &mut self.own else { return Ok(()) };
        let register = &self.registers[own.register];
        let claim = answer(arrival.tree.create(own.open.reconnect_request()).await)?;
        match claim {
            Ok(open) => {
                own.history.note(format!("reclaimed at node {}", arrival.node));
                if register.grants() != own.grant {
                    let what =
                        format!("{} is given back although somebody else has had it since", register.path);
                    world.oracle.violation(Breach::OwnedTwice, what, Some(&own.history));
                }
                world.oracle.reclaimed(own.node, own.confirmed);
                own.open = open;
                (own.node, own.confirmed) = (arrival.node, Instant::now());
            }
            Err(err) => {
                own.history.note(format!("node {}: {err}", arrival.node));
                let visited = !register.visits.none_since(own.then);
                let held = (own.node, own.confirmed);
                world.oracle.refused_after_visits(visited, &err, held, &register.path, &own.history);
                self.own = None;
            }
        }
        Ok(())
    }

    async fn compete(
        &mut self,
        world: &World,
        arrival: &Arrival,
        breaks: &mut Breaks,
    ) -> Result<(), Interrupted> {
        loop {
            match world.phase() {
                Phase::End => return Ok(()),
                Phase::Still => world.stand_still(self.traveller.number, || self.known(world)),
                Phase::Work | Phase::Gather => match &self.own {
                    None => self.ask(world, arrival).await?,
                    Some(_) if self.traveller.rng.random_ratio(1, 6) => self.close(world).await?,
                    Some(_) => self.write(world).await?,
                },
            }
            let pause = Duration::from_millis(self.traveller.rng.random_range(PAUSE_MS));
            // Also while everybody stands still: somebody may wait for it.
            if let Some(notification) = breaks.next(pause).await {
                self.obey(world, arrival, notification).await?;
            }
            if arrival.session.echo().await.is_err() {
                return Err(Interrupted);
            }
        }
    }

    /// Asks for a file.
    async fn ask(&mut self, world: &World, arrival: &Arrival) -> Result<(), Interrupted> {
        let rng = &mut self.traveller.rng;
        let index = rng.random_range(0..self.registers.len());
        let register = &self.registers[index];
        let request = CreateRequest { share_access: ShareAccess::NONE, ..CreateRequest::new(&register.path) };
        let request = match rng.random_range(0..3) {
            0 => request.with_oplock(OplockLevel::Batch),
            1 => request.with_lease(Lease::request(LeaseState::READ_HANDLE)),
            _ => request.with_lease(Lease::request(LeaseState::READ_WRITE_HANDLE)),
        };
        let visit = register.visits.begin();
        let granted = answer(arrival.tree.create(request.durable_v2()).await)?;
        drop(visit);
        match granted {
            Ok(open) => {
                let (id, mut history) = world.oracle.register();
                let grant = register.grants.fetch_add(1, Ordering::SeqCst) + 1;
                let then = register.visits.now();
                history.note(format!("{}: grant {grant} by node {}", register.path, arrival.node));
                world.oracle.count(|account| account.exclusive_grants += 1);
                let (node, confirmed) = (arrival.node, Instant::now());
                self.own = Some(Own { open, id, history, register: index, grant, then, node, confirmed });
            }
            Err(err) if err.status() == Some(NtStatus::SHARING_VIOLATION) => {
                // Somebody has it.
                time::sleep(Duration::from_millis(self.traveller.rng.random_range(PAUSE_MS))).await;
            }
            Err(err) => {
                let what = format!("node {}: {}: {err}", arrival.node, register.path);
                world.oracle.violation(Breach::Unavailable, what, None);
            }
        }
        Ok(())
    }

    /// Does something that only the owner may do.
    async fn write(&mut self, world: &World) -> Result<(), Interrupted> {
        let Some(own) = &mut self.own else { return Ok(()) };
        let register = &self.registers[own.register];
        // Before it is sent: who is given the file later may be so by an answer that overtakes this one's.
        let was_owner = register.grants() == own.grant;
        match answer(own.open.write(0, &own.grant.to_le_bytes()).await)? {
            Ok(_) if was_owner => own.confirmed = Instant::now(),
            Ok(_) => {
                let what = format!("{} is written by a former owner", register.path);
                world.oracle.violation(Breach::OwnedTwice, what, Some(&own.history));
            }
            Err(err) => {
                let what = format!("{}: write: {err}", register.path);
                world.oracle.violation(Breach::Lost, what, Some(&own.history));
                self.own = None;
            }
        }
        Ok(())
    }

    async fn close(&mut self, world: &World) -> Result<(), Interrupted> {
        // Whatever the answer is, it never asks for it again.
        let Some(own) = self.own.take() else { return Ok(()) };
        if let Err(err) = answer(own.open.close().await)? {
            let what = format!("{}: close: {err}", self.registers[own.register].path);
            world.oracle.violation(Breach::Lost, what, Some(&own.history));
        }
        Ok(())
    }

    /// Gives a cache up, or the whole open.
    async fn obey(
        &mut self,
        world: &World,
        arrival: &Arrival,
        notification: Break,
    ) -> Result<(), Interrupted> {
        let Some(own) = &mut self.own else { return Ok(()) };
        own.history.note(format!("{notification:?}"));
        let acknowledged = match notification {
            Break::Lease { ack_required: false, .. } => return Ok(()),
            _ if self.traveller.rng.random() => return self.close(world).await,
            Break::Lease { key, new, .. } => arrival.tree.acknowledge_lease_break(key, new).await,
            Break::Oplock { level, .. } => own.open.acknowledge_oplock_break(level).await,
        };
        // A refusal only says that the break was for an open that is closed already.
        answer(acknowledged).map(drop)
    }

    fn known(&self, world: &World) -> Known {
        let (_, history) = world.oracle.register();
        let file = |register: &Register| KnownFile {
            paths: vec![register.path.clone()],
            contents: Vec::new(),
            presence: Presence::May,
            history: history.clone(),
        };
        Known {
            files: self.registers.iter().map(file).collect(),
            held: self.own.iter().map(|own| (own.id, own.open.reconnect_request())).collect(),
        }
    }
}
