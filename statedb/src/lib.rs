//! The replicated state of Holdfast, and how bytes of it rest on disk.
//!
//! Two halves that do not know each other:
//!
//! - [`state`] is pure. [`State::apply`] turns a committed [`Command`] into an [`Outcome`], the same
//!   on every replica. It has no clock, no I/O, no randomness and no serialization.
//! - [`store`] is bytes in, bytes out: the write-ahead log and the stored copy of the applied state,
//!   checked by crc32 wherever a byte could rot. It does not know what an open is.
//!
//! # Who decides
//!
//! An SMB server says when it registers who decides between its opens and those of others ([`Arbiter`]).
//!
//! - *The cluster.* The server asks before it opens ([`Create`]), for every open, durable or not. Share modes, oplocks,
//!   leases, byte-range locks, reconnects, replays and deletions are decided here, by the rules of `SEMANTICS.md`. Several
//!   such servers can serve one share at the same time. What has to be broken is told by [`Event`]s, and what waits for a
//!   break is decided in the very entry that ends it.
//! - *The server itself*, as a Samba that stands alone. It reports what it has decided. Since it knows no other server's
//!   opens, a share has one serving node at a time; an open that contradicts another server's all the same is refused.
//! - *Servers that are coherent among themselves*, as Samba is under CTDB. What they report is recorded, and a contradiction
//!   is made known.
//!
//! # A worked log
//!
//! ```text
//! index  proposed_at  command
//!     1         1 s   register-node 1 instance=a1…        incarnation 1 of node 1 is up, and counts from 4096
//!     2         1 s   register-node 2 instance=b1…        incarnation 1 of node 2 is up, and counts from 8192
//!     3         2 s   serve-share 1.1#4096 share=data     node 1 alone serves the share
//!     4         3 s   grant 1.1#4097 open=7 oplock=RWH    the client may now be told
//!     5        10 s   node-down 1.1                       open 7 waits for its client until 70 s
//!     6        10 s   serve-share 2.1#8192 share=data     node 2 takes the share over
//!     7        11 s   reclaim 2.1#8193 open=7             node 2 owns the open
//!     8        12 s   update 1.1#4098 open=7              refused: 1.1 was declared down
//! ```
//!
//! `testscripts/worked_log` runs it.
//!
//! # What must stay true
//!
//! Each line is a function in [`state::invariants`], run after every command in tests.
//!
//! - An open lives in the SMB server of an incarnation that is up, or waits as an orphan; never in two.
//! - An open of a share that has a serving node lives in that node, or is an orphan.
//! - A disconnected open has a deadline, which does not move; an open whose deadline has passed does not
//!   come back.
//! - Of opens that the cluster has decided on, none excludes another one of its file, and who caches writes is alone.
//! - A request waits only while a break is under way that it waits for, and a break ends by an acknowledgement, by its
//!   deadline, or with its holder.
//! - An open that lost its SMB server is one that the protocol keeps: handle caching, no break in flight.
//! - Ownership of an open or a share goes from one node to another only by way of nobody.
//! - A node's incarnation never decreases; one that was superseded or declared down is never up again.
//! - Cluster time never goes back.
//! - `answered < first_outstanding + outstanding_max`, and an answer once given is the one given again.
//!
//! # What is left out
//!
//! - Sessions, connections, volatile ids and [`ChannelSequence`]s: they die with their node. An open carries the id of its
//!   session, so that another node can take it over.
//! - Opens that are not durable, of SMB servers that decide themselves: nobody else needs to know them.
//! - The file system: names, sizes, times and data are the SMB server's to look after. It finds the file, and checks the
//!   user's access, before it asks.
//! - Waiting for byte-range locks: a server whose client waits asks again.

pub mod state;
pub mod store;

pub use state::{
    AccessMask, AppInstance, AppInstanceVersion, Arbiter, Awaited, Break, BreakTarget, ByteRangeLock,
    Changes, ChannelSequence, Client, ClientGuid, CloseReason, Command, CountedRequest, Create, CreateAction,
    CreateContexts, CreateGuid, CreateOptions, DeletePending, DeleteState, Dialect, Durability,
    DurableAnswer, DurableFileId, DurableReconnectV2, DurableRequestV2, Event, EventKind, FileKey,
    ImageDigest, Incarnation, Instance, Lease, LeaseEpoch, LeaseId, LeaseKey, LeaseState, LeaseVersion,
    Limits, Lock, LockElement, LockKind, LockSequence, LogId, Millis, Node, NodeId, NodeState, Note, Open,
    OpenDescription, OpenState, Opened, OpenedHow, Operation, Oplock, OplockLevel, OplockState, Outcome,
    OutdatedRequest, Owner, Proposer, Reclaim, Record, Rejection, Request, ServingNode, SessionId, Share,
    ShareAccess, ShareName, Sid, SnapshotError, State, Timestamp, Update, WaitingRequest,
};
