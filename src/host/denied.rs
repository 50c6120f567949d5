//! Keeps the releases that this host came back from: they are not taken again until a person allows them.

use std::path::Path;

use crate::model::Commit;
use crate::model::trial::{DENIED_FORMAT, Denied, DenyList};
use crate::rim::files::Durability;
use crate::rim::versioned::{Versioned, VersionedError, read_versioned, write_versioned};

impl Versioned for DenyList {
    const WHAT: &'static str = "the list of denied releases";
    const FORMAT: u32 = DENIED_FORMAT;
}

/// Reads the list; one that is not there is empty. A damaged one is never guessed: a bad release would be taken again.
pub fn read_denied(path: &Path) -> Result<DenyList, VersionedError> {
    Ok(read_versioned(path)?.unwrap_or_default())
}

/// Puts a release on the list, unless it is there; it is on the disk when this returns.
pub fn deny(path: &Path, denied: Denied) -> Result<(), VersionedError> {
    let mut list = read_denied(path)?;
    if list.find(denied.commit).is_none() {
        list.releases.push(denied);
        write_versioned(path, &list, Durability::Durable)?;
    }
    Ok(())
}

/// Takes a release off the list; on the disk when this returns. Gives what stood there.
pub fn allow(path: &Path, commit: Commit) -> Result<Option<Denied>, VersionedError> {
    let mut list = read_denied(path)?;
    let place = list.releases.iter().position(|denied| denied.commit == commit);
    let allowed = place.map(|place| list.releases.remove(place));
    if allowed.is_some() {
        write_versioned(path, &list, Durability::Durable)?;
    }
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::trial::BadReason;

    #[test]
    fn a_release_is_denied_once_and_until_it_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/denied.json");
        let commit: Commit = "a".repeat(64).parse().unwrap();
        let denied = |boots| Denied {
            commit,
            version: Some("2.0.0".to_owned()),
            reason: BadReason::DidNotComeUp { boots },
            at: 7,
        };
        assert_eq!(read_denied(&path).unwrap(), DenyList::default());
        deny(&path, denied(3)).unwrap();
        deny(&path, denied(9)).unwrap();
        assert_eq!(read_denied(&path).unwrap().releases, [denied(3)]);
        assert_eq!(allow(&path, commit).unwrap(), Some(denied(3)));
        assert_eq!(allow(&path, commit).unwrap(), None);
        std::fs::write(&path, "{").unwrap();
        assert!(deny(&path, denied(3)).is_err());
    }
}
