//! The story of [`crate::story`] without Samba: beside each sidecar an SMB server that speaks no SMB, and one client
//! that they all tell the cluster about.

use std::{path::PathBuf, time::Instant};

use futures::{StreamExt, TryStreamExt, stream};
use statedb::{
    Create, CreateContexts, Dialect, DurableFileId, Lock, LockElement, LockKind, LockSequence,
    OpenDescription, OpenedHow, Oplock,
};

use crate::{
    client_machine::{ClientMachine, RWH, durable_v2, lease},
    cluster::{Cluster, ClusterError, ClusterOptions},
    process::ProcessError,
    smb_node::{Granted, SmbNode, SmbNodeError},
    story::{Ending, Reclaimed, Watch},
};

/// Why the story cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum StandInError {
    /// The cluster does not work.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A node cannot be killed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A server did not get what it asked for.
    #[error("the server cannot {what}")]
    Server {
        /// What it wanted.
        what: &'static str,
        /// Why not.
        source: SmbNodeError,
    },
    /// An open is not what the story is about.
    #[error("{path} was opened without durability")]
    NotDurable {
        /// Which.
        path: String,
    },
}

/// A file that the client holds open.
#[derive(Debug)]
struct HeldFile {
    /// By which it was opened.
    create: Create,
    granted: Granted,
    /// What is locked in it.
    lock: Option<LockElement>,
}

/// The story of [`crate::story::Story`], without Samba.
#[derive(Debug)]
pub struct StandInStory {
    // First, so that no server outlives its sidecar.
    servers: Vec<SmbNode>,
    cluster: Cluster,
    client: ClientMachine,
    victim: usize,
    files: Vec<HeldFile>,
}

impl StandInStory {
    /// Starts the cluster, attaches a server to each node, and opens the files through the leader's.
    pub async fn begin(program: PathBuf) -> Result<Self, StandInError> {
        let mut cluster = Cluster::start(ClusterOptions::without_samba(program)).await?;
        let victim = cluster.leader().await?;
        let mut servers = Vec::new();
        for node in 0..cluster.len() {
            servers.push(attach(&cluster.sidecar(node)).await?);
        }
        let client = ClientMachine::new();
        let files = stream::iter(wishes(&client));
        let files = files.then(|wish| hold(&servers[victim], wish)).try_collect().await?;
        Ok(Self { servers, cluster, client, victim, files })
    }

    /// The node that will be killed.
    pub fn victim(&self) -> usize {
        self.victim
    }

    /// Path and kind of what is open.
    pub fn files(&self) -> Vec<(String, String)> {
        let kind = |file: &HeldFile| {
            let version = if file.create.contexts.durable_request { "v1" } else { "v2" };
            let lock = if file.lock.is_some() { ", bytes locked" } else { "" };
            format!("durable {version}, {}{lock}", file.granted.opened.oplock)
        };
        self.files.iter().map(|file| (file.create.path.to_string(), kind(file))).collect()
    }

    /// Kills the victim, and lets the client claim its files through the server beside the next node.
    pub async fn kill_and_reclaim(mut self) -> Result<Ending, StandInError> {
        let survivor = (self.victim + 1) % self.cluster.len();
        let watch = Watch::start(self.cluster.operator(survivor).await?, self.victim);
        let killed = Instant::now();
        self.cluster.kill(self.victim)?;

        let server = &self.servers[survivor];
        let client = self.client.in_new_session();
        let previous = self.client.session();
        let replaced = server.replace_session(previous, client.client.user.clone()).await;
        replaced.map_err(cannot("let the client in"))?;
        let let_in = killed.elapsed();
        let mut files = Vec::new();
        for file in &self.files {
            let id = file.granted.opened.durable_file_id;
            let claim = server.create(client.reconnect(&file.create, id), || {}).await;
            files.push(Reclaimed {
                path: file.create.path.to_string(),
                id: id.0,
                broken: claim
                    .map_or_else(|error| Some(error.to_string()), |claimed| file.what_is_missing(&claimed)),
            });
        }
        Ok(watch.ending(survivor, killed, let_in, killed.elapsed(), files))
    }
}

impl HeldFile {
    /// What is not as it was before the kill, if anything.
    fn what_is_missing(&self, claimed: &Granted) -> Option<String> {
        let (before, after) = (self.granted.opened, claimed.opened);
        if (after.durable_file_id, after.how) != (before.durable_file_id, OpenedHow::Reconnected) {
            return Some(format!("this is another open: {after:?}"));
        }
        if after.oplock != before.oplock {
            return Some(format!("its oplock or lease was {:?} and is {:?}", before.oplock, after.oplock));
        }
        let Some(OpenDescription { byte_range_locks, .. }) = &claimed.open else {
            return Some("the survivor is not told what it is like".to_owned());
        };
        let is_kept = match self.lock {
            None => byte_range_locks.is_empty(),
            Some(lock) => matches!(
                byte_range_locks.as_slice(),
                [kept] if (kept.offset, kept.length) == (lock.offset, lock.length)
            ),
        };
        (!is_kept).then(|| format!("{:?} was locked, and {byte_range_locks:?} is", self.lock))
    }
}

async fn attach(sidecar: &str) -> Result<SmbNode, StandInError> {
    SmbNode::attach(sidecar, statedb::Instance(rand::random())).await.map_err(cannot("attach"))
}

/// What the client wants open, and locked in it.
fn wishes(client: &ClientMachine) -> [(Create, Option<LockElement>); 3] {
    let durable_v1 = CreateContexts { durable_request: true, ..CreateContexts::default() };
    let lock = LockElement { offset: 0, length: 100, kind: LockKind::Exclusive };
    [
        (client.durable_create("report.docx", RWH), None),
        (
            Create { requested: Oplock::Batch, contexts: durable_v2(false), ..client.create("ledger.db") },
            Some(lock),
        ),
        (Create { requested: lease(RWH), contexts: durable_v1, ..client.create("notes.txt") }, None),
    ]
}

/// Opens a file, and locks what is to be locked.
async fn hold(
    server: &SmbNode,
    (create, lock): (Create, Option<LockElement>),
) -> Result<HeldFile, StandInError> {
    let granted = server.create(create.clone(), || {}).await.map_err(cannot("open a file"))?;
    if granted.opened.durable.is_none() {
        return Err(StandInError::NotDurable { path: create.path.to_string() });
    }
    if let Some(element) = lock {
        let locked = server.lock(exclusive_lock(granted.opened.durable_file_id, element)).await;
        locked.map_err(cannot("lock a file"))?;
    }
    Ok(HeldFile { create, granted, lock })
}

fn exclusive_lock(open: DurableFileId, element: LockElement) -> Lock {
    let sequence = LockSequence::default();
    Lock { open, elements: vec![element], sequence, dialect: Dialect::Smb311, multichannel: false }
}

fn cannot(what: &'static str) -> impl FnOnce(SmbNodeError) -> StandInError {
    move |source| StandInError::Server { what, source }
}
