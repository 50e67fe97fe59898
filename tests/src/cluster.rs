//! A whole cluster on loopback: sidecars, and beside each of them a real `smbd` that preloads the shim, with or
//! without a real `ctdbd`; and ways to hurt it. The same without Holdfast, as a control.
//!
//! Nodes are counted from 0, as everywhere in the harness; the cluster calls them by ids from 1 on. Each
//! sidecar is a process of its own, so that it can be killed, paused and restarted by itself. Everything dies
//! with the harness.

use std::{
    fs, io, iter,
    net::SocketAddr,
    ops::RangeInclusive,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use proto::pb::ops::v1::{HandlesRequest, StatusRequest, StatusResponse, ops_client::OpsClient};
use statedb::Open;
use tempfile::TempDir;
use tokio::time;
use tonic::transport::{Channel, Endpoint};

use crate::{
    ctdb::{CtdbAddresses, CtdbError, Ctdbd},
    net,
    process::{ProcessError, ProcessGroup, last_lines},
    relay::{Callers, Wires},
    samba::{SambaError, SambaSite, SambaTools, Smbd, SmbdOptions},
    smb_client::{Client, Credentials, Session, SmbError, Tree},
};

/// Makes a harness program behave as `holdfast`.
pub const RUN_AS: &str = "HOLDFAST_RUN_AS";

/// The value of [`RUN_AS`].
pub const RUN_AS_HOLDFAST: &str = "holdfast";

/// How long a cluster may take until it has a leader, or a node until it is up. Seconds are a slow machine,
/// more is a bug.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long one status request may take.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two looks at something that should become true.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

const WITHOUT_SAMBA: &str = "this cluster was started without Samba";

const NOT_PROTECTED: &str = "this cluster was started without Holdfast";

const WITHOUT_WIRES: &str = "this cluster was not started as one whose nodes can be cut off";

/// What the `smbd`s of a cluster know of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clustering {
    /// Nothing: a share has one serving node at a time.
    Separate,
    /// They are one clustered Samba, each with a `ctdbd` beside it.
    Ctdb,
}

