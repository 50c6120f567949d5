//! `docker` against a real daemon. Needs root and the package docker.io.

#![allow(clippy::unwrap_used)]

#[path = "support/dockerd.rs"]
mod dockerd;
#[path = "support/tiny_image.rs"]
mod tiny_image;

use std::collections::BTreeMap;
use std::time::Duration;

use dockerd::Dockerd;
use rackstep::docker::{Bind, DockerError, RunOnce, StoreKind, tag_of};
use tiny_image::{TinyImages, chain_of, layer, shell_layer};

#[test]
fn what_is_there_is_seen_and_what_no_container_uses_is_removed() {
    let daemon = Dockerd::start();
    let docker = daemon.connect();
    let mut images = TinyImages::default();
    let base = layer(&[("etc/base", b"base"), ("etc/empty", b"")]);
    let a = images.add("a", &[base.clone(), layer(&[("opt/a", b"a")])], &[]);
    let b = images.add("b", &[base, layer(&[("opt/b", b"b")])], &[]);
    for image in [&a, &b] {
        images.load(|arguments| daemon.client(arguments), image).unwrap();
    }
    let tag = tag_of("a", a.config);
    daemon.client(&["tag", &a.config.to_string(), &tag]).unwrap();
    let observed = docker.observe().unwrap();
    assert_eq!((observed.storage.driver.as_str(), observed.storage.kind), ("overlay2", StoreKind::Classic));
    assert_eq!(observed.storage.data_root, daemon.data_root());
    assert!(observed.has_image(&a) && observed.has_image(&b));
    assert_eq!(observed.images[&a.config].tags, [tag]);

    let container = daemon.client(&["create", &b.config.to_string(), "/nothing"]).unwrap();
    assert_eq!(docker.reap(&[a.config, b.config].into()).unwrap(), [a.config]);
    daemon.client(&["rm", &container]).unwrap();
    assert_eq!(docker.reap(&[a.config, b.config].into()).unwrap(), [b.config]);
    assert!(docker.observe_images().unwrap().is_empty());
}

#[test]
fn a_step_runs_to_its_end_and_leaves_nothing() {
    let daemon = Dockerd::start();
    let docker = daemon.connect();
    let mut images = TinyImages::default();
    let image = images.add("shell", &[shell_layer(&["/bin/sleep"])], &["/bin/sh", "-c"]);
    images.load(|arguments| daemon.client(arguments), &image).unwrap();
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
