//! `rackstep release`: looks after a repo of releases.

mod diff;
mod prune;

use std::path::PathBuf;

use super::progress::Terminal;
use super::report::{in_repo, signature};
use super::time::date;
use super::{Failure, Kind};
use crate::model::{Commit, ReleaseInfo};
use crate::ostree::repo::{CommitInfo, MetaValue, Repo};
use crate::ostree::signature::{PublicKey, SecretKey, load_public_keys, sign_commit, verify_in_repo};
use crate::release::pack::{DEFAULT_LEVEL, HIGHEST_LEVEL, PackError, PackOptions, UPDATE_LEVEL, write_pack};

/// The format number of `--json`.
const JSON_FORMAT: u32 = 1;

/// Look after a repo of releases.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// List the releases of a repo, newest first.
    List {
        /// The repo.
        #[arg(long, value_name = "DIR")]
        repo: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what a release says of itself.
    Show {
        /// The repo.
        #[arg(long, value_name = "DIR")]
        repo: PathBuf,
        /// Ref, version, commit or the beginning of one.
        revision: String,
        /// Public keys to check the signature with.
        #[arg(long, value_name = "FILE")]
        keys: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    Diff(diff::Arguments),
    /// Make a key pair: FILE (secret, keep it) and FILE.pub (for the hosts).
    Keygen {
        /// Where the secret key goes; must not exist.
        file: PathBuf,
    },
    /// Sign a release that is in the repo.
    Sign {
        /// The repo.
        #[arg(long, value_name = "DIR")]
        repo: PathBuf,
        /// Ref, version, commit or the beginning of one.
        revision: String,
        /// The secret key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Write a release's pack: whole, and against each release named by --from.
    Pack {
        /// The repo.
        #[arg(long, value_name = "DIR")]
        repo: PathBuf,
        /// Ref, version, commit or the beginning of one.
        revision: String,
        /// Also write the pack for hosts that have this release.
        #[arg(long, value_name = "REVISION")]
        from: Vec<String>,
        /// Sign the packs with this secret key; hosts that trust a key take no unsigned ones.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        #[arg(long, help = level_help(), value_parser = clap::value_parser!(i32).range(1..=HIGHEST_LEVEL as i64))]
        level: Option<i32>,
    },
    Prune(prune::Arguments),
    Allow(super::trial::AllowArguments),
}

fn level_help() -> String {
    format!("zstd level; left out: {DEFAULT_LEVEL} for the whole pack, {UPDATE_LEVEL} for updates")
}

/// Runs the verb.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.act {
        Act::List { repo, json } => list(&open(&repo)?, json),
        Act::Show { repo, revision, keys, json } => {
            let keys = keys.map(|path| load_public_keys(&path)).transpose().map_err(signature)?;
            let repo = open(&repo)?;
            show(&repo, resolve(&repo, &revision)?, keys.as_deref(), json)
        }
        Act::Diff(arguments) => diff::run(&arguments),
        Act::Keygen { file } => keygen(&file),
        Act::Sign { repo, revision, key } => {
            let repo = open(&repo)?;
            sign(&repo, resolve(&repo, &revision)?, &SecretKey::load(&key).map_err(signature)?)
        }
        Act::Pack { repo, revision, from, key, level } => {
            let key = key.map(|path| SecretKey::load(&path)).transpose().map_err(signature)?;
            let repo = open(&repo)?;
            let to = resolve(&repo, &revision)?;
            let from: Vec<Commit> = from.iter().map(|text| resolve(&repo, text)).collect::<Result<_, _>>()?;
            let options = level.map_or_else(PackOptions::default, |level| PackOptions {
                level,
                update_level: level,
                ..PackOptions::default()
            });
            pack(&repo, to, &from, key.as_ref(), &options)
        }
        Act::Prune(arguments) => prune::run(&arguments),
        Act::Allow(arguments) => super::trial::allow(&arguments),
    }
}

fn open(path: &std::path::Path) -> Result<Repo, Failure> {
    Repo::open(path).map_err(in_repo)
}

