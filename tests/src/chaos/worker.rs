//! A client machine that does what users do: it opens files with all kinds of durability, writes, locks, renames,
//! closes and deletes, and when its connection is lost it comes back and claims everything.
//!
//! Several applications share its session. Each has one request under way at a time while it works, and some when it
//! claims, so whatever is in doubt after a death is little and known.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::join_all, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time;

use super::{
    files::{KnownFile, Presence},
    handle::{Claim, Handle, Kind},
    oracle::Breach,
    world::{Arrival, Interrupted, Known, Phase, Traveller, World, answer},
};
use crate::smb_client::{CreateRequest, NtStatus, ShareAccess};

/// Applications of one machine.
pub(super) const APPLICATIONS: usize = 3;

/// Claims that one application has under way at a time.
const PIPELINED: usize = 4;

/// The longest pause of an application that holds all that it is to hold.
const PAUSE_MAX_MS: u64 = 60;

/// Closed files that an application remembers. Beyond it deletes the oldest.
const CLOSED_MAX: usize = 40;

/// Files that several clients have open at the same time.
const SHARED_FILES: u64 = 10;

/// The names of the files that all clients of a share open.
pub(super) fn shared_files(share: &str) -> impl Iterator<Item = String> {
    (0..SHARED_FILES).map(move |number| shared_file(share, number))
}

fn shared_file(share: &str, number: u64) -> String {
    format!("{share}-common-{number}")
}

/// See the module.
#[derive(Debug)]
pub(super) struct Worker {
    traveller: Traveller,
    applications: Vec<Application>,
}

impl Worker {
    /// A machine that is to hold `opens`, or a few more.
    pub(super) fn new(mut traveller: Traveller, opens: usize) -> Self {
        let group = traveller.share.clone();
        let applications = (0..APPLICATIONS)
            .map(|number| Application {
                client: traveller.number,
                index: number,
                name: format!("client{}-{number}", traveller.number),
                group: group.clone(),
                rng: StdRng::seed_from_u64(traveller.rng.random()),
                opens: opens.div_ceil(APPLICATIONS),
                names_used: 0,
                handles: Vec::new(),
                closed: VecDeque::new(),
                unanswered: Vec::new(),
            })
            .collect();
        Self { traveller, applications }
    }

    /// Works until it is time to go home.
    pub(super) async fn run(mut self, world: Arc<World>) {
        while let Some(arrival) = self.traveller.arrive(&world).await {
            let number = self.traveller.number;
            let work = async {
                let claims = self.applications.iter_mut().map(|app| app.claim_all(&world, &arrival));
                if join_all(claims).await.iter().any(Result::is_err) {
                    return;
                }
                world.seat(number, |seat| seat.settled = true);
                loop {
                    let work = self.applications.iter_mut().map(|app| app.work(&world, &arrival));
                    if join_all(work).await.iter().any(Result::is_err) || world.phase() == Phase::End {
                        return;
                    }
                    let mut known = Known::default();
                    self.applications.iter().for_each(|app| app.tell(&mut known));
                    world.stand_still(number, || known);
                    world.phase_after(Phase::Still).await;
                    self.applications.iter_mut().for_each(Application::forget_the_deleted);
                }
            };
            let mut work = std::pin::pin!(work);
            tokio::select! {
                () = &mut work => {}
                () = world.suspected(arrival.node) => {
                    arrival.session.drop_connection().await;
                    // Every application has to take note of what it does not know.
                    work.await;
                }
            }
            world.seat(number, |seat| seat.settled = false);
            if world.phase() == Phase::End {
                return;
            }
            // A request may have timed out on a connection that still stands.
            let why = arrival.session.ended().now_or_never();
            let why = why.unwrap_or_else(|| "a request had no answer in time".to_owned());
            world.oracle.note(format!("client {number} leaves node {}: {why}", arrival.node));
            arrival.session.drop_connection().await;
        }
    }
}

/// One application, and everything that it knows.
#[derive(Debug)]
struct Application {
    /// Its machine.
    client: usize,
    /// Which of the machine's applications it is.
    index: usize,
    name: String,
    group: String,
    rng: StdRng,
    /// How many opens it is to hold.
    opens: usize,
    names_used: u64,
    handles: Vec<Handle>,
    /// Files without an open.
    closed: VecDeque<KnownFile>,
    /// Files whose CREATE was not answered: it may have made an open that nobody knows.
    unanswered: Vec<Unanswered>,
}

/// A CREATE without an answer.
#[derive(Debug)]
struct Unanswered {
    /// What may be on the disk.
    file: KnownFile,
    /// The open, if it was made, deletes the file.
    deletes: bool,
    /// Others have the file open as well.
    shared: bool,
}

impl Application {
    /// A name that no file ever had.
    fn new_name(&mut self) -> String {
        self.names_used += 1;
        format!("{}-{}", self.name, self.names_used)
    }

