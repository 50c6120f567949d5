//! What a registry asks for: `WWW-Authenticate` (RFC 9110, 11.6.1; distribution's `docs/spec/auth/token.md`).

use std::collections::BTreeMap;

/// One way to convince a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// `basic`, `bearer`, …; lower case.
    pub scheme: String,
    /// Its parameters; names in lower case.
    pub parameters: BTreeMap<String, String>,
}

/// Reads the value of one header, which may hold several challenges.
pub fn parse_challenges(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            // At the end, or at something that no grammar has: what was read so far counts.
            return challenges;
        }
        // `name = value`, however it is spaced; else the word begins a challenge.
        match after.trim_start_matches([' ', '\t']).strip_prefix('=') {
            Some(value) => {
                let (value, after) = take_value(value.trim_start_matches([' ', '\t']));
                if let Some(challenge) = challenges.last_mut() {
                    challenge.parameters.insert(word.to_ascii_lowercase(), value);
                }
                rest = after;
            }
            None => {
                let scheme = word.to_ascii_lowercase();
                challenges.push(Challenge { scheme, parameters: BTreeMap::new() });
                rest = after;
            }
        }
    }
}

/// A token, or a quoted text with its backslashes taken away.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_as_servers_write_them() {
        let challenge = |scheme: &str, parameters: &[(&str, &str)]| Challenge {
            scheme: scheme.to_owned(),
            parameters: parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        let hub = challenge(
            "bearer",
            &[
                ("realm", "https://auth.docker.io/token"),
                ("service", "registry.docker.io"),
                ("scope", "repository:library/debian:pull,push"),
            ],
        );
        let basic = challenge("basic", &[("realm", "a \"b\", c")]);
        for (header, expected) in [
            ("", vec![]),
            ("Negotiate", vec![challenge("negotiate", &[])]),
            ("BASIC Realm=x", vec![challenge("basic", &[("realm", "x")])]),
            (r#"Basic realm="a \"b\", c""#, vec![basic.clone()]),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull,push""#,
                vec![hub.clone()],
            ),
            (
                r#"Basic realm="a \"b\", c", Bearer realm = "https://auth.docker.io/token" , service="registry.docker.io", scope="repository:library/debian:pull,push", Negotiate"#,
                vec![basic, hub, challenge("negotiate", &[])],
            ),
            (r#"Bearer realm="never ends"#, vec![challenge("bearer", &[("realm", "never ends")])]),
            ("= = ,", vec![]),
        ] {
            assert_eq!(parse_challenges(header), expected, "{header}");
        }
    }
}
