//! The configuration: [`ClusterConfig`], on which all nodes must agree, and [`NodeConfig`], which may differ.
//!
//! One TOML file holds both. It is read once, checked as a whole ([`Config::load`] reports every problem at
//! once), and then passed to who needs it; nothing here is global.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use statedb::{Limits, Millis};

use crate::telemetry;

/// Slots into which Samba's persistent ids are divided, so that two nodes never draw the same one. A node's
/// slot is the position of its id among the cluster's ids.
const NODES_MAX: usize = 8;

/// The most opens that can be configured: at 2 KiB each they take 8 GiB, and each can have a break of its own.
const OPENS_MAX_MAX: u64 = 4_000_000;

/// The most waiting CREATEs that can be configured: at 2 KiB each they take 2 GiB.
const WAITING_MAX_MAX: u64 = 1_000_000;

/// The most locks of one open that can be configured: up to half a megabyte in a message between nodes.
const LOCKS_MAX_MAX: u64 = 16_384;

/// The longest wait for the acknowledgement of a break that can be configured. SMB clients wait for an answer for
/// some minutes at most.
const BREAK_TIMEOUT_MAX_MS: u64 = 10 * 60 * 1000;

/// The longest path that a unix socket can have: `sun_path` without the zero at its end.
const SOCKET_PATH_LEN_MAX: usize = 107;

/// Everything a node is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What all nodes agree on.
    pub cluster: ClusterConfig,
    /// What this node is.
    pub node: NodeConfig,
    /// The Samba beside this node. Without it the node votes and answers, and protects nothing of its own.
    pub samba: Option<SambaConfig>,
}

/// What all nodes must agree on. Peers compare [`ClusterConfig::fingerprint`] and refuse a stranger.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// A name of the operator's choice.
    pub name: String,
    /// Every node of the cluster.
    pub nodes: Vec<Member>,
    /// How long things may take.
    #[serde(default)]
    pub timing: Timing,
    /// How much the replicated state may hold.
    #[serde(default)]
    pub limits: LimitsConfig,
}

/// One node of the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its id, 1 or more, never given to another machine.
    pub id: u64,
    /// Where its peers and operators reach it: `host:port`.
    pub address: String,
}

/// Timing, in milliseconds. The defaults bring a handle back within a second of a node's death.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// How often the leader speaks to its followers, and each node to the leader.
    pub heartbeat_interval_ms: u64,
    /// A follower waits at least this long, beyond the leader's lease, before it stands for election.
    pub election_timeout_min_ms: u64,
    /// And at most this long. Also the leader's lease: for so long after it heard from the leader a
    /// follower votes for nobody else.
    pub election_timeout_max_ms: u64,
    /// A node that has not heard from a quorum for so long stops its SMB service.
    pub self_fence_after_ms: u64,
    /// How far the clocks of two nodes may drift apart within `node_down_after_ms`.
    pub clock_skew_max_ms: u64,
    /// A node that the leader has not heard from for so long is declared down.
    pub node_down_after_ms: u64,
}

/// How much the replicated state may hold, and how long it waits for clients. See [`Limits`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Opens in the cluster.
    pub opens_max: u64,
    /// CREATEs in the cluster that wait until others have given up what they cache.
    pub waiting_max: u64,
    /// Byte-range locks of one open.
    pub locks_max: u64,
    /// How long a client may take to acknowledge a break before it is taken to have given up what it cached.
    pub break_timeout_ms: u64,
    /// The same for the oplock of a persistent open.
    pub persistent_oplock_break_timeout_ms: u64,
    /// The same for the lease of a persistent open.
    pub persistent_lease_break_timeout_ms: u64,
    /// For how long a client may ask an open to be resilient.
    pub resiliency_timeout_max_ms: u64,
}

/// What this node is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Which of the cluster's nodes.
    pub id: u64,
    /// Where to listen, if not at the node's own address in the cluster: behind a NAT, or on all interfaces.
    pub listen: Option<SocketAddr>,
    /// Where the Raft log and the stored copy of the state are kept. On a disk of its own, if there is one:
    /// every grant waits for a sync of this directory on a quorum of nodes.
    pub data_dir: PathBuf,
    /// Where an SMB server on this machine reaches its sidecar, beside the address above: a unix socket that its
    /// owner and its group may use. The socket serves SMB servers alone; peers and operators use the address.
    pub handle_socket: Option<PathBuf>,
    /// What to log, as `tracing` writes filters: `info`, `node=debug`.
    #[serde(default = "default_log")]
    pub log: String,
}

