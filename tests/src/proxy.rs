//! A TCP proxy that turns a test for one SMB server into a failover test: it stands in front of several
//! nodes, gives each new connection of the client to one of them, and in some modes harms nodes while the
//! client believes that it has merely lost a connection.
//!
//! What must stay true:
//! - In the modes that kill, the node is dead *before* it can learn that the client closed the connection. A
//!   server that sees the FIN keeps its durable opens in an orderly way, and the test would prove nothing. For
//!   the same reason a node that was cut off never hears of a close.
//! - Every close that came before has been acted on before a connection is routed, and before anything that a client
//!   sends is carried on. A close that is noticed too late would send the client back to the old node, where its test
//!   passes for the wrong reason, or let another client's request arrive at a node that should be dead by then. Even
//!   so every test must assert the path it means ([`Proxy::backend_of`]).

mod responses;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt, io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use clap::ValueEnum;
use futures::future::BoxFuture;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time,
};

use self::responses::Responses;
use crate::{net, smb_client::NtStatus};

/// How long a node may take to accept a connection before the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes carried from one side to the other at a time.
const BUFFER_LEN: usize = 64 << 10;

/// What pumps have reported and the router has not acted on. A reporter waits anyway.
const QUEUED_REPORTS_MAX: usize = 16;

/// Which node a connection goes to, and what happens to nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Every connection to the first node: the control.
    Pin,
    /// Each connection to the node after the last one's.
    #[value(name = "rr")]
    RoundRobin,
    /// Connections go to one node until the client closes one of them; from then on to the next node. The old
    /// one lives.
    Switch,
    /// As `Switch`, but the old node is killed.
    Kill,
    /// Every connection to the first node, as long as that lives; of that node, the process that served a
    /// connection is killed when the client closes it.
    KillChild,
    /// The first connection to the first node, all others to the second. The first node is killed when the
    /// client closes the first connection.
    #[value(name = "ksplit")]
    KillSplit,
    /// As `Switch`, but the old node is cut off from the others and lives.
    Partition,
}

/// The name that the command line has for it.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no mode is hidden");
        f.write_str(value.get_name())
    }
}

/// A mode, and how far it goes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The mode.
    pub mode: Mode,
    /// How often harm is done. After that a close changes nothing any more.
    pub harms_max: usize,
}

impl From<Mode> for Plan {
    /// Harm at every close that the mode means.
    fn from(mode: Mode) -> Self {
        Self { mode, harms_max: usize::MAX }
    }
}

/// What can be done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Everything of it gets SIGKILL.
    Kill,
    /// The process that serves one connection gets SIGKILL, and nothing else.
    KillChild {
        /// Where the connection comes from, as the node sees it.
        peer: SocketAddr,
    },
    /// It goes on and cannot reach the other nodes any more.
    CutOff,
}

/// Why a node could not be harmed.
pub type HarmError = Box<dyn Error + Send + Sync>;

/// Harms a node, given by its index, and returns when that is done: when nothing of what was to be killed is left.
pub type Hurt = Box<dyn Fn(usize, Harm) -> BoxFuture<'static, Result<(), HarmError>> + Send + Sync>;

/// Something that happened at the proxy. Connections are counted from 1, backends from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection was given to a node.
    Routed {
        /// The connection.
        connection: usize,
        /// The node.
        backend: usize,
    },
    /// No node accepted it; it was closed.
    Refused {
        /// The connection.
        connection: usize,
    },
    /// The node has answered a tree connect.
    TreeConnect {
        /// On which connection.
        connection: usize,
        /// How.
        status: NtStatus,
    },
    /// The client closed it.
    ClosedByClient {
        /// The connection.
        connection: usize,
    },
    /// A node was harmed.
    Harmed {
        /// The node.
        backend: usize,
        /// In which way.
        harm: Harm,
    },
    /// A node should have been harmed, and was not. No connection is routed after that.
    HarmFailed {
        /// The node.
        backend: usize,
        /// Why not.
        problem: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Routed { connection, backend } => write!(f, "c{connection} -> backend {backend}"),
            Self::Refused { connection } => write!(f, "c{connection} -> nowhere: no backend accepts it"),
            Self::TreeConnect { connection, status } => write!(f, "c{connection} tree connect: {status}"),
            Self::ClosedByClient { connection } => write!(f, "c{connection} closed by the client"),
            Self::Harmed { backend, harm: Harm::Kill } => write!(f, "backend {backend} killed"),
            Self::Harmed { backend, harm: Harm::KillChild { .. } } => {
                write!(f, "backend {backend}: the process of that connection killed")
            }
            Self::Harmed { backend, harm: Harm::CutOff } => write!(f, "backend {backend} cut off"),
            Self::HarmFailed { backend, problem } => write!(f, "backend {backend} not harmed: {problem}"),
        }
    }
}

