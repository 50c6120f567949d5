//! Kernel arguments: which ones every part of the boot chain carries as they are.
//!
//! An argument goes through iPXE's script, libostree's entry, GRUB's script and GRUB's own line for the kernel. `grub-config`
//! quotes for GRUB's script, so that `;`, `&`, `|`, `<` and `$` are themselves. Five things nobody can quote: blanks end an
//! argument for libostree; `'`, `"` and `\` reach the kernel with a backslash before them (`grub_create_loader_cmdline` in
//! GRUB's `grub-core/lib/cmdline.c`); `${` is a setting of iPXE, a word that begins with `#` or is `||`, `&&` or `;` ends its
//! command (`src/core/exec.c`); what is not printable ASCII is told differently by each.

/// Why `text` cannot be one kernel argument, and what to do instead; none if it can.
pub fn problem_of(text: &str) -> Option<&'static str> {
    let has = |characters: &[char]| text.contains(characters);
    if text.is_empty() {
        Some("it is empty")
    } else if text.contains(|c: char| !c.is_ascii_graphic() && c != ' ') {
        Some("it has other characters than printable ASCII")
    } else if has(&[' ']) {
        Some("it has a blank, which ends an argument: write each argument as an entry of its own")
    } else if has(&['\'', '"', '\\']) {
        Some("it has a quote or a backslash, which GRUB would give to the kernel with a backslash before it")
    } else if text.contains("${") {
        Some("it has \"${\", which netboot would take for a setting: a single $ is fine")
    } else if text.starts_with('#') || ["||", "&&", ";"].contains(&text) {
        Some("it is what ends a command in netboot's script: inside an argument it is fine")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_boot_chain_carries() {
        for fine in [
            "quiet",
            "console=ttyS0,115200n8",
            "memmap=64M$1G",
            "pci=resource_alignment=20@0000:00:1c.0;20@0000:00:1d.0",
            "systemd.setenv=MODE=a&b",
            "a=b|c<d>e#f(g){h}",
        ] {
            assert_eq!(problem_of(fine), None, "{fine}");
        }
        for wrong in
            ["", "a b", "x='y", "x=\"y\"", "a\\b", "a\nb", "a\tb", "a=${b}", "ä", "#a", "||", "&&", ";"]
        {
            assert!(problem_of(wrong).is_some(), "{wrong}");
        }
    }
}
