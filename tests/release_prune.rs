//! `rackstep release prune`: what goes, what stays, and what hosts notice of it. Needs root.

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

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rackstep::formats::pack::index::SHARDS_DIR;
use rackstep::model::Commit;
use rackstep::model::progress::Silent;
use rackstep::ostree::repo::{Mode, Repo, RepoError, Staging};
use rackstep::release::pack::{PackOptions, write_pack};
use rackstep::release::pull::By;
use tree::{noise, ostree};
use world::{REF, World};

/// A repo with two packed releases, the second followed by hosts, and the pack between them.
struct Served {
    world: World,
    older: Commit,
    newer: Commit,
}

impl Served {
    fn new() -> Self {
        let world = World::new();
        fs::write(world.root.join("only-in-1.0"), noise(7, 300_000)).unwrap();
        let older = world.commit("1.0");
        world.repo.set_ref("releases/os/1.0", older).unwrap();
        fs::write(world.root.join("only-in-1.1"), noise(8, 300_000)).unwrap();
        fs::remove_file(world.root.join("only-in-1.0")).unwrap();
        let newer = world.commit("1.1");
        world.repo.set_ref("releases/os/1.1", newer).unwrap();
        world.repo.publish_releases().unwrap();
        for (to, from) in [(older, None), (newer, None), (newer, Some(older))] {
            world.pack(to, from);
        }
        Self { world, older, newer }
    }

    fn prune(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackstep"));
        command.args(["release", "prune", "--repo"]).arg(self.world.repo.path());
        command.args(arguments).output().unwrap()
    }