/// What has happened at a proxy so far.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    fn note(&self, event: Event) {
        self.0.lock().expect("nobody panics while holding it").push(event);
    }

    fn events(&self) -> Vec<Event> {
        self.0.lock().expect("nobody panics while holding it").clone()
    }
}

/// A running proxy. Dropping it closes everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    log: Log,
    router: AbortHandle,
}

impl Proxy {
    /// Starts a proxy before the given nodes. `hurt` is called in the modes that harm, for one node at a time.
    ///
    /// # Panics
    /// When there are no backends.
    pub async fn start(plan: impl Into<Plan>, backends: Vec<SocketAddr>, hurt: Hurt) -> io::Result<Self> {
        assert!(!backends.is_empty(), "a proxy needs a backend");
        let address = net::free_endpoint();
        let listener = TcpListener::bind(address).await?;
        let log = Log::default();
        let (reporter, reports) = mpsc::channel(QUEUED_REPORTS_MAX);
        let router = Router {
            plan: plan.into(),
            backends,
            hurt,
            harms: 0,
            broken: false,
            cut_off: BTreeSet::new(),
            current: 0,
            connections: 0,
            open: BTreeMap::new(),
            pumps: JoinSet::new(),
            reporter,
            log: log.clone(),
        };
        let router = tokio::spawn(router.run(listener, reports)).abort_handle();
        Ok(Self { address, log, router })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has happened so far.
    pub fn log(&self) -> Vec<Event> {
        self.log.events()
    }

    /// The node that a connection (counted from 1) was given to.
    pub fn backend_of(&self, connection: usize) -> Option<usize> {
        self.log().into_iter().find_map(|event| match event {
            Event::Routed { connection: routed, backend } if routed == connection => Some(backend),
            _ => None,
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.router.abort();
    }
}

/// A client's connection that was routed and has not been closed by the client.
struct OpenConnection {
    backend: usize,
    /// Where the node sees it come from.
    peer: SocketAddr,
    /// The client's socket, to look for a FIN that nobody has read yet.
    client: OwnedFd,
    /// The node's, to look whether the process behind it is gone.
    server: OwnedFd,
}

/// What a pump asks the router.
enum Report {
    /// The client closed this connection.
    Closed {
        connection: usize,
        backend: usize,
        /// Told whether the node may hear of it, when that has been acted on.
        acted_on: oneshot::Sender<bool>,
    },
    /// A client has sent something.
    Sent {
        /// Told when every close before that has been acted on.
        acted_on: oneshot::Sender<()>,
    },
}

/// Owns all decisions; the pumps only carry bytes.
struct Router {
    plan: Plan,
    backends: Vec<SocketAddr>,
    hurt: Hurt,
    /// How often harm was done.
    harms: usize,
    /// Harm could not be done: what is seen from here on would prove nothing.
    broken: bool,
    /// Nodes that no close may reach.
    cut_off: BTreeSet<usize>,
    /// The node that the next connection goes to, if it accepts.
    current: usize,
    /// Connections accepted so far.
    connections: usize,
    open: BTreeMap<usize, OpenConnection>,
    pumps: JoinSet<()>,
    reporter: mpsc::Sender<Report>,
    log: Log,
}

impl Router {
    async fn run(mut self, listener: TcpListener, mut reports: mpsc::Receiver<Report>) {
        loop {
            tokio::select! {
                report = reports.recv() => {
                    self.act_on(report.expect("the router holds a sender")).await;
                }
                accepted = listener.accept() => {
                    // An error belongs to that one connection (accept(2)).
                    if let Ok((client, _)) = accepted {
                        self.act_on_unread_closes().await;
                        self.route(client).await;
                    }
                }
                Some(_) = self.pumps.join_next() => {}
            }
        }
    }

    /// The client may have closed connections before what it did last, and their pumps have not got round to it.
    async fn act_on_unread_closes(&mut self) {
        let closed: Vec<usize> = self
            .open
            .iter()
            .filter(|(_, open)| has_hung_up(&open.client))
            .map(|(&connection, _)| connection)
            .collect();
        for connection in closed {
            self.client_closed(connection).await;
        }
    }

    async fn act_on(&mut self, report: Report) {
        // Whoever reports may have been cut short, and hear no answer.
        match report {
            Report::Closed { connection, backend, acted_on } => {
                self.client_closed(connection).await;
                let _ = acted_on.send(!self.cut_off.contains(&backend));
            }
            Report::Sent { acted_on } => {
                self.act_on_unread_closes().await;
                let _ = acted_on.send(());
            }
        }
    }

    async fn client_closed(&mut self, connection: usize) {
        // Absent: acted on already, or what served it was killed.
        let Some(OpenConnection { backend, peer, .. }) = self.open.remove(&connection) else {
            return;
        };
        self.log.note(Event::ClosedByClient { connection });
        let harm = match self.plan.mode {
            Mode::Pin | Mode::RoundRobin => None,
            Mode::Switch => {
                self.current = self.after(backend);
                None
            }
            Mode::KillSplit if connection > 1 => None,
            Mode::Kill | Mode::KillSplit => Some(Harm::Kill),
            Mode::KillChild => Some(Harm::KillChild { peer }),
            Mode::Partition => Some(Harm::CutOff),
        };
        // In a partition, connections to the lost side live on and may be closed later.
        if self.cut_off.contains(&backend) {
            return;
        }
        let Some(harm) = harm.filter(|_| self.harms < self.plan.harms_max) else {
            return;
        };
        self.harm(backend, harm).await;
        if harm != (Harm::KillChild { peer }) {
            self.current = self.after(backend);
        }
    }

    async fn harm(&mut self, backend: usize, harm: Harm) {
        if let Err(err) = (self.hurt)(backend, harm).await {
            let problem = node::telemetry::chain(err.as_ref()).to_string();
            self.broken = true;
            self.log.note(Event::HarmFailed { backend, problem });
            return;
        }
        self.harms += 1;
        self.log.note(Event::Harmed { backend, harm });
        match harm {
            Harm::Kill => self.open.retain(|_, open| open.backend != backend),
            // One process may have served several connections.
            Harm::KillChild { .. } => self.open.retain(|_, open| !has_hung_up(&open.server)),
            Harm::CutOff => drop(self.cut_off.insert(backend)),
        }
    }

    async fn route(&mut self, client: TcpStream) {
        self.connections += 1;
        let connection = self.connections;
        let first = match self.plan.mode {
            Mode::Pin | Mode::KillChild => 0,
            Mode::RoundRobin | Mode::Switch | Mode::Kill | Mode::Partition => self.current,
            Mode::KillSplit => usize::from(connection > 1) % self.backends.len(),
        };
        let Some((backend, upstream)) = self.connect(first).await else {
            self.log.note(Event::Refused { connection });
            return;
        };
        let Ok(open) = OpenConnection::new(backend, &client, &upstream) else { return };
        self.current = if self.plan.mode == Mode::RoundRobin { self.after(backend) } else { backend };
        self.open.insert(connection, open);
        self.log.note(Event::Routed { connection, backend });
        let pump = Pump { connection, backend, router: self.reporter.clone(), log: self.log.clone() };
        self.pumps.spawn(pump.run(client, upstream));
    }

    /// Connects to the first node that accepts, from `first` on; in the modes that stay at one, to that alone.
    async fn connect(&self, first: usize) -> Option<(usize, TcpStream)> {
        let candidates = match self.plan.mode {
            _ if self.broken => 0,
            Mode::Pin | Mode::KillChild => 1,
            _ => self.backends.len(),
        };
        for backend in (first..first + candidates).map(|index| index % self.backends.len()) {
            let connect = TcpStream::connect(self.backends[backend]);
            if let Ok(Ok(upstream)) = time::timeout(CONNECT_TIMEOUT, connect).await {
                return Some((backend, upstream));
            }
        }
        None
    }

    fn after(&self, backend: usize) -> usize {
        (backend + 1) % self.backends.len()
    }
}

impl OpenConnection {
    fn new(backend: usize, client: &TcpStream, server: &TcpStream) -> io::Result<Self> {
        let peer = server.local_addr()?;
        let (client, server) = (client.as_fd().try_clone_to_owned()?, server.as_fd().try_clone_to_owned()?);
        Ok(Self { backend, peer, client, server })
    }
}

/// Carries the bytes of one connection.
struct Pump {
    connection: usize,
    backend: usize,
    router: mpsc::Sender<Report>,
    log: Log,
}

impl Pump {
    /// Carries bytes both ways until both sides have closed.
    async fn run(self, client: TcpStream, server: TcpStream) {
        // Small messages, each waited for: Nagle's algorithm would add its delay to every one.
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(
            self.client_to_server(from_client, to_server),
            self.server_to_client(from_server, to_client)
        );
    }

    async fn client_to_server(&self, mut from_client: OwnedReadHalf, mut to_server: OwnedWriteHalf) {
        let mut buffer = vec![0; BUFFER_LEN];
        while let Ok(len @ 1..) = from_client.read(&mut buffer).await {
            self.ask(|acted_on| Report::Sent { acted_on }).await;
            // When the server is gone its other direction ends, and that closes the client.
            if to_server.write_all(&buffer[..len]).await.is_err() {
                break;
            }
        }
        let (connection, backend) = (self.connection, self.backend);
        let may_be_heard = self.ask(|acted_on| Report::Closed { connection, backend, acted_on }).await;
        if may_be_heard == Some(false) {
            // Dropping it would send a FIN.
            to_server.forget();
            return;
        }
        // Only now may the server hear of it.
        let _ = to_server.shutdown().await;
    }

    /// Reports, and waits for the answer; there is none when the proxy is gone.
    async fn ask<T>(&self, report: impl FnOnce(oneshot::Sender<T>) -> Report) -> Option<T> {
        let (acted_on, answer) = oneshot::channel();
        self.router.send(report(acted_on)).await.ok()?;
        answer.await.ok()
    }

    async fn server_to_client(&self, mut from_server: OwnedReadHalf, mut to_client: OwnedWriteHalf) {
        let mut buffer = vec![0; BUFFER_LEN];
        let mut responses = Responses::default();
        while let Ok(len @ 1..) = from_server.read(&mut buffer).await {
            for status in responses.read(&buffer[..len]) {
                self.log.note(Event::TreeConnect { connection: self.connection, status });
            }
            // A client that is gone is no reason to stop reading: closing this side would tell the node.
            let _ = to_client.write_all(&buffer[..len]).await;
        }
        let _ = to_client.shutdown().await;
    }
}

/// Whether the other end of a socket has closed it, even if unread data comes before the close.
fn has_hung_up(socket: &OwnedFd) -> bool {
    // Linux has a flag for exactly that, which `nix` does not name. Errors and full hang-ups come unasked.
    let hung_up = PollFlags::from_bits_retain(libc::POLLRDHUP);
    let mut fds = [PollFd::new(socket.as_fd(), hung_up)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A node that greets every connection with its number.
    struct Node {
        address: SocketAddr,
        task: tokio::task::JoinHandle<()>,
    }

    async fn node(number: u8) -> Node {
        let listener = TcpListener::bind(net::free_endpoint()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    stream.write_all(&[number]).await.unwrap();
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                });
            }
        });
        Node { address, task }
    }