/// What a cluster consists of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// How many nodes.
    pub nodes: usize,
    /// A program that calls [`crate::sidecar_main_if_asked`]: the running one, unless that is an integration
    /// test.
    pub program: PathBuf,
    /// Put an `smbd` beside each sidecar.
    pub samba: Option<SambaTools>,
    /// What these know of each other.
    pub clustering: Clustering,
    /// Tunables of CTDB where its defaults do not suit.
    pub ctdb_tunables: Vec<(&'static str, u32)>,
    /// Whether there is Holdfast: sidecars, and the shim in the `smbd`s. The control is without.
    pub protected: bool,
    /// Whether the nodes reach each other over wires that [`Cluster::cut_off`] can cut. These cost every message
    /// between nodes a little time, and CTDB has no cluster lock then.
    pub wires: bool,
    /// How many users may log in.
    pub users: usize,
    /// Names of further shares, each of a directory of its own, that Holdfast is to leave alone.
    pub unprotected_shares: Vec<String>,
    /// What the `smbd`s get beyond what they need.
    pub smbd: SmbdOptions,
    /// Values for `[cluster.timing]`, in milliseconds, where the defaults do not suit.
    pub timing: Vec<(&'static str, u64)>,
    /// Values for `[cluster.limits]` where the defaults do not suit.
    pub limits: Vec<(&'static str, u64)>,
    /// The sidecars' log filter.
    pub log: String,
}

impl ClusterOptions {
    /// Three nodes with Samba and the default timing.
    pub fn with_samba(program: impl Into<PathBuf>, samba: SambaTools) -> Self {
        Self { samba: Some(samba), ..Self::without_samba(program) }
    }

    /// Three sidecars alone.
    pub fn without_samba(program: impl Into<PathBuf>) -> Self {
        Self {
            nodes: 3,
            program: program.into(),
            samba: None,
            clustering: Clustering::Separate,
            ctdb_tunables: Vec::new(),
            protected: true,
            wires: false,
            users: 1,
            unprotected_shares: Vec::new(),
            smbd: SmbdOptions::default(),
            timing: Vec::new(),
            limits: Vec::new(),
            log: "info".to_owned(),
        }
    }

    /// Three nodes of one clustered Samba.
    pub fn with_ctdb(program: impl Into<PathBuf>, samba: SambaTools) -> Self {
        Self { clustering: Clustering::Ctdb, ..Self::with_samba(program, samba) }
    }

    /// The same nodes without Holdfast.
    #[must_use]
    pub fn unprotected(self) -> Self {
        Self { protected: false, ..self }
    }

    /// The same nodes, with wires between them that can be cut.
    #[must_use]
    pub fn with_wires(self) -> Self {
        Self { wires: true, ..self }
    }

    /// The same with time for nodes that have to share two busy cores with other tests: so much that no
    /// living node is taken for dead. For tests of what happens, not of how fast.
    #[must_use]
    pub fn patient(self) -> Self {
        let timing = vec![
            ("heartbeat_interval_ms", 100),
            ("election_timeout_min_ms", 300),
            ("election_timeout_max_ms", 600),
            ("self_fence_after_ms", 2_500),
            ("node_down_after_ms", 3_000),
        ];
        Self { timing, ..self }
    }

    /// The same with time enough to start a sidecar again, on such a machine, before its `smbd` is fenced.
    #[must_use]
    pub fn with_time_for_sidecars(self) -> Self {
        Self { timing: vec![("self_fence_after_ms", 8_000), ("node_down_after_ms", 10_000)], ..self }
    }
}

/// Why a cluster does not work as the harness wants it to.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file or directory could not be made.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The shim was not built.
    #[error("cannot find the library that smbd is to preload")]
    Shim(#[source] io::Error),
    /// See there.
    #[error(transparent)]
    Samba(#[from] SambaError),
    /// See there.
    #[error(transparent)]
    Ctdb(#[from] CtdbError),
    /// See there.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A relay to a sidecar could not be made.
    #[error("cannot listen at {address} for a sidecar")]
    Relay {
        /// Where.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// A sidecar ended although nobody told it to.
    #[error("the sidecar of node {node} ended with {status}; the end of its log:\n{log}")]
    SidecarEnded {
        /// The node's index.
        node: usize,
        /// How.
        status: std::process::ExitStatus,
        /// Its last words.
        log: String,
    },
    /// A sidecar did not answer.
    #[error("the sidecar of node {node} does not answer an operator")]
    NoAnswer {
        /// The node's index.
        node: usize,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something did not become true.
    #[error("after {timeout:?} there was still not {what}; the ends of the sidecars' logs:\n{logs}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// For how long.
        timeout: Duration,
        /// What the sidecars said last.
        logs: String,
    },
}

/// A running cluster. Dropping it kills it and removes its files.
#[derive(Debug)]
pub struct Cluster {
    // First, so that no process is left when the directories go.
    nodes: Vec<Node>,
    wires: Option<Wires>,
    program: PathBuf,
    protected: bool,
    site: Option<Arc<SambaSite>>,
    /// Data, run directories and logs of the sidecars.
    _dir: TempDir,
}

/// One node, whatever of it is running.
#[derive(Debug)]
struct Node {
    /// Where its sidecar listens.
    address: SocketAddr,
    config: PathBuf,
    /// Where an SMB server without a shim reaches the sidecar.
    handle_socket: PathBuf,
    log: PathBuf,
    sidecar: Option<ProcessGroup>,
    smbd: Option<Smbd>,
    ctdbd: Option<Ctdbd>,
    /// Stopped where it is; nobody starts anything there.
    is_paused: bool,
}

/// Where the processes of a cluster find each other.
struct Addresses {
    /// Where the sidecars listen.
    own: Vec<SocketAddr>,
    /// Where they reach each other: the same, if there are no wires.
    seen: Vec<SocketAddr>,
    ctdbds: Option<CtdbAddresses>,
}

impl Addresses {
    fn new(options: &ClusterOptions, wires: Option<&mut Wires>) -> Result<Self, ClusterError> {
        let endpoints = || (0..options.nodes).map(|_| net::free_endpoint()).collect::<Vec<_>>();
        let own = endpoints();
        let is_clustered = options.clustering == Clustering::Ctdb;
        let Some(wires) = wires else {
            let ctdbds = is_clustered.then(|| CtdbAddresses::direct(options.nodes));
            return Ok(Self { seen: own.clone(), own, ctdbds });
        };
        let seen = endpoints();
        for (node, (&own, &seen)) in own.iter().zip(&seen).enumerate() {
            let made = wires.lead_to(node, seen, own, Callers::Processes);
            made.map_err(|source| ClusterError::Relay { address: seen, source })?;
        }
        let ctdbds = is_clustered.then(|| CtdbAddresses::over(wires, options.nodes)).transpose()?;
        Ok(Self { own, seen, ctdbds })
    }
}

impl Cluster {
    /// Starts all nodes and returns when there is a leader and every node may serve.
    pub async fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        let dir = tempfile::Builder::new()
            .prefix("holdfast-cluster-")
            .tempdir()
            .map_err(prepare(&std::env::temp_dir()))?;
        // `smbd` processes that work for an ordinary user must reach the run directory.
        make_accessible(dir.path())?;
        let site = options.samba.clone().map(|tools| SambaSite::with_users(tools, options.users));
        let site = site.transpose()?.map(Arc::new);
        let mut wires = options.wires.then(Wires::default);
        let addresses = Addresses::new(&options, wires.as_mut())?;
        let nodes = (0..options.nodes)
            .map(|index| Node::prepare(index, dir.path(), &addresses, site.as_deref(), &options))
            .collect::<Result<_, _>>()?;
        let ClusterOptions { program, protected, .. } = options;
        let mut cluster = Self { nodes, wires, program, protected, site, _dir: dir };
        cluster.start_ctdbds().await?;
        if let (Some(site), Some(Node { smbd: Some(smbd), ctdbd: Some(_), .. })) =
            (&cluster.site, cluster.nodes.first())
        {
            site.create_clustered_users(smbd)?;
        }
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// How many nodes there are, running or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none, which is never so.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The share, its user and its files. May be kept while the cluster is changed.
    ///
    /// # Panics
    /// In a cluster without Samba, as all methods about Samba do.
    pub fn site(&self) -> Arc<SambaSite> {
        Arc::clone(self.site.as_ref().expect(WITHOUT_SAMBA))
    }

    /// Who may log in at every node.
    pub fn credentials(&self) -> Credentials {
        self.site().credentials()
    }

    /// Where a node's `smbd` listens.
    pub fn smb_address(&self, node: usize) -> SocketAddr {
        self.smbd(node).address()
    }

    /// What to tree connect to at a node.
    pub fn share(&self, node: usize) -> String {
        self.smbd(node).share()
    }

    /// Lets a client connect to a node, log in and enter the share.
    pub async fn connect(&self, client: &Client, node: usize) -> Result<(Session, Tree), SmbError> {
        let session = client.connect(self.smb_address(node)).await?;
        let share = session.tree_connect(&self.share(node)).await?;
        Ok((session, share))
    }

    /// A node's `smbd`.
    pub fn smbd(&self, node: usize) -> &Smbd {
        self.nodes[node].smbd.as_ref().expect(WITHOUT_SAMBA)
    }

    /// A node's `ctdbd`, if the cluster has any.
    pub fn ctdbd(&self, node: usize) -> Option<&Ctdbd> {
        self.nodes[node].ctdbd.as_ref()
    }

    /// Where a node's sidecar listens for its peers and for operators.
    pub fn address(&self, node: usize) -> SocketAddr {
        self.nodes[node].address
    }

    /// What an SMB server attaches to by TCP.
    pub fn sidecar(&self, node: usize) -> String {
        format!("http://{}", self.nodes[node].address)
    }

    /// What an SMB server attaches to by a unix socket.
    pub fn sidecar_socket(&self, node: usize) -> String {
        format!("unix:{}", self.nodes[node].handle_socket.display())
    }

    /// A node's configuration file.
    pub fn config_file(&self, node: usize) -> &Path {
        &self.nodes[node].config
    }

    /// Everything that a node's sidecars have logged.
    pub fn sidecar_log(&self, node: usize) -> String {
        fs::read_to_string(&self.nodes[node].log).unwrap_or_default()
    }

    /// What `holdfast samba check` says of a node, as JSON. `None` if it says nothing.
    pub fn samba_check(&self, node: usize) -> Option<serde_json::Value> {
        let shim = holdfast_tdb::built_library_path().ok()?;
        let mut command = Command::new(&self.program);
        command.env(RUN_AS, RUN_AS_HOLDFAST).args(["samba", "check", "--output", "json", "--config"]);
        let checked = command.arg(&self.nodes[node].config).arg("--shim").arg(shim).output().ok()?;
        serde_json::from_slice(&checked.stdout).ok()
    }

    /// Starts whatever is not running, and returns when there is a leader and every node may serve.
    pub async fn start_all(&mut self) -> Result<(), ClusterError> {
        self.start_ctdbds().await?;
        if self.protected {
            for node in 0..self.len() {
                self.start_sidecar(node)?;
            }
            self.leader().await?;
        }
        for node in 0..self.len() {
            self.start_smbd(node).await?;
        }
        Ok(())
    }

    /// Starts whatever of a node is not running, and returns when it is up again.
    pub async fn start_node(&mut self, node: usize) -> Result<(), ClusterError> {
        if let Some(ctdbd) = &mut self.nodes[node].ctdbd {
            ctdbd.start()?;
        }
        if self.protected {
            self.start_sidecar(node)?;
        }
        self.ctdb_recovered().await?;
        self.start_smbd(node).await
    }

    /// Starts every `ctdbd` that is not running, and returns when all are healthy.
    async fn start_ctdbds(&mut self) -> Result<(), ClusterError> {
        for Node { ctdbd, .. } in &mut self.nodes {
            ctdbd.as_mut().map_or(Ok(()), Ctdbd::start)?;
        }
        self.ctdb_recovered().await
    }

    /// Waits until every `ctdbd` that is running says that exactly those are healthy that are running, and that no
    /// recovery is under way. Without CTDB that is so.
    pub async fn ctdb_recovered(&mut self) -> Result<(), ClusterError> {
        let running = self.running_ctdbds();
        self.ctdbds_agree_on(&running).await
    }

    /// The same without one that runs and does not answer the others: it is paused or cut off, and given up by them.
    pub async fn ctdb_recovered_without(&mut self, lost: usize) -> Result<(), ClusterError> {
        let mut others = self.running_ctdbds();
        others.retain(|&node| node != lost);
        self.ctdbds_agree_on(&others).await
    }

    fn running_ctdbds(&mut self) -> Vec<usize> {
        let is_running = |node: &mut Node| node.ctdbd.as_mut().is_some_and(Ctdbd::is_running);
        (0..self.len()).filter(|&node| is_running(&mut self.nodes[node])).collect()
    }

    async fn ctdbds_agree_on(&mut self, nodes: &[usize]) -> Result<(), ClusterError> {
        for &node in nodes {
            let ctdbd = self.nodes[node].ctdbd.as_mut().expect("it is running");
            ctdbd.wait_until_healthy(nodes).await?;
        }
        Ok(())
    }

    /// Starts a node's sidecar, unless it is running, and does not wait for it.
    ///
    /// # Panics
    /// In a cluster without Holdfast.
    pub fn start_sidecar(&mut self, node: usize) -> Result<(), ClusterError> {
        assert!(self.protected, "{NOT_PROTECTED}");
        let Node { config, log, sidecar, .. } = &mut self.nodes[node];
        if sidecar.as_mut().is_some_and(ProcessGroup::is_running) {
            return Ok(());
        }
        let output = fs::File::options().create(true).append(true).open(&*log).map_err(prepare(log))?;
        let errors = output.try_clone().map_err(prepare(log))?;
        let mut command = Command::new(&self.program);
        command.env(RUN_AS, RUN_AS_HOLDFAST).args(["run", "--config"]).arg(config);
        command.stdout(output).stderr(errors);
        let process = ProcessGroup::spawn(command)?;
        if let Some(wires) = &self.wires {
            wires.note_process(node, process.pid());
        }
        *sidecar = Some(process);
        Ok(())
    }

    /// Starts a node's `smbd`, unless it is running or there is none, and returns when the cluster counts it
    /// as up. Where it ends meanwhile, fenced by a machine that is too busy for its heartbeats, it is started again, as
    /// a service manager does.
    pub async fn start_smbd(&mut self, node: usize) -> Result<(), ClusterError> {
        let (id, deadline) = (node_id(node), Instant::now() + READY_TIMEOUT);
        let mut newest = if self.protected { self.incarnation(node).await } else { 0 };
        loop {
            let Some(smbd) = &mut self.nodes[node].smbd else { return Ok(()) };
            // The cluster may not have heard yet that the last one is gone.
            let wanted = if smbd.is_running() { newest } else { newest + 1 };
            smbd.start().await?;
            if !self.protected {
                return Ok(());
            }
            while self.nodes[node].smbd.as_mut().is_some_and(Smbd::is_running) {
                let counted = self.status(node).await.is_ok_and(|status| {
                    status
                        .nodes
                        .iter()
                        .any(|node| node.node_id == id && node.up && node.incarnation >= wanted)
                });
                if counted {
                    return Ok(());
                }
                self.look_again(deadline, &format!("node {node} up")).await?;
            }
            newest = self.incarnation(node).await;
        }
    }

    /// Starts every `smbd` again that has ended by itself while its sidecar runs, as a service manager does with one that
    /// was fenced; the one of a paused node is paused too. Does not wait until the cluster counts it as up.
    pub async fn restart_fenced(&mut self) {
        for Node { smbd, sidecar, is_paused, .. } in &mut self.nodes {
            if let Some(smbd) = smbd
                && smbd.has_ended()
                && !*is_paused
                && sidecar.as_mut().is_some_and(ProcessGroup::is_running)
            {
                // Fenced once more while it was starting, if at all; the next call tries again.
                let _ = smbd.start().await;
            }
        }
    }

    /// Restarts a node's `smbd` as its administrator does: asks it to end, waits until it has, and starts it.
    pub async fn restart_smbd(&mut self, node: usize) -> Result<(), ClusterError> {
        self.nodes[node].smbd.as_mut().expect(WITHOUT_SAMBA).stop().await?;
        self.start_smbd(node).await
    }

    /// The newest start of a node's SMB service that any sidecar knows of; 0 before the first.
    async fn incarnation(&self, node: usize) -> u64 {
        let (mut newest, id) = (0, node_id(node));
        for asked in 0..self.len() {
            let nodes = self.status(asked).await.map(|status| status.nodes).unwrap_or_default();
            newest = nodes
                .iter()
                .filter(|node| node.node_id == id)
                .map(|node| node.incarnation)
                .fold(newest, u64::max);
        }
        newest
    }

    /// Kills everything of a node, `smbd`, `ctdbd` and sidecar, with SIGKILL, all at the same moment, as far as one
    /// machine can do what a power failure does to another. Nothing of the node is left when this returns.
    pub fn kill(&mut self, node: usize) -> Result<(), ProcessError> {
        self.kill_together(node..=node)
    }

    /// The same for all nodes at the same moment.
    pub fn kill_all(&mut self) -> Result<(), ProcessError> {
        self.kill_together(0..=self.len() - 1)
    }

    fn kill_together(&mut self, nodes: RangeInclusive<usize>) -> Result<(), ProcessError> {
        // First the signals, then the burials: a sidecar that lived on while `smbd` was being buried could
        // report its death, and the cluster would hear of it sooner than of a power failure.
        for Node { sidecar, smbd, ctdbd, .. } in &self.nodes[nodes.clone()] {
            sidecar.iter().for_each(ProcessGroup::send_kill);
            smbd.iter().for_each(Smbd::send_kill);
            ctdbd.iter().for_each(Ctdbd::send_kill);
        }
        for node in nodes {
            self.nodes[node].is_paused = false;
            self.kill_sidecar(node)?;
            self.kill_smbd(node)?;
            self.kill_ctdbd(node)?;
        }
        Ok(())
    }

    /// Kills a node's sidecar with SIGKILL.
    pub fn kill_sidecar(&mut self, node: usize) -> Result<(), ProcessError> {
        self.nodes[node].sidecar.take().map_or(Ok(()), |mut sidecar| sidecar.kill())
    }

    /// Kills a node's `smbd` with all its children with SIGKILL.
    pub fn kill_smbd(&mut self, node: usize) -> Result<(), ProcessError> {
        self.nodes[node].smbd.as_mut().map_or(Ok(()), Smbd::kill)
    }

    /// Kills a node's `ctdbd` with all its helpers with SIGKILL.
    pub fn kill_ctdbd(&mut self, node: usize) -> Result<(), ProcessError> {
        self.nodes[node].ctdbd.as_mut().map_or(Ok(()), Ctdbd::kill)
    }

    /// Cuts a node off from all others, sidecar and `ctdbd`: it lives, clients and operators still reach it, and it
    /// reaches no node and is reached by none. The `ctdbd`s of such a cluster have no cluster lock, so that those of
    /// both sides go on.
    ///
    /// # Panics
    /// In a cluster without [wires](ClusterOptions::wires).
    pub fn cut_off(&self, node: usize) {
        self.wires.as_ref().expect(WITHOUT_WIRES).cut_off(node);
    }

    /// Undoes it.
    ///
    /// # Panics
    /// In a cluster without [wires](ClusterOptions::wires).
    pub fn rejoin(&self, node: usize) {
        self.wires.as_ref().expect(WITHOUT_WIRES).rejoin(node);
    }

    /// Stops a node's sidecar where it is.
    pub fn pause_sidecar(&self, node: usize) {
        self.nodes[node].sidecar.iter().for_each(ProcessGroup::pause);
    }

    /// Lets it go on.
    pub fn resume_sidecar(&self, node: usize) {
        self.nodes[node].sidecar.iter().for_each(ProcessGroup::resume);
    }

    /// Stops a node's processes where they are, as a virtual machine that is being moved.
    pub fn pause(&mut self, node: usize) {
        self.nodes[node].is_paused = true;
        self.pause_sidecar(node);
        self.nodes[node].smbd.iter().for_each(Smbd::pause);
        self.nodes[node].ctdbd.iter().for_each(Ctdbd::pause);
    }

    /// Lets them go on.
    pub fn resume(&mut self, node: usize) {
        self.nodes[node].is_paused = false;
        self.resume_sidecar(node);
        self.nodes[node].smbd.iter().for_each(Smbd::resume);
        self.nodes[node].ctdbd.iter().for_each(Ctdbd::resume);
    }

    /// The processes of a node's sidecar: its own first, and what it has started, zombies too.
    pub fn sidecar_processes(&self, node: usize) -> Vec<i32> {
        let Some(sidecar) = &self.nodes[node].sidecar else { return Vec::new() };
        let others = sidecar.members().into_iter().filter(|&pid| pid != sidecar.pid());
        iter::once(sidecar.pid()).chain(others).collect()
    }

    /// Whether a node's sidecar is running.
    pub fn sidecar_is_running(&mut self, node: usize) -> bool {
        self.nodes[node].sidecar.as_mut().is_some_and(ProcessGroup::is_running)
    }

    /// What a node's sidecar knows of the cluster.
    pub async fn status(&self, node: usize) -> Result<StatusResponse, ClusterError> {
        let answer = self.operator(node).await?.status(StatusRequest {}).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|err| ClusterError::NoAnswer { node, source: err.into() })
    }

    /// A connection to a node's sidecar, as an operator has it. Every request on it is bounded in time.
    pub async fn operator(&self, node: usize) -> Result<OpsClient<Channel>, ClusterError> {
        let connect = async {
            let endpoint = Endpoint::from_shared(self.sidecar(node))?;
            endpoint.connect_timeout(STATUS_TIMEOUT).timeout(STATUS_TIMEOUT).connect().await
        };
        let channel = connect.await.map_err(|err| ClusterError::NoAnswer { node, source: err.into() })?;
        Ok(OpsClient::new(channel))
    }

    /// All opens, as a node's sidecar knows them.
    pub async fn opens(&self, node: usize) -> Result<Vec<Open>, ClusterError> {
        let listing = async {
            let mut messages =
                self.operator(node).await?.handles(HandlesRequest::default()).await?.into_inner();
            let mut opens = Vec::new();
            while let Some(message) = messages.message().await? {
                for open in message.opens {
                    opens.push(open.try_into()?);
                }
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(opens)
        };
        listing.await.map_err(|source| ClusterError::NoAnswer { node, source })
    }

    /// The node that leads, once a majority of all nodes says so.
    pub async fn leader(&mut self) -> Result<usize, ClusterError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let mut votes = vec![0; self.len()];
            for node in 0..self.len() {
                let leader = self.status(node).await.ok().and_then(|status| status.leader);
                if let Some(votes) = leader.and_then(|id| votes.get_mut(node_index(id)?)) {
                    *votes += 1;
                }
            }
            if let Some(leader) = votes.iter().position(|&votes| 2 * votes > self.len()) {
                return Ok(leader);
            }
            self.look_again(deadline, "a leader").await?;
        }
    }

    /// Waits until a node's status is as wanted, and returns it.
    pub async fn wait_until(
        &mut self,
        what: &str,
        node: usize,
        wanted: impl Fn(&StatusResponse) -> bool,
    ) -> Result<StatusResponse, ClusterError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match self.status(node).await {
                Ok(status) if wanted(&status) => return Ok(status),
                _ => self.look_again(deadline, what).await?,
            }
        }
    }

    /// Pauses between two looks; fails when there is no sense in another one.
    async fn look_again(&mut self, deadline: Instant, what: &str) -> Result<(), ClusterError> {
        for (node, Node { sidecar, log, .. }) in self.nodes.iter_mut().enumerate() {
            if let Some(status) = sidecar.as_mut().and_then(ProcessGroup::try_exit_status) {
                return Err(ClusterError::SidecarEnded { node, status, log: last_lines(&[log]) });
            }
        }
        if Instant::now() >= deadline {
            let logs =
                self.nodes.iter().map(|node| last_lines(&[&node.log])).collect::<Vec<_>>().join("\n--\n");
            return Err(ClusterError::TimedOut { what: what.to_owned(), timeout: READY_TIMEOUT, logs });
        }
        time::sleep(POLL_INTERVAL).await;
        Ok(())
    }
}

impl Node {
    /// Makes a node's directories and configurations.
    fn prepare(
        index: usize,
        dir: &Path,
        addresses: &Addresses,
        site: Option<&SambaSite>,
        options: &ClusterOptions,
    ) -> Result<Self, ClusterError> {
        let name = format!("node{index}");
        let dir = dir.join(&name);
        let run_dir = dir.join("run");
        fs::create_dir_all(&run_dir).map_err(prepare(&run_dir))?;
        make_accessible(&dir)?;
        make_accessible(&run_dir)?;
        let ctdbd = site.zip(addresses.ctdbds.as_ref()).map(|(site, addresses)| {
            // A file would be a wire that cannot be cut: a leader that is cut off would keep the lock, and the others
            // could not recover without it.
            let lock = (!options.wires).then(|| site.dir().join("ctdb-lock"));
            let (base, tunables) = (dir.join("ctdb"), &options.ctdb_tunables);
            Ctdbd::prepare(site.tools(), &base, index, addresses, lock.as_deref(), tunables)
        });
        let ctdbd = ctdbd.transpose()?;
        let mut smbd_options = options.smbd.clone();
        smbd_options.ctdbd_socket = ctdbd.as_ref().map(Ctdbd::socket);
        smbd_options.shares_apart.extend(options.unprotected_shares.iter().cloned());
        if options.protected {
            smbd_options.env.extend(protecting(&run_dir)?);
        }
        let smbd = site.map(|site| site.smbd(&name, smbd_options)).transpose()?;

        let mut config = String::from("[cluster]\nname = \"test\"\nnodes = [\n");
        for (node, address) in addresses.seen.iter().enumerate() {
            config += &format!("  {{ id = {}, address = \"{address}\" }},\n", node_id(node));
        }
        config += "]\n[cluster.timing]\n";
        for (name, milliseconds) in &options.timing {
            config += &format!("{name} = {milliseconds}\n");
        }
        config += "[cluster.limits]\n";
        for (name, value) in &options.limits {
            config += &format!("{name} = {value}\n");
        }
        let handle_socket = dir.join("handles.sock");
        config += &format!(
            "[node]\nid = {}\nlisten = \"{}\"\ndata_dir = \"{}\"\nhandle_socket = \"{}\"\nlog = \"{}\"\n",
            node_id(index),
            addresses.own[index],
            dir.join("data").display(),
            handle_socket.display(),
            options.log,
        );
        if let (Some(smbd), Some(site)) = (&smbd, site) {
            config += &format!(
                "[samba]\nrun_dir = \"{}\"\nsmb_conf = \"{}\"\nsmbd = \"{}\"\ntestparm = \"{}\"\n\
                 unprotected_shares = {:?}\n",
                run_dir.display(),
                smbd.config_file().display(),
                site.tools().smbd().display(),
                site.tools().testparm().display(),
                // A list of such names looks the same in TOML and in Rust.
                options.unprotected_shares,
            );
        }
        let config_file = dir.join("holdfast.toml");
        fs::write(&config_file, config).map_err(prepare(&config_file))?;
        Ok(Self {
            address: addresses.own[index],
            config: config_file,
            handle_socket,
            log: dir.join("log"),
            sidecar: None,
            smbd,
            ctdbd,
            is_paused: false,
        })
    }
}

/// What makes an `smbd` preload the shim and find its sidecar.
fn protecting(run_dir: &Path) -> Result<[(String, String); 2], ClusterError> {
    let shim = holdfast_tdb::built_library_path().map_err(ClusterError::Shim)?;
    let variable = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
    Ok([variable("LD_PRELOAD", &shim), variable("HOLDFAST_RUN_DIR", run_dir)])
}

/// The id that the cluster knows a node by.
pub fn node_id(node: usize) -> u64 {
    node as u64 + 1
}

/// The other way round.
pub(crate) fn node_index(id: u64) -> Option<usize> {
    usize::try_from(id.checked_sub(1)?).ok()
}

fn make_accessible(dir: &Path) -> Result<(), ClusterError> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(prepare(dir))
}

fn prepare(path: &Path) -> impl FnOnce(io::Error) -> ClusterError {
    let path = path.to_owned();
    move |source| ClusterError::Prepare { path, source }
}
