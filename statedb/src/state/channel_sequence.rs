//! Which requests on an open come too late, because their client has gone on over another channel (MS-SMB2 3.3.5.2.10).
//!
//! A client that loses a channel sends what was unanswered there again over another one, with the next channel
//! sequence. What the lost channel still delivers must not be done any more: it would undo what came after it.
//!
//! This is no part of the replicated state, but a rule for SMB servers to keep beside each open: it counts requests
//! that are in flight on one node. After a failover none is, for the node before is fenced. So a client that reclaims
//! its open on another node starts anew there, with the channel sequence of its reconnect.

use std::fmt;

/// `Open.ChannelSequence`, with the requests that are counted under it and under the ones before. Needed for dialects of
/// the SMB 3.x family only, and for requests that name an open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelSequence {
    newest: u16,
    /// How often it has changed. It tells apart what the 16 bits do not after a full turn.
    generation: u64,
    outstanding: u64,
    outstanding_before: u64,
}

/// A request that is counted, until [`ChannelSequence::end`] gets it back.
#[derive(Debug)]
#[must_use = "a request that does not end keeps replays out for ever"]
pub struct CountedRequest {
    generation: u64,
}

/// The request comes too late, or too early: what it repeats may still be under way. A WRITE, SET_INFO or IOCTL is
/// answered with STATUS_FILE_NOT_AVAILABLE. Any other request changes nothing and is done all the same, uncounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutdatedRequest {
    /// The channel sequence of the request.
    pub sequence: u16,
    /// The newest one of the open.
    pub newest: u16,
}

impl ChannelSequence {
    /// For an open whose CREATE, or reconnect, came with this channel sequence.
    #[must_use]
    pub fn new(sequence: u16) -> Self {
        Self { newest: sequence, generation: 0, outstanding: 0, outstanding_before: 0 }
    }

    /// A request has come; `is_replay` is SMB2_FLAGS_REPLAY_OPERATION.
    pub fn begin(&mut self, sequence: u16, is_replay: bool) -> Result<CountedRequest, OutdatedRequest> {
        /// Half of the 16 bits: what is further ahead is behind.
        const AHEAD_MAX: u16 = 0x7FFF;
        let outdated = OutdatedRequest { sequence, newest: self.newest };
        match sequence.wrapping_sub(self.newest) {
            0 => {}
            1..=AHEAD_MAX => {
                self.newest = sequence;
                self.generation += 1;
                self.outstanding_before += self.outstanding;
                self.outstanding = 0;
            }
            _ => return Err(outdated),
        }
        // What it repeats may be among those before: done twice, the second time could undo what came in between.
        if is_replay && self.outstanding_before > 0 {
            return Err(OutdatedRequest { newest: self.newest, ..outdated });
        }
        self.outstanding += 1;
        Ok(CountedRequest { generation: self.generation })
    }

    /// A request is answered (MS-SMB2 3.3.4.1).
    pub fn end(&mut self, request: CountedRequest) {
        let count = if request.generation == self.generation {
            &mut self.outstanding
        } else {
            &mut self.outstanding_before
        };
        *count = count.saturating_sub(1);
    }
}

impl fmt::Display for OutdatedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "channel sequence {:#06x} is outdated by {:#06x}", self.sequence, self.newest)
    }
}

impl std::error::Error for OutdatedRequest {}

#[cfg(test)]
mod tests {
    use super::*;

    /// row 7.channel-sequence: the series of smbtorture's replay.channel-sequence, with and without the replay flag.
    #[test]
    fn what_is_more_than_half_a_turn_ahead_is_outdated() {
        for is_replay in [false, true] {
            let mut open = ChannelSequence::new(0);
            for (sequence, expected) in [
                (0, true),
                (0x8000, false),
                (0x8001, false),
                (0xFFFE, false),
                (0xFFFF, false),
                (0x7FFF, true),
                (0x7FFE, false),
                (0, false),
                (0x1234, false),
                (0x8000, true),
                (0xFFFF, true),
                (0, true),
                (1, true),
                (0, false),
                (1, true),
                (0xFFFF, false),
            ] {
                let counted = open.begin(sequence, is_replay);
                assert_eq!(counted.is_ok(), expected, "{sequence:#06x} {is_replay}");
                if let Ok(request) = counted {
                    open.end(request);
                }
            }
        }
    }

    /// row 7.channel-sequence: a replay and what is under way.
    #[test]
    fn replay_waits_for_what_it_may_repeat() {
        let mut open = ChannelSequence::new(5);
        let lost = open.begin(5, false).unwrap();
        // The replay tells of the new channel, even though it comes too early.
        assert_eq!(open.begin(6, true).unwrap_err(), OutdatedRequest { sequence: 6, newest: 6 });
        assert_eq!(open.begin(5, false).unwrap_err(), OutdatedRequest { sequence: 5, newest: 6 });
        // What repeats nothing need not wait.
        let other = open.begin(6, false).unwrap();
        assert!(open.begin(6, true).is_err());
        open.end(lost);
        let replay = open.begin(6, true).unwrap();
        open.end(other);
        open.end(replay);
        assert_eq!(open, ChannelSequence { generation: 1, ..ChannelSequence::new(6) });
    }

    /// row 7.channel-sequence: 16 bits turn over.
    #[test]
    fn request_that_outlasts_a_full_turn_is_still_counted_as_one_before() {
        let mut open = ChannelSequence::new(0);
        let patient = open.begin(0, false).unwrap();
        for sequence in [0x7FFF, 0xFFFE, 0] {
            let request = open.begin(sequence, false).unwrap();
            open.end(request);
        }
        let request = open.begin(0, false).unwrap();
        assert!(open.begin(0, true).is_err(), "the first one is still under way");
        open.end(patient);
        let replay = open.begin(0, true).unwrap();
        open.end(request);
        open.end(replay);
    }

    #[test]
    fn outdated_requests_say_why() {
        let outdated = ChannelSequence::new(0x10).begin(0xF, false).unwrap_err();
        assert_eq!(outdated.to_string(), "channel sequence 0x000f is outdated by 0x0010");
    }
}
