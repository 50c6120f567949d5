//! What we call things in Docker.

use crate::model::Digest;

/// Label of everything that we make in Docker: the release that it belongs to.
pub const RELEASE_LABEL: &str = "rackstep.io/release";

/// Repository under which pinned images are tagged; not a registry's name, so that nothing pulls or pushes it.
const REPOSITORY: &str = "rackstep.internal";

/// The tag of a pinned image. It names the Id that it belongs on, so it never moves.
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
