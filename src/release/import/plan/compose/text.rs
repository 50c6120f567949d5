//! What Compose writes as text: variables, times, sizes, files of variables.

use super::super::report::Ledger;
use super::super::tree::{Kind, Node};
use super::Beside;

pub(super) fn on_host(node: &Node) -> bool {
    ["net", "network_mode"].iter().any(|key| node.text_of(key) == "host")
}

/// True for variables that usually hold what nobody should read.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_uppercase();
    ["PASSWORD", "PASSWD", "SECRET", "TOKEN", "PRIVATE_KEY", "API_KEY"].iter().any(|word| name.contains(word))
}

pub(super) fn environment_lines(files: &Beside) -> Vec<(String, String)> {
    let text: String =
        files.iter().map(|(_, content, _)| String::from_utf8_lossy(content).into_owned()).collect();
    let lines = text.lines().map(|line| line.trim().trim_start_matches("export "));
    let lines = lines.filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.trim().to_owned(), value.trim().trim_matches(['"', '\'']).to_owned()))
        .collect()
}

/// Puts variables in, as Compose does before anything else.
pub(super) fn interpolate(node: &mut Node, variables: &[(String, String)], ledger: &Ledger) {
    let copy = node.clone();
    match &mut node.kind {
        Kind::Sequence(items) => items.iter_mut().for_each(|item| interpolate(item, variables, ledger)),
        Kind::Mapping(entries) => {
            entries.iter_mut().for_each(|(_, node)| interpolate(node, variables, ledger))
        }
        Kind::Scalar(text, _) if text.contains('$') => match filled(text, variables) {
            Ok(filled) => *text = filled,
            Err(name) => {
                let why = format!(
                    "{name} has no value here: `docker compose config` puts it in, import its output (or write it to .env)"
                );
                ledger.refused(&copy, why);
            }
        },
        Kind::Scalar(..) => {}
    }
}

/// The text with variables in place; the name of the first that has no value is the error.
fn filled(text: &str, variables: &[(String, String)]) -> Result<String, String> {
    let value =
        |name: &str| variables.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    let (mut done, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        done.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            done.push('$');
            rest = after;
        } else if let Some((inner, after)) = after.strip_prefix('{').and_then(|after| after.split_once('}')) {
            let end = inner.find([':', '-', '?', '+']).unwrap_or(inner.len());
            let (name, operator) = inner.split_at(end);
            let own = value(name).filter(|value| !operator.starts_with(':') || !value.is_empty());
            let default = operator.trim_start_matches(':').strip_prefix('-').map(str::to_owned);
            done.push_str(&own.or(default).ok_or_else(|| name.to_owned())?);
            rest = after;
        } else {
            let end = after
                .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            done.push_str(&value(name).ok_or_else(|| format!("${name}"))?);
            rest = after;
        }
    }
    Ok(done + rest)
}

/// `1m30s` → 90; parts of a second count as one.
pub(super) fn seconds(text: &str) -> i64 {
    let (mut total, mut number) = (0.0, String::new());
    let mut unit = String::new();
    let mut add = |number: &mut String, unit: &mut String| {
        let factor = match unit.as_str() {
            "h" => 3600.0,
            "m" => 60.0,
            "ms" => 0.001,
            "us" => 0.000_001,
            _ => 1.0,
        };
        total += number.parse::<f64>().unwrap_or(0.0) * factor;
        number.clear();
        unit.clear();
    };
    for letter in text.chars() {
        if letter.is_ascii_digit() || letter == '.' {
            if !unit.is_empty() {
                add(&mut number, &mut unit);
            }
            number.push(letter);
        } else {
            unit.push(letter);
        }
    }
    add(&mut number, &mut unit);
    #[allow(clippy::cast_possible_truncation)] // times of a health check are small
    let whole = total.ceil() as i64;
    whole
}

/// `512m` → `512Mi`: Docker counts by 1024.
pub(super) fn quantity(text: &str) -> String {
    let text = text.to_lowercase();
    let text = text.trim_end_matches('b');
    match text.strip_suffix(['k', 'm', 'g']) {
        Some(number) => format!("{number}{}i", text[number.len()..].to_uppercase()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_times_and_sizes() {
        let variables = vec![("A".to_owned(), "1".to_owned()), ("E".to_owned(), String::new())];
        for (text, expected) in [
            ("x${A}y$A", Ok("x1y1")),
            ("${B:-two}", Ok("two")),
            ("${E:-two}${E-no}", Ok("two")),
            ("$$HOME", Ok("$HOME")),
            ("${B}", Err("B")),
            ("${B:?must}", Err("B")),
        ] {
            let told = filled(text, &variables);
            assert_eq!(told.as_deref().map_err(String::as_str), expected, "{text}");
        }
        assert_eq!((seconds("1m30s"), seconds("500ms"), seconds("10")), (90, 1, 10));
        assert_eq!(
            (quantity("512m"), quantity("1gb"), quantity("100")),
            ("512Mi".into(), "1Gi".into(), "100".into())
        );
    }
}
