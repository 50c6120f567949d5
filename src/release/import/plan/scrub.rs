//! Passwords out of configuration that holds them in clear.
//!
//! 1. `passwords.yml`, where it is in the input, tells every value and its name; 2. options that are passwords by their
//!    name, passwords in URLs and private keys are found by themselves; 3. each is replaced by a reference to a named secret.

use std::collections::{BTreeMap, BTreeSet};

use super::kolla::File;

/// Shorter values are too likely to be part of something else.
const LEAST_LENGTH: usize = 6;

/// Known values and their names.
#[derive(Debug, Default)]
pub struct Scrubber {
    known: BTreeMap<String, String>,
}

/// A file without passwords.
#[derive(Debug)]
pub struct Scrubbed {
    /// Its content.
    pub content: Vec<u8>,
    /// The secrets that it refers to.
    pub secrets: BTreeSet<String>,
}

impl Scrubber {
    /// Learns the values that stand in the input.
    pub fn new(files: &[File]) -> Self {
        let mut known = BTreeMap::new();
        for file in files.iter().filter(|file| file.path == "passwords.yml") {
            for line in String::from_utf8_lossy(&file.content).lines() {
                if let Some((name, value)) = line.split_once(':') {
                    let value = value.trim().trim_matches(['"', '\'']);
                    if value.len() >= LEAST_LENGTH && !name.starts_with([' ', '#']) {
                        known.entry(value.to_owned()).or_insert_with(|| name.trim().replace('_', "-"));
                    }
                }
            }
        }
        // The same password in two services is one secret, by the name of the first.
        for file in files {
            let service = file.path.split('/').next().unwrap_or_default();
            for (value, name) in found(&String::from_utf8_lossy(&file.content), service) {
                known.entry(value).or_insert(name);
            }
        }
        Self { known }
    }

    /// The content with references in place of passwords.
    pub fn scrub(&self, service: &str, path: &str, content: &[u8]) -> Scrubbed {
        let mut secrets = BTreeSet::new();
        let Ok(text) = std::str::from_utf8(content) else {
            return Scrubbed { content: content.to_vec(), secrets };
        };
        if text.contains("PRIVATE KEY-----") {
            let name = format!("{service}-{}", super::workload::slug(path));
            secrets.insert(name.clone());
            return Scrubbed { content: format!("${{secret:{name}}}\n").into_bytes(), secrets };
        }
        let mut text = text.to_owned();
        // The longest first: one password may begin another.
        let mut values: Vec<(&String, &String)> = self.known.iter().collect();
        values.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        for (value, name) in values {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), &format!("${{secret:{name}}}"));
                secrets.insert(name.clone());
            }
        }
        Scrubbed { content: text.into_bytes(), secrets }
    }
}

/// Passwords of a file, and names for them.
fn found(text: &str, service: &str) -> Vec<(String, String)> {
    let mut values = Vec::new();
    let mut section = String::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = super::workload::slug(name);
            continue;
        }
        let Some((option, value)) = line.split_once(['=', ':']) else { continue };
        let option = option.trim().trim_matches('"').to_lowercase();
        let value = value.trim().trim_end_matches(',').trim_matches(['"', '\'']);
        let is_secret =
            ["password", "secret", "_pass", "auth_encryption_key", "wsrep_sst_auth", "transport_key"]
                .iter()
                .any(|word| option.ends_with(word) || option.contains("secret_key"));
        let name = |last: &str| {
            [service, &section, last]
                .into_iter()
                .filter(|part| !part.is_empty())
                .map(super::workload::slug)
                .collect::<Vec<_>>()
                .join("-")
        };
        if is_secret && value.len() >= LEAST_LENGTH && !line.starts_with(['#', ';']) {
            values.push((value.to_owned(), name(&option)));
        }
        for password in url_passwords(line) {
            values.push((password.to_owned(), name(&format!("{option}-password"))));
        }
    }
    values
}

/// Passwords of `scheme://user:password@host`, several hosts too.
fn url_passwords(line: &str) -> Vec<&str> {
    let Some((_, rest)) = line.split_once("://") else { return Vec::new() };
    let users = rest.split(',').filter_map(|part| part.split_once('@').map(|(user, _)| user));
    let passwords = users.filter_map(|user| user.split_once(':').map(|(_, password)| password));
    passwords.filter(|password| password.len() >= LEAST_LENGTH && !password.contains('/')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_become_references() {
        let text = "[database]\nconnection = mysql+pymysql://keystone:s3cr3tpw@10.0.0.1/keystone\n[a]\npassword = other-one\n";
        let file = |path: &str, text: &str| File {
            shown: path.into(),
            path: path.into(),
            content: text.as_bytes().to_vec(),
        };
        let files = [
            file("passwords.yml", "keystone_database_password: s3cr3tpw\n"),
            file("keystone/keystone.conf", text),
        ];
        let scrubbed = Scrubber::new(&files).scrub("keystone", "keystone.conf", text.as_bytes());
        let text = String::from_utf8(scrubbed.content).unwrap();
        assert!(text.contains("keystone:${secret:keystone-database-password}@10.0.0.1"), "{text}");
        assert!(text.contains("password = ${secret:keystone-a-password}"), "{text}");
        assert_eq!(scrubbed.secrets.len(), 2);
    }
}
