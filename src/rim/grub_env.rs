//! GRUB's environment block: the few bytes that GRUB writes and a system reads, and the other way round.
//!
//! A file of exactly 1024 bytes: a line of its own, then `name=value` lines, then `#` (`include/grub/lib/envblk.h`,
//! `grub-core/lib/envblk.c`). GRUB overwrites the blocks that the file has, and reads the file system without replaying its
//! journal: so **the file is written in place and never replaced**. A rename that only the journal knows would leave GRUB
//! writing into blocks that the system has given away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Size of the file.
pub const SIZE: usize = 1024;
/// Where it is, below `/boot`.
pub const PLACE: &str = "grub/grubenv";
/// Its first line.
const SIGNATURE: &str = "# GRUB Environment Block\n";

/// Variables of GRUB, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrubEnv {
    variables: Vec<(String, String)>,
}

/// Why the environment cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GrubEnvError {
    /// It could not be read or written.
    #[error("{doing} {}", path.display())]
    Io {
        /// The operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not such a file.
    #[error("{} is not an environment of GRUB: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// It has no room.
    #[error("the variables need {0} bytes, an environment of GRUB has 1024")]
    Full(usize),
    /// The disk gave back something else than what was written.
    #[error("{} does not read back as it was written", .0.display())]
    ReadBack(PathBuf),
    /// GRUB could not write where it is.
    #[error("GRUB could not count boots in {}: {why}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

impl GrubEnv {
    /// Reads the bytes of the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() != SIZE {
            return Err(format!("it has {} bytes, not {SIZE}", bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let rest = text.strip_prefix(SIGNATURE).ok_or("it lacks its first line")?;
        let mut variables = Vec::new();
        for line in unescaped_lines(rest) {
            if let Some((name, value)) = line.split_once('=')
                && !name.starts_with('#')
            {
                variables.push((name.to_owned(), value.to_owned()));
            }
        }
        Ok(Self { variables })
    }

    /// The bytes of the file.
    pub fn render(&self) -> Result<Vec<u8>, GrubEnvError> {
        let mut text = SIGNATURE.to_owned();
        for (name, value) in &self.variables {
            let value = value.replace('\\', "\\\\").replace('\n', "\\\n");
            text += &format!("{name}={value}\n");
        }
        if text.len() > SIZE {
            return Err(GrubEnvError::Full(text.len()));
        }
        let mut bytes = text.into_bytes();
        bytes.resize(SIZE, b'#');
        Ok(bytes)
    }

    /// The value of a variable; one that is empty is not there.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Gives a variable a value.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.variables.iter_mut().find(|(other, _)| other == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.variables.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Takes a variable away.
    pub fn unset(&mut self, name: &str) {
        self.variables.retain(|(other, _)| other != name);
    }

    /// Reads the file; none: there is none, as on hosts that an older rackstep imaged.
    pub fn read(path: &Path) -> Result<Option<Self>, GrubEnvError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("reading", path)(source)),
        };
        Self::parse(&bytes)
            .map(Some)
            .map_err(|problem| GrubEnvError::Damaged { path: path.to_owned(), problem })
    }

    /// Writes the file in place; it is on the disk, and was read back from there, when this returns.
    pub fn write(&self, path: &Path) -> Result<(), GrubEnvError> {
        let bytes = self.render()?;
        let mut file =
            OpenOptions::new().read(true).write(true).open(path).map_err(io_error("opening", path))?;
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(&bytes))
            .and_then(|()| file.sync_all())
            .map_err(io_error("writing", path))?;
        // What is in memory is not asked, as far as the kernel lets it go.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        let mut back = vec![0; SIZE];
        file.read_exact_at(&mut back, 0).map_err(io_error("reading back", path))?;
        if back == bytes { Ok(()) } else { Err(GrubEnvError::ReadBack(path.to_owned())) }
    }

    /// Makes the file where there is none: for the installer alone, which unmounts the file system afterwards.
    pub fn create(path: &Path) -> Result<(), GrubEnvError> {
        if path.exists() {
            return Ok(());
        }
        let bytes = Self::default().render()?;
        let mut file = File::create_new(path).map_err(io_error("making", path))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io_error("writing", path))
    }
}

