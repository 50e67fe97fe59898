//! The client of CTDB, and orphans in a cluster's databases, against real ctdbds.

mod cluster;
mod hostile;
mod placing;
#[path = "../common/private_smbd.rs"]
mod private_smbd;
mod records;
mod smbd;
#[path = "../smbd/testdata.rs"]
mod testdata;
