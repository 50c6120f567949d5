//! Brings missing images into Docker.
//!
//! 1. Look which pinned images and which layer chains are there already;
//! 2. image by image (a load of several is not atomic, and needs room for all of them twice), stream the missing layers
//!    as a `docker load` archive, no copy of ours on the disk; two at a time (`queue`), because Docker works on a load with
//!    one core, and never two that bring the same layer;
//! 3. check that the image is there under its pinned Id;
//! 4. sync the data root.
//!
//! It does not read content back (that is [`Docker::verify`]) and does not mend an image that is there and damaged
//! ([`Docker::repair`]).

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use bollard::query_parameters::ImportImageOptions;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;

use crate::formats::image::store::ImageStore;
use crate::model::{Digest, PinnedImage, Progress};

use super::containerd::mend::Depth;
use super::queue::Queue;
use super::{Docker, DockerError, Store};

/// Loads that run at the same time. More would only make the disk busier.
const LOADS_AT_ONCE: usize = 2;

/// Bytes handed to Docker at a time: few calls, little memory.
const CHUNK: usize = 256 << 10;

/// Chunks that may wait between the reader of layers and the socket.
const CHUNKS_WAITING: usize = 8;

/// Room for what Docker notes of an image besides its layers: their lists of files, its databases.
const ROOM_FOR_NOTES: u64 = 4 << 20;

/// Whatever the source of an archive has to say.
pub type ArchiveError = Box<dyn std::error::Error + Send + Sync>;

/// Something that writes pinned images as a `docker load` archive.
pub trait ImageArchive: Sync {
    /// Writes `images` to `out`, leaving out the content of layers whose chain is in `skip`.
    fn write_archive(
        &self,
        images: &[&PinnedImage],
        skip: &BTreeSet<Digest>,
        out: &mut dyn Write,
    ) -> Result<(), ArchiveError>;
}

impl ImageArchive for ImageStore {
    fn write_archive(
        &self,
        images: &[&PinnedImage],
        skip: &BTreeSet<Digest>,
        mut out: &mut dyn Write,
    ) -> Result<(), ArchiveError> {
        Self::write_archive(self, images, skip, &mut out).map_err(ArchiveError::from)
    }
}

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Images that were there already.
    pub present: Vec<Digest>,
    /// Images that were loaded.
    pub loaded: Vec<Digest>,
    /// Bytes of the archives that were sent.
    pub bytes: u64,
}

impl Docker {
    /// Makes sure that every one of `images` is in Docker and on the disk.
    pub fn import<'a>(
        &self,
        source: &dyn ImageArchive,
        images: impl IntoIterator<Item = &'a PinnedImage>,
        progress: &dyn Progress,
    ) -> Result<Imported, DockerError> {
        let store = self.store()?;
        let mut imported = Imported::default();
        let mut missing: Vec<&PinnedImage> = Vec::new();
        let images: Vec<&PinnedImage> = images.into_iter().collect();
        if let Store::Containerd(store) = store {
            // A load would take a damaged description for good.
            store.mend(source, &images, Depth::Descriptions)?;
        }
        for image in images {
            if self.present(image)? {
                imported.present.push(image.config);
            } else if !missing.iter().any(|other| other.config == image.config) {
                missing.push(image);
            }
        }
        if missing.is_empty() {
            return Ok(imported);
        }
        let chains = self.observe_chains(&missing)?;
        progress.begin("importing container images", Some(bytes_to_send(&missing, &chains)));
        let queue = Queue::new(missing, chains);
        std::thread::scope(|scope| {
            for _ in 0..LOADS_AT_ONCE {
                scope.spawn(|| self.load_from(&queue, source, store.roots()[0], progress));
            }
        });
        let loads = queue.finish()?;
        imported.bytes = loads.iter().map(|(_, bytes)| bytes).sum();
        imported.loaded = loads.into_iter().map(|(image, _)| image).collect();
        self.sync()?;
        progress.end(&format!(
            "{} loaded, {} already there, {} MB sent",
            imported.loaded.len(),
            imported.present.len(),
            imported.bytes / 1_000_000
        ));
        Ok(imported)
    }

    /// Loads images of the queue until there is none left or one failed.
    fn load_from(
        &self,
        queue: &Queue<'_>,
        source: &dyn ImageArchive,
        data_root: &Path,
        progress: &dyn Progress,
    ) {
        while let Some((image, present)) = queue.next(data_root) {
            let loaded = self
                .load(source, image, &present, progress)
                .and_then(|bytes| self.require_loaded(image).map(|()| bytes));
            queue.done(image, loaded);
        }
    }

    /// Streams one image; gives the bytes sent.
    fn load(
        &self,
        source: &dyn ImageArchive,
        image: &PinnedImage,
        chains: &BTreeSet<Digest>,
        progress: &dyn Progress,
    ) -> Result<u64, DockerError> {
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_WAITING);
        let (written, answer) = std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let mut out = ChunkWriter { sender, chunk: BytesMut::new(), written: 0, progress };
                let result = source
                    .write_archive(&[image], chains, &mut out)
                    .and_then(|()| out.flush().map_err(ArchiveError::from));
                if result.is_err() {
                    // Without this Docker would take a cut archive for a whole one.
                    let cut = io::Error::other("the archive could not be written to its end");
                    let _ = out.sender.blocking_send(Err(cut));
                }
                result.map(|()| out.written)
            });
            let answer = self.runtime.block_on(self.send_archive(receiver));
            (writer.join(), answer)
        });
        let load_error = |source| DockerError::Load {
            image: image.config,
            reference: image.reference.clone(),
            source: Box::new(source),
        };
        let archive_error =
            |source| DockerError::Archive { image: image.config, reference: image.reference.clone(), source };
        match (written, answer) {
            (Ok(Ok(written)), Ok(())) => Ok(written),
            // Docker hung up in the middle: its own reason is the better one, when it gave one.
            (Ok(Err(error)), Err(answer)) if is_hang_up(&*error) => Err(load_error(answer)),
            (Ok(Err(error)), _) => Err(archive_error(error)),
            (Ok(Ok(_)), Err(answer)) => Err(load_error(answer)),
            (Err(_), _) => Err(archive_error("the thread that reads the image's files ended early".into())),
        }
    }

    /// Sends what arrives at `receiver` and reads Docker's answer to its end.
    async fn send_archive(
        &self,
        receiver: mpsc::Receiver<io::Result<Bytes>>,
    ) -> Result<(), bollard::errors::Error> {
        let body = stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        });
        let options = ImportImageOptions { quiet: true, ..Default::default() };
        let mut answers = std::pin::pin!(self.client.import_image_stream(options, body, None));
        while let Some(answer) = answers.next().await {
            answer?;
        }
        Ok(())
    }

    /// Checks that a load brought what it was asked for.
    fn require_loaded(&self, image: &PinnedImage) -> Result<(), DockerError> {
        if self.present(image)? {
            return Ok(());
        }
        let id = self.id_of(image.config)?;
        let problem = match id.map(|id| self.layers_of(id)).transpose()?.flatten() {
            None => "no image of that Id".to_owned(),
            Some(layers) => format!("an image of that Id with other layers, {layers:?}"),
        };
        let reference = image.reference.clone();
        Err(DockerError::NotLoaded { image: image.config, reference, problem })
    }
}

