//! Signatures of releases: ed25519 over the commit object's bytes.
//!
//! They stand where libostree puts them: in the commit's detached metadata (`.commitmeta`, `a{sv}`) under the key
//! `ostree.sign.ed25519`, an array of 64-byte signatures; so any ostree with ed25519 can check them, and ours is checked
//! before anything else of a commit is parsed. Debian's libostree is built without ed25519, hence our own.
//!
//! Key files are text: base64, one key a line, `#` begins a comment. A secret key is 64 bytes (seed, public key), a
//! public key 32, as `ostree sign --sign-type=ed25519` takes them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use glib::Variant;

use super::repo::gvariant;
use super::repo::{Repo, RepoError};
use crate::model::{Commit, ObjectName};

/// libostree's key for ed25519 signatures in detached metadata.
pub const SIGNATURES: &str = "ostree.sign.ed25519";

/// Why something could not be signed or is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A key file could not be read or written.
    #[error("{action} key file {path}")]
    KeyFile {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A key file does not hold a key.
    #[error("{path}, line {line}: not an ed25519 {expected} key in base64")]
    Key {
        /// Which file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// `public` or `secret`.
        expected: &'static str,
    },
    /// A text is not a public key.
    #[error("{text:?} is not an ed25519 public key in base64")]
    KeyText {
        /// The text.
        text: String,
    },
    /// There is no signature at all.
    #[error("{what} is not signed, and {trusted} trusted key(s) ask for a signature")]
    Unsigned {
        /// The thing.
        what: String,
        /// How many keys are trusted.
        trusted: usize,
    },
    /// No signature is by a trusted key.
    #[error("{what} carries {signatures} signature(s), none by the {trusted} trusted key(s)")]
    Untrusted {
        /// The thing.
        what: String,
        /// Signatures seen.
        signatures: usize,
        /// How many keys are trusted.
        trusted: usize,
    },
    /// Detached metadata makes no sense.
    #[error("the detached metadata of commit {commit} is malformed")]
    Malformed {
        /// The commit.
        commit: Commit,
        /// Why.
        #[source]
        source: gvariant::Malformed,
    },
    /// The repo refused.
    #[error("the repo with commit {commit}")]
    Repo {
        /// The commit.
        commit: Commit,
        /// Why.
        #[source]
        source: Box<RepoError>,
    },
}

/// A key that may sign releases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// The key in base64.
    pub fn render(&self) -> String {
        BASE64.encode(self.0.as_bytes())
    }

    /// Parses base64 of 32 bytes.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 32] = BASE64.decode(text.trim()).ok()?.try_into().ok()?;
        VerifyingKey::from_bytes(&bytes).ok().map(Self)
    }
}

/// The key that signs releases.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// Makes a new key from the kernel's random numbers.
    pub fn generate() -> io::Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// The key that others check with.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs bytes.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }

    /// Writes the secret key to `path` (mode 0600, never over another key) and the public one to `path` + `.pub`.
    pub fn save(&self, path: &Path) -> Result<PathBuf, SignatureError> {
        let write = |path: &Path, mode: u32, text: String| {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(path)
                .and_then(|mut file| writeln!(file, "{text}").and_then(|()| file.sync_all()))
                .map_err(|source| SignatureError::KeyFile {
                    action: "writing",
                    path: path.to_owned(),
                    source,
                })
        };
        let mut public = path.as_os_str().to_owned();
        public.push(".pub");
        let public = PathBuf::from(public);
        write(path, 0o600, BASE64.encode(self.0.to_keypair_bytes()))?;
        write(&public, 0o644, self.public().render())?;
        Ok(public)
    }

    /// Reads a secret key file.
    pub fn load(path: &Path) -> Result<Self, SignatureError> {
        let keys = key_lines(path, "secret", |text| {
            let bytes = BASE64.decode(text).ok()?;
            match bytes.len() {
                64 => SigningKey::from_keypair_bytes(&bytes.try_into().ok()?).ok(),
                32 => Some(SigningKey::from_bytes(&bytes.try_into().ok()?)),
                _ => None,
            }
        })?;
        let missing = SignatureError::Key { path: path.to_owned(), line: 1, expected: "secret" };
        keys.into_iter().next().map(Self).ok_or(missing)
    }
}

/// Reads a file of public keys; a file without any is an error, so that it cannot mean "trust everything".
pub fn load_public_keys(path: &Path) -> Result<Vec<PublicKey>, SignatureError> {
    let keys = key_lines(path, "public", PublicKey::parse)?;
    if keys.is_empty() {
        return Err(SignatureError::Key { path: path.to_owned(), line: 1, expected: "public" });
    }
    Ok(keys)
}

/// Parses the public keys of a host's configuration (base64 each).
pub fn parse_public_keys(texts: &[String]) -> Result<Vec<PublicKey>, SignatureError> {
    texts
        .iter()
        .map(|text| PublicKey::parse(text).ok_or_else(|| SignatureError::KeyText { text: text.clone() }))
        .collect()
}

fn key_lines<K>(
    path: &Path,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<K>,
) -> Result<Vec<K>, SignatureError> {
    let text = fs::read_to_string(path).map_err(|source| SignatureError::KeyFile {
        action: "reading",
        path: path.to_owned(),
        source,
    })?;
    let mut keys = Vec::new();
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = SignatureError::Key { path: path.to_owned(), line: index + 1, expected };
        keys.push(parse(line).ok_or(wrong)?);
    }
    Ok(keys)
}

