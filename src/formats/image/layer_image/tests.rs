use std::collections::BTreeMap;

use super::super::layer::entries::{Entry, EntryKind};
use super::*;
use sums::Sums;

fn entry(name: &str, kind: EntryKind) -> Entry {
    let content = (kind == EntryKind::File).then(|| Content { number: 0, path: String::new(), size: 7 });
    Entry {
        name: name.into(),
        kind,
        link: Vec::new(),
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: (3, 4),
        device: (0, 0),
        xattrs: Vec::new(),
        content,
    }
}

fn link(name: &str, kind: EntryKind, target: &str) -> Entry {
    Entry { link: target.into(), ..entry(name, kind) }
}

fn apply(entries: &[Entry]) -> Result<Vec<Inode>, ApplyError> {
    let mut applied = Applied::new();
    for entry in entries {
        applied.apply(entry.clone(), |_| Some(Digest::of(b"object")))?;
    }
    Ok(applied.finish())
}

/// Paths of a tree with their inodes.
fn paths(inodes: &[Inode]) -> BTreeMap<String, &Inode> {
    let mut found = BTreeMap::new();
    let mut left = vec![(String::new(), ROOT)];
    while let Some((path, index)) = left.pop() {
        if let Body::Names(names) = &inodes[index].body {
            let below = |name: &[u8]| format!("{path}/{}", String::from_utf8_lossy(name));
            left.extend(names.iter().map(|(name, child)| (below(name), *child)));
        }
        found.insert(path, &inodes[index]);
    }
    found
}

#[test]
fn entries_apply_as_docker_applies_them() {
    use EntryKind::{Directory, File, HardLink, Link};
    for (entries, expected) in [
        // The last one counts; what is only implied is a directory.
        (vec![entry("a/b", File), entry("a/b/", Directory), entry("./a//b/c", File)], "/a /a/b /a/b/c"),
        (vec![entry("a/b", File), entry("a", File)], "/a"),
        // Through links, never out of the layer.
        (
            vec![entry("usr/lib", Directory), link("lib", Link, "/usr/lib"), entry("lib/x", File)],
            "/lib /usr /usr/lib /usr/lib/x",
        ),
        (vec![link("up", Link, "../../.."), entry("up/x", File)], "/up /x"),
        (vec![entry("a", File), link("b", HardLink, "./a")], "/a /b"),
        (vec![entry(".wh.gone", File), entry("gone", File)], "/gone"),
    ] {
        let inodes = apply(&entries).unwrap();
        let found: Vec<String> = paths(&inodes).into_keys().filter(|path| !path.is_empty()).collect();
        assert_eq!(found.join(" "), expected);
    }
    for (entries, part) in [
        (vec![entry("../x", File)], "leads nowhere"),
        (vec![link("a", Link, "a"), entry("a/x", File)], "leads nowhere"),
        (vec![entry("a", File), entry("a/x", File)], "leads nowhere"),
        (vec![link("a", HardLink, "b")], "which is not there"),
        (vec![entry("a", File), link("a", HardLink, "a")], "which is not there"),
        (vec![entry("a", File), entry(".wh.a", File)], "deletes a name of its own layer"),
        (vec![entry("a", EntryKind::Sparse)], "sparse file"),
        (vec![entry("a", EntryKind::Other(b'V'))], "type 'V'"),
        (vec![entry("a", EntryKind::Other(b'S'))], "type 'S'"),
    ] {
        let error = apply(&entries).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_hard_link_gives_the_file_its_owner_and_takes_capabilities_away() {
    let mut file = entry("a", EntryKind::File);
    file.xattrs = vec![(b"security.capability".to_vec(), vec![1]), (b"user.note".to_vec(), vec![2])];
    let owned = Entry { uid: 9, mode: 0o4755, ..link("b", EntryKind::HardLink, "a") };
    let inodes = apply(&[file, owned]).unwrap();
    let paths = paths(&inodes);
    assert_eq!(paths["/a"], paths["/b"]);
    assert_eq!((paths["/a"].uid, paths["/a"].mode), (9, erofs::REGULAR | 0o4755));
    let names: Vec<&[u8]> = paths["/a"].xattrs.keys().map(Vec::as_slice).collect();
    assert_eq!(names, [METACOPY, REDIRECT, b"user.note"]);
    assert_eq!(size_of(&inodes), 7, "one inode, counted once");
}

#[test]
fn whiteouts_are_marked_where_they_have_a_use() {
    let names = ["a/.wh.x", "b/.wh..wh..opq", "b/.wh.y", "b/c/.wh.z", "b/kept", ".wh..wh..opq"];
    let mut inodes = apply(&names.map(|name| entry(name, EntryKind::File))).unwrap();
    mark_whiteouts(&mut inodes);
    let paths = paths(&inodes);
    let mark =
        |path: &str| paths[path].xattrs.get(OPAQUE).map(|mark| String::from_utf8_lossy(mark).into_owned());
    assert_eq!(
        paths.keys().map(String::as_str).collect::<Vec<_>>(),
        ["", "/a", "/a/x", "/b", "/b/c", "/b/kept"]
    );
    assert_eq!(
        (mark(""), mark("/a"), mark("/b"), mark("/b/c")),
        (Some("x".into()), Some("x".into()), Some("y".into()), None)
    );
    assert_eq!(paths["/a/x"].xattrs.keys().collect::<Vec<_>>(), [WHITEOUT]);
}

#[test]
fn the_same_tree_gives_the_same_image() {
    let many: Vec<Entry> =
        (0..3000).map(|at| entry(&format!("dir-{}/file-{at}", at % 7), EntryKind::File)).collect();
    let mut backwards = many.clone();
    backwards.reverse();
    let image = erofs::render(&apply(&many).unwrap()).unwrap();
    assert!(image == erofs::render(&apply(&backwards).unwrap()).unwrap());
    assert!(erofs::is_current(&image) && !erofs::is_current(&image[1..]));
    assert_eq!(image.len() % 4096, 0);
    assert_eq!(Digest::of(&erofs::render(&apply(&[]).unwrap()).unwrap()).to_string(), EMPTY);
}

/// What an empty layer gives: another writer gives the volume another number.
const EMPTY: &str = "sha256:ee1399e1484caec4ff6435f9eb86766167f053bd20ce2737d0d6fa7ab25ade3a";

#[test]
fn sums_read_as_they_were_written() {
    let facts = [1, u64::MAX].map(|crc| ContentFacts { object: Digest::of(b""), crc });
    let sums = Sums::new(5, &facts);
    assert_eq!(Sums::parse(&sums.render()), Some(sums.clone()));
    for broken in [&b""[..], b"rackstep sums 2\n12345678", sums::MAGIC, &sums.render()[..30]] {
        assert_eq!(Sums::parse(broken), None);
    }
}
