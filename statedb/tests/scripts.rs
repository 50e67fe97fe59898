//! Golden scripts: each file in `testscripts` tells a scenario, with what every command answered and changed.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p holdfast-statedb --test scripts` rewrites the expected half; review
//! reads the difference. After every command the invariants are checked, and a second replica that is
//! replaced by a restored snapshot of itself each time must still be equal.
//!
//! ```text
//! limits [opens=N] [open_bytes=N] [timeout=T] [shares=N] [outstanding=N]      before anything else
//! register-node NODE instance=NAME [arbiter=cluster|smb-server|smb-cluster]
//! node-down OWNER
//! expire-opens
//! grant OWNER open=ID [DESCRIPTION]
//! update OWNER open=ID [DESCRIPTION]        what is not named stays as it is
//! disconnect|close OWNER open=ID
//! reclaim OWNER open=ID [create_guid=NAME]
//! serve-share|release-share OWNER share=NAME
//! show                                      all nodes, shares and opens
//! blank                                     an entry of Raft's own
//!
//! OWNER        n1, the newest incarnation of node 1, or n1.2, its second one
//! DESCRIPTION  create_guid= client_guid= user= share= file= oplock= oplock_state= durability= timeout=
//!              locks=N, bytes=N of image
//! any command  at=T, when it was proposed (else when the one before it was); term=N
//! a request    sequence=N (else the next), first_outstanding=N (else its own: all before it are answered)
//! ```

mod common;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use goldenscript::ArgumentConsumer;
use statedb::{
    Arbiter, ByteRangeLock, Changes, ClientGuid, Command, CreateGuid, Durability, DurableFileId, FileKey,
    Incarnation, Instance, Lease, LeaseEpoch, LeaseKey, LeaseState, LeaseVersion, Limits, Millis, NodeId,
    OpenDescription, Oplock, OplockState, Outcome, Owner, Proposer, Reclaim, Request, ShareName, Sid, State,
    Timestamp,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

macro_rules! scripts {
    ($($name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() -> std::io::Result<()> {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts").join(stringify!($name));
                goldenscript::run(&mut Runner::new(), path)
            }
        )+

        #[test]
        fn every_script_is_run() -> std::io::Result<()> {
            let mut files = Vec::new();
            for entry in Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts").read_dir()? {
                files.push(entry?.file_name());
            }
            files.sort();
            assert_eq!(files, [$(stringify!($name)),+], "testscripts, and the list in {}", file!());
            Ok(())
        }
    };
}

scripts! {
    break_in_flight,
    clean_loss_then_crash,
    cluster_time,
    exactly_once,
    expiry,
    fencing,
    graceful_move,
    grant_and_close,
    identity,
    levels_that_do_not_survive,
    limits,
    node_down_and_reclaim,
    purge_of_an_orphan,
    restarted_sidecar,
    same_persistent_id,
    serving_node,
    worked_log,
}

struct Runner {
    state: State,
    /// Applies the same, and is replaced by a restored snapshot of itself after every command.
    restored: State,
    at: Timestamp,
    term: u64,
    next_sequence: BTreeMap<Owner, u64>,
    /// Inode numbers by the names that the script uses.
    files: BTreeMap<String, u64>,
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, step: &goldenscript::Command, _: &goldenscript::Context) -> Result<String> {
        let mut args = step.consume_args();
        let output = match step.name.as_str() {
            "limits" => self.set_limits(&mut args)?,
            "show" => self.show()?,
            "blank" => self.skip(),
            _ => {
                self.at = take(&mut args, "at", length)?.map_or(self.at, |at| Timestamp(at.0));
                self.term = take(&mut args, "term", number)?.unwrap_or(self.term);
                let command = self.command(&step.name, &mut args)?;
                self.apply(&command)?
            }
        };
        args.reject_next()?;
        Ok(output)
    }
}

