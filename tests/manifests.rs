//! The service definitions that we ship: they load, agree with themselves, and their images' entry point does its work.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rackstep::release::manifest::Service;
use rackstep::release::tree::podcheck::PodCheck;
use serde_json::Value;

const SERVICES: [&str; 3] = ["mariadb", "memcached", "keystone"];
const STATE: &str = "/var/lib/rackstep/state/";

fn manifests() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("manifests")
}

fn yaml(path: &Path) -> Value {
    serde_yaml_ng::from_str(&fs::read_to_string(path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every `${kind:name}` of a service's configuration.
fn references(config: &Path, kind: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(config).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for part in text.split(&format!("${{{kind}:")).skip(1) {
            found.insert(part.split('}').next().unwrap().to_owned());
        }
    }
    found
}

#[test]
fn every_service_loads_and_agrees_with_itself() {
    for name in SERVICES {
        let dir = manifests().join(name);
        let service = Service::load(&dir, &PodCheck::new(&dir)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(service.name, name);
        let file = yaml(&dir.join("service.yaml"));
        let declared =
            |field: &str| file[field].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();

        let config = service.config.unwrap();
        assert_eq!(references(&config, "secret"), declared("secrets"), "{name}: secrets");
        assert!(
            references(&config, "host").iter().all(|key| key == "name" || key == "address"),
            "{name}: host"
        );
        let start: Value =
            serde_json::from_str(&fs::read_to_string(config.join("config.json")).unwrap()).unwrap();
        for source in start["config_files"].as_array().unwrap() {
            assert!(config.join(source["source"].as_str().unwrap()).is_file(), "{name}: {source}");
        }

        let mut volumes = BTreeSet::new();
        for pod in file["pods"].as_array().unwrap() {
            let pod = yaml(&dir.join(pod.as_str().unwrap()));
            for volume in pod["spec"]["volumes"].as_array().unwrap() {
                // kubelet refuses a static pod that needs anything of an API server.
                let path = volume["hostPath"]["path"].as_str().unwrap_or_else(|| panic!("{name}: {volume}"));
                match path.strip_prefix(STATE) {
                    Some(state) => assert!(volumes.insert(state.to_owned())),
                    None => assert!(path.starts_with("/run/rackstep/"), "{name}: {path}"),
                }
            }
            for container in pod["spec"]["containers"].as_array().unwrap() {
                assert_eq!(container["imagePullPolicy"], "Never");
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    assert!(container[probe].is_object(), "{name}: {probe}");
                }
            }
        }
        assert_eq!(volumes, declared("volumes"), "{name}: volumes");
    }
}

#[test]
fn needs_of_phases_exist_and_come_earlier() {
    let mut pods = BTreeSet::new();
    let mut phases = BTreeSet::new();
    for name in SERVICES {
        let file = yaml(&manifests().join(name).join("service.yaml"));
        pods.insert(name.to_owned());
        for phase in file["phases"].as_array().unwrap() {
            for need in phase["needs"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let known = match need.split_once('/').unwrap() {
                    ("pod", pod) => pods.contains(pod),
                    (_, phase) => phases.contains(phase),
                };
                assert!(known, "{name}: {} needs {need}", phase["id"]);
            }
            assert!(phases.insert(phase["id"].as_str().unwrap().to_owned()), "{} twice", phase["id"]);
        }
    }
}

#[test]
fn both_keystone_images_give_a_pod_the_same_ground() {
    let image = |file: &str| yaml(&manifests().join("keystone").join(file));
    let (old, new) = (image("image.yaml"), image("image-28.yaml"));
    for field in ["name", "users", "directories", "files", "entrypoint"] {
        assert_eq!(old[field], new[field], "{field}");
    }
    assert_ne!(old["version"], new["version"]);
}

#[test]
fn every_wheel_is_pinned_by_version_and_hash() {
    let text = fs::read_to_string(manifests().join("keystone/requirements-28.txt")).unwrap();
    let mut names = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (pin, hash) = line.split_once(" --hash=sha256:").unwrap_or_else(|| panic!("{line}"));
        let (name, version) = pin.split_once("==").unwrap_or_else(|| panic!("{line}"));
        assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{line}");
        assert_eq!(names.insert(name, version), None, "{name} twice");
    }
    assert_eq!(names["keystone"], "28.1.0");
}

/// Runs the entry point on a configuration of our own.
fn start(config: &str, dir: &Path, strategy: &str, arguments: &[&str]) -> Output {
    let file = dir.join("config.json");
    fs::write(&file, config.replace("DIR", &dir.display().to_string())).unwrap();
    Command::new(manifests().join("common/rackstep-start"))
        .args(arguments)
        .env("RACKSTEP_CONFIG", &file)
        .env("KOLLA_CONFIG_STRATEGY", strategy)
        .output()
        .unwrap()
}

/// Whether the entry point can give files and itself to another user here.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn start_copies_with_owner_and_mode_then_runs_as_the_user() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // A name and a content that a shell would love to interpret.
    fs::write(dir.path().join("it's $(here)"), "p=$(false)\n").unwrap();
    fs::create_dir(dir.path().join("volume")).unwrap();
    let config = r#"{
        "command": ["sh", "-c", "id -un; cat DIR/etc/conf; echo \"$HOME\""],
        "user": "daemon",
        "config_files": [
            {"source": "DIR/it's $(here)", "dest": "DIR/etc/conf", "owner": "daemon:daemon", "perm": "0400"},
            {"source": "DIR/none", "dest": "DIR/etc/none", "owner": "root", "perm": "0600", "optional": true}
        ],
        "permissions": [{"path": "DIR/volume", "owner": "daemon:daemon", "perm": "0700", "recurse": true}]
    }"#;
    let output = start(config, dir.path(), "COPY_ALWAYS", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "daemon\np=$(false)\n/usr/sbin\n");
    let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("etc/conf"), mode("volume")), (0o400, 0o700));
    assert_ne!(fs::metadata(dir.path().join("volume")).unwrap().uid(), 0);
    assert!(!dir.path().join("etc/none").exists());

    // A container's own arguments (a phase) take the command's place; once more over existing files.
    let output = start(config, dir.path(), "COPY_ALWAYS", &["id", "-un"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "daemon\n");
}

