//! Addresses on loopback that two tests never share.
//!
//! Every harness process has an address of its own in 127.0.0.0/8, made from its process id, so that no other
//! process of a test run can take a port between the moment it is chosen and the moment a server is bound to
//! it. Within the process ports are counted up and never used twice.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Ports are taken from here to [`PORT_MAX`]: above the privileged ones, below Linux' ephemeral ones (32768),
/// which outgoing connections may use on any address.
const PORT_MIN: u16 = 10_000;
const PORT_MAX: u16 = 32_000;

static NEXT_PORT: AtomicU16 = AtomicU16::new(PORT_MIN);

/// The address of this process: 127.64.0.0 plus the process id, which has at most 22 bits.
pub fn loopback_address() -> Ipv4Addr {
    const NETWORK: u32 = u32::from_be_bytes([127, 64, 0, 0]);
    const PID_BITS: u32 = (1 << 22) - 1;
    Ipv4Addr::from(NETWORK | (process::id() & PID_BITS))
}

/// An address and port of this process that nothing listens on and nobody else will be given.
///
/// # Panics
/// When all of the process's ports were given out.
pub fn free_endpoint() -> SocketAddr {
    loop {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        assert!(port < PORT_MAX, "one process has asked for all ports from {PORT_MIN} to {PORT_MAX}");
        let endpoint = SocketAddr::new(IpAddr::V4(loopback_address()), port);
        // A server of an earlier process with the same id may still be around.
        if TcpListener::bind(endpoint).is_ok() {
            return endpoint;
        }
    }
}
