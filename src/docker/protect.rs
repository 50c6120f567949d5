//! Keeps pinned images where they are until somebody decides otherwise.
//!
//! A container that is created and never started holds its image against `docker image prune -a` and plain `docker rmi`;
//! there is one per release and image, labelled, so that the last release that needs an image frees it. A tag makes the
//! image visible to people (`docker images`). Only [`Docker::reap`] takes an explicit list of images away.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptions, RemoveContainerOptions, RemoveImageOptions, TagImageOptions,
};

use crate::model::{Commit, Digest, ReleasePins};

use super::{Docker, DockerError, ObservedContainer};

/// Label of everything that we make in Docker: the release that it belongs to.
pub const RELEASE_LABEL: &str = "rackstep.io/release";

/// Label of a protective container: the config digest that it holds.
pub const HOLD_LABEL: &str = "rackstep.io/hold";

/// Repository under which pinned images are tagged; not a registry's name, so that nothing pulls or pushes it.
const REPOSITORY: &str = "rackstep.internal";

/// What protective containers would run if anybody started them; an image without a command needs one to be created.
const NEVER_STARTED: &str = "/rackstep/never-started";

impl Docker {
    /// Makes sure that every pinned image of `release` is held and tagged; gives how many holds were new.
    pub fn protect(&self, release: &ReleasePins) -> Result<usize, DockerError> {
        let held = self.observe_holds()?;
        let images = self.observe_images()?;
        let mut new = 0;
        for (name, image) in release.images() {
            let full = tag_of(name, image.config);
            let found = images.get(&image.config);
            if !found.is_some_and(|image| image.tags.contains(&full)) {
                let id = found.map_or(image.config, |image| image.id);
                let (repository, tag) = full.rsplit_once(':').unwrap_or((&full, ""));
                let options =
                    TagImageOptions { repo: Some(repository.to_owned()), tag: Some(tag.to_owned()) };
                self.ask(
                    || format!("tagging container image {} as {full}", image.config),
                    self.client.tag_image(&id.to_string(), Some(options)),
                )?;
            }
            if !held.contains_key(&(release.commit(), image.config)) {
                new += usize::from(self.hold(release.commit(), image.config, full)?);
            }
        }
        Ok(new)
    }

    /// Creates the protective container; false when it was there already (two pins may name one image).
    ///
    /// By the tag, not by the Id: in the containerd store a prune takes the tags that no container names.
    fn hold(&self, release: Commit, image: Digest, tag: String) -> Result<bool, DockerError> {
        let name = format!("rackstep-hold-{}-{}", release.short(), short(image));
        let body = ContainerCreateBody {
            image: Some(tag),
            entrypoint: Some(vec![NEVER_STARTED.to_owned()]),
            labels: Some(HashMap::from([
                (RELEASE_LABEL.to_owned(), release.hex()),
                (HOLD_LABEL.to_owned(), image.to_string()),
            ])),
            network_disabled: Some(true),
            ..Default::default()
        };
        let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
        let created = self.ask(
            || format!("creating container {name} to hold container image {image}"),
            self.client.create_container(Some(options), body),
        );
        match created {
            Ok(_) => Ok(true),
            Err(DockerError::Call { source, .. })
                if matches!(
                    *source,
                    bollard::errors::Error::DockerResponseServerError { status_code: 409, .. }
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Every protective container, by release and image.
    pub fn observe_holds(&self) -> Result<BTreeMap<(Commit, Digest), ObservedContainer>, DockerError> {
        let holds = self.observe_containers()?.into_iter().filter_map(|container| {
            let release = container.labels.get(RELEASE_LABEL)?.parse().ok()?;
            let image = container.labels.get(HOLD_LABEL)?.parse().ok()?;
            Some(((release, image), container))
        });
        Ok(holds.collect())
    }

    /// Takes away the holds of `releases` and then the images of `images`, both named one by one by the caller's plan.
    /// An image that anything still uses stays; gives the config digests of what went.
    pub fn reap(
        &self,
        releases: &BTreeSet<Commit>,
        images: &BTreeSet<Digest>,
    ) -> Result<Vec<Digest>, DockerError> {
        for ((release, _), container) in self.observe_holds()? {
            if releases.contains(&release) {
                self.remove_container(&container)?;
            }
        }
        let used: BTreeSet<Digest> =
            self.observe_containers()?.into_iter().filter_map(|container| container.image).collect();
        let mut gone = Vec::new();
        for (config, image) in self.observe_images()? {
            if images.contains(&config) && !used.contains(&config) {
                self.remove_image(image.id, &image.tags)?;
                gone.push(config);
            }
        }
        Ok(gone)
    }

    /// Removes a container, unless it is gone already.
    pub(super) fn remove_container(&self, container: &ObservedContainer) -> Result<(), DockerError> {
        let options = RemoveContainerOptions { v: true, force: true, ..Default::default() };
        let removed = self.ask(
            || format!("removing container {}", container.name),
            self.client.remove_container(&container.id, Some(options)),
        );
        match removed {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes an image with all its tags; never by force, so that nothing in use goes.
    pub(super) fn remove_image(&self, id: Digest, tags: &[String]) -> Result<(), DockerError> {
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

/// The tag that [`Docker::protect`] puts on a pinned image. It names the Id that it belongs on, so it never moves.
pub fn tag_of(name: &str, image: Digest) -> String {
    format!("{REPOSITORY}/{}:{}", path_of(name), short(image))
}

/// Whether [`tag_of`] made this tag.
pub fn is_our_tag(tag: &str) -> bool {
    tag.split_once('/').is_some_and(|(repository, _)| repository == REPOSITORY)
}

/// The first twelve digits, as Docker shows Ids.
fn short(digest: Digest) -> String {
    digest.hex()[..12].to_owned()
}

/// A pin's name as a repository path: lower case letters, digits and single separators.
fn path_of(name: &str) -> String {
    let parts: Vec<String> = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    if parts.is_empty() { "image".to_owned() } else { parts.join("-") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_repository_paths() {
        for (name, path) in [
            ("keystone", "keystone"),
            ("registry.example/Kolla/keystone:2025.1", "registry-example-kolla-keystone-2025-1"),
            ("--", "image"),
        ] {
            assert_eq!(path_of(name), path, "{name}");
        }
    }
}
