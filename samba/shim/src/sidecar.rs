//! The connection of this process to the sidecar: hello, ask, wait for the answer, and begin again when it
//! breaks.
//!
//! # How long it waits
//!
//! A process that is bound to the lease waits for ever: the fence ends it. One that is not bound yet waits
//! for [`UNBOUND_WAIT_MAX_NS`] and then refuses the store, so that its client hears of an error instead of
//! hanging on a node without a sidecar. Having waited once it refuses at once until the sidecar is there:
//! `smbd` makes several calls before it answers a tree connect that fails.
//!
//! # What it trusts
//!
//! Nothing. A reply that makes no sense is a broken connection; a reply to an earlier request is dropped; a
//! descriptor that `smbd` has closed and given to something else is noticed before a byte goes there.

#![expect(unsafe_code, reason = "sockets are C interfaces")]

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};

use frame::frame::{HEADER_LEN, PROTOCOL};
use frame::page::now_ns;
use frame::{FrameBuffer, Record, RecordKey, Reply, Request, TdbError};

use crate::process::Process;
use crate::syslog::Trouble;
use crate::{databases, fence, libtdb, process};

/// How long to wait for an answer before this process is bound to the lease: longer than the cluster needs to
/// elect a leader and to declare a node down, and short enough that the client hears of the refusal. Samba's
/// own clients give a tree connect up after 20 s, Windows after 60.
const UNBOUND_WAIT_MAX_NS: u64 = 15_000_000_000;

/// How long to wait before the next attempt to connect.
const RECONNECT_INTERVAL_MS: c_int = 20;

/// The longest sleep without looking at the fence. Ticks interrupt it earlier; it matters only if there are
/// none.
const SLEEP_MAX_MS: c_int = 1000;

/// The request id of Hello; requests have others.
const HELLO_ID: u32 = 0;

/// What `smbd` may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Make the call.
    Proceed,
    /// Do not make it, and let it succeed.
    Skip,
    /// Let it fail.
    Refuse(TdbError),
    /// Nobody said, in the time that a process that is not bound waits.
    NoAnswer,
}

/// Asks the sidecar and waits for its verdict. Does not return where the verdict is that this process must
/// end. `expected` are records that the sidecar may need to decide.
pub(crate) fn ask(request: &Request, expected: Vec<Record>) -> Verdict {
    let Some(process) = process::current() else { return Verdict::Proceed };
    if !fence::is_armed() {
        Trouble::NoFence.say_once();
        return Verdict::Refuse(TdbError::Io);
    }
    fence::check();
    let verdict = CONNECTION.with(|connection| connection.ask(process, request, expected));
    // The lease may have ended while we waited. Then the verdict is worth nothing.
    fence::check();
    verdict
}

/// Connects if there is no connection, and drops one that has broken. Never waits; called by the tick, so
/// that a restarted sidecar finds out which processes are alive.
pub(crate) fn keep_connected() {
    let Some(process) = process::current() else { return };
    CONNECTION.try_with(|connection| {
        if connection.is_broken() {
            connection.disconnect();
        }
        let _ = connection.connect(process);
    });
}

/// Prepares a connection for this process, which may have been forked from one that had its own.
pub(crate) fn begin() {
    let Some(process) = process::current() else { return };
    // SAFETY: called when this process begins, before its first tick, by its only thread.
    let connection = unsafe { CONNECTION.take_over() };
    connection.disconnect();
    connection.hello.clear();
    let hello = Request::Hello {
        protocol: PROTOCOL,
        instance: process.instance,
        main_pid: process.main_pid,
        pid: process::pid(),
    };
    // Without memory for these few bytes the hello stays empty, and no connection will be welcomed.
    let _ = hello.encode(HELLO_ID, &mut connection.hello);
}

static CONNECTION: Exclusive<Connection> = Exclusive::new(Connection {
    fd: -1,
    file: (0, 0),
    welcomed: false,
    hello: Vec::new(),
    request_id: HELLO_ID,
    received: FrameBuffer::new(),
    given_up: false,
});

/// The connection of this process.
struct Connection {
    /// -1 when there is none.
    fd: c_int,
    /// Device and inode of the socket, to know it again.
    file: (libc::dev_t, libc::ino_t),
    /// Whether the answer to Hello was read.
    welcomed: bool,
    /// This process's Hello, encoded beforehand, because a signal handler sends it.
    hello: Vec<u8>,
    /// The id of the newest request.
    request_id: u32,
    received: FrameBuffer,
    /// Whether the last wait was in vain.
    given_up: bool,
}

