//! Kernel arguments in GRUB's configuration: every character is itself, and GRUB reads what is written.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rackstep::rim::grub_env::GrubEnv;
use rackstep::rim::grub_script::run;

/// Runs `grub-config` on entries, title and options each; the outcome and what it wrote.
fn render(entries: &[(&str, &str)]) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("entries")).unwrap();
    for (number, (title, options)) in entries.iter().enumerate() {
        let text = format!(
            "title {title}\nversion {}\noptions {options}\nlinux /ostree/a-1/vmlinuz\ninitrd /ostree/a-1/initramfs\n",
            number + 1
        );
        fs::write(dir.path().join(format!("entries/ostree-{}.conf", number + 1)), text).unwrap();
    }
    let out = dir.path().join("grub.cfg");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("host-image/root/usr/lib/rackstep/grub-config");
    let done = Command::new("sh").arg(script).arg("-o").arg(&out).output().unwrap();
    (done, fs::read_to_string(out).unwrap_or_default())
}

#[test]
fn every_character_of_an_argument_is_itself() {
    for (options, expected) in [
        ("root=UUID=1 rw quiet", "'root=UUID=1' 'rw' 'quiet'"),
        (
            "pci=resource_alignment=20@0000:00:1c.0;20@0000:00:1d.0 rw",
            "'pci=resource_alignment=20@0000:00:1c.0;20@0000:00:1d.0' 'rw'",
        ),
        ("systemd.setenv=MODE=a&b a|b a<b", "'systemd.setenv=MODE=a&b' 'a|b' 'a<b'"),
        ("memmap=64M$1G x={y} #z", "'memmap=64M$1G' 'x={y}' '#z'"),
        ("x='y rw", "'x='\\''y' 'rw'"),
        ("a\\b *", "'a\\b' '*'"),
        ("dyndbg=\"file a.c +p\" rw", "'dyndbg=file a.c +p' 'rw'"),
    ] {
        let (done, text) = render(&[("tiny 1.0", options)]);
        assert!(done.status.success(), "{options}: {}", String::from_utf8_lossy(&done.stderr));
        let line = text.lines().find(|line| line.contains("    linux ")).unwrap();
        assert_eq!(line.trim(), format!("linux '/ostree/a-1/vmlinuz' {expected}"));
        assert!(text.contains("menuentry 'tiny 1.0' --id 'ostree-1' {"), "{text}");
    }
}

#[test]
fn titles_are_quoted_and_the_highest_version_comes_first() {
    let (done, text) = render(&[("one", "rw"), ("it's $two; {", "rw")]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let titles: Vec<&str> = text.lines().filter(|line| line.starts_with("menuentry")).collect();
    assert_eq!(
        titles,
        ["menuentry 'it'\\''s $two; {' --id 'ostree-2' {", "menuentry 'one' --id 'ostree-1' {"]
    );
}

#[test]
fn what_grub_cannot_read_is_no_boot_entry() {
    let (done, text) = render(&[("one", "rw x=\"y")]);
    assert_eq!((done.status.code(), text.as_str()), (Some(1), ""));
    assert!(String::from_utf8_lossy(&done.stderr).contains("a double quote is not closed"));
}

const NEW: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const OLD: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OLDER: &str = "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";

/// GRUB's script for deployments in boot order, the next boot first.
fn ladder(order: &[&str]) -> String {
    let entries: Vec<(String, String)> = order
        .iter()
        .rev()
        .map(|commit| ((*commit).to_owned(), format!("rw quiet rackstep.release={commit}")))
        .collect();
    let borrowed: Vec<(&str, &str)> =
        entries.iter().map(|(title, options)| (title.as_str(), options.as_str())).collect();
    let (done, text) = render(&borrowed);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    text
}

/// Boots again and again, and gives what each boot took.
fn boots(text: &str, env: &mut GrubEnv, times: usize) -> Vec<String> {
    let mut taken = Vec::new();
    for _ in 0..times {
        let choice = run(text, Some(env), &mut |_| true).unwrap();
        let trial = choice.arguments.iter().find_map(|word| word.strip_prefix("rackstep.trial="));
        let wait = if choice.waits { " waits" } else { "" };
        taken.push(format!("{}{}{wait}", &choice.id[..1], trial.unwrap_or_default()));
    }
    taken
}

#[test]
fn what_is_not_confirmed_is_counted_and_ends() {
    let mut env = GrubEnv::default();
    env.set("confirmed", OLD);
    // Three of the new, three of the old, and then a person: no loop without an end, whatever panics.
    let taken = boots(&ladder(&[NEW, OLD]), &mut env, 8);
    assert_eq!(taken, ["b1", "b2", "b3", "a", "a", "a", "a waits", "a waits"]);
    assert_eq!((env.get("confirmed"), env.get("trial"), env.get("tries")), (Some(OLD), Some(NEW), Some("6")));
}

#[test]
fn what_is_confirmed_is_never_counted() {
    let mut env = GrubEnv::default();
    env.set("confirmed", NEW);
    let before = env.clone();
    assert_eq!(boots(&ladder(&[NEW, OLD]), &mut env, 5), ["b"; 5]);
    assert_eq!(env, before);
    // Nothing is armed before the flip: the order of before, the same file.
    assert_eq!(boots(&ladder(&[NEW]), &mut env, 5), ["b"; 5]);
    assert_eq!(env, before);
}

#[test]
fn a_count_is_of_one_release_and_a_power_cut_does_not_reset_it() {
    let mut env = GrubEnv::default();
    env.set("confirmed", OLD);
    assert_eq!(boots(&ladder(&[NEW, OLD]), &mut env, 2), ["b1", "b2"]);
    // What is on the disk is all that there is.
    let mut env = GrubEnv::parse(&env.render().unwrap()).unwrap();
    assert_eq!(boots(&ladder(&[NEW, OLD]), &mut env, 2), ["b3", "a"]);
    // Another release has a count of its own.
    assert_eq!(boots(&ladder(&[OLDER, OLD]), &mut env, 1), ["c1"]);
}

#[test]
fn the_way_back_is_the_confirmed_one_wherever_it_stands() {
    for (confirmed, back) in [(Some(OLD), "a"), (Some(OLDER), "c"), (None, "a")] {
        let mut env = GrubEnv::default();
        if let Some(confirmed) = confirmed {
            env.set("confirmed", confirmed);
        }
        assert_eq!(boots(&ladder(&[NEW, OLD, OLDER]), &mut env, 4)[3], back, "{confirmed:?}");
    }
}

#[test]
fn a_boot_that_grub_cannot_count_is_of_the_way_back() {
    let mut env = GrubEnv::default();
    env.set("confirmed", OLD);
    let text = ladder(&[NEW, OLD]);
    assert_eq!(run(&text, Some(&mut env), &mut |_| false).unwrap().id, OLD);
    // Hosts that an older rackstep imaged have no environment: they boot as they did.
    assert_eq!(run(&text, None, &mut |_| false).unwrap().id, NEW);
}

#[test]
fn one_entry_and_entries_of_older_releases_are_not_counted() {
    let mut env = GrubEnv::default();
    assert_eq!(boots(&ladder(&[NEW]), &mut env, 4), ["b"; 4]);
    let (_, text) = render(&[("old", &format!("rw rackstep.release={OLD}")), ("no name", "rw")]);
    assert_eq!(run(&text, Some(&mut env), &mut |_| true).unwrap().id, "ostree-2");
    assert_eq!(env, GrubEnv::default());
}
