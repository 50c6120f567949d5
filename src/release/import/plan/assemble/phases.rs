//! What runs once becomes phases of a pod's definition.
//!
//! 1. The pod that shares the application, the image or the name takes it; 2. the pod gets the mounts that it lacks, for a
//!    phase has those of its pod; 3. the phase's kind is told from what it does.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::super::definition::{Definition, PhaseDefinition};
use super::super::report::Ledger;
use super::super::workload::{Workload, push};
use super::{add, image_name};

/// A pod's user becomes its containers' own, where phases look for it.
pub(super) fn own_user(workload: &mut Workload) {
    let of_pod = workload.spec.get("securityContext").cloned().unwrap_or_default();
    for container in &mut workload.containers {
        for key in ["runAsUser", "runAsGroup"] {
            if of_pod[key].is_null() {
                continue;
            }
            let context = container.entry("securityContext").or_insert_with(|| json!({}));
            if context[key].is_null() {
                context[key] = of_pod[key].clone();
            }
        }
    }
}

fn user_of(workload: &Workload, container: &Map<String, Value>) -> Option<String> {
    let pick = |key: &str| {
        let own = container.get("securityContext").map(|context| context[key].clone()).unwrap_or_default();
        let of_pod =
            workload.spec.get("securityContext").map(|context| context[key].clone()).unwrap_or_default();
        own.as_i64().or_else(|| of_pod.as_i64())
    };
    let user = pick("runAsUser")?;
    Some(pick("runAsGroup").map_or_else(|| user.to_string(), |group| format!("{user}:{group}")))
}

/// Finds the pod whose definition takes each phase, and gives that pod what the phase mounts.
pub(super) fn place_phases(
    once: &[Workload],
    daemons: &mut BTreeMap<String, Workload>,
    needs: &BTreeMap<String, BTreeSet<String>>,
    ledger: &Ledger,
) -> BTreeMap<String, String> {
    let mut hosts = BTreeMap::new();
    for workload in once {
        let Some(host) = host_of(workload, daemons, needs) else {
            let why = "runs once, and no pod of the input shares its application, image or name: a phase takes its mounts from a pod";
            ledger.problem(&workload.file, workload.line, &workload.object, why);
            continue;
        };
        if let Some(pod) = daemons.get_mut(&host) {
            share_mounts(workload, pod, ledger);
            hosts.insert(workload.name.clone(), host);
        }
    }
    hosts
}

fn host_of(
    workload: &Workload,
    daemons: &BTreeMap<String, Workload>,
    needs: &BTreeMap<String, BTreeSet<String>>,
) -> Option<String> {
    let image =
        |workload: &Workload| workload.containers.first().and_then(|first| first.get("image")).cloned();
    let score = |pod: &Workload| {
        let waits = needs.get(&pod.name).is_some_and(|needs| needs.contains(&workload.name));
        let stem = |name: &str| name.split('-').next().unwrap_or_default().to_owned();
        (
            pod.group == workload.group,
            waits,
            image(pod) == image(workload),
            stem(&pod.name) == stem(&workload.name),
        )
    };
    let candidates = daemons.values().filter(|pod| score(pod) != (false, false, false, false));
    // Of equals the first by name, so that the same input gives the same definitions.
    let mut best: Option<&Workload> = None;
    for pod in candidates {
        if best.is_none_or(|best| score(pod) > score(best)) {
            best = Some(pod);
        }
    }
    best.map(|pod| pod.name.clone())
}

fn share_mounts(workload: &Workload, pod: &mut Workload, ledger: &Ledger) {
    pod.state.extend(workload.state.clone());
    pod.secrets.extend(workload.secrets.clone());
    let source = |volumes: &[Value], name: &Value| {
        let volume = volumes.iter().find(|volume| &volume["name"] == name).cloned().unwrap_or_default();
        let mut map = volume.as_object().cloned().unwrap_or_default();
        map.remove("name");
        Value::Object(map)
    };
    let from = format!("/run/rackstep/config/{}/", workload.group);
    let to = format!("/run/rackstep/config/{}/", pod.group);
    for (path, file) in &workload.config {
        if pod.config.get(path).is_some_and(|other| other != file) {
            ledger.problem(
                &workload.file,
                workload.line,
                &workload.object,
                format!("its file {path} differs from that of pod {}", pod.name),
            );
        }
        pod.config.insert(path.clone(), file.clone());
    }
    for container in workload.first.iter().chain(&workload.containers) {
        for mount in container.get("volumeMounts").and_then(Value::as_array).into_iter().flatten() {
            let mut wanted = source(&workload.volumes, &mount["name"]);
            if let Some(path) = wanted["hostPath"]["path"].as_str() {
                wanted["hostPath"]["path"] = path.replace(&from, &to).into();
            }
            let Some(target) = pod.containers.first_mut() else { continue };
            let mounts = target.get("volumeMounts").and_then(Value::as_array).cloned().unwrap_or_default();
            if let Some(same) = mounts.iter().find(|other| other["mountPath"] == mount["mountPath"]) {
                let equal =
                    source(&pod.volumes, &same["name"]) == wanted && same["subPath"] == mount["subPath"];
                if !equal {
                    let why = format!(
                        "mounts something else at {} than pod {}, whose mounts it would take",
                        mount["mountPath"], pod.name
                    );
                    ledger.problem(&workload.file, workload.line, &workload.object, why);
                }
                continue;
            }
            let name = match pod.volumes.iter().find(|volume| source(&pod.volumes, &volume["name"]) == wanted)
            {
                Some(volume) => volume["name"].clone(),
                None => {
                    let taken = pod.volumes.iter().any(|volume| volume["name"] == mount["name"]);
                    let plain = mount["name"].as_str().unwrap_or_default();
                    let name = if taken { format!("{}-{plain}", workload.name) } else { plain.to_owned() };
                    let mut volume = wanted.clone();
                    volume["name"] = name.clone().into();
                    pod.volumes.push(volume);
                    name.into()
                }
            };
            let mut mount = mount.clone();
            mount["name"] = name;
            push(target, "volumeMounts", mount);
            let why = format!(
                "pod {} gets the mount {} too: a phase has the mounts of its pod",
                pod.name,
                mount_path(target)
            );
            ledger.note(&workload.file, workload.line, &workload.object, why);
        }
    }
}

