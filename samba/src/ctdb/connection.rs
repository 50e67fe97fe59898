//! One connection to the ctdbd of this node.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use super::node_map::NodeStatus;
use super::packet::{Call, DatabaseId, Fields, Opcode, Packet, PacketError, Pnn, Reply, Request, length_of};
use super::record::RecordHeader;
use crate::records::ServerId;

/// How often a ctdbd that has too many connections waiting is tried again.
const CONNECT_POLL: Duration = Duration::from_millis(10);

/// How many requests are under way at once. Their answers fit into the socket's buffers, so ctdbd need not queue
/// them, and more would not make a migration any faster: the other nodes' ctdbds are busy by then.
const IN_FLIGHT_MAX: usize = 64;

/// How much is read at once.
const READ_LEN: usize = 16 << 10;

/// A connection to the ctdbd of this node.
///
/// Blocks, and no call for longer than it says. What ctdbd refuses or does not answer in time can be asked again;
/// after any other error the connection is closed, and every call fails.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// What was read and is not a whole packet yet.
    received: Vec<u8>,
    last_request: u32,
    timeout: Duration,
    pnn: Pnn,
}

impl Connection {
    /// Connects to ctdbd's socket. What ctdbd answers by itself has to be answered within `timeout`.
    pub fn open(socket: &Path, timeout: Duration) -> Result<Self, CtdbError> {
        let deadline = Instant::now() + timeout;
        let stream = connect(socket, deadline)
            .map_err(|source| CtdbError::Connect { socket: socket.to_owned(), source })?;
        let mut connection =
            Self { stream, received: Vec::new(), last_request: 0, timeout, pnn: Pnn(u32::MAX) };
        let Reply { status, .. } = connection.control("ask for its number", Opcode::GetPnn, None, &[])?;
        connection.pnn = Pnn(status.cast_unsigned());
        Ok(connection)
    }

    /// This node's number.
    #[must_use]
    pub fn pnn(&self) -> Pnn {
        self.pnn
    }

    /// How long ctdbd may take to answer what it can answer by itself.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The nodes of the cluster, as this node's ctdbd sees them.
    pub fn node_map(&mut self) -> Result<Vec<NodeStatus>, CtdbError> {
        let reply = self.question("ask for the nodes", Opcode::GetNodeMap, &[])?;
        Ok(NodeStatus::decode_all(&reply.data)?)
    }

    /// Whether the cluster is recovering the databases just now. Until it has, no record can be migrated.
    pub fn is_recovering(&mut self) -> Result<bool, CtdbError> {
        const NORMAL: i32 = 0;
        let reply = self.control("ask for the recovery mode", Opcode::GetRecoveryMode, None, &[])?;
        Ok(reply.status != NORMAL)
    }

    /// Whether this node can be banned: the tunable `EnableBans` of ctdb-tunables(7).
    pub fn bans_are_allowed(&mut self) -> Result<bool, CtdbError> {
        let name = terminated("EnableBans");
        let data = [&length_of(&name)?.to_ne_bytes()[..], &name].concat();
        let reply = self.question("ask for a tunable", Opcode::GetTunable, &data)?;
        Ok(Fields { rest: &reply.data, packet: "the tunable" }.u32("value")? != 0)
    }

    /// Which recovery the records of a node come from: each has a number, the same on all nodes that took part. `None` for a
    /// node that has taken part in none since it was started, banned or stopped.
    pub fn generation(&mut self, node: Pnn) -> Result<Option<u32>, CtdbError> {
        const ASK: &str = "ask for the generation of a node";
        const INVALID: u32 = 1;
        let Reply { status, message, data, .. } = self.control(ASK, Opcode::GetVnnMap, Some(node), &[])?;
        if status != 0 {
            return Err(CtdbError::Refused { operation: ASK, status, message });
        }
        let generation = Fields { rest: &data, packet: "the map of virtual nodes" }.u32("generation")?;
        Ok((generation != INVALID).then_some(generation))
    }

    /// Puts this node out of the cluster for a while, in whole seconds, as `ctdb ban` does. What it holds of volatile
    /// databases counts for nothing from then on: the next recovery that it takes part in gives it everything anew.
    ///
    /// Without effect, and no error, where bans are not allowed.
    pub fn ban(&mut self, time: Duration) -> Result<(), CtdbError> {
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let data = [self.pnn.0.to_ne_bytes(), seconds.to_ne_bytes()].concat();
        self.question("ban this node", Opcode::SetBanState, &data).map(drop)
    }

