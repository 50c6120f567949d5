//! Container images as real tools write them: taken apart, kept as files, put together again, read back by real tools.
//!
//! Layers come from GNU tar, bsdtar, Python, Go, umoci and buildah, of a tree that has everything a Linux directory can hold.
//! A tool that is missing is named in the output and skipped. Root is needed for devices and owners.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // as in unit tests

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rackstep::formats::image::archive::ArchiveImage;
use rackstep::formats::image::store::{ImageStore, StoreError, Verdict};
use rackstep::formats::image::{Limits, Ownership, layer, source};
use rackstep::model::{Digest, PinnedImage};

#[path = "support/dockerd.rs"]
mod dockerd;

/// `VFS_CAP_REVISION_2` with cap_net_raw, as `setcap` writes it.
const CAPABILITY: &[u8] = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

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

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn is_there(tool: &str) -> bool {
    let there = Command::new(tool)
        .arg(if tool == "go" { "version" } else { "--version" })
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !there {
        println!("skipped: no {tool}");
    }
    there
}

/// A directory with one of everything.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let write = |path: PathBuf, content: &[u8]| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write(at("usr/bin/tool"), b"#!/bin/sh\n");
        write(at("empty"), b"");
        write(at("exactly-a-block"), &[b'x'; 512]);
        write(at("one-more"), &[b'y'; 513]);
        write(at("ümläut/名前"), b"utf-8");
        write(dir.path().join(std::ffi::OsStr::from_bytes(b"latin-\xe9")), b"latin-1");
        write(at("with space\nand newline"), b"odd");
        write(at(&format!("{}/{}", "long".repeat(30), "name".repeat(40))), b"a long name");
        write(at(&format!("{}deep", "d/".repeat(150))), b"a deep name");
        write(at("etc/.wh.gone"), b"");
        write(at("etc/.wh..wh..opq"), b"");
        fs::create_dir_all(at("an/empty/directory")).unwrap();
        fs::hard_link(at("usr/bin/tool"), at("usr/bin/again")).unwrap();
        symlink("tool", at("usr/bin/link")).unwrap();
        symlink("/etc/shadow", at("usr/absolute")).unwrap();
        symlink("l".repeat(200), at("usr/long-link")).unwrap();
        fs::set_permissions(at("one-more"), fs::Permissions::from_mode(0o4711)).unwrap();
        run(Command::new("mkfifo").arg(at("fifo")));
        run(Command::new("mknod").arg(at("null")).args(["c", "1", "3"]));
        run(Command::new("chown").arg("1234:2345").arg(at("exactly-a-block")));
        run(Command::new("truncate").args(["-s", "3M"]).arg(at("sparse")));
        let mut sparse = fs::OpenOptions::new().append(true).open(at("sparse")).unwrap();
        sparse.write_all(b"behind the hole").unwrap();
        run(Command::new("touch").args(["-d", "1969-07-20T20:17:40Z"]).arg(at("empty")));
        xattr::set(at("usr/bin/tool"), "security.capability", CAPABILITY).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

#[test]
fn layers_of_real_tar_writers() {
    let tree = Tree::new();
    let gnu: &[&[&str]] = &[
        &["--format=gnu"],
        &["--format=oldgnu"],
        &["--format=pax", "--xattrs", "--xattrs-include=*"],
        &["--format=pax", "--pax-option=delete=atime,delete=ctime", "--sort=name"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=gnu", "-b", "1"],
        &["--format=gnu", "--label=volume"],
        &["--format=gnu", "--incremental"],
        &["--format=gnu", "--numeric-owner", "--owner=+4000000", "--group=+4000000"],
    ];
    let mut layers = 0;
    for options in gnu {
        let tar = run(Command::new("tar").args(*options).arg("-C").arg(tree.path()).args(["-cf", "-", "."]));
        let split = round_trip(&format!("tar {}", options.join(" ")), &tar);
        assert!(split.files >= 8, "{split:?}");
        layers += 1;
    }
    // These cannot hold all of the names, so they get what they can hold.
    for format in ["v7", "ustar"] {
        let tar = run(Command::new("tar")
            .args(["--format", format, "-C"])
            .arg(tree.path())
            .args(["-cf", "-", "usr/bin", "sparse", "etc"]));
        round_trip(&format!("tar --format={format}"), &tar);
        layers += 1;
    }
    for format in ["pax", "gnutar", "ustar", "v7"] {
        // ustar and v7 leave out what they cannot hold and say so by exit code.
        let output = Command::new("bsdtar")
            .args(["--format", format, "-C"])
            .arg(tree.path())
            .args(["-cf", "-", "."])
            .output()
            .unwrap();
        round_trip(&format!("bsdtar --format={format}"), &output.stdout);
        layers += 1;
    }
    for format in ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"] {
        let script = format!(
            "import sys, tarfile\n\
             t = tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.{format})\n\
             t.add(sys.argv[1], 'usr/bin' if '{format}' == 'USTAR_FORMAT' else '.')\n\
             t.close()"
        );
        let root =
            if format == "USTAR_FORMAT" { tree.path().join("usr/bin") } else { tree.path().to_owned() };
        let tar = run(Command::new("python3").args(["-c", &script]).arg(root));
        round_trip(&format!("python {format}"), &tar);
        layers += 1;
    }
    round_trip("buildah", &buildah_layer(&tree));
    layers += 1;
    if is_there("go") {
        let program = tree.path().parent().unwrap().join(format!("writer-{}.go", std::process::id()));
        fs::write(&program, GO_WRITER).unwrap();
        let tar = run(Command::new("go").arg("run").arg(&program).arg(tree.path()));
        fs::remove_file(program).unwrap();
        round_trip("go archive/tar", &tar);
        layers += 1;
    }
    println!("{layers} layers by real writers");
}

