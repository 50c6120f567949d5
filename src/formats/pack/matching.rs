//! Finding what of a new content is like an older one, bytes that differ here and there included.
//!
//! 1. Every second position of the older content goes into a table by its next eight bytes;
//! 2. the new content is followed along one alignment with the older one for as long as it agrees; where it does not, the
//!    table names another place, which is taken if it agrees for clearly longer;
//! 3. the stretch before such a change grows forwards and the one after it backwards, over bytes that differ, while more
//!    agree than not. What neither reaches is literal.
//!
//! The idea is bsdiff's: in a program that was built again, addresses differ everywhere and the rest is the same. Its
//! suffix array was rejected: 8 s and nine times the content in memory for 5 MB; this takes 0.1 s and finds as much.

/// Bytes that must agree exactly before a place is considered.
const ANCHOR: usize = 8;
/// Positions of the older content that share one entry of the table.
const STRIDE: usize = 2;
/// By how many bytes another place must be better than the present one.
const GAIN: usize = 8;
/// The table has at most 2 to the power of this many entries: 32 MiB.
const TABLE_BITS: u32 = 23;

/// A stretch of the new content: `copied` bytes that are like the older ones at `older`, then `literals` that are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Where the copied bytes are in the older content.
    pub older: usize,
    /// How many bytes are like it.
    pub copied: usize,
    /// How many new bytes follow.
    pub literals: usize,
}

/// Bytes of memory that [`stretches`] takes beside the contents.
pub fn table_bytes(older: usize) -> u64 {
    4 << table_bits(older)
}

/// Divides the new content into stretches: together they are all of it, in order.
pub fn stretches(older: &[u8], new: &[u8]) -> Vec<Stretch> {
    let table = Table::of(older);
    let mut found = Vec::new();
    let mut begin = Pair { older: 0, new: 0 };
    let mut at = 0;
    while at < new.len() {
        let along = older.get(begin.older + (at - begin.new)..).unwrap_or_default();
        let run = agreeing(along, &new[at..]);
        if run >= ANCHOR {
            at += run;
            continue;
        }
        let Some(place) = table.find(older, &new[at..]) else {
            at += 1;
            continue;
        };
        let length = agreeing(&older[place..], &new[at..]);
        let held = along.iter().zip(&new[at..at + length]).filter(|(a, b)| a == b).count();
        if length > held + GAIN {
            let next = Pair { older: place, new: at };
            let (copied, back) = meet(older, new, begin, next);
            let literals = at - back - begin.new - copied;
            found.push(Stretch { older: begin.older, copied, literals });
            begin = Pair { older: place - back, new: at - back };
            at += length;
        } else {
            at += if held == length { length } else { 1 };
        }
    }
    let copied = grow(forwards(older, new, begin, new.len() - begin.new));
    found.push(Stretch { older: begin.older, copied, literals: new.len() - begin.new - copied });
    found
}

/// A place in both contents.
#[derive(Clone, Copy)]
struct Pair {
    older: usize,
    new: usize,
}

/// How far the stretch from `begin` reaches forwards, and the one from `next` backwards.
fn meet(older: &[u8], new: &[u8], begin: Pair, next: Pair) -> (usize, usize) {
    let between = next.new - begin.new;
    let mut copied = grow(forwards(older, new, begin, between));
    let most = between.min(next.older);
    let mut back = grow((1..=most).map(|step| older[next.older - step] == new[next.new - step]));
    if copied + back > between {
        // Both claim the same bytes: divide them where the most agree.
        let shared = copied + back - between;
        let (mut score, mut best, mut keep) = (0i64, 0, 0);
        for step in 0..shared {
            let first = copied - shared + step;
            if older[begin.older + first] == new[begin.new + first] {
                score += 1;
            }
            if older[next.older - back + step] == new[next.new - back + step] {
                score -= 1;
            }
            if score > best {
                (best, keep) = (score, step + 1);
            }
        }
        copied = copied - shared + keep;
        back -= keep;
    }
    (copied, back)
}

fn forwards<'c>(older: &'c [u8], new: &'c [u8], begin: Pair, most: usize) -> impl Iterator<Item = bool> + 'c {
    let along = older.get(begin.older..).unwrap_or_default();
    along.iter().zip(&new[begin.new..]).take(most).map(|(a, b)| a == b)
}