    /// What keeps two parts of a cluster that do not see each other from both going on: the `cluster lock` of
    /// ctdb.conf(5), called `recovery lock` before. `None` where there is none.
    pub fn cluster_lock(&mut self) -> Result<Option<String>, CtdbError> {
        let reply = self.question("ask for the cluster lock", Opcode::GetClusterLock, &[])?;
        let lock = reply.data.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok((!lock.is_empty()).then(|| String::from_utf8_lossy(lock).into_owned()))
    }

    /// The volatile database of this name, which is made if there is none. Waits for the end of a recovery.
    pub fn attach(&mut self, name: &str) -> Result<DatabaseId, CtdbError> {
        let reply = self.question("attach a database", Opcode::AttachDatabase, &terminated(name))?;
        let mut fields = Fields { rest: &reply.data, packet: "the attached database" };
        Ok(DatabaseId(fields.u32("id")?))
    }

    /// The databases of these names that are there, whether the cluster is recovering or not.
    pub fn find_databases(&mut self, names: &[&str]) -> Result<BTreeMap<String, DatabaseId>, CtdbError> {
        const NAMES: &str = "ask for the databases";
        let reply = self.question(NAMES, Opcode::GetDatabaseMap, &[])?;
        let mut fields = Fields { rest: &reply.data, packet: "the map of databases" };
        let mut ids: Vec<[u8; 4]> = Vec::new();
        for _ in 0..fields.u32("count")? {
            ids.push(fields.take("id")?);
            // One byte, padded to four.
            fields.u32("flags")?;
        }
        let name_of = |id| Request::Control { opcode: Opcode::GetDatabaseName, node: None, data: id };
        let requests: Vec<_> = ids.iter().map(|id| name_of(id)).collect();
        let deadline = Instant::now() + self.timeout;
        let mut found = BTreeMap::new();
        for (id, reply) in ids.iter().zip(self.exchange(NAMES, &requests, deadline)?) {
            if let Some(name) = names.iter().find(|name| reply.data == terminated(name)) {
                found.insert((*name).to_owned(), DatabaseId(u32::from_ne_bytes(*id)));
            }
        }
        Ok(found)
    }

    /// Where this node keeps its copy of a database.
    pub fn database_path(&mut self, database: DatabaseId) -> Result<PathBuf, CtdbError> {
        let data = database.0.to_ne_bytes();
        let mut reply = self.question("ask for a database's path", Opcode::GetDatabasePath, &data)?;
        reply.data.truncate(reply.data.iter().position(|byte| *byte == 0).unwrap_or(reply.data.len()));
        Ok(PathBuf::from(OsString::from_vec(reply.data)))
    }

    /// The flags with which ctdbd has opened its copy of a database. Everybody else must use the same.
    pub fn open_flags(&mut self, database: DatabaseId) -> Result<i32, CtdbError> {
        let data = database.0.to_ne_bytes();
        let reply = self.question("ask for a database's flags", Opcode::GetOpenFlags, &data)?;
        let mut fields = Fields { rest: &reply.data, packet: "the open flags" };
        Ok(i32::from_ne_bytes(fields.take("flags")?))
    }

    /// Whether a process that is named in a record still runs, on whichever node.
    ///
    /// One of a node that this ctdbd is not connected to does not. One of a node that is hung lives as long as CTDB
    /// says so, and then there is no answer in time.
    pub fn process_exists(&mut self, process: ServerId) -> Result<bool, CtdbError> {
        const ASK: &str = "ask for a process";
        /// The status that says no. Others mean that nobody knows.
        const NO: i32 = -1;
        const NODES_MAX: u32 = 0xF000_0000;
        /// The unique id of a process that did not make itself known by one.
        const UNVERIFIED: u64 = u64::MAX;

        // No kernel has such a process, and from that number on there are no nodes but ways to name several.
        let pid = i32::try_from(process.pid).ok().filter(|_| process.vnn < NODES_MAX);
        let Some(pid) = pid else { return Ok(false) };
        let node = Some(Pnn(process.vnn));
        let mut data = pid.to_ne_bytes().to_vec();
        let reply = if process.unique_id == UNVERIFIED {
            self.control(ASK, Opcode::ProcessExists, node, &data)?
        } else {
            data.extend(process.unique_id.to_ne_bytes());
            self.control(ASK, Opcode::CheckPidAndServiceId, node, &data)?
        };
        match reply.status {
            0 => Ok(true),
            NO => Ok(false),
            status => Err(CtdbError::Refused { operation: ASK, status, message: reply.message }),
        }
    }

