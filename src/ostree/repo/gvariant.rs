//! ostree's object formats, as bytes.
//!
//! 1. File objects: a header (owner, mode, link target, xattrs), size-prefixed, then the content. That stream is the
//!    canonical form: its sha256 is the object's name.
//! 2. `.filez` files of archive repos: another header that carries the size as well, then raw deflate.
//! 3. Metadata objects: dirtree, dirmeta, commit.
//!
//! Source: libostree's `ostree-core.h` and `ostree-core.c`. GVariants hold integers as big-endian here. Bytes that
//! come from outside are checked to be in normal form before a field is used.

use std::io::{self, Read};

use glib::variant::ToVariant;
use glib::{Variant, VariantTy};

use crate::model::Digest;

/// A header larger than this is refused: the kernel limits one xattr value to 64 KiB, and files have a handful.
pub const HEADER_LIMIT: u32 = 1 << 20;

/// Mode bits that tell the kind of a file.
pub const KIND_MASK: u32 = 0o170_000;
/// A regular file.
pub const KIND_REGULAR: u32 = 0o100_000;
/// A symbolic link.
pub const KIND_LINK: u32 = 0o120_000;
/// A directory.
pub const KIND_DIRECTORY: u32 = 0o040_000;

/// Mode bits that can be changed.
const PERMISSIONS: u32 = 0o7777;
/// The mode of every link: Linux knows no other.
const LINK_MODE: u32 = 0o120_777;
/// To chown(2) this owner means: as it is.
const NO_ONE: u32 = u32::MAX;

const XATTRS: &str = "a(ayay)";
const FILE_HEADER: &str = "(uuuusa(ayay))";
const ARCHIVE_HEADER: &str = "(tuuuusa(ayay))";
pub(super) const DIR_META: &str = "(uuua(ayay))";
const DIR_TREE: &str = "(a(say)a(sayay))";
const COMMIT: &str = "(a{sv}aya(say)sstayay)";
/// The type of detached metadata.
pub const METADATA: &str = "a{sv}";

/// Why bytes are not the object that they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

pub(super) fn malformed<T>(reason: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(reason.into()))
}

/// Extended attributes, sorted by name: name without its NUL, value.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What a file object says of its file besides the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHeader {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Kind and permissions, as in `st_mode`.
    pub mode: u32,
    /// A symbolic link's target; empty for a regular file.
    pub target: String,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl FileHeader {
    /// Whether it is a symbolic link.
    pub fn is_link(&self) -> bool {
        self.mode & KIND_MASK == KIND_LINK
    }

    fn fields(&self) -> [Variant; 6] {
        [
            self.uid.to_be().into(),
            self.gid.to_be().into(),
            self.mode.to_be().into(),
            0u32.into(),
            self.target.as_str().into(),
            xattrs_variant(&self.xattrs),
        ]
    }

    /// The beginning of the canonical stream: everything before the content.
    pub fn stream_prefix(&self) -> Vec<u8> {
        size_prefixed(&Variant::tuple_from_iter(self.fields()))
    }

    /// The beginning of a `.filez` file with `size` bytes of content.
    pub fn archive_prefix(&self, size: u64) -> Vec<u8> {
        let fields = std::iter::once(size.to_be().into()).chain(self.fields());
        size_prefixed(&Variant::tuple_from_iter(fields))
    }

    /// Reads the beginning of a canonical stream; gives the header and its exact bytes.
    pub fn read(stream: &mut dyn Read) -> io::Result<(Self, Vec<u8>)> {
        let (bytes, variant) = read_size_prefixed(stream, FILE_HEADER)?;
        let header = Self::from_fields(&variant, 0).map_err(into_io)?;
        if header.stream_prefix() != bytes {
            // A device number, say: the checksum would be that of bytes that no repo keeps.
            return Err(into_io(Malformed("header with more than a repo keeps".into())));
        }
        Ok((header, bytes))
    }

    /// Reads the beginning of a `.filez` file; gives the header and the size of the content.
    pub fn read_archive(stream: &mut dyn Read) -> io::Result<(Self, u64)> {
        let (_, variant) = read_size_prefixed(stream, ARCHIVE_HEADER)?;
        let header = Self::from_fields(&variant, 1).map_err(into_io)?;
        let size = field::<u64>(&variant, 0).map_err(into_io)?;
        Ok((header, u64::from_be(size)))
    }

    fn from_fields(variant: &Variant, first: usize) -> Result<Self, Malformed> {
        let number = |index: usize| field::<u32>(variant, first + index).map(u32::from_be);
        let header = Self {
            uid: number(0)?,
            gid: number(1)?,
            mode: number(2)?,
            target: field::<String>(variant, first + 4)?,
            xattrs: parse_xattrs(&variant.child_value(first + 5))?,
        };
        header.require_keepable()?;
        Ok(header)
    }

    /// Refuses what a file cannot be given: written and read again, it would no longer be what its checksum says.
    fn require_keepable(&self) -> Result<(), Malformed> {
        let Self { uid, gid, mode, target, xattrs } = self;
        let fits = match mode & KIND_MASK {
            KIND_LINK => *mode == LINK_MODE && !target.is_empty(),
            KIND_REGULAR => mode & !(KIND_MASK | PERMISSIONS) == 0 && target.is_empty(),
            _ => false,
        };
        if !fits {
            return malformed(format!("mode {mode:o} with link target {target:?}"));
        }
        if *uid == NO_ONE || *gid == NO_ONE {
            return malformed(format!("owner {uid}:{gid}"));
        }
        if xattrs.is_sorted_by(|(one, _), (next, _)| one < next) {
            Ok(())
        } else {
            malformed("xattrs that are not in order, or twice")
        }
    }
}

