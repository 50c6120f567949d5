//! Releases on their way: committed on all cores, signed, packed, pulled; with real ostree repos and a server that cuts,
//! corrupts and lies. Needs root: owners and capabilities are part of what travels.

#![allow(clippy::unwrap_used)]

#[path = "transport/server.rs"]
mod server;
#[path = "transport/tree.rs"]
mod tree;
#[path = "transport/world.rs"]
mod world;

use std::fs;
use std::path::{Path, PathBuf};

use rackstep::formats::pack::Index;
use rackstep::model::progress::Silent;
use rackstep::ostree::repo::{CommitOptions, MetaValue, Mode, Repo, RepoError};
use rackstep::ostree::signature::{SecretKey, SignatureError, sign_commit};
use rackstep::release::pack::{PackOptions, write_pack};
use rackstep::release::pull::{By, PullError, PullRequest, pull};
use server::{Faults, Server};
use tree::{assert_same_tree, noise, odd_tree, ostree};
use world::{REF, World, assert_nothing_left_behind, assert_refused, options};

#[test]
fn commit_has_the_checksum_that_ostree_gives() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    odd_tree(&root);
    for mode in [Mode::Archive, Mode::Bare] {
        let path = dir.path().join(format!("{mode:?}"));
        let repo = Repo::create(&path, mode).unwrap();
        let report = repo.commit_tree(&root, &options("test/odd"), &Silent).unwrap();
        ostree(&path, &["fsck"]);

        let theirs = dir.path().join(format!("{mode:?}-theirs"));
        let peer = Repo::create(&theirs, mode).unwrap();
        let tree = format!("--tree=dir={}", root.display());
        let checksum = ostree(
            &theirs,
            &["commit", "-b", "test/odd", "-s", "a release", "--timestamp=@1700000000", &tree],
        );
        assert_eq!(report.commit.hex(), checksum, "{mode:?}");
        let mut ours = repo.walk_objects(report.commit).unwrap();
        let mut peers = peer.walk_objects(report.commit).unwrap();
        ours.sort();
        peers.sort();
        assert_eq!(ours, peers);

        let again = repo.commit_tree(&root, &options("test/odd"), &Silent).unwrap();
        assert!(again.known);
        assert_eq!((again.commit, again.written), (report.commit, 0));
        assert_eq!(repo.read_file(report.commit, "/usr/bin/link").unwrap().len(), 3 << 20);
        assert_nothing_left_behind(&repo);
        if mode == Mode::Bare {
            let out = dir.path().join("out");
            ostree(&path, &["checkout", "test/odd", out.to_str().unwrap()]);
            assert_same_tree(&root, &out);
        }
    }
}

#[test]
fn revisions() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("usr/lib/rackstep")).unwrap();
    let repo = Repo::create(&dir.path().join("repo"), Mode::Archive).unwrap();
    let mut commits = Vec::new();
    for (version, timestamp) in [("1.0", 100), ("1.1", 200)] {
        fs::write(root.join("version"), version).unwrap();
        let options = CommitOptions {
            timestamp,
            metadata: vec![("version".into(), MetaValue::Text(version.into()))],
            ..options("os/x")
        };
        commits.push(repo.commit_tree(&root, &options, &Silent).unwrap().commit);
    }
    repo.publish_releases().unwrap();
    let cases = [("os/x", 1), ("1.0", 0), ("1.1", 1), (&commits[0].hex(), 0), (&commits[1].hex()[..12], 1)];
    for (text, expected) in cases {
        assert_eq!(repo.resolve(text).unwrap(), commits[expected], "{text}");
    }
    for text in ["os/y", "2.0", "abc", ""] {
        assert!(matches!(repo.resolve(text), Err(RepoError::NoRevision { .. })), "{text:?}");
    }
    let listed: Vec<_> = repo.releases().unwrap().into_iter().map(|l| (l.commit, l.refs.len())).collect();
    assert_eq!(listed, [(commits[1], 1), (commits[0], 0)]);
    assert!(ostree(repo.path(), &["summary", "--view"]).contains(&commits[1].hex()));
}

