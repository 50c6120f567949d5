//! `rackstep import`: definitions that people have, into ours. Pure: texts go in, files and a report come out.
//!
//! 1. Texts become trees whose leaves have lines ([`tree`]), entered into a ledger ([`report`]); 2. one reader for each
//!    form gives workloads; 3. [`assemble`] makes definitions of them; 4. the ledger closes: a field that nobody gave a
//!    fate is refused.
//!
//! Values of secrets are never read into a definition, and no template is guessed at.

pub mod assemble;
pub mod compose;
pub mod definition;
pub mod graph;
pub mod kolla;
pub mod kubernetes;
pub mod legacy;
pub mod pod;
pub mod quadlet;
pub mod report;
pub mod scrub;
pub mod tree;
pub mod workload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compose::{Context, ReadBeside};
use definition::Definition;
use kubernetes::Found;
use report::{Ledger, Report};
use tree::{Kind, Node};

use crate::model::place::InputError;

/// The form of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Objects of Kubernetes.
    Kubernetes,
    /// Docker Compose.
    Compose,
    /// A rendered `/etc/kolla`, or quadlets.
    Kolla,
}

/// One text of an input.
#[derive(Debug, Clone)]
pub struct Text {
    /// The file as it is told.
    pub file: String,
    /// Its path below the folder that was named; its name, if the file itself was named.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// What the person adds to an input.
#[derive(Debug, Default)]
pub struct Wishes {
    /// Fields, kinds and objects whose refusal is accepted.
    pub accept: Vec<String>,
    /// Volume → policy.
    pub policies: BTreeMap<String, String>,
    /// `docker inspect`'s output: file name and text.
    pub inspect: Option<(String, String)>,
    /// Reference of Kolla's images, with `{}` for the name.
    pub images: Option<String>,
}

/// What came out.
#[derive(Debug)]
pub struct Imported {
    /// The definitions.
    pub definitions: Vec<Definition>,
    /// What became of every field.
    pub report: Report,
}

/// Imports `texts`; `read` reads files that they name beside them.
///
/// # Errors
/// An [`InputError`] where a text is not of its form, or a template that is not rendered.
pub fn import(
    form: Form,
    texts: &[Text],
    wishes: Wishes,
    read: ReadBeside<'_>,
) -> Result<Imported, InputError> {
    let ledger = Ledger::accepting(&wishes.accept);
    let found = match form {
        Form::Kubernetes => {
            let mut documents = Vec::new();
            for text in texts {
                documents.extend(tree::parse_documents(&text.file, &text_of(text)?, &ledger)?);
            }
            kubernetes::read(&documents, &wishes.policies, &ledger)?
        }
        Form::Compose => {
            let context = Context { ledger: &ledger, read, policies: &wishes.policies, object: "service" };
            let mut found = Found::default();
            for text in texts {
                for document in tree::parse_documents(&text.file, &text_of(text)?, &ledger)? {
                    let more = compose::read(&document, &context);
                    found.workloads.extend(more.workloads);
                    found.services.extend(more.services);
                }
            }
            found
        }
        Form::Kolla => kolla_or_quadlets(texts, wishes, read, &ledger)?,
    };
    let definitions = assemble::assemble(found, &ledger);
    Ok(Imported { definitions, report: ledger.report() })
}

fn text_of(text: &Text) -> Result<String, InputError> {
    String::from_utf8(text.content.clone()).map_err(|_| InputError::of_file(&text.file, "is not text"))
}

fn kolla_or_quadlets(
    texts: &[Text],
    wishes: Wishes,
    read: ReadBeside<'_>,
    ledger: &Ledger,
) -> Result<Found, InputError> {
    const UNITS: [&str; 7] = [".container", ".volume", ".network", ".pod", ".kube", ".image", ".build"];
    let (units, files): (Vec<&Text>, Vec<&Text>) =
        texts.iter().partition(|text| UNITS.iter().any(|unit| text.path.ends_with(unit)));
    let mut found = Found::default();
    let mut services = Vec::new();
    let mut main = String::new();
    for unit in units {
        let stem = Path::new(&unit.path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !unit.path.ends_with(".container") {
            let leaf = Some(ledger.enter(&unit.file, 1, &unit.path));
            let node = Node { line: 1, kind: Kind::Sequence(Vec::new()), leaf };
            if unit.path.ends_with(".volume") || unit.path.ends_with(".network") {
                ledger.warned(&node, "volumes are directories of the host, and every pod is on its network");
            } else {
                ledger.refused(&node, "only .container units are imported");
            }
            continue;
        }
        main.clone_from(&unit.file);
        services.push((stem, quadlet::service(&unit.file, &text_of(unit)?, ledger)));
    }
    for (name, node) in &services {
        let context = Context { ledger, read, policies: &wishes.policies, object: "container" };
        let all = Node { line: 1, kind: Kind::Mapping(vec![(name.clone(), node.clone())]), leaf: None };
        let file = texts.iter().find(|text| text.path.ends_with(&format!("{name}.container")));
        let more =
            compose::services_of(&all, &all, file.map_or(main.as_str(), |text| text.file.as_str()), &context);
        found.workloads.extend(more.workloads);
        found.services.extend(more.services);
    }
    let files: Vec<kolla::File> = files
        .into_iter()
        .map(|text| kolla::File {
            shown: text.file.clone(),
            path: text.path.clone(),
            content: text.content.clone(),
        })
        .collect();
    let options =
        kolla::Options { inspect: wishes.inspect, images: wishes.images, policies: wishes.policies };
    let more = kolla::read(&files, &options, ledger)?;
    found.workloads.extend(more.workloads);
    Ok(found)
}

/// The files of all definitions, below the output folder.
pub fn files(
    definitions: &[Definition],
) -> Result<BTreeMap<PathBuf, workload::ConfigFile>, serde_yaml_ng::Error> {
    let mut all = BTreeMap::new();
    for definition in definitions {
        for (path, file) in definition.files()? {
            all.insert(Path::new(&definition.name).join(path), file);
        }
    }
    Ok(all)
}
