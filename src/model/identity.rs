//! What machines and disks are known by, in one spelling. Rack files, boot firmware, kernel and udev write the same thing in
//! different ways; both sides of every comparison go through this module.
//!
//! 1. SMBIOS UUIDs: case, braces, dashes left out, and the byte order in which some firmware shows the first three fields
//!    (DMTF DSP0134, 7.2.1);
//! 2. serial numbers: blanks at the ends and in between, case, and the blank that `+` is in a query;
//! 3. world-wide names: `naa.`, `wwn-0x`, `eui.`, `0x` or bare; 4. paths: with or without `/dev/disk/by-path/`.
//!
//! What vendors leave in place of an identity is none: it would be the name of every machine of that kind.

use uuid::Uuid;

/// Words that vendors leave in place of a serial number, in the spelling of [`normal_text`].
const STOCK_WORDS: [&str; 30] = [
    "none",
    "null",
    "n/a",
    "na",
    "unknown",
    "invalid",
    "empty",
    "default",
    "default string",
    "not specified",
    "not applicable",
    "not available",
    "not present",
    "not settable",
    "to be filled by o.e.m.",
    "to be filled by o.e.m",
    "to be filled by oem",
    "filled by oem",
    "o.e.m.",
    "oem",
    "system serial number",
    "chassis serial number",
    "base board serial number",
    "serial number",
    "serial",
    "sernum0",
    "standard",
    "type1family",
    "0123456789",
    "123456789",
];

/// UUIDs that boards leave the factory with: AMI's and the like, in both byte orders.
const STOCK_UUIDS: [&str; 8] = [
    "03000200-0400-0500-0006-000700080009",
    "00020003-0004-0005-0006-000700080009",
    "03020100-0504-0706-0809-0a0b0c0d0e0f",
    "00010203-0405-0607-0809-0a0b0c0d0e0f",
    "12345678-1234-5678-90ab-cddeefaabbcc",
    "78563412-3412-7856-90ab-cddeefaabbcc",
    "fefefefe-fefe-fefe-fefe-fefefefefefe",
    "4c4c4544-0000-2010-8020-80c04f202020",
];

/// A UUID in lower case with dashes; `None`: it is not one.
pub fn normal_uuid(text: &str) -> Option<String> {
    parse_uuid(text).map(|uuid| uuid.to_string())
}

fn parse_uuid(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text.trim().to_ascii_lowercase().as_str()).ok()
}

/// A UUID as it is compared: the same text for both byte orders; `None`: not a UUID, or one that many boards have.
pub fn machine_uuid(text: &str) -> Option<String> {
    let uuid = parse_uuid(text)?;
    let both = [uuid.to_string(), Uuid::from_bytes_le(*uuid.as_bytes()).to_string()];
    let mut digits = both[0].chars().filter(|c| *c != '-');
    let first = digits.next();
    // All zeros, all ones, one digit over and over.
    if digits.all(|digit| Some(digit) == first) || both.iter().any(|one| STOCK_UUIDS.contains(&one.as_str()))
    {
        return None;
    }
    both.into_iter().min()
}

/// A text as it is compared: lower case, blanks at the ends gone, runs of blanks and `+` one blank.
pub fn normal_text(text: &str) -> String {
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c == '+' || c == '\0')
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ").to_lowercase()
}

