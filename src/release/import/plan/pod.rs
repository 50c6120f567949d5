//! Pod specs of Kubernetes, field by field, into what a kubelet without an API server takes.

mod volumes;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::compose::is_secret_name;
use super::report::Ledger;
use super::tree::Node;
use super::workload::{Need, Workload, push};
use volumes::mount_paths;

/// Fields of a pod's spec that a static pod keeps.
const KEPT: &[&str] = &[
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "securityContext",
    "hostPID",
    "hostIPC",
    "hostNetwork",
    "shareProcessNamespace",
    "hostAliases",
    "automountServiceAccountToken",
    "enableServiceLinks",
];

/// Fields that choose hosts or speak to an API server.
const WARNED: &[(&str, &str)] = &[
    (
        "nodeSelector",
        "which hosts run it is the choice of the treefile: list the service in the profile of those hosts",
    ),
    (
        "affinity",
        "which hosts run it is the choice of the treefile: list the service in the profile of those hosts",
    ),
    (
        "nodeName",
        "which hosts run it is the choice of the treefile: list the service in the profile of that host",
    ),
    ("topologySpreadConstraints", "one pod runs on each host that has the service"),
    ("tolerations", "hosts have no taints: a host runs what its release lists"),
    ("priorityClassName", "a static pod is never preempted"),
    ("priority", "a static pod is never preempted"),
    ("preemptionPolicy", "a static pod is never preempted"),
    ("schedulerName", "nothing schedules: a host runs what its release lists"),
    ("serviceAccountName", "a host has no API server, so the pod gets no token"),
    ("serviceAccount", "a host has no API server, so the pod gets no token"),
    ("dnsPolicy", "the pod resolves names as its host does; services are in its hosts file"),
    ("dnsConfig", "the pod resolves names as its host does; services are in its hosts file"),
    ("hostname", "on the host's network a pod has the host's name"),
    ("subdomain", "on the host's network a pod has the host's name"),
    ("setHostnameAsFQDN", "on the host's network a pod has the host's name"),
    ("imagePullSecrets", "images are in the release: log in to the registry where `rackstep lock` runs"),
    ("os", "hosts run Linux"),
];

/// Fields of a container that stay as they are.
const CONTAINER_KEPT: &[&str] = &[
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "ports",
    "resources",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "restartPolicy",
    "volumeMounts",
];

/// Why a password among the variables is not made a secret.
pub const IN_CLEAR: &str = "kept, but a password in clear: whoever reads the release reads it (with a command written, \
                            the import makes it a named secret)";

/// A value of a ConfigMap.
#[derive(Debug, Clone)]
pub struct Datum {
    /// Its content.
    pub content: Vec<u8>,
    /// Where it stands.
    pub node: Node,
}

/// The objects that pods refer to.
#[derive(Debug, Default)]
pub struct Objects {
    /// ConfigMaps by name, their values by key.
    pub config_maps: BTreeMap<String, BTreeMap<String, Datum>>,
    /// Secrets by name, their keys alone with the places of the values.
    pub secrets: BTreeMap<String, BTreeMap<String, Node>>,
    /// Claims by name.
    pub claims: BTreeMap<String, Node>,
    /// Policies that the person gave: volume → policy.
    pub policies: BTreeMap<String, String>,
}

/// Translates one pod spec into `workload`.
pub struct Translator<'a> {
    /// The book of fields.
    pub ledger: &'a Ledger,
    /// What pods refer to.
    pub objects: &'a Objects,
    /// What is built.
    pub workload: Workload,
}

