//! Real Samba servers: unmodified `smbd`s, each with directories of its own, all on the same shared folder.
//!
//! [`SambaTools`] are the programs of one version: the machine's own, or one that `tests/roots/make` has put
//! into a root. A [`SambaSite`] is what the nodes of one cluster have in common: the share's folder, the user, the
//! machine's SID and the name. An [`Smbd`] is one node. Works as root (the SMB user is then an ordinary
//! account, so that `smbd` switches its effective user as it does in production) and as an ordinary user
//! (`smbd` then serves that user alone).

mod tools;

use std::{
    env, fs, io, iter,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

pub use tools::{
    REQUIRE_SAMBA, REQUIRE_SAMBA_ROOTS, ROOT_VERSIONS, SAMBA_ROOTS, SambaTools, samba_in_root_or_skip,
    samba_or_skip, samba_with_ctdb_or_skip,
};

use nix::unistd::{Uid, User};
use tempfile::TempDir;
use tokio::{net::TcpStream, time};

use crate::{
    net,
    process::{ProcessError, ProcessGroup, last_lines},
    smb_client::Credentials,
};

/// The share that every node serves.
pub const SHARE: &str = "share";

/// NetBIOS name of every node. It must be the same, because the machine's SID is stored under it.
const NETBIOS_NAME: &str = "HOLDFAST";

/// The accounts that root's `smbd` serves, the first one unless more are asked for. Present on every Linux; not
/// `nobody`, which Samba takes for a guest.
const ACCOUNTS_FOR_ROOT: [&str; 3] = ["daemon", "bin", "mail"];

const PASSWORD: &str = "holdfast-secret";

/// How long `smbd` may take until it accepts connections.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long `smbd` may take until it has ended after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no Samba, or not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum SambaError {
    /// A program is not installed.
    #[error("{program} is not installed (Debian: apt install samba samba-testsuite samba-vfs-modules ctdb)")]
    Missing {
        /// The program.
        program: &'static str,
    },
    /// There is no root with this version.
    #[error("there is no Samba {version} in {} (tests/roots/make {version} makes it)", root.display())]
    NoRoot {
        /// The version.
        version: String,
        /// Where it was looked for.
        root: PathBuf,
    },
    /// An ordinary user cannot enter it.
    #[error("Samba {version} is in a root, which only root may enter")]
    RootEntry {
        /// The version.
        version: String,
    },
    /// A file could not be written.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The current user has no entry in the user database.
    #[error("no Unix account {account} for the SMB user")]
    NoAccount {
        /// Name or number.
        account: String,
    },
    /// The SMB user could not be made.
    #[error("`pdbedit --create` failed: {output}")]
    Pdbedit {
        /// What it printed.
        output: String,
    },
    /// A process could not be started or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Nobody serves this client.
    #[error("no process of the smbd on {server} serves a connection from {client}")]
    NoChild {
        /// The server.
        server: SocketAddr,
        /// The client.
        client: SocketAddr,
    },
    /// `smbd` ended or does not listen.
    #[error("smbd on {address} {problem}; the end of its log:\n{log}")]
    NotServing {
        /// Where it should.
        address: SocketAddr,
        /// What is wrong.
        problem: String,
        /// The last lines of its log.
        log: String,
    },
}

/// What all nodes of a cluster share. Its folder is removed when it is dropped; the nodes must be gone by
/// then.
#[derive(Debug)]
pub struct SambaSite {
    tools: SambaTools,
    dir: TempDir,
    /// Never empty.
    accounts: Vec<User>,
}

impl SambaSite {
    /// Makes the share's folder and a user database with one user.
    pub fn new(tools: SambaTools) -> Result<Self, SambaError> {
        Self::with_users(tools, 1)
    }

    /// The same with several users; an ordinary user's `smbd` serves that user alone.
    ///
    /// # Panics
    /// When none are asked for, or more than three.
    pub fn with_users(tools: SambaTools, count: usize) -> Result<Self, SambaError> {
        let accounts = smb_accounts(count)?;
        let dir =
            tempfile::Builder::new().prefix("holdfast-").tempdir().map_err(prepare(&env::temp_dir()))?;
        let site = Self { tools, dir, accounts };
        // The SMB user has to get through to the share; what is private has a directory of its own below.
        set_mode(site.dir.path(), 0o755)?;
        make_share_dir(&site.share_dir())?;
        site.make_user_database()?;
        Ok(site)
    }

