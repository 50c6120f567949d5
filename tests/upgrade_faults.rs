//! `upgrade`, `rollback` and `status` on a host whose every part is real but the machine: sysroot, Docker, a server that cuts
//! and corrupts, disks that fill up. After each failure: a clear error, its exit code, a `state:` line, and the old pair
//! bootable with every image proven. Needs root.

#![allow(clippy::unwrap_used)]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/dockerd.rs"]
mod dockerd;
#[path = "support/release.rs"]
mod release;
#[path = "support/scratch_host.rs"]
mod scratch_host;
#[path = "transport/server.rs"]
mod server;
#[path = "support/tiny_image.rs"]
mod tiny_image;

use std::fs;

use disk::SmallDisk;
use dockerd::Dockerd;
use rackstep::model::ObjectName;
use rackstep::model::progress::Silent;
use rackstep::ostree::repo::Repo;
use rackstep::ostree::signature::SecretKey;
use rackstep::release::pack::{PackOptions, write_pack};
use release::{Recipe, Released, Releases};
use scratch_host::ScratchHost;
use server::{Faults, Server};

const MIB: usize = 1 << 20;

/// What a pull has on the way at a time: the server sent it, and nobody was left to take it.
const IN_FLIGHT: usize = 8;

/// A served repo whose first release is installed on a host.
fn world(first: &Recipe) -> (Releases, Server, Released, ScratchHost) {
    let releases = Releases::new();
    let server = Server::start(releases.repo.path());
    let one = releases.release(first, None);
    let host = ScratchHost::install(&server.url(), &one, &[]);
    (releases, server, one, host)
}

/// Everything that a failed command must leave as it was.
fn unchanged(host: &ScratchHost, released: &Released, act: impl FnOnce()) {
    let before = host.entries();
    act();
    assert_eq!(host.entries(), before);
    host.assert_bootable(&[released.commit]);
}

/// Nothing at all was changed, in the sysroot and in Docker.
fn untouched(host: &ScratchHost, act: impl FnOnce()) {
    let before = (host.listing(), host.images());
    act();
    assert_eq!(host.images(), before.1);
    let changed: Vec<String> = host.listing().into_iter().filter(|line| !before.0.contains(line)).collect();
    assert_eq!(changed, [""; 0]);
}

/// Where no daemon listens.
const NOWHERE: &str = "unix:///nowhere/docker.sock";

