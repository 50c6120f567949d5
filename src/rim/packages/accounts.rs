//! Gives the system's users and groups the ids that the treefile fixes.
//!
//! Packages take the next free id when they are configured, so that another set of packages gives other ids. But /var
//! outlives a release: what `systemd-network` wrote under one release must not belong to `messagebus` in the next.
//!
//! 1. every id of the dynamic range must be in the treefile; 2. what has another id gets the fixed one, in the account
//!    files and on every file of the tree.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use walkdir::WalkDir;

use super::{PackageError, at};

/// Bump when [`fix`] gives other results.
pub const ACCOUNTS_VERSION: u32 = 1;

/// Ids that adduser and systemd-sysusers give to the system's accounts (Debian Policy 9.2.2); those below are fixed by
/// Debian itself.
pub const DYNAMIC: std::ops::RangeInclusive<u32> = 100..=999;

const CAPABILITY: &str = "security.capability";

/// Ids that outlive a release, by name; where both are empty nothing is fixed.
#[derive(Debug, Clone, Copy)]
pub struct FixedIds<'a> {
    /// Users.
    pub users: &'a BTreeMap<String, u32>,
    /// Groups.
    pub groups: &'a BTreeMap<String, u32>,
}

/// Makes the tree's accounts have the fixed ids.
pub fn fix(root: &Path, fixed: FixedIds<'_>) -> Result<(), PackageError> {
    if fixed.users.is_empty() && fixed.groups.is_empty() {
        return Ok(());
    }
    let users = Table::read(root, "etc/passwd", "user")?;
    let groups = Table::read(root, "etc/group", "group")?;
    let new_users = users.changes(fixed.users)?;
    let new_groups = groups.changes(fixed.groups)?;
    if new_users.is_empty() && new_groups.is_empty() {
        return Ok(());
    }
    // Column 3 of both files is the account's own id; column 4 of passwd the user's first group.
    users.rewrite(root, &[(2, &new_users), (3, &new_groups)])?;
    groups.rewrite(root, &[(2, &new_groups)])?;
    rewrite_owners(root, &new_users, &new_groups)
}

/// An account file: lines of columns between colons.
struct Table {
    file: &'static str,
    kind: &'static str,
    rows: Vec<Vec<String>>,
}

type Changes = BTreeMap<u32, u32>;

impl Table {
    fn read(root: &Path, file: &'static str, kind: &'static str) -> Result<Self, PackageError> {
        let path = root.join(file);
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        let rows = text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect();
        Ok(Self { file, kind, rows })
    }

    /// Which ids become which; every account of the dynamic range must be fixed, and to an id of its own.
    fn changes(&self, fixed: &BTreeMap<String, u32>) -> Result<Changes, PackageError> {
        let mut changes = Changes::new();
        let mut owner_of: BTreeMap<u32, &str> = BTreeMap::new();
        for row in &self.rows {
            let (Some(name), Some(Ok(id))) = (row.first(), row.get(2).map(|id| id.parse::<u32>())) else {
                continue;
            };
            let wanted = match fixed.get(name) {
                Some(wanted) => *wanted,
                None if DYNAMIC.contains(&id) => {
                    return Err(PackageError::UnfixedId { kind: self.kind, name: name.clone(), id });
                }
                None => id,
            };
            if let Some(other) = owner_of.insert(wanted, name) {
                let names = [other.to_owned(), name.clone()];
                return Err(PackageError::SharedId { kind: self.kind, names, id: wanted });
            }
            if wanted != id {
                changes.insert(id, wanted);
            }
        }
        Ok(changes)
    }

    fn rewrite(&self, root: &Path, columns: &[(usize, &Changes)]) -> Result<(), PackageError> {
        let mut text = String::new();
        for row in &self.rows {
            let mut row = row.clone();
            for (column, changes) in columns {
                let Some(field) = row.get_mut(*column) else { continue };
                if let Some(new) = field.parse().ok().and_then(|id: u32| changes.get(&id)) {
                    *field = new.to_string();
                }
            }
            text.push_str(&row.join(":"));
            text.push('\n');
        }
        let path = root.join(self.file);
        fs::write(&path, text).map_err(at(&path))
    }
}

