//! What a host does at boot, against a real Docker daemon. A small stand-in plays kubelet: it starts what stands in the
//! pods' directory, with the labels that cri-dockerd gives.

#![allow(clippy::unwrap_used)]

#[path = "support/dockerd.rs"]
mod dockerd;
#[path = "support/tiny_image.rs"]
mod tiny_image;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use dockerd::Dockerd;
use rackstep::host::absent;
use rackstep::host::boot::{BootError, Release, boot, boot_phases, observe_services};
use rackstep::host::phases::PhaseError;
use rackstep::host::places::Places;
use rackstep::host::readiness::node_name;
use rackstep::host::records::RecordsDone;
use rackstep::model::progress::Silent;
use rackstep::model::status::ContainerStatus;
use rackstep::model::{Commit, PinSet, PinnedImage};
use serde_json::{Value, json};
use tiny_image::{TinyImages, layer, shell_layer};

/// A database that is ready when it has written its file, and a service that needs it.
struct World {
    root: tempfile::TempDir,
    images: TinyImages,
    pause: PinnedImage,
    database: PinnedImage,
}

impl World {
    fn new() -> Self {
        let mut images = TinyImages::default();
        let shell = shell_layer(&["/bin/sleep", "/bin/cat"]);
        let pause = images.add("pause", std::slice::from_ref(&shell), &["/bin/sh", "-c", "exec sleep 1000"]);
        let database = images.add("database", &[shell], &["/bin/sh", "-c"]);
        Self { root: tempfile::tempdir().unwrap(), images, pause, database }
    }

    fn places(&self) -> Places {
        Places::below(self.root.path())
    }

