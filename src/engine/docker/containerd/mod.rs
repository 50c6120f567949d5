//! Docker's containerd store: images as containerd keeps them.
//!
//! There an image's Id is the digest of its manifest. We bring images with a manifest of our own making
//! ([`render_plain_manifest`](crate::image::spec::render_plain_manifest)), which names the pinned config and the pinned
//! layers and nothing else, so that each pin has one Id, which its manifest proves.
//!
//! 1. containerd tells where it keeps blobs and snapshots ([`Containerd::open`]);
//! 2. a stored manifest tells which pin an Id is ([`Containerd::config_of`]);
//! 3. [`read_back`] reads an image's blobs, and compares every unpacked file with them;
//! 4. [`mend`] puts the right bytes under the name of a damaged blob.
//!
//! Its databases are never read, and nothing of it is removed here: containerd is asked, or Docker is.

mod api;
mod grpc;
pub(super) mod mend;
pub(super) mod read_back;
mod unpacked;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use prost::Message;
use tokio::runtime::Handle;

use super::DockerError;
use crate::image::spec;
use crate::model::{Digest, PinnedImage};

pub use grpc::GrpcError;

/// The namespace of containerd in which Docker keeps its images, unless it says another.
pub(super) const NAMESPACE: &str = "moby";

/// Where Debian's containerd listens; its Docker uses that one.
const SYSTEM_SOCKET: &str = "/run/containerd/containerd.sock";

/// Largest manifest that is looked at.
const LARGEST_MANIFEST: u64 = 4 << 20;

/// A look at a snapshot of ours that was cut goes by the same name, and is taken over.
const VIEW_PREFIX: &str = "rackstep-verify-";

/// containerd's collector keeps what has this label.
const GC_ROOT: &str = "containerd.io/gc.root";

/// The containerd that a Docker keeps its images in.
#[derive(Debug)]
pub(super) struct Containerd {
    runtime: Handle,
    socket: PathBuf,
    namespace: String,
    snapshotter: String,
    /// Root of its content store.
    content: PathBuf,
    /// Root of its snapshots.
    snapshots: PathBuf,
}

/// Where the containerd of the Docker at `url` may listen, the likeliest first.
pub(super) fn sockets(told: Option<String>, url: &str) -> Vec<PathBuf> {
    // A Docker that starts a containerd of its own lets it listen below its exec root, which stands beside its socket.
    let beside = url.strip_prefix("unix://").map(|socket| Path::new(socket).with_extension(""));
    let beside = beside.map(|exec_root| exec_root.join("containerd/containerd.sock"));
    told.map(PathBuf::from).into_iter().chain(beside).chain([SYSTEM_SOCKET.into()]).collect()
}

impl Containerd {
    /// Asks the first of `sockets` at which somebody listens where it keeps things.
    pub(super) fn open(
        runtime: Handle,
        sockets: &[PathBuf],
        namespace: &str,
        snapshotter: &str,
    ) -> Result<Self, DockerError> {
        let mut refused = None;
        for socket in sockets {
            let mut store = Self {
                runtime: runtime.clone(),
                socket: socket.clone(),
                namespace: namespace.to_owned(),
                snapshotter: snapshotter.to_owned(),
                content: PathBuf::new(),
                snapshots: PathBuf::new(),
            };
            match store.root_of("io.containerd.content.v1", "content") {
                Ok(content) => {
                    store.content = content;
                    store.snapshots = store.root_of("io.containerd.snapshotter.v1", snapshotter)?;
                    return Ok(store);
                }
                // The first is the likeliest, so its reason is the one to tell.
                Err(error) => drop(refused.get_or_insert(error)),
            }
        }
        let nowhere = || DockerError::Answer {
            operation: "asking where its containerd listens".to_owned(),
            problem: "no address".to_owned(),
        };
        Err(refused.unwrap_or_else(nowhere))
    }

    fn root_of(&self, kind: &str, id: &str) -> Result<PathBuf, DockerError> {
        let question = api::PluginsQuestion { filters: vec![format!("type=={kind},id=={id}")] };
        let answer: api::PluginsAnswer =
            self.ask(api::PLUGINS, &question).map_err(|source| self.error(source))?;
        let plugin = answer.plugins.into_iter().find(|plugin| plugin.kind == kind && plugin.id == id);
        let root = plugin.and_then(|plugin| plugin.exports.get("root").map(PathBuf::from));
        root.filter(|root| root.is_dir()).ok_or_else(|| {
            let problem = format!("no directory of {kind} {id} on this machine");
            self.error(GrpcError::Answer { method: api::PLUGINS, problem })
        })
    }

    fn ask<A: Message + Default>(
        &self,
        method: &'static str,
        question: &impl Message,
    ) -> Result<A, GrpcError> {
        self.runtime.block_on(grpc::ask(&self.socket, &self.namespace, method, question))
    }