/// Writes a tree the way Docker does: one header per file, format chosen by need.
const GO_WRITER: &str = r#"
package main

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	root := os.Args[1]
	out := tar.NewWriter(os.Stdout)
	check(filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		check(err)
		link, _ := os.Readlink(path)
		header, err := tar.FileInfoHeader(info, link)
		check(err)
		header.Name, _ = filepath.Rel(root, path)
		if info.IsDir() {
			header.Name += "/"
		}
		header.PAXRecords = map[string]string{}
		if info.Name() == "tool" {
			header.PAXRecords["SCHILY.xattr.user.note"] = "\x00\x01binary"
		}
		// Go's writer refuses NUL alone; other names it takes as they are.
		check(out.WriteHeader(header))
		if info.Mode().IsRegular() {
			file, err := os.Open(path)
			check(err)
			_, err = io.Copy(out, file)
			check(err)
			file.Close()
		}
		return nil
	}))
	check(out.Close())
}
"#;

/// The layer of an image that buildah makes of the tree.
fn buildah_layer(tree: &Tree) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let buildah = |arguments: &[&str]| {
        run(Command::new("buildah")
            .args(["--storage-driver", "vfs", "--root"])
            .arg(dir.path().join("storage"))
            .arg("--runroot")
            .arg(dir.path().join("run"))
            .args(arguments))
    };
    let layout = dir.path().join("layout");
    buildah(&["from", "--name", "one", "scratch"]);
    buildah(&["copy", "--quiet", "one", &tree.path().to_string_lossy(), "/"]);
    let target = format!("oci:{}:one", layout.display());
    buildah(&["commit", "--quiet", "--disable-compression", "one", &target]);
    let manifest = pinned_manifest(&layout);
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap()
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
        let error = store.write_archive(&[&pinned], &BTreeSet::new(), &mut std::io::sink()).unwrap_err();
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

fn pinned_manifest(layout: &Path) -> serde_json::Value {
    let json = |path: &Path| serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).unwrap();
    let index = json(&layout.join("index.json"));
    let digest = index["manifests"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    json(&layout.join("blobs/sha256").join(digest))
}

#[test]
fn our_archive_is_read_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let layout = umoci_layout(dir.path(), &Tree::new());
    let store = ImageStore::new(dir.path().join("store"));
    let pinned = add(&store, &layout, None);
    let archive = dir.path().join("ours.tar");
    let image = ArchiveImage { image: &pinned, tag: Some("test/image:one") };
    store.write_tagged_archive(&[image], &BTreeSet::new(), &mut fs::File::create(&archive).unwrap()).unwrap();
    run(Command::new("tar").arg("-tf").arg(&archive));
    // As an OCI archive it is the very image; as Docker's the layers are.
    for (from, same_id) in [
        (format!("oci-archive:{}", archive.display()), true),
        (format!("docker-archive:{}", archive.display()), false),
    ] {
        let target = dir.path().join(if same_id { "back-oci" } else { "back-docker" });
        skopeo(&from, &format!("oci:{}:one", target.display()), &[]);
        let back = add(&ImageStore::new(dir.path().join("back")), &target, None);
        assert_eq!(back.layers, pinned.layers);
        if same_id {
            assert_eq!(back.config, pinned.config);
        }
    }
    // And by ourselves, by either reader.
    assert_eq!(add(&ImageStore::new(dir.path().join("ours")), &archive, None).config, pinned.config);
}

#[test]
fn docker_loads_only_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let layout = umoci_layout(dir.path(), &Tree::new());
    let store = ImageStore::new(dir.path().join("store"));
    let pinned = add(&store, &layout, None);
    let daemon = dockerd::Dockerd::start();
    let load = |present: &BTreeSet<Digest>| {
        let archive = dir.path().join("archive.tar");
        store.write_archive(&[&pinned], present, &mut fs::File::create(&archive).unwrap()).unwrap();
        let loaded = daemon.client(&["load", "-i", archive.to_str().unwrap()]);
        (loaded, fs::metadata(&archive).unwrap().len())
    };
    let chain = pinned.chains();
    let (refused, _) = load(&BTreeSet::from([chain[0]]));
    assert!(refused.is_err(), "a layer that Docker lacks was left out: {refused:?}");
    let (loaded, full) = load(&BTreeSet::new());
    assert!(loaded.unwrap().contains(&pinned.config.to_string()));
    let inspect =
        ["image", "inspect", "--format", "{{.Id}} {{json .RootFS.Layers}}", &pinned.config.to_string()]
            .map(str::to_owned);
    let inspected = daemon.client(&inspect.each_ref().map(String::as_str)).unwrap();
    let diff_ids: Vec<String> = pinned.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    assert_eq!(inspected, format!("{} {}", pinned.config, serde_json::to_string(&diff_ids).unwrap()));
    // The image goes, a container keeps the layers of it: then the config alone brings it back.
    let (again, small) = load(&chain.into_iter().collect());
    assert!(again.unwrap().contains(&pinned.config.to_string()));
    println!("full archive {full} bytes, all layers present {small} bytes");
    assert!(small < 20_000 && full > 3_000_000);
}