#[test]
fn what_ostree_cannot_hold_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(&root).unwrap();
    tree::run("mkfifo", &[root.join("pipe").to_str().unwrap()]);
    let repo = Repo::create(&dir.path().join("repo"), Mode::Archive).unwrap();
    let error = repo.commit_tree(&root, &options("x"), &Silent).unwrap_err();
    assert!(error.to_string().ends_with("pipe cannot be in a commit: it is a pipe"), "{error}");
    assert_eq!(repo.commits().unwrap(), []);
    assert_eq!(repo.refs().unwrap(), []);
    assert_nothing_left_behind(&repo);
}

#[test]
fn a_pack_brings_everything_in_either_mode() {
    let world = World::new();
    let commit = world.commit("1.0");
    let pack = world.pack(commit, None);
    assert!(pack.index.shards.len() > 2, "{pack:?}");
    for mode in [Mode::Bare, Mode::Archive] {
        world.server.set(Faults::default());
        let host = world.host(&format!("host-{mode:?}"), mode);
        let report = world.pull(commit, &host).unwrap();
        assert_eq!((report.by, &report.pack_refused), (By::Pack, &None));
        assert_eq!(report.objects, pack.index.objects);
        assert_eq!(report.info.version.as_deref(), Some("1.0"));
        world.assert_arrived(&host, commit);
        if mode == Mode::Bare {
            world.assert_same_as_root(&host, commit);
        }
        assert_eq!(world.server.sent(".filez").len(), 0);
        // Again: nothing is asked for, since all is here and the signature is.
        world.server.set(Faults { lose: Some(String::new()), ..Faults::default() });
        assert_eq!(world.pull(commit, &host).unwrap().by, By::Nothing);
    }
}

#[test]
fn the_same_commit_gives_the_same_pack() {
    let world = World::new();
    let commit = world.commit("1.0");
    assert_eq!(world.pack(commit, None), world.pack(commit, None));
}

#[test]
fn an_update_brings_what_changed() {
    let world = World::new();
    let old = world.commit("1.0");
    world.pack(old, None);
    let host = world.host("host", Mode::Bare);
    world.pull(old, &host).unwrap();
    fs::write(world.root.join("usr/share/a"), b"another a").unwrap();
    fs::write(world.root.join("usr/lib/new"), noise(9, 100_000)).unwrap();
    let new = world.commit("1.1");
    world.pack(new, None);
    let update = world.pack(new, Some(old));
    assert!(update.index.objects < 10, "{update:?}");
    world.server.set(Faults::default());
    let report = world.pull(new, &host).unwrap();
    assert_eq!((report.by, report.from), (By::Pack, Some(old)));
    assert!(report.bytes < 120_000, "{report:?}");
    world.assert_arrived(&host, new);
    world.assert_same_as_root(&host, new);
}

#[test]
fn without_a_fitting_pack_objects_come_one_by_one() {
    let world = World::new();
    let old = world.commit("1.0");
    let hosts = [world.host("bare", Mode::Bare), world.host("archive", Mode::Archive)];
    for host in &hosts {
        let report = world.pull(old, host).unwrap();
        assert_eq!((report.by, report.pack_refused.as_deref()), (By::Objects, None));
        world.assert_arrived(host, old);
    }
    world.assert_same_as_root(&hosts[0], old);
    fs::write(world.root.join("usr/share/a"), b"another a").unwrap();
    let new = world.commit("1.1");
    world.pack(new, None);
    // A whole pack is there, but a host with the release before needs a handful of objects.
    let report = world.pull(new, &hosts[0]).unwrap();
    assert_eq!(report.by, By::Objects);
    assert!(report.objects < 10, "{report:?}");
    world.assert_arrived(&hosts[0], new);
}

