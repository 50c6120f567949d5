//! Volumes of a pod: configuration, secrets, and state of the host.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::tree::Node;
use super::super::workload::{guess_policy, outside_of_state};
use super::Translator;

impl Translator<'_> {
    pub(super) fn volume(&mut self, node: &Node, mounts: &BTreeMap<String, Vec<String>>) {
        let name = node.text_of("name").to_owned();
        let into = format!("pod {}, volume {name}", self.workload.name);
        let paths = mounts.get(&name).cloned().unwrap_or_default();
        let source = node.entries().iter().find(|(key, _)| key != "name");
        let Some((kind, source)) = source else {
            // A volume without a source is an empty directory.
            self.workload.volumes.push(json!({"name": name, "emptyDir": {}}));
            return self.ledger.translated(node, into);
        };
        match kind.as_str() {
            "emptyDir" | "hostPath" | "downwardAPI" => {
                self.workload.volumes.push(node.value());
                match outside_of_state(source.text_of("path")) {
                    Some(why) => self.ledger.warned(node, why),
                    None => self.ledger.translated(node, into),
                }
            }
            "configMap" | "secret" => {
                let directory = self.directory_of(kind, source, &name);
                let mode = source.get("defaultMode").map(Node::value);
                self.files(kind, source, &directory, mode.as_ref(), node);
                self.workload.config_volume(&name, &directory);
                self.ledger.translated(node, format!("config/readable/{directory}"));
            }
            "projected" => {
                let directory = format!("{}-{name}", self.workload.name);
                let mode = source.get("defaultMode").map(Node::value);
                for part in source.get("sources").map(Node::items).unwrap_or_default() {
                    for (kind, inner) in part.entries() {
                        match kind.as_str() {
                            "configMap" | "secret" => {
                                self.files(kind, inner, &directory, mode.as_ref(), part)
                            }
                            _ => self.ledger.refused(part, "a host has no API server to make this from"),
                        }
                    }
                }
                self.workload.config_volume(&name, &directory);
                self.ledger.translated(node, format!("config/readable/{directory}"));
            }
            "persistentVolumeClaim" => {
                let claim = source.text_of("claimName").to_owned();
                self.state(&name, &claim, &paths, Some(node));
                self.ledger.translated(node, into);
            }
            _ => self
                .ledger
                .refused(node, format!("a host mounts no {kind}: its volumes are directories of the host")),
        }
    }

    fn directory_of(&self, kind: &str, source: &Node, volume: &str) -> String {
        if source.get("items").is_some() {
            return format!("{}-{volume}", self.workload.name);
        }
        // Pods that mount the same object share its files, so the name tells all that differs.
        let object = source.text_of(if kind == "secret" { "secretName" } else { "name" });
        let mode = source.get("defaultMode").map(Node::value).and_then(|mode| mode.as_i64());
        let executable = if mode.is_some_and(|mode| mode & 0o111 != 0) { "-run" } else { "" };
        let double =
            self.objects.secrets.contains_key(object) && self.objects.config_maps.contains_key(object);
        let secret = if double && kind == "secret" { "-secret" } else { "" };
        format!("{object}{executable}{secret}")
    }

    /// Writes the keys of a ConfigMap or a Secret as files.
    fn files(&mut self, kind: &str, source: &Node, directory: &str, mode: Option<&Value>, node: &Node) {
        let objects = self.objects;
        let object = [source.text_of("secretName"), source.text_of("name")].concat();
        let keys: Option<Vec<String>> = if kind == "secret" {
            objects.secrets.get(&object).map(|keys| keys.keys().cloned().collect())
        } else {
            objects.config_maps.get(&object).map(|keys| keys.keys().cloned().collect())
        };
        let Some(keys) = keys else {
            return self.missing(node, source, kind, &object, "*");
        };
        let listed = source.get("items").map(Node::items);
        let chosen: Vec<(String, String, Option<Value>)> = match listed {
            Some(items) => items
                .iter()
                .map(|item| {
                    (
                        item.text_of("key").into(),
                        item.text_of("path").into(),
                        item.get("mode").map(Node::value),
                    )
                })
                .collect(),
            None => keys.into_iter().map(|key| (key.clone(), key, None)).collect(),
        };
        for (key, path, own_mode) in chosen {
            let executable =
                own_mode.as_ref().or(mode).and_then(Value::as_i64).is_some_and(|mode| mode & 0o111 != 0);
            let into = format!("config/readable/{directory}/{path}");
            let content = if kind == "secret" {
                self.secret_value(&object, &key, &into).map(String::into_bytes)
            } else {
                let datum = objects.config_maps.get(&object).and_then(|map| map.get(&key));
                datum.map(|datum| {
                    self.ledger.translated(&datum.node, into);
                    datum.content.clone()
                })
            };
            match content {
                Some(content) if path.split('/').all(|part| !part.is_empty() && part != "..") => {
                    self.workload.config_file(directory, &path, content, executable);
                }
                _ => self.missing(node, source, kind, &object, &key),
            }
        }
    }

    /// A directory of the host's state, with what a rollback may do to it.
    pub(super) fn state(&mut self, volume: &str, state: &str, paths: &[String], node: Option<&Node>) {
        let given = self.objects.policies.get(state).cloned();
        let claim = self.objects.claims.get(state);
        match given.or_else(|| guess_policy(state, paths).map(str::to_owned)) {
            Some(policy) => {
                self.workload.state_volume(volume, state, &policy);
                let into = format!("volume {state}, policy {policy}");
                claim.into_iter().chain(node).for_each(|node| self.ledger.translated(node, into.clone()));
            }
            None => {
                let line = node.map_or(self.workload.line, |node| node.line);
                let why = format!(
                    "what a rollback may do to volume {state} cannot be told: say --volume {state}=snapshot|keep|disposable"
                );
                self.ledger.problem(&self.workload.file, line, &self.workload.object, why.clone());
                claim.into_iter().chain(node).for_each(|node| self.ledger.refused(node, why.clone()));
            }
        }
    }
}

/// Where each volume of a pod is mounted.
pub(super) fn mount_paths(spec: &Node) -> BTreeMap<String, Vec<String>> {
    let mut paths: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for list in ["containers", "initContainers"] {
        for container in spec.get(list).map(Node::items).unwrap_or_default() {
            for mount in container.get("volumeMounts").map(Node::items).unwrap_or_default() {
                paths
                    .entry(mount.text_of("name").to_owned())
                    .or_default()
                    .push(mount.text_of("mountPath").to_owned());
            }
        }
    }
    paths
}
