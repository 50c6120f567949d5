//! Service definitions: what runs on a host besides its operating system.
//!
//! 1. `service.yaml` names images (by recipe or source), pods, configuration, secrets, volumes and phases; 2. it is checked
//!    against itself: every image, pod and phase it mentions exists; 3. [`render`] turns all services of a release and
//!    their pinned images into the files of `/usr/lib/rackstep`.
//!
//! A pod that would pull an image, or that needs an API server, is refused here and not on a host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::pod::{Pod, PodReader, PodText};
use super::read::{is_entry_name, read_bytes, stays_inside};
use super::references;
use super::{ImageSource, Origin};
use crate::model::phase::PHASES_FORMAT;
use crate::model::pins::PINS_FORMAT;
use crate::model::place::{InputError, SourceText};
use crate::model::secret::Secret;
use crate::model::volume::Volume;
use crate::model::{PhaseKind, PinSet, PinnedImage};

/// The file in a service's directory.
pub const SERVICE_FILE: &str = "service.yaml";
/// The format number of secrets.json and volumes.json.
const SETS_FORMAT: u32 = 1;

/// `service.yaml` as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceFile {
    name: String,
    #[serde(default)]
    images: BTreeMap<String, ImageSource>,
    #[serde(default)]
    pods: Vec<String>,
    #[serde(default)]
    config: Option<String>,
    #[serde(default)]
    secrets: BTreeMap<String, Secret>,
    #[serde(default)]
    volumes: BTreeMap<String, Volume>,
    #[serde(default)]
    phases: Vec<PhaseEntry>,
    #[serde(default)]
    pods_after: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct PhaseEntry {
    id: String,
    kind: PhaseKind,
    image: String,
    command: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    pod: Option<String>,
    #[serde(default)]
    needs: Vec<String>,
    #[serde(default)]
    user: Option<String>,
}

/// A service, checked against itself.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Images by the name that pods use.
    pub images: BTreeMap<String, Origin>,
    /// The directory of configuration files, if it has one.
    pub config: Option<PathBuf>,
    pods: Vec<Pod>,
    secrets: BTreeMap<String, Secret>,
    volumes: BTreeMap<String, Volume>,
    phases: Vec<PhaseEntry>,
    pods_after: BTreeMap<String, Vec<String>>,
    source: SourceText,
}

/// Reads one file of a service's directory by its relative name.
pub type ReadFile<'a> = &'a mut dyn FnMut(&str) -> std::io::Result<Vec<u8>>;

impl Service {
    /// Reads the service in `dir`; `pods` reads its pods.
    pub fn load(dir: &Path, pods: &dyn PodReader) -> Result<Self, InputError> {
        let service = Self::load_with(dir, &mut |name| read_bytes(&dir.join(name)), pods)?;
        let missing = |what: &str, path: &Path| {
            InputError::of_file(
                &dir.join(SERVICE_FILE).display().to_string(),
                format!("{what} {} does not exist", path.display()),
            )
        };
        for origin in service.images.values() {
            if let Some(path) = origin.missing_file() {
                let what = if matches!(origin, Origin::Recipe(_)) { "recipe" } else { "image source" };
                return Err(missing(what, path));
            }
        }
        match &service.config {
            Some(config) if !config.is_dir() => Err(missing("config directory", config)),
            _ => Ok(service),
        }
    }

