//! One TCP connection to an SMB server: requests go out as fast as the server's credits allow, answers find
//! their requests by MessageId (MS-SMB2 3.2.4.1, 3.2.5.1).
//!
//! A task of its own owns the socket and everything that belongs to it; [`Connection`] is the handle that the
//! others hold. The TCP connection ends when the last handle is gone, when it is dropped on purpose, when the
//! server closes it, or at the first message that makes no sense. In each case every request under way fails
//! with [`SmbError::Disconnected`].

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::StreamExt;
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{broadcast, mpsc, oneshot},
    time::{self, Instant},
};
use tokio_util::{
    bytes::{Bytes, BytesMut},
    codec::{FramedRead, LengthDelimitedCodec},
    sync::CancellationToken,
};

use super::{
    error::{NtStatus, SmbError},
    types::{Break, Command},
    wire::{self, Request, Response},
};

/// Requests handed over and not yet written. More of them make their callers wait.
const QUEUED_REQUESTS_MAX: usize = 1024;

/// Bytes encoded and not yet taken by the socket, beyond which no further request is encoded.
const UNWRITTEN_BYTES_MAX: usize = 1 << 20;

/// The largest message accepted: the largest read that Samba offers, 8 MiB, and room for the headers.
const MESSAGE_LEN_MAX: usize = (8 << 20) + 1024;

/// Break notifications kept for a subscriber that does not read them. Then the oldest are forgotten.
const UNREAD_BREAKS_MAX: usize = 1024;

/// The handle of a connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    server: SocketAddr,
    client: SocketAddr,
    request_timeout: Duration,
    requests: mpsc::Sender<Submitted>,
    breaks: broadcast::Sender<Break>,
    /// Ends the task at once.
    dropped: CancellationToken,
    /// Set by the task before it ends: who ended the connection and why.
    end_reason: Arc<OnceLock<String>>,
}

/// A request on its way to the task, and where its answer goes.
#[derive(Debug)]
struct Submitted {
    request: Request,
    reply: oneshot::Sender<Response>,
}

impl Connection {
    /// Connects within `request_timeout`, which from then on bounds every request too.
    pub(super) async fn open(server: SocketAddr, request_timeout: Duration) -> Result<Self, SmbError> {
        let connect = async {
            let stream = TcpStream::connect(server).await?;
            stream.set_nodelay(true)?;
            io::Result::Ok((stream.local_addr()?, stream))
        };
        let (client, stream) = time::timeout(request_timeout, connect)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| SmbError::Connect { server, source })?;

