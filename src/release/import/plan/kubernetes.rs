//! Objects of Kubernetes into workloads.
//!
//! 1. Every document is typed by `k8s-openapi`, so that a misspelt field is found by what the type does not give back;
//! 2. what pods refer to (ConfigMaps, Secrets, claims, services) is collected; 3. pods, and what makes pods, are translated.

use std::collections::BTreeMap;

use base64::Engine as _;
use k8s_openapi::api::{
    apps::v1 as apps, batch::v1 as batch, core::v1 as core, networking::v1 as networking,
};
use serde_json::Value;

use super::legacy;
use super::pod::{Datum, Objects, Translator};
use super::report::Ledger;
use super::tree::{Document, Node};
use super::workload::{Mode, Workload};
use crate::model::place::{InputError, Place};

/// A service of the cluster: a name and ports that lead to pods.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its namespace, if the input names one.
    pub namespace: String,
    /// More names that lead to it.
    pub hosts: Vec<String>,
    /// Labels of the pods behind it.
    pub selector: BTreeMap<String, String>,
    /// Its ports, and the ports of the pods (a number, or the name of a container's port).
    pub ports: Vec<(i64, Value)>,
    /// The file.
    pub file: String,
    /// The node of its object.
    pub node: Node,
}

/// What an input of Kubernetes holds.
#[derive(Debug, Default)]
pub struct Found {
    /// What runs.
    pub workloads: Vec<Workload>,
    /// What it is reached by.
    pub services: Vec<Service>,
}

struct Object<'a> {
    kind: String,
    name: String,
    file: &'a str,
    node: &'a Node,
}

impl Object<'_> {
    fn title(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }

    fn error(&self, message: String) -> InputError {
        let position = Some((self.node.line, 1));
        InputError { place: Place { file: self.file.to_owned(), position }, message }
    }
}

/// Reads all documents.
///
/// # Errors
/// An [`InputError`] where a document is no object of Kubernetes, or not one of its kind.
pub fn read(
    documents: &[Document],
    policies: &BTreeMap<String, String>,
    ledger: &Ledger,
) -> Result<Found, InputError> {
    let mut objects = Vec::new();
    for document in documents {
        flatten(&document.file, &document.root, ledger, &mut objects)?;
    }
    let mut referred = Objects { policies: policies.clone(), ..Objects::default() };
    let mut found = Found::default();
    for object in &objects {
        ledger.title(object.node, &object.title());
        check_type(object, ledger)?;
        collect(object, &mut referred, &mut found, ledger);
    }
    for object in &objects {
        translate(object, &referred, &mut found, ledger);
    }
    for object in &objects {
        leftovers(object, ledger);
    }
    Ok(found)
}

fn flatten<'a>(
    file: &'a str,
    node: &'a Node,
    ledger: &Ledger,
    objects: &mut Vec<Object<'a>>,
) -> Result<(), InputError> {
    let kind = node.text_of("kind").to_owned();
    let name =
        node.at(&["metadata", "name"]).or_else(|| node.get("id")).and_then(Node::text).unwrap_or_default();
    let object = Object { kind, name: name.to_owned(), file, node };
    if object.kind.is_empty() || node.text_of("apiVersion").is_empty() {
        return Err(object.error("not an object of Kubernetes: it has no apiVersion and kind".to_owned()));
    }
    if object.kind.ends_with("List") {
        for (key, node) in node.entries().iter().filter(|(key, _)| key != "items") {
            ledger.translated(node, format!("{key} of a list"));
        }
        for item in node.get("items").map(Node::items).unwrap_or_default() {
            flatten(file, item, ledger, objects)?;
        }
        return Ok(());
    }
    if object.name.is_empty() {
        return Err(object.error(format!("{} has no metadata.name", object.kind)));
    }
    objects.push(object);
    Ok(())
}

/// Types the object, and refuses the fields that its type does not know.
fn check_type(object: &Object<'_>, ledger: &Ledger) -> Result<(), InputError> {
    let version = object.node.text_of("apiVersion");
    if version.starts_with("v1beta") {
        return Ok(());
    }
    let value = object.node.value();
    let typed = match (object.kind.as_str(), version) {
        ("Pod", "v1") => again::<core::Pod>(value),
        ("Service", "v1") => again::<core::Service>(value),
        ("ConfigMap", "v1") => again::<core::ConfigMap>(value),
        ("Secret", "v1") => again::<core::Secret>(value),
        ("PersistentVolume", "v1") => again::<core::PersistentVolume>(value),
        ("PersistentVolumeClaim", "v1") => again::<core::PersistentVolumeClaim>(value),
        ("ServiceAccount", "v1") => again::<core::ServiceAccount>(value),
        ("ReplicationController", "v1") => again::<core::ReplicationController>(value),
        ("Deployment", "apps/v1") => again::<apps::Deployment>(value),
        ("DaemonSet", "apps/v1") => again::<apps::DaemonSet>(value),
        ("StatefulSet", "apps/v1") => again::<apps::StatefulSet>(value),
        ("ReplicaSet", "apps/v1") => again::<apps::ReplicaSet>(value),
        ("Job", "batch/v1") => again::<batch::Job>(value),
        ("Ingress", "networking.k8s.io/v1") => again::<networking::Ingress>(value),
        _ => {
            ledger.refused(
                object.node,
                format!("{version} {} is not among the kinds that are imported", object.kind),
            );
            return Ok(());
        }
    };
    let typed = typed.map_err(|error| object.error(format!("{}: {error}", object.title())))?;
    unknown_fields(object.node, Some(&typed), ledger);
    Ok(())
}

