//! Differences: what is made of two contents gives the newer one; arbitrary ones give as much as was announced, or nothing.
//!
//! Input: a byte of switches. Odd (3: as format 2 had it): a size (u16), then segments against a fixed content. Even: a length (u16), so many bytes
//! of older content, and the newer one behind.

use std::io::Read;

use rackstep::formats::pack::patch::{PatchReader, Pieces, Sums, append_segment};

fn older() -> Vec<u8> {
    (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn apply(sums: Sums, patch: &[u8], older: &[u8], size: u64) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    PatchReader::new(sums, patch, Pieces::new(older, older.len() as u64), size).read_to_end(&mut out)?;
    Ok(out)
}

pub fn run(data: &[u8]) {
    let [switches, high, low, rest @ ..] = data else { return };
    let number = u16::from_be_bytes([*high, *low]);
    if switches & 1 == 1 {
        let sums = if switches & 2 == 0 { Sums::Runs } else { Sums::Bytes };
        if let Ok(out) = apply(sums, rest, &older(), number.into()) {
            assert_eq!(out.len(), usize::from(number));
        }
        return;
    }
    let (older, new) = rest.split_at(rest.len().min(number.into()));
    let mut patch = Vec::new();
    if !new.is_empty() {
        append_segment(&mut patch, 0, older, new);
    }
    assert_eq!(apply(Sums::Runs, &patch, older, new.len() as u64).expect("applying what was made"), new);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let older = older();
    let mut new = older[..2000].to_vec();
    new.iter_mut().step_by(13).for_each(|byte| *byte = byte.wrapping_add(1));
    new.extend(b"something new");
    new.extend(&older[3000..]);
    let mut patch = Vec::new();
    append_segment(&mut patch, 0, &older, &new);
    let mut two = Vec::new();
    append_segment(&mut two, 0, &older[..1000], &new[..500]);
    append_segment(&mut two, 100, &older[100..4000], &new[500..]);
    let size = (new.len() as u16).to_be_bytes();
    let was = (older.len() as u16).to_be_bytes();
    vec![
        [&[1], size.as_slice(), &patch].concat(),
        [&[1], size.as_slice(), &two].concat(),
        [&[0], was.as_slice(), &older, &new].concat(),
        [&[0], [0, 30].as_slice(), b"the quick brown fox jumps over the lazy dog and the quick brown fox"]
            .concat(),
    ]
}