    /// The programs in use.
    pub fn tools(&self) -> &SambaTools {
        &self.tools
    }

    /// The folder that every node serves as [`SHARE`].
    pub fn share_dir(&self) -> PathBuf {
        self.dir.path().join(SHARE)
    }

    /// The folder of one of the [shares apart](SmbdOptions::shares_apart).
    pub fn dir_of_share_apart(&self, name: &str) -> PathBuf {
        self.dir.path().join("apart").join(name)
    }

    /// A folder that the site removes at its end, for what belongs to it: configuration, logs, run
    /// directories.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The user that may log in everywhere; the first, if there are more.
    pub fn credentials(&self) -> Credentials {
        Credentials::new(&self.accounts[0].name, PASSWORD)
    }

    /// All users that may log in everywhere.
    pub fn users(&self) -> impl ExactSizeIterator<Item = Credentials> {
        self.accounts.iter().map(|account| Credentials::new(&account.name, PASSWORD))
    }

    /// A node with the given name, configured and not started.
    pub fn smbd(&self, name: &str, options: SmbdOptions) -> Result<Smbd, SambaError> {
        let dir = self.dir.path().join(name);
        let address = net::free_endpoint();
        write_config(&dir, &self.config(&dir, address, &options))?;
        for share in &options.shares_apart {
            make_share_dir(&self.dir_of_share_apart(share))?;
        }
        // In a CTDB cluster the users are in a database of the cluster.
        if options.ctdbd_socket.is_none() {
            copy_files(&self.user_database(), &dir.join("private"))?;
        }
        Ok(Smbd { program: self.tools.smbd().to_owned(), dir, address, env: options.env, process: None })
    }

    /// Directory with `passdb.tdb` and `secrets.tdb`: users, and the machine's SID.
    fn user_database(&self) -> PathBuf {
        self.dir.path().join("users").join("private")
    }

    /// Makes the machine's SID and the users. Every node gets a copy, so that a user is the same SID everywhere;
    /// Samba gives an open back only to the SID that opened it.
    fn make_user_database(&self) -> Result<(), SambaError> {
        let dir = self.dir.path().join("users");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 445));
        let config = write_config(&dir, &self.config(&dir, nowhere, &SmbdOptions::default()))?;
        self.create_users(&config)
    }

    /// Makes the users of a CTDB cluster, once, by way of one of its nodes, whose `ctdbd` must be healthy.
    pub fn create_clustered_users(&self, node: &Smbd) -> Result<(), SambaError> {
        self.create_users(&node.config_file())
    }

    fn create_users(&self, config: &Path) -> Result<(), SambaError> {
        self.accounts.iter().try_for_each(|account| self.create_user(config, account))
    }

    /// Lets `pdbedit` make a user, where the configuration says that users are kept.
    fn create_user(&self, config: &Path, account: &User) -> Result<(), SambaError> {
        let program = self.tools.pdbedit();
        let mut child = Command::new(program)
            // Unlike `smbpasswd`, it does this for an ordinary user too.
            .args(["--create", "--password-from-stdin", "--configfile"])
            .arg(config)
            .arg("--user")
            .arg(&account.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(prepare(program))?;
        let mut stdin = child.stdin.take().expect("it was asked for");
        // If it ends without reading, its output says why.
        let _ = io::Write::write_all(&mut stdin, format!("{PASSWORD}\n{PASSWORD}\n").as_bytes());
        drop(stdin);
        let output = child.wait_with_output().map_err(prepare(program))?;
        if output.status.success() {
            return Ok(());
        }
        let output = [output.stdout, output.stderr].concat();
        Err(SambaError::Pdbedit { output: String::from_utf8_lossy(&output).trim().to_owned() })
    }

    fn config(&self, dir: &Path, address: SocketAddr, options: &SmbdOptions) -> String {
        let (dir, ip, port) = (dir.display(), address.ip(), address.port());
        let mut config = format!(
            "[global]\n\
             \tnetbios name = {NETBIOS_NAME}\n\
             \tserver role = standalone server\n\
             \tpassdb backend = tdbsam\n\
             \tprivate dir = {dir}/private\n\
             \tlock directory = {dir}/lock\n\
             \tstate directory = {dir}/state\n\
             \tcache directory = {dir}/cache\n\
             \tpid directory = {dir}/pid\n\
             \tncalrpc dir = {dir}/ncalrpc\n\
             \tlog file = {dir}/log\n\
             \tlog level = {log_level}\n\
             \tmax log size = 0\n\
             \tinterfaces = {ip}/8\n\
             \tbind interfaces only = yes\n\
             \tsmb ports = {port}\n\
             \tdisable netbios = yes\n\
             \tload printers = no\n\
             \tprintcap name = /dev/null\n\
             \tdisable spoolss = yes\n\
             \tusershare max shares = 0\n\
             \tsmbd:FSCTL_SMBTORTURE = yes\n",
            log_level = options.log_level,
        );
        if let Some(socket) = &options.ctdbd_socket {
            config += &format!("\tclustering = yes\n\tctdbd socket = {}\n", socket.display());
        }
        for (name, value) in &options.global_options {
            config += &format!("\t{name} = {value}\n");
        }
        let shared = self.share_dir();
        let shares = iter::once(SHARE).chain(options.more_shares.iter().map(String::as_str));
        let shares = shares.map(|name| (name, shared.clone()));
        let apart = options.shares_apart.iter().map(|name| (name.as_str(), self.dir_of_share_apart(name)));
        for (name, folder) in shares.chain(apart) {
            config += &format!(
                "[{name}]\n\
                 \tpath = {folder}\n\
                 \tread only = no\n\
                 \tkernel oplocks = no\n\
                 \tkernel share modes = no\n\
                 \tposix locking = no\n\
                 \tdurable handles = yes\n",
                folder = folder.display(),
            );
            for (name, value) in &options.share_options {
                config += &format!("\t{name} = {value}\n");
            }
        }
        config
    }
}