#[test]
fn upgrade_and_rollback() {
    let (releases, server, one, mut host) = world(&Recipe::version(1));
    host.reboot_docker().succeeded();
    let images = host.images();
    untouched(&host, || {
        assert_eq!(
            host.run("upgrade", &["--commit"]).succeeded().state(),
            format!("next boot: release 1.0.0 ({})", one.commit.short())
        );
        host.run("rollback", &[])
            .failed_with(3, &["there is no previous release on this host", "state: nothing changed"]);
    });
    let two = releases.release(&Recipe::version(2), None);
    let (short, old) = (two.commit.short(), one.commit.short());

    untouched(&host, || {
        let dry = host.run("upgrade", &["--dry-run", "--commit"]);
        let expected = format!(
            "a new release was found\n  1. pull release {short} from {url}\n  2. check out release {short}, locked\n  3. verify every object of release {short}\n  4. make release {short} the next boot\nstate: next boot: release 1.0.0 ({old})\n",
            url = server.url(),
        );
        let told = dry.succeeded().stdout.clone();
        let (found, plan) = told.split_once('\n').unwrap();
        assert!(found.starts_with(&format!("found 2.0.0 ({short}), made ")), "{found}");
        assert_eq!(plan, expected);
    });

    unchanged(&host, &one, || {
        let prepared = host.run("upgrade", &[]);
        assert_eq!(
            prepared.succeeded().state(),
            format!("release {short} prepared; next boot: release 1.0.0 ({old})")
        );
        assert_eq!(host.images(), images, "docker is not touched");
        let again = host.run("upgrade", &["--json"]).succeeded().json();
        assert_eq!(again["format"], 2);
        assert_eq!(again["plan"]["reason"]["because"], "prepare-only");
        assert_eq!(again["bytes_pulled"], 0);
    });

    let committed = host.run("upgrade", &["--commit"]);
    assert_eq!(committed.succeeded().state(), format!("next boot: release 2.0.0 ({short})"));
    host.assert_bootable(&[two.commit, one.commit]);
    host.assert_repo_sound();
    // A release brings its own kernel arguments and takes away only those.
    assert_eq!(
        host.kernel_arguments(),
        ["root=UUID=1 rw quiet release=2 console=ttyS0", "root=UUID=1 rw quiet release=1 console=ttyS0"]
    );
    // What the host is called came along.
    assert!(host.bootable()[0].1.join("etc/rackstep/host.json").exists());
    untouched(&host, || {
        let again = host.run("upgrade", &["--commit"]);
        assert!(again.succeeded().stdout.starts_with("this release is the next boot already\n"), "{again}");
    });
    status_text(&host, &one, &two);

    // The way back needs neither the server nor Docker.
    server.set(Faults { lose: Some(String::new()), ..Faults::default() });
    host.docker.stop();
    let listing = host.listing();
    let dry = host.run("rollback", &["--dry-run"]);
    assert!(
        dry.succeeded().stdout.starts_with("back to the previous release\n  1. verify every object"),
        "{dry}"
    );
    assert_eq!(host.listing(), listing);
    let back = host.run("rollback", &["--json"]);
    let json = back.succeeded().json();
    assert_eq!(json["format"], 2);
    assert_eq!(json["state"], format!("next boot: release 1.0.0 ({old})"));
    host.assert_bootable(&[one.commit, two.commit]);
    // And forth again by name: what is on the host needs no server.
    let forth = host.run("upgrade", &["--commit", "2.0.0"]);
    assert_eq!(forth.succeeded().state(), format!("next boot: release 2.0.0 ({short})"));
    host.assert_bootable(&[two.commit, one.commit]);
}

fn status_text(host: &ScratchHost, one: &Released, two: &Released) {
    let id = |released: &Released, name: &str| released.image(name).config.hex()[..12].to_owned();
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let expected = format!(
        "host      control-1 (10.0.0.5)\nkernel    {kernel}\n\
         ▶ pending       release 2.0.0 ({two})\n    database             {d2}  present\n    service              {s2}  at its boot\n\
         \x20 rollback      release 1.0.0 ({one})\n    database             {d1}  present\n    service              {s1}  present\n\
         services  none\nwaiting   release {two} waits for the reboot\n▶ is what the next boot takes\n\
         warning   no key is trusted: whoever can change the repo or answer for its server decides what runs (trusted_keys)\n",
        d1 = id(one, "database"),
        s1 = id(one, "service"),
        d2 = id(two, "database"),
        s2 = id(two, "service"),
        one = one.commit.short(),
        two = two.commit.short(),
    );
    // How old the newest known release is changes by the hour.
    let newest = format!("newest    2.0.0 ({}) of ", two.commit.short());
    let without_age = |stdout: &str| -> String {
        assert!(stdout.lines().any(|line| line.starts_with(&newest)), "{stdout}");
        stdout.lines().filter(|line| !line.starts_with(&newest)).map(|line| format!("{line}\n")).collect()
    };
    assert_eq!(without_age(&host.run("status", &[]).succeeded().stdout), expected);
    let down = host.run_with_docker("unix:///nowhere/docker.sock", "status", &[]);
    assert_eq!(
        without_age(&down.succeeded().stdout),
        expected.replace("present", "unknown").replace("at its boot", "unknown")
    );
}

