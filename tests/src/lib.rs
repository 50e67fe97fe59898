//! The world around Holdfast, for its tests, its demo and its benchmarks: SMB clients, real `smbd`s, proxies,
//! and ways to hurt them.

pub mod cluster;
pub mod net;
pub mod process;
pub mod proxy;
pub mod samba;
pub mod smb_client;
pub mod smbtorture;
pub mod workload;
