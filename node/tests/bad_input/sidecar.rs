//! Running the binary: to its end, or beside a test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// Means "it hangs": longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at something that should become true.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The name under which every test's cluster goes.
const CLUSTER: &str = "bad-input";

/// Timing of a node that is alone: elected at once, and never taken for dead on a busy machine. That matters twice:
/// a sidecar that declares its smbd down kills it, and here the test is its smbd.
const TIMING: &str = "heartbeat_interval_ms = 20\nelection_timeout_min_ms = 60\nelection_timeout_max_ms = 120\n\
                      self_fence_after_ms = 10000\nnode_down_after_ms = 20000\n";

/// What the Samba beside a node is, for a node that has one.
#[derive(Clone, Debug)]
pub(crate) struct Samba {
    pub(crate) smbd: PathBuf,
    pub(crate) smb_conf: PathBuf,
}

/// The files and addresses of one node.
#[derive(Debug)]
pub(crate) struct Site {
    dir: TempDir,
    /// Every member of the cluster; this node is the first, with id 1.
    pub(crate) members: Vec<SocketAddr>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) data_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) handle_socket: Option<PathBuf>,
    pub(crate) samba: Option<Samba>,
}

impl Site {
    /// A node that is its own quorum, without Samba.
    pub(crate) fn alone() -> Self {
        Self::with_members(1)
    }

    /// A node with so many addresses in its cluster; nobody is at the others.
    pub(crate) fn with_members(members: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("holdfast-bad-input-").tempdir().expect("a directory");
        // A stranger must get as far as the socket.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let (data_dir, run_dir) = (dir.path().join("data"), dir.path().join("run"));
        let members = (0..members).map(|_| free_endpoint()).collect();
        Self { dir, members, listen: None, data_dir, run_dir, handle_socket: None, samba: None }
    }

    /// A node that is its own quorum, beside a Samba that is only a script. `None`, with a notice, where there is
    /// no libtdb.
    pub(crate) fn with_scripted_samba() -> Option<Self> {
        if let Err(error) = samba::tdb::Tdb::load() {
            skip_without_samba(&format!("{error}: install libtdb1"))?;
        }
        let mut site = Self::alone();
        let smbd = site.script("smbd", "echo Version 4.17.12-Test");
        // Only what is asked before smbd is served: where the databases are, and which shares there are.
        let lock_directory = site.path("");
        let printed = format!("printf '[global]\\n\\tlock directory = {}\\n'", lock_directory.display());
        site.script("testparm", &printed);
        site.samba = Some(Samba { smbd, smb_conf: site.path("smb.conf") });
        Some(site)
    }

    /// A path in this site's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a program of a few lines of shell.
    pub(crate) fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        path
    }

    /// The configuration that goes with all this, written anew.
    pub(crate) fn config(&self) -> PathBuf {
        let member = |(index, address): (usize, &SocketAddr)| {
            format!("    {{ id = {}, address = \"{address}\" }},\n", index + 1)
        };
        let members: String = self.members.iter().enumerate().map(member).collect();
        let mut text = format!("[cluster]\nname = \"{CLUSTER}\"\nnodes = [\n{members}]\n");
        text += &format!("[cluster.timing]\n{TIMING}");
        text += &format!("[node]\nid = 1\ndata_dir = \"{}\"\n", self.data_dir.display());
        if let Some(listen) = self.listen {
            text += &format!("listen = \"{listen}\"\n");
        }
        if let Some(path) = &self.handle_socket {
            text += &format!("handle_socket = \"{}\"\n", path.display());
        }
        if let Some(Samba { smbd, smb_conf }) = &self.samba {
            text += &format!(
                "[samba]\nrun_dir = \"{}\"\nsmbd = \"{}\"\nsmb_conf = \"{}\"\n",
                self.run_dir.display(),
                smbd.display(),
                smb_conf.display()
            );
        }
        self.write_config(&text)
    }

    /// Another configuration.
    pub(crate) fn write_config(&self, text: &str) -> PathBuf {
        let path = self.path("holdfast.toml");
        fs::write(&path, text).expect("a configuration");
        path
    }

    /// Where the node says that it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.members[0]
    }

    /// A command that runs this node.
    pub(crate) fn run(&self) -> Command {
        let mut command = holdfast(["run", "--config"]);
        command.arg(self.config());
        self.prefer_scripts(&mut command);
        command
    }

    /// The same after some shell, such as `ulimit`.
    pub(crate) fn run_after(&self, shell: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{shell}; exec \"$0\" run --config \"$1\""));
        command.arg(env!("CARGO_BIN_EXE_holdfast")).arg(self.config());
        self.prefer_scripts(&mut command);
        command
    }

    /// Lets a command find the scripts of this site before the programs of the machine.
    fn prefer_scripts(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.dir.path().display()));
    }

    /// Runs this node until it serves the Samba beside it.
    pub(crate) fn start(&self) -> Sidecar {
        let sidecar = Sidecar::spawn(self.run());
        sidecar.wait_for_log("waiting for smbd");
        sidecar
    }

    /// A connection to this node, as peers and SMB servers have it.
    pub(crate) async fn connect(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address())).expect("an address");
        endpoint.timeout(PATIENCE).connect().await.expect("it listens")
    }

    /// What `holdfast status` says of this node.
    #[track_caller]
    pub(crate) fn status(&self) -> serde_json::Value {
        self.try_status().unwrap_or_else(|error| panic!("no status: {error}"))
    }

    /// The same of a node that may not be there.
    pub(crate) fn try_status(&self) -> Result<serde_json::Value, String> {
        let address = self.address().to_string();
        let ended = end(holdfast(["status", "--output", "json", "--address", &address]));
        if !ended.success {
            return Err(ended.stderr);
        }
        Ok(serde_json::from_str(&ended.stdout).expect("what is printed is JSON"))
    }
}

