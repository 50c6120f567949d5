//! Names of container images in registries: `registry/repository:tag@digest`.
//!
//! Grammar and defaults are Docker's (distribution project, `reference/reference.go`): a first part with a dot, a colon
//! or `localhost` is a registry, else it is Docker Hub; a name with neither tag nor digest means the tag `latest`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::Digest;

/// The registry of names that mention none.
const HUB: &str = "docker.io";
/// Its other name.
const HUB_INDEX: &str = "index.docker.io";
/// Where its API is.
const HUB_API: &str = "registry-1.docker.io";
/// Repositories of Docker Hub without an owner.
const HUB_OWNER: &str = "library";
/// Longest repository, as registries have it.
const MAX_REPOSITORY: usize = 255;
/// Longest tag.
const MAX_TAG: usize = 128;

/// A container image in a registry, by tag or by digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseImageRefError {
    /// The registry is not HOST or HOST:PORT.
    #[error("{0:?} is not HOST or HOST:PORT of a registry")]
    Registry(String),
    /// The repository has characters or separators that registries do not take.
    #[error(
        "{0:?} is not the name of a repository: parts of a-z 0-9 and single . _ - between them, divided by /"
    )]
    Repository(String),
    /// The tag is not one.
    #[error("{0:?} is not a tag: up to {MAX_TAG} of A-Z a-z 0-9 _ . -, not beginning with . or -")]
    Tag(String),
    /// The digest is not one.
    #[error(transparent)]
    Digest(#[from] super::digest::ParseDigestError),
}

impl ImageRef {
    /// HOST or HOST:PORT, as written; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// HOST or HOST:PORT of the API.
    pub fn api_host(&self) -> &str {
        if self.registry == HUB { HUB_API } else { &self.registry }
    }

    /// The repository in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What to ask the registry for: the digest if there is one, else the tag.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_default(),
        }
    }

    /// The digest, if it is named.
    pub const fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository's manifest of this digest.
    pub fn at(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// True when the registry is this very machine.
    pub fn is_loopback(&self) -> bool {
        let host = match self.registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.registry.split(':').next().unwrap_or_default(),
        };
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for ImageRef {
    type Err = ParseImageRefError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ParseImageRefError::Tag(tag.to_owned()));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_registry_like(first) => (first, rest.to_owned()),
            Some(_) => (HUB, name.to_owned()),
            None => (HUB, format!("{HUB_OWNER}/{name}")),
        };
        let registry = if registry == HUB_INDEX { HUB } else { registry };
        if !is_registry(registry) {
            return Err(ParseImageRefError::Registry(registry.to_owned()));
        }
        let repository = match repository.contains('/') || registry != HUB {
            true => repository,
            false => format!("{HUB_OWNER}/{repository}"),
        };
        if repository.len() > MAX_REPOSITORY || !repository.split('/').all(is_repository_part) {
            return Err(ParseImageRefError::Repository(repository));
        }
        let tag = tag.or(digest.is_none().then_some("latest")).map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn is_registry_like(part: &str) -> bool {
    part.contains(['.', ':', '[']) || part == "localhost" || part.chars().any(|c| c.is_ascii_uppercase())
}

fn is_registry(text: &str) -> bool {
    let (host, rest) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (
            address.parse::<std::net::Ipv6Addr>().is_ok(),
            rest.strip_prefix(':').or(rest.is_empty().then_some("0")),
        ),
        None => {
            let (host, port) = text.split_once(':').unwrap_or((text, "0"));
            let is_label = |label: &str| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            };
            (host.split('.').all(is_label), Some(port))
        }
    };
    host && rest.is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// Letters and digits, divided by `.`, `_`, `__` or any number of `-`.
fn is_repository_part(part: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut separator = String::new();
    let mut after_plain = false;
    for c in part.chars() {
        if is_plain(c) {
            let divides =
                matches!(separator.as_str(), "" | "." | "_" | "__") || separator.chars().all(|c| c == '-');
            if !divides || (!separator.is_empty() && !after_plain) {
                return false;
            }
            separator.clear();
            after_plain = true;
        } else if "._-".contains(c) {
            separator.push(c);
        } else {
            return false;
        }
    }
    after_plain && separator.is_empty()
}

fn is_tag(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_TAG
        && !text.starts_with(['.', '-'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_have_one_full_spelling() {
        let with_digest = format!("quay.io/a/b@{EMPTY}");
        let with_both = format!("quay.io/a/b:1@{EMPTY}");
        let table = [
            ("debian", "docker.io/library/debian:latest", "latest"),
            ("debian:12", "docker.io/library/debian:12", "12"),
            ("index.docker.io/debian:12", "docker.io/library/debian:12", "12"),
            ("kolla/keystone:2025.1", "docker.io/kolla/keystone:2025.1", "2025.1"),
            ("quay.io/openstack.kolla/keystone:2025.1", "quay.io/openstack.kolla/keystone:2025.1", "2025.1"),
            ("localhost/a", "localhost/a:latest", "latest"),
            ("127.0.0.1:5000/a/b__c--d:v1", "127.0.0.1:5000/a/b__c--d:v1", "v1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "latest"),
            ("registry:5000/a", "registry:5000/a:latest", "latest"),
            (&with_digest, &with_digest, EMPTY),
            (&with_both, &with_both, EMPTY),
        ];
        for (text, full, target) in table {
            let image: ImageRef = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((image.to_string().as_str(), image.target().as_str()), (full, target), "{text}");
            assert_eq!(image.to_string().parse(), Ok(image), "{text}");
        }
        let hub: ImageRef = "debian".parse().unwrap();
        assert_eq!((hub.registry(), hub.api_host()), ("docker.io", "registry-1.docker.io"));
    }

    #[test]
    fn other_texts_are_refused() {
        use ParseImageRefError as E;
        for text in [
            "",
            "Debian",
            "quay.io/A",
            "quay.io/a//b",
            "quay.io/a/",
            "quay.io/a___b",
            "quay.io/a..b",
            "quay.io/-a",
            "quay.io/a-",
            "a b",
            "quay.io/../a",
        ] {
            assert!(matches!(text.parse::<ImageRef>(), Err(E::Repository(_))), "{text:?}");
        }
        for text in ["-.io/a", "host:x/a", "host:99999/a", "host:/a", "[::x]/a", "a..b/c"] {
            assert!(matches!(text.parse::<ImageRef>(), Err(E::Registry(_))), "{text:?}");
        }
        for text in ["a:", "a:-x", "a:b c", "quay.io/a:ü"] {
            assert!(matches!(text.parse::<ImageRef>(), Err(E::Tag(_))), "{text:?}");
        }
        assert!(matches!("a@sha512:00".parse::<ImageRef>(), Err(E::Digest(_))));
    }

    #[test]
    fn loopback_is_this_machine() {
        for (text, expected) in [
            ("localhost:5000/a", true),
            ("127.0.0.1/a", true),
            ("127.9.9.9:1/a", true),
            ("[::1]:5000/a", true),
            ("localhost.example/a", false),
            ("10.0.0.1:5000/a", false),
            ("debian", false),
        ] {
            assert_eq!(text.parse::<ImageRef>().unwrap().is_loopback(), expected, "{text}");
        }
    }
}
