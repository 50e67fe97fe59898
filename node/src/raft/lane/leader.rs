//! A leader's end of a lane of entries.
//!
//! Raft gives a stream of requests and takes the stream of their answers, one pair after the other. One lane carries them
//! all: the follower does not know where one ends and the next begins. Raft also loses interest in the middle of a stream,
//! after a heartbeat that takes too long for example. The lane goes on even then, and answers that nobody waits for any
//! more are skipped: a connection made anew each time would never be ready on a busy machine.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{SinkExt, Stream, StreamExt, stream};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use proto::WireError;
use proto::pb::raft::v1 as pb;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::super::convert;
use super::super::types::TypeConfig;
use super::{Lane, LaneError};

/// How long a request without entries waits for one with entries, which takes its place. It only tells the follower what is
/// committed, and so does the next one that has entries. Who has asked for the commit does not wait for it, because the
/// leader answers him. On its own way it costs as much as the entries: a write, a wake-up and an acknowledgement for each
/// follower. The shortest time that the runtime's clock can tell.
const COMMIT_WAITS: Duration = Duration::from_millis(1);

/// A lane of entries to one follower, made when it is first needed and again after it broke.
#[derive(Default)]
pub(in super::super) enum LeaderLane {
    /// There is none.
    #[default]
    Closed,
    /// It is being made, whether or not somebody waits for it.
    Opening(JoinHandle<Result<OpenLane, LaneError>>),
    /// It is there.
    Open(OpenLane),
}

impl fmt::Debug for LeaderLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "Closed",
            Self::Opening(_) => "Opening",
            Self::Open(_) => "Open",
        })
    }
}

/// A lane that is there.
pub(in super::super) struct OpenLane {
    frames: Lane<pb::AppendResponse>,
    /// Requests that are sent and not answered.
    unanswered: usize,
}

impl LeaderLane {
    /// Sends the requests of `input` as they come, and returns their answers in order.
    ///
    /// # Errors
    ///
    /// If no lane can be made within `patience`. When this is dropped before, it goes on where it was when it is called
    /// again.
    pub(in super::super) async fn append<S>(
        &mut self,
        address: &str,
        hello: pb::Hello,
        patience: Duration,
        input: S,
    ) -> Result<impl Stream<Item = Result<StreamAppendResult<TypeConfig>, LaneError>>, LaneError>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
    {
        if let Self::Closed = self {
            *self = Self::Opening(tokio::spawn(OpenLane::open(address.to_owned(), hello, patience)));
        }
        if let Self::Opening(opening) = self {
            // It fails by itself only when this process ends.
            let opened = opening.await.unwrap_or(Err(LaneError::Closed));
            // Whatever has come of it: it must not be asked again.
            *self = Self::Closed;
            *self = Self::Open(opened?);
        }
        let mut stale = if let Self::Open(open) = &self { open.unanswered } else { 0 };
        let mut requests = Requests { input: Some(input), held: None };
        Ok(stream::poll_fn(move |cx| {
            let Self::Open(open) = self else { return Poll::Ready(None) };
            let answer = ready!(open.poll_answer(&mut requests, &mut stale, cx));
            // After anything but an acknowledgement the follower hangs up.
            if answer.as_ref().is_some_and(|answer| !matches!(answer, Ok(Ok(_)))) {
                *self = Self::Closed;
            }
            Poll::Ready(answer)
        }))
    }
}

impl OpenLane {
    async fn open(address: String, hello: pb::Hello, patience: Duration) -> Result<Self, LaneError> {
        let frames = super::open(&address, hello, patience).await?;
        Ok(Self { frames, unanswered: 0 })
    }