/// The binary under test.
pub(crate) fn holdfast(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.args(arguments).env_remove("HOLDFAST_CONFIG").env_remove("HOLDFAST_ADDRESS");
    command
}

/// Runs a command that must end.
pub(crate) fn end(command: Command) -> Ended {
    Sidecar::spawn(command).wait_for_end()
}

/// Runs a command that must fail, and returns what it says on standard error.
pub(crate) fn refused(command: Command) -> String {
    let ended = end(command);
    assert!(!ended.success, "it was accepted: {}", ended.stderr);
    ended.assert_no_panic();
    ended.stderr
}

/// Asserts that an error names each of these.
#[track_caller]
pub(crate) fn assert_says(text: &str, expected: &[&str]) {
    for expected in expected {
        assert!(text.contains(expected), "does not say {expected:?}:\n{text}");
    }
}

/// How a command has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    #[track_caller]
    pub(crate) fn assert_no_panic(&self) {
        assert!(!self.stderr.contains("panicked"), "it panicked: {}", self.stderr);
    }
}

/// A running command. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Sidecar {
    child: Child,
    output: TempDir,
}

impl Sidecar {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let output = tempfile::tempdir().expect("a directory");
        // Files, not pipes: nobody has to read them for the command to go on.
        let file = |name: &str| File::create(output.path().join(name)).expect("a file");
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        Self { child, output }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.read("stderr")
    }

    /// What it has printed so far.
    pub(crate) fn output(&self) -> String {
        self.read("stdout")
    }

    #[track_caller]
    pub(crate) fn wait_for_log(&self, text: &str) {
        wait_until(|| self.log().contains(text), || format!("{text:?} is not in {}", self.log()));
    }

    /// Waits for its end, which must come by itself.
    #[track_caller]
    pub(crate) fn wait_for_end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => break status,
                None if Instant::now() >= deadline => panic!("it does not end: {}", self.log()),
                None => thread::sleep(POLL_INTERVAL),
            }
        };
        Ended { success: status.success(), stdout: self.read("stdout"), stderr: self.log() }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Tells it to end, as systemd does.
    #[track_caller]
    pub(crate) fn stop(self) -> Ended {
        kill(self.pid(), Signal::SIGTERM).expect("it is our child");
        let ended = self.wait_for_end();
        assert!(ended.success, "it does not end in order: {}", ended.stderr);
        ended.assert_no_panic();
        ended
    }

    /// Asserts that nothing so far has ended or unsettled it.
    #[track_caller]
    pub(crate) fn assert_lives(&mut self) {
        let ended = self.child.try_wait().expect("it is our child");
        let log = self.log();
        assert!(ended.is_none() && !log.contains("panicked"), "it has {ended:?}: {log}");
    }

    fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.output.path().join(name)).expect("it was made before the command");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is true.
#[track_caller]
pub(crate) fn wait_until(mut is_true: impl FnMut() -> bool, otherwise: impl FnOnce() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "after {PATIENCE:?}: {}", otherwise());
        thread::sleep(POLL_INTERVAL);
    }
}

/// An address that nobody listens at, on a loopback address of this process alone.
pub(crate) fn free_endpoint() -> SocketAddr {
    static NEXT_PORT: AtomicU16 = AtomicU16::new(7400);
    // 127.128.0.0 plus the process id, which has at most 22 bits.
    let address = Ipv4Addr::from(u32::from_be_bytes([127, 128, 0, 0]) | (process::id() & 0x3f_ffff));
    SocketAddr::new(IpAddr::V4(address), NEXT_PORT.fetch_add(1, Ordering::Relaxed))
}

/// Says that a test has nothing to test here, which is a failure where Samba is required.
pub(crate) fn skip_without_samba<T>(why: &str) -> Option<T> {
    assert_ne!(std::env::var("HOLDFAST_REQUIRE_SAMBA").as_deref(), Ok("1"), "Samba is required: {why}");
    eprintln!("skipped: {why}");
    None
}

/// Whether this test may mount file systems and become other users.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Every file under a directory.
pub(crate) fn files_under(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() { files.extend(files_under(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}
