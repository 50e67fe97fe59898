//! The way that a test's connections took, and what it proves.

use std::fmt;

use crate::{
    proxy::{Event, Harm, Mode},
    smb_client::NtStatus,
};

/// What a test's proxy saw.
#[derive(Clone, Debug, Default)]
pub struct Path(pub Vec<Event>);

/// A tree connect at one node while another one served the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeConnectBeside {
    /// The connection on which it was asked for.
    pub connection: usize,
    /// The node that was asked.
    pub backend: usize,
    /// The answer; `None` if there was none.
    pub status: Option<NtStatus>,
}

impl Path {
    /// Whether the test did what its mode is about. A test that passes without that proves nothing.
    pub fn shows(&self, mode: Mode) -> bool {
        let first = self.routes().next().map(|(_, backend)| backend);
        match mode {
            Mode::Pin => true,
            // Somebody was given to another node than the first client.
            Mode::RoundRobin | Mode::Switch | Mode::KillSplit => {
                self.routes().any(|(_, backend)| Some(backend) != first)
            }
            // Somebody came after the harm, and to the node that the mode means.
            Mode::Kill | Mode::Partition => self.after_harm().any(|(harmed, next)| harmed != next),
            Mode::KillChild => self.after_harm().any(|(harmed, next)| harmed == next),
        }
    }

    /// How often a node was harmed and the client has come back after it.
    pub fn returns(&self) -> usize {
        self.after_harm().count()
    }

    /// Why a node could not be harmed, if that is so.
    pub fn harm_failed(&self) -> Option<&str> {
        self.0.iter().find_map(|event| match event {
            Event::HarmFailed { problem, .. } => Some(problem.as_str()),
            _ => None,
        })
    }

    /// Every tree connect that was asked of one node while another served the share to an open connection.
    pub fn tree_connects_beside(&self) -> Vec<TreeConnectBeside> {
        let mut found: Vec<TreeConnectBeside> = Vec::new();
        // Open connections with their nodes, and whether they have a tree connect.
        let mut open: Vec<(usize, usize, bool)> = Vec::new();
        for event in &self.0 {
            match *event {
                Event::Routed { connection, backend } => {
                    if open.iter().any(|&(_, other, served)| served && other != backend) {
                        found.push(TreeConnectBeside { connection, backend, status: None });
                    }
                    open.push((connection, backend, false));
                }
                Event::TreeConnect { connection, status } => {
                    let beside = found.iter_mut().find(|beside| beside.connection == connection);
                    beside.into_iter().for_each(|beside| beside.status = beside.status.or(Some(status)));
                    let granted = open.iter_mut().filter(|&&mut (routed, ..)| routed == connection);
                    granted.for_each(|(_, _, served)| *served |= status == NtStatus::SUCCESS);
                }
                Event::ClosedByClient { connection } => open.retain(|&(routed, ..)| routed != connection),
                Event::Harmed { backend, harm: Harm::Kill } => open.retain(|&(_, at, _)| at != backend),
                Event::Harmed { .. } | Event::Refused { .. } | Event::HarmFailed { .. } => {}
            }
        }
        found
    }

    /// Connections and their nodes.
    fn routes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.0.iter().filter_map(|event| match *event {
            Event::Routed { connection, backend } => Some((connection, backend)),
            _ => None,
        })
    }

    /// For each harmed node to which the client came back, that node and the one that the next connection went to.
    fn after_harm(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut harmed = None;
        self.0.iter().filter_map(move |event| match *event {
            Event::Harmed { backend, .. } => {
                harmed = Some(backend);
                None
            }
            Event::Routed { backend, .. } => harmed.take().map(|harmed| (harmed, backend)),
            _ => None,
        })
    }
}

/// In short: the nodes of all connections, with a mark where one was harmed. The long form is the proxy's log.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<(String, usize)> = Vec::new();
        for event in &self.0 {
            let word = match event {
                Event::Routed { backend, .. } => backend.to_string(),
                Event::Refused { .. } => "-".to_owned(),
                Event::Harmed { .. } => "†".to_owned(),
                _ => continue,
            };
            match words.last_mut() {
                Some((last, count)) if *last == word => *count += 1,
                _ => words.push((word, 1)),
            }
        }
        for (index, (word, count)) in words.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{word}")?;
            if *count > 1 {
                write!(f, "×{count}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(connection: usize, backend: usize) -> Event {
        Event::Routed { connection, backend }
    }

    fn tree_connect(connection: usize, status: NtStatus) -> Event {
        Event::TreeConnect { connection, status }
    }

    fn closed(connection: usize) -> Event {
        Event::ClosedByClient { connection }
    }

    fn killed(backend: usize) -> Event {
        Event::Harmed { backend, harm: Harm::Kill }
    }

    #[test]
    fn a_kill_counts_only_if_the_client_comes_back_elsewhere() {
        let cases = [
            (vec![routed(1, 0)], false, "0"),
            (vec![routed(1, 0), closed(1), killed(0)], false, "0 †"),
            (vec![routed(1, 0), closed(1), killed(0), routed(2, 1), routed(3, 1)], true, "0 † 1×2"),
            (vec![routed(1, 0), closed(1), killed(0), routed(2, 0)], false, "0 † 0"),
            (vec![routed(1, 0), routed(2, 0)], false, "0×2"),
        ];
        for (events, shows, short) in cases {
            let path = Path(events);
            assert_eq!((path.shows(Mode::Kill), path.to_string().as_str()), (shows, short));
        }
    }

    #[test]
    fn a_tree_connect_is_beside_another_only_while_that_stands() {
        let refused = NtStatus::FILE_LOCK_CONFLICT;
        let path = Path(vec![
            routed(1, 0),
            tree_connect(1, NtStatus::SUCCESS),
            routed(2, 1),
            tree_connect(2, refused),
            routed(3, 0),
            tree_connect(3, NtStatus::SUCCESS),
            closed(1),
            routed(4, 2),
            closed(3),
            routed(5, 1),
            tree_connect(5, NtStatus::SUCCESS),
        ]);
        let expected = [
            TreeConnectBeside { connection: 2, backend: 1, status: Some(refused) },
            TreeConnectBeside { connection: 4, backend: 2, status: None },
        ];
        assert_eq!(path.tree_connects_beside(), expected);
    }
}
