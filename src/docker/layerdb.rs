//! Reads layers back straight from Docker's overlay2 store.
//!
//! Docker keeps of each layer the files in `overlay2/<cache-id>/diff` and everything of its tar that is not file content in
//! `image/overlay2/layerdb/sha256/<chain>/tar-split.json.gz` (github.com/vbatts/tar-split, `tar/storage`). Both together
//! give the layer's tar again, whose sha256 must be its diff-id.
//!
//! Not by `docker save`: that writes the whole image to a temporary directory before its first byte arrives, and reads a
//! layer once per image. Here each layer is read once, in constant memory, on all cores.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;
use rustix::fs::OFlags;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::model::{Digest, PinnedImage, PinnedLayer, Progress};

use super::DockerError;
use super::stored::{LayerVerdict, ReadBack, open_inside, tell};

/// Bytes read from a file at a time.
const BUFFER: usize = 256 << 10;

/// Longest line of tar-split data that we take: one segment holds the headers between two files' contents.
const LONGEST_LINE: u64 = 16 << 20;

/// Docker's overlay2 store on this machine.
#[derive(Debug, Clone)]
pub(super) struct LayerDb {
    root: PathBuf,
}

/// One line of tar-split data.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    name: String,
    /// The name, when it is not UTF-8.
    #[serde(default)]
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    payload: Option<String>,
}

/// `Entry::kind` of a file's content.
const FILE: u8 = 1;
/// `Entry::kind` of bytes that stand in the line itself.
const SEGMENT: u8 = 2;

impl LayerDb {
    /// The store below `data_root`, if it is of the layout that we know.
    pub(super) fn open(data_root: &Path, driver: &str) -> Option<Self> {
        let known = driver == "overlay2"
            && data_root.join("image/overlay2/layerdb/sha256").is_dir()
            && data_root.join("overlay2").is_dir();
        known.then(|| Self { root: data_root.to_owned() })
    }
}

impl ReadBack for LayerDb {
    fn problem_of(&self, image: &PinnedImage) -> Result<Option<String>, DockerError> {
        let path = self.root.join("image/overlay2/imagedb/content/sha256").join(image.config.hex());
        let config = match std::fs::read(&path) {
            Ok(bytes) => LayerVerdict::Content(Digest::of(&bytes)),
            Err(error) => tell(&path, error)?,
        };
        Ok(match config {
            LayerVerdict::Content(got) if got == image.config => None,
            LayerVerdict::Content(got) => Some(format!("its config reads back as {got}")),
            LayerVerdict::Broken(problem) => Some(problem),
        })
    }

    /// Puts the layer of `chain` together again and gives the digest of its tar.
    fn read_layer(
        &self,
        _: &PinnedLayer,
        chain: Digest,
        progress: &dyn Progress,
    ) -> Result<LayerVerdict, DockerError> {
        let meta = self.root.join("image/overlay2/layerdb/sha256").join(chain.hex());
        let cache_id_path = meta.join("cache-id");
        let cache_id = match std::fs::read_to_string(&cache_id_path) {
            Ok(text) => text.trim().to_owned(),
            Err(error) => return tell(&cache_id_path, error),
        };
        if cache_id.is_empty() || cache_id.contains('/') || cache_id.starts_with('.') {
            return Ok(LayerVerdict::Broken(format!("{} holds {cache_id:?}", cache_id_path.display())));
        }
        let diff = self.root.join("overlay2").join(cache_id).join("diff");
        let files = match File::open(&diff) {
            Ok(files) => files,
            Err(error) => return tell(&diff, error),
        };
        let split = meta.join("tar-split.json.gz");
        let mut lines = match File::open(&split) {
            Ok(file) => BufReader::new(GzDecoder::new(BufReader::new(file))),
            Err(error) => return tell(&split, error),
        };
        let mut tar = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        let mut line = Vec::new();
        loop {
            line.clear();
            match lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return tell(&split, error),
            }
            let broken =
                |problem: String| Ok(LayerVerdict::Broken(format!("{}: {problem}", split.display())));
            let entry: Entry = match serde_json::from_slice(&line) {
                Ok(entry) => entry,
                Err(error) => return broken(error.to_string()),
            };
            match entry.kind {
                SEGMENT => match BASE64_STANDARD.decode(entry.payload.unwrap_or_default()) {
                    Ok(bytes) => tar.update(bytes),
                    Err(error) => return broken(error.to_string()),
                },
                FILE if entry.size == 0 => {}
                FILE => {
                    let name = match entry.raw_name() {
                        Ok(name) => name,
                        Err(problem) => return broken(problem),
                    };
                    if let Err(error) = hash_file(&files, &name, entry.size, &mut buffer, &mut tar) {
                        let name = String::from_utf8_lossy(&name).into_owned();
                        return tell(&diff.join(name), error);
                    }
                    progress.advance(entry.size);
                }
                kind => return broken(format!("entry of unknown type {kind}")),
            }
        }
        Ok(LayerVerdict::Content(Digest::from_bytes(tar.finalize().into())))
    }
}

impl Entry {
    fn raw_name(&self) -> Result<Vec<u8>, String> {
        match &self.name_raw {
            Some(raw) if self.name.is_empty() => {
                BASE64_STANDARD.decode(raw).map_err(|error| error.to_string())
            }
            _ => Ok(self.name.clone().into_bytes()),
        }
    }
}

/// Adds the content of `name` to `tar`. Symlinks on the way stay inside the layer.
fn hash_file(
    directory: &File,
    name: &[u8],
    size: u64,
    buffer: &mut [u8],
    tar: &mut Sha256,
) -> io::Result<()> {
    let mut file = open_inside(directory, name, OFlags::RDONLY)?.take(size);
    let mut left = size;
    while left > 0 {
        let count = file.read(buffer)?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("it ends {left} bytes short of {size}"),
            ));
        }
        tar.update(&buffer[..count]);
        left -= count as u64;
    }
    Ok(())
}
