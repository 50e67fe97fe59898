//! One failover from beginning to end, with a stop-watch: what the demo tells and the measurements repeat.
//!
//! The victim is the node that serves the client *and* leads the Raft group: then an election, a verdict, the
//! placing of the orphans and the reclaim all have to happen before the client has its files back.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use proto::pb::ops::v1::{StatusRequest, ops_client::OpsClient};
use tokio::{task::JoinHandle, time};
use tonic::transport::Channel;

use crate::{
    cluster::{Cluster, ClusterError, ClusterOptions, node_id},
    samba::SambaTools,
    smb_client::{Client, CreateRequest, Lease, LeaseState, OplockLevel, Session, SmbError},
    workload::{Promise, Wish},
};

/// How often the survivor is asked what it knows: the resolution of what is only seen from outside.
const WATCH_INTERVAL: Duration = Duration::from_millis(2);

/// Why a story cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum StoryError {
    /// The cluster does not work.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A node cannot be killed.
    #[error(transparent)]
    Process(#[from] crate::process::ProcessError),
    /// The client got an error where there should be none.
    #[error("the client cannot {what}")]
    Client {
        /// What it wanted.
        what: &'static str,
        /// What it got.
        source: SmbError,
    },
}

/// A file that the client holds open.
#[derive(Debug)]
pub struct HeldFile {
    /// Its path.
    pub path: &'static str,
    /// What was granted, in words.
    pub granted: &'static str,
    promise: Promise,
}

/// A cluster, and a client that holds files open on the node that leads it.
#[derive(Debug)]
pub struct Story {
    cluster: Cluster,
    client: Client,
    session: Session,
    victim: usize,
    files: Vec<HeldFile>,
}

impl Story {
    /// Starts the cluster and opens the files.
    pub async fn begin(program: PathBuf, samba: SambaTools) -> Result<Self, StoryError> {
        let mut cluster = Cluster::start(ClusterOptions::with_samba(program, samba)).await?;
        let victim = cluster.leader().await?;
        let client = Client::new(cluster.credentials());
        let (session, files) = hold(&cluster, &client, victim).await?;
        Ok(Self { cluster, client, session, victim, files })
    }

    /// Starts the victim of the last kill again and opens the files anew, on the node that leads by now.
    pub async fn begin_again(&mut self) -> Result<(), StoryError> {
        self.cluster.start_node(self.victim).await?;
        self.victim = self.cluster.leader().await?;
        (self.session, self.files) = hold(&self.cluster, &self.client, self.victim).await?;
        Ok(())
    }

    /// The node that will be killed.
    pub fn victim(&self) -> usize {
        self.victim
    }

    /// What the client holds.
    pub fn files(&self) -> &[HeldFile] {
        &self.files
    }

    /// Kills the victim and lets the client claim its files on the next node, at once and without a pause.
    pub async fn kill_and_reclaim(&mut self) -> Result<Ending, StoryError> {
        let survivor = (self.victim + 1) % self.cluster.len();
        let watch = Watch::start(self.cluster.operator(survivor).await?, self.victim);
        let (server, share) = (self.cluster.smb_address(survivor), self.cluster.share(survivor));

        let killed = Instant::now();
        self.cluster.kill(self.victim)?;
        let session = self
            .client
            .reconnect(server, self.session.id())
            .await
            .map_err(cannot("connect to the survivor"))?;
        let share = session.tree_connect(&share).await.map_err(cannot("enter the share on the survivor"))?;
        let let_in = killed.elapsed();
        let mut files = Vec::new();
        for file in &self.files {
            let claim = file.promise.claim(&share).await;
            let id = file.promise.open.file_id().persistent;
            files.push(Reclaimed {
                path: file.path.to_owned(),
                id,
                broken: claim.err().map(|broken| broken.what),
            });
        }
        let reclaimed = killed.elapsed();
        Ok(watch.ending(survivor, killed, let_in, reclaimed, files))
    }
}

/// Opens the files of the story on a node.
async fn hold(
    cluster: &Cluster,
    client: &Client,
    node: usize,
) -> Result<(Session, Vec<HeldFile>), StoryError> {
    let session = client.connect(cluster.smb_address(node)).await.map_err(cannot("connect"))?;
    let share = session.tree_connect(&cluster.share(node)).await.map_err(cannot("enter the share"))?;
    let mut files = Vec::new();
    for (path, granted, wish) in wishes() {
        let promise = wish.obtain(&share).await.map_err(cannot("open a file"))?;
        files.push(HeldFile { path, granted, promise });
    }
    Ok((session, files))
}