fn rewrite_owners(root: &Path, users: &Changes, groups: &Changes) -> Result<(), PackageError> {
    for entry in WalkDir::new(root).follow_links(false).same_file_system(true) {
        let entry = entry?;
        let path = entry.path();
        let stat = fs::symlink_metadata(path).map_err(at(path))?;
        let (user, group) = (users.get(&stat.uid()).copied(), groups.get(&stat.gid()).copied());
        if user.is_none() && group.is_none() {
            continue;
        }
        // The kernel takes these away when an owner changes.
        let capability = xattr::get(path, CAPABILITY).unwrap_or_default();
        lchown(path, user, group).map_err(at(path))?;
        if !stat.is_symlink() {
            fs::set_permissions(path, Permissions::from_mode(stat.mode() & 0o7777)).map_err(at(path))?;
        }
        if let Some(value) = capability {
            xattr::set(path, CAPABILITY, &value).map_err(at(path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(passwd: &str, group: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        fs::write(dir.path().join("etc/group"), group).unwrap();
        dir
    }

    fn ids(list: &[(&str, u32)]) -> BTreeMap<String, u32> {
        list.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect()
    }

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nnet:x:998:998::/:/sbin/no\nbus:x:997:996::/:/sbin/no\n";
    const GROUP: &str = "root:x:0:\nnet:x:998:\nbus:x:996:\n";

    /// Swapped ids are the hard case: a one-by-one renumbering would make two accounts one.
    #[test]
    fn accounts_and_their_files_get_the_fixed_ids() {
        let dir = tree(PASSWD, GROUP);
        let root = dir.path();
        for (name, user, group) in [("of-net", 998, 998), ("of-bus", 997, 996), ("of-root", 0, 0)] {
            fs::write(root.join(name), name).unwrap();
            if lchown(root.join(name), Some(user), Some(group)).is_err() {
                return; // without root there are no owners to speak of
            }
            fs::set_permissions(root.join(name), Permissions::from_mode(0o4750)).unwrap();
        }
        let (users, groups) =
            (ids(&[("net", 997), ("bus", 998)]), ids(&[("net", 300), ("bus", 998), ("gone", 301)]));
        fix(root, FixedIds { users: &users, groups: &groups }).unwrap();
        let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
        assert_eq!(
            read("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nnet:x:997:300::/:/sbin/no\nbus:x:998:998::/:/sbin/no\n"
        );
        assert_eq!(read("etc/group"), "root:x:0:\nnet:x:300:\nbus:x:998:\n");
        for (name, user, group) in [("of-net", 997, 300), ("of-bus", 998, 998), ("of-root", 0, 0)] {
            let stat = fs::metadata(root.join(name)).unwrap();
            assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (user, group, 0o4750), "{name}");
        }
    }

    #[test]
    fn an_account_that_nothing_fixes_is_told() {
        let dir = tree(PASSWD, GROUP);
        let groups = ids(&[("net", 998), ("bus", 996)]);
        for (users, told) in [
            (ids(&[("net", 998)]), "user bus has the id 997, which the treefile does not fix"),
            (ids(&[("net", 998), ("bus", 998)]), "users net and bus would both have the id 998"),
        ] {
            let error = fix(dir.path(), FixedIds { users: &users, groups: &groups }).unwrap_err();
            assert!(error.to_string().starts_with(told), "{error}");
        }
        assert_eq!(fs::read_to_string(dir.path().join("etc/passwd")).unwrap(), PASSWD);
        fix(dir.path(), FixedIds { users: &BTreeMap::new(), groups: &BTreeMap::new() }).unwrap();
    }
}
