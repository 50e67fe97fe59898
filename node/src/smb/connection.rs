//! One connection of one `smbd` process: frames in, frames out.
//!
//! A process has one request outstanding at a time, so a connection is a plain loop. While a request is being
//! decided the sidecar may ask back for records ([`Connection::fetch`]); the process answers before anything else.

use std::io;
use std::time::Duration;

use frame::{Database, FrameBuffer, FrameError, Record, RecordKey, Reply, Request};
use samba::records::ServerId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::UCred;

/// How long a process may take to look up a record of its own. That takes microseconds, unless the record is locked by
/// another process that waits for the cluster, or the process is stopped. Then it has to connect again, which it does
/// by itself, and to ask again.
const PEER_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// How long a process may take to say hello, which follows the connect at once. Short, because the socket is open to
/// everybody, and those who say nothing keep the others waiting.
const HELLO_WITHIN: Duration = Duration::from_secs(1);

/// Bytes read from the socket at a time: several usual requests of about 1 KiB.
const READ_LEN: usize = 16 * 1024;

/// Why a connection is not worth keeping.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// What came is no frame, or no message.
    #[error("a frame that makes no sense came from process {pid}; a shim of another version?")]
    Frame {
        /// The process at the other end.
        pid: u32,
        /// What is wrong with it.
        source: FrameError,
    },
    /// A message came that has no place here.
    #[error("process {pid} sent {what} where {expected} was expected")]
    Unexpected {
        /// The process at the other end.
        pid: u32,
        /// What it sent.
        what: &'static str,
        /// What would have been right.
        expected: &'static str,
    },
    /// The process took too long.
    #[error("process {pid} did not answer within {patience:?}")]
    Silent {
        /// The process at the other end.
        pid: u32,
        /// How long it had.
        patience: Duration,
    },
}

impl ConnectionError {
    /// Whether the process has just gone away: a short-lived one ends with its answer unread.
    #[must_use]
    pub fn is_goodbye(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        matches!(self, Self::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof))
    }
}

/// What a process asks at the beginning.
#[derive(Clone, Copy, Debug)]
pub struct Hello {
    /// The version of the protocol that it speaks.
    pub protocol: u16,
    /// The start of the SMB service that it belongs to.
    pub instance: [u8; 16],
    /// The process that accepts clients and forks one process for each.
    pub main_process: u32,
}

/// What a process asks before it does it.
#[derive(Debug)]
pub enum Question {
    /// May a record be changed?
    Change(Change),
    /// May the record of an open be looked at?
    Look {
        /// Its key.
        key: Vec<u8>,
    },
    /// May a client connect to a share?
    Knock,
    /// May another process be asked to break an oplock or a lease?
    Break {
        /// That process.
        receiver: ServerId,
        /// What it is asked.
        message: Vec<u8>,
    },
    /// May the position of an open be set?
    Position {
        /// The number in the open's entry among the share modes.
        share_file_id: u64,
        /// In bytes.
        position: u64,
    },
}

/// What a process wants to do to a record.
#[derive(Debug)]
pub enum Change {
    /// To store a record.
    Store {
        /// Where.
        database: Database,
        /// Under which key.
        key: Vec<u8>,
        /// What.
        value: Vec<u8>,
        /// Whether it is the record of an open that was made to delete its file when it is closed.
        deletes_file: bool,
    },
    /// To delete a record.
    Delete {
        /// Where.
        database: Database,
        /// Which.
        key: Vec<u8>,
    },
}

/// A connection, from the sidecar's side.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    received: FrameBuffer,
    /// Who is at the other end, as the kernel says.
    peer: UCred,
    /// The request that is being decided.
    request_id: u32,
    /// What came with it, because the process expects that it will be needed.
    expected: Vec<Record>,
}

