//! CTDB, as a client of it: what a clustered smbd does with its databases.
//!
//! In a cluster each volatile database is one, spread over the nodes. Each node has a copy in a tdb file of its own,
//! called `NAME.tdb.N`; of each record one node is the *master*, and only there it may be changed. A process that
//! wants to change one asks the ctdbd of its node to migrate it there, locks the record's chain in the local file, and
//! looks whether the record is still there; then it reads and stores in the file by itself. When a node dies, CTDB
//! *recovers*: it gathers the newest copies of all records, and what only the dead node had is lost.
//!
//! - [`Connection`]: one connection to ctdbd, blocking and bounded.
//! - [`RecordHeader`]: what stands in front of every value in the file.
//! - [`Membership`]: whether this node's copies of records are worth anything.
//! - [`ClusterDatabase`]: a database, read and edited by these rules.
//!
//! What it does not do: persistent databases, transactions, messages, public addresses. Of what changes the cluster it can
//! ask for one thing: to be put out of it for a while ([`Connection::ban`]).

mod connection;
mod database;
mod membership;
mod node_map;
mod packet;
mod record;
pub(crate) mod store;

pub use connection::{Connection, CtdbError};
pub use database::ClusterDatabase;
pub use membership::Membership;
pub use node_map::NodeStatus;
pub use packet::{DatabaseId, PacketError, Pnn};
pub use record::RecordHeader;

pub use crate::record_store::Decide;