/// Why a conversation ended without a verdict.
enum Failure {
    /// The connection broke, or never was: try again.
    Lost,
    /// It took too long.
    GaveUp,
}

impl Connection {
    fn ask(&mut self, process: &Process, request: &Request, expected: Vec<Record>) -> Verdict {
        self.request_id = self.request_id.checked_add(1).unwrap_or(HELLO_ID + 1);
        let mut frame = Vec::new();
        if !expected.is_empty() {
            // What does not fit is left out: it will be asked for.
            let _ = Request::Records { records: expected }.encode(self.request_id, &mut frame);
        }
        if request.encode(self.request_id, &mut frame).is_err() {
            return Verdict::Refuse(TdbError::Oom);
        }
        let wait = Wait::begin();
        loop {
            let failure = match self.converse(process, &frame, &wait) {
                Ok(verdict) => return verdict,
                Err(failure) => failure,
            };
            // One that gave up waiting for the welcome must not keep half of it.
            if matches!(failure, Failure::Lost) || !self.welcomed {
                self.disconnect();
            }
            let waits_on = match failure {
                Failure::Lost if self.given_up && !fence::is_bound() => false,
                Failure::Lost => wait.sleep(RECONNECT_INTERVAL_MS).is_ok(),
                Failure::GaveUp => false,
            };
            if !waits_on {
                self.given_up = true;
                Trouble::NoAnswer.say_once();
                return Verdict::NoAnswer;
            }
        }
    }

    fn converse(&mut self, process: &Process, frame: &[u8], wait: &Wait) -> Result<Verdict, Failure> {
        self.connect(process)?;
        if !self.welcomed {
            match self.receive(HELLO_ID, wait)? {
                Reply::Welcome => self.welcome(),
                Reply::Refuse { tdb_error } if !fence::is_bound() => {
                    // The next request begins with a new hello: the reason may be gone by then.
                    self.disconnect();
                    return Ok(Verdict::Refuse(tdb_error));
                }
                _ => return Err(Failure::Lost),
            }
        }
        self.send(frame, wait)?;
        loop {
            match self.receive(self.request_id, wait)? {
                Reply::Proceed => return Ok(Verdict::Proceed),
                Reply::Skip => return Ok(Verdict::Skip),
                Reply::Refuse { tdb_error } => return Ok(Verdict::Refuse(tdb_error)),
                Reply::Need { keys } => {
                    if let Some(error) = self.send_records(keys, wait)? {
                        return Ok(Verdict::Refuse(error));
                    }
                }
                Reply::Welcome | Reply::Fence => return Err(Failure::Lost),
            }
        }
    }

    fn welcome(&mut self) {
        self.welcomed = true;
        self.given_up = false;
    }

    /// Sends the records that the sidecar needs; or gives the request up, and returns why.
    fn send_records(&self, keys: Vec<RecordKey>, wait: &Wait) -> Result<Option<TdbError>, Failure> {
        let mut frame = Vec::new();
        let records = records_of(keys).and_then(|records| {
            let encoded = Request::Records { records }.encode(self.request_id, &mut frame);
            encoded.map_err(|_| TdbError::Oom)
        });
        if let Err(tdb_error) = records {
            // Without memory even for this nothing is sent, and the next request supersedes this one.
            let _ = Request::Abandon { tdb_error }.encode(self.request_id, &mut frame);
        }
        self.send(&frame, wait)?;
        Ok(records.err())
    }

    /// Connects and says hello, if there is no connection. Does not wait.
    fn connect(&mut self, process: &Process) -> Result<(), Failure> {
        if self.fd >= 0 && self.is_own() {
            return Ok(());
        }
        self.disconnect();
        // The sidecar makes its page before it listens.
        if !fence::follow_page(&process.page_path) {
            return Err(Failure::Lost);
        }
        // SAFETY: takes no memory.
        let fd = unsafe {
            libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        };
        if fd < 0 {
            return Err(Failure::Lost);
        }
        self.fd = fd;
        let address = (&raw const process.socket).cast::<libc::sockaddr>();
        let address_len = mem::size_of::<libc::sockaddr_un>() as libc::socklen_t;
        // SAFETY: the address is valid for its length.
        let connected = unsafe { libc::connect(fd, address, address_len) } == 0;
        match file_of(fd) {
            // A new connection has room for a few bytes, so the hello goes out whole or something is wrong.
            Some(file) if connected && self.send_some(&self.hello) == Some(self.hello.len()) => {
                self.file = file;
                Ok(())
            }
            _ => {
                // SAFETY: `fd` was opened above.
                unsafe { libc::close(fd) };
                self.fd = -1;
                Err(Failure::Lost)
            }
        }
    }