fn mount_path(container: &Map<String, Value>) -> String {
    let last = container.get("volumeMounts").and_then(Value::as_array).and_then(|mounts| mounts.last());
    last.and_then(|mount| mount["mountPath"].as_str()).unwrap_or_default().to_owned()
}

pub(super) fn add_phases(
    definition: &mut Definition,
    workload: &Workload,
    host: &Workload,
    needs: &BTreeMap<String, BTreeSet<String>>,
    daemons: &BTreeMap<String, Workload>,
    ledger: &Ledger,
) {
    if workload.containers.len() != 1 {
        let why = format!("has {} containers: a phase has one", workload.containers.len());
        return ledger.problem(&workload.file, workload.line, &workload.object, why);
    }
    add(definition, workload);
    let mut before: BTreeSet<String> =
        needs.get(&workload.name).into_iter().flatten().map(|name| need(name, daemons)).collect();
    let count = workload.first.len();
    for (number, container) in workload.first.iter().chain(&workload.containers).enumerate() {
        let name = container.get("name").and_then(Value::as_str).unwrap_or("main");
        let id = if number == count { workload.name.clone() } else { format!("{}-{name}", workload.name) };
        let Some((command, env)) = command_of(container, workload, ledger) else { continue };
        let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
        let kind = workload.phase_kind.map_or_else(
            || kind_of(&workload.name, &command),
            |hook| match kind_of(&workload.name, &command) {
                "expand" => "expand",
                "contract" => "contract",
                _ => hook,
            },
        );
        let own = user_of(workload, container);
        let of_host = host.containers.first().and_then(|first| user_of(host, first));
        if let (None, Some(user)) = (&own, &of_host) {
            let why =
                format!("runs as user {user} of pod {}; the input leaves the user to the image", host.name);
            ledger.note(&workload.file, workload.line, &workload.object, why);
        }
        let phase = PhaseDefinition {
            id: id.clone(),
            kind: kind.to_owned(),
            image: image_name(definition, image),
            pod: host.name.clone(),
            command,
            env,
            user: own.filter(|own| Some(own) != of_host.as_ref()),
            needs: before.clone(),
        };
        definition.phases.push(phase);
        before.insert(format!("phase/{id}"));
    }
}

fn need(name: &str, daemons: &BTreeMap<String, Workload>) -> String {
    if daemons.contains_key(name) { format!("pod/{name}") } else { format!("phase/{name}") }
}

/// When a step is due, told from what it does.
fn kind_of(name: &str, command: &[String]) -> &'static str {
    let text = format!("{name} {}", command.join(" ")).to_lowercase().replace(['_', ' '], "-");
    if text.contains("contract") {
        "contract"
    } else if text.contains("expand") {
        "expand"
    } else if ["db-sync", "migrat", "upgrade", "schema"].iter().any(|word| text.contains(word)) {
        "migrate"
    } else {
        "bootstrap"
    }
}

/// Command and environment of a phase: `$(NAME)` is put in here, because no kubelet does it for phases.
fn command_of(
    container: &Map<String, Value>,
    workload: &Workload,
    ledger: &Ledger,
) -> Option<(Vec<String>, BTreeMap<String, String>)> {
    let problem = |why: String| ledger.problem(&workload.file, workload.line, &workload.object, why);
    let mut env = BTreeMap::new();
    for variable in container.get("env").and_then(Value::as_array).into_iter().flatten() {
        let name = variable["name"].as_str().unwrap_or_default();
        match variable["value"].as_str() {
            Some(value) => drop(env.insert(name.to_owned(), expand(value, &env))),
            None if variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name" => {
                env.insert(name.to_owned(), workload.name.clone());
            }
            None if variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace" => {
                env.insert(name.to_owned(), "default".to_owned());
            }
            None => problem(format!("its variable {name} is made at run time, which no phase can do")),
        }
    }
    let words = |key: &str| container.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let words = words("command").into_iter().chain(words("args"));
    let command: Vec<String> =
        words.filter_map(|word| word.as_str().map(|word| expand(word, &env))).collect();
    if command.is_empty() {
        problem("runs once and says no command: a phase needs one".to_owned());
        return None;
    }
    if container.contains_key("command") {
        let why = "a phase keeps the entry point of its image, and its command becomes the arguments";
        ledger.note(&workload.file, workload.line, &workload.object, why);
    }
    Some((command, env))
}

fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    env.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}
