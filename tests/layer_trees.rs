//! Layers mounted from the objects of a repo, entry by entry against what Docker unpacks of the same tar.
//!
//! Needs root, loop devices, and a kernel with EROFS and data-only lower layers (6.8 or later for whiteouts).

#![allow(clippy::unwrap_used, clippy::print_stdout)] // as in unit tests

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rackstep::formats::image::layer_image::TREE;
use rackstep::formats::image::layer_image::sums::Sums;
use rackstep::formats::image::{Limits, Ownership, layer};
use rackstep::model::progress::Silent;
use rackstep::model::{Digest, PinnedImage};
use rackstep::ostree::repo::{CommitOptions, Mode, Repo};
use rackstep::release::tree::layer_trees::ensure_layer_tree;
use rackstep::rim::layers::{Layers, Source};

#[path = "support/corpus.rs"]
mod corpus;
#[path = "support/dockerd.rs"]
mod dockerd;
#[path = "support/tiny_image.rs"]
mod tiny_image;

/// Layers in a bare repo, and mounted.
struct Mounted {
    dir: tempfile::TempDir,
    layers: Layers,
}

impl Mounted {
    /// Splits, commits and mounts.
    fn new(tars: &[&[u8]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let mut sources = Vec::new();
        for tar in tars {
            let layer_dir = root.join(Digest::of(tar).hex());
            if layer_dir.exists() {
                continue;
            }
            fs::create_dir_all(&layer_dir).unwrap();
            let split = layer::split(*tar, &layer_dir, Ownership::Apply, &Limits::default()).unwrap();
            ensure_layer_tree(&layer_dir).unwrap();
            sources.push(Source { layer: split.diff_id, tree: layer_dir.join(TREE) });
        }
        let repo = Repo::create(&dir.path().join("repo"), Mode::Bare).unwrap();
        repo.commit_tree(&root, &CommitOptions::default(), &Silent).unwrap();
        let layers = Layers::new(dir.path().join("layers"), repo.path());
        for (layer, mounted) in layers.mount(&sources).unwrap() {
            mounted
                .unwrap_or_else(|error| panic!("{layer}: {error}: {:?}", std::error::Error::source(&error)));
        }
        // A second time there is nothing to do.
        assert!(layers.mount(&sources).unwrap().is_empty());
        assert_eq!(layers.mounted().unwrap().len(), sources.len());
        Self { dir, layers }
    }

    fn files(&self, tar: &[u8]) -> PathBuf {
        self.layers.files(Digest::of(tar))
    }

    fn sums(&self, tar: &[u8]) -> Sums {
        let path = self.dir.path().join("root").join(Digest::of(tar).hex()).join("sums");
        Sums::parse(&fs::read(path).unwrap()).unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for layer in self.layers.mounted().unwrap_or_default() {
            let _ = self.layers.unmount(layer);
        }
    }
}

/// What there is to know of a directory entry.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    mtime: (i64, i64),
    size: u64,
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Option<Digest>,
    /// The names of the inode.
    same: Vec<Vec<u8>>,
}

/// Everything below `root` by path, whiteouts and marks as the next overlay takes them.
fn look(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let mut opaque: BTreeSet<PathBuf> = BTreeSet::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.unwrap();
        let path = entry.path();
        let relative = path.strip_prefix(root).unwrap().as_os_str().to_owned().into_vec();
        let stat = entry.metadata().unwrap();
        let kind = stat.file_type();
        let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = xattr::list(path)
            .unwrap()
            .map(|name| (name.as_bytes().to_vec(), xattr::get(path, &name).unwrap().unwrap_or_default()))
            .collect();
        let mut whiteout = kind.is_char_device() && stat.rdev() == 0;
        whiteout |= xattrs.remove(b"trusted.overlay.whiteout".as_slice()).is_some();
        if xattrs.get(b"trusted.overlay.opaque".as_slice()).is_some_and(|mark| mark == b"x" || path == root) {
            xattrs.remove(b"trusted.overlay.opaque".as_slice());
        }
        if xattrs.contains_key(b"trusted.overlay.opaque".as_slice()) {
            opaque.insert(path.to_owned());
        }
        if whiteout {
            // Nothing is below an opaque directory that it could hide.
            if path.ancestors().any(|above| opaque.contains(above)) {
                continue;
            }
        } else if !kind.is_dir() {
            inodes.entry(stat.ino()).or_default().push(relative.clone());
        }
        let content = kind.is_file().then(|| Digest::of(&fs::read(path).unwrap()));
        let told = Seen {
            mode: if whiteout { 0 } else { stat.mode() },
            owner: (stat.uid(), stat.gid()),
            device: stat.rdev(),
            // Docker gives the root, implied directories and whiteouts the time of the day.
            mtime: if whiteout || path == root { (0, 0) } else { (stat.mtime(), stat.mtime_nsec()) },
            size: if kind.is_dir() { 0 } else { stat.size() },
            target: kind.is_symlink().then(|| fs::read_link(path).unwrap()),
            xattrs,
            content: content.filter(|_| !whiteout),
            same: Vec::new(),
        };
        seen.insert(relative, told);
    }
    for names in inodes.values() {
        for name in names {
            seen.get_mut(name).unwrap().same.clone_from(names);
        }
    }
    seen
}

