//! References in configuration files: `${secret:NAME}`, `${host:name}`, `${host:address}`.
//!
//! One reader for compose, which checks that each can be filled in, and for a host, which fills them in. Every other `${…}`
//! belongs to the service.

use std::collections::BTreeSet;
use std::path::Path;

use super::pod::error_at;
use super::read::read_bytes;
use crate::model::place::InputError;

/// What a host can say of itself.
pub const HOST_NAMES: [&str; 2] = ["name", "address"];

/// A part of a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// Kept as written.
    Text(&'a str),
    /// To be replaced.
    Reference {
        /// `secret` or `host`.
        kind: &'a str,
        /// Which one.
        name: &'a str,
        /// As written, from `${` to `}`.
        written: &'a str,
        /// Line, from one.
        line: usize,
    },
}

/// Takes a file apart; all parts together, as written, are the file.
pub fn parts(text: &str) -> Vec<Part<'_>> {
    let mut found = Vec::new();
    let (mut kept, mut at) = (0, 0);
    while let Some(start) = text[at..].find("${").map(|start| at + start) {
        at = start + 2;
        let inner = text[at..].split_once('}').map(|(inner, _)| inner);
        let Some(inner) = inner else { continue };
        if let Some((kind @ ("secret" | "host"), name)) = inner.split_once(':') {
            let line = text[..start].matches('\n').count() + 1;
            found.push(Part::Text(&text[kept..start]));
            at += inner.len() + 1;
            found.push(Part::Reference { kind, name, written: &text[start..at], line });
            kept = at;
        }
    }
    found.push(Part::Text(&text[kept..]));
    found
}

/// Checks a directory of configuration: files and directories alone, and every reference one that a host can fill in.
pub fn check(directory: &Path, secrets: &BTreeSet<&str>) -> Result<(), InputError> {
    for entry in walkdir::WalkDir::new(directory).sort_by_file_name() {
        let failed = |path: &Path, error: String| {
            InputError::of_file(&path.display().to_string(), format!("cannot be read: {error}"))
        };
        let entry = entry.map_err(|error| failed(error.path().unwrap_or(directory), error.to_string()))?;
        let (path, kind) = (entry.path(), entry.file_type());
        if kind.is_dir() {
            continue;
        }
        let file = path.display().to_string();
        if !kind.is_file() {
            let message =
                "neither a file nor a directory: configuration is copied file by file, so put the file here";
            return Err(InputError::of_file(&file, message));
        }
        let bytes = read_bytes(path).map_err(|error| failed(path, error.to_string()))?;
        // A file that is no text is copied as it is.
        check_text(std::str::from_utf8(&bytes).unwrap_or_default(), &file, secrets)?;
    }
    Ok(())
}

fn check_text(text: &str, file: &str, secrets: &BTreeSet<&str>) -> Result<(), InputError> {
    for part in parts(text) {
        let Part::Reference { kind, name, written, line } = part else { continue };
        let message = match kind {
            "secret" if !secrets.contains(name) => {
                let declared = secrets.iter().copied().collect::<Vec<_>>().join(", ");
                format!("{written}: no service of the release declares this secret ({declared})")
            }
            "host" if !HOST_NAMES.contains(&name) => {
                format!("{written}: a host knows its {}", HOST_NAMES.join(" and its "))
            }
            _ => continue,
        };
        return Err(error_at(file, line, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_put_together_are_the_file() {
        let references = |text: &str| {
            let parts = parts(text);
            let mut whole = String::new();
            let mut found = Vec::new();
            for part in parts {
                match part {
                    Part::Text(text) => whole.push_str(text),
                    Part::Reference { kind, name, written, line } => {
                        whole.push_str(written);
                        found.push(format!("{line} {kind} {name}"));
                    }
                }
            }
            assert_eq!(whole, text);
            found
        };
        for (text, expected) in [
            ("", vec![]),
            ("a\n${secret:db}${host:name}", vec!["2 secret db", "2 host name"]),
            ("${HOME} ${x:-y} ${ {", vec![]),
            ("${unclosed ${host:name}", vec!["1 host name"]),
            ("ü ${host:} ü", vec!["1 host "]),
        ] {
            assert_eq!(references(text), expected, "{text}");
        }
    }

    #[test]
    fn unknown_references_and_links_are_told_by_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let told = |content: &str| {
            std::fs::write(dir.path().join("web.conf"), content).unwrap();
            let secrets = BTreeSet::from(["db-password"]);
            let prefix = format!("{}/", dir.path().display());
            check(dir.path(), &secrets).map_err(|error| error.to_string().replace(&prefix, ""))
        };
        assert_eq!(told("a = ${secret:db-password}\nb = ${host:address} ${other}\n"), Ok(()));
        let error = told("a = ${secret:db_password}\n").unwrap_err();
        assert!(error.starts_with("web.conf:1:1: ${secret:db_password}: no service"), "{error}");
        let error = told("a\nbind = ${host:adress}\n").unwrap_err();
        assert_eq!(error, "web.conf:2:1: ${host:adress}: a host knows its name and its address");
        std::fs::write(dir.path().join("web.conf"), "").unwrap();
        std::os::unix::fs::symlink("web.conf", dir.path().join("link.conf")).unwrap();
        let error = check(dir.path(), &BTreeSet::new()).unwrap_err().to_string();
        assert!(error.contains("link.conf: neither a file nor a directory"), "{error}");
    }
}
