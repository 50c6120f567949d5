//! Puts the right bytes under the name of a damaged blob.
//!
//! containerd takes a blob that it knows for good, so loading it again changes nothing; and a damaged description makes
//! Docker hide the image, or fail to list any. A blob's name says what its bytes must be: they come out of the release's own
//! files, are hashed on the way, and take the blob's place by one rename. Nothing that runs reads blobs; what is damaged in a
//! snapshot goes with its images ([`repair`](super::super::repair)).

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::Containerd;
use crate::docker::DockerError;
use crate::docker::import::{ArchiveError, ImageArchive, is_hang_up};
use crate::formats::image::stream::{CHUNK, HashingWriter};
use crate::model::{Digest, PinnedImage};

/// Where an archive has its blobs.
const BLOBS: &str = "blobs/sha256/";

/// What is looked at for damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::docker) enum Depth {
    /// Descriptions by their bytes, layers by their files' being there: a few kilobytes of each image.
    Descriptions,
    /// Everything by its bytes.
    Everything,
}

impl Containerd {
    /// Mends the blobs of `images` out of `source`; gives the config digests of images that had a damaged one.
    pub(in crate::docker) fn mend(
        &self,
        source: &dyn ImageArchive,
        images: &[&PinnedImage],
        depth: Depth,
    ) -> Result<Vec<Digest>, DockerError> {
        // A blob that containerd does not know is not damaged: a load brings it.
        let known = if images.is_empty() { BTreeSet::new() } else { self.blobs()? };
        let mut mended = Vec::new();
        for image in images {
            let mut skip = BTreeSet::new();
            for (layer, chain) in image.layers.iter().zip(image.chains()) {
                if !known.contains(&layer.diff_id) || !self.is_damaged(layer.diff_id, depth)? {
                    skip.insert(chain);
                }
            }
            if self.mend_image(source, image, &skip, &known)? {
                mended.push(image.config);
            }
        }
        Ok(mended)
    }

    fn mend_image(
        &self,
        source: &dyn ImageArchive,
        image: &PinnedImage,
        skip: &BTreeSet<Digest>,
        known: &BTreeSet<Digest>,
    ) -> Result<bool, DockerError> {
        let archive_error =
            |source| DockerError::Archive { image: image.config, reference: image.reference.clone(), source };
        let (reader, mut writer) = io::pipe().map_err(|error| archive_error(error.into()))?;
        let (written, mended) = std::thread::scope(|scope| {
            let archive = scope.spawn(move || source.write_archive(&[image], skip, &mut writer));
            let mended = self.mend_from(reader, known);
            (archive.join(), mended)
        });
        match (written, mended) {
            // It hung up because we did.
            (Ok(Err(hang_up)), Err(error)) if is_hang_up(&*hang_up) => Err(error),
            (Ok(Err(error)), _) => Err(archive_error(error)),
            (Ok(Ok(())), mended) => mended,
            (Err(_), _) => Err(archive_error(ArchiveError::from("the thread that reads it ended early"))),
        }
    }

    fn is_damaged(&self, digest: Digest, depth: Depth) -> Result<bool, DockerError> {
        let path = self.blob(digest);
        let is_good = match File::open(&path) {
            Ok(_) if depth == Depth::Descriptions => true,
            Ok(file) => hash(file).map_err(|source| store_error(&path, source))? == digest,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(source) => return Err(store_error(&path, source)),
        };
        Ok(!is_good)
    }

    /// Mends every blob of the archive that is damaged in the store.
    fn mend_from(&self, archive: impl Read, known: &BTreeSet<Digest>) -> Result<bool, DockerError> {
        let broken = |source| store_error(Path::new("the release's own archive"), source);
        let mut archive = tar::Archive::new(BufReader::with_capacity(CHUNK, archive));
        let mut mended = false;
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let name = entry.path_bytes().into_owned();
            let name = std::str::from_utf8(&name).ok().and_then(|name| name.strip_prefix(BLOBS));
            let Some(digest) = name.and_then(|name| Digest::parse_hex(name).ok()) else { continue };
            if known.contains(&digest) && self.is_damaged(digest, Depth::Everything)? {
                self.replace(digest, &mut entry)?;
                mended = true;
            }
        }
        // What follows the last entry is read as well: the writer must not find nobody there.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
        Ok(mended)
    }

    fn replace(&self, digest: Digest, bytes: &mut dyn Read) -> Result<(), DockerError> {
        let path = self.blob(digest);
        let error = |source| store_error(&path, source);
        // Beside the blobs, where containerd lists nothing.
        let mut file =
            tempfile::Builder::new().prefix("rackstep-mend-").tempfile_in(&self.content).map_err(error)?;
        let mut out = HashingWriter::new(file.as_file_mut());
        io::copy(bytes, &mut out).map_err(error)?;
        let (got, _) = out.finish();
        if got != digest {
            let problem = format!("the release's own files give {got}");
            return Err(error(io::Error::new(io::ErrorKind::InvalidData, problem)));
        }
        file.as_file().set_permissions(Permissions::from_mode(0o444)).map_err(error)?;
        file.as_file().sync_all().map_err(error)?;
        file.persist(&path).map_err(|persist| error(persist.error))?;
        let directory = path.parent().map(File::open).transpose().map_err(error)?;
        directory.map_or(Ok(()), |directory| directory.sync_all()).map_err(error)?;
        tracing::warn!(blob = %digest, "mended a damaged blob of docker's containerd store");
        Ok(())
    }
}

fn hash(mut file: File) -> io::Result<Digest> {
    let mut out = HashingWriter::new(io::sink());
    match io::copy(&mut file, &mut out) {
        // A bad sector is damage, and gives no digest at all.
        Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::IO) => {
            Ok(Digest::of(b""))
        }
        copied => copied.map(|_| out.finish().0),
    }
}

fn store_error(path: &Path, source: io::Error) -> DockerError {
    DockerError::Store { path: path.to_owned(), source }
}