/// The Samba beside this node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SambaConfig {
    /// Where the shim finds this sidecar. `smbd` is started with it in `HOLDFAST_RUN_DIR`. Not on a disk: the
    /// shared page in it is read by every `smbd` process many times a second.
    pub run_dir: PathBuf,
    /// The configuration that this node's `smbd` runs with.
    pub smb_conf: PathBuf,
    /// The `smbd` itself, to learn its version.
    #[serde(default = "default_smbd")]
    pub smbd: PathBuf,
    /// Samba's `testparm`, of the same version: it tells what is in `smb_conf`. Without a directory it is looked for in PATH.
    #[serde(default = "default_testparm")]
    pub testparm: PathBuf,
    /// Shares that Holdfast leaves alone, beside `IPC$`.
    #[serde(default)]
    pub unprotected_shares: Vec<String>,
}

fn default_log() -> String {
    "info".to_owned()
}

fn default_smbd() -> PathBuf {
    "/usr/sbin/smbd".into()
}

fn default_testparm() -> PathBuf {
    "testparm".into()
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_interval_ms: 40,
            election_timeout_min_ms: 80,
            election_timeout_max_ms: 120,
            self_fence_after_ms: 530,
            clock_skew_max_ms: 50,
            node_down_after_ms: 600,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let limits = Limits::DEFAULT;
        Self {
            opens_max: limits.opens_max,
            waiting_max: limits.waiting_max,
            locks_max: limits.locks_max,
            break_timeout_ms: limits.break_timeout.0,
            persistent_oplock_break_timeout_ms: limits.persistent_oplock_break_timeout.0,
            persistent_lease_break_timeout_ms: limits.persistent_lease_break_timeout.0,
            resiliency_timeout_max_ms: limits.resiliency_timeout_max.0,
        }
    }
}

impl LimitsConfig {
    fn problems(&self, problems: &mut Vec<String>) {
        let Self {
            opens_max,
            waiting_max,
            locks_max,
            break_timeout_ms,
            persistent_oplock_break_timeout_ms,
            persistent_lease_break_timeout_ms,
            resiliency_timeout_max_ms,
        } = *self;
        for (name, value, max, why) in [
            ("opens_max", opens_max, OPENS_MAX_MAX, "no node has the memory for more"),
            ("waiting_max", waiting_max, WAITING_MAX_MAX, "no node has the memory for more"),
            ("locks_max", locks_max, LOCKS_MAX_MAX, "a message between nodes holds no more"),
            ("break_timeout_ms", break_timeout_ms, BREAK_TIMEOUT_MAX_MS, "those who wait would give up"),
            (
                "persistent_oplock_break_timeout_ms",
                persistent_oplock_break_timeout_ms,
                BREAK_TIMEOUT_MAX_MS,
                "those who wait would give up",
            ),
            (
                "persistent_lease_break_timeout_ms",
                persistent_lease_break_timeout_ms,
                BREAK_TIMEOUT_MAX_MS,
                "those who wait would give up",
            ),
            (
                "resiliency_timeout_max_ms",
                resiliency_timeout_max_ms,
                Limits::DEFAULT.durable_open_timeout_max.0,
                "no open outlives its connection for longer",
            ),
        ] {
            if !(1..=max).contains(&value) {
                problems.push(format!("[cluster.limits] {name} = {value}: must be 1 to {max}; {why}"));
            }
        }
    }
}

impl Timing {
    /// How often the leader speaks to its followers, and each node to the leader.
    #[must_use]
    pub fn heartbeat_interval(&self) -> Duration {
        Duration::from_millis(self.heartbeat_interval_ms)
    }

    /// For how long after it heard from the leader a follower votes for nobody else.
    #[must_use]
    pub fn leader_lease(&self) -> Duration {
        Duration::from_millis(self.election_timeout_max_ms)
    }

    /// How long a node serves without word from a quorum.
    #[must_use]
    pub fn self_fence_after(&self) -> Duration {
        Duration::from_millis(self.self_fence_after_ms)
    }

    /// How long the leader waits for word from a node.
    #[must_use]
    pub fn node_down_after(&self) -> Duration {
        Duration::from_millis(self.node_down_after_ms)
    }

    /// How long a new leader waits for word from a node before it may declare it down.
    ///
    /// What a node last heard through the old leader was confirmed by a quorum. One member of that quorum voted
    /// for the new leader, and did so no earlier than the leader's lease after that confirmation. So the lease
    /// has already run off `node_down_after` when the new leader begins.
    #[must_use]
    pub fn node_down_after_election(&self) -> Duration {
        self.node_down_after().saturating_sub(self.leader_lease())
    }

