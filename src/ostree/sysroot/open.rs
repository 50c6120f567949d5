//! Opening and making sysroots.

use std::path::Path;

use super::{STATEROOT, Sysroot, SysrootError, failed};

impl Sysroot {
    /// Opens the sysroot at `path`; `/` is the running host's own.
    pub fn open(path: &Path) -> Result<Self, SysrootError> {
        let inner = ostree::Sysroot::new(Some(&gio::File::for_path(path)));
        inner
            .load(gio::Cancellable::NONE)
            .map_err(|source| failed(format!("opening the sysroot {}", path.display()), source))?;
        Ok(Self { inner, path: path.to_owned() })
    }

    /// Makes an empty sysroot at `path` whose boot entries are written by `bootloader` (`grub2`, `none`), and opens it.
    pub fn init(path: &Path, bootloader: &str) -> Result<Self, SysrootError> {
        let doing = || format!("making a sysroot at {}", path.display());
        let none = gio::Cancellable::NONE;
        let inner = ostree::Sysroot::new(Some(&gio::File::for_path(path)));
        inner.ensure_initialized(none).map_err(|source| failed(doing(), source))?;
        inner.load(none).map_err(|source| failed(doing(), source))?;
        if !path.join("ostree/deploy").join(STATEROOT).exists() {
            inner.init_osname(STATEROOT, none).map_err(|source| failed(doing(), source))?;
        }
        let repo = inner.repo();
        let config = repo.copy_config();
        config.set_string("sysroot", "bootloader", bootloader);
        repo.write_config(&config).map_err(|source| failed(doing(), source))?;
        repo.reload_config(none).map_err(|source| failed(doing(), source))?;
        inner.load(none).map_err(|source| failed(doing(), source))?;
        Ok(Self { inner, path: path.to_owned() })
    }
}
