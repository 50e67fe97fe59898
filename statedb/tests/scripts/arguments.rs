//! The arguments of a script's command: `key=value` pairs, and words.

use std::collections::VecDeque;

use goldenscript::ArgumentConsumer;
use statedb::{
    AccessMask, CreateAction, DurableFileId, LeaseState, LockKind, Millis, NodeId, OplockLevel, ShareAccess,
};

use super::Result;

/// What has not been looked at yet. A command that leaves something over is refused.
pub(crate) struct Arguments<'a> {
    pairs: ArgumentConsumer<'a>,
    words: VecDeque<&'a str>,
}

impl<'a> Arguments<'a> {
    pub(crate) fn new(command: &'a goldenscript::Command) -> Self {
        let mut pairs = command.consume_args();
        let words = std::iter::from_fn(|| pairs.next_pos()).collect();
        Self { pairs, words }
    }

    /// The first word that is left.
    pub(crate) fn next_word(&mut self, what: &str) -> Result<&'a str> {
        self.words.pop_front().ok_or_else(|| format!("{what} is missing").into())
    }

    /// Whether this word is among those that are left.
    pub(crate) fn has(&mut self, word: &str) -> bool {
        let position = self.words.iter().position(|candidate| *candidate == word);
        position.and_then(|position| self.words.remove(position)).is_some()
    }

    pub(crate) fn take<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T>) -> Result<Option<T>> {
        self.pairs.take_key(key).map(parse).transpose()
    }

    pub(crate) fn required<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        self.take(key, parse)?.ok_or_else(|| format!("{key}= is missing").into())
    }

    /// Refuses what is left over.
    pub(crate) fn finish(self) -> Result<()> {
        self.pairs.reject_next()?;
        match self.words.front() {
            Some(word) => Err(format!("what does {word} mean here?").into()),
            None => Ok(()),
        }
    }
}

pub(crate) fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(value: &str) -> Result<T> {
    Ok(value.parse()?)
}

pub(crate) fn text(value: &str) -> Result<String> {
    Ok(value.to_owned())
}

pub(crate) fn truth(value: &str) -> Result<bool> {
    Ok(value.parse()?)
}

pub(crate) fn length(value: &str) -> Result<Millis> {
    if let Some(millis) = value.strip_suffix("ms") {
        return Ok(Millis(millis.parse()?));
    }
    let seconds: u64 = value.strip_suffix('s').ok_or("a time is 10s or 1500ms")?.parse()?;
    Ok(Millis(seconds * 1000))
}

pub(crate) fn node_id(value: &str) -> Result<NodeId> {
    Ok(NodeId(value.strip_prefix('n').ok_or("a node is n1")?.parse()?))
}

pub(crate) fn open_id(value: &str) -> Result<DurableFileId> {
    Ok(DurableFileId(value.parse()?))
}

/// A short name, as 16 bytes. `zero` is none.
pub(crate) fn bytes16(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    if name != "zero" {
        bytes[..name.len()].copy_from_slice(name.as_bytes());
    }
    bytes
}

/// A lease state in the letters of the specification, or `none`.
pub(crate) fn lease_state(value: &str) -> Result<LeaseState> {
    let mut state = 0;
    for letter in value.strip_prefix("none").unwrap_or(value).chars() {
        state |= match letter {
            'R' => LeaseState::READ,
            'W' => LeaseState::WRITE,
            'H' => LeaseState::HANDLE,
            _ => return Err(format!("{value} is no lease state").into()),
        };
    }
    Ok(LeaseState(state))
}

pub(crate) fn oplock_level(value: &str) -> Result<OplockLevel> {
    use OplockLevel::{Batch, Exclusive, Lease, LevelII, None};
    [None, LevelII, Exclusive, Batch, Lease]
        .into_iter()
        .find(|level| level.to_string() == value)
        .ok_or_else(|| format!("there is no oplock level {value}").into())
}

/// The bits of the letters `r`, `w` and `d`.
fn letters(value: &str, bits: [u32; 3]) -> Result<u32> {
    let mut mask = 0;
    for letter in value.chars() {
        let position =
            "rwd".find(letter).ok_or_else(|| format!("{value} is not of the letters r, w and d"))?;
        mask |= bits[position];
    }
    Ok(mask)
}

/// FILE_SHARE_READ, _WRITE and _DELETE by their letters, or `none`.
pub(crate) fn sharing(value: &str) -> Result<ShareAccess> {
    Ok(ShareAccess(letters(value.strip_prefix("none").unwrap_or(value), [1, 2, 4])?))
}

/// FILE_READ_DATA, FILE_WRITE_DATA and DELETE by their letters, or none of them (`stat`); FILE_READ_ATTRIBUTES and
/// SYNCHRONIZE always.
pub(crate) fn access(value: &str) -> Result<AccessMask> {
    let data = letters(value.strip_prefix("stat").unwrap_or(value), [0x1, 0x2, 0x1_0000])?;
    Ok(AccessMask(data | 0x0010_0080))
}

pub(crate) fn create_action(value: &str) -> Result<CreateAction> {
    use CreateAction::{Created, Opened, Overwritten, Superseded};
    [Superseded, Opened, Created, Overwritten]
        .into_iter()
        .find(|action| action.to_string() == value)
        .ok_or_else(|| format!("there is no action {value}").into())
}

pub(crate) fn lock_kind(value: &str) -> Result<LockKind> {
    match value {
        "shared" => Ok(LockKind::Shared),
        "exclusive" => Ok(LockKind::Exclusive),
        "unlock" => Ok(LockKind::Unlock),
        _ => Err(format!("there is no kind of lock {value}").into()),
    }
}
