//! What has changed of an open that nobody else has to agree to.

use super::command::Note;
use super::ids::Owner;
use super::open::OpenDescription;
use super::outcome::{Outcome, Rejection};
use super::state::State;

impl State {
    /// Remembers what the client has to find again when it comes back for its open. All of the note, or nothing if it
    /// is refused.
    pub(super) fn note(&mut self, owner: Owner, note: &Note) -> Result<Outcome, Rejection> {
        let open = self.connected_open(owner, note.open)?;
        if let Some(image) = &note.image {
            self.check_bounds(&OpenDescription { image: image.clone(), ..open.description.clone() })?;
        }
        self.edit_open(note.open, |open| {
            open.position = note.position.unwrap_or(open.position);
            if let Some(image) = &note.image {
                open.image = image.clone();
            }
        });
        if note.is_used {
            self.clear_replay_eligible(note.open);
        }
        Ok(Outcome::Updated)
    }
}
