//! Golden scripts: each file in `testscripts` tells scenarios, with what every command answered and changed.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p holdfast-statedb --test scripts` rewrites the expected half; review
//! reads the difference. After every command the invariants are checked, and a second replica that is
//! replaced by a restored snapshot of itself each time must still be equal.
//!
//! ```text
//! reset                                     a new cluster; nodes n1 and n2 let it decide between opens
//! limits [opens=N] [open_bytes=N] [timeout=T] [shares=N] [outstanding=N]      before anything else
//! register-node NODE instance=NAME [arbiter=cluster|smb-server|smb-cluster]
//! node-down OWNER
//! expire-opens
//! show                                      all nodes, shares and opens
//! inspect open=ID                           everything about one open
//! blank                                     an entry of Raft's own
//!
//! What an SMB server asks for, if the cluster decides:
//!
//! create OWNER [open=ID] [path=a] [client=c1] [session=1] [user=SID] [dialect=3.1.1] [OPLOCK] [CONTEXTS] [replay]
//!     [access=LETTERS|stat] [sharing=LETTERS|none] [share=data] [ca] [ca-timeout=T] [scale-out] [directory]
//!     [in=DIRECTORY] [delete-on-close] [action=opened] [app=NAME [version=N.N]] [allocation=N] [bytes=N]
//!     [may-not-read] [no-persistent-handles]
//! cancel OWNER of=SEQUENCE
//! ack-oplock-break OWNER open=ID level=LEVEL
//! ack-lease-break OWNER client=NAME [key=k1] state=STATE
//! lock OWNER open=ID range=OFFSET/LENGTH [kind=exclusive|shared|unlock] [index=N number=N] [multichannel]
//! write|set-metadata|rename|set-delete-pending OWNER open=ID [to=PATH] [in=DIRECTORY] [pending=true]
//! note OWNER open=ID [used] [position=N] [bytes=N]
//! request-resiliency OWNER open=ID timeout=T
//! end-session OWNER session=N
//! replace-session OWNER previous=N [user=SID]
//! end-tree-connect OWNER session=N share=NAME
//! file-deleted OWNER file=NAME
//!
//! What it reports, if it decides itself:
//!
//! grant OWNER open=ID [DESCRIPTION]
//! update OWNER open=ID [DESCRIPTION]        what is not named stays as it is
//! disconnect|close OWNER open=ID
//! reclaim OWNER open=ID [create_guid=NAME]
//! serve-share|release-share OWNER share=NAME
//!
//! OWNER        n1, the newest incarnation of node 1, or n1.2, its second one
//! OPLOCK       oplock=LEVEL, or lease=STATE [key=k1] [epoch=N] [parent=KEY] [v1]
//! CONTEXTS     [DHnQ] [DHnC=ID] [DH2Q=GUID [timeout=T]] [DH2C=ID/GUID] [persistent]
//! LETTERS      of r, w and d: FILE_READ_DATA or FILE_SHARE_READ, and so on
//! DESCRIPTION  create_guid= client_guid= user= share= file= oplock= oplock_state= durability= timeout=
//!              locks=N, bytes=N of image; [delete-on-close]
//! any command  at=T, when it was proposed (else when the one before it was); term=N
//! a request    sequence=N (else the next), first_outstanding=N (else its own: all before it are answered)
//! ```
//!
//! Identities of 16 bytes are short names here. The output shows them so, too.

#[path = "../common/mod.rs"]
mod common;

mod arguments;
mod requests;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use statedb::{
    Arbiter, Changes, Command, CreateGuid, DurableFileId, EventKind, Incarnation, Instance, Limits, NodeId,
    OplockState, Outcome, Owner, Proposer, ShareName, State, Timestamp,
};

use arguments::{Arguments, bytes16, length, node_id, number, open_id, text};
use requests::Files;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A test for every script. Scripts of a subfolder are named after a colon.
macro_rules! scripts {
    ($($name:ident),+ $(,)? ; $folder:ident: $($inner:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() -> std::io::Result<()> {
                run(stringify!($name))
            }
        )+

        /// The scripts of the subfolder.
        mod $folder {
            $(
                #[test]
                fn $inner() -> std::io::Result<()> {
                    super::run(concat!(stringify!($folder), "/", stringify!($inner)))
                }
            )+
        }

        #[test]
        fn every_script_is_run() -> std::io::Result<()> {
            let mut listed = vec![$(stringify!($name).to_owned()),+];
            listed.extend([$(concat!(stringify!($folder), "/", stringify!($inner)).to_owned()),+]);
            listed.sort();
            assert_eq!(scripts_below(&testscripts())?, listed, "testscripts, and the list in {}", file!());
            Ok(())
        }
    };
}

