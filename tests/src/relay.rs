//! The wires between the nodes of a cluster, as far as the harness can pull them out: relays, through which nodes
//! reach each other, and clients and operators do not.
//!
//! A wire that is cut is silent: connections stay, nothing comes through, and what is sent waits. So it is with a
//! real one, until one end gives up. What differs: a new connection over a cut wire is accepted by the relay and then
//! waits too.
//!
//! A node calls from one of several sockets; a relay learns which node it was from the caller's process or from the
//! caller's address. Whoever is no node is never cut off.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use crate::{net, process};

/// Bytes carried at a time.
const BUFFER_LEN: usize = 64 << 10;

/// A relay that cannot accept waits so long before it tries again: it has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All wires of a cluster. Dropping it closes every connection that goes over them.
#[derive(Debug, Default)]
pub struct Wires {
    /// The nodes that are cut off from all others.
    cut_off: watch::Sender<BTreeSet<usize>>,
    /// The process of each node that relays which tell by processes may hear.
    processes: Arc<Mutex<BTreeMap<usize, i32>>>,
    relays: Vec<AbortHandle>,
}

/// How a relay learns which node calls.
#[derive(Clone, Debug)]
pub enum Callers {
    /// By the process, as it was made known to [`Wires::note_process`].
    Processes,
    /// By the address from which it calls. The called node sees the call come from the address given here,
    /// and not from the relay's.
    Addresses(BTreeMap<Ipv4Addr, Caller>),
}

/// A node that calls from an address of its own.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Its index.
    pub node: usize,
    /// From where the relay calls in its name.
    pub shown_as: Ipv4Addr,
}

impl Wires {
    /// Lets other nodes reach a node, which listens at `target`, at `address`. To be called in a Tokio runtime.
    pub fn lead_to(
        &mut self,
        node: usize,
        address: SocketAddr,
        target: SocketAddr,
        callers: Callers,
    ) -> io::Result<()> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let relay = Relay {
            node,
            address,
            target,
            callers,
            processes: Arc::clone(&self.processes),
            cut_off: self.cut_off.subscribe(),
        };
        let task = tokio::spawn(Arc::new(relay).run(TcpListener::from_std(listener)?));
        self.relays.push(task.abort_handle());
        Ok(())
    }

    /// Makes known which process is a node's, until the next time.
    pub fn note_process(&self, node: usize, pid: i32) {
        self.processes.lock().expect("nobody panics while holding it").insert(node, pid);
    }

    /// Cuts the wires between a node and all others.
    pub fn cut_off(&self, node: usize) {
        self.cut_off.send_modify(|nodes| {
            nodes.insert(node);
        });
    }

    /// Mends them.
    pub fn rejoin(&self, node: usize) {
        self.cut_off.send_modify(|nodes| {
            nodes.remove(&node);
        });
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        self.relays.iter().for_each(AbortHandle::abort);
    }
}

/// What stands before one node.
struct Relay {
    node: usize,
    address: SocketAddr,
    target: SocketAddr,
    callers: Callers,
    processes: Arc<Mutex<BTreeMap<usize, i32>>>,
    cut_off: watch::Receiver<BTreeSet<usize>>,
}

impl Relay {
    async fn run(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((caller, address)) => drop(connections.spawn(Arc::clone(&self).connect(caller, address))),
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn connect(self: Arc<Self>, caller: TcpStream, address: SocketAddr) {
        let (from, shown_as) = match &self.callers {
            Callers::Processes => (self.node_with_end(address), None),
            Callers::Addresses(callers) => {
                let SocketAddr::V4(address) = address else { return };
                // A stranger would be refused by the node too.
                let Some(caller) = callers.get(address.ip()) else { return };
                (Some(caller.node), Some(caller.shown_as))
            }
        };
        let mut wire = Wire { ends: [from, Some(self.node)], cut_off: self.cut_off.clone() };
        wire.mended().await;
        let Ok(target) = self.call(shown_as).await else {
            // As if nobody listened: reset, not closed in an orderly way.
            let _ = caller.set_zero_linger();
            return;
        };
        // Small messages, each waited for: Nagle's algorithm would add its delay to every one.
        let _ = caller.set_nodelay(true);
        let _ = target.set_nodelay(true);
        let (from_caller, to_caller) = caller.into_split();
        let (from_target, to_target) = target.into_split();
        tokio::join!(wire.clone().carry(from_caller, to_target), wire.carry(from_target, to_caller));
    }

    async fn call(&self, shown_as: Option<Ipv4Addr>) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(address) = shown_as {
            socket.bind((address, 0).into())?;
        }
        socket.connect(self.target).await
    }