#[test]
fn transport_that_cuts_and_corrupts() {
    let (releases, server, one, host) = world(&Recipe::version(1));
    let two = releases.release(&Recipe { tree: 4 * MIB, ..Recipe::version(2) }, None);
    let state = format!("state: next boot: release 1.0.0 ({})", one.commit.short());

    // Cut half-way: what came is kept.
    server.set(Faults { cut_after: Some(2 * MIB), ..Faults::default() });
    unchanged(&host, &one, || {
        let cut = host.run("upgrade", &["--commit"]);
        cut.failed_with(
            1,
            &["pulling release", "the connection was lost", "will not be fetched again", &state],
        );
    });
    host.assert_repo_sound();
    let first: Vec<String> = server.sent(".filez").into_keys().collect();
    assert!(first.len() > 2 * IN_FLIGHT, "{first:?}");

    // An object that the server has wrong.
    let damaged = find_object(&releases, &two, &first);
    server.set(Faults { flip: Some(damaged.clone()), ..Faults::default() });
    unchanged(&host, &one, || {
        let hex = damaged.replace('/', "");
        host.run("upgrade", &["--commit"]).failed_with(1, &["damaged object", &hex, &state]);
    });
    host.assert_repo_sound();
    let second: Vec<String> = server.sent(".filez").into_keys().collect();
    assert!(twice(&first, &second) < IN_FLIGHT, "{second:?}");

    // An object that the server lost.
    server.set(Faults { lose: Some(damaged.clone()), ..Faults::default() });
    unchanged(&host, &one, || {
        host.run("upgrade", &["--commit"])
            .failed_with(1, &["lacks object", &damaged.replace('/', ""), &state]);
    });

    // The same command goes on from there.
    server.set(Faults::default());
    host.run("upgrade", &["--commit"]).succeeded();
    let third: Vec<String> = server.sent(".filez").into_keys().collect();
    assert!(twice(&first, &third) < IN_FLIGHT && twice(&second, &third) < IN_FLIGHT, "{third:?}");
    host.assert_bootable(&[two.commit, one.commit]);
    host.assert_repo_sound();

    // A damaged pack costs time only: the objects come by themselves.
    let three = releases.release(&Recipe::version(3), None);
    write_pack(&releases.repo, three.commit, Some(two.commit), None, &PackOptions::default(), &Silent)
        .unwrap();
    server.set(Faults { flip: Some("shards/".to_owned()), ..Faults::default() });
    host.run("upgrade", &["--commit"]).succeeded();
    assert_eq!(host.bootable()[0].0, three.commit);
    host.assert_repo_sound();
}

/// How many of the objects sent `before` were sent `again`.
fn twice(before: &[String], again: &[String]) -> usize {
    again.iter().filter(|path| before.contains(path)).count()
}

/// `ab/cdef…` of a file of the release that is not among `sent`.
fn find_object(releases: &Releases, released: &Released, sent: &[String]) -> String {
    let mut found = None;
    let mut look = |path: &str, object: ObjectName| {
        let hex = object.digest.hex();
        let name = format!("{}/{}", &hex[..2], &hex[2..]);
        if path.starts_with("/usr/share/tree/") && !sent.iter().any(|path| path.contains(&name)) {
            found = Some(name);
        }
    };
    releases.repo.walk(released.commit, &mut look).unwrap();
    found.unwrap()
}

