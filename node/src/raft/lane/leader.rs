//! A leader's end of a lane of entries.
//!
//! Raft gives a stream of requests and takes the stream of their answers, one pair after the other. One lane carries them
//! all: the follower does not know where one ends and the next begins. Raft also loses interest in the middle of a stream,
//! after a heartbeat that takes too long for example. The lane goes on even then, and answers that nobody waits for any
//! more are skipped: a connection made anew each time would never be ready on a busy machine.

use std::fmt;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{SinkExt, Stream, StreamExt, stream};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use proto::WireError;
use proto::pb::raft::v1 as pb;
use tokio::task::JoinHandle;

use super::super::convert;
use super::super::types::TypeConfig;
use super::{Lane, LaneError};

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
        let mut input = Some(input);
        Ok(stream::poll_fn(move |cx| {
            let Self::Open(open) = self else { return Poll::Ready(None) };
            let answer = ready!(open.poll_answer(&mut input, &mut stale, cx));
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

    /// Sends what there is to send, and looks for an answer after `stale` others. There is none any more when `input` has
    /// ended, which makes it `None`, and everything is answered.
    fn poll_answer<S>(
        &mut self,
        input: &mut Option<S>,
        stale: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<StreamAppendResult<TypeConfig>, LaneError>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
    {
        while let Some(requests) = input
            && SinkExt::<pb::AppendRequest>::poll_ready_unpin(&mut self.frames, cx)?.is_ready()
        {
            match requests.poll_next_unpin(cx) {
                Poll::Ready(Some(request)) => {
                    self.frames.start_send_unpin(convert::append_request_to_pb(request))?;
                    self.unanswered += 1;
                }
                Poll::Ready(None) => *input = None,
                Poll::Pending => break,
            }
        }
        // What does not go out now goes out when there is room: then this is polled again.
        let _ = SinkExt::<pb::AppendRequest>::poll_flush_unpin(&mut self.frames, cx)?;
        loop {
            if input.is_none() && self.unanswered == 0 {
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
