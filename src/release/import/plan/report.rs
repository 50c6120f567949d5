//! What became of every field of the input.
//!
//! 1. Each leaf is entered when its file is read; 2. a translation gives it a fate, once; 3. a leaf that nobody gave a
//!    fate is refused. So a field can be forgotten by a translator, but never dropped in silence.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde::Serialize;

use super::tree::Node;

/// The format number of the report.
pub const REPORT_FORMAT: u32 = 1;

/// One field of the input, or one matter of a whole object, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Entry {
    /// The file as it was named.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Kind and name of its object, if it has one.
    pub object: String,
    /// The field within the object.
    pub field: String,
    /// Where it went, or why it did not.
    pub detail: String,
}

/// A secret whose value a person has to bring to the hosts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NamedSecret {
    /// Its name in the definition.
    pub name: String,
    /// Where its value stands now.
    pub from: String,
    /// The file on every host that takes the value, before the first boot of the release.
    pub place: String,
}

/// Everything that became of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// [`REPORT_FORMAT`].
    pub format: u32,
    /// Fields that the definitions hold.
    pub translated: Vec<Entry>,
    /// Fields that a host honours in another way, or not at all without harm.
    pub warned: Vec<Entry>,
    /// Fields that would change behaviour: with any of them nothing is written.
    pub refused: Vec<Entry>,
    /// Secrets by name; values are never read into a definition.
    pub secrets: Vec<NamedSecret>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Translated(String),
    Warned(String),
    Refused(String),
}

#[derive(Debug)]
struct Leaf {
    entry: Entry,
    fate: Option<Fate>,
}

/// The book of all leaves of an import.
#[derive(Debug, Default)]
pub struct Ledger {
    leaves: RefCell<Vec<Leaf>>,
    matters: RefCell<Vec<(Entry, Fate)>>,
    secrets: RefCell<BTreeSet<NamedSecret>>,
    accepted: BTreeSet<String>,
}

impl Ledger {
    /// A ledger that takes refusals of the fields and kinds in `accepted` for warnings.
    pub fn accepting(accepted: &[String]) -> Self {
        Self { accepted: accepted.iter().cloned().collect(), ..Self::default() }
    }

    /// Enters a leaf and gives its number.
    pub fn enter(&self, file: &str, line: usize, field: &str) -> usize {
        let entry = Entry {
            file: file.into(),
            line,
            object: String::new(),
            field: field.into(),
            detail: String::new(),
        };
        let mut leaves = self.leaves.borrow_mut();
        leaves.push(Leaf { entry, fate: None });
        leaves.len() - 1
    }

    /// Names the object that the leaves below `node` belong to; their fields then count from the object.
    pub fn title(&self, node: &Node, object: &str) {
        let mut leaves = self.leaves.borrow_mut();
        node.leaves("", &mut |leaf, field| {
            if let Some(leaf) = leaf.leaf.and_then(|number| leaves.get_mut(number)) {
                leaf.entry.object = object.to_owned();
                leaf.entry.field = field.to_owned();
            }
        });
    }

    /// The leaves below `node` went to `into`.
    pub fn translated(&self, node: &Node, into: impl Into<String>) {
        self.settle(node, &Fate::Translated(into.into()));
    }

    /// The leaves below `node` are honoured otherwise.
    pub fn warned(&self, node: &Node, why: impl Into<String>) {
        self.settle(node, &Fate::Warned(why.into()));
    }

    /// The leaves below `node` would change behaviour.
    pub fn refused(&self, node: &Node, why: impl Into<String>) {
        self.settle(node, &Fate::Refused(why.into()));
    }

    /// True when the leaves below `node` all have a fate.
    pub fn is_settled(&self, node: &Node) -> bool {
        let leaves = self.leaves.borrow();
        let mut settled = true;
        node.leaves("", &mut |leaf, _| {
            settled &= leaf.leaf.and_then(|number| leaves.get(number)).is_none_or(|leaf| leaf.fate.is_some());
        });
        settled
    }

    fn settle(&self, node: &Node, fate: &Fate) {
        let mut leaves = self.leaves.borrow_mut();
        node.leaves("", &mut |leaf, _| {
            if let Some(leaf) = leaf.leaf.and_then(|number| leaves.get_mut(number)) {
                leaf.fate.get_or_insert_with(|| fate.clone());
            }
        });
    }

