//! Input files as trees that remember lines.
//!
//! 1. A text becomes documents of nodes (YAML, and JSON as its subset); 2. every leaf is entered into the ledger with its
//!    file, line and field; 3. a template that nobody rendered is told from a definition, because importing half of it
//!    would give something else than what runs.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::Value;

use super::report::Ledger;
use crate::model::place::{InputError, Place};

/// One value of an input file.
#[derive(Debug, Clone)]
pub struct Node {
    /// Line of the value, from 1.
    pub line: usize,
    /// What it is.
    pub kind: Kind,
    /// Number of its leaf in the ledger; `None` inside of branches and before it is entered.
    pub leaf: Option<usize>,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A scalar and how it is written.
    Scalar(String, Style),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys in their order.
    Mapping(Vec<(String, Node)>),
}

/// How a scalar is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Without quotes: may be a number, a truth value or nothing.
    Plain,
    /// In quotes.
    Quoted,
    /// A block of text.
    Block,
}

/// One document of a file.
#[derive(Debug, Clone)]
pub struct Document {
    /// The file as it was named.
    pub file: String,
    /// Its content.
    pub root: Node,
}

impl Node {
    /// A node that no file holds.
    pub fn made(text: &str, line: usize) -> Self {
        Self { line, kind: Kind::Scalar(text.to_owned(), Style::Quoted), leaf: None }
    }

    /// The value below `key`.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    /// The value at the end of a path of keys.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// Keys and values; none unless it is a mapping.
    pub fn entries(&self) -> &[(String, Self)] {
        if let Kind::Mapping(entries) = &self.kind { entries } else { &[] }
    }

    /// Items; none unless it is a list.
    pub fn items(&self) -> &[Self] {
        if let Kind::Sequence(items) = &self.kind { items } else { &[] }
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        if let Kind::Scalar(text, _) = &self.kind { Some(text) } else { None }
    }

    /// The text below `key`, empty where there is none.
    pub fn text_of(&self, key: &str) -> &str {
        self.get(key).and_then(Self::text).unwrap_or_default()
    }

    /// True when it is the truth value `true`.
    pub fn is_true(&self) -> bool {
        self.value() == Value::Bool(true)
    }

    /// The same as untyped JSON.
    pub fn value(&self) -> Value {
        match &self.kind {
            Kind::Sequence(items) => items.iter().map(Self::value).collect(),
            Kind::Mapping(entries) => entries
                .iter()
                .map(|(key, node)| (key.clone(), node.value()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            Kind::Scalar(text, Style::Plain) => plain(text),
            Kind::Scalar(text, _) => Value::String(text.clone()),
        }
    }

    /// A scalar as text (numbers and truth values as they are written), or the words of a list.
    pub fn words(&self) -> Vec<String> {
        match &self.kind {
            Kind::Sequence(items) => items.iter().filter_map(Self::text).map(str::to_owned).collect(),
            Kind::Scalar(text, _) => split_words(text),
            Kind::Mapping(_) => Vec::new(),
        }
    }

    /// Calls `visit` for every scalar and every empty branch, with its field.
    pub fn leaves(&self, field: &str, visit: &mut dyn FnMut(&Self, &str)) {
        match &self.kind {
            Kind::Sequence(items) if !items.is_empty() => {
                for (number, item) in items.iter().enumerate() {
                    item.leaves(&format!("{field}[{number}]"), visit);
                }
            }
            Kind::Mapping(entries) if !entries.is_empty() => {
                for (key, node) in entries {
                    node.leaves(&join(field, key), visit);
                }
            }
            _ => visit(self, field),
        }
    }

    fn enter(&mut self, file: &str, field: &str, ledger: &Ledger) {
        match &mut self.kind {
            Kind::Sequence(items) if !items.is_empty() => {
                for (number, item) in items.iter_mut().enumerate() {
                    item.enter(file, &format!("{field}[{number}]"), ledger);
                }
            }
            Kind::Mapping(entries) if !entries.is_empty() => {
                for (key, node) in entries {
                    node.enter(file, &join(field, key), ledger);
                }
            }
            _ => self.leaf = Some(ledger.enter(file, self.line, field)),
        }
    }
}

/// The field below another: keys with a dot of their own stand in brackets.
pub fn join(field: &str, key: &str) -> String {
    match (field.is_empty(), key.contains(['.', '/'])) {
        (true, false) => key.to_owned(),
        (_, true) => format!("{field}[{key}]"),
        (false, false) => format!("{field}.{key}"),
    }
}

/// What an unquoted scalar means, by the rules that Kubernetes' own reader follows.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => {
            let number = || text.parse::<i64>().ok().filter(|_| !text.starts_with('+')).map(Value::from);
            octal(text)
                .or_else(number)
                .or_else(|| float(text))
                .unwrap_or_else(|| Value::String(text.to_owned()))
        }
    }
}