/// What differs between nodes, or between one test's nodes and another's.
#[derive(Clone, Debug, Default)]
pub struct SmbdOptions {
    /// Environment variables, such as `LD_PRELOAD`.
    pub env: Vec<(String, String)>,
    /// The `ctdbd` of a clustered `smbd`.
    pub ctdbd_socket: Option<PathBuf>,
    /// Further global options, after the usual ones.
    pub global_options: Vec<(String, String)>,
    /// Further options of the shares, after the usual ones.
    pub share_options: Vec<(String, String)>,
    /// Names of further shares of the same directory.
    pub more_shares: Vec<String>,
    /// Names of further shares, each of a directory of its own.
    pub shares_apart: Vec<String>,
    /// Samba's log level.
    pub log_level: u8,
}

impl SmbdOptions {
    /// The same with what makes Samba itself keep handles for clients that ask for persistent ones. Samba 4.25 can.
    #[must_use]
    pub fn continuously_available(mut self) -> Self {
        let yes = |name: &str| (name.to_owned(), "yes".to_owned());
        self.global_options.push(yes("persistent handles"));
        self.share_options.push(yes("continuous availability"));
        self
    }
}

/// One Samba node. Dropping it kills it.
#[derive(Debug)]
pub struct Smbd {
    program: PathBuf,
    dir: PathBuf,
    address: SocketAddr,
    env: Vec<(String, String)>,
    process: Option<ProcessGroup>,
}

impl Smbd {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `\\ADDRESS\share`, for tree connects.
    pub fn share(&self) -> String {
        self.share_called(SHARE)
    }

    /// The same for another share.
    pub fn share_called(&self, name: &str) -> String {
        format!(r"\\{}\{name}", self.address.ip())
    }

    /// Samba's lock directory, with the volatile databases.
    pub fn lock_dir(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Its configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join(CONFIG_FILE)
    }

