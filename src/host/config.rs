//! Renders the services' configuration: the release's files, with this host's secrets and names put in.
//!
//! `${secret:NAME}`, `${host:name}` and `${host:address}` are replaced; every other `${…}` belongs to the service. Files
//! are replaced one by one and never their directory: running pods have that one mounted.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::model::{Digest, HostConfig};
use crate::release::manifest::references::{Part, parts};

use super::secrets::Secrets;
use crate::rim::files::{Durability, FileError, ensure_directory, list, naming, write_atomic};

/// Why configuration could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file of the release or of /run.
    #[error(transparent)]
    File(#[from] FileError),
    /// It asks for something that does not exist.
    #[error("{path}:{line}: {reference} is not known to this host")]
    Reference {
        /// The release's file.
        path: PathBuf,
        /// Line, from one.
        line: usize,
        /// As written.
        reference: String,
    },
    /// A symlink or a device.
    #[error("{path} is neither a file nor a directory")]
    Kind {
        /// The release's file.
        path: PathBuf,
    },
}

/// What may be put into a file.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    /// Secrets of this host.
    pub secrets: &'a Secrets,
    /// Who it is; none: not configured yet.
    pub host: Option<&'a HostConfig>,
}

/// A directory of this name is readable by every user of the containers that mount it, as Kubernetes' ConfigMaps are.
/// The directories above it stay shut, so no other user of the host gets there.
const READABLE: &str = "readable";

/// Renders every file below `from` to the same place below `to`, and takes away what is no longer there.
pub fn render_directory(from: &Path, to: &Path, values: Values<'_>) -> Result<(), ConfigError> {
    render_below(from, to, values, false)
}

fn render_below(from: &Path, to: &Path, values: Values<'_>, open: bool) -> Result<(), ConfigError> {
    // Rendered files hold secrets: the containers read them as root, and nobody else does unless they are to.
    ensure_directory(to, if open { 0o755 } else { 0o700 })?;
    let mut keep = BTreeSet::new();
    for path in list(from)? {
        let Some(name) = path.file_name() else { continue };
        let target = to.join(name);
        keep.insert(name.to_owned());
        let metadata = fs::symlink_metadata(&path).map_err(naming("reading", &path))?;
        if metadata.is_dir() {
            render_below(&path, &target, values, open || name == READABLE)?;
        } else if metadata.is_file() {
            let bytes = fs::read(&path).map_err(naming("reading", &path))?;
            let bytes = match std::str::from_utf8(&bytes) {
                Ok(text) => render_text(text, &path, values)?.into_bytes(),
                Err(_) => bytes,
            };
            let own = if metadata.permissions().mode() & 0o111 == 0 { 0o600 } else { 0o700 };
            let shared = if own == 0o600 { 0o644 } else { 0o755 };
            write_atomic(&target, &bytes, if open { shared } else { own }, Durability::Volatile)?;
        } else {
            return Err(ConfigError::Kind { path });
        }
    }
    for path in list(to)? {
        if path.file_name().is_some_and(|name| !keep.contains(name)) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(naming("removing", &path))?;
        }
    }
    Ok(())
}

/// Puts the values into `text`; `path` names it in errors.
pub fn render_text(text: &str, path: &Path, values: Values<'_>) -> Result<String, ConfigError> {
    let mut rendered = String::with_capacity(text.len());
    for part in parts(text) {
        let (kind, name, written, line) = match part {
            Part::Text(text) => {
                rendered.push_str(text);
                continue;
            }
            Part::Reference { kind, name, written, line } => (kind, name, written, line),
        };
        let value = match (kind, name, values.host) {
            ("secret", name, _) => values.secrets.get(name),
            (_, "name", Some(host)) => Some(host.name.as_str()),
            (_, "address", Some(host)) => Some(host.address.as_str()),
            _ => None,
        };
        rendered.push_str(value.ok_or_else(|| ConfigError::Reference {
            path: path.to_owned(),
            line,
            reference: written.to_owned(),
        })?);
    }
    Ok(rendered)
}

/// Digest of everything below `directories`: names, modes and content.
pub fn hash_directories(directories: &[PathBuf]) -> Result<Digest, FileError> {
    let mut hash = Sha256::new();
    for directory in directories {
        hash_directory(directory, directory, &mut hash)?;
    }
    Ok(Digest::from_bytes(hash.finalize().into()))
}

