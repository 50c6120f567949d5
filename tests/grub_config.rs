//! Kernel arguments in GRUB's configuration: every character is itself, and GRUB reads what is written.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

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