    /// Claims everything that was held on an earlier connection, and clears up all doubt.
    async fn claim_all(&mut self, world: &World, arrival: &Arrival) -> Result<(), Interrupted> {
        let claims = stream::iter(self.handles.drain(..))
            .map(async |mut handle| {
                let claim = handle.claim_in(world, arrival).await;
                (handle, claim)
            })
            .buffer_unordered(PIPELINED)
            .collect::<Vec<_>>()
            .await;
        let mut interrupted = false;
        for (handle, claim) in claims {
            match claim {
                Ok(Claim::Held) => self.handles.push(handle),
                Ok(Claim::Excused(_)) => self.remember(&handle, handle.file_left(false)),
                Ok(Claim::Lost(_)) => self.remember(&handle, handle.file_in_doubt()),
                Err(Interrupted) => {
                    interrupted = true;
                    self.handles.push(handle);
                }
            }
        }
        if interrupted {
            return Err(Interrupted);
        }

        let mut index = 0;
        while let Some(handle) = self.handles.get_mut(index) {
            self.names_used += 1;
            let spare_name = format!("{}-{}", self.name, self.names_used);
            let thorough = self.rng.random_ratio(1, 4);
            match handle.verify(spare_name, thorough).await? {
                Ok(()) => index += 1,
                Err(what) => {
                    let handle = self.handles.swap_remove(index);
                    world.oracle.violation(Breach::Lost, what, Some(&handle.history));
                    self.remember(&handle, handle.file_in_doubt());
                }
            }
        }
        while let Some(unanswered) = self.unanswered.last() {
            let file = settle(world, arrival, unanswered).await?;
            self.unanswered.pop();
            self.closed.extend(file);
        }
        Ok(())
    }

    /// Does one thing after the other until everybody is to stand still.
    async fn work(&mut self, world: &World, arrival: &Arrival) -> Result<(), Interrupted> {
        loop {
            match world.phase() {
                Phase::Work => {}
                // Leaves the machine to those who are on their way back.
                Phase::Gather => {
                    world.phase_after(Phase::Gather).await;
                    continue;
                }
                Phase::Still | Phase::End => return Ok(()),
            }
            world.seat(self.client, |seat| seat.held[self.index] = self.handles.len());
            if self.handles.len() < self.opens {
                self.open(world, arrival).await?;
                continue;
            }
            match self.rng.random_range(0..10) {
                0..2 => self.close(world).await?,
                2 => self.delete(world, arrival).await?,
                _ => self.act(world).await?,
            }
            time::sleep(Duration::from_millis(self.rng.random_range(0..PAUSE_MAX_MS))).await;
        }
    }

    /// Opens a new file, one that was closed, or one that others have open too.
    async fn open(&mut self, world: &World, arrival: &Arrival) -> Result<(), Interrupted> {
        let is_certain = |file: &KnownFile| {
            file.presence == Presence::Must && file.paths.len() == 1 && file.contents.len() == 1
        };
        let may_reopen = self.closed.front().is_some_and(is_certain);
        let (kind, mut file) = if self.rng.random_ratio(1, 20) {
            let path = shared_file(&self.group, self.rng.random_range(0..SHARED_FILES));
            (Kind::shared(), self.new_file(world, path))
        } else if may_reopen && self.rng.random_ratio(1, 4) {
            let mut file = self.closed.pop_front().expect("there is one");
            file.history.note("to be opened again");
            (Kind::random(&mut self.rng), file)
        } else {
            let path = self.new_name();
            (Kind::random(&mut self.rng), self.new_file(world, path))
        };
        let path = file.paths[0].clone();
        match answer(arrival.tree.create(kind.request(&path)).await) {
            Err(interrupted) => {
                file.presence = if kind.delete_on_close { Presence::May } else { file.presence };
                let (deletes, shared) = (kind.delete_on_close, kind.shared);
                self.unanswered.push(Unanswered { file, deletes, shared });
                Err(interrupted)
            }
            Ok(Err(err)) => {
                let what = format!("node {}: {path} ({kind}): {err}", arrival.node);
                world.oracle.violation(Breach::Unavailable, what, Some(&file.history));
                Ok(())
            }
            Ok(Ok(open)) => {
                if open.is_durable() != kind.is_durable() {
                    let what = format!("{path} ({kind}): durable is not {}", kind.is_durable());
                    world.oracle.violation(Breach::Unavailable, what, Some(&file.history));
                }
                let contents = file.contents.swap_remove(0);
                let handle = Handle::granted(world, arrival, kind, path, open, contents);
                world.oracle.count(|account| account.acknowledged += u64::from(handle.is_durable()));
                self.handles.push(handle);
                Ok(())
            }
        }
    }

    fn new_file(&self, world: &World, path: String) -> KnownFile {
        let (_, history) = world.oracle.register();
        KnownFile { paths: vec![path], contents: vec![Vec::new()], presence: Presence::May, history }
    }

    fn random_handle(&mut self) -> usize {
        self.rng.random_range(0..self.handles.len())
    }

