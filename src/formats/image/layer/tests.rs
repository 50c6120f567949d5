//! Layers as raw bytes: what tar writers do, what they never should, and what nobody has thought of.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::formats::image::header::{Block, padding};
use crate::formats::image::{Limits, Ownership};

/// Writes tars byte by byte, wrong ones too.
#[derive(Default, Clone)]
struct Raw(Vec<u8>);

/// One header, as raw as it gets.
#[derive(Debug, Clone)]
struct Head {
    name: Vec<u8>,
    mode: Vec<u8>,
    uid: Vec<u8>,
    gid: Vec<u8>,
    size: Vec<u8>,
    mtime: Vec<u8>,
    kind: u8,
    link: Vec<u8>,
    magic: Vec<u8>,
    rest: Vec<u8>,
    checksum: Checksum,
}

#[derive(Debug, Clone, Copy)]
enum Checksum {
    Usual,
    Spaces,
    Signed,
    Wrong,
}

impl Head {
    fn new(kind: u8, name: &[u8], size: u64) -> Self {
        Self {
            name: name.to_vec(),
            mode: b"0000644\0".to_vec(),
            uid: b"0000000\0".to_vec(),
            gid: b"0000000\0".to_vec(),
            size: format!("{size:011o}\0").into_bytes(),
            mtime: b"14000000000\0".to_vec(),
            kind,
            link: Vec::new(),
            magic: b"ustar\x0000".to_vec(),
            rest: Vec::new(),
            checksum: Checksum::Usual,
        }
    }

    fn link(mut self, target: &[u8]) -> Self {
        self.link = target.to_vec();
        self
    }

    fn block(&self) -> Block {
        let mut block: Block = [0; 512];
        let mut put = |at: usize, max: usize, bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(max)];
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, 100, &self.name);
        put(100, 8, &self.mode);
        put(108, 8, &self.uid);
        put(116, 8, &self.gid);
        put(124, 12, &self.size);
        put(136, 12, &self.mtime);
        put(148, 8, b"        ");
        put(156, 1, &[self.kind]);
        put(157, 100, &self.link);
        put(257, 8, &self.magic);
        put(265, 247, &self.rest);
        let unsigned: u32 = block.iter().map(|&b| u32::from(b)).sum();
        let signed: i32 = block.iter().map(|&b| i32::from(b.cast_signed())).sum();
        let text = match self.checksum {
            Checksum::Usual => format!("{unsigned:06o}\0 "),
            Checksum::Spaces => format!("{unsigned:>7o}\0"),
            Checksum::Signed if signed >= 0 => format!("{signed:06o}\0 "),
            Checksum::Signed => format!("{unsigned:07o}\0"),
            Checksum::Wrong => format!("{:06o}\0 ", unsigned + 1),
        };
        block[148..156].copy_from_slice(text.as_bytes());
        block
    }
}

impl Raw {
    fn head(mut self, head: &Head) -> Self {
        self.0.extend(head.block());
        self
    }

    fn data(mut self, content: &[u8]) -> Self {
        self.0.extend(content);
        self.0.extend(vec![0; padding(content.len() as u64) as usize]);
        self
    }

    fn entry(self, kind: u8, name: &[u8], content: &[u8]) -> Self {
        self.head(&Head::new(kind, name, content.len() as u64)).data(content)
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(b'0', name.as_bytes(), content.as_bytes())
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.entry(b'x', b"PaxHeaders/x", &data)
    }

    fn zeros(mut self, count: usize) -> Self {
        self.0.extend(vec![0; count]);
        self
    }

    fn end(self) -> Vec<u8> {
        self.zeros(1024).0
    }
}

fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let length = (1..).map(|digits| body + digits).find(|l| l.to_string().len() + body == *l).unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A layer's directory beside a file that nobody may touch.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.dir()).unwrap();
        std::fs::write(place.0.path().join("outside"), "untouched").unwrap();
        place
    }

    fn dir(&self) -> std::path::PathBuf {
        self.0.path().join("layer")
    }

    fn split(&self, tar: &[u8]) -> Result<SplitLayer, SplitError> {
        let split = split(tar, &self.dir(), Ownership::Ignore, &Limits::default());
        assert_eq!(std::fs::read_dir(self.0.path()).unwrap().count(), 2, "wrote outside");
        assert_eq!(std::fs::read(self.0.path().join("outside")).unwrap(), b"untouched");
        split
    }

    /// All files but the skeleton, by path below the layer's directory.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in walkdir::WalkDir::new(self.dir()) {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(self.dir()).unwrap().to_str().unwrap();
            assert!(entry.file_type().is_dir() || entry.file_type().is_file(), "{path} is special");
            if entry.file_type().is_file() && path != SKELETON {
                files.insert(path.to_owned(), std::fs::read(entry.path()).unwrap());
            }
        }
        files
    }
}

