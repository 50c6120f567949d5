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

fn observe_uses(src: &Path) -> Rooms {
    let mut used = Rooms::new();
    for entry in walkdir::WalkDir::new(src).into_iter().map(Result::unwrap) {
        let inside = entry.path().strip_prefix(src).unwrap();
        let room = inside.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        let Some(room) = room.filter(|_| inside.components().count() > 1 && entry.file_type().is_file())
        else {
            continue;
        };
        if entry.path().extension().is_none_or(|end| end != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(entry.path()).unwrap();
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