#[test]
fn a_cut_pull_goes_on_and_fetches_no_shard_twice() {
    let world = World::new();
    let commit = world.commit("1.0");
    let pack = world.pack(commit, None);
    let host = world.host("host", Mode::Bare);
    let mut complete: Vec<String> = Vec::new();
    let (mut rounds, mut cut) = (0, true);
    while cut {
        rounds += 1;
        assert!(rounds < 40, "makes no headway");
        let largest = pack.index.shards.iter().map(|shard| shard.size).max().unwrap();
        world.server.set(Faults { cut_after: Some(largest as usize + 50_000), ..Faults::default() });
        match world.pull(commit, &host) {
            Ok(report) => {
                cut = false;
                assert_eq!(report.by, By::Pack);
                assert_eq!(report.shards_kept as usize, complete.len());
            }
            Err(error) => {
                assert!(error.is_resumable(), "{error:?}");
                assert!(matches!(error, PullError::Cut { .. }), "{error:?}");
                assert_refused(&host, commit);
            }
        }
        complete.extend(world.server.sent("packs/shards").into_keys());
    }
    assert!(rounds > 1);
    let times = complete.len();
    complete.sort();
    complete.dedup();
    assert_eq!(complete.len(), times, "a shard was fetched twice");
    world.assert_arrived(&host, commit);
    world.assert_same_as_root(&host, commit);
}

#[test]
fn cut_objects_go_on_too() {
    let world = World::new();
    let commit = world.commit("1.0");
    let host = world.host("host", Mode::Bare);
    world.server.set(Faults { cut_after: Some(3000), ..Faults::default() });
    let error = world.pull(commit, &host).unwrap_err();
    assert!(error.is_resumable(), "{error:?}");
    assert_refused(&host, commit);
    let had = world.server.sent(".filez");
    world.server.set(Faults::default());
    assert_eq!(world.pull(commit, &host).unwrap().by, By::Objects);
    let fetched = world.server.sent(".filez");
    assert!(had.keys().all(|path| !fetched.contains_key(path)));
    world.assert_arrived(&host, commit);
}

#[test]
fn a_broken_pack_is_told_and_objects_come_instead() {
    let world = World::new();
    let commit = world.commit("1.0");
    let index = world.pack(commit, None).index;
    let shard = index.shards[0].digest.hex();
    let lying = |change: &dyn Fn(&mut Index)| {
        let mut index = index.clone();
        change(&mut index);
        serde_json::to_vec(&index).unwrap()
    };
    let lie = |part: &str, bytes: Vec<u8>| Faults { lie: Some((part.into(), bytes)), ..Faults::default() };
    let flip = |part: &str| Faults { flip: Some(part.into()), ..Faults::default() };
    let lose = |part: &str| Faults { lose: Some(part.into()), ..Faults::default() };
    let cases = [
        ("flipped shard", flip(&shard), "shard sha256:"),
        ("lost shard", lose(&shard), "not found"),
        ("empty shard", lie(&shard, vec![]), "shard sha256:"),
        ("nonsense shard", lie(&shard, noise(3, 5000)), "shard sha256:"),
        ("shard of zeros", lie(&shard, zstd::encode_all([0u8; 4096].as_slice(), 1).unwrap()), "format 1"),
        ("flipped index", flip("full.json"), "full.json"),
        ("index not there", lose("full.json"), "not there"),
        ("unsigned index", lose("full.json.sig"), "not signed"),
        ("index of another", lie("full.json", lying(&|index| index.raw = 1)), "none by the 1 trusted"),
        ("nonsense list", lie("list.json", b"{".to_vec()), "does not parse"),
        ("newer list", lie("list.json", b"{\"format\":2}".to_vec()), "has format 2, expected 1"),
    ];
    for (number, (what, faults, reason)) in cases.into_iter().enumerate() {
        world.server.set(faults);
        let host = world.host(&format!("host-{number}"), Mode::Bare);
        let report = world.pull(commit, &host).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let refused = report.pack_refused.unwrap_or_else(|| panic!("{what}: taken"));
        assert!(refused.contains(reason), "{what}: {refused}");
        world.server.set(Faults::default());
        world.assert_arrived(&host, commit);
    }
}

#[test]
fn an_unsigned_index_may_lie_without_effect() {
    let world = World::new();
    let commit = world.commit("1.0");
    let index = world.pack(commit, None).index;
    let mut small = index.clone();
    small.shards[0].raw = 100;
    small.raw = small.shards.iter().map(|shard| shard.raw).sum();
    let mut swapped = index;
    swapped.shards.remove(0);
    swapped.bytes = swapped.shards.iter().map(|shard| shard.size).sum();
    swapped.raw = swapped.shards.iter().map(|shard| shard.raw).sum();
    swapped.objects = swapped.shards.iter().map(|shard| shard.objects).sum();
    for (number, index) in [small, swapped].into_iter().enumerate() {
        let bytes = serde_json::to_vec(&index).unwrap();
        world.server.set(Faults { lie: Some(("full.json".into(), bytes)), ..Faults::default() });
        let host = world.host(&format!("host-{number}"), Mode::Bare);
        let request = PullRequest { keys: vec![], ..world.request(commit) };
        pull(&request, &host, &Silent).unwrap();
        world.assert_arrived(&host, commit);
    }
}

