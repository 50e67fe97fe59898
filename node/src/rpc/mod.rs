//! What this node answers over gRPC: decode, delegate, encode. Raft's own service is in [`crate::raft`].

pub mod handles;
pub mod ops;

use std::io;
use std::time::Duration;

use futures::{Stream, stream};
use tokio::net::{TcpListener, TcpStream};
use tracing::error;

/// After an attempt to accept a connection that has failed.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The connections of peers and operators, as a gRPC server takes them. Never ends.
///
/// tonic would try again at once, and in silence, when there are no file descriptors left.
pub fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Without it an acknowledgement waits up to 40 ms for company.
                    let accepted = stream.set_nodelay(true).map(|()| stream);
                    return Some((accepted, listener));
                }
                Err(error) => {
                    error!(%error, "cannot accept a connection of a peer or an operator");
                    tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                }
            }
        }
    })
}
