//! `rackstep import`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Failure, Kind};
use crate::release::import::plan::report::{Entry, Report};
use crate::release::import::plan::{Form, Wishes};
use crate::release::import::{self, ImportError};

/// Turn definitions that exist into service definitions of ours.
///
/// Every field of the input is told in the report: translated, honoured otherwise (a warning), or refused. With anything
/// refused, nothing is written and the exit code is 3. Values of secrets are never written: the report tells the file on
/// each host that takes them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  helm template keystone openstack-helm/keystone | rackstep import kubernetes -\n  rackstep import compose docker-compose.yml --volume data=keep\n  rackstep import kolla /etc/kolla --inspect containers.json\n  rackstep import kolla /etc/containers/systemd"
)]
pub struct Arguments {
    #[command(subcommand)]
    form: FormArguments,
}

#[derive(Debug, clap::Subcommand)]
enum FormArguments {
    /// Pods, what makes pods, and what pods refer to: YAML or JSON, lists, several documents; `v1beta1` too.
    Kubernetes(Common),
    /// Docker Compose, from its first form to today's.
    Compose(Common),
    /// A rendered /etc/kolla, or a folder of Podman's quadlets.
    Kolla(KollaArguments),
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Files and folders; `-` is stdin.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Where the definitions go.
    #[arg(long, value_name = "DIR", default_value = "manifests")]
    output: PathBuf,
    /// What a rollback may do to a volume: snapshot, keep or disposable. May be given several times.
    #[arg(long = "volume", value_name = "NAME=POLICY", value_parser = policy)]
    volumes: Vec<(String, String)>,
    /// Take what is refused for this field, kind or object (`ulimits`, `PodDisruptionBudget`, `Job/x`) as a warning.
    #[arg(long, value_name = "WHAT")]
    accept: Vec<String>,
    /// Replace definitions that exist.
    #[arg(long)]
    force: bool,
    /// Report, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct KollaArguments {
    #[command(flatten)]
    common: Common,
    /// What `docker inspect $(docker ps -q)` printed on that host: images, mounts and privileges.
    #[arg(long, value_name = "FILE")]
    inspect: Option<PathBuf>,
    /// Names of images where no container tells them, such as quay.io/openstack.kolla/{}:2025.1-debian-bookworm.
    #[arg(long, value_name = "PATTERN")]
    images: Option<String>,
}

fn policy(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, policy @ ("snapshot" | "keep" | "disposable"))) => {
            Ok((name.to_owned(), policy.to_owned()))
        }
        _ => Err("expected NAME=snapshot, NAME=keep or NAME=disposable".to_owned()),
    }
}

const NOTHING: &str = "nothing written";

/// What was refused, as one error.
#[derive(Debug, thiserror::Error)]
#[error("{count} of the input's fields would change behaviour on a host")]
struct Refused {
    count: usize,
}

/// Runs the verb.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let (form, common, inspect, images) = match arguments.form {
        FormArguments::Kubernetes(common) => (Form::Kubernetes, common, None, None),
        FormArguments::Compose(common) => (Form::Compose, common, None, None),
        FormArguments::Kolla(kolla) => (Form::Kolla, kolla.common, kolla.inspect, kolla.images),
    };
    let inspect = match inspect {
        Some(path) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|source| in_import(ImportError::Read { path: path.clone(), source }))?;
            Some((path.display().to_string(), text))
        }
        None => None,
    };
    let volumes: BTreeMap<String, String> = common.volumes.iter().cloned().collect();
    let wishes = Wishes { accept: common.accept.clone(), policies: volumes, inspect, images };
    let texts = import::gather(form, &common.paths).map_err(in_import)?;
    let imported = crate::release::import::plan::import(form, &texts, wishes, &import::read_beside)
        .map_err(|error| Failure::new(Kind::BadInput, error, NOTHING))?;
    let report = &imported.report;
    if !report.refused.is_empty() {
        tell(&common, report, &[])?;
        let failure = Failure::new(Kind::Refused, Refused { count: report.refused.len() }, NOTHING);
        return Err(failure.hint("change the input, or take a refusal for a warning: --accept FIELD"));
    }
    let files = crate::release::import::plan::files(&imported.definitions)
        .map_err(|error| Failure::new(Kind::Failed, error, NOTHING))?;
    if files.is_empty() {
        tell(&common, report, &[])?;
        let error = ImportError::Nothing { path: common.paths.first().cloned().unwrap_or_default() };
        return Err(Failure::new(Kind::BadInput, error, NOTHING));
    }
    let written = if common.dry_run {
        Vec::new()
    } else {
        import::write(&files, &common.output, common.force).map_err(in_import)?
    };
    tell(&common, report, &written)
}

fn in_import(error: ImportError) -> Failure {
    match error {
        ImportError::Exists { .. } => Failure::new(Kind::Refused, error, NOTHING)
            .hint("--force replaces it; --output DIR writes elsewhere"),
        ImportError::Read { .. } | ImportError::Nothing { .. } => {
            Failure::new(Kind::BadInput, error, NOTHING)
        }
        _ => Failure::new(Kind::Failed, error, NOTHING),
    }
}

fn tell(common: &Common, report: &Report, written: &[PathBuf]) -> Result<(), Failure> {
    if common.json {
        let mut value = serde_json::to_value(report)
            .map_err(|error| Failure::new(Kind::Failed, error, "the report could not be written as JSON"))?;
        value["written"] = written.iter().map(|path| path.display().to_string()).collect();
        value["dry_run"] = common.dry_run.into();
        return super::print_json(&value);
    }
    for (title, entries) in [("refused", &report.refused), ("warned", &report.warned)] {
        for (entry, more) in grouped(entries) {
            let object = [entry.object.as_str(), entry.field.as_str()]
                .iter()
                .filter(|part| !part.is_empty())
                .copied()
                .collect::<Vec<_>>()
                .join(" ");
            let more = if more == 0 { String::new() } else { format!(" (and {more} more below it)") };
            say!("{title}  {}:{}: {object}{more}: {}", entry.file, entry.line, entry.detail);
        }
    }
    for secret in &report.secrets {
        say!(
            "secret  {}: put the value of {} into {} on each host before its first boot",
            secret.name,
            secret.from,
            secret.place
        );
    }
    let mut objects: BTreeMap<&str, usize> = BTreeMap::new();
    report.translated.iter().for_each(|entry| *objects.entry(&entry.object).or_default() += 1);
    for (object, count) in objects {
        say!("translated  {}: {count} fields", if object.is_empty() { "the input" } else { object });
    }
    for path in written {
        say!("written  {}", path.display());
    }
    say!(
        "{} translated, {} warned, {} refused{}",
        report.translated.len(),
        report.warned.len(),
        report.refused.len(),
        if common.dry_run { "; dry run, nothing written" } else { "" }
    );
    Ok(())
}

/// Leaves that stand together with the same words are told once.
fn grouped(entries: &[Entry]) -> Vec<(&Entry, usize)> {
    let mut groups: Vec<(&Entry, usize)> = Vec::new();
    for entry in entries {
        match groups.last_mut() {
            Some((first, more))
                if (&first.file, &first.object, &first.detail)
                    == (&entry.file, &entry.object, &entry.detail) =>
            {
                *more += 1
            }
            _ => groups.push((entry, 0)),
        }
    }
    groups
}
