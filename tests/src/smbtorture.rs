//! Samba's own protocol tests, unmodified: one test per run of `smbtorture`.

use std::{fs, io, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use crate::{
    process::{ProcessError, ProcessGroup},
    samba::{SHARE, SambaSite, SambaTools},
};

/// What a test said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Success,
    /// The server did something else than the test expects.
    Failure,
    /// The test does not apply to this server.
    Skip,
    /// The test could not be carried out, or gave no verdict.
    Error,
}

/// A run's result.
#[derive(Clone, Debug)]
pub struct Report {
    /// The verdict.
    pub verdict: Verdict,
    /// Everything that `smbtorture` printed.
    pub output: String,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum SmbtortureError {
    /// It is not installed.
    #[error("smbtorture is not installed (Debian: apt install samba-testsuite)")]
    Missing,
    /// Its directory could not be prepared or its output not be read.
    #[error("cannot prepare or read {}", path.display())]
    Files {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It could not be started or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It did not end in time.
    #[error("{test} did not end within {timeout:?}; so far it said:\n{output}")]
    TimedOut {
        /// The test.
        test: String,
        /// How long it was given.
        timeout: Duration,
        /// What it had printed.
        output: String,
    },
}

/// The names of all tests that begin with `prefix`, in the order of their suites.
pub fn list(tools: &SambaTools, prefix: &str) -> Result<Vec<String>, SmbtortureError> {
    let program = tools.smbtorture().ok_or(SmbtortureError::Missing)?;
    let output = Command::new(program).arg("--list").output().map_err(files(program))?;
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    // Each line names a test and, after that, the test again.
    let tests = output.lines().filter_map(|line| line.rsplit_once('.')).map(|(test, _)| test);
    Ok(tests.filter(|test| test.starts_with(prefix)).map(str::to_owned).collect())
}

/// Runs one test, such as `smb2.durable-open.reopen2`, against a server of the site (or a proxy in front of
/// it).
pub async fn run(
    site: &SambaSite,
    server: SocketAddr,
    test: &str,
    timeout: Duration,
) -> Result<Report, SmbtortureError> {
    let program = site.tools().smbtorture().ok_or(SmbtortureError::Missing)?;
    let dir =
        tempfile::Builder::new().prefix("smbtorture-").tempdir_in(site.dir()).map_err(files(site.dir()))?;
    let config = dir.path().join("smb.conf");
    let path = dir.path().display();
    // Directories of its own, because those of the system belong to root.
    let settings = ["private dir", "lock directory", "state directory", "cache directory", "pid directory"]
        .map(|setting| format!("\t{setting} = {path}\n"))
        .concat();
    fs::write(&config, format!("[global]\n{settings}")).map_err(files(&config))?;

    let output_file = dir.path().join("output");
    let output = fs::File::create(&output_file).map_err(files(&output_file))?;
    let errors = output.try_clone().map_err(files(&output_file))?;
    let credentials = site.credentials();
    let mut command = Command::new(program);
    command
        .arg(format!("//{}/{SHARE}", server.ip()))
        .arg(format!("--smb-ports={}", server.port()))
        .arg(format!("--user={}%{}", credentials.user, credentials.password))
        .arg(format!("--configfile={}", config.display()))
        .arg(format!("--basedir={path}"))
        // The lock tests ask how the server counts unacknowledged breaks; Samba's way has to be said.
        .arg("--option=torture:use_unacked_timeout=yes")
        .arg(test)
        .stdout(output)
        .stderr(errors);
    let mut process = ProcessGroup::spawn(command)?;
    let ended = process.wait(timeout).await.is_some();
    process.kill()?;

    let output = fs::read(&output_file).map_err(files(&output_file))?;
    let output = String::from_utf8_lossy(&output).into_owned();
    if !ended {
        return Err(SmbtortureError::TimedOut { test: test.to_owned(), timeout, output });
    }
    Ok(Report { verdict: verdict(&output), output })
}

/// The worst of the verdict lines. One run carries out one test and prints one; without any it has broken
/// off.
fn verdict(output: &str) -> Verdict {
    let said = |keyword: &str| output.lines().any(|line| line.starts_with(keyword));
    if said("error: ") {
        Verdict::Error
    } else if said("failure: ") {
        Verdict::Failure
    } else if said("skip: ") {
        Verdict::Skip
    } else if said("success: ") {
        Verdict::Success
    } else {
        Verdict::Error
    }
}

/// What a test says about why it did not pass: what follows its verdict, in brackets.
pub fn explanation(output: &str) -> Option<String> {
    let mut lines = output.lines().skip_while(|line| {
        !["failure: ", "error: ", "skip: "].iter().any(|keyword| line.starts_with(keyword))
    });
    lines.next()?;
    let text: Vec<&str> = lines.take_while(|line| *line != "]").collect();
    Some(text.join(" ").trim().to_owned())
}

fn files(path: &std::path::Path) -> impl FnOnce(io::Error) -> SmbtortureError {
    let path = path.to_owned();
    move |source| SmbtortureError::Files { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_from_line_beginnings() {
        let cases = [
            ("test: a\nsuccess: a\n", Verdict::Success),
            ("test: a\nfailure: a [\nexpected success: no\n]\n", Verdict::Failure),
            ("test: a\nskip: a [\nno leases\n]\n", Verdict::Skip),
            ("test: a\nerror: a [\nException\n]\n", Verdict::Error),
            ("Failed to connect\n", Verdict::Error),
        ];
        for (output, expected) in cases {
            assert_eq!(verdict(output), expected, "{output}");
        }
    }
}
