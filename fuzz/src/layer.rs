//! A layer's tar: taken apart and put together it is the same, or it is refused; nothing is written elsewhere.
//!
//! Input: a byte of switches, then the tar. Checksums of headers are made right, or nearly every mutation would end there.

use rackstep::formats::image::layer::{self, split};
use rackstep::formats::image::{Limits, Ownership};
use rackstep::model::Digest;

use crate::scratch;

const BLOCK: usize = 512;
const MAGIC: std::ops::Range<usize> = 257..262;

pub fn run(data: &[u8]) {
    let Some((switches, tar)) = data.split_first() else { return };
    let mut tar = tar.to_vec();
    if switches & 1 == 0 {
        tar.chunks_exact_mut(BLOCK).filter(|block| block[MAGIC] == *b"ustar").for_each(mend_checksum);
    }
    let ownership = if switches & 2 == 0 { Ownership::Ignore } else { Ownership::Apply };
    let limits =
        Limits { layer_bytes: 1 << 20, extension_bytes: 16 << 10, name_bytes: 5000, ..Limits::default() };
    let outer = scratch::dir();
    let dir = outer.path().join("layer");
    std::fs::create_dir(&dir).expect("making the layer's directory");
    let outcome = split(tar.as_slice(), &dir, ownership, &limits);
    assert_eq!(scratch::names(outer.path()), ["layer"], "written beside the layer");
    for name in scratch::names(&dir) {
        assert!(["root", "odd", "skeleton"].contains(&name.as_str()), "{name:?} in the layer");
    }
    for entry in walkdir::WalkDir::new(&dir) {
        let entry = entry.expect("walking the layer");
        let kind = entry.file_type();
        assert!(kind.is_dir() || kind.is_file(), "{:?} is neither file nor directory", entry.path());
    }
    if let Ok(layer) = outcome {
        let mut again = Vec::new();
        let digest = layer::join(&dir, &mut again).expect("joining what was split");
        assert_eq!(again, tar, "joined, but not the same");
        assert_eq!((digest, layer.diff_id), (Digest::of(&tar), digest));
        assert_eq!(layer.size, tar.len() as u64);
        assert_eq!(layer::size(&dir).expect("reading the size"), layer.size);
    }
}

fn mend_checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn entry(kind: u8, name: &[u8], content: &[u8]) -> Vec<u8> {
    header(kind, name, format!("{:011o}\0", content.len()).as_bytes(), content)
}

fn header(kind: u8, name: &[u8], size: &[u8], content: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    block[100..124].copy_from_slice(b"0004755\x000001750\x000001750\0");
    block[124..136].copy_from_slice(size);
    block[136..148].copy_from_slice(b"14000000000\0");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    mend_checksum(&mut block);
    block.extend(content);
    block.resize(block.len().next_multiple_of(BLOCK), 0);
    block
}

fn pax(records: &[&str]) -> Vec<u8> {
    let lines = records.iter().map(|record| {
        // The length counts itself.
        let length = (1..).find(|n: &usize| n.to_string().len() + record.len() + 2 == *n).expect("a length");
        format!("{length} {record}\n")
    });
    entry(b'x', b"PaxHeaders/x", lines.collect::<String>().as_bytes())
}

pub fn seeds() -> Vec<Vec<u8>> {
    let end = vec![0; 2 * BLOCK];
    let mut sparse = header(b'S', b"sparse", b"00000000005\0", b"");
    sparse[386..410].copy_from_slice(b"00000000000\x0000000000005\0");
    sparse[482] = 1;
    sparse[483..495].copy_from_slice(b"00000010000\0");
    sparse.extend([0; BLOCK]);
    sparse.extend(b"hello");
    sparse.resize(sparse.len().next_multiple_of(BLOCK), 0);
    let base256 = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    let tars = [
        vec![entry(b'5', b"usr/", b""), entry(b'0', b"usr/a", b"hello"), entry(b'0', b"usr/b", &[7; 700])],
        vec![
            entry(b'0', b"a", b"x"),
            entry(b'0', b"./a", b"y"),
            entry(b'0', b"../a", b"z"),
            entry(b'0', b"/a/b", b"w"),
        ],
        vec![
            pax(&["path=long/name", "size=5", "uid=7"]),
            entry(b'0', b"x", b"hello"),
            entry(b'g', b"g", b"9 a=bcd\n"),
        ],
        vec![
            pax(&["SCHILY.xattr.security.capability=\u{1}"]),
            entry(b'0', b"cap", b"hello"),
            entry(b'1', b"hard", b""),
        ],
        vec![
            entry(b'L', b"././@LongLink", &[b'n'; 150]),
            entry(b'0', b"n", b"1"),
            entry(b'K', b"k", &[b'l'; 120]),
            entry(b'2', b"l", b""),
        ],
        vec![
            sparse,
            entry(b'0', b".wh.gone", b"1"),
            entry(b'3', b"dev", b""),
            entry(b'6', b"fifo", b""),
            entry(b'7', b"c", b"2"),
        ],
        vec![
            header(b'0', b"binary", &base256, b"seven77"),
            entry(b'0', b"latin-\xe9", b"3"),
            entry(b'Z', b"unknown", b"4"),
        ],
    ];
    let mut seeds = vec![vec![0], [vec![2], end.clone()].concat()];
    for (number, parts) in tars.into_iter().enumerate() {
        seeds.push([vec![if number % 2 == 0 { 0 } else { 2 }], parts.concat(), end.clone()].concat());
    }
    seeds.push([vec![0], entry(b'0', b"f", b"garbage behind"), end, b"behind the end".to_vec()].concat());
    seeds
}