/// A directory's names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirTree {
    /// Files and links: name, file object. Sorted by name.
    pub files: Vec<(String, Digest)>,
    /// Directories: name, dirtree object, dirmeta object. Sorted by name.
    pub dirs: Vec<(String, Digest, Digest)>,
}

impl DirTree {
    /// The dirtree object.
    pub fn render(&self) -> Vec<u8> {
        let files = self.files.iter().map(|(name, file)| {
            Variant::tuple_from_iter([name.as_str().into(), bytes_variant(file.as_bytes())])
        });
        let dirs = self.dirs.iter().map(|(name, tree, meta)| {
            Variant::tuple_from_iter([
                name.as_str().into(),
                bytes_variant(tree.as_bytes()),
                bytes_variant(meta.as_bytes()),
            ])
        });
        let fields = [array("(say)", files), array("(sayay)", dirs)];
        Variant::tuple_from_iter(fields).data().to_vec()
    }

    /// Parses a dirtree object and refuses names that could leave the directory.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let variant = parse(bytes, DIR_TREE)?;
        let mut tree = Self::default();
        for entry in variant.child_value(0).iter() {
            tree.files.push((entry_name(&entry)?, digest_field(&entry, 1)?));
        }
        for entry in variant.child_value(1).iter() {
            tree.dirs.push((entry_name(&entry)?, digest_field(&entry, 1)?, digest_field(&entry, 2)?));
        }
        Ok(tree)
    }
}

fn entry_name(entry: &Variant) -> Result<String, Malformed> {
    let name = field::<String>(entry, 0)?;
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return malformed(format!("name {name:?} in a directory"));
    }
    Ok(name)
}

/// A value in a commit's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaValue {
    /// A string.
    Text(String),
    /// A list of strings.
    List(Vec<String>),
    /// A boolean.
    Flag(bool),
}

impl MetaValue {
    fn variant(&self) -> Variant {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::List(list) => list.clone().into(),
            Self::Flag(flag) => (*flag).into(),
        }
    }
}

/// What a commit object holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitObject {
    /// Metadata in the order in which it is written; values of other types are left out when parsed.
    pub metadata: Vec<(String, MetaValue)>,
    /// The commit before.
    pub parent: Option<Digest>,
    /// One line.
    pub subject: String,
    /// Seconds since 1970.
    pub timestamp: u64,
    /// The root's dirtree object.
    pub root_tree: Digest,
    /// The root's dirmeta object.
    pub root_meta: Digest,
}

impl CommitObject {
    /// The commit object.
    pub fn render(&self) -> Vec<u8> {
        let entries = self.metadata.iter().map(|(key, value)| dict_entry(key, &value.variant()));
        let parent: &[u8] = self.parent.as_ref().map_or(&[], |parent| parent.as_bytes());
        let fields: [Variant; 8] = [
            array("{sv}", entries),
            bytes_variant(parent),
            array("(say)", std::iter::empty()),
            self.subject.as_str().into(),
            "".into(),
            self.timestamp.to_be().into(),
            bytes_variant(self.root_tree.as_bytes()),
            bytes_variant(self.root_meta.as_bytes()),
        ];
        Variant::tuple_from_iter(fields).data().to_vec()
    }