/// Checks that one of `signatures` over `bytes` is by a trusted key. Without trusted keys nothing is asked.
pub fn verify_bytes(
    what: &str,
    bytes: &[u8],
    signatures: &[Vec<u8>],
    trusted: &[PublicKey],
) -> Result<(), SignatureError> {
    if trusted.is_empty() {
        return Ok(());
    }
    if signatures.is_empty() {
        return Err(SignatureError::Unsigned { what: what.to_owned(), trusted: trusted.len() });
    }
    let good = signatures
        .iter()
        .filter_map(|bytes| Signature::from_slice(bytes).ok())
        .any(|signature| trusted.iter().any(|key| key.0.verify_strict(bytes, &signature).is_ok()));
    if good {
        return Ok(());
    }
    Err(SignatureError::Untrusted {
        what: what.to_owned(),
        signatures: signatures.len(),
        trusted: trusted.len(),
    })
}

/// Checks a commit object's signature before anything of it is parsed; `detached` is its `.commitmeta`, if any.
pub fn verify_commit(
    commit: Commit,
    bytes: &[u8],
    detached: Option<&[u8]>,
    trusted: &[PublicKey],
) -> Result<(), SignatureError> {
    if trusted.is_empty() {
        return Ok(());
    }
    verify_bytes(&format!("commit {commit}"), bytes, &signatures_in(commit, detached)?, trusted)
}

fn signatures_in(commit: Commit, detached: Option<&[u8]>) -> Result<Vec<Vec<u8>>, SignatureError> {
    let Some(detached) = detached else { return Ok(Vec::new()) };
    let entries = gvariant::parse_dictionary(detached)
        .map_err(|source| SignatureError::Malformed { commit, source })?;
    let value = entries.into_iter().find(|(key, _)| key == SIGNATURES).map(|(_, value)| value);
    Ok(value.and_then(|value| value.get::<Vec<Vec<u8>>>()).unwrap_or_default())
}

/// Signs a commit of the repo: adds our signature to those that are there. Gives false if it was there already.
pub fn sign_commit(repo: &Repo, commit: Commit, key: &SecretKey) -> Result<bool, SignatureError> {
    let in_repo = |source| SignatureError::Repo { commit, source: Box::new(source) };
    let bytes = repo.read_metadata(&ObjectName::of_commit(commit)).map_err(in_repo)?;
    let detached = repo.read_detached(commit).map_err(in_repo)?;
    let mut signatures = signatures_in(commit, detached.as_deref())?;
    let signature = key.sign(&bytes).to_vec();
    if signatures.contains(&signature) {
        return Ok(false);
    }
    signatures.push(signature);
    let mut entries = match detached {
        Some(detached) => gvariant::parse_dictionary(&detached)
            .map_err(|source| SignatureError::Malformed { commit, source })?,
        None => Vec::new(),
    };
    entries.retain(|(key, _)| key != SIGNATURES);
    let value: Variant =
        gvariant::array("ay", signatures.iter().map(|signature| gvariant::bytes_variant(signature)));
    entries.push((SIGNATURES.to_owned(), value));
    repo.write_detached(commit, &gvariant::render_dictionary(&entries)).map_err(in_repo)?;
    Ok(true)
}

/// Checks the signature of a commit that is in the repo.
pub fn verify_in_repo(repo: &Repo, commit: Commit, trusted: &[PublicKey]) -> Result<(), SignatureError> {
    let in_repo = |source| SignatureError::Repo { commit, source: Box::new(source) };
    let bytes = repo.read_metadata(&ObjectName::of_commit(commit)).map_err(in_repo)?;
    let detached = repo.read_detached(commit).map_err(in_repo)?;
    verify_commit(commit, &bytes, detached.as_deref(), trusted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("release.key");
        let key = SecretKey::generate().unwrap();
        let public = key.save(&path).unwrap();
        assert_eq!(SecretKey::load(&path).unwrap().public(), key.public());
        assert_eq!(load_public_keys(&public).unwrap(), [key.public()]);
        assert!(key.save(&path).is_err(), "never over another key");
        fs::write(&public, "# nothing\n").unwrap();
        assert!(load_public_keys(&public).is_err());
        fs::write(&public, "# a\nnonsense\n").unwrap();
        assert!(
            load_public_keys(&public)
                .unwrap_err()
                .to_string()
                .ends_with("line 2: not an ed25519 public key in base64")
        );
    }

    #[test]
    fn trust() {
        let (key, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let signed = vec![vec![1, 2], key.sign(b"bytes").to_vec()];
        let verify = |bytes: &[u8], signatures: &[Vec<u8>], trusted: &[PublicKey]| {
            verify_bytes("it", bytes, signatures, trusted)
        };
        assert!(verify(b"bytes", &signed, &[other.public(), key.public()]).is_ok());
        assert!(verify(b"bytes", &[], &[]).is_ok());
        assert!(matches!(verify(b"bytes", &[], &[key.public()]), Err(SignatureError::Unsigned { .. })));
        assert!(matches!(
            verify(b"bytes", &signed, &[other.public()]),
            Err(SignatureError::Untrusted { .. })
        ));
        assert!(matches!(verify(b"other", &signed, &[key.public()]), Err(SignatureError::Untrusted { .. })));
    }
}
