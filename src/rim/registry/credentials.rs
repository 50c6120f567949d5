//! Who we are to a registry: Docker's own configuration.
//!
//! `config.json` in `$DOCKER_CONFIG` or `~/.docker`: 1. the registry's `credHelpers` entry; 2. `credsStore`; both name a
//! program `docker-credential-…`; 3. `auths`. The first that knows the registry counts. Nothing is ever written.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::RegistryError;
use crate::model::ImageRef;
use crate::rim::command::CommandError;

/// The file in Docker's directory of configuration.
const CONFIG: &str = "config.json";
/// What Docker calls its hub when it keeps a login.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user that a helper gives to say that its secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// What helpers say when they do not know a server (docker-credential-helpers, `credentials/error.go`).
const UNKNOWN: &str = "credentials not found in native keychain";

/// What a login is proved with.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User and password.
    Password {
        /// User.
        user: String,
        /// Password.
        password: String,
    },
    /// A token that the server of tokens takes for new ones.
    Identity(String),
}

impl fmt::Debug for Credentials {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password({user})"),
            Self::Identity(_) => f.write_str("Identity"),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: BTreeMap<String, Login>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Login {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Docker's directory of configuration, as the environment says.
pub fn config_dir() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")))
}

/// What Docker's configuration in `dir` knows for pulling `image`.
pub fn find(dir: &Path, image: &ImageRef) -> Result<Option<Credentials>, RegistryError> {
    let path = dir.join(CONFIG);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| RegistryError::Read { path: path.clone(), source })?,
    };
    let broken = |why: String| RegistryError::Config { path: path.clone(), why };
    let config: ConfigFile = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
    let host = image.registry();
    let key = if host == image.api_host() { host } else { HUB_KEY };
    let helper = [host, key].into_iter().find_map(|key| config.cred_helpers.get(key));
    for helper in helper.into_iter().chain(Some(&config.creds_store)).filter(|helper| !helper.is_empty()) {
        if helper.contains('/') {
            return Err(broken(format!("{helper:?} is not the name of a credential helper")));
        }
        if let Some(found) = ask_helper(&format!("docker-credential-{helper}"), key)? {
            return Ok(Some(found));
        }
    }
    let Some((key, login)) = choose(&config.auths, image) else { return Ok(None) };
    login.credentials().map_err(|why| broken(format!("auths: {key}: {why}")))
}

/// The login whose key names most of the image: `HOST`, `https://HOST/v1/`, or `HOST/part/of/repository`.
fn choose<'a>(auths: &'a BTreeMap<String, Login>, image: &ImageRef) -> Option<(&'a String, &'a Login)> {
    let whole = format!("{}/{}", image.registry(), image.repository());
    let matches = auths.iter().filter_map(|(key, login)| {
        let plain = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        let plain = plain.trim_end_matches("/v1").trim_end_matches("/v2");
        let plain =
            if ["index.docker.io", "registry-1.docker.io"].contains(&plain) { "docker.io" } else { plain };
        let rest = whole.strip_prefix(plain)?;
        (rest.is_empty() || rest.starts_with('/')).then_some((plain.len(), key, login))
    });
    matches.max_by_key(|(length, ..)| *length).map(|(_, key, login)| (key, login))
}

impl Login {
    /// An entry without anything is what Docker leaves where a helper keeps the secret.
    fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::Identity(self.identitytoken.clone())));
        }
        if self.auth.is_empty() {
            let (user, password) = (self.username.clone(), self.password.clone());
            return Ok((!user.is_empty()).then_some(Credentials::Password { user, password }));
        }
        let decoded = STANDARD.decode(self.auth.trim()).map_err(|_| "auth is not base64")?;
        let text = String::from_utf8(decoded).map_err(|_| "auth is not base64 of text")?;
        let (user, password) = text.split_once(':').ok_or("auth is not base64 of USER:PASSWORD")?;
        // Docker itself has ended them with zeros at times.
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Credentials::Password { user: user.to_owned(), password }))
    }
}

