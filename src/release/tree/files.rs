//! Files of our own: laid over a tree, and told apart by digest.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::inside::{self, Place};
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
        } else if !found.is_file() {
            // Reading a FIFO would wait for a writer for ever.
            let problem = "neither a file, a directory nor a link";
            return Err(at(path)(io::Error::new(io::ErrorKind::InvalidInput, problem)));
        } else {
            let content = Digest::of(&fs::read(path).map_err(at(path))?);
            text.push_str(&format!("f {name} {:o} {content}\n", mode_of(&found)));
        }
    }
    Ok(Digest::of(text.as_bytes()))
}

/// Lays the files of `source` over the tree at `root`, below `below`: owned by root, directories 0755, files 0644 or 0755.
///
/// Links of the tree are followed inside the tree. Gives where every file and link, and every empty directory, really stands.
pub fn lay_over(source: &Path, root: &Path, below: &Path) -> Result<Vec<Laid>, FileError> {
    let mut laid = Vec::new();
    for entry in walk(source) {
        let entry = entry?;
        let path = entry.path();
        let relative = below.join(path.strip_prefix(source).unwrap_or(path));
        let found = path.symlink_metadata().map_err(at(path))?;
        if found.is_dir() {
            // A directory that a package made keeps what the package gave it.
            inside::ensure_directory(root, &relative).map_err(at(path))?;
            if path == source || fs::read_dir(path).map_err(at(path))?.next().is_some() {
                continue;
            }
        }
        let place = Place::find(root, &relative).map_err(at(path))?;
        if found.is_symlink() {
            let to = fs::read_link(path).map_err(at(path))?;
            make_way(&place).map_err(at(path))?;
            symlink(to, place.path()).map_err(at(path))?;
        } else if found.is_file() {
            copy(path, &place, mode_of(&found))?;
        } else if !found.is_dir() {
            let problem = "neither a file, a directory nor a link";
            return Err(at(path)(io::Error::new(io::ErrorKind::InvalidInput, problem)));
        }
        let place = place.within(root).map_err(at(path))?;
        laid.push(Laid { source: path.to_owned(), place });
    }
    Ok(laid)
}

/// A file that was laid over a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laid {
    /// Where it came from.
    pub source: PathBuf,
    /// Where it stands, relative to the tree, links resolved.
    pub place: PathBuf,
}

/// Puts a copy of `source` at `target` in the tree at `root`; links of the tree are followed inside it, and never written through.
pub fn install(source: &Path, root: &Path, target: &Path, mode: u32) -> Result<(), FileError> {
    let place = Place::find(root, target).map_err(at(target))?;
    copy(source, &place, mode)
}

fn copy(source: &Path, place: &Place, mode: u32) -> Result<(), FileError> {
    make_way(place).map_err(at(source))?;
    fs::copy(source, place.path()).map_err(at(source))?;
    set_mode(&place.path(), mode)
}

fn make_way(place: &Place) -> io::Result<()> {
    let path = place.path();
    if path.symlink_metadata().is_ok() { fs::remove_file(path) } else { Ok(()) }
}

/// Writes a file of the release into the tree at `root`.
pub fn write(root: &Path, target: &Path, content: &[u8]) -> Result<(), FileError> {
    let place = Place::find(root, target).map_err(at(target))?;
    make_way(&place).map_err(at(target))?;
    fs::write(place.path(), content).map_err(at(target))?;
    set_mode(&place.path(), 0o644)
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
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(&root).unwrap();
        write(&source, Path::new("usr/bin/tool"), b"x").unwrap();
        set_mode(&source.join("usr/bin/tool"), 0o700).unwrap();
        write(&source, Path::new("etc/conf"), b"new").unwrap();
        symlink("conf", source.join("etc/link")).unwrap();
        write(&root, Path::new("etc/conf"), b"old").unwrap();
        let before = digest_tree(&source).unwrap();
        lay_over(&source, &root, Path::new("")).unwrap();
        let laid = lay_over(&source, &root, Path::new("")).unwrap();
        let places: Vec<&Path> = laid.iter().map(|laid| laid.place.as_path()).collect();
        assert_eq!(places, ["etc/conf", "etc/link", "usr/bin/tool"].map(Path::new));
        assert_eq!(fs::read(root.join("etc/conf")).unwrap(), b"new");
        assert_eq!(fs::metadata(root.join("usr/bin/tool")).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(digest_tree(&root).unwrap(), before);
        set_mode(&source.join("etc/conf"), 0o755).unwrap();
        assert_ne!(digest_tree(&source).unwrap(), before);
    }
    #[test]
    fn an_overlay_through_a_link_stays_in_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let (source, root, machine) =
            (dir.path().join("s"), dir.path().join("r"), dir.path().join("machine"));
        for made in [&source, &root, &machine] {
            fs::create_dir_all(made).unwrap();
        }
        // As /usr/lib/ssl/certs leads to /etc/ssl/certs: in the tree there is a directory of that name, too.
        fs::create_dir_all(root.join("usr/lib/ssl")).unwrap();
        fs::create_dir_all(root.join(machine.strip_prefix("/").unwrap())).unwrap();
        symlink(&machine, root.join("usr/lib/ssl/certs")).unwrap();
        write(&source, Path::new("usr/lib/ssl/certs/site.pem"), b"x").unwrap();
        let laid = lay_over(&source, &root, Path::new("")).unwrap();
        assert_eq!(fs::read_dir(&machine).unwrap().count(), 0, "nothing is written on this machine");
        assert_eq!(laid[0].place, machine.strip_prefix("/").unwrap().join("site.pem"));
        assert!(root.join(&laid[0].place).is_file());
    }

    #[test]
    fn a_fifo_in_an_overlay_is_refused_and_nothing_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let root = tempfile::tempdir().unwrap();
        assert!(digest_tree(dir.path()).is_err());
        assert!(lay_over(dir.path(), root.path(), Path::new("")).is_err());
    }
}