#[test]
fn start_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let table = [
        ("{}", "", "KOLLA_CONFIG_STRATEGY is \"\", expected COPY_ALWAYS or COPY_ONCE"),
        ("{}", "COPY_ALWAYS", "no command, and the container has no arguments"),
        ("{", "COPY_ALWAYS", "not valid JSON"),
        (
            r#"{"command": "true", "user": "nobody-at-all"}"#,
            "COPY_ALWAYS",
            "user nobody-at-all does not exist in this image",
        ),
        (
            r#"{"command": "true", "config_files": [{"source": "DIR/none", "dest": "/nowhere", "owner": "root", "perm": "0600"}]}"#,
            "COPY_ALWAYS",
            "none: no such file",
        ),
    ];
    for (config, strategy, expected) in table {
        let output = start(config, dir.path(), strategy, &[]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && told.contains(expected), "{told}\nexpected {expected}");
    }
}

/// Directories of the OpenStack set that hold a service.
fn openstack_set() -> Vec<PathBuf> {
    let entries = fs::read_dir(manifests().join("openstack")).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("service.yaml").is_file());
    found.sort();
    found
}

#[test]
fn the_openstack_set_loads_and_agrees_with_itself() {
    assert_eq!(openstack_set().len(), 11);
    for dir in openstack_set() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let service = Service::load(&dir, &PodCheck::new(&dir)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(service.name, name);
        let file = yaml(&dir.join("service.yaml"));
        let declared =
            |field: &str| file[field].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        let config = service.config.unwrap();
        assert_eq!(references(&config, "secret"), declared("secrets"), "{name}: secrets");
        assert!(references(&config, "host").iter().all(|key| key == "name" || key == "address"), "{name}");
        let mut volumes = BTreeSet::new();
        for pod in file["pods"].as_array().unwrap() {
            let pod = yaml(&dir.join(pod.as_str().unwrap()));
            for volume in pod["spec"]["volumes"].as_array().unwrap() {
                let path = volume["hostPath"]["path"].as_str().unwrap();
                volumes.extend(path.strip_prefix(STATE).map(str::to_owned));
            }
            for container in pod["spec"]["containers"].as_array().unwrap() {
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    assert!(container[probe].is_object(), "{name}: {probe}");
                }
                // Whatever is not privileged drops everything that it does not name.
                let context = &container["securityContext"];
                let drops = context["capabilities"]["drop"][0] == "ALL";
                let argued = pod["metadata"]["annotations"]["rackstep.io/privileged-because"].is_string();
                assert!(if context["privileged"] == true { argued } else { drops }, "{name}: {context}");
                let start = container["env"].as_array().unwrap().iter();
                let start = start.filter(|variable| variable["name"] == "RACKSTEP_CONFIG");
                let start =
                    start.filter_map(|variable| variable["value"].as_str()).next().unwrap_or("/config.json");
                let start = config.join(start.rsplit('/').next().unwrap());
                let start: Value = serde_json::from_str(&fs::read_to_string(start).unwrap()).unwrap();
                for source in start["config_files"].as_array().unwrap() {
                    assert!(config.join(source["source"].as_str().unwrap()).is_file(), "{name}: {source}");
                }
            }
        }
        assert_eq!(volumes, declared("volumes"), "{name}: volumes");
        for json in ["database.json", "identity.json"] {
            if let Ok(text) = fs::read_to_string(config.join(json)) {
                serde_json::from_str::<Value>(&text).unwrap();
            }
        }
    }
}

