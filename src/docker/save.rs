//! Takes an image out of Docker, for a release that is made of it.
//!
//! 1. The name is looked up once: what is saved is the image of that Id, whatever happens to the name meanwhile;
//! 2. `docker save` streams; every member is hashed on its way to a directory, and a layer that the caller has already
//!    is gone again as soon as its digest is known: beside what is missing there is never more than one layer;
//! 3. the directory is an image source like any unpacked archive, see [`image::source`](crate::formats::image::source).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::path::Path;

use super::{Docker, DockerError};
use crate::formats::image::stream::{CHUNK, Hashing};
use crate::formats::image::tree::tree_path;
use crate::model::Digest;

impl Docker {
    /// Finds the image `name` and gives its Id.
    pub fn resolve(&self, name: &str) -> Result<Digest, DockerError> {
        let operation = || format!("looking for container image {name}");
        let image = self.ask(operation, self.client.inspect_image(name))?;
        let id = image.id.unwrap_or_default();
        id.parse()
            .map_err(|_| DockerError::Answer { operation: operation(), problem: format!("the Id {id:?}") })
    }

    /// Saves the image of this Id into `dir`, without the layers that `has` knows by their diff-ids.
    pub fn save(
        &self,
        id: Digest,
        dir: &Path,
        has: &(dyn Fn(Digest) -> bool + Sync),
    ) -> Result<(), DockerError> {
        // An Id that is gone is an unclear failure of the save itself.
        self.resolve(&id.to_string())?;
        let (unpacked, sent) = self.export(id, move |archive| unpack(archive, dir, has));
        let operation = || format!("saving container image {id}");
        sent.map_err(|error: bollard::errors::Error| DockerError::Call {
            operation: operation(),
            source: Box::new(error),
        })?;
        match unpacked {
            Ok(result) => result.map_err(|source| DockerError::Save { image: id, source }),
            Err(_) => {
                let problem = "an archive that stopped our reader".to_owned();
                Err(DockerError::Answer { operation: operation(), problem })
            }
        }
    }
}

/// Writes the files of an archive below `dir`, links as further names of the files that they lead to.
fn unpack(reader: impl Read, dir: &Path, has: &dyn Fn(Digest) -> bool) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    let mut links = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(name) = tree_path(&entry.path_bytes()) else { continue };
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            let base = if kind.is_symlink() { name.rsplit_once('/').map_or("", |(dir, _)| dir) } else { "" };
            if let Some(target) = resolve(base, &target) {
                links.insert(name, target);
            }
        } else if kind.is_file() {
            let path = dir.join(&name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut out = BufWriter::with_capacity(CHUNK, Hashing::new(File::create(&path)?));
            io::copy(&mut entry, &mut out)?;
            let (digest, _) = out.into_inner().map_err(io::IntoInnerError::into_error)?.finish();
            if has(digest) {
                fs::remove_file(&path)?;
            }
        }
    }
    for (name, target) in &links {
        // Of a layer that the caller has, nothing is there to be linked.
        let (name, target) = (dir.join(name), dir.join(target));
        if target.is_file() {
            if let Some(parent) = name.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::hard_link(&target, &name)?;
        }
    }
    Ok(())
}

/// Where a link leads within the archive.
fn resolve(base: &str, target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok()?;
    let mut parts: Vec<&str> = base.split('/').collect();
    for part in target.split('/') {
        match part {
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    tree_path(parts.join("/").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_layers_that_are_known() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut put = |name: &str, content: Result<&[u8], &str>| {
            let mut header = tar::Header::new_gnu();
            match content {
                Ok(bytes) => {
                    header.set_size(bytes.len() as u64);
                    builder.append_data(&mut header, name, bytes).unwrap();
                }
                Err(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    builder.append_link(&mut header, name, target).unwrap();
                }
            }
        };
        put("a/layer.tar", Ok(b"known"));
        put("b/layer.tar", Ok(b"new"));
        put("c/layer.tar", Err("../a/layer.tar"));
        put("d/layer.tar", Err("../b/layer.tar"));
        put("e/layer.tar", Err("../../../../etc/hostname"));
        put("f/layer.tar", Err("/etc/hostname"));
        put("manifest.json", Ok(b"[]"));
        let archive = builder.into_inner().unwrap();
        let dir = tempfile::tempdir().unwrap();
        unpack(archive.as_slice(), dir.path(), &|digest| digest == Digest::of(b"known")).unwrap();
        let mut found: Vec<String> = walkdir::WalkDir::new(dir.path())
            .into_iter()
            .map(Result::unwrap)
            .filter(|entry| !entry.file_type().is_dir())
            .map(|entry| entry.path().strip_prefix(dir.path()).unwrap().display().to_string())
            .collect();
        found.sort();
        assert_eq!(found, ["b/layer.tar", "d/layer.tar", "manifest.json"]);
        assert_eq!(fs::read(dir.path().join("d/layer.tar")).unwrap(), b"new");
    }
}