impl Connection {
    /// Takes over an accepted socket.
    ///
    /// # Errors
    ///
    /// If the kernel does not say who is at the other end.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        Ok(Self { stream, received: FrameBuffer::new(), peer, request_id: 0, expected: Vec::new() })
    }

    /// The process at the other end.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.peer.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)
    }

    /// The user that it ran as when it connected.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.peer.uid()
    }

    /// Waits for the first message.
    ///
    /// # Errors
    ///
    /// If something else comes, or nothing.
    pub async fn hello(&mut self) -> Result<Hello, ConnectionError> {
        match self.receive_within(HELLO_WITHIN).await? {
            (request_id, Request::Hello { protocol, instance, main_pid, .. }) => {
                self.request_id = request_id;
                Ok(Hello { protocol, instance, main_process: main_pid })
            }
            (_, other) => Err(self.unexpected(&other, "a hello")),
        }
    }

    /// Waits for what the process asks next; `None` when it has closed the connection.
    ///
    /// # Errors
    ///
    /// If the connection fails or what comes makes no sense.
    pub async fn next_question(&mut self) -> Result<Option<Question>, ConnectionError> {
        let mut ahead = None;
        loop {
            let Some((request_id, request)) = self.receive().await? else { return Ok(None) };
            let question = match request {
                Request::Store { database, key, value } => {
                    Question::Change(Change::Store { database, key, value, deletes_file: false })
                }
                Request::StoreDeleting { key, value } => {
                    let database = Database::OpenGlobal;
                    Question::Change(Change::Store { database, key, value, deletes_file: true })
                }
                Request::Delete { database, key } => Question::Change(Change::Delete { database, key }),
                Request::Look { database: Database::OpenGlobal, key } => Question::Look { key },
                Request::Look { database: Database::TconGlobal, .. } => Question::Knock,
                Request::Break { receiver, message } => {
                    Question::Break { receiver: ServerId::from_bytes(receiver), message }
                }
                Request::Position { share_file_id, position } => {
                    Question::Position { share_file_id, position }
                }
                Request::Records { records } if ahead.is_none() => {
                    ahead = Some((request_id, records));
                    continue;
                }
                // It has told smbd so; the change it was about is off.
                Request::Abandon { .. } => continue,
                other => {
                    return Err(self.unexpected(&other, "a question"));
                }
            };
            self.request_id = request_id;
            let expected = ahead.filter(|(of_request, _)| *of_request == request_id);
            self.expected = expected.map_or_else(Vec::new, |(_, records)| records);
            return Ok(Some(question));
        }
    }

    /// Asks the process for records of its own databases, unless they came with its request; `None` if it cannot read them
    /// and has refused the change.
    ///
    /// # Errors
    ///
    /// If the process does not answer that.
    pub async fn fetch(&mut self, keys: Vec<RecordKey>) -> Result<Option<Vec<Record>>, ConnectionError> {
        let has = |record: &Record, key: &RecordKey| record.database == key.database && record.key == key.key;
        let expected = keys.iter().map(|key| self.expected.iter().find(|record| has(record, key)).cloned());
        if let Some(records) = expected.collect() {
            return Ok(Some(records));
        }
        self.reply(&Reply::Need { keys }).await?;
        match self.receive_within(PEER_ANSWERS_WITHIN).await? {
            (request_id, Request::Records { records }) if request_id == self.request_id => Ok(Some(records)),
            (_, Request::Abandon { .. }) => Ok(None),
            (_, other) => Err(self.unexpected(&other, "records")),
        }
    }

    /// Answers the request that is being decided.
    ///
    /// # Errors
    ///
    /// If the connection fails.
    pub async fn reply(&mut self, reply: &Reply) -> Result<(), ConnectionError> {
        let mut bytes = Vec::new();
        reply.encode(self.request_id, &mut bytes).map_err(|source| self.frame_error(source))?;
        Ok(self.stream.write_all(&bytes).await?)
    }

    async fn receive_within(&mut self, patience: Duration) -> Result<(u32, Request), ConnectionError> {
        match tokio::time::timeout(patience, self.receive()).await {
            Ok(received) => received?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Err(_) => Err(ConnectionError::Silent { pid: self.pid(), patience }),
        }
    }

    async fn receive(&mut self) -> Result<Option<(u32, Request)>, ConnectionError> {
        let mut bytes = [0; READ_LEN];
        loop {
            let frame = self.received.take_frame().map_err(|source| self.frame_error(source))?;
            if let Some(frame) = frame {
                return Request::decode(&frame).map(Some).map_err(|source| self.frame_error(source));
            }
            match self.stream.read(&mut bytes).await {
                Ok(0) => return Ok(None),
                Ok(read) => {
                    self.received.push(&bytes[..read]).map_err(|source| self.frame_error(source))?;
                }
                // A process that was killed leaves its side unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn frame_error(&self, source: FrameError) -> ConnectionError {
        ConnectionError::Frame { pid: self.pid(), source }
    }

    fn unexpected(&self, request: &Request, expected: &'static str) -> ConnectionError {
        let what = match request {
            Request::Hello { .. } => "a hello",
            Request::Store { .. } | Request::StoreDeleting { .. } => "a store",
            Request::Delete { .. } => "a delete",
            Request::Look { .. } => "a look",
            Request::Break { .. } => "a break",
            Request::Position { .. } => "a position",
            Request::Records { .. } => "records",
            Request::Abandon { .. } => "a refusal",
        };
        ConnectionError::Unexpected { pid: self.pid(), what, expected }
    }
}
