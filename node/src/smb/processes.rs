//! The processes of the SMB service, watched until they end.
//!
//! A process counts from its Hello until the kernel says that it has ended (its pidfd becomes readable). A
//! connection that closes says less: a process may reconnect, and a dying one serves until it is dead.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::{fs, io};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use samba::proc_stat::ProcStat;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tracing::debug;

/// The living processes of one incarnation of the SMB service.
#[derive(Debug, Default)]
pub struct Processes {
    living: Mutex<BTreeMap<u32, Arc<OwnedFd>>>,
    /// How many there are. Watchers learn from it that the last one has ended.
    count: watch::Sender<usize>,
}

impl Processes {
    /// Watches a process from now on. Returns what resolves when it has ended, or `None` if it is watched
    /// already.
    ///
    /// # Errors
    ///
    /// If there is no such process (any more).
    pub fn watch(self: &Arc<Self>, pid: u32) -> io::Result<Option<impl Future<Output = ()> + use<>>> {
        let mut living = self.living();
        if living.contains_key(&pid) {
            return Ok(None);
        }
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::other(format!("{pid} is no process id")))?;
        let pidfd = Arc::new(pidfd_open(raw, PidfdFlags::NONBLOCK)?);
        living.insert(pid, Arc::clone(&pidfd));
        self.count.send_replace(living.len());
        drop(living);

        let processes = Arc::clone(self);
        Ok(Some(async move {
            // SAFETY: the `Arc` keeps the descriptor open, and the same, for as long as the `AsyncFd` has it.
            #[expect(
                unsafe_code,
                reason = "tokio cannot see that the descriptor of an `Arc<OwnedFd>` never changes"
            )]
            let registered = unsafe { AsyncFd::register(pidfd) };
            match registered {
                Ok(pidfd) => {
                    if let Err(error) = pidfd.readable().await {
                        debug!(pid, %error, "the end of the process cannot be waited for");
                    }
                }
                Err(error) => debug!(pid, %error, "the process cannot be watched"),
            }
            processes.forget(pid);
        }))
    }

    /// Resolves when there has been a process and none is left.
    pub async fn first_and_last(&self) {
        let mut count = self.count.subscribe();
        let _ = count.wait_for(|count| *count > 0).await;
        self.all_ended().await;
    }

    /// Resolves when there is no process left.
    pub async fn all_ended(&self) {
        let mut count = self.count.subscribe();
        // The sender lives in `self`, so the wait cannot end with an error.
        let _ = count.wait_for(|count| *count == 0).await;
    }

    /// Resolves when a process is not, or not any more, among them.
    pub async fn without(&self, pid: u32) {
        let mut count = self.count.subscribe();
        while self.has(pid) {
            // The sender lives in `self`, so the wait cannot end with an error.
            let _ = count.changed().await;
        }
    }

    /// Whether a process is among them. Once it has ended, it is not.
    #[must_use]
    pub fn has(&self, pid: u32) -> bool {
        self.living().contains_key(&pid)
    }

    /// How many live.
    #[must_use]
    pub fn count(&self) -> usize {
        self.living().len()
    }

    /// Ends them all with SIGKILL: they may not serve any more, and there is no time to be polite.
    pub fn kill_all(&self) {
        for (pid, pidfd) in self.living().iter() {
            if let Err(error) = pidfd_send_signal(pidfd, Signal::KILL) {
                debug!(pid, %error, "the process has ended already");
            }
        }
    }

    fn forget(&self, pid: u32) {
        let mut living = self.living();
        living.remove(&pid);
        self.count.send_replace(living.len());
    }

    fn living(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<OwnedFd>>> {
        self.living.lock().expect("no holder of this lock can panic")
    }
}

/// Whether a process has begun to end, or is gone. The kernel says so before it closes what the process has open, so
/// whoever has seen a connection close because its process dies is told here that it does.
#[must_use]
pub fn is_going(pid: u32) -> bool {
    match ProcStat::of(pid.into()) {
        Ok(stat) => stat.is_none_or(|stat| stat.has_ended || stat.is_exiting),
        // Nobody is declared dead because this process has run out of file descriptors.
        Err(_) => false,
    }
}

