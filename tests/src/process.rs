//! Processes that die with the harness, together with everything they forked.
//!
//! Each runs in a process group of its own, so that one `kill(2)` reaches the whole tree at one moment and no
//! fork can slip through. A guard, a small shell waiting on a pipe, kills the group when the harness is gone
//! without having said so: a panic, Ctrl-C, even SIGKILL. The harness is the sub-reaper of all of them: a
//! killed `smbd` child that nobody reaps would look alive to `kill(pid, 0)`, and Samba asks exactly that
//! before it hands out what the dead one held.

use std::{
    fs, io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpgid},
};

/// How long a group that got SIGKILL may take to be gone; only a process stuck in the kernel needs more than
/// milliseconds.
const REAP_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two looks at a process that should end.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Reads until the harness closes the other end, by dying at the latest; then kills the group given as `$1`.
const GUARD_SCRIPT: &str = r#"read -r _; kill -9 "-$1""#;

/// Why a process cannot be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It did not start.
    #[error("cannot start {program}")]
    Spawn {
        /// What was to be run.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// It got SIGKILL and is still there.
    #[error("process group {group} ({program}) survived SIGKILL for {REAP_TIMEOUT:?}: is one in state D?")]
    Unkillable {
        /// What was run.
        program: String,
        /// Its process group.
        group: i32,
    },
    /// It was asked to end and did not. It was killed then.
    #[error("process group {group} ({program}) did not end within {timeout:?} after SIGTERM")]
    NotTerminated {
        /// What was run.
        program: String,
        /// Its process group.
        group: i32,
        /// How long it was given.
        timeout: Duration,
    },
}

/// A running program and all its descendants. Dropping it kills them.
#[derive(Debug)]
pub struct ProcessGroup {
    program: String,
    /// Process id of the first process and id of the group.
    leader: Pid,
    guard: Child,
    /// How the first process ended, once it was reaped.
    exit_status: Option<ExitStatus>,
    /// Every process of the group is gone and reaped: the id may belong to somebody else by now.
    gone: bool,
}

impl ProcessGroup {
    /// Starts a program. Its standard input is empty; where its output goes is the caller's choice.
    pub fn spawn(mut command: Command) -> Result<Self, ProcessError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = |program: &str| {
            let program = program.to_owned();
            move |source| ProcessError::Spawn { program, source }
        };
        prctl::set_child_subreaper(true).map_err(|errno| failed(&program)(errno.into()))?;

        let child = command.stdin(Stdio::null()).process_group(0).spawn().map_err(failed(&program))?;
        let leader = Pid::from_raw(i32::try_from(child.id()).expect("Linux process ids fit"));
        let guard = Command::new("/bin/sh")
            .args(["-c", GUARD_SCRIPT, "holdfast-guard", &leader.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|source| {
                // Without its guard it must not stay.
                let _ = killpg(leader, Signal::SIGKILL);
                failed("/bin/sh")(source)
            })?;
        Ok(Self { program, leader, guard, exit_status: None, gone: false })
    }

    /// Process id of the first process, which is the group's id too.
    pub fn pid(&self) -> i32 {
        self.leader.as_raw()
    }

    /// Whether the first process is still running.
    pub fn is_running(&mut self) -> bool {
        self.try_exit_status().is_none()
    }

    /// How the first process ended, or `None` while it is running.
    pub fn try_exit_status(&mut self) -> Option<ExitStatus> {
        if self.exit_status.is_none() {
            self.reap(self.leader);
        }
        self.exit_status
    }

