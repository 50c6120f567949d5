//! Pods: read from the release, rendered for kubelet.
//!
//! Rendering puts the pinned Id in place of every image's name, forbids pulling, and notes a digest of the configuration
//! that the pod mounts: kubelet restarts a pod when a byte of its file changes, and never for the content of mounted
//! files. Only those three places are touched; whatever else the pod says stays as written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use serde_json::Value;

use crate::docker::{Bind, RunOnce};
use crate::model::{Commit, Digest, Phase, PinSet};

use super::config::hash_directories;
use super::places::{Places, RUN};
use crate::rim::files::{Durability, FileError, list, naming, read_text, write_atomic};

/// Annotation that carries the digest of the mounted configuration.
const CONFIG_HASH: &str = "rackstep.io/config-hash";

/// Why pods could not be read or rendered.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// A file of the release or of /run.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not a pod.
    #[error("reading pod {path}")]
    Parse {
        /// The release's file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is not a pod that we can run.
    #[error("pod {path}: {problem}")]
    Unfit {
        /// The release's file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// It runs something that is not pinned.
    #[error("pod {pod}: container {container} runs {image}, which is not in the pin set")]
    NotPinned {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
        /// As written.
        image: String,
    },
}

/// One pod of a release.
#[derive(Debug, Clone)]
pub struct PodFile {
    /// Its name.
    pub name: String,
    /// What it says, typed.
    pub pod: Pod,
    /// What it says, whole.
    text: Value,
    path: PathBuf,
}

/// Reads every pod of the release in `directory`, by name.
pub fn read_pods(directory: &Path) -> Result<BTreeMap<String, PodFile>, PodError> {
    let mut pods = BTreeMap::new();
    for path in list(directory)? {
        let pod = parse_pod(&read_text(&path)?, &path)?;
        pods.insert(pod.name.clone(), pod);
    }
    Ok(pods)
}

/// Parses one pod; `path` names it in errors.
pub fn parse_pod(text: &str, path: &Path) -> Result<PodFile, PodError> {
    let parse =
        |source: Box<dyn std::error::Error + Send + Sync>| PodError::Parse { path: path.to_owned(), source };
    let unfit = |problem: &str| PodError::Unfit { path: path.to_owned(), problem: problem.to_owned() };
    // Releases hold JSON, as kubelet's reader gave it; YAML is what the first releases held.
    let value: Value = if text.starts_with('{') {
        serde_json::from_str(text).map_err(|error| parse(error.into()))?
    } else {
        serde_yaml_ng::from_str(text).map_err(|error| parse(error.into()))?
    };
    let pod: Pod = serde_json::from_value(value.clone()).map_err(|error| parse(error.into()))?;
    let name = pod.metadata.name.clone().ok_or_else(|| unfit("it has no name"))?;
    let spec = pod.spec.as_ref().ok_or_else(|| unfit("it has no spec"))?;
    if spec.containers.is_empty() {
        return Err(unfit("it has no containers"));
    }
    if spec.host_network != Some(true) {
        return Err(unfit("it is not on the host's network (hostNetwork: true), and there is no other"));
    }
    Ok(PodFile { name, pod, text: value, path: path.to_owned() })
}

impl PodFile {
    /// Its containers, those that come first too.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        let spec = self.pod.spec.as_ref();
        spec.into_iter().flat_map(|spec| &spec.containers)
    }

    fn volumes(&self) -> &[Volume] {
        self.pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
    }

    /// Paths of the host that it mounts.
    pub fn host_paths(&self) -> impl Iterator<Item = &str> {
        self.volumes()
            .iter()
            .filter_map(|volume| volume.host_path.as_ref())
            .map(|source| source.path.as_str())
    }

    /// Directories below `/run/rackstep/config` that it mounts.
    fn config_directories(&self) -> Vec<PathBuf> {
        let config = Path::new(RUN).join("config");
        self.host_paths().map(PathBuf::from).filter(|path| path.starts_with(&config)).collect()
    }

    /// What kubelet is to run, with everything pinned.
    pub fn render(&self, pins: &PinSet, places: &Places) -> Result<String, PodError> {
        let directories: Vec<PathBuf> =
            self.config_directories().iter().map(|path| places.resolve(path)).collect();
        let hash = hash_directories(&directories)?;
        let mut value = self.text.clone();
        for kind in ["containers", "initContainers"] {
            let containers = value["spec"].get_mut(kind).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                let text = |key: &str| container[key].as_str().unwrap_or_default().to_owned();
                let (name, image) = (text("name"), text("image"));
                container["image"] = self.pinned(&name, &image, pins)?.to_string().into();
                container["imagePullPolicy"] = "Never".into();
            }
        }
        value["metadata"]["annotations"][CONFIG_HASH] = hash.to_string().into();
        let mut text = serde_json::to_string_pretty(&value)
            .map_err(|error| PodError::Unfit { path: self.path.clone(), problem: error.to_string() })?;
        text.push('\n');
        Ok(text)
    }

    /// Config digest of the image that a container names, by name or already by Id.
    fn pinned(&self, container: &str, image: &str, pins: &PinSet) -> Result<Digest, PodError> {
        pin_of(image, pins).map(|(_, digest)| digest).ok_or_else(|| PodError::NotPinned {
            pod: self.name.clone(),
            container: container.to_owned(),
            image: image.to_owned(),
        })
    }

    /// Every container with its image's name in the pin set and its Id.
    pub fn pinned_containers(&self, pins: &PinSet) -> Result<Vec<(String, String, Digest)>, PodError> {
        self.containers()
            .map(|container| {
                let image = container.image.as_deref().unwrap_or_default();
                let digest = self.pinned(&container.name, image, pins)?;
                let name = pin_of(image, pins).map(|(name, _)| name).unwrap_or_default();
                Ok((container.name.clone(), name, digest))
            })
            .collect()
    }

    /// The container that `phase` is to run: mounts and environment of this pod's first container.
    pub fn render_phase(
        &self,
        phase: &Phase,
        image: Digest,
        release: Commit,
        places: &Places,
    ) -> Result<RunOnce, PodError> {
        let unfit = |problem: String| PodError::Unfit { path: self.path.clone(), problem };
        let container = self.containers().next().ok_or_else(|| unfit("it has no containers".to_owned()))?;
        let mut environment = BTreeMap::new();
        for variable in container.env.iter().flatten() {
            let value = match (&variable.value, &variable.value_from) {
                (_, Some(_)) => {
                    return Err(unfit(format!(
                        "phases cannot take {} from elsewhere (valueFrom)",
                        variable.name
                    )));
                }
                (value, None) => value.clone().unwrap_or_default(),
            };
            environment.insert(variable.name.clone(), value);
        }
        environment.extend(phase.env.clone());
        let mut run = RunOnce {
            name: format!("rackstep-phase-{}", phase.id),
            release,
            image,
            arguments: phase.command.clone(),
            environment,
            binds: Vec::new(),
            scratch: Vec::new(),
            user: None,
            working_directory: container.working_dir.clone(),
        };
        for mount in container.volume_mounts.iter().flatten() {
            let volume = self.volumes().iter().find(|volume| volume.name == mount.name);
            let target = PathBuf::from(&mount.mount_path);
            match volume {
                Some(Volume { host_path: Some(source), .. }) => {
                    let path = Path::new(&source.path).join(mount.sub_path.as_deref().unwrap_or_default());
                    run.binds.push(Bind {
                        host: places.resolve(&path),
                        container: target,
                        read_only: mount.read_only == Some(true),
                    });
                }
                Some(Volume { empty_dir: Some(_), .. }) => run.scratch.push(target),
                _ => {
                    return Err(unfit(format!("volume {} is neither hostPath nor emptyDir", mount.name)));
                }
            }
        }
        if let Some(context) = &container.security_context {
            run.user = context.run_as_user.map(|user| match context.run_as_group {
                Some(group) => format!("{user}:{group}"),
                None => user.to_string(),
            });
        }
        if phase.user.is_some() {
            run.user.clone_from(&phase.user);
        }
        Ok(run)
    }
}