fn compare(name: &str, ours: &BTreeMap<Vec<u8>, Seen>, docker: &BTreeMap<Vec<u8>, Seen>) {
    let paths: BTreeSet<&Vec<u8>> = ours.keys().chain(docker.keys()).collect();
    let mut wrong = 0;
    for path in paths {
        let (mut ours, docker) = (ours.get(path), docker.get(path));
        let undated;
        if let (Some(mine), Some(theirs)) = (ours, docker) {
            let implied = mine.mode & 0o170_000 == 0o040_000 && mine.mtime == (0, 0);
            undated = Seen { mtime: theirs.mtime, ..copy(mine) };
            if implied {
                ours = Some(&undated);
            }
        }
        if ours != docker {
            wrong += 1;
            println!("{name}: {:?}\n  ours   {ours:?}\n  docker {docker:?}", String::from_utf8_lossy(path));
        }
    }
    assert_eq!(wrong, 0, "{name}");
}

fn copy(seen: &Seen) -> Seen {
    Seen { target: seen.target.clone(), xattrs: seen.xattrs.clone(), same: seen.same.clone(), ..*seen }
}

/// Docker's directory and size of the layer with this chain.
fn of_docker(daemon: &dockerd::Dockerd, chain: Digest) -> (PathBuf, u64) {
    let records = daemon.data_root().join("image/overlay2/layerdb/sha256").join(chain.hex());
    let read = |name: &str| fs::read_to_string(records.join(name)).unwrap();
    (daemon.data_root().join("overlay2").join(read("cache-id")).join("diff"), read("size").parse().unwrap())
}

fn load(
    daemon: &dockerd::Dockerd,
    images: &tiny_image::TinyImages,
    image: &PinnedImage,
) -> Result<(), String> {
    use rackstep::docker::ImageArchive as _;
    let archive = tempfile::NamedTempFile::new().unwrap();
    images.write_archive(&[image], &BTreeSet::new(), &mut archive.as_file()).unwrap();
    daemon.client(&["load", "-i", archive.path().to_str().unwrap()]).map(drop)
}

#[test]
fn the_corpus_as_docker_unpacks_it() {
    let tree = corpus::Tree::new();
    let daemon = dockerd::Dockerd::start();
    let mut compared = 0;
    for (name, tar) in corpus::layers(&tree) {
        let mut images = tiny_image::TinyImages::default();
        let image = images.add("corpus", std::slice::from_ref(&tar), &[]);
        let loaded = load(&daemon, &images, &image);
        let dir = tempfile::tempdir().unwrap();
        layer::split(tar.as_slice(), dir.path(), Ownership::Apply, &Limits::default()).unwrap();
        let made = ensure_layer_tree(dir.path());
        if let Err(error) = &made {
            let why = format!("{:?}", std::error::Error::source(error));
            println!("{name}: refused: {error}: {why}; docker: {loaded:?}");
            assert!(loaded.is_err() || why.contains("Sparse"), "{name}");
            continue;
        }
        if let Err(error) = loaded {
            panic!("{name}: docker does not take it: {error}");
        }
        let mounted = Mounted::new(&[&tar]);
        let (docker, size) = of_docker(&daemon, Digest::of(&tar));
        let ours = look(&mounted.files(&tar));
        println!("{name}: {} entries", ours.len());
        compare(&name, &ours, &look(&docker));
        assert_eq!(mounted.sums(&tar).size, size, "{name}: size");
        compared += 1;
    }
    println!("{compared} layers compared");
    assert!(compared >= 12);
}