        let (read_half, write_half) = stream.into_split();
        // MS-SMB2 2.1: a zero byte and the length in three bytes.
        let codec = LengthDelimitedCodec::builder()
            .length_field_offset(1)
            .length_field_length(3)
            .num_skip(4)
            .max_frame_length(MESSAGE_LEN_MAX)
            .new_codec();
        let (requests, submitted) = mpsc::channel(QUEUED_REQUESTS_MAX);
        let connection = Self {
            server,
            client,
            request_timeout,
            requests,
            breaks: broadcast::Sender::new(UNREAD_BREAKS_MAX),
            dropped: CancellationToken::new(),
            end_reason: Arc::default(),
        };
        let task = ConnectionTask {
            messages: FramedRead::new(read_half, codec),
            write_half,
            unwritten: BytesMut::new(),
            next_message_id: 0,
            // A new connection may send one request (MS-SMB2 3.2.4.1.2).
            credits: 1,
            short_of_credits: None,
            unanswered: HashMap::new(),
            breaks: connection.breaks.clone(),
            submitted,
        };
        tokio::spawn(task.run(connection.dropped.clone(), connection.end_reason.clone()));
        Ok(connection)
    }

    /// The address of this end.
    pub(super) fn client(&self) -> SocketAddr {
        self.client
    }

    /// Sends a request and waits for its final answer, whatever status that has.
    pub(super) async fn call(&self, request: Request) -> Result<Response, SmbError> {
        let command = request.command;
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.requests.send(Submitted { request, reply }).await.ok()?;
            answer.await.ok()
        };
        match time::timeout(self.request_timeout, exchange).await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => {
                Err(SmbError::Disconnected { server: self.server, command, reason: self.end_reason() })
            }
            Err(_) => Err(SmbError::TimedOut { command, timeout: self.request_timeout }),
        }
    }

    /// Sends a request that has to be answered with `STATUS_SUCCESS`.
    pub(super) async fn call_ok(&self, request: Request) -> Result<Response, SmbError> {
        let command = request.command;
        let response = self.call(request).await?;
        match response.status() {
            NtStatus::SUCCESS => Ok(response),
            status => Err(SmbError::Refused { command, status }),
        }
    }

    /// The server's address.
    pub(super) fn server(&self) -> SocketAddr {
        self.server
    }

    /// Break notifications that arrive from now on.
    pub(super) fn breaks(&self) -> Breaks {
        Breaks { received: self.breaks.subscribe() }
    }

    /// Closes the socket at once, without a word to the server, and returns when that is done.
    pub(super) async fn drop_now(&self) {
        self.dropped.cancel();
        self.requests.closed().await;
    }

    /// Waits until the connection has ended, whoever ended it.
    pub(super) async fn ended(&self) -> String {
        self.requests.closed().await;
        self.end_reason()
    }

    fn end_reason(&self) -> String {
        self.end_reason.get().cloned().unwrap_or_else(|| "its task was stopped with the runtime".into())
    }
}

/// The break notifications of one connection.
#[derive(Debug)]
pub struct Breaks {
    received: broadcast::Receiver<Break>,
}