impl Runner {
    fn new() -> Self {
        let state = State::new(Limits::DEFAULT);
        Self {
            restored: state.clone(),
            state,
            at: Timestamp::default(),
            term: 1,
            next_sequence: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }

    fn set_limits(&mut self, args: &mut ArgumentConsumer) -> Result<String> {
        assert!(self.state.applied().is_none(), "limits come first: they are the same for the whole log");
        let limits = Limits::DEFAULT;
        self.state = State::new(Limits {
            opens_max: take(args, "opens", number)?.unwrap_or(limits.opens_max),
            open_bytes_max: take(args, "open_bytes", number)?.unwrap_or(limits.open_bytes_max),
            durable_open_timeout_max: take(args, "timeout", length)?
                .unwrap_or(limits.durable_open_timeout_max),
            shares_max: take(args, "shares", number)?.unwrap_or(limits.shares_max),
            outstanding_max: take(args, "outstanding", number)?.unwrap_or(limits.outstanding_max),
            ..limits
        });
        self.restored = self.state.clone();
        Ok(String::new())
    }

    fn skip(&mut self) -> String {
        let log_id = common::next_log_id(&self.state, self.term);
        self.state.skip(log_id);
        self.restored.skip(log_id);
        String::new()
    }

    fn command(&mut self, name: &str, args: &mut ArgumentConsumer) -> Result<Command> {
        Ok(match name {
            "register-node" => Command::RegisterNode {
                node: node_id(args.next_pos().ok_or("which node?")?)?,
                instance: Instance(bytes16(&required(args, "instance", text)?)),
                arbiter: take(args, "arbiter", arbiter)?.unwrap_or(Arbiter::SmbServer),
            },
            "node-down" => {
                let Owner { node, incarnation } = self.owner(args)?;
                Command::NodeDown { node, incarnation }
            }
            "expire-opens" => Command::ExpireOpens,
            _ => {
                let proposer = self.proposer(args)?;
                Command::FromSmbNode { proposer, request: self.request(name, args)? }
            }
        })
    }

    fn request(&mut self, name: &str, args: &mut ArgumentConsumer) -> Result<Request> {
        let share = |args: &mut ArgumentConsumer| required(args, "share", |share| Ok(ShareName::new(share)));
        Ok(match name {
            "grant" => {
                let id = open_id(args)?;
                Request::Grant(Box::new(self.describe(common::description(id.0), args)?))
            }
            "update" => {
                let id = open_id(args)?;
                let known = self.state.open(id).map(|open| open.description.clone());
                Request::Update(vec![
                    self.describe(known.unwrap_or_else(|| common::description(id.0)), args)?,
                ])
            }
            "disconnect" => Request::Disconnect(open_id(args)?),
            "close" => Request::Close(open_id(args)?),
            "reclaim" => {
                let durable_file_id = open_id(args)?;
                let made_with = common::description(durable_file_id.0).create_guid;
                let create_guid = take(args, "create_guid", create_guid)?.unwrap_or(made_with);
                Request::Reclaim(Reclaim { durable_file_id, create_guid })
            }
            "serve-share" => Request::ServeShare(share(args)?),
            "release-share" => Request::ReleaseShare(share(args)?),
            _ => return Err(format!("there is no command {name}").into()),
        })
    }

    fn owner(&self, args: &mut ArgumentConsumer) -> Result<Owner> {
        let owner = args.next_pos().ok_or("whose command is it?")?;
        if let Some((node, incarnation)) = owner.split_once('.') {
            return Ok(Owner { node: node_id(node)?, incarnation: Incarnation(incarnation.parse()?) });
        }
        let node = node_id(owner)?;
        let newest = self.state.node(node).map_or(Incarnation(1), |node| node.incarnation);
        Ok(Owner { node, incarnation: newest })
    }

    fn proposer(&mut self, args: &mut ArgumentConsumer) -> Result<Proposer> {
        let owner = self.owner(args)?;
        let next = self.next_sequence.entry(owner).or_default();
        let sequence = take(args, "sequence", number)?.unwrap_or(*next);
        *next = (*next).max(sequence + 1);
        let first_outstanding = take(args, "first_outstanding", number)?.unwrap_or(sequence);
        Ok(Proposer { owner, sequence, first_outstanding })
    }

    fn describe(&mut self, base: OpenDescription, args: &mut ArgumentConsumer) -> Result<OpenDescription> {
        let bytes = take(args, "bytes", number)?;
        Ok(OpenDescription {
            create_guid: take(args, "create_guid", create_guid)?.unwrap_or(base.create_guid),
            client_guid: take(args, "client_guid", |name| Ok(ClientGuid(bytes16(name))))?
                .unwrap_or(base.client_guid),
            durable_owner: take(args, "user", |user| Ok(Sid(user.into())))?.unwrap_or(base.durable_owner),
            share: take(args, "share", |share| Ok(ShareName::new(share)))?.unwrap_or(base.share),
            file: take(args, "file", text)?.map_or(base.file, |name| self.file(name)),
            oplock: take(args, "oplock", oplock)?.unwrap_or(base.oplock),
            oplock_state: take(args, "oplock_state", oplock_state)?.unwrap_or(base.oplock_state),
            durability: take(args, "durability", durability)?.unwrap_or(base.durability),
            durable_open_timeout: take(args, "timeout", length)?.unwrap_or(base.durable_open_timeout),
            byte_range_locks: take(args, "locks", number)?.map_or(base.byte_range_locks, locks),
            image: bytes.map_or(base.image, |bytes| (0..bytes).map(|_| 0x5A).collect()),
            ..base
        })
    }

    /// The file of this name: made at its first use.
    fn file(&mut self, name: String) -> FileKey {
        let next = self.files.len() as u64 + 1;
        FileKey { device: 1, inode: *self.files.entry(name).or_insert(next), extid: 0 }
    }

    fn apply(&mut self, command: &Command) -> Result<String> {
        let before = self.state.clone();
        let log_id = common::next_log_id(&before, self.term);
        let outcome = self.state.apply(log_id, self.at, command);

        self.state.check_invariants();
        self.state.check_step_from(&before);
        assert_eq!(
            self.restored.apply(log_id, self.at, command),
            outcome,
            "a restored replica answers alike"
        );
        self.restored = common::restored(&self.restored);
        assert_eq!(self.restored, self.state, "a restored replica is equal");

        if let (Command::RegisterNode { node, .. }, Outcome::Registered { incarnation, first_sequence }) =
            (command, &outcome)
        {
            self.next_sequence.insert(Owner { node: *node, incarnation: *incarnation }, *first_sequence);
        }
        let mut output = String::new();
        match &outcome {
            Outcome::Rejected(rejection) => writeln!(output, "{outcome} ({:#010X})", rejection.ntstatus())?,
            _ => writeln!(output, "{outcome}")?,
        }
        let changes = self.state.take_changes();
        self.show_changes(&before, &changes, &mut output)?;
        Ok(output)
    }

    fn show_changes(&self, before: &State, changes: &Changes, output: &mut String) -> Result<()> {
        for node in &changes.nodes {
            let summary = |state: &State| state.node(*node).map(|node| (node.incarnation, node.state));
            // That an answer was noted is of no interest here.
            if summary(before) != summary(&self.state) {
                self.show_node(*node, output)?;
            }
        }
        for share in &changes.shares {
            self.show_share(share, output)?;
        }
        for open in &changes.opens {
            self.show_open(*open, output)?;
        }
        Ok(())
    }

    fn show(&self) -> Result<String> {
        let mut output = String::new();
        self.state.nodes().try_for_each(|(node, _)| self.show_node(node, &mut output))?;
        self.state.shares().try_for_each(|(share, _)| self.show_share(share, &mut output))?;
        let mut opens = self.state.opens().map(|open| open.description.durable_file_id);
        opens.try_for_each(|open| self.show_open(open, &mut output))?;
        writeln!(output, "now {}", self.state.now())?;
        Ok(output)
    }

    fn show_node(&self, id: NodeId, output: &mut String) -> Result<()> {
        let node = self.state.node(id).ok_or("nodes are never forgotten")?;
        Ok(writeln!(output, "node {id}.{} {}", node.incarnation, node.state)?)
    }

    fn show_share(&self, share: &ShareName, output: &mut String) -> Result<()> {
        match self.state.serving_node(share) {
            Some(serving) => writeln!(output, "share {share} served by {}", serving.owner)?,
            None => writeln!(output, "share {share} served by nobody")?,
        }
        Ok(())
    }

    fn show_open(&self, id: DurableFileId, output: &mut String) -> Result<()> {
        let Some(open) = self.state.open(id) else { return Ok(writeln!(output, "open {id} gone")?) };
        let description = &open.description;
        write!(output, "open {id} {} oplock={}", open.state, description.oplock)?;
        if description.oplock_state != OplockState::Held {
            write!(output, " oplock_state={}", description.oplock_state)?;
        }
        if !description.byte_range_locks.is_empty() {
            write!(output, " locks={}", description.byte_range_locks.len())?;
        }
        Ok(writeln!(output)?)
    }
}

fn take<T>(
    args: &mut ArgumentConsumer,
    key: &str,
    parse: impl FnOnce(&str) -> Result<T>,
) -> Result<Option<T>> {
    args.take_key(key).map(parse).transpose()
}

fn required<T>(args: &mut ArgumentConsumer, key: &str, parse: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    take(args, key, parse)?.ok_or_else(|| format!("{key}= is missing").into())
}

fn number(value: &str) -> Result<u64> {
    Ok(value.parse()?)
}

fn text(value: &str) -> Result<String> {
    Ok(value.to_owned())
}

fn length(value: &str) -> Result<Millis> {
    if let Some(millis) = value.strip_suffix("ms") {
        return Ok(Millis(millis.parse()?));
    }
    let seconds: u64 = value.strip_suffix('s').ok_or("a time is 10s or 1500ms")?.parse()?;
    Ok(Millis(seconds * 1000))
}

fn node_id(value: &str) -> Result<NodeId> {
    Ok(NodeId(value.strip_prefix('n').ok_or("a node is n1")?.parse()?))
}

fn open_id(args: &mut ArgumentConsumer) -> Result<DurableFileId> {
    required(args, "open", |id| Ok(DurableFileId(id.parse()?)))
}

/// A short name, as 16 bytes.
fn bytes16(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

fn create_guid(name: &str) -> Result<CreateGuid> {
    Ok(CreateGuid(bytes16(name)))
}

fn oplock(value: &str) -> Result<Oplock> {
    Ok(match value {
        "none" => Oplock::None,
        "level2" => Oplock::LevelII,
        "exclusive" => Oplock::Exclusive,
        "batch" => Oplock::Batch,
        letters => {
            let mut state = 0;
            for letter in letters.chars() {
                state |= match letter {
                    'R' => LeaseState::READ,
                    'W' => LeaseState::WRITE,
                    'H' => LeaseState::HANDLE,
                    _ => return Err(format!("{value} is neither an oplock level nor a lease state").into()),
                };
            }
            Oplock::Lease(Lease {
                key: LeaseKey([0x33; 16]),
                state: LeaseState(state),
                epoch: LeaseEpoch(1),
                version: LeaseVersion::V2,
                parent: None,
            })
        }
    })
}

fn arbiter(value: &str) -> Result<Arbiter> {
    [Arbiter::Cluster, Arbiter::SmbServer, Arbiter::SmbCluster]
        .into_iter()
        .find(|arbiter| arbiter.to_string() == value)
        .ok_or_else(|| format!("there is no arbiter {value}").into())
}

fn oplock_state(value: &str) -> Result<OplockState> {
    match value {
        "held" => Ok(OplockState::Held),
        "breaking" => Ok(OplockState::Breaking),
        _ => Err("oplock_state is held or breaking".into()),
    }
}

fn durability(value: &str) -> Result<Durability> {
    [Durability::DurableV1, Durability::DurableV2, Durability::Resilient, Durability::Persistent]
        .into_iter()
        .find(|durability| durability.to_string() == value)
        .ok_or_else(|| format!("there is no durability {value}").into())
}

fn locks(count: u64) -> Vec<ByteRangeLock> {
    (0..count).map(|lock| ByteRangeLock { offset: lock * 10, length: 10, exclusive: true }).collect()
}
