//! Updates as differences: a pack that brings new files against older ones, to hosts whose older files are as they should
//! be, damaged or gone, and from servers that lie. Needs root.

#![allow(clippy::unwrap_used)]

#[path = "transport/server.rs"]
#[allow(dead_code)]
mod server;
#[path = "transport/tree.rs"]
#[allow(dead_code)]
mod tree;
#[path = "transport/world.rs"]
#[allow(dead_code)]
mod world;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use rackstep::formats::pack::index::{self, Index, Shard};
use rackstep::formats::pack::{RecordKind, RecordReader, RecordWriter, repack};
use rackstep::model::progress::Silent;
use rackstep::model::{Commit, Digest, ObjectKind, ObjectName};
use rackstep::ostree::repo::{Mode, Repo};
use rackstep::release::pack::{PackOptions, PackReport, write_pack};
use rackstep::release::pull::{By, PullReport, PullRequest, pull};
use server::Faults;
use tree::{noise, run};
use world::World;

/// Where the older release has its files and where the newer one has them; the same files, built again.
const FILES: [(&str, &str); 6] = [
    ("usr/bin/program", "usr/bin/program"),
    ("usr/lib/libx-1.2.3.so.4", "usr/lib/libx-1.2.4.so.4"),
    ("usr/lib/modules/6.1.0-9/kernel/a.ko", "usr/lib/modules/6.1.0-10/kernel/a.ko"),
    (
        "usr/lib/rackstep/images/layers/1111111111111111111111111111111111111111111111111111111111111111/root/bin/tool",
        "usr/lib/rackstep/images/layers/2222222222222222222222222222222222222222222222222222222222222222/root/bin/tool",
    ),
    ("opt/here/moved-file", "opt/there/moved-file"),
    // What we compressed ourselves: nothing of it is the same, what is inside is.
    ("usr/lib/modules/6.1.0-9/initramfs.img", "usr/lib/modules/6.1.0-10/initramfs.img"),
];

/// Something like a program: noise, and built again with other addresses and a new function.
fn program(seed: u64, again: bool) -> Vec<u8> {
    let mut bytes = noise(seed, 300_000);
    if again {
        bytes.iter_mut().step_by(97).for_each(|byte| *byte = byte.wrapping_add(16));
        bytes.splice(150_000..150_000, noise(seed + 1000, 700));
    }
    bytes
}

/// The content of one of [`FILES`].
fn content(path: &str, seed: usize, again: bool) -> Vec<u8> {
    let program = program(seed as u64 + 50, again);
    if !path.ends_with(".img") {
        return program;
    }
    let mut packed = Vec::new();
    repack::compress(program.as_slice(), &mut packed).unwrap();
    packed
}

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A served repo with two releases.
struct Update {
    world: World,
    old: Commit,
    new: Commit,
}

impl Update {
    fn new() -> Self {
        Self::of(World::new())
    }

    /// With a tree that is quickly pulled.
    fn small() -> Self {
        Self::of(World::of(|root| fs::create_dir_all(root.join("usr")).unwrap()))
    }

    fn of(world: World) -> Self {
        for (seed, (path, _)) in FILES.iter().enumerate() {
            write(&world.root, path, &content(path, seed, false));
        }
        let old = world.commit("1.0");
        for (seed, (path, again)) in FILES.iter().enumerate() {
            fs::remove_file(world.root.join(path)).unwrap();
            write(&world.root, again, &content(again, seed, true));
        }
        write(&world.root, "usr/bin/new", &noise(77, 5000));
        let new = world.commit("1.1");
        Self { world, old, new }
    }

    /// A host that has the older release.
    fn host(&self, name: &str, mode: Mode) -> Repo {
        let host = self.world.host(name, mode);
        self.world.pull(self.old, &host).unwrap();
        host
    }

    fn pack(&self, differences: bool) -> PackReport {
        let options = PackOptions { differences, update_shard_target: 400 << 10, ..PackOptions::default() };
        write_pack(&self.world.repo, self.new, Some(self.old), Some(&self.world.key), &options, &Silent)
            .unwrap()
    }

    /// Pulls the newer release without asking for a signature of the index.
    fn pull_unsigned(&self, host: &Repo) -> PullReport {
        pull(&PullRequest { keys: vec![], ..self.world.request(self.new) }, host, &Silent).unwrap()
    }

    fn digest(&self, commit: Commit, path: &str) -> Digest {
        let (dir, name) = path.rsplit_once('/').unwrap();
        let tree = self.world.repo.list_dir(commit, dir).unwrap();
        tree.files.iter().find(|(file, _)| file == name).unwrap().1
    }