    /// Puts a release in the place of the one that is booted.
    fn boot_into(&mut self, version: u64) -> (Release, PinnedImage) {
        let service = layer(&[("etc/version", version.to_string().as_bytes())]);
        let shell = shell_layer(&["/bin/sleep", "/bin/cat"]);
        let service = self.images.add(&format!("service {version}"), &[shell, service], &["/bin/sh", "-c"]);
        let images = [("pause", &self.pause), ("database", &self.database), ("service", &service)];
        let pins =
            PinSet { format: 1, images: images.map(|(name, image)| (name.to_owned(), image.clone())).into() };
        let directory = self.places().release;
        if directory.exists() {
            fs::remove_dir_all(&directory).unwrap();
        }
        let write = |path: &str, text: String| {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let state = self.root.path().join("var/lib/rackstep/state");
        let config = self.root.path().join("run/rackstep/config");
        let pod = |name: &str, script: &str, probe: Value| {
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
                "spec": {
                    "hostNetwork": true,
                    "containers": [{
                        "name": name, "image": name, "args": [script], "readinessProbe": probe,
                        "env": [{ "name": "WHO", "value": name }],
                        "volumeMounts": [
                            { "name": "config", "mountPath": "/config", "readOnly": true },
                            { "name": "data", "mountPath": "/data" },
                        ],
                    }],
                    "volumes": [
                        { "name": "config", "hostPath": { "path": format!("/run/rackstep/config/{name}") } },
                        { "name": "data", "hostPath": { "path": "/var/lib/rackstep/state/data" } },
                    ],
                },
            })
            .to_string()
        };
        let exec =
            json!({ "exec": { "command": ["/bin/sh", "-c", "cat /data/ready"] }, "timeoutSeconds": 10 });
        write("pods/database.yaml", pod("database", "sleep 1; echo 1 > /data/ready; exec sleep 1000", exec));
        write("pods/service.yaml", pod("service", "exec sleep 1000", Value::Null));
        write("config/database/conf", "password ${secret:password} on ${host:name}\n".to_owned());
        write("config/service/conf", "${NOT_OURS}".to_owned());
        let phase = |id: &str, kind: &str, image: &str, script: &str, needs: Value| {
            json!({
                "id": id, "service": image, "kind": kind, "image": image, "command": [script], "pod": image,
                "needs": needs, "env": { "PHASE": id },
            })
        };
        let log = |more: &str| format!("echo $WHO $PHASE >> /data/log; {more}");
        let needs = json!(["pod/database"]);
        let expand = format!(
            "test -e /data/ready && cat /etc/version >> /data/schema && ! test -e /data/break-{version}"
        );
        let phases = json!([
            phase("expand", "expand", "service", &log(&expand), needs.clone()),
            phase("contract", "contract", "service", "exit 1", needs),
            phase("init", "bootstrap", "database", &log("cat /config/conf > /data/seen"), json!([])),
        ]);
        let after = json!({ "database": ["init"], "service": ["expand"] });
        let packages: Value = json!({});
        write("phases.json", json!({ "format": 1, "phases": phases, "pods_after": after }).to_string());
        write("pins.json", serde_json::to_string(&pins).unwrap());
        write(
            "secrets.json",
            json!({ "format": 1, "secrets": { "password": { "generate": "password" } } }).to_string(),
        );
        write(
            "volumes.json",
            json!({ "format": 1, "volumes": { "data": { "policy": "snapshot", "mode": "0750" } } })
                .to_string(),
        );
        let info = json!({
            "format": 1, "name": "test", "version": version.to_string(), "created": version, "kernel": "6",
            "services": ["database", "service"], "packages": packages,
        });
        write("release.json", info.to_string());
        let host = json!({
            "format": 1, "name": "control-1", "address": "10.0.0.5", "ref": "main", "repo": "http://repo",
        });
        let host_config = self.places().host_config;
        fs::create_dir_all(host_config.parent().unwrap()).unwrap();
        fs::write(host_config, host.to_string()).unwrap();
        // A reboot: /run is empty, /var is not.
        let run = self.root.path().join("run");
        if run.exists() {
            fs::remove_dir_all(&run).unwrap();
        }
        let _ = (state, config);
        let commit: Commit = version.to_string().repeat(64).parse().unwrap();
        (Release::read(&directory, commit).unwrap(), service)
    }

    fn state(&self, name: &str) -> PathBuf {
        self.places().volumes().join("data").join(name)
    }

    /// What records do before Docker starts.
    fn record(&self, daemon: &Dockerd, images: &[&PinnedImage]) {
        for image in images {
            self.images.load(|arguments| daemon.client(arguments), image).unwrap();
        }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.state(name)).unwrap_or_default()
    }
}

/// Starts every pod that stands in `pods` and is not running yet.
fn play_kubelet(daemon: &Dockerd, places: &Places) {
    for entry in fs::read_dir(places.pods()).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with('.') {
            continue;
        }
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let pod: Value = serde_json::from_str(&text).unwrap();
        let name = pod["metadata"]["name"].as_str().unwrap();
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Never");
        let mut arguments = vec!["run".to_owned(), "-d".to_owned(), "--network=host".to_owned()];
        arguments.push(format!("--name=k8s_{name}"));
        let pod_name = format!("{name}-{}", node_name());
        for (label, value) in [
            ("io.kubernetes.pod.name", pod_name.as_str()),
            ("io.kubernetes.container.name", name),
            ("io.kubernetes.docker.type", "container"),
        ] {
            arguments.push(format!("--label={label}={value}"));
        }
        for (mount, volume) in container["volumeMounts"]
            .as_array()
            .unwrap()
            .iter()
            .zip(pod["spec"]["volumes"].as_array().unwrap())
        {
            let host = places.resolve(Path::new(volume["hostPath"]["path"].as_str().unwrap()));
            arguments.push(format!("-v={}:{}", host.display(), mount["mountPath"].as_str().unwrap()));
        }
        arguments.push(container["image"].as_str().unwrap().to_owned());
        arguments.push(container["args"][0].as_str().unwrap().to_owned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        // Refused when it runs already: the name is taken.
        let _ = daemon.client(&arguments);
    }
}

fn with_kubelet<R>(daemon: &Dockerd, places: &Places, act: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                play_kubelet(daemon, places);
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
        });
        let result = act();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// The power goes: every container of a pod ends, and what was ready is no more.
