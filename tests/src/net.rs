//! Addresses on loopback that two tests never share, and whose a connection is.
//!
//! Every harness process has an address of its own in 127.0.0.0/8, made from its process id, so that no other
//! process of a test run can take a port between the moment it is chosen and the moment a server is bound to
//! it. Within the process ports are counted up and never used twice. Servers whose port is fixed get an address
//! each, drawn from another part of the network.

use std::{
    fs, io,
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

/// An address on which nobody listens at `port`, for a server whose port cannot be chosen. It is one of eight
/// million, drawn at random: nobody else will be given it.
pub fn free_address(port: u16) -> Ipv4Addr {
    const NETWORK: u32 = u32::from_be_bytes([127, 128, 0, 0]);
    const HOST_BITS: u32 = (1 << 23) - 1;
    loop {
        let address = Ipv4Addr::from(NETWORK | (rand::random::<u32>() & HOST_BITS));
        if TcpListener::bind((address, port)).is_ok() {
            return address;
        }
    }
}

/// The inode of the socket on this machine that is one end of a connection: the one whose own address is `local`. A
/// process that has it has a file descriptor that is a link to `socket:[INODE]`. `None` if there is no such
/// connection.
pub fn socket_of_connection(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
    let (SocketAddr::V4(local), SocketAddr::V4(remote)) = (local, remote) else { return Ok(None) };
    // As the kernel prints it: the address as a number of this machine, the port as one.
    let printed = |address: std::net::SocketAddrV4| {
        format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
    };
    let wanted = [printed(local), printed(remote)];
    // Number, local and remote address, state, queues, timer, retransmissions, user, timeout, inode.
    const INODE_COLUMN: usize = 9;
    let connections = fs::read_to_string("/proc/net/tcp")?;
    let inode = connections.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns.get(1..3)? == wanted).then(|| columns.get(INODE_COLUMN)?.parse().ok())?
    });
    Ok(inode)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, os::fd::AsRawFd};

    use super::*;

    #[test]
    fn both_ends_of_a_connection_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, client_address) = listener.accept().unwrap();
        let server_address = server.local_addr().unwrap();
        for (socket, local, remote) in [
            (client.as_raw_fd(), client_address, server_address),
            (server.as_raw_fd(), server_address, client_address),
        ] {
            let inode = socket_of_connection(local, remote).unwrap().expect("the connection is there");
            let link = fs::read_link(format!("/proc/self/fd/{socket}")).unwrap();
            assert_eq!(link.to_str().unwrap(), format!("socket:[{inode}]"));
        }
        let nobody = free_endpoint();
        assert_eq!(socket_of_connection(nobody, server_address).unwrap(), None);
    }
}
