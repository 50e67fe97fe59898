//! A process of `smbd`, as the sidecar sees one: frames on `shim.sock`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use frame::{Database, FrameBuffer, Record, Reply, Request};
use samba::Layout;
use samba::records::{NtTime, ServerId, TconGlobal};

use crate::sidecar::PATIENCE;

/// One start of `smbd`. All tests' processes belong to it.
pub(crate) const INSTANCE: [u8; 16] = *b"one smbd, tested";

/// A connection to the sidecar.
#[derive(Debug)]
pub(crate) struct Smbd {
    stream: UnixStream,
    received: FrameBuffer,
    request_id: u32,
}

impl Smbd {
    /// Connects, and says nothing.
    pub(crate) fn connect(run_dir: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(run_dir.join(frame::SOCKET_FILE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, received: FrameBuffer::new(), request_id: 0 })
    }

    /// Connects and is let in.
    #[track_caller]
    pub(crate) fn welcome(run_dir: &Path) -> Self {
        let mut smbd = Self::connect(run_dir).expect("the sidecar listens");
        assert_eq!(smbd.ask(&hello(frame::frame::PROTOCOL)).expect("an answer"), Some(Reply::Welcome));
        smbd
    }

    /// Makes a tree connect, which makes an entry in the log when it is the first to its share.
    pub(crate) fn tree_connect(&mut self, share: &str) -> io::Result<Option<Reply>> {
        let record = TconGlobal {
            seqnum: 2,
            tcon_global_id: 1,
            tcon_wire_id: 1,
            server_id: ServerId::NONE,
            creation_time: NtTime(0),
            share_name: share.to_owned(),
            encryption_flags: 0,
            session_global_id: 1,
            signing_flags: 0,
        };
        self.ask(&Request::Store {
            database: Database::TconGlobal,
            // Another one for each.
            key: self.request_id.to_be_bytes().to_vec(),
            value: record.encode(Layout::V4_17),
        })
    }

    /// Asks; `None` if the sidecar closes the connection instead of an answer.
    pub(crate) fn ask(&mut self, request: &Request) -> io::Result<Option<Reply>> {
        self.request_id += 1;
        self.send(&encoded(request, self.request_id))?;
        self.reply()
    }

    /// Gives the records that are needed for an answer to the last request.
    pub(crate) fn give(&mut self, records: Vec<Record>) -> io::Result<Option<Reply>> {
        self.send(&encoded(&Request::Records { records }, self.request_id))?;
        self.reply()
    }

    /// Sends any bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next reply; `None` if the connection is closed.
    pub(crate) fn reply(&mut self) -> io::Result<Option<Reply>> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(frame) = self.received.take_frame().map_err(invalid)? {
                return Ok(Some(Reply::decode(&frame).map_err(invalid)?.1));
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(read) => self.received.push(&bytes[..read]).map_err(invalid)?,
                // What was sent and not read makes a close a reset.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The frame of a request.
pub(crate) fn encoded(request: &Request, request_id: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(request_id, &mut bytes).expect("it is small");
    bytes
}

/// How a process of [`INSTANCE`] introduces itself.
pub(crate) fn hello(protocol: u16) -> Request {
    let pid = std::process::id();
    Request::Hello { protocol, instance: INSTANCE, main_pid: pid, pid }
}

fn invalid(error: frame::FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