/// Splits and joins; the bytes must be the same. Gives the files.
fn exact(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let place = Place::new();
    let split = place.split(tar).unwrap();
    assert_eq!((split.diff_id, split.size), (Digest::of(tar), tar.len() as u64));
    let mut joined = Vec::new();
    assert_eq!(join(&place.dir(), &mut joined).unwrap(), split.diff_id);
    assert!(joined == tar, "bytes differ");
    let files = place.files();
    assert_eq!(files.len() as u64, split.files + split.odd_files);
    assert_eq!(files.values().map(|content| content.len() as u64).sum::<u64>(), split.content);
    files
}

/// What it is, the tar, and the files that it becomes.
type Case = (&'static str, Vec<u8>, &'static [(&'static str, &'static str)]);

#[test]
fn what_becomes_of_odd_entries() {
    let long = "d/".repeat(90) + "long";
    let long_odd = "n".repeat(300);
    let cases: Vec<Case> = vec![
        ("no bytes at all", vec![], &[]),
        ("end mark alone", Raw::default().end(), &[]),
        ("a record of zeros", Raw::default().zeros(10240).0, &[]),
        ("no end mark", Raw::default().file("a", "1").0, &[("root/a", "1")]),
        ("half an end mark", Raw::default().file("a", "1").zeros(512).0, &[("root/a", "1")]),
        ("odd length", Raw::default().file("a", "1").zeros(1000).0, &[("root/a", "1")]),
        (
            "no padding at the end",
            Raw::default().head(&Head::new(b'0', b"a", 3)).0.into_iter().chain(*b"abc").collect(),
            &[("root/a", "abc")],
        ),
        (
            "garbage behind the end",
            [Raw::default().file("a", "1").end(), b"garbage".repeat(1000)].concat(),
            &[("root/a", "1")],
        ),
        (
            "a second tar behind the end",
            [Raw::default().file("a", "1").end(), Raw::default().file("b", "2").end()].concat(),
            &[("root/a", "1")],
        ),
        (
            "garbage in the padding",
            {
                let mut tar = Raw::default().file("a", "1").end();
                tar[600] = 7;
                tar
            },
            &[("root/a", "1")],
        ),
        ("empty file", Raw::default().file("a", "").end(), &[]),
        (
            "spellings",
            Raw::default().file("./a", "1").file("/b", "2").file("c//d", "3").file("e/./f", "4").end(),
            &[("root/a", "1"), ("root/b", "2"), ("root/c/d", "3"), ("root/e/f", "4")],
        ),
        (
            "twice",
            Raw::default().file("a", "1").file("a", "2").file("./a", "3").end(),
            &[("odd/0", "2"), ("odd/1", "3"), ("root/a", "1")],
        ),
        (
            "file, then directory",
            Raw::default().file("a", "1").file("a/b", "2").end(),
            &[("odd/0", "2"), ("root/a", "1")],
        ),
        (
            "directory, then file",
            Raw::default().file("a/b", "1").file("a", "2").end(),
            &[("odd/0", "2"), ("root/a/b", "1")],
        ),
        (
            "upwards",
            Raw::default().file("../outside", "x").file("a/../../outside", "y").end(),
            &[("odd/0", "x"), ("odd/1", "y")],
        ),
        (
            "through a link",
            Raw::default().head(&Head::new(b'2', b"l", 0).link(b"..")).file("l/outside", "x").end(),
            &[("root/l/outside", "x")],
        ),
        (
            "over a link",
            Raw::default().head(&Head::new(b'2', b"l", 0).link(b"../outside")).file("l", "x").end(),
            &[("root/l", "x")],
        ),
        ("absolute link", Raw::default().head(&Head::new(b'2', b"l", 0).link(b"/etc/passwd")).end(), &[]),
        ("not UTF-8", Raw::default().entry(b'0', b"caf\xe9", b"x").end(), &[("odd/0", "x")]),
        ("UTF-8", Raw::default().file("café", "x").end(), &[("root/café", "x")]),
        (
            "whiteouts",
            Raw::default().file("d/.wh.gone", "").file("d/.wh..wh..opq", "").file("d/.wh.full", "x").end(),
            &[("odd/0", "x")],
        ),
        ("ostree's whiteout", Raw::default().file("d/.ostree-wh.x", "x").end(), &[("odd/0", "x")]),
        (
            "hard links",
            Raw::default()
                .head(&Head::new(b'1', b"early", 0).link(b"late"))
                .file("late", "x")
                .head(&Head::new(b'1', b"again", 0).link(b"late"))
                .head(&Head::new(b'1', b"again", 0).link(b"late"))
                .end(),
            &[("root/late", "x")],
        ),
        (
            "hard link with a size",
            Raw::default().file("a", "x").head(&Head::new(b'1', b"b", 1).link(b"a")).file("c", "y").end(),
            &[("root/a", "x"), ("root/c", "y")],
        ),
        (
            "directory with a size",
            Raw::default().head(&Head::new(b'5', b"d/", 4096)).file("d/a", "x").end(),
            &[("root/d/a", "x")],
        ),
        (
            "old directory",
            Raw::default().head(&Head::new(0, b"d/", 9)).file("d/a", "x").end(),
            &[("root/d/a", "x")],
        ),
        (
            "devices and FIFO",
            Raw::default()
                .head(&Head::new(b'3', b"c", 0))
                .head(&Head::new(b'4', b"b", 0))
                .head(&Head::new(b'6', b"f", 0))
                .end(),
            &[],
        ),
        ("contiguous file", Raw::default().entry(b'7', b"a", b"x").end(), &[("root/a", "x")]),
        (
            "unknown type",
            Raw::default().entry(b'V', b"label", b"x").entry(b'Z', b"z", b"y").end(),
            &[("odd/0", "x"), ("odd/1", "y")],
        ),
        (
            "GNU long name",
            Raw::default()
                .entry(b'L', b"././@LongLink", format!("{long}\0").as_bytes())
                .file("cut", "x")
                .end(),
            &[(
                "root/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/long",
                "x",
            )],
        ),
        (
            "GNU long link",
            Raw::default()
                .entry(b'K', b"././@LongLink", b"target\0")
                .head(&Head::new(b'2', b"l", 0))
                .file("a", "x")
                .end(),
            &[("root/a", "x")],
        ),
        (
            "part of a name too long",
            Raw::default().pax(&[("path", long_odd.as_bytes())]).file("cut", "x").file("next", "y").end(),
            &[("odd/0", "x"), ("root/next", "y")],
        ),
        (
            "PAX name",
            Raw::default().pax(&[("path", b"p/q"), ("mtime", b"-1.5")]).file("cut", "x").end(),
            &[("root/p/q", "x")],
        ),
        (
            "PAX size",
            Raw::default()
                .pax(&[("size", b"3")])
                .head(&Head::new(b'0', b"a", 0))
                .data(b"abc")
                .file("b", "y")
                .end(),
            &[("root/a", "abc"), ("root/b", "y")],
        ),
        (
            "PAX header twice",
            Raw::default().pax(&[("path", b"one")]).pax(&[("path", b"two")]).file("cut", "x").end(),
            &[("root/two", "x")],
        ),
        (
            "global PAX header",
            Raw::default().entry(b'g', b"g", &pax_record("comment", b"c0ffee")).file("a", "x").end(),
            &[("root/a", "x")],
        ),
        (
            "global PAX header between",
            Raw::default().pax(&[("path", b"lost")]).entry(b'g', b"g", b"").file("a", "x").end(),
            &[("root/a", "x")],
        ),
        (
            "binary size",
            {
                let mut head = Head::new(b'0', b"a", 0);
                head.size = vec![0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
                Raw::default().head(&head).data(b"abc").end()
            },
            &[("root/a", "abc")],
        ),
        (
            "before 1970",
            {
                let mut head = Head::new(b'0', b"a", 1);
                head.mtime = vec![0xff; 12];
                Raw::default().head(&head).data(b"x").end()
            },
            &[("root/a", "x")],
        ),
        (
            "odd owners",
            {
                let mut head = Head::new(b'0', b"a", 1);
                head.uid = vec![0xff; 8];
                head.gid = b"nobody!\0".to_vec();
                head.mode = b"rwxr-xr-".to_vec();
                Raw::default().head(&head).data(b"x").end()
            },
            &[("root/a", "x")],
        ),
        (
            "signed checksum",
            {
                let mut head = Head::new(b'0', b"\xff\xfe", 1);
                head.checksum = Checksum::Signed;
                Raw::default().head(&head).data(b"x").end()
            },
            &[("odd/0", "x")],
        ),
        (
            "version 7",
            {
                let mut head = Head::new(0, b"a", 1);
                head.magic = vec![];
                Raw::default().head(&head).data(b"x").end()
            },
            &[("root/a", "x")],
        ),
        (
            "ustar prefix",
            {
                let mut head = Head::new(b'0', b"name", 1);
                head.rest = [vec![0; 80], b"pre/fix".to_vec()].concat();
                Raw::default().head(&head).data(b"x").end()
            },
            &[("root/pre/fix/name", "x")],
        ),
        (
            "GNU header: no prefix",
            {
                let mut head = Head::new(b'0', b"name", 1);
                head.magic = b"ustar  \0".to_vec();
                head.rest = [vec![0; 80], b"14000000000".to_vec()].concat();
                Raw::default().head(&head).data(b"x").end()
            },
            &[("root/name", "x")],
        ),
        (
            "old GNU sparse, two extensions",
            {
                let mut head = Head::new(b'S', b"s", 3);
                head.magic = b"ustar  \0".to_vec();
                head.rest = vec![0; 247];
                head.rest[482 - 265] = 1;
                let mut extension = vec![0; 512];
                extension[504] = 1;
                let mut raw = Raw::default().head(&head);
                raw.0.extend(&extension);
                raw.zeros(512).data(b"abc").file("b", "y").end()
            },
            &[("root/b", "y"), ("root/s", "abc")],
        ),
        (
            "PAX sparse 1.0",
            Raw::default()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.name", b"s"),
                    ("GNU.sparse.realsize", b"1000000"),
                ])
                .file("GNUSparseFile.1/s", "map and data")
                .end(),
            &[("root/GNUSparseFile.1/s", "map and data")],
        ),
        ("control characters", Raw::default().file("a\nb\x1b[2J", "x").end(), &[("root/a\nb\x1b[2J", "x")]),
        (
            "the layer's own names",
            Raw::default().file("skeleton", "x").file("odd/0", "y").file("root", "z").end(),
            &[("root/odd/0", "y"), ("root/root", "z"), ("root/skeleton", "x")],
        ),
    ];
    println!("{} hand-written layers", cases.len());
    for (name, tar, expected) in cases {
        let expected: BTreeMap<String, Vec<u8>> = expected
            .iter()
            .map(|(path, content)| ((*path).to_owned(), content.as_bytes().to_vec()))
            .collect();
        println!("{name}");
        assert_eq!(exact(&tar), expected, "{name}");
    }
}