    /// Reads a service's files through `read`: the part without a file system.
    pub fn load_with(dir: &Path, read: ReadFile<'_>, reader: &dyn PodReader) -> Result<Self, InputError> {
        let shown = |name: &str| dir.join(name).display().to_string();
        let mut bytes_of = |name: &str| {
            read(name).map_err(|error| InputError::of_file(&shown(name), format!("cannot be read: {error}")))
        };
        let bytes = bytes_of(SERVICE_FILE)?;
        let text = String::from_utf8_lossy(&bytes);
        let source = SourceText::new(shown(SERVICE_FILE), text.trim_start_matches('\u{feff}'));
        let file: ServiceFile = source.parse()?;
        let mut images = BTreeMap::new();
        for (name, entry) in &file.images {
            let origin = entry.origin(dir);
            let wrong = |message| source.error("images", name, format!("image {name}: {message}"));
            images.insert(name.clone(), origin.map_err(wrong)?);
        }
        let mut texts = Vec::new();
        for name in &file.pods {
            let outside = || source.error("pods", name, format!("{name:?} leaves the service's directory"));
            let inside = stays_inside(name).then_some(()).ok_or_else(outside);
            let bytes = inside.and_then(|()| {
                bytes_of(name).map_err(|error| source.error("pods", name, error.to_string()))
            })?;
            texts.push(PodText { file: shown(name), bytes });
        }
        let values = if texts.is_empty() { Vec::new() } else { reader.read(&texts)? };
        let pods = texts.iter().zip(values).map(|(text, value)| Pod::parse(text, value, &images));
        let pods = pods.collect::<Result<Vec<_>, _>>()?;
        if let Some(config) = file.config.as_ref().filter(|config| !stays_inside(config)) {
            return Err(source.error("config", config, format!("{config:?} leaves the service's directory")));
        }
        let service = Self {
            name: file.name,
            dir: dir.to_owned(),
            images,
            config: file.config.map(|config| dir.join(config)),
            pods,
            secrets: file.secrets,
            volumes: file.volumes,
            phases: file.phases,
            pods_after: file.pods_after,
            source,
        };
        service.check_names()?;
        service.check(&service.source)?;
        Ok(service)
    }

    /// Names become files and directories of the host, below those of their kind.
    fn check_names(&self) -> Result<(), InputError> {
        let source = &self.source;
        let name = &self.name;
        // A configuration's directory, an image's tag in Docker, and part of a container's name.
        if !is_entry_name(name) || name.contains(char::is_whitespace) {
            return Err(source.error("name", name, format!("{name:?} is not a name of a service")));
        }
        for (index, pod) in self.pods.iter().enumerate() {
            if self.pods[..index].iter().any(|earlier| earlier.name == pod.name) {
                let message = format!("pod {} is defined twice", pod.name);
                return Err(source.error("pods", "pods", message));
            }
        }
        if let Some(secret) = self.secrets.keys().find(|secret| !is_entry_name(secret)) {
            return Err(source.error("secrets", secret, format!("{secret:?} is not a name of a secret")));
        }
        for (name, volume) in &self.volumes {
            let wrong = |problem: String| source.error("volumes", name, format!("volume {name}: {problem}"));
            if !is_entry_name(name) {
                return Err(wrong("not a name of a volume".to_owned()));
            }
            volume.parse_mode().map_err(wrong)?;
            volume.parse_owner().map_err(wrong)?;
        }
        Ok(())
    }

    fn check(&self, source: &SourceText) -> Result<(), InputError> {
        let mut earlier = BTreeSet::new();
        for phase in &self.phases {
            let wrong = |value: &str, message: String| {
                Err(source.error("phases", value, format!("phase {}: {message}", phase.id)))
            };
            if !self.images.contains_key(&phase.image) {
                return wrong(
                    &phase.image,
                    format!("image {} is not among the service's images", phase.image),
                );
            }
            if !is_entry_name(&phase.id) || phase.id.contains(char::is_whitespace) {
                return wrong(&phase.id, "not a name of a phase".to_owned());
            }
            if phase.command.is_empty() {
                return wrong(&phase.id, "command is empty".to_owned());
            }
            match &phase.pod {
                Some(pod) if !self.has_pod(pod) => {
                    return wrong(pod, format!("pod {pod} is not among the service's pods"));
                }
                None if self.pods.len() != 1 => {
                    return wrong(
                        &phase.id,
                        format!("the service has {} pods, so `pod` must be named", self.pods.len()),
                    );
                }
                _ => {}
            }
            if let Some(need) =
                phase.needs.iter().find(|need| !need.starts_with("pod/") && !need.starts_with("phase/"))
            {
                return wrong(need, format!("need {need} is neither pod/NAME nor phase/ID"));
            }
            if !earlier.insert(phase.id.as_str()) {
                return wrong(&phase.id, "is defined twice".to_owned());
            }
        }
        for (pod, phases) in &self.pods_after {
            if !self.has_pod(pod) {
                return Err(source.error(
                    "pods_after",
                    pod,
                    format!("pods_after: pod {pod} is not among the service's pods"),
                ));
            }
            if let Some(phase) = phases.iter().find(|phase| !earlier.contains(phase.as_str())) {
                return Err(source.error(
                    "pods_after",
                    phase,
                    format!("pods_after: phase {phase} is not among the service's phases"),
                ));
            }
        }
        Ok(())
    }

