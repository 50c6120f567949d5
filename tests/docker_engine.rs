//! `docker` against real daemons, one for each of Docker's image stores. Needs root, the package docker.io, and what
//! `scripts/setup.sh` unpacks.

#![allow(clippy::unwrap_used)]

#[macro_use]
#[path = "support/dockerd.rs"]
mod dockerd;
#[path = "support/tiny_image.rs"]
mod tiny_image;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dockerd::Dockerd;
use rackstep::docker::{
    Bind, DockerError, ImageArchive as _, RunOnce, StoreKind, Verdict, VerifyError, orphans,
};
use rackstep::formats::image::store::ImageStore;
use rackstep::formats::image::{Limits, Ownership, source};
use rackstep::model::progress::Silent;
use rackstep::model::{Digest, PinnedImage};
use tiny_image::{TinyImages, chain_of, layer, noise, release, shell_layer};

on_both_stores! {
    images_are_imported_once_held_and_reaped,
    wrong_content_is_refused_by_name_and_nothing_is_left,
    a_releases_own_files_become_the_same_image,
    a_flipped_byte_is_found_and_mended,
    a_step_runs_to_its_end_and_leaves_nothing,
}

fn images_are_imported_once_held_and_reaped(kind: StoreKind) {
    let daemon = Dockerd::start_with(kind);
    let docker = daemon.connect();
    let mut images = TinyImages::default();
    let base = layer(&[("etc/base", b"base"), ("etc/empty", b"")]);
    let a = images.add("a", &[base.clone(), layer(&[("opt/a", &noise(1, 3 << 20))])], &[]);
    let b = images.add("b", &[base, layer(&[("opt/b", b"b")])], &[]);

    let observed = docker.observe().unwrap();
    assert_eq!(observed.storage.kind, kind);
    let driver = if kind == StoreKind::Classic { "overlay2" } else { "overlayfs" };
    assert_eq!(observed.storage.driver, driver);
    assert_eq!(observed.storage.data_root, daemon.data_root());
    assert!(!docker.present(&a).unwrap());
    assert_eq!(docker.verify(&a).unwrap(), Verdict::Missing);

    let imported = docker.import(&images, [&a, &b], &Silent).unwrap();
    assert_eq!(imported.loaded, [a.config, b.config]);
    let sent = images.take_sent();
    assert_eq!(sent.len(), 3, "the shared layer is sent once: {sent:?}");
    for image in [&a, &b] {
        assert!(docker.present(image).unwrap());
        assert_eq!(docker.verify(image).unwrap(), Verdict::Good);
        assert_eq!(docker.verify_by_export(image).unwrap(), Verdict::Good);
    }
    let seen = &docker.observe_images().unwrap()[&a.config];
    assert_eq!(seen.labels["name"], "a");
    assert_eq!(seen.id == a.config, kind == StoreKind::Classic, "an Id is of the config or of the manifest");
    assert_eq!(docker.id_of(a.config).unwrap(), Some(seen.id));

    let again = docker.import(&images, [&a, &b], &Silent).unwrap();
    assert_eq!((again.present.len(), again.loaded.len()), (2, 0));
    assert_eq!(images.take_sent(), []);

    // Two releases: both need a, the second alone needs b.
    let first = release('1', &[("a", &a)]);
    let second = release('2', &[("a", &a), ("b", &b), ("b-again", &b)]);
    assert_eq!(docker.protect(&first).unwrap(), 1);
    assert_eq!(docker.protect(&second).unwrap(), 2);
    assert_eq!(docker.protect(&second).unwrap(), 0, "repeating changes nothing");
    daemon.client(&["image", "prune", "-a", "-f"]).unwrap();
    let proof = docker.verify_release(&second, &Silent).unwrap();
    assert_eq!((proof.commit(), proof.pins_digest()), (second.commit(), second.digest()));
    let id = docker.id_of(a.config).unwrap().unwrap();
    assert!(daemon.client(&["rmi", &id.to_string()]).is_err(), "plain rmi is refused");
    let tags = &docker.observe_images().unwrap()[&a.config].tags;
    assert_eq!(tags, &[format!("rackstep.internal/a:{}", &a.config.hex()[..12])]);

    // The second release goes. An image that the first one holds stays, even though the list names it.
    let gone = docker.reap(&[second.commit()].into(), &[a.config, b.config].into()).unwrap();
    assert_eq!(gone, [b.config]);
    assert!(docker.present(&a).unwrap());
    assert!(!docker.present(&b).unwrap());
    match docker.verify_release(&second, &Silent).unwrap_err() {
        VerifyError::Bad { findings, .. } => {
            assert_eq!(findings.len(), 2);
            assert_eq!((findings[0].name.as_str(), &findings[0].verdict), ("b", &Verdict::Missing));
        }
        error => panic!("{}", chain_of(&error)),
    }
}

