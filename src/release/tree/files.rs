//! Files of our own: laid over a tree, and told apart by digest.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::model::Digest;

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}")]
pub struct FileError {
    /// The path.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FileError + '_ {
    move |source| FileError { path: path.to_owned(), source }
}

fn walk(source: &Path) -> impl Iterator<Item = Result<walkdir::DirEntry, FileError>> + '_ {
    WalkDir::new(source).sort_by_file_name().into_iter().map(move |entry| {
        entry.map_err(|error| {
            let path = error.path().unwrap_or(source).to_owned();
            FileError { path, source: error.into() }
        })
    })
}

/// Mode of a file in a release: only its executable bit counts, for that is all that a checkout keeps.
fn mode_of(found: &fs::Metadata) -> u32 {
    if found.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 }
}

/// Digest of a file or tree: names, kinds, executable bits and content.
pub fn digest_tree(source: &Path) -> Result<Digest, FileError> {
    let mut text = String::new();
    for entry in walk(source) {
        let entry = entry?;
        let path = entry.path();
        let name = path.strip_prefix(source).unwrap_or(path).display();
        let found = path.symlink_metadata().map_err(at(path))?;
        if found.is_symlink() {
            let target = fs::read_link(path).map_err(at(path))?;
            text.push_str(&format!("l {name} {}\n", target.display()));
        } else if found.is_dir() {
            text.push_str(&format!("d {name}\n"));
        } else {
            let content = Digest::of(&fs::read(path).map_err(at(path))?);
            text.push_str(&format!("f {name} {:o} {content}\n", mode_of(&found)));
        }
    }
    Ok(Digest::of(text.as_bytes()))
}

/// Lays the files of `source` over `root`, owned by root, directories 0755, files 0644 or 0755.
pub fn lay_over(source: &Path, root: &Path) -> Result<(), FileError> {
    for entry in walk(source) {
        let entry = entry?;
        let path = entry.path();
        let target = root.join(path.strip_prefix(source).unwrap_or(path));
        let found = path.symlink_metadata().map_err(at(path))?;
        if found.is_dir() {
            // A directory that a package made keeps what the package gave it.
            if !target.is_dir() {
                fs::create_dir_all(&target).map_err(at(&target))?;
                set_mode(&target, 0o755)?;
            }
        } else if found.is_symlink() {
            let to = fs::read_link(path).map_err(at(path))?;
            if target.symlink_metadata().is_ok() {
                fs::remove_file(&target).map_err(at(&target))?;
            }
            symlink(to, &target).map_err(at(&target))?;
        } else {
            install(path, &target, mode_of(&found))?;
        }
    }
    Ok(())
}

/// Puts a copy of `source` at `target`; never writes through a link that is there.
pub fn install(source: &Path, target: &Path, mode: u32) -> Result<(), FileError> {
    make_parent(target)?;
    if target.symlink_metadata().is_ok() {
        fs::remove_file(target).map_err(at(target))?;
    }
    fs::copy(source, target).map_err(at(source))?;
    set_mode(target, mode)
}

/// Writes a file of the release.
pub fn write(target: &Path, content: &[u8]) -> Result<(), FileError> {
    make_parent(target)?;
    fs::write(target, content).map_err(at(target))?;
    set_mode(target, 0o644)
}

/// Makes the directories above `target`, readable whatever this process's umask is.
fn make_parent(target: &Path) -> Result<(), FileError> {
    let Some(parent) = target.parent() else { return Ok(()) };
    if parent.is_dir() {
        return Ok(());
    }
    make_parent(parent)?;
    fs::create_dir(parent).map_err(at(parent))?;
    set_mode(parent, 0o755)
}

/// Sets a mode.
pub fn set_mode(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lays_over_and_digests() {
        let dir = tempfile::tempdir().unwrap();
        let (source, root) = (dir.path().join("s"), dir.path().join("r"));
        write(&source.join("usr/bin/tool"), b"x").unwrap();
        set_mode(&source.join("usr/bin/tool"), 0o700).unwrap();
        write(&source.join("etc/conf"), b"new").unwrap();
        symlink("conf", source.join("etc/link")).unwrap();
        write(&root.join("etc/conf"), b"old").unwrap();
        let before = digest_tree(&source).unwrap();
        lay_over(&source, &root).unwrap();
        lay_over(&source, &root).unwrap();
        assert_eq!(fs::read(root.join("etc/conf")).unwrap(), b"new");
        assert_eq!(fs::metadata(root.join("usr/bin/tool")).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(digest_tree(&root).unwrap(), before);
        set_mode(&source.join("etc/conf"), 0o755).unwrap();
        assert_ne!(digest_tree(&source).unwrap(), before);
    }
}
