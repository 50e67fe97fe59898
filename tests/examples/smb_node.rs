//! An SMB server of one's own beside a sidecar, in the smallest form: what it asks, and what it is told.
//!
//!     cargo run -p holdfast-tests --example smb_node -- http://127.0.0.1:7401 http://127.0.0.1:7402
//!
//! With the addresses of two sidecars on this machine, of a running cluster, neither of which serves a Samba
//! (`unix:/run/holdfast/handles.sock` is an address too), it is the server beside each of them, and plays a scene with two
//! clients that want the same file. How it is done is in `tests/src/smb_node`, and why in `proto/proto/handles.proto`.

#![expect(clippy::print_stdout, reason = "to be read on a terminal is what an example is for")]

use std::{error::Error, time::Duration};

use clap::Parser;
use harness::{
    client_machine::{ClientMachine, RWH},
    smb_node::{Notice, SmbNode},
};
use statedb::{EventKind, Instance};

/// How long all of it may take: a quorum that is not there is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two SMB servers and two clients that want the same file.
#[derive(Debug, Parser)]
struct Arguments {
    /// The sidecar beside the first server: http://HOST:PORT or unix:/PATH.
    first: String,
    /// The sidecar beside the second.
    second: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    tokio::time::timeout(PATIENCE, play(arguments)).await?
}

async fn play(Arguments { first, second }: Arguments) -> Result<(), Box<dyn Error>> {
    // A server draws its instance once, when it starts.
    let alpha = SmbNode::attach(&first, Instance(rand::random())).await?;
    let beta = SmbNode::attach(&second, Instance(rand::random())).await?;
    println!("attached as {} and {} (node.incarnation)", alpha.owner(), beta.owner());

    // What the server is told without having asked: here it acknowledges breaks, as its clients would.
    let mut notices = alpha.watch(None).await?;
    let server = alpha.clone();
    let breaks = tokio::spawn(async move {
        while let Ok(notice) = notices.next().await {
            if let Notice::Event(_, EventKind::LeaseBreak { lease, from, to, .. }) = notice {
                println!("server 1 is told to break the lease of its client: {from} to {to}");
                if server.ack_lease_break(lease, to).await.is_ok() {
                    println!("server 1 passes the acknowledgement on");
                }
            }
        }
    });

    let client = ClientMachine::new();
    let create = client.durable_create("report.docx", RWH);
    let granted = alpha.create(create.clone(), || {}).await?.opened;
    let id = granted.durable_file_id;
    println!("client 1 opens the file through server 1: {} with lease {}", id, granted.oplock);

    let other = ClientMachine::new();
    let interim = || println!("client 2 wants it through server 2, and is told to wait");
    let second = beta.create(other.durable_create("report.docx", RWH), interim).await?.opened;
    println!("client 2 has it too, with lease {}", second.oplock);

    // Client 1 turns to server 2, in place of the session that it had.
    let client_later = client.in_new_session();
    beta.replace_session(client.session(), client_later.client.user.clone()).await?;
    let again = beta.create(client_later.reconnect(&create, id), || {}).await?.opened;
    println!("client 1 has moved to server 2: {} with lease {}", again.durable_file_id, again.oplock);

    beta.end_session(other.session()).await?;
    beta.close(second.durable_file_id).await?;
    beta.close(again.durable_file_id).await?;
    breaks.abort();
    Ok(())
}
