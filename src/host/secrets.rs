//! Secrets of this host: made once, kept, never in a release.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

use crate::model::{SecretKind, SecretSet};

use crate::rim::files::{Durability, FileError, ensure_directory, naming, read_text, write_atomic};

/// Characters of a password: letters and digits need no quoting anywhere, and 32 of them hold 190 bits.
const PASSWORD_LENGTH: usize = 32;

/// What passwords are made of.
const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// The values of a release's secrets. Prints names alone.
#[derive(Clone, Default)]
pub struct Secrets(BTreeMap<String, String>);

impl Secrets {
    /// The value of one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Makes the secrets that are not there yet, and reads them all. Gives how many are new.
pub fn ensure_secrets(directory: &Path, set: &SecretSet) -> Result<(Secrets, usize), FileError> {
    ensure_directory(directory, 0o700)?;
    let mut secrets = Secrets::default();
    let mut new = 0;
    for (name, secret) in &set.secrets {
        let path = directory.join(name);
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            let problem = io::Error::new(io::ErrorKind::InvalidInput, "not a name of a secret");
            return Err(naming("making secret", &path)(problem));
        }
        if !path.exists() {
            let value = match secret.generate {
                SecretKind::Password => generate_password().map_err(naming("making secret", &path))?,
            };
            write_atomic(&path, value.as_bytes(), 0o600, Durability::Durable)?;
            new += 1;
        }
        let value = read_text(&path)?;
        let value = value.trim_end_matches('\n');
        if value.is_empty() {
            // An empty password would be worse than none at all.
            return Err(naming("reading secret", &path)(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is empty",
            )));
        }
        secrets.0.insert(name.clone(), value.to_owned());
    }
    Ok((secrets, new))
}

fn generate_password() -> io::Result<String> {
    let mut password = String::new();
    // Bytes beyond the last whole alphabet would favour its first letters.
    let usable = 256 - 256 % ALPHABET.len();
    let mut byte = [0];
    while password.len() < PASSWORD_LENGTH {
        getrandom::fill(&mut byte)?;
        let value = usize::from(byte[0]);
        if value < usable {
            password.push(char::from(ALPHABET[value % ALPHABET.len()]));
        }
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Secret;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn secrets_are_made_once_and_kept_to_root() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("secrets");
        let set = |names: &[&str]| SecretSet {
            format: 1,
            secrets: names
                .iter()
                .map(|name| ((*name).to_owned(), Secret { generate: SecretKind::Password }))
                .collect(),
        };
        let (first, new) = ensure_secrets(&directory, &set(&["a", "b"])).unwrap();
        assert_eq!(new, 2);
        let (second, new) = ensure_secrets(&directory, &set(&["a", "b", "c"])).unwrap();
        assert_eq!(new, 1);
        assert_eq!(first.get("a"), second.get("a"));
        assert_ne!(first.get("a"), first.get("b"));
        assert_eq!(first.get("a").unwrap().len(), 32);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&directory), mode(&directory.join("a"))), (0o700, 0o600));
        assert_eq!(format!("{first:?}"), r#"{"a", "b"}"#);
        std::fs::write(directory.join("a"), "").unwrap();
        assert!(ensure_secrets(&directory, &set(&["a"])).is_err());
        assert!(ensure_secrets(&directory, &set(&["../a"])).is_err());
    }
}
