//! Distribution packages, resolved to bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Digest;

/// Which of a distribution's archives a package comes from; never a host name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Archive {
    /// The distribution's main archive.
    #[default]
    Main,
    /// The archive of security updates.
    Security,
}

impl Archive {
    /// The archive that holds `suite`.
    pub fn of_suite(suite: &str) -> Self {
        if suite.ends_with("-security") { Self::Security } else { Self::Main }
    }
}

/// One distribution package, exactly.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version as the distribution writes it, epoch included.
    pub version: String,
    /// Architecture, `all` included.
    pub architecture: String,
    /// Digest of the package file.
    pub sha256: Digest,
    /// Bytes of the package file.
    pub size: u64,
    /// Where it comes from.
    pub archive: Archive,
    /// Path of the package file in its archive.
    pub path: String,
}

impl Package {
    /// The name, with the architecture where it is not that of the tree: `libc6:i386`.
    pub fn label(&self, native: &str) -> String {
        if self.architecture == native || self.architecture == "all" {
            return self.name.clone();
        }
        format!("{}:{}", self.name, self.architecture)
    }
}

/// A package as a person asks for it: `NAME[:ARCHITECTURE][=VERSION|/SUITE]`, as apt-get takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageRequest {
    /// The package, or one that others provide.
    pub name: String,
    /// The architecture; none: the tree's.
    pub architecture: Option<String>,
    /// Which of its versions.
    pub pin: Pin,
}

/// Which version of a package is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pin {
    /// The best that there is.
    Newest,
    /// Exactly this one.
    Version(String),
    /// That of this suite.
    Suite(String),
}

/// A text that asks for no package.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the name of a package (NAME[:ARCHITECTURE][=VERSION|/SUITE])")]
pub struct NotAPackage {
    /// The text.
    pub text: String,
}

impl FromStr for PackageRequest {
    type Err = NotAPackage;

    fn from_str(text: &str) -> Result<Self, NotAPackage> {
        let (what, pin) = match text.find(['=', '/']) {
            None => (text, Pin::Newest),
            Some(at) if text[at..].starts_with('=') => (&text[..at], Pin::Version(text[at + 1..].to_owned())),
            Some(at) => (&text[..at], Pin::Suite(text[at + 1..].to_owned())),
        };
        let (name, architecture) = match what.split_once(':') {
            Some((name, architecture)) => (name, Some(architecture.to_owned())),
            None => (what, None),
        };
        let is_fine = is_debian_name(name)
            && architecture.as_deref().is_none_or(is_architecture)
            && match &pin {
                Pin::Newest => true,
                Pin::Version(version) => is_version(version),
                Pin::Suite(suite) => is_debian_name(suite),
            };
        if !is_fine {
            return Err(NotAPackage { text: text.to_owned() });
        }
        Ok(Self { name: name.to_owned(), architecture, pin })
    }
}

impl fmt::Display for PackageRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(architecture) = &self.architecture {
            write!(f, ":{architecture}")?;
        }
        match &self.pin {
            Pin::Newest => Ok(()),
            Pin::Version(version) => write!(f, "={version}"),
            Pin::Suite(suite) => write!(f, "/{suite}"),
        }
    }
}

/// Suites and packages: lower-case letters, digits and a few signs, as Debian's policy has it.
pub fn is_debian_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
}

fn is_architecture(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Versions, epoch and revision included, as Debian's policy has them.
fn is_version(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ".+-~:".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        for text in
            ["bash", "bash=1:5.2~rc1-2+b1", "libc6:i386", "libc6:i386=2.41-12", "g++/trixie-backports"]
        {
            assert_eq!(text.parse::<PackageRequest>().unwrap().to_string(), text);
        }
        for text in
            ["", "Bash", "a b", "bash=", "bash=x", "bash/", "bash:", "bash:I386", "bash=1/sid", "-y", "a=1 2"]
        {
            assert!(text.parse::<PackageRequest>().is_err(), "{text}");
        }
    }
}
