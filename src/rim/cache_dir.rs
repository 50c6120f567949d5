//! Where work that need not be done twice is kept.

use std::path::PathBuf;

/// The cache directory of this program: `$RACKSTEP_CACHE`, else `$XDG_CACHE_HOME/rackstep`, else
/// `~/.cache/rackstep`. `None` where the environment names neither of them.
///
/// An empty variable counts as one that is not set (XDG Base Directory Specification 0.8).
pub fn cache_dir() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("RACKSTEP_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|base| base.join("rackstep")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/rackstep")))
}
