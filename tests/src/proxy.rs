//! A TCP proxy that turns a test for one SMB server into a failover test: it stands in front of several
//! nodes, gives each new connection of the client to one of them, and in some modes kills nodes while the
//! client believes that it has merely lost a connection.
//!
//! What must stay true:
//! - In the modes that kill, the node is dead *before* it can learn that the client closed the connection. A
//!   server that sees the FIN keeps its durable opens in an orderly way, and the test would prove nothing.
//! - Everything that clients did before they opened a connection has been acted on before that connection is
//!   routed. A close that is noticed too late would send the client back to the old node, where its test
//!   passes for the wrong reason. Even so every test must assert the path it means ([`Proxy::backend_of`]).

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time,
};

use crate::net;

/// How long a node may take to accept a connection before the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes carried from the client to a node at a time.
const BUFFER_LEN: usize = 64 << 10;

/// Closed connections reported and not yet acted on. A reporter waits anyway.
const QUEUED_REPORTS_MAX: usize = 16;

/// Which node a connection goes to, and what happens to nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every connection to the first node: the control.
    Pin,
    /// Each connection to the node after the last one's.
    RoundRobin,
    /// Connections go to one node until the client closes one of them; from then on to the next node. The old
    /// one lives.
    Switch,
    /// As `Switch`, but the old node is killed.
    Kill,
    /// The first connection to the first node, all others to the second. The first node is killed when the
    /// client closes the first connection.
    KillSplit,
}

/// Kills a node, given by its index, and returns when nothing of it is left.
pub type Kill = Box<dyn Fn(usize) -> BoxFuture<'static, ()> + Send + Sync>;

/// Something that happened at the proxy. Connections are counted from 1, backends from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// The client closed it.
    ClosedByClient {
        /// The connection.
        connection: usize,
    },
    /// A node was killed.
    Killed {
        /// The node.
        backend: usize,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Routed { connection, backend } => write!(f, "c{connection} -> backend {backend}"),
            Self::Refused { connection } => write!(f, "c{connection} -> nowhere: no backend accepts it"),
            Self::ClosedByClient { connection } => write!(f, "c{connection} closed by the client"),
            Self::Killed { backend } => write!(f, "backend {backend} killed"),
        }
    }
}

/// A running proxy. Dropping it closes everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Event>>>,
    router: AbortHandle,
}

