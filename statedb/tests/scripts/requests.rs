//! What the commands of a script ask the cluster for.

use std::collections::BTreeMap;
use std::sync::Arc;

use statedb::{
    AppInstance, AppInstanceVersion, ByteRangeLock, Client, ClientGuid, Create, CreateContexts, CreateGuid,
    CreateOptions, Dialect, Durability, DurableReconnectV2, DurableRequestV2, FileKey, ImageDigest, Lease,
    LeaseEpoch, LeaseId, LeaseKey, LeaseVersion, Lock, LockElement, LockKind, LockSequence, Note,
    OpenDescription, Operation, Oplock, OplockLevel, OplockState, Reclaim, Request, SessionId, Share,
    ShareName, Sid, State, Update,
};

use super::arguments::{
    Arguments, access, bytes16, create_action, lease_state, length, lock_kind, number, open_id, oplock_level,
    sharing, text, truth,
};
use super::{Result, common};

/// FILE_DELETE_ON_CLOSE (MS-SMB2 2.2.13).
const DELETE_ON_CLOSE: u32 = 0x0000_1000;

/// The files of a script: inode numbers by the names that it uses.
#[derive(Default)]
pub(crate) struct Files(BTreeMap<String, u64>);

impl Files {
    /// The file of this name: made at its first use.
    fn key(&mut self, name: &str) -> FileKey {
        let next = self.0.len() as u64 + 1;
        FileKey { device: 1, inode: *self.0.entry(name.to_owned()).or_insert(next), extid: 0 }
    }
}

pub(crate) fn request(
    name: &str,
    args: &mut Arguments<'_>,
    state: &State,
    files: &mut Files,
) -> Result<Request> {
    let open = |args: &mut Arguments<'_>| args.required("open", open_id);
    let operate = |args: &mut Arguments<'_>, operation| {
        Ok::<_, Box<dyn std::error::Error>>(Request::Operate {
            open: args.required("open", open_id)?,
            operation,
        })
    };
    Ok(match name {
        "create" => Request::Create(Box::new(create(args, files)?)),
        "cancel" => Request::Cancel { sequence: args.required("of", number)? },
        "ack-oplock-break" => {
            Request::AckOplockBreak { open: open(args)?, level: args.required("level", oplock_level)? }
        }
        "ack-lease-break" => {
            Request::AckLeaseBreak { lease: lease_id(args)?, state: args.required("state", lease_state)? }
        }
        "lock" => Request::Lock(lock(args)?),
        "write" => operate(args, Operation::Write)?,
        "set-metadata" => operate(args, Operation::SetMetadata)?,
        "rename" => {
            let path = Arc::from(args.required("to", text)?);
            let parent_directory = args.take("in", text)?.map(|directory| files.key(&directory));
            operate(args, Operation::Rename { path, parent_directory })?
        }
        "set-delete-pending" => {
            let pending = args.take("pending", truth)?.unwrap_or(true);
            operate(args, Operation::SetDeletePending(pending))?
        }
        "note" => Request::Note(Note {
            open: open(args)?,
            position: args.take("position", number)?,
            image: args.take("bytes", number)?.map(image),
            is_used: args.has("used"),
        }),
        "request-resiliency" => Request::RequestResiliency {
            open: open(args)?,
            timeout: args.required("timeout", length)?,
            dialect: dialect(args)?,
        },
        "end-session" => Request::EndSession(args.required("session", session_id)?),
        "replace-session" => {
            Request::ReplaceSession { previous: args.required("previous", session_id)?, user: user(args)? }
        }
        "end-tree-connect" => Request::EndTreeConnect {
            session: args.required("session", session_id)?,
            share: args.required("share", share_name)?,
        },
        "file-deleted" => Request::FileDeleted(files.key(&args.required("file", text)?)),
        "grant" => {
            let id = open(args)?;
            Request::Grant(Box::new(describe(common::description(id.0), args, files)?))
        }
        "update" => {
            let id = open(args)?;
            let known = state.open(id).map(|open| open.description.clone());
            let replaced = args.take("replaces-bytes", number)?.map(image);
            let opens = vec![describe(known.unwrap_or_else(|| common::description(id.0)), args, files)?];
            Request::Update(Update {
                opens,
                replaces: replaced.iter().map(|image| ImageDigest::of(image)).collect(),
            })
        }
        "disconnect" => Request::Disconnect(open(args)?),
        "close" => Request::Close(open(args)?),
        "reclaim" => {
            let durable_file_id = open(args)?;
            let made_with = common::description(durable_file_id.0).create_guid;
            let create_guid = args.take("create_guid", create_guid)?.unwrap_or(made_with);
            Request::Reclaim(Reclaim { durable_file_id, create_guid })
        }
        "serve-share" => Request::ServeShare(args.required("share", share_name)?),
        "release-share" => Request::ReleaseShare(args.required("share", share_name)?),
        _ => return Err(format!("there is no command {name}").into()),
    })
}