fn wrong_content_is_refused_by_name_and_nothing_is_left(kind: StoreKind) {
    let daemon = Dockerd::start_with(kind);
    let docker = daemon.connect();
    let mut images = TinyImages::default();
    let image = images.add("victim", &[layer(&[("opt/file", b"right")])], &[]);
    let diff_id = image.layers[0].diff_id;
    images.lies.insert(diff_id, layer(&[("opt/file", b"wrong")]));
    let error = docker.import(&images, [&image], &Silent).unwrap_err();
    let text = chain_of(&error);
    assert!(matches!(error, DockerError::Load { .. }), "{text}");
    let why = if kind == StoreKind::Classic { "invalid diffID" } else { "not found" };
    assert!(text.contains("test/victim") && text.contains(why), "{text}");
    assert!(docker.observe_images().unwrap().is_empty());

    // An archive that breaks off is our own failure, not a whole image of Docker's.
    let other = images.add("lost", &[layer(&[("opt/lost", b"lost")])], &[]);
    let empty = TinyImages::default();
    let error = docker.import(&empty, [&other], &Silent).unwrap_err();
    assert!(matches!(error, DockerError::Archive { .. }), "{}", chain_of(&error));
    assert!(docker.observe_images().unwrap().is_empty());

    images.lies.clear();
    docker.import(&images, [&image, &other], &Silent).unwrap();
    assert!(docker.verify(&image).unwrap().is_good());
}

/// The whole way of an image: archive → files of a release → Docker, under the Id that it had.
fn a_releases_own_files_become_the_same_image(kind: StoreKind) {
    let daemon = Dockerd::start_with(kind);
    let docker = daemon.connect();
    let root = tempfile::tempdir().unwrap();
    let mut images = TinyImages::default();
    let base = layer(&[("etc/base", &noise(4, 300_000)), ("etc/empty", b"")]);
    let a = images.add("a", &[base.clone(), layer(&[("opt/a", b"a")])], &["/opt/a"]);
    let b = images.add("b", &[base, layer(&[("opt/b", b"b")])], &[]);
    let store = ImageStore::new(root.path().join("images"));
    let limits = Limits::default();
    let mut kept = Vec::new();
    for (name, image) in [("a", &a), ("b", &b)] {
        let archive = root.path().join(format!("{name}.tar"));
        let mut file = std::fs::File::create(&archive).unwrap();
        images.write_archive(&[image], &Default::default(), &mut file).unwrap();
        let mut source = source::open(&archive, None, &limits).unwrap();
        let pinned = store.add(source.as_mut(), name, Ownership::Apply, &limits).unwrap();
        assert_eq!((pinned.config, &pinned.layers), (image.config, &image.layers));
        kept.push(pinned);
    }
    let imported = docker.import(&store, &kept, &Silent).unwrap();
    assert_eq!(imported.loaded, [a.config, b.config]);
    assert!(imported.bytes < 400_000, "the shared layer is sent once: {}", imported.bytes);
    let pins = release('6', &[("a", &kept[0]), ("b", &kept[1])]);
    let _proof = docker.verify_release(&pins, &Silent).unwrap();

    // A damaged file of the release never becomes an image.
    docker.reap(&Default::default(), &[a.config, b.config].into()).unwrap();
    let damaged = walkdir::WalkDir::new(root.path().join("images"))
        .into_iter()
        .filter_map(Result::ok)
        .find(|entry| entry.file_name() == "base")
        .unwrap();
    let mut content = std::fs::read(damaged.path()).unwrap();
    content[1000] ^= 1;
    std::fs::write(damaged.path(), content).unwrap();
    let error = docker.import(&store, &kept, &Silent).unwrap_err();
    assert!(chain_of(&error).contains(&a.config.to_string()), "{}", chain_of(&error));
    assert!(docker.observe_images().unwrap().is_empty());
}

