//! Where the four partitions of a host's disk go. Pure.

use super::{DiskError, MIB};

/// Space before the first partition: protective MBR, GPT, boot code.
pub const HEAD: u64 = MIB;
/// Space after the last partition: the backup GPT.
pub const TAIL: u64 = MIB;
/// Room for GRUB's core image when the firmware is a BIOS.
const BIOS_BOOT: u64 = MIB;
/// EFI system partition: FAT32, so large enough for its smallest form with sectors of 4096 bytes.
const ESP: u64 = 512 * MIB;
/// Kernels and initramfs of three releases and more.
const BOOT: u64 = 1024 * MIB;
/// The smallest root that holds a small release twice.
const SMALLEST_ROOT: u64 = 1024 * MIB;

/// A span of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// The spans of the four partitions, in the order of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// 1: GRUB's core image for BIOS.
    pub bios: Span,
    /// 2: EFI system partition.
    pub esp: Span,
    /// 3: `/boot`.
    pub boot: Span,
    /// 4: the sysroot.
    pub root: Span,
}

/// Number of the `/boot` partition, as GRUB's prefix names it.
pub const BOOT_NUMBER: u32 = 3;

/// Computes the layout for a disk of `size` bytes.
pub fn plan_layout(size: u64) -> Result<Layout, DiskError> {
    let needed = HEAD + BIOS_BOOT + ESP + BOOT + SMALLEST_ROOT + TAIL;
    if size < needed {
        return Err(DiskError::TooSmall { size, needed });
    }
    let bios = Span { start: HEAD, size: BIOS_BOOT };
    let esp = Span { start: bios.start + bios.size, size: ESP };
    let boot = Span { start: esp.start + esp.size, size: BOOT };
    let start = boot.start + boot.size;
    let end = (size - TAIL) / MIB * MIB;
    Ok(Layout { bios, esp, boot, root: Span { start, size: end - start } })
}

/// Renders the layout as a script for sfdisk, for sectors of `sector` bytes.
pub fn render_sfdisk(layout: &Layout, sector: u32) -> String {
    // Type GUIDs of the UEFI specification, GRUB's manual, and the Discoverable Partitions Specification (generic Linux data: the
    // root is named by root=UUID=, systemd is not to guess).
    let partitions = [
        (layout.bios, "21686148-6449-6E6F-744E-656564454649", "rackstep-bios"),
        (layout.esp, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "rackstep-esp"),
        (layout.boot, "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "rackstep-boot"),
        (layout.root, "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "rackstep-root"),
    ];
    let sector = u64::from(sector);
    let mut script = String::from("label: gpt\nunit: sectors\n\n");
    for (span, kind, name) in partitions {
        script += &format!(
            "start={}, size={}, type={kind}, name=\"{name}\"\n",
            span.start / sector,
            span.size / sector
        );
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_gib() {
        let layout = plan_layout(8_589_934_592).unwrap();
        assert_eq!(layout.bios, Span { start: 1_048_576, size: 1_048_576 });
        assert_eq!(layout.esp, Span { start: 2_097_152, size: 536_870_912 });
        assert_eq!(layout.boot, Span { start: 538_968_064, size: 1_073_741_824 });
        // Ends one MiB before the end of the disk.
        assert_eq!(layout.root, Span { start: 1_612_709_888, size: 6_976_176_128 });
    }

    #[test]
    fn odd_sizes_end_on_a_mebibyte() {
        let layout = plan_layout(8_589_934_592 + 512).unwrap();
        assert_eq!(layout.root.size % MIB, 0);
        assert!(layout.root.start + layout.root.size + TAIL <= 8_589_934_592 + 512);
    }

    #[test]
    fn too_small() {
        assert!(matches!(plan_layout(1_000_000_000), Err(DiskError::TooSmall { .. })));
    }

    #[test]
    fn script_counts_in_sectors() {
        let layout = plan_layout(8_589_934_592).unwrap();
        let script = render_sfdisk(&layout, 4096);
        assert!(script.contains("start=256, size=256, type=21686148"), "{script}");
        assert!(render_sfdisk(&layout, 512).contains("start=3149824, size=13625344, type=0FC63DAF"));
    }
}
