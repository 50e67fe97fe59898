//! A sidecar that says what a test wants it to say, and a program under the shim.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use frame::{Database, FrameBuffer, Limits, PageWriter, Reply, Request};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often the programs look at the fence.
pub(crate) const FENCE_TICK: Duration = Duration::from_millis(20);

/// From this length on an open counts as durable.
pub(crate) const DURABLE_LEN: u32 = 64;

/// A test's directory with a fake sidecar in it.
pub(crate) struct Rig {
    pub(crate) sidecar: FakeSidecar,
    directory: tempfile::TempDir,
}

impl Rig {
    /// Starts a fake sidecar. `None` where there is no libtdb: then the test has nothing to test, which is a
    /// failure where Samba is required.
    pub(crate) fn start() -> Option<Self> {
        if !libtdb_is_here() {
            let required = std::env::var_os("HOLDFAST_REQUIRE_SAMBA").is_some_and(|value| value == "1");
            assert!(!required, "libtdb.so.1 is missing: install libtdb1");
            eprintln!("skipped: libtdb.so.1 is missing (install libtdb1)");
            return None;
        }
        let directory = tempfile::tempdir().expect("temporary directory");
        Some(Self { sidecar: FakeSidecar::start(directory.path()), directory })
    }

    /// A program under the shim, with all five databases open.
    pub(crate) fn program(&self) -> Program {
        let mut program = Program::start(self.path());
        self.open_databases(&mut program);
        program
    }

    /// A program without the shim, with all five databases open: it sees what is really stored.
    pub(crate) fn observer(&self) -> Program {
        let mut observer = Program::spawn(Command::new(program_path()));
        self.open_databases(&mut observer);
        observer
    }

    /// A program under the shim as of a clustered Samba, whose instance may serve for `lease`, and its connection.
    pub(crate) fn bound_clustered_program(&mut self, lease: Duration) -> (Program, Connection) {
        let mut program = Program::start(self.path());
        for database in Database::ALL {
            let path = self.path().join(clustered(database));
            assert_eq!(program.call(&format!("open {}", path.display())), "ok");
        }
        let connection = self.sidecar.bind(lease);
        let tree_connect = format!("store {} 00000001 {CTDB_HEADER}aa", clustered(Database::TconGlobal));
        assert_eq!(self.sidecar.proceed(&mut program, &tree_connect), "ok");
        (program, connection)
    }

    /// A program under the shim whose instance may serve for `lease`, and its connection.
    pub(crate) fn bound_program(&mut self, lease: Duration) -> (Program, Connection) {
        let mut program = self.program();
        let connection = self.sidecar.bind(lease);
        // Answered after the page names the instance, so from here on the program knows that it is bound.
        assert_eq!(self.sidecar.proceed(&mut program, &store(Database::TconGlobal, "00000001", "aa")), "ok");
        (program, connection)
    }

    /// Where the databases are.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn open_databases(&self, program: &mut Program) {
        for database in Database::ALL {
            let path = self.path().join(database.file_name());
            assert_eq!(program.call(&format!("open {}", path.display())), "ok");
        }
    }
}

/// What ctdb puts before a value; to the shim it is so many bytes.
pub(crate) const CTDB_HEADER: &str = "0102030405060708090a0b0c0d0e0f101112131415161718";

/// The name of a database's file on a ctdb node.
pub(crate) fn clustered(database: Database) -> String {
    format!("{}.1", database.file_name())
}

/// The line that stores a record.
pub(crate) fn store(database: Database, key: &str, value: &str) -> String {
    format!("store {database} {key} {value}")
}

/// A sidecar that tells the test what it is asked.
pub(crate) struct FakeSidecar {
    pub(crate) page: PageWriter,
    socket: PathBuf,
    sender: Sender<Asked>,
    asked: Receiver<Asked>,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

/// What came in on a connection.
pub(crate) struct Asked {
    pub(crate) connection: Connection,
    pub(crate) request_id: u32,
    pub(crate) request: Request,
}

/// The sidecar's end of a connection.
#[derive(Clone)]
pub(crate) struct Connection(Arc<UnixStream>);

impl Connection {
    /// Answers a request.
    pub(crate) fn reply(&self, request_id: u32, reply: Reply) {
        let mut frame = Vec::new();
        reply.encode(request_id, &mut frame).expect("small enough");
        self.send(&frame);
    }

    /// Sends any bytes.
    pub(crate) fn send(&self, bytes: &[u8]) {
        (&*self.0).write_all(bytes).expect("the program listens");
    }

    /// Ends the connection.
    pub(crate) fn close(&self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }

    /// Whether both are the same connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl FakeSidecar {
    fn start(run_dir: &Path) -> Self {
        let limits = Limits { fence_tick_ns: nanos(FENCE_TICK), open_global_durable_min_len: DURABLE_LEN };
        let page = PageWriter::open(&run_dir.join(frame::PAGE_FILE), limits).expect("page");
        let (sender, asked) = mpsc::channel();
        let socket = run_dir.join(frame::SOCKET_FILE);
        let sidecar = Self { page, socket, sender, asked, open: Arc::default() };
        sidecar.listen();
        sidecar
    }

