//! Texts that come over the network or from people: an error or a value, and a value that is written reads the same.
//!
//! Input: a byte that chooses the kind of document, then the document.

use rackstep::ostree::repo::CommitInfo;
use rackstep::ostree::repo::gvariant::{DirTree, FileHeader, parse_dictionary};
use rackstep::formats::image::spec;
use rackstep::release::manifest::lock::Lock;
use rackstep::release::manifest::treefile::Treefile;
use rackstep::model::pins::ReleasePins;
use rackstep::model::release::ReleaseInfo;
use rackstep::model::{Commit, Digest, ImageRef};
use rackstep::formats::pack::index::{Index, List, Shard};

fn commit() -> Commit {
    Commit::from_bytes([0x11; 32])
}

pub fn run(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    match kind % 12 {
        0 => {
            if let Ok(index) = Index::parse(bytes, commit(), None) {
                let sum = index.shards.iter().fold(0u64, |sum, shard| sum.saturating_add(shard.size));
                assert_eq!(index.bytes, sum);
                let again = serde_json::to_vec(&index).expect("writing the index");
                assert_eq!(Index::parse(&again, commit(), None).expect("reading it again"), index);
                for shard in &index.shards {
                    assert!(shard.path().strip_prefix("packs/shards/").is_some_and(|name| name.len() == 64));
                }
            }
        }
        1 => drop(List::parse(bytes, commit())),
        2 => drop(ReleasePins::parse(commit(), bytes)),
        3 => drop(serde_json::from_slice::<ReleaseInfo>(bytes)),
        4 => drop(Treefile::parse(text, "treefile.yaml")),
        5 => {
            if let Ok(lock) = Lock::parse(text, "treefile.lock.yaml") {
                let again = lock.render().expect("writing the lock");
                let mut sorted = lock.clone();
                sorted.packages.sort();
                sorted.binaries.sort_by(|a, b| a.name.cmp(&b.name));
                assert_eq!(Lock::parse(&again, "again").expect("reading it again"), sorted);
            }
        }
        6 => drop(spec::parse_manifest(bytes)),
        7 => drop(spec::parse_config(bytes)),
        8 => {
            if let Ok(reference) = text.parse::<ImageRef>() {
                assert_eq!(reference.to_string().parse::<ImageRef>().expect("again"), reference);
            }
        }
        9 => drop(CommitInfo::parse(commit(), bytes)),
        10 => {
            if let Ok(tree) = DirTree::parse(bytes) {
                for name in
                    tree.files.iter().map(|(name, _)| name).chain(tree.dirs.iter().map(|(name, ..)| name))
                {
                    assert!(
                        !name.is_empty() && !name.contains('/') && name != "." && name != "..",
                        "{name:?}"
                    );
                }
                let again = DirTree::parse(&tree.render()).expect("reading the tree again");
                assert_eq!(again, tree);
            }
            let _ = parse_dictionary(bytes);
        }
        _ => {
            if let Ok((header, prefix)) = FileHeader::read(&mut &bytes[..]) {
                assert_eq!(
                    header.stream_prefix(),
                    prefix,
                    "a header that is kept is the one that was hashed"
                );
            }
            let _ = FileHeader::read_archive(&mut &bytes[..]);
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let digest = Digest::of(b"s");
    let shard = Shard { digest, size: 10, raw: 30, objects: 2, unpacked: Some(50) };
    let index =
        Index { format: 2, to: commit(), from: None, objects: 2, bytes: 10, raw: 30, shards: vec![shard] };
    let header = FileHeader {
        uid: 1,
        gid: 2,
        mode: 0o104_755,
        target: String::new(),
        xattrs: vec![(b"user.a".to_vec(), b"1".to_vec())],
    };
    let link = FileHeader { mode: 0o120_777, target: "a".into(), xattrs: vec![], ..header.clone() };
    let tree = DirTree { files: vec![("a".into(), digest)], dirs: vec![("b".into(), digest, digest)] };
    let hash = digest.to_string();
    let pins = format!(
        r#"{{"format":1,"images":[{{"reference":"a:1","manifest":"{hash}","config":"{hash}","layers":[{{"diff_id":"{hash}","size":3}}]}}]}}"#
    );
    let manifest = spec::render_plain_manifest(digest, 5, &[]);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{hash}"]}}}}"#
    );
    let release = r#"{"format":1,"name":"n","version":"1","created":1,"kernel":"6","services":["s"],"packages":{"a":"1"},"upgrade_from":[]}"#;
    let treefile = "name: a\nversion: 1\nrelease: trixie\npackages: [bash]\nservices: [s]\nimages:\n  a:1: {recipe: r}\n";
    let texts: [(u8, Vec<u8>); 14] = [
        (0, serde_json::to_vec(&index).expect("writing")),
        (
            1,
            format!(r#"{{"format":1,"to":"{}","packs":[{{"from":null,"bytes":1}}]}}"#, commit()).into_bytes(),
        ),
        (2, pins.into_bytes()),
        (3, release.into()),
        (4, treefile.into()),
        (4, include_bytes!("../../tests/releases/openstack-host-2.yaml").to_vec()),
        (5, b"format: 1\npackages: []\nimages: []\nbinaries: []\n".to_vec()),
        (6, manifest),
        (7, config.into_bytes()),
        (8, b"registry.example:5000/a/b:tag".to_vec()),
        (10, tree.render()),
        (11, header.stream_prefix()),
        (11, link.stream_prefix()),
        (11, header.archive_prefix(7)),
    ];
    texts.into_iter().map(|(kind, text)| [vec![kind], text].concat()).collect()
}