    async fn start(plan: impl Into<Plan>) -> (Proxy, Vec<SocketAddr>) {
        let nodes = [node(0).await, node(1).await, node(2).await];
        let addresses: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
        let hurt: Hurt = Box::new(move |backend, harm| {
            let task = nodes[backend].task.abort_handle();
            if harm == Harm::Kill {
                task.abort();
            }
            Box::pin(async move {
                while harm == Harm::Kill && !task.is_finished() {
                    tokio::task::yield_now().await;
                }
                Ok(())
            })
        });
        (Proxy::start(plan, addresses.clone(), hurt).await.unwrap(), addresses)
    }

    fn said(proxy: &Proxy) -> Vec<String> {
        proxy.log().iter().map(Event::to_string).collect()
    }

    async fn connect(proxy: &Proxy) -> (TcpStream, u8) {
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let number = stream.read_u8().await.unwrap();
        (stream, number)
    }

    // A test in another thread that is just starting a process has, for a moment, a copy of every socket of
    // this one, and keeps it open. Hence a shutdown here and some patience below.

    async fn close(mut stream: TcpStream) {
        stream.shutdown().await.unwrap();
    }

    async fn assert_dead(node: SocketAddr) {
        let refused = async {
            while TcpStream::connect(node).await.is_ok() {
                time::sleep(Duration::from_millis(1)).await;
            }
        };
        time::timeout(CONNECT_TIMEOUT, refused).await.expect("the node still accepts connections");
    }

