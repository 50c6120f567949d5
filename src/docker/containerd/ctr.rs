//! Asks containerd by `ctr`, which comes with it.
//!
//! Its API is gRPC; the crates for that would change the features of half of those that we have, for four questions. What
//! ctr prints is checked here: an answer of another form is an error, never a guess.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::docker::DockerError;
use crate::model::Digest;
use crate::rim::command::{CommandError, run_text};

/// Where a view would be mounted; it never is.
const NOWHERE: &str = "/rackstep";

/// A containerd, and the part of it that is Docker's.
#[derive(Debug)]
pub(super) struct Ctr {
    pub socket: PathBuf,
    pub namespace: String,
    pub snapshotter: String,
}

impl Ctr {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(["--namespace", &self.namespace]).args(arguments);
        command
    }

    fn ask(&self, arguments: &[&str]) -> Result<String, DockerError> {
        run_text(&mut self.command(arguments)).map_err(|source| self.error(source))
    }

    fn error(&self, source: CommandError) -> DockerError {
        DockerError::Containerd { socket: self.socket.clone(), source: Box::new(source) }
    }

    fn answer(question: &str, problem: String) -> DockerError {
        DockerError::Answer { operation: format!("containerd's {question}"), problem }
    }

    /// The directory of a plugin.
    pub(super) fn root_of(&self, kind: &str, id: &str) -> Result<PathBuf, DockerError> {
        let told = self.ask(&["plugins", "ls", "--detailed", &format!("type=={kind},id=={id}")])?;
        let root = parse_export(&told, "root").map(PathBuf::from);
        // It may not be made yet, but what is above it must be here.
        let root = root.filter(|root| root.parent().is_some_and(Path::is_dir));
        root.ok_or_else(|| {
            Self::answer(&format!("plugin {kind} {id}"), format!("no directory on this machine: {told:?}"))
        })
    }

    /// Every blob of the namespace.
    pub(super) fn blobs(&self) -> Result<BTreeSet<Digest>, DockerError> {
        let listed = self.ask(&["content", "ls", "--quiet"])?;
        // Blobs by another algorithm than sha256 are not ours.
        Ok(listed.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    /// Directories of the snapshots of `chains`, lowest first; none when there is no snapshot of the highest.
    pub(super) fn layers(&self, chains: &[Digest]) -> Result<Option<BTreeMap<Digest, PathBuf>>, DockerError> {
        let Some(top) = chains.last().map(Digest::to_string) else { return Ok(Some(BTreeMap::new())) };
        // One that a cut run left goes by the same name.
        let key = format!("rackstep-verify-{}", top.replace(':', "-"));
        self.remove(&key)?;
        let view = ["snapshots", "--snapshotter", &self.snapshotter, "view", "--target", NOWHERE, &key, &top];
        let told = match run_text(&mut self.command(&view)) {
            Err(error) if says(&error, "not found") => return Ok(None),
            told => told.map_err(|source| self.error(source))?,
        };
        // The layers' directories stay as long as their image does; the view was only there to name them.
        self.remove(&key)?;
        let directories = parse_mount(&told).filter(|directories| directories.len() == chains.len());
        let directories = directories.ok_or_else(|| {
            let problem = format!("{told:?}, expected the overlayfs mount of {} layers", chains.len());
            Self::answer(&format!("snapshot {top}"), problem)
        })?;
        // The highest is named first.
        Ok(Some(chains.iter().copied().zip(directories.into_iter().rev()).collect()))
    }

    fn remove(&self, key: &str) -> Result<(), DockerError> {
        let remove = ["snapshots", "--snapshotter", &self.snapshotter, "rm", key];
        match run_text(&mut self.command(&remove)) {
            Err(error) if !says(&error, "not found") => Err(self.error(error)),
            _ => Ok(()),
        }
    }
}

fn says(error: &CommandError, what: &str) -> bool {
    matches!(error, CommandError::Status { stderr, .. } if stderr.contains(what))
}

/// The value of an export in `ctr plugins ls --detailed`.
fn parse_export<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.starts_with("Exports:"));
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::trim)
}

/// The directories that an overlayfs snapshot's mount names, the highest first.
fn parse_mount(text: &str) -> Option<Vec<PathBuf>> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        // A single layer needs no overlay.
        ["mount", "-t", "bind", source, NOWHERE, ..] => Some(vec![PathBuf::from(source)]),
        ["mount", "-t", "overlay", _, NOWHERE, "-o", options] => {
            let lower = options.split(',').find_map(|option| option.strip_prefix("lowerdir="))?;
            Some(lower.split(':').map(PathBuf::from).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugins_root_is_among_its_exports() {
        let told = "Type:          io.containerd.snapshotter.v1\nID:            overlayfs\nPlatforms:     linux/amd64\n\
                    Exports:      \n               root      /data/overlayfs\n";
        assert_eq!(parse_export(told, "root"), Some("/data/overlayfs"));
        assert_eq!(parse_export("Type: root x\nID: y\n", "root"), None);
    }

    #[test]
    fn mounts_name_the_layers() {
        let paths = |paths: &[&str]| Some(paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        let one = "mount -t bind /s/1/fs /rackstep -o ro,rbind\n";
        assert_eq!(parse_mount(one), paths(&["/s/1/fs"]));
        let two = "mount -t overlay overlay /rackstep -o index=off,lowerdir=/s/2/fs:/s/1/fs\n";
        assert_eq!(parse_mount(two), paths(&["/s/2/fs", "/s/1/fs"]));
        assert_eq!(parse_mount("mount -t btrfs /dev/x /rackstep -o subvolid=1\n"), None);
    }
}
