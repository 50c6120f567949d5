//! `rackstep release prune`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Serialize;

use super::{open, resolve};
use crate::cli::host::NOTHING_CHANGED;
use crate::cli::report::in_repo;
use crate::cli::{Failure, Kind, print_json};
use crate::ostree::repo::{Mode, PruneLock, Repo, RepoError};
use crate::release::prune::plan::{Plan, Wish, plan_prune};
use crate::release::prune::{self, PruneError};

/// Remove what the repo of a server no longer needs: shards of packs that were written anew, what an interrupted command
/// left behind, and the releases that you name.
///
/// Hosts that run a deleted release keep it, and can still upgrade from it by pack. A release that a ref follows is never
/// deleted. Say it again after an interruption: what is left is always whole.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Look first:              rackstep release prune --repo /srv/repo --keep 3 --dry-run
Delete one release:      rackstep release prune --repo /srv/repo --delete 1.0.0")]
pub struct Arguments {
    /// The repo.
    #[arg(long, value_name = "DIR")]
    repo: PathBuf,
    /// Delete this release: a version, commit or the beginning of one. May be given several times.
    #[arg(long, value_name = "REVISION")]
    delete: Vec<String>,
    /// Of each name keep only the N newest releases; builds that a later one of the same version replaced go too.
    #[arg(long, value_name = "N")]
    keep: Option<NonZeroUsize>,
    /// Show the plan and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// `--json`, format 1.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    format: u32,
    plan: &'a Plan,
    /// Whether the plan was run.
    done: bool,
    /// Bytes of objects, shards and unfinished files that went.
    bytes_freed: u64,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let repo = open(&arguments.repo)?;
    if repo.mode() != Mode::Archive {
        let mode = "bare".to_owned();
        let failure = in_repo(RepoError::Mode { path: repo.path().to_owned(), mode });
        return Err(failure.hint("a host's own repo is looked after by `rackstep gc`"));
    }
    let delete = arguments.delete.iter().map(|text| resolve(&repo, text)).collect::<Result<_, _>>()?;
    let wish = Wish { delete, keep: arguments.keep };
    // Before anything is looked at: a commit or a pack that is being written is not to be taken for something that
    // nobody needs.
    let alone = (!arguments.dry_run).then(|| lock(&repo)).transpose()?;
    let found = prune::observe(&repo).map_err(unreadable)?;
    let plan = plan_prune(&found, &wish).map_err(|refused| {
        let hint = format!(
            "hosts that follow {} would find nothing; compose a newer release first",
            refused.reference
        );
        Failure::new(Kind::Refused, refused, NOTHING_CHANGED).hint(hint)
    })?;
    let mut freed = 0;
    if let Some(alone) = &alone {
        freed = prune::run(&repo, alone, &plan).map_err(|error| {
            let state = "every release that is listed is whole; more may be left to remove";
            Failure::new(Kind::Failed, error, state)
        })?;
    }
    if arguments.json {
        return print_json(&Answer { format: 1, plan: &plan, done: alone.is_some(), bytes_freed: freed });
    }
    show(&plan);
    if alone.is_some() {
        say!("state: {} releases deleted, {} kept, {freed} bytes freed", plan.releases.len(), plan.kept);
    } else {
        say!("state: {NOTHING_CHANGED}");
    }
    Ok(())
}

fn lock(repo: &Repo) -> Result<PruneLock, Failure> {
    repo.lock_for_pruning().map_err(|error| in_repo(error).hint("wait for it to end, and try again"))
}

fn unreadable(error: PruneError) -> Failure {
    let failure = Failure::new(Kind::Failed, error, NOTHING_CHANGED);
    failure.hint("`rackstep release pack` writes a pack anew")
}

fn show(plan: &Plan) {
    for release in &plan.releases {
        let version = release.version.as_deref().unwrap_or("without a version");
        let refs = if release.refs.is_empty() { "no ref" } else { &release.refs.join(" ") };
        say!("delete release {version} ({}): {refs}", release.commit.short());
    }
    for to in &plan.packs {
        say!("remove the packs of {}", to.short());
    }
    if !plan.shards.is_empty() || !plan.unfinished.is_empty() {
        let (shards, unfinished) = (plan.shards.len(), plan.unfinished.len());
        say!(
            "remove {shards} shards that no pack needs and {unfinished} unfinished files: {} bytes",
            plan.bytes
        );
    }
    say!("remove objects that no release needs");
}
