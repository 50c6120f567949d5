//! `rackstep lint`.

use std::path::{Path, PathBuf};

use super::{Failure, Kind};
use crate::model::place::InputError;
use crate::release::import::plan::report::Ledger;
use crate::release::import::plan::tree::{Document, parse_documents};
use crate::release::lint::{Finding, LintedService, Severity, lint};
use crate::release::manifest::{Service, Treefile};
use crate::release::tree::podcheck::PodCheck;

/// Look over service definitions: moving tags, two owners of a port or volume, privileges, retired projects.
///
/// Definitions that do not load are told with file and line too. Exit code 3 with an error, 0 with warnings alone.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rackstep lint manifests/*        or the services of a treefile:  rackstep lint host-image/all-in-one.yaml"
)]
pub struct Arguments {
    /// Service directories, or treefiles whose services are meant.
    #[arg(required_unless_present = "schema", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print the JSON schema of `service.yaml` instead: editors complete by it.
    #[arg(long)]
    schema: bool,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// The schema of `service.yaml`, as `docs/service.schema.json` publishes it.
pub const SCHEMA: &str = include_str!("../../docs/service.schema.json");

const LOOKED: &str = "nothing changed; definitions are only read";

#[derive(Debug, thiserror::Error)]
#[error("{0} errors in the definitions")]
struct Errors(usize);

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.schema {
        say!("{}", SCHEMA.trim_end());
        return Ok(());
    }
    let bad = |error: InputError| {
        let hint = hint_of(&error.message);
        let failure = Failure::new(Kind::BadInput, error, LOOKED);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    };
    let (mut services, mut is_locked) = (Vec::new(), true);
    let mut seen = std::collections::BTreeSet::new();
    for path in &arguments.paths {
        if path.is_dir() {
            let is_new = seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone()));
            if is_new && path.join("service.yaml").is_file() {
                services.push(load(path).map_err(bad)?);
                is_locked = false;
            }
            continue;
        }
        let treefile = Treefile::load(path).map_err(bad)?;
        is_locked &= crate::release::lock::lock_path(path).exists();
        // Treefiles share services: each is looked at once.
        for service in crate::release::lock::load_services(&treefile)
            .map_err(|error| Failure::new(Kind::BadInput, error, LOOKED))?
        {
            if seen.insert(service.dir.canonicalize().unwrap_or_else(|_| service.dir.clone())) {
                services.push(load(&service.dir).map_err(bad)?);
            }
        }
    }
    let findings = lint(&services, is_locked);
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    if arguments.json {
        super::print_json(
            &serde_json::json!({"format": 1, "services": services.len(), "findings": findings}),
        )?;
    } else {
        findings.iter().for_each(tell);
        say!("{} services, {errors} errors, {} warnings", services.len(), findings.len() - errors);
    }
    if errors == 0 { Ok(()) } else { Err(Failure::new(Kind::Refused, Errors(errors), LOOKED)) }
}

fn tell(finding: &Finding) {
    let word = if finding.severity == Severity::Error { "error" } else { "warning" };
    say!(
        "{word}  {}:{}: {} [{}]\n  hint: {}",
        finding.file,
        finding.line,
        finding.message,
        finding.rule,
        finding.hint
    );
}

/// Hints for what people usually write in the place of our words.
fn hint_of(message: &str) -> Option<&'static str> {
    [
        (
            "unknown field",
            "the fields are in manifests/README.md; `rackstep lint --schema` gives them to an editor",
        ),
        ("hostNetwork", "add `hostNetwork: true` to the pod's spec"),
        ("imagePullPolicy", "write `imagePullPolicy: Never`, or leave it out"),
        ("is not among the service's images", "name it in `images` of service.yaml"),
        ("unknown variant", "a phase is bootstrap, expand, migrate or contract"),
    ]
    .into_iter()
    .find(|(part, _)| message.contains(part))
    .map(|(_, hint)| hint)
}

fn load(directory: &Path) -> Result<LintedService, InputError> {
    Service::load(directory, &PodCheck::new(directory))?;
    let service = document(&directory.join("service.yaml"))?;
    let names = service.root.get("pods").map(|pods| pods.words()).unwrap_or_default();
    let pods = names.iter().map(|name| document(&directory.join(name))).collect::<Result<_, _>>()?;
    Ok(LintedService { service, pods })
}

fn document(path: &Path) -> Result<Document, InputError> {
    let shown = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|error| InputError::of_file(&shown, error.to_string()))?;
    let documents = parse_documents(&shown, &text, &Ledger::default())?;
    documents.into_iter().next().ok_or_else(|| InputError::of_file(&shown, "is empty"))
}