    /// Waits for the first process to end by itself; `None` if it has not done so within `timeout`.
    pub async fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.try_exit_status() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            tokio::time::sleep(10 * POLL_INTERVAL).await;
        }
    }

    /// Asks the first process to end (SIGTERM), and returns when nothing of the group is left; what is still
    /// there after `timeout` is killed, and that is an error.
    pub async fn terminate(&mut self, timeout: Duration) -> Result<(), ProcessError> {
        if self.is_running() {
            // Not reaped yet, so the id is still its own.
            let _ = kill(self.leader, Signal::SIGTERM);
        }
        let deadline = Instant::now() + timeout;
        while self.reap(self.whole_group()) {
            if Instant::now() >= deadline {
                self.kill()?;
                let (program, group) = (self.program.clone(), self.leader.as_raw());
                return Err(ProcessError::NotTerminated { program, group, timeout });
            }
            tokio::time::sleep(10 * POLL_INTERVAL).await;
        }
        // Buries the guard too.
        self.kill()
    }

    /// Kills one process of this group with SIGKILL and waits until its parent has buried it.
    pub async fn kill_member(&self, pid: i32) -> Result<(), ProcessError> {
        let is_there = || getpgid(Some(Pid::from_raw(pid))) == Ok(self.leader);
        if is_there() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let deadline = Instant::now() + REAP_TIMEOUT;
        while is_there() {
            if Instant::now() >= deadline {
                let (program, group) = (self.program.clone(), self.leader.as_raw());
                return Err(ProcessError::Unkillable { program, group });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// The process of this group that has a socket, given by its inode, if one has.
    pub fn holder_of_socket(&self, inode: u64) -> Option<i32> {
        self.members().into_iter().find(|&pid| has_socket(pid, inode))
    }

    /// The processes of this group, zombies too.
    pub fn members(&self) -> Vec<i32> {
        let is_member = |pid: &i32| getpgid(Some(Pid::from_raw(*pid))) == Ok(self.leader);
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_member).collect()
    }

    fn whole_group(&self) -> Pid {
        Pid::from_raw(-self.leader.as_raw())
    }

    /// Sends SIGKILL to the whole group and does not wait: for killing several groups at one moment. Follow
    /// it by [`ProcessGroup::kill`], which also reaps.
    pub fn send_kill(&self) {
        if !self.gone {
            // The id is still ours: a group id is not given away while a member is there, reaped by us or
            // not. ESRCH means that there is none, which is what is wanted.
            let _ = killpg(self.leader, Signal::SIGKILL);
        }
    }

    /// Kills the whole group with SIGKILL, all at the same moment, and reaps it. When this returns no process
    /// of it exists and the kernel has closed their sockets. It blocks for as long as that takes, usually
    /// some milliseconds.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        if self.gone {
            return Ok(());
        }
        self.send_kill();
        // The guard next, so that it cannot kill a later group of the same id.
        let _ = self.guard.kill();
        let _ = self.guard.wait();

        let deadline = Instant::now() + REAP_TIMEOUT;
        // The first process stays waitable until its children have become ours, so "no child left" is the
        // end.
        while self.reap(self.whole_group()) {
            if Instant::now() >= deadline {
                let (program, group) = (self.program.clone(), self.leader.as_raw());
                return Err(ProcessError::Unkillable { program, group });
            }
            thread::sleep(POLL_INTERVAL);
        }
        self.gone = true;
        Ok(())
    }

    /// Stops the whole group where it is (SIGSTOP).
    pub fn pause(&self) {
        let _ = killpg(self.leader, Signal::SIGSTOP);
    }

    /// Lets a paused group go on (SIGCONT).
    pub fn resume(&self) {
        let _ = killpg(self.leader, Signal::SIGCONT);
    }

    /// Reaps whichever of the named processes have ended; false if none of them is a child of ours any more.
    fn reap(&mut self, which: Pid) -> bool {
        loop {
            let (pid, status) = match waitpid(which, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code << 8),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal as i32),
                Err(Errno::ECHILD) => return false,
                Ok(_) | Err(_) => return true,
            };
            if pid == self.leader {
                self.exit_status = Some(ExitStatus::from_raw(status));
            }
        }
    }
}

/// Whether a process has ended and its parent has not buried it.
pub fn is_zombie(pid: i32) -> bool {
    // Number, name in parentheses, state: the name may contain anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// How many file descriptors a process has; none if there is no such process.
pub fn open_files(pid: i32) -> usize {
    file_descriptors(pid).count()
}

/// Whether a process has a socket, given by its inode.
pub(crate) fn has_socket(pid: i32, inode: u64) -> bool {
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    file_descriptors(pid).filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file == socket)
}

fn file_descriptors(pid: i32) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten()
}

