//! What the cluster has to tell SMB servers and operators without having been asked.
//!
//! Every replica numbers the same events in the same way, so that who listened to one node can go on listening at
//! another. The state keeps the numbers, not the events: whoever was away for longer than a node remembers them looks
//! at the state instead, which says all that matters of them.

use std::fmt;

use super::ids::{DurableFileId, FileKey, LeaseId, Owner, SessionId, ShareName};
use super::oplock::{LeaseEpoch, LeaseState, LeaseVersion, OplockLevel};
use super::outcome::Outcome;
use super::time::Timestamp;

/// Something that happened, told to who has to act on it or wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place among all events of the cluster: each is one more than the one before.
    pub sequence: u64,
    /// The incarnation that has to act. `None` if it only is to be known.
    pub to: Option<Owner>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The client of an open must give up caching: OPLOCK_BREAK Notification (MS-SMB2 2.2.23.1, 3.3.4.6).
    OplockBreak {
        /// Of this open.
        open: DurableFileId,
        /// Down to this level.
        to: OplockLevel,
        /// Until when its acknowledgement is waited for; `None` if none is needed.
        ack_until: Option<Timestamp>,
    },
    /// A client must give up caching: Lease Break Notification (MS-SMB2 2.2.23.2, 3.3.4.7).
    LeaseBreak {
        /// By this lease.
        lease: LeaseId,
        /// What it allowed.
        from: LeaseState,
        /// What it allows now, or will when it is acknowledged.
        to: LeaseState,
        /// `NewEpoch`: 0 for a lease of version 1.
        epoch: LeaseEpoch,
        /// The form of the notification.
        version: LeaseVersion,
        /// Until when its acknowledgement is waited for; `None` if none is needed.
        ack_until: Option<Timestamp>,
    },
    /// A request that had to wait is decided.
    RequestFinished {
        /// The sequence under which it was asked for.
        sequence: u64,
        /// What was decided.
        outcome: Outcome,
    },
    /// An open was closed by somebody else than its client.
    OpenClosed {
        /// Which.
        open: DurableFileId,
        /// Why.
        reason: CloseReason,
    },
    /// A client has replaced this session by another one: it is over, and so are its opens here
    /// (MS-SMB2 3.3.5.5.3).
    SessionReplaced {
        /// The session.
        session: SessionId,
    },
    /// Nobody has the file open any more, and somebody wanted it deleted.
    DeleteFile {
        /// Which.
        file: FileKey,
        /// Its share.
        share: ShareName,
        /// Its path there.
        path: std::sync::Arc<str>,
    },
    /// An SMB service may act.
    NodeUp {
        /// In this incarnation.
        owner: Owner,
    },
    /// An SMB service was found dead, and is fenced.
    NodeDown {
        /// The incarnation.
        owner: Owner,
        /// How many of its opens wait for their clients now.
        disconnected: u64,
        /// How many of its opens did not outlive it.
        closed: u64,
    },
    /// Two SMB servers that do not know each other would have had one file open in ways that exclude each other. The
    /// serving node of a share makes that impossible, so somebody reaches the files by another way. The later open
    /// was refused.
    ConflictRefused {
        /// The open that was refused.
        open: DurableFileId,
        /// The one that was there.
        with: DurableFileId,
        /// Who has it.
        holder: Option<Owner>,
    },
    /// An SMB server that decides itself has reported an open that excludes another one, and is right. Both are
    /// recorded, except that between separate servers an other one that nobody has is closed.
    Contradiction {
        /// The open that was reported.
        open: DurableFileId,
        /// The one that was there.
        with: DurableFileId,
    },
}

/// Why an open was closed by somebody else than its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Its client was away and did not come back in time.
    Expired,
    /// Its client was away, and somebody wanted the file.
    Purged,
    /// A later instance of its application has taken the file over (MS-SMB2 3.3.5.9.13).
    AppInstanceReplaced,
    /// It lives on, but elsewhere: its client came back for it through another session.
    Reclaimed,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}", self.sequence)?;
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