    /// The value of a record, wherever it is. Waits for the end of a recovery.
    ///
    /// CTDB knows no difference between a record that is empty and one that is not there. And it knows no reading from
    /// afar, but for databases that were made for it, which those of opens are not: the record moves to this node.
    pub fn fetch(
        &mut self,
        database: DatabaseId,
        key: &[u8],
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, CtdbError> {
        let request = Request::Call { call: Call::Fetch, database, key };
        let replies = self.exchange("fetch a record", &[request], deadline)?;
        Ok(replies.into_iter().next().map(|reply| reply.data).filter(|value| !value.is_empty()))
    }

    /// Moves records to this node, many at a time. Waits for the end of a recovery.
    ///
    /// They may move on before anybody looks: only who holds the lock of a record's chain, and then finds that
    /// this node is its master, has it.
    pub fn migrate<'a>(
        &mut self,
        records: impl IntoIterator<Item = (DatabaseId, &'a [u8])>,
        deadline: Instant,
    ) -> Result<(), CtdbError> {
        let call = |(database, key)| Request::Call { call: Call::Migrate, database, key };
        let requests: Vec<_> = records.into_iter().map(call).collect();
        self.exchange("migrate a record", &requests, deadline).map(drop)
    }

    /// Tells ctdbd that a record of this node was emptied, so that it need not find out.
    pub(super) fn schedule_for_deletion(
        &mut self,
        database: DatabaseId,
        key: &[u8],
        header: &RecordHeader,
    ) -> Result<(), CtdbError> {
        let deadline = Instant::now() + self.timeout;
        let key_length = length_of(key)?;
        // The header begins at a multiple of eight.
        let padding = [0; 4];
        let id = database.0.to_ne_bytes();
        let data = [&id[..], &padding, header.as_bytes(), &key_length.to_ne_bytes(), key].concat();
        let order = Request::Order { opcode: Opcode::ScheduleForDeletion, data: &data };
        self.send("have a record deleted", &[(0, order)], deadline)
    }

    /// A control that this ctdbd answers by itself, with zero if it can.
    fn question(&mut self, operation: &'static str, opcode: Opcode, data: &[u8]) -> Result<Reply, CtdbError> {
        let reply = self.control(operation, opcode, None, data)?;
        if reply.status == 0 {
            Ok(reply)
        } else {
            Err(CtdbError::Refused { operation, status: reply.status, message: reply.message })
        }
    }

    fn control(
        &mut self,
        operation: &'static str,
        opcode: Opcode,
        node: Option<Pnn>,
        data: &[u8],
    ) -> Result<Reply, CtdbError> {
        let deadline = Instant::now() + self.timeout;
        let mut replies = self.exchange(operation, &[Request::Control { opcode, node, data }], deadline)?;
        Ok(replies.pop().unwrap_or_default())
    }

    /// Sends requests and waits for all their replies, which are returned in the order of the requests.
    fn exchange(
        &mut self,
        operation: &'static str,
        requests: &[Request<'_>],
        deadline: Instant,
    ) -> Result<Vec<Reply>, CtdbError> {
        let mut replies = Vec::with_capacity(requests.len());
        for requests in requests.chunks(IN_FLIGHT_MAX) {
            let numbered: Vec<_> = requests.iter().map(|request| (self.next_request(), *request)).collect();
            self.send(operation, &numbered, deadline)?;
            match self.receive_all(operation, &numbered, deadline) {
                Ok(some) => replies.extend(some),
                Err(error) => {
                    if !matches!(error, CtdbError::Timeout { .. } | CtdbError::Refused { .. }) {
                        self.close();
                    }
                    return Err(error);
                }
            }
        }
        Ok(replies)
    }

    /// Numbers grow, so that the answer to a request that was given up is not taken for another's. None is 0, which
    /// is what messages have.
    fn next_request(&mut self) -> u32 {
        self.last_request = self.last_request.wrapping_add(1).max(1);
        self.last_request
    }

    fn send(
        &mut self,
        operation: &'static str,
        requests: &[(u32, Request<'_>)],
        deadline: Instant,
    ) -> Result<(), CtdbError> {
        let mut bytes = Vec::new();
        for (number, request) in requests {
            request.encode(*number, &mut bytes)?;
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let written = bounded(operation, deadline, |remaining| {
                self.stream.set_write_timeout(Some(remaining))?;
                self.stream.write(rest)
            });
            match written {
                Ok(length) => rest = &rest[length..],
                Err(error) => {
                    // Nobody could finish what was sent in part.
                    self.close();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Receives the reply to each of these requests, in whichever order they come.
    fn receive_all(
        &mut self,
        operation: &'static str,
        requests: &[(u32, Request<'_>)],
        deadline: Instant,
    ) -> Result<Vec<Reply>, CtdbError> {
        let places = requests.iter().enumerate().map(|(place, (number, _))| (*number, place));
        let mut waiting: BTreeMap<u32, usize> = places.collect();
        let mut replies = vec![Reply::default(); requests.len()];
        while !waiting.is_empty() {
            let Some((packet, length)) = Packet::parse(&self.received)? else {
                self.receive_some(operation, deadline)?;
                continue;
            };
            // What is not waited for is a message of the cluster's, or an answer that comes too late.
            let reply = match waiting.remove(&packet.request) {
                Some(place) => Some((place, packet.answer_to(&requests[place].1)?)),
                None => None,
            };
            self.received.drain(..length);
            match reply {
                Some((_, Reply { status, message, is_failed_call: true, .. })) => {
                    return Err(CtdbError::Refused { operation, status, message });
                }
                Some((place, reply)) => replies[place] = reply,
                None => {}
            }
        }
        Ok(replies)
    }

    fn receive_some(&mut self, operation: &'static str, deadline: Instant) -> Result<(), CtdbError> {
        let mut bytes = [0; READ_LEN];
        let length = bounded(operation, deadline, |remaining| {
            self.stream.set_read_timeout(Some(remaining))?;
            self.stream.read(&mut bytes)
        })?;
        if length == 0 {
            return Err(CtdbError::Closed { operation });
        }
        self.received.extend(&bytes[..length]);
        Ok(())
    }

    fn close(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Connects, and waits while ctdbd has too many others to accept.
fn connect(socket: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let address = SockAddr::unix(socket)?;
    loop {
        let connecting = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        match connecting.connect_timeout(&address, deadline.saturating_duration_since(Instant::now())) {
            Ok(()) => return Ok(UnixStream::from(OwnedFd::from(connecting))),
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(CONNECT_POLL);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads or writes before a deadline, and again when a signal has come in between.
fn bounded(
    operation: &'static str,
    deadline: Instant,
    mut transfer: impl FnMut(Duration) -> io::Result<usize>,
) -> Result<usize, CtdbError> {
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(CtdbError::Timeout { operation });
        }
        match transfer(remaining) {
            Ok(length) => return Ok(length),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(CtdbError::Timeout { operation });
            }
            Err(source) => return Err(CtdbError::Io { operation, source }),
        }
    }
}

/// A name as C has it.
fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// ctdbd cannot be asked, or does not do what it was asked for.
#[derive(Debug, Error)]
pub enum CtdbError {
    /// It cannot be reached.
    #[error("cannot connect to ctdbd at {}; does it run, and is this its socket?", socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The connection is broken.
    #[error("cannot {operation}: the connection to ctdbd is broken")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// How it broke.
        source: io::Error,
    },
    /// ctdbd has ended, or does not want to talk to us.
    #[error("cannot {operation}: ctdbd has closed the connection")]
    Closed {
        /// What was tried.
        operation: &'static str,
    },
    /// There was no answer in time. The cluster may be recovering, or a node may be hung.
    #[error("cannot {operation}: ctdbd did not answer in time; `ctdb status` tells whether it is recovering")]
    Timeout {
        /// What was tried.
        operation: &'static str,
    },
    /// ctdbd has answered that it cannot.
    #[error("cannot {operation}: ctdbd says {status} {message}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// The status of the answer.
        status: i32,
        /// What it said, if anything.
        message: String,
    },
    /// What was asked or answered is no packet of CTDB's.
    #[error("ctdbd cannot be understood")]
    Packet(#[from] PacketError),
    /// The cluster has no such database.
    #[error("the cluster has no database {name}; has an smbd of it been started?")]
    NoSuchDatabase {
        /// Its name.
        name: String,
    },
    /// ctdbd has opened a database in a way that no volatile database is opened.
    #[error("database {name} has flags {flags:#x}, which are not those of a volatile database")]
    NotVolatile {
        /// Its name.
        name: String,
        /// ctdbd's flags.
        flags: i32,
    },
    /// The cluster recovers its databases, and nobody can use them until it has.
    #[error("the cluster is recovering its databases; `ctdb status` tells why, if that does not end")]
    Recovering,
    /// Samba keeps a record on disk, for a persistent handle.
    #[error("a record of {name} belongs to a persistent handle, which Samba keeps on disk by itself")]
    OnDisk {
        /// The database.
        name: String,
    },
    /// A record came here and was gone again before it could be locked, over and over.
    #[error("a record of {name} did not stay on this node for long enough to be changed")]
    Elsewhere {
        /// The database.
        name: String,
    },
}