/// A machine's serial number as it is compared; `None`: empty, or what vendors leave in its place.
pub fn machine_serial(text: &str) -> Option<String> {
    let text = normal_text(text);
    let mut kinds: Vec<char> = text.chars().filter(|c| c.is_alphanumeric()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    // "0", "00000000", "xxxxxxx", "-", "........".
    (kinds.len() > 1 && !STOCK_WORDS.contains(&text.as_str())).then_some(text)
}

/// A world-wide name as it is compared; `None`: it is not one.
pub fn normal_wwn(text: &str) -> Option<String> {
    let mut text = text.trim().to_lowercase();
    for prefix in ["wwn-", "nvme-", "naa.", "eui.", "0x"] {
        if let Some(rest) = text.strip_prefix(prefix) {
            text = rest.to_owned();
        }
    }
    // The kernel's word for NVMe without EUI or NGUID: vendor, serial, model in hexadecimal digits.
    let digits = text.strip_prefix("nvme.").unwrap_or(&text);
    let is_name = digits.len() >= 8 && digits.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    is_name.then_some(text)
}

/// The name of a link below `/dev/disk/by-path`; `None`: a path elsewhere, or none.
pub fn normal_path(text: &str) -> Option<String> {
    let text = text.trim();
    let name = text.strip_prefix("/dev/disk/by-path/").unwrap_or(text);
    (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "4c4c4544-0042-3510-8052-b4c04f4e3533";

    #[test]
    fn spellings_of_one_uuid() {
        for same in [
            UUID,
            "4C4C4544-0042-3510-8052-B4C04F4E3533",
            "{4C4C4544-0042-3510-8052-B4C04F4E3533}",
            " 4c4c4544004235108052b4c04f4e3533\n",
            "urn:uuid:4c4c4544-0042-3510-8052-b4c04f4e3533",
            "44454c4c-4200-1035-8052-b4c04f4e3533",
        ] {
            assert_eq!(machine_uuid(same), machine_uuid(UUID), "{same}");
        }
        assert_ne!(machine_uuid("4c4c4544-0042-3510-8052-b4c04f4e3544"), machine_uuid(UUID));
        for none in ["", "4c4c4544", "not-a-uuid", "4c4c4544-0042-3510-8052-b4c04f4e353g"] {
            assert_eq!(normal_uuid(none), None, "{none}");
        }
    }

    #[test]
    fn stock_identities_are_none() {
        for stock in [
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "03000200-0400-0500-0006-000700080009",
            "00020003-0004-0005-0006-000700080009",
        ] {
            assert_eq!(machine_uuid(stock), None, "{stock}");
        }
        for stock in [
            "",
            " ",
            "0",
            "00000000",
            "To be filled by O.E.M.",
            "Default  string",
            "xxxxxxx",
            "NONE",
            "None ",
            "............",
            "System Serial Number",
        ] {
            assert_eq!(machine_serial(stock), None, "{stock}");
        }
        for real in ["7XKJ2S3", "S1", "VMware-56 4d 1f", "10"] {
            assert!(machine_serial(real).is_some(), "{real}");
        }
    }

    #[test]
    fn serials_paths_and_world_wide_names() {
        assert_eq!(machine_serial("SGH 123  ABC "), machine_serial("sgh 123 abc"));
        assert_eq!(machine_serial("AB&CD=1+1%20#x"), machine_serial("AB&CD=1 1%20#x"));
        for same in
            ["0x5000c500a1b2c3d4", "naa.5000c500a1b2c3d4", "wwn-0x5000C500A1B2C3D4", "5000c500a1b2c3d4"]
        {
            assert_eq!(normal_wwn(same).as_deref(), Some("5000c500a1b2c3d4"), "{same}");
        }
        assert_eq!(normal_wwn("eui.0025385b71b0a1c2"), normal_wwn("nvme-eui.0025385b71b0a1c2"));
        assert!(normal_wwn("nvme.8086-50484c4a").is_some());
        for none in ["", "0x", "disk-1", "S4EVNX0R100001"] {
            assert_eq!(normal_wwn(none), None, "{none}");
        }
        assert_eq!(normal_path("/dev/disk/by-path/pci-0000:00:04.0").as_deref(), Some("pci-0000:00:04.0"));
        assert_eq!(normal_path("pci-0000:00:04.0").as_deref(), Some("pci-0000:00:04.0"));
        assert_eq!((normal_path("/dev/sda"), normal_path("")), (None, None));
    }
}
