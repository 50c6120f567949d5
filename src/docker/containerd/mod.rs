//! Docker's containerd store: images as containerd keeps them.
//!
//! There an image's Id is the digest of its manifest. We bring images with a manifest of our own making
//! ([`render_plain_manifest`](crate::formats::image::spec::render_plain_manifest)), which names the pinned config and the pinned
//! layers and nothing else, so that each pin has one Id, which its manifest proves.
//!
//! 1. containerd tells where it keeps blobs and snapshots ([`Containerd::open`]);
//! 2. a stored manifest tells which pin an Id is ([`Containerd::config_of`]);
//! 3. [`read_back`] reads an image's blobs, and compares every unpacked file with them;
//! 4. [`mend`] puts the right bytes under the name of a damaged blob.
//!
//! Its databases are never read, and none of its images or snapshots is removed here: Docker is asked for that.

mod ctr;
pub(super) mod mend;
mod read_back;
mod unpacked;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::DockerError;
use crate::formats::image::spec;
use crate::model::Digest;

use ctr::Ctr;

/// The namespace of containerd in which Docker keeps its images, unless it says another.
pub(super) const NAMESPACE: &str = "moby";

/// Where Debian's containerd listens; its Docker uses that one.
const SYSTEM_SOCKET: &str = "/run/containerd/containerd.sock";

/// Largest manifest that is looked at.
const LARGEST_MANIFEST: u64 = 4 << 20;

/// The containerd that a Docker keeps its images in.
#[derive(Debug)]
pub(super) struct Containerd {
    ctr: Ctr,
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
    /// Asks the first of `sockets` that is there where it keeps things.
    pub(super) fn open(sockets: &[PathBuf], namespace: &str, snapshotter: &str) -> Result<Self, DockerError> {
        let is_heard = |socket: &&PathBuf| std::os::unix::net::UnixStream::connect(socket).is_ok();
        let socket = sockets.iter().find(is_heard).ok_or_else(|| DockerError::NoContainerd {
            sockets: sockets.iter().map(|socket| socket.display().to_string()).collect(),
        })?;
        let ctr = Ctr {
            socket: socket.clone(),
            namespace: namespace.to_owned(),
            snapshotter: snapshotter.to_owned(),
        };
        let content = ctr.root_of("io.containerd.content.v1", "content")?;
        let snapshots = ctr.root_of("io.containerd.snapshotter.v1", snapshotter)?;
        Ok(Self { ctr, content, snapshots })
    }

    /// Directories whose file systems hold what a load writes.
    pub(super) fn roots(&self) -> [&Path; 2] {
        // The first blob makes the directory.
        let above = self.content.parent().unwrap_or(&self.content);
        [if self.content.is_dir() { &self.content } else { above }, &self.snapshots]
    }

    /// The file of a blob.
    fn blob(&self, digest: Digest) -> PathBuf {
        self.content.join("blobs/sha256").join(digest.hex())
    }

    /// Every blob that containerd knows in Docker's namespace. Their bytes are not looked at.
    pub(super) fn blobs(&self) -> Result<BTreeSet<Digest>, DockerError> {
        self.ctr.blobs()
    }

    /// The config digest of the image of this Id, if it is stored as we store images: with the one manifest that its config
    /// and its uncompressed layers give.
    pub(super) fn config_of(&self, id: Digest) -> Option<Digest> {
        let path = self.blob(id);
        let is_small = std::fs::metadata(&path).is_ok_and(|data| data.len() <= LARGEST_MANIFEST);
        let bytes = is_small.then(|| std::fs::read(&path).ok()).flatten()?;
        if Digest::of(&bytes) == id { spec::parse_plain_manifest(&bytes) } else { None }
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
        assert_eq!(
            told,
            ["/run/x.sock", "/a/b/containerd/containerd.sock", SYSTEM_SOCKET].map(PathBuf::from)
        );
    }
}