    fn error(&self, source: GrpcError) -> DockerError {
        DockerError::Containerd { socket: self.socket.clone(), source: Box::new(source) }
    }

    /// Directories whose file systems hold what a load writes.
    pub(super) fn roots(&self) -> [&Path; 2] {
        [&self.content, &self.snapshots]
    }

    /// The file of a blob.
    fn blob(&self, digest: Digest) -> PathBuf {
        self.content.join("blobs/sha256").join(digest.hex())
    }

    /// Is the blob known to containerd in Docker's namespace? Its bytes are not looked at.
    pub(super) fn has_blob(&self, digest: Digest) -> Result<bool, DockerError> {
        let question = api::ContentInfoQuestion { digest: digest.to_string() };
        match self.ask::<api::Nothing>(api::CONTENT_INFO, &question) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(self.error(error)),
        }
    }

    /// The config digest of the image of this Id, if it is stored as we store images: whole, and with the one manifest
    /// that its config and uncompressed layers give.
    pub(super) fn config_of(&self, id: Digest) -> Option<Digest> {
        let path = self.blob(id);
        let is_small = std::fs::metadata(&path).is_ok_and(|data| data.len() <= LARGEST_MANIFEST);
        let bytes = is_small.then(|| std::fs::read(&path).ok()).flatten()?;
        if Digest::of(&bytes) == id { spec::parse_plain_manifest(&bytes) } else { None }
    }

    /// Directories that hold the image's unpacked layers, by chain; none: it is not unpacked.
    fn unpacked_layers(&self, image: &PinnedImage) -> Result<Option<BTreeMap<Digest, PathBuf>>, DockerError> {
        let chains = image.chains();
        let Some(top) = chains.last() else { return Ok(Some(BTreeMap::new())) };
        let snapshotter = self.snapshotter.clone();
        let key = format!("{VIEW_PREFIX}{}", top.hex());
        let snapshot = api::SnapshotQuestion { snapshotter: snapshotter.clone(), key: key.clone() };
        let labels = HashMap::from([(GC_ROOT.to_owned(), "rackstep".to_owned())]);
        let question = api::ViewQuestion { snapshotter, key, parent: top.to_string(), labels };
        let looked: Result<api::MountsAnswer, GrpcError> = match self.ask(api::VIEW, &question) {
            Err(error) if error.is_already_there() => self.ask(api::MOUNTS, &snapshot),
            looked => looked,
        };
        let mounts = match looked {
            Ok(answer) => answer.mounts,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(self.error(error)),
        };
        // The layers' directories stay as long as their image does; the view was only there to name them.
        match self.ask::<api::Nothing>(api::REMOVE, &snapshot) {
            Err(error) if !error.is_not_found() => return Err(self.error(error)),
            _ => {}
        }
        let directories = layer_directories(&mounts).unwrap_or_default();
        if directories.len() != chains.len() {
            let problem =
                format!("mounts {mounts:?}, expected {} directories of layers (overlayfs)", chains.len());
            return Err(self.error(GrpcError::Answer { method: api::VIEW, problem }));
        }
        // The highest layer is named first.
        Ok(Some(chains.into_iter().zip(directories.into_iter().rev()).collect()))
    }
}

/// The directories of an overlayfs snapshot's layers, the highest first.
fn layer_directories(mounts: &[api::Mount]) -> Option<Vec<PathBuf>> {
    let [mount] = mounts else { return None };
    match mount.kind.as_str() {
        // A single layer needs no overlay.
        "bind" => Some(vec![PathBuf::from(&mount.source)]),
        "overlay" => {
            let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
            Some(lower.split(':').map(PathBuf::from).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containerd_is_looked_for_where_docker_puts_it() {
        let beside = |url: &str| sockets(None, url)[0].display().to_string();
        assert_eq!(beside("unix:///var/run/docker.sock"), "/var/run/docker/containerd/containerd.sock");
        assert_eq!(beside("tcp://host:1"), SYSTEM_SOCKET);
        let told = sockets(Some("/run/x.sock".to_owned()), "unix:///a/b.sock");
        assert_eq!(told, ["/run/x.sock", "/a/b/containerd/containerd.sock", SYSTEM_SOCKET].map(PathBuf::from));
    }

    #[test]
    fn mounts_name_the_layers() {
        let mount = |kind: &str, source: &str, options: &[&str]| api::Mount {
            kind: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let one = [mount("bind", "/s/1/fs", &["ro", "rbind"])];
        assert_eq!(layer_directories(&one), Some(vec![PathBuf::from("/s/1/fs")]));
        let two = [mount("overlay", "overlay", &["index=off", "lowerdir=/s/2/fs:/s/1/fs"])];
        assert_eq!(layer_directories(&two), Some(["/s/2/fs", "/s/1/fs"].map(PathBuf::from).to_vec()));
        assert_eq!(layer_directories(&[mount("btrfs", "/dev/x", &[])]), None);
    }
}