    /// By when a node that does not answer is declared down, whoever leads: the leader's silence, an election
    /// that has to be repeated once, and the new leader's wait.
    #[must_use]
    pub fn verdict_within(&self) -> Duration {
        self.node_down_after() + 3 * self.leader_lease() + self.node_down_after_election()
    }

    fn problems(&self, problems: &mut Vec<String>) {
        let mut require = |holds: bool, what: String| {
            if !holds {
                problems.push(format!("[cluster.timing] {what}"));
            }
        };
        let Self {
            heartbeat_interval_ms: heartbeat,
            election_timeout_min_ms: election_min,
            election_timeout_max_ms: election_max,
            self_fence_after_ms: fence,
            clock_skew_max_ms: skew,
            node_down_after_ms: down,
        } = *self;
        require(heartbeat >= 5, format!("heartbeat_interval_ms = {heartbeat}: must be at least 5"));
        require(
            heartbeat.saturating_mul(2) <= election_min,
            format!(
                "2 × heartbeat_interval_ms ({heartbeat}) ≤ election_timeout_min_ms ({election_min}) does not hold: few lost heartbeats would call an election"
            ),
        );
        require(
            election_min < election_max,
            format!(
                "election_timeout_min_ms ({election_min}) < election_timeout_max_ms ({election_max}) does not hold: candidates would collide"
            ),
        );
        // The leader's lease, an election that has to be repeated once, and four heartbeats: the age of the last
        // answer, the wait until the next question, finding the new leader, and its answer.
        require(
            election_max.saturating_mul(3).saturating_add(heartbeat.saturating_mul(4)) <= fence,
            format!(
                "3 × election_timeout_max_ms ({election_max}) + 4 × heartbeat_interval_ms ({heartbeat}) ≤ self_fence_after_ms ({fence}) does not hold: the death of the leader would stop every other SMB service"
            ),
        );
        require(
            fence.saturating_add(skew) < down,
            format!(
                "self_fence_after_ms ({fence}) + clock_skew_max_ms ({skew}) < node_down_after_ms ({down}) does not hold: a node could still serve what another has reclaimed"
            ),
        );
        require(
            down <= 60_000,
            format!(
                "node_down_after_ms = {down}: must be at most 60000, or clients give up before their handle comes back"
            ),
        );
    }
}

impl SambaConfig {
    fn problems(&self, problems: &mut Vec<String>) {
        let paths = [
            ("run_dir", &self.run_dir),
            ("smb_conf", &self.smb_conf),
            ("smbd", &self.smbd),
            ("testparm", &self.testparm),
        ];
        for (name, _) in paths.iter().filter(|(_, path)| path.as_os_str().is_empty()) {
            problems.push(format!("[samba] {name}: must not be empty"));
        }
        let socket = self.run_dir.join(frame::SOCKET_FILE);
        problems.extend(too_long_for_a_socket("[samba] run_dir", &self.run_dir, &socket));
    }
}

/// What is wrong with a setting that puts a unix socket at `socket`, if its path is too long.
fn too_long_for_a_socket(setting: &str, value: &Path, socket: &Path) -> Option<String> {
    let len = socket.as_os_str().len();
    (len > SOCKET_PATH_LEN_MAX).then(|| {
        format!("{setting} = {value:?}: the path of the socket has {len} bytes, more than {SOCKET_PATH_LEN_MAX}; choose a shorter one")
    })
}

/// Whether an address can be one: a port, and before it a name, an IPv4 address, or an IPv6 address in brackets.
pub(crate) fn is_host_and_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// A configuration that cannot be used, and every reason why.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, or has fields of the wrong type or name.
    #[error("the configuration {path} cannot be understood")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// It is understood and wrong.
    #[error("the configuration {path} is not usable:\n{problems}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// One problem a line.
        problems: Problems,
    },
}