fn again<T: serde::de::DeserializeOwned + serde::Serialize>(
    value: Value,
) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(value)?)
}

fn unknown_fields(node: &Node, typed: Option<&Value>, ledger: &Ledger) {
    match typed {
        None if node.value().is_null() => ledger.translated(node, "nothing: the field is empty"),
        None => ledger.refused(node, "Kubernetes knows no such field"),
        Some(typed) => {
            for (key, node) in node.entries() {
                // The type writes no field that is empty, and no time that the input left out.
                unknown_fields(node, typed.get(key), ledger);
            }
            for (number, node) in node.items().iter().enumerate() {
                unknown_fields(node, typed.get(number), ledger);
            }
        }
    }
}

fn collect(object: &Object<'_>, objects: &mut Objects, found: &mut Found, ledger: &Ledger) {
    let node = object.node;
    match object.kind.as_str() {
        "ConfigMap" => {
            let mut data = BTreeMap::new();
            for (key, node) in node.get("data").map(Node::entries).unwrap_or_default() {
                let content = node.text().unwrap_or_default().as_bytes().to_vec();
                let text = String::from_utf8_lossy(&content);
                if text.contains("${secret:") || text.contains("${host:") {
                    ledger.refused(node, "holds ${secret:…} or ${host:…}, which a host would replace");
                }
                data.insert(key.clone(), Datum { content, node: node.clone() });
            }
            for (key, node) in node.get("binaryData").map(Node::entries).unwrap_or_default() {
                let text: String = node.text().unwrap_or_default().split_whitespace().collect();
                match base64::engine::general_purpose::STANDARD.decode(text) {
                    Ok(content) => drop(data.insert(key.clone(), Datum { content, node: node.clone() })),
                    Err(_) => ledger.refused(node, "not base64"),
                }
            }
            objects.config_maps.insert(object.name.clone(), data);
        }
        "Secret" => {
            let lists = ["data", "stringData"].into_iter().filter_map(|field| node.get(field));
            let keys = lists.flat_map(Node::entries).map(|(key, node)| (key.clone(), node.clone()));
            objects.secrets.insert(object.name.clone(), keys.collect());
        }
        "PersistentVolumeClaim" => {
            objects.claims.insert(object.name.clone(), node.get("spec").unwrap_or(node).clone());
        }
        "Service" => found.services.extend(service(object, ledger)),
        _ => {}
    }
}

fn service(object: &Object<'_>, ledger: &Ledger) -> Option<Service> {
    let node = object.node;
    let legacy = node.text_of("apiVersion").starts_with("v1beta");
    let spec = if legacy { node } else { node.get("spec")? };
    let selector = labels(spec.get("selector"));
    let mut ports = Vec::new();
    if legacy {
        let port = spec.get("port").map(Node::value).and_then(|port| port.as_i64())?;
        ports.push((port, spec.get("containerPort").map_or_else(|| port.into(), Node::value)));
    }
    for node in spec.get("ports").map(Node::items).unwrap_or_default() {
        let Some(port) = node.get("port").map(Node::value).and_then(|port| port.as_i64()) else { continue };
        let target = node.get("targetPort").map_or_else(|| port.into(), Node::value);
        if let Some(other) = node.get("nodePort") {
            ledger.warned(other, "on the host's network clients use the pod's own port");
        }
        if target.as_i64().is_some_and(|target| target != port) {
            let why = format!("nothing forwards on a host: clients use port {target} of the pod, not {port}");
            node.get("port").into_iter().for_each(|node| ledger.warned(node, why.clone()));
        }
        ledger.translated(node, "the environment and hosts file of every pod");
        ports.push((port, target));
    }
    for (key, node) in spec.entries() {
        match key.as_str() {
            "selector" | "ports" | "port" | "containerPort" => {
                ledger.translated(node, "which pods the name leads to")
            }
            "clusterIP"
            | "clusterIPs"
            | "ipFamilies"
            | "ipFamilyPolicy"
            | "internalTrafficPolicy"
            | "sessionAffinity"
            | "publishNotReadyAddresses"
            | "externalTrafficPolicy"
            | "allocateLoadBalancerNodePorts" => ledger.warned(node, "the name leads to this host alone"),
            "type" if node.text() != Some("ExternalName") => {
                ledger.warned(node, "on the host's network the pods' ports are the host's");
            }
            "id" | "kind" | "apiVersion" | "metadata" | "spec" | "labels" | "status" => {}
            _ => ledger.refused(node, "a host has no such service"),
        }
    }
    let namespace = node.at(&["metadata", "namespace"]).and_then(Node::text).unwrap_or_default().to_owned();
    let (name, file, node) = (object.name.clone(), object.file.to_owned(), node.clone());
    Some(Service { name, namespace, hosts: Vec::new(), selector, ports, file, node })
}

