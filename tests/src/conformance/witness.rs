//! A client of the node that will be cut off. It writes without a pause, for as long as anybody lets it: what the
//! node still serves, the witness has seen.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time};

use crate::smb_client::{Client, CreateRequest, Credentials, Opened, SmbError};

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(10);

/// How long an answer may take before the witness connects anew: a node that is cut off may also be silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The file that it writes to. No test of `smbtorture` has that name.
const FILE: &str = "witness";

/// A witness at work. Dropping it ends it.
pub(super) struct Witness {
    /// When the newest request was sent that was served.
    newest: Arc<Mutex<Instant>>,
    task: JoinHandle<()>,
}

impl Witness {
    /// Has one served request before it returns.
    pub(super) async fn start(
        credentials: Credentials,
        server: SocketAddr,
        share: String,
    ) -> Result<Self, SmbError> {
        let client = Client::new(credentials);
        let asked = Instant::now();
        let open = open(&client, server, &share).await?;
        let newest = Arc::new(Mutex::new(asked));
        let task = tokio::spawn(observe(client, server, share, open, Arc::clone(&newest)));
        Ok(Self { newest, task })
    }

    /// When the newest request was sent that was served.
    pub(super) fn newest_served(&self) -> Instant {
        *self.newest.lock().expect("nobody panics while holding it")
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn observe(
    client: Client,
    server: SocketAddr,
    share: String,
    mut opened: Opened,
    newest: Arc<Mutex<Instant>>,
) {
    loop {
        let asked = Instant::now();
        let served = match time::timeout(ANSWER_TIMEOUT, opened.write(0, b"served")).await {
            Ok(Ok(_)) => true,
            // The connection is gone, or what was there before is not served any more. Maybe to somebody new.
            Ok(Err(_)) | Err(_) => match time::timeout(ANSWER_TIMEOUT, open(&client, server, &share)).await {
                Ok(Ok(again)) => {
                    opened = again;
                    true
                }
                Ok(Err(_)) | Err(_) => false,
            },
        };
        if served {
            *newest.lock().expect("nobody panics while holding it") = asked;
        }
        time::sleep(PAUSE).await;
    }
}

async fn open(client: &Client, server: SocketAddr, share: &str) -> Result<Opened, SmbError> {
    let session = client.connect(server).await?;
    session.tree_connect(share).await?.create(CreateRequest::new(FILE)).await
}