fn a_flipped_byte_is_found_and_mended(kind: StoreKind) {
    let daemon = Dockerd::start_with(kind);
    let docker = daemon.connect();
    let mut images = TinyImages::default();
    let base = layer(&[("etc/base", &noise(2, 100_000))]);
    let a = images.add("a", &[base.clone(), layer(&[("opt/a", b"a")])], &[]);
    let b = images.add("b", &[base, layer(&[("opt/b", b"b")])], &[]);
    let c = images.add("c", &[layer(&[("opt/c", b"c")])], &[]);
    let release = release('3', &[("a", &a), ("b", &b), ("c", &c)]);
    docker.import(&images, [&a, &b, &c], &Silent).unwrap();
    docker.protect(&release).unwrap();
    images.take_sent();

    let stored = daemon.stored_files("base");
    assert_eq!(stored.len(), 1, "{stored:?}");
    let mut content = std::fs::read(&stored[0]).unwrap();
    content[50_000] ^= 1;
    std::fs::write(&stored[0], content).unwrap();

    assert!(docker.present(&a).unwrap(), "a listing shows nothing");
    let damaged = Some(a.layers[0].diff_id);
    for image in [&a, &b] {
        assert!(matches!(docker.verify(image).unwrap(), Verdict::Damaged { layer, .. } if layer == damaged));
        // The containerd store exports the blobs that it unpacked, not the files that containers see.
        let exported = docker.verify_by_export(image).unwrap();
        assert_eq!(exported.is_good(), kind == StoreKind::Containerd, "{exported:?}");
    }
    assert_eq!(docker.verify(&c).unwrap(), Verdict::Good);
    let error = docker.verify_release(&release, &Silent).unwrap_err();
    assert!(error.to_string().contains("container image a (test/a"), "{error}");
    // Loading once more does not mend it: Docker believes to have the layer.
    docker.import(&images, [&a, &b, &c], &Silent).unwrap();
    assert!(!docker.verify(&a).unwrap().is_good());

    // Mending a part of what shares the layer would take the other part away.
    let part = tiny_image::release('3', &[("a", &a)]);
    let error = docker.repair(&[(&images, &part)], &Silent).unwrap_err();
    assert!(matches!(error, DockerError::Foreign { image, .. } if image == b.config), "{}", chain_of(&error));
    assert!(docker.present(&a).unwrap() && docker.present(&b).unwrap(), "nothing was removed");

    let repaired = docker.repair(&[(&images, &release)], &Silent).unwrap();
    assert_eq!(repaired.replaced, [a.config, b.config]);
    let _proof = docker.verify_release(&release, &Silent).unwrap();
    assert_eq!(docker.observe_holds().unwrap().len(), 3, "held again");
    assert_eq!(docker.repair(&[(&images, &release)], &Silent).unwrap(), Default::default());

    // A file that is gone is damage too.
    std::fs::remove_file(&daemon.stored_files("c")[0]).unwrap();
    assert!(matches!(docker.verify(&c).unwrap(), Verdict::Damaged { .. }));
    assert_eq!(docker.repair(&[(&images, &release)], &Silent).unwrap().replaced, [c.config]);
}

fn a_step_runs_to_its_end_and_leaves_nothing(kind: StoreKind) {
    let daemon = Dockerd::start_with(kind);
    let docker = daemon.connect();
    let mut images = TinyImages::default();
    let image = images.add("shell", &[shell_layer(&["/bin/sleep"])], &["/bin/sh", "-c"]);
    docker.import(&images, [&image], &Silent).unwrap();
    let volume = tempfile::tempdir().unwrap();
    let run = |script: &str| RunOnce {
        name: "rackstep-phase-test".to_owned(),
        release: "4".repeat(64).parse().unwrap(),
        image: image.config,
        arguments: vec![script.to_owned()],
        environment: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
        binds: vec![Bind { host: volume.path().to_owned(), container: "/data".into(), read_only: false }],
        scratch: vec!["/scratch".into()],
        user: None,
        working_directory: None,
    };
    let limit = Duration::from_secs(60);
    let outcome = docker
        .run_once(&run("echo $GREETING > /data/file; : > /scratch/x; echo done; echo oops >&2"), limit)
        .unwrap();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.log.contains("done") && outcome.log.contains("oops"), "{outcome:?}");
    assert_eq!(std::fs::read_to_string(volume.path().join("file")).unwrap(), "hello\n");

    let outcome = docker.run_once(&run("echo broken; exit 7"), limit).unwrap();
    assert_eq!((outcome.code, outcome.log.as_str()), (7, "broken"));

    let error = docker.run_once(&run("echo stuck; sleep 1000"), Duration::from_secs(2)).unwrap_err();
    assert!(matches!(&error, DockerError::TooLong { log, .. } if log == "stuck"), "{}", chain_of(&error));
    assert!(docker.observe_containers().unwrap().is_empty());
}