/// `until=70s` where an acknowledgement is waited for.
struct Ack(Option<Timestamp>);

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(until) => write!(f, "ack until={until}"),
            None => f.write_str("no ack"),
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OplockBreak { open, to, ack_until } => {
                write!(f, "oplock-break open={open} to={to} {}", Ack(*ack_until))
            }
            Self::LeaseBreak { lease, from, to, epoch, version: _, ack_until } => {
                write!(f, "lease-break key={} {from}->{to} epoch={} {}", lease.key, epoch.0, Ack(*ack_until))
            }
            Self::RequestFinished { sequence, outcome } => {
                write!(f, "request-finished sequence={sequence} {outcome}")
            }
            Self::OpenClosed { open, reason } => write!(f, "open-closed open={open} reason={reason}"),
            Self::SessionReplaced { session } => write!(f, "session-replaced session={session}"),
            Self::DeleteFile { file, share, path } => {
                write!(f, "delete-file file={file} share={share} path={path}")
            }
            Self::NodeUp { owner } => write!(f, "node-up {owner}"),
            Self::NodeDown { owner, disconnected, closed } => {
                write!(f, "node-down {owner} disconnected={disconnected} closed={closed}")
            }
            Self::ConflictRefused { open, with, holder: Some(holder) } => {
                write!(f, "conflict-refused open={open} with={with} of {holder}")
            }
            Self::ConflictRefused { open, with, holder: None } => {
                write!(f, "conflict-refused open={open} with={with}")
            }
            Self::Contradiction { open, with } => write!(f, "contradiction open={open} with={with}"),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "expired",
            Self::Purged => "purged",
            Self::AppInstanceReplaced => "app-instance-replaced",
            Self::Reclaimed => "reclaimed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ids::{ClientGuid, Incarnation, LeaseKey, NodeId};

    const OPEN: DurableFileId = DurableFileId(7);
    const OWNER: Owner = Owner { node: NodeId(1), incarnation: Incarnation(2) };
    const FILE: FileKey = FileKey { device: 0xFD01, inode: 42, extid: 0 };

    #[test]
    fn every_event_is_one_line() {
        let until = Some(Timestamp(35_000));
        let lease_break = |ack_until| EventKind::LeaseBreak {
            lease: LeaseId { client_guid: ClientGuid([1; 16]), key: LeaseKey([9; 16]) },
            from: LeaseState(LeaseState::READ | LeaseState::HANDLE),
            to: LeaseState(LeaseState::READ),
            epoch: LeaseEpoch(3),
            version: LeaseVersion::V2,
            ack_until,
        };
        let other = DurableFileId(8);
        for (kind, line) in [
            (
                EventKind::OplockBreak { open: OPEN, to: OplockLevel::LevelII, ack_until: until },
                "oplock-break open=7 to=level2 ack until=35s",
            ),
            (
                EventKind::OplockBreak { open: OPEN, to: OplockLevel::None, ack_until: None },
                "oplock-break open=7 to=none no ack",
            ),
            (
                lease_break(until),
                "lease-break key=09090909090909090909090909090909 RH->R epoch=3 ack until=35s",
            ),
            (lease_break(None), "lease-break key=09090909090909090909090909090909 RH->R epoch=3 no ack"),
            (
                EventKind::RequestFinished { sequence: 5, outcome: Outcome::Proceed },
                "request-finished sequence=5 proceed",
            ),
            (EventKind::SessionReplaced { session: SessionId(70) }, "session-replaced session=70"),
            (
                EventKind::DeleteFile { file: FILE, share: ShareName::new("data"), path: "a.txt".into() },
                "delete-file file=fd01:42:0 share=data path=a.txt",
            ),
            (EventKind::NodeUp { owner: OWNER }, "node-up 1.2"),
            (
                EventKind::NodeDown { owner: OWNER, disconnected: 3, closed: 4 },
                "node-down 1.2 disconnected=3 closed=4",
            ),
            (
                EventKind::ConflictRefused { open: OPEN, with: other, holder: Some(OWNER) },
                "conflict-refused open=7 with=8 of 1.2",
            ),
            (
                EventKind::ConflictRefused { open: OPEN, with: other, holder: None },
                "conflict-refused open=7 with=8",
            ),
            (EventKind::Contradiction { open: OPEN, with: other }, "contradiction open=7 with=8"),
        ] {
            assert_eq!(kind.to_string(), line);
        }
        for (reason, name) in [
            (CloseReason::Expired, "expired"),
            (CloseReason::Purged, "purged"),
            (CloseReason::AppInstanceReplaced, "app-instance-replaced"),
            (CloseReason::Reclaimed, "reclaimed"),
        ] {
            let kind = EventKind::OpenClosed { open: OPEN, reason };
            assert_eq!(kind.to_string(), format!("open-closed open=7 reason={name}"));
        }
    }

    #[test]
    fn an_event_says_who_has_to_act() {
        let kind = EventKind::NodeUp { owner: OWNER };
        let told = Event { sequence: 9, to: Some(OWNER), kind };
        assert_eq!(told.to_string(), "event 9 to 1.2: node-up 1.2");
        assert_eq!(Event { to: None, ..told }.to_string(), "event 9: node-up 1.2");
    }
}
