//! Reads what an import is given, and writes what it makes.
//!
//! 1. Files, folders and stdin become texts; 2. the plan decides alone; 3. everything is written into a directory beside
//!    the output, loaded by our own parser, and renamed into place: an import that fails leaves nothing.

pub mod plan;

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::model::place::InputError;
use crate::release::import::plan::compose::Beside;
use crate::release::import::plan::workload::ConfigFile;
use crate::release::import::plan::{Form, Text};
use crate::release::manifest::Service;
use crate::release::tree::podcheck::PodCheck;

/// Larger files are not configuration.
const LARGEST: u64 = 4 << 20;

/// Why an import's files could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A path of the input.
    #[error("reading {path}")]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing in a folder is of the form.
    #[error("{path} holds no file of this form")]
    Nothing {
        /// The folder.
        path: PathBuf,
    },
    /// A path of the output.
    #[error("writing {path}")]
    Write {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something is there already.
    #[error("{path} exists")]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// What was made does not load: a bug of the import.
    #[error("the definition made does not load")]
    Load(#[source] InputError),
}

/// Reads the texts of an input; `-` is stdin.
pub fn gather(form: Form, paths: &[PathBuf]) -> Result<Vec<Text>, ImportError> {
    let mut texts = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            let mut content = Vec::new();
            let read = io::stdin().read_to_end(&mut content);
            read.map_err(|source| ImportError::Read { path: path.clone(), source })?;
            texts.push(Text { file: "stdin".to_owned(), path: "stdin".to_owned(), content });
        } else if path.is_dir() {
            let before = texts.len();
            folder(form, path, &mut texts)?;
            if texts.len() == before {
                return Err(ImportError::Nothing { path: path.clone() });
            }
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            texts.push(text(path, name)?);
        }
    }
    Ok(texts)
}

fn folder(form: Form, folder: &Path, texts: &mut Vec<Text>) -> Result<(), ImportError> {
    for entry in walkdir::WalkDir::new(folder).sort_by_file_name().follow_links(true) {
        let entry =
            entry.map_err(|error| ImportError::Read { path: folder.to_owned(), source: error.into() })?;
        let path = entry.path();
        if !entry.file_type().is_file() {
            continue;
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let yaml = ["yaml", "yml", "json"].contains(&extension.as_str());
        let wanted = match form {
            Form::Kubernetes => yaml || path.to_string_lossy().ends_with(".tpl"),
            Form::Compose => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                yaml && (name.starts_with("docker-compose") || name.starts_with("compose"))
            }
            Form::Kolla => true,
        };
        if wanted {
            let below = path.strip_prefix(folder).unwrap_or(path);
            texts.push(text(path, below.to_string_lossy().into_owned())?);
        }
    }
    Ok(())
}

fn text(path: &Path, below: String) -> Result<Text, ImportError> {
    let content = read_limited(path).map_err(|source| ImportError::Read { path: path.to_owned(), source })?;
    Ok(Text { file: path.display().to_string(), path: below, content })
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > LARGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any configuration"));
    }
    std::fs::read(path)
}

/// Reads a file or a folder that an input names beside it.
#[must_use]
pub fn read_beside(path: &Path) -> Option<Beside> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(path).sort_by_file_name() {
        let entry = entry.ok()?;
        if entry.file_type().is_file() {
            let below = entry.path().strip_prefix(path).ok()?.to_string_lossy().into_owned();
            let executable = entry.metadata().ok()?.permissions().mode() & 0o111 != 0;
            files.push((below, read_limited(entry.path()).ok()?, executable));
        }
    }
    (!files.is_empty()).then_some(files)
}

/// Writes the files below `output`, each service's directory as a whole; gives the directories.
pub fn write(
    files: &BTreeMap<PathBuf, ConfigFile>,
    output: &Path,
    force: bool,
) -> Result<Vec<PathBuf>, ImportError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| ImportError::Write { path, source }
    };
    let names: std::collections::BTreeSet<_> = files.keys().filter_map(|path| path.iter().next()).collect();
    for name in &names {
        let path = output.join(name);
        if path.symlink_metadata().is_ok() && !force {
            return Err(ImportError::Exists { path });
        }
    }
    std::fs::create_dir_all(output).map_err(fail(output))?;
    let made =
        tempfile::Builder::new().prefix(".rackstep-import-").tempdir_in(output).map_err(fail(output))?;
    for (path, file) in files {
        let path = made.path().join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fail(parent))?;
        }
        std::fs::write(&path, &file.content).map_err(fail(&path))?;
        let mode = if file.executable { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(fail(&path))?;
    }
    let pods = PodCheck::new(output);
    for name in &names {
        Service::load(&made.path().join(name), &pods).map_err(ImportError::Load)?;
    }
    let mut written = Vec::new();
    for name in names {
        let path = output.join(name);
        if path.symlink_metadata().is_ok() {
            // Only what an import or a person put there by that name; asked for by --force.
            std::fs::rename(&path, made.path().join(format!(".old-{}", name.to_string_lossy())))
                .map_err(fail(&path))?;
        }
        std::fs::rename(made.path().join(name), &path).map_err(fail(&path))?;
        written.push(path);
    }
    Ok(written)
}