    /// Every object of the newer release is there and right, whatever may be wrong with the older one.
    fn assert_arrived(&self, host: &Repo) {
        assert!(rackstep::release::pull::is_complete(host, self.new));
        for object in host.walk_objects(self.new).unwrap() {
            let kind = if object.kind == ObjectKind::File { "file" } else { object.kind.word() };
            world::check_object(host, &object.digest.hex(), kind);
        }
        world::assert_nothing_left_behind(host);
    }
}

#[test]
fn an_update_by_differences_is_smaller_and_the_same() {
    let update = Update::new();
    let whole = update.pack(false);
    let pack = update.pack(true);
    assert_eq!((whole.index.format, pack.index.format), (1, 3));
    assert_eq!(pack.index.objects, whole.index.objects);
    assert!(pack.index.bytes * 10 < whole.index.bytes, "{} of {}", pack.index.bytes, whole.index.bytes);
    assert_eq!(update.pack(true), pack, "the same again");
    for mode in [Mode::Bare, Mode::Archive] {
        let host = update.host(&format!("{mode:?}"), mode);
        update.world.server.set(Faults::default());
        let report = update.world.pull(update.new, &host).unwrap();
        assert_eq!((report.by, report.from, &report.pack_refused), (By::Pack, Some(update.old), &None));
        assert_eq!((report.differences, report.differences_failed), (FILES.len() as u64, 0), "{mode:?}");
        assert_eq!(report.objects, pack.index.objects);
        assert_eq!(update.world.server.sent(".filez").len(), 0);
        update.world.assert_arrived(&host, update.new);
        if mode == Mode::Bare {
            update.world.assert_same_as_root(&host, update.new);
        }
    }
}

#[test]
fn older_files_that_are_damaged_or_gone_cost_their_objects_alone() {
    let update = Update::new();
    update.pack(true);
    let host = update.host("host", Mode::Bare);
    let path = |number: usize| {
        let digest = update.digest(update.old, FILES[number].0);
        host.object_path(&ObjectName::new(ObjectKind::File, digest))
    };
    // Flipped, cut, gone.
    let mut bytes = fs::read(path(0)).unwrap();
    bytes[1000] ^= 1;
    fs::write(path(0), bytes).unwrap();
    fs::OpenOptions::new().write(true).open(path(1)).unwrap().set_len(10).unwrap();
    fs::remove_file(path(2)).unwrap();
    update.world.server.set(Faults::default());
    let report = update.world.pull(update.new, &host).unwrap();
    assert_eq!((report.by, &report.pack_refused), (By::Pack, &None));
    assert_eq!((report.differences, report.differences_failed), (3, 3));
    assert_eq!(update.world.server.sent(".filez").len(), 3);
    update.assert_arrived(&host);
}

#[test]
fn a_damaged_older_file_in_the_served_repo_gives_a_pack_without_it() {
    let update = Update::new();
    let host = update.host("host", Mode::Bare);
    let digest = update.digest(update.old, FILES[0].0);
    let path = update.world.repo.object_path(&ObjectName::new(ObjectKind::File, digest));
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    update.pack(true);
    let report = update.world.pull(update.new, &host).unwrap();
    assert_eq!((report.differences, report.differences_failed), (FILES.len() as u64 - 1, 0));
    update.world.assert_arrived(&host, update.new);
}

/// Puts other shards into the pack: `change` gets each record's payload. The index is unsigned then.
fn tamper(update: &Update, index: &Index, change: &mut dyn FnMut(RecordKind, &mut Vec<u8>)) -> Index {
    let served = update.world.repo.path();
    let mut tampered = index.clone();
    for shard in &mut tampered.shards {
        let bytes = zstd::decode_all(fs::read(served.join(shard.path())).unwrap().as_slice()).unwrap();
        let mut reader = RecordReader::new(bytes.as_slice()).unwrap();
        let mut writer = RecordWriter::new(Vec::new(), true).unwrap();
        while let Some(mut record) = reader.next_record().unwrap() {
            let mut payload = Vec::new();
            reader.read_to_end(&mut payload).unwrap();
            change(record.kind, &mut payload);
            record.length = payload.len() as u64;
            writer.begin(record).unwrap().write_all(&payload).unwrap();
        }
        let raw = writer.finish().unwrap().0;
        let file = zstd::encode_all(raw.as_slice(), 1).unwrap();
        let (digest, size) = (Digest::of(&file), file.len() as u64);
        *shard = Shard { digest, size, raw: raw.len() as u64, ..shard.clone() };
        fs::write(served.join(shard.path()), file).unwrap();
    }
    publish(update, &mut tampered);
    tampered
}

