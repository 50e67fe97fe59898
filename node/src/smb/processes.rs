//! The processes of the SMB service, watched until they end.
//!
//! A process counts from its Hello until the kernel says that it has ended (its pidfd becomes readable). A
//! connection that closes says less: a process may reconnect, and a dying one serves until it is dead.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
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

    /// Whether this one lives.
    #[must_use]
    pub fn lives(&self, pid: u32) -> bool {
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
