//! The `rackstep` program: parses the command line and leaves the rest to [`rackstep::cli`].

use std::path::Path;
use std::process::ExitCode;

/// Tells libostree's grub2 backend which program writes `/boot/loader.N/grub.cfg`
/// (`ostree-bootloader-grub2.c`). Without it libostree would look for a `grub-mkconfig`.
const GRUB_CONFIG_VARIABLE: &str = "OSTREE_GRUB2_EXEC";
const GRUB_CONFIG_PROGRAM: &str = "/usr/lib/rackstep/grub-config";

fn main() -> ExitCode {
    name_grub_config_program();
    rackstep::cli::run()
}

fn name_grub_config_program() {
    if std::env::var_os(GRUB_CONFIG_VARIABLE).is_none() && Path::new(GRUB_CONFIG_PROGRAM).exists() {
        // SAFETY: the first statement of `main`; no other thread exists that could read the environment.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(GRUB_CONFIG_VARIABLE, GRUB_CONFIG_PROGRAM);
        }
    }
}
