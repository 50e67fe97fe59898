//! The SMB service of this node through its incarnations: registered, reattached, fenced, declared down.
//!
//! One start of `smbd` is one *instance*, which it names itself, and becomes one *incarnation* by being registered
//! in the log. The two ends of an incarnation are both here: its last process has ended, and this sidecar says so
//! (`NodeDown`, within milliseconds); or the cluster has declared it down, and its processes are ended.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as SyncMutex};
use std::time::Duration;

use frame::{Database, NodeSlot, PageWriter, Reply, TdbError};
use samba::Layout;
use samba::databases::Location;
use samba::tdb::Tdb;
use statedb::{Arbiter, Instance, NodeId, NodeState, Open, Owner, ShareName};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::capture::Capture;
use super::connection::{Change, Connection, ConnectionError, Hello, Question};
use super::gate::{Gate, HELD_AT_MOST, Verdict};
use super::keys;
use super::left_behind::LeftBehind;
use super::look::{Lookout, Smbd};
use super::processes::{Processes, is_doomed, is_going};
use super::reconcile::{Found, Reconciled, Reconciler, Reports};
use super::tracker::Tracker;
use super::tree_connects::{TreeConnect, TreeConnects};
use super::{recoveries, stale_records};
use crate::config::{Config, SambaConfig, Timing};
use crate::lease::ServiceLease;
use crate::proposer::RequestError;
use crate::raft::RaftNode;
use crate::registration::{self, Registered};

/// After an attempt to accept a connection that has failed.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How many ended instances are remembered, so that a process of one that is slow to die does not register it
/// anew. Each takes a restart of `smbd`.
const ENDED_INSTANCES_MAX: usize = 1024;

/// When a process ends, this is how long the others may take to end too, if it is the whole service that dies. All
/// get their signals within microseconds; the last one is buried within milliseconds.
const DEATH_SETTLES_WITHIN: Duration = Duration::from_secs(1);

/// How long the children of a main process that has ended may take to follow it. They do so by themselves, and give up
/// their clients in good order. Meanwhile nobody can connect to this node, nor to another one for its shares.
const CHILDREN_FOLLOW_WITHIN: Duration = Duration::from_secs(5);

/// How long a tree connect waits under CTDB while its record is locked, after it has waited without the lock. CTDB does not
/// recover, and so nothing is put in place, while there is always somebody who holds a lock.
const SETTLED_UNDER_LOCK_WITHIN: Duration = Duration::from_millis(500);

/// How often a process that is about to end is looked at while somebody waits for what it leaves.
const LOOK_AT_THE_DYING_EVERY: Duration = Duration::from_millis(2);

/// Orphans that are waiting to be closed because somebody has their files. More of them are tried again.
const CONTRADICTED_MAX: usize = 1024;

/// Deleted files that wait to be reported. More are deleted when there is room again.
const DELETED_MAX: usize = 1024;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Connections that are accepted and not yet welcome. The socket is open to everybody, and each connection costs a
/// file descriptor: whoever says nothing must not take those that the log and the peers need.
const NOT_WELCOME_YET_MAX: usize = 256;

/// Where in the run directory it is noted who is in which share.
const TREE_CONNECTS_DIR: &str = "tree-connects";

