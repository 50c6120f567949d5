//! `engine::docker` against a real daemon. Needs root and the package docker.io.

#![allow(clippy::unwrap_used)]

#[path = "support/dockerd.rs"]
mod dockerd;
#[path = "support/tiny_image.rs"]
mod tiny_image;

use std::collections::BTreeMap;
use std::time::Duration;

use dockerd::Dockerd;
use rackstep::engine::docker::{
    Bind, DockerError, ImageArchive as _, RunOnce, StoreKind, Verdict, VerifyError, orphans,
};
use rackstep::image::store::ImageStore;
use rackstep::image::{Limits, Ownership, source};
use rackstep::model::progress::Silent;
use tiny_image::{TinyImages, chain_of, layer, noise, release, shell_layer};

#[test]
fn images_are_imported_once_held_and_reaped() {
    let daemon = Dockerd::start();
    let docker = daemon.connect();
    let mut images = TinyImages::default();
    let base = layer(&[("etc/base", b"base"), ("etc/empty", b"")]);
    let a = images.add("a", &[base.clone(), layer(&[("opt/a", &noise(1, 3 << 20))])], &[]);
    let b = images.add("b", &[base, layer(&[("opt/b", b"b")])], &[]);

    let observed = docker.observe().unwrap();
    assert_eq!(observed.storage.kind, StoreKind::Classic);
    assert_eq!(observed.storage.driver, "overlay2");
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
    assert_eq!(docker.observe_images().unwrap()[&a.config].labels["name"], "a");

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
    assert!(daemon.client(&["rmi", &a.config.to_string()]).is_err(), "plain rmi is refused");
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

#[test]
fn wrong_content_is_refused_by_name_and_nothing_is_left() {
    let daemon = Dockerd::start();
    let docker = daemon.connect();
    let mut images = TinyImages::default();
    let image = images.add("victim", &[layer(&[("opt/file", b"right")])], &[]);
    let diff_id = image.layers[0].diff_id;
    images.lies.insert(diff_id, layer(&[("opt/file", b"wrong")]));
    let error = docker.import(&images, [&image], &Silent).unwrap_err();
    let text = chain_of(&error);
    assert!(matches!(error, DockerError::Load { .. }), "{text}");
    assert!(text.contains("test/victim") && text.contains("invalid diffID"), "{text}");
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
#[test]
fn a_releases_own_files_become_the_same_image() {
    let daemon = Dockerd::start();
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

#[test]
fn a_flipped_byte_is_found_and_mended() {
    let daemon = Dockerd::start();
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
        assert!(matches!(docker.verify_by_export(image).unwrap(), Verdict::Damaged { .. }));
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

#[test]
fn a_step_runs_to_its_end_and_leaves_nothing() {
    let daemon = Dockerd::start();
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
