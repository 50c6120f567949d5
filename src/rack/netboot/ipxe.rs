//! iPXE scripts: the installer, or the disk.
//!
//! `exit 1` makes the firmware go on with the next boot device; `exit 0` hangs OVMF in its setup.

use crate::model::Commit;

/// The path and query by which iPXE asks for its machine's script; iPXE fills in the settings.
pub const SCRIPT_QUERY: &str = "/boot/ipxe?mac=${mac:hexhyp}&uuid=${uuid}&serial=${serial:uristring}";

/// The initramfs's name inside iPXE; on UEFI the kernel looks it up by this name.
const INITRAMFS: &str = "initramfs.img";

/// Loads kernel and initramfs of `commit` and starts the installer.
pub fn render_installer(server: &str, host: &str, commit: Commit, arguments: &str) -> String {
    let short = commit.short();
    format!(
        "#!ipxe\n\
         echo rackstep: {host} starts the installer of release {short}\n\
         kernel {server}/boot/{commit}/vmlinuz initrd={INITRAMFS} {arguments} || goto failed\n\
         initrd --name {INITRAMFS} {server}/boot/{commit}/initramfs.img || goto failed\n\
         boot\n\
         :failed\n\
         echo rackstep: the installer could not be loaded\n\
         sleep 5\n\
         exit 1\n"
    )
}

/// Goes on with the disk, and tells why.
pub fn render_disk(why: &str) -> String {
    format!("#!ipxe\necho rackstep: {why}\nexit 1\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rack::netboot::kernel::render_arguments;

    #[test]
    fn the_installers_script() {
        let network = serde_json::from_value(serde_json::json!({
            "interface": "rack0", "address": "10.77.0.1/24", "range": ["10.77.0.100", "10.77.0.199"],
            "gateway": "10.77.0.254", "dns": ["10.77.0.253", "10.77.0.252"]
        }))
        .unwrap();
        let arguments = render_arguments(
            &network,
            crate::rack::netboot::kernel::Machine {
                mac: "52:54:00:00:00:01".parse().unwrap(),
                address: "10.77.0.11/24".parse().unwrap(),
                secret: "5ec2e7",
            },
            &["console=ttyS0,115200n8".to_owned()],
        );
        let commit = "ab".repeat(32).parse().unwrap();
        assert_eq!(
            render_installer(&network.server_url(), "control-1", commit, &arguments),
            "#!ipxe\n\
             echo rackstep: control-1 starts the installer of release ababababab\n\
             kernel http://10.77.0.1:8080/boot/abababababababababababababababababababababababababababababababab/vmlinuz \
             initrd=initramfs.img rdinit=/usr/lib/rackstep/installer-init rackstep.server=http://10.77.0.1:8080 \
             rackstep.mac=52:54:00:00:00:01 rackstep.ip=10.77.0.11/24 rackstep.secret=5ec2e7 rackstep.gateway=10.77.0.254 \
             rackstep.dns=10.77.0.253 console=ttyS0,115200n8 || goto failed\n\
             initrd --name initramfs.img http://10.77.0.1:8080/boot/abababababababababababababababababababababababababababababababab/initramfs.img || goto failed\n\
             boot\n\
             :failed\n\
             echo rackstep: the installer could not be loaded\n\
             sleep 5\n\
             exit 1\n"
        );
        assert_eq!(
            render_disk("control-1 is installed"),
            "#!ipxe\necho rackstep: control-1 is installed\nexit 1\n"
        );
    }
}
