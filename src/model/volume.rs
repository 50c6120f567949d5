//! `volumes.json`: the state that a release's services keep on the host, and what a rollback may do to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The format number that this program writes and reads.
pub const VOLUMES_FORMAT: u32 = 1;

/// Every volume of a release, by name: a directory below `/var/lib/rackstep/state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSet {
    /// [`VOLUMES_FORMAT`].
    pub format: u32,
    /// Name → what it is.
    pub volumes: BTreeMap<String, Volume>,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// What a rollback may do to it.
    pub policy: VolumePolicy,
    /// `uid:gid` that it is made with; services usually give it to themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Octal mode that it is made with, such as `"0750"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

impl Volume {
    /// The octal mode as a number; 0755 if none is given. The error tells what is wrong with it.
    pub fn parse_mode(&self) -> Result<u32, String> {
        let Some(text) = &self.mode else { return Ok(0o755) };
        let mode = u32::from_str_radix(text, 8).map_err(|error| format!("mode {text:?}: {error}"))?;
        if mode > 0o7777 { Err(format!("mode {text:?} is over 7777")) } else { Ok(mode) }
    }

    /// The owner as numbers of user and group; none if none is given. The error tells what is wrong with it.
    pub fn parse_owner(&self) -> Result<Option<(u32, u32)>, String> {
        let Some(text) = &self.owner else { return Ok(None) };
        let pair =
            text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
        let wrong = || {
            format!("owner {text:?} is not \"uid:gid\" in numbers: a host's names are not the containers'")
        };
        pair.map(Some).ok_or_else(wrong)
    }
}

/// What a rollback may do to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumePolicy {
    /// Kept per release; a rollback may restore it (databases).
    Snapshot,
    /// Never rolled back (keys, user data).
    Keep,
    /// May be lost at any time (queues, caches).
    Disposable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_owners_are_numbers() {
        let volume = |owner: Option<&str>, mode: Option<&str>| Volume {
            policy: VolumePolicy::Keep,
            owner: owner.map(str::to_owned),
            mode: mode.map(str::to_owned),
        };
        assert_eq!(volume(None, None).parse_mode(), Ok(0o755));
        assert_eq!(volume(None, Some("0750")).parse_mode(), Ok(0o750));
        assert_eq!(volume(Some("7:8"), None).parse_owner(), Ok(Some((7, 8))));
        for wrong in ["rwx", "0999", "17777777", "99999"] {
            assert!(volume(None, Some(wrong)).parse_mode().is_err(), "{wrong}");
        }
        for wrong in ["nobody:nogroup", "7", ":", "7:"] {
            assert!(volume(Some(wrong), None).parse_owner().is_err(), "{wrong}");
        }
    }
}
