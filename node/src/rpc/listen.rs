//! The sockets of the gRPC services: one for everybody, and a unix socket for an SMB server on this machine. At the one
//! for everybody peers open lanes, too, which are told from gRPC by their first byte.
//!
//! Nobody holds a connection for nothing: who does not begin to speak within seconds is hung up on,
//! and so is, later, who does not answer a ping.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use nix::sys::stat::{Mode, fchmod};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::error;

use crate::raft::LANE_PREFACE;

/// After an attempt to accept a connection that has failed.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// With so many bytes an HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE_LEN: usize = 24;

/// How long those may take.
const PREFACE_WITHIN: Duration = Duration::from_secs(10);

/// How often a connection is pinged on which nothing else is heard.
const PING_EVERY: Duration = Duration::from_secs(5);

/// How long the answer to a ping may take: longer than a machine that is busy, or swaps, makes its processes wait.
const PONG_WITHIN: Duration = Duration::from_secs(10);

/// How many bytes of one stream may lie unread: then its sender has to wait. The longest messages take a few rounds.
const STREAM_WINDOW: u32 = 128 * 1024;

/// The same for all streams of a connection. Small frames need more memory than their bytes say, so h2 hangs up when what
/// those that are unread fall short of 256 bytes each adds up to half of this. The smallest message has 5 bytes: a
/// stream's window full of them falls short of 51 times the window, so that the sender has to wait before it is hung up on.
const CONNECTION_WINDOW: u32 = 128 * STREAM_WINDOW;

/// Connections that are sorted and wait to be taken, of either kind. More of them wait in their tasks.
const SORTED_MAX: usize = 128;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Who may use the unix socket: the user that runs this process, and its group.
const SOCKET_MODE: u32 = 0o660;

/// A gRPC server that lets senders wait when it cannot follow, and does not keep connections to peers that are gone.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PONG_WITHIN))
}

/// The connections that a listener accepts, as a gRPC server takes them. Never ends.
pub fn incoming<L: Listener>(listener: L) -> impl Stream<Item = io::Result<Connection<L::Stream>>> {
    accepted(listener).map(|stream| stream.map(Connection::new))
}

/// The connections that come to the port of a node: those of operators and of peers that speak gRPC, and the lanes of
/// peers. Accepts them until nobody takes them any more. Called on a runtime.
pub fn sorted(
    listener: TcpListener,
) -> (impl Stream<Item = io::Result<Connection<TcpStream>>>, mpsc::Receiver<TcpStream>) {
    let (calls, grpc) = mpsc::channel(SORTED_MAX);
    let (lanes_opened, lanes) = mpsc::channel(SORTED_MAX);
    tokio::spawn(async move {
        let mut accepted = std::pin::pin!(accepted(listener));
        loop {
            let stream = tokio::select! {
                stream = accepted.next() => stream,
                () = calls.closed() => return,
            };
            // A connection that is broken already is nobody's.
            if let Some(Ok(stream)) = stream {
                tokio::spawn(sort(stream, calls.clone(), lanes_opened.clone()));
            }
        }
    });
    (ReceiverStream::new(grpc).map(|stream| Ok(Connection::new(stream))), lanes)
}

/// Waits for a connection to say what it is.
async fn sort(stream: TcpStream, calls: mpsc::Sender<TcpStream>, lanes: mpsc::Sender<TcpStream>) {
    let mut first = [0];
    // The byte stays where it is.
    if let Ok(Ok(1)) = tokio::time::timeout(PREFACE_WITHIN, stream.peek(&mut first)).await {
        let sorted = if first[0] == LANE_PREFACE[0] { lanes } else { calls };
        // Nobody takes it when this node is ending.
        let _ = sorted.send(stream).await;
    }
}

/// The connections that a listener accepts. Never ends.
///
/// tonic would try again at once, and in silence, when there are no file descriptors left.
fn accepted<L: Listener>(listener: L) -> impl Stream<Item = io::Result<L::Stream>> {
    stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok(stream) => return Some((stream, listener)),
                Err(error) => {
                    error!(%error, "cannot accept a connection of {}", L::OF_WHOM);
                    tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                }
            }
        }
    })
}

/// What accepts connections.
pub trait Listener: Send + Sync {
    /// Who connects here, for the log.
    const OF_WHOM: &'static str;
    /// What is accepted.
    type Stream;
    /// Waits for the next connection. The inner error is that of one connection alone.
    fn accept(&self) -> impl Future<Output = io::Result<io::Result<Self::Stream>>> + Send;
}

impl Listener for TcpListener {
    const OF_WHOM: &'static str = "a peer or an operator";
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<io::Result<TcpStream>> {
        let (stream, _) = Self::accept(self).await?;
        // Without it an acknowledgement waits up to 40 ms for company.
        Ok(stream.set_nodelay(true).map(|()| stream))
    }
}

impl Listener for UnixListener {
    const OF_WHOM: &'static str = "an SMB server";
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<io::Result<UnixStream>> {
        let (stream, _) = Self::accept(self).await?;
        Ok(Ok(stream))
    }
}

/// A connection that has to begin to speak.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    /// Until it has.
    silence: Option<Silence>,
}

#[derive(Debug)]
struct Silence {
    ends: Pin<Box<Sleep>>,
    bytes_missing: usize,
}