    /// The node whose process has the other end of a connection with this relay.
    fn node_with_end(&self, end: SocketAddr) -> Option<usize> {
        let socket = net::socket_of_connection(end, self.address).ok()??;
        let processes = self.processes.lock().expect("nobody panics while holding it");
        processes.iter().find(|&(_, &pid)| process::has_socket(pid, socket)).map(|(&node, _)| node)
    }
}

/// What one connection goes over.
#[derive(Clone)]
struct Wire {
    ends: [Option<usize>; 2],
    cut_off: watch::Receiver<BTreeSet<usize>>,
}

impl Wire {
    /// Returns at once if the wire is whole.
    async fn mended(&mut self) {
        let ends = self.ends;
        let is_whole = |cut_off: &BTreeSet<usize>| match ends {
            [Some(from), Some(to)] if from != to => !cut_off.contains(&from) && !cut_off.contains(&to),
            _ => true,
        };
        if self.cut_off.wait_for(is_whole).await.is_err() {
            // The cluster is gone, and this task is about to be.
            std::future::pending().await
        }
    }

    /// Carries bytes one way until the sender closes or the receiver does not take them.
    async fn carry(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            let read = from.read(&mut buffer).await;
            // The news that a connection was closed does not come through either.
            self.mended().await;
            match read {
                Ok(len) if len > 0 && to.write_all(&buffer[..len]).await.is_ok() => {}
                _ => break,
            }
        }
        let _ = to.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::process as this;

    use tokio::time;

    use super::*;

    /// Long enough for what should come through to do so.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// What does not come within this time is taken not to come.
    const SILENCE: Duration = Duration::from_millis(200);

    /// A connection over a wire, made by this process as node 0 and answered as node 1.
    async fn connection(
        wires: &mut Wires,
        callers: Callers,
        from: Option<Ipv4Addr>,
    ) -> (TcpStream, TcpStream) {
        let (address, target) = (net::free_endpoint(), net::free_endpoint());
        let listener = TcpListener::bind(target).await.unwrap();
        wires.lead_to(1, address, target, callers).unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(from) = from {
            socket.bind((from, 0).into()).unwrap();
        }
        let near = socket.connect(address).await.unwrap();
        let (far, _) = time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        (near, far)
    }

    async fn receive(stream: &mut TcpStream) -> u8 {
        time::timeout(PATIENCE, stream.read_u8()).await.expect("it arrives").unwrap()
    }

    async fn assert_silent_until_mended(
        wires: &Wires,
        cut: usize,
        near: &mut TcpStream,
        far: &mut TcpStream,
    ) {
        wires.cut_off(cut);
        near.write_u8(1).await.unwrap();
        far.write_u8(2).await.unwrap();
        time::timeout(SILENCE, far.read_u8()).await.expect_err("a byte came over a cut wire");
        time::timeout(SILENCE, near.read_u8()).await.expect_err("a byte came over a cut wire");
        wires.rejoin(cut);
        assert_eq!(
            (receive(far).await, receive(near).await),
            (1, 2),
            "what was sent meanwhile is late, not lost"
        );
    }

    #[tokio::test]
    async fn a_caller_known_by_its_process_is_cut_off_whichever_end_it_is() {
        let mut wires = Wires::default();
        wires.note_process(0, i32::try_from(this::id()).unwrap());
        let (mut near, mut far) = connection(&mut wires, Callers::Processes, None).await;
        for cut in [0, 1] {
            assert_silent_until_mended(&wires, cut, &mut near, &mut far).await;
        }
        // Another node's wires are not these.
        wires.cut_off(2);
        near.write_u8(3).await.unwrap();
        assert_eq!(receive(&mut far).await, 3);
    }

    #[tokio::test]
    async fn a_caller_known_by_its_address_is_shown_with_another() {
        let port = net::free_endpoint().port();
        let (own, shown_as) = (net::free_address(port), net::free_address(port));
        let callers = Callers::Addresses([(own, Caller { node: 0, shown_as })].into());
        let mut wires = Wires::default();
        let (mut near, mut far) = connection(&mut wires, callers, Some(own)).await;
        assert_eq!(far.peer_addr().unwrap().ip(), shown_as);
        assert_silent_until_mended(&wires, 0, &mut near, &mut far).await;
    }

    #[tokio::test]
    async fn a_stranger_is_not_cut_off_and_a_close_comes_through() {
        let mut wires = Wires::default();
        let (mut near, mut far) = connection(&mut wires, Callers::Processes, None).await;
        wires.cut_off(1);
        near.write_u8(1).await.unwrap();
        assert_eq!(receive(&mut far).await, 1);
        near.shutdown().await.unwrap();
        let end = time::timeout(PATIENCE, far.read_u8()).await.expect("the close arrives");
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