#[test]
fn orphans_are_swept_only_while_nothing_runs() {
    let mut daemon = Dockerd::start();
    let docker = daemon.connect();
    let mut images = TinyImages::default();
    let image = images.add("a", &[layer(&[("opt/a", b"a")])], &[]);
    docker.import(&images, [&image], &Silent).unwrap();
    docker.protect(&release('5', &[("a", &image)])).unwrap();
    let root = daemon.data_root();
    assert_eq!(orphans::find_orphans(&root).unwrap(), [], "layers and containers are none");
    std::fs::create_dir_all(root.join("overlay2/lost/diff")).unwrap();
    std::fs::write(root.join("overlay2/lost/diff/file"), noise(3, 10_000)).unwrap();
    let error = orphans::sweep_orphans(&root).unwrap_err();
    assert!(matches!(error, orphans::OrphanError::Running { .. }), "{error}");
    drop(docker);
    daemon.stop();
    let swept = orphans::sweep_orphans(&root).unwrap();
    assert_eq!(swept.len(), 1);
    assert!(swept[0].bytes >= 10_000);
    daemon.run();
    assert!(daemon.connect().verify(&image).unwrap().is_good());
}

/// What the classic store has no counterpart of: blobs, beside the files that were unpacked from them.
#[test]
fn damaged_blobs_are_mended_in_place() {
    let daemon = Dockerd::start_with(StoreKind::Containerd);
    let docker = daemon.connect();
    let mut images = TinyImages::default();
    let base = layer(&[("etc/base", &noise(5, 100_000))]);
    let a = images.add("a", &[base.clone(), layer(&[("opt/a", b"a")])], &[]);
    let b = images.add("b", &[base, layer(&[("opt/b", b"b")])], &[]);
    let release = release('7', &[("a", &a), ("b", &b)]);
    docker.import(&images, [&a, &b], &Silent).unwrap();
    docker.protect(&release).unwrap();
    let hold = docker.observe_containers().unwrap().remove(0).id;
    let manifest = docker.id_of(a.config).unwrap().unwrap();
    for (what, digest, place) in [
        ("layer", a.layers[0].diff_id, 50_000),
        ("manifest", manifest, 20),
        ("config, still JSON", a.config, 20),
        ("config, no JSON", a.config, 0),
    ] {
        let blob = daemon.blob(digest);
        let right = std::fs::read(&blob).unwrap();
        let mut wrong = right.clone();
        wrong[place] ^= 1;
        std::fs::write(&blob, &wrong).unwrap();
        // Each time a new connection: what an earlier look has noted must not be needed.
        let docker = daemon.connect();
        assert!(docker.verify_release(&release, &Silent).is_err(), "{what}");
        let repaired = docker.repair(&[(&images, &release)], &Silent).unwrap();
        assert!(repaired.replaced.contains(&a.config), "{what}: {repaired:?}");
        assert_eq!(std::fs::read(&blob).unwrap(), right, "{what}");
        let _proof = docker.verify_release(&release, &Silent).unwrap();
    }
    std::fs::remove_file(daemon.blob(a.layers[1].diff_id)).unwrap();
    assert!(matches!(docker.verify(&a).unwrap(), Verdict::Damaged { .. }));
    assert_eq!(docker.repair(&[(&images, &release)], &Silent).unwrap().replaced, [a.config]);
    assert_eq!(docker.observe_containers().unwrap()[0].id, hold, "no image had to go");
}

