//! What runs, between the input's form and ours.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// Where the rendered configuration of a service is on a host, below which every container user may read.
pub fn config_path(group: &str, directory: &str) -> String {
    format!("/run/rackstep/config/{group}/{READABLE}/{directory}")
}

/// The directory of configuration that every user of a container may read.
pub const READABLE: &str = "readable";

/// Where a container finds the environment that holds secrets.
pub const ENVIRONMENT: &str = "/rackstep-env";

/// How a thing runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Always: a pod.
    Daemon,
    /// To its end: a phase.
    Once,
}

/// A file of configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Its content, with references in place of secrets.
    pub content: Vec<u8>,
    /// Whether it can be run.
    pub executable: bool,
}

/// Something that must be ready or done before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// A workload, or the name of a service that workloads stand behind.
    pub name: String,
    /// The line that says so.
    pub line: usize,
}

/// Something that runs.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// The service definition that it becomes a part of.
    pub group: String,
    /// Kind and name in the input.
    pub object: String,
    /// Its file.
    pub file: String,
    /// Its first line.
    pub line: usize,
    /// How it runs.
    pub mode: Mode,
    /// Its labels, which services select.
    pub labels: BTreeMap<String, String>,
    /// Fields of the pod's spec, without containers and volumes.
    pub spec: Map<String, Value>,
    /// Containers that run first.
    pub first: Vec<Map<String, Value>>,
    /// Containers.
    pub containers: Vec<Map<String, Value>>,
    /// Volumes, of kinds that a static pod may have.
    pub volumes: Vec<Value>,
    /// Path below the service's configuration → file.
    pub config: BTreeMap<String, ConfigFile>,
    /// Names of secrets that the configuration refers to.
    pub secrets: BTreeSet<String>,
    /// Volumes of the host's state: name → policy.
    pub state: BTreeMap<String, String>,
    /// What it needs.
    pub needs: Vec<Need>,
    /// The kind of phase that the input names, if it names one.
    pub phase_kind: Option<&'static str>,
    /// Whether it gets the addresses of services in its environment.
    pub service_links: bool,
}

impl Workload {
    /// An empty one.
    pub fn new(name: &str, group: &str, object: String, file: &str, line: usize) -> Self {
        Self {
            name: name.to_owned(),
            group: group.to_owned(),
            object,
            file: file.to_owned(),
            line,
            mode: Mode::Daemon,
            labels: BTreeMap::new(),
            spec: Map::new(),
            first: Vec::new(),
            containers: Vec::new(),
            volumes: Vec::new(),
            config: BTreeMap::new(),
            secrets: BTreeSet::new(),
            state: BTreeMap::new(),
            needs: Vec::new(),
            phase_kind: None,
            service_links: true,
        }
    }

    /// Mounts the configuration directory `directory` (below `readable`) as the volume `volume`.
    pub fn config_volume(&mut self, volume: &str, directory: &str) {
        let path = config_path(&self.group, directory);
        self.volumes.push(json!({"name": volume, "hostPath": {"path": path, "type": "Directory"}}));
    }

    /// Adds a file below the configuration directory `directory`.
    pub fn config_file(&mut self, directory: &str, path: &str, content: Vec<u8>, executable: bool) {
        self.config.insert(format!("{READABLE}/{directory}/{path}"), ConfigFile { content, executable });
    }

    /// Mounts state of the host as the volume `volume`.
    pub fn state_volume(&mut self, volume: &str, state: &str, policy: &str) {
        let path = format!("/var/lib/rackstep/state/{state}");
        self.volumes.push(json!({"name": volume, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}));
        self.state.insert(state.to_owned(), policy.to_owned());
    }

