//! Layers as real tools write them: GNU tar, bsdtar, Python, Go and buildah, of a tree that has everything a Linux directory
//! can hold. A tool that is missing is named in the output and skipped. Root is needed for devices and owners.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `VFS_CAP_REVISION_2` with cap_net_raw, as `setcap` writes it.
const CAPABILITY: &[u8] = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

pub fn is_there(tool: &str) -> bool {
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
pub struct Tree(tempfile::TempDir);

impl Tree {
    pub fn new() -> Self {
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

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Layers of the tree by the tools that wrote them.
pub fn layers(tree: &Tree) -> Vec<(String, Vec<u8>)> {
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
    let mut layers = Vec::new();
    for options in gnu {
        let tar = run(Command::new("tar").args(*options).arg("-C").arg(tree.path()).args(["-cf", "-", "."]));
        layers.push((format!("tar {}", options.join(" ")), tar));
    }
    // These cannot hold all of the names, so they get what they can hold.
    for format in ["v7", "ustar"] {
        let tar = run(Command::new("tar")
            .args(["--format", format, "-C"])
            .arg(tree.path())
            .args(["-cf", "-", "usr/bin", "sparse", "etc"]));
        layers.push((format!("tar --format={format}"), tar));
    }
    for format in ["pax", "gnutar", "ustar", "v7"] {
        // ustar and v7 leave out what they cannot hold and say so by exit code.
        let output = Command::new("bsdtar")
            .args(["--format", format, "-C"])
            .arg(tree.path())
            .args(["-cf", "-", "."])
            .output()
            .unwrap();
        layers.push((format!("bsdtar --format={format}"), output.stdout));
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
        layers.push((format!("python {format}"), tar));
    }
    layers.push(("buildah".to_owned(), buildah_layer(tree)));
    if is_there("go") {
        let program = tree.path().parent().unwrap().join(format!("writer-{}.go", std::process::id()));
        fs::write(&program, GO_WRITER).unwrap();
        let tar = run(Command::new("go").arg("run").arg(&program).arg(tree.path()));
        fs::remove_file(program).unwrap();
        layers.push(("go archive/tar".to_owned(), tar));
    }
    layers
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

pub fn pinned_manifest(layout: &Path) -> serde_json::Value {
    let json = |path: &Path| serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).unwrap();
    let index = json(&layout.join("index.json"));
    let digest = index["manifests"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    json(&layout.join("blobs/sha256").join(digest))
}
