//! Layers mounted from the objects of a repo, entry by entry against what Docker unpacks of the same tar.
//!
//! Needs root, loop devices, and a kernel with EROFS and data-only lower layers (6.8 or later for whiteouts).

#![allow(clippy::unwrap_used, clippy::print_stdout)] // as in unit tests

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rackstep::docker::records::{self, MountedLayer, RecordedImage, Records};
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

    /// All layers as records name them.
    fn mounted(&self) -> BTreeMap<Digest, MountedLayer> {
        let source = |layer: Digest| self.dir.path().join("root").join(layer.hex());
        let named = |layer| MountedLayer { files: self.layers.files(layer), source: source(layer) };
        self.layers.mounted().unwrap().into_iter().map(|layer| (layer, named(layer))).collect()
    }

    fn records(&self, data_root: &Path) -> Records {
        Records::new(data_root, self.dir.path().join("layers"))
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
    images.load(|arguments| daemon.client(arguments), image)
}

#[test]
fn the_corpus_as_docker_unpacks_it() {
    let tree = corpus::Tree::new();
    let daemon = dockerd::Dockerd::start();
    let (mut compared, mut sparse) = (0, 0);
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
            // Nothing that could be mounted may be left.
            assert!(!dir.path().join(TREE).exists() && !dir.path().join("sums").exists(), "{name}");
            if why.contains("Sparse") {
                sparse += 1;
            } else {
                assert!(loaded.is_err(), "{name}");
            }
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
    assert!(sparse >= 3, "{sparse} layers with sparse files");
}

/// Layers on top of each other: what is below deleted, made opaque, replaced by another kind, reached through links.
fn stack() -> Vec<Vec<u8>> {
    let base = pack(|tar| {
        for path in
            ["keep/a", "gone/b", "hidden/c", "hidden/d/e", "was-directory/f", "etc/shared", "deep/er/g"]
        {
            file(tar, path, path.as_bytes());
        }
        file(tar, "was-file", b"file");
        link(tar, tar::EntryType::Symlink, "lib", "usr/lib");
        file(tar, "usr/lib/one", b"one");
        link(tar, tar::EntryType::Link, "usr/lib/again", "usr/lib/one");
    });
    let middle = pack(|tar| {
        file(tar, "gone/.wh.b", b"");
        file(tar, "hidden/.wh..wh..opq", b"");
        file(tar, "hidden/new", b"new");
        // Nothing is left below that this could delete.
        file(tar, "hidden/.wh.c", b"");
        file(tar, "was-directory", b"file now");
        file(tar, "was-file/inside", b"directory now");
        file(tar, "deep/er/.wh.g", b"");
        // Through the link of its own layer.
        file(tar, "usr/lib/three", b"three");
        link(tar, tar::EntryType::Symlink, "lib64", "usr/lib");
        file(tar, "lib64/two", b"two");
    });
    let top = pack(|tar| {
        file(tar, ".wh.was-file", b"");
        file(tar, "gone/b", b"back again");
        file(tar, ".wh..wh..opq", b"");
        file(tar, "etc/.wh.shared", b"");
        file(tar, "top", b"top");
    });
    vec![base, middle, top]
}

fn pack(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    fill(&mut tar);
    tar.into_inner().unwrap()
}

fn file(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o640);
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(1_600_000_000);
    tar.append_data(&mut header, path, bytes).unwrap();
}

fn link(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_entry_type(kind);
    header.set_mode(0o640);
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(1_600_000_001);
    tar.append_link(&mut header, path, target).unwrap();
}

