//! Writes a Vagrant box: a gzipped tar of `metadata.json`, `Vagrantfile` and the disk.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{DiskImageError, Request};
use crate::formats::image::stream::Hashing;
use crate::model::{Digest, Progress};
use crate::rim::files::{FileError, naming};

/// The name that vagrant-libvirt gives to a box's only disk.
pub const DISK: &str = "box.img";
/// What every box says to Vagrant.
const VAGRANTFILE: &str = include_str!("../../../vagrant/box.Vagrantfile");
/// Before the lines for releases that have rsync.
const SYNC_MARK: &str = "#SYNC";
/// The disk is compressed already; gzip only wraps it, as Vagrant's documentation wants.
const LEVEL: Compression = Compression::none();

/// Writes the box, and gives its digest.
pub fn write(
    place: &Path,
    disk: &Path,
    metadata: &str,
    request: &Request<'_>,
    watcher: &dyn Progress,
) -> Result<Digest, DiskImageError> {
    let opened = File::open(disk).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (size, file) = opened.map_err(naming("opening", disk))?;
    watcher.begin("packing the box", Some(size));
    let write = || -> io::Result<Digest> {
        let hashing = Hashing::new(BufWriter::new(File::create(place)?));
        let mut tar = tar::Builder::new(GzEncoder::new(hashing, LEVEL));
        tar.append_data(&mut header(metadata.len() as u64), "metadata.json", metadata.as_bytes())?;
        let vagrantfile = render_vagrantfile(request.sync);
        tar.append_data(&mut header(vagrantfile.len() as u64), "Vagrantfile", vagrantfile.as_bytes())?;
        let watched = Watched { inner: file, watcher, stop: request.stop };
        tar.append_data(&mut header(size), DISK, watched)?;
        let (mut inner, digest, _) = tar.into_inner()?.finish()?.into_parts();
        inner.flush()?;
        Ok(digest)
    };
    let digest =
        write().map_err(|source| FileError { operation: "writing", path: place.to_owned(), source })?;
    watcher.end("");
    Ok(digest)
}

/// Owner, mode and time are no one's: they are what the box's user makes of them.
fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn render_vagrantfile(sync: bool) -> String {
    let keep = |line: &str| match line.strip_prefix(SYNC_MARK) {
        Some(line) => sync.then(|| format!("{line}\n")),
        None => Some(format!("{line}\n")),
    };
    VAGRANTFILE.lines().filter_map(keep).collect()
}

/// Tells how far the reading is, and ends it when it is to stop.
struct Watched<'a, R> {
    inner: R,
    watcher: &'a dyn Progress,
    stop: &'a AtomicBool,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            // Not `Interrupted`: whoever copies would try again.
            return Err(io::Error::other("stopped"));
        }
        let count = self.inner.read(buffer)?;
        self.watcher.advance(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_only_where_the_release_can_take_them() {
        assert!(render_vagrantfile(true).contains("\n  config.vm.synced_folder \".\", \"/srv/vagrant\""));
        let without = render_vagrantfile(false);
        assert!(!without.contains("/srv/vagrant\","), "{without}");
        assert!(!without.contains(SYNC_MARK) && without.contains("config.ssh.username = \"root\""));
    }
}
