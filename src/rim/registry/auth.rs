//! Answers a registry's challenge: Basic, or a token from the server that it names.

use std::sync::PoisonError;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::challenge::{Challenge, parse_challenges};
use super::{Credentials, Registry, RegistryError};
use crate::rim::fetch::{FetchError, attempt};

/// Who we are to a server of tokens.
const CLIENT_ID: &str = "rackstep";
/// Largest answer of a server of tokens.
const TOKEN_LIMIT: u64 = 1 << 20;

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Registry {
    /// What requests are sent with.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Finds an answer to the challenges of a 401 and keeps it for the requests that follow.
    pub(super) fn authorize(&self, headers: &HeaderMap) -> Result<(), RegistryError> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        let challenges: Vec<Challenge> =
            values.filter_map(|value| value.to_str().ok()).flat_map(parse_challenges).collect();
        let value = match challenges.iter().find(|known| ["bearer", "basic"].contains(&known.scheme.as_str()))
        {
            Some(challenge) if challenge.scheme == "bearer" => {
                format!("Bearer {}", self.fetch_token(challenge)?)
            }
            Some(_) => match &self.credentials {
                Some(Credentials::Password { user, password }) => basic(user, password),
                _ => return Err(self.denied()),
            },
            None => {
                let got = challenges.into_iter().map(|challenge| challenge.scheme).collect();
                return Err(RegistryError::Challenge { host: self.image.registry().to_owned(), got });
            }
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| self.denied())?;
        value.set_sensitive(true);
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    /// Asks the server of tokens that the challenge names (distribution's `docs/spec/auth/token.md` and `oauth.md`).
    fn fetch_token(&self, challenge: &Challenge) -> Result<String, RegistryError> {
        let of = |name: &str| challenge.parameters.get(name).map(String::as_str);
        let realm = of("realm").unwrap_or_default();
        let bad_realm =
            || RegistryError::Realm { host: self.image.registry().to_owned(), realm: realm.to_owned() };
        let mut url = Url::parse(realm).map_err(|_| bad_realm())?;
        // A registry that is reached by TLS must not make us tell the password in the clear.
        let in_the_clear = self.base.starts_with("http://");
        if url.scheme() != "https" && !(in_the_clear && url.scheme() == "http") {
            return Err(bad_realm());
        }
        let scope =
            of("scope").map_or_else(|| format!("repository:{}:pull", self.image.repository()), str::to_owned);
        let shown = url.to_string();
        let answer = match &self.credentials {
            Some(Credentials::Identity(token)) => {
                let form = form(&[
                    ("grant_type", "refresh_token"),
                    ("service", of("service").unwrap_or_default()),
                    ("client_id", CLIENT_ID),
                    ("scope", &scope),
                    ("refresh_token", token),
                ]);
                attempt(RegistryError::is_passing, || {
                    let post = self.fetch.send(&shown, |client| {
                        let request = client.post(url.clone());
                        request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.clone())
                    })?;
                    self.read_token(&shown, post)
                })
            }
            other => {
                if let Some(service) = of("service") {
                    url.query_pairs_mut().append_pair("service", service);
                }
                url.query_pairs_mut().append_pair("scope", &scope);
                let login = match other {
                    Some(Credentials::Password { user, password }) => Some(basic(user, password)),
                    _ => None,
                };
                attempt(RegistryError::is_passing, || {
                    let got = self.fetch.send(&shown, |client| {
                        let request = client.get(url.clone());
                        match &login {
                            Some(login) => request.header(AUTHORIZATION, login),
                            None => request,
                        }
                    })?;
                    self.read_token(&shown, got)
                })
            }
        }?;
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        if token.is_empty() { Err(RegistryError::Token { url: shown }) } else { Ok(token) }
    }

    fn read_token(
        &self,
        url: &str,
        answer: crate::rim::fetch::Answer<'_>,
    ) -> Result<TokenAnswer, RegistryError> {
        match answer.status {
            200..300 => {}
            400 | 401 | 403 => return Err(self.denied()),
            status => return Err(FetchError::Status { url: url.to_owned(), status }.into()),
        }
        let bytes = answer.body.read_whole(TOKEN_LIMIT)?;
        // Nothing of it goes into the error: it is a secret.
        serde_json::from_slice(&bytes).map_err(|_| RegistryError::Token { url: url.to_owned() })
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// A form's body; [`Url`] knows how to write one.
fn form(pairs: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://form").ok();
    if let Some(url) = &mut url {
        url.query_pairs_mut().extend_pairs(pairs);
    }
    url.and_then(|url| url.query().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_escaped() {
        assert_eq!(form(&[("a", "b c&d"), ("scope", "x:y")]), "a=b+c%26d&scope=x%3Ay");
    }
}