#[test]
fn releases_that_are_refused() {
    let key = SecretKey::generate().unwrap();
    let releases = Releases::new();
    let server = Server::start(releases.repo.path());
    let two = releases.release(&Recipe::version(2), Some(&key));
    let host = ScratchHost::install(&server.url(), &two, &[key.public()]);

    // Nobody signed it; somebody else did.
    for (version, signer) in [(3, None), (4, Some(SecretKey::generate().unwrap()))] {
        releases.release(&Recipe::version(version), signer.as_ref());
        for arguments in [&["--commit"][..], &[], &["--dry-run"]] {
            untouched(&host, || {
                host.run("upgrade", arguments).failed_with(3, &["the release is not trusted", "state: "]);
            });
        }
    }
    // A release whose images hosts would have to import.
    let five = releases.release(&Recipe { without_trees: true, ..Recipe::version(5) }, Some(&key));
    let layer = five.image("database").layers[0].diff_id.to_string();
    for arguments in [&["--commit"][..], &[]] {
        unchanged(&host, &two, || {
            host.run("upgrade", arguments).failed_with(
                3,
                &[
                    "could not start",
                    &layer,
                    "compose it again with this one",
                    "state: next boot: release 2.0.0",
                ],
            );
        });
    }

    // A release that may not follow this one.
    releases.release(&Recipe { upgrade_from: vec!["5.0.0".into()], ..Recipe::version(6) }, Some(&key));
    for arguments in [&["--commit"][..], &["6.0.0"]] {
        unchanged(&host, &two, || {
            host.run("upgrade", arguments)
                .failed_with(3, &["upgrades from 5.0.0, not from 2.0.0", "state: next boot: release 2.0.0"]);
        });
    }

    // A release that would stop the host's boot.
    releases.release(&Recipe { missing: Some("secrets.json"), ..Recipe::version(7) }, Some(&key));
    for arguments in [&["--commit"][..], &["7.0.0"]] {
        unchanged(&host, &two, || {
            host.run("upgrade", arguments)
                .failed_with(3, &["could not start", "secrets.json", "state: next boot: release 2.0.0"]);
        });
    }

    // A signed release under a version and under a ref that are not its own.
    releases.repo.set_ref("releases/tiny/4.4.4", two.commit).unwrap();
    releases.repo.publish_releases().unwrap();
    for arguments in [&["--commit", "4.4.4"][..], &["4.4.4"], &["releases/tiny/4.4.4"]] {
        untouched(&host, || {
            let told = ["what was signed is version 2.0.0", "state: nothing changed"];
            host.run("upgrade", arguments).failed_with(3, &told);
        });
    }
    releases.repo.drop_ref("releases/tiny/4.4.4").unwrap();

    // Older than what runs: only by name.
    let one = releases.release(&Recipe::version(1), Some(&key));
    for arguments in [&["--commit"][..], &["--dry-run"], &["--json"], &["--dry-run", "--json"]] {
        untouched(&host, || {
            host.run("upgrade", arguments)
                .failed_with(3, &["older than what runs", "state: nothing changed"]);
        });
    }
    // No such release; no server.
    untouched(&host, || {
        host.run("upgrade", &["9.9.9"])
            .failed_with(2, &["no release called \"9.9.9\"", "state: nothing changed"]);
        let hex = "0123456789abcdef".repeat(4);
        host.run("upgrade", &[&hex]).failed_with(1, &["has no commit", &hex]);
    });
    server.set(Faults { cut_after: Some(0), ..Faults::default() });
    untouched(&host, || {
        host.run("upgrade", &[]).failed_with(1, &["asking http://", "state: nothing changed"]);
        host.run("upgrade", &["9.9.9"]).failed_with(1, &["asking http://", "state: nothing changed"]);
    });
    server.set(Faults::default());
    // No Docker is no reason for anything.
    host.run_with_docker(NOWHERE, "upgrade", &["--commit", "1.0.0"]).succeeded();
    host.assert_bootable(&[one.commit, two.commit]);
    host.run_with_docker(NOWHERE, "rollback", &[]).succeeded();
    host.assert_bootable(&[two.commit, one.commit]);
    untouched(&host, || {
        let down = host.run_with_docker(NOWHERE, "gc", &[]);
        down.failed_with(1, &["connecting to docker at unix:///nowhere", "hint: does the daemon run?"]);
    });
}

