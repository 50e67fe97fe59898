//! An smbd of a cluster.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, User, getuid};
use tempfile::TempDir;

/// smbd, which is not in every user's path.
const SMBD: &str = "/usr/sbin/smbd";

/// The loopback address that smbds listen on; their ports differ.
const ADDRESS: &str = "127.0.43.1";

/// A private smbd with one share. Its directories are its own, and are gone when it is dropped.
pub(crate) struct Smbd {
    directory: TempDir,
    process: Child,
    address: SocketAddr,
}

impl Smbd {
    /// Starts one beside a ctdbd.
    pub(crate) fn start(ctdbd_socket: &Path, share: &Path) -> Self {
        let free = TcpListener::bind((ADDRESS, 0)).and_then(|listener| listener.local_addr());
        let address = free.expect("a loopback address has free ports");
        let directory = TempDir::with_prefix("holdfast-smbd-").expect("a temporary directory");
        for name in ["private", "lock", "state", "cache", "pid", "ncalrpc"] {
            fs::create_dir(directory.path().join(name)).expect("it is new");
        }
        let conf = format!(
            "[global]\n\
             server role = standalone server\n\
             clustering = yes\n\
             ctdbd socket = {ctdbd_socket}\n\
             private dir = {root}/private\n\
             lock directory = {root}/lock\n\
             state directory = {root}/state\n\
             cache directory = {root}/cache\n\
             pid directory = {root}/pid\n\
             ncalrpc dir = {root}/ncalrpc\n\
             log file = {root}/log.smbd\n\
             interfaces = {ADDRESS}/8\n\
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
            ctdbd_socket = ctdbd_socket.display(),
            root = directory.path().display(),
            port = address.port(),
            user = User::from_uid(getuid()).unwrap().expect("this user has a name").name,
            share = share.display(),
        );
        fs::write(directory.path().join("smb.conf"), conf).expect("it can be written");
        let process = Command::new(SMBD)
            .args(["-F", "--no-process-group", "-s"])
            .arg(directory.path().join("smb.conf"))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("smbd is there");
        Self { directory, process, address }
    }

    /// smbclient, connected to the share.
    pub(crate) fn smbclient(&self) -> Command {
        let mut smbclient = Command::new("smbclient");
        smbclient.args([&format!("//{ADDRESS}/share"), "-p", &self.address.port().to_string()]).args([
            "-N",
            "-U",
            "nobody-in-particular%",
            "-t",
            "20",
        ]);
        smbclient
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log.smbd")).unwrap_or_default()
    }
}

impl Drop for Smbd {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).expect("a process id"));
        // They may have ended by themselves.
        let _ = signal::killpg(pid, Signal::SIGKILL);
        let _ = self.process.wait();
    }
}
