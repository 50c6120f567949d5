//! Services of Docker Compose (the first form to today's) into workloads. Quadlets come here too, in Compose's words.
//!
//! 1. Variables are put in as Compose would; 2. each service becomes a container of its own pod; 3. what another service
//!    lends by `volumes_from` is mounted, and a container that holds volumes alone becomes those volumes.

mod mounts;
mod network;
mod service;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use super::kubernetes::{Found, Service};
use super::report::Ledger;
use super::tree::{Document, Node};
use super::workload::{Mode, Workload, slug};
pub use text::is_secret_name;
use text::{environment_lines, interpolate, on_host};

/// A file beside the input: path below it → content and whether it can be run. One entry with an empty path: a file.
pub type Beside = Vec<(String, Vec<u8>, bool)>;

/// Reads a path beside the input; none: it is not there.
pub type ReadBeside<'a> = &'a dyn Fn(&Path) -> Option<Beside>;

/// What reading services needs.
pub struct Context<'a> {
    /// The book of fields.
    pub ledger: &'a Ledger,
    /// Files beside the input.
    pub read: ReadBeside<'a>,
    /// Policies that the person gave.
    pub policies: &'a BTreeMap<String, String>,
    /// The kind of object in the report: `service` or `container`.
    pub object: &'a str,
}

/// Reads one Compose file.
pub fn read(document: &Document, context: &Context<'_>) -> Found {
    let ledger = context.ledger;
    let mut root = document.root.clone();
    let directory = Path::new(&document.file).parent().unwrap_or(Path::new("")).to_owned();
    let variables =
        (context.read)(&directory.join(".env")).map(|files| environment_lines(&files)).unwrap_or_default();
    interpolate(&mut root, &variables, ledger);
    let (services, first_form) = match root.get("services") {
        Some(services) => (services.clone(), false),
        None => (root.clone(), true),
    };
    if !first_form {
        for (key, node) in root.entries() {
            match key.as_str() {
                "version" | "name" => ledger.translated(node, "the form of the input"),
                "services" => {}
                "volumes" => top_volumes(node, ledger),
                "networks" => ledger.warned(node, "every pod is on the host's network"),
                "configs" | "secrets" => top_files(node, ledger),
                key if key.starts_with("x-") => {
                    ledger.warned(node, "an extension field: nothing but its aliases is used")
                }
                _ => ledger.refused(node, "Compose has no such section"),
            }
        }
    }
    services_of(&services, &root, &document.file, context)
}

fn top_volumes(node: &Node, ledger: &Ledger) {
    for (_, volume) in node.entries() {
        if volume.get("driver_opts").is_some() || !["", "local"].contains(&volume.text_of("driver")) {
            ledger.refused(volume, "volumes are directories of the host: name the directory in the service");
        }
        ledger.translated(volume, "a volume of the definition");
    }
}

fn top_files(node: &Node, ledger: &Ledger) {
    for (_, entry) in node.entries() {
        if entry.get("external").is_some_and(Node::is_true) || entry.get("environment").is_some() {
            ledger.refused(entry, "is outside of the input: write it as `file` or `content`");
        }
        ledger.translated(entry, "files of the service's configuration");
    }
}

/// Reads the services below `services`; `root` holds their volumes and files.
pub fn services_of(services: &Node, root: &Node, file: &str, context: &Context<'_>) -> Found {
    let completed = completed_names(services);
    let lenders = data_only(services);
    let mut found = Found::default();
    for (name, node) in services.entries() {
        context.ledger.title(node, &format!("{}/{name}", context.object));
        if lenders.contains(name) {
            continue;
        }
        let object = format!("{}/{name}", context.object);
        let mut workload = Workload::new(&slug(name), &slug(name), object, file, node.line);
        workload.labels.insert("name".to_owned(), slug(name));
        if completed.contains(name) {
            workload.mode = Mode::Once;
        }
        let mut reader = Reader {
            context,
            services,
            root,
            file,
            workload,
            container: Map::new(),
            env: Vec::new(),
            secret_env: Vec::new(),
            mounts: 0,
        };
        reader.service(name, node);
        found.services.extend(reader.named(name, node));
        reader.workload.containers.push(reader.container);
        found.workloads.push(reader.workload);
    }
    for (name, node) in services.entries().iter().filter(|(name, _)| lenders.contains(name)) {
        context
            .ledger
            .translated(node, format!("{name} holds volumes alone: they are mounted where it is named"));
    }
    found
}

/// Services that others wait for until they have ended.
fn completed_names(services: &Node) -> BTreeSet<String> {
    let depends =
        services.entries().iter().filter_map(|(_, node)| node.get("depends_on")).flat_map(Node::entries);
    let ended = depends.filter(|(_, node)| node.text_of("condition") == "service_completed_successfully");
    ended.map(|(name, _)| name.clone()).collect()
}

/// Containers that only lend their volumes: they run `true`, and somebody borrows.
fn data_only(services: &Node) -> BTreeSet<String> {
    let borrowed: BTreeSet<String> = services
        .entries()
        .iter()
        .filter_map(|(_, node)| node.get("volumes_from"))
        .flat_map(Node::words)
        .map(|word| lender(&word).0)
        .collect();
    let idle = |node: &Node| {
        let words = ["entrypoint", "command"].iter().filter_map(|key| node.get(key)).flat_map(Node::words);
        matches!(words.last().as_deref(), Some("true" | "/bin/true" | "/usr/bin/true"))
    };
    let lists = services.entries().iter().filter(|(name, node)| borrowed.contains(name) && idle(node));
    lists.map(|(name, _)| name.clone()).collect()
}

fn lender(word: &str) -> (String, bool) {
    let word = word.strip_prefix("container:").unwrap_or(word);
    let (name, mode) = word.split_once(':').unwrap_or((word, "rw"));
    (name.to_owned(), mode == "ro")
}

struct Reader<'a> {
    context: &'a Context<'a>,
    services: &'a Node,
    root: &'a Node,
    file: &'a str,
    workload: Workload,
    container: Map<String, Value>,
    env: Vec<(String, String)>,
    secret_env: Vec<(String, String)>,
    mounts: usize,
}

impl Reader<'_> {
    /// The name by which other services reach this one.
    fn named(&self, name: &str, node: &Node) -> Option<Service> {
        if on_host(node) || self.workload.mode == Mode::Once {
            return None;
        }
        let hosts = [node.text_of("container_name"), node.text_of("hostname")];
        let hosts = hosts.into_iter().filter(|host| !host.is_empty()).map(str::to_owned).collect();
        let selector = BTreeMap::from([("name".to_owned(), slug(name))]);
        let (file, node) = (self.file.to_owned(), node.clone());
        Some(Service {
            name: name.to_owned(),
            namespace: String::new(),
            hosts,
            selector,
            ports: Vec::new(),
            file,
            node,
        })
    }
}
