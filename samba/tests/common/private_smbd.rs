//! An smbd of a test's own, with one share that everybody may use.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, User, getuid};
use tempfile::TempDir;

/// A private smbd. Its directories are its own, and are gone when it is dropped.
pub(crate) struct PrivateSmbd {
    directory: TempDir,
    /// The first of its processes.
    pub(crate) process: Child,
    address: SocketAddr,
}

impl PrivateSmbd {
    /// Starts one that listens on a loopback address, and on a port that is free now. It does not wait until that serves.
    /// `share` is what it serves: by default a folder in its own directory. `globals` are lines for its `[global]`
    /// section beyond the usual ones.
    pub(crate) fn start(smbd: &Path, address: &str, share: Option<&Path>, globals: &str) -> Self {
        let free = TcpListener::bind((address, 0)).and_then(|listener| listener.local_addr());
        let address = free.expect("a loopback address has free ports");
        let directory = TempDir::with_prefix("holdfast-smbd-").expect("a temporary directory");
        let root = directory.path();
        for name in ["private", "lock", "state", "cache", "pid", "ncalrpc", "share"] {
            fs::create_dir(root.join(name)).expect("it is new");
        }
        let own_share = root.join("share");
        let conf = format!(
            "[global]\n\
             server role = standalone server\n\
             {globals}\
             private dir = {root}/private\n\
             lock directory = {root}/lock\n\
             state directory = {root}/state\n\
             cache directory = {root}/cache\n\
             pid directory = {root}/pid\n\
             ncalrpc dir = {root}/ncalrpc\n\
             log file = {root}/log.smbd\n\
             interfaces = {ip}/8\n\
             bind interfaces only = yes\n\
             smb ports = {port}\n\
             disable netbios = yes\n\
             load printers = no\n\
             printcap name = /dev/null\n\
             map to guest = Bad User\n\
             guest account = {user}\n\
             [share]\n\
             path = {share}\n\
             guest ok = yes\n\
             read only = no\n\
             kernel oplocks = no\n\
             kernel share modes = no\n\
             posix locking = no\n",
            root = root.display(),
            ip = address.ip(),
            port = address.port(),
            user = User::from_uid(getuid()).unwrap().expect("this user has a name").name,
            share = share.unwrap_or(&own_share).display(),
        );
        let conf_file = root.join("smb.conf");
        fs::write(&conf_file, conf).expect("it can be written");
        let process = Command::new(smbd)
            .args(["-F", "--no-process-group", "-s"])
            .arg(conf_file)
            // smbd ends its whole process group with itself.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("smbd is there");
        Self { directory, process, address }
    }

    /// What is its own: `smb.conf`, `lock` and, by default, `share` among them.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A command that is smbclient, connected to the share.
    pub(crate) fn smbclient(&self, program: &Path) -> Command {
        let mut smbclient = Command::new(program);
        let (share, port) = (format!("//{}/share", self.address.ip()), self.address.port().to_string());
        smbclient.args([&share, "-p", &port]).args(["-N", "-U", "nobody-in-particular%", "-t", "20"]);
        smbclient
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory().join("log.smbd")).unwrap_or_default()
    }

    /// The id of the first of its processes.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.process.id()).expect("a process id"))
    }
}

impl Drop for PrivateSmbd {
    fn drop(&mut self) {
        // They may have ended by themselves.
        let _ = signal::killpg(self.pid(), Signal::SIGKILL);
        let _ = self.process.wait();
    }
}
