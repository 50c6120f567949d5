//! A skeleton that anybody may have written, followed in a layer's directory with traps in it.
//!
//! What comes out has the size that the skeleton says; nothing outside the directory is read.

use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::OnceLock;

use rackstep::formats::image::layer;
use rackstep::formats::image::skeleton::{Record, SkeletonReader, SkeletonWriter};

use crate::scratch;

const SECRET: &[u8] = b"what stands outside of the layer";
/// Zeros are announced by their number: whoever takes them decides how many.
const MOST: u64 = 1 << 20;

fn dir() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let outer = DIR.get_or_init(|| {
        let outer = scratch::dir();
        std::fs::write(outer.path().join("secret"), SECRET).expect("writing");
        let dir = outer.path().join("layer");
        std::fs::create_dir_all(dir.join("root/d")).expect("making");
        std::fs::create_dir_all(dir.join("odd")).expect("making");
        std::fs::write(dir.join("root/a"), [b'a'; 300]).expect("writing");
        std::fs::write(dir.join("root/d/b"), b"bb").expect("writing");
        std::fs::write(dir.join("odd/7"), [b'o'; 9]).expect("writing");
        symlink("../../secret", dir.join("root/l")).expect("linking");
        symlink("../../secret", dir.join("odd/8")).expect("linking");
        symlink("..", dir.join("root/e")).expect("linking");
        outer
    });
    Box::leak(outer.path().join("layer").into_boxed_path())
}

/// Takes no more than so many bytes.
struct Sink {
    bytes: Vec<u8>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() as u64 + bytes.len() as u64 > MOST {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn run(data: &[u8]) {
    static DIR: OnceLock<&Path> = OnceLock::new();
    let dir = DIR.get_or_init(dir);
    std::fs::write(dir.join("skeleton"), data).expect("writing the skeleton");
    let mut sink = Sink { bytes: Vec::new() };
    let joined = layer::join(dir, &mut sink);
    if joined.is_ok() {
        assert_eq!(layer::size(dir).expect("the size"), sink.bytes.len() as u64);
    }
    let literal = data.windows(SECRET.len()).any(|window| window == SECRET);
    assert!(literal || !sink.bytes.windows(SECRET.len()).any(|window| window == SECRET), "read outside");
    // What was read can be written, and is read the same.
    let Some(records) = read(data) else { return };
    let mut writer = SkeletonWriter::new(Vec::new()).expect("writing to memory");
    for record in &records {
        match record {
            Record::Header(block) => writer.header(block),
            Record::File { path, size } => writer.file(path, *size),
            Record::Odd { number, size } => writer.odd(*number, *size),
            // Neighbouring zeros become one record, empty literals none.
            Record::Literal(_) | Record::Zeros(_) | Record::End { .. } => return,
        }
        .expect("writing to memory");
    }
    let again = writer.finish(7).expect("writing to memory");
    assert_eq!(read(&again), Some(records));
}

fn read(data: &[u8]) -> Option<Vec<Record>> {
    let mut reader = SkeletonReader::new(data).ok()?;
    let mut records = Vec::new();
    loop {
        match reader.next_record().ok()? {
            Record::End { .. } => return Some(records),
            record => records.push(record),
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let with = |write: &dyn Fn(&mut SkeletonWriter<Vec<u8>>) -> io::Result<()>, size| {
        let mut writer = SkeletonWriter::new(Vec::new()).expect("writing to memory");
        write(&mut writer).expect("writing to memory");
        writer.finish(size).expect("writing to memory")
    };
    let mut block = [0; 512];
    block[..5].copy_from_slice(b"usr/a");
    block[156] = b'0';
    vec![
        with(&|_| Ok(()), 0),
        with(&|to| to.header(&block).and_then(|()| to.file("a", 300)).and_then(|()| to.raw(&[0; 212])), 1024),
        with(&|to| to.file("d/b", 2).and_then(|()| to.odd(7, 9)).and_then(|()| to.raw(b"literal")), 18),
        with(&|to| to.file("l", 32), 32),
        with(&|to| to.odd(8, 32), 32),
        with(&|to| to.file("e/root/a", 300), 300),
        with(&|to| to.file("../../secret", 32), 32),
    ]
}
