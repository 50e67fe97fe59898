//! The `holdfast` binary given what it must not swallow: each test ends with a refusal that says what, where and
//! what to do, or with a node that lives on and says so.
//!
//! The Samba beside a node is a script here wherever it only has to exist; what real Samba says about a real
//! `smb.conf` is asked for in [`samba`].

mod alone;
mod command_line;
mod configuration;
mod damage;
mod full_disk;
mod hostile_frames;
mod hostile_peers;
mod samba;
mod samba_check;
mod sidecar;
mod smb_server;
mod smbd;
