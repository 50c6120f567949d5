//! The index of a pack (JSON, format 1, or 3 if the pack has differences; 2 is that of older programs), and the list of a commit's packs (format 1).

use serde::{Deserialize, Serialize};

use crate::model::{Commit, Digest};

/// The format of packs of whole objects, and of lists.
pub const PACK_FORMAT: u32 = 1;
/// The format of packs that may have differences: a program that does not know it refuses them and goes by objects.
pub const DIFFERENCES_FORMAT: u32 = 3;
/// Where packs are, below the repo.
pub const PACKS_DIR: &str = "packs";
/// Where shards are, below the repo: one directory for all packs, since shards go by content.
pub const SHARDS_DIR: &str = "packs/shards";
/// An index or list larger than this is refused: it has some 150 bytes per shard.
pub const INDEX_LIMIT: u64 = 16 << 20;

/// What a pack consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// [`PACK_FORMAT`] or [`DIFFERENCES_FORMAT`].
    pub format: u32,
    /// The commit that the pack brings.
    pub to: Commit,
    /// The commit that must be there; nothing: the pack is whole.
    pub from: Option<Commit>,
    /// Objects in all shards.
    pub objects: u64,
    /// Bytes to transfer.
    pub bytes: u64,
    /// Bytes after decompression.
    pub raw: u64,
    /// The shards.
    pub shards: Vec<Shard>,
}

/// One shard of a pack: the file `packs/shards/<digest>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// The sha256 of the file: its name.
    pub digest: Digest,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes after decompression.
    pub raw: u64,
    /// Objects in it.
    pub objects: u64,
    /// Bytes of all its objects in canonical form; left out where that is about `raw`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked: Option<u64>,
}

/// Which packs there are for a commit. Only a hint: it is not signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// [`PACK_FORMAT`].
    pub format: u32,
    /// The commit.
    pub to: Commit,
    /// Its packs.
    pub packs: Vec<ListedPack>,
}

/// One pack in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedPack {
    /// The commit that must be there; nothing: the pack is whole.
    pub from: Option<Commit>,
    /// Bytes to transfer.
    pub bytes: u64,
}

/// Why an index or list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It is not JSON of the right shape.
    #[error("{what} does not parse")]
    Parse {
        /// Which file.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A newer program wrote it.
    #[error("{what} has format {got}, expected {newest} or less")]
    Format {
        /// Which file.
        what: String,
        /// Its format.
        got: u32,
        /// The highest that this program knows.
        newest: u32,
    },
    /// It contradicts itself or is about another commit.
    #[error("{what}: {field} is {got}, expected {expected}")]
    Lies {
        /// Which file.
        what: String,
        /// Which field.
        field: &'static str,
        /// What stands there.
        got: String,
        /// What should.
        expected: String,
    },
}

/// The path of a commit's list of packs below the repo.
pub fn list_path(to: Commit) -> String {
    format!("{PACKS_DIR}/{to}/list.json")
}

/// The path of a pack's index below the repo; its signature has `.sig` behind.
pub fn index_path(to: Commit, from: Option<Commit>) -> String {
    match from {
        None => format!("{PACKS_DIR}/{to}/full.json"),
        Some(from) => format!("{PACKS_DIR}/{to}/{from}.json"),
    }
}

/// What [`index_path`] was made with as `from`, by the name of the file; nothing if it is no index.
pub fn from_in_index_name(name: &str) -> Option<Option<Commit>> {
    match name.strip_suffix(".json")? {
        "full" => Some(None),
        from => from.parse().ok().map(Some),
    }
}

impl Shard {
    /// The shard's path below the repo.
    pub fn path(&self) -> String {
        format!("{SHARDS_DIR}/{}", self.digest.hex())
    }

    /// Bytes that its objects have together, at most.
    pub fn content(&self) -> u64 {
        self.unpacked.unwrap_or(self.raw)
    }
}

