//! The daemon: puts the parts together, runs them, and takes them down in order.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proto::pb::ops::v1::StatusRequest;
use proto::pb::ops::v1::ops_client::OpsClient;
use statedb::{DurableFileId, NodeId, Owner};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tracing::{info, warn};

use crate::config::Config;
use crate::lease::ServiceLease;
use crate::liveness::{self, Answer, Leadership};
use crate::raft::{Answers, RaftNode, RaftNodeConfig, RaftTiming};
use crate::rpc::attach::AttachPoint;
use crate::rpc::events::EventService;
use crate::rpc::handles::HandleService;
use crate::rpc::listen;
use crate::rpc::ops::OpsService;
use crate::smb::look::Lookout;
use crate::smb::service::SmbService;

/// How long this node's own address may take to answer. It is this process that answers.
const ANSWERS_ITSELF_WITHIN: Duration = Duration::from_secs(2);

/// How long open connections may take to end when this process is told to.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(2);

/// How many threads run the tasks of a node. What one change of an open needs is a chain of short steps, each of which wakes
/// the next: on one thread that costs nothing, and between threads a system call and often the sleep of a processor. One
/// thread does thousands of changes a second, and leaves the other processors to `smbd`. What takes long has threads of
/// its own: the disk, libtdb, snapshots.
const WORKERS: usize = 1;

/// Runs this node until it is told to end.
///
/// # Errors
///
/// If it cannot start, or cannot go on: with what failed and what to do.
pub fn run(config: Config) -> anyhow::Result<()> {
    allow_all_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    // Not on this thread, which would have to be woken for it.
    let result = runtime.block_on(async { tokio::spawn(run_until_stopped(Arc::new(config))).await })?;
    // Whatever still blocks a thread does not keep a process that is done.
    runtime.shutdown_timeout(SHUTDOWN_WITHIN);
    result
}

/// Every `smbd` process takes two file descriptors here, and the limit that a shell gives is usually 1024.
fn allow_all_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "the limit of open files stays as it is; a large SMB service may meet it");
    }
}

async fn run_until_stopped(config: Arc<Config>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(ignore_hang_ups(signal(SignalKind::hangup())?));
    let process_nonce = rand::random();
    let timing = config.cluster.timing;
    let listener = listen(&config).await?;
    info!(node_id = config.node.id, address = %listener.local_addr()?, version = env!("CARGO_PKG_VERSION"), "holdfast starts");

    let leadership = Arc::new(Leadership::new(timing));
    let raft = RaftNode::start(RaftNodeConfig {
        id: NodeId(config.node.id),
        voters: config
            .cluster
            .nodes
            .iter()
            .map(|member| (NodeId(member.id), member.address.clone()))
            .collect(),
        data_dir: config.node.data_dir.clone(),
        timing: RaftTiming {
            heartbeat_interval: timing.heartbeat_interval(),
            election_timeout_min: Duration::from_millis(timing.election_timeout_min_ms),
            election_timeout_max: Duration::from_millis(timing.election_timeout_max_ms),
        },
        fingerprint: config.cluster.fingerprint(),
        limits: config.cluster.limits(),
    })
    .await
    .with_context(|| format!("cannot start on {}", config.node.data_dir.display()))?;

    let stop = CancellationToken::new();
    let lease = Arc::new(ServiceLease::new(timing.self_fence_after()));
    let point = AttachPoint::new(
        Arc::clone(&raft),
        Arc::clone(&lease),
        NodeId(config.node.id),
        config.samba.is_none(),
        stop.clone(),
    );
    let lookout = Arc::new(OnceLock::new());
    let answers = PeerAnswers {
        raft: Arc::clone(&raft),
        leadership: Arc::clone(&leadership),
        lookout: Arc::clone(&lookout),
    };
    let mut serving = JoinSet::new();
    let (calls, lanes) = listen::sorted(listener);
    let serve_lanes = Arc::clone(&raft).serve_lanes(lanes);
    tokio::spawn(stop.clone().run_until_cancelled_owned(serve_lanes));
    let server = listen::server()
        .add_service(raft.server(answers))
        .add_service(HandleService::server(Arc::clone(&raft), point.clone(), timing.verdict_within()))
        .add_service(EventService::server(Arc::clone(&raft), point.clone()))
        .add_service(OpsService::server(Arc::clone(&config), Arc::clone(&raft), process_nonce));
    serving.spawn(server.serve_with_incoming_shutdown(calls, stop.clone().cancelled_owned()));
    require_to_be_alone(&config, process_nonce).await?;
    if let Some(path) = &config.node.handle_socket {
        let server = listen::server()
            .add_service(HandleService::server(Arc::clone(&raft), point.clone(), timing.verdict_within()))
            .add_service(EventService::server(Arc::clone(&raft), point.clone()));
        let incoming = listen::incoming(listen::at_socket(path)?);
        serving.spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
        info!(path = %path.display(), "SMB servers on this machine are served at a unix socket");
    }

    tokio::spawn(liveness::lead(Arc::clone(&raft), Arc::clone(&leadership), stop.clone()));
    let beside = tokio::spawn(serve(
        Arc::clone(&config),
        Arc::clone(&raft),
        Arc::clone(&leadership),
        lease,
        point,
        lookout,
        stop.clone(),
    ));

    let ended = tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
        failure = raft.failed() => Err(anyhow::Error::new(failure).context("this node cannot go on")),
        failure = beside => match failure {
            Ok(Ok(())) => Ok("the end of the service"),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error.into()),
        },
    };
    stop.cancel();
    // An error is told by whoever called this.
    if let Ok(reason) = &ended {
        info!(reason, "holdfast ends");
    }
    raft.shutdown().await;
    let served = async { while serving.join_next().await.is_some() {} };
    if tokio::time::timeout(SHUTDOWN_WITHIN, served).await.is_err() {
        warn!("connections are still open, and are cut");
    }
    ended.map(drop)
}

