//! Workloads and services into definitions.
//!
//! 1. Pods that belong together share a definition; 2. what runs once becomes phases of a pod's definition, with the
//!    mounts that it needs; 3. needs become one graph, and circles are named; 4. services become names and variables;
//!    5. two owners of one port, image name or file are a clash.

mod phases;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::definition::Definition;
use super::graph;
use super::kubernetes::{Found, Service};
use super::report::Ledger;
use super::workload::{Mode, Workload, push};
use phases::{add_phases, own_user, place_phases};

/// Makes the definitions.
pub fn assemble(mut found: Found, ledger: &Ledger) -> Vec<Definition> {
    unique_names(&mut found.workloads, ledger);
    let behind = behind_services(&found, ledger);
    let needs = resolve_needs(&found.workloads, &behind, ledger);
    for circle in graph::circles(&needs) {
        let first = found.workloads.iter().find(|workload| Some(&workload.name) == circle.first());
        if let (Some(workload), Some(first)) = (first, circle.first()) {
            let why = format!("needs itself: {} → {first}", circle.join(" → "));
            ledger.problem(&workload.file, workload.line, &workload.object, why);
        }
    }
    service_names(&mut found, ledger);
    let mut definitions: BTreeMap<String, Definition> = BTreeMap::new();
    let (daemons, once): (Vec<Workload>, Vec<Workload>) =
        found.workloads.into_iter().partition(|workload| workload.mode == Mode::Daemon);
    let mut daemons: BTreeMap<String, Workload> =
        daemons.into_iter().map(|workload| (workload.name.clone(), workload)).collect();
    daemons.values_mut().for_each(own_user);
    let hosts = place_phases(&once, &mut daemons, &needs, ledger);
    ports(&daemons, ledger);
    for workload in daemons.values() {
        let definition = definitions.entry(workload.group.clone()).or_default();
        definition.name.clone_from(&workload.group);
        add(definition, workload);
        let pod = render_pod(workload, definition);
        definition.pods.insert(workload.name.clone(), pod);
    }
    let names: Vec<String> = once.iter().map(|workload| workload.name.clone()).collect();
    for name in graph::order(&names, &needs) {
        let (Some(workload), Some(host)) = (
            once.iter().find(|workload| workload.name == name),
            hosts.get(&name).and_then(|host| daemons.get(host)),
        ) else {
            continue;
        };
        if let Some(definition) = definitions.get_mut(&host.group) {
            add_phases(definition, workload, host, &needs, &daemons, ledger);
        }
    }
    order_pods(&mut definitions, &daemons, &needs, ledger);
    owners(&mut definitions);
    definitions.into_values().collect()
}

fn unique_names(workloads: &mut Vec<Workload>, ledger: &Ledger) {
    let mut seen = BTreeSet::new();
    workloads.retain(|workload| {
        let first = seen.insert(workload.name.clone());
        if !first {
            ledger.problem(&workload.file, workload.line, &workload.object, "another pod has the same name");
        }
        first
    });
}