#[test]
fn needs_of_the_profiles_come_earlier_and_lint_finds_no_error() {
    let root = manifests().parent().unwrap().to_owned();
    for (profile, phases_at_least) in [("all-in-one", 30), ("control", 28), ("compute", 3)] {
        let path = root.join(format!("host-image/{profile}.yaml"));
        let treefile =
            rackstep::release::manifest::Treefile::load(&path).unwrap_or_else(|error| panic!("{error}"));
        let services = rackstep::release::lock::load_services(&treefile).unwrap();
        let (mut pods, mut phases) = (BTreeSet::new(), BTreeSet::new());
        for service in &services {
            let file = yaml(&service.dir.join("service.yaml"));
            for pod in file["pods"].as_array().unwrap() {
                let pod = yaml(&service.dir.join(pod.as_str().unwrap()));
                assert!(pods.insert(pod["metadata"]["name"].as_str().unwrap().to_owned()), "{pod}");
            }
            for phase in file["phases"].as_array().unwrap() {
                for need in phase["needs"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    let known = match need.split_once('/').unwrap() {
                        ("pod", pod) => pods.contains(pod),
                        (_, phase) => phases.contains(phase),
                    };
                    assert!(known, "{profile}: {} needs {need}", phase["id"]);
                }
                assert!(phases.insert(phase["id"].as_str().unwrap().to_owned()), "{} twice", phase["id"]);
            }
        }
        assert!(phases.len() >= phases_at_least, "{profile}: {}", phases.len());
        let told = Command::new(env!("CARGO_BIN_EXE_rackstep")).arg("lint").arg(&path).output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stdout));
    }
}

#[test]
fn recipes_of_the_set_name_files_that_exist() {
    let common = yaml(&manifests().join("openstack/common/python.yaml"));
    for dir in openstack_set() {
        let Ok(text) = fs::read_to_string(dir.join("image.yaml")) else { continue };
        let recipe: Value = serde_yaml_ng::from_str(&text).unwrap();
        let included = recipe["include"].as_str().map(|include| {
            assert!(dir.join(include).is_file(), "{include}");
            &common["files"]
        });
        for files in [Some(&recipe["files"]), included].into_iter().flatten() {
            for file in files.as_object().into_iter().flatten().map(|(file, _)| file) {
                assert!(dir.join(file).is_file(), "{}: {file}", dir.display());
            }
        }
    }
    for entry in fs::read_dir(manifests().join("openstack/common")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "py") {
            let parsed = Command::new("python3")
                .args(["-c", "import ast, sys; ast.parse(open(sys.argv[1]).read())"])
                .arg(&path)
                .status();
            assert!(parsed.unwrap().success(), "{}", path.display());
        }
    }
}