fn publish(update: &Update, index: &mut Index) {
    index.bytes = index.shards.iter().map(|shard| shard.size).sum();
    index.raw = index.shards.iter().map(|shard| shard.raw).sum();
    let path = update.world.repo.path().join(index::index_path(index.to, index.from));
    fs::write(path, serde_json::to_vec(index).unwrap()).unwrap();
}

#[test]
fn differences_that_are_wrong_are_passed_over() {
    let update = Update::small();
    let index = update.pack(true).index;
    type Change = fn(&mut Vec<u8>);
    let huge = |payload: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        // Digest, header of a file without xattrs, size.
        let header = 8 + u32::from_be_bytes(payload[32..36].try_into().unwrap()) as usize;
        payload[32 + header + at..][..bytes.len()].copy_from_slice(bytes);
    };
    let cases: [(&str, Change); 8] = [
        ("another byte", |payload| *payload.last_mut().unwrap() ^= 1),
        ("another older file", |payload| payload[3] ^= 1),
        ("another owner", |payload| payload[43] ^= 1),
        ("cut", |payload| payload.truncate(payload.len() - 1)),
        ("nothing", Vec::clear),
        ("digest alone", |payload| payload.truncate(32)),
        ("header of 4 GiB", |payload| payload[32..36].copy_from_slice(&[0xff; 4])),
        ("more after the end", |payload| payload.extend([0; 50])),
    ];
    for (number, (what, change)) in cases.into_iter().enumerate() {
        let mut changed = 0;
        tamper(&update, &index, &mut |kind, payload| {
            if kind.sums().is_some() {
                change(payload);
                changed += 1;
            }
        });
        let host = update.host(&format!("host-{number}"), Mode::Bare);
        let report = update.pull_unsigned(&host);
        // Bytes behind the content change nothing: they are not read.
        let failed = if what.starts_with("more") { 0 } else { changed };
        assert_eq!((report.by, report.differences_failed), (By::Pack, failed), "{what}");
        update.world.assert_arrived(&host, update.new);
    }
    for (number, (at, bytes)) in
        [(0, [0xffu8; 8].as_slice()), (8, &[0xff; 4]), (12, &[0xff; 8]), (20, &[0xff; 4])]
            .into_iter()
            .enumerate()
    {
        tamper(&update, &index, &mut |kind, payload| {
            if kind.sums().is_some() {
                huge(payload, at, bytes);
            }
        });
        let host = update.host(&format!("huge-{number}"), Mode::Bare);
        let report = update.pull_unsigned(&host);
        assert_eq!(report.differences, 0, "{at}");
        update.world.assert_arrived(&host, update.new);
    }
}

#[test]
fn more_content_than_the_index_says_is_not_taken() {
    let update = Update::new();
    let mut index = update.pack(true).index;
    for shard in &mut index.shards {
        shard.unpacked = Some(1000);
    }
    publish(&update, &mut index);
    let host = update.host("host", Mode::Bare);
    let report = update.pull_unsigned(&host);
    let refused = report.pack_refused.unwrap();
    assert!(refused.contains("more content than the index says"), "{refused}");
    update.world.assert_arrived(&host, update.new);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24),
        failure_persistence: None,
        ..proptest::prelude::ProptestConfig::default()
    })]

    /// 24 cases, each a pull whose shards have bytes changed at random, compressed again and listed with matching digests:
    /// only the checks of records and objects are left. More with `PROPTEST_CASES`.
    #[test]
    fn mutated_shards_bring_nothing_wrong_into_the_repo(
        flips in proptest::collection::vec((proptest::prelude::any::<usize>(), proptest::prelude::any::<u8>()), 1..6),
        cut in proptest::option::of(0..100_000usize),
    ) {
        let world = &*MUTATED;
        let mut index = world.index.clone();
        for shard in &mut index.shards {
            let mut bytes = world.shards[&shard.digest].clone();
            for (place, byte) in &flips {
                let place = place % bytes.len();
                bytes[place] = *byte;
            }
            bytes.truncate(cut.unwrap_or(usize::MAX));
            let file = zstd::encode_all(bytes.as_slice(), 1).unwrap();
            let raw = bytes.len() as u64;
            *shard = Shard { digest: Digest::of(&file), size: file.len() as u64, raw, ..shard.clone() };
            fs::write(world.update.world.repo.path().join(shard.path()), file).unwrap();
        }
        publish(&world.update, &mut index);
        let dir = tempfile::tempdir_in(world.update.world.dir.path()).unwrap();
        let copy = dir.path().join("host");
        run("cp", &["-a", world.host.path().to_str().unwrap(), copy.to_str().unwrap()]);
        let host = Repo::open(&copy).unwrap();
        world.update.pull_unsigned(&host);
        world.update.assert_arrived(&host);
        // Nothing was written beside the repo.
        proptest::prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        proptest::prop_assert!(kilobytes < 512 << 10, "{kilobytes} kB");
    }
}