    /// Gives `container` variables whose values are secrets: a file that its command reads before anything else.
    /// False: the container says no command, so nothing could read the file.
    pub fn secret_environment(
        &mut self,
        container: &mut Map<String, Value>,
        variables: &[(String, String)],
    ) -> bool {
        if variables.is_empty() {
            return true;
        }
        let Some(Value::Array(command)) = container.get("command").cloned() else { return false };
        let file =
            format!("{}-{}", self.name, container.get("name").and_then(Value::as_str).unwrap_or("main"));
        let lines = variables.iter().map(|(name, value)| format!("export {name}='{value}'\n"));
        self.config_file("env", &file, lines.collect::<String>().into_bytes(), false);
        let mut wrapped: Vec<Value> = vec![
            "sh".into(),
            "-c".into(),
            format!(". {ENVIRONMENT}/{file}; exec \"$@\"").into(),
            "sh".into(),
        ];
        wrapped.extend(command);
        container.insert("command".to_owned(), wrapped.into());
        let mount = json!({"name": "rackstep-env", "mountPath": ENVIRONMENT, "readOnly": true});
        push(container, "volumeMounts", mount);
        if !self.volumes.iter().any(|volume| volume["name"] == "rackstep-env") {
            self.config_volume("rackstep-env", "env");
        }
        true
    }
}

/// Appends to a list of a mapping.
pub fn push(map: &mut Map<String, Value>, key: &str, value: Value) {
    if let Value::Array(list) = map.entry(key).or_insert_with(|| Value::Array(Vec::new())) {
        list.push(value);
    }
}

/// Why a directory of the host that holds data is told; none for sockets, devices and the system's own.
#[must_use]
pub fn outside_of_state(path: &str) -> Option<&'static str> {
    let holds_data =
        ["/var/lib/", "/srv", "/opt", "/home", "/data"].iter().any(|start| path.starts_with(start));
    (holds_data && !path.starts_with("/var/lib/rackstep/state/")).then_some(
        "kept, but no volume of ours: no snapshot is made of it, and a rollback leaves it as it is",
    )
}

/// What may be lost with a volume, told from its name and where it is mounted.
pub fn guess_policy(name: &str, paths: &[String]) -> Option<&'static str> {
    const KNOWN: [(&str, &[&str]); 3] = [
        (
            "keep",
            &[
                "fernet",
                "credential",
                "-keys",
                "keys-",
                "images",
                "glance",
                "instances",
                "/nova",
                "novadata",
                "libvirt",
                "cinder",
                "swift",
                "ceph",
                "certs",
                "openvswitch",
            ],
        ),
        (
            "snapshot",
            &[
                "mysql", "mariadb", "postgres", "galera", "etcd", "ovn", "mongo", "influx", "database",
                "-db", "db-",
            ],
        ),
        (
            "disposable",
            &["rabbit", "memcache", "cache", "tmp", "redis", "/log", "logs", "-run", "/run/", "sock"],
        ),
    ];
    let text = format!("{name} {}", paths.join(" ")).to_lowercase();
    let mut found = KNOWN
        .iter()
        .filter(|(_, words)| words.iter().any(|word| text.contains(word)))
        .map(|(policy, _)| *policy);
    match (found.next(), found.next()) {
        (Some(policy), None) => Some(policy),
        // A name that tells of both a database and keys is for a person to decide.
        _ => None,
    }
}

/// Lower case letters, digits and dashes: fit for the name of a pod, a volume and a directory.
pub fn slug(text: &str) -> String {
    let mapped: String = text
        .to_lowercase()
        .chars()
        .map(|letter| if letter.is_ascii_lowercase() || letter.is_ascii_digit() { letter } else { '-' })
        .collect();
    let parts: Vec<&str> = mapped.split('-').filter(|part| !part.is_empty()).collect();
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        for (name, path, policy) in [
            ("mariadb-data", "/var/lib/mysql", Some("snapshot")),
            ("keystone-fernet", "/etc/keystone/fernet-keys", Some("keep")),
            ("rabbitmq", "/var/lib/rabbitmq", Some("disposable")),
            ("data", "/data", None),
        ] {
            assert_eq!(guess_policy(name, &[path.to_owned()]), policy, "{name}");
        }
    }
}
