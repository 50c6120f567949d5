//! `rackstep lint`: what is wrong with service definitions though they load.
//!
//! Pure: services as values go in, findings come out, each with file and line. An error is something that cannot work or
//! was retired; a warning is something that a reader should argue for.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::release::import::plan::tree::{Document, Node};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot work, or nothing maintains it.
    Error,
    /// It works, and needs a reason.
    Warning,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// How bad it is.
    pub severity: Severity,
    /// The rule's name.
    pub rule: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// A service's files as trees.
#[derive(Debug)]
pub struct LintedService {
    /// `service.yaml`.
    pub service: Document,
    /// Its pods.
    pub pods: Vec<Document>,
}

/// Names of retired projects, and what came after them.
const RETIRED: &[(&str, &str)] = &[
    ("nova-docker", "Docker as a driver of nova was retired in 2016: Zun runs containers"),
    ("novadocker", "Docker as a driver of nova was retired in 2016: Zun runs containers"),
    ("heat-docker", "Docker as a resource of Heat was retired: run the container as a service"),
    ("murano", "Murano was retired in 2024: Helm charts, or services of your own, take its place"),
    ("sahara", "Sahara was retired in 2024: run clusters by Magnum"),
    ("senlin", "Senlin was retired in 2024: Heat's groups scale servers"),
    ("solum", "Solum was retired in 2024"),
    ("freezer-scheduler", "Freezer was retired: back up volumes by Cinder"),
    ("ec2api", "ec2-api was retired in 2024"),
    ("swarm", "Swarm's own clusters are no driver of Magnum any more: use Kubernetes"),
    ("mesos", "Mesos is no driver of Magnum any more: use Kubernetes"),
    ("skydive", "skydive is archived: OVN's own tracing takes its place"),
];

/// Programs that own a host's network: two of them would each undo what the other does.
const NETWORK_OWNERS: &[&str] =
    &["kuryr", "calico", "cilium", "flannel", "linuxbridge-agent", "openvswitch-agent", "ovn-controller"];

/// Programs that need a privileged container, by the words in their names.
const PRIVILEGED: &[&str] =
    &["libvirt", "openvswitch", "vswitchd", "nova-compute", "multipath", "iscsid", "ceph-osd"];

/// Looks over all services of a release; `is_locked` tells whether a lock pins an image's tag.
pub fn lint(services: &[LintedService], is_locked: bool) -> Vec<Finding> {
    let mut linter = Linter { findings: Vec::new() };
    for service in services {
        linter.images(&service.service, is_locked);
        linter.retired(service);
        service.pods.iter().for_each(|pod| linter.privileges(pod));
    }
    linter.owners(services);
    linter.networks(services);
    linter.findings.sort();
    linter.findings.dedup();
    linter.findings
}

struct Linter {
    findings: Vec<Finding>,
}

impl Linter {
    fn find(
        &mut self,
        file: &str,
        line: usize,
        severity: Severity,
        rule: &'static str,
        message: String,
        hint: &str,
    ) {
        self.findings.push(Finding {
            file: file.to_owned(),
            line,
            severity,
            rule,
            message,
            hint: hint.to_owned(),
        });
    }

    fn images(&mut self, service: &Document, is_locked: bool) {
        for (name, image) in service.root.get("images").map(Node::entries).unwrap_or_default() {
            let Some(source) = image.get("source") else { continue };
            let text = source.text().unwrap_or_default();
            let Some(reference) = text.strip_prefix("registry:") else { continue };
            let last = reference.rsplit('/').next().unwrap_or_default();
            let tag = last.split_once(':').map_or("latest", |(_, tag)| tag);
            if reference.contains('@') {
                continue;
            }
            if !is_locked {
                let message = format!(
                    "image {name}: tag {tag} of {reference} may move, and no lock that was named pins it"
                );
                let hint = "name the treefile whose lock pins it, or run `rackstep lock` and keep the lock";
                self.find(&service.file, source.line, Severity::Warning, "moving-tag", message, hint);
            }
        }
    }

    fn retired(&mut self, service: &LintedService) {
        let mut names = vec![(service.service.file.clone(), service.service.root.get("name").cloned())];
        for (_, image) in service.service.root.get("images").map(Node::entries).unwrap_or_default() {
            names.push((
                service.service.file.clone(),
                image.get("source").or_else(|| image.get("recipe")).cloned(),
            ));
        }
        for pod in &service.pods {
            for container in containers(&pod.root) {
                names.push((pod.file.clone(), container.get("name").cloned()));
            }
        }
        for (file, node) in names {
            let Some(node) = node else { continue };
            let text = node.text().unwrap_or_default().to_lowercase();
            for (name, hint) in RETIRED.iter().filter(|(name, _)| text.contains(name)) {
                self.find(&file, node.line, Severity::Error, "retired", format!("{name} is retired"), hint);
            }
        }
    }

    fn privileges(&mut self, pod: &Document) {
        for container in containers(&pod.root) {
            let Some(node) = container.at(&["securityContext", "privileged"]).filter(|node| node.is_true())
            else {
                continue;
            };
            let name = format!("{} {}", container.text_of("name"), container.text_of("image"));
            let argued = pod
                .root
                .at(&["metadata", "annotations", "rackstep.io/privileged-because"])
                .and_then(Node::text);
            if argued.is_none_or(str::is_empty) && !PRIVILEGED.iter().any(|known| name.contains(known)) {
                let message =
                    format!("container {} is privileged, and nothing says why", container.text_of("name"));
                let hint = "drop it, name the capabilities, or say why in the annotation rackstep.io/privileged-because";
                self.find(&pod.file, node.line, Severity::Warning, "privileged", message, hint);
            }
        }
    }

