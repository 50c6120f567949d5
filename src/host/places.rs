//! Where a host keeps what `rackstep boot` reads and writes.

use std::path::{Path, PathBuf};

use crate::model::RELEASE_DIR;
use crate::model::host::HOST_CONFIG;

/// State that outlives a boot, as pods see it.
pub const STATE: &str = "/var/lib/rackstep";

/// What lasts until the next boot, as pods see it.
pub const RUN: &str = "/run/rackstep";

/// The directories of one host, booted or below some other root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The release's own files.
    pub release: PathBuf,
    /// The host's configuration.
    pub host_config: PathBuf,
    /// What [`STATE`] is.
    pub state: PathBuf,
    /// What [`RUN`] is.
    pub run: PathBuf,
}

impl Places {
    /// A host whose root is `root`; `/` for the one that runs.
    pub fn below(root: &Path) -> Self {
        Self::of_deployment(root, &root.join("var"), &root.join("run"))
    }

    /// A deployment checked out at `tree`, with the `/var` and the `/run` that it would have.
    pub fn of_deployment(tree: &Path, var: &Path, run: &Path) -> Self {
        Self {
            release: tree.join(RELEASE_DIR),
            host_config: tree.join(HOST_CONFIG),
            state: var.join("lib/rackstep"),
            run: run.join("rackstep"),
        }
    }

    /// Where a pod's host path really is.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        for (prefix, real) in [(STATE, &self.state), (RUN, &self.run)] {
            if let Ok(rest) = path.strip_prefix(prefix) {
                return real.join(rest);
            }
        }
        path.to_owned()
    }

    /// Rendered configuration, one directory per service.
    pub fn config(&self) -> PathBuf {
        self.run.join("config")
    }

    /// Layers of container images, mounted.
    pub fn layers(&self) -> PathBuf {
        self.run.join("layers")
    }

    /// The directory that kubelet watches.
    pub fn pods(&self) -> PathBuf {
        self.run.join("pods")
    }

    /// Secrets of this host.
    pub fn secrets(&self) -> PathBuf {
        self.state.join("secrets")
    }

    /// Volumes of the services.
    pub fn volumes(&self) -> PathBuf {
        self.state.join("state")
    }

    /// The newest releases that were accepted.
    pub fn newest(&self) -> PathBuf {
        self.state.join("newest.json")
    }

    /// Releases that are not taken.
    pub fn denied(&self) -> PathBuf {
        self.state.join("denied.json")
    }

    /// What was done on this host.
    pub fn history(&self) -> PathBuf {
        self.state.join("history.json")
    }

    /// Where the trial of this boot stands.
    pub fn trial_state(&self) -> PathBuf {
        self.run.join("trial.json")
    }

    /// How a trial ends: the host's word, or else the release's.
    pub fn trial_policies(&self) -> [PathBuf; 2] {
        [self.host_config.with_file_name("trial.json"), self.release.join("trial.json")]
    }

    /// Probes of the release.
    pub fn health(&self) -> PathBuf {
        self.release.join("health.d")
    }

    /// Probes of the host and of whoever else puts some there: they warn.
    pub fn local_health(&self) -> PathBuf {
        self.host_config.with_file_name("health.d")
    }

    /// The phases that ran.
    pub fn journal(&self) -> PathBuf {
        self.state.join("phases.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_of_pods_move_with_the_root() {
        let places = Places::below(Path::new("/scratch"));
        for (path, real) in [
            ("/run/rackstep/config/keystone", "/scratch/run/rackstep/config/keystone"),
            ("/var/lib/rackstep/state/db", "/scratch/var/lib/rackstep/state/db"),
            ("/run/rackstep-other", "/run/rackstep-other"),
            ("/etc/hosts", "/etc/hosts"),
        ] {
            assert_eq!(places.resolve(Path::new(path)), Path::new(real));
            assert_eq!(Places::below(Path::new("/")).resolve(Path::new(path)), Path::new(path));
        }
    }
}
