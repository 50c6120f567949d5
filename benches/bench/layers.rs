//! Gives single-layer images shared layers, as a registry of services would have them.
//!
//! 1. Entries that all images have, byte for byte, are the lowest layer; those that all Python services have are the next;
//! 2. the rest is each image's own.
//!
//! No builder of images shares as much: a Dockerfile's layers differ in times alone. It is the best case for whoever moves
//! layers, which is what we compare ourselves with.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::Outcome;
use crate::images::{Built, OPENSTACK};

const BLOCK: u64 = 512;

/// An entry of a tar with everything that belongs to it: extended headers, header, content, padding.
struct Entry {
    path: Vec<u8>,
    begin: u64,
    end: u64,
    digest: [u8; 32],
    dir: bool,
}

struct Tar {
    file: File,
    entries: Vec<Entry>,
    by_path: HashMap<Vec<u8>, usize>,
    /// Paths that are hard links or are linked to: Docker unpacks a layer by itself, so they stay together.
    linked: HashSet<Vec<u8>>,
}

/// A layer that was written.
#[derive(Clone)]
struct Layer {
    digest: String,
    size: u64,
}

/// Writes one OCI layout per image into `out`, blobs hard linked where they are shared.
pub fn write_layouts(images: &[Built], out: &Path) -> Outcome<()> {
    fs::create_dir_all(out)?;
    let mut tars = Vec::new();
    for image in images {
        tars.push(read(&image.layer)?);
    }
    let everybody: Vec<usize> = (0..images.len()).collect();
    let openstack: Vec<usize> =
        everybody.iter().copied().filter(|index| OPENSTACK.contains(&images[*index].name.as_str())).collect();
    let in_base = common(&tars, &everybody, &HashSet::new());
    let in_openstack = if openstack.len() > 1 { common(&tars, &openstack, &in_base) } else { HashSet::new() };
    let blobs = out.join("blobs");
    fs::create_dir_all(&blobs)?;
    let base = write_layer(&mut tars[0], &|path| in_base.contains(path), &blobs)?;
    let shared = match openstack.first() {
        Some(first) if !in_openstack.is_empty() => {
            Some(write_layer(&mut tars[*first], &|path| in_openstack.contains(path), &blobs)?)
        }
        _ => None,
    };
    for (index, image) in images.iter().enumerate() {
        let is_openstack = openstack.contains(&index);
        let below = |path: &[u8]| in_base.contains(path) || (is_openstack && in_openstack.contains(path));
        let own = write_layer(&mut tars[index], &|path| !below(path), &blobs)?;
        let mut layers = vec![base.clone()];
        layers.extend(shared.clone().filter(|_| is_openstack));
        layers.push(own);
        write_layout(image, &layers, &blobs, &out.join(&image.name))?;
    }
    fs::remove_dir_all(&blobs)?;
    Ok(())
}

fn read(path: &Path) -> Outcome<Tar> {
    let mut archive = tar::Archive::new(File::open(path)?);
    let mut entries: Vec<Entry> = Vec::new();
    let mut linked = HashSet::new();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let begin = entries.last().map_or(0, |entry: &Entry| entry.end);
        let end = entry.raw_file_position() + entry.size().div_ceil(BLOCK) * BLOCK;
        let path = plain(&entry.path_bytes());
        if entry.header().entry_type().is_hard_link() {
            linked.insert(path.clone());
            linked.extend(entry.link_name_bytes().map(|target| plain(&target)));
        }
        let dir = entry.header().entry_type().is_dir();
        entries.push(Entry { path, begin, end, digest: [0; 32], dir });
    }
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    for entry in &mut entries {
        file.seek(SeekFrom::Start(entry.begin))?;
        let mut part = (&mut file).take(entry.end - entry.begin);
        let mut hasher = Sha256::new();
        loop {
            let count = part.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
        entry.digest = hasher.finalize().into();
    }
    let by_path = entries.iter().enumerate().map(|(index, entry)| (entry.path.clone(), index)).collect();
    Ok(Tar { file, entries, by_path, linked })
}