/// What a container of the image sees.
fn exported(daemon: &dockerd::Dockerd, image: Digest) -> BTreeMap<Vec<u8>, Seen> {
    let container = daemon.client(&["create", &image.to_string(), "/nothing"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("archive.tar");
    daemon.client(&["export", "-o", archive.to_str().unwrap(), &container]).unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    corpus::run(std::process::Command::new("tar").arg("-C").arg(&root).arg("-xpf").arg(&archive));
    daemon.client(&["rm", &container]).unwrap();
    let mut seen = look(&root);
    // Docker and directories without an entry of their own have the time of the day.
    for told in seen.values_mut().filter(|told| told.mtime.0 > 1_600_000_001) {
        told.mtime = (0, 0);
    }
    seen
}

/// Runs records and Docker on the data root of a daemon that is stopped.
struct Recording {
    mounted: Mounted,
    image: PinnedImage,
    config: Vec<u8>,
}

impl Recording {
    fn record(&self, data_root: &Path, mounted: &BTreeMap<Digest, MountedLayer>) -> records::Recorded {
        let image = RecordedImage {
            image: self.image.clone(),
            config: self.config.clone(),
            tags: vec![rackstep::docker::tag_of("stack", self.image.config)],
        };
        self.mounted.records(data_root).write(&[image], mounted).unwrap()
    }
}

#[test]
fn docker_takes_records_of_mounted_layers() {
    let layers = stack();
    let mut images = tiny_image::TinyImages::default();
    let image = images.add("stack", &layers, &[]);
    let config = images.config(&image);
    let mounted = Mounted::new(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let at = Recording { mounted, image: image.clone(), config };

    let mut loaded = dockerd::Dockerd::start();
    load(&loaded, &images, &image).unwrap();
    let expected = exported(&loaded, image.config);
    assert!(expected.len() > 12, "{:?}", expected.keys());

    let mut daemon = dockerd::Dockerd::start();
    let root = daemon.data_root();
    // While it runs nothing is written.
    let refused = at.mounted.records(&root).write(&[], &BTreeMap::new()).unwrap_err();
    assert!(refused.to_string().contains("stop it first"), "{refused}");
    // An image of somebody else.
    let mut others = tiny_image::TinyImages::default();
    let other = others.add("other", &[layers[0].clone(), tiny_image::layer(&[("own", b"own")])], &[]);
    load(&daemon, &others, &other).unwrap();
    daemon.client(&["tag", &other.config.to_string(), "mine:1"]).unwrap();
    daemon.stop();

    let began = std::time::Instant::now();
    let recorded = at.record(&root, &at.mounted.mounted());
    println!("{recorded:?} in {:?}", began.elapsed());
    // The base is there already, by somebody else.
    assert_eq!((recorded.images.as_slice(), recorded.written), ([image.config].as_slice(), 2));
    assert_eq!(at.record(&root, &at.mounted.mounted()).written, 0, "a second time");
    daemon.run();
    let id = image.config.to_string();
    assert_eq!(daemon.client(&["image", "inspect", "--format", "{{.Id}}", &id]).unwrap(), id);
    compare("export", &exported(&daemon, image.config), &expected);
    assert!(daemon.reads_back(&image));
    daemon.client(&["system", "df"]).unwrap();
    // What `save` gives is loaded by another.
    let saved = tempfile::NamedTempFile::new().unwrap();
    daemon.client(&["save", "-o", saved.path().to_str().unwrap(), &id]).unwrap();
    let third = dockerd::Dockerd::start();
    third.client(&["load", "-i", saved.path().to_str().unwrap()]).unwrap();
    compare("save", &exported(&third, image.config), &expected);
    drop(third);

    // Somebody prunes: the records come back, theirs stay away.
    let container = daemon.client(&["create", "mine:1", "/nothing"]).unwrap();
    daemon.client(&["image", "prune", "-af"]).unwrap();
    assert!(daemon.client(&["image", "inspect", &id]).is_err());
    daemon.stop();
    let recorded = at.record(&root, &at.mounted.mounted());
    assert_eq!((recorded.written, recorded.dropped), (2, 0));
    // One record of each kind is damaged, then all are gone.
    let ours = at.mounted.records(&root).ours().unwrap();
    let top = *ours.iter().find(|chain| **chain == *image.chains().last().unwrap()).unwrap();
    let layerdb = root.join("image/overlay2/layerdb/sha256").join(top.hex());
    let cache = root.join("overlay2").join(fs::read_to_string(layerdb.join("cache-id")).unwrap());
    for broken in
        [layerdb.join("tar-split.json.gz"), layerdb.join("diff"), cache.join("lower"), cache.join("link")]
    {
        fs::write(&broken, "").unwrap();
        assert_eq!(at.record(&root, &at.mounted.mounted()).written, 1, "{}", broken.display());
    }
    fs::remove_file(cache.join("diff")).unwrap();
    fs::create_dir(cache.join("diff")).unwrap();
    fs::remove_dir(cache.join("diff")).unwrap();
    assert_eq!(at.record(&root, &at.mounted.mounted()).written, 1);
    fs::write(root.join("image/overlay2/imagedb/content/sha256").join(image.config.hex()), "{}").unwrap();
    at.record(&root, &at.mounted.mounted());
    daemon.run();
    compare("again", &exported(&daemon, image.config), &expected);
    assert!(daemon.client(&["start", &container]).is_err(), "nothing in it can run");
    assert_eq!(
        daemon.client(&["inspect", "--format", "{{.Image}}", &container]).unwrap(),
        other.config.to_string()
    );
    daemon.stop();

    // A layer that is not mounted: no record of the image at all.
    let mut less = at.mounted.mounted();
    let lost = image.layers[2].diff_id;
    less.remove(&lost);
    let recorded = at.record(&root, &less);
    assert_eq!(recorded.incomplete, [(image.config, lost)]);
    assert_eq!((recorded.images.len(), recorded.dropped), (0, 2));
    daemon.run();
    assert!(daemon.client(&["image", "inspect", &id]).is_err());
    assert!(daemon.client(&["image", "inspect", &other.config.to_string()]).is_ok());
    loaded.stop();
}
