//! The position that a client has set in an open, of which no record tells while the client is there.

use super::*;

impl Capture {
    /// Answers a process of `smbd` that is about to tell its client that a position is set. What concerns no durable open of a
    /// protected share is let through.
    pub async fn position_set(&self, process: u32, share_file_id: u64, position: u64) -> Reply {
        match self.position_reported(process, share_file_id, position).await {
            Ok(()) => {}
            // Nothing that it does may be heard of any more.
            Err(Refused::Request(RequestError::Ended)) => return Reply::Fence,
            Err(refused) => {
                warn!(pid = process, reason = %chain(&refused), "a position cannot be noted: if its node dies, its client has the one before");
            }
        }
        Reply::Proceed
    }

    async fn position_reported(
        &self,
        process: u32,
        share_file_id: u64,
        position: u64,
    ) -> Result<(), Refused> {
        let served = self.opens().of_process(process);
        for id in served {
            let Some(file) = self.opens().get(id).map(|local| local.description.file) else { continue };
            let _in_order = self.stripe(file).await;
            let Some(local) = self.opens().get(id).cloned() else { continue };
            if OpenImage::decode(&local.description.image)?.entry().share_file_id != share_file_id {
                continue;
            }
            let local = self.report(local, |image| image.set_position(position)).await?;
            self.opens().insert(local);
            return Ok(());
        }
        Ok(())
    }
}
