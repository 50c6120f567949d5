//! The rooms of the code use one another in one direction only.
//!
//! The table in docs/architecture.md is the rule: a row names a room and the rooms that it may use.
//! The test reads every path `crate::<room>` in src/ and holds it against the table, both ways: a
//! path that the table does not allow fails, and so does a permission that nothing uses.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

type Rooms = BTreeMap<String, BTreeSet<String>>;

#[test]
fn rooms_use_only_what_the_table_allows() {
    let table = parse_table(&std::fs::read_to_string(checkout().join("docs/architecture.md")).unwrap());
    let used = observe_uses(&checkout().join("src"));
    assert!(used.len() > 5, "the test found the code: {used:?}");
    let of = |rooms: &Rooms, room: &str| rooms.get(room).cloned().unwrap_or_default();
    let mut faults = Vec::new();
    for (room, uses) in &used {
        for other in uses.difference(&of(&table, room)) {
            faults.push(format!("{room} uses {other}, and the table does not allow it"));
        }
    }
    for (room, allowed) in &table {
        for other in allowed.difference(&of(&used, room)) {
            faults.push(format!("the table allows {room} to use {other}, and nothing does"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_table_has_no_circle() {
    let table = parse_table(&std::fs::read_to_string(checkout().join("docs/architecture.md")).unwrap());
    let mut placed: BTreeSet<&String> = BTreeSet::new();
    while placed.len() < table.len() {
        let next: Vec<_> = table
            .iter()
            .filter(|(room, uses)| !placed.contains(room) && uses.iter().all(|other| placed.contains(other)))
            .map(|(room, _)| room)
            .collect();
        assert!(!next.is_empty(), "a circle, or an unknown room, among {:?}", table.keys());
        placed.extend(next);
    }
}

/// Crates that wait for their code: failpoints.
const WAITS: [&str; 1] = ["fail"];

/// `use tokio_util::…`, `tokio_util::io::…`: a crate that no code names is compiled for nothing.
#[test]
fn every_dependency_is_named_by_code() {
    let manifest = std::fs::read_to_string(checkout().join("Cargo.toml")).unwrap();
    let named_in = |folders: &[&str]| -> String {
        let files = folders.iter().flat_map(|folder| sources(&checkout().join(folder)));
        files.map(|file| std::fs::read_to_string(file).unwrap()).collect()
    };
    let sections = [("dependencies", &["src"][..]), ("dev-dependencies", &["src", "tests", "benches"])];
    for (section, folders) in sections {
        let table = manifest.split("\n[").find(|part| part.starts_with(&format!("{section}]"))).unwrap();
        let crates = table.lines().filter_map(|line| Some(line.split_once(" = ")?.0));
        let crates: Vec<&str> =
            crates.filter(|name| !name.starts_with('#') && !WAITS.contains(name)).collect();
        assert!(!crates.is_empty(), "[{section}] has lines");
        let code = named_in(folders);
        let is_named = |name: &str| {
            let path = format!("{}::", name.replace('-', "_"));
            let starts = |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
            code.match_indices(&path).any(|(at, _)| starts(at))
        };
        let unused: Vec<&str> = crates.into_iter().filter(|name| !is_named(name)).collect();
        assert!(unused.is_empty(), "[{section}] has crates that {folders:?} do not name: {unused:?}");
    }
}

/// Where the checkout is: asked when the test runs, for checkouts may share compiled tests.
fn checkout() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap().into()
}

/// Rows `| \`room\` | may use | … |` below the heading "Rooms".
fn parse_table(text: &str) -> Rooms {
    let section = text.split("\n## ").find(|section| section.starts_with("Rooms")).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let uses = cells[2].split(", ").filter(|cell| *cell != "nothing");
        (cells[1].trim_matches('`').to_owned(), uses.map(|room| room.trim_matches('`').to_owned()).collect())
    })
    .collect()
}

/// Rust files below `folder`.
fn sources(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap);
    entries.map(walkdir::DirEntry::into_path).filter(|path| path.extension().is_some_and(|end| end == "rs"))
}

fn observe_uses(src: &Path) -> Rooms {
    let mut used = Rooms::new();
    for path in sources(src) {
        let inside = path.strip_prefix(src).unwrap();
        let room = inside.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        let Some(room) = room.filter(|_| inside.components().count() > 1) else { continue };
        let text = std::fs::read_to_string(&path).unwrap();
        let others = used.entry(room.clone()).or_default();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let named = line.split("crate::").skip(1).map(|rest| {
                rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
            });
            others.extend(named.filter(|name| *name != room && src.join(name).is_dir()));
        }
    }
    used
}