fn hash_directory(root: &Path, directory: &Path, hash: &mut Sha256) -> Result<(), FileError> {
    for path in list(directory)? {
        if path.is_dir() {
            hash_directory(root, &path, hash)?;
            continue;
        }
        let bytes = fs::read(&path).map_err(naming("reading", &path))?;
        let mode = fs::metadata(&path).map_err(naming("reading", &path))?.permissions().mode() & 0o7777;
        let name = path.strip_prefix(root).unwrap_or(&path);
        // Lengths keep one file's end from passing for the next one's beginning.
        hash.update(format!("{}\0{mode:o}\0{}\0", name.display(), bytes.len()));
        hash.update(&bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::secrets::ensure_secrets;
    use crate::model::{Secret, SecretKind, SecretSet};

    fn host() -> HostConfig {
        HostConfig {
            format: 1,
            name: "control-1".to_owned(),
            address: "10.0.0.5".to_owned(),
            follows: "main".parse().unwrap(),
            repo: "http://repo".to_owned(),
            trusted_keys: Vec::new(),
            rack_server: None,
            mac: None,
            kernel_arguments: vec![],
        }
    }

    fn secrets(directory: &Path) -> Secrets {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("db"), "p4ss\n").unwrap();
        let secret = Secret { generate: SecretKind::Password };
        let set = SecretSet { format: 1, secrets: [("db".to_owned(), secret)].into() };
        ensure_secrets(directory, &set).unwrap().0
    }

    #[test]
    fn references_are_replaced_and_the_rest_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (host, secrets) = (host(), secrets(directory.path()));
        let values = Values { secrets: &secrets, host: Some(&host) };
        for (text, expected) in [
            ("", ""),
            ("a=${secret:db}@${host:address}:${host:name}", "a=p4ss@10.0.0.5:control-1"),
            ("${secret:db}${secret:db}", "p4ssp4ss"),
            ("echo ${HOME} $PATH ${x:-y} ${ {", "echo ${HOME} $PATH ${x:-y} ${ {"),
            ("${unclosed ${host:name}", "${unclosed control-1"),
            ("ü ${host:name} ü", "ü control-1 ü"),
        ] {
            assert_eq!(render_text(text, Path::new("f"), values).unwrap(), expected, "{text}");
        }
        for (text, error) in [
            ("a\nb ${secret:none}\n", "f:2: ${secret:none} is not known to this host"),
            ("${host:mac}", "f:1: ${host:mac} is not known to this host"),
        ] {
            assert_eq!(render_text(text, Path::new("f"), values).unwrap_err().to_string(), error);
        }
        let nobody = Values { secrets: &secrets, host: None };
        assert!(render_text("${host:name}", Path::new("f"), nobody).is_err());
    }

    #[test]
    fn a_directory_follows_its_source() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        let secrets = secrets(&root.path().join("secrets"));
        let values = Values { secrets: &secrets, host: None };
        fs::create_dir_all(from.join("deep")).unwrap();
        fs::write(from.join("deep/conf"), "${secret:db}").unwrap();
        fs::write(from.join("binary"), [0xff, 0x00]).unwrap();
        fs::write(from.join("run.sh"), "#!/bin/sh").unwrap();
        fs::set_permissions(from.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        render_directory(&from, &to, values).unwrap();
        assert_eq!(fs::read_to_string(to.join("deep/conf")).unwrap(), "p4ss");
        assert_eq!(fs::read(to.join("binary")).unwrap(), [0xff, 0x00]);
        let mode = |name: &str| fs::metadata(to.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("run.sh"), mode("binary"), mode("deep")), (0o700, 0o600, 0o700));
        let before = hash_directories(std::slice::from_ref(&to)).unwrap();
        render_directory(&from, &to, values).unwrap();
        assert_eq!(hash_directories(std::slice::from_ref(&to)).unwrap(), before);
        fs::remove_dir_all(from.join("deep")).unwrap();
        fs::remove_file(from.join("binary")).unwrap();
        render_directory(&from, &to, values).unwrap();
        assert_eq!(list(&to).unwrap(), [to.join("run.sh")]);
        assert_ne!(hash_directories(std::slice::from_ref(&to)).unwrap(), before);
    }
}
