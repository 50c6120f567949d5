//! Where a release's container images come from.
//!
//! 1. [`ImageSource`] is an entry as written: `{recipe: FILE}` or `{source: WHERE}`; 2. [`Origin`] is what it means, with
//!    paths resolved; 3. [`Origin::reference`] is what the release says of it: never a path of this machine.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::model::{Digest, ImageRef};

/// Where a container image comes from, as written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSource {
    /// Recipe to build it from, relative to the file that names it.
    #[serde(default)]
    pub recipe: Option<String>,
    /// Where it is, finished: `registry:NAME`, `docker-daemon:NAME`, `oci:PATH`, `oci-archive:PATH`, `docker-archive:PATH`.
    #[serde(default)]
    pub source: Option<String>,
    /// Take the registry as it is: without TLS if it has none.
    #[serde(default)]
    pub insecure: bool,
}

/// Where a container image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built from a recipe.
    Recipe(PathBuf),
    /// Pulled from a registry.
    Registry {
        /// Its name there.
        image: ImageRef,
        /// Plain HTTP is good enough.
        insecure: bool,
    },
    /// Taken from the Docker daemon of this machine.
    Docker(String),
    /// Read from an OCI layout or an archive.
    Files {
        /// Which of the three, in skopeo's word.
        transport: &'static str,
        /// Directory or file.
        path: PathBuf,
        /// Which image of it; none: the only one.
        name: Option<String>,
    },
}

/// Words before the colon that mean files; what is really there is looked at when it is opened.
const FILE_TRANSPORTS: [&str; 3] = ["oci", "oci-archive", "docker-archive"];

impl ImageSource {
    /// What the entry means; `base` is the directory that its paths are relative to.
    pub fn origin(&self, base: &Path) -> Result<Origin, String> {
        let origin = match (&self.recipe, &self.source) {
            (Some(recipe), None) => Origin::Recipe(base.join(recipe)),
            (None, Some(source)) => self.parse_source(source, base)?,
            (Some(_), Some(_)) => return Err("has both a recipe and a source: name one".to_owned()),
            (None, None) => return Err("has neither a recipe nor a source".to_owned()),
        };
        if self.insecure && !matches!(origin, Origin::Registry { .. }) {
            return Err("insecure is for registries".to_owned());
        }
        Ok(origin)
    }

    fn parse_source(&self, source: &str, base: &Path) -> Result<Origin, String> {
        let wrong = |why: &dyn fmt::Display| Err(format!("source {source:?}: {why}"));
        let (transport, rest) = source.split_once(':').unwrap_or((source, ""));
        if rest.is_empty() {
            return wrong(&"expected registry:NAME, docker-daemon:NAME or oci:PATH");
        }
        let is_name = |text: &str| text.parse::<ImageRef>().is_ok() || text.parse::<Digest>().is_ok();
        match transport {
            "registry" => match rest.parse() {
                Ok(image) => Ok(Origin::Registry { image, insecure: self.insecure }),
                Err(error) => wrong(&error),
            },
            "docker-daemon" if is_name(rest) => Ok(Origin::Docker(rest.to_owned())),
            "docker-daemon" => wrong(&"neither the name nor the Id of an image"),
            _ => match FILE_TRANSPORTS.into_iter().find(|known| *known == transport) {
                Some(transport) => {
                    let (path, name) = match rest.split_once(':') {
                        Some((path, name)) => (path, Some(name.to_owned())),
                        None => (rest, None),
                    };
                    Ok(Origin::Files { transport, path: base.join(path), name })
                }
                None => wrong(&format!("{transport} is not a kind of source")),
            },
        }
    }
}

impl Origin {
    /// What a release says of where its image comes from.
    pub fn reference(&self) -> String {
        match self {
            Self::Recipe(recipe) => last_parts(recipe),
            Self::Registry { image, .. } => image.to_string(),
            Self::Docker(name) => format!("docker-daemon:{name}"),
            Self::Files { transport, path, name } => {
                let name = name.as_ref().map(|name| format!(":{name}")).unwrap_or_default();
                format!("{transport}:{}{name}", last_parts(path))
            }
        }
    }

    /// The file that it needs and that does not exist.
    pub fn missing_file(&self) -> Option<&Path> {
        match self {
            Self::Recipe(path) if !path.is_file() => Some(path),
            Self::Files { path, .. } if !path.exists() => Some(path),
            _ => None,
        }
    }

    /// The same origin with its path as `change` gives it.
    pub fn map_path(self, change: impl FnOnce(&Path) -> PathBuf) -> Self {
        match self {
            Self::Recipe(path) => Self::Recipe(change(&path)),
            Self::Files { transport, path, name } => Self::Files { transport, path: change(&path), name },
            other => other,
        }
    }
}

/// The last two parts of its path tell a file apart within a project.
fn last_parts(path: &Path) -> String {
    let parts: Vec<String> =
        path.components().rev().take(2).map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Result<Origin, String> {
        serde_yaml_ng::from_str::<ImageSource>(text).unwrap().origin(Path::new("m/keystone"))
    }

    #[test]
    fn sources_and_what_a_release_says_of_them() {
        for (text, reference) in [
            ("{recipe: image.yaml}", "keystone/image.yaml"),
            ("{recipe: ../k/image-28.yaml}", "k/image-28.yaml"),
            ("{source: 'registry:quay.io/k/keystone:1'}", "quay.io/k/keystone:1"),
            ("{source: 'registry:10.0.0.1:5000/keystone', insecure: true}", "10.0.0.1:5000/keystone:latest"),
            ("{source: 'docker-daemon:keystone:1'}", "docker-daemon:keystone:1"),
            ("{source: 'oci:layouts/keystone:1'}", "oci:layouts/keystone:1"),
            ("{source: 'oci-archive:/srv/images/keystone.tar'}", "oci-archive:images/keystone.tar"),
            ("{source: 'docker-archive:keystone.tar:a/b:1'}", "docker-archive:keystone/keystone.tar:a/b:1"),
        ] {
            assert_eq!(origin(text).map(|origin| origin.reference()).as_deref(), Ok(reference), "{text}");
        }
        let registry = origin("{source: 'registry:localhost/a', insecure: true}").unwrap();
        assert!(matches!(registry, Origin::Registry { insecure: true, .. }));
        let files = origin("{source: 'oci:layouts/a:1'}").unwrap();
        let path = PathBuf::from("m/keystone/layouts/a");
        assert_eq!(files, Origin::Files { transport: "oci", path: path.clone(), name: Some("1".to_owned()) });
        assert_eq!(files.missing_file(), Some(path.as_path()));
    }

    #[test]
    fn what_names_no_source_is_refused() {
        for (text, expected) in [
            ("{}", "has neither a recipe nor a source"),
            ("{recipe: a, source: 'oci:a'}", "has both a recipe and a source"),
            ("{recipe: a, insecure: true}", "insecure is for registries"),
            ("{source: keystone}", "source \"keystone\": expected registry:NAME"),
            ("{source: 'docker://a/b'}", "source \"docker://a/b\": docker is not a kind of source"),
            ("{source: 'registry:quay.io/Big'}", "source \"registry:quay.io/Big\": \"Big\" is not the name"),
            ("{source: 'docker-daemon:A B'}", "source \"docker-daemon:A B\": neither the name"),
        ] {
            let told = origin(text).unwrap_err();
            assert!(told.starts_with(expected), "{told}");
        }
    }
}