/// Whether a process is on its way out: gone, ending, or about to get a SIGKILL that is sent already.
#[must_use]
pub fn is_doomed(pid: u32) -> bool {
    is_going(pid) || has_kill_pending(pid)
}

/// Whether a process serves a client still: it has a TCP connection, to a port at which somebody listens, that the client
/// has not closed. When that cannot be found out, it does.
pub async fn has_client(pid: u32) -> bool {
    // Reads a line for each connection of the machine: not on the thread that everything else waits for.
    let found = tokio::task::spawn_blocking(move || {
        let mut established = BTreeSet::new();
        for table in ["tcp", "tcp6"] {
            established.extend(established_sockets(&fs::read_to_string(format!("/proc/{pid}/net/{table}"))?));
        }
        Ok::<_, io::Error>(fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().any(|descriptor| {
            let of = fs::read_link(descriptor.path()).unwrap_or_default();
            let inode =
                of.to_str().and_then(|of| of.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            inode.is_some_and(|inode: u64| established.contains(&inode))
        }))
    });
    !matches!(found.await, Ok(Ok(false)))
}

/// The inodes of the sockets in a table of the kernel's (proc(5), `/proc/net/tcp`) that are connections to a port at which
/// somebody listens, and that neither side has closed.
fn established_sockets(table: &str) -> Vec<u64> {
    const ESTABLISHED: &str = "01";
    const LISTENING: &str = "0A";

    let sockets: Vec<Vec<&str>> =
        table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    // The fields: number, local address and port, those of the peer, state; and the inode is the tenth.
    let in_state = |state| sockets.iter().filter(move |fields| fields.get(3) == Some(&state));
    let port_of = |fields: &Vec<&str>| fields.get(1)?.rsplit(':').next().map(str::to_owned);
    let ports: BTreeSet<_> = in_state(LISTENING).filter_map(port_of).collect();
    let served =
        in_state(ESTABLISHED).filter(|fields| port_of(fields).is_some_and(|port| ports.contains(&port)));
    served.filter_map(|fields| fields.get(9)?.parse().ok()).collect()
}

/// Whether a process has a SIGKILL coming: it lives, and will not do anything any more.
fn has_kill_pending(pid: u32) -> bool {
    /// SIGKILL is signal 9, and the lowest bit is that of signal 1.
    const KILL: u64 = 1 << 8;

    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
    };
    (pending("SigPnd:") | pending("ShdPnd:")) & KILL != 0
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    /// Two listeners, a connection to each of them, one of which was closed by the peer, and one to somebody else.
    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:01BD 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 0 100 0 0 10 0
   1: 0100007F:01BE 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 102 1 0 100 0 0 10 0
   2: 0100007F:01BD 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 103 1 0 20 4 30 10 -1
   3: 0100007F:01BE 0100007F:9C41 08 00000000:00000000 00:00000000 00000000     0        0 104 1 0 20 4 30 10 -1
   4: 0100007F:9C42 0100007F:0185 01 00000000:00000000 00:00000000 00000000     0        0 105 1 0 20 4 30 10 -1
";

    #[test]
    fn a_connection_is_served_that_nobody_has_closed() {
        assert_eq!(established_sockets(TABLE), [103]);
        assert_eq!(established_sockets("no table\n1 2 3\n"), Vec::<u64>::new());
    }

    #[tokio::test]
    async fn a_process_has_a_client_until_that_closes_its_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let mut child =
            Command::new("sleep").arg("60").stdin(std::os::fd::OwnedFd::from(server)).spawn().unwrap();
        let is_served = has_client(child.id()).await;
        drop(client);
        let is_served_still = has_client(child.id()).await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_served && !is_served_still);
        assert!(has_client(child.id()).await, "in doubt it has");
    }

    #[test]
    fn a_process_is_going_from_its_kill_on_whether_or_not_it_is_reaped() {
        assert!(!is_going(std::process::id()));
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!is_going(child.id()));
        child.kill().unwrap();
        let killed_at = Instant::now();
        while !is_going(child.id()) && !has_kill_pending(child.id()) {
            assert!(killed_at.elapsed() < Duration::from_secs(10), "a killed process counts as alive");
        }
        child.wait().unwrap();
        assert!(is_going(child.id()));
    }
}