#[test]
fn refusals_name_the_entry() {
    let bomb = Limits { layer_bytes: 100_000, ..Limits::default() };
    let few = Limits { entries: 2, ..Limits::default() };
    let narrow = Limits { name_bytes: 10, extension_bytes: 1000, ..Limits::default() };
    let wrong = Head { checksum: Checksum::Wrong, ..Head::new(b'0', b"b", 0) };
    let negative = Head { size: vec![0xff; 12], ..Head::new(b'0', b"b", 0) };
    let text = Head { size: b"three".to_vec(), ..Head::new(b'0', b"b", 0) };
    let a = || Raw::default().file("a", "1");
    let cases: Vec<(Vec<u8>, &Limits, &str)> = vec![
        (a().head(&wrong).end(), &bomb, "no tar header at byte 1024, after entry \"a\""),
        (a().head(&negative).end(), &bomb, "no tar header at byte 1024, after entry \"a\""),
        (a().head(&text).end(), &bomb, "no tar header at byte 1024, after entry \"a\""),
        (b"#!/bin/sh\n".repeat(100), &bomb, "no tar header at byte 0, after entry \"\""),
        (
            a().head(&Head::new(b'0', b"b", 700)).data(b"short").0,
            &bomb,
            "tar ends at byte 2048, within entry \"b\"",
        ),
        (
            a().head(&Head::new(b'0', b"huge", 9 << 30)).0,
            &bomb,
            "layer exceeds its limit of 100000 bytes in entry \"huge\"",
        ),
        (
            a().file("b", &"x".repeat(99_000)).end(),
            &bomb,
            "layer exceeds its limit of 100000 bytes in entry \"b\"",
        ),
        (
            [a().end(), vec![0; 200_000]].concat(),
            &bomb,
            "layer exceeds its limit of 100000 bytes in entry \"a\"",
        ),
        (a().file("b", "").file("c", "").end(), &few, "layer exceeds its limit of 2 entries at \"c\""),
        (
            a().file("elevenchars", "").end(),
            &narrow,
            "name of 11 bytes after entry \"a\" exceeds its limit of 10",
        ),
        (
            a().head(&Head::new(b'x', b"p", 1001)).end(),
            &narrow,
            "extended header of 1001 bytes after entry \"a\" exceeds its limit of 1000",
        ),
        (
            a().head(&Head::new(b'L', b"p", u64::from(u32::MAX))).end(),
            &narrow,
            "long name of 4294967295 bytes after entry \"a\" exceeds its limit of 1000",
        ),
        (
            a().entry(b'x', b"p", b"12 broken\n").file("b", "").end(),
            &bomb,
            "broken extended header at byte 1024, after entry \"a\"",
        ),
        (
            a().pax(&[("size", b"many")]).file("b", "").end(),
            &bomb,
            "broken extended header at byte 1024, after entry \"a\"",
        ),
        (
            a().pax(&[("size", b"9223372036854775807")]).file("b", "").end(),
            &bomb,
            "layer exceeds its limit of 100000 bytes in entry \"b\"",
        ),
    ];
    for (tar, limits, expected) in cases {
        let place = Place::new();
        let error = split(&tar[..], &place.dir(), Ownership::Ignore, limits).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_failing_stream_is_told_apart_from_a_bad_tar() {
    struct Cut;
    impl Read for Cut {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let place = Place::new();
    let tar = Raw::default().file("a", "1").0;
    let error = split(tar.chain(Cut), &place.dir(), Ownership::Ignore, &Limits::default()).unwrap_err();
    assert!(matches!(error, SplitError::Read { .. }), "{error}");
}

#[test]
fn owner_mode_and_capability_are_applied_by_root() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    // VFS_CAP_REVISION_2 with cap_net_bind_service, as `setcap` writes it.
    let capability = *b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let mut head = Head::new(b'0', b"ping", 1);
    head.mode = b"0004755\0".to_vec();
    head.uid = b"0000052\0".to_vec();
    head.gid = b"0000010\0".to_vec();
    let tar = Raw::default()
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("gid", b"100000")])
        .head(&head)
        .data(b"x")
        .end();
    let place = Place::new();
    split(&tar[..], &place.dir(), Ownership::Apply, &Limits::default()).unwrap();
    let path = place.dir().join("root/ping");
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((metadata.mode(), metadata.uid(), metadata.gid()), (0o104_755, 42, 100_000));
    assert_eq!(xattr::get(&path, "security.capability").unwrap().as_deref(), Some(&capability[..]));
    let mut joined = Vec::new();
    join(&place.dir(), &mut joined).unwrap();
    assert!(joined == tar);
}

