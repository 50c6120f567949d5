//! Trees and repos to test with, and the real `ostree` to compare with.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// Runs a program that must succeed and gives its stdout.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Runs `ostree --repo=REPO …`.
pub fn ostree(repo: &Path, arguments: &[&str]) -> String {
    let repo = format!("--repo={}", repo.display());
    let mut all = vec![repo.as_str()];
    all.extend(arguments);
    run("ostree", &all)
}

/// Bytes that do not compress well and differ by `seed`.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// A tree with everything that ostree can hold.
pub fn odd_tree(root: &Path) {
    let dirs = ["usr/bin", "usr/lib/deep/er", "usr/etc", "empty", "usr/share/ünïcode dir"];
    for dir in dirs {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let write = |path: &str, bytes: &[u8], mode: u32| {
        fs::write(root.join(path), bytes).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    write("usr/bin/sudo", b"setuid program", 0o4755);
    write("usr/bin/ping", b"program with a capability", 0o755);
    write("usr/lib/empty", b"", 0o644);
    write("usr/lib/nobody-may", b"secret", 0o000);
    write("usr/lib/large", &noise(1, 3 << 20), 0o644);
    write("usr/lib/zeros", &vec![0; 2 << 20], 0o644);
    write("usr/lib/same-as-large", &noise(1, 3 << 20), 0o644);
    write("usr/lib/deep/er/a file with spaces and \"quotes\" \\", b"x", 0o600);
    write("usr/share/ünïcode dir/日本語", b"y", 0o644);
    write("usr/share/B", b"B", 0o644);
    write("usr/share/a", b"a", 0o644);
    for number in 0..8 {
        write(&format!("usr/lib/deep/part{number}"), &noise(100 + number, 300_000), 0o644);
    }
    write("usr/etc/owned", b"owned", 0o640);
    fs::hard_link(root.join("usr/lib/large"), root.join("usr/lib/large-again")).unwrap();
    symlink("../lib/large", root.join("usr/bin/link")).unwrap();
    symlink("/nowhere/at all", root.join("usr/bin/dangling")).unwrap();
    std::os::unix::fs::chown(root.join("usr/etc/owned"), Some(33), Some(999)).unwrap();
    std::os::unix::fs::lchown(root.join("usr/bin/link"), Some(7), Some(8)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    run("setcap", &["cap_net_raw+ep", root.join("usr/bin/ping").to_str().unwrap()]);
    xattr::set(root.join("usr/share/a"), "user.zz", b"last").unwrap();
    xattr::set(root.join("usr/share/a"), "user.aa", b"\0first\xff").unwrap();
    xattr::set(root.join("usr/etc"), "user.dir", b"d").unwrap();
}

/// Fails unless both directories hold the same names, owners, modes, links, xattrs and bytes.
pub fn assert_same_tree(left: &Path, right: &Path) {
    let list = |root: &Path| {
        let mut lines: Vec<String> = walkdir::WalkDir::new(root)
            .into_iter()
            .map(|entry| {
                let entry = entry.unwrap();
                let stat = fs::symlink_metadata(entry.path()).unwrap();
                use std::os::unix::fs::MetadataExt;
                let kind = stat.file_type();
                let content = if kind.is_symlink() {
                    format!("{:?}", fs::read_link(entry.path()).unwrap())
                } else if kind.is_file() {
                    rackstep::model::Digest::of(&fs::read(entry.path()).unwrap()).to_string()
                } else {
                    String::new()
                };
                let mut xattrs: Vec<_> = xattr::list(entry.path())
                    .unwrap()
                    .map(|name| (name.clone(), xattr::get(entry.path(), &name).unwrap()))
                    .collect();
                xattrs.sort();
                let path = entry.path().strip_prefix(root).unwrap();
                format!("{path:?} {:o} {}:{} {content} {xattrs:?}", stat.mode(), stat.uid(), stat.gid())
            })
            .collect();
        lines.sort();
        lines
    };
    let (left, right) = (list(left), list(right));
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(&right) {
        assert_eq!(left, right);
    }
}
