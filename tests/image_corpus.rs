//! Container images as real tools write them: taken apart, kept as files, put together again, read back by real tools.
//!
//! Layers come from GNU tar, bsdtar, Python, Go, umoci and buildah. Root is needed for devices and owners.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // as in unit tests

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rackstep::formats::image::store::{ImageStore, StoreError, Verdict};
use rackstep::formats::image::{Limits, Ownership, layer, source};
use rackstep::model::{Digest, PinnedImage};

#[path = "support/corpus.rs"]
mod corpus;
#[path = "support/dockerd.rs"]
mod dockerd;

use corpus::{Tree, pinned_manifest, run};

/// Splits and joins `tar` and requires the same bytes.
fn round_trip(name: &str, tar: &[u8]) -> layer::SplitLayer {
    let dir = tempfile::tempdir().unwrap();
    let split = layer::split(tar, dir.path(), Ownership::Apply, &Limits::default())
        .unwrap_or_else(|error| panic!("{name}: {error}: {:?}", std::error::Error::source(&error)));
    assert_eq!(split.diff_id, Digest::of(tar), "{name}");
    let mut joined = Vec::new();
    let digest = layer::join(dir.path(), &mut joined).unwrap();
    assert_eq!(digest, split.diff_id, "{name}");
    assert!(joined == tar, "{name}: bytes differ");
    println!(
        "{name}: {} bytes, {} entries, {} files, {} odd",
        tar.len(),
        split.entries,
        split.files,
        split.odd_files
    );
    split
}

#[test]
fn layers_of_real_tar_writers() {
    let tree = Tree::new();
    let layers = corpus::layers(&tree);
    for (name, tar) in &layers {
        let split = round_trip(name, tar);
        // Other formats cannot hold all names, and got what they can hold.
        let holds_all = ["tar --format=gnu", "tar --format=oldgnu", "tar --format=pax"];
        if holds_all.iter().any(|start| name.starts_with(start)) {
            assert!(split.files >= 8, "{name}: {split:?}");
        }
    }
    println!("{} layers by real writers", layers.len());
}

/// An image of two layers in an OCI layout, made by umoci.
fn umoci_layout(dir: &Path, tree: &Tree) -> PathBuf {
    let layout = dir.join("layout");
    let image = format!("{}:one", layout.display());
    run(Command::new("umoci").args(["init", "--layout"]).arg(&layout));
    run(Command::new("umoci").args(["new", "--image", &image]));
    for part in ["usr", "sparse"] {
        run(Command::new("umoci")
            .args(["insert", "--image", &image])
            .arg(tree.path().join(part))
            .arg(format!("/{part}")));
    }
    run(Command::new("umoci").args(["config", "--image", &image, "--config.cmd", "/usr/bin/tool"]));
    layout
}

fn add(store: &ImageStore, path: &Path, name: Option<&str>) -> PinnedImage {
    let limits = Limits::default();
    let mut image = source::open(path, name, &limits).unwrap();
    store.add(image.as_mut(), "test/image:one", Ownership::Apply, &limits).unwrap()
}

/// Every file of a directory by path: mode and content, or mode alone.
fn listing(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .map(|entry| {
            let entry = entry.unwrap();
            let content = if entry.file_type().is_file() { fs::read(entry.path()).unwrap() } else { vec![] };
            let mode = entry.metadata().unwrap().permissions().mode();
            (entry.path().strip_prefix(dir).unwrap().to_owned(), (mode, content))
        })
        .collect()
}