/// Why the sidecar cannot serve the `smbd` beside it.
#[derive(Debug, thiserror::Error)]
pub enum SmbServiceError {
    /// The run directory cannot be used.
    #[error("cannot {operation} {path}; the sidecar needs its run directory ([samba] run_dir) to itself")]
    RunDir {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The shared page cannot be used.
    #[error("cannot use the page that smbd and the sidecar share")]
    Page(#[from] frame::PageError),
    /// smbd is missing, or not one that is known.
    #[error("cannot serve the smbd on this node")]
    Version(#[from] samba::version::VersionError),
    /// libtdb is missing.
    #[error("cannot write to the databases of the smbd on this node")]
    Libtdb(#[from] samba::tdb::LibtdbError),
    /// smb.conf is missing, or not fit for what is promised.
    #[error("cannot serve the smbd on this node as it is configured")]
    Configuration(#[from] samba::config::ConfigError),
}

/// The service beside this node.
#[derive(Debug)]
pub struct SmbService {
    raft: Arc<RaftNode>,
    lease: Arc<ServiceLease>,
    tracker: Arc<Tracker>,
    reconciled: Reconciled,
    found: watch::Receiver<Option<Found>>,
    left_behind: Arc<LeftBehind>,
    lookout: Arc<Lookout>,
    node: NodeId,
    timing: Timing,
    settings: Arc<Settings>,
    /// The incarnation that lives. Locked while one is registered, so that processes of one instance do not
    /// register it twice.
    current: Mutex<Option<Arc<Incarnation>>>,
    /// The same, to be ended without waiting for that lock.
    living: SyncMutex<Option<(Owner, CancellationToken)>>,
    ended: SyncMutex<BTreeSet<Instance>>,
    run_dir: PathBuf,
    /// Held as long as this lives: a second sidecar must not write to the same page.
    _run_dir_lock: File,
}

/// What the `smbd` on this node is like.
#[derive(Debug)]
pub struct Settings {
    /// How its records look.
    pub layout: Layout,
    /// What its smb.conf says.
    pub samba: samba::config::SambaConfig,
    /// Shares that are left alone, `IPC$` among them.
    pub unprotected: BTreeSet<ShareName>,
    /// The library that keeps its records.
    pub libtdb: Tdb,
}

impl Settings {
    fn ask(config: &SambaConfig) -> Result<Self, SmbServiceError> {
        let version = samba::SambaVersion::of_smbd(&config.smbd)?;
        let layout = Layout::for_version(&version)?;
        let mut unprotected: BTreeSet<_> =
            config.unprotected_shares.iter().map(|name| ShareName::new(name)).collect();
        unprotected.insert(ShareName::new("IPC$"));
        let is_protected = |share: &ShareName| !unprotected.contains(share);
        let samba = samba::config::SambaConfig::read(&config.testparm, &config.smb_conf, is_protected)?;
        let is_clustered = samba.clustering.is_some();
        info!(%version, ?layout, is_clustered, lock_directory = %samba.lock_directory.display(), "smbd is one that is known");
        Ok(Self { layout, samba, unprotected, libtdb: Tdb::load()? })
    }

    /// Whether this smbd is one of a CTDB cluster, and has its records in common with the others.
    #[must_use]
    pub fn is_clustered(&self) -> bool {
        self.samba.clustering.is_some()
    }

    /// Where its databases are.
    #[must_use]
    pub fn location(&self) -> Location {
        match &self.samba.clustering {
            Some(clustering) => Location::Clustered { socket: clustering.ctdbd_socket.clone() },
            None => Location::Plain { lock_directory: self.samba.lock_directory.clone() },
        }
    }

    /// Who decides between its opens and those of others.
    fn arbiter(&self) -> Arbiter {
        if self.is_clustered() { Arbiter::SmbCluster } else { Arbiter::SmbServer }
    }

    /// Whether a protected share has this path.
    #[must_use]
    pub fn protects(&self, service_path: &str) -> bool {
        self.samba.shares_at(service_path).any(|share| !self.unprotected.contains(share))
    }
}

/// One start of the SMB service, registered.
#[derive(Debug)]
struct Incarnation {
    instance: Instance,
    owner: Owner,
    /// The process that accepts clients and forks one process for each.
    main_process: u32,
    processes: Arc<Processes>,
    gate: Arc<Gate>,
    reconciled: Reconciled,
    capture: Arc<Capture>,
    /// Whether it is known which process has which open. After a restart of this sidecar the records tell.
    is_known: watch::Sender<bool>,
    /// Cancelled when it is over, for whichever reason.
    ended: CancellationToken,
}

impl SmbService {
    /// Looks at the Samba beside this node, and prepares the run directory.
    ///
    /// # Errors
    ///
    /// If this Samba cannot be served, with what to change.
    pub fn prepare(
        config: &Config,
        samba: &SambaConfig,
        raft: Arc<RaftNode>,
        lease: Arc<ServiceLease>,
        stop: &CancellationToken,
    ) -> Result<(Arc<Self>, UnixListener), SmbServiceError> {
        // Other tasks, Raft's among them, do not wait for an smbd that takes its time to answer.
        let settings = Arc::new(tokio::task::block_in_place(|| Settings::ask(samba))?);
        std::fs::create_dir_all(&samba.run_dir).map_err(|source| SmbServiceError::RunDir {
            operation: "make",
            path: samba.run_dir.clone(),
            source,
        })?;
        let run_dir_lock = lock_run_dir(&samba.run_dir)?;
        let timing = config.cluster.timing;
        let limits = frame::Limits {
            // Two looks within a heartbeat: a fenced process ends as late as that after the word came.
            fence_tick_ns: u64::try_from(timing.heartbeat_interval().as_nanos() / 2).unwrap_or(u64::MAX),
            open_global_durable_min_len: samba::allocator::open_global_durable_min_len(settings.layout),
        };
        let mut page = PageWriter::open(&samba.run_dir.join(frame::PAGE_FILE), limits)?;
        page.set_locking_prelude(samba::records::LOCKING_PRELUDE);
        let tracker = Tracker::new(page);
        // The nodes of a ctdb cluster look for free ids in one database.
        if !settings.is_clustered() {
            let slot =
                NodeSlot::new(config.slot()).expect("a configuration has no more nodes than there are slots");
            tracker.set_allocator(slot, &samba::allocator::in_use_record(settings.layout))?;
        }
        raft.read(|state| tracker.replace_all(state.opens().map(|open| &open.description)));
        let listener = listen(&samba.run_dir.join(frame::SOCKET_FILE))?;

        let tracker = Arc::new(tracker);
        let node = NodeId(config.node.id);
        let left_behind = Arc::new(LeftBehind::default());
        let (contradicted, to_close) = mpsc::channel(CONTRADICTED_MAX);
        let (deleted, to_report) = mpsc::channel(DELETED_MAX);
        let (catch_up, asked) = mpsc::channel(1);
        let reconciler = Reconciler::new(
            Arc::clone(&raft),
            Arc::clone(&tracker),
            Arc::clone(&lease),
            Arc::clone(&left_behind),
            Arc::clone(&settings),
            Reports { contradicted, deleted, catch_up },
        );
        let (reconciled, found) = (reconciler.reconciled(), reconciler.found());
        tokio::spawn(reconciler.run(stop.clone()));
        let lookout =
            Arc::new(Lookout::new(Arc::clone(&raft), Arc::clone(&lease), node, timing, reconciled.clone()));
        if let Location::Clustered { socket } = settings.location() {
            tokio::spawn(Arc::clone(&lookout).run(Arc::clone(&tracker), stop.clone()));
            let keep_out = stale_records::keep_out(socket.clone(), Arc::clone(&lease), stop.clone());
            tokio::spawn(keep_out);
            tokio::spawn(recoveries::watch(socket, Arc::clone(&left_behind), stop.clone()));
        }
        tokio::spawn(Arc::clone(&lookout).close_contradicted(to_close));
        tokio::spawn(Arc::clone(&lookout).report_deleted(to_report));
        tokio::spawn(Arc::clone(&lookout).catch_up_for(asked));
        let service = Self {
            raft,
            lease,
            tracker,
            reconciled,
            found,
            left_behind,
            lookout,
            node,
            timing,
            settings,
            current: Mutex::new(None),
            living: SyncMutex::default(),
            ended: SyncMutex::default(),
            run_dir: samba.run_dir.clone(),
            _run_dir_lock: run_dir_lock,
        };
        Ok((Arc::new(service), listener))
    }

    /// Accepts processes until `stop` is cancelled.
    pub async fn run(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        tokio::spawn(Arc::clone(&self).pass_lease_on(stop.clone()));
        let not_welcome_yet = Arc::new(Semaphore::new(NOT_WELCOME_YET_MAX));
        let accept = async || {
            let permit = Arc::clone(&not_welcome_yet).acquire_owned().await;
            (listener.accept().await, permit.expect("the semaphore is never closed"))
        };
        loop {
            let (accepted, permit) = tokio::select! {
                accepted = accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let service = Arc::clone(&self);
                    tokio::spawn(async move {
                        if let Err(error) = service.serve(stream, permit).await {
                            warn!(error = %crate::telemetry::chain(&error), "a connection of smbd is closed");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely. Others may be closed meanwhile.
                    error!(%error, "cannot accept a connection of smbd");
                    tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                }
            }
        }
    }

    /// What it can say of the records of opens to other nodes.
    #[must_use]
    pub fn lookout(&self) -> Arc<Lookout> {
        Arc::clone(&self.lookout)
    }

    /// The cluster has declared this incarnation down.
    pub fn fence(&self, owner: Owner) {
        error!(incarnation = %owner.incarnation, "this node was declared down: its smbd processes are ended");
        self.lease.end(owner);
        self.tracker.unbind();
        let living = self.living.lock().expect("no holder of this lock can panic");
        if let Some((_, ended)) = living.as_ref().filter(|(living, _)| *living == owner) {
            ended.cancel();
        }
    }

    /// Shows every extension of the lease to the processes.
    async fn pass_lease_on(self: Arc<Self>, stop: CancellationToken) {
        let mut until = self.lease.until();
        loop {
            tokio::select! {
                changed = until.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            let until = *until.borrow_and_update();
            if let Some(until) = until {
                self.tracker.extend_lease(until);
            }
        }
    }

    /// Serves one process. `not_welcome_yet` is given back when it is.
    async fn serve(
        self: &Arc<Self>,
        stream: UnixStream,
        not_welcome_yet: OwnedSemaphorePermit,
    ) -> Result<(), ConnectionError> {
        let mut connection = Connection::new(stream)?;
        let pid = connection.pid();
        let hello = connection.hello().await?;
        if hello.protocol != frame::frame::PROTOCOL {
            error!(
                pid,
                theirs = hello.protocol,
                ours = frame::frame::PROTOCOL,
                "the preloaded library is of another version than this sidecar: install both from one release and restart smbd"
            );
            return connection.reply(&Reply::Refuse { tdb_error: TdbError::Io }).await;
        }
        let Some(incarnation) = self.join(&hello, &connection).await else {
            return connection.reply(&Reply::Fence).await;
        };
        self.watch_process(&incarnation, pid)?;
        connection.reply(&Reply::Welcome).await?;
        drop(not_welcome_yet);
        let served = self.answer(&incarnation, &mut connection).await;
        // What it asked last was decided after its end, perhaps: an open that it was granted then is nobody's. If it is
        // still on its way out, that is seen to at its end and not before: its records are those of a living process.
        if !incarnation.processes.has(pid) {
            incarnation.process_has_ended(pid).await;
        }
        served
    }

    /// Answers what a process asks until it closes its connection.
    async fn answer(
        &self,
        incarnation: &Incarnation,
        connection: &mut Connection,
    ) -> Result<(), ConnectionError> {
        let pid = connection.pid();
        while let Some(question) = connection.next_question().await? {
            let change = match question {
                Question::Change(change) => change,
                Question::Look { key } => {
                    let reply = match keys::open_of(&key) {
                        Some(open) if self.settings.is_clustered() => self.lookout.look(open).await,
                        Some(open) => {
                            incarnation.capture.let_go(open, pid, &incarnation.reconciled).await;
                            Reply::Proceed
                        }
                        None => Reply::Proceed,
                    };
                    connection.reply(&reply).await?;
                    continue;
                }
                Question::Knock => {
                    self.lookout.deletions_are_made().await;
                    if self.settings.is_clustered() {
                        // Which share this is about is not known yet. Who would still have to wait is refused when it is.
                        let _ = incarnation.bereavements_settled(None, HELD_AT_MOST).await;
                    }
                    connection.reply(&Reply::Proceed).await?;
                    continue;
                }
                Question::Position { share_file_id, position } => {
                    let reply = incarnation.capture.position_set(pid, share_file_id, position).await;
                    connection.reply(&reply).await?;
                    continue;
                }
                Question::Break { receiver, message } => {
                    let reply = incarnation.capture.break_asked(receiver, &message, connection).await?;
                    connection.reply(&reply).await?;
                    continue;
                }
            };
            let reply = match incarnation.decide(&self.settings, change, connection).await? {
                Ok(Some(reply)) => reply,
                Ok(None) => continue,
                Err(RequestError::Ended) => Reply::Fence,
                Err(error @ (RequestError::Refused { .. } | RequestError::AnswerLost)) => {
                    error!(pid, %error, "a change that smbd wanted to make is refused");
                    Reply::Refuse { tdb_error: TdbError::Io }
                }
            };
            connection.reply(&reply).await?;
        }
        Ok(())
    }

    /// The incarnation of an instance, registered now if it is new. `None` if it must end.
    async fn join(self: &Arc<Self>, hello: &Hello, connection: &Connection) -> Option<Arc<Incarnation>> {
        let instance = Instance(hello.instance);
        let mut current = self.current.lock().await;
        if let Some(incarnation) = current.as_ref()
            && incarnation.instance == instance
            && !incarnation.ended.is_cancelled()
        {
            return Some(Arc::clone(incarnation));
        }
        if self.ended.lock().expect("no holder of this lock can panic").contains(&instance) {
            return None;
        }
        let known = self.raft.read(|state| state.node(self.node).map(|node| (node.instance, node.state)));
        let reattaches = known == Some((instance, NodeState::Up));
        let uid = connection.uid();
        if !reattaches && uid != 0 && uid != nix::unistd::geteuid().as_raw() {
            warn!(
                pid = connection.pid(),
                uid, "a stranger says that it is smbd: neither root nor this sidecar's user"
            );
            return None;
        }
        match current.take() {
            Some(before) => before.end_processes(self.timing.self_fence_after()).await,
            // Processes that an earlier run of this sidecar let in may still be there. Without a lease they end.
            None if known.is_some_and(|(_, state)| state == NodeState::Up) && !reattaches => {
                self.tracker.unbind();
                tokio::time::sleep(self.timing.self_fence_after()).await;
            }
            None => {}
        }
        let incarnation = self.register(instance, hello.main_process).await?;
        *current = Some(Arc::clone(&incarnation));
        Some(incarnation)
    }

    async fn register(self: &Arc<Self>, instance: Instance, main_process: u32) -> Option<Arc<Incarnation>> {
        let tree_connects = match TreeConnects::open(&self.run_dir.join(TREE_CONNECTS_DIR), instance) {
            Ok(tree_connects) => tree_connects,
            Err(error) => {
                error!(run_dir = %self.run_dir.display(), %error, "smbd is sent away: who is in which share cannot be noted");
                return None;
            }
        };
        let Some(registered) =
            registration::register(&self.raft, self.node, instance, self.settings.arbiter()).await
        else {
            self.remember_ended(instance);
            return None;
        };
        let Registered { owner, proposer, ended } = registered;
        let mine: Vec<Open> = self
            .raft
            .read(|state| state.opens().filter(|open| open.holder() == Some(owner)).cloned().collect());
        info!(incarnation = %owner.incarnation, opens = mine.len(), "smbd is registered");
        let gate = Arc::new(Gate::new(
            Arc::clone(&self.raft),
            Arc::clone(&proposer),
            self.reconciled.clone(),
            self.timing.verdict_within(),
            self.settings.is_clustered(),
            tree_connects,
        ));
        let incarnation = Arc::new(Incarnation {
            instance,
            owner,
            main_process,
            capture: Arc::new(Capture::new(
                proposer,
                Arc::clone(&self.raft),
                Arc::clone(&self.tracker),
                Arc::clone(&gate),
                Arc::clone(&self.settings),
                Arc::clone(&self.left_behind),
                mine,
            )),
            gate,
            reconciled: self.reconciled.clone(),
            processes: Arc::default(),
            is_known: watch::Sender::new(false),
            ended,
        });
        self.left_behind.clear();
        self.lookout.begin(Smbd {
            owner,
            main_process,
            capture: Arc::clone(&incarnation.capture),
            ended: incarnation.ended.clone(),
        });
        *self.living.lock().expect("no holder of this lock can panic") =
            Some((owner, incarnation.ended.clone()));
        self.lease.begin(owner);
        let mut until = self.lease.until();
        let until = tokio::select! {
            until = until.wait_for(Option::is_some) => until.ok().and_then(|until| *until)?,
            () = incarnation.ended.cancelled() => return None,
        };
        self.tracker.bind(instance, until);
        // It need not say anything for hours, and as long as it lives there is somebody to serve clients.
        match self.watch_process(&incarnation, main_process) {
            Ok(()) => drop(tokio::spawn(Arc::clone(&incarnation).end_children())),
            Err(error) => warn!(main_process, %error, "the main process of smbd cannot be watched"),
        }
        tokio::spawn(Arc::clone(self).take_stock(Arc::clone(&incarnation)));
        tokio::spawn(Arc::clone(self).attend(Arc::clone(&incarnation)));
        Some(incarnation)
    }

    /// Learns from the records which process has which open; news only after a restart of this sidecar.
    async fn take_stock(self: Arc<Self>, incarnation: Arc<Incarnation>) {
        let mut found = self.found.clone();
        let of_this = |found: &Option<Found>| {
            found.as_ref().is_some_and(|found| found.incarnation == incarnation.owner)
        };
        let found = tokio::select! {
            found = found.wait_for(of_this) => found.ok().and_then(|found| found.clone()),
            () = incarnation.ended.cancelled() => return,
        };
        let mut processes =
            incarnation.capture.take_stock(found.map(|found| found.opens).unwrap_or_default());
        processes.extend(incarnation.gate.processes());
        for process in processes {
            match self.watch_process(&incarnation, process) {
                Ok(()) => {}
                // Ended while there was no sidecar.
                Err(_) => incarnation.process_has_ended(process).await,
            }
        }
        incarnation.is_known.send_replace(true);
        if incarnation.gate.release_deserted().await.is_err() {
            debug!("the incarnation is over before it could give up what nobody uses");
        }
    }

    /// Waits for the end of an incarnation, and draws the conclusions.
    async fn attend(self: Arc<Self>, incarnation: Arc<Incarnation>) {
        let owner = incarnation.owner;
        tokio::select! {
            () = incarnation.processes.first_and_last() => {
                warn!(incarnation = %owner.incarnation, "the last smbd process has ended, this node is down");
                self.conclude(&incarnation);
                // Nobody is left who could serve, so nothing has to be waited for.
                registration::declare_down(&self.raft, owner).await;
            }
            () = incarnation.ended.cancelled() => {
                self.conclude(&incarnation);
                incarnation.processes.kill_all();
            }
        }
    }

    fn conclude(&self, incarnation: &Incarnation) {
        incarnation.ended.cancel();
        self.remember_ended(incarnation.instance);
        self.lease.end(incarnation.owner);
    }

    fn watch_process(self: &Arc<Self>, incarnation: &Arc<Incarnation>, pid: u32) -> io::Result<()> {
        let Some(ended) = incarnation.processes.watch(pid)? else { return Ok(()) };
        let incarnation = Arc::clone(incarnation);
        tokio::spawn(async move {
            ended.await;
            incarnation.process_has_ended(pid).await;
        });
        Ok(())
    }

    fn remember_ended(&self, instance: Instance) {
        let mut ended = self.ended.lock().expect("no holder of this lock can panic");
        if ended.len() >= ENDED_INSTANCES_MAX {
            ended.pop_first();
        }
        ended.insert(instance);
    }
}

impl Incarnation {
    /// Ends what outlives the main process, such as a child that hangs: it would keep shares from the nodes that can serve
    /// them.
    async fn end_children(self: Arc<Self>) {
        let outlived = async {
            self.processes.without(self.main_process).await;
            tokio::time::sleep(CHILDREN_FOLLOW_WITHIN).await;
        };
        tokio::select! {
            () = outlived => {
                let left = self.processes.count();
                warn!(incarnation = %self.owner.incarnation, left, "the main process of smbd has ended, and its children have not: they are ended");
                // The end of the last one is the end of the incarnation.
                self.processes.kill_all();
            }
            () = self.ended.cancelled() => {}
        }
    }

    /// Sees to what a process has left that has ended. A process may be seen to several times.
    async fn process_has_ended(&self, pid: u32) {
        if is_doomed(self.main_process) {
            // The whole service is going down, and what this process had waits for its clients elsewhere; unless the
            // others live on.
            tokio::select! {
                () = tokio::time::sleep(DEATH_SETTLES_WITHIN) => {}
                () = self.ended.cancelled() => {}
            }
        }
        if self.ended.is_cancelled() || is_going(self.main_process) {
            return;
        }
        let left = async {
            self.capture.process_ended(pid).await?;
            self.gate.leave_all(pid).await
        };
        if left.await.is_err() {
            debug!(pid, "a process of an incarnation that is over has ended");
        }
    }

    /// Waits until what processes have left behind that died alone is where their clients find it, in a share or in all;
    /// false if that takes too long. A client that is back before its process is buried waits here.
    async fn bereavements_settled(&self, share: Option<&ShareName>, within: Duration) -> bool {
        let settled = async {
            // The sender lives in `self`, so the wait cannot end with an error.
            let _ = self.is_known.subscribe().wait_for(|is_known| *is_known).await;
            while self.capture.processes_of(share).into_iter().any(is_going) {
                tokio::time::sleep(LOOK_AT_THE_DYING_EVERY).await;
            }
            self.reconciled.through(share, self.capture.bereaved_at()).await;
        };
        tokio::time::timeout(within, settled).await.is_ok()
    }

    /// What a process is told about a change that it wants to make; `None` if it has given the change up itself.
    async fn decide(
        &self,
        settings: &Settings,
        change: Change,
        connection: &mut Connection,
    ) -> Result<Result<Option<Reply>, RequestError>, ConnectionError> {
        let pid = connection.pid();
        match change {
            Change::Store { database: Database::TconGlobal, key, value, .. } => {
                let connect = TreeConnect { process: pid, record: key };
                Ok(self.tree_connect(settings, connect, &value).await.map(Some))
            }
            Change::Delete { database: Database::TconGlobal, key } => {
                let connect = TreeConnect { process: pid, record: key };
                Ok(self.gate.leave(&connect).await.map(|()| Some(Reply::Proceed)))
            }
            change => self.capture.decide(change, connection).await,
        }
    }

    async fn tree_connect(
        &self,
        settings: &Settings,
        connect: TreeConnect,
        value: &[u8],
    ) -> Result<Reply, RequestError> {
        let pid = connect.process;
        let record = match samba::records::TconGlobal::decode(settings.layout, value) {
            Ok(record) => record,
            Err(error) => {
                error!(pid, error = %crate::telemetry::chain(&error), "a tree connect's record cannot be understood, the tree connect is refused");
                return Ok(Reply::Refuse { tdb_error: TdbError::Corrupt });
            }
        };
        // smbd stores the record twice, and says which share it is about only the second time.
        let share = ShareName::new(&record.share_name);
        if share.as_str().is_empty() || settings.unprotected.contains(&share) {
            return Ok(Reply::Proceed);
        }
        let within = if settings.is_clustered() { SETTLED_UNDER_LOCK_WITHIN } else { HELD_AT_MOST };
        if !self.bereavements_settled(Some(&share), within).await {
            warn!(%share, pid, "a tree connect is refused: opens of a process that has died are not in place yet; see the errors above");
            return Ok(Reply::Refuse { tdb_error: TdbError::Io });
        }
        Ok(match self.gate.enter(&share, connect).await? {
            Verdict::Enter => Reply::Proceed,
            // The client sees STATUS_FILE_LOCK_CONFLICT: somebody else has it, and it may try again.
            Verdict::ServedBy(_) => Reply::Refuse { tdb_error: TdbError::Lock },
            Verdict::Undecided => Reply::Refuse { tdb_error: TdbError::Io },
        })
    }

    /// Ends all processes and waits until they have: an incarnation may be superseded only when nobody serves in
    /// its name any more. Bounded, because the kernel ends them by then anyway.
    async fn end_processes(&self, self_fence_after: Duration) {
        self.ended.cancel();
        self.processes.kill_all();
        if tokio::time::timeout(self_fence_after, self.processes.all_ended()).await.is_err() {
            warn!(left = self.processes.count(), "processes of an earlier smbd have not ended yet");
        }
    }
}

/// Takes the run directory for this process alone, until the file is closed.
fn lock_run_dir(run_dir: &Path) -> Result<File, SmbServiceError> {
    let path = run_dir.join("lock");
    let failed = |operation, source| SmbServiceError::RunDir { operation, path: path.clone(), source };
    let file = File::create(&path).map_err(|source| failed("make", source))?;
    file.try_lock().map_err(|error| failed("lock (is another sidecar running?)", error.into()))?;
    Ok(file)
}

/// Listens for processes. A socket that an earlier run left behind is in the way, and is removed.
fn listen(path: &Path) -> Result<UnixListener, SmbServiceError> {
    let failed =
        |operation| move |source| SmbServiceError::RunDir { operation, path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(error)),
        _ => {}
    }
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)
        .map_err(failed("make a socket at"))?;
    let address = socket2::SockAddr::unix(path).map_err(failed("make a socket at"))?;
    socket.bind(&address).map_err(failed("make a socket at"))?;
    // smbd may have become its client's user by the time it connects again; the instance is its proof.
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(path, everybody).map_err(failed("open to everybody the socket"))?;
    socket.listen(i32::try_from(BACKLOG).expect("a small number")).map_err(failed("listen at"))?;
    socket.set_nonblocking(true).map_err(failed("listen at"))?;
    UnixListener::from_std(socket.into()).map_err(failed("listen at"))
}
