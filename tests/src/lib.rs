//! The world around Holdfast, for its tests, its demo and its benchmarks: SMB clients, real `smbd`s, proxies,
//! and ways to hurt them.

pub mod chaos;
pub mod client_machine;
pub mod cluster;
pub mod conformance;
pub mod contest;
pub mod ctdb;
pub mod net;
pub mod process;
pub mod program;
pub mod proxy;
pub mod relay;
pub mod samba;
pub mod smb_client;
pub mod smb_node;
pub mod smbtorture;
pub mod stand_in;
pub mod story;
pub mod workload;

use std::process::ExitCode;

/// Runs this process as `holdfast` if it was started to be that, and returns its exit code then.
///
/// The first thing that the `main` of every program of the harness does. So a [`cluster::Cluster`] needs no
/// second binary beside it, which `cargo run --bin` would not have built.
pub fn sidecar_main_if_asked() -> Option<ExitCode> {
    let asked = std::env::var(cluster::RUN_AS).is_ok_and(|value| value == cluster::RUN_AS_HOLDFAST);
    asked.then(node::cli::main)
}
