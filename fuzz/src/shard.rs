//! A shard from a server that lies, taken into a repo: no object there is anything but what its name says, and nothing is
//! written outside of it.
//!
//! Input: a byte of switches, then a shard as it is after decompression. Digests of records are made right unless a switch
//! says otherwise: what has a right digest and is odd all the same gets furthest.

use std::io::Read;
use std::sync::OnceLock;

use rackstep::ostree::repo::gvariant::{DirTree, FileHeader};
use rackstep::ostree::repo::{Content, DEFAULT_DEFLATE_LEVEL, DirMeta, Mode, Repo, RepoError, Staging};
use rackstep::release::pull::{ShardError, take_shard};
use rackstep::model::{Digest, ObjectKind};
use rackstep::formats::pack::patch::{PatchReader, Pieces, Sums, append_segment};
use rackstep::formats::pack::{Record, RecordKind, RecordWriter, Shard, repack};
use sha2::{Digest as _, Sha256};

use crate::scratch;

const MAGIC: usize = 17;
const HEAD: usize = 41;

fn header() -> FileHeader {
    FileHeader { uid: 0, gid: 0, mode: 0o100_644, target: String::new(), xattrs: vec![] }
}

fn older() -> Vec<u8> {
    (0..2000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// The same, as a program of ours compresses it.
fn packed() -> Vec<u8> {
    compressed(&older())
}

fn compressed(inside: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    repack::compress(inside, &mut out).expect("compressing in memory");
    out
}

fn digest_of(prefix: &[u8], content: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::new_with_prefix(prefix).chain_update(content).finalize().into())
}

struct World {
    dir: tempfile::TempDir,
    repos: [Staging; 2],
    known: Known,
}

/// File objects that are there before a shard comes.
#[derive(Clone, Copy)]
struct Known {
    older: Digest,
    packed: Digest,
}

impl Known {
    fn new() -> Self {
        let prefix = header().stream_prefix();
        Self { older: digest_of(&prefix, &older()), packed: digest_of(&prefix, &packed()) }
    }
}

// Its staging is used by libFuzzer's one thread.
fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let dir = scratch::dir();
        let prefix = header().stream_prefix();
        let known = Known::new();
        let repos = [("bare", Mode::Bare), ("archive", Mode::Archive)].map(|(name, mode)| {
            let repo = Repo::create(&dir.path().join(name), mode).expect("making a repo");
            let staging = Staging::open(&repo, DEFAULT_DEFLATE_LEVEL).expect("opening it");
            let batch = staging.batch("older").expect("a batch").expect("a fresh one");
            let header = header();
            for (digest, bytes) in [(known.older, older()), (known.packed, packed())] {
                let size = bytes.len() as u64;
                let content = Content { header: &header, stream: &mut bytes.as_slice(), size };
                batch.write_file(digest, &prefix, content).expect("writing");
            }
            batch.finish().expect("finishing");
            staging.publish().expect("publishing");
            staging
        });
        World { dir, repos, known }
    })
}

pub fn run(data: &[u8]) {
    let Some((switches, records)) = data.split_first() else { return };
    let mut raw = records.to_vec();
    let world = world();
    if switches & 1 == 0 {
        mend_digests(&mut raw, &world.known);
    }
    let staging = &world.repos[usize::from(switches & 2 == 0)];
    let file = zstd::bulk::compress(&raw, 1).expect("compressing");
    let shard = Shard {
        digest: Digest::of(&file),
        size: file.len() as u64,
        raw: raw.len() as u64,
        objects: 1,
        unpacked: Some(1 << 20),
    };
    let outcome = take_shard(staging, &shard, &mut file.as_slice());
    if let Err(ShardError::Repo(error)) = &outcome {
        assert!(is_of_the_file_system(error), "a lying shard stops the pull: {error:?}");
    }
    staging.publish().expect("publishing");
    assert_eq!(scratch::names(world.dir.path()), ["archive", "bare"], "written beside the repos");
    let repo = staging.repo();
    let tmp = walkdir::WalkDir::new(repo.path().join("tmp")).into_iter().flatten();
    let left = tmp.filter(|entry| entry.path().to_string_lossy().contains("rackstep-") && entry.depth() > 1);
    assert_eq!(left.count(), 0, "left in tmp");
    for path in check_objects(repo, &world.known) {
        std::fs::remove_file(repo.path().join("objects").join(path)).expect("removing an object");
    }
}

/// What a file system may refuse although digest and form are right.
fn is_of_the_file_system(error: &RepoError) -> bool {
    let RepoError::Io { source, .. } = error else { return false };
    // ENOTSUP and EPERM for xattrs, ENAMETOOLONG for link targets, E2BIG, ERANGE and ENOSPC for values.
    matches!(source.raw_os_error(), Some(95 | 1 | 36 | 7 | 34 | 28 | 22))
}

/// Every object that came: it is what its name says.
fn check_objects(repo: &Repo, known: &Known) -> Vec<String> {
    let mut paths = Vec::new();
    let objects = repo.path().join("objects");
    for head in scratch::names(&objects) {
        for tail in scratch::names(&objects.join(&head)) {
            let (digest, kind) = tail.split_once('.').expect("an object's name");
            let digest = Digest::parse_hex(&format!("{head}{digest}")).expect("an object's name");
            let path = format!("{head}/{tail}");
            match kind {
                "file" | "filez" if digest == known.older || digest == known.packed => continue,
                "file" | "filez" => {
                    let mut file = repo.open_file(&digest).expect("opening an object");
                    let mut content = Vec::new();
                    file.content.read_to_end(&mut content).expect("reading an object");
                    let got = digest_of(&file.header.stream_prefix(), &content);
                    assert_eq!(got, digest, "{path} is something else: {:?}", file.header);
                    assert_eq!(content.len() as u64, file.size);
                }
                _ => {
                    let bytes = std::fs::read(objects.join(&path)).expect("reading an object");
                    assert_eq!(Digest::of(&bytes), digest, "{path} is something else");
                }
            }
            paths.push(path);
        }
    }
    paths
}