impl<S> Connection<S> {
    fn new(stream: S) -> Self {
        let ends = Box::pin(tokio::time::sleep(PREFACE_WITHIN));
        Self { stream, silence: Some(Silence { ends, bytes_missing: PREFACE_LEN }) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(silence) = &mut this.silence
            && silence.ends.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        this.silence.take_if(|silence| {
            silence.bytes_missing = silence.bytes_missing.saturating_sub(read);
            silence.bytes_missing == 0
        });
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: Connected> Connected for Connection<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

/// Why a unix socket cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error(
        "another process listens at {path}: is another holdfast running? Give each its own [node] handle_socket"
    )]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{path} is there and is no socket: move it away, or choose another [node] handle_socket")]
    NoSocket {
        /// Where.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot {operation} {path}")]
    System {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Listens at a unix socket that the user of this process and its group may use. One that an earlier run has left behind
/// is replaced.
///
/// # Errors
///
/// If another process listens there, or the socket cannot be made.
pub fn at_socket(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |operation| {
        let path = path.to_owned();
        move |source| SocketError::System { operation, path, source }
    };
    remove_stale(path)?;
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)
        .map_err(failed("make a socket at"))?;
    // Before it has a name, so that it is at no moment open to more than it should be.
    let mode = Mode::from_bits_truncate(SOCKET_MODE);
    fchmod(socket.as_fd(), mode).map_err(|error| failed("make a socket at")(error.into()))?;
    let address = socket2::SockAddr::unix(path).map_err(failed("make a socket at"))?;
    socket.bind(&address).map_err(failed("make a socket at"))?;
    // The umask has taken something away.
    std::fs::set_permissions(path, PermissionsExt::from_mode(SOCKET_MODE))
        .map_err(failed("open to its group the socket"))?;
    socket.listen(BACKLOG).map_err(failed("listen at"))?;
    socket.set_nonblocking(true).map_err(failed("listen at"))?;
    UnixListener::from_std(socket.into()).map_err(failed("listen at"))
}

/// Takes away a socket that nobody listens at.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |operation, source| SocketError::System { operation, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NoSocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| failed("remove", error))
        }
        Err(error) => Err(failed("find out who listens at", error)),
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn the_socket_is_its_owners_and_its_groups_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("handles.sock");
        let _listener = at_socket(&path).expect("it is free");
        assert_eq!(path.metadata().expect("it is there").mode() & 0o777, 0o660);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("handles.sock");
        drop(at_socket(&path).expect("it is free"));
        assert!(path.exists(), "it is left behind");
        let living = at_socket(&path).expect("nobody listens any more");
        let error = at_socket(&path).expect_err("somebody listens");
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        assert!(UnixStream::connect(&path).await.is_ok(), "the first is still there");
        drop(living);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_not_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").expect("a file");
        let error = at_socket(&path).expect_err("it is in the way");
        assert!(matches!(error, SocketError::NoSocket { .. }), "{error}");
        assert_eq!(std::fs::read(&path).expect("it is there"), b"data");
        let error = at_socket(&path.join("below")).expect_err("no directory");
        assert!(matches!(error, SocketError::System { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_lane_is_told_from_grpc_and_loses_no_byte_by_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (calls, mut lanes) = sorted(listener);
        let mut calls = std::pin::pin!(calls);
        let mut silent = TcpStream::connect(address).await.expect("it listens");
        let mut caller = TcpStream::connect(address).await.expect("it listens");
        let mut peer = TcpStream::connect(address).await.expect("it listens");

        peer.write_all(&LANE_PREFACE).await.expect("sent");
        let mut lane = lanes.recv().await.expect("a lane");
        let mut preface = [0; LANE_PREFACE.len()];
        lane.read_exact(&mut preface).await.expect("bytes");
        assert_eq!(preface, LANE_PREFACE);

        caller.write_all(b"PRI").await.expect("sent");
        let mut call = calls.next().await.expect("a call").expect("it is open");
        let mut beginning = [0; 3];
        call.read_exact(&mut beginning).await.expect("bytes");
        assert_eq!(&beginning, b"PRI");

        // Who has said nothing keeps nobody waiting, and is sorted when he speaks.
        silent.write_all(b"H").await.expect("sent");
        lanes.recv().await.expect("a lane");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_begin_to_speak_is_hung_up_on() {
        let (mut client, server) = duplex(1024);
        let mut connection = Connection::new(server);
        client.write_all(&[0; PREFACE_LEN - 1]).await.expect("somebody reads");
        let mut read = [0; 1024];
        assert_eq!(connection.read(&mut read).await.expect("bytes"), PREFACE_LEN - 1);
        let error = connection.read(&mut read).await.expect_err("nothing more comes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_begun_to_speak_may_be_silent() {
        let (mut client, server) = duplex(1024);
        let mut connection = Connection::new(server);
        client.write_all(&[0; PREFACE_LEN]).await.expect("somebody reads");
        let mut read = [0; 1024];
        assert_eq!(connection.read(&mut read).await.expect("bytes"), PREFACE_LEN);
        tokio::time::sleep(10 * PREFACE_WITHIN).await;
        client.write_all(b"more").await.expect("somebody reads");
        assert_eq!(connection.read(&mut read).await.expect("bytes"), 4);
    }
}