    /// Closes with unread data on the way, then connects: the sequence that a slow proxy gets wrong.
    async fn reconnect(proxy: &Proxy, mut stream: TcpStream) -> (TcpStream, u8) {
        stream.write_all(b"last words").await.unwrap();
        close(stream).await;
        connect(proxy).await
    }

    #[tokio::test]
    async fn pin_stays() {
        let (proxy, _) = start(Mode::Pin).await;
        let (stream, first) = connect(&proxy).await;
        let (_stream, second) = reconnect(&proxy, stream).await;
        assert_eq!((first, second), (0, 0));
        assert_eq!(proxy.backend_of(2), Some(0));
    }

    #[tokio::test]
    async fn round_robin_goes_on_with_every_connection() {
        let (proxy, _) = start(Mode::RoundRobin).await;
        let mut streams = Vec::new();
        for expected in [0, 1, 2, 0] {
            let (stream, number) = connect(&proxy).await;
            assert_eq!(number, expected);
            streams.push(stream);
        }
    }

    #[tokio::test]
    async fn switch_moves_at_a_close_and_kills_nobody() {
        let (proxy, addresses) = start(Mode::Switch).await;
        let (stream, _) = connect(&proxy).await;
        let (_beside, number) = connect(&proxy).await;
        assert_eq!(number, 0, "nothing was closed yet");
        let (_stream, number) = reconnect(&proxy, stream).await;
        assert_eq!(number, 1);
        TcpStream::connect(addresses[0]).await.unwrap();
    }