#[test]
fn killed_at_any_step() {
    let (releases, _server, one, host) = world(&Recipe::version(1));
    let two = releases.release(&Recipe { layer: 4 * MIB, ..Recipe::version(2) }, None);
    let pair = [two.commit, one.commit];
    for last_words in ["check  ", "check out  ", "objects"] {
        host.kill_after(last_words, "upgrade", &["--commit"]);
        // The kill may come when the flip is done; never may one come half done.
        let bootable = host.bootable().len();
        host.assert_bootable(if bootable == 1 { &pair[1..] } else { &pair });
        host.run("status", &[]).succeeded();
    }
    // Somebody else is at work: nothing may come between a proof and its flip.
    let other = ostree::Sysroot::new(Some(&gio::File::for_path(&host.sysroot)));
    other.load(gio::Cancellable::NONE).unwrap();
    assert!(other.try_lock().unwrap());
    for (verb, arguments) in [("upgrade", &["--commit"][..]), ("rollback", &[]), ("gc", &[])] {
        let before = host.entries();
        let busy = host.run(verb, arguments);
        busy.failed_with(
            1,
            &["another program changes the deployments", "hint: wait", "state: nothing changed"],
        );
        assert_eq!(host.entries(), before);
    }
    other.unlock();
    host.run("upgrade", &["--commit"]).succeeded();
    host.assert_bootable(&pair);
    host.assert_repo_sound();
}

#[test]
fn images_that_may_go() {
    let (releases, _server, one, mut host) = world(&Recipe::version(1));
    let two = releases.release(&Recipe::version(2), None);
    host.run("upgrade", &["--commit"]).succeeded();
    host.reboot_docker().succeeded();
    host.assert_bootable(&[two.commit, one.commit]);

    // Nothing of ours may go yet but what no deployment names.
    let all = host.images();
    let json = host.run("gc", &["--json"]).succeeded().json();
    assert_eq!((&json["removed"], &json["plan"]["kept"]), (&serde_json::json!([]), &3.into()));
    assert_eq!(host.images(), all);

    let three = releases.release(&Recipe::version(3), None);
    host.run("upgrade", &["--commit"]).succeeded();
    host.assert_bootable(&[three.commit, two.commit]);
    let foreign = foreign_image(&host);
    let old = one.image("service").config;
    untouched(&host, || {
        let dry = host.run("gc", &["--dry-run"]);
        let expected = format!(
            "2 container images stay: deployments pin them\n  1. remove container image rackstep.internal/service:{id} ({id}): no deployment pins it\n  2. drop ref rackstep/mounted/{full}: its release {one} is no deployment\n  3. drop ref rackstep:rackstep/x86_64/tiny: its release {one} is no deployment\n  4. remove checkouts and objects that nothing needs\nstate: nothing changed\n",
            one = one.commit.short(),
            full = one.commit,
            id = &old.hex()[..12],
        );
        assert_eq!(dry.succeeded().stdout, expected);
    });
    host.run("gc", &[]).succeeded();
    host.assert_bootable(&[three.commit, two.commit]);
    host.assert_repo_sound();
    let left = host.images();
    assert!(left.contains(&foreign) && !left.contains(&old.to_string()), "{left:?}");
    let repo = Repo::open(&host.sysroot.join("ostree/repo")).unwrap();
    assert!(repo.has(&ObjectName::of_commit(two.commit)) && !repo.has(&ObjectName::of_commit(one.commit)));
    host.run("rollback", &[]).succeeded();
    host.assert_bootable(&[two.commit, three.commit]);
}