impl Translator<'_> {
    /// Reads the whole spec.
    pub fn spec(&mut self, spec: &Node, templates: &[String]) {
        let into = format!("pod {}", self.workload.name);
        for (key, node) in spec.entries() {
            match key.as_str() {
                "containers" | "initContainers" | "volumes" => {}
                "hostNetwork" if !node.is_true() => {
                    self.ledger
                        .warned(node, "a host has no network for pods: the pod runs on the host's network");
                }
                key if KEPT.contains(&key) => {
                    if key == "enableServiceLinks" {
                        self.workload.service_links = node.is_true();
                    }
                    self.workload.spec.insert(key.to_owned(), node.value());
                    self.ledger.translated(node, into.clone());
                }
                key => match WARNED.iter().find(|(name, _)| *name == key) {
                    Some((_, why)) => self.ledger.warned(node, *why),
                    None => self.ledger.refused(node, "a pod without an API server has no such field"),
                },
            }
        }
        if spec.get("hostNetwork").is_none() {
            let (file, line) = (self.workload.file.clone(), spec.line);
            let why =
                "runs on the host's network: a host has no other for pods, and its ports are the host's";
            self.ledger.note(&file, line, &self.workload.object, why);
        }
        let mounts = mount_paths(spec);
        for volume in spec.get("volumes").map(Node::items).unwrap_or_default() {
            self.volume(volume, &mounts);
        }
        for name in templates {
            let paths = mounts.get(name).cloned().unwrap_or_default();
            self.state(name, name, &paths, None);
        }
        for container in spec.get("initContainers").map(Node::items).unwrap_or_default() {
            if self.dependency_container(container) {
                continue;
            }
            let made = self.container(container);
            self.workload.first.push(made);
        }
        for container in spec.get("containers").map(Node::items).unwrap_or_default() {
            let made = self.container(container);
            self.workload.containers.push(made);
        }
    }

    /// OpenStack-Helm's container that waits for others: its variables become the graph, the container goes.
    fn dependency_container(&mut self, container: &Node) -> bool {
        let variables = container.get("env").map(Node::items).unwrap_or_default();
        let is_dependency = |variable: &&Node| variable.text_of("name").starts_with("DEPENDENCY_");
        if !container.text_of("image").contains("kubernetes-entrypoint")
            && !variables.iter().any(|v| is_dependency(&v))
        {
            return false;
        }
        for variable in variables.iter().filter(is_dependency) {
            let (name, value) = (variable.text_of("name"), variable.text_of("value"));
            let names = match name {
                "DEPENDENCY_SERVICE" | "DEPENDENCY_JOBS" | "DEPENDENCY_DAEMONSET" => plain_names(value),
                "DEPENDENCY_JOBS_JSON" | "DEPENDENCY_POD_JSON" | "DEPENDENCY_CUSTOM_RESOURCE" => {
                    match json_names(value) {
                        Some(names) => names,
                        None => {
                            self.ledger.refused(
                                variable,
                                "needs what no name tells (labels): name the workload instead",
                            );
                            continue;
                        }
                    }
                }
                "DEPENDENCY_CONFIG" | "DEPENDENCY_SOCKET" | "DEPENDENCY_CONTAINER" if value.is_empty() => {
                    Vec::new()
                }
                "DEPENDENCY_CONFIG" => {
                    self.ledger.warned(variable, "configuration is rendered before any pod starts");
                    continue;
                }
                _ => {
                    self.ledger.warned(
                        variable,
                        "the host does not wait for this; the container restarts until it is there",
                    );
                    continue;
                }
            };
            let line = variable.line;
            self.workload.needs.extend(names.into_iter().map(|name| Need { name, line }));
            self.ledger.translated(variable, "needs of phases and pods_after");
        }
        self.ledger.warned(container, "the waiting container is dropped: the phases wait in its place");
        true
    }

    fn container(&mut self, container: &Node) -> Map<String, Value> {
        let into = format!("pod {}, container {}", self.workload.name, container.text_of("name"));
        let mut made = Map::new();
        let mut secret = Vec::new();
        if let Some(command) = container.get("command") {
            // Variables look whether something could read a file before the command.
            made.insert("command".to_owned(), command.value());
        }
        for (key, node) in container.entries() {
            match key.as_str() {
                key if CONTAINER_KEPT.contains(&key) => {
                    made.insert(key.to_owned(), node.value());
                    self.ledger.translated(node, into.clone());
                }
                "imagePullPolicy" => self.ledger.warned(node, "a host pulls no image: the release holds it"),
                "env" => {
                    for variable in node.items() {
                        self.variable(variable, &mut made, &mut secret, &into);
                    }
                }
                "envFrom" => {
                    for source in node.items() {
                        self.variables_from(source, &mut made, &mut secret, &into);
                    }
                }
                _ => self.ledger.refused(node, "a container of a static pod has no such field"),
            }
        }
        if !self.workload.secret_environment(&mut made, &secret) {
            let why = "takes a secret in its environment, but says no command: write its `command`, so that the \
                       secret can be read from a file before it";
            let object = self.workload.object.clone();
            self.ledger.problem(&self.workload.file, container.line, &object, why);
        }
        made
    }

    fn variable(
        &mut self,
        node: &Node,
        made: &mut Map<String, Value>,
        secret: &mut Vec<(String, String)>,
        into: &str,
    ) {
        let name = node.text_of("name");
        let Some(from) = node.get("valueFrom") else {
            let value = node.get("value").and_then(Node::text).unwrap_or_default();
            if !is_secret_name(name) || value.is_empty() {
                push(made, "env", json!({"name": name, "value": value}));
                self.ledger.translated(node, into);
            } else if made.contains_key("command") {
                let secret_name = format!("{}.{name}", self.workload.name);
                let from = format!("{}:{}, variable {name}", self.workload.file, node.line);
                secret.push((name.to_owned(), self.ledger.secret(&secret_name, &from)));
                self.workload.secrets.insert(secret_name);
                self.ledger.translated(node, "a named secret; its value is not written");
            } else {
                push(made, "env", json!({"name": name, "value": value}));
                self.ledger.warned(node, IN_CLEAR);
            }
            return;
        };
        let reference =
            |kind: &str| from.get(kind).map(|node| (node.text_of("name"), node.text_of("key"), node));
        if let Some((object, key, node_of)) = reference("configMapKeyRef") {
            match self.objects.config_maps.get(object).and_then(|map| map.get(key)) {
                Some(datum) => {
                    push(
                        made,
                        "env",
                        json!({"name": name, "value": String::from_utf8_lossy(&datum.content)}),
                    );
                    self.ledger.translated(&datum.node, into);
                    self.ledger.translated(node, into);
                }
                None => self.missing(node, node_of, "ConfigMap", object, key),
            }
        } else if let Some((object, key, node_of)) = reference("secretKeyRef") {
            match self.secret_value(object, key, into) {
                Some(reference) => {
                    secret.push((name.to_owned(), reference));
                    self.ledger.translated(node, into);
                }
                None => self.missing(node, node_of, "Secret", object, key),
            }
        } else {
            push(made, "env", node.value());
            match from.get("fieldRef").map(|field| field.text_of("fieldPath")) {
                Some("metadata.name" | "spec.nodeName") => {
                    self.ledger.warned(
                        node,
                        "kept, but the name ends with the name of the host, as static pods' do",
                    );
                }
                _ => self.ledger.translated(node, into),
            }
        }
    }

    fn missing(&self, node: &Node, reference: &Node, kind: &str, object: &str, key: &str) {
        if reference.get("optional").is_some_and(Node::is_true) {
            self.ledger.warned(node, format!("optional, and {kind} {object} has no {key} in the input"));
        } else {
            self.ledger.refused(node, format!("{kind} {object} with key {key} is not in the input"));
        }
    }

    /// The reference that stands for one value of a Secret.
    fn secret_value(&mut self, object: &str, key: &str, into: &str) -> Option<String> {
        let node = self.objects.secrets.get(object)?.get(key)?;
        let name = format!("{object}.{key}");
        self.ledger.translated(node, format!("secret {name} ({into}); its value is not written"));
        self.workload.secrets.insert(name.clone());
        Some(self.ledger.secret(&name, &format!("Secret/{object}, key {key}")))
    }

    fn variables_from(
        &mut self,
        node: &Node,
        made: &mut Map<String, Value>,
        secret: &mut Vec<(String, String)>,
        into: &str,
    ) {
        let prefix = node.text_of("prefix");
        let objects = self.objects;
        for (kind, field) in [("ConfigMap", "configMapRef"), ("Secret", "secretRef")] {
            let Some(reference) = node.get(field) else { continue };
            let object = reference.text_of("name");
            let keys: Option<Vec<String>> = if kind == "Secret" {
                objects.secrets.get(object).map(|keys| keys.keys().cloned().collect())
            } else {
                objects.config_maps.get(object).map(|keys| keys.keys().cloned().collect())
            };
            let Some(keys) = keys else {
                self.missing(node, reference, kind, object, "*");
                continue;
            };
            for key in keys {
                let name = format!("{prefix}{key}");
                if kind == "Secret" {
                    secret.extend(self.secret_value(object, &key, into).map(|value| (name, value)));
                } else if let Some(datum) = objects.config_maps.get(object).and_then(|map| map.get(&key)) {
                    push(
                        made,
                        "env",
                        json!({"name": name, "value": String::from_utf8_lossy(&datum.content)}),
                    );
                    self.ledger.translated(&datum.node, into);
                }
            }
            self.ledger.translated(node, into);
        }
    }
}

/// `namespace:name` or `name`, separated by commas.
fn plain_names(value: &str) -> Vec<String> {
    let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(|name| name.rsplit(':').next().unwrap_or(name).to_owned()).collect()
}

/// The names in `[{"name": …}]`; none: something in it has no name.
fn json_names(value: &str) -> Option<Vec<String>> {
    if value.is_empty() {
        return Some(Vec::new());
    }
    let list: Value = serde_json::from_str(value).ok()?;
    list.as_array()?.iter().map(|item| item["name"].as_str().map(str::to_owned)).collect()
}
