//! Small container images, made in memory.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use rackstep::docker::{ArchiveError, ImageArchive};
use rackstep::formats::image::spec;
use rackstep::model::{Digest, PinSet, PinnedImage, PinnedLayer, ReleasePins};

/// Images by config digest, and their layers by diff-id.
#[derive(Default)]
pub struct TinyImages {
    configs: BTreeMap<Digest, Vec<u8>>,
    layers: BTreeMap<Digest, Vec<u8>>,
    /// Layers handed out instead of the right ones.
    pub lies: BTreeMap<Digest, Vec<u8>>,
    /// Digests of the layers whose content was written, in order.
    pub sent: std::sync::Mutex<Vec<Digest>>,
}

impl TinyImages {
    /// Adds an image of these layers.
    pub fn add(&mut self, name: &str, layers: &[Vec<u8>], entrypoint: &[&str]) -> PinnedImage {
        let mut pinned = Vec::new();
        for tar in layers {
            let diff_id = Digest::of(tar);
            pinned.push(PinnedLayer { diff_id, size: tar.len() as u64 });
            self.layers.insert(diff_id, tar.clone());
        }
        let diff_ids: Vec<String> = pinned.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Entrypoint": entrypoint, "Labels": { "name": name } },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let id = Digest::of(&config);
        self.configs.insert(id, config);
        PinnedImage {
            reference: format!("test/{name}"),
            manifest: Digest::of(name.as_bytes()),
            config: id,
            layers: pinned,
        }
    }

    /// The config of an image that was added.
    pub fn config(&self, image: &PinnedImage) -> Vec<u8> {
        self.configs[&image.config].clone()
    }

    /// Gives the list of layers sent so far, and forgets it.
    pub fn take_sent(&self) -> Vec<Digest> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }
}

impl ImageArchive for TinyImages {
    fn write_archive(
        &self,
        images: &[&PinnedImage],
        skip: &BTreeSet<Digest>,
        out: &mut dyn Write,
    ) -> Result<(), ArchiveError> {
        let mut archive = tar::Builder::new(out);
        let mut put = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, bytes)
        };
        let (mut list, mut index) = (Vec::new(), Vec::new());
        let mut written = BTreeSet::new();
        let name_of = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
        for image in images {
            for (layer, chain) in image.layers.iter().zip(image.chains()) {
                if skip.contains(&chain) || !written.insert(layer.diff_id) {
                    continue;
                }
                let content = self.lies.get(&layer.diff_id).or(self.layers.get(&layer.diff_id));
                let content = content.ok_or_else(|| format!("no layer {}", layer.diff_id))?;
                self.sent.lock().unwrap().push(layer.diff_id);
                put(&name_of(layer.diff_id), content)?;
            }
            let config = self.configs.get(&image.config).ok_or("no config")?;
            put(&name_of(image.config), config)?;
            let manifest = spec::render_plain_manifest(image.config, config.len() as u64, &image.layers);
            put(&name_of(Digest::of(&manifest)), &manifest)?;
            index.push(spec::plain_manifest_descriptor(&manifest, None));
            let layers: Vec<String> = image.layers.iter().map(|layer| name_of(layer.diff_id)).collect();
            list.push(serde_json::json!({
                "Config": name_of(image.config), "RepoTags": null, "Layers": layers,
            }));
        }
        put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        put("index.json", &spec::render_index(&index))?;
        put("manifest.json", serde_json::Value::from(list).to_string().as_bytes())?;
        archive.finish()?;
        Ok(())
    }
}

/// A layer of these files.
pub fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, name, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

/// A layer with a shell, this machine's own, and the programs given.
pub fn shell_layer(programs: &[&str]) -> Vec<u8> {
    let mut paths: BTreeSet<String> = BTreeSet::new();
    for program in [&["/bin/sh"], programs].concat() {
        paths.insert(program.to_owned());
        let output = Command::new("ldd").arg(program).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        paths.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    let files: Vec<(String, Vec<u8>)> = paths
        .into_iter()
        .map(|path| (path.trim_start_matches('/').to_owned(), std::fs::read(Path::new(&path)).unwrap()))
        .collect();
    layer(&files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect::<Vec<_>>())
}

/// The pin set of a release that has these images, as its commit would hold it.
pub fn release(digit: char, images: &[(&str, &PinnedImage)]) -> ReleasePins {
    let commit = String::from(digit).repeat(64).parse().unwrap();
    let images = images.iter().map(|(name, image)| ((*name).to_owned(), (*image).clone())).collect();
    let json = serde_json::to_vec(&PinSet { format: 1, images }).unwrap();
    ReleasePins::parse(commit, &json).unwrap()
}

/// Bytes that do not compress, so that a flipped one is surely in a file of its own.
pub fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// An error and its causes in one line.
pub fn chain_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
