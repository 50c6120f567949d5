//! Programs that no distribution package has, and rackstep itself.
//!
//! 1. a url: downloaded, and it must be what the treefile says; 2. `go:PACKAGE`: built by the project's script from
//!    pinned modules; 3. the running program goes into the tree too, without its debug information: what composed a
//!    release is what runs in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::Cache;
use crate::formats::atomic::{Durability, replace};
use crate::model::Digest;
use crate::release::manifest::LockedBinary;
use crate::release::manifest::treefile::Binary;
use crate::rim::command::{CommandError, run, run_text};

/// Where rackstep itself stands in the tree.
pub const PROGRAM_PATH: &str = "/usr/bin/rackstep";

/// The project's script that builds Go programs.
const BUILD_SCRIPT: &str = "scripts/build-go-binaries.sh";

/// Why a program could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// The script is nowhere above the treefile.
    #[error("{script} is in no directory above {from}")]
    NoScript {
        /// The script.
        script: String,
        /// Where the search began.
        from: PathBuf,
    },
    /// Building or downloading failed.
    #[error("getting {name} {version}")]
    Get {
        /// The program.
        name: String,
        /// Its version.
        version: String,
        /// How.
        #[source]
        source: CommandError,
    },
    /// The script made another version.
    #[error("{name}: the build script has no version {version} (it made {got})")]
    Version {
        /// The program.
        name: String,
        /// The treefile's version.
        version: String,
        /// What came.
        got: String,
    },
    /// It is not what it should be.
    #[error("{name} {version}: expected {expected}, got {got}")]
    Digest {
        /// The program.
        name: String,
        /// Its version.
        version: String,
        /// Treefile's or lock's digest.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// A file could not be read or written.
    #[error("{path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> BinaryError + '_ {
    move |source| BinaryError::Io { path: path.to_owned(), source }
}

/// Finds `script` in the directory of `from` or one above it.
pub fn find_script(from: &Path, script: &str) -> Result<PathBuf, BinaryError> {
    let start = fs::canonicalize(from).map_err(at(from))?;
    start
        .ancestors()
        .map(|dir| dir.join(script))
        .find(|path| path.is_file())
        .ok_or_else(|| BinaryError::NoScript { script: script.to_owned(), from: from.to_owned() })
}

/// Gets a program and tells exactly what it is.
pub fn resolve(cache: &Cache, treefile: &Path, binary: &Binary) -> Result<LockedBinary, BinaryError> {
    let path = get(cache, treefile, binary)?;
    let bytes = fs::read(&path).map_err(at(&path))?;
    let locked = LockedBinary {
        name: binary.name.clone(),
        version: binary.version.clone(),
        sha256: Digest::of(&bytes),
        size: bytes.len() as u64,
    };
    if let Some(expected) = binary.sha256.as_deref().and_then(|text| Digest::parse_hex(text).ok()) {
        require(&locked, expected)?;
    }
    keep(cache, &locked.sha256, &bytes)?;
    Ok(locked)
}

/// The file of a locked program; got again if the cache has lost it.
pub fn locate(
    cache: &Cache,
    treefile: &Path,
    binary: &Binary,
    locked: &LockedBinary,
) -> Result<PathBuf, BinaryError> {
    let path = kept(cache, &locked.sha256);
    if !path.is_file() {
        let now = resolve(cache, treefile, binary)?;
        require(&now, locked.sha256)?;
    }
    Ok(path)
}

fn require(found: &LockedBinary, expected: Digest) -> Result<(), BinaryError> {
    if found.sha256 == expected {
        return Ok(());
    }
    let LockedBinary { name, version, sha256, .. } = found.clone();
    Err(BinaryError::Digest { name, version, expected, got: sha256 })
}

fn kept(cache: &Cache, digest: &Digest) -> PathBuf {
    cache.dir().join("programs").join(digest.hex())
}

fn keep(cache: &Cache, digest: &Digest, bytes: &[u8]) -> Result<PathBuf, BinaryError> {
    let path = kept(cache, digest);
    if !path.is_file() {
        let parent = cache.dir().join("programs");
        fs::create_dir_all(&parent).map_err(at(&parent))?;
        replace(&path, bytes, 0o600, Durability::Volatile).map_err(at(&path))?;
    }
    Ok(path)
}

fn get(cache: &Cache, treefile: &Path, binary: &Binary) -> Result<PathBuf, BinaryError> {
    let failed =
        |source| BinaryError::Get { name: binary.name.clone(), version: binary.version.clone(), source };
    if let (Some(url), Some(sha256)) = (&binary.url, &binary.sha256) {
        let parent = cache.dir().join("programs");
        fs::create_dir_all(&parent).map_err(at(&parent))?;
        let path = parent.join(format!("{sha256}.download"));
        let mut command = Command::new("/usr/lib/apt/apt-helper");
        command.arg("download-file").arg(url).arg(&path).arg(format!("SHA256:{sha256}"));
        run(&mut command).map_err(failed)?;
        return Ok(path);
    }
    let script = find_script(treefile.parent().unwrap_or(Path::new(".")), BUILD_SCRIPT)?;
    let told = run_text(Command::new(script).arg(&binary.name)).map_err(failed)?;
    // The script prints "<sha256>  <path>", with the version in the path.
    let path = told.lines().last().and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default();
    if !path.contains(&binary.version) {
        return Err(BinaryError::Version {
            name: binary.name.clone(),
            version: binary.version.clone(),
            got: path.rsplit('/').nth(1).unwrap_or(path).to_owned(),
        });
    }
    Ok(PathBuf::from(path))
}

/// The running program without debug information, in the cache, with its digest.
pub fn running_program(cache: &Cache) -> Result<(PathBuf, Digest), BinaryError> {
    let program = std::env::current_exe().map_err(at(Path::new("/proc/self/exe")))?;
    let whole = Digest::of(&fs::read(&program).map_err(at(&program))?);
    let note = cache.dir().join("programs").join(format!("{}.stripped", whole.hex()));
    if let Some(digest) = fs::read_to_string(&note).ok().and_then(|text| Digest::parse_hex(text.trim()).ok())
        && kept(cache, &digest).is_file()
    {
        return Ok((kept(cache, &digest), digest));
    }
    let parent = cache.dir().join("programs");
    fs::create_dir_all(&parent).map_err(at(&parent))?;
    let stripped = tempfile::NamedTempFile::new_in(&parent).map_err(at(&parent))?;
    let outcome = run(Command::new("strip").arg("-o").arg(stripped.path()).arg(&program));
    // Without binutils the release is larger, not wrong.
    let source = if outcome.is_ok() { stripped.path() } else { program.as_path() };
    let bytes = fs::read(source).map_err(at(source))?;
    let digest = Digest::of(&bytes);
    let path = keep(cache, &digest, &bytes)?;
    fs::write(&note, digest.hex()).map_err(at(&note))?;
    Ok((path, digest))
}