/// The last lines of some logs, for an error message. What cannot be read is empty.
pub(crate) fn last_lines(logs: &[&Path]) -> String {
    const LINES: usize = 20;
    let text: String = logs.iter().map(|log| fs::read_to_string(log).unwrap_or_default()).collect();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // Whoever cares about a process that cannot be killed has called `kill` himself.
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive(pid: i32) -> bool {
        nix::sys::signal::kill(Pid::from_raw(pid), None).is_ok()
    }

    #[test]
    fn kill_ends_and_reaps_children_and_orphans() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let mut command = Command::new("/bin/sh");
        // A child, and a grandchild whose parent is gone by the time of the kill.
        command.args([
            "-c",
            "(sleep 60 & echo $! >> $0); sleep 60 & echo $! >> $0; wait",
            pids.to_str().unwrap(),
        ]);
        let mut group = ProcessGroup::spawn(command).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let sleepers: Vec<i32> = loop {
            let text = std::fs::read_to_string(&pids).unwrap_or_default();
            if text.lines().count() == 2 {
                break text.lines().map(|pid| pid.parse().unwrap()).collect();
            }
            assert!(Instant::now() < deadline, "the shell has not started its children");
            thread::sleep(POLL_INTERVAL);
        };
        assert!(group.is_running() && sleepers.iter().all(|&pid| alive(pid)));

        group.kill().unwrap();

        assert!(!alive(group.pid()), "the shell is alive or a zombie");
        assert!(!sleepers.iter().any(|&pid| alive(pid)), "a descendant is alive or a zombie");
        assert_eq!(group.try_exit_status().unwrap().signal(), Some(9));
    }

    #[test]
    fn the_guard_kills_when_the_harness_is_gone() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 60 & wait"]);
        let mut group = ProcessGroup::spawn(command).unwrap();
        // What the kernel does when the harness dies.
        drop(group.guard.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        while group.is_running() {
            assert!(Instant::now() < deadline, "nobody killed it");
            thread::sleep(POLL_INTERVAL);
        }
        assert_eq!(group.try_exit_status().unwrap().signal(), Some(9));
    }

    #[tokio::test]
    async fn terminate_waits_for_the_whole_group_and_kills_what_does_not_go() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "trap 'kill $!; exit 0' TERM; sleep 60 & wait"]);
        let mut group = ProcessGroup::spawn(command).unwrap();
        // A child that is still the shell would lose the signal: it has a handler until it becomes `sleep`.
        let is_sleep = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "sleep")
        };
        let all = loop {
            let all = group.members();
            if all.iter().any(is_sleep) {
                break all;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        group.terminate(Duration::from_secs(10)).await.unwrap();
        assert!(!all.iter().any(|&pid| alive(pid)));
        assert!(group.try_exit_status().unwrap().success());
    }

    #[tokio::test]
    async fn terminate_kills_what_does_not_go() {
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "trap '' TERM; echo > $0; sleep 60", ready.to_str().unwrap()]);
        let mut group = ProcessGroup::spawn(command).unwrap();
        while !ready.exists() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let all = group.members();
        let outcome = group.terminate(Duration::from_millis(100)).await;
        assert!(matches!(outcome, Err(ProcessError::NotTerminated { .. })), "{outcome:?}");
        assert!(!all.iter().any(|&pid| alive(pid)), "a process is left");
    }

    #[test]
    fn a_zombie_is_told_from_the_living() {
        let mut child = Command::new("/bin/sh").args(["-c", "exit"]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_zombie(pid) {
            assert!(Instant::now() < deadline, "it has not ended, or was buried");
            thread::sleep(POLL_INTERVAL);
        }
        child.wait().unwrap();
        assert!(!is_zombie(pid), "it is buried");
        assert!(!is_zombie(i32::try_from(std::process::id()).unwrap()), "this one lives");
    }

    #[test]
    fn exit_code_is_reported() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exit 3"]);
        let mut group = ProcessGroup::spawn(command).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let status = runtime.block_on(group.wait(Duration::from_secs(10))).unwrap();
        assert_eq!(status.code(), Some(3));
    }
}