    #[tokio::test]
    async fn kill_ends_the_node_and_goes_on() {
        let (proxy, addresses) = start(Mode::Kill).await;
        let (mut stream, _) = connect(&proxy).await;
        for expected in [1, 2] {
            let number;
            (stream, number) = reconnect(&proxy, stream).await;
            assert_eq!(number, expected);
        }
        assert_dead(addresses[0]).await;
        assert_eq!(
            said(&proxy),
            [
                "c1 -> backend 0",
                "c1 closed by the client",
                "backend 0 killed",
                "c2 -> backend 1",
                "c2 closed by the client",
                "backend 1 killed",
                "c3 -> backend 2",
            ]
        );
        close(stream).await;
        let mut nobody = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(nobody.read_u8().await.is_err(), "all nodes are dead");
        assert_eq!(proxy.log().last(), Some(&Event::Refused { connection: 4 }));
    }

    #[tokio::test]
    async fn kill_split_kills_the_first_node_alone() {
        let (proxy, addresses) = start(Mode::KillSplit).await;
        let (first, number) = connect(&proxy).await;
        assert_eq!(number, 0);
        let (intruder, number) = connect(&proxy).await;
        assert_eq!(number, 1);
        let (_stream, number) = reconnect(&proxy, intruder).await;
        assert_eq!(number, 1);
        TcpStream::connect(addresses[0]).await.unwrap();
        let (_stream, number) = reconnect(&proxy, first).await;
        assert_eq!(number, 1);
        assert_dead(addresses[0]).await;
    }

