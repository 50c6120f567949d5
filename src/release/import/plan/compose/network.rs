//! Ports, dependencies, health and resources of one service of Compose.

use serde_json::json;

use super::super::tree::{Kind, Node};
use super::super::workload::{Need, push, slug};
use super::Reader;
use super::text::{quantity, seconds};

impl Reader<'_> {
    pub(super) fn port(&mut self, node: &Node, into: &str) {
        let ledger = self.context.ledger;
        let (address, published, target, protocol) = match node.text() {
            Some(text) => {
                let (text, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
                let mut parts: Vec<&str> = text.rsplitn(3, ':').collect();
                parts.reverse();
                match parts.as_slice() {
                    [target] => {
                        (String::new(), (*target).to_owned(), (*target).to_owned(), protocol.to_owned())
                    }
                    [published, target] => {
                        (String::new(), (*published).to_owned(), (*target).to_owned(), protocol.to_owned())
                    }
                    [address, published, target] => (
                        (*address).to_owned(),
                        (*published).to_owned(),
                        (*target).to_owned(),
                        protocol.to_owned(),
                    ),
                    _ => return ledger.refused(node, "not a port"),
                }
            }
            None => {
                let text = |key: &str| node.text_of(key).to_owned();
                let published = if text("published").is_empty() { text("target") } else { text("published") };
                let protocol = if text("protocol").is_empty() { "tcp".to_owned() } else { text("protocol") };
                (text("host_ip"), published, text("target"), protocol)
            }
        };
        if published != target {
            return ledger.refused(
                node,
                format!(
                    "port {published} of the host leads to {target}, and nothing forwards on a host's network"
                ),
            );
        }
        if !["", "0.0.0.0", "::", "[::]"].contains(&address.as_str()) {
            return ledger.refused(
                node,
                format!(
                    "open on {address} alone: on the host's network the service itself says where it listens"
                ),
            );
        }
        let Ok(number) = target.parse::<u16>() else {
            return ledger.refused(node, "a range of ports: name each");
        };
        push(
            &mut self.container,
            "ports",
            json!({"containerPort": number, "protocol": protocol.to_uppercase()}),
        );
        ledger.translated(node, into);
    }

    pub(super) fn depends(&mut self, key: &str, node: &Node) {
        let names: Vec<String> = match &node.kind {
            Kind::Mapping(entries) => entries.iter().map(|(name, _)| name.clone()).collect(),
            _ => node.words(),
        };
        for name in names {
            let name = if key == "links" { name.split(':').next().unwrap_or(&name).to_owned() } else { name };
            self.workload.needs.push(Need { name: slug(&name), line: node.line });
        }
        for item in node.items() {
            if let Some((_, alias)) = item.text().and_then(|text| text.split_once(':')) {
                push(
                    &mut self.workload.spec,
                    "hostAliases",
                    json!({"ip": "127.0.0.1", "hostnames": [alias]}),
                );
            }
        }
        self.context.ledger.translated(node, "needs of phases and pods_after");
    }

    pub(super) fn extra_hosts(&mut self, node: &Node, into: &str) {
        let pairs: Vec<(String, String)> = match &node.kind {
            Kind::Mapping(entries) => entries
                .iter()
                .map(|(name, node)| (name.clone(), node.text().unwrap_or_default().to_owned()))
                .collect(),
            _ => {
                let words = node.words();
                let split = |word: &String| {
                    word.split_once([':', '=']).map(|(name, ip)| (name.to_owned(), ip.to_owned()))
                };
                words.iter().filter_map(split).collect()
            }
        };
        for (name, ip) in pairs {
            let ip = if ip == "host-gateway" { "127.0.0.1".to_owned() } else { ip };
            push(&mut self.workload.spec, "hostAliases", json!({"ip": ip, "hostnames": [name]}));
        }
        self.context.ledger.translated(node, into);
    }

    pub(super) fn healthcheck(&mut self, node: &Node, into: &str) {
        let ledger = self.context.ledger;
        let test = node.get("test").map(|test| match test.text() {
            Some(text) => vec!["CMD-SHELL".to_owned(), text.to_owned()],
            None => test.words(),
        });
        let command = match test.as_deref() {
            Some([kind, rest @ ..]) if kind == "CMD" => rest.to_vec(),
            Some([kind, text]) if kind == "CMD-SHELL" => vec!["sh".to_owned(), "-c".to_owned(), text.clone()],
            Some([kind]) if kind == "NONE" => return ledger.translated(node, "no probe"),
            _ if node.get("disable").is_some_and(Node::is_true) => {
                return ledger.translated(node, "no probe");
            }
            _ => return ledger.refused(node, "has no test of its own: the image's is not known to kubelet"),
        };
        let time =
            |key: &str, default: &str| seconds(node.get(key).and_then(Node::text).unwrap_or(default)).max(1);
        let retries = node.get("retries").and_then(|node| node.value().as_i64()).unwrap_or(3);
        self.container.insert(
            "readinessProbe".to_owned(),
            json!({
                "exec": {"command": command}, "periodSeconds": time("interval", "30s"),
                "timeoutSeconds": time("timeout", "30s"), "failureThreshold": retries,
                "initialDelaySeconds": seconds(node.get("start_period").and_then(Node::text).unwrap_or("0s")),
            }),
        );
        ledger.translated(node, format!("{into}, readinessProbe"));
    }

    pub(super) fn resources(&mut self, key: &str, node: &Node, into: &str) {
        let ledger = self.context.ledger;
        let resources = self.container.entry("resources").or_insert_with(|| json!({}));
        match key {
            "mem_limit" => resources["limits"]["memory"] = quantity(node.text().unwrap_or_default()).into(),
            "mem_reservation" => {
                resources["requests"]["memory"] = quantity(node.text().unwrap_or_default()).into()
            }
            "cpus" => resources["limits"]["cpu"] = node.text().unwrap_or_default().into(),
            "memswap_limit" => return ledger.warned(node, "hosts have no swap for pods"),
            _ => {
                for (ours, theirs) in [("limits", "limits"), ("requests", "reservations")] {
                    for (name, node) in node.at(&["resources", theirs]).map(Node::entries).unwrap_or_default()
                    {
                        match name.as_str() {
                            "cpus" => resources[ours]["cpu"] = node.text().unwrap_or_default().into(),
                            "memory" => {
                                resources[ours]["memory"] = quantity(node.text().unwrap_or_default()).into()
                            }
                            _ => {
                                ledger.refused(node, "a pod has no such resource");
                                continue;
                            }
                        }
                        ledger.translated(node, into);
                    }
                }
                return ledger.warned(node, "one pod runs on each host that has the service");
            }
        }
        ledger.translated(node, into);
    }
}
