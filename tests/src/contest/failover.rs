//! From a node's death to the moment at which its client has everything back, for whoever promises that it will.

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use tokio::time;

use super::{Contest, ContestError};
use crate::{
    cluster::{Cluster, ClusterError, Clustering},
    samba::SambaTools,
    smb_client::{Client, Opened, Session, SmbError, Tree},
};

/// Files that the client holds.
const FILES: usize = 3;

/// How long one attempt to log in may take: a hung node accepts connections and says nothing.
const LOG_IN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a client goes on asking. Far longer than any system here needs, or it counts as never.
const GIVE_UP_AFTER: Duration = Duration::from_secs(90);

/// Between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Between two looks at CTDB's recovery.
const WATCH_INTERVAL: Duration = Duration::from_millis(10);

/// What happens to the node that serves the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Blow {
    /// SIGKILL; another node leads.
    Node,
    /// SIGKILL of the node that leads: the cluster's leader, or CTDB's where there is one.
    Leader,
    /// SIGSTOP; another node leads.
    Hang,
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Node => "SIGKILL of a node",
            Self::Leader => "SIGKILL of the leader",
            Self::Hang => "SIGSTOP of a node",
        })
    }
}

/// How one trial ended. Times count from the signal.
#[derive(Clone, Debug)]
pub struct Ending {
    /// The client had all its handles; `None` if it never got them all.
    pub reclaimed: Option<Duration>,
    /// Handles that it never got.
    pub lost: usize,
    /// Refusals that it heard before it got them. A real client takes the first for an answer.
    pub refusals: usize,
    /// A survivor's `ctdbd` said that the dead node was gone and its own recovery over.
    pub ctdb_recovered: Option<Duration>,
}

/// A contestant's cluster, and a client.
#[derive(Debug)]
pub struct Trials {
    contest: Contest,
    clustering: Clustering,
    cluster: Cluster,
    client: Client,
    files_used: usize,
}

impl Trials {
    /// Starts the cluster; `None` if the contest is not one of clusters.
    pub async fn start(
        contest: Contest,
        program: PathBuf,
        given: &SambaTools,
    ) -> Result<Option<Self>, ContestError> {
        let tools = contest.tools(given)?;
        let Some(options) = contest.cluster(program, tools) else { return Ok(None) };
        let clustering = options.clustering;
        let cluster = Cluster::start(options).await?;
        let client = Client::new(cluster.credentials());
        Ok(Some(Self { contest, clustering, cluster, client, files_used: 0 }))
    }

    /// Lets the client open its files on the victim, deals the blow, and lets it claim them on the others.
    pub async fn trial(&mut self, blow: Blow) -> Result<Ending, ContestError> {
        let victim = self.victim(blow).await?;
        let (session, files) = self.hold(victim).await.map_err(self.failed())?;
        for file in &files {
            let response = file.response();
            let persistent = response.durable_v2.is_some_and(|durable| durable.persistent);
            if !file.is_durable() || persistent == self.contest.is_holdfast() {
                let granted = format!("{response:?}");
                return Err(ContestError::NotGranted { contest: self.contest, granted });
            }
        }

        let struck = Instant::now();
        match blow {
            Blow::Node | Blow::Leader => self.cluster.kill(victim).map_err(ClusterError::from)?,
            Blow::Hang => self.cluster.pause(victim),
        }
        let survivors: Vec<usize> = (0..self.cluster.len()).filter(|&node| node != victim).collect();
        let (claimed, ctdb_recovered) = tokio::join!(
            self.claim(&survivors, &session, &files, struck),
            self.ctdb_recovery(survivors[0], victim, struck)
        );
        // A hung node is not woken up: what it does then is another question.
        self.cluster.kill(victim).map_err(ClusterError::from)?;
        self.cluster.start_all().await?;
        Ok(Ending { ctdb_recovered, ..claimed })
    }

    /// The leader, or a node that leads nothing.
    async fn victim(&mut self, blow: Blow) -> Result<usize, ContestError> {
        let mut leaders = Vec::new();
        if self.clustering == Clustering::Ctdb {
            let status = self.cluster.ctdbd(0).expect("it is a cluster on CTDB").status().await;
            leaders.extend(status.and_then(|status| status.leader));
        }
        if self.contest.is_holdfast() {
            leaders.push(self.cluster.leader().await?);
        }
        Ok(match blow {
            Blow::Leader => leaders.first().copied().unwrap_or_default(),
            Blow::Node | Blow::Hang => {
                (0..self.cluster.len()).find(|node| !leaders.contains(node)).unwrap_or_default()
            }
        })
    }

    async fn hold(&mut self, node: usize) -> Result<(Session, Vec<Opened>), SmbError> {
        let (session, share) = self.enter(node, 0).await?;
        let mut files = Vec::new();
        for _ in 0..FILES {
            self.files_used += 1;
            let path = format!("file-{}", self.files_used);
            let open = share.create(self.contest.request(&path)).await?;
            open.write(0, path.as_bytes()).await?;
            files.push(open);
        }
        Ok((session, files))
    }

    async fn enter(&self, node: usize, previous_session: u64) -> Result<(Session, Tree), SmbError> {
        let session = self.client.reconnect(self.cluster.smb_address(node), previous_session).await?;
        let share = session.tree_connect(&self.cluster.share(node)).await?;
        Ok((session, share))
    }

    /// Goes from survivor to survivor until everything is claimed.
    async fn claim(
        &self,
        survivors: &[usize],
        session: &Session,
        files: &[Opened],
        struck: Instant,
    ) -> Ending {
        let mut missing: Vec<&Opened> = files.iter().collect();
        let mut refusals = 0;
        for &node in survivors.iter().cycle() {
            if struck.elapsed() >= GIVE_UP_AFTER {
                break;
            }
            let address = self.cluster.smb_address(node);
            let reconnect = self.client.reconnect(address, session.id());
            let Ok(Ok(back)) = time::timeout(LOG_IN_TIMEOUT, reconnect).await else {
                time::sleep(RETRY_INTERVAL).await;
                continue;
            };
            let Ok(share) = back.tree_connect(&self.cluster.share(node)).await else { continue };
            while let Some(file) = missing.last() {
                match share.create(file.reconnect_request()).await {
                    Ok(open) if open.file_id().persistent == file.file_id().persistent => {
                        missing.pop();
                    }
                    Err(err) if err.status().is_none() => break,
                    Ok(_) | Err(_) => {
                        refusals += 1;
                        if struck.elapsed() >= GIVE_UP_AFTER {
                            break;
                        }
                        time::sleep(RETRY_INTERVAL).await;
                    }
                }
            }
            if missing.is_empty() {
                let reclaimed = Some(struck.elapsed());
                return Ending { reclaimed, lost: 0, refusals, ctdb_recovered: None };
            }
        }
        Ending { reclaimed: None, lost: missing.len(), refusals, ctdb_recovered: None }
    }

    /// Waits until a survivor's `ctdbd` says that it has recovered from the victim's death.
    async fn ctdb_recovery(&self, survivor: usize, victim: usize, struck: Instant) -> Option<Duration> {
        let ctdbd = self.cluster.ctdbd(survivor)?;
        while struck.elapsed() < GIVE_UP_AFTER {
            if let Some(status) = ctdbd.status().await
                && status.recovered
                && !status.healthy[victim]
            {
                return Some(struck.elapsed());
            }
            time::sleep(WATCH_INTERVAL).await;
        }
        None
    }

    fn failed(&self) -> impl FnOnce(SmbError) -> ContestError + use<> {
        let contest = self.contest;
        move |source| ContestError::Client { contest, source }
    }
}