fn labels(node: Option<&Node>) -> BTreeMap<String, String> {
    let entries = node.map(Node::entries).unwrap_or_default().iter();
    entries.filter_map(|(key, node)| Some((key.clone(), node.text()?.to_owned()))).collect()
}

/// The service definition that a pod with these labels belongs to.
fn group_of(labels: &BTreeMap<String, String>, name: &str) -> String {
    let known = ["application", "app.kubernetes.io/name", "app", "k8s-app"];
    let group = known.iter().find_map(|key| labels.get(*key)).map_or(name, String::as_str);
    super::workload::slug(group)
}

fn translate(object: &Object<'_>, objects: &Objects, found: &mut Found, ledger: &Ledger) {
    let node = object.node;
    if node.text_of("apiVersion").starts_with("v1beta") {
        let pod = legacy::pod(node, &object.kind, ledger);
        if let Some(pod) = pod {
            let own = labels(Some(&pod.labels));
            let group = own.get("name").cloned().unwrap_or_else(|| object.name.clone());
            let workload = start(object, own, super::workload::slug(&group));
            let mut translator = Translator { ledger, objects, workload };
            translator.spec(&pod.spec, &[]);
            found.workloads.push(translator.workload);
        } else if object.kind != "Service" {
            ledger.refused(node, format!("v1beta {} is not among the kinds that are imported", object.kind));
        }
        return;
    }
    match object.kind.as_str() {
        "Pod" => {
            let Some(spec) = node.get("spec") else { return };
            let own = labels(node.at(&["metadata", "labels"]));
            let group = group_of(&own, &object.name);
            let mut translator = Translator { ledger, objects, workload: start(object, own, group) };
            translator.spec(spec, &[]);
            found.workloads.push(translator.workload);
        }
        "Deployment" | "DaemonSet" | "StatefulSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            found.workloads.extend(templated(object, objects, ledger));
        }
        "Ingress" => ingress(object, found, ledger),
        _ => {}
    }
}

fn start(object: &Object<'_>, labels: BTreeMap<String, String>, group: String) -> Workload {
    let mut workload = Workload::new(&object.name, &group, object.title(), object.file, object.node.line);
    workload.labels = labels;
    workload
}

fn templated(object: &Object<'_>, objects: &Objects, ledger: &Ledger) -> Option<Workload> {
    let spec = object.node.get("spec")?;
    let template = spec.get("template")?;
    let own = labels(template.at(&["metadata", "labels"]));
    let group = group_of(&own, &object.name);
    let mut workload = start(object, own, group);
    if object.kind == "Job" {
        workload.mode = Mode::Once;
        workload.phase_kind = hook_kind(object.node.at(&["metadata", "annotations"]), ledger);
    }
    let mut templates = Vec::new();
    for (key, node) in spec.entries() {
        match key.as_str() {
            "template" => {}
            "replicas" => match node.value().as_i64() {
                Some(0) => ledger.refused(node, "runs nowhere (replicas 0): leave it out of the input"),
                Some(1) => ledger.translated(node, "one pod on each host that has the service"),
                _ => ledger
                    .warned(node, "one pod runs on each host that has the service: give it to as many hosts"),
            },
            "selector" => ledger.translated(node, "the pod itself"),
            "completions" | "parallelism" if node.value().as_i64() == Some(1) => {
                ledger.translated(node, "one phase")
            }
            "completions" | "parallelism" => ledger.refused(node, "a phase runs once"),
            "suspend" if node.is_true() => ledger.refused(node, "suspended: leave it out of the input"),
            "volumeClaimTemplates" => {
                for claim in node.items() {
                    let name = claim.at(&["metadata", "name"]).and_then(Node::text).unwrap_or_default();
                    templates.push(name.to_owned());
                    ledger.translated(claim, format!("volume {name} of this host"));
                }
            }
            "backoffLimit"
            | "activeDeadlineSeconds"
            | "ttlSecondsAfterFinished"
            | "completionMode"
            | "suspend"
            | "podFailurePolicy"
            | "manualSelector"
            | "podReplacementPolicy"
            | "backoffLimitPerIndex" => {
                ledger.warned(node, "a phase that fails ends the boot's phases; the next boot runs it again");
            }
            "strategy"
            | "updateStrategy"
            | "minReadySeconds"
            | "revisionHistoryLimit"
            | "podManagementPolicy"
            | "progressDeadlineSeconds"
            | "serviceName"
            | "paused"
            | "ordinals"
            | "persistentVolumeClaimRetentionPolicy" => {
                ledger.warned(
                    node,
                    "a release replaces the pod of a host at once, and a rollback brings it back",
                );
            }
            _ => ledger.refused(node, "a host has no such controller"),
        }
    }
    let mut translator = Translator { ledger, objects, workload };
    translator.spec(template.get("spec")?, &templates);
    metadata(template.get("metadata"), ledger);
    Some(translator.workload)
}

