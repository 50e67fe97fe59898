//! Fresh servers for one test: started, harmed, looked at and ended.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::pb::ops::v1::StatusResponse;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::JoinSet,
};

use crate::{
    cluster::{Cluster, ClusterError, ClusterOptions, node_id},
    process::ProcessError,
    proxy::{Harm, HarmError, Hurt},
    samba::{SambaError, SambaSite, SambaTools, Smbd, SmbdOptions},
};

/// What stands behind the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Servers {
    /// One `smbd`.
    Alone,
    /// Two `smbd`s on the same files, and nothing between them.
    Unprotected,
    /// Three `smbd`s with Holdfast.
    Protected,
}

/// Why there are no servers, or not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// See there.
    #[error(transparent)]
    Samba(#[from] SambaError),
    /// See there.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// See there.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// That cannot be done to these servers.
    #[error("there is no way to do this to servers without Holdfast: {0:?}")]
    Impossible(Harm),
}

/// How servers are made.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The program that can be `holdfast`.
    pub program: PathBuf,
    /// The Samba.
    pub tools: SambaTools,
    /// How often a node may be harmed in one test. With more than once, nodes come back.
    pub kills: usize,
    /// Samba's log level.
    pub log_level: u8,
}

/// Running servers. Dropping them kills them.
pub(super) struct Nodes {
    site: Arc<SambaSite>,
    addresses: Vec<SocketAddr>,
    kind: Kind,
}

/// Nodes that are just coming back.
type Revivals = Arc<std::sync::Mutex<JoinSet<Result<(), ClusterError>>>>;

enum Kind {
    Plain(Arc<Mutex<Vec<Smbd>>>),
    Protected { cluster: Arc<Mutex<Cluster>>, revivals: Revivals, kills: usize },
}

impl Nodes {
    /// Starts fresh servers, and returns when all of them serve.
    pub(super) async fn start(servers: Servers, recipe: &Recipe) -> Result<Self, NodesError> {
        let options = SmbdOptions { log_level: recipe.log_level, ..SmbdOptions::default() };
        match servers {
            Servers::Alone => Self::start_plain(1, recipe, options).await,
            Servers::Unprotected => Self::start_plain(2, recipe, options).await,
            Servers::Protected => Self::start_protected(recipe, options).await,
        }
    }

    async fn start_plain(count: usize, recipe: &Recipe, options: SmbdOptions) -> Result<Self, NodesError> {
        let site = SambaSite::new(recipe.tools.clone())?;
        let mut smbds = Vec::new();
        for number in 0..count {
            let mut smbd = site.smbd(&format!("node{number}"), options.clone())?;
            smbd.start().await?;
            smbds.push(smbd);
        }
        let addresses = smbds.iter().map(Smbd::address).collect();
        Ok(Self { site: Arc::new(site), addresses, kind: Kind::Plain(Arc::new(Mutex::new(smbds))) })
    }

    async fn start_protected(recipe: &Recipe, smbd: SmbdOptions) -> Result<Self, NodesError> {
        let options = ClusterOptions::with_samba(&recipe.program, recipe.tools.clone()).patient();
        let cluster = Cluster::start(ClusterOptions { smbd, ..options }).await?;
        Ok(Self {
            site: cluster.site(),
            addresses: (0..cluster.len()).map(|node| cluster.smb_address(node)).collect(),
            kind: Kind::Protected {
                cluster: Arc::new(Mutex::new(cluster)),
                revivals: Arc::default(),
                kills: recipe.kills,
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

    /// What the proxy is to call.
    pub(super) fn hurt(&self) -> Hurt {
        match &self.kind {
            Kind::Plain(smbds) => {
                let smbds = Arc::clone(smbds);
                Box::new(move |node, harm| Box::pin(hurt_plain(Arc::clone(&smbds), node, harm)))
            }
            Kind::Protected { cluster, revivals, kills } => {
                let (cluster, revivals, come_back) = (Arc::clone(cluster), Arc::clone(revivals), *kills > 1);
                Box::new(move |node, harm| {
                    Box::pin(hurt_protected(
                        Arc::clone(&cluster),
                        Arc::clone(&revivals),
                        come_back,
                        node,
                        harm,
                    ))
                })
            }
        }
    }

    /// Copies what the servers have logged into a directory.
    pub(super) async fn copy_logs(&self, dir: &Path) -> io::Result<()> {
        let copy = |smbd: &Smbd, node: usize| {
            let log = smbd.config_file().with_file_name("log");
            fs::copy(log, dir.join(format!("node{node}.smbd"))).map(drop)
        };
        match &self.kind {
            Kind::Plain(smbds) => {
                let smbds = smbds.lock().await;
                smbds.iter().enumerate().try_for_each(|(node, smbd)| copy(smbd, node))
            }
            Kind::Protected { cluster, .. } => {
                let cluster = cluster.lock().await;
                (0..cluster.len()).try_for_each(|node| {
                    fs::write(dir.join(format!("node{node}.sidecar")), cluster.sidecar_log(node))?;
                    copy(cluster.smbd(node), node)
                })
            }
        }
    }

    /// Kills and reaps everything.
    pub(super) async fn end(self) -> Result<(), NodesError> {
        match self.kind {
            Kind::Plain(smbds) => smbds.lock().await.iter_mut().try_for_each(Smbd::kill)?,
            Kind::Protected { cluster, revivals, .. } => {
                revivals.lock().expect(NEVER_POISONED).abort_all();
                cluster.lock().await.kill_all()?;
            }
        }
        Ok(())
    }
}

const NEVER_POISONED: &str = "nobody panics while holding it";

async fn hurt_plain(smbds: Arc<Mutex<Vec<Smbd>>>, node: usize, harm: Harm) -> Result<(), HarmError> {
    match harm {
        Harm::Kill => Ok(smbds.lock().await[node].kill()?),
        Harm::KillChild { .. } | Harm::CutOff => Err(NodesError::Impossible(harm).into()),
    }
}

async fn hurt_protected(
    cluster: Arc<Mutex<Cluster>>,
    revivals: Revivals,
    come_back: bool,
    node: usize,
    harm: Harm,
) -> Result<(), HarmError> {
    // Whoever is coming back holds the lock meanwhile: two dead nodes of three would be no quorum.
    let mut cluster = cluster.lock_owned().await;
    while let Some(revival) = revivals.lock().expect(NEVER_POISONED).try_join_next() {
        revival??;
    }
    match harm {
        Harm::Kill => cluster.kill(node)?,
        Harm::KillChild { .. } | Harm::CutOff => return Err(NodesError::Impossible(harm).into()),
    }
    if come_back {
        revivals.lock().expect(NEVER_POISONED).spawn(revive(cluster, node));
    }
    Ok(())
}

/// Starts a killed node again after the others have found it dead, as a machine that takes its time to boot.
async fn revive(mut cluster: OwnedMutexGuard<Cluster>, dead: usize) -> Result<(), ClusterError> {
    let survivor = usize::from(dead == 0);
    let is_down =
        |status: &StatusResponse| status.nodes.iter().any(|node| node.node_id == node_id(dead) && !node.up);
    cluster.wait_until(&format!("node {dead} down"), survivor, is_down).await?;
    cluster.start_node(dead).await
}