/// Bytes of disk that a load takes at most: Docker keeps the whole archive beside the layers that it unpacks.
pub(super) fn room_for(image: &PinnedImage, present: &BTreeSet<Digest>) -> u64 {
    2 * bytes_to_send(&[image], present) + ROOM_FOR_NOTES
}

/// Bytes of the layers that are not there yet, each counted once.
pub(super) fn bytes_to_send(images: &[&PinnedImage], present: &BTreeSet<Digest>) -> u64 {
    let mut seen = present.clone();
    let mut bytes = 0;
    for image in images {
        for (layer, chain) in image.layers.iter().zip(image.chains()) {
            if seen.insert(chain) {
                bytes += layer.size;
            }
        }
    }
    bytes
}

/// Whether a writer stopped because its reader did.
pub(super) fn is_hang_up(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind == Some(io::ErrorKind::BrokenPipe) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Collects small writes into chunks for the socket.
struct ChunkWriter<'a> {
    sender: mpsc::Sender<io::Result<Bytes>>,
    chunk: BytesMut,
    written: u64,
    progress: &'a dyn Progress,
}

impl ChunkWriter<'_> {
    fn send(&mut self) -> io::Result<()> {
        let chunk = self.chunk.split().freeze();
        let length = chunk.len() as u64;
        self.sender.blocking_send(Ok(chunk)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.written += length;
        self.progress.advance(length);
        Ok(())
    }
}

impl Write for ChunkWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() { Ok(()) } else { self.send() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PinnedLayer;

    fn image(layers: &[(&str, u64)]) -> PinnedImage {
        PinnedImage {
            reference: "test".to_owned(),
            manifest: Digest::of(b"m"),
            config: Digest::of(format!("{layers:?}").as_bytes()),
            layers: layers
                .iter()
                .map(|(name, size)| PinnedLayer { diff_id: Digest::of(name.as_bytes()), size: *size })
                .collect(),
        }
    }

    #[test]
    fn shared_and_present_layers_are_counted_once_or_not_at_all() {
        let a = image(&[("base", 100), ("a", 10)]);
        let b = image(&[("base", 100), ("b", 5)]);
        let other_base = image(&[("other", 1), ("a", 10)]);
        assert_eq!(bytes_to_send(&[&a, &b], &BTreeSet::new()), 115);
        assert_eq!(bytes_to_send(&[&a, &b], &[a.chains()[0]].into()), 15);
        // The same layer on another base is another chain: Docker needs its content again.
        assert_eq!(bytes_to_send(&[&other_base], &a.chains().into_iter().collect()), 11);
    }
}