    /// Closes every connection and stops listening.
    pub(crate) fn stop(&mut self) {
        std::fs::remove_file(&self.socket).expect("it was listening");
        for stream in self.open.lock().expect("no thread panicked").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        while self.asked.try_recv().is_ok() {}
    }

    /// Listens (again).
    pub(crate) fn listen(&self) {
        let listener = UnixListener::bind(&self.socket).expect("socket");
        let (sender, open) = (self.sender.clone(), self.open.clone());
        // Ends with the test's process. After `stop` nobody finds the way to it any more.
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                open.lock().expect("no thread panicked").push(stream.try_clone().expect("descriptor"));
                let sender = sender.clone();
                std::thread::spawn(move || read(&Connection(Arc::new(stream)), &sender));
            }
        });
    }

    /// The next thing that somebody asks.
    pub(crate) fn next(&self) -> Asked {
        self.asked.recv_timeout(PATIENCE).expect("somebody asks something")
    }

    /// The next hello and its connection, without an answer.
    pub(crate) fn hello(&self) -> Asked {
        let asked = self.next();
        assert!(matches!(asked.request, Request::Hello { .. }), "expected a hello, got {:?}", asked.request);
        asked
    }

    /// Welcomes the next hello.
    pub(crate) fn welcome(&self) -> Asked {
        let asked = self.hello();
        asked.connection.reply(asked.request_id, Reply::Welcome);
        asked
    }

    /// Welcomes the next hello, and lets its instance serve.
    pub(crate) fn bind(&mut self, lease: Duration) -> Connection {
        let asked = self.hello();
        let Request::Hello { instance, .. } = asked.request else { unreachable!("checked in hello") };
        self.page.bind(&instance, nanos_from_now(lease));
        asked.connection.reply(asked.request_id, Reply::Welcome);
        asked.connection
    }

    /// Lets the bound instance serve on.
    pub(crate) fn extend_lease(&mut self, lease: Duration) {
        self.page.extend_lease(nanos_from_now(lease));
    }

    /// Makes a call that asks, lets it proceed, and returns its result.
    pub(crate) fn proceed(&self, program: &mut Program, call: &str) -> String {
        program.begin(call);
        let asked = self.next();
        asked.connection.reply(asked.request_id, Reply::Proceed);
        program.answer()
    }
}

fn read(connection: &Connection, sender: &Sender<Asked>) {
    let mut buffer = FrameBuffer::new();
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = (&*connection.0).read(&mut chunk) {
        buffer.push(&chunk[..length]).expect("memory");
        while let Some(frame) = buffer.take_frame().expect("the shim sends sound frames") {
            let (request_id, request) = Request::decode(&frame).expect("the shim sends sound frames");
            let _ = sender.send(Asked { connection: connection.clone(), request_id, request });
        }
    }
}

/// The example program `tdb_calls`.
pub(crate) struct Program {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
}

impl Program {
    /// Starts it under the shim, with this run directory.
    pub(crate) fn start(run_dir: &Path) -> Self {
        let mut command = Self::under_the_shim();
        command.env(frame::RUN_DIR_ENV, run_dir);
        Self::spawn(command)
    }

    /// Starts it under a shim that was told of no run directory.
    pub(crate) fn start_unprotected() -> Self {
        Self::spawn(Self::under_the_shim())
    }

    fn under_the_shim() -> Command {
        let mut command = Command::new(program_path());
        command.env("LD_PRELOAD", holdfast_tdb::built_library_path().expect("the shim is built"));
        command
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("program");
        let input = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, input, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes a call and waits for its result.
    pub(crate) fn call(&mut self, line: &str) -> String {
        self.begin(line);
        self.answer()
    }

    /// Makes a call.
    pub(crate) fn begin(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the program reads");
    }

    /// Waits for the result of a call.
    pub(crate) fn answer(&mut self) -> String {
        self.output.recv_timeout(PATIENCE).expect("the program answers")
    }

    /// The result of a call, if it is there already.
    pub(crate) fn answer_so_far(&mut self) -> Option<String> {
        self.output.try_recv().ok()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: i32) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.pid().to_string()).status();
        assert!(status.expect("kill(1)").success());
    }

    /// Waits for its end, and returns the signal that ended it.
    pub(crate) fn ended_by(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status.signal();
            }
            assert!(Instant::now() < deadline, "the program lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Cargo builds a package's examples before it runs its tests, beside the directory that the tests are in.
fn program_path() -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    test.parent().and_then(Path::parent).expect("target directory").join("examples/tdb_calls")
}

fn libtdb_is_here() -> bool {
    let spawned = Command::new(program_path()).stdin(Stdio::null()).spawn();
    let mut child = spawned.expect("the example is built by `cargo test`, though not by `cargo test --test`");
    child.wait().expect("our child").success()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a test's duration")
}

/// An instant on the clock of the lease.
fn nanos_from_now(duration: Duration) -> u64 {
    frame::page::now_ns() + nanos(duration)
}