fn resolve(repo: &Repo, text: &str) -> Result<Commit, Failure> {
    repo.resolve(text).map_err(|error| {
        let failure = in_repo(error);
        failure.hint(format!("rackstep release list --repo {}", repo.path().display()))
    })
}

fn list(repo: &Repo, json: bool) -> Result<(), Failure> {
    let releases = repo.releases().map_err(in_repo)?;
    if json {
        say!("{:#}", serde_json::json!({ "format": JSON_FORMAT, "releases": releases }));
        return Ok(());
    }
    say!("{:<12} {:<16} {:<20} {:<7} {:<7} REFS", "COMMIT", "VERSION", "CREATED", "SIGNED", "PACKED");
    let yes = |is: bool| if is { "yes" } else { "no" };
    for listed in releases {
        say!(
            "{:<12} {:<16} {:<20} {:<7} {:<7} {}",
            listed.commit.short(),
            listed.version.as_deref().unwrap_or("-"),
            date(listed.created),
            yes(listed.signed),
            yes(listed.packed),
            listed.refs.join(" "),
        );
    }
    Ok(())
}

fn show(repo: &Repo, commit: Commit, keys: Option<&[PublicKey]>, json: bool) -> Result<(), Failure> {
    if let Some(keys) = keys {
        verify_in_repo(repo, commit, keys).map_err(signature)?;
    }
    let info = repo.commit_info(commit).map_err(in_repo)?;
    let release = repo.release_info(commit).map_err(in_repo)?;
    if json {
        let told = serde_json::json!({
            "format": JSON_FORMAT, "commit": commit, "version": info.version, "created": info.timestamp,
            "subject": info.subject, "refs": info.refs, "verified": keys.is_some(), "release": release,
        });
        say!("{told:#}");
        return Ok(());
    }
    print_shown(&info, release.as_ref(), keys.is_some());
    Ok(())
}

fn print_shown(info: &CommitInfo, release: Option<&ReleaseInfo>, verified: bool) {
    say!("commit    {}", info.commit);
    say!("version   {}", info.version.as_deref().unwrap_or("-"));
    say!("created   {}", date(info.timestamp));
    say!("subject   {}", info.subject);
    say!("refs      {}", info.refs.join(" "));
    if verified {
        say!("signature good");
    }
    for (key, value) in &info.metadata {
        if let MetaValue::Text(text) = value
            && key != "version"
        {
            say!("{key:<9} {text}");
        }
    }
    if let Some(release) = release {
        say!("kernel    {}", release.kernel);
        say!("packages  {}", release.packages.len());
        say!("services  {}", release.services.join(" "));
    }
}

fn keygen(file: &std::path::Path) -> Result<(), Failure> {
    let key = SecretKey::generate().map_err(|error| Failure::new(Kind::Failed, error, "no key written"))?;
    let public = key.save(file).map_err(signature)?;
    say!("{}", key.public().render());
    tracing::info!(secret = %file.display(), public = %public.display(), "key pair written");
    Ok(())
}

fn sign(repo: &Repo, commit: Commit, key: &SecretKey) -> Result<(), Failure> {
    if sign_commit(repo, commit, key).map_err(signature)? {
        say!("{commit} signed by {}", key.public().render());
    } else {
        say!("{commit} was signed by {} already", key.public().render());
    }
    Ok(())
}

fn pack(
    repo: &Repo,
    to: Commit,
    from: &[Commit],
    key: Option<&SecretKey>,
    options: &PackOptions,
) -> Result<(), Failure> {
    let progress = Terminal::default();
    for from in std::iter::once(None).chain(from.iter().copied().map(Some)) {
        let failed =
            |error: PackError| Failure::new(Kind::Failed, error, "the packs before this one are published");
        let report = write_pack(repo, to, from, key, options, &progress).map_err(failed)?;
        let against = from.map_or_else(|| "whole".to_owned(), |from| format!("from {}", from.short()));
        say!(
            "{} {against}: {} bytes, {} objects, {} shards{}",
            to.short(),
            report.index.bytes,
            report.index.objects,
            report.index.shards.len(),
            if report.signed { ", signed" } else { "" },
        );
    }
    Ok(())
}
