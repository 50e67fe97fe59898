//! What a server is told without having asked (`proto/proto/events.proto`).
//!
//! Nothing is lost with a stream: who listens again behind the last event that it has heard, at whichever sidecar, hears
//! those that follow, each once, or is told the present state.

use proto::convert::required;
use proto::pb::events::v1 as pb;
use proto::pb::events::v1::event::Kind;
use proto::pb::events::v1::event_service_client::EventServiceClient;
use proto::pb::events::v1::watch_response::Response as Told;
use statedb::{EventKind, Incarnation, Open};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::{RETRY_AFTER, SmbNodeError, over};

/// Something that a server is told without having asked.
#[derive(Clone, Debug)]
pub enum Notice {
    /// To be acted on: it has just happened, or the server is told again (then it has no number).
    Event(Option<u64>, EventKind),
    /// Events were missed, and the present state follows: opens, breaks and files to delete that are not in it are no longer
    /// this server's.
    Resync,
    /// The server has this open.
    OpenNow(Box<Open>),
    /// That was the present state.
    Synced,
}

/// What a server is told. It goes on behind the last event when the stream was lost.
#[derive(Debug)]
pub struct Notices {
    sidecar: Channel,
    incarnation: Option<Incarnation>,
    after: Option<u64>,
    until: Option<watch::Receiver<Instant>>,
    stream: Streaming<pb::WatchResponse>,
}

impl Notices {
    /// What happens in the whole cluster, as the node at this address sees it: for operators.
    pub async fn of_all(sidecar: &str, after: Option<u64>) -> Result<Self, SmbNodeError> {
        let sidecar = Endpoint::from_shared(sidecar.to_owned())?.connect().await?;
        Self::begin(sidecar, None, after, None).await
    }

    pub(super) async fn begin(
        sidecar: Channel,
        incarnation: Option<Incarnation>,
        after: Option<u64>,
        until: Option<watch::Receiver<Instant>>,
    ) -> Result<Self, SmbNodeError> {
        let stream = listen(&sidecar, incarnation, after).await?;
        Ok(Self { sidecar, incarnation, after, until, stream })
    }

    /// The newest event that was heard; whoever listens behind it misses nothing.
    #[must_use]
    pub fn after(&self) -> Option<u64> {
        self.after
    }

    /// The next notice.
    pub async fn next(&mut self) -> Result<Notice, SmbNodeError> {
        let over = over(self.until.clone());
        let notice = async {
            loop {
                match self.stream.message().await {
                    Ok(Some(response)) => return required("WatchResponse", "response", response.response),
                    // Also what is wrong for as long as a sidecar starts again.
                    Ok(None) | Err(_) => match listen(&self.sidecar, self.incarnation, self.after).await {
                        Ok(stream) => self.stream = stream,
                        Err(_) => sleep(RETRY_AFTER).await,
                    },
                }
            }
        };
        let told = tokio::select! {
            biased;
            () = over => return Err(SmbNodeError::Stopped),
            told = notice => told?,
        };
        Ok(match told {
            Told::Event(event) => {
                self.after = Some(event.sequence);
                Notice::Event(Some(event.sequence), required("Event", "kind", event.kind)?.try_into()?)
            }
            Told::Resync(_) => Notice::Resync,
            Told::OpenNow(open) => Notice::OpenNow(Box::new((*open).try_into()?)),
            Told::BreakNow(under_way) => {
                let kind = match required("BreakNow", "notice", under_way.notice)? {
                    pb::break_now::Notice::OplockBreak(notice) => Kind::OplockBreak(notice),
                    pb::break_now::Notice::LeaseBreak(notice) => Kind::LeaseBreak(notice),
                };
                Notice::Event(None, kind.try_into()?)
            }
            Told::DeleteNow(delete) => Notice::Event(None, Kind::DeleteFile(delete).try_into()?),
            Told::Synced(synced) => {
                // Only now: who loses the stream before this begins anew.
                self.after = synced.next_sequence.checked_sub(1);
                Notice::Synced
            }
        })
    }
}

async fn listen(
    sidecar: &Channel,
    incarnation: Option<Incarnation>,
    after_sequence: Option<u64>,
) -> Result<Streaming<pb::WatchResponse>, Status> {
    let incarnation = incarnation.map(|incarnation| incarnation.0);
    let request = pb::WatchRequest { after_sequence, incarnation };
    Ok(EventServiceClient::new(sidecar.clone()).watch(request).await?.into_inner())
}
