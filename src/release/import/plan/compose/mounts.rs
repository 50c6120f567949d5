//! Volumes, `volumes_from` and files of one service of Compose.

use std::path::Path;

use serde_json::{Value, json};

use super::super::tree::Node;
use super::super::workload::{self, guess_policy, push, slug};
use super::{Reader, lender};

impl Reader<'_> {
    pub(super) fn beside(&self, path: &str) -> std::path::PathBuf {
        Path::new(self.file).parent().unwrap_or(Path::new("")).join(path)
    }

    pub(super) fn mount(&mut self, source: Value, path: &str, read_only: bool) {
        let mounts = self.container.get("volumeMounts").and_then(Value::as_array);
        if mounts.into_iter().flatten().any(|mount| mount["mountPath"] == path) {
            return;
        }
        self.mounts += 1;
        let name = format!("v{}-{}", self.mounts, slug(path)).chars().take(60).collect::<String>();
        let name = name.trim_end_matches('-').to_owned();
        let mut volume = source;
        volume["name"] = name.clone().into();
        self.workload.volumes.push(volume);
        let mut mount = json!({"name": name, "mountPath": path});
        if read_only {
            mount["readOnly"] = true.into();
        }
        push(&mut self.container, "volumeMounts", mount);
    }

    /// A volume of the short form or the long form, of this service or of one that lends it.
    pub(super) fn volume(&mut self, node: &Node, into: &str) {
        let owner = self.workload.object.rsplit('/').next().unwrap_or_default().to_owned();
        self.volume_of(&owner, node, into, false);
    }

    pub(super) fn volume_of(&mut self, owner: &str, node: &Node, into: &str, read_only: bool) {
        let ledger = self.context.ledger;
        let (source, target, options) = match node.text() {
            Some(text) => {
                let parts: Vec<&str> = text.split(':').collect();
                match parts.as_slice() {
                    [target] => (String::new(), (*target).to_owned(), String::new()),
                    [source, target] => ((*source).to_owned(), (*target).to_owned(), String::new()),
                    [source, target, options] => {
                        ((*source).to_owned(), (*target).to_owned(), (*options).to_owned())
                    }
                    _ => return ledger.refused(node, "not a volume: SOURCE:TARGET:OPTIONS"),
                }
            }
            None => {
                if node.text_of("type") == "tmpfs" {
                    self.mount(json!({"emptyDir": {"medium": "Memory"}}), node.text_of("target"), false);
                    return ledger.translated(node, into);
                }
                let options = if node.get("read_only").is_some_and(Node::is_true) { "ro" } else { "" };
                let bind = node.at(&["bind", "propagation"]).and_then(Node::text).unwrap_or_default();
                let options = format!("{options},{bind}");
                (node.text_of("source").to_owned(), node.text_of("target").to_owned(), options)
            }
        };
        let read_only = read_only || options.split(',').any(|option| option == "ro");
        let before = self.mounts;
        if source.is_empty() {
            // A volume without a name belongs to the container that says it.
            self.state(&format!("{}-{}", slug(owner), slug(&target)), &target, read_only, node);
        } else if source.starts_with('/') {
            self.mount(json!({"hostPath": {"path": source}}), &target, read_only);
            match workload::outside_of_state(&source) {
                Some(why) => ledger.warned(node, why),
                None => ledger.translated(node, into),
            }
        } else if source.starts_with(['.', '~']) {
            self.files(&source, &target, read_only, node);
        } else {
            self.state(&slug(&source), &target, read_only, node);
        }
        for option in options.split(',').filter(|option| !["", "ro", "rw"].contains(option)) {
            let propagation = match option {
                "shared" | "rshared" => "Bidirectional",
                "slave" | "rslave" => "HostToContainer",
                "z" | "Z" | "private" | "rprivate" | "nocopy" | "cached" | "delegated" | "consistent"
                | "U" => continue,
                _ => {
                    return ledger.problem(
                        self.file,
                        node.line,
                        &self.workload.object,
                        format!("volume option {option} is not known"),
                    );
                }
            };
            if self.mounts > before
                && let Some(mount) = self
                    .container
                    .get_mut("volumeMounts")
                    .and_then(Value::as_array_mut)
                    .and_then(|all| all.last_mut())
            {
                mount["mountPropagation"] = propagation.into();
            }
        }
    }

    pub(super) fn state(&mut self, name: &str, target: &str, read_only: bool, node: &Node) {
        let given = self.context.policies.get(name).map(String::as_str);
        match given.or_else(|| guess_policy(name, &[target.to_owned()])) {
            Some(policy) => {
                let path = format!("/var/lib/rackstep/state/{name}");
                self.mount(json!({"hostPath": {"path": path, "type": "DirectoryOrCreate"}}), target, read_only);
                self.workload.state.insert(name.to_owned(), policy.to_owned());
                self.context.ledger.translated(node, format!("volume {name}, policy {policy}"));
            }
            None => self.context.ledger.refused(
                node,
                format!("what a rollback may do to volume {name} cannot be told: say --volume {name}=snapshot|keep|disposable"),
            ),
        }
    }

    /// Files beside the input become configuration.
    pub(super) fn files(&mut self, source: &str, target: &str, read_only: bool, node: &Node) {
        let Some(files) = (self.context.read)(&self.beside(source)) else {
            return self
                .context
                .ledger
                .refused(node, format!("{source} cannot be read, or is too large for configuration"));
        };
        let directory = slug(source.trim_start_matches(['.', '~', '/']));
        let single = matches!(files.as_slice(), [(path, _, _)] if path.is_empty());
        let name =
            Path::new(source).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for (path, content, executable) in files {
            let path = if path.is_empty() { name.clone() } else { path };
            self.workload.config_file(&directory, &path, content, executable);
        }
        let path = workload::config_path(&self.workload.group, &directory);
        self.mount(json!({"hostPath": {"path": path, "type": "Directory"}}), target, true);
        if single
            && let Some(mount) = self
                .container
                .get_mut("volumeMounts")
                .and_then(Value::as_array_mut)
                .and_then(|all| all.last_mut())
        {
            mount["subPath"] = name.into();
        }
        let into = format!("config/readable/{directory}");
        if read_only {
            self.context.ledger.translated(node, into);
        } else {
            self.context
                .ledger
                .warned(node, format!("{into}; what the container writes there is lost at the next boot"));
        }
    }

    pub(super) fn volumes_from(&mut self, node: &Node, into: &str) {
        let ledger = self.context.ledger;
        let (name, read_only) = lender(node.text().unwrap_or_default());
        let Some(other) = self.services.get(&name) else {
            return ledger.refused(node, format!("{name} is not in the input: name its volumes here"));
        };
        for volume in other.get("volumes").map(Node::items).unwrap_or_default() {
            self.volume_of(&name, volume, into, read_only);
        }
        for further in other.get("volumes_from").map(Node::items).unwrap_or_default() {
            if lender(further.text().unwrap_or_default()).0 != name {
                self.volumes_from(further, into);
            }
        }
        if other.get("volumes").is_none() {
            ledger.refused(
                node,
                format!("{name} lends the volumes that its image names, and the input does not say them"),
            );
        }
        ledger.translated(node, into);
    }

    /// An entry of `configs` or `secrets`, mounted where Compose mounts it.
    pub(super) fn file_of(&mut self, section: &str, node: &Node, into: &str) {
        let ledger = self.context.ledger;
        let name = node.text().unwrap_or_else(|| node.text_of("source")).to_owned();
        let target = node.get("target").and_then(Node::text).unwrap_or(&name).to_owned();
        let target = match (target.starts_with('/'), section) {
            (true, _) => target,
            (false, "secrets") => format!("/run/secrets/{target}"),
            (false, _) => format!("/{target}"),
        };
        let Some(entry) = self.root.at(&[section, &name]).cloned() else {
            return ledger.refused(node, format!("{section} has no {name}"));
        };
        let content = if section == "secrets" {
            self.workload.secrets.insert(name.clone());
            let from = format!("{}: secret {name}, file {}", self.file, entry.text_of("file"));
            Some(ledger.secret(&name, &from).into_bytes())
        } else if let Some(content) = entry.get("content").and_then(Node::text) {
            Some(content.as_bytes().to_vec())
        } else {
            let files = (self.context.read)(&self.beside(entry.text_of("file")));
            files.and_then(|files| files.into_iter().next()).map(|(_, content, _)| content)
        };
        let Some(content) = content else {
            return ledger.refused(node, format!("{} cannot be read", entry.text_of("file")));
        };
        self.workload.config_file(section, &name, content, false);
        let path = workload::config_path(&self.workload.group, section);
        self.mount(json!({"hostPath": {"path": path, "type": "Directory"}}), &target, true);
        if let Some(mount) = self
            .container
            .get_mut("volumeMounts")
            .and_then(Value::as_array_mut)
            .and_then(|all| all.last_mut())
        {
            mount["subPath"] = name.into();
        }
        ledger.translated(node, into);
    }
}
