//! What rackstep does, one step per process: `bench step VERB …` prints one JSON object.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use rackstep::formats::image::source;
use rackstep::formats::image::store::ImageStore;
use rackstep::formats::image::{Limits, Ownership};
use rackstep::host::records::{CheckedOut, RecordPlaces, write_records};
use rackstep::model::progress::Silent;
use rackstep::model::{Commit, ObjectKind, PinSet};
use rackstep::ostree::repo::{CommitOptions, Mode, Repo};
use rackstep::release::pack::{PackOptions, write_pack};
use rackstep::release::pull::{PullRequest, pull};
use rackstep::release::tree::layer_trees::ensure_layer_tree;
use rackstep::rim::layers::Layers;
use rayon::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{Outcome, measure, report};

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

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
        ["records", repo, layers, docker, commit, release] => {
            records(repo.as_ref(), layers.as_ref(), docker.as_ref(), commit.parse()?, release.as_ref())?
        }
        ["unmount", repo, layers] => unmount(repo.as_ref(), layers.as_ref())?,
        ["verify", repo, commit] => verify(repo.as_ref(), commit.parse()?)?,
        ["sha256", repo, commit] => sha256(repo.as_ref(), commit.parse()?)?,
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
        for layer in &pinned.layers {
            ensure_layer_tree(&store.layer_dir(layer.diff_id))?;
        }
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

/// What a host does before Docker starts: mounts and records.
fn records(repo: &Path, layers: &Path, docker: &Path, commit: Commit, release: &Path) -> Outcome<Value> {
    let places =
        RecordPlaces { repo: repo.to_owned(), layers: layers.to_owned(), docker_root: docker.to_owned() };
    let done = write_records(&[CheckedOut { commit, files: release.to_owned() }], &places)?;
    if let Some((image, why)) = done.absent.first_key_value() {
        return Err(format!("image {image}: {why}").into());
    }
    Ok(
        json!({ "mounted": done.mounted, "written": done.recorded.written, "images": done.recorded.images.len() }),
    )
}

fn unmount(repo: &Path, layers: &Path) -> Outcome<Value> {
    let layers = Layers::new(layers, repo);
    for layer in layers.mounted()? {
        layers.unmount(layer)?;
    }
    Ok(json!({}))
}

/// What `upgrade` does beyond pull and check-out.
fn verify(repo: &Path, commit: Commit) -> Outcome<Value> {
    let proof = Repo::open(repo)?.verify_release(commit, &Silent)?;
    Ok(json!({ "commit": proof.commit().hex() }))
}

/// The least that a proof of all contents could take: one sha256 over each file's bytes, on all cores.
fn sha256(repo: &Path, commit: Commit) -> Outcome<Value> {
    let repo = Repo::open(repo)?;
    let mut objects = BTreeSet::new();
    repo.walk(commit, &mut |_, object| {
        objects.insert(object);
    })?;
    let files: Vec<_> = objects.into_iter().filter(|object| object.kind == ObjectKind::File).collect();
    let bytes = files
        .par_iter()
        .map(|object| -> std::io::Result<u64> {
            let path = repo.object_path(object);
            // Links and the like have no content.
            if !path.symlink_metadata()?.is_file() {
                return Ok(0);
            }
            let (mut hasher, mut file) = (Sha256::new(), fs::File::open(path)?);
            let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    std::hint::black_box(hasher.finalize());
                    return Ok(bytes);
                }
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
        })
        .sum::<std::io::Result<u64>>()?;
    Ok(json!({ "files": files.len(), "bytes": bytes }))
}
