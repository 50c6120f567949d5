//! A rendered `/etc/kolla`, as kolla-ansible leaves it on a host, into workloads.
//!
//! 1. Every directory with a `config.json` is a service by Kolla's image contract; its files become the service's
//!    configuration as they are, passwords replaced by references; 2. what the container may do is not in `/etc/kolla`: it
//!    comes from `docker inspect`, or is refused for services that need more than files.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::kubernetes::Found;
use super::report::Ledger;
use super::scrub::Scrubber;
use super::tree::{Kind, Node, parse_documents};
use super::workload::{ConfigFile, Need, Workload, guess_policy, push, slug};
use crate::model::place::InputError;

/// A file of the input: its path below `/etc/kolla`, and its content.
#[derive(Debug, Clone)]
pub struct File {
    /// Path as it is told in the report.
    pub shown: String,
    /// `SERVICE/PATH`.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// What the person adds to the files.
#[derive(Debug, Default)]
pub struct Options {
    /// `docker inspect`'s output: file name and text.
    pub inspect: Option<(String, String)>,
    /// Reference of images with `{}` in place of the name, where no container tells it.
    pub images: Option<String>,
    /// Policies of volumes.
    pub policies: BTreeMap<String, String>,
}

type PlainService = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Services that need their files, a network and these volumes, and no privilege: directory → (image, volumes).
const PLAIN: &[PlainService] = &[
    ("keystone", "keystone", &[("keystone_fernet_tokens", "/etc/keystone/fernet-keys")]),
    ("glance-api", "glance-api", &[("glance", "/var/lib/glance")]),
    ("placement-api", "placement-api", &[]),
    ("nova-api", "nova-api", &[]),
    ("nova-conductor", "nova-conductor", &[]),
    ("nova-scheduler", "nova-scheduler", &[]),
    ("nova-novncproxy", "nova-novncproxy", &[]),
    ("neutron-server", "neutron-server", &[]),
    ("heat-api", "heat-api", &[]),
    ("heat-engine", "heat-engine", &[]),
    ("horizon", "horizon", &[]),
    ("memcached", "memcached", &[]),
    ("mariadb", "mariadb-server", &[("mariadb", "/var/lib/mysql")]),
    ("rabbitmq", "rabbitmq", &[("rabbitmq", "/var/lib/rabbitmq")]),
];

/// Where Kolla's images look for their configuration.
const CONFIG: &str = "/var/lib/kolla/config_files";

/// Reads the files of an `/etc/kolla`.
pub fn read(files: &[File], options: &Options, ledger: &Ledger) -> Result<Found, InputError> {
    let containers = match &options.inspect {
        Some((file, text)) => containers(file, text, ledger)?,
        None => Vec::new(),
    };
    let scrubber = Scrubber::new(files);
    let mut services: BTreeMap<&str, Vec<&File>> = BTreeMap::new();
    for file in files {
        match file.path.split_once('/') {
            Some((service, _)) => services.entry(service).or_default().push(file),
            None => {
                let leaf = loose(file, ledger);
                ledger.warned(&leaf, "a file of the deployer, which no service reads");
            }
        }
    }
    let mut found = Found::default();
    for (name, files) in services {
        match files.iter().find(|file| file.path == format!("{name}/config.json")) {
            Some(config) => {
                found.workloads.push(service(name, config, &files, &containers, options, &scrubber, ledger)?)
            }
            None => {
                for file in files {
                    ledger.warned(
                        &loose(file, ledger),
                        "its directory has no config.json, so no service reads it",
                    );
                }
            }
        }
    }
    for (name, node) in &containers {
        ledger
            .warned(node, format!("container {name} has no directory in the input, or Docker's own default"));
    }
    Ok(found)
}

fn loose(file: &File, ledger: &Ledger) -> Node {
    let leaf = ledger.enter(&file.shown, 1, &file.path);
    Node { line: 1, kind: Kind::Scalar(String::new(), super::tree::Style::Quoted), leaf: Some(leaf) }
}

fn containers(file: &str, text: &str, ledger: &Ledger) -> Result<Vec<(String, Node)>, InputError> {
    let documents = parse_documents(file, text, ledger)?;
    let items = documents.iter().flat_map(|document| document.root.items());
    let named = items.map(|node| {
        let name = node.text_of("Name").trim_start_matches('/').to_owned();
        ledger.title(node, &format!("container/{name}"));
        (name, node.clone())
    });
    Ok(named.collect())
}

#[allow(clippy::too_many_arguments)] // the parts of one reading, each used once
fn service(
    name: &str,
    config: &File,
    files: &[&File],
    containers: &[(String, Node)],
    options: &Options,
    scrubber: &Scrubber,
    ledger: &Ledger,
) -> Result<Workload, InputError> {
    let own = slug(name);
    let mut workload = Workload::new(&own, &own, format!("service/{name}"), &config.shown, 1);
    workload.labels.insert("app.kubernetes.io/name".to_owned(), own.clone());
    workload.spec.insert("restartPolicy".to_owned(), "Always".into());
    let mut container = Map::new();
    container.insert("name".to_owned(), own.clone().into());
    push(&mut container, "env", json!({"name": "KOLLA_CONFIG_STRATEGY", "value": "COPY_ALWAYS"}));
    let path = format!("/run/rackstep/config/{own}");
    workload.volumes.push(json!({"name": "config", "hostPath": {"path": path, "type": "Directory"}}));
    push(&mut container, "volumeMounts", json!({"name": "config", "mountPath": CONFIG, "readOnly": true}));
    check_config(name, config, files, ledger)?;
    for file in files {
        let path = file.path.split_once('/').map_or(file.path.as_str(), |(_, path)| path);
        let scrubbed = scrubber.scrub(&own, path, &file.content);
        for secret in scrubbed.secrets {
            ledger.secret(&secret, &format!("{}, in clear", file.shown));
            workload.secrets.insert(secret);
        }
        if file.path != config.path {
            ledger.translated(&loose(file, ledger), format!("config/{path}"));
        }
        workload.config.insert(path.to_owned(), ConfigFile { content: scrubbed.content, executable: false });
    }
    // Containers are named with underscores where directories have dashes.
    let running = containers.iter().find(|(container, _)| slug(container) == own);
    match running {
        Some((_, node)) => inspected(node, &mut workload, &mut container, options, ledger),
        None => assumed(name, &mut workload, &mut container, options, ledger),
    }
    workload.containers.push(container);
    Ok(workload)
}

fn check_config(name: &str, config: &File, files: &[&File], ledger: &Ledger) -> Result<(), InputError> {
    let text = String::from_utf8_lossy(&config.content);
    for document in parse_documents(&config.shown, &text, ledger)? {
        let root = &document.root;
        ledger.title(root, &format!("service/{name}"));
        for (key, node) in root.entries() {
            match key.as_str() {
                "command" | "permissions" | "directories" | "files" => {
                    ledger.translated(node, "config/config.json")
                }
                "config_files" => {
                    for item in node.items() {
                        let source = item.text_of("source");
                        let path = source.strip_prefix(CONFIG).map(|path| path.trim_start_matches('/'));
                        let there = path.is_none_or(|path| {
                            path.contains(['*', '?', '['])
                                || files.iter().any(|file| file.path.starts_with(&format!("{name}/{path}")))
                        });
                        if there
                            || item.get("optional").is_some_and(Node::is_true)
                            || item.get("ignore_missing").is_some_and(Node::is_true)
                        {
                            ledger.translated(item, "config/config.json");
                        } else {
                            ledger.refused(item, format!("{source} is not in the input"));
                        }
                    }
                }
                _ => ledger.refused(node, "Kolla's contract has no such field"),
            }
        }
    }
    Ok(())
}

/// What a running container tells of itself.
fn inspected(
    node: &Node,
    workload: &mut Workload,
    container: &mut Map<String, Value>,
    options: &Options,
    ledger: &Ledger,
) {
    let into = format!("pod {}", workload.name);
    let Some(host) = node.get("HostConfig") else { return };
    if let Some(image) = node.at(&["Config", "Image"]) {
        container.insert("image".to_owned(), image.value());
        ledger.translated(image, into.clone());
    }
    for (key, field) in [("PidMode", "hostPID"), ("IpcMode", "hostIPC")] {
        if host.text_of(key) == "host" {
            workload.spec.insert(field.to_owned(), true.into());
        }
        host.get(key).into_iter().for_each(|node| ledger.translated(node, into.clone()));
    }
    if let Some(privileged) = host.get("Privileged") {
        if privileged.is_true() {
            container.insert("securityContext".to_owned(), json!({"privileged": true}));
        }
        ledger.translated(privileged, into.clone());
    }
    for (key, field) in [("CapAdd", "add"), ("CapDrop", "drop")] {
        let Some(node) = host.get(key) else { continue };
        if !node.items().is_empty() {
            let context = container.entry("securityContext").or_insert_with(|| json!({}));
            context["capabilities"][field] =
                node.words().iter().map(|word| word.trim_start_matches("CAP_").to_owned()).collect();
        }
        ledger.translated(node, into.clone());
    }
    for item in host.get("Binds").map(Node::items).unwrap_or_default() {
        bind(item.text().unwrap_or_default(), Some(item), workload, container, options, ledger);
    }
    let Some(config) = node.get("Config") else { return };
    for item in config.get("Env").map(Node::items).unwrap_or_default() {
        let (name, value) = item.text().and_then(|text| text.split_once('=')).unwrap_or_default();
        // The image brings its own; what Kolla adds is the contract's.
        if name.starts_with("KOLLA_")
            && !["KOLLA_CONFIG_STRATEGY", "KOLLA_BASE_DISTRO", "KOLLA_DISTRO_PYTHON_VERSION"].contains(&name)
        {
            push(container, "env", json!({"name": name, "value": value}));
            ledger.translated(item, into.clone());
        } else {
            ledger.warned(item, "the image's own, or the contract's default");
        }
    }
    if host.text_of("NetworkMode") != "host" {
        ledger.note(&workload.file, node.line, &workload.object, "every pod is on the host's network");
    }
    for key in ["Ulimits", "Devices", "Sysctls", "SecurityOpt"] {
        if let Some(node) =
            host.get(key).filter(|node| !node.items().is_empty() || !node.entries().is_empty())
        {
            ledger.refused(node, "a pod has no such field, and the container would run otherwise without it");
        }
    }
    ledger.warned(node, "Docker's own record, not a wish of the deployer");
}

/// What is known of services that need nothing but their files.
fn assumed(
    name: &str,
    workload: &mut Workload,
    container: &mut Map<String, Value>,
    options: &Options,
    ledger: &Ledger,
) {
    let problem = |why: &str| ledger.problem(&workload.file, 1, &workload.object, why);
    let Some((_, image, volumes)) = PLAIN.iter().find(|(known, _, _)| *known == name) else {
        return problem(
            "what its container mounts and may do is not in /etc/kolla: say --inspect FILE with the output of `docker inspect $(docker ps -q)` on that host",
        );
    };
    match &options.images {
        Some(pattern) => drop(container.insert("image".to_owned(), pattern.replace("{}", image).into())),
        None => problem(
            "which image it runs is not in /etc/kolla: say --inspect FILE, or --images 'quay.io/openstack.kolla/{}:TAG'",
        ),
    }
    for (volume, path) in *volumes {
        bind(&format!("{volume}:{path}"), None, workload, container, options, ledger);
    }
    if name != "mariadb" && name != "memcached" && name != "rabbitmq" {
        workload.needs.extend(["mariadb"].map(|name| Need { name: name.to_owned(), line: 1 }));
    }
}

fn bind(
    text: &str,
    node: Option<&Node>,
    workload: &mut Workload,
    container: &mut Map<String, Value>,
    options: &Options,
    ledger: &Ledger,
) {
    let mut parts = text.split(':');
    let (source, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let flags = parts.next().unwrap_or_default();
    let settle = |why: &str| node.into_iter().for_each(|node| ledger.translated(node, why));
    if target.trim_end_matches('/') == CONFIG {
        return settle("config/");
    }
    let number = workload.volumes.len();
    let name = format!("v{number}");
    let read_only = flags.split(',').any(|flag| flag == "ro");
    let mut mount = json!({"name": name, "mountPath": target, "readOnly": read_only});
    if flags.contains("shared") {
        mount["mountPropagation"] = "Bidirectional".into();
    }
    if source.starts_with('/') {
        workload.volumes.push(json!({"name": name, "hostPath": {"path": source}}));
        settle("a directory of the host");
    } else {
        let state = slug(source);
        let given = options.policies.get(&state).map(String::as_str);
        match given.or_else(|| guess_policy(&state, &[target.to_owned()])) {
            Some(policy) => {
                workload.state_volume(&name, &state, policy);
                settle(&format!("volume {state}, policy {policy}"));
            }
            None => {
                let why = format!(
                    "what a rollback may do to volume {state} cannot be told: say --volume {state}=snapshot|keep|disposable"
                );
                node.into_iter().for_each(|node| ledger.refused(node, why.clone()));
                ledger.problem(&workload.file, 1, &workload.object, why);
                return;
            }
        }
    }
    push(container, "volumeMounts", mount);
}