    fn has_pod(&self, name: &str) -> bool {
        self.pods.iter().any(|pod| pod.name == name)
    }
}

/// A later service of the same name takes the place of an earlier one.
pub fn last_of_each(services: Vec<Service>) -> Vec<Service> {
    let mut kept: Vec<Service> = Vec::new();
    for service in services {
        match kept.iter_mut().find(|earlier| earlier.name == service.name) {
            Some(earlier) => *earlier = service,
            None => kept.push(service),
        }
    }
    kept
}

/// Checks services against each other: what one needs, another has.
pub fn check_together(services: &[Service]) -> Result<(), InputError> {
    let pods: BTreeSet<&str> =
        services.iter().flat_map(|service| &service.pods).map(|pod| pod.name.as_str()).collect();
    let phases: BTreeSet<&str> =
        services.iter().flat_map(|service| &service.phases).map(|phase| phase.id.as_str()).collect();
    let secrets: BTreeSet<&str> =
        services.iter().flat_map(|service| service.secrets.keys()).map(String::as_str).collect();
    for service in services {
        for phase in &service.phases {
            let unknown = phase.needs.iter().find(|need| match need.split_once('/') {
                Some(("pod", pod)) => !pods.contains(pod),
                Some(("phase", phase)) => !phases.contains(phase),
                _ => true,
            });
            if let Some(need) = unknown {
                let message = format!("phase {} needs {need}, which no service of the release has", phase.id);
                return Err(service.source.error("phases", need, message));
            }
        }
        if let Some(config) = &service.config {
            references::check(config, &secrets)?;
        }
    }
    Ok(())
}

/// A container image of a release, not yet resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedImage {
    /// Where it comes from.
    pub origin: Origin,
    /// What the release says of where it comes from: never a path of this machine.
    pub reference: String,
}

/// Every image of a release: those of its services, and those that the treefile names itself or instead.
pub fn wanted_images(
    services: &[Service],
    of_treefile: &BTreeMap<String, Origin>,
) -> Result<BTreeMap<String, WantedImage>, InputError> {
    let want = |origin: &Origin| WantedImage { reference: origin.reference(), origin: origin.clone() };
    let mut wanted = BTreeMap::new();
    for service in services {
        for (name, origin) in &service.images {
            if wanted.insert(name.clone(), want(origin)).is_some() {
                let file = service.dir.join(SERVICE_FILE).display().to_string();
                return Err(InputError::of_file(&file, format!("image {name} is defined by two services")));
            }
        }
    }
    wanted.extend(of_treefile.iter().map(|(name, origin)| (name.clone(), want(origin))));
    Ok(wanted)
}

