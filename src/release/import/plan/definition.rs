//! Our service definitions, as an import writes them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use serde_yaml_ng::Mapping;

use super::workload::ConfigFile;

/// A step that runs once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseDefinition {
    /// Its id.
    pub id: String,
    /// `bootstrap`, `expand`, `migrate` or `contract`.
    pub kind: String,
    /// The image, by its name in the service.
    pub image: String,
    /// The pod whose mounts it takes.
    pub pod: String,
    /// Its command.
    pub command: Vec<String>,
    /// Its own environment.
    pub env: BTreeMap<String, String>,
    /// `uid:gid`, where it is another than that of its pod's container.
    pub user: Option<String>,
    /// What it needs.
    pub needs: BTreeSet<String>,
}

/// A directory under `manifests/`.
#[derive(Debug, Clone, Default)]
pub struct Definition {
    /// The service.
    pub name: String,
    /// Images: name → reference in a registry.
    pub images: BTreeMap<String, String>,
    /// Pods by name.
    pub pods: BTreeMap<String, Value>,
    /// Files below `config/`.
    pub config: BTreeMap<String, ConfigFile>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
    /// Volumes and their policies.
    pub volumes: BTreeMap<String, String>,
    /// Steps, in order.
    pub phases: Vec<PhaseDefinition>,
    /// Pod → steps that come before it.
    pub pods_after: BTreeMap<String, BTreeSet<String>>,
}

impl Definition {
    /// Every file of the directory: relative path → content and whether it can be run.
    pub fn files(&self) -> Result<BTreeMap<String, ConfigFile>, serde_yaml_ng::Error> {
        let mut files = BTreeMap::new();
        let plain = |text: String| ConfigFile { content: text.into_bytes(), executable: false };
        for (name, pod) in &self.pods {
            let mut map = Mapping::new();
            for key in ["apiVersion", "kind", "metadata", "spec"] {
                map.insert(key.into(), serde_yaml_ng::to_value(&pod[key])?);
            }
            files.insert(self.pod_file(name), plain(serde_yaml_ng::to_string(&map)?));
        }
        for (path, file) in &self.config {
            files.insert(format!("config/{path}"), file.clone());
        }
        files.insert("service.yaml".to_owned(), plain(self.service()?));
        Ok(files)
    }

    fn pod_file(&self, name: &str) -> String {
        if self.pods.len() == 1 { "pod.yaml".to_owned() } else { format!("pod-{name}.yaml") }
    }

    fn service(&self) -> Result<String, serde_yaml_ng::Error> {
        let images: BTreeMap<&String, Value> = self
            .images
            .iter()
            .map(|(name, image)| (name, json!({"source": format!("registry:{image}")})))
            .collect();
        let mut map = Mapping::new();
        let mut put = |key: &str, value: Value| -> Result<(), serde_yaml_ng::Error> {
            if !matches!(&value, Value::Array(list) if list.is_empty())
                && !matches!(&value, Value::Object(map) if map.is_empty())
            {
                map.insert(key.into(), serde_yaml_ng::to_value(value)?);
            }
            Ok(())
        };
        put("name", self.name.clone().into())?;
        put("images", json!(images))?;
        put("pods", self.pods.keys().map(|name| self.pod_file(name)).collect())?;
        if !self.config.is_empty() {
            put("config", "config".into())?;
        }
        put(
            "secrets",
            self.secrets
                .iter()
                .map(|name| (name.clone(), json!({"generate": "password"})))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        )?;
        put(
            "volumes",
            self.volumes
                .iter()
                .map(|(name, policy)| (name.clone(), json!({"policy": policy})))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        )?;
        put("phases", self.phases.iter().map(|phase| self.phase(phase)).collect())?;
        put("pods_after", json!(self.pods_after))?;
        Ok(format!(
            "# Made by `rackstep import`; read it before you keep it.\n{}",
            serde_yaml_ng::to_string(&map)?
        ))
    }

    fn phase(&self, phase: &PhaseDefinition) -> Value {
        let mut value =
            json!({"id": phase.id, "kind": phase.kind, "image": phase.image, "command": phase.command});
        if self.pods.len() != 1 {
            value["pod"] = phase.pod.clone().into();
        }
        if !phase.env.is_empty() {
            value["env"] = json!(phase.env);
        }
        if let Some(user) = &phase.user {
            value["user"] = user.clone().into();
        }
        if !phase.needs.is_empty() {
            value["needs"] = json!(phase.needs);
        }
        value
    }
}