#[test]
fn what_is_immutable_stays_alone() {
    let (releases, _server, one, host) = world(&Recipe::version(1));
    let old = host.bootable().remove(0).1;
    let (file, dir) = (old.join("usr/lib/rackstep/release.json"), old.join("usr/lib/rackstep/pods"));
    let newer = [2, 3].map(|version| {
        let released = releases.release(&Recipe::version(version), None);
        host.run("upgrade", &["--commit"]).succeeded();
        released.commit
    });
    let pair = [newer[1], newer[0]];
    let chattr = |flag: &str, path: &std::path::Path| {
        assert!(std::process::Command::new("chattr").arg(flag).arg(path).status().unwrap().success());
    };
    chattr("+i", &file);
    chattr("+i", &dir);
    let repo = Repo::open(&host.sysroot.join("ostree/repo")).unwrap();
    let mut left = Vec::new();
    for _ in 0..2 {
        let ran = host.run("gc", &[]);
        let parts =
            ["2 files could not be removed", "release.json: it is immutable", "/pods: it is immutable"];
        ran.failed_with(1, &parts);
        ran.failed_with(1, &["rackstep gc", "state: everything else that no deployment needs was removed"]);
        host.assert_bootable(&pair);
        host.assert_repo_sound();
        assert!(!old.exists(), "libostree would stumble over it at the next flip");
        assert!(!repo.has(&ObjectName::of_commit(one.commit)));
        let told = ran
            .stderr
            .lines()
            .filter_map(|line| line.trim().strip_suffix(": it is immutable (chattr -i lets it go)"));
        left = told.map(std::path::PathBuf::from).collect();
        assert_eq!(left.len(), 2, "{ran}");
    }
    let json = host.run("gc", &["--json"]);
    assert_eq!((json.code, json.json()["stuck"].as_array().map(Vec::len)), (1, Some(2)));
    for path in &left {
        chattr("-i", path);
    }
    host.run("gc", &[]).succeeded();
    assert!(left.iter().all(|path| !path.exists()));
    host.assert_bootable(&pair);
    host.assert_repo_sound();
}

/// An image that somebody else brought to Docker.
fn foreign_image(host: &ScratchHost) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("foreign.tar");
    fs::write(&path, tiny_image::layer(&[("foreign", b"not ours")])).unwrap();
    host.docker.client(&["import", path.to_str().unwrap()]).unwrap()
}

#[test]
fn disks_that_are_full() {
    let dir = tempfile::tempdir().unwrap();
    let system = SmallDisk::mount(&dir.path().join("system"), 48 * MIB);
    let boot = SmallDisk::mount(&dir.path().join("system/boot"), 3 * MIB);
    let releases = Releases::new();
    let server = Server::start(releases.repo.path());
    let one = releases.release(&Recipe { kernel: MIB / 2, ..Recipe::version(1) }, None);
    let docker = Dockerd::start();
    let scratch = tempfile::tempdir().unwrap();
    let host = ScratchHost::install_in(scratch, system.path().to_owned(), docker, &server.url(), &one, &[]);
    let recipe = Recipe { tree: 8 * MIB, layer: 6 * MIB, kernel: MIB / 2, ..Recipe::version(2) };
    let two = releases.release(&recipe, None);
    let state = format!("state: next boot: release 1.0.0 ({})", one.commit.short());
    let fails = |disk: &SmallDisk, free: usize| {
        disk.fill(free);
        unchanged(&host, &one, || {
            let failed = host.run("upgrade", &["--commit"]);
            let hint = "hint: make room on that disk";
            failed.failed_with(1, &[disk.path().to_str().unwrap(), "are free", hint, &state]);
        });
        host.assert_repo_sound();
        disk.make_room();
    };
    fails(&system, 6 * MIB);
    fails(&system, 64 << 10);
    fails(&boot, MIB / 2);
    host.run("upgrade", &["--commit"]).succeeded();
    host.assert_bootable(&[two.commit, one.commit]);
    drop(host);
}

#[test]
fn status_names_a_broken_configuration_and_fails() {
    let (_releases, _server, one, host) = world(&Recipe::version(1));
    let bootable = host.bootable();
    let config = bootable[0].1.join("etc/rackstep/host.json");
    std::fs::write(&config, "{ not json").unwrap();
    let told = host.run("status", &[]);
    told.failed_with(1, &["host.json", "state: nothing changed"]);
    // The deployments are told all the same.
    assert!(told.stdout.contains(&one.commit.short()), "{told}");
    assert!(told.stdout.contains("its configuration cannot be read"), "{told}");
    std::fs::remove_file(&config).unwrap();
    assert!(host.run("status", &[]).succeeded().stdout.contains("(not configured)"));
}
