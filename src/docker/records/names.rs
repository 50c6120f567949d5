//! What Docker's store calls things: `repositories.json`, cache ids, short links.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Known;
use crate::docker::is_our_tag;
use crate::model::Digest;

/// `repositories.json` (moby, `reference/store.go`): repository → name → Id.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Repositories {
    #[serde(rename = "Repositories", default)]
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

impl Repositories {
    /// Reads it, and says whether it was broken. Not being there is not broken.
    pub(super) fn parse(bytes: Option<&[u8]>) -> (Self, bool) {
        match bytes.map(serde_json::from_slice) {
            None => (Self::default(), false),
            Some(Ok(names)) => (names, false),
            Some(Err(_)) => (Self::default(), true),
        }
    }

    pub(super) fn render(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Tags of ours with the images that they are on.
    pub(super) fn ours(&self) -> Vec<(Digest, String)> {
        let all = self.repositories.values().flatten().filter(|(name, _)| is_our_tag(name));
        all.filter_map(|(name, id)| Some((id.parse().ok()?, name.clone()))).collect()
    }

    pub(super) fn has(&self, id: Digest) -> bool {
        let id = id.to_string();
        self.repositories.values().flatten().any(|(_, on)| *on == id)
    }

    /// Whether a tag is there, and on that image.
    pub(super) fn is_on(&self, tag: &str, id: Digest) -> bool {
        let repository = tag.rsplit_once(':').map_or(tag, |(repository, _)| repository);
        let names = self.repositories.get(repository);
        names.and_then(|names| names.get(tag)).is_some_and(|on| *on == id.to_string())
    }

    pub(super) fn insert(&mut self, tag: &str, id: Digest) {
        let repository = tag.rsplit_once(':').map_or(tag, |(repository, _)| repository);
        let names = self.repositories.entry(repository.to_owned()).or_default();
        names.insert(tag.to_owned(), id.to_string());
    }

    pub(super) fn remove(&mut self, tag: &str) {
        self.repositories.retain(|_, names| {
            names.remove(tag);
            !names.is_empty()
        });
    }
}

/// What we call the layer of a chain: the same on every host.
pub(super) fn own(chain: Digest) -> Known {
    let cache = Digest::of(format!("rackstep layer {chain}").as_bytes());
    Known { cache: cache.hex(), link: base32(&cache.as_bytes()[..16]) }
}

/// 26 characters for 16 bytes (RFC 4648), as Docker's own short names.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    let letters = (bytes.len() * 8).div_ceil(5);
    (0..letters)
        .map(|letter| {
            let index = (0..5).fold(0, |value, at| value << 1 | bit(letter * 5 + at));
            char::from(ALPHABET[usize::from(index)])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_of_the_rfc() {
        for (text, expected) in [("", ""), ("f", "MY"), ("fo", "MZXQ"), ("foobar", "MZXW6YTBOI")] {
            assert_eq!(base32(text.as_bytes()), expected);
        }
        assert_eq!(own(Digest::of(b"x")).link.len(), 26);
    }

    #[test]
    fn tags_of_others_stay() {
        let json = br#"{"Repositories":{"mine":{"mine:1":"sha256:aa"},"rackstep.internal/x":{"rackstep.internal/x:0":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}}"#;
        let (mut names, broken) = Repositories::parse(Some(json));
        assert!(!broken);
        assert_eq!(names.ours(), [(Digest::of(b""), "rackstep.internal/x:0".to_owned())]);
        names.remove("rackstep.internal/x:0");
        names.insert("rackstep.internal/y:1", Digest::of(b"y"));
        assert!(names.has(Digest::of(b"y")) && !names.has(Digest::of(b"")));
        let text = String::from_utf8(names.render()).unwrap();
        assert!(
            text.starts_with(r#"{"Repositories":{"mine":{"mine:1":"sha256:aa"},"rackstep.internal/y":"#),
            "{text}"
        );
        assert!(Repositories::parse(Some(b"{")).1);
    }
}