#[test]
fn a_skeleton_cannot_name_what_is_outside() {
    for path in ["../../outside", "/etc/hostname", "..", "a/../../../outside", "", "a//b", "./a/b"] {
        let place = Place::new();
        place.split(&Raw::default().file("a/b", "inside").end()).unwrap();
        let record = [&[4, 0, path.len() as u8][..], path.as_bytes(), &[9, 0, 9]].concat();
        std::fs::write(
            place.dir().join(SKELETON),
            [crate::formats::image::skeleton::MAGIC, &record].concat(),
        )
        .unwrap();
        let error = join(&place.dir(), &mut io::sink()).unwrap_err();
        assert!(matches!(error, JoinError::Read { .. }), "{path}: {error}");
    }
}

#[test]
fn damage_is_found_when_joining() {
    let tar = Raw::default().file("a/b", "content").entry(b'0', b"\xff", b"odd").end();
    let damaged = |damage: fn(&Path)| {
        let place = Place::new();
        place.split(&tar).unwrap();
        damage(&place.dir());
        join(&place.dir(), &mut io::sink())
    };
    let cut = |dir: &Path, by: u64| {
        let file = std::fs::OpenOptions::new().write(true).open(dir.join(SKELETON)).unwrap();
        file.set_len(file.metadata().unwrap().len() - by).unwrap();
    };
    assert_eq!(damaged(|_| {}).unwrap(), Digest::of(&tar));
    let flipped = damaged(|dir| std::fs::write(dir.join("root/a/b"), "Content").unwrap());
    assert!(flipped.is_ok_and(|digest| digest != Digest::of(&tar)));
    let error = damaged(|dir| std::fs::write(dir.join("root/a/b"), "short").unwrap()).unwrap_err();
    assert!(matches!(error, JoinError::Content { expected: 7, got: 5, .. }), "{error}");
    let error = damaged(|dir| std::fs::remove_file(dir.join("odd/0")).unwrap()).unwrap_err();
    assert!(matches!(error, JoinError::Read { .. }), "{error}");
    let error = damaged(|dir| {
        std::fs::remove_file(dir.join("odd/0")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.join("odd/0")).unwrap();
    })
    .unwrap_err();
    assert!(matches!(error, JoinError::Read { .. }), "{error}");
    let place = Place::new();
    place.split(&tar).unwrap();
    cut(&place.dir(), 1);
    let error = join(&place.dir(), &mut io::sink()).unwrap_err();
    assert!(matches!(error, JoinError::Skeleton { .. }), "{error}");
}