scripts! {
    arbiters,
    break_in_flight,
    clean_loss_then_crash,
    cluster_time,
    deletion_after_a_death,
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
    records_in_common,
    restarted_sidecar,
    same_persistent_id,
    serving_node,
    worked_log;

    rows:
    app_instance,
    breaks,
    create_replay,
    delete_on_close,
    directories,
    durable_v1,
    durable_v2,
    excluding_contexts,
    lease_epoch,
    lock_replay,
    loss,
    not_looked_at,
    others_and_durable,
    others_and_persistent,
    persistent,
    reconnect_v1,
    reconnect_v2,
    reconnected,
    remembered,
    resilient,
    timers,
}

fn testscripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts")
}

fn run(script: &str) -> std::io::Result<()> {
    goldenscript::run(&mut Runner::new(), testscripts().join(script))
}

/// The names of all scripts, with their subfolder.
fn scripts_below(directory: &Path) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(scripts_below(&path)?);
        } else if path.extension().is_none() {
            let name = path.strip_prefix(testscripts()).expect("it is below that");
            found.push(name.display().to_string());
        }
    }
    found.sort();
    Ok(found)
}

struct Runner {
    state: State,
    /// Applies the same, and is replaced by a restored snapshot of itself after every command.
    restored: State,
    at: Timestamp,
    term: u64,
    next_sequence: BTreeMap<Owner, u64>,
    files: Files,
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, step: &goldenscript::Command, _: &goldenscript::Context) -> Result<String> {
        let mut args = Arguments::new(step);
        let output = match step.name.as_str() {
            "reset" => self.reset()?,
            "limits" => self.set_limits(&mut args)?,
            "show" => self.show()?,
            "inspect" => self.inspect(args.required("open", open_id)?)?,
            "blank" => self.skip(),
            _ => {
                self.at = args.take("at", length)?.map_or(self.at, |at| Timestamp(at.0));
                self.term = args.take("term", number)?.unwrap_or(self.term);
                let command = self.command(&step.name, &mut args)?;
                self.apply(&command)?
            }
        };
        args.finish()?;
        Ok(short_names(&output))
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
            files: Files::default(),
        }
    }

    fn reset(&mut self) -> Result<String> {
        *self = Self::new();
        for node in [NodeId(1), NodeId(2)] {
            let instance = Instance(bytes16("a"));
            self.apply(&Command::RegisterNode { node, instance, arbiter: Arbiter::Cluster })?;
        }
        Ok(String::new())
    }

    fn set_limits(&mut self, args: &mut Arguments<'_>) -> Result<String> {
        assert!(self.state.applied().is_none(), "limits come first: they are the same for the whole log");
        let limits = Limits::DEFAULT;
        self.state = State::new(Limits {
            opens_max: args.take("opens", number)?.unwrap_or(limits.opens_max),
            open_bytes_max: args.take("open_bytes", number)?.unwrap_or(limits.open_bytes_max),
            durable_open_timeout_max: args
                .take("timeout", length)?
                .unwrap_or(limits.durable_open_timeout_max),
            shares_max: args.take("shares", number)?.unwrap_or(limits.shares_max),
            outstanding_max: args.take("outstanding", number)?.unwrap_or(limits.outstanding_max),
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

    fn command(&mut self, name: &str, args: &mut Arguments<'_>) -> Result<Command> {
        Ok(match name {
            "register-node" => Command::RegisterNode {
                node: node_id(args.next_word("the node")?)?,
                instance: Instance(bytes16(&args.required("instance", text)?)),
                arbiter: args.take("arbiter", arbiter)?.unwrap_or(Arbiter::SmbServer),
            },
            "node-down" => {
                let Owner { node, incarnation } = self.owner(args)?;
                Command::NodeDown { node, incarnation }
            }
            "expire-opens" => Command::ExpireOpens,
            _ => {
                let proposer = self.proposer(args)?;
                let request = requests::request(name, args, &self.state, &mut self.files)?;
                Command::FromSmbNode { proposer, request }
            }
        })
    }

    fn owner(&self, args: &mut Arguments<'_>) -> Result<Owner> {
        let owner = args.next_word("whose command it is")?;
        if let Some((node, incarnation)) = owner.split_once('.') {
            return Ok(Owner { node: node_id(node)?, incarnation: Incarnation(incarnation.parse()?) });
        }
        let node = node_id(owner)?;
        let newest = self.state.node(node).map_or(Incarnation(1), |node| node.incarnation);
        Ok(Owner { node, incarnation: newest })
    }

    fn proposer(&mut self, args: &mut Arguments<'_>) -> Result<Proposer> {
        let owner = self.owner(args)?;
        let next = self.next_sequence.entry(owner).or_default();
        let sequence = args.take("sequence", number)?.unwrap_or(*next);
        *next = (*next).max(sequence + 1);
        let first_outstanding = args.take("first_outstanding", number)?.unwrap_or(sequence);
        Ok(Proposer { owner, sequence, first_outstanding })
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
        let events = self.state.take_events();
        assert_eq!(self.restored.take_events(), events, "a restored replica tells the same");
        self.restored = common::restored(&self.restored);
        assert_eq!(self.restored, self.state, "a restored replica is equal");

        if let (Command::RegisterNode { node, .. }, Outcome::Registered { incarnation, first_sequence }) =
            (command, &outcome)
        {
            self.next_sequence.insert(Owner { node: *node, incarnation: *incarnation }, *first_sequence);
        }
        let mut output = format!("{outcome}{}\n", status(&outcome)?);
        let changes = self.state.take_changes();
        self.show_changes(&before, &changes, &mut output)?;
        for event in events {
            writeln!(output, "{event}{}", status_of_event(&event.kind)?)?;
        }
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

    fn inspect(&self, id: DurableFileId) -> Result<String> {
        let open = self.state.open(id).ok_or_else(|| format!("there is no open {id}"))?;
        let about = &open.description;
        let mut output = String::new();
        writeln!(output, "open {id} {} durability={}", open.state, about.durability)?;
        writeln!(output, "create_guid={} client_guid={}", about.create_guid, about.client_guid)?;
        writeln!(output, "user={} timeout={}", about.durable_owner, about.durable_open_timeout)?;
        writeln!(output, "share={} path={} action={}", about.share, about.path, about.create_action)?;
        writeln!(
            output,
            "access={:#x} sharing={:#x} options={:#x}",
            about.granted_access.0, about.share_access.0, about.create_options.0
        )?;
        write!(output, "oplock={} oplock_state={}", about.oplock, about.oplock_state)?;
        if let Some(lease) = about.oplock.lease() {
            write!(output, " key={} epoch={} version={:?}", lease.key, lease.epoch.0, lease.version)?;
        }
        writeln!(output)?;
        writeln!(
            output,
            "position={} allocation={} locks={} delete_on_close={} replayable={}",
            about.position,
            about.allocation_size,
            about.byte_range_locks.len(),
            about.delete_on_close,
            about.is_replay_eligible
        )?;
        if let Some(app) = about.app_instance {
            let version = app.version.map(|version| format!(" version={}.{}", version.high, version.low));
            writeln!(output, "app={}{}", CreateGuid(app.id), version.unwrap_or_default())?;
        }
        Ok(output)
    }
}

fn arbiter(value: &str) -> Result<Arbiter> {
    [Arbiter::Cluster, Arbiter::SmbServer, Arbiter::SmbCluster]
        .into_iter()
        .find(|arbiter| arbiter.to_string() == value)
        .ok_or_else(|| format!("there is no arbiter {value}").into())
}

/// What a client is told of a refusal: the number, and its name in `SEMANTICS.md`.
fn status(outcome: &Outcome) -> Result<String> {
    let Outcome::Rejected(rejection) = outcome else { return Ok(String::new()) };
    let value = format!("{:#010X}", rejection.ntstatus());
    let semantics = include_str!("../../SEMANTICS.md");
    let cells: Vec<_> = semantics.lines().flat_map(|line| line.split('|').map(str::trim)).collect();
    let position = cells.iter().position(|cell| *cell == value);
    let position = position.ok_or_else(|| format!("SEMANTICS.md has no status {value}"))?;
    Ok(format!(" ({value} {})", cells[position - 1]))
}

fn status_of_event(event: &EventKind) -> Result<String> {
    match event {
        EventKind::RequestFinished { outcome, .. } => status(outcome),
        _ => Ok(String::new()),
    }
}

/// The output with the names that the script uses for identities of 16 bytes.
fn short_names(output: &str) -> String {
    let mut shortened = String::new();
    let mut rest = output;
    while let Some(start) = rest.find(|letter: char| letter.is_ascii_hexdigit()) {
        let digits = &rest[start..];
        let end = digits.find(|letter: char| !letter.is_ascii_hexdigit()).unwrap_or(digits.len());
        shortened += &rest[..start];
        shortened += &short_name(&digits[..end]).unwrap_or_else(|| digits[..end].to_owned());
        rest = &digits[end..];
    }
    shortened + rest
}

/// The name that [`bytes16`] has made these 32 digits of.
fn short_name(digits: &str) -> Option<String> {
    let value = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32)?;
    let name = String::from_utf8(value.to_be_bytes().to_vec()).ok()?;
    let name = name.trim_end_matches('\0');
    if name.is_empty() {
        return Some("zero".to_owned());
    }
    name.chars().all(|letter| letter.is_ascii_graphic()).then(|| name.to_owned())
}
