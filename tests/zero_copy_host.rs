//! A host whose containers run from the objects of its repo: boot, upgrade, rollback, verify and gc of releases with trees,
//! on a real sysroot and a real Docker daemon. Needs root, loop devices and a kernel of 6.8 or later.

#![allow(clippy::unwrap_used)]

#[path = "support/dockerd.rs"]
mod dockerd;
#[path = "support/release.rs"]
mod release;
#[path = "support/scratch_host.rs"]
mod scratch_host;
#[allow(dead_code)]
#[path = "transport/server.rs"]
mod server;
#[path = "support/tiny_image.rs"]
mod tiny_image;

use std::fs;
use std::path::PathBuf;

use rackstep::model::{Commit, Digest};
use rackstep::ostree::repo::Repo;
use release::{Recipe, Released, Releases};
use scratch_host::ScratchHost;
use server::Server;

struct World {
    releases: Releases,
    _server: Server,
    first: Released,
    host: ScratchHost,
}

impl World {
    /// A host of release 1 that nothing was imported on.
    fn new() -> Self {
        let releases = Releases::new();
        let server = Server::start(releases.repo.path());
        let first = releases.release(&Recipe::version(1), None);
        let host = ScratchHost::install(&server.url(), &first, &[]);
        Self { releases, _server: server, first, host }
    }

    fn boot(&mut self) -> scratch_host::Ran {
        let ran = self.host.reboot_docker();
        ran.succeeded();
        ran
    }

    fn records(&self) -> scratch_host::Ran {
        let ran = self.host.run("boot", &["--records"]);
        ran.succeeded();
        ran
    }

    /// Every image of the release is in Docker, and what Docker makes of it is what is pinned.
    fn reads_back(&self, released: &Released) -> bool {
        released.images.iter().all(|(_, image)| self.host.docker.reads_back(image))
    }

    fn object_of(&self, commit: Commit, layer: Digest, name: &str) -> PathBuf {
        let repo = Repo::open(&self.host.sysroot.join("ostree/repo")).unwrap();
        let path = format!("/usr/lib/rackstep/images/layers/{}/{name}", layer.hex());
        let mut found = None;
        repo.walk(commit, &mut |seen, object| {
            if seen == path {
                found = Some(repo.object_path(&object));
            }
        })
        .unwrap();
        found.unwrap()
    }
}

#[test]
fn a_host_lives_without_imports() {
    let mut world = World::new();
    assert_eq!(world.host.images(), Vec::<String>::new());
    let ran = world.boot();
    assert!(ran.stdout.contains("docker will have 2 images"), "{ran}");
    assert!(world.reads_back(&world.first));
    // A second time there is nothing to do.
    let ran = world.boot();
    assert!(ran.stdout.contains("layers: 0 mounted now, 0 not"), "{ran}");
    assert!(ran.stdout.contains("records of layers: 0 written, 0 dropped"), "{ran}");

    // Upgrade without Docker.
    let second = world.releases.release(&Recipe::version(2), None);
    world.host.docker.stop();
    let ran = world.host.run("upgrade", &["--commit"]);
    ran.succeeded();
    assert_eq!(world.host.bootable()[0].0, second.commit);
    // A container of the first release is left behind.
    world.records();
    world.host.docker.run();
    assert!(world.reads_back(&second));
    assert!(world.reads_back(&world.first), "the way back is there");
    let old = world.first.image("service").config;
    let exported = world.host.sysroot.join("exported.tar");
    let container = world.host.docker.client(&["create", &old.to_string(), "/nothing"]).unwrap();

    // Back and forth without Docker or network.
    world.host.docker.stop();
    world.host.run("rollback", &[]).succeeded();
    assert_eq!(world.host.bootable()[0].0, world.first.commit);
    world.host.run("rollback", &[]).succeeded();
    assert_eq!(world.host.bootable()[0].0, second.commit);

    // The third release takes the first one's place: its container keeps its objects.
    let third = world.releases.release(&Recipe::version(3), None);
    world.host.run("upgrade", &["--commit"]).succeeded();
    assert!(world.host.run("gc", &[]).code != 0, "gc does not guess what a stopped docker has");
    world.records();
    world.host.docker.run();
    let ran = world.host.run("gc", &[]);
    ran.succeeded();
    assert_eq!(
        world.host.bootable().iter().map(|(commit, _)| *commit).collect::<Vec<_>>(),
        [third.commit, second.commit]
    );
    assert!(ran.stdout.contains(&format!("release {} stays", world.first.commit.short())), "{ran}");
    world.host.docker.client(&["export", "-o", exported.to_str().unwrap(), &container]).unwrap();
    world.host.assert_repo_sound();
    // And after a restart of the host, as far as Docker is concerned.
    world.boot();
    world.host.docker.client(&["export", "-o", exported.to_str().unwrap(), &container]).unwrap();

    // It goes: so does what it stood on.
    world.host.docker.client(&["rm", &container]).unwrap();
    let before = world.host.layers().mounted().unwrap().len();
    let ran = world.host.run("gc", &[]);
    ran.succeeded();
    assert!(!ran.stdout.contains("stays: docker still has layers"), "{ran}");
    assert_eq!(world.host.layers().mounted().unwrap().len(), before - 1);
    let refs = Repo::open(&world.host.sysroot.join("ostree/repo")).unwrap().refs().unwrap();
    assert!(refs.iter().all(|(_, commit)| *commit != world.first.commit), "{refs:?}");
    assert!(world.reads_back(&third));
    assert!(world.reads_back(&second));
}