/// The workloads that each name leads to: its own, and that of the services before it.
fn behind_services(found: &Found, ledger: &Ledger) -> BTreeMap<String, BTreeSet<String>> {
    let mut behind: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for workload in &found.workloads {
        behind.entry(workload.name.clone()).or_default().insert(workload.name.clone());
    }
    for service in &found.services {
        let selected: BTreeSet<String> = found
            .workloads
            .iter()
            .filter(|workload| workload.mode == Mode::Daemon && selects(&service.selector, &workload.labels))
            .map(|workload| workload.name.clone())
            .collect();
        if selected.is_empty() {
            let object = format!("Service/{}", service.name);
            let why = "no pod of the input is behind it, so its name would lead nowhere";
            ledger.problem(&service.file, service.node.line, &object, why);
        }
        if !behind.contains_key(&service.name) {
            behind.insert(service.name.clone(), selected);
        }
    }
    behind
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn resolve_needs(
    workloads: &[Workload],
    behind: &BTreeMap<String, BTreeSet<String>>,
    ledger: &Ledger,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for workload in workloads {
        let edges = edges.entry(workload.name.clone()).or_default();
        for need in &workload.needs {
            match behind.get(&need.name) {
                Some(names) => edges.extend(names.iter().cloned()),
                None => {
                    let why = format!(
                        "needs {}, which is not in the input: import it too, or name it in the phases by hand",
                        need.name
                    );
                    ledger.note(&workload.file, need.line, &workload.object, why);
                }
            }
        }
    }
    edges
}

/// Names in hosts files, and the variables that Kubernetes gives for each service.
fn service_names(found: &mut Found, ledger: &Ledger) {
    let mut variables: BTreeMap<String, (String, &Service)> = BTreeMap::new();
    let mut hosts: BTreeSet<String> = BTreeSet::new();
    for service in &found.services {
        let prefix = service.name.to_uppercase().replace(['-', '.'], "_");
        let port = service.ports.first().map(|(port, target)| target.as_i64().unwrap_or(*port));
        let mut own = vec![(format!("{prefix}_SERVICE_HOST"), "127.0.0.1".to_owned())];
        own.extend(port.map(|port| (format!("{prefix}_SERVICE_PORT"), port.to_string())));
        for (name, value) in own {
            if let Some((_, other)) = variables.get(&name) {
                let why = format!(
                    "{name} is also the variable of service {} ({}:{})",
                    other.name, other.file, other.node.line
                );
                ledger.problem(&service.file, service.node.line, &format!("Service/{}", service.name), why);
            }
            variables.insert(name, (value, service));
        }
        hosts.insert(service.name.clone());
        if !service.namespace.is_empty() {
            let name = format!("{}.{}", service.name, service.namespace);
            hosts.extend([format!("{name}.svc"), format!("{name}.svc.cluster.local"), name]);
        }
        hosts.extend(service.hosts.iter().cloned());
    }
    for workload in found.workloads.iter_mut().filter(|workload| !hosts.is_empty() && workload.service_links)
    {
        if workload.mode == Mode::Daemon {
            push(&mut workload.spec, "hostAliases", json!({"ip": "127.0.0.1", "hostnames": hosts}));
        }
        let (file, line, object) = (workload.file.clone(), workload.line, workload.object.clone());
        for container in workload.containers.iter_mut().chain(&mut workload.first) {
            for (name, (value, _)) in &variables {
                if has_variable(container, name) {
                    ledger.note(
                        &file,
                        line,
                        &object,
                        format!(
                            "{name} is its own variable, and stays: the address of the service is not put in"
                        ),
                    );
                } else {
                    push(container, "env", json!({"name": name, "value": value}));
                }
            }
        }
    }
}

fn has_variable(container: &Map<String, Value>, name: &str) -> bool {
    let variables = container.get("env").and_then(Value::as_array);
    variables.into_iter().flatten().any(|variable| variable["name"] == name)
}

fn ports(daemons: &BTreeMap<String, Workload>, ledger: &Ledger) {
    let mut owners: BTreeMap<(String, String), &Workload> = BTreeMap::new();
    for workload in daemons.values() {
        for container in &workload.containers {
            for port in container.get("ports").and_then(Value::as_array).into_iter().flatten() {
                if port["hostPort"].as_i64().is_some_and(|host| Some(host) != port["containerPort"].as_i64())
                {
                    let why = format!(
                        "port {} of the host leads to {} of the pod, and nothing forwards",
                        port["hostPort"], port["containerPort"]
                    );
                    ledger.problem(&workload.file, workload.line, &workload.object, why);
                }
                let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
                let key = (port["containerPort"].to_string(), protocol);
                if let Some(other) =
                    owners.insert(key.clone(), workload).filter(|other| other.name != workload.name)
                {
                    let why = format!(
                        "port {}/{} is also that of {} ({}:{}): on a host both would take it",
                        key.0, key.1, other.object, other.file, other.line
                    );
                    ledger.problem(&workload.file, workload.line, &workload.object, why);
                }
            }
        }
    }
}

fn add(definition: &mut Definition, workload: &Workload) {
    definition.config.extend(workload.config.clone());
    definition.secrets.extend(workload.secrets.clone());
    definition.volumes.extend(workload.state.clone());
}

/// The name that a service gives to an image.
fn image_name(definition: &mut Definition, reference: &str) -> String {
    if let Some((name, _)) = definition.images.iter().find(|(_, known)| *known == reference) {
        return name.clone();
    }
    let path = reference.split('@').next().unwrap_or(reference);
    let last = path.rsplit('/').next().unwrap_or(path);
    let base = super::workload::slug(last.split(':').next().unwrap_or(last));
    let base = if base == definition.name { base } else { format!("{}-{base}", definition.name) };
    let mut name = base.clone();
    let mut number = 2;
    while definition.images.contains_key(&name) {
        name = format!("{base}-{number}");
        number += 1;
    }
    definition.images.insert(name.clone(), reference.to_owned());
    name
}

fn render_pod(workload: &Workload, definition: &mut Definition) -> Value {
    let mut render = |containers: &[Map<String, Value>]| -> Vec<Value> {
        let containers = containers.iter().cloned();
        containers
            .map(|mut container| {
                let image = container.get("image").and_then(Value::as_str).unwrap_or_default().to_owned();
                container.insert("image".to_owned(), image_name(definition, &image).into());
                container.insert("imagePullPolicy".to_owned(), "Never".into());
                Value::Object(container)
            })
            .collect()
    };
    let (first, containers) = (render(&workload.first), render(&workload.containers));
    let mut spec = workload.spec.clone();
    spec.insert("hostNetwork".to_owned(), true.into());
    spec.entry("automountServiceAccountToken").or_insert(false.into());
    spec.insert("enableServiceLinks".to_owned(), false.into());
    if !first.is_empty() {
        spec.insert("initContainers".to_owned(), first.into());
    }
    spec.insert("containers".to_owned(), containers.into());
    if !workload.volumes.is_empty() {
        spec.insert("volumes".to_owned(), workload.volumes.clone().into());
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": workload.name, "labels": workload.labels, "annotations": {"rackstep.io/config-hash": ""}},
        "spec": spec,
    })
}