/// Asks a credential helper; none: it does not know the server.
fn ask_helper(program: &str, server: &str) -> Result<Option<Credentials>, RegistryError> {
    let failed = |source| RegistryError::Helper { host: server.to_owned(), source };
    let io_failed = |source| failed(CommandError::Start { program: program.to_owned(), source });
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io_failed)?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that ends without reading says why in its own way.
        let _ = input.write_all(server.as_bytes());
    }
    let output = child.wait_with_output().map_err(io_failed)?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        if said.trim() == UNKNOWN {
            return Ok(None);
        }
        let stderr = format!("{} {}", said.trim(), String::from_utf8_lossy(&output.stderr).trim());
        let (program, stderr) = (program.to_owned(), stderr.trim().to_owned());
        return Err(failed(CommandError::Status { program, status: output.status, stderr }));
    }
    // Its answer is a secret: an error must not repeat it.
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout).map_err(|_| {
        let why = "what is not JSON with Username and Secret".to_owned();
        RegistryError::HelperAnswer { program: program.to_owned(), host: server.to_owned(), why }
    })?;
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credentials::Identity(answer.secret),
        _ => Credentials::Password { user: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &str, image: &str) -> Result<Option<Credentials>, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONFIG), config).unwrap();
        let told = |error: RegistryError| error.to_string().replace(&dir.path().display().to_string(), "DIR");
        find(dir.path(), &image.parse().unwrap()).map_err(told)
    }

    #[test]
    fn logins_of_docker_and_podman() {
        // base64 of "u:p:q", "hub:h" and "team:t".
        let config = r#"{"auths": {
            "quay.io": {"auth": "dTpwOnE="}, "quay.io/team": {"auth": "dGVhbTp0"},
            "https://index.docker.io/v1/": {"auth": "aHViOmg="}, "token.io": {"identitytoken": "i"},
            "plain.io:5000": {"username": "n", "password": "w"}, "kept.elsewhere.io": {}, "bad.io": {"auth": "%"}
        }, "HttpHeaders": {"X": "y"}, "currentContext": "default"}"#;
        let password = |user: &str, password: &str| {
            Ok(Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() }))
        };
        for (image, expected) in [
            ("quay.io/a", password("u", "p:q")),
            ("quay.io/teammate/a", password("u", "p:q")),
            ("quay.io/team/a", password("team", "t")),
            ("debian:12", password("hub", "h")),
            ("kolla/keystone", password("hub", "h")),
            ("token.io/a", Ok(Some(Credentials::Identity("i".to_owned())))),
            ("plain.io:5000/a", password("n", "w")),
            ("plain.io/a", Ok(None)),
            ("kept.elsewhere.io/a", Ok(None)),
            ("bad.io/a", Err("DIR/config.json: auths: bad.io: auth is not base64".to_owned())),
        ] {
            assert_eq!(found(config, image), expected, "{image}");
        }
        assert!(found("{", "a").unwrap_err().starts_with("DIR/config.json: EOF while parsing"));
        assert_eq!(find(Path::new("/nonexistent"), &"a".parse().unwrap()).unwrap(), None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = Credentials::Password { user: "me".to_owned(), password: "hush".to_owned() };
        assert_eq!(
            format!("{secret:?} {:?}", Credentials::Identity("hush".to_owned())),
            "Password(me) Identity"
        );
    }

    #[test]
    fn helpers_are_asked_first() {
        let told = found(r#"{"credsStore": "not-there"}"#, "quay.io/a").unwrap_err();
        assert_eq!(told, "asking for the credentials of quay.io");
        let told = found(r#"{"credHelpers": {"quay.io": "../evil"}}"#, "quay.io/a").unwrap_err();
        assert!(told.contains("is not the name of a credential helper"), "{told}");
        assert_eq!(found(r#"{"credHelpers": {"quay.io": "not-there"}}"#, "other.io/a"), Ok(None));

        let dir = tempfile::tempdir().unwrap();
        let helper = dir.path().join("helper");
        let script = "#!/bin/sh\nread -r server\ncase $server in\nknown) echo '{\"ServerURL\":\"known\",\"Username\":\"u\",\"Secret\":\"s\"}';;\ntoken) echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}';;\nunknown) echo 'credentials not found in native keychain'; exit 1;;\nodd) echo hush;;\n*) echo locked >&2; exit 2;;\nesac\n";
        // Written by another process: a program that some fork of this one has open for writing cannot be started.
        let mut write = Command::new("sh");
        write.args(["-c", "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"", "sh", script]);
        assert!(write.arg(&helper).status().unwrap().success());
        let ask = |server: &str| ask_helper(helper.to_str().unwrap(), server);
        let known = Credentials::Password { user: "u".to_owned(), password: "s".to_owned() };
        assert_eq!(ask("known").unwrap(), Some(known));
        assert_eq!(ask("token").unwrap(), Some(Credentials::Identity("t".to_owned())));
        assert_eq!(ask("unknown").unwrap(), None);
        assert!(!ask("odd").unwrap_err().to_string().contains("hush"));
        let error = ask("locked").unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.ends_with("ended with exit status: 2: locked"), "{source}");
    }
}
