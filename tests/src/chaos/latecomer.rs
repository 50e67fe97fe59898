//! A client that stays away for long: sometimes just short of what it was promised, and sometimes for longer.
//!
//! An open lives for its timeout, counted from no earlier moment than the loss of its connection; so a client that is
//! back before has to get it. And it is gone a second after the timeout at the latest, counted from the moment at which
//! everybody else had been let in again, because the death was known by then.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::RngExt;
use tokio::time;

use super::{
    files::{KnownFile, Presence},
    oracle::{Breach, Excuse, History, is_gone},
    world::{Arrival, Interrupted, Known, Phase, Traveller, World, answer},
};
use crate::smb_client::{CreateGuid, CreateRequest, Durability, Opened};

/// What it is promised.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long before or after the end it is back. Cluster time may stand still while a leader is elected.
const MARGIN: Duration = Duration::from_millis(2500);

/// How many files it opens.
const OPENS: usize = 4;

/// Between two looks at the connection.
const PAUSE: Duration = Duration::from_millis(30);

/// A death so shortly before it leaves a living node may still hold up what has to be agreed on.
const LEAD: Duration = Duration::from_secs(5);

/// The same where the nodes have their records in common: until CTDB has recovered, which takes longest after the pause of a
/// node, an smbd that needs a record does not look at its connections. Its clients give it up before it notices.
const LEAD_CLUSTERED: Duration = Duration::from_secs(45);

/// How long it waits for everybody else to be let in. After that it stays away for no longer.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Latecomer {
    traveller: Traveller,
    names_used: u64,
    opens: Vec<Abandoned>,
    /// Files that it has had open.
    files: Vec<KnownFile>,
}

/// An open that is not claimed in a hurry.
#[derive(Debug)]
struct Abandoned {
    open: Opened,
    id: u64,
    path: String,
    history: History,
    /// The file is to be deleted when it is closed, by whomever.
    deletes: bool,
    node: usize,
    confirmed: Instant,
}

impl Latecomer {
    pub(super) fn new(traveller: Traveller) -> Self {
        Self { traveller, names_used: 0, opens: Vec::new(), files: Vec::new() }
    }

    /// Is late until it is time to go home.
    pub(super) async fn run(mut self, world: Arc<World>) {
        let mut too_late = false;
        while let Some(arrival) = self.traveller.arrive(&world).await {
            let number = self.traveller.number;
            let mut left = false;
            let visit = async {
                self.claim(&world, &arrival, too_late).await?;
                world.seat(number, |seat| seat.settled = true);
                loop {
                    match world.phase() {
                        Phase::End => return Ok(()),
                        Phase::Still => world.stand_still(number, || self.known()),
                        Phase::Work | Phase::Gather if self.opens.len() < OPENS => {
                            self.open(&world, &arrival).await?;
                        }
                        Phase::Work if self.traveller.rng.random_ratio(1, 150) => {
                            left = true;
                            return Err(Interrupted);
                        }
                        Phase::Work | Phase::Gather => {}
                    }
                    time::sleep(PAUSE).await;
                    self.touch(&arrival).await?;
                    self.opens.iter_mut().for_each(|open| open.confirmed = Instant::now());
                }
            };
            if world.stay(number, &arrival, visit).await {
                return;
            }
            let wants_to_be = self.traveller.rng.random();
            too_late = self.stay_away(&world, wants_to_be, left).await && wants_to_be;
        }
    }

    /// Stays away until its opens are just about to end, or have just ended. False if nobody can say whether they have.
    /// Of its own accord it has `left`, or because it had no answer any more.
    async fn stay_away(&self, world: &World, too_late: bool, left: bool) -> bool {
        let Some((lost, node)) = self.opens.iter().map(|open| (open.confirmed, open.node)).min() else {
            return true;
        };
        if !too_late {
            time::sleep_until((lost + TIMEOUT - MARGIN).into()).await;
            return true;
        }
        // Nobody has to find out that this client is away but the smbd that it has left.
        let lives = left || world.oracle.count(|account| account.blow_to(node, lost).is_none());
        let others_are_in = || {
            world.seats(|seats| {
                let share = seats[self.traveller.number].share;
                let mut others = seats.iter().filter(|seat| seat.share == share && !seat.comes_late);
                let is_in = |arrival: &Arrival| arrival.at > lost || arrival.node != node;
                others.all(|seat| seat.settled && seat.arrival.as_ref().is_some_and(is_in))
            })
        };
        let others = async {
            // Who leaves by himself is known to be away at once, unless there is a death at the same time.
            while !lives && !others_are_in() {
                time::sleep(PAUSE).await;
            }
        };
        // If nobody else has lost his connection, there was no death to wait for.
        let _ = time::timeout(OTHERS_TIMEOUT, others).await;
        // A death makes cluster time stand still for a moment, also one that has nothing to do with this client.
        let lead = match (lives, world.clustered) {
            (false, _) => Duration::ZERO,
            (true, false) => LEAD,
            (true, true) => LEAD_CLUSTERED,
        };
        let mut since = Instant::now() - lead;
        loop {
            time::sleep(TIMEOUT + MARGIN).await;
            let struck = world.oracle.count(|account| account.blow.as_ref().map(|blow| blow.at));
            if struck.is_none_or(|struck| struck < since) {
                return true;
            }
            if lives {
                return false;
            }
            since = Instant::now();
        }
    }