/// The files of `/usr/lib/rackstep` that describe services: relative path → content.
pub fn render(
    services: &[Service],
    pins: &BTreeMap<String, PinnedImage>,
) -> Result<BTreeMap<PathBuf, Vec<u8>>, InputError> {
    let mut files = BTreeMap::new();
    let mut phases = Vec::new();
    let (mut secrets, mut volumes, mut pods_after) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for service in services {
        let blame = |message: String| {
            InputError::of_file(&service.dir.join(SERVICE_FILE).display().to_string(), message)
        };
        for pod in &service.pods {
            let path = PathBuf::from("pods").join(format!("{}.yaml", pod.name));
            if files.insert(path, pod.render(pins)?.into_bytes()).is_some() {
                return Err(blame(format!("pod {} is defined by two services", pod.name)));
            }
        }
        for phase in &service.phases {
            let pod = phase
                .pod
                .as_deref()
                .or(service.pods.first().map(|pod| pod.name.as_str()))
                .unwrap_or_default();
            let mut told = json!({
                "id": phase.id, "service": service.name, "kind": phase.kind, "image": phase.image,
                "command": phase.command, "env": phase.env, "pod": pod, "needs": phase.needs,
            });
            if let Some(user) = &phase.user {
                told["user"] = user.clone().into();
            }
            phases.push(told);
        }
        for (name, volume) in &service.volumes {
            if volumes.insert(name, volume).is_some() {
                return Err(blame(format!("volume {name} is defined by two services")));
            }
        }
        secrets.extend(&service.secrets);
        pods_after.extend(&service.pods_after);
    }
    let pins = PinSet { format: PINS_FORMAT, images: pins.clone() };
    let sets = [
        ("pins.json", json!(pins)),
        ("phases.json", json!({"format": PHASES_FORMAT, "phases": phases, "pods_after": pods_after})),
        ("secrets.json", json!({"format": SETS_FORMAT, "secrets": secrets})),
        ("volumes.json", json!({"format": SETS_FORMAT, "volumes": volumes})),
    ];
    for (name, value) in sets {
        files.insert(PathBuf::from(name), format!("{value:#}\n").into_bytes());
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::pod::PlainReader;
    use super::*;
    use crate::model::{Digest, PinnedLayer};

    const SERVICE: &str = "name: keystone\nimages:\n  keystone: {recipe: image.yaml}\npods: [pod.yaml]\nsecrets:\n  pw: {generate: password}\nvolumes:\n  keys: {policy: keep}\nphases:\n  - {id: expand, kind: expand, image: keystone, command: [sync], needs: [pod/mariadb]}\npods_after:\n  keystone: [expand]\n";
    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: keystone}\nspec:\n  hostNetwork: true\n  containers:\n    - name: a\n      image: keystone\n";

    fn load(service: &str, pod: &str) -> Result<Service, InputError> {
        let read = &mut |name: &str| match name {
            "service.yaml" => Ok(service.as_bytes().to_vec()),
            "pod.yaml" => Ok(pod.as_bytes().to_vec()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        Service::load_with(Path::new("k"), read, &PlainReader)
    }

    fn pins() -> BTreeMap<String, PinnedImage> {
        let layers = vec![PinnedLayer { diff_id: Digest::of(b"l"), size: 1 }];
        let image = PinnedImage {
            reference: "r".into(),
            manifest: Digest::of(b"m"),
            config: Digest::of(b"c"),
            layers,
        };
        BTreeMap::from([("keystone".into(), image)])
    }

    #[test]
    fn renders_pinned_pods_and_sets() {
        let service = load(SERVICE, POD).unwrap();
        let files = render(&[service], &pins()).unwrap();
        let text = |name: &str| String::from_utf8(files[Path::new(name)].clone()).unwrap();
        let pod: Value = serde_yaml_ng::from_str(&text("pods/keystone.yaml")).unwrap();
        assert_eq!(pod["spec"]["containers"][0]["image"], Digest::of(b"c").to_string());
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Never");
        let phases: Value = serde_json::from_str(&text("phases.json")).unwrap();
        assert_eq!(phases["phases"][0]["pod"], "keystone");
        assert_eq!(phases["phases"][0]["kind"], "expand");
        assert_eq!(phases["pods_after"]["keystone"][0], "expand");
        let set: PinSet = serde_json::from_str(&text("pins.json")).unwrap();
        assert_eq!(set.images, pins());
        // What is written here is what a host reads: the same types, unknown fields refused.
        let set: crate::model::PhaseSet = serde_json::from_str(&text("phases.json")).unwrap();
        assert_eq!(set.phases[0].needs, ["pod/mariadb"]);
        serde_json::from_str::<crate::model::secret::SecretSet>(&text("secrets.json")).unwrap();
        serde_json::from_str::<crate::model::volume::VolumeSet>(&text("volumes.json")).unwrap();
        assert!(text("secrets.json").contains("\"generate\": \"password\""));
        assert!(text("volumes.json").contains("\"policy\": \"keep\""));
    }

    #[test]
    fn a_treefile_may_name_another_recipe() {
        let service = load(SERVICE, POD).unwrap();
        let wanted = wanted_images(std::slice::from_ref(&service), &BTreeMap::new()).unwrap();
        assert_eq!(wanted["keystone"].reference, "k/image.yaml");
        let other = BTreeMap::from([
            ("keystone".into(), Origin::Recipe("m/k/image-28.yaml".into())),
            ("pause".into(), Origin::Recipe("m/p/i.yaml".into())),
        ]);
        let wanted = wanted_images(std::slice::from_ref(&service), &other).unwrap();
        assert_eq!(wanted["keystone"].reference, "k/image-28.yaml");
        assert_eq!(wanted["pause"].origin, Origin::Recipe("m/p/i.yaml".into()));
        let twice = wanted_images(&[service.clone(), service], &BTreeMap::new()).unwrap_err();
        assert!(twice.to_string().contains("image keystone is defined by two services"));
    }

    #[test]
    fn errors_name_file_line_and_thing() {
        let table = [
            (
                SERVICE.replace("pods: [pod.yaml]", "pods: [pods.yaml]"),
                POD.into(),
                "k/service.yaml:4:8: k/pods.yaml: cannot be read",
            ),
            (
                SERVICE.replace("{recipe: image.yaml}", "{source: 'docker:a'}"),
                POD.into(),
                "k/service.yaml:3:3: image keystone: source \"docker:a\": docker is not a kind of source",
            ),
            (
                SERVICE.replace("image: keystone,", "image: glance,"),
                POD.into(),
                "k/service.yaml:10:39: phase expand: image glance is not",
            ),
            (
                SERVICE.replace("pod/mariadb", "mariadb"),
                POD.into(),
                "k/service.yaml:10:74: phase expand: need mariadb is neither",
            ),
            (
                SERVICE.replace("[expand]", "[nothing]"),
                POD.into(),
                "k/service.yaml:12:14: pods_after: phase nothing is not",
            ),
            (
                SERVICE.replace("kind: expand", "kind: grow"),
                POD.into(),
                "k/service.yaml:10:24: phases[0].kind: unknown variant `grow`",
            ),
            (
                SERVICE.into(),
                POD.replace("image: keystone", "image: glance"),
                "k/pod.yaml:8:14: pod keystone: image \"glance\" is not",
            ),
            (
                SERVICE.into(),
                POD.replace("hostNetwork: true", "hostNetwork: false"),
                "k/pod.yaml: pod keystone: hostNetwork must be true",
            ),
            (SERVICE.into(), POD.replace("kind: Pod", "kind: Job"), "k/pod.yaml: not a Pod"),
            (
                SERVICE.into(),
                format!("{POD}      imagePullPolicy: Always\n"),
                "k/pod.yaml:9:24: pod keystone: imagePullPolicy must be Never",
            ),
        ];
        for (service, pod, expected) in table {
            let told = load(&service, &pod).unwrap_err().to_string();
            assert!(told.starts_with(expected), "{told}\nexpected {expected}");
        }
        let unpinned = render(&[load(SERVICE, POD).unwrap()], &BTreeMap::new()).unwrap_err();
        assert_eq!(unpinned.to_string(), "k/pod.yaml:8:14: pod keystone: image keystone is not pinned");
    }
}
