//! Compares a layer's unpacked files with the blob that they came from.
//!
//! 1. The blob is read once: hashed as a whole, and each file's content compared with the unpacked file as it passes by;
//! 2. then each path must be what its last entry says: kind, size, mode, owner, link, device, extended attributes;
//! 3. and nothing else may be there.
//!
//! It follows containerd (`archive/tar.go`, `Apply`): later entries replace earlier ones, the root's own entry is ignored,
//! parents that no entry names are made, whiteouts become overlayfs's own. Times are not compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use crate::docker::DockerError;
use crate::docker::stored::{LayerVerdict, open_inside, tell};
use crate::formats::image::header::Header;
use crate::model::{Digest, Progress};

/// Bytes read at a time.
const BUFFER: usize = 256 << 10;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const WHITEOUT_META: &[u8] = b".wh..wh.";

/// How overlayfs marks a directory that hides what is below.
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// How PAX records name extended attributes.
const XATTR: &str = "SCHILY.xattr.";

/// What the last entry of a path says.
#[derive(Debug)]
struct Expected {
    kind: Kind,
    /// None: not known, because two names of one file differ in it.
    mode: Option<u32>,
    owner: Option<(u32, u32)>,
    xattrs: Vec<(String, Vec<u8>)>,
    /// The content differs.
    problem: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    File(u64),
    Directory,
    Symlink(Vec<u8>),
    /// Another name of this path's file.
    Link(Vec<u8>),
    Device(FileType, u64),
    Fifo,
    Whiteout,
}

#[derive(Debug)]
struct Layer {
    /// The lowest layer is unpacked without an overlay: whiteouts hide nothing there, and leave nothing.
    is_lowest: bool,
    paths: BTreeMap<Vec<u8>, Expected>,
    /// Files that a later entry replaced: other names of theirs cannot be told by them any more.
    replaced: BTreeSet<Vec<u8>>,
    opaque: BTreeSet<Vec<u8>>,
}

/// Compares `blob`, which should have `digest`, with the files in `directory`.
pub(super) fn compare(
    blob: &Path,
    digest: Digest,
    directory: &Path,
    is_lowest: bool,
    progress: &dyn Progress,
) -> Result<LayerVerdict, DockerError> {
    let root = match File::open(directory) {
        Ok(root) => root,
        Err(error) => return tell(directory, error),
    };
    let file = match File::open(blob) {
        Ok(file) => file,
        Err(error) => return tell(blob, error),
    };
    let reader = Hashing { inner: BufReader::with_capacity(BUFFER, file), hash: Sha256::new(), progress };
    let mut archive = tar::Archive::new(reader);
    let (paths, replaced, opaque) = Default::default();
    let mut layer = Layer { is_lowest, paths, replaced, opaque };
    let read = layer.read(&mut archive, &root);
    // What follows the last entry counts for the digest, and so does what follows a broken one.
    let mut rest = archive.into_inner();
    if let Err(error) = io::copy(&mut rest, &mut io::sink()) {
        return tell(blob, error);
    }
    let got = Digest::from_bytes(rest.hash.finalize().into());
    if got != digest {
        return Ok(LayerVerdict::Content(got));
    }
    // The bytes are right, so that a tar that cannot be read says nothing of the store.
    read.map_err(|source| DockerError::Store { path: blob.to_owned(), source })?;
    match layer.first_difference(&root, directory) {
        Ok(None) => Ok(LayerVerdict::Content(got)),
        Ok(Some(problem)) => Ok(LayerVerdict::Broken(problem)),
        Err((path, error)) => tell(&path, error),
    }
}