    /// Closes the connection, if there is one and the descriptor is still it.
    fn disconnect(&mut self) {
        if self.fd >= 0 && self.is_own() {
            // SAFETY: the descriptor is ours.
            unsafe { libc::close(self.fd) };
        }
        self.fd = -1;
        self.welcomed = false;
        self.received.clear();
    }

    /// Whether the descriptor is still the socket that was opened: `smbd` may have closed it, and opened
    /// something else that got its number.
    fn is_own(&self) -> bool {
        file_of(self.fd) == Some(self.file)
    }

    /// Takes the welcome if it has come, and returns whether the sidecar has closed the connection or has
    /// answered the hello with anything else. Allocates nothing.
    fn is_broken(&mut self) -> bool {
        if self.fd < 0 || !self.is_own() {
            return true;
        }
        if !self.welcomed {
            match self.hello_answer(libc::MSG_PEEK) {
                Some(Reply::Fence) => fence::end_process(),
                // Left unread it would turn this process's end into a reset of the connection.
                Some(Reply::Welcome) => {
                    self.hello_answer(0);
                    self.welcome();
                }
                Some(_) => return true,
                None => {}
            }
        }
        // Reading would not tell: what was not read yet comes before the end of the stream.
        let mut entry = libc::pollfd { fd: self.fd, events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: one entry, which is writable.
        let ready = unsafe { libc::poll(&mut entry, 1, 0) };
        ready > 0 && entry.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
    }

    /// The answer to the hello, if all of it is there. What makes no sense counts as a refusal.
    fn hello_answer(&self, flags: c_int) -> Option<Reply> {
        let mut header = [0_u8; HEADER_LEN];
        let flags = flags | libc::MSG_DONTWAIT;
        // SAFETY: the buffer is writable for its length.
        let got = unsafe { libc::recv(self.fd, header.as_mut_ptr().cast(), header.len(), flags) };
        if usize::try_from(got) != Ok(HEADER_LEN) {
            return None;
        }
        // A frame of this length has no payload, so decoding it needs no memory; and a refusal has one.
        match Reply::decode(&header) {
            Ok((_, reply)) => Some(reply),
            Err(_) => Some(Reply::Refuse { tdb_error: TdbError::Io }),
        }
    }

    fn send(&self, mut frame: &[u8], wait: &Wait) -> Result<(), Failure> {
        while !frame.is_empty() {
            match self.send_some(frame) {
                Some(sent) => frame = frame.get(sent..).unwrap_or_default(),
                None if would_block_or_interrupted() => wait.until_ready(self.fd, libc::POLLOUT)?,
                None => return Err(Failure::Lost),
            }
        }
        Ok(())
    }

    /// Sends what goes without waiting; `None` leaves the reason in errno.
    fn send_some(&self, bytes: &[u8]) -> Option<usize> {
        // SAFETY: the bytes are readable for their length.
        let sent = unsafe {
            libc::send(self.fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        };
        usize::try_from(sent).ok()
    }

    /// The next reply to this request. Replies to earlier ones are dropped; a fence counts under any id.
    fn receive(&mut self, request_id: u32, wait: &Wait) -> Result<Reply, Failure> {
        let mut chunk = [0_u8; 4096];
        loop {
            wait.check()?;
            if let Some(frame) = self.received.take_frame().map_err(|_| Failure::Lost)? {
                match Reply::decode(&frame).map_err(|_| Failure::Lost)? {
                    (_, Reply::Fence) => fence::end_process(),
                    (answered, reply) if answered == request_id => return Ok(reply),
                    _ => continue,
                }
            }
            // SAFETY: the buffer is writable for its length.
            let got =
                unsafe { libc::recv(self.fd, chunk.as_mut_ptr().cast(), chunk.len(), libc::MSG_DONTWAIT) };
            match usize::try_from(got) {
                Ok(0) => return Err(Failure::Lost),
                Ok(got) => {
                    let received = chunk.get(..got).unwrap_or_default();
                    self.received.push(received).map_err(|_| Failure::Lost)?;
                }
                Err(_) if would_block_or_interrupted() => wait.until_ready(self.fd, libc::POLLIN)?,
                Err(_) => return Err(Failure::Lost),
            }
        }
    }
}

/// The records that the sidecar needs, as they are stored now. A database that this process has not opened
/// holds nothing of the open that this is about.
pub(crate) fn records_of(keys: Vec<RecordKey>) -> Result<Vec<Record>, TdbError> {
    let mut records = Vec::new();
    for RecordKey { database, key } in keys {
        let value = match databases::context_of(database) {
            // SAFETY: the table holds open contexts only.
            Some((context, file)) => unsafe { libtdb::fetch(context, &key) }?
                .and_then(|value| samba_value(value, file.header_len())),
            None => None,
        };
        records.push(Record { database, key, value });
    }
    Ok(records)
}

/// A stored value without ctdb's part of it. A value of that alone stands for a record that is not there.
fn samba_value(mut value: Vec<u8>, header_len: usize) -> Option<Vec<u8>> {
    if header_len == 0 {
        return Some(value);
    }
    value.drain(..header_len.min(value.len()));
    (!value.is_empty()).then_some(value)
}

/// Device and inode of an open file.
fn file_of(fd: c_int) -> Option<(libc::dev_t, libc::ino_t)> {
    // SAFETY: all-zero bytes are a valid `stat`.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: `stat` is writable; a descriptor that is not open is an error.
    (unsafe { libc::fstat(fd, &mut stat) } == 0).then_some((stat.st_dev, stat.st_ino))
}

fn would_block_or_interrupted() -> bool {
    // SAFETY: the address of the thread's own errno.
    matches!(unsafe { *libc::__errno_location() }, libc::EAGAIN | libc::EINTR)
}

/// One wait for a verdict, from the first attempt on.
struct Wait {
    began_ns: u64,
}

impl Wait {
    fn begin() -> Self {
        Self { began_ns: now_ns() }
    }

    /// Whether there is reason to wait any longer. Ends the process where the lease has ended.
    fn check(&self) -> Result<(), Failure> {
        fence::check();
        if !fence::is_bound() && now_ns() - self.began_ns >= UNBOUND_WAIT_MAX_NS {
            return Err(Failure::GaveUp);
        }
        Ok(())
    }

    /// Sleeps until the descriptor is ready, or a signal comes, or it is time to check.
    fn until_ready(&self, fd: c_int, events: libc::c_short) -> Result<(), Failure> {
        let mut entry = libc::pollfd { fd, events, revents: 0 };
        // SAFETY: one entry, which is writable.
        unsafe { libc::poll(&mut entry, 1, SLEEP_MAX_MS) };
        self.check()
    }

    fn sleep(&self, ms: c_int) -> Result<(), Failure> {
        // SAFETY: no entries.
        unsafe { libc::poll(std::ptr::null_mut(), 0, ms) };
        self.check()
    }
}

/// A value that one at a time may use: the thread that makes a database call, or the tick. The tick, which
/// may have interrupted the other, only tries.
struct Exclusive<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `taken` lets one at a time at the value.
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    const fn new(value: T) -> Self {
        Self { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Runs `action` on the value unless somebody else is using it.
    fn try_with<R>(&self, action: impl FnOnce(&mut T) -> R) -> Option<R> {
        if self.taken.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: `taken` was not set and is now, so nobody else has a reference.
        let result = action(unsafe { &mut *self.value.get() });
        self.taken.store(false, Ordering::Release);
        Some(result)
    }

    /// Runs `action` on the value, as soon as nobody else uses it. Not for the tick.
    fn with<R>(&self, action: impl FnOnce(&mut T) -> R) -> R {
        let mut action = Some(action);
        loop {
            let tried = self.try_with(|value| action.take().map(|action| action(value)));
            if let Some(Some(result)) = tried {
                return result;
            }
            // SAFETY: takes nothing.
            unsafe { libc::sched_yield() };
        }
    }

    /// Takes the value, whoever used it.
    ///
    /// # Safety
    ///
    /// Nobody uses it in this process, and nobody will while the reference lives.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that there is no other reference")]
    unsafe fn take_over(&self) -> &mut T {
        self.taken.store(false, Ordering::Relaxed);
        // SAFETY: promised by the caller.
        unsafe { &mut *self.value.get() }
    }
}