/// A list of problems, one a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.0.iter().enumerate() {
            let newline = if position == 0 { "" } else { "\n" };
            write!(f, "{newline}  - {problem}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or understood, or with every problem that [`Config::problems`] finds.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let problems = config.problems();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Invalid { path: path.to_owned(), problems: Problems(problems) })
        }
    }

    /// Everything that is wrong with the values; empty for a usable configuration.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let nodes = &self.cluster.nodes;
        if self.cluster.name.is_empty() || self.cluster.name.len() > 64 {
            problems.push("[cluster] name: must have 1 to 64 bytes".to_owned());
        }
        if !matches!(nodes.len(), 1 | 3 | 5 | 7) {
            problems.push(format!(
                "[cluster] nodes: {} given; 3 or 5 survive the loss of 1 or 2 of them (1 and 7 work too, an even number adds nothing)",
                nodes.len()
            ));
        }
        let mut seen = BTreeMap::new();
        for member in nodes {
            if member.id == 0 {
                problems.push(format!("[cluster] nodes: {} has id 0; ids begin at 1", member.address));
            }
            if let Some(other) = seen.insert(member.id, &member.address) {
                problems.push(format!(
                    "[cluster] nodes: id {} is given to {other} and to {}",
                    member.id, member.address
                ));
            }
            if !is_host_and_port(&member.address) {
                problems.push(format!(
                    "[cluster] nodes: the address of node {}, {:?}, is not host:port",
                    member.id, member.address
                ));
            }
        }
        let addresses: std::collections::BTreeSet<_> = nodes.iter().map(|member| &member.address).collect();
        if addresses.len() < nodes.len() {
            problems.push("[cluster] nodes: two of them have the same address".to_owned());
        }
        self.cluster.timing.problems(&mut problems);
        self.cluster.limits.problems(&mut problems);
        if !nodes.iter().any(|member| member.id == self.node.id) {
            problems.push(format!("[node] id = {}: the cluster has no such node", self.node.id));
        }
        if self.node.data_dir.as_os_str().is_empty() {
            problems.push("[node] data_dir: must not be empty".to_owned());
        }
        if let Some(path) = &self.node.handle_socket {
            if path.as_os_str().is_empty() {
                problems.push("[node] handle_socket: must not be empty; leave it away for none".to_owned());
            }
            problems.extend(too_long_for_a_socket("[node] handle_socket", path, path));
        }
        if let Err(error) = telemetry::filter(&self.node.log) {
            problems.push(format!("[node] log = {:?}: {error}", self.node.log));
        }
        if let Some(samba) = &self.samba {
            samba.problems(&mut problems);
        }
        problems
    }

    /// The position of this node among the cluster's ids, for [`frame`]'s partition of persistent ids.
    #[must_use]
    pub fn slot(&self) -> u8 {
        let smaller = self.cluster.nodes.iter().filter(|member| member.id < self.node.id).count();
        debug_assert!(smaller < NODES_MAX, "problems() admits at most 7 nodes");
        u8::try_from(smaller).unwrap_or(u8::MAX)
    }

    /// This node's entry among the cluster's.
    #[must_use]
    pub fn member(&self) -> Option<&Member> {
        self.cluster.nodes.iter().find(|member| member.id == self.node.id)
    }
}

