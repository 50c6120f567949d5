//! What rackstep does, one step per process: `bench step VERB …` prints one JSON object.

use std::fs;
use std::path::Path;

use rackstep::docker::Docker;
use rackstep::formats::image::source;
use rackstep::formats::image::store::ImageStore;
use rackstep::formats::image::{Limits, Ownership};
use rackstep::host::prepare::prepare_images;
use rackstep::model::progress::Silent;
use rackstep::model::{Commit, PinSet, ReleasePins};
use rackstep::ostree::repo::{CommitOptions, Mode, Repo};
use rackstep::release::pack::{PackOptions, write_pack};
use rackstep::release::pull::{PullRequest, pull};
use serde_json::{Value, json};

use crate::{Outcome, measure, report};

/// Runs one step.
pub fn run(arguments: &[String]) -> Outcome<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut told = match arguments.as_slice() {
        ["split", layouts, store, names @ ..] => split(layouts.as_ref(), store.as_ref(), names)?,
        ["commit", repo, tree, reference, deflate] => {
            commit(repo.as_ref(), tree.as_ref(), reference, deflate.parse()?)?
        }
        ["pack", repo, to] => pack(repo.as_ref(), to.parse()?, None)?,
        ["pack", repo, to, from] => pack(repo.as_ref(), to.parse()?, Some(from.parse()?))?,
        ["pull", url, commit, repo] => pull_one(url, commit.parse()?, repo.as_ref())?,
        ["import", docker, release] => import(docker, release.as_ref(), false)?,
        ["prepare", docker, release] => import(docker, release.as_ref(), true)?,
        ["verify", docker, release] => verify(docker, release.as_ref())?,
        other => return Err(format!("no step {other:?}").into()),
    };
    told["peak"] = json!(measure::own_peak());
    report::answer(&told);
    Ok(())
}

fn split(layouts: &Path, store: &Path, names: &[&str]) -> Outcome<Value> {
    let store = ImageStore::new(store);
    let limits = Limits::default();
    let mut pins = PinSet { format: 1, images: Default::default() };
    for name in names {
        let mut image = source::open(&layouts.join(name), None, &limits)?;
        let reference = format!("bench/{name}");
        let pinned = store.add(image.as_mut(), &reference, Ownership::Apply, &limits)?;
        pins.images.insert((*name).to_owned(), pinned);
    }
    Ok(json!({ "pins": pins }))
}

fn commit(repo: &Path, tree: &Path, reference: &str, deflate: u32) -> Outcome<Value> {
    let repo = Repo::create(repo, Mode::Archive)?;
    let options = CommitOptions { reference: Some(reference.parse()?), deflate, ..CommitOptions::default() };
    let report = repo.commit_tree(tree, &options, &Silent)?;
    Ok(json!({
        "commit": report.commit.hex(), "files": report.files, "bytes": report.bytes, "written": report.written,
    }))
}

fn pack(repo: &Path, to: Commit, from: Option<Commit>) -> Outcome<Value> {
    let repo = Repo::open(repo)?;
    let report = write_pack(&repo, to, from, None, &PackOptions::default(), &Silent)?;
    let index = report.index;
    Ok(
        json!({ "bytes": index.bytes, "raw": index.raw, "objects": index.objects, "shards": index.shards.len() }),
    )
}

fn pull_one(url: &str, commit: Commit, repo: &Path) -> Outcome<Value> {
    let repo = Repo::create(repo, Mode::Bare)?;
    let reference = Some("bench:release".to_owned());
    let request = PullRequest { repo_url: url.to_owned(), commit, keys: Vec::new(), reference };
    let report = pull(&request, &repo, &Silent)?;
    Ok(json!({
        "bytes": report.bytes, "objects": report.objects, "by": report.by.to_string(), "shards": report.shards,
        "refused": report.pack_refused,
    }))
}

fn read_release(release: &Path) -> Outcome<(ImageStore, ReleasePins)> {
    let pins = fs::read(release.join("pins.json"))?;
    // The images do not depend on the commit that they came with.
    let pins = ReleasePins::parse(Commit::from_bytes([0; 32]), &pins)?;
    Ok((ImageStore::new(release.join("images")), pins))
}

fn import(docker: &str, release: &Path, protect: bool) -> Outcome<Value> {
    let docker = Docker::connect(Some(docker))?;
    let (store, pins) = read_release(release)?;
    if protect {
        let prepared = prepare_images(&docker, &store, &pins, &Silent)?;
        return Ok(json!({ "loaded": prepared.imported.len(), "bytes": prepared.bytes }));
    }
    let imported = docker.import(&store, pins.images().map(|(_, image)| image), &Silent)?;
    Ok(json!({ "loaded": imported.loaded.len(), "bytes": imported.bytes }))
}

fn verify(docker: &str, release: &Path) -> Outcome<Value> {
    let docker = Docker::connect(Some(docker))?;
    let (_, pins) = read_release(release)?;
    let _proof = docker.verify_release(&pins, &Silent)?;
    Ok(json!({ "images": pins.images().count() }))
}
