//! Reading objects of a repo in either mode.
//!
//! 1. Metadata objects are read whole, and their digest is checked;
//! 2. file objects are opened as header and stream: whoever copies them checks the digest while the bytes go by;
//! 3. a walk over a commit names every object with the first path that leads to it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::DeflateDecoder;

use super::gvariant::{CommitObject, DirTree, FileHeader, MetaValue, Xattrs};
use super::refs::write_atomically;
use super::{DirMeta, Mode, Repo, RepoError};
use crate::model::{Commit, Digest, KERNEL_ARGUMENTS, ObjectKind, ObjectName, RELEASE_DIR, ReleaseInfo};

/// How many symbolic links a path may lead through.
const LINKS_FOLLOWED: usize = 16;
/// A file that is read whole may have this many bytes: release files are far smaller.
const WHOLE_FILE_LIMIT: u64 = 256 << 20;

/// A file object, opened.
pub struct FileObject {
    /// Owner, mode, link target, xattrs.
    pub header: FileHeader,
    /// Bytes of content.
    pub size: u64,
    /// The content; nothing for a link.
    pub content: Box<dyn Read + Send>,
}

/// What a commit says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    /// The commit.
    pub commit: Commit,
    /// The version that people say.
    pub version: Option<String>,
    /// Seconds since 1970.
    pub timestamp: u64,
    /// The commit before.
    pub parent: Option<Commit>,
    /// One line.
    pub subject: String,
    /// Refs that the commit says it belongs to.
    pub refs: Vec<String>,
    /// All metadata of simple types.
    pub metadata: Vec<(String, MetaValue)>,
    /// The root's dirtree and dirmeta.
    pub root: (Digest, Digest),
}

impl CommitInfo {
    /// Parses a commit object whose digest was checked.
    pub fn parse(commit: Commit, bytes: &[u8]) -> Result<Self, RepoError> {
        let object = CommitObject::parse(bytes)
            .map_err(|source| RepoError::Malformed { object: ObjectName::of_commit(commit), source })?;
        Ok(Self {
            commit,
            version: object.text("version").map(str::to_owned),
            timestamp: object.timestamp,
            parent: object.parent.map(|parent| Commit::from_bytes(*parent.as_bytes())),
            refs: object.list("ostree.ref-binding").to_vec(),
            root: (object.root_tree, object.root_meta),
            subject: object.subject,
            metadata: object.metadata,
        })
    }
}