impl Layer {
    fn read(&mut self, archive: &mut tar::Archive<impl Read>, root: &File) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let mut other = vec![0; BUFFER];
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = clean(&entry.path_bytes());
            let Some(name) = path.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty()) else {
                continue;
            };
            let parent = path[..path.len() - name.len()].strip_suffix(b"/").unwrap_or(b"").to_vec();
            if name.starts_with(WHITEOUT) && self.is_lowest {
                continue;
            }
            if name == OPAQUE {
                self.opaque.insert(parent);
                continue;
            }
            if name.starts_with(WHITEOUT_META) {
                continue;
            }
            if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                let hidden = [&path[..path.len() - name.len()], hidden].concat();
                self.put(hidden, Expected::bare(Kind::Whiteout));
                continue;
            }
            let (mode, owner, xattrs) = metadata(&mut entry)?;
            let header = entry.header();
            let kind = match header.entry_type() {
                EntryType::Directory => Kind::Directory,
                // As it was before POSIX.
                EntryType::Regular if entry.path_bytes().ends_with(b"/") => Kind::Directory,
                EntryType::Symlink => Kind::Symlink(entry.link_name_bytes().unwrap_or_default().into_owned()),
                EntryType::Link => Kind::Link(clean(&entry.link_name_bytes().unwrap_or_default())),
                EntryType::Char | EntryType::Block => {
                    // Fields that nobody wrote count as zero.
                    let number = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or(0);
                    let device =
                        rustix::fs::makedev(number(header.device_major()), number(header.device_minor()));
                    let is_char = header.entry_type() == EntryType::Char;
                    let kind = if is_char { FileType::CharacterDevice } else { FileType::BlockDevice };
                    Kind::Device(kind, device)
                }
                EntryType::Fifo => Kind::Fifo,
                EntryType::XGlobalHeader => continue,
                _ => Kind::File(entry.size()),
            };
            let problem = match kind {
                Kind::File(size) => difference(root, &path, &mut entry, size, &mut buffer, &mut other)?,
                _ => None,
            };
            if let Kind::Link(target) = &kind {
                // One file, two entries: containerd gives it what the later one says.
                if let Some(file) = self.paths.get_mut(target) {
                    file.mode = file.mode.filter(|known| *known == mode);
                    file.owner = file.owner.filter(|known| *known == owner);
                }
                self.put(path, Expected::bare(kind));
                continue;
            }
            self.put(path, Expected { kind, mode: Some(mode), owner: Some(owner), xattrs, problem });
        }
        Ok(())
    }

    fn put(&mut self, path: Vec<u8>, expected: Expected) {
        let stays = expected.kind == Kind::Directory;
        match self.paths.insert(path.clone(), expected).map(|old| old.kind) {
            Some(Kind::Directory) if !stays => {
                let below = [path.as_slice(), b"/"].concat();
                self.paths.retain(|path, _| !path.starts_with(&below));
            }
            Some(Kind::File(_) | Kind::Link(_)) => drop(self.replaced.insert(path)),
            _ => {}
        }
    }

    /// What the directory has that the layer has not, or the other way.
    fn first_difference(
        &self,
        root: &File,
        directory: &Path,
    ) -> Result<Option<String>, (PathBuf, io::Error)> {
        let real = real_path(root).map_err(|error| (directory.to_owned(), error))?;
        let mut seen = BTreeSet::new();
        let mut see = |file: &File| -> io::Result<()> {
            let found = real_path(file)?;
            let mut found = found.strip_prefix(&real).unwrap_or(&found);
            // Parents that no entry names are made by who unpacks.
            while seen.insert(found.to_owned()) {
                found = found.parent().unwrap_or(Path::new(""));
            }
            Ok(())
        };
        for (path, expected) in &self.paths {
            let shown = directory.join(std::ffi::OsStr::from_bytes(path));
            let differs = |what: String| Ok(Some(format!("{}: {what}", shown.display())));
            let file = match open_inside(root, path, OFlags::PATH) {
                Ok(file) => file,
                Err(error) => return Err((shown, error)),
            };
            if let Some(problem) = &expected.problem {
                return differs(problem.clone());
            }
            match self.judge(root, &file, expected) {
                Ok(None) => {}
                Ok(Some(what)) => return differs(what),
                Err(error) => return Err((shown, error)),
            }
            see(&file).map_err(|error| (shown, error))?;
        }
        for path in &self.opaque {
            let shown = directory.join(std::ffi::OsStr::from_bytes(path));
            let look = || {
                let file = open_inside(root, if path.is_empty() { b"." } else { path }, OFlags::PATH)?;
                xattr::get_deref(format!("/proc/self/fd/{}", file.as_raw_fd()), OPAQUE_XATTR)
                    .map(|value| (file, value))
            };
            let (file, value) = look().map_err(|error| (shown.clone(), error))?;
            if value.as_deref() != Some(b"y") {
                return Ok(Some(format!("{}: it hides the layers below no more", shown.display())));
            }
            see(&file).map_err(|error| (shown, error))?;
        }
        for entry in walkdir::WalkDir::new(&real).min_depth(1) {
            let entry = entry.map_err(|error| (directory.to_owned(), error.into()))?;
            let path = entry.path().strip_prefix(&real).unwrap_or(entry.path());
            if !seen.contains(path) {
                return Ok(Some(format!("{}: its layer does not have it", directory.join(path).display())));
            }
        }
        Ok(None)
    }

    fn judge(&self, root: &File, file: &File, expected: &Expected) -> io::Result<Option<String>> {
        let stat = rustix::fs::fstat(file)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_kind = match &expected.kind {
            Kind::File(size) => kind == FileType::RegularFile && stat.st_size as u64 == *size,
            Kind::Directory => kind == FileType::Directory,
            Kind::Symlink(target) => {
                kind == FileType::Symlink
                    && rustix::fs::readlinkat(file, "", Vec::new())?.as_bytes() == target.as_slice()
            }
            Kind::Link(target) if !self.replaced.contains(target) => {
                let target = rustix::fs::fstat(&open_inside(root, target, OFlags::PATH)?)?;
                (target.st_dev, target.st_ino) == (stat.st_dev, stat.st_ino)
            }
            Kind::Link(_) => kind == FileType::RegularFile,
            Kind::Device(wanted, device) => kind == *wanted && stat.st_rdev == *device,
            Kind::Fifo => kind == FileType::Fifo,
            Kind::Whiteout => kind == FileType::CharacterDevice && stat.st_rdev == 0,
        };
        if !is_kind {
            return Ok(Some(format!("it is no {:?} any more", expected.kind)));
        }
        let mode = stat.st_mode & 0o7777;
        if let Some(wanted) = expected.mode.filter(|wanted| kind != FileType::Symlink && *wanted != mode) {
            return Ok(Some(format!("it has mode {mode:o}, expected {wanted:o}")));
        }
        let owner = (stat.st_uid, stat.st_gid);
        if let Some(wanted) = expected.owner.filter(|wanted| *wanted != owner) {
            return Ok(Some(format!("it belongs to {owner:?}, expected {wanted:?}")));
        }
        if kind == FileType::RegularFile || kind == FileType::Directory {
            for (name, value) in &expected.xattrs {
                let found = xattr::get_deref(format!("/proc/self/fd/{}", file.as_raw_fd()), name)?;
                if found.as_ref() != Some(value) {
                    return Ok(Some(format!("its attribute {name} is not what it was")));
                }
            }
        }
        Ok(None)
    }
}

