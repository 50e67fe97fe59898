//! Lanes: connections between nodes for what is said thousands of times a second, entries and forwarded proposals.
//!
//! Everything else between nodes is gRPC, at the same port. A change of an open crosses the network several times. On a
//! lane each time is one write and wakes one task at each end; HTTP/2 has tasks of its own in between.
//!
//! ```text
//!  caller ──► PREFACE, Hello                    by the first byte the listener tells a lane from gRPC
//!         ◄── HelloAnswer                       welcome, or why not
//!         ──► AppendRequest   … ◄── AppendResponse   …    entries: answers in the order of the requests
//!  or     ──► ProposeRequest  … ◄── ProposeResponse  …    proposals: answers in any order, by id
//! ```
//!
//! A frame is the length of a message, 32 bits, little-endian, and the message, a protobuf.
//!
//! # What must stay true
//!
//! - Nothing is believed before the hello: who is of another cluster, or means another node, is told so and hung up on.
//! - A frame longer than [`MESSAGE_LEN_MAX`] ends the connection before it is held in memory, and so does one that makes no
//!   sense.
//! - A peer that is cut off is noticed by TCP, not by a late answer: a slow disk is no broken wire.

mod forward;
mod leader;
mod serve;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use prost::Message;
use prost::bytes::{Buf, BufMut, BytesMut};
use proto::WireError;
use proto::pb::raft::v1 as pb;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_util::codec::{Decoder, Encoder, Framed};

use super::MESSAGE_LEN_MAX;

pub(super) use self::forward::{ForwardError, Forwarder};
pub(super) use self::leader::LeaderLane;
pub(super) use self::serve::serve;

/// With these bytes a lane begins. HTTP/2 begins with another one than the first of them.
pub const PREFACE: [u8; 8] = *b"HOLDFAST";

/// The length of the length before each message.
const PREFIX_LEN: usize = size_of::<u32>();

/// How long whoever opens a lane may take to say what it is for.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// When nothing was heard for so long, TCP asks whether the other end is still there; and so often until it answers. It
/// counts in seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A connection on which messages come as `In`.
pub(super) type Lane<In> = Framed<TcpStream, Frames<In>>;

/// Why a lane is not open, or not any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaneError {
    /// It could not be made, or broke.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The other end does not begin to speak, or takes too long to be reached.
    #[error("nothing was heard within {0:?}")]
    Silent(Duration),
    /// The other end refuses, and says why.
    #[error("refused: {0}")]
    Refused(String),
    /// What came first is no lane.
    #[error("it does not begin like a lane; is the other end a Holdfast of this version?")]
    NoLane,
    /// A message is longer than any that is sensible.
    #[error("a message of {0} bytes is longer than {MESSAGE_LEN_MAX}")]
    TooLong(usize),
    /// A message makes no sense.
    #[error("a message cannot be understood")]
    Nonsense(#[from] WireError),
    /// The other end hung up in the middle of something.
    #[error("the other end hung up")]
    Closed,
}

impl LaneError {
    /// Whether the other end has only gone away, as it may.
    pub(super) fn is_goodbye(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match self {
            Self::Closed => true,
            Self::Io(error) => matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof),
            _ => false,
        }
    }
}

/// Cuts a stream of bytes into messages, and makes one of messages.
pub(super) struct Frames<In> {
    incoming: PhantomData<fn() -> In>,
}

impl<In> fmt::Debug for Frames<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").finish_non_exhaustive()
    }
}

impl<In> Default for Frames<In> {
    fn default() -> Self {
        Self { incoming: PhantomData }
    }
}

impl<In, Out: Message> Encoder<Out> for Frames<In> {
    type Error = LaneError;

    fn encode(&mut self, message: Out, bytes: &mut BytesMut) -> Result<(), LaneError> {
        let len = message.encoded_len();
        let prefix = u32::try_from(len).ok().filter(|_| len <= MESSAGE_LEN_MAX);
        bytes.reserve(PREFIX_LEN + len);
        bytes.put_u32_le(prefix.ok_or(LaneError::TooLong(len))?);
        message.encode(bytes).expect("room was made for it");
        Ok(())
    }
}

impl<In: Message + Default> Decoder for Frames<In> {
    type Item = In;
    type Error = LaneError;

    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<In>, LaneError> {
        let Some((prefix, rest)) = bytes.split_first_chunk() else { return Ok(None) };
        let len = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        if len > MESSAGE_LEN_MAX {
            return Err(LaneError::TooLong(len));
        }
        // No room is made ahead: whoever announces much and sends little holds little.
        if rest.len() < len {
            return Ok(None);
        }
        bytes.advance(PREFIX_LEN);
        let message = In::decode(bytes.split_to(len));
        Ok(Some(message.map_err(|error| WireError::undecodable("frame", &error))?))
    }

    fn decode_eof(&mut self, bytes: &mut BytesMut) -> Result<Option<In>, LaneError> {
        match self.decode(bytes)? {
            None if !bytes.is_empty() => Err(LaneError::Closed),
            message => Ok(message),
        }
    }
}