/// How the story ended. Times count from the SIGKILL.
#[derive(Debug)]
pub struct Ending {
    /// The node that the client turned to.
    pub survivor: usize,
    /// The survivor knew a new leader; `None` if that could not be seen.
    pub new_leader: Option<Duration>,
    /// The survivor knew that the victim had been declared down; `None` if that could not be seen.
    pub declared_down: Option<Duration>,
    /// The client was let into the share: the orphans were in the survivor's databases.
    pub let_in: Duration,
    /// The client had claimed all its files.
    pub reclaimed: Duration,
    /// What it claimed.
    pub files: Vec<Reclaimed>,
}

impl Ending {
    /// What happened when, in the order of the design.
    pub fn phases(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        [
            ("a new leader is elected", self.new_leader),
            ("the dead node is declared down", self.declared_down),
            ("its opens are in the survivor's databases, the client is let in", Some(self.let_in)),
            ("all handles are reclaimed and checked", Some(self.reclaimed)),
        ]
        .into_iter()
        .filter_map(|(phase, moment)| Some((phase, moment?)))
    }
}

/// A file after the failover.
#[derive(Debug)]
pub struct Reclaimed {
    /// Its path.
    pub path: String,
    /// The open's persistent id, before and after.
    pub id: u64,
    /// What is missing or different; `None` if everything is as it was promised.
    pub broken: Option<String>,
}

/// The files of the story, and what each shows.
fn wishes() -> [(&'static str, &'static str, Wish); 3] {
    let leased = || Lease::request(LeaseState::READ_WRITE_HANDLE);
    let text = |text: &str| Some(text.as_bytes().to_vec());
    [
        (
            "report.docx",
            "durable v2, RWH lease, data written",
            Wish {
                request: CreateRequest::new("report.docx").with_lease(leased()).durable_v2(),
                lock: false,
                write: text("Second quarter: everything held."),
            },
        ),
        (
            "ledger.db",
            "durable v2, batch oplock, bytes locked, data written",
            Wish {
                request: CreateRequest::new("ledger.db").with_oplock(OplockLevel::Batch).durable_v2(),
                lock: true,
                write: text("debit 17, credit 17"),
            },
        ),
        (
            "notes.txt",
            "durable v1, RWH lease",
            Wish {
                request: CreateRequest::new("notes.txt").with_lease(leased()).durable_v1(),
                lock: false,
                write: None,
            },
        ),
    ]
}

/// Asks the survivor again and again, and notes when it first knew something.
pub(crate) struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// When the survivor first knew it.
#[derive(Clone, Copy, Default)]
struct Seen {
    new_leader: Option<Instant>,
    declared_down: Option<Instant>,
}

impl Watch {
    pub(crate) fn start(mut survivor: OpsClient<Channel>, victim: usize) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noted = Arc::clone(&seen);
        let victim = node_id(victim);
        let task = tokio::spawn(async move {
            loop {
                // No answer is no news.
                if let Ok(status) = survivor.status(StatusRequest {}).await {
                    let (now, status) = (Instant::now(), status.into_inner());
                    let mut seen = noted.lock().expect("nobody panics while holding it");
                    if status.leader.is_some_and(|leader| leader != victim) {
                        seen.new_leader.get_or_insert(now);
                    }
                    if status.nodes.iter().any(|node| node.node_id == victim && !node.up) {
                        seen.declared_down.get_or_insert(now);
                    }
                }
                time::sleep(WATCH_INTERVAL).await;
            }
        });
        Self { seen, task }
    }

    /// Stops watching, and puts what was seen together with what was measured since the kill.
    pub(crate) fn ending(
        self,
        survivor: usize,
        killed: Instant,
        let_in: Duration,
        reclaimed: Duration,
        files: Vec<Reclaimed>,
    ) -> Ending {
        self.task.abort();
        let Seen { new_leader, declared_down } = *self.seen.lock().expect("nobody panics while holding it");
        let after_kill = |moment: Option<Instant>| moment.map(|moment| moment.duration_since(killed));
        Ending {
            survivor,
            new_leader: after_kill(new_leader),
            declared_down: after_kill(declared_down),
            let_in,
            reclaimed,
            files,
        }
    }
}

fn cannot(what: &'static str) -> impl FnOnce(SmbError) -> StoryError {
    move |source| StoryError::Client { what, source }
}