/// The pin that a pod's image field means: a name in the pin set, or the Id of one.
fn pin_of(image: &str, pins: &PinSet) -> Option<(String, Digest)> {
    let by_id = || {
        let id: Digest = image.parse().ok()?;
        pins.images.iter().find(|(_, pinned)| pinned.config == id)
    };
    pins.images.get_key_value(image).or_else(by_id).map(|(name, pinned)| (name.clone(), pinned.config))
}

/// Writes the pod for kubelet; false: it was there, the same.
pub fn write_pod(directory: &Path, name: &str, rendered: &str) -> Result<bool, FileError> {
    write_atomic(&file_of(directory, name), rendered.as_bytes(), 0o600, Durability::Volatile)
}

/// Takes away every pod that is not in `names`. Everything else in the directory goes too: kubelet parses it all, and a
/// stray copy of a pod replaces the pod.
pub fn keep_only(directory: &Path, names: &BTreeSet<&str>) -> Result<Vec<String>, FileError> {
    let mut gone = Vec::new();
    for path in list(directory)? {
        let wanted = names.iter().any(|name| file_of(directory, name) == path);
        if !wanted {
            std::fs::remove_file(&path).map_err(naming("removing", &path))?;
            gone.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    Ok(gone)
}

/// JSON, which every YAML reader takes for what it is.
fn file_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PhaseKind, PinnedImage};

    const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: keystone, annotations: {rackstep.io/config-hash: ""}}