fn power_off(daemon: &Dockerd, world: &World) {
    for name in ["k8s_database", "k8s_service"] {
        let _ = daemon.client(&["rm", "-f", name]);
    }
    let _ = fs::remove_file(world.state("ready"));
}

#[test]
fn first_boot_upgrade_and_rollback() {
    let daemon = Dockerd::start();
    let root = daemon.data_root();
    let docker = daemon.connect();
    let mut world = World::new();
    let places = world.places();
    let boot = |release: &Release| boot(&docker, &root, release, &places).unwrap();
    let boot_phases = |release: &Release| {
        with_kubelet(&daemon, &places, || boot_phases(&docker, &root, release, &places, false, &Silent))
    };

    // First boot: nothing is there yet, the database waits for its phase.
    let (release, first) = world.boot_into(1);
    world.record(&daemon, &[&world.pause, &world.database, &first]);
    let booted = boot(&release);
    assert!(booted.kept_out.is_empty(), "{:?}", booted.kept_out);
    assert_eq!(booted.started, Vec::<String>::new());
    assert_eq!((booted.new_secrets, booted.new_volumes), (1, 1));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&places.volumes().join("data")), 0o750);
    assert_eq!(mode(&places.secrets()), 0o700);
    let secret = fs::read_to_string(places.secrets().join("password")).unwrap();
    let config = places.config().join("database/conf");
    assert_eq!(fs::read_to_string(&config).unwrap(), format!("password {secret} on control-1\n"));
    assert_eq!(mode(&config), 0o600);
    let environment = fs::read_to_string(places.run.join("cri-dockerd.env")).unwrap();
    let tag = format!("rackstep.internal/pause:{}", &world.pause.config.hex()[..12]);
    assert!(environment.contains(&format!("--pod-infra-container-image={tag}\n")), "{environment}");

    let done = boot_phases(&release).unwrap();
    assert_eq!(done.ran, ["init", "expand"], "init first: the database waits for it");
    assert_eq!(done.started, ["database", "service"]);
    assert_eq!(done.waiting, ["contract"]);
    assert_eq!(world.text("log"), "database init\nservice expand\n");
    assert_eq!(world.text("seen"), format!("password {secret} on control-1\n"));
    assert_eq!(world.text("schema"), "1");
    play_kubelet(&daemon, &places);
    let status = |name: &str, expected: &PinnedImage, running: Option<&PinnedImage>| ContainerStatus {
        pod: name.to_owned(),
        container: name.to_owned(),
        image: name.to_owned(),
        expected: expected.config,
        running: running.map(|image| image.config),
    };
    assert_eq!(
        observe_services(&docker, &places.release).unwrap(),
        [status("database", &world.database, Some(&world.database)), status("service", &first, Some(&first))]
    );
    // Once more changes nothing.
    assert_eq!(boot_phases(&release).unwrap().ran, Vec::<String>::new());
    let again = boot(&release);
    assert_eq!(again.started, ["database", "service"]);
    assert_eq!((again.new_secrets, again.new_volumes), (0, 0));

    // Upgrade: another service image, whose expand is due; the database does not wait.
    power_off(&daemon, &world);
    let (release, second) = world.boot_into(2);
    world.record(&daemon, &[&second]);
    let booted = boot(&release);
    assert_eq!(booted.started, ["database"]);
    // Its expand fails the first time: the service stays out, and the next try goes on from there.
    fs::write(world.state("break-2"), "").unwrap();
    let failed = boot_phases(&release);
    match failed {
        Err(BootError::Phase(PhaseError::Failed { phase, code, .. })) => {
            assert_eq!((phase.as_str(), code), ("expand", 1));
        }
        other => panic!("{other:?}"),
    }
    assert!(!places.pods().join("service.json").exists());
    fs::remove_file(world.state("break-2")).unwrap();
    let done = boot_phases(&release).unwrap();
    assert_eq!((done.ran, done.started), (vec!["expand".to_owned()], vec!["service".to_owned()]));
    assert_eq!(world.text("schema"), "122");

    // Rollback: everything starts at once and no phase runs.
    power_off(&daemon, &world);
    let (release, _) = world.boot_into(1);
    let booted = boot(&release);
    assert_eq!(booted.started, ["database", "service"]);
    play_kubelet(&daemon, &places);
    assert_eq!(boot_phases(&release).unwrap().ran, Vec::<String>::new());
    assert_eq!(world.text("schema"), "122");
    let services = observe_services(&docker, &places.release).unwrap();
    assert_eq!(services[1], status("service", &first, Some(&first)));

    // What runs may be of another release: it is told, not hidden.
    let (_, _) = world.boot_into(2);
    let services = observe_services(&docker, &places.release).unwrap();
    assert_eq!(services[1], status("service", &second, Some(&first)));
    power_off(&daemon, &world);
    let services = observe_services(&docker, &places.release).unwrap();
    assert_eq!(services[1], status("service", &second, None));
}