/// A CREATE of the simplest kind, but for what the script says.
fn create(args: &mut Arguments<'_>, files: &mut Files) -> Result<Create> {
    let path = args.take("path", text)?.unwrap_or_else(|| "a".to_owned());
    let client = client(args)?;
    Ok(Create {
        durable_file_id: args.take("open", open_id)?,
        client,
        share: Share {
            name: args.take("share", share_name)?.unwrap_or_else(|| ShareName::new("data")),
            continuously_available: args.has("ca"),
            scale_out: args.has("scale-out"),
            ca_timeout: args.take("ca-timeout", length)?,
        },
        file: files.key(&path),
        path: path.into(),
        is_directory: args.has("directory"),
        parent_directory: args.take("in", text)?.map(|directory| files.key(&directory)),
        granted_access: args.take("access", access)?.unwrap_or(access("rw")?),
        share_access: args.take("sharing", sharing)?.unwrap_or(sharing("rwd")?),
        create_options: CreateOptions(if args.has("delete-on-close") { DELETE_ON_CLOSE } else { 0 }),
        create_action: args.take("action", create_action)?.unwrap_or_default(),
        requested: requested(args)?,
        contexts: contexts(args)?,
        app_instance: app_instance(args)?,
        is_replay: args.has("replay"),
        allocation_size: args.take("allocation", number)?.unwrap_or_default(),
        image: image(args.take("bytes", number)?.unwrap_or_default()),
    })
}

/// The client `c1`, in session 1, unless the script says otherwise. Session 2 is that of `c2`, and so on.
fn client(args: &mut Arguments<'_>) -> Result<Client> {
    let name = args.take("client", text)?.unwrap_or_else(|| "c1".to_owned());
    let own_session = name.strip_prefix('c').ok_or("a client is c1")?;
    Ok(Client {
        client_guid: ClientGuid(bytes16(&name)),
        user: user(args)?,
        session: args.take("session", session_id)?.unwrap_or(session_id(own_session)?),
        dialect: dialect(args)?,
        persistent_handles: !args.has("no-persistent-handles"),
        may_read: !args.has("may-not-read"),
    })
}

fn requested(args: &mut Arguments<'_>) -> Result<Oplock> {
    let key = args.take("key", lease_key)?.unwrap_or(lease_key("k1")?);
    let epoch = LeaseEpoch(args.take("epoch", number)?.unwrap_or_default());
    let parent = args.take("parent", lease_key)?;
    let version = if args.has("v1") { LeaseVersion::V1 } else { LeaseVersion::V2 };
    Ok(match args.take("lease", lease_state)? {
        Some(state) => Oplock::Lease(Lease { key, state, epoch, version, parent }),
        None => args.take("oplock", oplock)?.unwrap_or(Oplock::None),
    })
}

/// `DHnQ`, `DHnC=OPEN`, `DH2Q=CREATE_GUID`, `DH2C=OPEN/CREATE_GUID`; for the latter two `persistent` is the flag.
fn contexts(args: &mut Arguments<'_>) -> Result<CreateContexts> {
    let persistent = args.has("persistent");
    let timeout = args.take("timeout", length)?.unwrap_or_default();
    Ok(CreateContexts {
        durable_request: args.has("DHnQ"),
        durable_reconnect: args.take("DHnC", open_id)?,
        durable_request_v2: args.take("DH2Q", |guid| {
            Ok(DurableRequestV2 { timeout, persistent, create_guid: create_guid(guid)? })
        })?,
        durable_reconnect_v2: args.take("DH2C", |value| {
            let (open, guid) = value.split_once('/').ok_or("DH2C= is an open and a CreateGuid: 1/g1")?;
            let durable_file_id = open_id(open)?;
            Ok(DurableReconnectV2 { durable_file_id, create_guid: create_guid(guid)?, persistent })
        })?,
    })
}

fn app_instance(args: &mut Arguments<'_>) -> Result<Option<AppInstance>> {
    let version = args.take("version", |value| {
        let (high, low) = value.split_once('.').ok_or("a version is 2.1")?;
        Ok(AppInstanceVersion { high: high.parse()?, low: low.parse()? })
    })?;
    args.take("app", |name| Ok(AppInstance { id: bytes16(name), version }))
}

