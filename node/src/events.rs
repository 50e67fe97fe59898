//! The newest events of the cluster, kept in memory for who listens to this node.
//!
//! Every replica numbers the same events in the same way (see [`statedb::Event`]), and every node keeps those that it
//! has applied itself. So a [`Subscription`] that ended at one node goes on at another without missing or seeing twice
//! any event. One that comes too late is told so ([`Missed`]), and looks at the state instead.
//!
//! # What must stay true
//!
//! - `first ≤ every event kept < next`, without holes.
//! - An event is kept after its entry is applied in the state that others read, never before.
//! - A listener costs nobody anything but itself: it is woken when there is something to read, and what it does not
//!   read in time is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use statedb::{Event, EventKind};
use tokio::sync::watch;
use tracing::{error, warn};

/// How many events are kept: at a thousand breaks a second, those of a minute. Who is away for longer has other
/// things to look at than events.
const EVENTS_MAX: usize = 65_536;

/// How many bytes they may take together. Only the paths of files that are to be deleted are long, at most 64 KiB.
const EVENT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How many events a listener gets at once.
const READ_MAX: usize = 256;

/// The newest events.
#[derive(Debug)]
pub struct EventRing {
    kept: Mutex<Kept>,
    /// The number of the next event, to wait for.
    next: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    /// The number of the first event in `events`, and of the next one if there is none.
    first: u64,
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    troubles: Troubles,
}

/// Events that no cluster should see, counted since this process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// [`EventKind::ConflictRefused`].
    pub conflicts_refused: u64,
    /// [`EventKind::Contradiction`].
    pub contradictions: u64,
}

/// Events that were asked for are not kept here (any more). What they said is in the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("events before {first} are not kept here: look at the state instead")]
pub struct Missed {
    /// The first event that is.
    pub first: u64,
}

impl EventRing {
    /// A ring without events, for a state whose next one has this number.
    #[must_use]
    pub fn new(next: u64) -> Self {
        let kept = Kept { first: next, events: VecDeque::new(), bytes: 0, troubles: Troubles::default() };
        Self { kept: Mutex::new(kept), next: watch::Sender::new(next) }
    }

    /// Adds what a state has told that others can read by now, in order.
    ///
    /// # Panics
    ///
    /// If an event does not follow the one before it: a replica that numbers events in another way than its peers
    /// must not be listened to.
    pub fn push(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut kept = self.kept();
        for event in events {
            assert_eq!(event.sequence, kept.next(), "events follow each other");
            kept.troubles.note(&event);
            kept.bytes += bytes(&event);
            kept.events.push_back(Arc::new(event));
        }
        kept.drop_oldest();
        self.next.send_replace(kept.next());
    }

    /// Starts afresh, for a state that has come as a whole: what happened until then, nobody has told this node.
    pub fn restart(&self, next: u64) {
        let mut kept = self.kept();
        (kept.first, kept.bytes) = (next, 0);
        kept.events.clear();
        self.next.send_replace(next);
    }