/// The length at which agreeing bytes outnumber the others by the most.
fn grow(agree: impl Iterator<Item = bool>) -> usize {
    let (mut score, mut best, mut length) = (0i64, 0, 0);
    // To the end: what agrees beyond a gap was passed by above, since it lies on the alignment, and nobody would find it again.
    for (index, agrees) in agree.enumerate() {
        score += if agrees { 1 } else { -1 };
        if score > best {
            (best, length) = (score, index + 1);
        }
    }
    length
}

fn agreeing(a: &[u8], b: &[u8]) -> usize {
    let blocks = a.chunks_exact(16).zip(b.chunks_exact(16)).take_while(|(a, b)| a == b).count() * 16;
    blocks + a[blocks..].iter().zip(&b[blocks..]).take_while(|(a, b)| a == b).count()
}

/// Where in the older content the eight bytes of a key stand; one place for each entry.
struct Table {
    places: Vec<u32>,
    bits: u32,
}

const NO_PLACE: u32 = u32::MAX;

impl Table {
    fn of(older: &[u8]) -> Self {
        let bits = table_bits(older.len());
        let mut table = Self { places: vec![NO_PLACE; 1 << bits], bits };
        // From the end, so that the first of several places wins: it is the likelier one.
        for place in (0..(older.len() + 1).saturating_sub(ANCHOR)).step_by(STRIDE).rev() {
            if let Some(entry) = table.entry(&older[place..])
                && let Ok(place) = u32::try_from(place)
            {
                table.places[entry] = place;
            }
        }
        table
    }

    fn entry(&self, bytes: &[u8]) -> Option<usize> {
        let key = u64::from_le_bytes(*bytes.first_chunk::<ANCHOR>()?);
        let mixed = (key ^ (key >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        usize::try_from((mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> (64 - self.bits)).ok()
    }

    /// A place that really has the first bytes of `new`.
    fn find(&self, older: &[u8], new: &[u8]) -> Option<usize> {
        let place = *self.places.get(self.entry(new)?)?;
        let place = usize::try_from(place).ok().filter(|_| place != NO_PLACE)?;
        (older.get(place..)?.first_chunk::<ANCHOR>() == new.first_chunk::<ANCHOR>()).then_some(place)
    }
}

fn table_bits(older: usize) -> u32 {
    (older / STRIDE).max(1 << 10).next_power_of_two().trailing_zeros().min(TABLE_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 7u64;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..length).map(next).collect()
    }

    fn literals(older: &[u8], new: &[u8]) -> usize {
        stretches(older, new).iter().map(|stretch| stretch.literals).sum()
    }

    #[test]
    fn what_moved_or_differs_here_and_there_is_found() {
        let older = noise(50_000);
        let moved = [&older[30_000..], b"something new here", &older[..30_000]].concat();
        assert!(literals(&older, &moved) < 40);
        let mut touched = older.clone();
        touched.iter_mut().step_by(9).for_each(|byte| *byte = byte.wrapping_add(1));
        assert_eq!(literals(&older, &touched), 0);
        assert_eq!(literals(&[], &older), older.len());
    }

    #[test]
    fn what_agrees_beyond_a_long_gap_is_not_literal() {
        let older = noise(100_000);
        for gap in [100, 300, 5000] {
            let mut new = older.clone();
            new[1000..1000 + gap].iter_mut().for_each(|byte| *byte = !*byte);
            // Later something moves, so that there is more than one stretch.
            let new = [&new[..90_000], b"put in between", &new[90_000..]].concat();
            assert!(literals(&older, &new) < gap + 100, "{gap}: {}", literals(&older, &new));
        }
    }

    proptest! {
        #[test]
        fn stretches_are_all_of_the_content(
            older in proptest::collection::vec(0u8..3, 0..400),
            new in proptest::collection::vec(0u8..3, 0..400),
        ) {
            let found = stretches(&older, &new);
            prop_assert_eq!(found.iter().map(|s| s.copied + s.literals).sum::<usize>(), new.len());
            prop_assert!(found.iter().all(|s| s.older + s.copied <= older.len().max(s.older)));
        }
    }
}