fn skopeo(from: &str, to: &str, options: &[&str]) {
    run(Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet"]).args(options).args([from, to]));
}

#[test]
fn every_source_gives_the_same_layers() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let layout = umoci_layout(dir.path(), &Tree::new());
    let from = format!("oci:{}:one", layout.display());
    skopeo(&from, &format!("oci:{}:one", at("zstd")), &["--dest-compress-format", "zstd", "--dest-compress"]);
    skopeo(&from, &format!("oci-archive:{}:one", at("oci.tar")), &[]);
    skopeo(&from, &format!("docker-archive:{}:test/image:one", at("docker.tar")), &[]);
    run(Command::new("mkdir").arg(at("docker")));
    run(Command::new("tar").args(["-C", &at("docker"), "-xf", &at("docker.tar")]));

    let first = ImageStore::new(dir.path().join("store"));
    let pinned = add(&first, &layout, Some("one"));
    assert_eq!(pinned.layers.len(), 2);
    assert_eq!(first.verify(&pinned).unwrap(), Verdict::Good);
    let expected = listing(&first.dir().join("layers"));
    for (source, name) in [
        ("layout", None),
        ("zstd", Some("one")),
        ("oci.tar", Some("one")),
        ("docker.tar", Some("docker.io/test/image:one")),
        ("docker", None),
    ] {
        let store = ImageStore::new(dir.path().join(format!("store-{source}")));
        let again = add(&store, &dir.path().join(source), name);
        // skopeo writes Docker's archives with a config of its own making, so the Id may differ there.
        assert_eq!(again.layers, pinned.layers, "{source}");
        assert_eq!(store.verify(&again).unwrap(), Verdict::Good, "{source}");
        assert!(listing(&store.dir().join("layers")) == expected, "{source}: other files");
        // A second time nothing is read and nothing changes.
        let before = listing(store.dir());
        assert_eq!(add(&store, &dir.path().join(source), name), again);
        assert!(listing(store.dir()) == before);
    }
    let error = source::open(&layout, Some("two"), &Limits::default()).err().unwrap();
    assert!(error.to_string().ends_with("holds [\"one\"]: no image \"two\""), "{error}");
}

/// What the report says, and what is done to the store.
type Damaging<'a> = (&'a str, Box<dyn Fn() + 'a>);

#[test]
fn damage_in_a_store_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let layout = umoci_layout(dir.path(), &Tree::new());
    let store = ImageStore::new(dir.path().join("store"));
    let pinned = add(&store, &layout, None);
    let layer = pinned.layers[0].diff_id;
    // `tool` is a hard link to it: names in order of the archive.
    let file = store.layer_dir(layer).join("root/usr/bin/again");
    let damages: [Damaging<'_>; 4] = [
        ("gives sha256:", Box::new(|| fs::write(&file, "#!/bin/SH\n").unwrap())),
        ("has 0 bytes, expected 10", Box::new(|| fs::write(&file, "").unwrap())),
        ("No such file or directory", Box::new(|| fs::remove_file(&file).unwrap())),
        ("is not in the image store", Box::new(|| fs::remove_dir_all(store.layer_dir(layer)).unwrap())),
    ];
    for (why, damage) in damages {
        damage();
        let Verdict::Damaged(found) = store.verify(&pinned).unwrap() else { panic!("not found: {why}") };
        assert_eq!(found.iter().map(|damage| damage.digest).collect::<Vec<_>>(), [layer]);
        assert!(found[0].why.contains(why), "{}", found[0].why);
        let size = pinned.layers[0].size;
        let error = store.write_layer(layer, size, &mut std::io::sink()).unwrap_err();
        println!("{error}");
    }
    let missing = Digest::of(b"no such image");
    assert!(matches!(store.image(&missing), Err(StoreError::Missing { .. })));
}

#[test]
fn a_source_that_lies_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let layout = umoci_layout(dir.path(), &Tree::new());
    let manifest = pinned_manifest(&layout);
    let blob = |digest: &str| layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let layer = blob(manifest["layers"][0]["digest"].as_str().unwrap());
    let config = blob(manifest["config"]["digest"].as_str().unwrap());
    let good = fs::read(&layer).unwrap();
    let limits = Limits::default();
    let attempt = || {
        let store = ImageStore::new(dir.path().join("store"));
        let mut image = source::open(&layout, None, &limits).unwrap();
        let error = store.add(image.as_mut(), "liar", Ownership::Ignore, &limits).unwrap_err();
        let left = listing(&store.dir().join("layers"));
        assert_eq!(left.len(), 1, "rubbish is left: {:?}", left.keys());
        format!("{error}: {:?}", std::error::Error::source(&error))
    };
    // Another layer, well formed; one byte more behind the gzip stream; cut short; not there.
    let other = run(Command::new("sh").args(["-c", "tar -c -f - /etc/hostname 2>/dev/null | gzip"]));
    fs::write(&layer, other).unwrap();
    assert!(attempt().contains("WrongBlob"), "{}", attempt());
    fs::write(&layer, [&good[..], b"x"].concat()).unwrap();
    println!("{}", attempt());
    fs::write(&layer, &good[..good.len() / 2]).unwrap();
    println!("{}", attempt());
    fs::remove_file(&layer).unwrap();
    assert!(attempt().contains("Missing"), "{}", attempt());
    fs::write(&layer, &good).unwrap();
    fs::write(&config, "{}").unwrap();
    let error = source::open(&layout, None, &limits).err().unwrap();
    assert!(error.to_string().contains("has digest sha256:44136fa"), "{error}");
}
