//! An SMB server that speaks no SMB: it attaches to a sidecar over gRPC as a server without a shim does, and asks
//! for the opens that its clients would hold. So the story of a failover can be told where no Samba is installed.

use std::{path::PathBuf, sync::Arc, time::Instant};

use proto::pb::{
    handles::v1::{
        AskRequest, AttachEvent, AttachRequest, attach_event::Event, handles_client::HandlesClient,
    },
    ops::v1::HandlesRequest,
    storage::v1::FromSmbNode,
};
use statedb::{
    AccessMask, ByteRangeLock, ClientGuid, CreateGuid, CreateOptions, Durability, DurableFileId, FileKey,
    Lease, LeaseEpoch, LeaseKey, LeaseState, LeaseVersion, Millis, Open, OpenDescription, OpenState, Oplock,
    OplockState, Outcome, Reclaim, Request, ShareAccess, ShareName, Sid,
};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    cluster::{Cluster, ClusterError, ClusterOptions, node_id},
    process::ProcessError,
    story::{Ending, Reclaimed, Watch},
};

/// The share of the story.
const SHARE: &str = "data";

/// Why the story cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum StandInError {
    /// The cluster does not work.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A node cannot be killed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A sidecar cannot be reached.
    #[error("the sidecar at {address} cannot be reached")]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// A sidecar did not do as it was asked.
    #[error("the sidecar does not {what}")]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// What it said.
        source: Status,
    },
    /// A message made no sense.
    #[error("the sidecar's answer makes no sense")]
    Wire(#[from] proto::WireError),
    /// The cluster decided otherwise.
    #[error("the stand-in wanted to {what} and was told: {outcome}")]
    Decided {
        /// What it wanted.
        what: &'static str,
        /// What it was told.
        outcome: Outcome,
    },
}

/// A server that is attached to a sidecar. Dropping it is its death.
#[derive(Debug)]
pub struct StandIn {
    sidecar: HandlesClient<Channel>,
    incarnation: u64,
    /// As long as this is open the cluster counts the server as alive.
    _events: Streaming<AttachEvent>,
}

impl StandIn {
    /// Attaches a new server to the sidecar of a node.
    pub async fn attach(cluster: &Cluster, node: usize) -> Result<Self, StandInError> {
        let address = format!("http://{}", cluster.address(node));
        let channel = Endpoint::from_shared(address.clone());
        let channel = match channel {
            Ok(endpoint) => endpoint.connect().await,
            Err(error) => Err(error),
        };
        let mut sidecar =
            HandlesClient::new(channel.map_err(|source| StandInError::Connect { address, source })?);
        let refused = |source| StandInError::Refused { what: "let a server attach", source };
        let instance = rand::random::<[u8; 16]>().to_vec();
        let mut events = sidecar.attach(AttachRequest { instance }).await.map_err(refused)?.into_inner();
        let first = events.message().await.map_err(refused)?;
        match first.and_then(|first| first.event) {
            Some(Event::Attached(attached)) => {
                Ok(Self { sidecar, incarnation: attached.incarnation, _events: events })
            }
            _ => Err(refused(Status::failed_precondition("fenced before it began"))),
        }
    }

    /// Asks the cluster, and waits for what it decides.
    pub async fn ask(&self, what: &'static str, request: Request) -> Result<Outcome, StandInError> {
        let what_pb = FromSmbNode { proposer: None, request: Some((&request).into()) };
        let request = AskRequest { incarnation: self.incarnation, what: Some(what_pb) };
        let answer = self.sidecar.clone().ask(request).await;
        let answer = answer.map_err(|source| StandInError::Refused { what, source })?.into_inner();
        Ok(proto::convert::required("AskResponse", "outcome", answer.outcome)?.try_into()?)
    }

    async fn must(&self, what: &'static str, request: Request, wanted: &Outcome) -> Result<(), StandInError> {
        match self.ask(what, request).await? {
            outcome if outcome == *wanted => Ok(()),
            outcome => Err(StandInError::Decided { what, outcome }),
        }
    }
}

/// The story of [`crate::story::Story`], without Samba.
#[derive(Debug)]
pub struct StandInStory {
    cluster: Cluster,
    servers: Vec<StandIn>,
    victim: usize,
}

impl StandInStory {
    /// Starts the cluster, attaches a server to each node, and opens the files through the leader's.
    pub async fn begin(program: PathBuf) -> Result<Self, StandInError> {
        let mut cluster = Cluster::start(ClusterOptions::without_samba(program)).await?;
        let victim = cluster.leader().await?;
        let mut servers = Vec::new();
        for node in 0..cluster.len() {
            servers.push(StandIn::attach(&cluster, node).await?);
        }
        let server = &servers[victim];
        server
            .must("serve the share", Request::ServeShare(ShareName::new(SHARE)), &Outcome::ShareServed)
            .await?;
        for open in opens() {
            server.must("grant an open", Request::Grant(Box::new(open)), &Outcome::Granted).await?;
        }
        Ok(Self { cluster, servers, victim })
    }

