//! Placing orphans in the databases of a real smbd, and asking a real testparm.
//!
//! The images come from `testdata/`, turned towards a file of the test's own share, because making a durable handle
//! takes a client that this crate does not have; the reclaim itself is tested where there is one. Needs Samba:
//! without it every test here passes with a notice, or fails if `HOLDFAST_REQUIRE_SAMBA=1`.

mod config;
mod instance;
mod placing;
mod testdata;
