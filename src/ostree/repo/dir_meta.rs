//! A directory's owner, mode and xattrs: as a dirmeta object, and on a disk.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use glib::Variant;
use rustix::fs::{Gid, Mode, Uid, XattrFlags};

use super::gvariant::{DIR_META, KIND_DIRECTORY, KIND_MASK, Malformed, Xattrs, field, malformed};
use super::gvariant::{parse, parse_xattrs, xattrs_variant};
use super::read::read_xattrs;

/// What a commit says of a directory beside its names (libostree, `OSTREE_OBJECT_TYPE_DIR_META`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirMeta {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Kind and permissions, as in `st_mode`.
    pub mode: u32,
    /// Extended attributes, sorted by name.
    pub xattrs: Xattrs,
}

impl DirMeta {
    /// The object.
    pub fn render(&self) -> Vec<u8> {
        let number = |number: u32| number.to_be().into();
        let fields: [Variant; 4] =
            [number(self.uid), number(self.gid), number(self.mode), xattrs_variant(&self.xattrs)];
        Variant::tuple_from_iter(fields).data().to_vec()
    }

    /// Parses an object in normal form; its mode must be that of a directory.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let variant = parse(bytes, DIR_META)?;
        let number = |index: usize| field::<u32>(&variant, index).map(u32::from_be);
        let (uid, gid, mode) = (number(0)?, number(1)?, number(2)?);
        if mode & KIND_MASK != KIND_DIRECTORY {
            return malformed(format!("mode {mode:o} of a directory"));
        }
        Ok(Self { uid, gid, mode, xattrs: parse_xattrs(&variant.child_value(3))? })
    }

    /// What a directory of this machine is; a link is not followed, and has a link's mode.
    pub fn read(path: &Path) -> io::Result<Self> {
        let stat = fs::symlink_metadata(path)?;
        Ok(Self { uid: stat.uid(), gid: stat.gid(), mode: stat.mode(), xattrs: read_xattrs(path)? })
    }

    /// Makes the directory at `path` like this, and first of all a directory.
    pub fn give(&self, path: &Path) -> io::Result<()> {
        match fs::symlink_metadata(path) {
            Ok(stat) if stat.is_dir() => {}
            Ok(_) => fs::remove_file(path).and_then(|()| fs::create_dir(path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(path)?,
            Err(error) => return Err(error),
        }
        for (name, _) in read_xattrs(path)? {
            rustix::fs::removexattr(path, name.as_slice())?;
        }
        rustix::fs::chown(path, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        rustix::fs::chmod(path, Mode::from_raw_mode(self.mode & !KIND_MASK))?;
        for (name, value) in &self.xattrs {
            rustix::fs::setxattr(path, name.as_slice(), value, XattrFlags::empty())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_as_they_were_written() {
        let xattrs = vec![(b"user.a".to_vec(), b"1".to_vec())];
        let meta = DirMeta { uid: 1, gid: 2, mode: 0o041_777, xattrs };
        assert_eq!(DirMeta::parse(&meta.render()).unwrap(), meta);
        let file = DirMeta { mode: 0o100_644, ..meta };
        assert!(DirMeta::parse(&file.render()).is_err());
    }

    #[test]
    fn a_link_in_place_of_a_directory_becomes_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        std::os::unix::fs::symlink("/etc", &path).unwrap();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let meta = DirMeta { uid, gid, mode: 0o042_750, xattrs: vec![] };
        assert_ne!(DirMeta::read(&path).unwrap(), meta);
        for _again in 0..2 {
            meta.give(&path).unwrap();
            assert_eq!(DirMeta::read(&path).unwrap(), meta);
        }
    }
}
