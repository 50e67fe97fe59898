//! Real Samba servers: unmodified `smbd`s, each with directories of its own, all on the same shared folder.
//!
//! [`SambaTools`] are the programs of one version: the machine's own, or one that `tests/roots/make` has put
//! into a root. A [`SambaSite`] is what the nodes of one cluster have in common: the share's folder, the user, the
//! machine's SID and the name. An [`Smbd`] is one node. Works as root (the SMB user is then an ordinary
//! account, so that `smbd` switches its effective user as it does in production) and as an ordinary user
//! (`smbd` then serves that user alone).

use std::{
    env, fs, io, iter,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::unistd::{Uid, User};
use tempfile::TempDir;
use tokio::{net::TcpStream, time};

use crate::{
    net,
    process::{ProcessError, ProcessGroup, last_lines},
    smb_client::Credentials,
};

/// Set to 1 where Samba has to be there, as in continuous integration: then a missing Samba fails the test.
pub const REQUIRE_SAMBA: &str = "HOLDFAST_REQUIRE_SAMBA";

/// Set to 1 where the versions that `tests/roots/make` makes have to be there too.
pub const REQUIRE_SAMBA_ROOTS: &str = "HOLDFAST_REQUIRE_SAMBA_ROOTS";

/// The share that every node serves.
pub const SHARE: &str = "share";

/// NetBIOS name of every node. It must be the same, because the machine's SID is stored under it.
const NETBIOS_NAME: &str = "HOLDFAST";

/// The account that root's `smbd` serves. Present on every Linux; not `nobody`, which Samba takes for a
/// guest.
const ACCOUNT_FOR_ROOT: &str = "daemon";

const PASSWORD: &str = "holdfast-secret";

/// How long `smbd` may take until it accepts connections.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Where Debian and others keep servers, which is not in an ordinary user's PATH.
const SERVER_DIRS: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/samba/sbin"];

/// The folder with roots of other versions of Samba, one for each, as `tests/roots/make` makes them.
pub const SAMBA_ROOTS: &str = "HOLDFAST_SAMBA_ROOTS";

const DEFAULT_ROOTS: &str = "/var/cache/holdfast/samba-roots";

/// The versions that `tests/roots/make` has a recipe for.
pub const ROOT_VERSIONS: [&str; 2] = ["4.22", "4.25"];

/// What tests run of a Samba that is in a root.
const ROOT_PROGRAMS: [&str; 7] = ["smbd", "ctdbd", "ctdb", "net", "pdbedit", "smbtorture", "testparm"];

/// Why there is no Samba, or not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum SambaError {
    /// A program is not installed.
    #[error("{program} is not installed (Debian: apt install samba samba-testsuite samba-vfs-modules)")]
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

/// The programs of one version of Samba.
#[derive(Clone, Debug)]
pub struct SambaTools {
    smbd: PathBuf,
    testparm: PathBuf,
    pdbedit: PathBuf,
    smbtorture: Option<PathBuf>,
    home: Home,
}

/// Where a Samba's programs are.
#[derive(Clone, Debug)]
enum Home {
    /// Installed on this machine.
    Machine,
    /// In a root of their own. The directory has a command for each that enters the root, and is removed with the
    /// last user.
    Root(Arc<TempDir>),
}

impl SambaTools {
    /// Looks for Samba in PATH and in the usual directories.
    pub fn find() -> Result<Self, SambaError> {
        Self::at(Home::Machine)
    }

    /// The Samba of a version such as `4.22`, which `tests/roots/make` has made. Its processes see the temporary
    /// directory and the built shim at the paths that these have for everybody else. To enter a root takes
    /// root's rights.
    pub fn in_root(version: &str) -> Result<Self, SambaError> {
        let root = roots().join(version);
        if !root.is_dir() {
            return Err(SambaError::NoRoot { version: version.to_owned(), root });
        }
        if !Uid::effective().is_root() {
            return Err(SambaError::RootEntry { version: version.to_owned() });
        }
        Self::at(Home::Root(Arc::new(commands_of(&root, version)?)))
    }

    /// Every version that can be used here, the machine's own first.
    pub fn all_there() -> Vec<Self> {
        let in_roots = ROOT_VERSIONS.map(Self::in_root);
        iter::once(Self::find()).chain(in_roots).filter_map(Result::ok).collect()
    }

    fn at(home: Home) -> Result<Self, SambaError> {
        Ok(Self {
            smbd: home.program("smbd")?,
            testparm: home.program("testparm")?,
            pdbedit: home.program("pdbedit")?,
            smbtorture: home.program("smbtorture").ok(),
            home,
        })
    }

    /// The server.
    pub fn smbd(&self) -> &Path {
        &self.smbd
    }

    /// What says how a configuration is understood.
    pub fn testparm(&self) -> &Path {
        &self.testparm
    }

    /// `smbtorture`, which is a package of its own in Debian.
    pub fn smbtorture(&self) -> Option<&Path> {
        self.smbtorture.as_deref()
    }

    /// One of this version's other programs.
    pub fn program(&self, name: &'static str) -> Result<PathBuf, SambaError> {
        self.home.program(name)
    }

    /// The version that `smbd` reports, such as `4.17.12-Debian`.
    pub fn version(&self) -> Option<String> {
        let output = Command::new(&self.smbd).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.trim().strip_prefix("Version ").map(str::to_owned)
    }
}

impl Home {
    fn program(&self, program: &'static str) -> Result<PathBuf, SambaError> {
        let path = env::var_os("PATH").unwrap_or_default();
        let dirs: Vec<PathBuf> = match self {
            Self::Machine => env::split_paths(&path).chain(SERVER_DIRS.map(PathBuf::from)).collect(),
            Self::Root(commands) => vec![commands.path().to_owned()],
        };
        dirs.into_iter()
            .map(|dir| dir.join(program))
            .find(|file| file.is_file())
            .ok_or(SambaError::Missing { program })
    }
}

/// Where other versions of Samba are.
fn roots() -> PathBuf {
    env::var_os(SAMBA_ROOTS).map_or_else(|| PathBuf::from(DEFAULT_ROOTS), PathBuf::from)
}

/// Makes a directory with a command for each of a root's programs.
fn commands_of(root: &Path, version: &str) -> Result<TempDir, SambaError> {
    let temporary = env::temp_dir();
    let commands = tempfile::Builder::new()
        .prefix(&format!("holdfast-samba-{version}-"))
        .tempdir()
        .map_err(prepare(&temporary))?;
    let mut seen_inside = vec![root.to_owned(), temporary];
    // Without a shim there can be no cluster, but there can be an unprotected smbd.
    let shim = holdfast_tdb::built_library_path().ok();
    seen_inside.extend(shim.as_deref().and_then(Path::parent).and_then(|dir| dir.canonicalize().ok()));
    let list: String = seen_inside.iter().map(|dir| format!("{}\n", dir.display())).collect();
    let file = commands.path().join("root");
    fs::write(&file, list).map_err(prepare(&file))?;

    // Links to one script, and not scripts written here: the kernel does not run a file that is open for writing,
    // and a process that another thread has just forked may have it open a little longer.
    let enter = Path::new(env!("CARGO_MANIFEST_DIR")).join("roots/enter");
    for program in ROOT_PROGRAMS {
        if ["usr/sbin", "usr/bin"].iter().any(|dir| root.join(dir).join(program).is_file()) {
            let command = commands.path().join(program);
            symlink(&enter, &command).map_err(prepare(&command))?;
        }
    }
    Ok(commands)
}

/// Samba's programs; or `None` where they are missing, after a line that says so: the test then has nothing
/// to do.
///
/// # Panics
/// When Samba is missing although [`REQUIRE_SAMBA`] is set.
pub fn samba_or_skip() -> Option<SambaTools> {
    or_skip(SambaTools::find(), REQUIRE_SAMBA)
}

/// The same for a version that is in a root.
///
/// # Panics
/// When it is missing although [`REQUIRE_SAMBA_ROOTS`] is set.
pub fn samba_in_root_or_skip(version: &str) -> Option<SambaTools> {
    or_skip(SambaTools::in_root(version), REQUIRE_SAMBA_ROOTS)
}

fn or_skip(found: Result<SambaTools, SambaError>, required: &str) -> Option<SambaTools> {
    match found {
        Ok(tools) => Some(tools),
        Err(err) if env::var(required).is_ok_and(|value| value == "1") => {
            panic!("{required}=1 is set, but {err}")
        }
        Err(err) => {
            eprintln!("skipped: {err}");
            None
        }
    }
}

/// What all nodes of a cluster share. Its folder is removed when it is dropped; the nodes must be gone by
/// then.
#[derive(Debug)]
pub struct SambaSite {
    tools: SambaTools,
    dir: TempDir,
    account: User,
}

impl SambaSite {
    /// Makes the share's folder and a user database with one user.
    pub fn new(tools: SambaTools) -> Result<Self, SambaError> {
        let account = smb_account()?;
        let dir =
            tempfile::Builder::new().prefix("holdfast-").tempdir().map_err(prepare(&env::temp_dir()))?;
        let site = Self { tools, dir, account };
        // The SMB user has to get through to the share; what is private has a directory of its own below.
        set_mode(site.dir.path(), 0o755)?;
        let share = site.share_dir();
        fs::create_dir(&share).map_err(prepare(&share))?;
        set_mode(&share, 0o777)?;
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

    /// A folder that the site removes at its end, for what belongs to it: configuration, logs, run
    /// directories.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The user that may log in everywhere.
    pub fn credentials(&self) -> Credentials {
        Credentials::new(&self.account.name, PASSWORD)
    }

    /// A node with the given name, configured and not started.
    pub fn smbd(&self, name: &str, options: SmbdOptions) -> Result<Smbd, SambaError> {
        let dir = self.dir.path().join(name);
        let address = net::free_endpoint();
        write_config(&dir, &self.config(&dir, address, &options))?;
        copy_files(&self.user_database(), &dir.join("private"))?;
        Ok(Smbd { program: self.tools.smbd.clone(), dir, address, env: options.env, process: None })
    }

    /// Directory with `passdb.tdb` and `secrets.tdb`: users, and the machine's SID.
    fn user_database(&self) -> PathBuf {
        self.dir.path().join("users").join("private")
    }

    /// Lets `pdbedit` make the machine's SID and the user. Every node gets a copy, so that a user is the same
    /// SID everywhere; Samba gives an open back only to the SID that opened it.
    fn make_user_database(&self) -> Result<(), SambaError> {
        let dir = self.dir.path().join("users");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 445));
        let config = write_config(&dir, &self.config(&dir, nowhere, &SmbdOptions::default()))?;
        let program = &self.tools.pdbedit;
        let mut child = Command::new(program)
            // Unlike `smbpasswd`, it does this for an ordinary user too.
            .args(["--create", "--password-from-stdin", "--configfile"])
            .arg(config)
            .arg("--user")
            .arg(&self.account.name)
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
        for name in iter::once(SHARE).chain(options.more_shares.iter().map(String::as_str)) {
            config += &format!(
                "[{name}]\n\
                 \tpath = {share}\n\
                 \tread only = no\n\
                 \tkernel oplocks = no\n\
                 \tkernel share modes = no\n\
                 \tposix locking = no\n\
                 \tdurable handles = yes\n",
                share = self.share_dir().display(),
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
    /// Further options of the shares, after the usual ones.
    pub share_options: Vec<(String, String)>,
    /// Names of further shares of the same directory.
    pub more_shares: Vec<String>,
    /// Samba's log level.
    pub log_level: u8,
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
        format!(r"\\{}\{SHARE}", self.address.ip())
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

fn smb_account() -> Result<User, SambaError> {
    let uid = Uid::effective();
    let account = if uid.is_root() { ACCOUNT_FOR_ROOT.to_owned() } else { uid.to_string() };
    let found = if uid.is_root() { User::from_name(&account) } else { User::from_uid(uid) };
    found.ok().flatten().ok_or(SambaError::NoAccount { account })
}

fn set_mode(path: &Path, mode: u32) -> Result<(), SambaError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(prepare(path))
}

fn prepare(path: &Path) -> impl FnOnce(io::Error) -> SambaError {
    let path = path.to_owned();
    move |source| SambaError::Prepare { path, source }
}
