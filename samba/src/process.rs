//! Asking Samba's own programs, without waiting for them for ever.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

/// More output than any smb.conf makes.
const OUTPUT_MAX: u64 = 16 << 20;

/// How often an ended process is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A program that was asked something has not answered.
#[derive(Debug, Error)]
pub enum CommandError {
    /// It was not even started.
    #[error("cannot run {command}")]
    Spawn {
        /// The program and its arguments.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// Its output cannot be read.
    #[error("cannot read what {command} prints")]
    Read {
        /// The program and its arguments.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// It has not ended in time and was killed.
    #[error("{command} has not ended within {timeout:?}")]
    Timeout {
        /// The program and its arguments.
        command: String,
        /// How long it had.
        timeout: Duration,
    },
    /// It has failed.
    #[error("{command} failed: {stderr}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// What it said.
        stderr: String,
    },
}

/// What `program` prints to its standard output. The program is killed when its time is up.
pub(crate) fn output(
    program: &OsStr,
    arguments: &[&OsStr],
    timeout: Duration,
) -> Result<String, CommandError> {
    printed(program, arguments, &[], timeout).map(|printed| printed.stdout)
}

/// What a program that has ended well has printed.
pub(crate) struct Printed {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What `program` prints, with more in its environment. The program is killed when its time is up.
pub(crate) fn printed(
    program: &OsStr,
    arguments: &[&OsStr],
    environment: &[(&str, &OsStr)],
    timeout: Duration,
) -> Result<Printed, CommandError> {
    let command = || {
        let words = std::iter::once(program).chain(arguments.iter().copied());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    };
    let deadline = Instant::now() + timeout;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| CommandError::Spawn { command: command(), source })?;
    let stdout = read_to_end(child.stdout.take().expect("it is piped"));
    let stderr = read_to_end(child.stderr.take().expect("it is piped"));

    let read = |output: mpsc::Receiver<io::Result<Vec<u8>>>| {
        let left = deadline.saturating_duration_since(Instant::now());
        match output.recv_timeout(left) {
            Ok(Ok(bytes)) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Ok(Err(source)) => Err(CommandError::Read { command: command(), source }),
            Err(_) => Err(CommandError::Timeout { command: command(), timeout }),
        }
    };
    let both = read(stdout).and_then(|stdout| Ok((stdout, read(stderr)?)));
    let ended = wait_until(&mut child, deadline);
    let (stdout, stderr) = both?;
    match ended {
        Ok(true) => Ok(Printed { stdout, stderr }),
        Ok(false) => Err(CommandError::Failed { command: command(), stderr: stderr.trim().to_owned() }),
        Err(Some(source)) => Err(CommandError::Read { command: command(), source }),
        Err(None) => Err(CommandError::Timeout { command: command(), timeout }),
    }
}

/// Reads a pipe in a thread of its own, because neither of two pipes may fill up while the other is read.
fn read_to_end(pipe: impl Read + Send + 'static) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let result = pipe.take(OUTPUT_MAX).read_to_end(&mut bytes).map(|_| bytes);
        // Nobody listens any more when the time was up.
        let _ = sender.send(result);
    });
    receiver
}

/// Whether the process has ended well; an error without a cause means that it was killed at the deadline.
fn wait_until(child: &mut Child, deadline: Instant) -> Result<bool, Option<io::Error>> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if Instant::now() < deadline => thread::sleep(POLL_INTERVAL),
            Ok(None) => {
                // It may have ended just now, which is no reason to complain.
                let _ = child.kill();
                let _ = child.wait();
                return Err(None);
            }
            Err(error) => return Err(Some(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(program: &str, arguments: &[&str], timeout: Duration) -> Result<String, CommandError> {
        let arguments: Vec<_> = arguments.iter().map(OsStr::new).collect();
        output(OsStr::new(program), &arguments, timeout)
    }

    #[test]
    fn output_is_returned() {
        assert_eq!(run("echo", &["hello"], Duration::from_secs(10)).unwrap(), "hello\n");
    }

    #[test]
    fn failure_carries_what_was_said() {
        let error = run("sh", &["-c", "echo no >&2; exit 3"], Duration::from_secs(10)).unwrap_err();
        assert!(matches!(error, CommandError::Failed { stderr, .. } if stderr == "no"));
    }

    #[test]
    fn missing_program_is_named() {
        let error = run("/nonexistent/smbd", &[], Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.to_string(), "cannot run /nonexistent/smbd");
    }

    #[test]
    fn slow_program_is_killed() {
        let started = Instant::now();
        let error = run("sleep", &["60"], Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, CommandError::Timeout { .. }));
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
