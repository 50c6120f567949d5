//! Kernel arguments of a deployment: the root's, then the release's, then the host's own.
//!
//! A release brings its arguments with it, and takes them away again; the host's own (of its profile in the rack file)
//! stay through every upgrade. A rollback changes nothing: each deployment keeps its own line.

/// The first deployment's line. `root` names the root file system, e.g. `["root=UUID=…", "rw"]`.
pub fn first(root: &[String], release: &[String], host: &[String]) -> Vec<String> {
    joined([root, release, host])
}

/// The line of the deployment that follows one with the line `current`.
///
/// What the old release brought goes, unless the host wants it too; what a person added by hand stays.
pub fn following(current: &[String], old: &[String], new: &[String], host: &[String]) -> Vec<String> {
    let stays = |argument: &&String| host.contains(argument) || is_root(argument) || !old.contains(argument);
    let (root, own): (Vec<String>, Vec<String>) =
        current.iter().filter(stays).cloned().partition(|argument| is_root(argument));
    joined([&root, new, &own])
}

/// What says where the root is and how to mount it: never a release's to take away.
fn is_root(argument: &str) -> bool {
    argument.starts_with("root=") || argument == "rw" || argument == "ro"
}

/// Each argument once: at its last place, since the kernel lets the last one win.
fn joined(parts: [&[String]; 3]) -> Vec<String> {
    let all = parts.concat();
    let repeated = |index: usize| all[index + 1..].contains(&all[index]) && !is_root(&all[index]);
    let doubled_root = |index: usize| is_root(&all[index]) && all[..index].contains(&all[index]);
    (0..all.len())
        .filter(|&index| !repeated(index) && !doubled_root(index))
        .map(|index| all[index].clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_first_line_has_each_argument_once() {
        let line = first(
            &words("root=UUID=1 rw"),
            &words("rw console=tty0 console=ttyS0 quiet"),
            &words("console=ttyS0 hugepages=4"),
        );
        assert_eq!(line, words("root=UUID=1 rw console=tty0 quiet console=ttyS0 hugepages=4"));
    }

    #[test]
    fn a_release_takes_its_arguments_away_and_nobody_elses() {
        let host = words("console=ttyS0");
        let old = words("rw quiet console=ttyS0 old=1");
        let now = words("root=UUID=1 rw quiet old=1 console=ttyS0 byhand");
        for (name, new, line) in [
            ("swaps", "rw new=1", "root=UUID=1 rw new=1 console=ttyS0 byhand"),
            ("keeps", "rw quiet old=1", "root=UUID=1 rw quiet old=1 console=ttyS0 byhand"),
            ("has none", "", "root=UUID=1 rw console=ttyS0 byhand"),
        ] {
            assert_eq!(following(&now, &old, &words(new), &host), words(line), "{name}");
        }
    }

    #[test]
    fn the_same_release_again_changes_nothing() {
        let release = words("rw quiet");
        let line = first(&words("root=UUID=1 rw"), &release, &words("a=1 b=2"));
        assert_eq!(following(&line, &release, &release, &words("a=1 b=2")), line);
    }
}