    /// Claims everything, and closes what it gets.
    async fn claim(&mut self, world: &World, arrival: &Arrival, too_late: bool) -> Result<(), Interrupted> {
        while let Some(abandoned) = self.opens.last_mut() {
            let claim = answer(arrival.tree.create(abandoned.open.reconnect_request()).await)?;
            let away = abandoned.confirmed.elapsed();
            let (node, confirmed, deletes) = (abandoned.node, abandoned.confirmed, abandoned.deletes);
            let history = &mut abandoned.history;
            let mut there = !deletes;
            match claim {
                Ok(open) => {
                    history.note(format!("reclaimed at node {} after {away:?}", arrival.node));
                    if too_late {
                        let what = format!("{} is given back after {away:?}", abandoned.path);
                        world.oracle.violation(Breach::OutlivedItsTime, what, Some(history));
                    }
                    world.oracle.reclaimed(node, confirmed);
                    answer(open.close().await)?.ok();
                }
                Err(err) => {
                    history.note(format!("node {} after {away:?}: {err}", arrival.node));
                    let excuse = if too_late || away >= TIMEOUT {
                        Some(Excuse::Expired)
                    } else {
                        deletes.then_some(Excuse::DeletedOnClose)
                    };
                    match excuse.filter(|_| is_gone(&err)) {
                        Some(excuse) => world.oracle.excused(node, confirmed, excuse),
                        None => {
                            let what = format!("{} after {away:?}: {err}", abandoned.path);
                            world.oracle.lost(node, confirmed, what, history);
                            there = true;
                        }
                    }
                }
            }
            if too_late {
                world.oracle.count(|account| account.expiries += 1);
            }
            let abandoned = self.opens.pop().expect("it was there");
            let presence = match there {
                true => Presence::Must,
                false => Presence::MustNot,
            };
            self.files.push(KnownFile {
                paths: vec![abandoned.path],
                contents: vec![Vec::new()],
                presence,
                history: abandoned.history,
            });
        }
        Ok(())
    }

    /// Finds out whether the connection is there, by a request in the share.
    ///
    /// An ECHO would do, were it not for the files to be deleted. An smbd 4.17 whose other tree connects have ended stands in
    /// the root directory until it is asked for something in a share, and does not find a file that it is to delete if it
    /// loses the client before.
    async fn touch(&self, arrival: &Arrival) -> Result<(), Interrupted> {
        match self.opens.last() {
            // There is nothing in it to be read, and that is an answer.
            Some(abandoned) => answer(abandoned.open.read(0, 1).await).map(drop),
            None => arrival.session.echo().await.map_err(|_| Interrupted),
        }
    }

    async fn open(&mut self, world: &World, arrival: &Arrival) -> Result<(), Interrupted> {
        self.names_used += 1;
        let path = format!("late{}-{}", self.traveller.number, self.names_used);
        let request = match self.names_used % 2 {
            0 => CreateRequest::durable_v2_with_lease(&path),
            _ => CreateRequest::durable_v2_with_batch(&path),
        };
        let durability =
            Durability::RequestV2 { create_guid: CreateGuid::random(), timeout: TIMEOUT, persistent: false };
        let (id, mut history) = world.oracle.register();
        // Known before it is asked for: this may be dropped wherever it waits for an answer.
        self.files.push(KnownFile {
            paths: vec![path.clone()],
            contents: Vec::new(),
            presence: Presence::May,
            history: history.clone(),
        });
        let opened = answer(arrival.tree.create(CreateRequest { durability, ..request }).await);
        let node = arrival.node;
        let open = match opened {
            Ok(Ok(open)) => open,
            Ok(Err(err)) => {
                let what = format!("node {node}: {path}: {err}");
                world.oracle.violation(Breach::Unavailable, what, None);
                return Ok(());
            }
            Err(interrupted) => return Err(interrupted),
        };
        world.oracle.count(|account| account.acknowledged += 1);
        history.note(format!("{path} granted by node {node}"));
        let deletes = self.names_used.is_multiple_of(OPENS as u64);
        if deletes {
            match answer(open.set_delete_pending(true).await) {
                Ok(Ok(())) => history.note("to be deleted"),
                // Nobody knows, and it is not worth to find out.
                Ok(Err(_)) | Err(Interrupted) => return Err(Interrupted),
            }
        }
        self.files.pop();
        let confirmed = Instant::now();
        self.opens.push(Abandoned { open, id, path, history, deletes, node, confirmed });
        Ok(())
    }

    fn known(&self) -> Known {
        let files = self.opens.iter().map(|open| KnownFile {
            paths: vec![open.path.clone()],
            contents: vec![Vec::new()],
            // Its node may die while everybody stands still, and then it goes.
            presence: if open.deletes { Presence::May } else { Presence::Must },
            history: open.history.clone(),
        });
        Known {
            files: files.chain(self.files.iter().cloned()).collect(),
            held: self.opens.iter().map(|open| (open.id, open.open.reconnect_request())).collect(),
        }
    }
}
