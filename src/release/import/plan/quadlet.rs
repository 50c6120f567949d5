//! Podman's quadlets (`.container` units), told in Compose's words.
//!
//! Each `Key=value` is a leaf with its line. A key gets the field of Compose that means the same, and Compose's
//! translation then decides; what Compose has no word for is decided here.

use super::report::Ledger;
use super::tree::{Kind, Node, Style, split_words};

/// Keys of `[Container]` and the fields of Compose that mean the same: one value, or a list of values.
const ONE: &[(&str, &str)] = &[
    ("Image", "image"),
    ("ContainerName", "container_name"),
    ("Exec", "command"),
    ("Entrypoint", "entrypoint"),
    ("WorkingDir", "working_dir"),
    ("ReadOnly", "read_only"),
    ("ShmSize", "shm_size"),
    ("HostName", "hostname"),
    ("RunInit", "init"),
    ("StopTimeout", "stop_grace_period"),
    ("LogDriver", "logging"),
    ("Pull", "pull_policy"),
];
const MANY: &[(&str, &str)] = &[
    ("Volume", "volumes"),
    ("PublishPort", "ports"),
    ("Environment", "environment"),
    ("EnvironmentFile", "env_file"),
    ("AddCapability", "cap_add"),
    ("DropCapability", "cap_drop"),
    ("Tmpfs", "tmpfs"),
    ("AddHost", "extra_hosts"),
    ("Label", "labels"),
    ("Annotation", "annotations"),
    ("GroupAdd", "group_add"),
    ("AddDevice", "devices"),
];
const HEALTH: &[(&str, &str)] = &[
    ("HealthCmd", "test"),
    ("HealthInterval", "interval"),
    ("HealthTimeout", "timeout"),
    ("HealthRetries", "retries"),
    ("HealthStartPeriod", "start_period"),
];

/// The Compose service that a `.container` file means.
pub fn service(file: &str, text: &str, ledger: &Ledger) -> Node {
    let mut service = Service { entries: Vec::new(), user: None, group: None };
    let mut section = String::new();
    for (line, text) in joined_lines(text) {
        if let Some(name) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            name.clone_into(&mut section);
            continue;
        }
        let (key, value) =
            text.split_once('=').map_or((text.as_str(), ""), |(key, value)| (key.trim(), value.trim()));
        let leaf = ledger.enter(file, line, &format!("{section}.{key}"));
        let node = Node { line, kind: Kind::Scalar(value.to_owned(), Style::Plain), leaf: Some(leaf) };
        match section.as_str() {
            "Container" => service.container(key, node, ledger),
            "Unit" => service.unit(key, node, ledger),
            "Service" => service.service(key, node, ledger),
            "Install" => ledger.translated(&node, "the service is started where a treefile lists it"),
            _ => ledger.refused(&node, "a quadlet has no such section"),
        }
    }
    service.finish(ledger)
}

struct Service {
    entries: Vec<(String, Node)>,
    user: Option<Node>,
    group: Option<Node>,
}

