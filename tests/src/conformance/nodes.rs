//! Fresh servers for one test: started, harmed, looked at and ended.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex as SyncMutex},
    time::{Duration, Instant},
};

use node::config::Timing;
use proto::pb::ops::v1::StatusResponse;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::JoinSet,
};

use crate::{
    cluster::{Cluster, ClusterError, ClusterOptions, Clustering, node_id},
    proxy::{Harm, HarmError, Hurt},
    samba::{SambaSite, SambaTools, SmbdOptions},
};

/// What stands behind the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// One `smbd`.
    Alone,
    /// The same nodes as the protected ones, without Holdfast.
    Unprotected,
    /// Nodes with Holdfast.
    Protected,
}

/// How servers are made.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The program that can be `holdfast`.
    pub program: PathBuf,
    /// The Samba.
    pub tools: SambaTools,
    /// What the `smbd`s of several nodes know of each other.
    pub clustering: Clustering,
    /// How often a node may be harmed in one test. With more than once, killed nodes come back.
    pub kills: usize,
    /// Samba's log level.
    pub log_level: u8,
}

/// How many nodes there are. A second death comes only after the first node is back, so that a quorum is left.
const NODES: usize = 3;

/// What the sidecars log: what they do themselves, and what Raft complains about.
const SIDECAR_LOG: &str = "info,openraft=warn";

const NEVER_POISONED: &str = "nobody panics while holding it";

/// Running servers. Dropping them kills them.
pub(super) struct Nodes {
    site: Arc<SambaSite>,
    addresses: Vec<SocketAddr>,
    fence_after: Duration,
    hurting: Hurting,
}

/// What harms nodes, and remembers what it has done.
#[derive(Clone)]
struct Hurting {
    cluster: Arc<Mutex<Cluster>>,
    /// Whether killed nodes come back.
    come_back: bool,
    /// Nodes that are just coming back.
    revivals: Arc<SyncMutex<JoinSet<Result<(), ClusterError>>>>,
    /// When a node was cut off.
    cut_off_at: Arc<SyncMutex<Option<Instant>>>,
}

impl Nodes {
    /// Starts fresh servers for a test in which `cut_off` says whether one of them will be cut off, and returns when
    /// all of them serve.
    pub(super) async fn start(
        servers: Servers,
        cut_off: bool,
        recipe: &Recipe,
    ) -> Result<Self, ClusterError> {
        let options = ClusterOptions::with_samba(&recipe.program, recipe.tools.clone()).patient();
        let options = match servers {
            Servers::Alone => ClusterOptions { nodes: 1, ..options.unprotected() },
            Servers::Unprotected => {
                ClusterOptions { nodes: NODES, clustering: recipe.clustering, ..options.unprotected() }
            }
            Servers::Protected => {
                ClusterOptions { nodes: NODES, clustering: recipe.clustering, wires: cut_off, ..options }
            }
        };
        let options = ClusterOptions {
            smbd: SmbdOptions { log_level: recipe.log_level, ..options.smbd },
            log: SIDECAR_LOG.to_owned(),
            ..options
        };
        let fence_after = fence_after(&options);
        let cluster = Cluster::start(options).await?;
        Ok(Self {
            site: cluster.site(),
            addresses: (0..cluster.len()).map(|node| cluster.smb_address(node)).collect(),
            fence_after,
            hurting: Hurting {
                cluster: Arc::new(Mutex::new(cluster)),
                // Nobody would notice the death of an unprotected one, and its control fails at the first return.
                come_back: recipe.kills > 1 && servers == Servers::Protected,
                revivals: Arc::default(),
                cut_off_at: Arc::default(),
            },
        })
    }

    /// The share, its user and its files.
    pub(super) fn site(&self) -> &SambaSite {
        &self.site
    }

    /// Where they serve.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    /// What to tree connect to at a node.
    pub(super) async fn share(&self, node: usize) -> String {
        self.hurting.cluster.lock().await.share(node)
    }

    /// How long a node that hears from no other may go on serving.
    pub(super) fn fence_after(&self) -> Duration {
        self.fence_after
    }

    /// When a node was cut off, if one was.
    pub(super) fn cut_off_at(&self) -> Option<Instant> {
        *self.hurting.cut_off_at.lock().expect(NEVER_POISONED)
    }

    /// What the proxy is to call.
    pub(super) fn hurt(&self) -> Hurt {
        let hurting = self.hurting.clone();
        Box::new(move |node, harm| Box::pin(hurting.clone().hurt(node, harm)))
    }

    /// Copies what the servers have logged into a directory.
    pub(super) async fn copy_logs(&self, dir: &Path) -> io::Result<()> {
        let cluster = self.hurting.cluster.lock().await;
        for node in 0..cluster.len() {
            fs::write(dir.join(format!("node{node}.sidecar")), cluster.sidecar_log(node))?;
            let log = cluster.smbd(node).config_file().with_file_name("log");
            fs::copy(log, dir.join(format!("node{node}.smbd")))?;
        }
        Ok(())
    }

    /// Kills and reaps everything.
    pub(super) async fn end(self) -> Result<(), ClusterError> {
        self.hurting.revivals.lock().expect(NEVER_POISONED).abort_all();
        Ok(self.hurting.cluster.lock().await.kill_all()?)
    }
}

impl Hurting {
    async fn hurt(self, node: usize, harm: Harm) -> Result<(), HarmError> {
        // Whoever is coming back holds the lock meanwhile: two dead nodes of three would be no quorum.
        let mut cluster = Arc::clone(&self.cluster).lock_owned().await;
        while let Some(revival) = self.revivals.lock().expect(NEVER_POISONED).try_join_next() {
            revival??;
        }
        match harm {
            Harm::Kill => {
                cluster.kill(node)?;
                if self.come_back {
                    self.revivals.lock().expect(NEVER_POISONED).spawn(revive(cluster, node));
                }
            }
            Harm::KillChild { peer } => drop(cluster.smbd(node).kill_child(peer).await?),
            Harm::CutOff => {
                cluster.cut_off(node);
                *self.cut_off_at.lock().expect(NEVER_POISONED) = Some(Instant::now());
            }
        }
        Ok(())
    }
}

/// Starts a killed node again after the others have found it dead, as a machine that takes its time to boot.
async fn revive(mut cluster: OwnedMutexGuard<Cluster>, dead: usize) -> Result<(), ClusterError> {
    let survivor = usize::from(dead == 0);
    let is_down =
        |status: &StatusResponse| status.nodes.iter().any(|node| node.node_id == node_id(dead) && !node.up);
    cluster.wait_until(&format!("node {dead} down"), survivor, is_down).await?;
    cluster.start_node(dead).await
}

/// What the cluster's configuration says about that.
fn fence_after(options: &ClusterOptions) -> Duration {
    let own = options.timing.iter().find(|(name, _)| *name == "self_fence_after_ms");
    own.map_or_else(|| Timing::default().self_fence_after(), |&(_, ms)| Duration::from_millis(ms))
}
