//! Small container images, made in memory.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use rackstep::formats::image::spec;
use rackstep::model::{Digest, PinnedImage, PinnedLayer};

/// Images by config digest, and their layers by diff-id.
#[derive(Default)]
pub struct TinyImages {
    configs: BTreeMap<Digest, Vec<u8>>,
    layers: BTreeMap<Digest, Vec<u8>>,
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

    /// Brings an image to the Docker of `client`, as `docker load` does.
    pub fn load(
        &self,
        client: impl Fn(&[&str]) -> Result<String, String>,
        image: &PinnedImage,
    ) -> Result<(), String> {
        let archive = tempfile::NamedTempFile::new().unwrap();
        self.write_archive(image, &mut archive.as_file()).unwrap();
        client(&["load", "-i", archive.path().to_str().unwrap()]).map(drop)
    }

    /// Writes an image as an archive that `docker load` and skopeo read.
    pub fn write_archive(&self, image: &PinnedImage, out: &mut dyn Write) -> std::io::Result<()> {
        let mut archive = tar::Builder::new(out);
        let mut put = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, bytes)
        };
        let name_of = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
        let diff_ids: BTreeSet<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
        for diff_id in diff_ids {
            put(&name_of(diff_id), &self.layers[&diff_id])?;
        }
        let config = &self.configs[&image.config];
        put(&name_of(image.config), config)?;
        let manifest = spec::render_plain_manifest(image.config, config.len() as u64, &image.layers);
        put(&name_of(Digest::of(&manifest)), &manifest)?;
        let descriptor = serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::of(&manifest), "size": manifest.len(),
            "platform": { "architecture": "amd64", "os": "linux" },
        });
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor],
        });
        let layers: Vec<String> = image.layers.iter().map(|layer| name_of(layer.diff_id)).collect();
        let list =
            serde_json::json!([{ "Config": name_of(image.config), "RepoTags": null, "Layers": layers }]);
        put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        put("index.json", index.to_string().as_bytes())?;
        put("manifest.json", list.to_string().as_bytes())?;
        archive.finish()
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