/// Kubernetes and Compose read `0644` as YAML 1.1 does, and `0o644` as YAML 1.2 does: both are modes.
fn octal(text: &str) -> Option<Value> {
    let digits =
        text.strip_prefix("0o").or_else(|| text.strip_prefix('0').filter(|rest| !rest.is_empty()))?;
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| i64::from_str_radix(digits, 8).ok())?
        .map(Value::from)
}

fn float(text: &str) -> Option<Value> {
    let numeric =
        text.contains('.') && text.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let number = numeric.then(|| text.parse::<f64>().ok()).flatten()?;
    serde_json::Number::from_f64(number).map(Value::Number)
}

/// Splits a command line as a shell would, quotes and backslashes understood, nothing expanded.
pub fn split_words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut open) = (Vec::new(), String::new(), None, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(end), _) if letter == end => quote = None,
            (Some('\''), _) => word.push(letter),
            (_, '\\') => word.extend(letters.next()),
            (Some(_), _) => word.push(letter),
            (None, '\'' | '"') => (quote, open) = (Some(letter), true),
            (None, _) if letter.is_whitespace() => {
                if open || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            (None, _) => word.push(letter),
        }
    }
    if open || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Parses the documents of `text` and enters their leaves into `ledger`.
///
/// # Errors
/// An [`InputError`] with the line where the text is not YAML, or where a template begins that was not rendered.
pub fn parse_documents(file: &str, text: &str, ledger: &Ledger) -> Result<Vec<Document>, InputError> {
    let mut roots = Builder::read(text).map_err(|(line, why)| match template_line(text) {
        Some((line, marker)) => template(file, line, marker),
        None => error(file, line, why),
    })?;
    for root in &roots {
        if let Some((line, marker)) = find_template(root, "") {
            return Err(template(file, line, marker));
        }
    }
    for root in &mut roots {
        root.enter(file, "", ledger);
    }
    Ok(roots.into_iter().map(|root| Document { file: file.to_owned(), root }).collect())
}

fn error(file: &str, line: usize, message: impl Into<String>) -> InputError {
    InputError { place: Place { file: file.to_owned(), position: Some((line, 1)) }, message: message.into() }
}

/// The refusal of a template, with the command that renders it.
pub fn template(file: &str, line: usize, marker: &str) -> InputError {
    let command = if marker == "{%" || marker == "{#" || file.ends_with(".j2") {
        "`kolla-ansible genconfig` or `ansible -m template` renders it (import the result, such as /etc/kolla)"
    } else {
        "`helm template NAME CHART --values VALUES > rendered.yaml` renders a chart; `kolla-ansible genconfig` a Jinja template"
    };
    error(file, line, format!("a template that is not rendered ({marker}): {command}"))
}

const MARKERS: [&str; 3] = ["{{", "{%", "{#"];

fn template_line(text: &str) -> Option<(usize, &'static str)> {
    text.lines().enumerate().find_map(|(number, line)| {
        let code = line.split(" #").next().unwrap_or_default();
        MARKERS.into_iter().find(|marker| code.contains(marker)).map(|marker| (number + 1, marker))
    })
}

/// Content of files and scripts may hold braces of its own; names, numbers and images may not.
fn find_template(node: &Node, key: &str) -> Option<(usize, &'static str)> {
    if ["data", "stringData", "binaryData", "command", "args", "annotations", "content"].contains(&key) {
        return None;
    }
    match &node.kind {
        Kind::Scalar(_, Style::Block) => None,
        Kind::Scalar(text, _) => {
            MARKERS[..2].iter().find(|marker| text.contains(**marker)).map(|marker| (node.line, *marker))
        }
        Kind::Sequence(items) => items.iter().find_map(|item| find_template(item, key)),
        Kind::Mapping(entries) => entries.iter().find_map(|(key, node)| {
            if key.starts_with("{{") { Some((node.line, "{{")) } else { find_template(node, key) }
        }),
    }
}

