//! Placing orphans in the databases of a real smbd, and asking a real testparm.
//!
//! The images come from `testdata/`, turned towards a file of the test's own share, because making a durable handle
//! takes a client that this crate does not have; the reclaim itself is tested where there is one (`tests/tests/layouts.rs`).
//! Runs on every version of Samba that is there: the machine's own, and those that `tests/roots/make` has put into roots, which takes
//! root's rights. What is missing is left out with a notice, or fails if `HOLDFAST_REQUIRE_SAMBA=1` or
//! `HOLDFAST_REQUIRE_SAMBA_ROOTS=1`.

mod config;
mod instance;
mod placing;
#[path = "../common/private_smbd.rs"]
mod private_smbd;
mod testdata;
