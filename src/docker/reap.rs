//! Removes images of ours, named one by one by a plan.

use std::collections::BTreeSet;

use bollard::query_parameters::RemoveImageOptions;

use crate::model::Digest;

use super::{Docker, DockerError};

impl Docker {
    /// Removes `images`. One that any container still uses stays; gives the Ids of what went.
    pub fn reap(&self, images: &BTreeSet<Digest>) -> Result<Vec<Digest>, DockerError> {
        let used: BTreeSet<Digest> =
            self.observe_containers()?.into_iter().filter_map(|container| container.image).collect();
        let mut gone = Vec::new();
        for (id, image) in self.observe_images()? {
            if images.contains(&id) && !used.contains(&id) {
                self.remove_image(id, &image.tags)?;
                gone.push(id);
            }
        }
        Ok(gone)
    }

    /// Removes an image with all its tags; never by force, so that nothing in use goes.
    fn remove_image(&self, id: Digest, tags: &[String]) -> Result<(), DockerError> {
        let id_text = [id.to_string()];
        // The last tag takes the image with it; the Id is tried last for images without tags.
        for name in tags.iter().chain(&id_text) {
            let options = RemoveImageOptions::default();
            let removed = self.ask(
                || format!("removing container image {id} ({name})"),
                self.client.remove_image(name, Some(options), None),
            );
            match removed {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