/// When Helm would run the job.
fn hook_kind(annotations: Option<&Node>, ledger: &Ledger) -> Option<&'static str> {
    let hook = annotations?.get("helm.sh/hook")?;
    let names = hook.text().unwrap_or_default();
    if names.contains("delete") || names.contains("test") || names.contains("rollback") {
        ledger.refused(hook, "a host has no such moment (delete, rollback, test)");
        return None;
    }
    let kind = if names.contains("upgrade") { "migrate" } else { "bootstrap" };
    ledger.translated(hook, format!("a phase of kind {kind}"));
    Some(kind)
}

fn ingress(object: &Object<'_>, found: &mut Found, ledger: &Ledger) {
    let Some(spec) = object.node.get("spec") else { return };
    for rule in spec.get("rules").map(Node::items).unwrap_or_default() {
        let host = rule.text_of("host").to_owned();
        for path in rule.at(&["http", "paths"]).map(Node::items).unwrap_or_default() {
            let name = path.at(&["backend", "service", "name"]).and_then(Node::text).unwrap_or_default();
            match found.services.iter_mut().find(|service| service.name == name) {
                Some(_) if !["", "/"].contains(&path.text_of("path")) => {
                    ledger.refused(path, "a host has no proxy that tells paths apart: put one into the set");
                }
                Some(service) => {
                    if !host.is_empty() && !service.hosts.contains(&host) {
                        service.hosts.push(host.clone());
                    }
                    ledger.warned(
                        path,
                        format!("no proxy: {host} leads to the ports of {name} in every pod's hosts file"),
                    );
                }
                None => ledger.refused(path, format!("service {name} is not in the input")),
            }
        }
        ledger.translated(rule, "hosts file of every pod");
    }
    for (key, node) in spec.entries() {
        match key.as_str() {
            "ingressClassName" => ledger.warned(node, "a host has no ingress controller"),
            "tls" => ledger
                .refused(node, "nothing ends TLS on a host: put a proxy with the certificate into the set"),
            "defaultBackend" => ledger.refused(node, "a host has no proxy"),
            _ => {}
        }
    }
}

fn metadata(node: Option<&Node>, ledger: &Ledger) {
    for (key, node) in node.map(Node::entries).unwrap_or_default() {
        match key.as_str() {
            "name" | "namespace" | "labels" => ledger.translated(node, "name and labels of the definition"),
            "annotations" => ledger.warned(node, "annotations are read by programs of a cluster"),
            _ => ledger.warned(node, "written by the API server"),
        }
    }
}

/// Fields that every object has, and objects that nothing referred to.
fn leftovers(object: &Object<'_>, ledger: &Ledger) {
    let node = object.node;
    metadata(node.get("metadata"), ledger);
    for (key, node) in node.entries() {
        match key.as_str() {
            "apiVersion" | "kind" | "id" => ledger.translated(node, "the kind of the definition"),
            "status" => ledger.warned(node, "written by the API server"),
            "labels" => ledger.translated(node, "labels of the definition"),
            "type" | "immutable" if object.kind != "Service" => {
                ledger.translated(node, "the kind of the definition")
            }
            _ => {}
        }
    }
    let why = match object.kind.as_str() {
        "ConfigMap" => "no pod of the input mounts or reads it",
        "Secret" => "no pod of the input mounts or reads it; its values are not written",
        "PersistentVolumeClaim" => "no pod of the input mounts it",
        "PersistentVolume" => {
            "volumes are directories of the host; which disk holds them is the host's matter"
        }
        "ServiceAccount" => "a host has no API server, so there is nothing that an account may do",
        _ => return,
    };
    ledger.warned(node, why);
}