    /// The node that will be killed.
    pub fn victim(&self) -> usize {
        self.victim
    }

    /// Path and kind of what is open.
    pub fn files(&self) -> Vec<(String, String)> {
        opens().into_iter().map(|open| (open.path, format!("{}, {}", open.durability, open.oplock))).collect()
    }

    /// Kills the victim, and claims its opens through the server beside the next node.
    pub async fn kill_and_reclaim(mut self) -> Result<Ending, StandInError> {
        let survivor = (self.victim + 1) % self.cluster.len();
        let mut operator = self.cluster.operator(survivor).await?;
        let watch = Watch::start(operator.clone(), self.victim);
        let killed = Instant::now();
        self.cluster.kill(self.victim)?;

        let server = &self.servers[survivor];
        // A stand-in has no gate that holds its clients, so it asks until the share is free.
        while server.ask("serve the share", Request::ServeShare(ShareName::new(SHARE))).await?
            != Outcome::ShareServed
        {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        let let_in = killed.elapsed();
        let mut outcomes = Vec::new();
        for open in opens() {
            let reclaim = Reclaim { durable_file_id: open.durable_file_id, create_guid: open.create_guid };
            outcomes.push((open, server.ask("reclaim an open", Request::Reclaim(reclaim)).await?));
        }
        let reclaimed = killed.elapsed();

        let refused = |source| StandInError::Refused { what: "list the opens", source };
        let mut listing = operator.handles(HandlesRequest::default()).await.map_err(refused)?.into_inner();
        let mut now: Vec<Open> = Vec::new();
        while let Some(message) = listing.message().await.map_err(refused)? {
            for open in message.opens {
                now.push(open.try_into()?);
            }
        }
        let files = outcomes
            .into_iter()
            .map(|(open, outcome)| Reclaimed {
                path: open.path.clone(),
                id: open.durable_file_id.0,
                broken: what_is_broken(&open, &outcome, &now, survivor),
            })
            .collect();
        Ok(watch.ending(survivor, killed, let_in, reclaimed, files))
    }
}

/// What is not as it was before the kill, if anything.
fn what_is_broken(
    before: &OpenDescription,
    outcome: &Outcome,
    now: &[Open],
    survivor: usize,
) -> Option<String> {
    if *outcome != Outcome::Reclaimed {
        return Some(outcome.to_string());
    }
    let Some(open) = now.iter().find(|open| open.description.durable_file_id == before.durable_file_id)
    else {
        return Some("the survivor does not list it".to_owned());
    };
    let owner = match open.state {
        OpenState::Connected { owner } => owner.node.0,
        OpenState::Disconnected { .. } => return Some("the survivor lists it as disconnected".to_owned()),
    };
    if owner != node_id(survivor) {
        return Some(format!("it belongs to node {owner}"));
    }
    let kept = open.description.oplock == before.oplock
        && open.description.byte_range_locks == before.byte_range_locks;
    (!kept).then(|| "its oplock, lease or locks have changed".to_owned())
}

/// What a client of the stand-in would hold open.
fn opens() -> [OpenDescription; 3] {
    let lease = |key| {
        Oplock::Lease(Lease {
            key: LeaseKey([key; 16]),
            state: LeaseState(LeaseState::READ | LeaseState::WRITE | LeaseState::HANDLE),
            epoch: LeaseEpoch(1),
            version: LeaseVersion::V2,
        })
    };
    let lock = ByteRangeLock { offset: 0, length: 100, exclusive: true };
    let open = |id: u8, path: &str, oplock, durability, byte_range_locks| OpenDescription {
        durable_file_id: DurableFileId(u64::from(id)),
        create_guid: if durability == Durability::DurableV1 {
            CreateGuid::default()
        } else {
            CreateGuid([id; 16])
        },
        client_guid: ClientGuid([7; 16]),
        app_instance_id: None,
        durable_owner: Sid("S-1-5-21-1-2-3-1000".to_owned()),
        share: ShareName::new(SHARE),
        path: path.to_owned(),
        file: FileKey { device: 1, inode: u64::from(id), extid: 0 },
        granted_access: AccessMask(0x0012_019f),
        share_access: ShareAccess(7),
        create_options: CreateOptions::default(),
        oplock,
        oplock_state: OplockState::Held,
        durability,
        durable_open_timeout: Millis(60_000),
        byte_range_locks,
        lock_sequence_array: Vec::new(),
        delete_on_close: false,
        position: 0,
        image: Arc::default(),
    };
    [
        open(1, "report.docx", lease(1), Durability::DurableV2, Vec::new()),
        open(2, "ledger.db", Oplock::Batch, Durability::DurableV2, vec![lock]),
        open(3, "notes.txt", lease(3), Durability::DurableV1, Vec::new()),
    ]
}
