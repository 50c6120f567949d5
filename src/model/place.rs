//! Where in which file something stands.
//!
//! The YAML reader forgets the place of a value once it is read, so a value that turns out wrong later
//! (a package that no archive has) is looked up again in the text, below its key.

use std::fmt;

/// A place in a file that a person wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named.
    pub file: String,
    /// Line and column, from 1; none when the whole file is meant.
    pub position: Option<(usize, usize)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some((line, column)) => write!(f, "{}:{line}:{column}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// A file that a person wrote is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct InputError {
    /// Where.
    pub place: Place,
    /// What is wrong, naming the thing.
    pub message: String,
}

impl InputError {
    /// An error of the file as a whole.
    pub fn of_file(file: &str, message: impl Into<String>) -> Self {
        Self { place: Place { file: file.to_owned(), position: None }, message: message.into() }
    }
}

/// Everything that is wrong with the files that a person wrote, one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputErrors(pub Vec<InputError>);

impl fmt::Display for InputErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for InputErrors {}

/// A file's text, kept for telling places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// The file as it was named.
    pub file: String,
    /// Its text.
    pub text: String,
}

impl SourceText {
    /// Keeps `text` under the name `file`.
    pub fn new(file: impl Into<String>, text: impl Into<String>) -> Self {
        Self { file: file.into(), text: text.into() }
    }

    /// Reads the text as YAML into `T`.
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, InputError> {
        serde_yaml_ng::from_str(&self.text).map_err(|error| {
            let position = error.location().map(|at| (at.line(), at.column()));
            let told = error.to_string();
            // The reader puts the place at the end of its sentence; ours stands in front.
            let message = told.split(" at line ").next().unwrap_or(&told).to_owned();
            InputError { place: Place { file: self.file.clone(), position }, message }
        })
    }

    /// Where `value` stands below the top-level key `key`; the key itself, or the file, if it cannot be found.
    pub fn place(&self, key: &str, value: &str) -> Place {
        let key_line = self.text.lines().position(|line| top_level_key(line) == Some(key));
        let position = key_line.map(|start| {
            let section = self.text.lines().enumerate().skip(start);
            let mut section = section.take_while(|(number, line)| *number == start || !ends_section(line));
            section
                .find_map(|(number, line)| {
                    let from = if number == start { key.len() + 1 } else { 0 };
                    find_token(line, from, value).map(|column| (number + 1, column + 1))
                })
                .unwrap_or((start + 1, 1))
        });
        Place { file: self.file.clone(), position }
    }

    /// True when `value` stands below the top-level key `key`.
    pub fn mentions(&self, key: &str, value: &str) -> bool {
        let fallback = self.place(key, "\0");
        self.place(key, value) != fallback
    }

    /// An error about `value` below the top-level key `key`.
    pub fn error(&self, key: &str, value: &str, message: impl Into<String>) -> InputError {
        InputError { place: self.place(key, value), message: message.into() }
    }
}

fn top_level_key(line: &str) -> Option<&str> {
    let (key, _) = line.split_once(':')?;
    (!key.is_empty() && !key.starts_with([' ', '#', '-'])).then_some(key)
}

/// Sequences may stand unindented below their key, so `- item` goes on.
fn ends_section(line: &str) -> bool {
    !line.is_empty() && !line.starts_with([' ', '#', '-', '\t', ']', '}'])
}

/// Byte column of `value` in `line` as a whole word, comments left out.
fn find_token(line: &str, from: usize, value: &str) -> Option<usize> {
    let code_end = line.find(" #").unwrap_or(line.len());
    let code = line.get(..code_end).filter(|code| !code.trim_start().starts_with('#'))?;
    let is_edge = |c: Option<char>| c.is_none_or(|c| " \t,[]{}\"':".contains(c));
    code.match_indices(value).map(|(at, _)| at).find(|&at| {
        at >= from
            && is_edge(code[..at].chars().next_back())
            && is_edge(code[at + value.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name: host\npackages:\n- vim\n# nano\n- [bash, nano]\n\nfiles: vim\nbinaries:\n  - {name: kubelet, sha256: x}\n";

    #[test]
    fn places() {
        let source = SourceText::new("a.yaml", TEXT);
        let table = [
            ("packages", "vim", "a.yaml:3:3"),
            ("packages", "nano", "a.yaml:5:10"),
            ("packages", "van", "a.yaml:2:1"),
            ("files", "vim", "a.yaml:7:8"),
            ("binaries", "kubelet", "a.yaml:9:12"),
            ("units", "x", "a.yaml"),
        ];
        for (key, value, expected) in table {
            assert_eq!(source.place(key, value).to_string(), expected, "{key} {value}");
        }
        assert!(source.mentions("packages", "nano"));
        assert!(!source.mentions("packages", "kubelet"));
        assert!(!source.mentions("absent", "kubelet"));
    }
}