    fn pruned(&self, arguments: &[&str]) -> String {
        let output = self.prune(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ostree(self.world.repo.path(), &["fsck"]);
        String::from_utf8(output.stdout).unwrap()
    }

    fn shards(&self) -> BTreeSet<String> {
        names(&self.world.repo.path().join(SHARDS_DIR))
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Every file of a repo but for what locks leave.
fn everything(repo: &Repo) -> BTreeSet<String> {
    let found = tree::run(
        "find",
        &[repo.path().to_str().unwrap(), "-path", "*/state", "-prune", "-o", "-type", "f", "-print"],
    );
    found.lines().map(str::to_owned).collect()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn leftovers_go_and_every_pack_still_arrives() {
    let served = Served::new();
    let world = &served.world;
    let before = served.shards();
    // Written anew at another level: the old shards are nobody's.
    let options = PackOptions { level: 1, shard_target: 512 << 10, ..PackOptions::default() };
    let mut named = BTreeSet::new();
    for to in [served.older, served.newer] {
        let written = write_pack(&world.repo, to, None, Some(&world.key), &options, &Silent).unwrap();
        named.extend(written.index.shards.iter().map(|shard| shard.digest.hex()));
    }
    let unfinished = world.repo.path().join(SHARDS_DIR).join(".tmp-killed");
    fs::write(&unfinished, "half").unwrap();
    assert!(before.is_subset(&served.shards()) && !before.is_superset(&named));

    let files = everything(&world.repo);
    let dry = served.pruned(&["--dry-run"]);
    assert!(dry.contains("and 1 unfinished files") && dry.contains("nothing changed"), "{dry}");
    assert_eq!(everything(&world.repo), files);
    served.pruned(&[]);
    assert!(!unfinished.exists());
    let left = served.shards();
    assert!(named.is_subset(&left) && !before.is_subset(&left));
    let update: Vec<_> = left.difference(&named).collect();
    assert!(!update.is_empty(), "the pack between the releases stays");

    let host = world.host("host", Mode::Bare);
    for commit in [served.older, served.newer] {
        assert_eq!(world.pull(commit, &host).unwrap().by, By::Pack);
        world.assert_arrived(&host, commit);
    }
    let fresh = world.host("fresh", Mode::Bare);
    assert_eq!(world.pull(served.newer, &fresh).unwrap().by, By::Pack);
    assert!(served.pruned(&[]).contains("0 releases deleted, 2 kept, 0 bytes freed"));
}

#[test]
fn a_host_of_a_deleted_release_still_takes_the_update() {
    let served = Served::new();
    let world = &served.world;
    let host = world.host("host", Mode::Bare);
    world.pull(served.older, &host).unwrap();
    let (objects, shards) = (everything(&world.repo).len(), served.shards());

    let output = served.pruned(&["--delete", "1.0", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!(answer["plan"]["releases"][0]["commit"], served.older.hex());
    assert!(answer["bytes_freed"].as_u64().unwrap() > 0);
    assert!(everything(&world.repo).len() < objects);
    assert!(served.shards().is_subset(&shards) && served.shards().len() < shards.len());
    assert_eq!(world.repo.resolve_ref("releases/os/1.0").unwrap(), None);
    assert!(!ostree(world.repo.path(), &["summary", "-v"]).contains("releases/os/1.0"));
    assert_eq!(world.repo.releases().unwrap().len(), 1);

    assert_eq!(world.pull(served.newer, &host).unwrap().by, By::Pack);
    world.assert_arrived(&host, served.newer);
    assert!(host.commit_info(served.older).is_ok(), "what the host has is its own");
    let late = world.host("late", Mode::Bare);
    world.pull(served.older, &late).unwrap_err();
    assert_eq!(late.refs().unwrap(), []);
}

#[test]
fn what_hosts_follow_is_refused_and_the_newest_are_kept() {
    let served = Served::new();
    let files = everything(&served.world.repo);
    let refused = served.prune(&["--delete", "1.1"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(told(&refused).contains(REF) && told(&refused).contains("nothing changed"), "{}", told(&refused));
    let unknown = served.prune(&["--delete", "7.7"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", told(&unknown));
    assert_eq!(everything(&served.world.repo), files);
    let kept = served.pruned(&["--keep", "1"]);
    assert!(kept.contains("1 releases deleted, 1 kept"), "{kept}");
    assert_eq!(served.world.repo.resolve(REF).unwrap(), served.newer);
    assert!(matches!(served.world.repo.resolve("1.0"), Err(RepoError::NoRevision { .. })));
}

#[test]
fn nothing_goes_while_somebody_writes() {
    let served = Served::new();
    let repo = &served.world.repo;
    let staging = Staging::open(repo, 1).unwrap();
    let busy = served.prune(&["--delete", "1.0"]);
    assert!(!busy.status.success() && told(&busy).contains("another rackstep process"), "{}", told(&busy));
    drop(staging);
    let packing = repo.lock_for_packing().unwrap();
    assert!(!served.prune(&["--delete", "1.0"]).status.success());
    // Several may write packs, and only look.
    let second = repo.lock_for_packing().unwrap();
    served.pruned(&["--delete", "1.0", "--dry-run"]);
    drop((packing, second));
    served.pruned(&["--delete", "1.0"]);
}

#[test]
fn an_interrupted_deletion_is_ended_and_an_unreadable_pack_ends_it() {
    let served = Served::new();
    let repo = &served.world.repo;
    // As a cut leaves it: refs and commit gone, packs and objects not.
    repo.drop_ref("releases/os/1.0").unwrap();
    fs::remove_file(repo.object_path(&rackstep::model::ObjectName::of_commit(served.older))).unwrap();
    let index = repo.path().join(format!("packs/{}/full.json", served.newer));
    let good = fs::read(&index).unwrap();
    fs::write(&index, &good[..good.len() / 2]).unwrap();
    let files = everything(repo);
    let unreadable = served.prune(&[]);
    assert!(!unreadable.status.success() && told(&unreadable).contains("full.json"), "{}", told(&unreadable));
    assert_eq!(everything(repo), files);
    fs::write(&index, &good).unwrap();
    let plan = served.pruned(&[]);
    assert!(plan.contains(&format!("remove the packs of {}", served.older.short())), "{plan}");
    assert!(!repo.path().join(format!("packs/{}", served.older)).exists());
    let fresh = served.world.host("fresh", Mode::Bare);
    assert_eq!(served.world.pull(served.newer, &fresh).unwrap().by, By::Pack);
}

#[test]
fn a_hosts_own_repo_is_not_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let repo = Repo::create(dir.path(), Mode::Bare).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackstep"));
    let output = command.args(["release", "prune", "--repo"]).arg(repo.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(told(&output).contains("rackstep gc"), "{}", told(&output));
}