impl Breaks {
    /// The next notification, or `None` if none came within `timeout`.
    pub async fn next(&mut self, timeout: Duration) -> Option<Break> {
        let deadline = Instant::now() + timeout;
        loop {
            match time::timeout_at(deadline, self.received.recv()).await.ok()? {
                Ok(notification) => return Some(notification),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// What one connection consists of. Fields are dropped in this order: `submitted` goes last, because its end
/// tells [`Connection::drop_now`] that the socket is closed.
struct ConnectionTask {
    messages: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    write_half: OwnedWriteHalf,
    /// Encoded requests that the socket has not taken yet.
    unwritten: BytesMut,
    next_message_id: u64,
    /// MessageIds that may still be used: granted and not used up.
    credits: u64,
    /// A request that waits for more credits. No other is taken before it, so the order of requests is kept.
    short_of_credits: Option<Submitted>,
    /// Requests sent and not finally answered, by MessageId. Bounded by the credits ever granted at one time.
    unanswered: HashMap<u64, oneshot::Sender<Response>>,
    breaks: broadcast::Sender<Break>,
    submitted: mpsc::Receiver<Submitted>,
}

impl ConnectionTask {
    async fn run(mut self, dropped: CancellationToken, end_reason: Arc<OnceLock<String>>) {
        let reason = loop {
            let may_take = self.short_of_credits.is_none() && self.unwritten.len() < UNWRITTEN_BYTES_MAX;
            tokio::select! {
                () = dropped.cancelled() => break "dropped by this client".to_owned(),
                message = self.messages.next() => match message {
                    Some(Ok(message)) => if let Err(problem) = self.receive(message.freeze()) {
                        break problem;
                    },
                    Some(Err(err)) => break format!("reading failed: {err}"),
                    None => break "closed by the server".to_owned(),
                },
                written = self.write_half.write_buf(&mut self.unwritten), if !self.unwritten.is_empty() => {
                    if let Err(err) = written {
                        break format!("writing failed: {err}");
                    }
                }
                submitted = self.submitted.recv(), if may_take => match submitted {
                    Some(submitted) => self.send(submitted),
                    None => break "no longer used by this client".to_owned(),
                },
            }
        };
        // Before the waiting requests are dropped, so that their callers find it.
        end_reason.set(reason).expect("a connection ends once");
    }

    /// Encodes a request, or puts it aside until there are credits for it.
    fn send(&mut self, submitted: Submitted) {
        let charge = u64::from(submitted.request.credit_charge);
        if charge > self.credits {
            self.short_of_credits = Some(submitted);
            return;
        }
        self.credits -= charge;
        submitted.request.encode(self.next_message_id, &mut self.unwritten);
        self.unanswered.insert(self.next_message_id, submitted.reply);
        self.next_message_id += charge;
    }

    /// Takes a message from the server; an error ends the connection.
    fn receive(&mut self, message: Bytes) -> Result<(), String> {
        if message.is_empty() {
            // A keep-alive of the transport.
            return Ok(());
        }
        let response = Response::parse(message).map_err(|err| err.to_string())?;
        if response.message_id() == wire::UNSOLICITED_MESSAGE_ID {
            let notification = Break::decode(&response).map_err(|err| err.to_string())?;
            // Nobody may have subscribed.
            let _ = self.breaks.send(notification);
            return Ok(());
        }

        self.credits += u64::from(response.credits());
        if !response.is_interim() {
            let id = response.message_id();
            let reply = self
                .unanswered
                .remove(&id)
                .ok_or_else(|| format!("an answer to MessageId {id}, which was not asked"))?;
            // The caller may have timed out.
            let _ = reply.send(response);
        }
        if let Some(submitted) = self.short_of_credits.take() {
            self.send(submitted);
        }
        Ok(())
    }
}

/// Names the request when its answer does not decode.
pub(super) fn malformed(command: Command) -> impl FnOnce(super::WireError) -> SmbError {
    move |source| SmbError::Malformed { command, source }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::net;

    const TIMEOUT: Duration = Duration::from_millis(300);

    /// A server that reads one request and answers with these bytes, or not at all.
    async fn connection_to_server_saying(answer: &'static [u8]) -> Connection {
        let listener = TcpListener::bind(net::free_endpoint()).await.unwrap();
        let server = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.readable().await.unwrap();
            stream.write_all(answer).await.unwrap();
            // Until the client has had enough.
            while stream.try_read(&mut [0; 1024]).map_or(true, |len| len > 0) {
                time::sleep(Duration::from_millis(1)).await;
            }
        });
        Connection::open(server, TIMEOUT).await.unwrap()
    }

    #[tokio::test]
    async fn a_silent_server_times_out() {
        let connection = connection_to_server_saying(b"").await;
        let error = connection.call(wire::echo()).await.unwrap_err();
        assert!(matches!(error, SmbError::TimedOut { command: Command::Echo, timeout: TIMEOUT }), "{error}");
        // The one credit of a new connection is spent: a second request is not even sent.
        let error = connection.call(wire::echo()).await.unwrap_err();
        assert!(matches!(error, SmbError::TimedOut { .. }), "{error}");
        connection.drop_now().await;
        let error = connection.call(wire::echo()).await.unwrap_err();
        assert!(error.to_string().ends_with("dropped by this client"), "{error}");
    }

    #[tokio::test]
    async fn absurd_answers_end_the_connection_and_say_why() {
        let cases: [(&[u8], &str); 4] = [
            (b"\0\0\0\x04\xFFSMB", "packet header: ProtocolId"),
            (b"\0\0\0\x08\xFESMB\x40\0\0\0", "packet header: 8 bytes are too few"),
            (b"\0\xFF\xFF\xFF", "reading failed: frame size too big"),
            (b"\0\0\0\x02hi", "packet header: 2 bytes are too few"),
        ];
        for (answer, expected) in cases {
            let connection = connection_to_server_saying(answer).await;
            let error = connection.call(wire::echo()).await.unwrap_err();
            assert!(matches!(error, SmbError::Disconnected { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
