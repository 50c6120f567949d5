//! The fields of one service of Compose.

use serde_json::{Value, json};

use super::super::pod::IN_CLEAR;
use super::super::report::Ledger;
use super::super::tree::{Kind, Node};
use super::super::workload::{push, slug};
use super::Reader;
use super::text::{environment_lines, is_secret_name, on_host, quantity, seconds};

impl Reader<'_> {
    pub(super) fn service(&mut self, name: &str, node: &Node) {
        let ledger = self.context.ledger;
        self.container.insert("name".to_owned(), slug(name).into());
        if node.get("image").is_none() {
            ledger.problem(
                self.file,
                node.line,
                &self.workload.object,
                "has no image (build it, and name it by `image`)",
            );
        }
        if !on_host(node) {
            let why = "runs on the host's network: a host has no other for pods";
            ledger.note(self.file, node.line, &self.workload.object, why);
        }
        let restart = node.get("restart").and_then(Node::text).unwrap_or("no");
        let policy = match restart.split(':').next() {
            Some("no") => "Never",
            Some("on-failure") => "OnFailure",
            _ => "Always",
        };
        self.workload.spec.insert("restartPolicy".to_owned(), policy.into());
        for (key, value) in node.entries() {
            self.field(key, value);
        }
        let env = std::mem::take(&mut self.env);
        for (name, value) in env {
            push(&mut self.container, "env", json!({"name": name, "value": value}));
        }
        let secret = std::mem::take(&mut self.secret_env);
        self.workload.secret_environment(&mut self.container, &secret);
    }

    /// True when the service says its entry point, so that a file can be read before it.
    pub(super) fn is_commanded(&self) -> bool {
        let name = self.workload.object.rsplit('/').next().unwrap_or_default();
        self.services.get(name).is_some_and(|node| node.get("entrypoint").is_some())
    }

    pub(super) fn field(&mut self, key: &str, node: &Node) {
        let ledger = self.context.ledger;
        let into = format!("pod {}", self.workload.name);
        let kept = |ledger: &Ledger| ledger.translated(node, into.clone());
        match key {
            "image" => {
                self.container.insert("image".to_owned(), node.value());
                kept(ledger);
            }
            "entrypoint" => {
                self.container.insert("command".to_owned(), node.words().into());
                kept(ledger);
            }
            "command" => {
                self.container.insert("args".to_owned(), node.words().into());
                kept(ledger);
            }
            "working_dir" => {
                self.container.insert("workingDir".to_owned(), node.value());
                kept(ledger);
            }
            "tty" | "stdin_open" => {
                self.container.insert(if key == "tty" { "tty" } else { "stdin" }.to_owned(), node.value());
                kept(ledger);
            }
            "restart" | "container_name" => kept(ledger),
            "net" | "network_mode" if node.text() == Some("host") => kept(ledger),
            "net" | "network_mode" if node.text() == Some("none") => {
                ledger.refused(node, "a pod has the host's network")
            }
            "net" | "network_mode" | "networks" | "expose" | "mac_address" => {
                ledger.warned(node, "every pod is on the host's network");
            }
            "pid" | "ipc" if node.text() == Some("host") => {
                self.workload
                    .spec
                    .insert(if key == "pid" { "hostPID" } else { "hostIPC" }.to_owned(), true.into());
                kept(ledger);
            }
            "ipc" if ["private", "shareable"].contains(&node.text().unwrap_or_default()) => kept(ledger),
            "privileged" => self.context_field("privileged", node.value(), node, &into),
            "read_only" => self.context_field("readOnlyRootFilesystem", node.value(), node, &into),
            "cap_add" | "cap_drop" => {
                let names: Vec<String> =
                    node.words().iter().map(|name| name.trim_start_matches("CAP_").to_owned()).collect();
                let context = self.container.entry("securityContext").or_insert_with(|| json!({}));
                context["capabilities"][if key == "cap_add" { "add" } else { "drop" }] = json!(names);
                kept(ledger);
            }
            "security_opt" => node.items().iter().for_each(|item| self.security(item, &into)),
            "user" => self.user(node, &into),
            "group_add" => {
                let ids: Option<Vec<i64>> = node.words().iter().map(|word| word.parse().ok()).collect();
                match ids {
                    Some(ids) => {
                        self.workload
                            .spec
                            .insert("securityContext".to_owned(), json!({"supplementalGroups": ids}));
                        kept(ledger);
                    }
                    None => {
                        ledger.refused(node, "groups must be numbers: names are known to the image alone")
                    }
                }
            }
            "environment" => self.environment(node, &into),
            "env_file" => self.env_file(node, &into),
            "labels" | "annotations" => {
                ledger.warned(node, "labels are read by programs that are not on a host")
            }
            "logging" | "log_driver" | "log_opt" => ledger.warned(node, "the host's Docker keeps the log"),
            "volumes" => node.items().iter().for_each(|item| self.volume(item, &into)),
            "volumes_from" => node.items().iter().for_each(|item| self.volumes_from(item, &into)),
            "tmpfs" => {
                for word in node.words() {
                    let path = word.split(':').next().unwrap_or(&word).to_owned();
                    self.mount(json!({"emptyDir": {"medium": "Memory"}}), &path, false);
                }
                kept(ledger);
            }
            "shm_size" => {
                self.mount(json!({"emptyDir": {"medium": "Memory", "sizeLimit": quantity(node.text().unwrap_or("64m"))}}), "/dev/shm", false);
                kept(ledger);
            }
            "devices" => self.devices(node),
            "ports" => node.items().iter().for_each(|item| self.port(item, &into)),
            "depends_on" | "links" => self.depends(key, node),
            "extra_hosts" => self.extra_hosts(node, &into),
            "healthcheck" => self.healthcheck(node, &into),
            "stop_grace_period" => {
                let seconds = seconds(node.text().unwrap_or("10s"));
                self.workload.spec.insert("terminationGracePeriodSeconds".to_owned(), seconds.into());
                kept(ledger);
            }
            "mem_limit" | "cpus" | "deploy" | "memswap_limit" | "mem_reservation" => {
                self.resources(key, node, &into)
            }
            "configs" | "secrets" => node.items().iter().for_each(|item| self.file_of(key, item, &into)),
            "init" if node.is_true() => {
                self.workload.spec.insert("shareProcessNamespace".to_owned(), true.into());
                ledger.warned(node, "the pod's sandbox is process 1 and reaps (shareProcessNamespace)");
            }
            "init" => kept(ledger),
            "hostname" | "domainname" => {
                ledger.warned(node, "on the host's network a pod has the host's name")
            }
            "pull_policy" | "platform" | "profiles" | "scale" | "attach" | "develop" => {
                ledger.warned(
                    node,
                    "a host runs one of each service that its release lists, from the release's images",
                );
            }
            "build" if self.is_built() => ledger
                .warned(node, "the image is taken by its name: build and push it before `rackstep lock`"),
            "extends" => ledger.refused(node, "`docker compose config` resolves it: import its output"),
            "oom_score_adj" | "cpu_shares" | "blkio_config" | "cpuset" => {
                ledger.warned(node, "kubelet decides it from the pod's resources");
            }
            key if key.starts_with("x-") => {
                ledger.warned(node, "an extension field: nothing but its aliases is used")
            }
            _ => ledger
                .refused(node, "a pod has no such field, and the container would run otherwise without it"),
        }
    }

    pub(super) fn is_built(&self) -> bool {
        let name = self.workload.object.rsplit('/').next().unwrap_or_default();
        self.services.get(name).is_some_and(|node| node.get("image").is_some())
    }

    pub(super) fn context_field(&mut self, field: &str, value: Value, node: &Node, into: &str) {
        let context = self.container.entry("securityContext").or_insert_with(|| json!({}));
        context[field] = value;
        self.context.ledger.translated(node, into);
    }

    pub(super) fn security(&mut self, node: &Node, into: &str) {
        let text = node.text().unwrap_or_default().replace('=', ":");
        match text.as_str() {
            "no-new-privileges" | "no-new-privileges:true" => {
                self.context_field("allowPrivilegeEscalation", false.into(), node, into);
            }
            "apparmor:unconfined" => {
                self.context_field("appArmorProfile", json!({"type": "Unconfined"}), node, into)
            }
            "seccomp:unconfined" => {
                self.context_field("seccompProfile", json!({"type": "Unconfined"}), node, into)
            }
            "label:disable" => self.context.ledger.warned(node, "hosts have no SELinux"),
            _ => self.context.ledger.refused(node, "a pod has no such security option"),
        }
    }

    pub(super) fn user(&mut self, node: &Node, into: &str) {
        let text = node.text().unwrap_or_default();
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let id = |name: &str| if name == "root" { Some(0) } else { name.parse::<i64>().ok() };
        match (id(user), group.map(id)) {
            (Some(user), None) => self.context_field("runAsUser", user.into(), node, into),
            (Some(user), Some(Some(group))) => {
                self.context_field("runAsGroup", group.into(), node, into);
                self.context_field("runAsUser", user.into(), node, into);
            }
            _ => self
                .context
                .ledger
                .refused(node, "must be a number: the names of users are known to the image alone"),
        }
    }

    pub(super) fn environment(&mut self, node: &Node, into: &str) {
        for (name, value) in node.entries() {
            self.variable(name, value.text(), value, into);
        }
        for item in node.items() {
            let text = item.text().unwrap_or_default();
            match text.split_once('=') {
                Some((name, value)) => self.variable(name, Some(value), item, into),
                None => self.variable(text, None, item, into),
            }
        }
    }

    pub(super) fn variable(&mut self, name: &str, value: Option<&str>, node: &Node, into: &str) {
        let ledger = self.context.ledger;
        let Some(value) = value.filter(|_| !node.value().is_null()) else {
            return ledger
                .refused(node, format!("takes {name} from the shell of whoever starts it: write its value"));
        };
        self.env.retain(|(other, _)| other != name);
        if is_secret_name(name) && !value.is_empty() && self.is_commanded() {
            let secret = format!("{}.{name}", self.workload.name);
            let from = format!("{}:{}, variable {name}", self.file, node.line);
            self.secret_env.push((name.to_owned(), ledger.secret(&secret, &from)));
            self.workload.secrets.insert(secret);
            return ledger.translated(node, "a named secret; its value is not written");
        }
        // Kubernetes would put variables into `$(NAME)`.
        self.env.push((name.to_owned(), value.replace("$(", "$$(")));
        if is_secret_name(name) && !value.is_empty() {
            return ledger.warned(node, IN_CLEAR);
        }
        ledger.translated(node, into);
    }

    pub(super) fn env_file(&mut self, node: &Node, into: &str) {
        let paths: Vec<(String, Node)> = match &node.kind {
            Kind::Sequence(items) => items
                .iter()
                .map(|item| {
                    (item.get("path").unwrap_or(item).text().unwrap_or_default().to_owned(), item.clone())
                })
                .collect(),
            _ => vec![(node.text().unwrap_or_default().to_owned(), node.clone())],
        };
        for (path, node) in paths {
            let Some(files) = (self.context.read)(&self.beside(&path)) else {
                self.context.ledger.refused(&node, format!("{path} cannot be read"));
                continue;
            };
            for (name, value) in environment_lines(&files) {
                if is_secret_name(&name) && !value.is_empty() {
                    let why = format!(
                        "{name} of {path} is kept, but a password in clear: whoever reads the release reads it"
                    );
                    self.context.ledger.note(self.file, node.line, &self.workload.object, why);
                }
                // `environment` wins over files, wherever it stands.
                if !self.env.iter().any(|(other, _)| *other == name) {
                    self.env.push((name, value.replace("$(", "$$(")));
                }
            }
            self.context.ledger.translated(&node, into);
        }
    }

    pub(super) fn devices(&mut self, node: &Node) {
        let ledger = self.context.ledger;
        let privileged = self.services.entries().iter().any(|(name, node)| {
            slug(name) == self.workload.name && node.get("privileged").is_some_and(Node::is_true)
        });
        for item in node.items() {
            if privileged {
                ledger.translated(item, "a privileged container sees every device");
            } else {
                ledger.refused(item, "a pod gets a device only when it is privileged");
            }
        }
    }
}
