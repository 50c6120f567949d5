//! Pods and replication controllers of `v1beta1`, as Kolla wrote them in 2014, into the form of today.
//!
//! The nodes stay the input's own, so that the report tells the lines of the old form.

use super::report::Ledger;
use super::tree::{Kind, Node};

/// A pod of the old form.
#[derive(Debug)]
pub struct OldPod {
    /// Its labels.
    pub labels: Node,
    /// Its spec, in the form of today.
    pub spec: Node,
}

/// The pod of an object; none where it is no kind that holds one.
pub fn pod(object: &Node, kind: &str, ledger: &Ledger) -> Option<OldPod> {
    let state = object.get("desiredState");
    let (holder, manifest) = match kind {
        "Pod" => (object, state?.get("manifest")?),
        "ReplicationController" => {
            for (key, node) in state?.entries() {
                match key.as_str() {
                    "replicas" if node.value().as_i64() == Some(0) => {
                        ledger.refused(node, "runs nowhere (replicas 0)")
                    }
                    "replicas" if node.value().as_i64() == Some(1) => {
                        ledger.translated(node, "one pod on each host")
                    }
                    "replicas" => ledger.warned(node, "one pod runs on each host that has the service"),
                    "replicaSelector" => ledger.translated(node, "the pod itself"),
                    _ => {}
                }
            }
            let template = state?.get("podTemplate")?;
            template.get("labels").into_iter().for_each(|node| ledger.translated(node, "labels of the pod"));
            (template, template.at(&["desiredState", "manifest"])?)
        }
        _ => return None,
    };
    let empty = Node { line: object.line, kind: Kind::Mapping(Vec::new()), leaf: None };
    let labels =
        holder.get("labels").or_else(|| object.get("labels")).cloned().unwrap_or_else(|| empty.clone());
    Some(OldPod { labels, spec: spec(manifest, ledger) })
}

fn spec(manifest: &Node, ledger: &Ledger) -> Node {
    let mut entries = Vec::new();
    for (key, node) in manifest.entries() {
        match key.as_str() {
            "version" | "id" | "uuid" => ledger.translated(node, "the name of the pod"),
            "containers" => entries.push((key.clone(), each(node, |item| container(item, ledger)))),
            "volumes" => entries.push((key.clone(), each(node, volume))),
            "restartPolicy" => {
                let name = node.entries().first().map_or("always", |(name, _)| name.as_str());
                let name = ["always", "onFailure", "never"]
                    .into_iter()
                    .find(|known| *known == name)
                    .unwrap_or("always");
                let mut letters = name.chars();
                let first = letters.next().map(|letter| letter.to_ascii_uppercase());
                let text: String = first.into_iter().chain(letters).collect();
                ledger.translated(node, "restartPolicy");
                entries.push((key.clone(), Node::made(&text, node.line)));
            }
            _ => entries.push((key.clone(), node.clone())),
        }
    }
    Node { line: manifest.line, kind: Kind::Mapping(entries), leaf: None }
}

fn each(node: &Node, change: impl Fn(&Node) -> Node) -> Node {
    Node { line: node.line, kind: Kind::Sequence(node.items().iter().map(change).collect()), leaf: None }
}

fn renamed(node: &Node, names: &[(&str, &str)]) -> Node {
    let rename = |key: &String| {
        names.iter().find(|(old, _)| old == key).map_or(key.clone(), |(_, new)| (*new).to_owned())
    };
    let entries = node.entries().iter().map(|(key, node)| (rename(key), node.clone())).collect();
    Node { line: node.line, kind: Kind::Mapping(entries), leaf: None }
}

fn container(node: &Node, ledger: &Ledger) -> Node {
    // What v1beta1 called `command` went to the image's entry point as its arguments.
    let node = renamed(node, &[("command", "args"), ("entrypoint", "command")]);
    let mut entries = Vec::new();
    for (key, node) in node.entries() {
        let changed = match key.as_str() {
            "env" => each(node, |item| renamed(item, &[("key", "name")])),
            "volumeMounts" => each(node, |item| renamed(item, &[("path", "mountPath")])),
            "privileged" => {
                let inner = Kind::Mapping(vec![(key.clone(), node.clone())]);
                entries
                    .push(("securityContext".to_owned(), Node { line: node.line, kind: inner, leaf: None }));
                continue;
            }
            "cpu" | "memory" if node.value().as_i64() == Some(0) => {
                ledger.translated(node, "no limit");
                continue;
            }
            _ => node.clone(),
        };
        entries.push((key.clone(), changed));
    }
    Node { line: node.line, kind: Kind::Mapping(entries), leaf: None }
}

fn volume(node: &Node) -> Node {
    let mut entries: Vec<(String, Node)> =
        node.entries().iter().filter(|(key, _)| key != "source").cloned().collect();
    for (key, source) in node.get("source").map(Node::entries).unwrap_or_default() {
        let key = if key == "hostDir" || key == "hostDirectory" { "hostPath" } else { key };
        entries.push((key.to_owned(), source.clone()));
    }
    Node { line: node.line, kind: Kind::Mapping(entries), leaf: None }
}