/// Opens a lane to a peer within `patience`. One that does not acknowledge what it is sent for as long counts as gone.
pub(super) async fn open<In: Message + Default>(
    address: &str,
    hello: pb::Hello,
    patience: Duration,
) -> Result<Lane<In>, LaneError> {
    let opened = async {
        let stream = TcpStream::connect(address).await?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_user_timeout(Some(patience))?;
        keep_alive(&stream)?;
        let mut lane = Framed::new(stream, Frames::<pb::HelloAnswer>::default());
        lane.write_buffer_mut().put_slice(&PREFACE);
        lane.send(hello).await?;
        match lane.next().await.ok_or(LaneError::Closed)?? {
            pb::HelloAnswer { refused_because: None } => Ok(lane.map_codec(|_| Frames::default())),
            pb::HelloAnswer { refused_because: Some(reason) } => Err(LaneError::Refused(reason)),
        }
    };
    tokio::time::timeout(patience, opened).await.unwrap_or(Err(LaneError::Silent(patience)))
}

/// Waits for whoever has connected to say what for.
async fn accept(mut stream: TcpStream) -> Result<(pb::Hello, Lane<pb::Hello>), LaneError> {
    let accepted = async {
        keep_alive(&stream)?;
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await?;
        if preface != PREFACE {
            return Err(LaneError::NoLane);
        }
        let mut lane = Framed::new(stream, Frames::<pb::Hello>::default());
        let hello = lane.next().await.ok_or(LaneError::Closed)??;
        Ok((hello, lane))
    };
    tokio::time::timeout(HELLO_WITHIN, accepted).await.unwrap_or(Err(LaneError::Silent(HELLO_WITHIN)))
}

/// Lets TCP notice that the other end is gone, also where nothing is said for long.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE);
    SockRef::from(stream).set_tcp_keepalive(&keep_alive)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn request(id: u64) -> pb::ProposeRequest {
        pb::ProposeRequest { command: None, id }
    }

    fn encoded(messages: impl IntoIterator<Item = pb::ProposeRequest>) -> BytesMut {
        let mut bytes = BytesMut::new();
        for message in messages {
            Frames::<()>::default().encode(message, &mut bytes).expect("they are short");
        }
        bytes
    }

    #[test]
    fn messages_come_as_they_went_wherever_they_are_cut() {
        let sent: Vec<_> = [0, 1, u64::MAX].map(request).into();
        let bytes = encoded(sent.clone());
        for cut in 0..=bytes.len() {
            let mut frames = Frames::<pb::ProposeRequest>::default();
            let (mut received, mut got) = (BytesMut::new(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                received.extend_from_slice(part);
                while let Some(message) = frames.decode(&mut received).expect("they are sound") {
                    got.push(message);
                }
            }
            assert_eq!(got, sent);
        }
    }

    #[test]
    fn a_length_beyond_every_message_is_refused_before_anything_is_held() {
        for len in [MESSAGE_LEN_MAX + 1, u32::MAX as usize] {
            let mut bytes = BytesMut::from(&u32::try_from(len).expect("it fits").to_le_bytes()[..]);
            let refused = Frames::<pb::ProposeRequest>::default().decode(&mut bytes);
            assert!(matches!(refused, Err(LaneError::TooLong(found)) if found == len), "{refused:?}");
        }
        let mut bytes = BytesMut::from(&u32::try_from(MESSAGE_LEN_MAX).expect("it fits").to_le_bytes()[..]);
        let more = Frames::<pb::ProposeRequest>::default().decode(&mut bytes);
        assert!(matches!(more, Ok(None)), "{more:?}");
        assert!(bytes.capacity() < 1024, "room is made when something comes");
    }

    #[test]
    fn a_message_that_is_too_long_is_not_sent() {
        let answer = pb::HelloAnswer { refused_because: Some("x".repeat(MESSAGE_LEN_MAX)) };
        let refused = Frames::<()>::default().encode(answer, &mut BytesMut::new());
        assert!(matches!(refused, Err(LaneError::TooLong(_))), "{refused:?}");
    }

    /// What the other end makes of these bytes.
    async fn accepted(bytes: &[u8]) -> Result<pb::Hello, LaneError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(bytes).await.expect("sent");
        stream.shutdown().await.expect("nothing more");
        let (accepted, _) = listener.accept().await.expect("a connection");
        accept(accepted).await.map(|(hello, _)| hello)
    }

    #[tokio::test]
    async fn only_a_preface_and_a_hello_begin_a_lane() {
        let hello = pb::Hello { envelope: None, lane: pb::Lane::Entries.into() };
        let mut frame = BytesMut::new();
        Frames::<()>::default().encode(hello, &mut frame).expect("it is short");
        let sound = [&PREFACE[..], &frame].concat();
        assert_eq!(accepted(&sound).await.expect("it is sound"), hello);

        let other = [b"HOLDSLOW", &frame[..]].concat();
        assert!(matches!(accepted(&other).await, Err(LaneError::NoLane)));
        for end in 0..sound.len() {
            let error = accepted(&sound[..end]).await.expect_err("half a hello is none");
            assert!(error.is_goodbye(), "{end}: {error}");
        }
        let mut nonsense = sound.clone();
        nonsense[PREFACE.len() + PREFIX_LEN] = 0xff;
        assert!(matches!(accepted(&nonsense).await, Err(LaneError::Nonsense(_))));
    }

    #[tokio::test]
    async fn whoever_does_not_answer_a_hello_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let hello = pb::Hello { envelope: None, lane: pb::Lane::Entries.into() };
        let silent = open::<pb::AppendResponse>(&address, hello, Duration::from_millis(50)).await;
        assert!(matches!(silent, Err(LaneError::Silent(_))), "{silent:?}");
        drop(listener);
        let nobody = open::<pb::AppendResponse>(&address, hello, PATIENCE).await;
        assert!(matches!(nobody, Err(LaneError::Io(_))), "{nobody:?}");
    }
}