struct Builder {
    open: Vec<(Node, Option<String>, usize)>,
    anchors: std::collections::BTreeMap<usize, Node>,
    roots: Vec<Node>,
}

impl Builder {
    fn read(text: &str) -> Result<Vec<Node>, (usize, String)> {
        let mut builder = Self { open: Vec::new(), anchors: Default::default(), roots: Vec::new() };
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| (error.marker().line(), error.info().to_owned()))?;
            let line = span.start.line();
            builder.take(event, line).map_err(|why| (line, why))?;
        }
        builder
            .roots
            .retain(|root| !matches!(&root.kind, Kind::Scalar(text, Style::Plain) if plain(text).is_null()));
        Ok(builder.roots)
    }

    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), String> {
        let node = |kind| Node { line, kind, leaf: None };
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                    _ => Style::Quoted,
                };
                // The reader counts a block from its first line of text; people count from its key.
                let line = if style == Style::Block { line.saturating_sub(1).max(1) } else { line };
                let kind = Kind::Scalar(text.into_owned(), style);
                self.close(Node { line, kind, leaf: None }, anchor)
            }
            Event::SequenceStart(anchor, _) => {
                self.open.push((node(Kind::Sequence(Vec::new())), None, anchor));
                Ok(())
            }
            Event::MappingStart(anchor, _) => {
                self.open.push((node(Kind::Mapping(Vec::new())), None, anchor));
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((node, _, anchor)) => self.close(node, anchor),
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned().ok_or("an alias of nothing")?;
                self.close(node, 0)
            }
            _ => Ok(()),
        }
    }

    fn close(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some((parent, key, _)) = self.open.last_mut() else {
            self.roots.push(node);
            return Ok(());
        };
        match &mut parent.kind {
            Kind::Sequence(items) => items.push(node),
            Kind::Mapping(entries) => match key.take() {
                None => {
                    *key = Some(
                        node.text()
                            .ok_or("a key that is no text (a template that is not rendered?)")?
                            .to_owned(),
                    );
                }
                Some(name) if name == "<<" => merge(entries, node),
                Some(name) => {
                    // A key of its own takes the place of a merged one, which came earlier.
                    entries.retain(|(other, _)| *other != name);
                    entries.push((name, node));
                }
            },
            Kind::Scalar(..) => {}
        }
        Ok(())
    }
}

fn merge(entries: &mut Vec<(String, Node)>, node: Node) {
    let sources = match node.kind {
        Kind::Sequence(items) => items,
        _ => vec![node],
    };
    for source in sources {
        if let Kind::Mapping(more) = source.kind {
            for (key, value) in more {
                if !entries.iter().any(|(name, _)| *name == key) {
                    entries.push((key, value));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_aliases_and_merges() {
        let ledger = Ledger::default();
        let text = "a: &x {b: 1, c: '2'}\n---\nlist:\n  - <<: {d: e}\n    f: |\n      {{ text }}\n";
        let documents = parse_documents("f.yaml", text, &ledger).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].root.value(), serde_json::json!({"a": {"b": 1, "c": "2"}}));
        assert_eq!(documents[1].root.value(), serde_json::json!({"list": [{"d": "e", "f": "{{ text }}\n"}]}));
        assert_eq!(documents[1].root.get("list").unwrap().items()[0].get("f").unwrap().line, 5);
    }

    #[test]
    fn templates_name_their_line() {
        for (text, expected) in [
            (
                "a: 1\nimage: {{ .Values.image }}\n",
                "t.yaml:2:1: a template that is not rendered ({{): `helm template",
            ),
            ("a: \"{{ port }}\"\n", "t.yaml:1:1: a template"),
            (
                "{% if x %}\na: 1\n",
                "t.yaml:1:1: a template that is not rendered ({%): `kolla-ansible genconfig`",
            ),
            ("a: [\n", "t.yaml:"),
        ] {
            let told = parse_documents("t.yaml", text, &Ledger::default()).unwrap_err().to_string();
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn words_as_a_shell_splits_them() {
        assert_eq!(split_words(r#"sh -c "a 'b'" c\ d ''"#), ["sh", "-c", "a 'b'", "c d", ""]);
    }
}