impl Repo {
    /// The bytes of a metadata object (commit, dirtree, dirmeta), checked.
    pub fn read_metadata(&self, object: &ObjectName) -> Result<Vec<u8>, RepoError> {
        let path = self.object_path(object);
        let bytes = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => RepoError::Missing { object: *object },
            _ => RepoError::io("reading", &path, source),
        })?;
        let got = Digest::of(&bytes);
        if got == object.digest {
            Ok(bytes)
        } else {
            Err(RepoError::Damaged { object: *object, got: got.hex() })
        }
    }

    /// Opens a file object. The digest is not checked.
    pub fn open_file(&self, digest: &Digest) -> Result<FileObject, RepoError> {
        let object = ObjectName::new(ObjectKind::File, *digest);
        let path = self.object_path(&object);
        let opened = match self.mode {
            Mode::Archive => open_archive_file(&path),
            Mode::Bare => open_bare_file(&path),
        };
        opened.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => RepoError::Missing { object },
            _ => RepoError::io("opening", &path, source),
        })
    }

    /// What a commit says of itself.
    pub fn commit_info(&self, commit: Commit) -> Result<CommitInfo, RepoError> {
        CommitInfo::parse(commit, &self.read_metadata(&ObjectName::of_commit(commit))?)
    }

    /// The commit's detached metadata, where signatures are.
    pub fn read_detached(&self, commit: Commit) -> Result<Option<Vec<u8>>, RepoError> {
        let path = self.detached_path(commit);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RepoError::io("reading", &path, source)),
        }
    }

    /// Writes the commit's detached metadata.
    pub fn write_detached(&self, commit: Commit, bytes: &[u8]) -> Result<(), RepoError> {
        write_atomically(&self.detached_path(commit), bytes)
    }

    fn detached_path(&self, commit: Commit) -> PathBuf {
        self.object_path(&ObjectName::of_commit(commit)).with_extension("commitmeta")
    }

    /// A directory's names.
    pub fn read_tree(&self, digest: &Digest) -> Result<DirTree, RepoError> {
        let object = ObjectName::new(ObjectKind::DirTree, *digest);
        DirTree::parse(&self.read_metadata(&object)?)
            .map_err(|source| RepoError::Malformed { object, source })
    }

    /// Calls `seen(path, object)` once for every object of the commit: the commit first, directories before their content.
    ///
    /// Paths start with `/`. Only directories are read, so it takes well under a second for a host.
    pub fn walk(&self, commit: Commit, seen: &mut dyn FnMut(&str, ObjectName)) -> Result<(), RepoError> {
        self.walk_past(commit, seen, &|error| Err(error))
    }

    /// The same; when a commit or directory cannot be read, `unread` says whether to go on without what is below it.
    pub(super) fn walk_past(
        &self,
        commit: Commit,
        seen: &mut dyn FnMut(&str, ObjectName),
        unread: &dyn Fn(RepoError) -> Result<(), RepoError>,
    ) -> Result<(), RepoError> {
        seen("/", ObjectName::of_commit(commit));
        let root = match self.commit_info(commit) {
            Ok(info) => info.root,
            Err(error) => return unread(error),
        };
        let mut known = HashSet::new();
        let mut pending = vec![(String::from("/"), root.0, root.1)];
        while let Some((path, tree, meta)) = pending.pop() {
            if known.insert((ObjectKind::DirMeta, meta)) {
                seen(&path, ObjectName::new(ObjectKind::DirMeta, meta));
            }
            if !known.insert((ObjectKind::DirTree, tree)) {
                continue;
            }
            seen(&path, ObjectName::new(ObjectKind::DirTree, tree));
            let names = match self.read_tree(&tree) {
                Ok(names) => names,
                Err(error) => {
                    unread(error)?;
                    continue;
                }
            };
            for (name, file) in names.files {
                if known.insert((ObjectKind::File, file)) {
                    seen(&format!("{path}{name}"), ObjectName::new(ObjectKind::File, file));
                }
            }
            for (name, tree, meta) in names.dirs.into_iter().rev() {
                pending.push((format!("{path}{name}/"), tree, meta));
            }
        }
        Ok(())
    }

    /// Calls `seen(path, object)` for every path of the commit, as often as there are paths to an object: with the dirmeta
    /// of a directory, before what is in it, and with the file object of a file or link.
    pub fn walk_paths(
        &self,
        commit: Commit,
        seen: &mut dyn FnMut(&str, ObjectName),
    ) -> Result<(), RepoError> {
        let (root, meta) = self.commit_info(commit)?.root;
        seen("/", ObjectName::new(ObjectKind::DirMeta, meta));
        let mut pending = vec![(String::from("/"), root)];
        while let Some((path, tree)) = pending.pop() {
            let names = self.read_tree(&tree)?;
            for (name, file) in names.files {
                seen(&format!("{path}{name}"), ObjectName::new(ObjectKind::File, file));
            }
            for (name, tree, meta) in names.dirs.into_iter().rev() {
                let path = format!("{path}{name}");
                seen(&path, ObjectName::new(ObjectKind::DirMeta, meta));
                pending.push((path + "/", tree));
            }
        }
        Ok(())
    }

    /// A directory's owner, mode and xattrs.
    pub fn read_dir_meta(&self, digest: &Digest) -> Result<DirMeta, RepoError> {
        let object = ObjectName::new(ObjectKind::DirMeta, *digest);
        DirMeta::parse(&self.read_metadata(&object)?)
            .map_err(|source| RepoError::Malformed { object, source })
    }

    /// Every object of the commit, each once.
    pub fn walk_objects(&self, commit: Commit) -> Result<Vec<ObjectName>, RepoError> {
        let mut objects = Vec::new();
        self.walk(commit, &mut |_, object| objects.push(object))?;
        Ok(objects)
    }

    /// Names in a directory of the commit: files and links, then directories. The path may start with `/`.
    pub fn list_dir(&self, commit: Commit, path: &str) -> Result<DirTree, RepoError> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        self.tree_at(commit, &parts, path)
    }

    /// The content of a file of the commit; links are followed within the tree.
    pub fn read_file(&self, commit: Commit, path: &str) -> Result<Vec<u8>, RepoError> {
        let no_file = || RepoError::NoFile { file: path.to_owned() };
        let mut parts: Vec<String> =
            path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect();
        for _ in 0..LINKS_FOLLOWED {
            let name = parts.pop().ok_or_else(no_file)?;
            let above: Vec<&str> = parts.iter().map(String::as_str).collect();
            let tree = self.tree_at(commit, &above, path)?;
            let (_, digest) = tree.files.iter().find(|(file, _)| *file == name).ok_or_else(no_file)?;
            let mut file = self.open_file(digest)?;
            if !file.header.is_link() {
                return read_checked(*digest, &mut file);
            }
            if file.header.target.starts_with('/') {
                parts.clear();
            }
            for part in file.header.target.split('/') {
                match part {
                    "" | "." => {}
                    ".." => drop(parts.pop()),
                    part => parts.push(part.to_owned()),
                }
            }
        }
        Err(no_file())
    }

    /// The commit's `release.json`, if it has one.
    pub fn release_info(&self, commit: Commit) -> Result<Option<ReleaseInfo>, RepoError> {
        match self.read_file(commit, &format!("{RELEASE_DIR}/release.json")) {
            // A release of a newer format is still a commit: it is listed without what we cannot read.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(RepoError::NoFile { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The kernel arguments that the commit brings; none, if it is not a release of ours.
    pub fn kernel_arguments(&self, commit: Commit) -> Result<Vec<String>, RepoError> {
        let file = format!("{RELEASE_DIR}/{KERNEL_ARGUMENTS}");
        match self.read_file(commit, &file) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|source| RepoError::Json { commit, file, source })
            }
            Err(RepoError::NoFile { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn tree_at(&self, commit: Commit, parts: &[&str], whole: &str) -> Result<DirTree, RepoError> {
        let mut tree = self.read_tree(&self.commit_info(commit)?.root.0)?;
        for part in parts {
            let next = tree.dirs.iter().find(|(name, ..)| name == part);
            let (_, digest, _) = next.ok_or_else(|| RepoError::NoFile { file: whole.to_owned() })?;
            tree = self.read_tree(digest)?;
        }
        Ok(tree)
    }
}

/// Reads a file object whole and checks its digest.
fn read_checked(digest: Digest, file: &mut FileObject) -> Result<Vec<u8>, RepoError> {
    use sha2::{Digest as _, Sha256};
    let object = ObjectName::new(ObjectKind::File, digest);
    let mut bytes = Vec::new();
    let reading = |source| RepoError::io("reading", Path::new(&object.to_string()), source);
    (&mut file.content).take(WHOLE_FILE_LIMIT).read_to_end(&mut bytes).map_err(reading)?;
    let mut hasher = Sha256::new();
    hasher.update(file.header.stream_prefix());
    hasher.update(&bytes);
    let got = Digest::from_bytes(hasher.finalize().into());
    if got == digest { Ok(bytes) } else { Err(RepoError::Damaged { object, got: got.hex() }) }
}

fn open_archive_file(path: &Path) -> io::Result<FileObject> {
    let mut file = BufReader::new(File::open(path)?);
    let (header, size) = FileHeader::read_archive(&mut file)?;
    let content: Box<dyn Read + Send> =
        if header.is_link() { Box::new(io::empty()) } else { Box::new(DeflateDecoder::new(file)) };
    Ok(FileObject { header, size, content })
}

pub(super) fn open_bare_file(path: &Path) -> io::Result<FileObject> {
    let stat = fs::symlink_metadata(path)?;
    let link = stat.file_type().is_symlink();
    let target = if link { link_target(path)? } else { String::new() };
    let xattrs = read_xattrs(path)?;
    let header = FileHeader { uid: stat.uid(), gid: stat.gid(), mode: stat.mode(), target, xattrs };
    let content: Box<dyn Read + Send> =
        if link { Box::new(io::empty()) } else { Box::new(File::open(path)?) };
    Ok(FileObject { header, size: if link { 0 } else { stat.size() }, content })
}

/// A link's target; ostree holds only UTF-8.
pub(super) fn link_target(path: &Path) -> io::Result<String> {
    fs::read_link(path)?
        .into_os_string()
        .into_string()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the link's target is not UTF-8"))
}

/// The xattrs of a file or link that belong to a release, sorted by name.
///
/// `security.selinux` comes from the machine's policy, not from the tree: it would make two machines disagree.
pub(super) fn read_xattrs(path: &Path) -> io::Result<Xattrs> {
    use std::os::unix::ffi::OsStrExt;
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(Xattrs::new()),
        Err(error) => return Err(error),
    };
    let mut xattrs = Xattrs::new();
    for name in names.filter(|name| name != "security.selinux") {
        if let Some(value) = xattr::get(path, &name)? {
            xattrs.push((name.as_bytes().to_vec(), value));
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// Checks a metadata object's form before it is trusted as what its kind says.
pub(crate) fn check_metadata(object: &ObjectName, bytes: &[u8]) -> Result<(), RepoError> {
    match object.kind {
        ObjectKind::DirTree => DirTree::parse(bytes).map(drop),
        ObjectKind::DirMeta => DirMeta::parse(bytes).map(drop),
        ObjectKind::Commit => CommitObject::parse(bytes).map(drop),
        ObjectKind::File => Ok(()),
    }
    .map_err(|source| RepoError::Malformed { object: *object, source })
}