/// A name out of few parts, so that names collide, or out of anything.
fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let parts =
        prop::sample::select(vec!["a", "b", "c", ".", "..", "", ".wh.a", "ä", "root", "outside", " "]);
    prop_oneof![
        4 => prop::collection::vec(parts, 1..5).prop_map(|parts| parts.join("/").into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..120),
    ]
}

/// A content length around the block size, or empty.
fn any_content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 1..40),
        (500usize..530, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
    ]
}

fn any_head() -> impl Strategy<Value = Head> {
    let number = prop_oneof![
        3 => Just(b"0000755\0".to_vec()),
        1 => Just(b"    12 \0".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 8),
    ];
    let kinds = prop::sample::select(b"\x0000000012345677SVZ".to_vec());
    let magic = prop::sample::select(vec![
        b"ustar\x0000".to_vec(),
        b"ustar  \0".to_vec(),
        vec![],
        b"junkjunk".to_vec(),
    ]);
    let checksum = prop::sample::select(vec![Checksum::Usual, Checksum::Spaces, Checksum::Signed]);
    let rest = prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(any::<u8>(), 0..247)];
    (any_name(), number.clone(), number, kinds, any_name(), magic, rest, checksum).prop_map(
        |(name, mode, uid, kind, link, magic, rest, checksum)| Head {
            gid: uid.clone(),
            mtime: [&uid[..], &mode[..4]].concat(),
            mode,
            uid,
            link,
            magic,
            rest,
            checksum,
            ..Head::new(kind, &name, 0)
        },
    )
}

