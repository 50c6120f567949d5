//! What changes for a host between two releases.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::Digest;

/// What a release says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Kernel arguments, in their order.
    pub kernel_arguments: Vec<String>,
    /// Distribution packages of the host tree: name → version.
    pub packages: BTreeMap<String, String>,
    /// Names of its services.
    pub services: Vec<String>,
    /// Container images: name in pods → Id.
    pub images: BTreeMap<String, Digest>,
    /// Pods: file → its object.
    pub pods: BTreeMap<String, Digest>,
    /// Everything else that is the release's own, such as configuration and phases: path → object.
    pub files: BTreeMap<String, Digest>,
}

/// Something with a name that is not the same in both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// Its name.
    pub name: String,
    /// What it was; nothing: it is new.
    pub before: Option<String>,
    /// What it becomes; nothing: it goes.
    pub after: Option<String>,
}

/// What is not the same in both releases. Every list is sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// The kernel release, at most once.
    pub kernel: Vec<Changed>,
    /// Kernel arguments that come or go; an order that changes counts as nothing.
    pub kernel_arguments: Vec<Changed>,
    /// Packages of the host tree.
    pub packages: Vec<Changed>,
    /// Services that come or go.
    pub services: Vec<Changed>,
    /// Container images by their Id.
    pub images: Vec<Changed>,
    /// Pods by the digest of their file.
    pub pods: Vec<Changed>,
    /// The release's other own files by their digest.
    pub files: Vec<Changed>,
}

/// Compares two releases.
pub fn changes(before: &Facts, after: &Facts) -> Changes {
    let kernel = |facts: &Facts| BTreeMap::from([("kernel".to_owned(), facts.kernel.clone())]);
    let set = |names: &[String]| names.iter().map(|name| (name.clone(), name.clone())).collect();
    Changes {
        kernel: changed(&kernel(before), &kernel(after)),
        kernel_arguments: changed(&set(&before.kernel_arguments), &set(&after.kernel_arguments)),
        packages: changed(&before.packages, &after.packages),
        services: changed(&set(&before.services), &set(&after.services)),
        images: changed(&before.images, &after.images),
        pods: changed(&before.pods, &after.pods),
        files: changed(&before.files, &after.files),
    }
}

fn changed<V: PartialEq + ToString>(
    before: &BTreeMap<String, V>,
    after: &BTreeMap<String, V>,
) -> Vec<Changed> {
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differ = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    let text = |side: &BTreeMap<String, V>, name: &str| side.get(name).map(ToString::to_string);
    differ
        .map(|name| Changed { name: name.clone(), before: text(before, name), after: text(after, name) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kernel: &str, packages: &[(&str, &str)], arguments: &[&str]) -> Facts {
        let owned = |text: &&str| (*text).to_owned();
        Facts {
            kernel: kernel.to_owned(),
            kernel_arguments: arguments.iter().map(owned).collect(),
            packages: packages
                .iter()
                .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
                .collect(),
            ..Facts::default()
        }
    }

    #[test]
    fn what_comes_goes_and_changes() {
        let before = facts("6.1", &[("a", "1"), ("b", "1"), ("c", "1")], &["quiet", "rw"]);
        let after = facts("6.2", &[("b", "2"), ("c", "1"), ("d", "1")], &["rw", "debug"]);
        let changes = changes(&before, &after);
        let told = |list: &[Changed]| {
            let side = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            list.iter()
                .map(|one| format!("{} {} {}", one.name, side(&one.before), side(&one.after)))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(&changes.kernel), ["kernel 6.1 6.2"]);
        assert_eq!(told(&changes.packages), ["a 1 -", "b 1 2", "d - 1"]);
        assert_eq!(told(&changes.kernel_arguments), ["debug - debug", "quiet quiet -"]);
    }

    #[test]
    fn the_same_release_changes_nothing() {
        let facts = facts("6.1", &[("a", "1")], &["rw", "quiet"]);
        assert_eq!(changes(&facts, &facts), Changes::default());
        let other_order = Facts { kernel_arguments: vec!["quiet".into(), "rw".into()], ..facts.clone() };
        assert_eq!(changes(&facts, &other_order), Changes::default());
    }
}
