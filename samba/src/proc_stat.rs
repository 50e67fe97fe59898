//! Whether a process lives, by `/proc/PID/stat` (proc_pid_stat(5)).

use std::fs::File;
use std::io::{self, ErrorKind, Read};

use rustix::io::Errno;

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcStat {
    /// Whether it has ended, and its parent has not asked for its exit status yet. A signal can still be sent to it.
    pub has_ended: bool,
    /// Whether it is being taken apart. The kernel says so before it closes what the process has open.
    pub is_exiting: bool,
    /// When it was started, in the kernel's ticks since the machine was: the same for as long as the process lives, and
    /// another for one that has its id later.
    pub started_at: u64,
}

impl ProcStat {
    /// Asks about a process; `None` if there is no such process (any more).
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked, or is not understood. The process may live then.
    pub fn of(pid: u64) -> io::Result<Option<Self>> {
        Self::read(File::open(format!("/proc/{pid}/stat")))
    }

    fn read(opened: io::Result<File>) -> io::Result<Option<Self>> {
        let mut stat = String::new();
        match opened.and_then(|mut file| file.read_to_string(&mut stat)) {
            Ok(_) => {
                let unreadable =
                    || io::Error::new(ErrorKind::InvalidData, "unknown contents of /proc/PID/stat");
                Self::parse(&stat).ok_or_else(unreadable).map(Some)
            }
            // A process whose parent asks for its exit status is gone with the next call: the file can be opened, and not
            // be read any more.
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    || Errno::from_io_error(&error) == Some(Errno::SRCH) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn parse(stat: &str) -> Option<Self> {
        /// PF_EXITING of the kernel.
        const EXITING: u64 = 0x4;
        /// The fields between the state and the flags: parent, group, session, terminal, and its group.
        const BEFORE_FLAGS: usize = 5;
        /// Those between the flags and the time of the start.
        const BEFORE_START: usize = 12;

        // The name is in parentheses, and may have some itself.
        let mut fields = stat.rsplit(") ").next()?.split(' ');
        let state = fields.next()?;
        let flags: u64 = fields.nth(BEFORE_FLAGS)?.parse().ok()?;
        let started_at = fields.nth(BEFORE_START)?.parse().ok()?;
        Some(Self { has_ended: state.starts_with(['Z', 'X']), is_exiting: flags & EXITING != 0, started_at })
    }
}

/// Whether a process lives; in doubt it does. One that has ended and was not reaped yet does not, although a signal can still
/// be sent to it.
#[must_use]
pub fn lives(pid: u64) -> bool {
    match ProcStat::of(pid) {
        Ok(stat) => stat.is_some_and(|stat| !stat.has_ended),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_that_is_reaped_while_it_is_asked_about_is_gone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let asked = || File::open(format!("/proc/{}/stat", child.id()));
        let (while_alive, until_after) = (asked(), asked());
        assert!(!ProcStat::read(while_alive).unwrap().unwrap().has_ended);

        child.kill().unwrap();
        child.wait().unwrap();

        assert_eq!(ProcStat::read(until_after).unwrap(), None);
        assert_eq!(ProcStat::of(child.id().into()).unwrap(), None);
    }

    #[test]
    fn fields_are_found_whatever_the_name() {
        let rest = "1 2 3 4 5 4194564 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        let stat = |state| ProcStat::parse(&format!("42 (a) S (b) {state} {rest}\n"));
        let running = ProcStat { has_ended: false, is_exiting: true, started_at: 4711 };
        assert_eq!(stat('R'), Some(running));
        assert_eq!(stat('Z'), Some(ProcStat { has_ended: true, ..running }));
        assert_eq!(ProcStat::parse(""), None);
    }

    #[test]
    fn one_process_was_started_before_the_other() {
        let this = ProcStat::of(std::process::id().into()).unwrap().unwrap();
        let first = ProcStat::of(1).unwrap().unwrap();
        assert!(first.started_at <= this.started_at && this.started_at > 0);
    }
}