/// A pod waits for the phases of its own definition; for all else it restarts until that answers.
fn order_pods(
    definitions: &mut BTreeMap<String, Definition>,
    daemons: &BTreeMap<String, Workload>,
    needs: &BTreeMap<String, BTreeSet<String>>,
    ledger: &Ledger,
) {
    for workload in daemons.values() {
        let Some(definition) = definitions.get_mut(&workload.group) else { continue };
        for name in needs.get(&workload.name).into_iter().flatten() {
            let ids: Vec<String> = definition
                .phases
                .iter()
                .filter(|phase| phase.id == *name)
                .map(|phase| phase.id.clone())
                .collect();
            if ids.is_empty() {
                let what = if daemons.contains_key(name) { "pod" } else { "phase of another service" };
                let why =
                    format!("starts without waiting for {what} {name}: it restarts until {name} answers");
                ledger.note(&workload.file, workload.line, &workload.object, why);
            }
            for id in ids {
                // The phase would otherwise run before the pods that the waiting pod needs.
                definition.pods_after.entry(workload.name.clone()).or_default().insert(id);
            }
        }
    }
}

/// A volume that two definitions mount is made by the first of them.
fn owners(definitions: &mut BTreeMap<String, Definition>) {
    let mut seen = BTreeSet::new();
    for definition in definitions.values_mut() {
        definition.volumes.retain(|name, _| seen.insert(name.clone()));
    }
}
