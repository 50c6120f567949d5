//! Services of Docker Compose (the first form to today's) into workloads. Quadlets come here too, in Compose's words.
//!
//! 1. Variables are put in as Compose would; 2. each service becomes a container of its own pod; 3. what another service
//!    lends by `volumes_from` is mounted, and a container that holds volumes alone becomes those volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::kubernetes::{Found, Service};
use super::report::Ledger;
use super::tree::{Document, Kind, Node};
use super::workload::{Mode, Need, Workload, guess_policy, push, slug};

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
    fn service(&mut self, name: &str, node: &Node) {
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
    fn is_commanded(&self) -> bool {
        let name = self.workload.object.rsplit('/').next().unwrap_or_default();
        self.services.get(name).is_some_and(|node| node.get("entrypoint").is_some())
    }

    fn field(&mut self, key: &str, node: &Node) {
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

    fn is_built(&self) -> bool {
        let name = self.workload.object.rsplit('/').next().unwrap_or_default();
        self.services.get(name).is_some_and(|node| node.get("image").is_some())
    }

    fn context_field(&mut self, field: &str, value: Value, node: &Node, into: &str) {
        let context = self.container.entry("securityContext").or_insert_with(|| json!({}));
        context[field] = value;
        self.context.ledger.translated(node, into);
    }

    fn security(&mut self, node: &Node, into: &str) {
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

    fn user(&mut self, node: &Node, into: &str) {
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

    fn environment(&mut self, node: &Node, into: &str) {
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

    fn variable(&mut self, name: &str, value: Option<&str>, node: &Node, into: &str) {
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
            return ledger.warned(node, super::pod::IN_CLEAR);
        }
        ledger.translated(node, into);
    }

    fn env_file(&mut self, node: &Node, into: &str) {
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

    fn beside(&self, path: &str) -> std::path::PathBuf {
        Path::new(self.file).parent().unwrap_or(Path::new("")).join(path)
    }

    fn mount(&mut self, source: Value, path: &str, read_only: bool) {
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
    fn volume(&mut self, node: &Node, into: &str) {
        let owner = self.workload.object.rsplit('/').next().unwrap_or_default().to_owned();
        self.volume_of(&owner, node, into, false);
    }

    fn volume_of(&mut self, owner: &str, node: &Node, into: &str, read_only: bool) {
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
            match super::workload::outside_of_state(&source) {
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

    fn state(&mut self, name: &str, target: &str, read_only: bool, node: &Node) {
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
    fn files(&mut self, source: &str, target: &str, read_only: bool, node: &Node) {
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
        let path = super::workload::config_path(&self.workload.group, &directory);
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

    fn volumes_from(&mut self, node: &Node, into: &str) {
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

    fn devices(&mut self, node: &Node) {
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

    fn port(&mut self, node: &Node, into: &str) {
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

    fn depends(&mut self, key: &str, node: &Node) {
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

    fn extra_hosts(&mut self, node: &Node, into: &str) {
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

    fn healthcheck(&mut self, node: &Node, into: &str) {
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

    fn resources(&mut self, key: &str, node: &Node, into: &str) {
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

    /// An entry of `configs` or `secrets`, mounted where Compose mounts it.
    fn file_of(&mut self, section: &str, node: &Node, into: &str) {
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
        let path = super::workload::config_path(&self.workload.group, section);
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

fn on_host(node: &Node) -> bool {
    ["net", "network_mode"].iter().any(|key| node.text_of(key) == "host")
}

/// True for variables that usually hold what nobody should read.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_uppercase();
    ["PASSWORD", "PASSWD", "SECRET", "TOKEN", "PRIVATE_KEY", "API_KEY"].iter().any(|word| name.contains(word))
}

fn environment_lines(files: &Beside) -> Vec<(String, String)> {
    let text: String =
        files.iter().map(|(_, content, _)| String::from_utf8_lossy(content).into_owned()).collect();
    let lines = text.lines().map(|line| line.trim().trim_start_matches("export "));
    let lines = lines.filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.trim().to_owned(), value.trim().trim_matches(['"', '\'']).to_owned()))
        .collect()
}

/// Puts variables in, as Compose does before anything else.
fn interpolate(node: &mut Node, variables: &[(String, String)], ledger: &Ledger) {
    let copy = node.clone();
    match &mut node.kind {
        Kind::Sequence(items) => items.iter_mut().for_each(|item| interpolate(item, variables, ledger)),
        Kind::Mapping(entries) => {
            entries.iter_mut().for_each(|(_, node)| interpolate(node, variables, ledger))
        }
        Kind::Scalar(text, _) if text.contains('$') => match filled(text, variables) {
            Ok(filled) => *text = filled,
            Err(name) => {
                let why = format!(
                    "{name} has no value here: `docker compose config` puts it in, import its output (or write it to .env)"
                );
                ledger.refused(&copy, why);
            }
        },
        Kind::Scalar(..) => {}
    }
}

/// The text with variables in place; the name of the first that has no value is the error.
fn filled(text: &str, variables: &[(String, String)]) -> Result<String, String> {
    let value =
        |name: &str| variables.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    let (mut done, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        done.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            done.push('$');
            rest = after;
        } else if let Some((inner, after)) = after.strip_prefix('{').and_then(|after| after.split_once('}')) {
            let end = inner.find([':', '-', '?', '+']).unwrap_or(inner.len());
            let (name, operator) = inner.split_at(end);
            let own = value(name).filter(|value| !operator.starts_with(':') || !value.is_empty());
            let default = operator.trim_start_matches(':').strip_prefix('-').map(str::to_owned);
            done.push_str(&own.or(default).ok_or_else(|| name.to_owned())?);
            rest = after;
        } else {
            let end = after
                .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            done.push_str(&value(name).ok_or_else(|| format!("${name}"))?);
            rest = after;
        }
    }
    Ok(done + rest)
}

/// `1m30s` → 90; parts of a second count as one.
fn seconds(text: &str) -> i64 {
    let (mut total, mut number) = (0.0, String::new());
    let mut unit = String::new();
    let mut add = |number: &mut String, unit: &mut String| {
        let factor = match unit.as_str() {
            "h" => 3600.0,
            "m" => 60.0,
            "ms" => 0.001,
            "us" => 0.000_001,
            _ => 1.0,
        };
        total += number.parse::<f64>().unwrap_or(0.0) * factor;
        number.clear();
        unit.clear();
    };
    for letter in text.chars() {
        if letter.is_ascii_digit() || letter == '.' {
            if !unit.is_empty() {
                add(&mut number, &mut unit);
            }
            number.push(letter);
        } else {
            unit.push(letter);
        }
    }
    add(&mut number, &mut unit);
    #[allow(clippy::cast_possible_truncation)] // times of a health check are small
    let whole = total.ceil() as i64;
    whole
}

/// `512m` → `512Mi`: Docker counts by 1024.
fn quantity(text: &str) -> String {
    let text = text.to_lowercase();
    let text = text.trim_end_matches('b');
    match text.strip_suffix(['k', 'm', 'g']) {
        Some(number) => format!("{number}{}i", text[number.len()..].to_uppercase()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_times_and_sizes() {
        let variables = vec![("A".to_owned(), "1".to_owned()), ("E".to_owned(), String::new())];
        for (text, expected) in [
            ("x${A}y$A", Ok("x1y1")),
            ("${B:-two}", Ok("two")),
            ("${E:-two}${E-no}", Ok("two")),
            ("$$HOME", Ok("$HOME")),
            ("${B}", Err("B")),
            ("${B:?must}", Err("B")),
        ] {
            let told = filled(text, &variables);
            assert_eq!(told.as_deref().map_err(String::as_str), expected, "{text}");
        }
        assert_eq!((seconds("1m30s"), seconds("500ms"), seconds("10")), (90, 1, 10));
        assert_eq!(
            (quantity("512m"), quantity("1gb"), quantity("100")),
            ("512Mi".into(), "1Gi".into(), "100".into())
        );
    }
}