impl Index {
    /// Parses an index and checks that it is about this pack and adds up.
    pub fn parse(bytes: &[u8], to: Commit, from: Option<Commit>) -> Result<Self, IndexError> {
        let what = index_path(to, from);
        let index: Self = parse(bytes, &what, DIFFERENCES_FORMAT)?;
        let name =
            |commit: Option<Commit>| commit.map_or_else(|| "nothing".to_owned(), |commit| commit.hex());
        require(&what, "to", index.to, to)?;
        require(&what, "from", name(index.from), name(from))?;
        let sum = |of: fn(&Shard) -> u64| {
            index.shards.iter().fold(0u64, |sum, shard| sum.saturating_add(of(shard)))
        };
        require(&what, "bytes", index.bytes, sum(|shard| shard.size))?;
        require(&what, "raw", index.raw, sum(|shard| shard.raw))?;
        require(&what, "objects", index.objects, sum(|shard| shard.objects))?;
        Ok(index)
    }
}

impl List {
    /// Parses a list and checks that it is about this commit.
    pub fn parse(bytes: &[u8], to: Commit) -> Result<Self, IndexError> {
        let what = list_path(to);
        let list: Self = parse(bytes, &what, PACK_FORMAT)?;
        require(&what, "to", list.to, to)?;
        Ok(list)
    }
}

fn parse<T: for<'de> Deserialize<'de>>(bytes: &[u8], what: &str, newest: u32) -> Result<T, IndexError> {
    #[derive(Deserialize)]
    struct Any {
        format: u32,
    }
    let failed = |source| IndexError::Parse { what: what.to_owned(), source };
    let got = serde_json::from_slice::<Any>(bytes).map_err(failed)?.format;
    if got == 0 || got > newest {
        return Err(IndexError::Format { what: what.to_owned(), got, newest });
    }
    serde_json::from_slice(bytes).map_err(failed)
}

fn require<T: PartialEq + ToString>(
    what: &str,
    field: &'static str,
    got: T,
    expected: T,
) -> Result<(), IndexError> {
    if got == expected {
        return Ok(());
    }
    let (got, expected) = (got.to_string(), expected.to_string());
    Err(IndexError::Lies { what: what.to_owned(), field, got, expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_indexes_are_read_back() {
        let commit = |digit: &str| digit.repeat(64).parse::<Commit>().unwrap();
        let file_name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        for from in [None, Some(commit("2"))] {
            assert_eq!(from_in_index_name(&file_name(&index_path(commit("1"), from))), Some(from));
        }
        assert_eq!(from_in_index_name(&file_name(&list_path(commit("1")))), None);
        assert_eq!(from_in_index_name("full.json.sig"), None);
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let commit = |digit: &str| digit.repeat(64).parse::<Commit>().unwrap();
        let shard = Shard { digest: Digest::of(b"s"), size: 10, raw: 30, objects: 2, unpacked: None };
        let good = Index {
            format: 1,
            to: commit("1"),
            from: None,
            objects: 2,
            bytes: 10,
            raw: 30,
            shards: vec![shard],
        };
        let parse = |index: &Index| Index::parse(&serde_json::to_vec(index).unwrap(), commit("1"), None);
        assert_eq!(parse(&good).unwrap(), good);
        let bad = [
            Index { format: 4, ..good.clone() },
            Index { format: 0, ..good.clone() },
            Index { to: commit("2"), ..good.clone() },
            Index { from: Some(commit("3")), ..good.clone() },
            Index { bytes: 9, ..good.clone() },
            Index { raw: 1, ..good.clone() },
            Index { objects: 0, ..good.clone() },
        ];
        for index in bad {
            assert!(parse(&index).is_err(), "{index:?}");
        }
        assert!(Index::parse(b"{", commit("1"), None).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_error_or_an_index(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            flips in proptest::collection::vec((proptest::prelude::any::<usize>(), proptest::prelude::any::<u8>()), 1..4),
        ) {
            let to = "1".repeat(64).parse::<Commit>().unwrap();
            let shard = Shard { digest: Digest::of(b"s"), size: 10, raw: 30, objects: 2, unpacked: Some(50) };
            let shards = vec![shard.clone(), shard];
            let good = Index { format: 2, to, from: None, objects: 4, bytes: 20, raw: 60, shards };
            let mut mutated = serde_json::to_vec(&good).unwrap();
            let length = mutated.len();
            flips.iter().for_each(|(place, byte)| mutated[place % length] = *byte);
            for bytes in [&bytes, &mutated] {
                if let Ok(index) = Index::parse(bytes, to, None) {
                    proptest::prop_assert_eq!(index.bytes, index.shards.iter().map(|s| s.size).sum::<u64>());
                }
                let _ = List::parse(bytes, to);
            }
        }
    }
}