    fn owners(&mut self, services: &[LintedService]) {
        let mut ports: BTreeMap<String, (String, usize, String)> = BTreeMap::new();
        let mut volumes: BTreeMap<String, (String, usize, String)> = BTreeMap::new();
        for service in services {
            let file = &service.service.file;
            for (name, node) in service.service.root.get("volumes").map(Node::entries).unwrap_or_default() {
                let owner = (file.clone(), node.line, service.service.root.text_of("name").to_owned());
                if let Some(other) = volumes.insert(name.clone(), owner) {
                    let message =
                        format!("volume {name} is also defined by {} ({}:{})", other.2, other.0, other.1);
                    self.find(
                        file,
                        node.line,
                        Severity::Error,
                        "two-owners",
                        message,
                        "define it once; the other service mounts its path",
                    );
                }
            }
            for pod in &service.pods {
                let name = pod.root.at(&["metadata", "name"]).and_then(Node::text).unwrap_or_default();
                for container in containers(&pod.root) {
                    for port in container.get("ports").map(Node::items).unwrap_or_default() {
                        let number = port.get("containerPort").map(Node::value).unwrap_or(Value::Null);
                        let address = port.text_of("hostIP");
                        let protocol = port.get("protocol").and_then(Node::text).unwrap_or("TCP");
                        let key = format!("{address}{number}/{protocol}");
                        let owner = (pod.file.clone(), port.line, name.to_owned());
                        let other = ports.insert(key.clone(), owner).filter(|other| other.2 != name);
                        if let Some(other) = other {
                            let message = format!(
                                "port {key} is also that of pod {} ({}:{})",
                                other.2, other.0, other.1
                            );
                            self.find(
                                &pod.file,
                                port.line,
                                Severity::Error,
                                "two-owners",
                                message,
                                "pods share the host's network: give one of them another port",
                            );
                        }
                    }
                }
            }
        }
    }

    fn networks(&mut self, services: &[LintedService]) {
        let mut owners: Vec<(&str, &str, usize)> = Vec::new();
        for service in services {
            let Some(node) = service.service.root.get("name") else { continue };
            let text = node.text().unwrap_or_default();
            let names = service
                .pods
                .iter()
                .flat_map(|pod| containers(&pod.root))
                .map(|container| container.text_of("name"));
            let all: Vec<&str> = std::iter::once(text).chain(names).collect();
            for owner in NETWORK_OWNERS.iter().filter(|owner| all.iter().any(|name| name.contains(**owner))) {
                owners.push((owner, &service.service.file, node.line));
            }
        }
        let Some(&(name, file, line)) = owners.iter().find(|(name, _, _)| *name == "kuryr") else { return };
        for &(other, other_file, other_line) in owners.iter().filter(|(other, _, _)| *other != name) {
            let message = format!(
                "kuryr beside {other} ({other_file}:{other_line}): both would own the host's network"
            );
            self.find(
                file,
                line,
                Severity::Error,
                "network-owners",
                message,
                "leave one of them out of this profile",
            );
        }
    }
}

fn containers(pod: &Node) -> impl Iterator<Item = &Node> {
    let lists = ["initContainers", "containers"].into_iter();
    lists.filter_map(move |list| pod.at(&["spec", list])).flat_map(Node::items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::import::plan::report::Ledger;
    use crate::release::import::plan::tree::parse_documents;

    fn service(name: &str, text: &str, pod: &str) -> LintedService {
        let document = |file: &str, text: &str| {
            parse_documents(&format!("{name}/{file}"), text, &Ledger::default()).unwrap().remove(0)
        };
        LintedService { service: document("service.yaml", text), pods: vec![document("pod.yaml", pod)] }
    }

    #[test]
    fn findings_have_places() {
        let pod = |name: &str, more: &str| {
            format!(
                "metadata: {{name: {name}}}\nspec:\n  containers:\n    - name: {name}\n      image: a\n{more}"
            )
        };
        let services = [
            service(
                "a",
                "name: a\nimages:\n  a: {source: 'registry:example.org/a:latest'}\nvolumes: {v: {policy: keep}}\n",
                &pod("a", "      ports: [{containerPort: 80}]\n      securityContext: {privileged: true}\n"),
            ),
            service(
                "b",
                "name: murano\nvolumes: {v: {policy: keep}}\n",
                &pod("b", "      ports: [{containerPort: 80}]\n"),
            ),
            service("c", "name: kuryr\n", &pod("kuryr", "")),
            service("d", "name: ovn\n", &pod("ovn-controller", "")),
        ];
        let told: Vec<String> = lint(&services, false)
            .iter()
            .map(|finding| format!("{}:{} {} {}", finding.file, finding.line, finding.rule, finding.message))
            .collect();
        for expected in [
            "a/service.yaml:3 moving-tag image a: tag latest",
            "a/pod.yaml:7 privileged container a",
            "b/service.yaml:1 retired murano",
            "b/service.yaml:2 two-owners volume v is also defined by a (a/service.yaml:4)",
            "b/pod.yaml:6 two-owners port 80/TCP is also that of pod a",
            "c/service.yaml:1 network-owners kuryr beside ovn-controller",
        ] {
            assert!(told.iter().any(|finding| finding.starts_with(expected)), "{expected} in {told:#?}");
        }
        assert_eq!(told.len(), 6, "{told:#?}");
        assert_eq!(lint(&services, true).len(), 5);
    }
}