    /// Parses a commit object.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let variant = parse(bytes, COMMIT)?;
        let parent = variant.child_value(1);
        let parent = if parent.n_children() == 0 { None } else { Some(digest_field(&variant, 1)?) };
        let mut metadata = Vec::new();
        for entry in variant.child_value(0).iter() {
            let key = field::<String>(&entry, 0)?;
            let Some(value) = entry.child_value(1).as_variant() else { continue };
            let value = value
                .get::<String>()
                .map(MetaValue::Text)
                .or_else(|| value.get::<Vec<String>>().map(MetaValue::List))
                .or_else(|| value.get::<bool>().map(MetaValue::Flag));
            metadata.extend(value.map(|value| (key, value)));
        }
        Ok(Self {
            metadata,
            parent,
            subject: field(&variant, 3)?,
            timestamp: u64::from_be(field(&variant, 5)?),
            root_tree: digest_field(&variant, 6)?,
            root_meta: digest_field(&variant, 7)?,
        })
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find_map(|(name, value)| match value {
            MetaValue::Text(text) if name == key => Some(text.as_str()),
            _ => None,
        })
    }

    /// A list of the metadata; empty if it is not there.
    pub fn list(&self, key: &str) -> &[String] {
        self.metadata
            .iter()
            .find_map(|(name, value)| match value {
                MetaValue::List(list) if name == key => Some(list.as_slice()),
                _ => None,
            })
            .unwrap_or_default()
    }
}

/// Parses `a{sv}` into its entries, values unwrapped.
pub fn parse_dictionary(bytes: &[u8]) -> Result<Vec<(String, Variant)>, Malformed> {
    let variant = parse(bytes, METADATA)?;
    let mut entries = Vec::new();
    for entry in variant.iter() {
        if let Some(value) = entry.child_value(1).as_variant() {
            entries.push((field(&entry, 0)?, value));
        }
    }
    Ok(entries)
}

/// Renders `a{sv}` from its entries.
pub fn render_dictionary(entries: &[(String, Variant)]) -> Vec<u8> {
    array("{sv}", entries.iter().map(|(key, value)| dict_entry(key, value))).data().to_vec()
}

/// Parses `bytes` as `type_text` in normal form.
pub fn parse(bytes: &[u8], type_text: &str) -> Result<Variant, Malformed> {
    // Not `from_data_with_type` with the slice: glib 0.20 keeps the borrow beyond its life.
    let variant = Variant::from_bytes_with_type(&glib::Bytes::from(bytes), type_of(type_text)?);
    if variant.is_normal_form() {
        Ok(variant)
    } else {
        malformed(format!("not a {type_text} in normal form"))
    }
}

/// A byte array.
pub fn bytes_variant(bytes: &[u8]) -> Variant {
    Variant::array_from_fixed_array(bytes)
}

/// An array of elements of one type.
pub fn array(element: &str, children: impl Iterator<Item = Variant>) -> Variant {
    match VariantTy::new(element) {
        Ok(element) => Variant::array_from_iter_with_type(element, children),
        // The types are constants of this module: an unparsable one yields an array that no test lets pass.
        Err(_) => Variant::array_from_iter::<Variant>(children),
    }
}

fn type_of(text: &str) -> Result<&VariantTy, Malformed> {
    VariantTy::new(text).map_err(|_| Malformed(format!("type {text:?}")))
}

fn dict_entry(key: &str, value: &Variant) -> Variant {
    // Not `into()`: that would leave the value unboxed.
    glib::variant::DictEntry::new(key.to_owned(), value.clone()).to_variant()
}

pub(super) fn field<T: glib::variant::FromVariant>(variant: &Variant, index: usize) -> Result<T, Malformed> {
    variant.child_value(index).get::<T>().ok_or_else(|| Malformed(format!("field {index} has another type")))
}

fn digest_field(variant: &Variant, index: usize) -> Result<Digest, Malformed> {
    let child = variant.child_value(index);
    let bytes =
        child.fixed_array::<u8>().map_err(|_| Malformed(format!("field {index} is no byte array")))?;
    let bytes: [u8; 32] = bytes
        .try_into()
        .map_err(|_| Malformed(format!("field {index} is no sha256: {} bytes", bytes.len())))?;
    Ok(Digest::from_bytes(bytes))
}

pub(super) fn xattrs_variant(xattrs: &Xattrs) -> Variant {
    array(
        "(ayay)",
        xattrs.iter().map(|(name, value)| {
            let mut name = name.clone();
            name.push(0);
            Variant::tuple_from_iter([bytes_variant(&name), bytes_variant(value)])
        }),
    )
}

pub(super) fn parse_xattrs(variant: &Variant) -> Result<Xattrs, Malformed> {
    debug_assert_eq!(variant.type_().as_str(), XATTRS);
    let mut xattrs = Xattrs::new();
    for entry in variant.iter() {
        let (name, value) = (entry.child_value(0), entry.child_value(1));
        let bytes = |variant: &Variant| variant.fixed_array::<u8>().map(<[u8]>::to_vec).unwrap_or_default();
        match bytes(&name).split_last() {
            Some((0, name)) if !name.is_empty() && !name.contains(&0) => {
                xattrs.push((name.to_vec(), bytes(&value)));
            }
            _ => return malformed("name of an xattr"),
        }
    }
    Ok(xattrs)
}