    /// Sends what there is to send, and looks for an answer after `stale` others. There is none any more when the requests
    /// have ended and everything is answered.
    fn poll_answer<S>(
        &mut self,
        requests: &mut Requests<S>,
        stale: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<StreamAppendResult<TypeConfig>, LaneError>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
    {
        let mut more = true;
        while more && SinkExt::<pb::AppendRequest>::poll_ready_unpin(&mut self.frames, cx)?.is_ready() {
            match requests.poll_next(cx) {
                Poll::Ready(Some(request)) => {
                    self.frames.start_send_unpin(convert::append_request_to_pb(request))?;
                    self.unanswered += 1;
                }
                Poll::Ready(None) | Poll::Pending => more = false,
            }
        }
        // What does not go out now goes out when there is room: then this is polled again.
        let _ = SinkExt::<pb::AppendRequest>::poll_flush_unpin(&mut self.frames, cx)?;
        loop {
            if requests.have_ended() && self.unanswered == 0 {
                return Poll::Ready(None);
            }
            let answer = ready!(self.frames.poll_next_unpin(cx)).ok_or(LaneError::Closed)??;
            let nobody_asked = || WireError::invalid("AppendResponse", "result", "answers no request");
            self.unanswered = self.unanswered.checked_sub(1).ok_or_else(nobody_asked)?;
            let result = convert::append_result_from_pb(answer)?;
            match stale.checked_sub(1) {
                Some(fewer) => *stale = fewer,
                None => return Poll::Ready(Some(Ok(result))),
            }
        }
    }
}

/// Requests as Raft makes them, without those that are not worth a message.
struct Requests<S> {
    /// `None` after its end.
    input: Option<S>,
    /// The newest request, if it has no entries, and until when it waits for one that has.
    held: Option<(AppendEntriesRequest<TypeConfig>, Pin<Box<Sleep>>)>,
}

impl<S> Requests<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    fn have_ended(&self) -> bool {
        self.input.is_none() && self.held.is_none()
    }

    /// The next request that is to be sent now.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<AppendEntriesRequest<TypeConfig>>> {
        while let Some(input) = &mut self.input {
            match input.poll_next_unpin(cx) {
                Poll::Ready(Some(request)) if request.entries.is_empty() => {
                    let until = self.held.take().map(|(_, until)| until);
                    let until = until.unwrap_or_else(|| Box::pin(tokio::time::sleep(COMMIT_WAITS)));
                    self.held = Some((request, until));
                }
                Poll::Ready(Some(request)) => {
                    // It says what is committed too, and its answer answers both.
                    self.held = None;
                    return Poll::Ready(Some(request));
                }
                // A heartbeat, for example, is alone in its stream.
                Poll::Ready(None) => self.input = None,
                Poll::Pending => {
                    if let Some((_, until)) = &mut self.held {
                        ready!(until.as_mut().poll(cx));
                        break;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(self.held.take().map(|(request, _)| request))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Instant;

    use futures::channel::mpsc;

    use super::super::super::types::{Entry, Payload, Vote};
    use super::*;

    fn request(index: u64, committed: u64, has_entry: bool) -> AppendEntriesRequest<TypeConfig> {
        let log_id = |index| convert::log_id(statedb::LogId { term: 1, index });
        let entry = Entry { log_id: log_id(index + 1), payload: Payload::Blank };
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(log_id(index)),
            entries: Vec::from_iter(has_entry.then_some(entry)),
            leader_commit: Some(log_id(committed)),
        }
    }

    #[tokio::test]
    async fn a_commit_alone_waits_for_an_entry_and_not_for_long() {
        let (sender, input) = mpsc::unbounded();
        let mut requests = Requests { input: Some(input), held: None };
        let send = |request| sender.unbounded_send(request).expect("it is listened to");
        send(request(5, 3, false));
        send(request(5, 4, false));
        send(request(5, 5, true));
        let next = poll_fn(|cx| requests.poll_next(cx)).await.expect("a request");
        assert_eq!(next.entries.len(), 1, "it takes the place of those before");

        let began = Instant::now();
        send(request(6, 5, false));
        send(request(6, 6, false));
        let next = poll_fn(|cx| requests.poll_next(cx)).await.expect("a request");
        assert!(began.elapsed() >= COMMIT_WAITS);
        assert_eq!(next.leader_commit, request(6, 6, false).leader_commit, "the newest of them");
        assert!(!requests.have_ended());
        drop(sender);
        assert!(poll_fn(|cx| requests.poll_next(cx)).await.is_none());
        assert!(requests.have_ended());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_alone_in_its_stream_does_not_wait() {
        let input = stream::iter([request(5, 5, false)]);
        let mut requests = Requests { input: Some(input), held: None };
        let began = tokio::time::Instant::now();
        assert!(poll_fn(|cx| requests.poll_next(cx)).await.is_some());
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(poll_fn(|cx| requests.poll_next(cx)).await.is_none());
    }
}
