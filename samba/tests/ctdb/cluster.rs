//! Private ctdbds, all on this machine.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use samba::ctdb::{ClusterDatabase, Connection};
use samba::tdb::Tdb;
use tempfile::TempDir;

/// How long a cluster may take to start, or to recover: it takes a few seconds on a machine with nothing else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);

const CTDBD: &str = "/usr/sbin/ctdbd";
const HELPERS: &str = "/usr/libexec/ctdb";

/// Every ctdbd listens on this port, so each needs an address of its own.
const CTDB_PORT: u16 = 4379;

/// The socket of a ctdbd in test mode, in its base directory.
const SOCKET: &str = "run/ctdbd.socket";

/// Whether a test that needs ctdbd can run. Says so if not, and panics where Samba is required.
pub(crate) fn ctdb_is_there() -> bool {
    let is_there = Path::new(CTDBD).exists();
    if !is_there {
        assert_ne!(std::env::var("HOLDFAST_REQUIRE_SAMBA").as_deref(), Ok("1"), "ctdb is required");
        eprintln!("skipped: no {CTDBD}");
    }
    is_there
}

/// A CTDB cluster. Its directories are its own, and its ctdbds are gone when it is dropped.
pub(crate) struct Cluster {
    directory: TempDir,
    /// By number.
    ctdbds: Vec<Option<Child>>,
}

impl Cluster {
    /// Starts a cluster and waits until its databases can be used.
    pub(crate) fn start(nodes: usize) -> Self {
        Self::start_with(nodes, "")
    }

    /// The same with other options for its databases.
    pub(crate) fn start_with(nodes: usize, database_options: &str) -> Self {
        // The paths of unix sockets are short, so the directory's is.
        let directory = TempDir::with_prefix_in("ctdb-", "/tmp").expect("a temporary directory");
        let addresses = free_addresses(nodes).join("\n");
        let mut cluster = Self { directory, ctdbds: Vec::new() };
        for (node, address) in addresses.lines().enumerate() {
            cluster.configure(node, address, &addresses, database_options);
            cluster.ctdbds.push(Some(cluster.spawn(node)));
        }
        for node in 0..nodes {
            cluster.attach(node, "started.tdb");
        }
        cluster.wait_until("all nodes are connected", |cluster| {
            (0..nodes).all(|node| {
                let map = cluster.connect(node).node_map();
                map.is_ok_and(|map| map.len() == nodes && map.iter().all(|node| node.is_active()))
            })
        });
        cluster
    }

    fn base(&self, node: usize) -> PathBuf {
        self.directory.path().join(node.to_string())
    }

    fn configure(&self, node: usize, address: &str, nodes: &str, database_options: &str) {
        let base = self.base(node);
        for name in ["run", "var", "volatile", "persistent", "state", "events/legacy", "events/notification"]
        {
            fs::create_dir_all(base.join(name)).expect("it is new");
        }
        let conf = format!(
            "[cluster]\n\
             recovery lock = {shared}/recovery.lock\n\
             node address = {address}\n\
             [legacy]\n\
             realtime scheduling = false\n\
             [failover]\n\
             disabled = true\n\
             [database]\n\
             volatile database directory = {base}/volatile\n\
             persistent database directory = {base}/persistent\n\
             state database directory = {base}/state\n\
             {database_options}\n",
            shared = self.directory.path().display(),
            base = base.display(),
        );
        let tunables = "ElectionTimeout=1\nMonitorInterval=1\nRecoverInterval=1\nRerecoveryTimeout=1\n";
        for (name, text) in [("ctdb.conf", &conf[..]), ("ctdb.tunables", tunables), ("nodes", nodes)] {
            fs::write(base.join(name), format!("{text}\n")).expect("it can be written");
        }
    }

    fn spawn(&self, node: usize) -> Child {
        let base = self.base(node);
        let log = File::create(base.join("log")).expect("it can be written");
        Command::new(CTDBD)
            .arg("-i")
            .env("CTDB_TEST_MODE", "yes")
            // In test mode newer ones do not know it by themselves.
            .env("CTDB_TEST_HELPER_BINDIR", HELPERS)
            .env("CTDB_BASE", &base)
            // Its children stay in its group, and end with it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("another handle"))
            .stderr(log)
            .spawn()
            .expect("ctdbd is there")
    }

    /// A node's socket.
    pub(crate) fn socket(&self, node: usize) -> PathBuf {
        self.base(node).join(SOCKET)
    }

    /// A connection to a node's ctdbd.
    pub(crate) fn connect(&self, node: usize) -> Connection {
        let started = Instant::now();
        loop {
            match Connection::open(&self.socket(node), PATIENCE) {
                Ok(connection) => return connection,
                Err(error) => assert!(started.elapsed() < PATIENCE, "{error:?}\n{}", self.log(node)),
            }
            thread::sleep(POLL);
        }
    }

    /// A database as a node has it, and a connection to use it with. It is made if there is none.
    pub(crate) fn attach(&self, node: usize, name: &str) -> (Connection, ClusterDatabase) {
        let mut connection = self.connect(node);
        let id = connection.attach(name).unwrap_or_else(|error| panic!("{error}\n{}", self.log(node)));
        let libtdb = Tdb::load().expect("libtdb comes with ctdb");
        let database = ClusterDatabase::open(&libtdb, &mut connection, name, id);
        (connection, database.unwrap_or_else(|error| panic!("{error:?}\n{}", self.log(node))))
    }

    /// The death of a node: its ctdbd and all its children are killed.
    pub(crate) fn kill(&mut self, node: usize) {
        self.end(node, Signal::SIGKILL);
    }

    fn end(&mut self, node: usize, signal: Signal) {
        let Some(mut ctdbd) = self.ctdbds[node].take() else { return };
        let pid = Pid::from_raw(i32::try_from(ctdbd.id()).expect("a process id"));
        // They may have ended by themselves.
        let _ = signal::killpg(pid, signal);
        let _ = ctdbd.wait();
    }

    /// Polls until something is so.
    pub(crate) fn wait_until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !is_so(self) {
            assert!(started.elapsed() < PATIENCE, "waited in vain until {what}\n{}", self.log(0));
            thread::sleep(POLL);
        }
    }

    fn log(&self, node: usize) -> String {
        fs::read_to_string(self.base(node).join("log")).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..self.ctdbds.len() {
            self.end(node, Signal::SIGKILL);
        }
    }
}

/// Loopback addresses on which no ctdbd listens. They are drawn at random from two million, since tests run at the same
/// time in other processes.
fn free_addresses(count: usize) -> Vec<String> {
    const NETWORK: u32 = u32::from_be_bytes([127, 32, 0, 0]);
    const HOST_BITS: u32 = (1 << 21) - 1;
    let mut addresses = Vec::new();
    while addresses.len() < count {
        let [.., a, b, c, d] = RandomState::new().build_hasher().finish().to_be_bytes();
        let address = Ipv4Addr::from(NETWORK | (u32::from_be_bytes([a, b, c, d]) & HOST_BITS)).to_string();
        let is_free = TcpListener::bind((address.as_str(), CTDB_PORT)).is_ok();
        if is_free && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}