/// Says why nothing happens at a SIGHUP, which tools send after they have rotated log files. Unhandled it would end this
/// process, and the SMB service with it.
async fn ignore_hang_ups(mut hang_ups: Signal) {
    while hang_ups.recv().await.is_some() {
        info!(
            "SIGHUP is ignored: there are no log files to reopen, and the configuration is read only at the start"
        );
    }
}

/// Serves the SMB service beside this node, of whichever kind, once this node knows what the cluster has decided.
async fn serve(
    config: Arc<Config>,
    raft: Arc<RaftNode>,
    leadership: Arc<Leadership>,
    lease: Arc<ServiceLease>,
    point: AttachPoint,
    lookout: Arc<OnceLock<Arc<Lookout>>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Some(samba) = &config.samba else {
        info!("no [samba] section: this node votes, and serves an SMB server that attaches to it over gRPC");
        liveness::keep_alive(raft, leadership, lease, |owner| point.fence(owner), stop).await;
        return Ok(());
    };
    // A restored state may be older than what this node promised; nobody is answered from it.
    tokio::select! {
        () = raft.caught_up() => {}
        () = stop.cancelled() => return Ok(()),
    }
    let (service, listener): (Arc<SmbService>, UnixListener) =
        SmbService::prepare(&config, samba, Arc::clone(&raft), Arc::clone(&lease), &stop)?;
    // This call alone sets it.
    let _ = lookout.set(service.lookout());
    info!(run_dir = %samba.run_dir.display(), "waiting for smbd");
    let fenced = {
        let service = Arc::clone(&service);
        move |owner| service.fence(owner)
    };
    tokio::spawn(liveness::keep_alive(raft, leadership, lease, fenced, stop.clone()));
    service.run(listener, stop).await;
    Ok(())
}

/// What peers ask that is not Raft's to answer.
struct PeerAnswers {
    raft: Arc<RaftNode>,
    leadership: Arc<Leadership>,
    /// Set when the Samba beside this node, if there is one, is known.
    lookout: Arc<OnceLock<Arc<Lookout>>>,
}

impl Answers for PeerAnswers {
    fn sign_of_life(&self, owner: Owner) -> Answer {
        self.leadership.answer(&self.raft, owner)
    }

    async fn is_settled(&self, open: DurableFileId, applied: u64) -> bool {
        match self.lookout.get() {
            Some(lookout) => lookout.is_settled(open, applied).await,
            None => false,
        }
    }
}

async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let member = config.member().context("the configuration does not name its own node")?;
    let address: SocketAddr = match config.node.listen {
        Some(address) => address,
        None => {
            member.address.to_socket_addrs().ok().and_then(|mut addresses| addresses.next()).with_context(
                || format!("cannot find the address of this node, {}; give [node] listen", member.address),
            )?
        }
    };
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen at {address}: is another holdfast running as node {}?", config.node.id)
    })
}

/// Refuses to run if another process answers at this node's address: a second sidecar with the same id would
/// vote twice.
async fn require_to_be_alone(config: &Config, process_nonce: u64) -> anyhow::Result<()> {
    let address = &config.member().context("the configuration does not name its own node")?.address;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(ANSWERS_ITSELF_WITHIN)
        .timeout(ANSWERS_ITSELF_WITHIN);
    let status = async {
        let mut client = OpsClient::new(endpoint.connect().await?);
        anyhow::Ok(client.status(StatusRequest {}).await?.into_inner())
    };
    match status.await {
        Ok(status) if status.process_nonce == process_nonce => Ok(()),
        Ok(status) => bail!(
            "another holdfast (node {}) answers at {address}, the address of node {}: two nodes must not have one id; give each its own in [node] id",
            status.node_id,
            config.node.id
        ),
        Err(error) => {
            // Its own address may be reachable for peers only.
            warn!(%address, error = format!("{error:#}"), "this node cannot reach itself at its address in the cluster");
            Ok(())
        }
    }
}