fn plain(path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path).to_vec()
}

/// Paths whose entries are the same in all of `members`.
fn common(tars: &[Tar], members: &[usize], without: &HashSet<Vec<u8>>) -> HashSet<Vec<u8>> {
    let Some((first, others)) = members.split_first() else { return HashSet::new() };
    let same = |entry: &Entry| {
        others.iter().all(|other| {
            let tar = &tars[*other];
            tar.by_path.get(&entry.path).is_some_and(|index| tar.entries[*index].digest == entry.digest)
        })
    };
    let apart = |path: &Vec<u8>| members.iter().any(|member| tars[*member].linked.contains(path));
    let entries = tars[*first].entries.iter();
    entries
        .filter(|entry| !without.contains(&entry.path) && !apart(&entry.path) && same(entry))
        .map(|entry| entry.path.clone())
        .collect()
}

/// Writes the wanted entries, and the directories above them: an unpacked layer has owners and modes of its own for those.
fn write_layer(tar: &mut Tar, wanted: &dyn Fn(&[u8]) -> bool, blobs: &Path) -> Outcome<Layer> {
    let mut taken: HashSet<usize> = HashSet::new();
    for (index, entry) in tar.entries.iter().enumerate() {
        if !wanted(&entry.path) {
            continue;
        }
        taken.insert(index);
        let mut path = entry.path.as_slice();
        while let Some(slash) = path.iter().rposition(|byte| *byte == b'/') {
            path = &path[..slash];
            if let Some(parent) = tar.by_path.get(path).filter(|parent| tar.entries[**parent].dir) {
                taken.insert(*parent);
            }
        }
    }
    let unnamed = blobs.join(".new");
    let mut out = Hashed {
        file: io::BufWriter::with_capacity(1 << 20, File::create(&unnamed)?),
        hasher: Sha256::new(),
        size: 0,
    };
    for (index, entry) in tar.entries.iter().enumerate() {
        if taken.contains(&index) {
            tar.file.seek(SeekFrom::Start(entry.begin))?;
            io::copy(&mut (&mut tar.file).take(entry.end - entry.begin), &mut out)?;
        }
    }
    out.write_all(&[0; 2 * BLOCK as usize])?;
    out.flush()?;
    let layer = Layer { digest: hex::encode(out.hasher.finalize()), size: out.size };
    fs::rename(&unnamed, blobs.join(&layer.digest))?;
    Ok(layer)
}

struct Hashed {
    file: io::BufWriter<File>,
    hasher: Sha256,
    size: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn write_layout(image: &Built, layers: &[Layer], blobs: &Path, layout: &Path) -> Outcome<()> {
    let mut config: Value = serde_json::from_slice(&fs::read(&image.config)?)?;
    let named: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect();
    let created = config["created"].clone();
    config["rootfs"]["diff_ids"] = json!(named);
    config["history"] = layers.iter().map(|_| json!({ "created": created, "created_by": "bench" })).collect();
    let target = layout.join("blobs/sha256");
    fs::create_dir_all(&target)?;
    for layer in layers {
        fs::hard_link(blobs.join(&layer.digest), target.join(&layer.digest))?;
    }
    let put = |value: &Value| -> Outcome<(String, usize)> {
        let bytes = serde_json::to_vec(value)?;
        let digest = hex::encode(Sha256::digest(&bytes));
        fs::write(target.join(&digest), &bytes)?;
        Ok((format!("sha256:{digest}"), bytes.len()))
    };
    let (digest, size) = put(&config)?;
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{}", layer.digest), "size": layer.size,
            })
        })
        .collect();
    let (manifest, manifest_size) = put(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size },
        "layers": layers,
    }))?;
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size,
            "platform": { "architecture": "amd64", "os": "linux" },
            "annotations": { "org.opencontainers.image.ref.name": image.name },
        }],
    });
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}