#[test]
fn a_bad_object_that_two_releases_share_stops_the_upgrade() {
    let mut world = World::new();
    world.boot();
    let before = world.host.entries();
    world.releases.release(&Recipe::version(2), None);
    // The base layer is the same in both, so it is not pulled again.
    let base = world.first.image("database").layers[0].diff_id;
    for name in ["root/base", "tree", "sums", "skeleton"] {
        let object = world.object_of(world.first.commit, base, name);
        let good = fs::read(&object).unwrap();
        fs::write(&object, &good[..good.len() - 1]).unwrap();
        let ran = world.host.run("upgrade", &["--commit"]);
        ran.failed_with(3, &["of its objects are bad", name, "verify --repair"]);
        assert_eq!(world.host.entries(), before, "{name}");
        fs::write(&object, &good).unwrap();
    }
    world.host.run("upgrade", &["--commit"]).succeeded();
}

#[test]
fn a_layer_that_cannot_be_mounted_keeps_one_image_away() {
    let mut world = World::new();
    let layer = world.first.image("service").layers[1].diff_id;
    let tree = world.object_of(world.first.commit, layer, "tree");
    let good = fs::read(&tree).unwrap();
    fs::write(&tree, vec![0; good.len()]).unwrap();
    let ran = world.boot();
    assert!(ran.stdout.contains("1 in docker's records, 1 not"), "{ran}");
    assert_eq!(world.host.images(), [world.first.image("database").config.to_string()]);
    fs::write(&tree, &good).unwrap();
    world.boot();
    assert!(world.reads_back(&world.first));
}

/// Damage to one of Docker's records, by a path below the data root.
fn records_of(world: &World, layer: usize) -> Vec<(&'static str, PathBuf)> {
    let image = world.first.image("service");
    let chain = image.chains()[layer];
    let root = world.host.docker.data_root();
    let layerdb = root.join("image/overlay2/layerdb/sha256").join(chain.hex());
    let driver = root.join("overlay2").join(fs::read_to_string(layerdb.join("cache-id")).unwrap());
    let link = root.join("overlay2/l").join(fs::read_to_string(driver.join("link")).unwrap());
    vec![
        ("diff", layerdb.join("diff")),
        ("cache-id", layerdb.join("cache-id")),
        ("parent", layerdb.join("parent")),
        ("tar-split.json.gz", layerdb.join("tar-split.json.gz")),
        ("layerdb", layerdb),
        ("link", driver.join("link")),
        ("lower", driver.join("lower")),
        ("/diff is", driver.join("diff")),
        ("overlay2/", driver),
        ("overlay2/l/", link),
        ("repositories.json does not name", root.join("image/overlay2/repositories.json")),
    ]
}

#[test]
fn each_of_dockers_records_is_named_and_written_anew() {
    let mut world = World::new();
    world.boot();
    world.host.run("verify", &[]).succeeded();
    for (name, path) in records_of(&world, 1) {
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path).unwrap();
        } else if path.is_symlink() {
            fs::remove_file(&path).unwrap();
        } else if name.starts_with("repositories") {
            fs::write(&path, br#"{"Repositories":{}}"#).unwrap();
        } else {
            fs::write(&path, b"rot").unwrap();
        }
        // Docker as it is after a restart of the host, and nobody has mended anything.
        world.host.docker.stop();
        world.host.docker.run();
        let ran = world.host.run("verify", &[]);
        ran.failed_with(3, &["faults in mounts and docker's records"]);
        assert!(ran.stdout.contains(name), "{name}: {ran}");
        assert!(world.host.docker.reads_back(world.first.image("database")), "{name}: the other image");
        let ran = world.host.run("verify", &["--repair"]);
        ran.failed_with(1, &["stop it first", "--stop-services"]);
        let ran = world.boot();
        assert!(ran.stdout.contains("2 in docker's records, 0 not"), "{name}: {ran}");
        world.host.run("verify", &[]).succeeded();
    }
}

#[test]
fn layers_are_mounted_anew_while_docker_runs() {
    let mut world = World::new();
    world.boot();
    let layer = world.first.image("service").layers[1].diff_id;
    world.host.layers().unmount(layer).unwrap();
    let ran = world.host.run("verify", &[]);
    ran.failed_with(3, &["faults in mounts"]);
    assert!(ran.stdout.contains(&format!("image service: layer {layer}: it is not mounted")), "{ran}");
    world.host.run("verify", &["--repair"]).succeeded();
    assert!(world.reads_back(&world.first));

    // A mount shows what the damaged image of metadata says until it is mounted anew.
    let tree = world.object_of(world.first.commit, layer, "tree");
    let good = fs::read(&tree).unwrap();
    fs::write(&tree, vec![0; good.len()]).unwrap();
    let ran = world.host.run("verify", &[]);
    ran.failed_with(3, &["faults in mounts"]);
    assert!(ran.stdout.contains("tree is damaged or lost"), "{ran}");
    let ran = world.host.run("verify", &["--repair"]);
    ran.succeeded();
    assert!(ran.stdout.contains("mended: 1 layers mounted, 0 records written"), "{ran}");
    assert_eq!(fs::read(world.object_of(world.first.commit, layer, "tree")).unwrap(), good);
    assert!(world.reads_back(&world.first));
}