/// Gives each record the digest of what it holds.
fn mend_digests(raw: &mut [u8], known: &Known) {
    let mut at = MAGIC;
    while let Some(head) = raw.get(at..at + HEAD) {
        let kind = head[0];
        let length = u64::from_be_bytes(head[33..].try_into().expect("eight bytes"));
        let begin = at + HEAD;
        let Some(payload) =
            usize::try_from(length).ok().and_then(|length| raw.get(begin..begin.checked_add(length)?))
        else {
            return;
        };
        let digest = match kind {
            1..=4 => Some(Digest::of(payload)),
            5 => digest_of_patch(Sums::Bytes, payload, known),
            6 => digest_of_patch(Sums::Runs, payload, known),
            7 => digest_of_packed_patch(payload, known),
            _ => None,
        };
        let next = begin + payload.len();
        if let Some(digest) = digest {
            raw[at + 1..at + 33].copy_from_slice(digest.as_bytes());
        }
        at = next;
    }
}

fn digest_of_patch(sums: Sums, payload: &[u8], known: &Known) -> Option<Digest> {
    let mut rest = payload.strip_prefix(known.older.as_bytes())?;
    let (_, prefix) = FileHeader::read(&mut rest).ok()?;
    let (size, segments) = rest.split_first_chunk::<8>()?;
    Some(digest_of(&prefix, &patched(sums, segments, *size)?))
}

fn digest_of_packed_patch(payload: &[u8], known: &Known) -> Option<Digest> {
    let mut rest = payload.strip_prefix(known.packed.as_bytes())?;
    let (_, prefix) = FileHeader::read(&mut rest).ok()?;
    let (_size_and_compressor, rest) = rest.split_first_chunk::<12>()?;
    let (inside, segments) = rest.split_first_chunk::<8>()?;
    Some(digest_of(&prefix, &compressed(&patched(Sums::Runs, segments, *inside)?)))
}

/// What segments make of [`older`].
fn patched(sums: Sums, segments: &[u8], size: [u8; 8]) -> Option<Vec<u8>> {
    let older = older();
    let pieces = Pieces::new(older.as_slice(), older.len() as u64);
    let mut content = Vec::new();
    let mut stream = PatchReader::new(sums, segments, pieces, u64::from_be_bytes(size));
    stream.by_ref().take(1 << 20).read_to_end(&mut content).ok()?;
    Some(content)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let file = |header: &FileHeader, content: &[u8]| [header.stream_prefix().as_slice(), content].concat();
    let digest = Digest::of(b"x");
    let tree = DirTree { files: vec![("a".into(), digest)], dirs: vec![("b".into(), digest, digest)] };
    let meta = DirMeta { uid: 0, gid: 0, mode: 0o040_755, xattrs: vec![] }.render();
    let link = FileHeader { mode: 0o120_777, target: "../../x".into(), ..header() };
    let xattrs = vec![(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), b"2".to_vec())];
    let marked = FileHeader { mode: 0o104_755, uid: 5, gid: 6, xattrs, ..header() };
    let known = Known::new();
    let mut new = older();
    new.iter_mut().step_by(31).for_each(|byte| *byte ^= 3);
    let mut patch = known.older.as_bytes().to_vec();
    patch.extend(header().stream_prefix());
    patch.extend((new.len() as u64).to_be_bytes());
    append_segment(&mut patch, 0, &older(), &new);
    let mut packed_patch = known.packed.as_bytes().to_vec();
    packed_patch.extend(header().stream_prefix());
    packed_patch.extend((compressed(&new).len() as u64).to_be_bytes());
    packed_patch.extend(repack::compressor().to_be_bytes());
    packed_patch.extend((new.len() as u64).to_be_bytes());
    append_segment(&mut packed_patch, 0, &older(), &new);
    let object = RecordKind::Object;
    let shards: [Vec<(RecordKind, Vec<u8>)>; 6] = [
        vec![(object(ObjectKind::DirTree), tree.render()), (object(ObjectKind::DirMeta), meta)],
        vec![
            (object(ObjectKind::File), file(&header(), b"hello")),
            (object(ObjectKind::File), file(&link, b"")),
        ],
        vec![
            (object(ObjectKind::File), file(&marked, b"marked")),
            (object(ObjectKind::File), file(&header(), b"")),
        ],
        vec![(RecordKind::FilePatch(Sums::Runs), patch.clone())],
        vec![(RecordKind::PackedPatch, packed_patch)],
        vec![(RecordKind::FilePatch(Sums::Runs), patch), (object(ObjectKind::File), file(&marked, b"again"))],
    ];
    let mut seeds = Vec::new();
    for (number, records) in shards.into_iter().enumerate() {
        let mut writer = RecordWriter::new(Vec::new(), true).expect("writing to memory");
        for (kind, payload) in records {
            let record = Record { kind, digest: Digest::of(&payload), length: payload.len() as u64 };
            let to = writer.begin(record).expect("writing to memory");
            std::io::Write::write_all(to, &payload).expect("writing to memory");
        }
        let raw = writer.finish().expect("writing to memory").0;
        seeds.push([vec![if number % 2 == 0 { 0 } else { 2 }], raw.clone()].concat());
        seeds.push([vec![if number % 2 == 0 { 2 } else { 0 }], raw].concat());
    }
    seeds
}