impl Expected {
    fn bare(kind: Kind) -> Self {
        Self { kind, mode: None, owner: None, xattrs: Vec::new(), problem: None }
    }
}

type Metadata = (u32, (u32, u32), Vec<(String, Vec<u8>)>);

fn metadata(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Metadata> {
    // The tar crate writes an owner of PAX records into its copy of the header, whose sum is wrong then.
    let mut block = entry.header().clone();
    block.set_cksum();
    let header = Header::parse(block.as_bytes()).map_err(io::Error::other)?;
    let mode = header.mode();
    let (mut user, mut group) = (header.uid().unwrap_or(0), header.gid().unwrap_or(0));
    let mut xattrs = Vec::new();
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        let number = || record.value().ok().and_then(|value| value.parse().ok());
        match record.key() {
            Ok("uid") => user = number().unwrap_or(user),
            Ok("gid") => group = number().unwrap_or(group),
            Ok(key) => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    xattrs.push((name.to_owned(), record.value_bytes().to_vec()));
                }
            }
            Err(_) => {}
        }
    }
    Ok((mode, (user, group), xattrs))
}

/// Reads a file's content from the tar to its end, and says how the unpacked file differs.
fn difference(
    root: &File,
    path: &[u8],
    content: &mut impl Read,
    size: u64,
    buffer: &mut [u8],
    other: &mut [u8],
) -> io::Result<Option<String>> {
    let mut problem = None;
    let mut file = match open_inside(root, path, OFlags::RDONLY) {
        Ok(file) => Some(file),
        Err(error) => {
            problem = Some(error.to_string());
            None
        }
    };
    let mut at = 0;
    while at < size {
        let count = content.read(buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let unpacked = &mut other[..count];
        match file.as_mut().map(|file| file.read_exact(unpacked)) {
            Some(Ok(())) if *unpacked != buffer[..count] => {
                let byte = unpacked.iter().zip(&*buffer).position(|(a, b)| a != b).unwrap_or(0) as u64;
                problem = Some(format!("its content differs at byte {}", at + byte));
                file = None;
            }
            Some(Ok(())) | None => {}
            Some(Err(error)) => {
                problem = Some(format!("after {at} bytes: {error}"));
                file = None;
            }
        }
        at += count as u64;
    }
    Ok(problem)
}

/// A path without empty and dot parts, which leads nowhere but down.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn real_path(file: &File) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

struct Hashing<'p, R> {
    inner: R,
    hash: Sha256,
    progress: &'p dyn Progress,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.progress.advance(count as u64);
        Ok(count)
    }
}