/// Fails where GRUB could not write the file: it needs whole blocks of a plain partition (`save_env`, "sparse file not
/// allowed", "diskfilter writes are not supported"). `filesystem` is the type, `device` the name of what it lies on.
pub fn require_writable(path: &Path, filesystem: &str, device: &str) -> Result<(), GrubEnvError> {
    let refuse = |why: String| Err(GrubEnvError::Unwritable { path: path.to_owned(), why });
    if !matches!(filesystem, "ext4" | "ext3" | "ext2" | "vfat") {
        return refuse(format!(
            "{filesystem} keeps small files or copies in ways that GRUB cannot overwrite"
        ));
    }
    if ["dm-", "md", "bcache"].iter().any(|kind| device.starts_with(kind)) {
        return refuse(format!("{device} is put together from others, which GRUB reads only"));
    }
    Ok(())
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> GrubEnvError + 'a {
    move |source| GrubEnvError::Io { doing, path: path.to_owned(), source }
}

/// Lines; a backslash takes the character after it as it is.
fn unescaped_lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let last = lines.len() - 1;
        match character {
            '\\' => lines[last].extend(characters.next()),
            '\n' => lines.push(String::new()),
            other => lines[last].push(other),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_always_1024_bytes_and_keeps_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grubenv");
        assert_eq!(GrubEnv::read(&path).unwrap(), None);
        GrubEnv::create(&path).unwrap();
        let mut env = GrubEnv::read(&path).unwrap().unwrap();
        assert_eq!(env, GrubEnv::default());
        env.set("theirs", "a\\b\nc");
        env.set("tries", "1");
        env.set("tries", "2");
        env.write(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 1024);
        let text = "# GRUB Environment Block\ntheirs=a\\\\b\\\nc\ntries=2\n###";
        assert!(bytes.starts_with(text.as_bytes()), "{}", String::from_utf8_lossy(&bytes));
        let mut env = GrubEnv::read(&path).unwrap().unwrap();
        assert_eq!((env.get("theirs"), env.get("tries")), (Some("a\\b\nc"), Some("2")));
        env.unset("tries");
        env.set("empty", "");
        assert_eq!((env.get("tries"), env.get("empty")), (None, None));
        env.set("long", &"x".repeat(1000));
        assert!(matches!(env.write(&path), Err(GrubEnvError::Full(1053))), "{:?}", env.render());
        assert_eq!(GrubEnv::read(&path).unwrap().unwrap().get("tries"), Some("2"));
    }

    #[test]
    fn it_is_the_same_file_after_a_write() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grubenv");
        GrubEnv::create(&path).unwrap();
        let before = fs::metadata(&path).unwrap().ino();
        let mut env = GrubEnv::default();
        env.set("confirmed", "a");
        env.write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), before);
        assert!(env.write(&dir.path().join("none")).is_err());
    }

    #[test]
    fn files_that_are_none() {
        for (bytes, problem) in [
            (vec![b'#'; 1023], "it has 1023 bytes, not 1024"),
            (vec![b'#'; 1024], "it lacks its first line"),
            (vec![0; 1024], "it lacks its first line"),
        ] {
            assert_eq!(GrubEnv::parse(&bytes).unwrap_err(), problem);
        }
    }

    #[test]
    fn layouts_in_which_grub_cannot_count() {
        let path = Path::new("/boot/grub/grubenv");
        for (filesystem, device, fine) in [
            ("ext4", "vda3", true),
            ("ext4", "loop0", true),
            ("btrfs", "vda3", false),
            ("xfs", "vda3", false),
            ("ext4", "dm-0", false),
            ("ext4", "md127", false),
        ] {
            assert_eq!(require_writable(path, filesystem, device).is_ok(), fine, "{filesystem} on {device}");
        }
    }
}