/// Bytes of one entry with everything that stands before it.
fn any_entry() -> impl Strategy<Value = Vec<u8>> {
    let extension = prop_oneof![
        4 => Just(Vec::new()),
        1 => any_name().prop_map(|name| Raw::default().entry(b'L', b"././@LongLink", &[&name[..], b"\0"].concat()).0),
        1 => any_name().prop_map(|name| Raw::default().pax(&[("path", &name), ("mtime", b"1.5")]).0),
        1 => any_content().prop_map(|data| Raw::default().entry(b'g', b"g", &data).0),
        1 => any_content().prop_map(|data| Raw::default().entry(b'K', b"k", &data).0),
    ];
    let size_style = prop::sample::select(vec!["octal", "binary", "pax"]);
    (extension, any_head(), any_content(), size_style, any::<u8>()).prop_map(
        |(mut bytes, mut head, content, style, fill)| {
            let size = content.len() as u64;
            if head.kind == b'S' {
                // Whether extension blocks follow is a byte of `rest`: none do.
                head.rest.clear();
            }
            match style {
                "binary" => head.size = [&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat(),
                "pax" => bytes.extend(Raw::default().pax(&[("size", size.to_string().as_bytes())]).0),
                _ => head.size = format!("{size:o} ").into_bytes(),
            }
            bytes.extend(head.block());
            let bare = matches!(head.kind, b'1'..=b'6');
            if !bare {
                bytes.extend(&content);
                bytes.extend(vec![fill; padding(size) as usize]);
            }
            bytes
        },
    )
}

fn any_tar() -> impl Strategy<Value = Vec<u8>> {
    let tail = prop_oneof![
        Just(vec![]),
        Just(vec![0; 512]),
        Just(vec![0; 1024]),
        Just(vec![0; 9999]),
        prop::collection::vec(any::<u8>(), 0..2000).prop_map(|garbage| [vec![0; 1024], garbage].concat()),
    ];
    (prop::collection::vec(any_entry(), 0..12), tail)
        .prop_map(|(entries, tail)| [entries.concat(), tail].concat())
}

/// True when splitting may rightly say no: what makes an old-style directory depends on names that are random here.
fn is_honest_refusal(error: &SplitError) -> bool {
    matches!(error, SplitError::Header { .. } | SplitError::Truncated { .. })
}

proptest! {
    // 256 cases each, unless PROPTEST_CASES says otherwise.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn odd_tars_come_back_exactly(tar in any_tar()) {
        let place = Place::new();
        match place.split(&tar) {
            Err(error) => prop_assert!(is_honest_refusal(&error), "{error}"),
            Ok(split) => {
                prop_assert_eq!(split.diff_id, Digest::of(&tar));
                place.files();
                let mut joined = Vec::new();
                prop_assert_eq!(join(&place.dir(), &mut joined).unwrap(), split.diff_id);
                prop_assert!(joined == tar);
            }
        }
    }

    #[test]
    fn tidy_tars_become_their_files(
        model in prop::collection::btree_map("[a-z]{1,9}(/[a-z]{1,9}x){0,3}", any_content(), 0..12),
    ) {
        // A name that is another's directory goes to odd; such models are left out here.
        let clash = model.keys().any(|name| model.keys().any(|other| other.starts_with(&format!("{name}/"))));
        prop_assume!(!clash);
        let tar = model.iter().fold(Raw::default(), |raw, (name, content)| raw.entry(b'0', name.as_bytes(), content));
        let expected: BTreeMap<String, Vec<u8>> = model
            .iter()
            .filter(|(_, content)| !content.is_empty())
            .map(|(name, content)| (format!("root/{name}"), content.clone()))
            .collect();
        prop_assert_eq!(exact(&tar.end()), expected);
    }

    #[test]
    fn damaged_tars_are_refused_or_exact(
        tar in any_tar(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let mut tar = tar;
        for (at, byte) in flips {
            if !tar.is_empty() {
                let at = at.index(tar.len());
                tar[at] = byte;
            }
        }
        if cuts && !tar.is_empty() {
            tar.truncate(cut.index(tar.len()));
        }
        let place = Place::new();
        if place.split(&tar).is_ok() {
            let mut joined = Vec::new();
            join(&place.dir(), &mut joined).unwrap();
            prop_assert!(joined == tar);
        }
    }

    #[test]
    fn hostile_skeletons_never_read_outside(
        body in prop_oneof![Just(vec![]), prop::collection::vec(prop_oneof![any::<u8>(), 0u8..8], 0..300)],
        path in any_name(),
    ) {
        let place = Place::new();
        place.split(&Raw::default().file("a/b", "inside").end()).unwrap();
        let name = [&[4, 0, path.len() as u8][..], &path, &[9]].concat();
        let skeleton = [crate::formats::image::skeleton::MAGIC, &body, &name].concat();
        std::fs::write(place.dir().join(SKELETON), skeleton).unwrap();
        let mut joined = Vec::new();
        let out = &mut crate::formats::image::stream::BoundedWriter::new(&mut joined, 1 << 20);
        let _ = join(&place.dir(), out);
        prop_assert!(!joined.windows(9).any(|window| window == b"untouched"));
    }
}
