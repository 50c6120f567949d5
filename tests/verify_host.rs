//! `rackstep verify` and `verify --repair` on a host whose every part is real but the machine: bytes flipped in the repo and in
//! checkouts, with the network and without. (Docker's records: `zero_copy_host.rs`.) Needs root.

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
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rackstep::ostree::sysroot::Sysroot;
use release::{Recipe, Released, Releases};
use scratch_host::ScratchHost;
use server::Server;

/// A port where nothing listens.
const NOBODY: &str = "http://127.0.0.1:9/repo";

struct World {
    releases: Releases,
    server: Server,
    released: Released,
    host: ScratchHost,
}

impl World {
    fn new() -> Self {
        let releases = Releases::new();
        let server = Server::start(releases.repo.path());
        let released = releases.release(&Recipe::version(1), None);
        let mut host = ScratchHost::install(&server.url(), &released, &[]);
        host.reboot_docker().succeeded();
        Self { releases, server, released, host }
    }

    /// Nothing answers where the host expects its repo.
    fn without_network() -> Self {
        let world = Self::new();
        world.follow(NOBODY);
        world
    }

    /// The host's repo is at this URL.
    fn follow(&self, url: &str) {
        let config = self.checkout().join("etc/rackstep/host.json");
        let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        text["repo"] = url.into();
        fs::write(&config, text.to_string()).unwrap();
    }

    fn checkout(&self) -> PathBuf {
        let deployments = Sysroot::open(&self.host.sysroot).unwrap().deployments().unwrap();
        self.host.sysroot.join(&deployments[0].path)
    }

    /// A file of the service's own layer in the release.
    fn image_file(&self, name: &str) -> PathBuf {
        let layer = self.released.image("service").layers[1].diff_id.hex();
        self.checkout().join("usr/lib/rackstep/images/layers").join(layer).join(name)
    }

    fn verify(&self, arguments: &[&str]) -> scratch_host::Ran {
        self.host.run("verify", arguments)
    }

    /// The host is whole again: by our own eyes and by libostree's.
    #[track_caller]
    fn assert_whole(&self) {
        self.verify(&[]).succeeded();
        self.host.assert_repo_sound();
        self.host.assert_bootable(&[self.released.commit]);
    }
}

/// Flips one bit in the middle of a file, whatever other names it has.
fn flip(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).unwrap();
}

#[test]
fn a_flipped_byte_is_mended_from_its_other_copy_and_else_from_the_repo() {
    let world = World::without_network();
    let whole = world.verify(&["--json"]).succeeded().json();
    assert!(whole["objects"].as_u64().unwrap() > 30, "{whole}");
    assert_eq!((&whole["format"], &whole["bad_files"]), (&2.into(), &serde_json::json!([])));

    // (a) a file of the repo, which is the checkout's file too.
    let file = world.image_file("root/content");
    let good = fs::read(&file).unwrap();
    flip(&file);
    let found = world.verify(&[]);
    found.failed_with(3, &["1 files are not as they are pinned", "verify --repair"]);
    assert!(
        found.stdout.contains("/root/content (") && found.stdout.contains("its bytes have the digest"),
        "{found}"
    );
    assert!(found.stdout.contains("1 of 2 container images good"), "{found}");
    // Docker runs from it: there is no second copy.
    world.verify(&["--repair"]).failed_with(3, &["no second copy on this host, and fetching failed", NOBODY]);
    world.follow(&world.server.url());
    let mended = world.verify(&["--repair"]);
    let told = "0 from other copies, 1 over the network; 1 put back";
    assert!(mended.succeeded().stdout.contains(told), "{mended}");
    world.follow(NOBODY);
    assert_eq!(fs::read(&file).unwrap(), good);
    world.assert_whole();

    // The boot loader's copy of a kernel.
    let kernel = walkdir::WalkDir::new(world.host.sysroot.join("boot/ostree"))
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("vmlinuz-"))
        .unwrap();
    let good = fs::read(&kernel).unwrap();
    // On a disk of its own it is a copy; here libostree made it another name of the object.
    fs::remove_file(&kernel).unwrap();
    fs::write(&kernel, &good).unwrap();
    flip(&kernel);
    world.verify(&[]).failed_with(3, &["1 files are not as they are pinned"]);
    world.verify(&["--repair"]).succeeded();
    assert_eq!(fs::read(&kernel).unwrap(), good);
    world.assert_whole();
    // The other way round, the boot loader's copy is the good one: it mends the release, and is not touched.
    let modules = world.checkout().join("usr/lib/modules");
    let version = fs::read_dir(&modules).unwrap().next().unwrap().unwrap().path();
    flip(&version.join("vmlinuz"));
    let mended = world.verify(&["--repair"]);
    assert!(mended.succeeded().stdout.contains("1 from other copies"), "{mended}");
    assert_eq!(fs::read(&kernel).unwrap(), good);
    assert_eq!(fs::read(version.join("vmlinuz")).unwrap(), good);
    world.assert_whole();
}