/// Ranges are `OFFSET/LENGTH`, with spaces between them; the kind is one for all.
fn lock(args: &mut Arguments<'_>) -> Result<Lock> {
    let kind = args.take("kind", lock_kind)?.unwrap_or(LockKind::Exclusive);
    let element = |range: &str| {
        let (offset, length) = range.split_once('/').ok_or("a range is 0/10")?;
        Ok(LockElement { offset: offset.parse()?, length: length.parse()?, kind })
    };
    Ok(Lock {
        open: args.required("open", open_id)?,
        elements: args.required("range", |ranges| ranges.split(' ').map(element).collect())?,
        sequence: LockSequence {
            index: args.take("index", number)?.unwrap_or_default(),
            number: args.take("number", number)?.unwrap_or_default(),
        },
        dialect: dialect(args)?,
        multichannel: args.has("multichannel"),
    })
}

/// What a report says of an open, by `base` unless the script says otherwise.
fn describe(base: OpenDescription, args: &mut Arguments<'_>, files: &mut Files) -> Result<OpenDescription> {
    Ok(OpenDescription {
        create_guid: args.take("create_guid", create_guid)?.unwrap_or(base.create_guid),
        client_guid: args
            .take("client_guid", |name| Ok(ClientGuid(bytes16(name))))?
            .unwrap_or(base.client_guid),
        durable_owner: args.take("user", |user| Ok(Sid(user.into())))?.unwrap_or(base.durable_owner),
        share: args.take("share", share_name)?.unwrap_or(base.share),
        file: args.take("file", text)?.map_or(base.file, |name| files.key(&name)),
        create_options: CreateOptions(if args.has("delete-on-close") {
            DELETE_ON_CLOSE
        } else {
            base.create_options.0
        }),
        oplock: args.take("oplock", oplock)?.unwrap_or(base.oplock),
        oplock_state: args.take("oplock_state", oplock_state)?.unwrap_or(base.oplock_state),
        durability: args.take("durability", durability)?.unwrap_or(base.durability),
        durable_open_timeout: args.take("timeout", length)?.unwrap_or(base.durable_open_timeout),
        byte_range_locks: args.take("locks", number)?.map_or(base.byte_range_locks, locks),
        image: args.take("bytes", number)?.map_or(base.image, image),
        ..base
    })
}

fn user(args: &mut Arguments<'_>) -> Result<Sid> {
    Ok(args.take("user", |name| Ok(Sid(name.into())))?.unwrap_or(common::description(0).durable_owner))
}

fn session_id(value: &str) -> Result<SessionId> {
    Ok(SessionId(value.parse()?))
}

fn share_name(value: &str) -> Result<ShareName> {
    Ok(ShareName::new(value))
}

fn create_guid(name: &str) -> Result<CreateGuid> {
    Ok(CreateGuid(bytes16(name)))
}

fn lease_key(name: &str) -> Result<LeaseKey> {
    Ok(LeaseKey(bytes16(name)))
}

fn lease_id(args: &mut Arguments<'_>) -> Result<LeaseId> {
    Ok(LeaseId {
        client_guid: args.required("client", |name| Ok(ClientGuid(bytes16(name))))?,
        key: args.take("key", lease_key)?.unwrap_or(lease_key("k1")?),
    })
}

fn dialect(args: &mut Arguments<'_>) -> Result<Dialect> {
    let named = args.take("dialect", |value| {
        [Dialect::Smb202, Dialect::Smb210, Dialect::Smb300, Dialect::Smb302, Dialect::Smb311]
            .into_iter()
            .find(|dialect| dialect.to_string() == value)
            .ok_or_else(|| format!("there is no dialect {value}").into())
    })?;
    Ok(named.unwrap_or(Dialect::Smb311))
}

/// A level, or the state of a lease that all scripts of reports share.
fn oplock(value: &str) -> Result<Oplock> {
    Ok(match oplock_level(value) {
        Ok(OplockLevel::None) => Oplock::None,
        Ok(OplockLevel::LevelII) => Oplock::LevelII,
        Ok(OplockLevel::Exclusive) => Oplock::Exclusive,
        Ok(OplockLevel::Batch) => Oplock::Batch,
        Ok(OplockLevel::Lease) | Err(_) => Oplock::Lease(Lease {
            key: LeaseKey([0x33; 16]),
            state: lease_state(value)?,
            epoch: LeaseEpoch(1),
            version: LeaseVersion::V2,
            parent: None,
        }),
    })
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

fn image(bytes: usize) -> Arc<[u8]> {
    vec![0x5A; bytes].into()
}