/// 4 bytes of length, 4 of padding, then the variant: libostree's `_ostree_file_header` framing.
fn size_prefixed(variant: &Variant) -> Vec<u8> {
    let data = variant.data();
    let mut bytes = Vec::with_capacity(8 + data.len());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(data);
    bytes
}

fn read_size_prefixed(stream: &mut dyn Read, type_text: &str) -> io::Result<(Vec<u8>, Variant)> {
    let mut prefix = [0; 8];
    stream.read_exact(&mut prefix)?;
    let [a, b, c, d, padding @ ..] = prefix;
    let length = u32::from_be_bytes([a, b, c, d]);
    if padding != [0; 4] || length > HEADER_LIMIT {
        return Err(into_io(Malformed(format!("header of {length} bytes"))));
    }
    let mut bytes = vec![0; 8 + length as usize];
    bytes[..8].copy_from_slice(&prefix);
    stream.read_exact(&mut bytes[8..])?;
    let variant = parse(&bytes[8..], type_text).map_err(into_io)?;
    Ok((bytes, variant))
}

fn into_io(error: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FileHeader {
        FileHeader {
            uid: 1,
            gid: 2,
            mode: 0o104_755,
            target: String::new(),
            xattrs: vec![(b"user.a".to_vec(), b"1".to_vec())],
        }
    }

    #[test]
    fn headers_survive_both_forms() {
        let link = FileHeader { mode: 0o120_777, target: "../x".into(), xattrs: vec![], ..header() };
        for header in [header(), link] {
            let prefix = header.stream_prefix();
            assert_eq!(FileHeader::read(&mut prefix.as_slice()).unwrap(), (header.clone(), prefix));
            let archive = header.archive_prefix(7);
            assert_eq!(FileHeader::read_archive(&mut archive.as_slice()).unwrap(), (header, 7));
        }
    }

    #[test]
    fn refuses_headers_that_lie() {
        let twice = vec![(b"user.a".to_vec(), b"1".to_vec()), (b"user.a".to_vec(), b"2".to_vec())];
        let lies = [
            ("a device", FileHeader { mode: 0o060_644, ..header() }),
            ("bits beyond a mode", FileHeader { mode: 0o1_104_755, ..header() }),
            ("a link with permissions", FileHeader { mode: 0o120_644, target: "x".into(), ..header() }),
            ("no owner", FileHeader { uid: u32::MAX, ..header() }),
            ("no group", FileHeader { gid: u32::MAX, ..header() }),
            ("an xattr twice", FileHeader { xattrs: twice, ..header() }),
        ];
        for (what, header) in lies {
            assert!(FileHeader::read(&mut header.stream_prefix().as_slice()).is_err(), "{what}");
            assert!(FileHeader::read_archive(&mut header.archive_prefix(7).as_slice()).is_err(), "{what}");
        }
        let mut with_device_number = header().stream_prefix();
        with_device_number[8 + 15] = 1;
        assert!(FileHeader::read(&mut with_device_number.as_slice()).is_err());
        assert!(FileHeader::read(&mut [0xff; 64].as_slice()).is_err());
        assert!(FileHeader::read(&mut [0; 3].as_slice()).is_err());
    }

    #[test]
    fn refuses_names_that_leave_the_directory() {
        let digest = Digest::of(b"");
        for (name, good) in [("a", true), ("..", false), ("a/b", false), ("", false), (".", false)] {
            let tree = DirTree { files: vec![(name.into(), digest)], dirs: vec![] };
            assert_eq!(DirTree::parse(&tree.render()).is_ok(), good, "{name:?}");
        }
        assert!(DirTree::parse(&[1, 2, 3]).is_err());
    }

    #[test]
    fn commit_survives() {
        let commit = CommitObject {
            metadata: vec![
                ("version".into(), MetaValue::Text("1.0".into())),
                ("ostree.ref-binding".into(), MetaValue::List(vec!["a/b".into()])),
                ("ostree.bootable".into(), MetaValue::Flag(true)),
            ],
            parent: Some(Digest::of(b"p")),
            subject: "s".into(),
            timestamp: 1_700_000_000,
            root_tree: Digest::of(b"t"),
            root_meta: Digest::of(b"m"),
        };
        assert_eq!(CommitObject::parse(&commit.render()).unwrap(), commit);
    }
}