    /// Listens from the event with the number `position` on. One that is not there yet is waited for, wherever it is
    /// counted from: this node may be behind the one that told its number.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, position: u64) -> Subscription {
        Subscription { ring: Arc::clone(self), next: self.next.subscribe(), position }
    }

    /// What an operator should look at.
    #[must_use]
    pub fn troubles(&self) -> Troubles {
        self.kept().troubles
    }

    fn read(&self, position: u64) -> Result<Vec<Arc<Event>>, Missed> {
        let kept = self.kept();
        let first = kept.first;
        let skip = position.checked_sub(first).ok_or(Missed { first })?;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        Ok(kept.events.iter().skip(skip).take(READ_MAX).cloned().collect())
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // The only panic under this lock ends the node; what was kept before it is true.
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Kept {
    fn next(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    fn drop_oldest(&mut self) {
        while self.events.len() > EVENTS_MAX || self.bytes > EVENT_BYTES_MAX {
            let Some(dropped) = self.events.pop_front() else { return };
            self.first += 1;
            self.bytes -= bytes(&dropped);
        }
    }
}

impl Troubles {
    /// Counts an event that is one, and tells the operator of this node.
    fn note(&mut self, event: &Event) {
        match event.kind {
            EventKind::ConflictRefused { .. } => {
                self.conflicts_refused += 1;
                warn!(
                    %event,
                    "two SMB servers would have had one file open in ways that exclude each other, and the later was refused: are the files of this share reached by another way?"
                );
            }
            EventKind::Contradiction { .. } => {
                self.contradictions += 1;
                error!(
                    %event,
                    "an SMB server has granted an open that excludes another one of its file: under CTDB, is that cluster whole? Between separate servers, one whose client was away is closed"
                );
            }
            _ => {}
        }
    }
}

fn bytes(event: &Event) -> usize {
    let names = match &event.kind {
        EventKind::DeleteFile { share, path, .. } => share.as_str().len() + path.len(),
        _ => 0,
    };
    size_of::<Event>() + names
}

/// A listener, and where it is.
#[derive(Debug)]
pub struct Subscription {
    ring: Arc<EventRing>,
    next: watch::Receiver<u64>,
    position: u64,
}

impl Subscription {
    /// The number of the event that is read next.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on at another event: after [`Missed`] at the one that the state, which was looked at instead, says is next.
    pub fn go_on_from(&mut self, position: u64) {
        self.position = position;
    }

    /// Waits until there are events to read, and reads some: at least one, in order. Nothing is lost if the wait is
    /// given up.
    ///
    /// # Errors
    ///
    /// If events were dropped that this listener has not read. It stays where it is.
    pub async fn read(&mut self) -> Result<Vec<Arc<Event>>, Missed> {
        let position = self.position;
        // It fails without a sender, which is in the ring that this holds.
        let _ = self.next.wait_for(|next| *next > position).await;
        let events = self.ring.read(position)?;
        self.position += events.len() as u64;
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use statedb::{DurableFileId, FileKey, SessionId, ShareName};
    use tokio::time::timeout;

    use super::*;

    /// Means "it hangs".
    const PATIENCE: Duration = Duration::from_secs(30);

    fn event(sequence: u64) -> Event {
        Event { sequence, to: None, kind: EventKind::SessionReplaced { session: SessionId(sequence) } }
    }

    fn events(numbers: std::ops::Range<u64>) -> Vec<Event> {
        numbers.map(event).collect()
    }

    fn ring(next: u64) -> Arc<EventRing> {
        Arc::new(EventRing::new(next))
    }

    fn numbers(events: &[Arc<Event>]) -> Vec<u64> {
        events.iter().map(|event| event.sequence).collect()
    }

    async fn read(subscription: &mut Subscription) -> Result<Vec<u64>, Missed> {
        let read = timeout(PATIENCE, subscription.read()).await.expect("it does not hang");
        read.map(|events| numbers(&events))
    }

    #[tokio::test]
    async fn a_listener_reads_from_its_place_on_and_each_event_once() {
        let ring = ring(100);
        ring.push(events(100..103));
        let mut subscription = ring.subscribe(101);
        assert_eq!(read(&mut subscription).await, Ok(vec![101, 102]));
        ring.push(events(103..104));
        assert_eq!(read(&mut subscription).await, Ok(vec![103]));
        assert_eq!(subscription.position(), 104);
    }

    #[tokio::test]
    async fn a_listener_is_woken_by_an_event_and_by_nothing_else() {
        let ring = ring(0);
        let mut subscription = ring.subscribe(2);
        let reading = tokio::spawn(async move { read(&mut subscription).await });
        // Before its place: it goes on waiting.
        ring.push(events(0..2));
        tokio::task::yield_now().await;
        assert!(!reading.is_finished());
        ring.push(events(2..4));
        assert_eq!(reading.await.expect("it does not panic"), Ok(vec![2, 3]));
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_nothing() {
        let ring = ring(0);
        let mut subscription = ring.subscribe(0);
        assert!(timeout(Duration::from_millis(1), subscription.read()).await.is_err());
        ring.push(events(0..1));
        assert_eq!(read(&mut subscription).await, Ok(vec![0]));
    }

    #[tokio::test]
    async fn the_newest_events_are_kept_and_a_listener_is_told_of_the_others() {
        let ring = ring(0);
        let all = EVENTS_MAX as u64 + 10;
        ring.push(events(0..all));
        let mut late = ring.subscribe(9);
        assert_eq!(read(&mut late).await, Err(Missed { first: 10 }));
        assert_eq!(late.position(), 9, "it stays where it is");
        late.go_on_from(10);
        let mut seen = Vec::new();
        while seen.len() < EVENTS_MAX {
            let more = read(&mut late).await.expect("these are kept");
            assert!(more.len() <= READ_MAX);
            seen.extend(more);
        }
        assert!(seen.into_iter().eq(10..all));
    }

    #[tokio::test]
    async fn long_events_are_bounded_in_bytes() {
        let ring = ring(0);
        let path: Arc<str> = "p".repeat(64 * 1024).into();
        let share = ShareName::new("data");
        let delete = |sequence| {
            let file = FileKey { device: 1, inode: sequence, extid: 0 };
            let kind = EventKind::DeleteFile { file, share: share.clone(), path: Arc::clone(&path) };
            Event { sequence, to: None, kind }
        };
        let all = 2 * (EVENT_BYTES_MAX / path.len()) as u64;
        ring.push((0..all).map(delete).collect());
        let kept = ring.kept();
        assert!(kept.bytes <= EVENT_BYTES_MAX && kept.first > 0);
        assert_eq!((kept.next(), kept.bytes), (all, kept.events.iter().map(|event| bytes(event)).sum()));
    }

    #[tokio::test]
    async fn a_state_that_came_as_a_whole_is_news_to_all_but_those_who_know_it() {
        let ring = ring(0);
        ring.push(events(0..5));
        let (mut behind, mut ahead) = (ring.subscribe(3), ring.subscribe(20));
        let waiting = tokio::spawn({
            let mut subscription = ring.subscribe(5);
            async move { read(&mut subscription).await }
        });
        tokio::task::yield_now().await;
        ring.restart(20);
        assert_eq!(read(&mut behind).await, Err(Missed { first: 20 }));
        assert_eq!(waiting.await.expect("it does not panic"), Err(Missed { first: 20 }), "it is woken");
        ring.push(events(20..21));
        assert_eq!(read(&mut ahead).await, Ok(vec![20]), "it had heard the rest elsewhere");
    }

    #[test]
    fn troubles_are_counted() {
        let ring = ring(0);
        let (open, with) = (DurableFileId(1), DurableFileId(2));
        let kinds = [
            EventKind::ConflictRefused { open, with, holder: None },
            EventKind::Contradiction { open, with },
            EventKind::SessionReplaced { session: SessionId(1) },
            EventKind::Contradiction { open, with },
        ];
        let event = |(sequence, kind)| Event { sequence, to: None, kind };
        ring.push((0..).zip(kinds).map(event).collect());
        assert_eq!(ring.troubles(), Troubles { conflicts_refused: 1, contradictions: 2 });
    }
}