    /// A warning about a whole object.
    pub fn note(&self, file: &str, line: usize, object: &str, why: impl Into<String>) {
        self.matter(file, line, object, Fate::Warned(why.into()));
    }

    /// A refusal of a whole object: a clash, a circle.
    pub fn problem(&self, file: &str, line: usize, object: &str, why: impl Into<String>) {
        self.matter(file, line, object, Fate::Refused(why.into()));
    }

    fn matter(&self, file: &str, line: usize, object: &str, fate: Fate) {
        let entry = Entry {
            file: file.into(),
            line,
            object: object.into(),
            field: String::new(),
            detail: String::new(),
        };
        let mut matters = self.matters.borrow_mut();
        if !matters.contains(&(entry.clone(), fate.clone())) {
            matters.push((entry, fate));
        }
    }

    /// Names a secret that a person has to bring; gives the reference that configuration holds in its place.
    pub fn secret(&self, name: &str, from: &str) -> String {
        let place = format!("/var/lib/rackstep/secrets/{name}");
        self.secrets.borrow_mut().insert(NamedSecret { name: name.to_owned(), from: from.to_owned(), place });
        format!("${{secret:{name}}}")
    }

    /// Closes the book.
    pub fn report(self) -> Report {
        let mut report = Report {
            format: REPORT_FORMAT,
            translated: Vec::new(),
            warned: Vec::new(),
            refused: Vec::new(),
            secrets: self.secrets.into_inner().into_iter().collect(),
        };
        let forgotten = || Fate::Refused("the import does not know this field".to_owned());
        let leaves = self.leaves.into_inner().into_iter();
        let leaves = leaves.map(|leaf| (leaf.entry, leaf.fate.unwrap_or_else(forgotten)));
        for (mut entry, fate) in leaves.chain(self.matters.into_inner()) {
            let accepted = self.accepted.iter().any(|accepted| covers(accepted, &entry));
            let (list, detail) = match fate {
                Fate::Translated(detail) => (&mut report.translated, detail),
                Fate::Warned(detail) => (&mut report.warned, detail),
                Fate::Refused(detail) if accepted => (&mut report.warned, format!("accepted: {detail}")),
                Fate::Refused(detail) => (&mut report.refused, detail),
            };
            entry.detail = detail;
            list.push(entry);
        }
        report.warned.sort();
        report.refused.sort();
        report
    }
}

/// True when `accepted` names the entry's kind (`PodDisruptionBudget`), object (`Job/a`) or a part of its field (`ulimits`).
fn covers(accepted: &str, entry: &Entry) -> bool {
    let kind = entry.object.split('/').next().unwrap_or_default();
    let mut parts = entry.field.split(['.', '[', ']']);
    accepted == kind
        || accepted == entry.object
        || accepted == entry.field
        || parts.any(|part| part == accepted)
}

#[cfg(test)]
mod tests {
    use super::super::tree::parse_documents;
    use super::*;

    #[test]
    fn every_leaf_has_one_fate_and_the_forgotten_are_refused() {
        let ledger = Ledger::accepting(&["ulimits".to_owned()]);
        let documents =
            parse_documents("a.yaml", "a: 1\nb: {c: [], d: 2}\nulimits: 3\ne: 4\n", &ledger).unwrap();
        let root = &documents[0].root;
        ledger.title(root, "Service/x");
        ledger.translated(root.get("a").unwrap(), "here");
        ledger.warned(root.get("b").unwrap(), "well");
        ledger.refused(root.get("a").unwrap(), "too late");
        ledger.refused(root.get("ulimits").unwrap(), "no");
        let report = ledger.report();
        let fields = |list: &[Entry]| list.iter().map(|entry| entry.field.clone()).collect::<Vec<_>>();
        assert_eq!(fields(&report.translated), ["a"]);
        assert_eq!(fields(&report.warned), ["b.c", "b.d", "ulimits"]);
        assert_eq!(fields(&report.refused), ["e"]);
        assert_eq!((report.refused[0].line, report.refused[0].object.as_str()), (4, "Service/x"));
    }
}
