//! `rackstep release diff`.

use std::path::PathBuf;

use serde::Serialize;

use super::{open, resolve};
use crate::cli::host::NOTHING_CHANGED;
use crate::cli::report::in_repo;
use crate::cli::{Failure, Kind, print_json};
use crate::model::Commit;
use crate::ostree::repo::Repo;
use crate::release::diff::plan::{Changed, Changes, changes};
use crate::release::diff::{ChangesError, ToSend, read_facts, to_send};

/// Show what an upgrade from one release to another changes: kernel and its arguments, packages, services, container
/// images, pods, the release's other files; and how many bytes a host fetches for it.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The repo.
    #[arg(long, value_name = "DIR")]
    repo: PathBuf,
    /// The release that a host has: ref, version, commit or the beginning of one.
    from: String,
    /// The release that it gets.
    to: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// `--json`, format 1.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    format: u32,
    from: Commit,
    to: Commit,
    #[serde(flatten)]
    changes: &'a Changes,
    to_send: ToSend,
}

/// Digits of a digest that people compare.
const DIGITS: usize = 12;

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let repo = open(&arguments.repo)?;
    let (from, to) = (resolve(&repo, &arguments.from)?, resolve(&repo, &arguments.to)?);
    let facts = |commit| read_facts(&repo, commit).map_err(unreadable);
    let changes = changes(&facts(from)?, &facts(to)?);
    let to_send = to_send(&repo, from, to).map_err(in_repo)?;
    if arguments.json {
        return print_json(&Answer { format: 1, from, to, changes: &changes, to_send });
    }
    say!("{} → {}", name(&repo, from)?, name(&repo, to)?);
    show(&changes);
    match to_send.pack {
        Some(bytes) => say!("to send: {bytes} bytes by pack"),
        None => say!("to send: {} objects, {} bytes; no pack leads there", to_send.objects, to_send.bytes),
    }
    Ok(())
}

fn unreadable(error: ChangesError) -> Failure {
    match error {
        ChangesError::Repo(error) => in_repo(error),
        ChangesError::NoRelease(_) => Failure::new(Kind::BadInput, error, NOTHING_CHANGED),
        ChangesError::Pins(_) => Failure::new(Kind::Failed, error, NOTHING_CHANGED),
    }
}

fn name(repo: &Repo, commit: Commit) -> Result<String, Failure> {
    let info = repo.commit_info(commit).map_err(in_repo)?;
    Ok(format!("release {} ({})", info.version.as_deref().unwrap_or("-"), commit.short()))
}

fn show(changes: &Changes) {
    let Changes { kernel, kernel_arguments, packages, services, images, pods, files } = changes;
    let as_it_is = |text: &str| text.to_owned();
    let short = |text: &str| text.trim_start_matches("sha256:").chars().take(DIGITS).collect();
    section("kernel", kernel, &as_it_is);
    section("kernel arguments", kernel_arguments, &|_| String::new());
    section("packages", packages, &as_it_is);
    section("services", services, &|_| String::new());
    section("container images", images, &short);
    section("pods", pods, &short);
    section("other files of the release", files, &short);
    if *changes == Changes::default() {
        say!("nothing that a release says of itself changes");
    }
}

/// One line for each: `+` comes, `-` goes, `~` changes.
fn section(title: &str, list: &[Changed], text: &dyn Fn(&str) -> String) {
    if list.is_empty() {
        return;
    }
    say!("{title}: {}", list.len());
    let width = list.iter().map(|changed| changed.name.chars().count()).max().unwrap_or(0);
    for Changed { name, before, after } in list {
        let line = match (before, after) {
            (Some(before), Some(after)) => format!("  ~ {name:width$} {} → {}", text(before), text(after)),
            (None, Some(after)) => format!("  + {name:width$} {}", text(after)),
            (Some(before), None) => format!("  - {name:width$} {}", text(before)),
            (None, None) => continue,
        };
        say!("{}", line.trim_end());
    }
}