spec:
  hostNetwork: true
  someNewField: {kept: "0644"}
  initContainers: [{name: first, image: tools}]
  containers:
    - name: keystone
      image: keystone
      imagePullPolicy: Always
      env: [{name: KOLLA_CONFIG_STRATEGY, value: COPY_ALWAYS}, {name: A, value: pod}]
      volumeMounts:
        - {name: config, mountPath: /var/lib/kolla/config_files, readOnly: true}
        - {name: keys, mountPath: /keys, subPath: deep}
        - {name: scratch, mountPath: /scratch}
  volumes:
    - {name: config, hostPath: {path: /run/rackstep/config/keystone}}
    - {name: keys, hostPath: {path: /var/lib/rackstep/state/keys}}
    - {name: scratch, emptyDir: {}}
"#;

    fn pins() -> PinSet {
        let image = |name: &str| PinnedImage {
            reference: name.to_owned(),
            manifest: Digest::of(b"m"),
            config: Digest::of(name.as_bytes()),
            layers: Vec::new(),
        };
        let images = ["keystone", "tools"].map(|name| (name.to_owned(), image(name)));
        PinSet { format: 1, images: images.into() }
    }

    #[test]
    fn images_are_pinned_and_all_else_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        let config = places.config().join("keystone");
        std::fs::create_dir_all(&config).unwrap();
        std::fs::write(config.join("keystone.conf"), "a").unwrap();
        let pod = parse_pod(POD, Path::new("keystone.yaml")).unwrap();
        let rendered = pod.render(&pins(), &places).unwrap();
        let value: Value = serde_json::from_str(&rendered).unwrap();
        let container = &value["spec"]["containers"][0];
        assert_eq!(container["image"], Digest::of(b"keystone").to_string());
        assert_eq!(container["imagePullPolicy"], "Never");
        assert_eq!(value["spec"]["initContainers"][0]["image"], Digest::of(b"tools").to_string());
        assert_eq!(value["spec"]["someNewField"]["kept"], "0644");
        std::fs::write(config.join("keystone.conf"), "b").unwrap();
        assert_ne!(
            pod.render(&pins(), &places).unwrap(),
            rendered,
            "the configuration is in the pod's bytes"
        );
        // Rendered once more, from what was rendered.
        let again = parse_pod(&rendered, Path::new("keystone.json")).unwrap();
        assert_eq!(again.render(&pins(), &places).unwrap(), pod.render(&pins(), &places).unwrap());
        assert_eq!(again.pinned_containers(&pins()).unwrap()[0].1, "keystone");
    }

    #[test]
    fn unfit_pods_are_named() {
        for (from, to, problem) in [
            ("hostNetwork: true", "hostNetwork: false", "not on the host's network"),
            ("name: keystone, annotations", "annotations", "it has no name"),
        ] {
            let error = parse_pod(&POD.replacen(from, to, 1), Path::new("k.yaml")).unwrap_err().to_string();
            assert!(error.starts_with("pod k.yaml: ") && error.contains(problem), "{error}");
        }
        let pod = parse_pod(&POD.replace("image: tools", "image: other"), Path::new("k.yaml")).unwrap();
        let error = pod.render(&pins(), &Places::below(Path::new("/nowhere"))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "pod keystone: container first runs other, which is not in the pin set"
        );
    }

    #[test]
    fn a_phase_takes_the_first_containers_mounts_and_environment() {
        let pod = parse_pod(POD, Path::new("keystone.yaml")).unwrap();
        let phase = Phase {
            id: "expand".to_owned(),
            service: "keystone".to_owned(),
            kind: PhaseKind::Expand,
            image: "keystone".to_owned(),
            command: vec!["db_sync".to_owned()],
            env: [("A".to_owned(), "phase".to_owned())].into(),
            pod: "keystone".to_owned(),
            needs: Vec::new(),
            user: None,
        };
        let release = "1".repeat(64).parse().unwrap();
        let run =
            pod.render_phase(&phase, Digest::of(b"x"), release, &Places::below(Path::new("/r"))).unwrap();
        assert_eq!(run.environment["A"], "phase");
        assert_eq!(run.environment["KOLLA_CONFIG_STRATEGY"], "COPY_ALWAYS");
        let bind = |host: &str, container: &str, read_only| Bind {
            host: host.into(),
            container: container.into(),
            read_only,
        };
        assert_eq!(
            run.binds,
            [
                bind("/r/run/rackstep/config/keystone", "/var/lib/kolla/config_files", true),
                bind("/r/var/lib/rackstep/state/keys/deep", "/keys", false),
            ]
        );
        assert_eq!(run.scratch, [PathBuf::from("/scratch")]);
    }

    #[test]
    fn strays_are_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["keystone.json", "keystone.json.bak", "old.json", ".tmp"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let gone = keep_only(directory.path(), &["keystone"].into()).unwrap();
        assert_eq!(gone, [".tmp", "keystone.json.bak", "old.json"]);
    }
}
