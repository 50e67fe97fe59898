//! The same clients on servers with and without something: what it costs, and what one has of it.
//!
//! A [`Contest`] is such a pair. Its two servers run at the same time and are asked in turn, which is what makes a
//! difference mean something on a machine that does other things too.

mod failover;

use std::{fmt, net::SocketAddr, path::PathBuf};

use clap::ValueEnum;

use crate::{
    cluster::{Cluster, ClusterError, ClusterOptions},
    samba::{SambaError, SambaSite, SambaTools, Smbd, SmbdOptions},
    smb_client::{Client, CreateRequest, Credentials, SmbError, Tree},
};

pub use failover::{Blow, Ending, Trials};

/// The version of Samba that has persistent handles of its own.
const PERSISTENT_SINCE: &str = "4.25";

/// What is compared with the same Samba without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Contest {
    /// Holdfast beside separate smbds.
    Holdfast,
    /// Holdfast beside smbds on CTDB.
    HoldfastCtdb,
    /// Samba 4.25's own persistent handles, on one smbd.
    Persistent,
    /// The same on CTDB.
    PersistentCtdb,
}

impl fmt::Display for Contest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Holdfast => "Holdfast, separate smbds",
            Self::HoldfastCtdb => "Holdfast on CTDB",
            Self::Persistent => "persistent handles, one smbd",
            Self::PersistentCtdb => "persistent handles on CTDB",
        })
    }
}

/// Why the servers of a contest do not run.
#[derive(Debug, thiserror::Error)]
pub enum ContestError {
    /// Samba is not there, or does not run.
    #[error(transparent)]
    Samba(#[from] SambaError),
    /// The cluster does not work.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A server gave less than what is compared.
    #[error("{contest}: the server granted {granted}: there is nothing to compare")]
    NotGranted {
        /// What was to be compared.
        contest: Contest,
        /// What it granted instead.
        granted: String,
    },
    /// A client got an error where there should be none.
    #[error("{contest}: a client cannot go on")]
    Client {
        /// What was compared.
        contest: Contest,
        /// What the client got.
        source: SmbError,
    },
}

impl Contest {
    /// The Samba that it takes part with: persistent handles need a certain one, everything else takes what it is
    /// given.
    pub fn tools(self, given: &SambaTools) -> Result<SambaTools, ContestError> {
        Ok(if self.is_holdfast() { given.clone() } else { SambaTools::in_root(PERSISTENT_SINCE)? })
    }

    /// The cluster that survives the death of a node, and of which there is none with one smbd.
    pub fn cluster(self, program: PathBuf, tools: SambaTools) -> Option<ClusterOptions> {
        let ctdb = |program| ClusterOptions::with_ctdb(program, tools.clone());
        match self {
            Self::Holdfast => Some(ClusterOptions::with_samba(program, tools)),
            Self::HoldfastCtdb => Some(ctdb(program)),
            Self::Persistent => None,
            Self::PersistentCtdb => {
                let options = ctdb(program).unprotected();
                let smbd = options.smbd.clone().continuously_available();
                Some(ClusterOptions { smbd, ..options })
            }
        }
    }

    /// Whether Holdfast is what is compared.
    pub fn is_holdfast(self) -> bool {
        matches!(self, Self::Holdfast | Self::HoldfastCtdb)
    }

    /// The CREATE by which a client asks for a handle that is to survive.
    pub fn request(self, path: impl Into<String>) -> CreateRequest {
        let request = CreateRequest::durable_v2_with_lease(path);
        if self.is_holdfast() { request } else { request.persistent() }
    }
}

/// A server, or a node of several.
#[derive(Debug)]
enum Server {
    One(Box<(SambaSite, Smbd)>),
    Cluster { cluster: Cluster, node: usize },
}

/// A contest's two servers. Dropping it ends them.
#[derive(Debug)]
pub struct Pair {
    contest: Contest,
    /// Without, and with.
    servers: [Server; 2],
}

impl Pair {
    /// Starts both.
    pub async fn start(contest: Contest, program: PathBuf, given: &SambaTools) -> Result<Self, ContestError> {
        let tools = contest.tools(given)?;
        let one = |options| Server::one(tools.clone(), options);
        let servers = match contest {
            Contest::Holdfast => [
                one(SmbdOptions::default()).await?,
                Server::cluster(ClusterOptions::with_samba(program, tools.clone())).await?,
            ],
            Contest::Persistent => [
                one(SmbdOptions::default()).await?,
                one(SmbdOptions::default().continuously_available()).await?,
            ],
            Contest::HoldfastCtdb | Contest::PersistentCtdb => {
                let without = ClusterOptions::with_ctdb(program.clone(), tools.clone()).unprotected();
                let with = contest.cluster(program, tools.clone()).expect("it is one of clusters");
                [Server::cluster(without).await?, Server::cluster(with).await?]
            }
        };
        Ok(Self { contest, servers })
    }

    /// A client machine's connection to each of them.
    pub async fn connect(&self) -> Result<[Tree; 2], ContestError> {
        let [without, with] = &self.servers;
        Ok([self.connect_to(without).await?, self.connect_to(with).await?])
    }

    async fn connect_to(&self, server: &Server) -> Result<Tree, ContestError> {
        let (credentials, address, share) = server.endpoint();
        let connect = async { Client::new(credentials).connect(address).await?.tree_connect(&share).await };
        connect.await.map_err(|source| ContestError::Client { contest: self.contest, source })
    }

    /// The CREATEs by which clients ask each of them for a handle that is to survive.
    pub fn requests(&self, path: &str) -> [CreateRequest; 2] {
        [CreateRequest::durable_v2_with_lease(path), self.contest.request(path)]
    }
}

impl Server {
    async fn one(tools: SambaTools, options: SmbdOptions) -> Result<Self, ContestError> {
        let site = SambaSite::new(tools)?;
        let mut smbd = site.smbd("alone", options)?;
        smbd.start().await?;
        Ok(Self::One(Box::new((site, smbd))))
    }

    /// Clients use a node that does not lead: most nodes do not.
    async fn cluster(options: ClusterOptions) -> Result<Self, ContestError> {
        let protected = options.protected;
        let mut cluster = Cluster::start(options).await?;
        let leader = if protected { cluster.leader().await? } else { 0 };
        let node = (leader + 1) % cluster.len();
        Ok(Self::Cluster { cluster, node })
    }

    fn endpoint(&self) -> (Credentials, SocketAddr, String) {
        match self {
            Self::One(one) => {
                let (site, smbd) = &**one;
                (site.credentials(), smbd.address(), smbd.share())
            }
            Self::Cluster { cluster, node } => {
                (cluster.credentials(), cluster.smb_address(*node), cluster.share(*node))
            }
        }
    }
}