impl Service {
    fn container(&mut self, key: &str, node: Node, ledger: &Ledger) {
        let find = |list: &[(&str, &'static str)]| {
            list.iter().find(|(name, _)| *name == key).map(|(_, field)| *field)
        };
        let text = node.text().unwrap_or_default().to_owned();
        if let Some(field) = find(ONE) {
            return self.entries.push((field.to_owned(), node));
        }
        if let Some(field) = find(MANY) {
            let parts = if ["cap_add", "cap_drop", "environment"].contains(&field) {
                split_words(&text)
            } else {
                vec![text]
            };
            // A volume unit is named by its file; the volume itself has the name without the ending.
            let parts = parts.into_iter().map(|part| part.replace(".volume:", ":"));
            return parts.for_each(|part| self.append(field, part, &node));
        }
        if let Some(field) = find(HEALTH) {
            return self.inner("healthcheck", field, node);
        }
        match key {
            "Network" if text == "host" => self.entries.push(("network_mode".to_owned(), node)),
            "Network" => ledger.warned(&node, "every pod is on the host's network"),
            "User" => self.user = Some(node),
            "Group" => self.group = Some(node),
            "NoNewPrivileges" if text == "true" => {
                self.append("security_opt", "no-new-privileges".to_owned(), &node)
            }
            "SeccompProfile" if text == "unconfined" => {
                self.append("security_opt", "seccomp=unconfined".to_owned(), &node)
            }
            "AutoUpdate" => ledger.warned(&node, "images change with a release alone"),
            "Notify" if text == "false" => ledger.translated(&node, "the default"),
            "Secret" => self.append("secrets", text.split(',').next().unwrap_or_default().to_owned(), &node),
            "PodmanArgs" | "GlobalArgs" => self.arguments(&text, &node, ledger),
            _ => ledger
                .refused(&node, "a pod has no such field, and the container would run otherwise without it"),
        }
    }

    /// Options that quadlets have no key for.
    fn arguments(&mut self, text: &str, node: &Node, ledger: &Ledger) {
        for word in split_words(text) {
            let (option, value) = word.split_once('=').unwrap_or((&word, ""));
            let field = match (option, value) {
                ("--privileged", "" | "true") => Some(("privileged", "true")),
                ("--pid", "host") => Some(("pid", "host")),
                ("--ipc", "host") => Some(("ipc", "host")),
                _ => None,
            };
            match field {
                Some((field, value)) => {
                    let mut made = node.clone();
                    made.kind = Kind::Scalar(value.to_owned(), Style::Plain);
                    self.entries.push((field.to_owned(), made));
                }
                None => ledger.refused(node, format!("{option} of podman is not known to the import")),
            }
        }
    }

    fn unit(&mut self, key: &str, node: Node, ledger: &Ledger) {
        match key {
            "Description" | "Documentation" => ledger.translated(&node, "words for people"),
            "After" | "Requires" | "Wants" | "BindsTo" | "PartOf" | "Requisite" => {
                for word in split_words(node.text().unwrap_or_default()) {
                    if let Some(name) = word.strip_suffix(".service")
                        && !name.contains("network")
                        && !name.contains('@')
                    {
                        self.append("depends_on", name.to_owned(), &node);
                    }
                }
                // Targets and networks are up before kubelet is.
                ledger.translated(&node, "needs of phases and pods_after");
            }
            _ => ledger.warned(&node, "a pod is no unit: kubelet starts and stops it"),
        }
    }

    fn service(&mut self, key: &str, node: Node, ledger: &Ledger) {
        let text = node.text().unwrap_or_default().to_owned();
        match key {
            "Restart" => {
                let mut made = node;
                let policy = if text == "on-failure" || text == "no" { text.as_str() } else { "always" };
                made.kind = Kind::Scalar(policy.to_owned(), Style::Quoted);
                self.entries.push(("restart".to_owned(), made));
            }
            key if key.starts_with("Exec") => {
                ledger.refused(&node, "a command of the host beside the container: make it a phase")
            }
            "Type" if text == "oneshot" => ledger.refused(&node, "runs once: make it a phase"),
            _ => ledger.warned(&node, "a pod is no unit: kubelet starts and stops it"),
        }
    }

    fn append(&mut self, field: &str, text: String, node: &Node) {
        let item = Node { line: node.line, kind: Kind::Scalar(text, Style::Quoted), leaf: node.leaf };
        match self.entries.iter_mut().find(|(name, _)| name == field) {
            Some((_, Node { kind: Kind::Sequence(items), .. })) => items.push(item),
            _ => {
                let kind = Kind::Sequence(vec![item]);
                self.entries.push((field.to_owned(), Node { line: node.line, kind, leaf: None }));
            }
        }
    }

    fn inner(&mut self, field: &str, key: &str, node: Node) {
        match self.entries.iter_mut().find(|(name, _)| name == field) {
            Some((_, Node { kind: Kind::Mapping(entries), .. })) => entries.push((key.to_owned(), node)),
            _ => {
                let (line, kind) = (node.line, Kind::Mapping(vec![(key.to_owned(), node)]));
                self.entries.push((field.to_owned(), Node { line, kind, leaf: None }));
            }
        }
    }

    fn finish(mut self, ledger: &Ledger) -> Node {
        if let Some(user) = self.user {
            let group = self.group.as_ref().and_then(Node::text);
            let text = [user.text(), group].into_iter().flatten().collect::<Vec<_>>().join(":");
            let mut made = user;
            made.kind = Kind::Scalar(text, Style::Quoted);
            self.entries.push(("user".to_owned(), made));
        }
        if let Some(group) = self.group {
            ledger.translated(&group, "the group of the user");
        }
        Node { line: 1, kind: Kind::Mapping(self.entries), leaf: None }
    }
}

/// Lines without comments, continued ones joined, with their numbers.
fn joined_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let (text, goes_on) = line.strip_suffix('\\').map_or((line, false), |text| (text.trim_end(), true));
        match lines.last_mut() {
            Some((_, last)) if open => {
                last.push(' ');
                last.push_str(text);
            }
            _ => lines.push((number + 1, text.to_owned())),
        }
        open = goes_on;
    }
    lines
}