#[test]
fn a_damaged_object_is_named_and_nothing_is_taken() {
    let world = World::new();
    let commit = world.commit("1.0");
    let large = world.repo.list_dir(commit, "usr/lib").unwrap();
    let (_, digest) = large.files.iter().find(|(name, _)| name == "large").unwrap();
    let hex = digest.hex();
    let part = format!("{}.filez", &hex[2..]);
    let host = world.host("host", Mode::Bare);
    world.server.set(Faults { flip: Some(part.clone()), ..Faults::default() });
    let error = world.pull(commit, &host).unwrap_err();
    assert!(
        error.to_string().contains(&format!("damaged object {hex}.file: expected digest {hex}, got ")),
        "{error}"
    );
    assert_refused(&host, commit);
    world.server.set(Faults { lose: Some(part), ..Faults::default() });
    let error = world.pull(commit, &host).unwrap_err();
    assert!(error.to_string().contains(&format!("lacks object {hex}.file of commit")), "{error}");
    assert_refused(&host, commit);
    world.server.set(Faults { flip: Some(".commit".into()), ..Faults::default() });
    let error = world.pull(commit, &host).unwrap_err();
    assert!(error.to_string().contains(&format!("damaged object {commit}.commit: ")), "{error}");
    world.server.set(Faults::default());
    world.pull(commit, &host).unwrap();
    world.assert_arrived(&host, commit);
}

#[test]
fn only_trusted_releases_are_taken() {
    let world = World::new();
    let commit = world.commit("1.0");
    let host = world.host("host", Mode::Bare);
    let stranger =
        PullRequest { keys: vec![SecretKey::generate().unwrap().public()], ..world.request(commit) };
    let error = pull(&stranger, &host, &Silent).unwrap_err();
    assert!(matches!(error, PullError::Signature(SignatureError::Untrusted { .. })), "{error:?}");
    for faults in [
        Faults { lose: Some(".commitmeta".into()), ..Faults::default() },
        Faults { flip: Some(".commitmeta".into()), ..Faults::default() },
    ] {
        world.server.set(faults);
        let error = world.pull(commit, &host).unwrap_err();
        assert!(matches!(error, PullError::Signature(_)), "{error:?}");
        assert_eq!(host.commits().unwrap(), []);
    }
}

#[test]
fn signatures_are_where_libostree_looks_for_them() {
    let world = World::new();
    let commit = world.commit("1.0");
    let shown = ostree(
        world.repo.path(),
        &["show", "--print-detached-metadata-key=ostree.sign.ed25519", &commit.hex()],
    );
    assert!(shown.starts_with("[[byte 0x") || shown.starts_with("[b"), "{shown}");
    assert!(!sign_commit(&world.repo, commit, &world.key).unwrap(), "signed once is enough");
    assert!(sign_commit(&world.repo, commit, &SecretKey::generate().unwrap()).unwrap());
}

#[test]
fn a_full_disk_is_named_and_what_came_is_removed() {
    let world = World::new();
    let commit = world.commit("1.0");
    let mount = world.dir.path().join("small");
    fs::create_dir(&mount).unwrap();
    tree::run("mount", &["-t", "tmpfs", "-o", "size=5m", "tmpfs", mount.to_str().unwrap()]);
    let _unmount = Unmount(&mount);
    let host = Repo::create(&mount.join("repo"), Mode::Bare).unwrap();
    let before = host.free_bytes().unwrap();

    let error = world.pull(commit, &host).unwrap_err();
    // Each object claims its room before it is received.
    assert!(matches!(&error, PullError::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().ends_with(" are free"), "{error}");
    assert_refused(&host, commit);
    assert!(before - host.free_bytes().unwrap() < 100_000, "space was not given back");

    world.pack(commit, None);
    let error = world.pull(commit, &host).unwrap_err();
    assert!(matches!(&error, PullError::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().ends_with(" are free"), "{error}");
    assert_refused(&host, commit);
}

struct Unmount<'p>(&'p Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        tree::run("umount", &[self.0.to_str().unwrap()]);
    }
}

