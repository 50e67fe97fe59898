//! Real `ctdbd`s: one for each node of a cluster, all on this machine, each with an address and a directory of its
//! own.
//!
//! They run as `ctdbd`'s own tests run them (`CTDB_TEST_MODE`): everything is below one directory, and there are no
//! event scripts. Time-outs are CTDB's defaults, because how long its recovery takes is part of what is measured.
//! A [`Ctdbd`] that is killed dies with its recovery daemon and its helpers at one moment; what held the cluster lock
//! is among them.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tokio::{task, time};

use crate::{
    net,
    process::{ProcessError, ProcessGroup, last_lines},
    relay::{Caller, Callers, Wires},
    samba::{SambaError, SambaTools},
};

/// Where distributions keep the helpers of `ctdbd`; in test mode it has to be told (4.25).
const HELPER_DIR: &str = "/usr/libexec/ctdb";

/// The port of every `ctdbd`; it cannot be configured.
const PORT: u16 = 4379;

/// How long a cluster may take until it has recovered and its nodes are healthy: usually 7 to 12 seconds.
const HEALTHY_TIMEOUT: Duration = Duration::from_secs(90);

/// How long one question to `ctdbd` may take, in seconds.
const QUESTION_TIMEOUT_S: u32 = 5;

/// Between two questions; each is a process.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Why there is no CTDB, or none that is well.
#[derive(Debug, thiserror::Error)]
pub enum CtdbError {
    /// A file or directory could not be made.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is not installed.
    #[error("there is no CTDB (Debian: apt install ctdb)")]
    Missing(#[source] SambaError),
    /// It could not be started or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A relay to it could not be made.
    #[error("cannot listen at {address} for a ctdbd")]
    Relay {
        /// Where.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// It ended, or does not become healthy.
    #[error("ctdbd {pnn} {problem}; `ctdb status` says:\n{status}\nand the end of its log:\n{log}")]
    NotHealthy {
        /// Its number.
        pnn: usize,
        /// What is wrong.
        problem: String,
        /// What `ctdb` said last.
        status: String,
        /// Its last words.
        log: String,
    },
}

/// Where the `ctdbd`s of a cluster are.
#[derive(Clone, Debug)]
pub struct CtdbAddresses {
    /// Where each listens, and from where it calls the others.
    own: Vec<Ipv4Addr>,
    /// Where the others reach it, and from where its calls come to them: the same, if there are no relays.
    seen: Vec<Ipv4Addr>,
}

impl CtdbAddresses {
    /// For nodes that reach each other directly.
    pub fn direct(nodes: usize) -> Self {
        let own: Vec<_> = (0..nodes).map(|_| net::free_address(PORT)).collect();
        Self { seen: own.clone(), own }
    }

    /// For nodes that reach each other over wires that can be cut. To be called in a Tokio runtime.
    pub fn over(wires: &mut Wires, nodes: usize) -> Result<Self, CtdbError> {
        let Self { own, .. } = Self::direct(nodes);
        let seen: Vec<_> = (0..nodes).map(|_| net::free_address(PORT)).collect();
        // A ctdbd takes a call for another's only if it comes from the address that this one has in its list.
        let callers = own.iter().zip(&seen).enumerate();
        let callers = callers.map(|(node, (&own, &shown_as))| (own, Caller { node, shown_as })).collect();
        let callers = Callers::Addresses(callers);
        for (node, (&own, &seen)) in own.iter().zip(&seen).enumerate() {
            let address = SocketAddr::from((seen, PORT));
            wires
                .lead_to(node, address, SocketAddr::from((own, PORT)), callers.clone())
                .map_err(|source| CtdbError::Relay { address, source })?;
        }
        Ok(Self { own, seen })
    }

    /// The list of nodes as one of them has it: itself where it listens, the others where it reaches them.
    fn list_of(&self, pnn: usize) -> String {
        let mut addresses = self.seen.clone();
        addresses[pnn] = self.own[pnn];
        addresses.iter().map(|address| format!("{address}\n")).collect()
    }
}

/// What a `ctdbd` knows of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CtdbStatus {
    /// Of each node whether it is connected and healthy.
    pub healthy: Vec<bool>,
    /// The number of the newest recovery; none before the first.
    pub generation: Option<u32>,
    /// Whether no recovery is under way.
    pub recovered: bool,
    /// The node that leads recoveries, if there is one.
    pub leader: Option<usize>,
}

/// One `ctdbd`. Dropping it kills it.
#[derive(Debug)]
pub struct Ctdbd {
    ctdbd: PathBuf,
    ctdb: PathBuf,
    base: PathBuf,
    pnn: usize,
    process: Option<ProcessGroup>,
}

impl Ctdbd {
    /// A node's `ctdbd` below `base`, configured and not started. All nodes of a cluster have the same cluster lock,
    /// a file that is made when it is needed, or none has one. `tunables` are lines of `ctdb.tunables`.
    pub fn prepare(
        tools: &SambaTools,
        base: &Path,
        pnn: usize,
        addresses: &CtdbAddresses,
        cluster_lock: Option<&Path>,
        tunables: &[(&'static str, u32)],
    ) -> Result<Self, CtdbError> {
        for dir in ["run", "var", "volatile", "persistent", "state", "events/legacy", "events/notification"] {
            let dir = base.join(dir);
            fs::create_dir_all(&dir).map_err(prepare(&dir))?;
        }
        let lock = cluster_lock.map(|lock| format!("\tcluster lock = {}\n", lock.display()));
        let config = format!(
            "[cluster]\n\
             \tnode address = {address}\n\
             {lock}\
             [database]\n\
             \tvolatile database directory = {base}/volatile\n\
             \tpersistent database directory = {base}/persistent\n\
             \tstate database directory = {base}/state\n\
             [legacy]\n\
             \trealtime scheduling = false\n\
             [failover]\n\
             \tdisabled = true\n",
            address = addresses.own[pnn],
            lock = lock.unwrap_or_default(),
            base = base.display(),
        );
        let tunables: String = tunables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        let files = [("ctdb.conf", config), ("nodes", addresses.list_of(pnn)), ("ctdb.tunables", tunables)];
        for (name, text) in files {
            let file = base.join(name);
            fs::write(&file, text).map_err(prepare(&file))?;
        }
        Ok(Self {
            ctdbd: tools.program("ctdbd").map_err(CtdbError::Missing)?,
            ctdb: tools.program("ctdb").map_err(CtdbError::Missing)?,
            base: base.to_owned(),
            pnn,
            process: None,
        })
    }

    /// Where `smbd` and others on this node reach it.
    pub fn socket(&self) -> PathBuf {
        self.base.join("run/ctdbd.socket")
    }

    /// The directory of its volatile databases: `NAME.tdb.PNN`.
    pub fn volatile_dir(&self) -> PathBuf {
        self.base.join("volatile")
    }

    /// Process id of the `ctdbd` itself, while it is started.
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(ProcessGroup::pid)
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Starts it, unless it is running, and does not wait for it.
    pub fn start(&mut self) -> Result<(), CtdbError> {
        if self.is_running() {
            return Ok(());
        }
        self.kill()?;
        let log = self.log_file();
        let output = fs::File::options().create(true).append(true).open(&log).map_err(prepare(&log))?;
        let errors = output.try_clone().map_err(prepare(&log))?;
        let mut command = self.command(&self.ctdbd);
        command.arg("--interactive").stdout(output).stderr(errors);
        self.process = Some(ProcessGroup::spawn(command)?);
        Ok(())
    }

    /// Waits until it has recovered, is healthy itself, and says the same of exactly these nodes.
    pub async fn wait_until_healthy(&mut self, nodes: &[usize]) -> Result<CtdbStatus, CtdbError> {
        let deadline = Instant::now() + HEALTHY_TIMEOUT;
        loop {
            let text = self.ask("status").await;
            let status = parse_status(&text);
            let problem = match status {
                Some(status) if status.recovered && healthy(&status) == nodes => return Ok(status),
                _ if !self.is_running() => "has ended".to_owned(),
                _ if Instant::now() >= deadline => {
                    format!(
                        "does not see the nodes {nodes:?} recovered and healthy after {HEALTHY_TIMEOUT:?}"
                    )
                }
                _ => {
                    time::sleep(POLL_INTERVAL).await;
                    continue;
                }
            };
            let log = last_lines(&[&self.log_file()]);
            return Err(CtdbError::NotHealthy { pnn: self.pnn, problem, status: text, log });
        }
    }

    /// What it knows now; `None` if it does not answer.
    pub async fn status(&self) -> Option<CtdbStatus> {
        parse_status(&self.ask("status").await)
    }

    /// Whether it is running.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(ProcessGroup::is_running)
    }

    /// Kills it with all its helpers with SIGKILL at the same moment, and reaps them.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Sends the SIGKILL and does not wait. To be followed by [`Ctdbd::kill`].
    pub fn send_kill(&self) {
        self.process.iter().for_each(ProcessGroup::send_kill);
    }

    /// Stops it where it is (SIGSTOP).
    pub fn pause(&self) {
        self.process.iter().for_each(ProcessGroup::pause);
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) {
        self.process.iter().for_each(ProcessGroup::resume);
    }

    /// What `ctdb` prints when it is asked something; its complaint if it gets no answer.
    async fn ask(&self, question: &'static str) -> String {
        let mut command = self.command(&self.ctdb);
        command.arg(format!("--timelimit={QUESTION_TIMEOUT_S}")).arg(question);
        let answer = task::spawn_blocking(move || command.output()).await.expect("nothing in it panics");
        match answer {
            Ok(output) => String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            Err(err) => err.to_string(),
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let environment = [("CTDB_TEST_MODE", "yes"), ("CTDB_TEST_HELPER_BINDIR", HELPER_DIR)];
        command.envs(environment).env("CTDB_BASE", &self.base);
        command
    }

    fn log_file(&self) -> PathBuf {
        self.base.join("log")
    }
}

/// The numbers of the nodes that are healthy.
fn healthy(status: &CtdbStatus) -> Vec<usize> {
    let nodes = status.healthy.iter().enumerate();
    nodes.filter(|&(_, &healthy)| healthy).map(|(node, _)| node).collect()
}

/// What `ctdb status` prints, as far as it is of interest here; `None` if it is something else.
fn parse_status(text: &str) -> Option<CtdbStatus> {
    let after = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix)).map(str::trim);
    let state_of = |line: &str| {
        let mut columns = line.strip_prefix("pnn:")?.split_whitespace().skip(2);
        Some(columns.next()? == "OK")
    };
    Some(CtdbStatus {
        healthy: text.lines().filter_map(state_of).collect(),
        generation: after("Generation:")?.parse().ok(),
        recovered: after("Recovery mode:")?.starts_with("NORMAL"),
        leader: after("Leader:").and_then(|leader| leader.parse().ok()),
    })
}

fn prepare(path: &Path) -> impl FnOnce(io::Error) -> CtdbError {
    let path = path.to_owned();
    move |source| CtdbError::Prepare { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_whether_or_not_there_is_a_leader() {
        let text = "Number of nodes:3\n\
                    pnn:0 127.200.7.1      OK (THIS NODE)\n\
                    pnn:1 127.200.7.2      DISCONNECTED|UNHEALTHY|INACTIVE\n\
                    pnn:2 127.200.7.3      OK\n\
                    Generation:1667666202\n\
                    Size:2\n\
                    hash:0 lmaster:0\n\
                    hash:1 lmaster:2\n\
                    Recovery mode:NORMAL (0)\n\
                    Leader:2\n";
        let status = parse_status(text).unwrap();
        assert_eq!(healthy(&status), [0, 2]);
        assert_eq!(
            (status.generation, status.recovered, status.leader),
            (Some(1_667_666_202), true, Some(2))
        );

        let starting = text.replace("1667666202", "INVALID").replace("NORMAL (0)", "RECOVERY (1)");
        let status = parse_status(&starting.replace("Leader:2", "Leader:UNKNOWN")).unwrap();
        assert_eq!((status.generation, status.recovered, status.leader), (None, false, None));
        assert_eq!(parse_status("connect() failed, errno=2\nFailed to connect to CTDB daemon"), None);
    }

    #[test]
    fn a_node_behind_relays_lists_itself_where_it_listens() {
        let address = |last| Ipv4Addr::new(127, 200, 0, last);
        let addresses =
            CtdbAddresses { own: vec![address(1), address(2)], seen: vec![address(11), address(12)] };
        assert_eq!(addresses.list_of(0), "127.200.0.1\n127.200.0.12\n");
        assert_eq!(addresses.list_of(1), "127.200.0.11\n127.200.0.2\n");
    }
}
