//! Tiny releases: a tree that libostree can deploy, with container images as files, committed to a repo of ours.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::path::Path;

use rackstep::formats::image::source::{ImageSource, SourceError, SourceImage};
use rackstep::formats::image::store::ImageStore;
use rackstep::formats::image::{Limits, Ownership};
use rackstep::model::progress::Silent;
use rackstep::model::{Commit, Digest, PinSet, PinnedImage};
use rackstep::ostree::repo::{CommitOptions, MetaValue, Mode, Repo};
use rackstep::ostree::signature::{SecretKey, sign_commit};
use rackstep::release::tree::layer_trees::ensure_layer_tree;
use serde_json::json;

use crate::tiny_image::layer;

/// The ref that hosts follow.
pub const REF: &str = "rackstep/x86_64/tiny";

/// Seconds since 1970 of version 1; each later one is a day younger.
const FIRST: u64 = 1_700_000_000;

/// What a release is made of.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// `1`: version 1.0.0.
    pub version: u64,
    /// Bytes of incompressible files in the host tree, in files of 64 KiB.
    pub tree: usize,
    /// Bytes of the kernel.
    pub kernel: usize,
    /// Bytes of incompressible content in the service's own layer.
    pub layer: usize,
    /// Was it composed by a rackstep whose hosts imported images?
    pub without_trees: bool,
    /// Versions that it upgrades from; none: any.
    pub upgrade_from: Vec<String>,
    /// A file of the release that is left out, so that no host could start it.
    pub missing: Option<&'static str>,
}

impl Recipe {
    pub fn version(version: u64) -> Self {
        Self {
            version,
            tree: 1 << 20,
            kernel: 4 << 10,
            layer: 64 << 10,
            without_trees: false,
            upgrade_from: vec![],
            missing: None,
        }
    }
}

/// A release in the repo.
#[derive(Debug, Clone)]
pub struct Released {
    pub commit: Commit,
    pub version: String,
    /// By the names of the pin set.
    pub images: Vec<(String, PinnedImage)>,
}

impl Released {
    pub fn image(&self, name: &str) -> &PinnedImage {
        &self.images.iter().find(|(other, _)| other == name).unwrap().1
    }
}

/// A repo and the directory in which its trees are made.
pub struct Releases {
    dir: tempfile::TempDir,
    pub repo: Repo,
}

impl Releases {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::create(&dir.path().join("repo"), Mode::Archive).unwrap();
        Self { dir, repo }
    }

    /// Commits a release and makes it the newest of its ref.
    pub fn release(&self, recipe: &Recipe, key: Option<&SecretKey>) -> Released {
        let number = recipe.version;
        let root = self.dir.path().join("root");
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        let version = format!("{number}.0.0");
        let images = write_tree(&root, recipe, &version);
        let reference = Some(REF.parse().unwrap());
        let metadata = vec![
            ("version".to_owned(), MetaValue::Text(version.clone())),
            ("ostree.bootable".to_owned(), MetaValue::Flag(true)),
        ];
        let timestamp = FIRST + number * 86_400;
        let options = CommitOptions { reference, timestamp, metadata, ..CommitOptions::default() };
        let commit = self.repo.commit_tree(&root, &options, &Silent).unwrap().commit;
        if let Some(key) = key {
            assert!(sign_commit(&self.repo, commit, key).unwrap());
        }
        self.repo.set_ref(&format!("releases/tiny/{version}"), commit).unwrap();
        self.repo.publish_releases().unwrap();
        Released { commit, version, images }
    }

    /// Makes an earlier release the newest of the ref again.
    pub fn take_back_to(&self, released: &Released) {
        self.repo.set_ref(REF, released.commit).unwrap();
        self.repo.publish_releases().unwrap();
    }
}

fn write_tree(root: &Path, recipe: &Recipe, version: &str) -> Vec<(String, PinnedImage)> {
    let number = recipe.version;
    for empty in ["boot", "dev", "proc", "run", "sys", "sysroot", "var", "tmp"] {
        fs::create_dir_all(root.join(empty)).unwrap();
    }
    let write = |path: String, bytes: &[u8]| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let kernel = format!("6.{number}.0-tiny");
    write(format!("usr/lib/modules/{kernel}/vmlinuz"), &noise(number, recipe.kernel));
    write(format!("usr/lib/modules/{kernel}/initramfs.img"), &noise(number + 50, recipe.kernel));
    write("usr/lib/os-release".to_owned(), format!("ID=tiny\nPRETTY_NAME=\"tiny {version}\"\n").as_bytes());
    write("usr/etc/hostname".to_owned(), b"not set\n");
    for part in 0..recipe.tree.div_ceil(64 << 10) as u64 {
        write(format!("usr/share/tree/{part}"), &noise(number * 1000 + part, 64 << 10));
    }
    let own = noise(number * 7919, recipe.layer);
    let base = layer(&[("base", b"the base that all images stand on")]);
    let service = layer(&[("version", version.as_bytes()), ("content", &own)]);
    let release = root.join("usr/lib/rackstep");
    let store = ImageStore::new(release.join("images"));
    fs::create_dir_all(store.dir()).unwrap();
    let mut images = Vec::new();
    for (name, layers) in [("database", vec![base.clone()]), ("service", vec![base, service])] {
        let reference = format!("test/{name}");
        let pinned =
            store.add(&mut Layers(layers), &reference, Ownership::Apply, &Limits::default()).unwrap();
        images.push((name.to_owned(), pinned));
    }
    if !recipe.without_trees {
        for layer in images.iter().flat_map(|(_, image)| &image.layers) {
            ensure_layer_tree(&store.layer_dir(layer.diff_id)).unwrap();
        }
    }
    let write = |name: &str, value: serde_json::Value| {
        write(format!("usr/lib/rackstep/{name}"), value.to_string().as_bytes())
    };
    write(
        "pins.json",
        serde_json::to_value(PinSet { format: 1, images: images.iter().cloned().collect() }).unwrap(),
    );
    write(
        "release.json",
        json!({
            "format": 1, "name": "tiny", "version": version, "created": FIRST + number * 86_400,
            "kernel": kernel, "services": ["database", "service"], "packages": {}, "upgrade_from": recipe.upgrade_from,
        }),
    );
    write("kernel-arguments.json", json!(["quiet", format!("release={number}")]));
    write("phases.json", json!({ "format": 1, "phases": [], "pods_after": {} }));
    write("secrets.json", json!({ "format": 1, "secrets": {} }));
    write("volumes.json", json!({ "format": 1, "volumes": {} }));
    for name in ["database", "service"] {
        let containers = json!([{ "name": name, "image": name }]);
        write(
            &format!("pods/{name}.yaml"),
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": { "hostNetwork": true, "containers": containers } }),
        );
    }
    if let Some(name) = recipe.missing {
        fs::remove_file(release.join(name)).unwrap();
    }
    images
}

/// An image of these layers.
struct Layers(Vec<Vec<u8>>);

impl ImageSource for Layers {
    fn describe(&mut self) -> Result<SourceImage, SourceError> {
        let diff_ids: Vec<Digest> = self.0.iter().map(|layer| Digest::of(layer)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/version"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        Ok(SourceImage { manifest: None, config: config.to_string().into_bytes(), diff_ids })
    }

    fn open_layer(&mut self, index: usize) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        Ok(Box::new(self.0[index].as_slice()))
    }
}

/// Bytes that do not compress and differ by `seed`.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