/// Ratios against libostree, on a tree named by `MEASURE`: `MEASURE=/usr/share cargo test --test transport -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement: minutes, and wants a quiet machine"]
fn measure() {
    use std::time::Instant;
    let root = PathBuf::from(std::env::var("MEASURE").expect("MEASURE names a tree"));
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let time = |what: &str, act: &mut dyn FnMut()| {
        let (began, cpu) = (Instant::now(), cpu_seconds());
        act();
        let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        eprintln!("{what:<44} {took:>8.2} s {cpu:>8.2} s CPU");
        took
    };
    let key = SecretKey::generate().unwrap();
    // Read once, so that nobody pays for the disk.
    time("page cache", &mut || drop(tree::run("tar", &["-cf", "/dev/null", root.to_str().unwrap()])));
    let repo = Repo::create(&dir.path().join("ours"), Mode::Archive).unwrap();
    let peer = Repo::create(&dir.path().join("theirs"), Mode::Archive).unwrap();
    let mut commit = None;
    let ours = time("commit_tree, cold", &mut || {
        commit = Some(repo.commit_tree(&root, &options(REF), &Silent).unwrap());
    });
    let report = commit.unwrap();
    eprintln!("  {} files, {} bytes, {} objects", report.files, report.bytes, report.written);
    let commit = report.commit;
    sign_commit(&repo, commit, &key).unwrap();
    let warm = time("commit_tree, all there", &mut || {
        repo.commit_tree(&root, &options(REF), &Silent).unwrap();
    });
    let tree = format!("--tree=dir={}", root.display());
    let arguments = ["commit", "-b", REF, "-s", "a release", "--timestamp=@1700000000", &tree];
    let mut theirs_commit = String::new();
    let theirs = time("ostree commit, cold", &mut || theirs_commit = ostree(peer.path(), &arguments));
    assert_eq!(theirs_commit, commit.hex());
    let theirs_warm = time("ostree commit, all there", &mut || drop(ostree(peer.path(), &arguments)));
    let mut pack = None;
    time("write_pack", &mut || {
        pack = Some(write_pack(&repo, commit, None, Some(&key), &PackOptions::default(), &Silent).unwrap());
    });
    let index = pack.unwrap().index;
    eprintln!("  {} bytes, {} shards", index.bytes, index.shards.len());
    let server = Server::start(repo.path());
    let request = PullRequest {
        repo_url: server.url(),
        commit,
        keys: vec![key.public()],
        reference: Some("r:x".into()),
    };
    let host = Repo::create(&dir.path().join("host"), Mode::Bare).unwrap();
    let by_pack = time("pull by pack", &mut || {
        assert_eq!(pull(&request, &host, &Silent).unwrap().by, By::Pack);
    });
    server.set(Faults { lose: Some("packs/".into()), ..Faults::default() });
    let host = Repo::create(&dir.path().join("host-objects"), Mode::Bare).unwrap();
    let by_objects = time("pull by objects", &mut || {
        assert_eq!(pull(&request, &host, &Silent).unwrap().by, By::Objects);
    });
    let host = Repo::create(&dir.path().join("host-ostree"), Mode::Bare).unwrap();
    ostree(host.path(), &["remote", "add", "--no-gpg-verify", "r", &server.url()]);
    let by_ostree = time("ostree pull", &mut || drop(ostree(host.path(), &["pull", "r", REF])));
    eprintln!("commit, cold: {:.1} times as fast; all there: {:.1}", theirs / ours, theirs_warm / warm);
    eprintln!(
        "pull: by pack {:.1} times as fast as ostree pull, by objects {:.1}",
        by_ostree / by_pack,
        by_ostree / by_objects
    );
    let memory = fs::read_to_string("/proc/self/status").unwrap();
    eprintln!("{}", memory.lines().find(|line| line.starts_with("VmHWM")).unwrap());
}

/// CPU time of this process and of the children that it waited for.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime, stime, cutime, cstime in hundredths.
    fields[11..15].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}