    /// Process id of the parent `smbd`, while it is started.
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(ProcessGroup::pid)
    }

    /// Its processes, the parent's helpers and zombies too.
    pub fn processes(&self) -> Vec<i32> {
        self.process.as_ref().map(ProcessGroup::members).unwrap_or_default()
    }

    /// Starts it, unless it is running, and returns when it accepts connections.
    pub async fn start(&mut self) -> Result<(), SambaError> {
        if self.is_running() {
            return Ok(());
        }
        self.kill()?;
        let output = fs::File::create(self.dir.join("output")).map_err(prepare(&self.dir))?;
        let errors = output.try_clone().map_err(prepare(&self.dir))?;
        let mut command = Command::new(&self.program);
        command
            .args(["-F", "--no-process-group", "-s"])
            .arg(self.config_file())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdout(output)
            .stderr(errors);
        self.process = Some(ProcessGroup::spawn(command)?);

        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(self.address).await.is_err() {
            if !self.is_running() {
                return Err(self.not_serving("ended while it was starting"));
            }
            if Instant::now() >= deadline {
                return Err(self.not_serving(&format!("accepts no connection after {START_TIMEOUT:?}")));
            }
            time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Whether the parent `smbd` is running.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(ProcessGroup::is_running)
    }

    /// Whether the parent `smbd` has ended, and not because it was killed or stopped from here.
    pub fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| !process.is_running())
    }

    /// Kills the parent and every child with SIGKILL at the same moment, and reaps them. Nothing is left when
    /// it returns.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Sends SIGKILL to the parent and every child and does not wait. To be followed by [`Smbd::kill`].
    pub fn send_kill(&self) {
        self.process.iter().for_each(ProcessGroup::send_kill);
    }

    /// Ends it as its administrator does, with SIGTERM to the parent, and returns when all of it is gone. What is not
    /// is killed after a while, and that is an error.
    pub async fn stop(&mut self) -> Result<(), ProcessError> {
        match self.process.take() {
            Some(mut process) => process.terminate(STOP_TIMEOUT).await,
            None => Ok(()),
        }
    }

    /// Process id of the child that serves a client, given by the address from which that has connected.
    pub fn child_of(&self, client: SocketAddr) -> Result<i32, SambaError> {
        let socket = net::socket_of_connection(self.address, client).ok().flatten();
        let child =
            self.process.as_ref().zip(socket).and_then(|(smbd, socket)| smbd.holder_of_socket(socket));
        child.ok_or(SambaError::NoChild { server: self.address, client })
    }

    /// Kills that child alone with SIGKILL. Returns its process id when it is gone; the parent has buried it then, and
    /// serves on.
    pub async fn kill_child(&self, client: SocketAddr) -> Result<i32, SambaError> {
        let child = self.child_of(client)?;
        if let Some(process) = &self.process {
            process.kill_member(child).await?;
        }
        Ok(child)
    }

    /// Stops the parent and every child where they are (SIGSTOP).
    pub fn pause(&self) {
        self.process.iter().for_each(ProcessGroup::pause);
    }

    /// Lets them go on (SIGCONT).
    pub fn resume(&self) {
        self.process.iter().for_each(ProcessGroup::resume);
    }

    fn not_serving(&self, problem: &str) -> SambaError {
        let log = last_lines(&[&self.dir.join("output"), &self.dir.join("log")]);
        SambaError::NotServing { address: self.address, problem: problem.to_owned(), log }
    }
}

const CONFIG_FILE: &str = "smb.conf";

/// Makes a node's directories and its configuration.
fn write_config(dir: &Path, config: &str) -> Result<PathBuf, SambaError> {
    for name in ["private", "lock", "state", "cache", "pid", "ncalrpc"] {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).map_err(prepare(&dir))?;
        set_mode(&dir, if name == "private" { 0o700 } else { 0o755 })?;
    }
    let file = dir.join(CONFIG_FILE);
    fs::write(&file, config).map_err(prepare(&file))?;
    Ok(file)
}

fn copy_files(from: &Path, to: &Path) -> Result<(), SambaError> {
    let entries = fs::read_dir(from).map_err(prepare(from))?;
    for entry in entries {
        let entry = entry.map_err(prepare(from))?;
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).map_err(prepare(to))?;
        }
    }
    Ok(())
}

fn smb_accounts(count: usize) -> Result<Vec<User>, SambaError> {
    assert!((1..=ACCOUNTS_FOR_ROOT.len()).contains(&count), "{count} users");
    let uid = Uid::effective();
    let found = |account: String, found: nix::Result<Option<User>>| {
        found.ok().flatten().ok_or(SambaError::NoAccount { account })
    };
    if !uid.is_root() {
        return Ok(vec![found(uid.to_string(), User::from_uid(uid))?]);
    }
    ACCOUNTS_FOR_ROOT[..count].iter().map(|name| found((*name).to_owned(), User::from_name(name))).collect()
}

/// Makes a folder in which every user may write, unless there is one already.
fn make_share_dir(dir: &Path) -> Result<(), SambaError> {
    fs::create_dir_all(dir).map_err(prepare(dir))?;
    set_mode(dir, 0o777)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), SambaError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(prepare(path))
}

fn prepare(path: &Path) -> impl FnOnce(io::Error) -> SambaError {
    let path = path.to_owned();
    move |source| SambaError::Prepare { path, source }
}