#[test]
fn what_has_one_copy_comes_from_the_repo_that_the_host_follows() {
    let world = World::without_network();
    let library = world.checkout().join("usr/share/tree/3");
    let good = fs::read(&library).unwrap();
    flip(&library);
    // Told, not mended, nothing worse than before.
    let failed = world.verify(&["--repair"]);
    failed.failed_with(3, &["1 files are not", "no second copy on this host, and fetching failed", NOBODY]);
    assert_eq!(world.host.bootable().len(), 1);

    world.follow(&world.server.url());
    // A directory of the release beside the flipped file.
    let repo = world.host.sysroot.join("ostree/repo/objects");
    let root = world.releases.repo.commit_info(world.released.commit).unwrap().root.0.hex();
    flip(&repo.join(&root[..2]).join(format!("{}.dirtree", &root[2..])));
    let mended = world.verify(&["--repair"]);
    assert!(mended.succeeded().stdout.contains("over the network"), "{mended}");
    assert_eq!(fs::read(&library).unwrap(), good);
    world.assert_whole();
}

#[test]
fn directories_get_owner_mode_and_xattrs_back_and_what_was_in_them() {
    let world = World::without_network();
    let share = world.checkout().join("usr/share");
    let (mode, tree) = (fs::metadata(&share).unwrap().mode(), share.join("tree"));
    let files = fs::read_dir(&tree).unwrap().count();
    fs::set_permissions(&share, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(share.parent().unwrap(), Some(1000), Some(7)).unwrap();
    xattr::set(world.checkout().join("usr/lib"), "user.strange", b"1").unwrap();
    fs::remove_dir_all(&tree).unwrap();
    let found = world.verify(&[]);
    found.failed_with(3, &[&format!("{} files are not as they are pinned", files + 4)]);
    assert_eq!(found.stdout.matches("the directory has another owner, mode or xattr").count(), 3, "{found}");
    assert!(found.stdout.contains("usr/share/tree ("), "{found}");
    let mended = world.verify(&["--repair"]);
    assert!(mended.succeeded().stdout.contains(&format!("{} put back", files + 4)), "{mended}");
    assert_eq!((fs::metadata(&share).unwrap().mode(), fs::read_dir(&tree).unwrap().count()), (mode, files));
    assert_eq!(xattr::list(world.checkout().join("usr/lib")).unwrap().count(), 0);
    world.assert_whole();
}

#[test]
fn an_object_that_is_gone_comes_back_from_its_checkout() {
    let world = World::without_network();
    let mut gone = None;
    world
        .releases
        .repo
        .walk_paths(world.released.commit, &mut |path, object| {
            if path == "/usr/share/tree/1" {
                gone = Some(object.digest.hex());
            }
        })
        .unwrap();
    let gone = gone.unwrap();
    let object =
        world.host.sysroot.join("ostree/repo/objects").join(&gone[..2]).join(format!("{}.file", &gone[2..]));
    fs::remove_file(&object).unwrap();
    let found = world.verify(&["--json"]);
    assert_eq!(
        (found.code, found.json()["bad_files"][0]["problem"].as_str()),
        (3, Some("not in the repo")),
        "{found}"
    );
    assert!(world.verify(&["--repair"]).succeeded().stdout.contains("1 from other copies"));
    assert!(object.exists());
    world.assert_whole();
}