impl ClusterConfig {
    /// A number that two nodes share if they were told the same, and hardly otherwise: crc32 of everything in
    /// `[cluster]`, in an order of its own, so that a reordered file is no stranger.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut members: Vec<_> = self.nodes.iter().map(|member| (member.id, &member.address)).collect();
        members.sort();
        let text = format!("1|{}|{members:?}|{:?}|{:?}", self.name, self.timing, self.limits);
        u64::from(crc32fast::hash(text.as_bytes()))
    }

    /// The bounds of the replicated state.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let LimitsConfig {
            opens_max,
            waiting_max,
            locks_max,
            break_timeout_ms,
            persistent_oplock_break_timeout_ms,
            persistent_lease_break_timeout_ms,
            resiliency_timeout_max_ms,
        } = self.limits;
        Limits {
            opens_max,
            waiting_max,
            locks_max,
            break_timeout: Millis(break_timeout_ms),
            persistent_oplock_break_timeout: Millis(persistent_oplock_break_timeout_ms),
            persistent_lease_break_timeout: Millis(persistent_lease_break_timeout_ms),
            resiliency_timeout_max: Millis(resiliency_timeout_max_ms),
            ..Limits::DEFAULT
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(edit: impl FnOnce(&mut Config)) -> Vec<String> {
        let text = r#"
            [cluster]
            name = "files"
            nodes = [
                { id = 1, address = "127.0.0.1:7401" },
                { id = 2, address = "127.0.0.1:7402" },
                { id = 3, address = "127.0.0.1:7403" },
            ]
            [node]
            id = 2
            data_dir = "/var/lib/holdfast"
        "#;
        let mut config = toml::from_str(text).expect("the sample is well formed");
        edit(&mut config);
        config.problems()
    }

    #[test]
    fn the_defaults_are_safe() {
        assert_eq!(config(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn a_fence_that_comes_after_the_verdict_is_refused_with_the_inequality() {
        let problems = config(|config| config.cluster.timing.self_fence_after_ms = 550);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0]
                .contains("self_fence_after_ms (550) + clock_skew_max_ms (50) < node_down_after_ms (600)")
        );
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let problems = config(|config| {
            config.node.id = 9;
            config.cluster.nodes[0].id = 2;
            config.cluster.nodes[1].address = "nowhere".to_owned();
            config.cluster.timing.heartbeat_interval_ms = 100;
        });
        for expected in
            ["id = 9", "id 2 is given to", "\"nowhere\", is not host:port", "2 × heartbeat_interval_ms"]
        {
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
        }
    }

    #[test]
    fn limits_that_make_no_sense_are_refused_with_their_range() {
        let problems = config(|config| {
            config.cluster.limits = LimitsConfig {
                opens_max: 0,
                waiting_max: 0,
                locks_max: 16_385,
                break_timeout_ms: 0,
                persistent_oplock_break_timeout_ms: 600_001,
                persistent_lease_break_timeout_ms: u64::MAX,
                resiliency_timeout_max_ms: 86_400_001,
            }
        });
        for expected in [
            "opens_max = 0: must be 1 to",
            "waiting_max = 0: must be 1 to",
            "locks_max = 16385: must be 1 to 16384",
            " break_timeout_ms = 0: must be 1 to 600000",
            "persistent_oplock_break_timeout_ms = 600001: must be",
            "persistent_lease_break_timeout_ms = 18446744073709551615: must be",
            "resiliency_timeout_max_ms = 86400001: must be 1 to 86400000",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
        }
        assert_eq!(problems.len(), 7);
    }

    #[test]
    fn the_limits_of_the_state_are_those_of_the_file() {
        let limits = |text: &str| -> Limits {
            let nodes = "[cluster]\nname = \"files\"\nnodes = []\n";
            let node = "[node]\nid = 1\ndata_dir = \"/d\"\n";
            let config: Config =
                toml::from_str(&format!("{nodes}[cluster.limits]\n{text}{node}")).expect("well formed");
            config.cluster.limits()
        };
        assert_eq!(limits(""), Limits::DEFAULT);
        let text = "opens_max = 1\nwaiting_max = 2\nlocks_max = 3\nbreak_timeout_ms = 4\n\
                    persistent_oplock_break_timeout_ms = 5\npersistent_lease_break_timeout_ms = 6\n\
                    resiliency_timeout_max_ms = 7\n";
        let expected = Limits {
            opens_max: 1,
            waiting_max: 2,
            locks_max: 3,
            break_timeout: Millis(4),
            persistent_oplock_break_timeout: Millis(5),
            persistent_lease_break_timeout: Millis(6),
            resiliency_timeout_max: Millis(7),
            ..Limits::DEFAULT
        };
        assert_eq!(limits(text), expected);
    }

    #[test]
    fn a_socket_that_could_have_no_name_is_refused() {
        let problems = config(|config| config.node.handle_socket = Some("".into()));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("[node] handle_socket: must not be empty"));
        let problems = config(|config| config.node.handle_socket = Some("/run/long".repeat(12).into()));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("108 bytes, more than 107"), "{problems:?}");
    }

    #[test]
    fn the_fingerprint_tells_clusters_apart_but_not_nodes() {
        let load = |text: &str| -> Config { toml::from_str(text).expect("well formed") };
        let sample = |id: u64, name: &str, nodes: &str| {
            load(&format!(
                "[cluster]\nname = \"{name}\"\nnodes = [{nodes}]\n[node]\nid = {id}\ndata_dir = \"/d\""
            ))
            .cluster
            .fingerprint()
        };
        let (a, b) = (r#"{ id = 1, address = "a:1" }"#, r#"{ id = 2, address = "b:1" }"#);
        let (ab, ba) = (format!("{a}, {b}"), format!("{b}, {a}"));
        assert_eq!(sample(1, "files", &ab), sample(2, "files", &ba));
        assert_ne!(sample(1, "files", &ab), sample(1, "other", &ab));
        let mut other =
            load(&format!("[cluster]\nname = \"files\"\nnodes = [{ab}]\n[node]\nid = 1\ndata_dir = \"/d\""));
        other.cluster.limits.break_timeout_ms += 1;
        assert_ne!(sample(1, "files", &ab), other.cluster.fingerprint(), "replicas would decide otherwise");
    }
}