/// Everything that a file of a layer can have wrong in the containerd store, where no tar is put together again.
#[test]
fn unpacked_files_are_what_their_layer_says() {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    let daemon = Dockerd::start_with(StoreKind::Containerd);
    let docker = daemon.connect();
    let mut images = TinyImages::default();
    let base = layer(&[("etc/base", b"base"), ("etc/hidden", b"hidden"), ("var/lib/x", b"x")]);
    let top = odd_layer();
    let image = images.add("odd", &[base, top], &[]);
    docker.import(&images, [&image], &Silent).unwrap();
    assert_eq!(docker.verify(&image).unwrap(), Verdict::Good);
    let file = daemon.stored_files("plain").remove(0);
    let dir = file.parent().unwrap().to_owned();
    type Change<'a> = (&'a str, Box<dyn Fn()>, Box<dyn Fn()>);
    let at = |name: &str| dir.join(name);
    let mode = |path: std::path::PathBuf, mode: u32| {
        Box::new(move || std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap())
    };
    let (plain, extra, link) = (at("plain"), at("extra"), at("link"));
    let changes: Vec<Change<'_>> = vec![
        ("mode", mode(at("plain"), 0o644), mode(at("plain"), 0o4755)),
        (
            "it belongs to",
            Box::new({
                let path = link.clone();
                move || std::os::unix::fs::lchown(&path, Some(7), None).unwrap()
            }),
            Box::new({
                let path = link.clone();
                move || std::os::unix::fs::lchown(&path, Some(0), None).unwrap()
            }),
        ),
        (
            "does not have it",
            Box::new({
                let path = extra.clone();
                move || std::fs::write(&path, "new").unwrap()
            }),
            Box::new({
                let path = extra.clone();
                move || std::fs::remove_file(&path).unwrap()
            }),
        ),
        (
            "it is no Symlink",
            Box::new({
                let path = link.clone();
                move || {
                    std::fs::remove_file(&path).unwrap();
                    symlink("elsewhere", &path).unwrap();
                }
            }),
            Box::new({
                let path = link.clone();
                move || {
                    std::fs::remove_file(&path).unwrap();
                    symlink("plain", &path).unwrap();
                }
            }),
        ),
        (
            "after 0 bytes",
            Box::new({
                let path = plain.clone();
                move || std::fs::write(&path, "").unwrap()
            }),
            Box::new({
                let path = plain.clone();
                move || {
                    std::fs::write(&path, "plain").unwrap();
                    chown(&path, Some(3), Some(4)).unwrap();
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755)).unwrap();
                }
            }),
        ),
    ];
    for (problem, spoil, restore) in changes {
        spoil();
        match docker.verify(&image).unwrap() {
            Verdict::Damaged { layer, problem: found } => {
                assert_eq!(layer, Some(image.layers[1].diff_id), "{found}");
                assert!(found.contains(problem), "{found}, expected {problem}");
            }
            verdict => panic!("{problem}: {verdict:?}"),
        }
        restore();
        assert_eq!(docker.verify(&image).unwrap(), Verdict::Good, "after {problem}");
    }
}

/// Every image of a release's store, or of the cache's, on both stores; says how long each part takes.
#[test]
#[ignore = "wants real images: RACKSTEP_IMAGES=~/.cache/rackstep/store"]
fn real_images_are_proven_in_both_stores() {
    let store =
        ImageStore::new(std::env::var_os("RACKSTEP_IMAGES").expect("RACKSTEP_IMAGES is a store of images"));
    let images: Vec<PinnedImage> = (store.images().unwrap().iter())
        .map(|config| {
            let stored = store.image(config).unwrap();
            let manifest = Digest::of(&stored.manifest);
            PinnedImage { reference: config.hex(), manifest, config: *config, layers: stored.layers }
        })
        .collect();
    for kind in [StoreKind::Classic, StoreKind::Containerd] {
        let daemon = Dockerd::start_with(kind);
        let docker = daemon.connect();
        let began = Instant::now();
        let imported = docker.import(&store, &images, &Silent).unwrap();
        let loaded = began.elapsed();
        let all: Vec<&PinnedImage> = images.iter().collect();
        let began = Instant::now();
        for (image, verdict) in images.iter().zip(docker.verify_all(&all, &Silent).unwrap()) {
            assert_eq!(verdict, Verdict::Good, "{}", image.reference);
        }
        println!(
            "{kind:?}: {} images, {} bytes in {loaded:?}, read back in {:?}",
            images.len(),
            imported.bytes,
            began.elapsed()
        );
    }
}

/// Names twice, a hard link, a symlink, owners, a set-user-id bit, a whiteout, an opaque directory, parents without entries.
fn odd_layer() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut put = |name: &str, kind: tar::EntryType, link: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(if bytes == b"plain" { 0o4755 } else { 0o755 });
        if bytes == b"plain" {
            header.set_uid(3);
            header.set_gid(4);
        }
        if link.is_empty() {
            archive.append_data(&mut header, name, bytes).unwrap();
        } else {
            archive.append_link(&mut header, name, link).unwrap();
        }
    };
    use tar::EntryType;
    put("./", EntryType::Directory, "", b"");
    put("odd/deep/plain", EntryType::Regular, "", b"first");
    put("odd/deep/plain", EntryType::Regular, "", b"plain");
    put("odd/deep/other", EntryType::Regular, "", b"other");
    put("odd/deep/hard", EntryType::Link, "odd/deep/other", b"");
    put("odd/deep/link", EntryType::Symlink, "plain", b"");
    put("odd/deep/fifo", EntryType::Fifo, "", b"");
    put("etc/.wh.hidden", EntryType::Regular, "", b"");
    put("var/lib/.wh..wh..opq", EntryType::Regular, "", b"");
    put("var/lib/y", EntryType::Regular, "", b"y");
    archive.into_inner().unwrap()
}
