//! Reads why apt cannot install packages together, and finds who asked for it.
//!
//! apt 2 writes its reasons to stdout, below "unmet dependencies", and only a summary to stderr; apt 3's solver writes
//! them to stderr. [`reason`] takes both and leaves out what apt always says.

use crate::model::PackageRequest;

const HEADING: &str = "The following packages have unmet dependencies:";

/// What apt says of the conflict itself, one reason a line.
pub(super) fn reason(stdout: &str, stderr: &str) -> String {
    let unmet = stdout.lines().skip_while(|line| *line != HEADING).skip(1);
    let unmet = unmet.take_while(|line| line.starts_with(' ')).map(one_blank);
    let errors: Vec<String> = stderr
        .lines()
        .filter(|line| !line.starts_with("W:") && !line.contains("you have held broken packages"))
        .map(|line| one_blank(line.strip_prefix("E: ").unwrap_or(line)))
        .filter(|line| !line.is_empty())
        .collect();
    let reasons: Vec<String> = unmet.chain(errors).collect();
    if reasons.is_empty() { one_blank(stderr) } else { reasons.join("\n") }
}

fn one_blank(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The requests whose packages the reasons name, those that a reason is about first.
pub(super) fn involved(told: &str, requested: &[PackageRequest]) -> Vec<String> {
    let subjects: Vec<&str> = told.lines().filter_map(|line| line.split(" : ").next()).collect();
    let is_edge = |c: Option<char>| c.is_none_or(|c| !(c.is_ascii_alphanumeric() || "+-.".contains(c)));
    let mentions = |line: &str, name: &str| {
        line.match_indices(name).any(|(at, _)| {
            let (before, after) = (&line[..at], &line[at + name.len()..]);
            let ends_a_sentence = after.starts_with(". ") || after == ".";
            is_edge(before.chars().next_back()) && (ends_a_sentence || is_edge(after.chars().next()))
        })
    };
    let rank = |request: &PackageRequest| {
        let name = request.name.as_str();
        let is_subject = subjects.iter().any(|one| one.split(':').next() == Some(name));
        if is_subject { Some(0) } else { told.lines().any(|line| mentions(line, name)).then_some(1) }
    };
    let mut found: Vec<(i32, String)> =
        requested.iter().filter_map(|one| Some((rank(one)?, one.to_string()))).collect();
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, request)| request).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(names: &[&str]) -> Vec<PackageRequest> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn the_reason_of_apt_2_is_in_its_answer() {
        let stdout = "Reading package lists...\nThe following information may help to resolve the situation:\n\nThe following packages have unmet dependencies:\n exim4-config : Conflicts: postfix but 3.7.11-0+deb12u1 is to be installed\n exim4-daemon-light : Conflicts: mail-transport-agent\n postfix : Conflicts: mail-transport-agent\n";
        let stderr = "E: Unable to correct problems, you have held broken packages.\n";
        let told = reason(stdout, stderr);
        assert_eq!(
            told,
            "exim4-config : Conflicts: postfix but 3.7.11-0+deb12u1 is to be installed\nexim4-daemon-light : Conflicts: mail-transport-agent\npostfix : Conflicts: mail-transport-agent"
        );
        let asked = requests(&["bash", "exim4-daemon-light", "postfix=3.7", "mail"]);
        assert_eq!(involved(&told, &asked), ["exim4-daemon-light", "postfix=3.7"]);
    }

    #[test]
    fn the_reason_of_apt_3_is_in_its_error() {
        let stderr = "E: Unable to satisfy dependencies. Reached two conflicting assignments:\n   1. postfix:amd64=3.10.4-1 is selected for install\n   2. postfix:amd64 Conflicts mail-transport-agent\n      [selected exim4-daemon-light:amd64]\n";
        let told = reason("", stderr);
        assert!(told.starts_with("Unable to satisfy dependencies."), "{told}");
        assert!(told.contains("\n[selected exim4-daemon-light:amd64]"), "{told}");
        assert_eq!(
            involved(&told, &requests(&["bash", "exim4-daemon-light", "postfix"])),
            ["exim4-daemon-light", "postfix"]
        );
        let gone = reason("", "E: Release 'sid' for 'bash' was not found\n");
        assert_eq!(gone, "Release 'sid' for 'bash' was not found");
        assert_eq!(involved(&gone, &requests(&["vim", "bash/sid"])), ["bash/sid"]);
    }
}