impl Proxy {
    /// Starts a proxy before the given nodes. `kill` is called in the modes that kill, for one node at a
    /// time.
    ///
    /// # Panics
    /// When there are no backends.
    pub async fn start(mode: Mode, backends: Vec<SocketAddr>, kill: Kill) -> io::Result<Self> {
        assert!(!backends.is_empty(), "a proxy needs a backend");
        let address = net::free_endpoint();
        let listener = TcpListener::bind(address).await?;
        let log = Arc::default();
        let (closed, closed_reports) = mpsc::channel(QUEUED_REPORTS_MAX);
        let router = Router {
            mode,
            backends,
            kill,
            current: 0,
            connections: 0,
            open: BTreeMap::new(),
            pumps: JoinSet::new(),
            closed,
            log: Arc::clone(&log),
        };
        let router = tokio::spawn(router.run(listener, closed_reports)).abort_handle();
        Ok(Self { address, log, router })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has happened so far.
    pub fn log(&self) -> Vec<Event> {
        self.log.lock().expect("nobody panics while holding it").clone()
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
    /// The client's socket, to look for a FIN that nobody has read yet.
    client: OwnedFd,
}

/// "The client closed this connection", and where to say that it has been acted on.
struct ClosedReport {
    connection: usize,
    acted_on: oneshot::Sender<()>,
}

/// Owns all decisions; the pumps only carry bytes.
struct Router {
    mode: Mode,
    backends: Vec<SocketAddr>,
    kill: Kill,
    /// The node that the next connection goes to, if it accepts.
    current: usize,
    /// Connections accepted so far.
    connections: usize,
    open: BTreeMap<usize, OpenConnection>,
    pumps: JoinSet<()>,
    closed: mpsc::Sender<ClosedReport>,
    log: Arc<Mutex<Vec<Event>>>,
}

impl Router {
    async fn run(mut self, listener: TcpListener, mut closed_reports: mpsc::Receiver<ClosedReport>) {
        loop {
            tokio::select! {
                report = closed_reports.recv() => {
                    let ClosedReport { connection, acted_on } = report.expect("the router holds a sender");
                    self.client_closed(connection).await;
                    // The pump may have been cut short.
                    let _ = acted_on.send(());
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

    /// The client may have closed connections before it opened the newest one, and their pumps have not got
    /// round to it.
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

    async fn client_closed(&mut self, connection: usize) {
        // Absent: acted on already, or its node was killed.
        let Some(OpenConnection { backend, .. }) = self.open.remove(&connection) else { return };
        self.note(Event::ClosedByClient { connection });
        match self.mode {
            Mode::Pin | Mode::RoundRobin => {}
            Mode::Switch => self.current = self.after(backend),
            Mode::Kill => {
                self.kill(backend).await;
                self.current = self.after(backend);
            }
            Mode::KillSplit => {
                if connection == 1 {
                    self.kill(backend).await;
                }
            }
        }
    }

    async fn kill(&mut self, backend: usize) {
        (self.kill)(backend).await;
        self.note(Event::Killed { backend });
        self.open.retain(|_, open| open.backend != backend);
    }

    async fn route(&mut self, client: TcpStream) {
        self.connections += 1;
        let connection = self.connections;
        let first = match self.mode {
            Mode::Pin => 0,
            Mode::RoundRobin | Mode::Switch | Mode::Kill => self.current,
            Mode::KillSplit => usize::from(connection > 1) % self.backends.len(),
        };
        let Some((backend, upstream)) = self.connect(first).await else {
            self.note(Event::Refused { connection });
            return;
        };
        let Ok(watched) = client.as_fd().try_clone_to_owned() else { return };
        self.current = if self.mode == Mode::RoundRobin { self.after(backend) } else { backend };
        self.open.insert(connection, OpenConnection { backend, client: watched });
        self.note(Event::Routed { connection, backend });
        self.pumps.spawn(pump(connection, client, upstream, self.closed.clone()));
    }

    /// Connects to the first node that accepts, from `first` on; in the mode that pins, to that one alone.
    async fn connect(&self, first: usize) -> Option<(usize, TcpStream)> {
        let candidates = if self.mode == Mode::Pin { 1 } else { self.backends.len() };
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

    fn note(&self, event: Event) {
        self.log.lock().expect("nobody panics while holding it").push(event);
    }
}

/// Carries bytes both ways until both sides have closed.
async fn pump(connection: usize, client: TcpStream, upstream: TcpStream, closed: mpsc::Sender<ClosedReport>) {
    // Small messages, each waited for: Nagle's algorithm would add its delay to every one.
    let _ = client.set_nodelay(true);
    let _ = upstream.set_nodelay(true);
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = upstream.into_split();

    let client_to_server = async {
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            match from_client.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                // When the server is gone its other direction ends, and that closes the client.
                Ok(len) if to_server.write_all(&buffer[..len]).await.is_err() => break,
                Ok(_) => {}
            }
        }
        let (acted_on, wait) = oneshot::channel();
        if closed.send(ClosedReport { connection, acted_on }).await.is_ok() {
            let _ = wait.await;
        }
        // Only now may the server hear of it.
        let _ = to_server.shutdown().await;
    };
    let server_to_client = async {
        let _ = copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::join!(client_to_server, server_to_client);
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

    async fn start(mode: Mode) -> (Proxy, Vec<SocketAddr>) {
        let nodes = [node(0).await, node(1).await, node(2).await];
        let addresses: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
        let kill: Kill = Box::new(move |backend| {
            let task = nodes[backend].task.abort_handle();
            task.abort();
            Box::pin(async move {
                while !task.is_finished() {
                    tokio::task::yield_now().await;
                }
            })
        });
        (Proxy::start(mode, addresses.clone(), kill).await.unwrap(), addresses)
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
        let log: Vec<String> = proxy.log().iter().map(Event::to_string).collect();
        assert_eq!(
            log,
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
}