    async fn act(&mut self, world: &World) -> Result<(), Interrupted> {
        let index = self.random_handle();
        let spare_name = self.new_name();
        let done = self.handles[index].act(&mut self.rng, spare_name).await?;
        self.take_note(world, index, done);
        Ok(())
    }

    /// A refusal of what cannot be refused: the open is gone.
    fn take_note(&mut self, world: &World, index: usize, done: Result<(), String>) {
        if let Err(what) = done {
            let handle = self.handles.swap_remove(index);
            world.oracle.violation(Breach::Lost, what, Some(&handle.history));
            self.remember(&handle, handle.file_in_doubt());
        }
    }

    async fn close(&mut self, world: &World) -> Result<(), Interrupted> {
        let index = self.random_handle();
        let done = self.handles[index].close().await?;
        let closed = done.is_ok();
        self.take_note(world, index, done);
        if closed {
            world.oracle.count(|account| account.closed += 1);
            let handle = self.handles.swap_remove(index);
            self.remember(&handle, handle.file_left(true));
        }
        Ok(())
    }

    /// Keeps in mind what an open has left.
    fn remember(&mut self, handle: &Handle, file: KnownFile) {
        // Files that all clients open are nobody's.
        if !handle.is_shared() {
            self.closed.push_back(file);
        }
    }

    /// Deletes a closed file, if there are too many.
    async fn delete(&mut self, world: &World, arrival: &Arrival) -> Result<(), Interrupted> {
        let Some(file) = self.closed.front() else { return Ok(()) };
        if self.closed.len() <= CLOSED_MAX || file.presence != Presence::Must || file.paths.len() > 1 {
            // What is not known for sure stays as it is; it is compared with the disk in any case.
            self.closed.rotate_left(1);
            return Ok(());
        }
        let request = CreateRequest::new(&file.paths[0]);
        let deleted = async {
            let open = arrival.tree.create(request).await?;
            open.set_delete_pending(true).await?;
            open.close().await
        };
        let result = answer(deleted.await);
        let file = self.closed.front_mut().expect("there was one");
        match result {
            Err(interrupted) => {
                file.presence = Presence::May;
                file.history.note("delete: no answer");
                Err(interrupted)
            }
            Ok(Err(err)) => {
                let what = format!("delete {}: {err}", file.paths[0]);
                world.oracle.violation(Breach::Unavailable, what, Some(&file.history));
                file.presence = Presence::May;
                Ok(())
            }
            Ok(Ok(())) => {
                file.presence = Presence::MustNot;
                file.history.note("deleted");
                Ok(())
            }
        }
    }

    /// Forgets the files that were found to be deleted.
    fn forget_the_deleted(&mut self) {
        self.closed.retain(|file| file.presence != Presence::MustNot);
    }

    /// Everything that it knows.
    fn tell(&self, known: &mut Known) {
        known.files.extend(self.handles.iter().map(Handle::file));
        known.files.extend(self.closed.iter().cloned());
        known.held.extend(self.handles.iter().map(|handle| (handle.id, handle.claim_request())));
    }
}

/// Finds out what became of a CREATE without an answer, by opening the file in a way that ends whatever open was made.
/// Returns what is known of the file then, unless that is still the same.
async fn settle(
    world: &World,
    arrival: &Arrival,
    unanswered: &Unanswered,
) -> Result<Option<KnownFile>, Interrupted> {
    let mut file = unanswered.file.clone();
    if unanswered.shared {
        // Nobody may end the others' opens, and nobody is bothered by one more.
        return Ok(None);
    }
    // Contradicts whatever open was made, and so ends it.
    let request = CreateRequest { share_access: ShareAccess::NONE, ..CreateRequest::new(&file.paths[0]) };
    let opened = async { arrival.tree.create(request).await?.close().await };
    match answer(opened.await)? {
        Ok(()) => {
            file.presence = Presence::Must;
            if unanswered.deletes {
                // The open that was made deleted it, or there was none.
                file.contents.push(Vec::new());
            }
        }
        Err(err) if err.status() == Some(NtStatus::DELETE_PENDING) => {}
        Err(err) => {
            let what = format!("{}: an open nobody knows of is in the way: {err}", file.paths[0]);
            world.oracle.violation(Breach::Unavailable, what, Some(&file.history));
        }
    }
    Ok(Some(file))
}

impl Handle {
    /// Claims it, and says so in the account.
    async fn claim_in(&mut self, world: &World, arrival: &Arrival) -> Result<Claim, Interrupted> {
        let (node, confirmed) = (self.node(), self.confirmed());
        let claim = self.claim(world, arrival).await?;
        match &claim {
            Claim::Held => world.oracle.reclaimed(node, confirmed),
            Claim::Excused(excuse) => world.oracle.excused(node, confirmed, *excuse),
            Claim::Lost(what) => world.oracle.lost(node, confirmed, what.clone(), &self.history),
        }
        Ok(claim)
    }
}