    #[tokio::test]
    async fn harm_ends_at_its_limit() {
        let (proxy, _) = start(Plan { mode: Mode::Kill, harms_max: 1 }).await;
        let (mut stream, _) = connect(&proxy).await;
        for _ in 0..3 {
            let number;
            (stream, number) = reconnect(&proxy, stream).await;
            assert_eq!(number, 1);
        }
        assert_eq!(said(&proxy).iter().filter(|event| event.ends_with("killed")).count(), 1);
    }

    #[tokio::test]
    async fn kill_child_names_the_connection_and_stays() {
        let (proxy, _) = start(Mode::KillChild).await;
        let (stream, _) = connect(&proxy).await;
        let (_stream, number) = reconnect(&proxy, stream).await;
        assert_eq!(number, 0);
        let expected = [
            "c1 -> backend 0",
            "c1 closed by the client",
            "backend 0: the process of that connection killed",
            "c2 -> backend 0",
        ];
        assert_eq!(said(&proxy), expected);
    }

    #[tokio::test]
    async fn a_node_that_was_cut_off_lives_and_hears_of_no_close() {
        // What the node has seen of each of its connections when that ended.
        let listener = TcpListener::bind(net::free_endpoint()).await.unwrap();
        let lost = listener.local_addr().unwrap();
        let other = node(1).await;
        let hurt: Hurt = Box::new(|_, _| Box::pin(async { Ok(()) }));
        let proxy = Proxy::start(Mode::Partition, vec![lost, other.address], hurt).await.unwrap();
        let mut clients = Vec::new();
        let mut at_the_node = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(proxy.address()).await.unwrap());
            at_the_node.push(listener.accept().await.unwrap().0);
        }
        // Kept: to drop one of them is a close, for which the other node would be cut off too.
        let mut moved = Vec::new();
        for client in clients {
            let (stream, number) = reconnect(&proxy, client).await;
            assert_eq!(number, 1);
            moved.push(stream);
        }
        for mut stream in at_the_node {
            let mut heard = [0; 10];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"last words");
            let end = time::timeout(Duration::from_millis(50), stream.read_u8()).await;
            assert!(end.is_err(), "the node has heard of the close: {end:?}");
        }
        assert_eq!(said(&proxy).iter().filter(|event| event.ends_with("cut off")).count(), 1);
    }

    /// A client closes one connection and then sends on another: the node must be dead when that arrives.
    #[tokio::test]
    async fn nothing_is_carried_on_before_a_close_that_came_first_is_acted_on() {
        let (first_node, survivor) = (node(0).await, TcpListener::bind(net::free_endpoint()).await.unwrap());
        let is_dead = Arc::new(AtomicBool::new(false));
        let dies = Arc::clone(&is_dead);
        let hurt: Hurt = Box::new(move |_, _| {
            let dies = Arc::clone(&dies);
            Box::pin(async move {
                time::sleep(Duration::from_millis(50)).await;
                dies.store(true, Ordering::Relaxed);
                Ok(())
            })
        });
        let backends = vec![first_node.address, survivor.local_addr().unwrap()];
        let proxy = Proxy::start(Mode::KillSplit, backends, hurt).await.unwrap();
        let (first, _) = connect(&proxy).await;
        let mut second = TcpStream::connect(proxy.address()).await.unwrap();
        let mut at_the_survivor = survivor.accept().await.unwrap().0;

        close(first).await;
        second.write_all(b"x").await.unwrap();

        assert_eq!(at_the_survivor.read_u8().await.unwrap(), b'x');
        assert!(is_dead.load(Ordering::Relaxed), "the first node is not dead yet");
    }

    #[tokio::test]
    async fn nothing_is_routed_after_harm_that_could_not_be_done() {
        let node = node(0).await;
        let hurt: Hurt = Box::new(|_, _| Box::pin(async { Err("it is not there".into()) }));
        let proxy = Proxy::start(Mode::Kill, vec![node.address], hurt).await.unwrap();
        let (stream, _) = connect(&proxy).await;
        stream.set_zero_linger().unwrap();
        drop(stream);
        let mut nobody = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(nobody.read_u8().await.is_err());
        assert_eq!(
            said(&proxy)[2..],
            ["backend 0 not harmed: it is not there", "c2 -> nowhere: no backend accepts it"]
        );
    }
}