/// What the cases of a property share: making releases takes longer than pulling them.
struct Mutated {
    update: Update,
    index: Index,
    /// Uncompressed.
    shards: std::collections::HashMap<Digest, Vec<u8>>,
    host: Repo,
}

static MUTATED: std::sync::LazyLock<Mutated> = std::sync::LazyLock::new(|| {
    let update = Update::small();
    let index = update.pack(true).index;
    let read = |shard: &Shard| fs::read(update.world.repo.path().join(shard.path())).unwrap();
    let shards =
        index.shards.iter().map(|shard| (shard.digest, zstd::decode_all(read(shard).as_slice()).unwrap()));
    let shards = shards.collect();
    let host = update.host("host", Mode::Bare);
    Mutated { update, index, shards, host }
});

/// Peak memory with a pair of files of 200 MB: `cargo test --test differences -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement: minutes, and 1 GB on the disk"]
fn large_files_take_bounded_memory() {
    let world = World::of(|root| fs::create_dir_all(root.join("usr/lib")).unwrap());
    // 25 MiB of noise, many times over with other bytes: 200 MiB that are quickly made.
    let large = |add: u8| -> Vec<u8> {
        let noise = noise(1, 25 << 20);
        (0..8u8)
            .flat_map(|turn| noise.iter().map(move |byte| byte.wrapping_mul(2 * turn + 1) ^ turn))
            .enumerate()
            .map(|(at, byte)| if at % 1001 == 0 { byte.wrapping_add(add) } else { byte })
            .collect()
    };
    fs::write(world.root.join("usr/lib/large-file"), large(0)).unwrap();
    let old = world.commit("1.0");
    fs::write(world.root.join("usr/lib/large-file"), large(1)).unwrap();
    let new = world.commit("1.1");
    let key = world.dir.path().join("key");
    world.key.save(&key).unwrap();
    let [repo, key] = [world.repo.path(), &key].map(|path| path.to_str().unwrap().to_owned());
    let (exe, old_hex, new_hex) = (env!("CARGO_BIN_EXE_rackstep"), old.hex(), new.hex());
    let arguments =
        ["-v", exe, "release", "pack", "--repo", &repo, "--from", &old_hex, "--key", &key, &new_hex];
    let output = std::process::Command::new("/usr/bin/time").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    eprintln!("{}{said}", String::from_utf8_lossy(&output.stdout));
    let line = said.lines().find(|line| line.contains("Maximum resident")).unwrap();
    let kilobytes: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(kilobytes < 256 << 10, "{kilobytes} kB");
    let host = world.host("host", Mode::Bare);
    world.pull(old, &host).unwrap();
    let report = world.pull(new, &host).unwrap();
    assert_eq!((report.differences, report.differences_failed), (1, 0));
    world.assert_arrived(&host, new);
}

/// Two trees of real files, the older and the newer (packages unpacked with `dpkg-deb -x`, say):
/// `RACKSTEP_TREES=older:newer cargo test --test differences -- --ignored --nocapture real`.
#[test]
#[ignore = "a measurement: wants two trees"]
fn real_trees_arrive() {
    let trees = std::env::var("RACKSTEP_TREES").expect("RACKSTEP_TREES=older:newer");
    let (older, newer) = trees.split_once(':').expect("RACKSTEP_TREES=older:newer");
    let mut world = World::of(|root| fs::create_dir_all(root).unwrap());
    world.root = older.into();
    let old = world.commit("1.0");
    world.root = newer.into();
    let new = world.commit("1.1");
    let begun = std::time::Instant::now();
    let options = PackOptions::default();
    let pack = write_pack(&world.repo, new, Some(old), Some(&world.key), &options, &Silent).unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("{} bytes, {} objects, made in {seconds:.1} s", pack.index.bytes, pack.index.objects);
    let host = world.host("host", Mode::Bare);
    world.pull(old, &host).unwrap();
    let report = world.pull(new, &host).unwrap();
    eprintln!("{} of them from differences", report.differences);
    assert_eq!((report.by, report.differences_failed), (By::Pack, 0));
    world.assert_arrived(&host, new);
}