#[test]
fn an_image_that_is_not_there_keeps_its_own_pods_out_and_no_others() {
    let daemon = Dockerd::start();
    let (docker, root) = (daemon.connect(), daemon.data_root());
    let mut world = World::new();
    let places = world.places();
    let (release, service) = world.boot_into(1);
    world.record(&daemon, &[&world.pause, &world.database]);
    // What ran before Docker knows why.
    let mut done = RecordsDone::default();
    done.absent.insert(service.config, "layer 1 is damaged".to_owned());
    absent::note(&places, &Ok(done)).unwrap();
    let why = "image service is not in docker: layer 1 is damaged";
    let booted = boot(&docker, &root, &release, &places).unwrap();
    assert_eq!(booted.kept_out.pods, [("service".to_owned(), why.to_owned())].into());
    assert_eq!(booted.kept_out.phases, [("expand".to_owned(), why.to_owned())].into());
    let phases = || boot_phases(&docker, &root, &release, &places, false, &Silent);
    let done = with_kubelet(&daemon, &places, phases).unwrap();
    assert_eq!((done.ran, done.started), (vec!["init".to_owned()], vec!["database".to_owned()]));
    assert_eq!(done.kept_out, booted.kept_out);
    assert!(!places.pods().join("service.json").exists());

    // The image is there again: what waited runs.
    world.record(&daemon, &[&service]);
    let booted = boot(&docker, &root, &release, &places).unwrap();
    assert!(booted.kept_out.is_empty());
    let done = with_kubelet(&daemon, &places, phases).unwrap();
    assert_eq!((done.ran, done.started), (vec!["expand".to_owned()], vec!["service".to_owned()]));
    // Where Docker looks elsewhere than records are written, that is the reason.
    daemon.client(&["rm", "-f", "k8s_database", "k8s_service"]).unwrap();
    daemon.client(&["rmi", "-f", &service.config.to_string()]).unwrap();
    let booted = boot(&docker, Path::new("/var/lib/elsewhere"), &release, &places).unwrap();
    assert!(booted.kept_out.pods["service"].contains("/var/lib/elsewhere"), "{:?}", booted.kept_out);
    assert_eq!(booted.started, ["database"]);
}

#[test]
fn a_release_that_is_not_whole_is_named() {
    let mut world = World::new();
    let places = world.places();
    let (release, _) = world.boot_into(1);
    let commit = release.pins.commit();
    fs::write(places.release.join("phases.json"), r#"{"format": 7, "phases": []}"#).unwrap();
    let error = Release::read(&places.release, commit).unwrap_err().to_string();
    assert!(error.ends_with("phases.json is of format 7, expected 1"), "{error}");
    fs::remove_file(places.release.join("phases.json")).unwrap();
    let error = Release::read(&places.release, commit).unwrap_err().to_string();
    assert!(error.starts_with("reading ") && error.ends_with("phases.json"), "{error}");
}
